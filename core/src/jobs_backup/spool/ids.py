"""Job ids: what is in one, and sets of them, in a bit each.

An id names the process that gave it: 63 bits drawn at random when that process opened the spool, then 42 bits for the batch and 21
for the place in it. So no two spools give the same id, whatever their clocks do and wherever their files were copied from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

INDEX_BITS: Final = 21
"""A job's place in its batch. The number of the batch stands above it."""
LOCAL_BITS: Final = 63
"""Of an id within its spool: batch and place. SQLite's integers have so many."""
MAX_ID: Final = 10**38 - 1
"""What has so many digits is taken for an id. No spool gives one above 2^126."""
SEGMENT_BITS: Final = 12
"""A segment is so many low bits of an id: 4,096 consecutive ids. A batch consists of whole segments."""

SEGMENT_MASK: Final = (1 << SEGMENT_BITS) - 1
_BATCH_SHIFT: Final = INDEX_BITS - SEGMENT_BITS
_LOCAL_MASK: Final = (1 << LOCAL_BITS) - 1


class JobSet:
    """Any ids, each once. It takes about 600 bytes for each segment that has one."""

    def __init__(self) -> None:
        self._segments: dict[int, bytearray] = {}

    def __bool__(self) -> bool:
        return bool(self._segments)

    def __len__(self) -> int:
        return sum(mask.bit_count() for _, mask in self.masks())

    @property
    def segments(self) -> int:
        """How many segments have any of them: what its memory depends on."""
        return len(self._segments)

    def add(self, job: int) -> None:
        """Add one id.

        Raises:
            ValueError: it is not from 0 to MAX_ID.
        """
        if not 0 <= job <= MAX_ID:
            raise ValueError(f"{job} is no job id")
        bits = self._segments.get(job >> SEGMENT_BITS)
        if bits is None:
            bits = self._segments[job >> SEGMENT_BITS] = bytearray((1 << SEGMENT_BITS) // 8)
        bits[(job & SEGMENT_MASK) >> 3] |= 1 << (job & 7)

    def add_run(self, first: int, count: int) -> None:
        """Add consecutive ids."""
        end = first + count
        while first < end:
            segment, start = first >> SEGMENT_BITS, first & SEGMENT_MASK
            some = min(end - first, SEGMENT_MASK + 1 - start)
            self.add_mask(segment, ((1 << some) - 1) << start)
            first += some

    def add_mask(self, segment: int, mask: int) -> None:
        """Add the ids of a segment whose bits are set."""
        known = int.from_bytes(self._segments.get(segment, b""), "little")
        self._segments[segment] = bytearray((known | mask).to_bytes((1 << SEGMENT_BITS) // 8, "little"))

    def update(self, other: JobSet) -> None:
        """Add all ids of another set."""
        for segment, mask in other.masks():
            self.add_mask(segment, mask)

    def __and__(self, other: JobSet) -> JobSet:
        both = JobSet()
        for segment, mask in self.masks():
            if common := mask & int.from_bytes(other._segments.get(segment, b""), "little"):
                both.add_mask(segment, common)
        return both

    def __iter__(self) -> Iterator[int]:
        for segment, mask in sorted(self.masks()):
            left = mask
            while left:
                lowest = left & -left
                yield (segment << SEGMENT_BITS) + lowest.bit_length() - 1
                left ^= lowest

    def masks(self) -> Iterator[tuple[int, int]]:
        """(segment, an integer with a bit for each of its ids)."""
        for segment, bits in self._segments.items():
            yield segment, int.from_bytes(bits, "little")


def job_id(epoch: int, batch: int, index: int) -> int:
    """The id of a job. `epoch` is the random number of the process that opened the batch; 0 before ids had one."""
    return epoch << LOCAL_BITS | batch << INDEX_BITS | index


def job_index(job: int) -> int:
    """The place of a job in its batch."""
    return job & ((1 << INDEX_BITS) - 1)


def local(job: int) -> int:
    """The part of an id that is unique within its spool."""
    return job & _LOCAL_MASK


def origin_of(job: int) -> tuple[int, int]:
    """The epoch and the batch of a job."""
    return job >> LOCAL_BITS, local(job) >> INDEX_BITS


def origin_of_segment(segment: int) -> tuple[int, int]:
    """The epoch and the batch of the jobs of a segment."""
    return origin_of(segment << SEGMENT_BITS)


def local_segment(segment: int) -> int:
    """A segment, without the epoch of its jobs."""
    return local(segment << SEGMENT_BITS) >> SEGMENT_BITS


def batch_of(segment: int) -> int:
    """The number of the batch that a segment belongs to."""
    return origin_of_segment(segment)[1]


def first_index(segment: int) -> int:
    """The index, in its batch, of a segment's first job."""
    return (segment & ((1 << _BATCH_SHIFT) - 1)) << SEGMENT_BITS


def segments_of(batch: int) -> tuple[int, int]:
    """The first and the last segment of a batch."""
    return batch << _BATCH_SHIFT, (batch + 1 << _BATCH_SHIFT) - 1
