"""Recording alone: `record()` one by one, each durable when it returns, against bare SQLite commits of the same lines."""

from __future__ import annotations

from functools import partial
from typing import Final

from benchmarks.contenders.common import Job
from benchmarks.runner import Bench, Values, child

NAME: Final = "record"
CASE: Final = "record() one by one, mixed 1.25 KB"
SQLITE: Final = "SQLite, a commit each"
_EVENTS: Final = {1: 3000, 4: 10_000, 16: 30_000}


def ours(threads: int) -> str:
    return f"jobs-backup, {threads} thread{'s' * (threads > 1)}"


def run(bench: Bench) -> None:
    contenders = {SQLITE: partial(_measure, bench, "sqlite", _EVENTS[1])}
    for threads, events in _EVENTS.items():
        if not bench.quick or threads != 4:
            contenders[ours(threads)] = partial(_measure, bench, str(threads), events)
    bench.interleaved(NAME, CASE, contenders)


def _measure(bench: Bench, variant: str, events: int) -> Values:
    with bench.work() as directory:
        job = Job(corpus=bench.corpus("mixed 1.25 KB"), events=bench.count(events, 16), directory=str(directory), variant=variant)
        return child("recording", job)
