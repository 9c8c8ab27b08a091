"""The public API: record events durably, upload them, wait for them."""

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
    """Records events in the spool and, with `archive`, uploads them to the bucket.

    Any number of threads may share one. A forked process must open its own. It installs no signal handlers. Use it as a context
    manager, or call `close`.
    """

    def __init__(self, settings: CoreSettings, *, environment: Mapping[str, str] | None = None, archive: bool = True) -> None:
        """Open the spool, and start uploading what waits in it.

        Args:
            environment: source of the provider's settings; the process's environment if None.
            archive: False to only record; then another process must run `jobs-backup archive`.

        Raises:
            ConfigurationError: a setting is invalid, or the provider is not installed.
            SpoolError: the spool cannot be used.
        """
        self._session = Session(settings, environment=environment, archive=archive)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, *, archive: bool = True) -> Self:
        """Open a Backup configured by `environment`, or by the process's environment if None. Raises as `Backup` does."""
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
        connection: object | None = None,
    ) -> Job:
        """Record one event. When this returns, the event survives a killed process and, by default, a power loss.

        With `connection`, the event is part of that connection's transaction instead: it is recorded if and only if the transaction
        commits. Its id may be stored in the same transaction. See docs/outbox.md.

        Args:
            payload: a JSON object, as JSON text or as a dict. JSON text stays as it is, byte for byte. Values in a dict that JSON
                lacks are converted: NaN and infinity to null; Decimal, UUID, date, time, datetime and timedelta to text
                (`Decimal("1.10")` as `"1.10"`); bytes to base64; tuple and set to arrays; an enum to its value; a numeric key to
                text. Any other type is rejected.
            source_id: events of one source (and workspace) share objects.
            user_id: taken from the payload's `userId` if None.
            message_id: taken from the payload's `messageId` if None.
            created_at: with a time zone; now if None.
            connection: the application's connection to the spool's PostgreSQL database: a psycopg 3 `Connection`, or a SQLAlchemy 2
                `Session` or `Connection` that uses psycopg 3.

        Raises:
            InvalidEvent: the payload is not a JSON object.
            ConfigurationError: the connection is to another database, in autocommit mode outside a transaction, or not psycopg 3;
                or the spool is not in PostgreSQL.
            SpoolFull: the spool had no room for JOBS_BACKUP_SPOOL_FULL_TIMEOUT (with `connection`: has no room now); nothing was
                recorded.
            psycopg.Error: with `connection`, as any statement of that transaction may.
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
        self._session.keep([made], connection)
        return Job(made.jobs[0][0])

    @overload
    def record_many(
        self, payloads: Iterable[Payload], *, source_id: str, workspace_id: str = "", connection: object | None = None
    ) -> Jobs: ...
    @overload
    def record_many(self, payloads: Iterable[Event], *, connection: object | None = None) -> Jobs: ...
    def record_many(
        self,
        payloads: Iterable[Payload | Event],
        *,
        source_id: str = "",
        workspace_id: str = "",
        connection: object | None = None,
    ) -> Jobs:
        """Record any number of events in few commits and bounded memory. All are durable when this returns.

        Args:
            payloads: as in `record`, or `Event`s that carry their own source.
            connection: as in `record`. After an error, roll its transaction back.

        Raises:
            InvalidEvent: `payloads` is a single payload, or one of them is not a JSON object. The payloads before it are recorded;
                `index` is its position, `recorded` the jobs of the others.
            SpoolFull, BackupClosed: as in `record`. Earlier commits remain recorded: see the error's `recorded`.
        """
        return self._session.record_many(payloads, source_id=source_id, workspace_id=workspace_id, connection=connection)

    def delivered(self, jobs: int | str | Iterable[int | str]) -> None:
        """Acknowledge that these events were delivered to all their destinations. Durable when this returns.

        Once every event of an object is acknowledged, the object is deleted from the bucket; see JOBS_BACKUP_DELETE_AFTER. Any
        process on the spool may acknowledge, in any order, at any time, and repeatedly.

        Args:
            jobs: one or many: results of `record` or `record_many`, or ids, also as text.

        Raises:
            UnknownJob: some of these ids are not in this spool; the error lists them. All others were acknowledged.
            InvalidEvent: something is not an id. Ids before it may have been acknowledged.
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
        """Record that an event could not be delivered. Durable when this returns; each call writes one failure record.

        Args:
            job: the event, by its id; or an `Event` that was not recorded.
            error: an exception, a text, or a structure with `message`, `code`, `stage` and any other fields.
            payload: the final payload sent to the destination, as JSON or any other text; for an `Event`, its own payload if None.
            attempts: delivery attempts made.
            stage: where it failed, for example `transform` or `deliver`.
            code: the destination's error code, for example an HTTP status; the exception's class if empty.
            user_id, message_id: taken from the payload if None.
            created_at: of the event.
            failed_at: now if None.

        Raises:
            UnknownJob: the id is not in this spool.
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
        """Wait until everything this process recorded is in the bucket.

        Args:
            timeout: seconds; None waits without limit.

        Raises:
            StorePaused: the store keeps failing. Recorded events wait in the spool.
            SpoolCorrupt: some events were damaged on disk, and are quarantined.
            NoArchiver: this Backup does not archive, and neither does any other process.
            TimeoutError: some events are not in the bucket yet.
        """
        self._session.flush(timeout)

    def close(self, grace: float | None = None) -> None:
        """Seal, upload as much as possible within `grace` seconds (default JOBS_BACKUP_SHUTDOWN_GRACE), and end.

        The rest waits in the spool until the next start. Closing again does nothing. Neither does closing while the interpreter
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
    """The session behind a Backup, for monitoring."""
    return backup if isinstance(backup, Session) else backup._session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its own


def backup_of(session: Session) -> Backup:
    """A Backup over an open session."""
    made = Backup.__new__(Backup)
    made._session = session  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its own
    return made
