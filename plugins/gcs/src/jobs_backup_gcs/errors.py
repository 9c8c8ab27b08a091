"""Translates the errors of the store and of Google's libraries into the taxonomy, each with what to do about it."""

from __future__ import annotations

import contextlib
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
from jobs_backup_gcs.settings import UNSHOWN, GcsSettings, token_files

_LONGEST: Final = 300
_LOOKED_AT: Final = 2000
"""Characters of what the store says: anybody may answer."""
_BUCKET: Final = "check JOBS_BACKUP_BUCKET; the bucket is never created"
_CREDENTIALS: Final = (
    "set GOOGLE_APPLICATION_CREDENTIALS to a credentials file, or run where the environment has credentials (workload identity,"
    " an instance)"
)
_KEY: Final = "check that the service account and its key exist, and this machine's clock (NTP)"
_SLOWER: Final = "if it persists, lower JOBS_BACKUP_UPLOAD_CONCURRENCY"
_NETWORK: Final = "check the endpoint, DNS, firewall and proxy between here and the store"
STRANGER: Final = "the response may not come from the store: check the endpoint and the proxy"
_FAULT: Final = "a fault in the store: see its status page"
_CHECKSUM: Final = "if it persists, the network, a proxy or the disk changes bytes"

_PERMISSIONS: Final[Mapping[str, str]] = {
    "write": "storage.objects.create",
    "create": "storage.objects.create",
    "part": "storage.objects.create",
    "cancel": "storage.objects.create",
    "get": "storage.objects.get",
    "delete": "storage.objects.delete",
    "list": "storage.objects.list",
}


class _Row(NamedTuple):
    error: type[JobsBackupError]
    hint: str = ""


_STATUSES: Final[Mapping[int, _Row]] = {
    401: _Row(CredentialsExpired, _KEY),
    405: _Row(NotSupported, "check JOBS_BACKUP_GCS_ENDPOINT"),
    501: _Row(NotSupported, "check JOBS_BACKUP_GCS_ENDPOINT"),
}

# By the names of an error, of those behind it, and of their bases; the first one counts. The libraries need not be imported for it.
_OF_AUTH: Final[Mapping[str, _Row]] = {
    # The request itself was not sent: there was no token for it.
    "TransportError": _Row(Unreachable, "cannot get a token: check the connection to the token server and the metadata server"),
    "RefreshError": _Row(Unauthenticated, _KEY),
    "DefaultCredentialsError": _Row(Unauthenticated, _CREDENTIALS),
    "MalformedError": _Row(ConfigurationError, _CREDENTIALS),
    "GoogleAuthError": _Row(Unauthenticated, _CREDENTIALS),  # an InvalidOperation, where anonymous ones were refused
}
_PROXY: Final = "write HTTPS_PROXY, HTTP_PROXY and ALL_PROXY as http://user:password@host:port; for SOCKS, install PySocks"
_OF_REQUESTS: Final[Mapping[str, _Row]] = {
    "InvalidSchema": _Row(ConfigurationError, _PROXY),
    "InvalidURL": _Row(ConfigurationError, _PROXY),
    "LocationValueError": _Row(ConfigurationError, _PROXY),
    "ProxyError": _Row(Unreachable, "check HTTPS_PROXY and NO_PROXY"),
    "NewConnectionError": _Row(Unreachable, _NETWORK),
    "NameResolutionError": _Row(Unreachable, _NETWORK),
    "ConnectTimeout": _Row(Unreachable, _NETWORK),
    "ConnectTimeoutError": _Row(Unreachable, _NETWORK),
    "ConnectionRefusedError": _Row(Unreachable, _NETWORK),
    "gaierror": _Row(Unreachable, _NETWORK),
    "RequestException": _Row(Unavailable, _NETWORK),
    "ConnectionError": _Row(Unavailable, _NETWORK),
    "TimeoutError": _Row(Unavailable, _NETWORK),
    "HTTPError": _Row(Unavailable, _NETWORK),
    "SSLError": _Row(Unavailable, _NETWORK),
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
_LIMITS: Final = (
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "quotaExceeded",
    "dailyLimitExceeded",
    "concurrentLimitExceeded",
    "slowDown",
    "RATE_LIMIT_EXCEEDED",
)
_GENERAL: Final = ("", "forbidden", "required", "invalid")
"""Reasons that say less than those in the details of an answer."""
_FORBIDDEN: Final[Mapping[str, str]] = {
    r"accessNotConfigured|SERVICE_DISABLED|API has not been used": (
        "enable the Cloud Storage API (storage.googleapis.com) in the project of the credentials"
    ),
    r"authentication scopes|SCOPE_INSUFFICIENT": (
        "the credentials lack the scope devstorage.read_write: give it to the instance or the node pool, or use workload identity"
    ),
    r"user_?project|serviceusage|requester pays": (
        "the bucket is set to requester pays, or the project cannot be billed: grant serviceusage.services.use on the project"
    ),
    r"vpcServiceControls|organization's policy|constraints/|domainPolicy|SECURITY_POLICY": (
        "a policy of the organization (VPC Service Controls, or another) prohibits it: ask its administrators for an exception"
    ),
}
"""By words in a 403's reason or sentence: what is to be done where no permission on the bucket is missing."""


class Call(NamedTuple):
    """What was tried. `upload` is the URI that no message may show; `if_absent`: the request or upload has that condition."""

    operation: str
    settings: GcsSettings
    key: str = ""
    upload: str = ""
    if_absent: bool = False

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"{self.operation} gs://{self.settings.bucket}" + (f"/{self.key}" if self.key else "")


@contextlib.contextmanager
def translated(call: Call) -> Generator[None]:
    """Whatever is raised within becomes an error of the taxonomy.

    It is raised without the library's error behind it: that one's text has URLs in it, and with them the upload's id.
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
        return answered(response, call)
    auth = type(error).__module__.startswith("google.auth")
    is_local = auth or isinstance(error, ValueError)
    if local := unreadable(call, error, files=token_files(call.settings) if auth else {}):
        return local
    if is_local and (local := unusable(call, token_files(call.settings))):
        return local
    text = _cleaned(_reason(error), call)
    names = {class_.__name__ for one in _chain(error) for class_ in type(one).__mro__}
    if auth and getattr(error, "retryable", False):
        names.add("TransportError")
    row = next((row for name, row in (_OF_AUTH if auth else _OF_REQUESTS).items() if name in names), None)
    if "SSLError" in names and not auth:
        said = " ".join(map(str, _chain(error)))
        row = next((row for part, row in _TLS.items() if part in said), row)
    if row is None:
        return StorageError(f"{call}: {type(error).__name__}: {text}")
    found = row.error(f"{call}: {text}", hint=row.hint)
    if row is _TLS["WRONG_VERSION_NUMBER"]:
        setattr(found, "refused", False)  # noqa: B010 - of this one: it may also come behind a request, instead of its answer
    return found


def answered(response: Any, call: Call) -> JobsBackupError:
    """The error of the taxonomy for an answer that is none of success."""
    status: int = response.status_code
    reason, said = _told(response)
    reason = _cleaned(reason, call)
    message = f"{call}: {status}" + (f" {reason}" if reason else "") + (f": {_cleaned(said, call)}" if said else "")
    wait = parse_retry_after(response.headers.get("Retry-After", ""))
    if status == 429 or reason in _LIMITS:
        return Throttled(message, hint=_SLOWER, retry_after=wait)
    if status == 408 or (status >= 500 and status not in _STATUSES):
        return Unavailable(message, hint=_FAULT, retry_after=wait)
    if status in (301, 302, 303, 307) or (status == 308 and response.headers.get("Location")):
        return moved(f"{call}: {status}", response.headers.get("Location", ""), _endpoint_variable(call))
    if status == 403:
        return _denied(message, reason, said, call, response)
    row = _STATUSES.get(status) or (_claimed(status, said, call) if is_googles(response) else _Row(StorageError, STRANGER))
    return row.error(message, hint=row.hint)


def _claimed(status: int, said: str, call: Call) -> _Row:
    """What is so, because the store itself says it."""
    if status in (400, 412) and re.search(r"crc32c|md5|checksum|hash", said, re.IGNORECASE):
        return _Row(IntegrityError, _CHECKSUM)
    if status == 412 and call.if_absent and call.operation in ("write", "create", "part"):
        return _Row(AlreadyExists)
    if status == 412:
        return _Row(StorageError, f"the request has no such condition; {STRANGER}")
    if status in (404, 410) and call.upload:
        return _Row(UploadGone, "it was completed, cancelled, or is older than a week: another one must be started")
    if status in (404, 410):
        is_object = call.operation in ("get", "delete") and "bucket" not in said.lower()
        return _Row(ObjectNotFound) if is_object else _Row(BucketNotFound, _BUCKET)
    return _Row(StorageError)


def _endpoint_variable(call: Call) -> str:
    return "STORAGE_EMULATOR_HOST" if call.settings.emulator else "JOBS_BACKUP_GCS_ENDPOINT"


def _denied(message: str, reason: str, said: str, call: Call, response: Any) -> JobsBackupError:
    named = re.search(r"\b(storage\.[a-z]+\.[A-Za-z]+|cloudkms\.[A-Za-z.]+|serviceusage\.[A-Za-z.]+)", said)
    action = named[1] if named else _PERMISSIONS[call.operation]
    resource = call.settings.resource
    hint = next((hint for words, hint in _FORBIDDEN.items() if re.search(words, f"{reason} {said}", re.IGNORECASE)), "")
    if action.startswith("cloudkms"):
        resource = call.settings.kms_key or "the bucket's key"
        hint = f"grant {action} on {resource} to the project's Cloud Storage service agent, as `jobs-backup policy` prints it"
    if hint and is_googles(response):
        return PermissionDenied(message, action=action, resource=resource, hint=hint)
    return forbidden(message, reason, said, action=action, resource=resource, owned=is_googles(response))


def is_googles(response: Any) -> bool:
    """Whether an answer is the store's own: it has the header that Google's service sends always, or is an error in its words.

    A status alone can be a proxy's.
    """
    if response.headers.get("X-GUploader-UploadID"):
        return True
    try:
        return bool(response.json()["error"]["code"] == response.status_code)
    except (ValueError, KeyError, TypeError):
        return False


def check_bare(response: Any, call: Call) -> None:
    """A success that is a status and nothing else. Google's service marks it; an emulator at least has nothing to say.

    Raises:
        StorageError: it is not the store's.
    """
    if not is_googles(response) and not (call.settings.is_own and response.content.strip() in (b"", b"null")):
        raise StorageError(f"{call}: the response ({response.status_code}) does not come from the store", hint=STRANGER)


def _told(response: Any) -> tuple[str, str]:
    """The reason and the message of an answer in JSON; else its beginning."""
    try:
        error: Any = response.json()["error"]
        errors: Any = error.get("errors") or [{}]
        reason = str(errors[0].get("reason") or "")
        if reason in _GENERAL:
            reason = next((str(one["reason"]) for one in error.get("details") or () if one.get("reason")), reason)
        return reason, str(error.get("message") or "")[:_LOOKED_AT]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "", str(getattr(response, "text", ""))[:_LONGEST]


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
        inner = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
        found += [other for other in inner if isinstance(other, BaseException) and other is not one]


def _cleaned(text: str, call: Call) -> str:
    return re.sub(r"(?<=upload_id=)[^&\s\"']+", "****", cleaned(text, [call.upload], ambient=UNSHOWN))
