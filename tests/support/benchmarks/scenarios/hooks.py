"""The cost per object of the hook call and the retry policy, without the provider's own work."""

from __future__ import annotations

from typing import Final

from benchmarks.contenders.common import Job
from benchmarks.runner import Bench, child

NAME: Final = "hooks"
CASE: Final = "a hook call with its retry policy"


def run(bench: Bench) -> None:
    job = Job(events=bench.count(20_000, 100))
    bench.interleaved(NAME, CASE, {"jobs-backup": lambda: child("hooks", job)})
