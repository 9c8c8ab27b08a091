"""What a Backup runs on: a spool, a store, and the archiver between them. The command and `serve` use it directly."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from jobs_backup.archive.archiver import TICK, Archiver, stalled
from jobs_backup.backup import failures
from jobs_backup.backup.chunks import RecordChunk, each_of, raw_stream
from jobs_backup.backup.events import Event, Job, Jobs, job_sets
from jobs_backup.backup.failures import Failure, FailureRecord
from jobs_backup.checks.settings import unknown_settings
from jobs_backup.errors import (
    BackupClosed,
    InvalidEvent,
    JobsBackupError,
    NoArchiver,
    SpoolCorrupt,
    SpoolError,
    StorePaused,
    UnknownJob,
)
from jobs_backup.format.lines import Payload
from jobs_backup.model import Kind, Stream
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.engines import open_spool
from jobs_backup.spool.interface import Entry, InputPosition, Recording
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.util.logs import logger_of

log: Final = logger_of(__name__)

_REPORTED_JOBS: Final = 1000
_NO_STREAM: Final = Stream(Kind.FAILED, "", "")
"""Stream of a recording without lines, which only carries a position."""
_STOP_SECONDS: Final = 2.0


class Session:
    """A spool and a store in use by a process, from opening to `close`. Any number of threads may share it.

    `Backup` documents what each call does and raises.
    """

    def __init__(self, settings: CoreSettings, *, environment: Mapping[str, str] | None = None, archive: bool = True) -> None:
        """Open the spool and the store. Raises as `Backup` does."""
        self._stop = threading.Event()
        self._pid = os.getpid()
        self._closed = False
        self._looked_at = time.monotonic()
        self.settings = settings
        if environment is not None:  # otherwise, the reader of the settings reports them
            for line in unknown_settings(settings, environment):
                log.warning("%s", line, extra={"code": "UnknownSetting"})
        store = ObjectStore.from_settings(settings, os.environ if environment is None else environment, stop=self._stop)
        self.store = store
        self.location = store.location
        self.spool = open_spool(settings, location=store.location, wrappers=store.wrappers.applied, archives=archive)
        store.use_bodies(self.spool)
        store.remember_doubts_in(self.spool)
        self.archiver = Archiver(self.spool, store, settings, stop=self._stop) if archive else None
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

    def record_many(
        self,
        payloads: Iterable[Payload | Event],
        *,
        source_id: str = "",
        workspace_id: str = "",
        connection: object | None = None,
    ) -> Jobs:
        """See `Backup.record_many`."""
        self._check_usable()
        source = raw_stream(workspace_id, source_id) if source_id else None
        left, jobs = each_of(payloads), Jobs()
        while True:
            chunk = RecordChunk()
            try:
                is_full = chunk.fill(left, source)
            except InvalidEvent as error:
                error.index = len(jobs) + len(chunk)
                self._keep_chunk(chunk, jobs, connection)
                error.recorded = jobs
                raise
            self._keep_chunk(chunk, jobs, connection)
            if not is_full:
                return jobs

    def delivered(self, jobs: int | str | Iterable[int | str]) -> None:
        """See `Backup.delivered`."""
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
                hint="acknowledge them on the spool that recorded them, within JOBS_BACKUP_CATALOG_DAYS",
            )

    def flush(self, timeout: float | None = None) -> None:
        """See `Backup.flush`."""
        last = self.seal()
        if not self.wait_until_stored(last, timeout):
            raise TimeoutError(f"not everything is in the bucket after {timeout:g} s")

    def seal(self) -> int:
        """For `flush`: seal what this process recorded. Returns the argument for `wait_until_stored`."""
        self._check_usable()
        self.spool.seal()
        return self.spool.last_batch()

    def wait_until_stored(self, last: int, timeout: float | None) -> bool:
        """For `flush`: wait until the sealed batches are in the bucket. False after the timeout. Raises as `flush` does."""
        until = None if timeout is None else time.monotonic() + timeout
        while self.spool.is_unsent(last):
            if until is not None and time.monotonic() >= until:
                return False
            if self.archiver is None:
                if not self.spool.has_archiver():
                    raise NoArchiver("no process uploads what this spool holds", hint="run `jobs-backup archive` on the same spool")
                time.sleep(TICK / 10)
                continue
            if (error := self.archiver.blocked_by) is not None and self.spool.is_unsent(last):
                raise StorePaused(f"uploads to {self.location} are paused, recorded events wait in the spool: {error}", cause=error)
            self.archiver.wake()
            self.archiver.wait(TICK if until is None else min(TICK, max(0.0, until - time.monotonic())))
        if damages := self.spool.quarantined(own=True):
            raise SpoolCorrupt(
                f"{sum(damage.events for damage in damages):,} events that this process recorded were damaged on the disk",
                hint="check the disk, and `jobs-backup status`",
            )
        return True

    def close(self, grace: float | None = None) -> None:
        """See `Backup.close`."""
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

    @property
    def health_error(self) -> str:
        """Which of its threads died or hung and needs a restart; empty if all work, or it is closed."""
        if self._stop.is_set():
            return ""
        if self.archiver is not None:
            return self.archiver.health_error
        return stalled(self._sealer, self._looked_at)

    def check_room(self) -> None:
        """Check that an event would be accepted now, without waiting for room.

        Raises:
            SpoolFull: the spool has no room.
            SpoolError: the spool cannot be used.
            BackupClosed: after `close`, and in a forked process.
        """
        self._check_usable()
        self.spool.check_room()

    def keep(self, recordings: Sequence[Recording], connection: object | None = None) -> None:
        """Record encoded raw events in one commit, and fill in their jobs. Raises as `record` does.

        With a connection of the application, they are recorded when its transaction commits.
        """
        if connection is not None:
            if (entry := self.entry(recordings)) is not None:
                entry.write(connection)
            return
        self._check_usable()
        if self.settings.raw:
            self.spool.append(recordings)
        else:
            self._number(recordings)

    def entry(self, recordings: Sequence[Recording]) -> Entry | None:
        """Fill in the jobs of encoded raw events for a transaction of the application; None if they are not kept."""
        self._check_usable()
        if self.settings.raw:
            return self.spool.entry(recordings)
        self._number(recordings)
        return None

    def _number(self, recordings: Sequence[Recording]) -> None:
        for recording in recordings:
            recording.jobs = self.spool.number(recording.stream, len(recording.lines))

    def failure_record(self, failure: Failure) -> FailureRecord:
        """The record that `failed` would write. Raises as `failed` does."""
        self._check_usable()
        return failures.failure_record(failure, self.spool.stream_of)

    def record_failures(self, records: Iterable[FailureRecord], *, position: InputPosition | None = None) -> None:
        """Record failures in one commit, together with the position of the input.

        Raises:
            SpoolError: as `record` does; also if all are recorded, but could not be noted as settling their jobs.
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

    def _keep_chunk(self, chunk: RecordChunk, jobs: Jobs, connection: object | None) -> None:
        if chunk:
            try:
                self.keep(chunk.recordings, connection)
            except JobsBackupError as error:
                error.recorded = jobs
                raise
            chunk.number(jobs)

    _is_shutting_down = staticmethod(sys.is_finalizing)
    """An attribute, since the module's own names may be cleared by then."""

    def _check_usable(self) -> None:
        if self._is_shutting_down():
            raise BackupClosed(
                "the interpreter is shutting down", hint="record events and close the Backup before the program ends"
            )
        if self._closed:
            raise BackupClosed("the Backup is closed", hint="open a new one")
        if os.getpid() != self._pid:
            raise BackupClosed(
                "the Backup was opened before this process was forked",
                hint="open a Backup in each process, after the fork",
            )

    def _seal_by_age(self) -> None:
        while not self._stop.wait(TICK):
            self._looked_at = time.monotonic()
            try:
                self.spool.seal_due()
            except SpoolError as error:
                log.error("sealing failed, retrying: %s", error.one_line())
            except Exception:
                log.exception("sealing failed, retrying")
