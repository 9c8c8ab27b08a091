"""An open batch: what it holds, how its lines become members, and how it is sealed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from jobs_backup.checksum import crc32c
from jobs_backup.errors import SpoolCorrupt
from jobs_backup.format.keys import object_key
from jobs_backup.model import Stream
from jobs_backup.spool.batches import BatchHeader, BatchOptions, BatchRow, Seal
from jobs_backup.spool.chunks import Chunk, ChunkChanges, ChunkKind, ChunkReader
from jobs_backup.spool.ids import INDEX_BITS

MEMBER_BYTES: Final = 1 << 20
"""Waiting lines become one member at this size. Smaller members compress worse."""

_AT_ONCE_BYTES: Final = 256 << 10
"""Lines of one commit become a member at once from this size on, if none are waiting: 3 % larger, but compressed only once."""

_PACKED_BYTES: Final = 8 << 10
"""Waiting lines of one commit are compressed from this size on: faster than writing and reading them uncompressed."""

_NAMESPACE: Final = uuid.UUID("6d1f2f4e-3c0b-4d5e-9a57-8f0c2b7f9d31")

SEALED_AT_ONCE: Final = 64
"""Batches that share two transactions when sealed."""


class BatchState(NamedTuple):
    """The contents of an open batch: members, then the tail: lines waiting to become a member."""

    events: int = 0
    end: int = 0  # index of the next event; more than `events` if some were quarantined
    raw_bytes: int = 0
    first_at: int = 0
    last_at: int = 0
    size: int = 0  # of the members
    crc32c: int = 0  # of the members
    tail_events: int = 0
    tail_bytes: int = 0
    tail_size: int = 0  # on the disk
    tail_first_at: int = 0
    tail_start: int = 0  # index of the tail's first event
    tail_lost: int = 0  # damaged events within the tail

    @property
    def spooled(self) -> int:
        """Bytes on the disk."""
        return self.size + self.tail_size

    def with_lines(self, chunk: Chunk, size: int) -> BatchState:
        """The contents after adding lines to the tail, where they take `size` bytes."""
        return self._replace(
            events=self.events + chunk.events,
            end=chunk.start + chunk.events,
            raw_bytes=self.raw_bytes + chunk.raw_bytes,
            first_at=min(self.first_at, chunk.first_at) if self.events else chunk.first_at,
            last_at=max(self.last_at, chunk.last_at) if self.events else chunk.last_at,
            tail_events=self.tail_events + chunk.events,
            tail_bytes=self.tail_bytes + chunk.raw_bytes,
            tail_size=self.tail_size + size,
            tail_first_at=min(self.tail_first_at, chunk.first_at) if self.tail_events else chunk.first_at,
            tail_start=self.tail_start if self.tail_events else chunk.start,
        )

    def with_lost(self, chunk: Chunk) -> BatchState:
        """The contents after a chunk of damaged events, whose indexes are not reused."""
        return self._replace(
            end=chunk.start + chunk.events, tail_lost=self.tail_lost + chunk.events if self.tail_events else self.tail_lost
        )

    def with_member(self, member: bytes) -> BatchState:
        """The contents after the tail has become this member."""
        return self._replace(
            size=self.size + len(member),
            crc32c=crc32c(member, self.crc32c),
            tail_events=0,
            tail_bytes=0,
            tail_size=0,
            tail_first_at=0,
            tail_lost=0,
        )


class OpenBatch:
    """A batch that still takes events, or one read from its file to be sealed."""

    __slots__ = ("_compression", "_origin", "epoch", "fill", "id", "opened", "placement", "stream")

    def __init__(
        self,
        id_: int,
        epoch: int,
        stream: Stream,
        placement: BatchOptions,
        fill: BatchState | None = None,
        *,
        origin: tuple[int, int] | None = None,
    ) -> None:
        """`origin`: see `BatchHeader`."""
        self.id = id_
        self.epoch = epoch
        self._origin = origin or (epoch, id_)
        self.stream = stream
        self.placement = placement
        self._compression = placement.compression
        self.opened = time.monotonic()
        self.fill = fill or BatchState()

    @classmethod
    def restored(cls, row: BatchRow, blobs: ChunkReader) -> Self:
        """The batch as its chunks tell it.

        Raises:
            SpoolCorrupt: some of it is not what was written, or not there.
        """
        fill = BatchState()
        for chunk in blobs.chunks(row.id):
            if chunk.start != fill.end:
                raise SpoolCorrupt(f"batch {row.id} in {blobs.name} has no event number {fill.end}", hint="check the disk")
            if chunk.form is ChunkKind.LOST:
                fill = fill.with_lost(chunk)
                continue
            data = blobs.data(chunk.job)
            fill = fill.with_lines(chunk, len(data))
            if chunk.form is ChunkKind.MEMBER:
                fill = fill.with_member(data)
        header = blobs.header(row.id)
        return cls(row.id, row.epoch, row.stream, row.placement, fill, origin=header.origin if header else None)

    @property
    def next_job(self) -> int:
        """The id of its next event."""
        return (self.id << INDEX_BITS) + self.fill.end

    @property
    def tail_job(self) -> int:
        """The id of the tail's first event."""
        return (self.id << INDEX_BITS) + self.fill.tail_start

    def header(self, location: str) -> BatchHeader:
        """The header to keep in its file. `location` is its store's."""
        return BatchHeader(
            epoch=self.epoch,
            kind=self.stream.kind,
            workspace_id=self.stream.workspace_id,
            source_id=self.stream.source_id,
            location=location,
            prefix=self.placement.prefix,
            instance_id=self.placement.instance_id,
            compression=str(self.placement.compression),
            wrappers=self.placement.wrappers,
        )

    def add(self, changes: ChunkChanges, lines: Sequence[bytes], first_at: int, last_at: int) -> None:
        """Add lines; once there are enough, the tail becomes a member."""
        data = b"".join(lines)
        is_packed = len(data) >= _PACKED_BYTES
        chunk = Chunk(self.next_job, len(lines), len(data), first_at, last_at, ChunkKind.COMPRESSED if is_packed else ChunkKind.RAW)
        waits = self.fill.tail_events > 0
        if self.fill.tail_bytes + len(data) >= (MEMBER_BYTES if waits else _AT_ONCE_BYTES):
            waiting = self._tail(changes) if waits else b""
            self.fill = self.fill.with_lines(chunk, len(data))
            self._fold(changes, waiting + data if waiting else data)
        else:
            stored = self._compression.compress(data) if is_packed else data
            self.fill = self.fill.with_lines(chunk, len(stored))
            changes.append(chunk, stored)

    def add_member(self, changes: ChunkChanges, lines: Chunk, data: bytes) -> None:
        """Add lines as a member of their own; there must be no tail. The chunk tells what they are, and its job is not used."""
        chunk = lines._replace(job=self.next_job, raw_bytes=len(data))
        self.fill = self.fill.with_lines(chunk, len(data))
        self._fold(changes, data)

    def compact(self, changes: ChunkChanges) -> None:
        """Turn the tail into a member, if there is one."""
        if self.fill.tail_events:
            self._fold(changes, self._tail(changes))

    def _tail(self, changes: ChunkChanges) -> bytes:
        return changes.lines(self.tail_job, self._compression.decompress)

    def _fold(self, changes: ChunkChanges, lines: bytes) -> None:
        fill = self.fill
        member = self._compression.compress(lines)
        chunk = Chunk(self.tail_job, fill.tail_events, fill.tail_bytes, fill.tail_first_at, fill.last_at, ChunkKind.MEMBER)
        changes.compact(chunk, member)
        if fill.tail_lost:
            changes.append(Chunk(self.tail_job + fill.tail_events, fill.tail_lost, 0, 0, 0, ChunkKind.LOST), b"")
        self.fill = fill.with_member(member)

    def seal(self) -> Seal:
        """Everything that sealing fixes. The tail must be compacted."""
        fill, placement = self.fill, self.placement
        id_ = self._uuid()
        first_job = self._origin[1] << INDEX_BITS
        key = object_key(
            prefix=placement.prefix,
            instance_id=placement.instance_id,
            stream=self.stream,
            first_at=fill.first_at,
            last_at=fill.last_at,
            first_job=first_job,
            last_job=first_job + fill.end - 1,
            uuid=id_,
            suffix=placement.suffix,
        )
        return Seal(fill.end, fill.events, fill.raw_bytes, fill.first_at, fill.last_at, fill.size, fill.crc32c, id_, key, self.id)

    def _uuid(self) -> str:
        """Derive a uuid from the batch's name and its bytes.

        The same bytes may be sealed again, after the catalog was lost or the spool was restored from a copy. They then get the same
        key, and the store reports that the object exists. Other bytes get another key.
        """
        epoch, number = self._origin
        if not epoch:
            return str(uuid.uuid4())  # from a version whose batches had no name outside their spool
        fill = self.fill
        return str(uuid.uuid5(_NAMESPACE, f"{epoch}/{number}/{fill.end}/{fill.events}/{fill.size}/{fill.crc32c}"))
