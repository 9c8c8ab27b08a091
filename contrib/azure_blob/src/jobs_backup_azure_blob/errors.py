"""Translates the errors of the store and of Azure's libraries into the taxonomy, each with what to do about it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Iterator, Mapping
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
    Throttled,
    Unauthenticated,
    Unavailable,
    Unreachable,
    UploadGone,
    parse_retry_after,
)
from jobs_backup.sdk import cleaned, forbidden, moved, unreadable, unusable
from jobs_backup_azure_blob.settings import UNSHOWN, AzureBlobSettings

_LOOKED_AT: Final = 2000
"""Characters of what the store says: anybody may answer."""
_BUCKET: Final = "check JOBS_BACKUP_BUCKET and AZURE_STORAGE_ACCOUNT; the container is never created"
_ENDPOINT: Final = "check AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_BLOB_ENDPOINT"
_CREDENTIALS: Final = "check the key, or the SAS and its expiry, and this machine's clock (NTP); without either, check the identity"
_IDENTITY: Final = (
    "run with an identity (managed or workload identity, az login), or set AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_ACCESS_KEY"
)
_FIREWALL: Final = "{grant}; or the account's firewall or the SAS rejects this address"
_VAULT: Final = "the storage account cannot use its encryption key: check the key vault, and the account's identity there"
_RUN_OUT: Final = "the SAS has expired or is not valid yet: create another one, and check this machine's clock (NTP)"
_SLOWER: Final = "if it persists, lower JOBS_BACKUP_UPLOAD_CONCURRENCY"
_NETWORK: Final = "check the endpoint, DNS, firewall and proxy between here and the store"
_STRANGER: Final = "the response may not come from the store: check the endpoint and the proxy"
_NO_PARTS: Final = "set JOBS_BACKUP_MULTIPART_THRESHOLD above the size of your largest object, so that none is uploaded in blocks"
_FAULT: Final = "a fault in the store: see its status page"
_CHECKSUM: Final = "if it persists, the network, a proxy or the disk changes bytes"
_KEPT: Final = "a policy, a lease or a snapshot protects it: ask the container's owner"

PERMISSIONS: Final[Mapping[str, tuple[str, str]]] = {
    "Put Blob": ("write", "w"),
    "Put Block": ("write", "w"),
    "Put Block List": ("write", "w"),
    "Get Blob": ("read", "r"),
    "Delete Blob": ("delete", "d"),
    "List Blobs": ("read", "l"),
}
"""Operation -> the action of a role, and the letter in a SAS, that it needs. For Put Blob alone `add/action`, c, would do."""


def permission(operation: str) -> str:
    """The permission that an operation needs, in Azure's words."""
    action, letter = PERMISSIONS[operation]
    return f"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/{action} (SAS: {letter})"


class _Row(NamedTuple):
    error: type[JobsBackupError]
    hint: str = ""


# By the code that the store gives with an answer (its header x-ms-error-code).
_CODES: Final[Mapping[str, _Row]] = {
    "AccountIsDisabled": _Row(Unauthenticated, "enable the storage account"),
    "AuthenticationFailed": _Row(Unauthenticated, _CREDENTIALS),
    "NoAuthenticationInformation": _Row(Unauthenticated, _CREDENTIALS),
    "KeyBasedAuthenticationNotPermitted": _Row(
        Unauthenticated, "the account does not allow keys: use an identity, or a user delegation SAS"
    ),
    "BlobAlreadyExists": _Row(AlreadyExists),
    # Who may only create is told so instead of "already exists".
    "UnauthorizedBlobOverwrite": _Row(AlreadyExists),
    "ConditionNotMet": _Row(AlreadyExists),
    "ContainerNotFound": _Row(BucketNotFound, _BUCKET),
    "ContainerBeingDeleted": _Row(BucketNotFound, _BUCKET),
    "ContainerDisabled": _Row(BucketNotFound, _BUCKET),
    "ResourceNotFound": _Row(BucketNotFound, _BUCKET),
    "BlobNotFound": _Row(ObjectNotFound),
    "InvalidBlockList": _Row(UploadGone, "blocks are kept for a week: the upload must be restarted"),
    "InvalidBlobOrBlock": _Row(StorageError, "another program's blocks are under this key; they expire after a week"),
    "BlockCountExceedsLimit": _Row(StorageError, "too many blocks were left under this key; they expire after a week"),
    "Md5Mismatch": _Row(IntegrityError, _CHECKSUM),
    "Crc64Mismatch": _Row(IntegrityError, _CHECKSUM),
    "IncompleteBody": _Row(Unavailable, _NETWORK),
    "RequestBodyTooLarge": _Row(NotSupported, "lower JOBS_BACKUP_MULTIPART_THRESHOLD and JOBS_BACKUP_PART_SIZE"),
    "BlobArchived": _Row(NotSupported, "rehydrate it to read it"),
    "BlobBeingRehydrated": _Row(NotSupported, "wait until it is rehydrated"),
    "LeaseIdMissing": _Row(StorageError, _KEPT),
    "SnapshotsPresent": _Row(StorageError, _KEPT),
    "InvalidResourceName": _Row(NotSupported, "check JOBS_BACKUP_BUCKET and JOBS_BACKUP_PREFIX"),
    "InvalidHeaderValue": _Row(NotSupported, "check JOBS_BACKUP_AZURE_ACCESS_TIER, and whether the store is new enough"),
    "FeatureVersionMismatch": _Row(NotSupported, "the account does not support this; check JOBS_BACKUP_AZURE_ACCESS_TIER"),
}
_FORBIDDEN: Final[Mapping[str, str]] = {
    "AuthorizationFailure": _FIREWALL,
    "AuthorizationPermissionMismatch": "{grant}",
    "InsufficientAccountPermissions": "{grant}",
    "AuthorizationSourceIPMismatch": "the SAS or the account's firewall rejects this address: create a SAS without sip",
    "AuthorizationProtocolMismatch": "the SAS allows only https: write https:// in AZURE_STORAGE_BLOB_ENDPOINT",
    "AuthorizationResourceTypeMismatch": "the SAS is for other resources: create one for the container (sr=c)",
    "AuthorizationServiceMismatch": "the SAS is for other services: create one for the container (sr=c)",
    "KeyVaultAccessTokenCannotBeAcquired": _VAULT,
    "KeyVaultEncryptionKeyNotFound": _VAULT,
    "KeyVaultVaultNotFound": _VAULT,
}
"""By the code of a 403: what to do; `{grant}` is replaced by what to grant."""
_STATUSES: Final[Mapping[int, _Row]] = {
    401: _Row(Unauthenticated, _CREDENTIALS),
    404: _Row(BucketNotFound, _ENDPOINT),
    405: _Row(NotSupported, _ENDPOINT),
    501: _Row(NotSupported, _ENDPOINT),
}

_ANYBODYS: Final = (401, 403, 405, 407, 408, 429)
"""Statuses that are believed to be a refusal whoever gives them. Faults, from 500 on, are, too."""

_PROXY: Final = "write HTTPS_PROXY, HTTP_PROXY and ALL_PROXY as http://user:password@host:port; for SOCKS, install PySocks"
# By the names of an error, of those behind it, and of their bases; the first one counts. The libraries need not be imported for it.
_NAMES: Final[Mapping[str, _Row]] = {
    "InvalidSchema": _Row(ConfigurationError, _PROXY),
    "InvalidURL": _Row(ConfigurationError, _PROXY),
    "LocationValueError": _Row(ConfigurationError, _PROXY),
    "AzureSigningError": _Row(ConfigurationError, "check AZURE_STORAGE_ACCESS_KEY"),
    "ProxyError": _Row(Unreachable, "check HTTPS_PROXY and NO_PROXY"),
    "NewConnectionError": _Row(Unreachable, _NETWORK),
    "NameResolutionError": _Row(Unreachable, _NETWORK),
    "ConnectTimeout": _Row(Unreachable, _NETWORK),
    "ConnectTimeoutError": _Row(Unreachable, _NETWORK),
    "ConnectionRefusedError": _Row(Unreachable, _NETWORK),
    "gaierror": _Row(Unreachable, _NETWORK),
    "ServiceRequestError": _Row(Unavailable, _NETWORK),
    "ServiceResponseError": _Row(Unavailable, _NETWORK),
    "IncompleteReadError": _Row(Unavailable, _NETWORK),
    "RequestException": _Row(Unavailable, _NETWORK),
    "TimeoutError": _Row(Unavailable, _NETWORK),
    "HTTPError": _Row(Unavailable, _NETWORK),
    "SSLError": _Row(Unavailable, _NETWORK),
    "DecodeError": _Row(Unavailable, _STRANGER),
    "DeserializationError": _Row(Unavailable, _STRANGER),
}
_BUNDLE: Final = "REQUESTS_CA_BUNDLE does not name a readable file of PEM certificates"
_TLS: Final[Mapping[str, _Row]] = {
    "CERTIFICATE_VERIFY_FAILED": _Row(ConfigurationError, "check the endpoint's certificate, and REQUESTS_CA_BUNDLE"),
    "doesn't match": _Row(ConfigurationError, "check the endpoint's certificate, and REQUESTS_CA_BUNDLE"),
    "WRONG_VERSION_NUMBER": _Row(ConfigurationError, "the endpoint does not use TLS: write http:// before it, or correct the port"),
    "NO_CERTIFICATE_OR_CRL_FOUND": _Row(ConfigurationError, _BUNDLE),
    "PEM lib": _Row(ConfigurationError, _BUNDLE),
}
"""By a part of the error's text. Other TLS errors are those of a broken connection, which may have brought the request there."""


_TROUBLE: Final = "cannot get a token for Azure"
_FEDERATION: Final = "AZURE_FEDERATED_TOKEN_FILE"
_CERTIFICATE: Final = "AZURE_CLIENT_CERTIFICATE_PATH"
_FILES: Final = (_FEDERATION, _CERTIFICATE)
"""Variables that name files which azure-identity reads by itself."""


class Call(NamedTuple):
    """What was tried. `if_absent`: whether the request has that condition."""

    operation: str
    settings: AzureBlobSettings
    key: str = ""
    if_absent: bool = False

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"{self.operation} {self.settings.location}" + (f": {self.key}" if self.key else "")


@contextlib.contextmanager
def translated(call: Call) -> Generator[None]:
    """Whatever is raised within becomes an error of the taxonomy.

    It is raised without the library's error behind it: that one's text has URLs in it, and with them the signature of a SAS.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - nothing is swallowed
        raise translate(error, call) from None


def translate(error: Exception, call: Call) -> JobsBackupError:
    """The error of the taxonomy for what a request raised."""
    if isinstance(error, JobsBackupError):
        return error
    response: Any = getattr(error, "response", None)
    if response is not None and getattr(response, "status_code", None):
        return _answered(error, response, call)
    text = _cleaned(_reason(error), call)
    names = {class_.__name__ for one in _chain(error) for class_ in type(one).__mro__}
    row = next((row for name, row in _NAMES.items() if name in names), None)
    if "SSLError" in names:
        said = " ".join(map(str, _chain(error)))
        row = next((row for part, row in _TLS.items() if part in said), row)
    if row is None:
        return StorageError(f"{call}: {type(error).__name__}: {text}")
    found = row.error(f"{call}: {text}", hint=row.hint)
    if row is _TLS["WRONG_VERSION_NUMBER"]:
        setattr(found, "refused", False)  # noqa: B010 - of this one: it may also come behind a request, instead of its answer
    return found


def is_azures(response: Any) -> bool:
    """Whether an answer has the store's mark, which it gives to each: a status alone, or a page, can be anybody's."""
    return bool(response.headers.get("x-ms-request-id"))


def check_origin(call: Call, response: Any) -> None:
    """What is done, or is so, only the store can say. `response` is the SDK's pipeline's.

    Raises:
        ConfigurationError: the answer is a redirect.
        Unavailable: the answer says something of the kind, and does not bear the store's mark.
    """
    answer = response.http_response
    if answer.status_code in (301, 302, 303, 307, 308):
        raise moved(f"{call}: {answer.status_code}", answer.headers.get("Location", ""), "AZURE_STORAGE_BLOB_ENDPOINT")
    if answer.status_code < 500 and answer.status_code not in _ANYBODYS and not is_azures(answer):
        raise Unavailable(f"{call}: the response ({answer.status_code}) has no x-ms-request-id", hint=_STRANGER)


def _code(error: Any, response: Any) -> str:
    """The store's code for an error; empty where the answer is not the store's."""
    if not is_azures(response):
        return ""
    return str(response.headers.get("x-ms-error-code") or getattr(error.error_code, "value", error.error_code) or "")


def unreadable_token(error: Exception | None = None) -> Unauthenticated | None:
    """The error for a file of azure-identity's that cannot be read, None if there is none. It passes on to other credentials."""
    files = {name: os.environ.get(name, "") for name in _FILES}
    found = unreadable(_TROUBLE, error, files=files)
    return (
        found
        or unusable(_TROUBLE, {_FEDERATION: files[_FEDERATION]})
        or unusable(_TROUBLE, {_CERTIFICATE: files[_CERTIFICATE]}, text=False)
    )


def unusable_identity(error: Exception) -> Unauthenticated:
    """The error for variables that azure-identity refuses when it is set up. Nothing was sent."""
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
    """The error of the taxonomy for a token that could not be had. The request itself was not sent."""
    if found := unreadable_token(error):
        return found
    names = {class_.__name__ for one in _chain(error) for class_ in type(one).__mro__}
    said = cleaned(re.sub(r"https?://\S+", "****", str(error)), ambient=UNSHOWN)
    if "ClientAuthenticationError" in names:  # also where no kind of credentials is available
        return Unauthenticated(f"cannot get a token for Azure: {said}", hint=_IDENTITY)
    return Unreachable(
        f"cannot get a token for Azure: {said}", hint="check the connection to the token server and the metadata server"
    )


def _answered(error: Any, response: Any, call: Call) -> JobsBackupError:
    """For an answer that is none of success."""
    status: int = response.status_code
    code = _cleaned(_code(error, response), call)
    # The first line is the store's own sentence; below come the request's id, and sometimes what was signed.
    said = str(error.message).strip().partition("\n")[0][:_LOOKED_AT]
    message = f"{call}: {status}" + (f" {code}" if code else "") + f": {_cleaned(said, call)}"
    retry_after = parse_retry_after(response.headers.get("Retry-After", ""))
    if status == 429 or code == "ServerBusy":
        return Throttled(message, hint=_SLOWER, retry_after=retry_after)
    if code == "BlobImmutableDueToPolicy":
        return PermissionDenied(message, action=permission(call.operation), resource=call.settings.resource, hint=_KEPT)
    if code == "ConditionNotMet" and call.operation == "Get Blob":
        # The condition of a read is that it still is what it was; that of a write, that nothing is there.
        row = _Row(IntegrityError, "it was replaced meanwhile")
    elif code == "AuthenticationFailed" and "time frame" in str(error.message):
        row = _Row(CredentialsExpired, _RUN_OUT)
    elif code in _CODES:
        row = _CODES[code]
        if row.error is AlreadyExists and not call.if_absent:
            row = _Row(StorageError, f"the request has no such condition; {_STRANGER}")
    elif status == 403:
        return _denied(message, code, said, call, response)
    elif status == 401 and call.settings.has_identity:
        row = _Row(CredentialsExpired, _CREDENTIALS)
    elif status == 400 and re.search(r"md5|crc64", said, re.IGNORECASE):
        row = _Row(IntegrityError, _CHECKSUM)
    elif status == 408 or (status >= 500 and status not in _STATUSES):
        return Unavailable(message, hint=_FAULT, retry_after=retry_after)
    else:
        row = _STATUSES.get(status, _Row(StorageError))
    if row.error is NotSupported and call.operation in ("Put Block", "Put Block List"):
        row = row._replace(hint=_NO_PARTS)
    return row.error(message, hint=row.hint)


def _denied(message: str, code: str, said: str, call: Call, response: Any) -> JobsBackupError:
    action, resource = permission(call.operation), call.settings.resource
    if not code and is_azures(response) and not said:
        code = "AuthorizationFailure"
    if hint := _FORBIDDEN.get(code, ""):
        return PermissionDenied(message, action=action, resource=resource, hint=hint.format(grant=f"grant {action} on {resource}"))
    return forbidden(message, code, said, action=action, resource=resource, owned=is_azures(response))


def _reason(error: Exception) -> str:
    """What the system said: the first error in the chain that has no URL in its text; else the error's name."""
    for one in _chain(error):
        if type(one).__module__.split(".")[0] in ("builtins", "socket", "ssl", "http"):
            return getattr(one, "strerror", None) or str(one) or type(one).__name__
    text = str(error)
    return text if "://" not in text and "url:" not in text else type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: list[BaseException] = [error]
    for _ in range(12):
        if not found:
            return
        one = found.pop(0)
        yield one
        inner = (one.__cause__, one.__context__, getattr(one, "inner_exception", None), getattr(one, "reason", None), *one.args)
        found += [other for other in inner if isinstance(other, BaseException) and other is not one]


def _cleaned(text: str, call: Call) -> str:
    return re.sub(r"(?<=sig=)[^&\s\"']+", "****", cleaned(text, call.settings.secrets(), ambient=UNSHOWN))
