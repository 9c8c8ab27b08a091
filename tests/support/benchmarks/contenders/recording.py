"""Record events one by one to disk: `record()` from several threads, or a bare SQLite commit per line (`variant` "sqlite")."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.contenders.common import Job, Measured, main
from benchmarks.contenders.ours import local_environment

from jobs_backup import Backup
from jobs_backup.format import lines as encoding


def _ours(job: Job, events: Sequence[bytes], threads: int, measured: Measured) -> None:
    with Backup.from_env(local_environment(job), archive=False) as backup:

        def run(number: int) -> None:
            for event in events[number::threads]:
                backup.record(event, source_id="web")

        backup.record(events[0], source_id="web")
        workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
        with measured.section():
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()


def _sqlite(job: Job, events: Sequence[bytes], measured: Measured) -> None:
    at = encoding.timestamp(encoding.now())
    with closing(sqlite3.connect(Path(job.directory) / "bare.db", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE lines (id INTEGER PRIMARY KEY, line BLOB)")
        with measured.section():
            for event in events:
                line = encoding.raw_line(event, at)
                database.execute("BEGIN IMMEDIATE")
                database.execute("INSERT INTO lines (line) VALUES (?)", (line,))
                database.execute("COMMIT")


def work(job: Job, measured: Measured) -> None:
    events = list(job.raw_lines())
    if job.variant == "sqlite":
        _sqlite(job, events, measured)
    else:
        _ours(job, events, int(job.variant), measured)


if __name__ == "__main__":
    main(work)
