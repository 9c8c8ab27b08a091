"""Acknowledging deliveries: a million ids of 100 objects in any order, and each event right after its recording."""

from __future__ import annotations

from functools import partial
from typing import Final

from benchmarks.contenders.common import Job
from benchmarks.runner import Bench, Values, child

NAME: Final = "acknowledge"
CASES: Final = {"many": "1,000,000 shuffled ids of 100 objects", "one": "record() and delivered(), one by one"}
_EVENTS: Final = {"many": 1_000_000, "one": 2000}


def run(bench: Bench) -> None:
    for variant, case in CASES.items():
        bench.interleaved(NAME, case, {"jobs-backup": partial(_measure, bench, variant)})


def _measure(bench: Bench, variant: str) -> Values:
    with bench.work() as directory:
        events = bench.count(_EVENTS[variant], 100)
        return child("acknowledging", Job(corpus=bench.corpus("short"), events=events, directory=str(directory), variant=variant))
