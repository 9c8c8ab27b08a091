"""Object sizes against `gzip -6` of the same lines."""

from __future__ import annotations

from functools import partial
from typing import Final

from benchmarks.contenders.common import Job
from benchmarks.runner import Bench, Values, child

NAME: Final = "size"
CORPORA: Final = ("mixed 1.25 KB", "track 1.25 KB")
WAYS: Final = {
    "bulk": ("", 100_000, 1),
    "single-event commits": ("single", 20_000, 1),
    "1,000 sources": ("", 200_000, 1000),
}


def title(way: str, corpus: str) -> str:
    return f"{way}, {corpus}"


def run(bench: Bench) -> None:
    for way, (variant, events, sources) in WAYS.items():
        for corpus in CORPORA:
            # The sizes are the same in each round.
            bench.once(NAME, title(way, corpus), "jobs-backup", 1, partial(_measure, bench, corpus, variant, events, sources))


def _measure(bench: Bench, corpus: str, variant: str, events: int, sources: int) -> Values:
    with bench.work() as directory:
        job = Job(
            corpus=bench.corpus(corpus), events=bench.count(events, sources), sources=sources, directory=str(directory),
            variant=variant, settings={"JOBS_BACKUP_SPOOL_DURABILITY": "process"},
        )  # fmt: skip
        return child("sizes", job)
