"""Ids of events that are not kept, when only failures are backed up: a failure still names its job's id."""

from __future__ import annotations

import threading
import time
from typing import Final, NamedTuple, Protocol

from jobs_backup.model import Stream
from jobs_backup.spool.batches import BatchOptions
from jobs_backup.spool.ids import INDEX_BITS, job_id

_RENEWED_AFTER: Final = 6 * 3600.0
"""Seconds. The catalog forgets old batches, but must not forget one that still issues ids."""
_MAX_STREAMS: Final = 10_000
"""Most streams to remember, so that memory stays bounded; the unused ids of a dropped stream are never issued."""


class _Range(NamedTuple):
    next: int
    end: int
    renewed_after: float


class NumberGiver(Protocol):
    """The catalog of an engine."""

    def number(self, stream: Stream, placement: BatchOptions, epoch: int, jobs: int, /) -> int:
        """Reserve a batch number for `jobs` events that are not kept. It is never uploaded."""
        ...


class Numbering:
    """Issue ids from one batch per stream without events. Any number of threads may call it."""

    def __init__(self, catalog: NumberGiver, placement: BatchOptions, epoch: int) -> None:
        self._catalog = catalog
        self._epoch = epoch
        self._placement = placement
        self._ranges: dict[Stream, _Range] = {}
        self._lock = threading.Lock()

    def take(self, stream: Stream, count: int) -> list[tuple[int, int]]:
        """Issue `count` ids, as runs of consecutive ones: (first, how many)."""
        runs: list[tuple[int, int]] = []
        with self._lock:
            while count:
                range_ = self._ranges.get(stream)
                if range_ is None or range_.next == range_.end or time.monotonic() > range_.renewed_after:
                    self._ranges.pop(stream, None)
                    if len(self._ranges) >= _MAX_STREAMS:
                        del self._ranges[next(iter(self._ranges))]
                    range_ = self._new(stream)
                some = min(count, range_.end - range_.next)
                self._ranges[stream] = range_._replace(next=range_.next + some)
                runs.append((range_.next, some))
                count -= some
        return runs

    def _new(self, stream: Stream) -> _Range:
        first = job_id(self._epoch, self._catalog.number(stream, self._placement, self._epoch, 1 << INDEX_BITS), 0)
        return _Range(first, first + (1 << INDEX_BITS), time.monotonic() + _RENEWED_AFTER)
