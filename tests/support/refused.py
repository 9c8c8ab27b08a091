"""The 403s of stores, and the errors that real providers raise for them at a scripted server: the source of the docs' table."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from unreachable import variables

from jobs_backup.errors import (
    AlreadyExists,
    ConfigurationError,
    CredentialsExpired,
    JobsBackupError,
    NotSupported,
    PermissionDenied,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from jobs_backup.model import BytesBody
from jobs_backup.store import providers
from jobs_backup.testing.driver import Hooks
from jobs_backup.testing.fault_proxy import Answer, FaultProxy

_KEY: Final = "quota/trial/archive/key"  # with words that must not be taken for a reason
_PROXY: Final = Answer(403, b"<html><body>Blocked by policy: capacity, quota, trial</body></html>", {"Content-Type": "text/html"})


class Refusal(NamedTuple):
    """A 403. `hint` is part of the user's message; `meaning` is for the table."""

    code: str
    said: str
    error: type[JobsBackupError]
    hint: str
    hook: str = "write"
    meaning: str = ""


def s3(code: str, said: str) -> Answer:
    """A refusal as S3 and compatible stores send it."""
    body = f"<Error><Code>{code}</Code><Message>{escape(said)}</Message></Error>"
    return Answer(403, body.encode(), {"Content-Type": "application/xml"})


def gcs(code: str, said: str) -> Answer:
    """A refusal as Google Cloud Storage sends it: `code` is the reason."""
    reason: dict[str, object] = {"errors": [{"reason": code, "message": said}]}
    if code.isupper():  # Google's newer services do so
        reason = {"status": "PERMISSION_DENIED", "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code}]}
    error = {"error": {"code": 403, "message": said, **reason}}
    return Answer(403, json.dumps(error).encode(), {"Content-Type": "application/json"})


def azure(code: str, said: str) -> Answer:
    """A refusal as Azure sends it: the code is in a header and in XML."""
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{escape(said)}\nRequestId:1</Message></Error>'
    headers = {"Content-Type": "application/xml", "x-ms-request-id": "1", "x-ms-error-code": code}
    return Answer(403, text.encode(), headers)


_GRANT_S3: Final = "grant s3:PutObject on arn:aws:s3:::my-events/*"
_ACCOUNT: Final = "suspended, disabled or unpaid"
_QUOTA: Final = "quota"
_S3: Final = (
    Refusal("AccessDenied", "Access Denied", PermissionDenied, _GRANT_S3),
    Refusal("AccessDenied", "User: arn:aws:iam::1:user/archive is not authorized to perform: s3:PutObject on resource:"
            ' "arn:aws:s3:::trial-quota/k" because no identity-based policy allows the s3:PutObject action',
            PermissionDenied, "the identity-based policy does not allow s3:PutObject"),
    Refusal("AccessDenied", "User: arn:aws:iam::1:user/u is not authorized to perform: s3:PutObject on resource: arn:aws:s3:::e/k"
            " with an explicit deny in a resource-based policy", PermissionDenied, "a policy denies s3:PutObject"),
    Refusal("AccessDenied", "... because no VPC endpoint policy allows the s3:PutObject action", PermissionDenied,
            "the VPC endpoint policy does not allow"),
    Refusal("AccessDenied", "... because no service control policy allows the s3:PutObject action", PermissionDenied,
            "the service control policy does not allow"),
    Refusal("AccessDenied", "... because no permissions boundary allows the s3:PutObject action", PermissionDenied,
            "the permissions boundary does not allow"),
    Refusal("AccessDenied", "User: arn:aws:iam::1:user/u is not authorized to perform: kms:GenerateDataKey on resource:"
            " arn:aws:kms:eu-west-1:1:key/k", PermissionDenied, "grant kms:GenerateDataKey on arn:aws:kms:eu-west-1:1:key/k"),
    Refusal("AccessDenied", "Access Denied because object protected by object lock.", PermissionDenied, "a retention", "delete"),
    Refusal("AccessDenied", "Mfa Authentication must be used for this request", PermissionDenied, "MFA", "delete"),
    Refusal("AccessDenied", "Cannot upload files, storage cap exceeded. See the Caps & Alerts page to increase your cap.",
            Unavailable, _QUOTA),
    Refusal("AccessDenied", "Account is disabled", Unauthenticated, _ACCOUNT),
    Refusal("AccessDenied", "Request has expired", Unauthenticated, "clock"),
    Refusal("QuotaExceeded", "", Unavailable, _QUOTA),
    Refusal("BucketQuotaExceeded", "", Unavailable, _QUOTA),
    Refusal("StorageQuotaExceeded", "", Unavailable, _QUOTA),
    Refusal("XMinioAdminBucketQuotaExceeded", "Bucket quota exceeded", Unavailable, _QUOTA),
    Refusal("StorageLimitExceeded", "The limit of the tenant is exceeded", Unavailable, _QUOTA),
    Refusal("InvalidAccessKeyId", "", Unauthenticated, "check the access key"),
    Refusal("SignatureDoesNotMatch", "", Unauthenticated, "check the access key"),
    Refusal("InvalidSecurity", "The provided security credentials are not valid.", Unauthenticated, "check the access key"),
    Refusal("InvalidClientTokenId", "", Unauthenticated, "check the access key"),
    Refusal("RequestTimeTooSkewed", "", Unauthenticated, "clock"),
    Refusal("RequestExpired", "", Unauthenticated, "clock"),
    Refusal("ExpiredToken", "", CredentialsExpired, "use a role"),
    Refusal("AccountProblem", "", Unauthenticated, _ACCOUNT),
    Refusal("UserSuspended", "", Unauthenticated, _ACCOUNT),
    Refusal("AccountSuspended", "", Unauthenticated, _ACCOUNT),
    Refusal("UserDisable", "", Unauthenticated, _ACCOUNT),
    Refusal("InvalidPayer", "", Unauthenticated, _ACCOUNT),
    Refusal("OptInRequired", "", Unauthenticated, _ACCOUNT),
    Refusal("ArrearOverdue", "Your account has an overdue payment", Unauthenticated, _ACCOUNT),
    Refusal("NotSignedUp", "", Unauthenticated, "sign up"),
    Refusal("UnauthorizedAccess", "", Unauthenticated, "ICP"),
    Refusal("AccessDenied", "There were headers present in the request which were not signed", PermissionDenied, "a proxy between"),
    Refusal("AccessDenied", "Access denied by the condition s3:x-amz-server-side-encryption", PermissionDenied,
            "a policy has a condition on x-amz-server-side-encryption: set JOBS_BACKUP_S3_SSE"),
    Refusal("AccessDenied", "... the condition s3:x-amz-grant-read is not met", PermissionDenied, "condition on x-amz-grant-read"),
    Refusal("AccessDenied", "... the condition s3:TlsVersion is not met", PermissionDenied, _GRANT_S3),
    Refusal("InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock"
            " parameters", ConfigurationError, "set JOBS_BACKUP_S3_CHECKSUM=md5"),
    Refusal("InvalidRequest", "Bucket is missing Object Lock Configuration", ConfigurationError, "object lock configuration"),
    Refusal("ObjectLockConfigurationNotFoundError", "Object Lock configuration does not exist for this bucket", ConfigurationError,
            "no object lock configuration"),
    Refusal("AllAccessDisabled", "", Unauthenticated, "ask its support"),
    Refusal("InvalidObjectState", "", NotSupported, "restore it", "read"),
    Refusal("SomethingElse", "what no table has", PermissionDenied, "look up SomethingElse"),
    Refusal("", "", PermissionDenied, "a proxy or a firewall", meaning="no code: an empty answer, or a page"),
)  # fmt: skip
_MINIO: Final = (
    Refusal("AccessDenied", "Access Denied.", PermissionDenied, _GRANT_S3),
    Refusal("XMinioAdminBucketQuotaExceeded", "Bucket quota exceeded", Unavailable, _QUOTA),
    Refusal("RequestTimeTooSkewed", "", Unauthenticated, "clock"),
    Refusal("InvalidAccessKeyId", "", Unauthenticated, "check the access key"),
    Refusal("", "", PermissionDenied, "a proxy or a firewall", meaning="no code: an empty answer, or a page"),
)
_SPACES: Final = (
    Refusal("AccessDenied", "", PermissionDenied, "grant readwrite on my-events"),
    Refusal("QuotaExceeded", "", Unavailable, _QUOTA),
    Refusal("UserSuspended", "", Unauthenticated, _ACCOUNT),
    Refusal("SignatureDoesNotMatch", "", Unauthenticated, "check the access key"),
    Refusal("", "", PermissionDenied, "a proxy or a firewall", meaning="no code: an empty answer, or a page"),
)
_GCS: Final = (
    Refusal("forbidden", "trial@quota.iam.gserviceaccount.com does not have storage.objects.create access to the object.",
            PermissionDenied, "grant storage.objects.create on gs://my-events"),
    Refusal("insufficientPermissions", "Request had insufficient authentication scopes.", PermissionDenied, "the scope"),
    Refusal("accessNotConfigured", "Cloud Storage JSON API has not been used in project 1 before or it is disabled.",
            PermissionDenied, "enable the Cloud Storage API"),
    Refusal("accountDisabled", "The billing account for the owning project is disabled in state absent", Unauthenticated, _ACCOUNT),
    Refusal("BILLING_DISABLED", "This API method requires billing to be enabled.", Unauthenticated, _ACCOUNT),
    Refusal("SERVICE_DISABLED", "It is disabled.", PermissionDenied, "enable the Cloud Storage API"),
    Refusal("ACCESS_TOKEN_SCOPE_INSUFFICIENT", "Insufficient.", PermissionDenied, "the scope"),
    Refusal("RATE_LIMIT_EXCEEDED", "", Throttled, "JOBS_BACKUP_UPLOAD_CONCURRENCY"),
    Refusal("IAM_PERMISSION_DENIED", "Permission denied.", PermissionDenied, "grant storage.objects.create"),
    Refusal("rateLimitExceeded", "", Throttled, "JOBS_BACKUP_UPLOAD_CONCURRENCY"),
    Refusal("userRateLimitExceeded", "", Throttled, "JOBS_BACKUP_UPLOAD_CONCURRENCY"),
    Refusal("quotaExceeded", "", Throttled, "JOBS_BACKUP_UPLOAD_CONCURRENCY"),
    Refusal("dailyLimitExceeded", "", Throttled, "JOBS_BACKUP_UPLOAD_CONCURRENCY"),
    Refusal("sslRequired", "SSL is required to perform this operation.", PermissionDenied, "https://"),
    Refusal("countryBlocked", "", PermissionDenied, "requests from this network"),
    Refusal("forbidden", "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: x",
            PermissionDenied, "VPC Service Controls"),
    Refusal("forbidden", "Caller does not have required permission to use project p. Grant the caller the"
            " roles/serviceusage.serviceUsageConsumer role", PermissionDenied, "serviceusage.services.use"),
    Refusal("forbidden", "Permission denied on Cloud KMS key: cloudkms.cryptoKeyVersions.useToEncrypt", PermissionDenied,
            "grant cloudkms.cryptoKeyVersions.useToEncrypt on the bucket's key to the project's Cloud Storage service agent"),
    Refusal("retentionPolicyNotMet", "Object 'k' is subject to bucket's retention policy and cannot be deleted", PermissionDenied,
            "a retention policy", "delete"),
    Refusal("objectUnderActiveHold", "Object 'k' is under active Temporary hold", PermissionDenied, "a hold", "delete"),
    Refusal("somethingElse", "what no table has", PermissionDenied, "look up somethingElse"),
    Refusal("", "", PermissionDenied, "a proxy or a firewall", meaning="no JSON: an empty answer, or a page"),
)  # fmt: skip
_AZURE: Final = (
    Refusal("AuthorizationPermissionMismatch", "This request is not authorized to perform this operation using this permission.",
            PermissionDenied, "grant Microsoft.Storage"),
    Refusal("AuthorizationFailure", "This request is not authorized to perform this operation.", PermissionDenied,
            "grant Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write (SAS: w) on"
            " storageAccounts/account1/blobServices/default/containers/my-events; or the account's firewall"),
    Refusal("InsufficientAccountPermissions", "", PermissionDenied, "grant Microsoft.Storage"),
    Refusal("AuthorizationSourceIPMismatch", "", PermissionDenied, "rejects this address"),
    Refusal("AuthorizationProtocolMismatch", "", PermissionDenied, "https://"),
    Refusal("AuthorizationResourceTypeMismatch", "", PermissionDenied, "sr=c"),
    Refusal("AuthorizationServiceMismatch", "", PermissionDenied, "sr=c"),
    Refusal("AuthenticationFailed", "Server failed to authenticate the request.", Unauthenticated, "check the key, or the SAS"),
    Refusal("AuthenticationFailed", "Signature not valid in the specified time frame: Expiry", CredentialsExpired, "has expired"),
    Refusal("KeyBasedAuthenticationNotPermitted", "", Unauthenticated, "identity"),
    Refusal("AccountIsDisabled", "", Unauthenticated, "enable the storage account"),
    Refusal("KeyVaultEncryptionKeyNotFound", "", PermissionDenied, "key vault"),
    Refusal("KeyVaultAccessTokenCannotBeAcquired", "", PermissionDenied, "key vault"),
    Refusal("UnauthorizedBlobOverwrite", "", AlreadyExists, ""),
    Refusal("AccountQuotaExceeded", "The account's capacity is used up", Unavailable, _QUOTA),
    Refusal("SomethingElse", "what no table has", PermissionDenied, "look up SomethingElse"),
    Refusal("", "", PermissionDenied, "a proxy or a firewall", meaning="no x-ms-request-id: a page"),
)  # fmt: skip


class Store(NamedTuple):
    """A provider, its store's form of refusals, and the known ones."""

    refusals: Sequence[Refusal]
    answer: Callable[[str, str], Answer]


STORES: Final[Mapping[str, Store]] = {
    "S3": Store(_S3, s3),
    "MINIO": Store(_MINIO, s3),
    "DIGITAL_OCEAN_SPACES": Store(_SPACES, s3),
    "GCS": Store(_GCS, gcs),
    "AZURE_BLOB": Store(_AZURE, azure),
}


@contextmanager
def store_that_refuses(name: str) -> Generator[Callable[[Refusal], JobsBackupError]]:
    """A scripted server, and the provider's error for each of its refusals; one request per call."""
    store = STORES[name]
    with FaultProxy() as server:
        hooks = Hooks(providers.load(name, variables(name, server.url)))

        def met(refusal: Refusal) -> JobsBackupError:
            server.fail(store.answer(refusal.code, refusal.said) if refusal.code else _PROXY)
            before = len(server.requests)
            try:
                _call(hooks, refusal.hook)
            except JobsBackupError as error:
                assert len(server.requests) == before + 1
                return error
            raise AssertionError(f"{name} took {refusal} for a success")

        yield met


def _call(hooks: Hooks, hook: str) -> None:
    if hook == "delete":
        raise next(iter(hooks.delete([_KEY]).failed.values()))
    if hook == "read":
        with hooks.read(_KEY).open() as reader:
            reader.read()
    else:
        hooks.write(_KEY, BytesBody(b"data"))


def table() -> str:
    """docs/reference/refusals.md."""
    parts = [
        "# Refusals (403)\n\n"
        "<!-- Generated from what providers make of the answers in tests/support/refused.py: run `make reference`. -->\n\n"
        "An HTTP 403 is a missing permission only if its code says so. This is what each provider makes of the codes.\n"
        "Codes that are not listed are judged by their words; if those say nothing, the message quotes the code.\n",
    ]
    for name, store in STORES.items():
        rows = ["| code | what the store says | error | hint |", "|---|---|---|---|"]
        with store_that_refuses(name) as met:
            errors = [(refusal, met(refusal)) for refusal in store.refusals]
        for refusal, error in errors:
            code = f"`{refusal.code}`" if refusal.code else refusal.meaning
            hint = error.hint.replace("|", "\\|").replace("*", "\\*")
            rows.append(
                f"| {code} | {refusal.said.replace('|', ' ')} | [{error.code}](../messages.md#{error.code.lower()}) | {hint} |"
            )
        parts.append(f"## {name}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)
