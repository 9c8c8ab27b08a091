"""The error taxonomy: every failure that core, a provider or the command reports.

A provider MUST translate its SDK's errors into these. Three things travel with each of them: what was tried on what (the
message), whether trying again can help (`retryable`), and what the operator can do (`hint`). None of them may contain a
secret, a session URI or an event's payload.
"""

from __future__ import annotations

import copyreg
import time
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import ClassVar

from jobs_backup.util.logs import printable


class JobsBackupError(Exception):
    """Base of all errors of jobs-backup.

    Attributes:
        hint: what the operator can do about it, one sentence; empty if there is nothing to say.
        retryable: whether the same call may succeed later without anybody changing anything.
        attempts: how often the call was tried before this error was final; 0 if it was not retried at all.
        elapsed: seconds spent on these attempts and the waits between them.
        refused: whether nothing of the call can have arrived at the store, and every other call would meet the same.
        recorded: of an error that ended `record_many`, the jobs of the events that were recorded before it.
    """

    retryable: ClassVar[bool] = False
    refused: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.attempts = 0
        self.elapsed = 0.0
        self.recorded: Sequence[int] = ()
        # A traceback ends with these: who sees one has no command that prints the hint.
        if hint:
            self.add_note(hint)
        known = next(one.__name__ for one in type(self).__mro__ if one.__module__ == __name__)  # a plugin's own is one of these
        self.add_note(f"[{known}] `jobs-backup help {known}` explains it")

    def __reduce__(self) -> tuple[object, ...]:
        # To be copied, and to get out of another process: Exception would call the class again, with the message alone.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    @property
    def code(self) -> str:
        """The error's name in logs and in `--json` output."""
        return type(self).__name__

    def __str__(self) -> str:
        tried = f" ({self.attempts} attempts in {self.elapsed:.1f} s)" if self.attempts > 1 else ""
        return self.message + tried

    def one_line(self) -> str:
        """The message and the hint on one line, with nothing in it that could steer a terminal."""
        text = f"{self}: {self.hint}" if self.hint else str(self)
        return printable(" ".join(text.split()))


class ConfigurationError(JobsBackupError):
    """A setting is missing or wrong; nothing works until somebody changes it."""

    refused = True


class AmbiguousInput(JobsBackupError):
    """Whether a file was read before cannot be told, so that nothing of it was read."""


class ProviderNotFound(ConfigurationError):
    """No installed distribution offers the provider that was asked for, or the one that does can't be used."""


class WrapperNotFound(ConfigurationError):
    """No installed distribution offers a wrapper that was asked for, or the one that does can't be used."""


class InvalidEvent(JobsBackupError, ValueError):
    """A payload is not one JSON object; or an id is none. `index` is the payload's place in `record_many`."""

    def __init__(self, message: str, *, hint: str = "", index: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.index = index


class StorageError(JobsBackupError):
    """A hook call failed for a reason that none of the subclasses names. Retried within the bounds."""

    retryable = True


class ContractViolation(StorageError):
    """A provider broke the contract of the hook specifications, for example by returning None."""

    retryable = False


class Unauthenticated(StorageError):
    """The store does not accept the credentials, or there are none."""

    retryable = False
    refused = True


class CredentialsExpired(Unauthenticated):
    """The credentials were good and have run out. Refreshable ones are replaced, so trying again helps."""

    retryable = True


class PermissionDenied(StorageError):
    """The credentials are good but lack a permission.

    Attributes:
        action: the permission in the store's own words, for example `s3:PutObject`.
        resource: what it has to be granted on, for example `arn:aws:s3:::my-bucket/*`.
    """

    retryable = False
    refused = True

    def __init__(self, message: str, *, action: str, resource: str, hint: str = "") -> None:
        super().__init__(message, hint=hint or f"grant {action} on {resource}")
        self.action = action
        self.resource = resource


class BucketNotFound(StorageError):
    """The bucket does not exist. It is never created by us."""

    retryable = False
    refused = True


class ObjectNotFound(StorageError):
    """There is no object under this key."""

    retryable = False


class AlreadyExists(StorageError):
    """A conditional write found an object under its key.

    The key carries a uuid that was minted together with the bytes, so core takes this as "stored". A provider MUST raise it only
    for the store's own refusal, in the store's own words, of a request that carried the condition.
    """

    retryable = False


class Unproven(StorageError):
    """The store says that the object exists already, and that does not prove that it is stored. Its batch waits."""

    retryable = False


class UploadGone(StorageError):
    """A multipart upload can't be continued or completed; another one has to be begun."""

    retryable = False


class Throttled(StorageError):
    """The store asks for fewer requests.

    Attributes:
        retry_after: seconds that the store asks to wait, None if it does not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Unavailable(StorageError):
    """The store can't be reached, did not answer in time, or answered with a fault of its own (5xx).

    Attributes:
        retry_after: seconds that the store asks to wait, None if it does not say.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Unreachable(Unavailable):
    """No connection to the store could be made, so that nothing was sent."""

    refused = True


class IntegrityError(StorageError):
    """What arrived is not what was sent. Sent again within the bounds."""


class NotSupported(StorageError):
    """The store does not have this operation or option."""

    retryable = False
    refused = True


class SpoolError(JobsBackupError):
    """The spool can't be used."""


class SpoolFull(SpoolError):
    """The disk, or the spool's quota, is full. Nothing of this call was recorded."""

    retryable = True


class SpoolCorrupt(SpoolError):
    """Bytes in the spool are not those that were written."""


class WrapperMissing(SpoolError):
    """A wrapper, or a key of one, is not there that a batch is to be made by, or that an object was made by.

    The batch waits until it is there again.
    """


class BackupClosed(JobsBackupError):
    """The Backup was closed, or belongs to the process that this one was forked from."""


class UnknownJob(JobsBackupError, LookupError):
    """These ids are of no raw event that this spool has or had; all others of the same call were taken.

    Attributes:
        jobs: the ids, at most 1,000 of them.
        count: how many there are.
        index: of a failure that names one of them, its place in what was reported.
    """

    def __init__(self, message: str, *, hint: str = "", jobs: Sequence[int] = (), count: int = 0, index: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.jobs = jobs
        self.count = count
        self.index = index


class StorePaused(JobsBackupError):
    """The store keeps failing. What was recorded waits in the spool; `cause` is the last error."""

    def __init__(self, message: str, *, cause: JobsBackupError) -> None:
        super().__init__(message, hint=cause.hint)
        self.cause = cause


class NoArchiver(JobsBackupError):
    """Nobody is sending what this spool holds."""


def parse_retry_after(value: str) -> float | None:
    """The `retry_after` for a `Retry-After` header (RFC 9110, 10.2.3): seconds, or a date. None if it is neither, or empty."""
    value = value.strip()
    if value.isdecimal():
        return float(value)
    when = parse_date(value)
    return None if when is None else max(0.0, when - time.time())


def parse_date(value: str) -> float | None:
    """The date of an HTTP header (RFC 9110, 5.6.7) in seconds since 1970. None if it is none, or empty."""
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
