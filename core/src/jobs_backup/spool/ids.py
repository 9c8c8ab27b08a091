"""Job ids: their parts, and sets of them with one bit per id.

An id starts with 63 random bits that a process draws when it opens the spool. Then come 42 bits for the batch and 21 for the place
in it. So no two spools issue the same id, whatever their clocks do and wherever their files were copied from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

INDEX_BITS: Final = 21
"""Bits for a job's place in its batch. The batch's number is above them."""
LOCAL_BITS: Final = 63
"""Bits of an id within its spool: batch and place. SQLite's integers have that many."""
MAX_ID: Final = 10**38 - 1
"""Any number of up to 38 digits is accepted as an id. No spool issues one above 2^126."""
SEGMENT_BITS: Final = 12
"""Low bits of an id within a segment: 4,096 consecutive ids. A batch consists of whole segments."""

SEGMENT_MASK: Final = (1 << SEGMENT_BITS) - 1
_BATCH_SHIFT: Final = INDEX_BITS - SEGMENT_BITS
_LOCAL_MASK: Final = (1 << LOCAL_BITS) - 1


class JobSet:
    """A set of job ids. It takes about 600 bytes per segment in use."""

    def __init__(self) -> None:
        self._segments: dict[int, bytearray] = {}

    def __bool__(self) -> bool:
        return bool(self._segments)

    def __len__(self) -> int:
        return sum(mask.bit_count() for _, mask in self.masks())

    @property
    def segments(self) -> int:
        """Number of segments in use, which determines the memory needed."""
        return len(self._segments)

    def add(self, job: int) -> None:
        """Add one id.

        Raises:
            ValueError: it is not from 0 to MAX_ID.
        """
        if not 0 <= job <= MAX_ID:
            raise ValueError(f"{job} is not a job id")
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
        """Iterate over (segment, an integer with a bit for each of its ids)."""
        for segment, bits in self._segments.items():
            yield segment, int.from_bytes(bits, "little")


def job_id(epoch: int, batch: int, index: int) -> int:
    """Build a job's id. `epoch` is the random number of the process that opened the batch; 0 in ids from before it existed."""
    return epoch << LOCAL_BITS | batch << INDEX_BITS | index


def job_index(job: int) -> int:
    """A job's place in its batch."""
    return job & ((1 << INDEX_BITS) - 1)


def local(job: int) -> int:
    """The part of an id that is unique within its spool."""
    return job & _LOCAL_MASK


def origin_of(job: int) -> tuple[int, int]:
    """A job's epoch and batch."""
    return job >> LOCAL_BITS, local(job) >> INDEX_BITS


def origin_of_segment(segment: int) -> tuple[int, int]:
    """The epoch and batch of a segment's jobs."""
    return origin_of(segment << SEGMENT_BITS)


def local_segment(segment: int) -> int:
    """A segment without its jobs' epoch."""
    return local(segment << SEGMENT_BITS) >> SEGMENT_BITS


def batch_of(segment: int) -> int:
    """The number of a segment's batch."""
    return origin_of_segment(segment)[1]


def segment_in(batch: int, segment: int) -> int:
    """The same place in another batch, without an epoch."""
    return batch << _BATCH_SHIFT | segment & ((1 << _BATCH_SHIFT) - 1)


def first_index(segment: int) -> int:
    """The index of a segment's first job in its batch."""
    return (segment & ((1 << _BATCH_SHIFT) - 1)) << SEGMENT_BITS


def segments_of(batch: int) -> tuple[int, int]:
    """A batch's first and last segment."""
    return batch << _BATCH_SHIFT, (batch + 1 << _BATCH_SHIFT) - 1
