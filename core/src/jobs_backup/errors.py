"""Errors that core, a provider or the command reports.

A provider MUST translate its SDK's errors into these. Each error carries what failed and on what (the message), whether a retry can
help (`retryable`), and what the operator can do (`hint`). None of these may contain a secret, a session URI or an event's payload.
"""

from __future__ import annotations

import copyreg
import time
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

from jobs_backup.util.logs import printable


class JobsBackupError(Exception):
    """Base of all errors of jobs-backup.

    Attributes:
        hint: what the operator can do about it, one sentence; empty if there is nothing to say.
        retryable: whether the same call may succeed later without anybody changing anything.
        attempts: how often the call was tried before this error was final; 0 if it was not retried at all.
        elapsed: seconds spent on these attempts and the waits between them.
        refused: whether nothing of the call can have arrived at the store, and every other call would meet the same.
        retry_after: seconds that the store asks to wait, None if it does not say.
        recorded: of an error that ended `record_many`, the jobs of the events that were recorded before it.
    """

    # A class sets the first two for its errors, and who raises one of them may set them for that one.
    retryable: bool = False
    refused: bool = False
    retry_after: float | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.attempts = 0
        self.elapsed = 0.0
        self.recorded: Sequence[int] = ()
        # Notes end a traceback, whose reader has no command that prints the hint.
        if hint:
            self.add_note(hint)
        known = _known(self)
        self.add_note(f"[{known}] `jobs-backup help {known}` explains it")

    def __reduce__(self) -> tuple[object, ...]:
        # For copying and pickling: Exception would call the class again with only the message.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    @property
    def code(self) -> str:
        """The error's name in messages, logs and `--json` output: that of its nearest class here, as plugins may derive others."""
        return _known(self)

    def __str__(self) -> str:
        tried = f" ({self.attempts} attempts in {self.elapsed:.1f} s)" if self.attempts > 1 else ""
        return self.message + tried

    def one_line(self) -> str:
        """The message and the hint on one line, without terminal control characters."""
        text = f"{self}: {self.hint}" if self.hint else str(self)
        return printable(" ".join(text.split()))


def _known(error: JobsBackupError) -> str:
    return next(one.__name__ for one in type(error).__mro__ if one.__module__ == __name__)


class ConfigurationError(JobsBackupError):
    """A setting is missing or invalid; nothing works until it is changed."""

    refused = True


class AmbiguousInput(JobsBackupError):
    """Cannot determine whether a file was read before; nothing was read from it."""


class ProviderNotFound(ConfigurationError):
    """No installed distribution offers the requested provider, or the provider cannot be used."""


class WrapperNotFound(ConfigurationError):
    """No installed distribution offers a requested wrapper, or the wrapper cannot be used."""


class InvalidEvent(JobsBackupError, ValueError):
    """A payload is not one JSON object, or an id is invalid. `index` is the payload's position in `record_many`."""

    def __init__(self, message: str, *, hint: str = "", index: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.index = index


class StorageError(JobsBackupError):
    """A hook call failed for a reason that no subclass covers. Retried within the limits."""

    retryable = True


class ContractViolation(StorageError):
    """A provider broke the contract of the hook specifications, for example by returning None."""

    retryable = False


class Unauthenticated(StorageError):
    """Credentials are missing, or the store does not accept them."""

    retryable = False
    refused = True


class CredentialsExpired(Unauthenticated):
    """The credentials were valid but have expired. Refreshable ones are replaced, so a retry helps."""

    retryable = True


class PermissionDenied(StorageError):
    """The credentials are valid but lack a permission.

    Attributes:
        action: the permission in the store's terms, for example `s3:PutObject`.
        resource: what to grant it on, for example `arn:aws:s3:::my-bucket/*`.
    """

    retryable = False
    refused = True

    def __init__(self, message: str, *, action: str, resource: str, hint: str = "") -> None:
        super().__init__(message, hint=hint or f"grant {action} on {resource}")
        self.action = action
        self.resource = resource


class BucketNotFound(StorageError):
    """The bucket does not exist. jobs-backup never creates it."""

    retryable = False
    refused = True


class ObjectNotFound(StorageError):
    """No object has this key."""

    retryable = False


class AlreadyExists(StorageError):
    """A conditional write found an object under its key.

    The key contains a uuid that was minted together with the bytes, so core treats the object as uploaded. A provider MUST raise
    this only if the request carried the condition and the store itself refused it, in its own words.
    """

    retryable = False


class Unproven(StorageError):
    """The store says that the object already exists, which does not prove that it was uploaded. Its batch waits."""

    retryable = False


class UploadGone(StorageError):
    """A multipart upload cannot be resumed or completed; a new one must be created."""

    retryable = False


class Throttled(StorageError):
    """The store asks for fewer requests.

    Attributes:
        retry_after: seconds that the store asks to wait; None if it does not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Unavailable(StorageError):
    """The store is unreachable, did not answer in time, or answered with a server error (5xx).

    Attributes:
        retry_after: seconds that the store asks to wait; None if it does not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Unreachable(Unavailable):
    """No connection to the store could be made, so nothing was sent."""

    refused = True


class IntegrityError(StorageError):
    """The bytes that arrived differ from those sent. Retried within the limits."""


class NotSupported(StorageError):
    """The store does not support this operation or option."""

    retryable = False
    refused = True


class SpoolError(JobsBackupError):
    """The spool cannot be used."""


class SpoolUncertain(SpoolError):
    """The connection to the spool's server was lost at a commit, and the server could not be asked what became of it.

    The events of this call are recorded, all of them, or none is.
    """

    retryable = True


class SpoolFull(SpoolError):
    """The disk or the spool's quota is full. Nothing from this call was recorded."""

    retryable = True


class SpoolCorrupt(SpoolError):
    """Bytes in the spool differ from those written."""


class WrapperMissing(SpoolError):
    """A wrapper, or one of its keys, is missing for a batch to be written or an object to be read.

    The batch waits until it is available again.
    """


class BackupClosed(JobsBackupError):
    """The Backup was closed, or belongs to the process that this one was forked from."""


class UnknownJob(JobsBackupError, LookupError):
    """These ids belong to no raw event that this spool has or had; all others in the call were accepted.

    Attributes:
        jobs: the ids, at most 1,000 of them.
        count: total number of such ids.
        index: for a failure that names one of them, its position in the report.
    """

    def __init__(self, message: str, *, hint: str = "", jobs: Sequence[int] = (), count: int = 0, index: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.jobs = jobs
        self.count = count
        self.index = index


class StorePaused(JobsBackupError):
    """The store keeps failing. Recorded events wait in the spool; `cause` is the last error."""

    def __init__(self, message: str, *, cause: JobsBackupError) -> None:
        super().__init__(message, hint=cause.hint)
        self.cause = cause


class NoArchiver(JobsBackupError):
    """No process uploads what this spool holds."""


def parse_retry_after(value: str) -> float | None:
    """Seconds to wait according to a `Retry-After` header (RFC 9110, 10.2.3), in seconds or as a date. None if empty or invalid."""
    value = value.strip()
    if value.isdecimal():
        return float(value)
    when = parse_date(value)
    return None if when is None else max(0.0, when - time.time())


def parse_date(value: str) -> float | None:
    """Date of an HTTP header (RFC 9110, 5.6.7), in seconds since 1970. None if empty or invalid."""
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
