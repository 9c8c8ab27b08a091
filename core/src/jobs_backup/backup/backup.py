"""The public API: record events durably, have them sent, wait for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Self, overload

from jobs_backup.backup.chunks import recording
from jobs_backup.backup.events import Event, Job, Jobs
from jobs_backup.backup.failures import Failure
from jobs_backup.backup.session import Session
from jobs_backup.format.lines import FinalPayload, Payload
from jobs_backup.settings.core import CoreSettings


class Backup:
    """Records events into the spool and, with `archive`, sends them into the bucket.

    Any number of threads may share one. A process that was forked from this one has to open its own. It installs no signal
    handlers. Use it as a context manager, or call `close`.
    """

    def __init__(self, settings: CoreSettings, *, environment: Mapping[str, str] | None = None, archive: bool = True) -> None:
        """Open the spool, and start sending what waits in it.

        Args:
            environment: where the provider's settings come from; the process's, if None.
            archive: False to record only; then another process has to run `jobs-backup archive`.

        Raises:
            ConfigurationError: the settings are wrong, or the provider is not installed.
            SpoolError: the spool can't be used.
        """
        self._session = Session(settings, environment=environment, archive=archive)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, *, archive: bool = True) -> Self:
        """A Backup as the environment variables say; those of the process, if `environment` is None. Raises as `Backup` does."""
        environment = os.environ if environment is None else environment
        return cls(CoreSettings.from_environment(environment), environment=environment, archive=archive)

    def record(
        self,
        payload: Payload,
        *,
        source_id: str,
        user_id: str | None = None,
        workspace_id: str = "",
        message_id: str | None = None,
        created_at: datetime | None = None,
    ) -> Job:
        """Record one event. When this returns, it survives a killed process and, by default, a power loss.

        Args:
            payload: a JSON object, as JSON text or as a dict. JSON text stays as it is, byte for byte. In a dict, what JSON does
                not have is written as what it has: NaN and infinity as null; Decimal, UUID, date, time, datetime and timedelta
                as text (`Decimal("1.10")` as `"1.10"`); bytes as base64; tuple and set as arrays; an enum as its value; a number
                as a key as text. Any other type is refused.
            source_id: events of one source (and workspace) share objects.
            user_id: taken from the payload's `userId` if None.
            message_id: taken from the payload's `messageId` if None.
            created_at: with a time zone; now, if None.

        Raises:
            InvalidEvent: the payload is no JSON object.
            SpoolFull: there was no room for JOBS_BACKUP_SPOOL_FULL_TIMEOUT; nothing was recorded.
            BackupClosed: after `close`, and in a forked process.
        """
        event = Event(
            payload=payload,
            source_id=source_id,
            user_id=user_id,
            workspace_id=workspace_id,
            message_id=message_id,
            created_at=created_at,
        )
        made = recording(event)
        self._session.keep([made])
        return Job(made.jobs[0][0])

    @overload
    def record_many(self, payloads: Iterable[Payload], *, source_id: str, workspace_id: str = "") -> Jobs: ...
    @overload
    def record_many(self, payloads: Iterable[Event]) -> Jobs: ...
    def record_many(self, payloads: Iterable[Payload | Event], *, source_id: str = "", workspace_id: str = "") -> Jobs:
        """Record any number of events in few commits and bounded memory. All are durable when this returns.

        Args:
            payloads: as in `record`, or `Event`s that carry their own source.

        Raises:
            InvalidEvent: `payloads` is a single payload, or one of them is no JSON object. Those before it are recorded; its
                `index` is its place, `recorded` the jobs of the others.
            SpoolFull, BackupClosed: as in `record`. What earlier commits recorded stays so: see the error's `recorded`.
        """
        return self._session.record_many(payloads, source_id=source_id, workspace_id=workspace_id)

    def delivered(self, jobs: int | str | Iterable[int | str]) -> None:
        """Say that these events were delivered to all their destinations. It is durable when this returns.

        When every event of an object was delivered, the object is deleted from the bucket; see JOBS_BACKUP_DELETE_AFTER. Any
        process on the spool may say so, in any order, at any time, and again.

        Args:
            jobs: what `record` or `record_many` has returned, or ids, also as text; one or many.

        Raises:
            UnknownJob: some of these ids are none of this spool's; the error tells which. All others were taken.
            InvalidEvent: something is no id. What comes before it may have been taken.
        """
        self._session.delivered(jobs)

    def failed(
        self,
        job: int | str | Event,
        *,
        error: object,
        payload: FinalPayload | None = None,
        destination_id: str = "",
        attempts: int | None = None,
        stage: str = "",
        code: str | int = "",
        user_id: str | None = None,
        message_id: str | None = None,
        created_at: datetime | None = None,
        failed_at: datetime | None = None,
    ) -> None:
        """Record that an event could not be delivered. The record is durable when this returns; each call makes one.

        Args:
            job: the event, by its id; or an `Event` that was not recorded.
            error: an exception, a text, or a structure with `message`, `code`, `stage` and anything else.
            payload: what was sent to the destination in the end, as JSON or any other text; of an `Event`, its payload if None.
            attempts: how often it was tried.
            stage: where it failed, for example `transform` or `deliver`.
            code: the destination's, for example an HTTP status; the exception's class if empty.
            user_id, message_id: taken from the payload if None.
            created_at: of the event.
            failed_at: now, if None.

        Raises:
            UnknownJob: the id is none of this spool's.
            InvalidEvent, SpoolFull, BackupClosed: as in `record`.
        """
        failure = Failure(
            job=job,
            error=error,
            payload=payload,
            destination_id=destination_id,
            attempts=attempts,
            stage=stage,
            code=code,
            user_id=user_id,
            message_id=message_id,
            created_at=created_at,
            failed_at=failed_at,
        )
        self._session.record_failures([self._session.failure_record(failure)])

    def flush(self, timeout: float | None = None) -> None:
        """Wait until what this process recorded is in the bucket.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            StorePaused: it keeps failing. What was recorded waits in the spool.
            SpoolCorrupt: some of it was damaged on the disk, and is set aside.
            NoArchiver: this Backup does not archive, and no other process does.
            TimeoutError: not all of it is there yet.
        """
        self._session.flush(timeout)

    def close(self, grace: float | None = None) -> None:
        """Seal, send what can be sent within `grace` seconds (default JOBS_BACKUP_SHUTDOWN_GRACE), and end.

        The rest waits in the spool for the next start. Closing again does nothing, and so does closing while the interpreter
        shuts down: its threads have ended, and modules are cleared.
        """
        self._session.close(grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Backup into {self._session.location}, spool {self._session.spool.name}>"


def session_of(backup: Backup | Session) -> Session:
    """What is behind a Backup: for what looks after it."""
    return backup if isinstance(backup, Session) else backup._session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its own


def backup_of(session: Session) -> Backup:
    """A Backup over a session that is open."""
    made = Backup.__new__(Backup)
    made._session = session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its own
    return made
