"""Which lines go into which open batch, and which batches are full: the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from jobs_backup.model import Stream
from jobs_backup.spool.ids import job_id
from jobs_backup.spool.interface import BatchLimits, Recording
from jobs_backup.spool.open_batch import OpenBatch

MAX_OPEN: Final = 10_000
"""Maximum of open batches. Above it the oldest are sealed early, so that memory stays bounded whatever the sources are called."""
WAIT_FOR_ROOM: Final = 0.05
"""Seconds between two looks of a recorder that waits for room."""
_ADDITION_BYTES: Final = 64 << 20
"""Of the lines that many threads add to one batch at the same time, so many become a chunk: SQLite and PostgreSQL take 1 GB. Not
less than a member has, see `plan`."""


class Addition:
    """The lines a commit adds to a batch."""

    __slots__ = ("batch", "bytes", "end", "first_at", "last_at", "lines")

    def __init__(self, batch: OpenBatch, end: int) -> None:
        """`end`: the index of the next event in the batch."""
        self.batch = batch
        self.end = end
        self.bytes = 0
        self.lines: list[bytes] = []
        self.first_at = self.last_at = 0

    def add(self, lines: list[bytes], recording: Recording) -> int:
        """Add a recording's lines, or some of them. Returns the id of the first."""
        if not self.lines:
            self.first_at, self.last_at, self.lines = recording.first_at, recording.last_at, lines.copy()
        else:
            self.first_at, self.last_at = min(self.first_at, recording.first_at), max(self.last_at, recording.last_at)
            self.lines += lines
        self.bytes += sum(map(len, lines))
        first = job_id(self.batch.epoch, self.batch.id, self.end)
        self.end += len(lines)
        return first


def plan(
    recordings: Sequence[Recording],
    opened: Mapping[Stream, OpenBatch],
    full: list[OpenBatch],
    max_events: int,
    open_for: Callable[[Sequence[Stream]], None],
) -> list[Addition]:
    """Which lines go into which batch, in order, and so the ids of their jobs: it fills in `Recording.jobs`.

    Args:
        opened: stream -> the batch that takes its events.
        full: gets the batches that take no more.
        open_for: opens another batch for each of these streams, and enters it into `opened`.
    """
    streams = dict.fromkeys(recording.stream for recording in recordings if recording.lines)
    open_for([stream for stream in streams if stream not in opened])
    planned = {stream: Addition(opened[stream], opened[stream].fill.end) for stream in streams}
    made = list(planned.values())
    for recording in recordings:
        stream, lines = recording.stream, recording.lines
        recording.jobs = []
        while lines:
            addition = planned[stream]
            if (room := max_events - addition.end) <= 0:
                full.append(addition.batch)
                open_for([stream])
                addition = planned[stream] = Addition(opened[stream], 0)
                made.append(addition)
                continue
            if addition.bytes >= _ADDITION_BYTES:  # it becomes a member, so the next one need not be compacted with it
                addition = planned[stream] = Addition(addition.batch, addition.end)
                made.append(addition)
            some = lines if len(lines) <= room else lines[:room]
            recording.jobs.append((addition.add(some, recording), len(some)))
            lines = lines[room:]
    return [addition for addition in made if addition.lines]


def due(
    changed: Iterable[OpenBatch], opened: Mapping[Stream, OpenBatch], full: Sequence[OpenBatch], limits: BatchLimits
) -> list[OpenBatch]:
    """The batches to be sealed after a commit that has changed some, beside those that are known to be `full`."""
    if len(opened) > MAX_OPEN:
        oldest = sorted(opened.values(), key=lambda batch: batch.opened)[: len(opened) // 2]
        return [batch for batch in oldest if batch.fill.events]
    reached = [batch for batch in changed if batch.fill.end >= limits.events or batch.fill.raw_bytes >= limits.bytes]
    return [batch for batch in reached if batch not in full]
