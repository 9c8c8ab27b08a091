"""A spool in PostgreSQL beside one in a directory, on one disk. The server waits for the disk at each commit, as SQLite does."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.contenders.common import Job
from benchmarks.runner import Bench, Values, child
from postgres import Postgres, postgres

NAME: Final = "fleet"
POSTGRESQL: Final = "PostgreSQL"
SQLITE: Final = "a directory"
_RECORDERS: Final = 4
CASES: Final = {
    # case: module, variant, corpus, events, processes
    "record(), 1 thread": ("recording", "1", "mixed 1.25 KB", 2000, 1),
    "record(), 16 threads": ("recording", "16", "mixed 1.25 KB", 20_000, 1),
    "record(), 64 threads": ("recording", "64", "mixed 1.25 KB", 40_000, 1),
    f"record(), {_RECORDERS} processes with 16 threads": ("recording", "16", "mixed 1.25 KB", 10_000, _RECORDERS),
    "record_many()": ("spooling", "bulk", "mixed 1.25 KB", 300_000, 1),
    "claim and receipt of a batch, 1 thread": ("spooling", "claim 1", "short", 500, 1),
    "claim and receipt of a batch, 4 threads": ("spooling", "claim 4", "short", 1000, 1),
    "delivered(), shuffled ids of 100 objects": ("acknowledging", "many", "short", 500_000, 1),
}
_LOOK_SECONDS: Final = 0.2


def run(bench: Bench) -> None:
    with bench.work() as directory:
        directory.chmod(0o755)  # the server may run as another user
        with postgres(directory, fsync="on", shared_buffers="128MB", max_wal_size="4GB") as server:
            for case in CASES:
                both = {SQLITE: partial(_measure, bench, case, None), POSTGRESQL: partial(_measure, bench, case, server)}
                bench.interleaved(NAME, case, both)


def _measure(bench: Bench, case: str, server: Postgres | None) -> Values:
    module, variant, corpus, events, processes = CASES[case]
    with bench.work() as directory, _database(server) as settings, ThreadPoolExecutor(processes) as pool:
        jobs = [
            Job(
                corpus=bench.corpus(corpus),
                events=bench.count(events, 100),
                directory=str(directory),
                variant=variant,
                settings={**settings, "INSTANCE_ID": str(number)},
            )
            for number in range(processes)
        ]
        with _watched(server) as of_server:
            found = list(pool.map(partial(child, module), jobs))
    values: Values = {name: sum(one[name] for one in found) for name in ("events", "cpu", "peak_rss")}
    return {**values, "seconds": max(one["seconds"] for one in found), **of_server}


@contextmanager
def _database(server: Postgres | None) -> Generator[dict[str, str]]:
    if server is None:
        yield {}
        return
    with server.database() as database:
        yield {"JOBS_BACKUP_SPOOL": server.url(database)}


@contextmanager
def _watched(server: Postgres | None) -> Generator[Values]:
    """CPU seconds of the server's processes, in all, and the most memory they had at once."""
    values = Values(server_cpu=0.0, server_rss=0.0)
    if server is None or server.process is None:
        yield values
        return
    pid = server.process.pid
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK_SECONDS):
            values["server_rss"] = max(values["server_rss"], sum(map(_memory, _family(pid))))

    before = sum(map(_cpu, _family(pid)))
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield values
    finally:
        stop.set()
        thread.join()
    values["server_cpu"] = sum(map(_cpu, _family(pid))) - before


def _family(pid: int) -> list[int]:
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _cpu(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> float:
    """Bytes, with its share of what processes have in common."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return float(sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")))
