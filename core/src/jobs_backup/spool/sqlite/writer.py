"""Record and seal: this process's open batches, and the group commit that makes events durable."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

from jobs_backup.errors import SpoolCorrupt, SpoolError
from jobs_backup.model import Stream
from jobs_backup.spool.base import BaseWriter
from jobs_backup.spool.batches import BatchOptions
from jobs_backup.spool.ids import job_index, local, origin_of
from jobs_backup.spool.interface import BatchLimits, InputPosition, Recording
from jobs_backup.spool.open_batch import SEALED_AT_ONCE, OpenBatch
from jobs_backup.spool.planning import Addition, due, plan
from jobs_backup.spool.sqlite.blobs import BlobFile, BlobFiles, Changes, file_name
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.database import FilesLost
from jobs_backup.spool.sqlite.locks import ProcessLock
from jobs_backup.spool.sqlite.quarantine import Quarantine
from jobs_backup.spool.sqlite.quota import Quota
from jobs_backup.spool.sqlite.sealing import seal_batches
from jobs_backup.util.logs import logger_of

R = TypeVar("R")
log: Final = logger_of(__name__)

_FILE_BYTES: Final = 512 << 20
"""Size at which a file is left for a new one. It is removed once all of it is uploaded, which frees the disk."""
_LOOKS: Final = 6
"""The size is checked after each 2^-6 of `_FILE_BYTES` written."""
_IDLE_FILE_BYTES: Final = 16 << 20
"""Size at which a file with nothing open is left: that seals nothing early."""
_RENEWALS: Final = 3
"""How often a call continues after its file was lost or damaged."""


class Session(NamedTuple):
    """The identity of a writer: a name, a lock that shows it is alive, and a blob file.

    Attributes:
        name: of the lock, and the prefix of its files' names.
        epoch: of the job ids issued in it: see ids.py.
        lock: held for the whole session.
        blobs: its first file.
    """

    name: str
    epoch: int
    lock: ProcessLock
    blobs: BlobFile


class Writer(BaseWriter[Session]):
    """Record into this process's blob file. Any number of threads may append at once: they share commits."""

    def __init__(
        self,
        catalog: Catalog,
        files: BlobFiles,
        *,
        session: Session,
        renew: Callable[[Session, BlobFile], Session],
        location: str,
        placement: BatchOptions,
        limits: BatchLimits,
        room: Quota,
        quarantine: Quarantine,
        retire: Callable[[str], None],
        check_position: Callable[[InputPosition], None],
    ) -> None:
        """Set up recording. `retire` removes a file that no process writes, once nothing in it is needed.

        Args:
            check_position: raises if a position must not be committed.
            renew: ends a session whose lock or file was lost, and begins another one.
            location: the store's, to which everything recorded is bound.
        """
        super().__init__(session=session, limits=limits, room=room)
        self._catalog = catalog
        self._files = files
        self._renew = renew
        self._location = location
        self._placement = placement
        self._quarantine = quarantine
        self._retire = retire
        self._check_position = check_position
        self._blobs = session.blobs
        self._file_number = 0
        self._events = 0  # recorded into this file
        self._known = True
        self._since_look = 0  # bytes since the file's size was last checked

    def seal(self, *, older_than: float = 0.0) -> int:
        """Seal the batches opened at least `older_than` seconds ago. Returns how many."""
        return self._renewing(lambda: self._turns.alone(lambda: self._in_step(lambda: self._seal_older(older_than))))

    def close(self) -> list[InputPosition]:
        """Seal everything, and refuse any further recording, including any that arrives meanwhile.

        Returns how far the inputs were read.
        """
        return self._renewing(lambda: self._turns.alone(lambda: self._in_step(self._close)))

    def close_file(self) -> None:
        """Close the file, whatever is in it."""
        self._blobs.close()

    def check_files(self) -> None:
        """Check that this process's lock and file still exist. The next call that needs them replaces them.

        Raises:
            FilesLost: one was removed or replaced.
        """
        self._session.lock.check()
        self._blobs.check_files()

    def _close(self) -> list[InputPosition]:
        self._seal_older(0.0)
        self._closed = True
        positions = self._blobs.positions()
        self._finish(self._blobs)
        return positions

    def _finish(self, blobs: BlobFile) -> None:
        try:
            blobs.finish()
        except SpoolError as error:  # only needed if the catalog is lost: then it shows that nothing is missing
            log.debug("%s", error.one_line())

    def _seal_older(self, age: float) -> int:
        self._session.lock.check()  # a process that records nothing checks its lock only here
        due = time.monotonic() - age
        batches = [batch for batch in self._open.values() if batch.opened <= due and batch.fill.events]
        batches += self._full
        self._seal(batches)
        self._leave_large_file()
        return len(batches)

    def _commit(self, group: Sequence[Sequence[Recording]]) -> None:
        self._check_usable()
        self._room.check(self._open_bytes)
        self._session.lock.check()
        self._seal_full(self._in_step(lambda: self._record(self._new(group))))

    def _record(self, recordings: Sequence[Recording]) -> list[OpenBatch]:
        """Write recordings into the file. Returns the batches that received some."""
        additions = self._plan(recordings)
        begun = time.perf_counter()

        def write(changes: Changes) -> None:
            for addition in additions:
                if not addition.batch.fill.end:
                    changes.describe(addition.batch.id, addition.batch.header(self._location))
                addition.batch.add(changes, addition.lines, addition.first_at, addition.last_at)
            for recording in recordings:
                if recording.position is not None:
                    changes.set_position(recording.position)

        size = self._blobs.change(write, self._check_position)
        self._events += sum(len(addition.lines) for addition in additions)
        self._session.lock.witness(self._file_number, self._events)
        self.recorded.commit_seconds.observe(time.perf_counter() - begun)
        for addition in additions:
            self.recorded.add(addition.batch.stream.kind, len(addition.lines), addition.bytes)
        self._since_look += size
        return list(dict.fromkeys(addition.batch for addition in additions))

    def _new(self, group: Sequence[Sequence[Recording]]) -> list[Recording]:
        """Recordings that are not on the disk yet. Some may have been committed before without their caller learning it."""
        return [one for some in group for one in some if not (one.jobs and self._is_recorded(one.jobs[0][0]))]

    def _is_recorded(self, job: int) -> bool:
        epoch, batch = origin_of(job)
        found = self._catalog.given(epoch, batch)
        if found is None:
            return False
        blobs, jobs = found
        if jobs is not None:
            return job_index(job) < jobs
        if blobs == self._blobs.name:
            return self._blobs.holds(local(job))
        with self._files.open(blobs, only_reads=True) as left:
            return left.holds(local(job))

    def _in_step(self, work: Callable[[], R]) -> R:
        """Keep this object's knowledge of its open batches in step with the file: after a failure it is read again."""
        if not self._known:
            self._read_open()
        self._known = False
        result = work()
        self._known = True
        return result

    def _read_open(self) -> None:
        opened = {batch.id: batch.opened for batch in (*self._open.values(), *self._full)}
        self._open, self._full = {}, []
        for row in self._catalog.open_batches_of(self._blobs.name):
            batch, is_whole = self._quarantine.restore(row, self._blobs)
            batch.opened = opened.get(batch.id, batch.opened)
            if not is_whole:
                if batch.fill.events:  # it gets nothing more: the indexes of quarantined events are not reused
                    self._full.append(batch)
                continue
            if (before := self._open.get(row.stream)) is not None and before.fill.events:
                self._full.append(before)
            self._open[row.stream] = batch
        self._events = self._blobs.events()

    def _renewing(self, work: Callable[[], R]) -> R:
        """Run `work`, and continue in another session if this one's lock or file was lost or damaged."""
        for renewals in itertools.count():
            session = self._session
            try:
                return work()
            except (FilesLost, SpoolCorrupt) as error:
                if renewals == _RENEWALS:
                    raise
                # The first time, only damage is quarantined, before the next commit: see `_read_open`.
                if renewals or isinstance(error, FilesLost):
                    self._start_over(session, error)
        raise AssertionError("unreachable")

    def _start_over(self, lost: Session, error: SpoolError) -> None:
        """Continue in another session with a lock and a file that exist, unless another thread has already done so."""

        def renew() -> None:
            if self._session is not lost or self._closed:
                return
            log.error("abandoning the session and starting another one; what was recorded is kept: %s", error.one_line())
            session = self._renew(lost, self._blobs)
            self._session, self._blobs, self._file_number, self._events = session, session.blobs, 0, 0
            self._open, self._full, self._known = {}, [], True

        self._turns.alone(renew)

    def _plan(self, recordings: Sequence[Recording]) -> list[Addition]:
        """Which lines go into which batch. Opens the batches that are missing."""
        return plan(recordings, self._open, self._full, self._limits.events, self._open_for)

    def _open_for(self, streams: Sequence[Stream]) -> None:
        if not streams:
            return
        placement = self._placement
        epoch = self._session.epoch
        numbers = self._catalog.open_batches(streams, placement, blobs=self._blobs.name, epoch=epoch)
        for number, stream in zip(numbers, streams, strict=True):
            self._open[stream] = OpenBatch(number, epoch, stream, placement)

    def _seal_full(self, changed: Iterable[OpenBatch]) -> None:
        full = due(changed, self._open, self._full, self._limits)
        try:
            if full or self._full or self._is_file_large():
                self._in_step(lambda: self._seal_and_leave([*self._full, *full]))
        except Exception as error:  # noqa: BLE001 - see below
            # What was recorded is safe, so its caller gets no error; sealing is retried when the next batch is due.
            log.warning("sealing failed, retrying later: %s", error)

    def _seal_and_leave(self, batches: Sequence[OpenBatch]) -> None:
        self._seal(batches)
        self._leave_large_file()

    def _seal(self, batches: Sequence[OpenBatch]) -> None:
        for start in range(0, len(batches), SEALED_AT_ONCE):
            some = batches[start : start + SEALED_AT_ONCE]
            seal_batches(self._catalog, self._blobs, some)
            for batch in some:
                if self._open.get(batch.stream) is batch:
                    del self._open[batch.stream]
            self._full = [batch for batch in self._full if batch not in some]
        if batches:
            self.on_sealed()

    def _is_file_large(self) -> bool:
        """Whether the file is large. Called after each commit, but checks only now and then."""
        if self._since_look < _FILE_BYTES >> _LOOKS:
            return False
        self._since_look = 0
        return self._blobs.size >= _FILE_BYTES

    def _leave_large_file(self) -> None:
        """Continue in a new file. Everything open is sealed, so that the old file only waits to be uploaded."""
        holding = [batch for batch in self._open.values() if batch.fill.events]
        if self._blobs.size < (_FILE_BYTES if holding else _IDLE_FILE_BYTES):
            return
        self._seal(holding)
        self._open.clear()  # these are empty
        before, number = self._blobs, self._file_number + 1
        after = self._files.create(file_name(self._session.name, number))
        try:
            self._catalog.change_file(self._session.name, after.name, before.positions())
        finally:
            # An interrupt may arrive just after the commit: then the new file is ours, and others may remove the old one.
            if self._catalog.blob_files().get(self._session.name) == after.name:
                self._blobs, self._file_number, self._events = after, number, 0
                self._session.lock.witness(number, 0)
                self._finish(before)
                before.close()
            else:
                after.close()
                self._files.remove(after.name)
        self._retire(before.name)
