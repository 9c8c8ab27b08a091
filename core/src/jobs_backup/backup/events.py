"""Arguments and results of the public API: events and their jobs."""

from __future__ import annotations

import operator
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final, overload

import msgspec

from jobs_backup.errors import InvalidEvent
from jobs_backup.format.lines import Payload
from jobs_backup.spool.ids import LOCAL_BITS, MAX_ID, JobSet, job_index, local, origin_of

_DIGITS: Final = re.compile(r"[0-9]{1,38}")  # as many as MAX_ID has
_SET_SEGMENTS: Final = 8192
"""Segments of job ids acknowledged in one transaction; they take about 5 MB."""


class Job(int):
    """An event that the spool has accepted: its id, an integer of up to 126 bits. In JSON, write it as a string.

    The upper half is drawn at random when a process opens a spool: no other spool issues the same id.
    """

    __slots__ = ()

    @property
    def batch(self) -> int:
        """Number of its batch."""
        return origin_of(self)[1]

    @property
    def index(self) -> int:
        """Position in the batch, from 0."""
        return job_index(self)

    def __repr__(self) -> str:
        return f"Job({int(self)})"

    def __str__(self) -> str:
        return str(int(self))


class Jobs(Sequence[Job]):
    """The jobs of `record_many`, in payload order; held as runs of consecutive ids."""

    def __init__(self) -> None:
        # Per run of consecutive ids: both halves of its first id, and the number of jobs up to its end.
        self._epoch = array("q")
        self._first = array("q")
        self._end = array("q")

    def __len__(self) -> int:
        return self._end[-1] if self._end else 0

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        run = bisect_right(self._end, index)
        return Job(self._first_of(run) + index - (self._end[run - 1] if run else 0))

    def __iter__(self) -> Iterator[Job]:
        for first, count in self.runs():
            yield from map(Job, range(first, first + count))

    def runs(self) -> Iterator[tuple[int, int]]:
        """Runs of consecutive ids: (first, count)."""
        before = 0
        for run, end in enumerate(self._end):
            yield self._first_of(run), end - before
            before = end

    def add_run(self, first: int, count: int) -> None:
        """For Backup: add consecutive ids, from `first` on."""
        length = len(self)
        before = self._end[-2] if len(self._end) > 1 else 0
        if length and self._first_of(-1) + length - before == first:
            self._end[-1] += count
        else:
            self._begin_run(first, length + count)

    def add(self, ids: Iterable[int]) -> None:
        """For Backup: add ids in any order."""
        end = len(self)
        following = None
        for id_ in ids:
            end += 1
            if id_ == following:
                self._end[-1] = end
            else:
                self._begin_run(id_, end)
            following = id_ + 1

    def extend(self, other: Jobs) -> None:
        """Append the jobs of another call."""
        for first, count in other.runs():
            self.add_run(first, count)

    def _first_of(self, run: int) -> int:
        return self._epoch[run] << LOCAL_BITS | self._first[run]

    def _begin_run(self, first: int, end: int) -> None:
        self._epoch.append(first >> LOCAL_BITS)
        self._first.append(local(first))
        self._end.append(end)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event with its own source, for `record_many`. The fields are the arguments of `Backup.record`."""

    payload: Payload
    source_id: str
    user_id: str | None = None
    workspace_id: str = ""
    message_id: str | None = None
    created_at: datetime | None = None

    def __repr__(self) -> str:
        return f"Event(source_id={self.source_id!r}, payload=...)"  # keeps the payload out of logs


def job_id(job: int | str) -> int:
    """Parse an id, which may be text. Raises InvalidEvent."""
    try:
        id_ = int(job) if isinstance(job, str) and _DIGITS.fullmatch(job) else operator.index(job)  # type: ignore[arg-type]
    except TypeError:
        id_ = -1
    if not 0 <= id_ <= MAX_ID:
        shown = "a number that is too large" if isinstance(job, int) and id_ > MAX_ID else repr(str(job)[:40])
        raise InvalidEvent(f"{shown} is not a job id", hint="pass what `record` returned")
    return id_


def job_sets(jobs: int | str | Iterable[int | str]) -> Iterator[JobSet]:
    """The ids, in sets of bounded size."""
    found = JobSet()
    if isinstance(jobs, Jobs):
        for first, count in jobs.runs():
            found.add_run(first, count)
            if found.segments >= _SET_SEGMENTS:
                yield found
                found = JobSet()
    else:
        for job in (jobs,) if isinstance(jobs, (int, str)) else jobs:
            found.add(job_id(job))
            if found.segments >= _SET_SEGMENTS:
                yield found
                found = JobSet()
    if found:
        yield found
