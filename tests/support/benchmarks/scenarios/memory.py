"""Peak memory of jobs-backup: it must not grow with the number of events, the number of sources, or the size of an object."""

from __future__ import annotations

from functools import partial
from typing import Final

from benchmarks.runner import Bench, target

NAME: Final = "memory"
BASE: Final = "1 million events, 100,000 an object"
TRACK: Final = "1 million track events"
LARGE: Final = "1 object of 5 GB"
_LONG: Final = {"JOBS_BACKUP_UPLOAD_FREQUENCY": "1h"}
# The maximum number of events per object; incompressible ones add up to more than 5 GB.
_LARGE: Final = {**_LONG, "JOBS_BACKUP_BATCH_EVENTS": str(2**21), "JOBS_BACKUP_BATCH_BYTES": "100GB"}
CASES: Final = {
    BASE: ("mixed 1.25 KB", 1_000_000, 1, "", {}),
    TRACK: ("track 1.25 KB", 1_000_000, 1, "", {}),
    "10 million events": ("mixed 1.25 KB", 10_000_000, 1, "", {}),
    "1,000 sources": ("mixed 1.25 KB", 1_000_000, 1000, "", {}),
    LARGE: ("random", 2**21, 1, "one file", _LARGE),
}


def run(bench: Bench) -> None:
    with target("http", bench) as to:
        for case, (corpus, events, sources, variant, settings) in CASES.items():
            # Memory hardly varies between rounds, and the other runs take long.
            rounds = bench.rounds if case in (BASE, TRACK) else 1
            measure = partial(
                to.measured, bench, "ours", corpus=bench.corpus(corpus), events=bench.count(events, sources), sources=sources,
                variant=variant, settings=settings,
            )  # fmt: skip
            for number in range(1, rounds + 1):
                bench.once(NAME, case, "jobs-backup", number, measure)
