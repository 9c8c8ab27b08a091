"""The cost of each value of JOBS_BACKUP_COMPRESSION: members of 1 MiB of jobs-backup's lines, in one thread."""

from __future__ import annotations

from functools import partial
from typing import Final

from benchmarks.contenders.common import Job
from benchmarks.runner import Bench, child

NAME: Final = "compression"
CORPORA: Final = ("mixed 1.25 KB", "track 1.25 KB")
SETTINGS: Final = ("gzip", "gzip:2", "gzip:3", "gzip:4", "gzip:6", "gzip:9", "zstd", "zstd:3", "zstd:9")


def run(bench: Bench) -> None:
    for corpus in CORPORA:
        job = Job(corpus=bench.corpus(corpus), events=bench.count(20_000, 100))
        bench.interleaved(NAME, corpus, {one: partial(child, "compressing", _with(job, one)) for one in SETTINGS})


def _with(job: Job, setting: str) -> Job:
    return Job(corpus=job.corpus, events=job.events, variant=setting)
