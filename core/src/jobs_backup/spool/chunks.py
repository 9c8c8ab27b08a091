"""Chunks: consecutive events of one batch, as an engine keeps their bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from jobs_backup.checksum import crc32c
from jobs_backup.spool.batches import BatchHeader
from jobs_backup.spool.ids import INDEX_BITS

_INDEX_MASK: Final = (1 << INDEX_BITS) - 1
_FIELDS: Final = struct.Struct("<6q")


class ChunkKind(IntEnum):
    """The form of a chunk's bytes: a member of the object, or lines waiting to become one, compressed or not.

    LOST has no bytes. It takes the place of damaged events, so that any new, unnoticed gap stands out.
    """

    RAW = 0
    MEMBER = 1
    COMPRESSED = 2
    LOST = 3


class Chunk(NamedTuple):
    """Consecutive events of one batch, without their bytes.

    Attributes:
        job: the local id of the first: the batch's number and the index in it.
        raw_bytes: of its lines.
        first_at, last_at: the earliest and the latest createdAt, microseconds.
    """

    job: int
    events: int
    raw_bytes: int
    first_at: int
    last_at: int
    form: ChunkKind

    @property
    def start(self) -> int:
        """The place of its first event in the batch."""
        return self.job & _INDEX_MASK

    @property
    def batch(self) -> int:
        """Number of its batch."""
        return self.job >> INDEX_BITS


class ChunkReader(Protocol):
    """Reads the chunks of open batches."""

    @property
    def name(self) -> str:
        """Where they are, for messages."""
        ...

    def chunks(self, batch: int) -> list[Chunk]:
        """A batch's chunks, in order."""
        ...

    def data(self, job: int) -> bytes:
        """The bytes of one chunk.

        Raises:
            SpoolCorrupt: they are damaged.
        """
        ...

    def header(self, batch: int) -> BatchHeader | None:
        """What a batch was bound to when it was opened; None if only the catalog keeps that."""
        ...


class ChunkChanges(Protocol):
    """What a transaction does to chunks."""

    def append(self, chunk: Chunk, data: bytes) -> None:
        """Add a chunk."""
        ...

    def compact(self, chunk: Chunk, member: bytes) -> None:
        """Replace all chunks of a batch, from the new chunk's first job on, by one member."""
        ...

    def lines(self, first_job: int, unpack: Callable[[bytes], bytes]) -> bytes:
        """A batch's waiting lines from `first_job` on; `unpack` decompresses the packed ones. They must be unchanged so far."""
        ...


def checksum(job: int, events: int, raw_bytes: int, first_at: int, last_at: int, form: int, data: bytes) -> int:
    """CRC-32C of a chunk: of its bytes, and of what is noted of it.

    Without the number of the batch, which may get another one when its catalog was lost.

    Raises:
        struct.error: a field is not what an engine writes.
    """
    return crc32c(data, crc32c(_FIELDS.pack(job & _INDEX_MASK, events, raw_bytes, first_at, last_at, form)))


def joined(chunks: Sequence[tuple[int, bytes]], unpack: Callable[[bytes], bytes]) -> bytes:
    """Waiting lines, of (form, bytes) in order."""
    return b"".join(unpack(data) if form == ChunkKind.COMPRESSED else data for form, data in chunks)
