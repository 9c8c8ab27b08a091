"""Ids that were given to the outbox, and where their events are now.

An event of the outbox has its id before it has a batch. Once it is collected, its id is an alias of the one that it has in its
batch. Acknowledgements that come before that are kept under the outbox's own id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from jobs_backup.spool.ids import INDEX_BITS, SEGMENT_BITS, SEGMENT_MASK, batch_of, first_index, segments_of

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

ROW_EVENTS: Final = 4096
"""Maximum of events in a row of the outbox. Who looks for the row of an id looks no further back."""
_ALL: Final = (1 << (1 << SEGMENT_BITS)) - 1


class Alias(NamedTuple):
    """Where some ids of a segment are: the lowest is at the index `first` of the batch, and the others follow it."""

    segment: int
    batch: int
    first: int
    jobs: int

    def translated(self, mask: int) -> list[tuple[int, int]]:
        """Where those of these ids are that have a bit in `mask`: (segment, mask)."""
        low = (self.jobs & -self.jobs).bit_length() - 1
        packed = (mask & self.jobs) >> low
        ids = self.jobs >> low
        if ids & (ids + 1):  # there are gaps
            packed, left = 0, mask & self.jobs
            while left:
                lowest = left & -left
                packed |= 1 << (self.jobs & (lowest - 1)).bit_count()
                left ^= lowest
        segment = segments_of(self.batch)[0] + (self.first >> SEGMENT_BITS)
        placed = packed << (self.first & SEGMENT_MASK)
        parts = ((segment, placed & _ALL), (segment + 1, placed >> (1 << SEGMENT_BITS)))
        return [(number, part) for number, part in parts if part]


class Resolved(NamedTuple):
    """Ids of the outbox, as segments with masks.

    Attributes:
        collected: where they are now.
        waiting: those that wait in the outbox.
        unknown: those whose transaction has not committed, or that were never given.
    """

    collected: dict[int, int]
    waiting: dict[int, int]
    unknown: dict[int, int]


def resolve(db: Db, ids: Iterable[tuple[int, int]]) -> Resolved:
    """Find these ids of the outbox. Their ranges must be locked, so that nothing is collected meanwhile."""
    wanted = {segment: mask for segment, mask in ids if mask}
    resolved = Resolved(defaultdict(int), {}, {})
    if not wanted:
        return resolved
    rows = db.execute("SELECT segment, batch, first, jobs FROM jobs_backup.aliases WHERE segment = ANY(%s)", ([*wanted],))
    left = dict(wanted)
    for segment, batch, first, jobs in rows:
        alias = Alias(segment, batch, first, int.from_bytes(jobs, "little"))
        left[segment] &= ~alias.jobs
        for native, mask in alias.translated(wanted[segment]):
            resolved.collected[native] |= mask
    for segment, mask in left.items():
        if mask:
            waiting = mask & _waiting(db, segment, mask)
            if waiting:
                resolved.waiting[segment] = waiting
            if mask != waiting:
                resolved.unknown[segment] = mask & ~waiting
    return resolved


def _waiting(db: Db, segment: int, mask: int) -> int:
    """Which ids of a segment wait in the outbox, at least of those in `mask`."""
    base = first_index(segment)
    low, high = base + (mask & -mask).bit_length() - 1, base + mask.bit_length() - 1
    found = 0
    for start, events in db.execute(
        "SELECT start, events FROM jobs_backup.outbox WHERE batch = %s AND start > %s AND start <= %s",
        (batch_of(segment), low - ROW_EVENTS, high),
    ):
        run = ((1 << events) - 1) << max(start - base, 0)
        found |= run >> max(base - start, 0)
    return found & _ALL


def aliases_of(batch: int, rows: Sequence[tuple[int, int, int]]) -> list[Alias]:
    """The aliases of a batch that consists of these rows, in order: (range, start, events)."""
    made: dict[int, Alias] = {}
    index = 0
    for range_, start, events in rows:
        id_, left = range_ << INDEX_BITS | start, events
        while left:
            segment, offset = id_ >> SEGMENT_BITS, id_ & SEGMENT_MASK
            some = min(left, SEGMENT_MASK + 1 - offset)
            alias = made.get(segment, Alias(segment, batch, index, 0))
            made[segment] = alias._replace(jobs=alias.jobs | ((1 << some) - 1) << offset)
            id_, left, index = id_ + some, left - some, index + some
    return list(made.values())
