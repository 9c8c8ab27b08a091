"""The public API: record events durably, have them sent, wait for them."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Final, Self, overload

from jobs_backup.archive.archiver import TICK, Archiver, stalled
from jobs_backup.backup import failures
from jobs_backup.backup.chunks import Chunk, each_of, raw_stream
from jobs_backup.backup.events import Event, Job, Jobs, job_sets
from jobs_backup.backup.failures import Failure, FailureRecord
from jobs_backup.checks.settings import unknown_settings
from jobs_backup.errors import (
    BackupClosed,
    DestinationPaused,
    InvalidEvent,
    JobsBackupError,
    NoArchiver,
    SpoolCorrupt,
    SpoolError,
    UnknownJob,
)
from jobs_backup.format import lines as encoding
from jobs_backup.format.lines import FinalPayload, Payload
from jobs_backup.model import Kind, Stream
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.engines import open_spool
from jobs_backup.spool.interface import InputPosition, Recording
from jobs_backup.store.object_store import Destination
from jobs_backup.util.logs import logger_of

log: Final = logger_of(__name__)

_REPORTED_JOBS: Final = 1000
_NO_STREAM: Final = Stream(Kind.FAILED, "", "")
"""Of a recording that has no lines: it only carries a position."""
_STOP_SECONDS: Final = 2.0


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
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._closed = False
        self._looked_at = time.monotonic()
        self.settings = settings
        if environment is not None:  # otherwise, whoever has read the settings reports them
            for line in unknown_settings(settings, environment):
                log.warning("%s", line, extra={"code": "UnknownSetting"})
        destination = Destination.from_settings(settings, os.environ if environment is None else environment, stop=self._stop)
        self.destination = destination
        self.location = destination.location
        self.spool = open_spool(settings, location=destination.location, wrappers=destination.wrappers.applied, archives=archive)
        destination.use_bodies(self.spool)
        destination.remember_doubts_in(self.spool)
        self.archiver = Archiver(self.spool, destination, settings, stop=self._stop) if archive else None
        self._sealer = threading.Thread(target=self._seal_by_age, name="jobs-backup-seal", daemon=True)
        try:
            if self.archiver:
                self.archiver.start()
            else:
                self._sealer.start()
        except BaseException:
            self._stop.set()
            self.spool.close()
            raise

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
        made = self.recording(event)
        self.keep([made])
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
        self._check_usable()
        source = raw_stream(workspace_id, source_id) if source_id else None
        left, jobs = each_of(payloads), Jobs()
        while True:
            chunk = Chunk()
            try:
                is_full = chunk.fill(left, source)
            except InvalidEvent as error:
                error.index = len(jobs) + len(chunk)
                self._keep_chunk(chunk, jobs)
                error.recorded = jobs
                raise
            self._keep_chunk(chunk, jobs)
            if not is_full:
                return jobs

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
        self._check_usable()
        unknown, count = list[int](), 0
        for some in job_sets(jobs):
            if not_known := self.spool.delivered(some):
                count += len(not_known)
                unknown.extend(itertools.islice(map(Job, not_known), _REPORTED_JOBS - len(unknown)))
        if self.archiver is not None:
            self.archiver.deleter.wake()
        if unknown:
            raise UnknownJob(
                f"{count:,} job ids are unknown to {self.spool.name}, for example {unknown[0]}",
                jobs=unknown,
                count=count,
                hint="acknowledge on the spool that has recorded them, within JOBS_BACKUP_CATALOG_DAYS",
            )

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
        self.record_failures([self.failure_record(failure)])

    def flush(self, timeout: float | None = None) -> None:
        """Wait until what this process recorded is in the bucket.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            DestinationPaused: it keeps failing. What was recorded waits in the spool.
            SpoolCorrupt: some of it was damaged on the disk, and is set aside.
            NoArchiver: this Backup does not archive, and no other process does.
            TimeoutError: not all of it is there yet.
        """
        last = self.seal()
        if not self.wait_until_stored(last, timeout):
            raise TimeoutError(f"not all of it is in the bucket after {timeout:g} s")

    def seal(self) -> int:
        """For `flush`: seal what this process recorded. Returns what `wait_until_stored` takes."""
        self._check_usable()
        self.spool.seal()
        return self.spool.last_batch()

    def wait_until_stored(self, last: int, timeout: float | None) -> bool:
        """For `flush`: wait until what was sealed is in the bucket. False if not all of it is after the time. Raises as it does."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.spool.is_unsent(last):
            if until is not None and time.monotonic() >= until:
                return False
            if self.archiver is None:
                if not self.spool.has_archiver():
                    raise NoArchiver("nobody sends what this spool holds", hint="run `jobs-backup archive` on the same spool")
                time.sleep(TICK / 10)
                continue
            if (error := self.archiver.stuck) is not None and self.spool.is_unsent(last):
                raise DestinationPaused(f"{self.location} is paused, what was recorded waits in the spool: {error}", cause=error)
            self.archiver.wake()
            self.archiver.wait(TICK if until is None else min(TICK, max(0.0, until - time.monotonic())))
        if damages := self.spool.quarantined(own=True):
            raise SpoolCorrupt(
                f"of what this process recorded, {sum(damage.events for damage in damages):,} events were damaged on the disk",
                hint="look at the disk, and at `jobs-backup status`",
            )
        return True

    def close(self, grace: float | None = None) -> None:
        """Seal, send what can be sent within `grace` seconds (default JOBS_BACKUP_SHUTDOWN_GRACE), and end.

        The rest waits in the spool for the next start. Closing again does nothing, and so does closing while the interpreter
        shuts down: its threads have ended, and modules are cleared.
        """
        if self._closed or self._is_shutting_down() or os.getpid() != self._pid:
            return
        self._closed = True
        try:
            self.spool.seal()
            if self.archiver is not None:
                self.archiver.wake()
                self.archiver.drain(self.settings.shutdown_grace if grace is None else grace)
        finally:
            self._stop.set()
            if self.archiver is not None:
                self.archiver.stop(_STOP_SECONDS)
            else:
                self._sealer.join()
            self.spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def trouble(self) -> str:
        """Which of the threads behind it does not work any more, and only a new start helps; empty if all do, or it is closed."""
        if self._stop.is_set():
            return ""
        if self.archiver is not None:
            return self.archiver.trouble
        return stalled(self._sealer, self._looked_at)

    def check_room(self) -> None:
        """Check that what is recorded now would be accepted, without a wait for room.

        Raises:
            SpoolFull: there is no room.
            SpoolError: the spool can't be used.
            BackupClosed: after `close`, and in a forked process.
        """
        self._check_usable()
        self.spool.check_room()

    def recording(self, event: Event) -> Recording:
        """What `record` keeps. Raises InvalidEvent as it does."""
        at = encoding.now() if event.created_at is None else encoding.microseconds(event.created_at)
        line = encoding.raw_line(event.payload, encoding.timestamp(at), event.user_id, event.message_id)
        return Recording(raw_stream(event.workspace_id, event.source_id), [line], first_at=at, last_at=at)

    def keep(self, recordings: Sequence[Recording]) -> None:
        """Record raw events that are encoded, in one commit; fills in their jobs. Raises as `record` does."""
        self._check_usable()
        if self.settings.raw:
            self.spool.append(recordings)
        else:
            for recording in recordings:
                recording.jobs = self.spool.number(recording.stream, len(recording.lines))

    def failure_record(self, failure: Failure) -> FailureRecord:
        """What `failed` records. Raises as it does."""
        self._check_usable()
        return failures.failure_record(failure, self.spool.stream_of)

    def record_failures(self, records: Iterable[FailureRecord], *, position: InputPosition | None = None) -> None:
        """Record what `failure_record` has made, in one commit, together with the position of the input.

        Raises:
            SpoolError: as `record` does; also if all are recorded, but not noted as what settles their jobs.
        """
        self._check_usable()
        if not self.settings.failed:
            return
        made = failures.recordings(records)
        recordings = [recording for recording, _ in made]
        if position is not None:
            recordings.append(Recording(_NO_STREAM, [], first_at=0, last_at=0, position=position))
        if recordings:
            self.spool.append(recordings)
        if self.settings.delete_after == "settled":
            try:
                self.spool.settle(failures.settled(made))
            except SpoolError as error:
                raise SpoolError(
                    f"the failures are recorded, but their events' objects will stay in the bucket: {error}", hint=error.hint
                ) from error

    def _keep_chunk(self, chunk: Chunk, jobs: Jobs) -> None:
        if chunk:
            try:
                self.keep(chunk.recordings)
            except JobsBackupError as error:
                error.recorded = jobs
                raise
            chunk.number(jobs)

    _is_shutting_down = staticmethod(sys.is_finalizing)
    """An attribute: the module's own names may be cleared by then."""

    def _check_usable(self) -> None:
        if self._is_shutting_down():
            raise BackupClosed("the interpreter is shutting down", hint="record, and close the Backup, before the program ends")
        if self._closed:
            raise BackupClosed("the Backup is closed", hint="open a new one")
        if os.getpid() != self._pid:
            raise BackupClosed(
                "the Backup belongs to the process that this one was forked from",
                hint="open a Backup in each process, after the fork",
            )

    def _seal_by_age(self) -> None:
        while not self._stop.wait(TICK):
            self._looked_at = time.monotonic()
            try:
                self.spool.seal_due()
            except SpoolError as error:
                log.error("sealing failed, tried again: %s", error.one_line())
            except Exception:
                log.exception("sealing failed, tried again")
