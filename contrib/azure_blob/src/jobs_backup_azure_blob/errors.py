"""Translates errors of the store and of Azure's libraries into the taxonomy, each with what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

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
    Unauthenticated,
    Unavailable,
    Unreachable,
    UploadGone,
    parse_retry_after,
)
from jobs_backup.sdk import (
    CHECKSUM_HINT,
    HTTP_ERRORS,
    MAX_RESPONSE_TEXT,
    NETWORK_HINT,
    REDIRECTS,
    STRANGER_HINT,
    THROTTLED,
    ErrorRule,
    cleaned,
    error_names,
    forbidden,
    map_exception,
    map_status,
    mapped_errors,
    moved,
    system_message,
    tls_rules,
    unreadable,
    unusable,
)
from jobs_backup_azure_blob.settings import UNSHOWN, AzureBlobSettings

_BUCKET: Final = "check JOBS_BACKUP_BUCKET and AZURE_STORAGE_ACCOUNT; the container is never created"
_ENDPOINT: Final = "check AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_BLOB_ENDPOINT"
_CREDENTIALS: Final = "check the key, or the SAS and its expiry, and this machine's clock (NTP); without either, check the identity"
_IDENTITY: Final = (
    "run with an identity (managed or workload identity, az login), or set AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_ACCESS_KEY"
)
_FIREWALL: Final = "{grant}; or the account's firewall or the SAS rejects this address"
_VAULT: Final = "the storage account cannot use its encryption key: check the key vault, and the account's identity there"
_RUN_OUT: Final = "the SAS has expired or is not valid yet: create another one, and check this machine's clock (NTP)"
_NO_PARTS: Final = "set JOBS_BACKUP_MULTIPART_THRESHOLD above the size of your largest object, so that none is uploaded in blocks"
_KEPT: Final = "a policy, a lease or a snapshot protects it: ask the container's owner"

PERMISSIONS: Final[Mapping[str, tuple[str, str]]] = {
    "Put Blob": ("write", "w"),
    "Put Block": ("write", "w"),
    "Put Block List": ("write", "w"),
    "Get Blob": ("read", "r"),
    "Delete Blob": ("delete", "d"),
    "List Blobs": ("read", "l"),
}
"""Operation -> the role action and SAS letter that it needs. For Put Blob alone, `add/action` and c would be enough."""


def permission(operation: str) -> str:
    """Return the permission that an operation needs, in Azure's terms."""
    action, letter = PERMISSIONS[operation]
    return f"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/{action} (SAS: {letter})"


# By the store's error code (header x-ms-error-code).
_CODES: Final[Mapping[str, ErrorRule]] = {
    "AccountIsDisabled": ErrorRule(Unauthenticated, "enable the storage account"),
    **dict.fromkeys(("AuthenticationFailed", "NoAuthenticationInformation"), ErrorRule(Unauthenticated, _CREDENTIALS)),
    "KeyBasedAuthenticationNotPermitted": ErrorRule(
        Unauthenticated, "the account does not allow keys: use an identity, or a user delegation SAS"
    ),
    # A principal with permission only to create gets the second.
    **dict.fromkeys(("BlobAlreadyExists", "UnauthorizedBlobOverwrite", "ConditionNotMet"), ErrorRule(AlreadyExists)),
    **dict.fromkeys(
        ("ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled", "ResourceNotFound"), ErrorRule(BucketNotFound, _BUCKET)
    ),
    "BlobNotFound": ErrorRule(ObjectNotFound),
    "InvalidBlockList": ErrorRule(UploadGone, "blocks are kept for a week: the upload must be restarted"),
    "InvalidBlobOrBlock": ErrorRule(StorageError, "another program's blocks are under this key; they expire after a week"),
    "BlockCountExceedsLimit": ErrorRule(StorageError, "too many blocks were left under this key; they expire after a week"),
    **dict.fromkeys(("Md5Mismatch", "Crc64Mismatch"), ErrorRule(IntegrityError, CHECKSUM_HINT)),
    "IncompleteBody": ErrorRule(Unavailable, NETWORK_HINT),
    "ServerBusy": THROTTLED,
    "RequestBodyTooLarge": ErrorRule(NotSupported, "lower JOBS_BACKUP_MULTIPART_THRESHOLD and JOBS_BACKUP_PART_SIZE"),
    "BlobArchived": ErrorRule(NotSupported, "rehydrate it to read it"),
    "BlobBeingRehydrated": ErrorRule(NotSupported, "wait until it is rehydrated"),
    **dict.fromkeys(("LeaseIdMissing", "SnapshotsPresent"), ErrorRule(StorageError, _KEPT)),
    "InvalidResourceName": ErrorRule(NotSupported, "check JOBS_BACKUP_BUCKET and JOBS_BACKUP_PREFIX"),
    "InvalidHeaderValue": ErrorRule(NotSupported, "check JOBS_BACKUP_AZURE_ACCESS_TIER, and whether the store is new enough"),
    "FeatureVersionMismatch": ErrorRule(NotSupported, "the account does not support this; check JOBS_BACKUP_AZURE_ACCESS_TIER"),
}
_FORBIDDEN: Final[Mapping[str, str]] = {
    "AuthorizationFailure": _FIREWALL,
    "AuthorizationPermissionMismatch": "{grant}",
    "InsufficientAccountPermissions": "{grant}",
    "AuthorizationSourceIPMismatch": "the SAS or the account's firewall rejects this address: create a SAS without sip",
    "AuthorizationProtocolMismatch": "the SAS allows only https: write https:// in AZURE_STORAGE_BLOB_ENDPOINT",
    "AuthorizationResourceTypeMismatch": "the SAS is for other resources: create one for the container (sr=c)",
    "AuthorizationServiceMismatch": "the SAS is for other services: create one for the container (sr=c)",
    **dict.fromkeys(("KeyVaultAccessTokenCannotBeAcquired", "KeyVaultEncryptionKeyNotFound", "KeyVaultVaultNotFound"), _VAULT),
}
"""Code of a 403 -> what to do. `{grant}` is replaced by the permission to grant."""
_STATUSES: Final[Mapping[int, ErrorRule]] = {
    401: ErrorRule(Unauthenticated, _CREDENTIALS),
    404: ErrorRule(BucketNotFound, _ENDPOINT),
    **dict.fromkeys((405, 501), ErrorRule(NotSupported, _ENDPOINT)),
}

_EXISTS: Final = (403, 409, 412)
"""Statuses that do not contradict AlreadyExists."""
_ANYBODYS: Final = (401, 403, 405, 407, 408, 429)
"""Statuses accepted as a refusal from any sender. So are faults, from 500 up."""

_EXCEPTIONS: Final[Mapping[str, ErrorRule]] = {
    "AzureSigningError": ErrorRule(ConfigurationError, "check AZURE_STORAGE_ACCESS_KEY"),
    **HTTP_ERRORS,
    **dict.fromkeys(("ServiceRequestError", "ServiceResponseError", "IncompleteReadError"), ErrorRule(Unavailable, NETWORK_HINT)),
    **dict.fromkeys(("DecodeError", "DeserializationError"), ErrorRule(Unavailable, STRANGER_HINT)),
}
_TLS: Final = tls_rules(
    certificate="check the endpoint's certificate, and REQUESTS_CA_BUNDLE",
    bundle="REQUESTS_CA_BUNDLE does not name a readable file of PEM certificates",
)
_TROUBLE: Final = "cannot get a token for Azure"
_FEDERATION: Final = "AZURE_FEDERATED_TOKEN_FILE"
_CERTIFICATE: Final = "AZURE_CLIENT_CERTIFICATE_PATH"
_FILES: Final = (_FEDERATION, _CERTIFICATE)
"""Variables that name files azure-identity reads by itself."""


class Call(NamedTuple):
    """An attempted operation. `if_absent`: whether the request has that condition."""

    operation: str
    settings: AzureBlobSettings
    key: str = ""
    if_absent: bool = False

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"{self.operation} {self.settings.location}" + (f": {self.key}" if self.key else "")


def translated(call: Call) -> AbstractContextManager[None]:
    """A context whose exceptions become errors of jobs-backup."""
    return mapped_errors(lambda error: translate(error, call))


def translate(error: Exception, call: Call) -> JobsBackupError:
    """Return the error of the taxonomy for an exception that a request raised."""
    response: Any = getattr(error, "response", None)
    if response is not None and getattr(response, "status_code", None):
        return _answered(error, response, call)
    return map_exception(call, error, _EXCEPTIONS, text=_cleaned(system_message(error), call), tls=_TLS)


def is_azures(response: Any) -> bool:
    """Whether an answer has the header that the store always sends. A status alone or a page can come from anything."""
    return bool(response.headers.get("x-ms-request-id"))


def check_origin(call: Call, response: Any) -> None:
    """Check that an answer that claims a result comes from the store. `response` is that of the SDK's pipeline.

    Raises:
        ConfigurationError: the answer is a redirect.
        Unavailable: the answer claims a result but lacks the store's header.
    """
    answer = response.http_response
    if answer.status_code in REDIRECTS:
        raise moved(f"{call}: {answer.status_code}", answer.headers.get("Location", ""), "AZURE_STORAGE_BLOB_ENDPOINT")
    if answer.status_code < 500 and answer.status_code not in _ANYBODYS and not is_azures(answer):
        raise Unavailable(f"{call}: the response ({answer.status_code}) has no x-ms-request-id", hint=STRANGER_HINT)


def _code(error: Any, response: Any) -> str:
    """Return the store's error code; empty if the answer does not come from the store."""
    if not is_azures(response):
        return ""
    return str(response.headers.get("x-ms-error-code") or getattr(error.error_code, "value", error.error_code) or "")


def unreadable_token(error: Exception | None = None) -> Unauthenticated | None:
    """Return the error for an unreadable file of azure-identity, or None. azure-identity itself skips to other credentials."""
    files = {name: os.environ.get(name, "") for name in _FILES}
    found = unreadable(_TROUBLE, error, files=files)
    return (
        found
        or unusable(_TROUBLE, {_FEDERATION: files[_FEDERATION]})
        or unusable(_TROUBLE, {_CERTIFICATE: files[_CERTIFICATE]}, text=False)
    )


def unusable_identity(error: Exception) -> Unauthenticated:
    """Return the error for variables that azure-identity refuses at setup. Nothing was sent."""
    path = os.environ.get(_CERTIFICATE, "")
    said = cleaned(str(error), ambient=UNSHOWN)
    if "certificate" in said.lower() and os.path.lexists(path):
        return Unauthenticated(
            f"{_TROUBLE}: {_CERTIFICATE}: {path}: it is not a certificate with its private key, in PEM or PKCS12 format, or the"
            " password is wrong",
            hint=f"correct or unset {_CERTIFICATE} and AZURE_CLIENT_CERTIFICATE_PASSWORD",
        )
    given = [name for name in UNSHOWN if name.startswith("AZURE_") and os.environ.get(name)]
    return Unauthenticated(f"{_TROUBLE}: {said}", hint=f"correct or unset {', '.join(given)}" if given else _IDENTITY)


def token_refused(error: Exception) -> JobsBackupError:
    """Return the error of the taxonomy for a failure to get a token. The request itself was not sent."""
    if found := unreadable_token(error):
        return found
    said = cleaned(re.sub(r"https?://\S+", "****", str(error)), ambient=UNSHOWN)
    if "ClientAuthenticationError" in error_names(error):  # also if no credentials of any kind are available
        return Unauthenticated(f"cannot get a token for Azure: {said}", hint=_IDENTITY)
    return Unreachable(
        f"cannot get a token for Azure: {said}", hint="check the connection to the token server and the metadata server"
    )


def _answered(error: Any, response: Any, call: Call) -> JobsBackupError:
    """Return the error of the taxonomy for an unsuccessful answer."""
    status: int = response.status_code
    code = _cleaned(_code(error, response), call)
    # The first line is the store's own message. The request id, and sometimes the signed text, follow.
    said = str(error.message).strip().partition("\n")[0][:MAX_RESPONSE_TEXT]
    message = f"{call}: {status}" + (f" {code}" if code else "") + f": {_cleaned(said, call)}"
    if code == "BlobImmutableDueToPolicy":
        return PermissionDenied(message, action=permission(call.operation), resource=call.settings.resource, hint=_KEPT)
    if status == 403 and code not in _CODES:
        return _denied(message, code, said, call, response)
    rule = _rule(status, code, said, call, is_outdated="time frame" in str(error.message))
    if rule.error is NotSupported and call.operation in ("Put Block", "Put Block List"):
        rule = rule._replace(hint=_NO_PARTS)
    return rule.to_error(message, retry_after=parse_retry_after(response.headers.get("Retry-After", "")))


def _rule(status: int, code: str, said: str, call: Call, *, is_outdated: bool) -> ErrorRule:
    if code == "ConditionNotMet" and call.operation == "Get Blob":
        # A read requires an unchanged object; a write, that none exists.
        return ErrorRule(IntegrityError, "it was replaced meanwhile")
    if code == "AuthenticationFailed" and is_outdated:
        return ErrorRule(CredentialsExpired, _RUN_OUT)
    if code in _CODES and (_CODES[code].error is not AlreadyExists or status in _EXISTS):
        rule = _CODES[code]
        is_claim = rule.error is AlreadyExists and not call.if_absent
        return ErrorRule(StorageError, f"the request has no such condition; {STRANGER_HINT}") if is_claim else rule
    if status == 401 and call.settings.has_identity:
        return ErrorRule(CredentialsExpired, _CREDENTIALS)
    if status == 400 and re.search(r"md5|crc64", said, re.IGNORECASE):
        return ErrorRule(IntegrityError, CHECKSUM_HINT)
    return map_status(status, _STATUSES) or ErrorRule(StorageError, STRANGER_HINT if code in _CODES else "")


def _denied(message: str, code: str, said: str, call: Call, response: Any) -> JobsBackupError:
    action, resource = permission(call.operation), call.settings.resource
    if not code and is_azures(response) and not said:
        code = "AuthorizationFailure"
    if hint := _FORBIDDEN.get(code, ""):
        return PermissionDenied(message, action=action, resource=resource, hint=hint.format(grant=f"grant {action} on {resource}"))
    return forbidden(message, code, said, action=action, resource=resource, owned=is_azures(response))


def _cleaned(text: str, call: Call) -> str:
    return re.sub(r"(?<=sig=)[^&\s\"']+", "****", cleaned(text, call.settings.secrets(), ambient=UNSHOWN))
