"""Translates errors of the store and of Google's libraries into the taxonomy, each with what to do."""

from __future__ import annotations

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
from jobs_backup_gcs.settings import UNSHOWN, GcsSettings, token_files

_BUCKET: Final = "check JOBS_BACKUP_BUCKET; the bucket is never created"
_CREDENTIALS: Final = (
    "set GOOGLE_APPLICATION_CREDENTIALS to a credentials file, or run where the environment has credentials (workload identity,"
    " an instance)"
)
_KEY: Final = "check that the service account and its key exist, and this machine's clock (NTP)"

_PERMISSIONS: Final[Mapping[str, str]] = {
    "write": "storage.objects.create",
    "create": "storage.objects.create",
    "part": "storage.objects.create",
    "cancel": "storage.objects.create",
    "get": "storage.objects.get",
    "delete": "storage.objects.delete",
    "list": "storage.objects.list",
}


_STATUSES: Final[Mapping[int, ErrorRule]] = {
    401: ErrorRule(CredentialsExpired, _KEY),
    405: ErrorRule(NotSupported, "check JOBS_BACKUP_GCS_ENDPOINT"),
    501: ErrorRule(NotSupported, "check JOBS_BACKUP_GCS_ENDPOINT"),
}

_OF_REQUESTS: Final[Mapping[str, ErrorRule]] = {
    **HTTP_ERRORS,
    "RecursionError": ErrorRule(Unavailable, STRANGER_HINT),  # of JSON that is nested too deeply
}

# By the names of an error, its causes and their base classes; the first match wins. Names, so that no library need be imported.
_OF_AUTH: Final[Mapping[str, ErrorRule]] = {
    # The request itself was not sent, for lack of a token.
    "TransportError": ErrorRule(
        Unreachable, "cannot get a token: check the connection to the token server and the metadata server"
    ),
    "RefreshError": ErrorRule(Unauthenticated, _KEY),
    "DefaultCredentialsError": ErrorRule(Unauthenticated, _CREDENTIALS),
    "MalformedError": ErrorRule(ConfigurationError, _CREDENTIALS),
    "GoogleAuthError": ErrorRule(Unauthenticated, _CREDENTIALS),  # an InvalidOperation, if anonymous credentials were refused
}
_TLS: Final = tls_rules(
    certificate="check the endpoint's certificate, and REQUESTS_CA_BUNDLE",
    bundle="REQUESTS_CA_BUNDLE does not name a readable file of PEM certificates",
)
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
"""Reasons less specific than those in the details of an answer."""
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
"""Words in a 403's reason or message -> what to do if no permission on the bucket is missing."""


class Call(NamedTuple):
    """An attempted operation. Never show `upload`, a URI, in a message. `if_absent`: the request or upload has that condition."""

    operation: str
    settings: GcsSettings
    key: str = ""
    upload: str = ""
    if_absent: bool = False

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        return f"{self.operation} gs://{self.settings.bucket}" + (f"/{self.key}" if self.key else "")


def translated(call: Call) -> AbstractContextManager[None]:
    """A context whose exceptions become errors of jobs-backup."""
    return mapped_errors(lambda error: translate(error, call))


def translate(error: Exception, call: Call) -> JobsBackupError:
    """Return the error of the taxonomy for an exception that a request raised."""
    response: Any = getattr(error, "response", None)
    if response is not None and getattr(response, "status_code", None):
        return answered(response, call)
    auth = type(error).__module__.startswith("google.auth")
    is_local = auth or isinstance(error, ValueError)
    if local := unreadable(call, error, files=token_files(call.settings) if auth else {}):
        return local
    if is_local and (local := unusable(call, token_files(call.settings))):
        return local
    text = _cleaned(system_message(error), call)
    if not auth:
        return map_exception(call, error, _OF_REQUESTS, text=text, tls=_TLS)
    names = error_names(error)
    if getattr(error, "retryable", False):
        names.add("TransportError")
    return map_exception(call, error, _OF_AUTH, text=text, names=names)


def answered(response: Any, call: Call) -> JobsBackupError:
    """Return the error of the taxonomy for an unsuccessful answer."""
    status: int = response.status_code
    reason, said = _reason(response)
    reason = _cleaned(reason, call)
    message = f"{call}: {status}" + (f" {reason}" if reason else "") + (f": {_cleaned(said, call)}" if said else "")
    if status in REDIRECTS and (status != 308 or response.headers.get("Location")):
        return moved(f"{call}: {status}", response.headers.get("Location", ""), _endpoint_variable(call))
    if status == 403 and reason not in _LIMITS:
        return _denied(message, reason, said, call, response)
    rule = THROTTLED if reason in _LIMITS else map_status(status, _STATUSES)
    if rule is None:
        rule = _claimed(status, said, call) if is_googles(response) else ErrorRule(StorageError, STRANGER_HINT)
    return rule.to_error(message, retry_after=parse_retry_after(response.headers.get("Retry-After", "")))


def _claimed(status: int, said: str, call: Call) -> ErrorRule:
    """Return the rule for an answer that counts only if it comes from the store itself."""
    if status in (400, 412) and re.search(r"crc32c|md5|checksum|hash", said, re.IGNORECASE):
        return ErrorRule(IntegrityError, CHECKSUM_HINT)
    if status == 412 and call.if_absent and call.operation in ("write", "create", "part"):
        return ErrorRule(AlreadyExists)
    if status == 412:
        return ErrorRule(StorageError, f"the request has no such condition; {STRANGER_HINT}")
    if status in (404, 410) and call.upload:
        return ErrorRule(UploadGone, "it was completed, cancelled, or is older than a week: another one must be started")
    if status in (404, 410):
        is_object = call.operation in ("get", "delete") and "bucket" not in said.lower()
        return ErrorRule(ObjectNotFound) if is_object else ErrorRule(BucketNotFound, _BUCKET)
    return ErrorRule(StorageError)


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
    """Whether an answer comes from the store: it has the header that Google always sends, or an error in Google's format.

    A status alone can come from a proxy.
    """
    if response.headers.get("X-GUploader-UploadID"):
        return True
    try:
        return bool(response.json()["error"]["code"] == response.status_code)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def check_bare(response: Any, call: Call) -> None:
    """Check a success that consists of a status alone. Google's has a header; an emulator's must at least have an empty body.

    Raises:
        StorageError: the answer does not come from the store.
    """
    if not is_googles(response) and not (call.settings.is_own and response.content.strip() in (b"", b"null")):
        raise StorageError(f"{call}: the response ({response.status_code}) does not come from the store", hint=STRANGER_HINT)


def _reason(response: Any) -> tuple[str, str]:
    """Return the reason and the message of a JSON answer; for any other, no reason and the beginning of its text."""
    try:
        error: Any = response.json()["error"]
        errors: Any = error.get("errors") or [{}]
        reason = str(errors[0].get("reason") or "")
        if reason in _GENERAL:
            reason = next((str(one["reason"]) for one in error.get("details") or () if one.get("reason")), reason)
        return reason, str(error.get("message") or "")[:MAX_RESPONSE_TEXT]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "", str(getattr(response, "text", ""))[:MAX_RESPONSE_TEXT]


def _cleaned(text: str, call: Call) -> str:
    return re.sub(r"(?<=upload_id=)[^&\s\"']+", "****", cleaned(text, [call.upload], ambient=UNSHOWN))
