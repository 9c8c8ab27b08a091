"""Record and seal: the open batches of this process, and the group commit that makes events durable."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from jobs_backup.errors import BackupClosed, SpoolCorrupt, SpoolError, SpoolFull
from jobs_backup.model import Stream
from jobs_backup.spool.blobs import BlobFiles, InputPosition
from jobs_backup.spool.catalog import Catalog
from jobs_backup.spool.open_batch import SEALED_AT_ONCE, OpenBatch, seal_batches
from jobs_backup.spool.quarantine import Quarantine
from jobs_backup.spool.room import Room
from jobs_backup.spool.rows import Placement

log: Final = logging.getLogger(__name__)

_MAX_OPEN: Final = 10_000
"""Open batches; above it the oldest are sealed early, so that memory stays bounded whatever the sources are called."""
_FILE_BYTES: Final = 512 << 20
"""A file that has grown so large is left for a new one: it is removed when all of it is sent, which gives the disk back."""
_IDLE_FILE_BYTES: Final = 16 << 20
"""The same, of a file in which nothing is open: leaving it seals nothing early."""
_WAIT_FOR_ROOM: Final = 0.05


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """When a batch is sealed: events, bytes of its lines, seconds since it was opened."""

    events: int
    bytes: int
    age: float


class Recording:
    """Lines of one stream on their way to the disk: what `Writer.append` takes and fills in.

    Attributes:
        lines: each with its newline.
        first_at, last_at: createdAt of the first and of the last line, microseconds.
        position: how far the input is read with these lines; committed together with them.
        jobs: the result: (id of the first job, how many) for each run of consecutive ids.
    """

    __slots__ = ("done", "error", "first_at", "jobs", "last_at", "lines", "position", "stream")

    def __init__(
        self, stream: Stream, lines: list[bytes], *, first_at: int, last_at: int, position: InputPosition | None = None
    ) -> None:
        self.stream = stream
        self.lines = lines
        self.first_at = first_at
        self.last_at = last_at
        self.position = position
        self.jobs: list[tuple[int, int]] = []
        self.done = False
        self.error: BaseException | None = None

    def reset(self) -> None:
        """Before it is tried, again or for the first time."""
        self.jobs, self.done, self.error = [], False, None


class Writer:
    """Records into the blob file of this process. Any number of threads may append at once: they share commits."""

    def __init__(
        self,
        catalog: Catalog,
        files: BlobFiles,
        *,
        session: str,
        placement: Placement,
        limits: BatchLimits,
        room: Room,
        quarantine: Quarantine,
        retire: Callable[[str], None],
    ) -> None:
        """`retire` removes a file that nobody writes any more, once nothing in it is needed."""
        self._catalog = catalog
        self._files = files
        self._session = session
        self._placement = placement
        self._limits = limits
        self._room = room
        self._quarantine = quarantine
        self._retire = retire
        self._blobs = files.create(session)
        self._file_number = 0
        self._open: dict[Stream, OpenBatch] = {}
        self._full: list[OpenBatch] = []  # others of these streams have taken their places; they only wait to be sealed
        self._known = True
        self._queue: list[Recording] = []
        self._turn = threading.Condition()
        self._busy = False  # a thread commits or seals
        self._sealers = 0  # threads that wait to seal; they come first, or a busy recorder would keep them waiting for ever
        self._closed = False
        self.on_sealed: Callable[[], None] = lambda: None
        """Called when something was sealed."""

    def append(self, recordings: Sequence[Recording]) -> None:
        """Make the recordings durable. They are on the disk when this returns; none of them is if it raises.

        Only where another thread's KeyboardInterrupt ends the commit that they share, they may be. Without room it waits.

        Raises:
            SpoolFull: there was no room in all that time.
            SpoolCorrupt: the file of this process is damaged.
            SpoolError: the spool can't be written.
            BackupClosed: after `close`.
        """
        until = time.monotonic() + self._room.limits.timeout
        waits = repaired = False
        while True:
            try:
                if not self._closed:
                    self._room.check(self._open_bytes)
                self._commit_with_others(recordings)
            except SpoolFull:
                if not waits:
                    self._make_room()
                waits = True
                if time.monotonic() >= until:
                    raise
                time.sleep(_WAIT_FOR_ROOM)
            except SpoolCorrupt:
                if repaired:
                    raise
                repaired = True  # what is damaged is set aside before the next commit, see `_read_open`
            else:
                return

    def _commit_with_others(self, recordings: Sequence[Recording]) -> None:
        for recording in recordings:
            recording.reset()
        last = recordings[-1]
        group: list[Recording] = []
        with self._turn:
            self._queue.extend(recordings)
            self._turn.wait_for(lambda: last.done or not (self._busy or self._sealers))
            if not last.done:
                # Whoever comes first commits for all that have queued up meanwhile: they share one wait for the disk.
                group, self._queue = self._queue, group
                self._busy = True
        if group:
            try:
                self._commit(group)
            finally:
                self._end_turn()
        if last.error is not None:
            raise copy.copy(last.error) from last.error  # the threads share it; what callers add to theirs (`recorded`) they don't

    def seal(self, *, older_than: float = 0.0) -> int:
        """Seal the batches that were opened so many seconds ago. Returns how many."""
        with self._sealing():
            return self._seal_older(older_than)

    def seal_due(self) -> int:
        """Seal the batches that have reached the limit of age. Returns how many."""
        return self.seal(older_than=self._limits.age)

    def close(self) -> list[InputPosition]:
        """Seal everything. Nothing is recorded after that, and nothing that comes meanwhile slips between.

        Returns how far the inputs were read.
        """
        with self._sealing():
            self._seal_older(0.0)
            self._closed = True
            return self._blobs.positions()

    def close_file(self) -> None:
        """Close the file, whatever is in it."""
        self._blobs.close()

    def _open_bytes(self) -> int:
        return sum(batch.fill.spooled for batch in (*self._open.values(), *self._full))

    def _make_room(self) -> None:
        """Seal what is open: only then it can be sent, and make room."""
        try:
            self.seal()
        except SpoolError as error:
            log.warning("sealing failed, tried again later: %s", error)

    def _seal_older(self, age: float) -> int:
        due = time.monotonic() - age
        batches = [batch for batch in self._open.values() if batch.opened <= due and batch.fill.events]
        batches += self._full
        self._seal(batches)
        self._leave_large_file()
        return len(batches)

    def _commit(self, group: Sequence[Recording]) -> None:
        error: BaseException | None = None
        plan: list[tuple[OpenBatch, Recording, Sequence[bytes]]] = []
        try:
            if self._closed:
                raise BackupClosed("the Backup is closed", hint="open a new one")
            with self._in_step():
                plan = self._plan(group)
                with self._blobs.transaction() as appender:
                    for batch, recording, lines in plan:
                        chunk = batch.add(appender, self._blobs, lines, recording.first_at, recording.last_at)
                        recording.jobs.append((chunk.job, chunk.events))
                    for recording in group:
                        if recording.position is not None:
                            appender.set_position(recording.position)
        except Exception as caught:  # noqa: BLE001  # each of the group raises it in `append`
            error = caught
        except BaseException:
            error = SpoolError("the commit was interrupted in another thread", hint="it may have been recorded")
            raise
        finally:
            for recording in group:
                recording.error, recording.done = error, True
        if error is None:
            self._seal_full({id(batch): batch for batch, _, _ in plan}.values())

    @contextmanager
    def _sealing(self) -> Generator[None]:
        """A turn, before all that wait to record, in step with the file."""
        with self._turn:
            self._sealers += 1
            try:
                self._turn.wait_for(lambda: not self._busy)
                self._busy = True
            finally:
                self._sealers -= 1
        try:
            with self._in_step():
                yield
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        with self._turn:
            self._busy = False
            self._turn.notify_all()

    @contextmanager
    def _in_step(self) -> Generator[None]:
        """Keeps what this object knows of its open batches in step with the file: after a failure it is read anew."""
        if not self._known:
            self._read_open()
        self._known = False
        yield
        self._known = True

    def _read_open(self) -> None:
        opened = {batch.id: batch.opened for batch in (*self._open.values(), *self._full)}
        self._open, self._full = {}, []
        for row in self._catalog.open_batches_of(self._blobs.name):
            batch, is_whole = self._quarantine.restore(row, self._blobs)
            batch.opened = opened.get(batch.id, batch.opened)
            if not is_whole:
                if batch.fill.events:  # it gets nothing more: the indexes of what was set aside are not used again
                    self._full.append(batch)
                continue
            if (before := self._open.get(row.stream)) is not None and before.fill.events:
                self._full.append(before)
            self._open[row.stream] = batch

    def _plan(self, group: Sequence[Recording]) -> list[tuple[OpenBatch, Recording, Sequence[bytes]]]:
        """Which lines go into which batch, in order. Opens the batches that are missing."""
        limit = self._limits.events
        streams = dict.fromkeys(recording.stream for recording in group if recording.lines)
        self._open_for([stream for stream in streams if stream not in self._open])
        planned = {stream: self._open[stream].fill.end for stream in streams}
        plan: list[tuple[OpenBatch, Recording, Sequence[bytes]]] = []
        for recording in group:
            stream, lines = recording.stream, recording.lines
            while lines:
                room = limit - planned[stream]
                if room <= 0:
                    self._full.append(self._open[stream])
                    self._open_for([stream])
                    planned[stream] = 0
                    continue
                plan.append((self._open[stream], recording, lines[:room]))
                planned[stream] += min(room, len(lines))
                lines = lines[room:]
        return plan

    def _open_for(self, streams: Sequence[Stream]) -> None:
        if not streams:
            return
        placement = self._placement
        numbers = self._catalog.open_batches(streams, placement, blobs=self._blobs.name)
        for number, stream in zip(numbers, streams, strict=True):
            self._open[stream] = OpenBatch(number, stream, placement)

    def _seal_full(self, changed: Iterable[OpenBatch]) -> None:
        limits = self._limits
        full = [batch for batch in changed if batch.fill.end >= limits.events or batch.fill.raw_bytes >= limits.bytes]
        full = [batch for batch in full if batch not in self._full]
        if len(self._open) > _MAX_OPEN:
            oldest = sorted(self._open.values(), key=lambda batch: batch.opened)[: len(self._open) // 2]
            full = [batch for batch in oldest if batch.fill.events]
        if full or self._full or self._blobs.size >= _FILE_BYTES:
            try:
                with self._in_step():
                    self._seal([*self._full, *full])
                    self._leave_large_file()
            except Exception as error:  # noqa: BLE001 - see below
                # What was recorded is safe, so its caller is not told; sealing is tried again when the next batch is due.
                log.warning("sealing failed, tried again later: %s", error)

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

    def _leave_large_file(self) -> None:
        """Go on in a new file. Everything that is open is sealed, so that the old one only waits to be sent."""
        holding = [batch for batch in self._open.values() if batch.fill.events]
        if self._blobs.size < (_FILE_BYTES if holding else _IDLE_FILE_BYTES):
            return
        self._seal(holding)
        self._open.clear()  # these are empty
        before, number = self._blobs, self._file_number + 1
        after = self._files.create(f"{self._session}-{number}")
        try:
            self._catalog.change_file(self._session, after.name, before.positions())
        except BaseException:
            after.close()
            self._files.remove(after.name)
            raise
        self._blobs, self._file_number = after, number
        before.close()
        self._retire(before.name)
