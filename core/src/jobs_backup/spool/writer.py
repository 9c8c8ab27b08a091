"""Record and seal: the open batches of this process, and the group commit that makes events durable."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Self

import crc32c
import msgspec
from isal import igzip

from jobs_backup.errors import BackupClosed, SpoolError
from jobs_backup.layout import object_key
from jobs_backup.model import Stream
from jobs_backup.spool.blobs import INDEX_BITS, Appender, BlobFile, Chunk, InputPosition
from jobs_backup.spool.catalog import Catalog, OpenRow, Placement, Seal

log: Final = logging.getLogger(__name__)

MEMBER_BYTES: Final = 1 << 20
"""Lines wait until there are so many bytes of them; then they become one gzip member. Smaller members compress worse."""

_SEALED_AT_ONCE: Final = 64
_MAX_OPEN: Final = 10_000
"""Open batches; above it the oldest are sealed early, so that memory stays bounded whatever the sources are called."""


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """When a batch is sealed: events, bytes of its lines, seconds since it was opened."""

    events: int
    bytes: int
    age: float


class Fill(NamedTuple):
    """What is in an open batch: members, and behind them the tail, lines that wait to become a member."""

    events: int = 0
    raw_bytes: int = 0
    first_at: int = 0
    last_at: int = 0
    size: int = 0  # of the members
    crc32c: int = 0  # of the members
    tail_events: int = 0
    tail_bytes: int = 0
    tail_first_at: int = 0

    def with_lines(self, events: int, raw_bytes: int, first_at: int, last_at: int) -> Fill:
        """After lines were added to the tail."""
        return self._replace(
            events=self.events + events,
            raw_bytes=self.raw_bytes + raw_bytes,
            first_at=self.first_at if self.events else first_at,
            last_at=last_at,
            tail_events=self.tail_events + events,
            tail_bytes=self.tail_bytes + raw_bytes,
            tail_first_at=self.tail_first_at if self.tail_events else first_at,
        )

    def with_member(self, member: bytes) -> Fill:
        """After the tail has become this member."""
        return self._replace(
            size=self.size + len(member), crc32c=crc32c.crc32c(member, self.crc32c), tail_events=0, tail_bytes=0, tail_first_at=0
        )


class OpenBatch:
    """A batch that still takes events."""

    __slots__ = ("fill", "id", "opened", "placement", "stream")

    def __init__(self, id_: int, stream: Stream, placement: Placement, fill: Fill | None = None) -> None:
        self.id = id_
        self.stream = stream
        self.placement = placement
        self.opened = time.monotonic()
        self.fill = fill or Fill()

    @classmethod
    def restored(cls, row: OpenRow, blobs: BlobFile) -> Self:
        """The batch as its file tells it, for who takes the place of a process that died."""
        fill = Fill()
        for chunk in blobs.chunks(row.id):
            fill = fill.with_lines(chunk.events, chunk.raw_bytes, chunk.first_at, chunk.last_at)
            if chunk.member:
                fill = fill.with_member(blobs.data(chunk.job))
        return cls(row.id, row.stream, row.placement, fill)

    @property
    def next_job(self) -> int:
        """The id that its next event will have."""
        return (self.id << INDEX_BITS) + self.fill.events

    def tail_chunk(self, *, member: bool) -> Chunk:
        """The tail as one chunk."""
        fill = self.fill
        first = self.next_job - fill.tail_events
        return Chunk(first, fill.tail_events, fill.tail_bytes, fill.tail_first_at, fill.last_at, member)


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


class Writer:
    """Records into the blob file of this process. Any number of threads may append at once: they share commits."""

    def __init__(self, catalog: Catalog, blobs: BlobFile, *, session: str, placement: Placement, limits: BatchLimits) -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._session = session
        self._placement = placement
        self._limits = limits
        self._open: dict[Stream, OpenBatch] = {}
        self._full: list[OpenBatch] = []  # others of these streams have taken their places; they only wait to be sealed
        self._known = True
        self._queue: list[Recording] = []
        self._turn = threading.Condition()
        self._busy = False  # a thread commits or seals
        self._sealers = 0  # threads that wait to seal; they come first, or a busy recorder would keep them waiting for ever
        self._closed = False

    def append(self, recordings: Sequence[Recording]) -> None:
        """Make the recordings durable. They are on the disk when this returns; none of them is if it raises.

        Only where another thread's KeyboardInterrupt ends the commit that they share, they may be.

        Raises:
            SpoolFull: there is no room on the disk.
            SpoolError: the spool can't be written.
            BackupClosed: after `close`.
        """
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
            raise last.error

    def seal(self, *, older_than: float = 0.0) -> int:
        """Seal the batches that were opened so many seconds ago. Returns how many."""
        with self._sealing():
            return self._seal_older(older_than)

    def seal_due(self) -> int:
        """Seal the batches that have reached the limit of age. Returns how many."""
        return self.seal(older_than=self._limits.age)

    def close(self) -> None:
        """Seal everything. Nothing is recorded after that, and nothing that comes meanwhile slips between."""
        with self._sealing():
            self._seal_older(0.0)
            self._closed = True

    def _seal_older(self, age: float) -> int:
        due = time.monotonic() - age
        batches = [batch for batch in self._open.values() if batch.opened <= due and batch.fill.events]
        batches += self._full
        self._seal(batches)
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
                        self._add(appender, batch, recording, lines)
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
        for row in self._catalog.open_batches_of(self._session):
            batch = OpenBatch.restored(row, self._blobs)
            batch.opened = opened.get(batch.id, batch.opened)
            if (before := self._open.get(row.stream)) is not None and before.fill.events:
                self._full.append(before)
            self._open[row.stream] = batch

    def _plan(self, group: Sequence[Recording]) -> list[tuple[OpenBatch, Recording, Sequence[bytes]]]:
        """Which lines go into which batch, in order. Opens the batches that are missing."""
        limit = self._limits.events
        self._open_for([stream for stream in dict.fromkeys(recording.stream for recording in group) if stream not in self._open])
        planned = {recording.stream: self._open[recording.stream].fill.events for recording in group}
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
        numbers = self._catalog.open_batches(streams, placement, blobs=self._session)
        for number, stream in zip(numbers, streams, strict=True):
            self._open[stream] = OpenBatch(number, stream, placement)

    def _add(self, appender: Appender, batch: OpenBatch, recording: Recording, lines: Sequence[bytes]) -> None:
        data = b"".join(lines)
        chunk = Chunk(batch.next_job, len(lines), len(data), recording.first_at, recording.last_at, member=False)
        batch.fill = batch.fill.with_lines(chunk.events, chunk.raw_bytes, chunk.first_at, chunk.last_at)
        if batch.fill.tail_bytes < MEMBER_BYTES:
            appender.append(chunk, data)
        else:
            if batch.fill.tail_events > chunk.events:
                data = self._blobs.lines(batch.tail_chunk(member=False).job) + data
            _fold(appender, batch, data)
        recording.jobs.append((chunk.job, chunk.events))

    def _seal_full(self, changed: Iterable[OpenBatch]) -> None:
        limits = self._limits
        full = [batch for batch in changed if batch.fill.events >= limits.events or batch.fill.raw_bytes >= limits.bytes]
        full = [batch for batch in full if batch not in self._full]
        if len(self._open) > _MAX_OPEN:
            oldest = sorted(self._open.values(), key=lambda batch: batch.opened)[: len(self._open) // 2]
            full = [batch for batch in oldest if batch.fill.events]
        if full or self._full:
            try:
                with self._in_step():
                    self._seal([*self._full, *full])
            except Exception as error:  # noqa: BLE001
                # What was recorded is safe, so its caller is not told; sealing is tried again when the next batch is due.
                log.warning("sealing failed, tried again later: %s", error)

    def _seal(self, batches: Sequence[OpenBatch]) -> None:
        for start in range(0, len(batches), _SEALED_AT_ONCE):
            some = batches[start : start + _SEALED_AT_ONCE]
            seal_batches(self._catalog, self._blobs, some)
            for batch in some:
                if self._open.get(batch.stream) is batch:
                    del self._open[batch.stream]
            self._full = [batch for batch in self._full if batch not in some]


def seal_batches(catalog: Catalog, blobs: BlobFile, batches: Sequence[OpenBatch]) -> None:
    """Fix the bytes (in the blob file), then the key, uuid and checksum (in the catalog). May be repeated after a crash between."""
    with blobs.transaction() as appender:
        for batch in batches:
            if batch.fill.tail_events:
                _fold(appender, batch, blobs.lines(batch.tail_chunk(member=False).job))
    catalog.seal([_seal_of(batch) for batch in batches])


def _fold(appender: Appender, batch: OpenBatch, lines: bytes) -> None:
    # The same lines give the same bytes at any time: igzip writes no time stamp where mtime is 0.
    member = igzip.compress(lines, compresslevel=1, mtime=0)  # pyright: ignore[reportUnknownMemberType]
    appender.fold(batch.tail_chunk(member=True), member)
    batch.fill = batch.fill.with_member(member)


def _seal_of(batch: OpenBatch) -> Seal:
    fill, placement = batch.fill, batch.placement
    id_ = str(uuid.uuid4())
    key = object_key(
        prefix=placement.prefix,
        instance_id=placement.instance_id,
        stream=batch.stream,
        first_at=fill.first_at,
        last_at=fill.last_at,
        first_job=batch.id << INDEX_BITS,
        last_job=batch.next_job - 1,
        uuid=id_,
    )
    return Seal(fill.events, fill.raw_bytes, fill.first_at, fill.last_at, fill.size, fill.crc32c, id_, key, batch.id)
