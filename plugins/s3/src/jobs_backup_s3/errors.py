"""Translates errors of the store and the SDK into the taxonomy. The tables say what to do about each."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from jobs_backup.errors import (
    AlreadyExists,
    BucketNotFound,
    ConfigurationError,
    CredentialsExpired,
    IntegrityError,
    JobsBackupError,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
    StorageError,
    Throttled,
    Unauthenticated,
    Unavailable,
    Unreachable,
    UploadGone,
    parse_retry_after,
)
from jobs_backup.sdk import (
    CHECKSUM_HINT,
    MAX_RESPONSE_TEXT,
    NETWORK_HINT,
    REDIRECTS,
    STRANGER_HINT,
    THROTTLED,
    ErrorRule,
    cleaned,
    forbidden,
    map_exception,
    map_status,
    mapped_errors,
    moved,
    proxy_secrets,
    system_message,
    tls_rules,
    unreadable,
    unusable,
)
from jobs_backup.settings import redacted, shown
from jobs_backup_s3.settings import UNSHOWN, Connection


class NothingThere(StorageError):
    """The object has no bytes in the requested range."""


class Call(NamedTuple):
    """An attempted operation. Never show `upload`, an id, in a message. `if_absent`: whether the request has that condition."""

    operation: str
    connection: Connection
    key: str = ""
    upload: str = ""
    if_absent: bool = False

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"{self.operation} s3://{self.connection.bucket}" + (f"/{self.key}" if self.key else "")


_KEYS: Final = "check the access key and its secret, and that they belong to this store"
_CREDENTIALS: Final = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where the SDK finds a role (instance, container, web identity)"
)
_EXPIRED: Final = "temporary credentials must be replaced when they expire: use a role, or set new ones"
_BUCKET: Final = "check JOBS_BACKUP_BUCKET, the region and the endpoint; the bucket is never created"
_REDIRECTED: Final = "set AWS_REGION to the bucket's region, or the endpoint to the one that serves the bucket"
_ACCOUNT: Final = "the account or the user is suspended, disabled or unpaid: see its billing page, or ask the store's support"
_QUOTA: Final = "a quota of the bucket or the user is exhausted: raise it, or delete what is not needed"
_CHECKSUM: Final = f"{CHECKSUM_HINT}; or JOBS_BACKUP_S3_CHECKSUM does not suit the store"
_KMS: Final = "check JOBS_BACKUP_S3_KMS_KEY_ID, and that the key is enabled and in the bucket's region"
_LOCK_CHECKSUM: Final = "a bucket with object lock requires checksums: set JOBS_BACKUP_S3_CHECKSUM=md5 or crc32c"
_LOCK: Final = "check the bucket's object lock configuration: it may be missing, or require a header that is not sent"

_PROFILE: Final = "correct the profile that AWS_PROFILE names, in AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE"
_PROXY: Final = "write JOBS_BACKUP_S3_PROXY, HTTPS_PROXY and HTTP_PROXY as http://user:password@host:port"

_CODES: Final[Mapping[str, ErrorRule]] = {
    **dict.fromkeys(("AccessDenied", "AccessDeniedException"), ErrorRule(PermissionDenied)),
    **dict.fromkeys(("InvalidSecurity", "InvalidAccessKeyId", "InvalidClientTokenId"), ErrorRule(Unauthenticated, _KEYS)),
    **dict.fromkeys(
        ("SignatureDoesNotMatch", "AuthorizationHeaderMalformed", "UnrecognizedClientException"), ErrorRule(Unauthenticated, _KEYS)
    ),
    "InvalidToken": ErrorRule(Unauthenticated, "check AWS_SESSION_TOKEN: it belongs to exactly one access key"),
    "InvalidIdentityToken": ErrorRule(Unauthenticated, "check the web identity token and the trust policy of its role"),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), ErrorRule(CredentialsExpired, _EXPIRED)),
    **dict.fromkeys(
        ("RequestTimeTooSkewed", "RequestExpired"), ErrorRule(Unauthenticated, "this machine's clock is wrong: set it (NTP)")
    ),
    **dict.fromkeys(("InvalidPayer", "OptInRequired", "AccountProblem"), ErrorRule(Unauthenticated, _ACCOUNT)),
    **dict.fromkeys(("UserSuspended", "AccountSuspended", "UserDisable"), ErrorRule(Unauthenticated, _ACCOUNT)),
    "NotSignedUp": ErrorRule(Unauthenticated, "the account is not signed up for S3: sign up"),
    "AllAccessDisabled": ErrorRule(Unauthenticated, "the store has turned off all access to the bucket: ask its support"),
    "UnauthorizedAccess": ErrorRule(
        Unauthenticated, "in AWS China the bucket's account needs an ICP license for this: see its console, or ask the support"
    ),
    **dict.fromkeys(
        ("QuotaExceeded", "BucketQuotaExceeded", "StorageQuotaExceeded", "XMinioAdminBucketQuotaExceeded"),
        ErrorRule(Unavailable, _QUOTA),
    ),
    "NoSuchBucket": ErrorRule(BucketNotFound, _BUCKET),
    "InvalidBucketName": ErrorRule(ConfigurationError, "check JOBS_BACKUP_BUCKET"),
    "NoSuchKey": ErrorRule(ObjectNotFound),
    "NoSuchUpload": ErrorRule(UploadGone, "it was already completed or aborted: another one must be started"),
    "PreconditionFailed": ErrorRule(StorageError, f"the request has no such condition; {STRANGER_HINT}"),
    **dict.fromkeys(
        ("ConditionalRequestConflict", "OperationAborted"),
        ErrorRule(Unavailable, "another request for the same key is under way"),
    ),
    **dict.fromkeys(
        ("PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"),
        ErrorRule(ConfigurationError, _REDIRECTED),
    ),
    **dict.fromkeys(("SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException"), THROTTLED),
    **dict.fromkeys(("TooManyRequests", "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded"), THROTTLED),
    "KMS.ThrottlingException": ErrorRule(
        Throttled, "the KMS key is used too often: ask for a higher quota, or turn on bucket keys"
    ),
    "RequestTimeout": ErrorRule(Unavailable, NETWORK_HINT),
    "XMinioStorageFull": ErrorRule(Unavailable, "the store is full: free or add space"),
    **dict.fromkeys(("BadDigest", "InvalidDigest", "IncompleteBody"), ErrorRule(IntegrityError, _CHECKSUM)),
    **dict.fromkeys(("XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"), ErrorRule(IntegrityError, _CHECKSUM)),
    **dict.fromkeys(("NotImplemented", "MethodNotAllowed"), ErrorRule(NotSupported)),
    "InvalidObjectState": ErrorRule(NotSupported, "the object is archived: restore it to read it"),
    "AccessControlListNotSupported": ErrorRule(NotSupported, "the bucket does not allow ACLs: unset JOBS_BACKUP_S3_ACL"),
    "InvalidStorageClass": ErrorRule(ConfigurationError, "correct or unset JOBS_BACKUP_S3_STORAGE_CLASS"),
    "EntityTooLarge": ErrorRule(NotSupported, "lower JOBS_BACKUP_MULTIPART_THRESHOLD and JOBS_BACKUP_PART_SIZE"),
    "EntityTooSmall": ErrorRule(NotSupported, "raise JOBS_BACKUP_PART_SIZE"),
}
"""Rules by the store's error code."""

_OF_OPERATION: Final[Mapping[tuple[str, str], ErrorRule]] = {
    ("CompleteMultipartUpload", "ConditionalRequestConflict"): ErrorRule(UploadGone, "another one must be started"),
    ("CompleteMultipartUpload", "InvalidPart"): ErrorRule(UploadGone, "the store has lost a part: another upload must be started"),
    ("CompleteMultipartUpload", "InvalidPartOrder"): ErrorRule(UploadGone, "another one must be started"),
    ("UploadPart", "NoSuchKey"): ErrorRule(UploadGone, "another one must be started"),
    ("CompleteMultipartUpload", "NoSuchKey"): ErrorRule(UploadGone, "another one must be started"),
    ("AbortMultipartUpload", "NoSuchKey"): ErrorRule(UploadGone, "it was already completed or aborted"),
    ("GetObject", "InvalidRange"): ErrorRule(NothingThere),
    ("PutObject", "PreconditionFailed"): ErrorRule(AlreadyExists),
    ("CompleteMultipartUpload", "PreconditionFailed"): ErrorRule(AlreadyExists),
    ("GetObject", "PreconditionFailed"): ErrorRule(IntegrityError, "the object was overwritten while it was read"),
}
"""Rules for codes that mean something else for one operation."""

_EXISTS: Final[Mapping[str, Sequence[int]]] = {"PutObject": (412,), "CompleteMultipartUpload": (412, 500)}
"""Statuses that do not contradict AlreadyExists. The SDK replaces 200, with which a completion may report an error, by 500."""

_STATUSES: Final[Mapping[int, ErrorRule]] = {
    **dict.fromkeys(REDIRECTS, ErrorRule(ConfigurationError, _REDIRECTED)),
    401: ErrorRule(Unauthenticated, _KEYS),
    403: ErrorRule(PermissionDenied),
    405: ErrorRule(NotSupported),
    407: ErrorRule(Unauthenticated, "the proxy requires credentials: put them into JOBS_BACKUP_S3_PROXY"),
    408: ErrorRule(Unavailable, NETWORK_HINT),
    501: ErrorRule(NotSupported),
}
"""Rules by HTTP status, for codes in no table: see `map_status`. Any other status is a StorageError."""

_EXCEPTIONS: Final[Mapping[str, ErrorRule]] = {
    **dict.fromkeys(("NoCredentialsError", "PartialCredentialsError"), ErrorRule(Unauthenticated, _CREDENTIALS)),
    **dict.fromkeys(("CredentialRetrievalError", "TokenRetrievalError", "SSOError"), ErrorRule(Unauthenticated, _CREDENTIALS)),
    "InvalidConfigError": ErrorRule(ConfigurationError, _PROFILE),
    "InvalidRegionError": ErrorRule(ConfigurationError, "write the region like eu-west-1"),
    "InvalidIMDSEndpointError": ErrorRule(ConfigurationError, "correct or unset AWS_EC2_METADATA_SERVICE_ENDPOINT"),
    **dict.fromkeys(
        ("InvalidProxiesConfigError", "LocationValueError", "ProxySchemeUnknown"), ErrorRule(ConfigurationError, _PROXY)
    ),
    "ProxyConnectionError": ErrorRule(Unreachable, "check JOBS_BACKUP_S3_PROXY, HTTPS_PROXY and HTTP_PROXY"),
    **dict.fromkeys(("EndpointConnectionError", "ConnectTimeoutError"), ErrorRule(Unreachable, NETWORK_HINT)),
    **dict.fromkeys(("ConnectionError", "HTTPClientError", "IncompleteReadError"), ErrorRule(Unavailable, NETWORK_HINT)),
    "ResponseParserError": ErrorRule(Unavailable, STRANGER_HINT),
    "NotTheStore": ErrorRule(StorageError, STRANGER_HINT),
    "FlexibleChecksumError": ErrorRule(IntegrityError, _CHECKSUM),
}
"""Rules by the name of the SDK's exception or of a base class. Names, so that the SDK need not be imported."""

_BUNDLE: Final = "correct or unset JOBS_BACKUP_S3_CA_BUNDLE, or AWS_CA_BUNDLE: it must name a file with certificates in PEM format"
_TLS: Final[Mapping[str, ErrorRule]] = {
    **tls_rules("set JOBS_BACKUP_S3_CA_BUNDLE to the store's CA, and use a host name from its certificate", _BUNDLE),
    **dict.fromkeys(("No such file", "Is a directory", "Permission denied"), ErrorRule(ConfigurationError, _BUNDLE)),
}

_PROFILES: Final = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
_FILES: Final = {**_PROFILES, "AWS_WEB_IDENTITY_TOKEN_FILE": "", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": ""}
"""Variables that name files the SDK reads by itself, and the files' default paths."""
_TOKENS: Final = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
_SOURCES: Final = (
    "AWS_PROFILE", *_FILES, "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)  # fmt: skip
"""Variables that select the source of credentials."""

_ACTIONS: Final[Mapping[str, str]] = {
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "DeleteObjects": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "AssumeRole": "sts:AssumeRole",
    "AssumeRoleWithWebIdentity": "sts:AssumeRoleWithWebIdentity",
    "CreateSession": "s3express:CreateSession",
}
"""Permissions whose names differ from the operations that need them."""

_ACTION: Final = re.compile(
    r"\b((?:s3(?:express)?:(?:Abort|Bypass|Create|Delete|Get|List|Put|Replicate|Restore)|kms:|sts:)[A-Z][A-Za-z]+)(?![\w-])"
)
"""A permission in the store's text, but not a condition key such as `s3:x-amz-acl` or `s3:TlsVersion`."""

_LACKING: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"),
        "set JOBS_BACKUP_MULTIPART_THRESHOLD above the size of your largest object, so that none is uploaded in parts",
    ),
    **dict.fromkeys(("DeleteObjects", "DeleteObject"), "set JOBS_BACKUP_DELETE_AFTER=never"),
    "ListObjectsV2": "replay without --list, on the machine that has the spool",
}
"""Hints for operations that the store does not support."""

_CONDITIONS: Final[Mapping[str, str]] = {
    "x-amz-server-side-encryption-aws-kms": "JOBS_BACKUP_S3_KMS_KEY_ID",
    "x-amz-server-side-encryption": "JOBS_BACKUP_S3_SSE",
    "x-amz-storage-class": "JOBS_BACKUP_S3_STORAGE_CLASS",
    "x-amz-acl": "JOBS_BACKUP_S3_ACL",
}
"""Header that a policy may require -> the setting that sends it."""

_OPTIONS: Final = (
    ("if-none-match", "set JOBS_BACKUP_CONDITIONAL_WRITES=false"),
    ("x-amz-server-side-encryption", "unset JOBS_BACKUP_S3_SSE and AWS_ENABLE_SSE"),
    ("x-amz-storage-class", "unset JOBS_BACKUP_S3_STORAGE_CLASS"),
    ("x-amz-acl", "unset JOBS_BACKUP_S3_ACL"),
    ("x-amz-checksum", "set JOBS_BACKUP_S3_CHECKSUM=md5 or none"),
    ("x-amz-sdk-checksum", "set JOBS_BACKUP_S3_CHECKSUM=md5 or none"),
)
"""Header -> the setting that turns it off."""


def translated(call: Call) -> AbstractContextManager[None]:
    """A context whose exceptions become errors of jobs-backup."""
    return mapped_errors(lambda error: translate(error, call))


def translate(error: Exception, call: Call) -> JobsBackupError:
    """Return the error of the taxonomy for an exception that a request raised."""
    response = response_of(error)
    if response is not None:
        # Any call may fetch a role's credentials.
        operation: str = getattr(error, "operation_name", call.operation)
        return answered(response, call._replace(operation=operation))
    names = [class_.__name__ for class_ in type(error).__mro__]
    if local := _of_this_machine(error, names, call):
        return local
    fields: Mapping[str, object] = getattr(error, "kwargs", {})
    # Use only those of the SDK's own texts that contain no URL.
    own = str(fields.get("error", names[0])) if "endpoint_url" in fields else str(error)
    text = _where(error) + _cleaned(system_message(error, own), call)
    return map_exception(call, error, _EXCEPTIONS, text=text, tls=_TLS, names=names)


def _of_this_machine(  # noqa: PLR0911 - a case each
    error: Exception, names: Sequence[str], call: Call
) -> Unauthenticated | None:
    """Return the error for credentials files that cannot be read or lack the profile. The SDK has sent nothing."""
    if _is_of_credentials(error, of="_retrieve_credentials_using"):
        return _of_process(error, call)
    if isinstance(error, OSError) and error.filename:
        return unreadable(call, error)
    if "ConfigParseError" in names or "ConfigNotFound" in names:
        return _malformed(error, call)
    if "InvalidConfigError" in names and "role ARN" in str(error) and os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return Unauthenticated(
            f"{call}: AWS_WEB_IDENTITY_TOKEN_FILE is set, but AWS_ROLE_ARN is not",
            hint="set AWS_ROLE_ARN to the role that the token is for, or unset AWS_WEB_IDENTITY_TOKEN_FILE",
        )
    if not any(name in _EXCEPTIONS for name in names) and _is_of_credentials(error):
        return unusable(call, {name: os.environ.get(name, "") for name in _TOKENS}) or _unusable(error, call)
    if not {"ProfileNotFound", "NoCredentialsError", "CredentialRetrievalError"}.intersection(names):
        return None
    if getattr(error, "kwargs", {}).get("provider") == "container-role":
        return unusable(call, {name: os.environ.get(name, "") for name in _TOKENS}) or _of_container(error, call)
    # The SDK ignores a credentials file that it cannot read, as if it did not exist.
    files = {name: os.environ.get(name, "") or _there(default) for name, default in _FILES.items()}
    if found := unreadable(call, error, files=files):
        return Unauthenticated(found.message, hint=f"{found.hint}; or {_CREDENTIALS}")
    if "ProfileNotFound" not in names:
        return None
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE", "")
    where = " nor in ".join(filter(None, (os.environ.get(name, "") or default for name, default in _PROFILES.items())))
    return Unauthenticated(
        f"{call}: profile {shown(profile)} not found, neither in {where}",
        hint="correct or unset AWS_PROFILE, or add the profile there",
    )


def _malformed(error: Exception, call: Call) -> Unauthenticated:
    """Return the error for an invalid profile file. The SDK's error has its path."""
    fields: Mapping[str, object] = getattr(error, "kwargs", {})
    path = str(fields.get("path", ""))
    named = next((name for name in _PROFILES if path and os.environ.get(name) == path), "")
    where = ": ".join(filter(None, (named, path if os.path.lexists(path) else shown(path))))
    return Unauthenticated(
        f"{call}: {where}: the SDK cannot read it as a file of profiles",
        hint=f"correct it{f', or unset {named}' if named else ''}",
    )


def _is_of_credentials(error: BaseException, of: str = "") -> bool:
    """Whether the SDK raised it while getting or using credentials: an unforeseen error there is not the store's answer.

    `of`: only within the function of this name.
    """
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        is_there = frame.f_globals.get("__name__") in ("botocore.credentials", "botocore.tokens", "botocore.auth")
        if is_there and of in ("", frame.f_code.co_name):
            return True
        trace = trace.tb_next
    return False


def _of_process(error: Exception, call: Call) -> Unauthenticated:
    """Return the error for a `credential_process` that did not give credentials. What it printed may hold a key."""
    fields: Mapping[str, object] = getattr(error, "kwargs", {})
    if "error_msg" in fields:
        text = str(fields["error_msg"])
        said = _cleaned(redacted(text, filter(_is_hidden, re.split(r"[\s'\"=:,;]+", text))), call)
        why = f"it failed: {said}" if said and not _is_hidden(said) else "it failed"
    elif isinstance(error, OSError):
        why = f"{shown(str(error.filename))} cannot be run: {error.strerror}"
    else:
        why = "it did not print credentials (JSON with Version 1, AccessKeyId and SecretAccessKey)"
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    return Unauthenticated(
        f"{call}: credential_process of profile {shown(profile)}: {why}",
        hint=f"run it by hand as this process's user, and {_PROFILE}",
    )


def _is_hidden(text: str) -> bool:
    return shown(text) != repr(text)


def _of_container(error: Exception, call: Call) -> Unauthenticated:
    """Return the error for a container's credentials service that gave none."""
    given = [name for name in _SOURCES if name.startswith("AWS_CONTAINER_") and name in os.environ]
    uri = next((name for name in given if name.endswith("_URI")), "the container")
    return Unauthenticated(
        f"{call}: {uri}: the service there gave no credentials: {_cleaned(system_message(error), call)}",
        hint=f"check that service (the ECS agent, the EKS Pod Identity agent), or correct or unset {', '.join(given)}",
    )


def _unusable(error: Exception, call: Call) -> Unauthenticated:
    """Return the error for credentials that the SDK found but cannot use."""
    given = [name for name in _SOURCES if name in os.environ]  # the SDK uses most of them even if empty
    files = "".join(f": {name}={os.environ[name]}" for name in given if name in _FILES and os.path.lexists(os.environ[name]))
    profile = os.environ.get("AWS_PROFILE", "")
    of_profile = f", profile {shown(profile)}" if profile else ""
    return Unauthenticated(
        f"{call}: the credentials cannot be used{files}{of_profile}: {type(error).__name__}: {_cleaned(str(error), call)}",
        hint=f"correct or unset {', '.join(given)}" if given else _CREDENTIALS,
    )


def _there(path: str) -> str:
    return path if path and os.path.lexists(os.path.expanduser(path)) else ""  # noqa: PTH111 - without a home directory it does not raise


def response_of(error: Exception) -> Mapping[str, Any] | None:
    """Return the store's answer as the SDK parsed it, if the error is about one."""
    response: Mapping[str, Any] | None = getattr(error, "response", None)
    return response if response and "Error" in response else None


def answered(response: Mapping[str, Any], call: Call) -> JobsBackupError:
    """Return the error of the taxonomy for the store's answer as the SDK parsed it."""
    error: Mapping[str, Any] = response["Error"]
    metadata: Mapping[str, Any] = response.get("ResponseMetadata", {})
    headers: Mapping[str, str] = metadata.get("HTTPHeaders", {})
    status: int = metadata.get("HTTPStatusCode", 0)
    own = _cleaned(str(error.get("Code") or response.get("Code") or ""), call)  # the second if the XML has a namespace
    code = own or str(status)
    said = str(error.get("Message") or response.get("Message") or "")[:MAX_RESPONSE_TEXT]
    message = f"{call}: {code}" + (f": {_cleaned(said, call)}" if said else "")
    rule = _rule(call, own, status)
    if (region := region_named(response)) and region != call.connection.region:
        connection = call.connection
        hint = (
            f"set AWS_REGION={region}"
            if connection.region_variable
            else f"set {connection.endpoint_variable} to the one of {region}"
        )
        return ConfigurationError(f"{call}: the bucket is in {region}, not in {connection.region}", hint=hint)
    if rule.error is ConfigurationError and status in REDIRECTS:
        return _redirected(message, headers.get("location", ""), str(error.get("Endpoint") or ""), call, is_own=own in _CODES)
    if own == "InvalidRequest" and re.search(r"object.?lock", said, re.IGNORECASE):
        wants_checksum = re.search(r"md5|checksum", said, re.IGNORECASE)
        return ConfigurationError(message, hint=_LOCK_CHECKSUM if wants_checksum else _LOCK)
    if rule.error is PermissionDenied:
        return _denied(message, own, said, call)
    if rule.error is NotSupported and not rule.hint:
        rule = rule._replace(hint=_option(str(error.get("Header", "")), call))
    if code == "RequestTimeTooSkewed" and "date" in headers:
        rule = rule._replace(hint=f"{rule.hint}; the store's says {headers['date']}")
    return rule.to_error(message, retry_after=parse_retry_after(headers.get("retry-after", "")))


def _redirected(message: str, location: str, named: str, call: Call, *, is_own: bool) -> JobsBackupError:
    """Return the error for a redirect. `named` is the host that AWS names in the answer instead of a location. `is_own`:
    the answer is in the store's own format."""
    connection = call.connection
    if not named and (location or not is_own):
        return moved(message, location, connection.endpoint_variable)
    hint = f"set {connection.endpoint_variable} to the endpoint of the bucket's region"
    if connection.region_variable and not (named and connection.endpoint):
        hint = _REDIRECTED
    return ConfigurationError(message, hint=f"{hint}: the store names {named}" if named else hint)


def _rule(call: Call, own: str, status: int) -> ErrorRule:
    """Return the rule for an answer. `own` is the store's code; if there is none, the SDK puts the status there."""
    rule = _OF_OPERATION.get((call.operation, own)) or _CODES.get(own)
    if rule is not None and rule.error is AlreadyExists and status not in _EXISTS[call.operation]:
        return map_status(status, _STATUSES) or ErrorRule(StorageError, STRANGER_HINT)
    if rule is not None and rule.error is AlreadyExists and not call.if_absent:
        rule = _CODES["PreconditionFailed"]
    if rule is None and re.search(r"checksum|digest", own, re.IGNORECASE):
        rule = _CODES["BadDigest"]
    if rule is None and own.startswith("KMS."):
        rule = ErrorRule(ConfigurationError, _KMS)
    return rule or map_status(status, _STATUSES) or ErrorRule(StorageError, STRANGER_HINT if own in ("", str(status)) else "")


def region_named(response: Mapping[str, Any]) -> str | None:
    """Return the bucket's region if this answer refuses a request to the wrong region and names the right one."""
    error: Mapping[str, Any] = response["Error"]
    metadata: Mapping[str, Any] = response.get("ResponseMetadata", {})
    elsewhere = error.get("Code") in (
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    )
    if not elsewhere and metadata.get("HTTPStatusCode") not in (301, 302, 307, 308):
        return None
    region: str = metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region") or error.get("Region") or ""
    return region if re.fullmatch(r"[a-z0-9-]{1,40}", region) else None


def _denied(message: str, own: str, said: str, call: Call) -> JobsBackupError:
    """Return the error for a 403 in no table. `own` is the store's code; if there is none, the SDK puts the status there."""
    connection = call.connection
    code = "" if own.isdecimal() else own
    action, resource = connection.permission or "", connection.bucket
    if not connection.permission:
        action, resource = _missing(said, call)
    if "acl" in said.lower() and connection.acl:
        hint = "the bucket does not accept this ACL: unset JOBS_BACKUP_S3_ACL"
        return PermissionDenied(message, action=action, resource=resource, hint=hint)
    if condition := re.search(r"\bs3:(x-amz-[a-z-]+)", said, re.IGNORECASE):
        header = condition[1].lower().rstrip("-")
        setting = next((setting for start, setting in _CONDITIONS.items() if header.startswith(start)), "")
        hint = f"a policy has a condition on {header}: {f'set {setting} to what it demands' if setting else 'change that one'}"
        return PermissionDenied(message, action=action, resource=resource, hint=hint)
    return forbidden(message, code, said, action=action, resource=resource, owned=bool(code))


def _missing(said: str, call: Call) -> tuple[str, str]:
    """Return the action and the resource to grant, if a missing permission is the cause."""
    connection = call.connection
    named = _ACTION.search(said)
    action = named[1] if named else _ACTIONS.get(call.operation, f"s3:{call.operation}")
    if action.startswith("kms:"):
        key = re.search(r"arn:[\w-]+:kms:[\w:/-]+", said)
        return action, key[0] if key else connection.kms_key_id or "the bucket's KMS key"
    if action.startswith("sts:"):
        return action, connection.role_arn or "the role"
    if connection.is_directory:
        return _ACTIONS["CreateSession"], connection.bucket_arn
    return action, connection.bucket_arn if action == "s3:ListBucket" else connection.resource


def _option(header: str, call: Call) -> str:
    for start, hint in _OPTIONS:
        if header.lower().startswith(start):
            return hint
    if hint := _LACKING.get(call.operation, ""):
        return f"the store does not support {call.operation}: {hint}"
    return (
        f"the store does not support {call.operation} with these options: see the README of jobs-backup-s3 for how to turn them off"
    )


def _where(error: Exception) -> str:
    fields: Mapping[str, object] = getattr(error, "kwargs", {})
    parts = urlsplit(str(fields.get("endpoint_url", "")))
    return f"{parts.scheme}://{parts.netloc}: " if parts.netloc else ""


def _cleaned(text: str, call: Call) -> str:
    connection = call.connection
    secrets = [call.upload]
    if keys := connection.keys:
        secrets += [keys.secret_key.reveal(), keys.session_token.reveal() if keys.session_token else ""]
    if connection.proxy:
        secrets += [connection.proxy.reveal(), *proxy_secrets(connection.proxy.reveal())]
    return cleaned(text, secrets, ambient=UNSHOWN)
