"""Transactions of applications, a third of them rolled back, in processes that are killed: the bucket has what was committed.

300 of them; with JOBS_BACKUP_TEST_ALL 10,000.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from buckets import FAST_RETRY, events
from postgres import Postgres
from profiles import ALL

from jobs_backup import Backup, UnknownJob
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.engines import read_status

TRANSACTIONS = 10_000 if ALL else 300
RECORDERS, ARCHIVERS = 3, 2
LONGEST_PAUSE = 0.01 if ALL else 0.05
"""Seconds, within a transaction or between two."""
BETWEEN_KILLS = (100, 400) if ALL else (5, 40)
"""Transactions, so that a busy machine makes as much progress."""

RECORDER = """
import os, random, sys, time
import psycopg
from jobs_backup import Backup

first, step, end, longest = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
with psycopg.connect(os.environ["JOBS_BACKUP_SPOOL"]) as connection, Backup.from_env(archive=False) as backup:
    rows = connection.execute("SELECT n FROM orders UNION SELECT n FROM rolled_back").fetchall()
    connection.commit()
    for n in sorted(set(range(first, end, step)) - {row[0] for row in rows}):
        job = backup.record({"n": n}, source_id=f"source {n % 2}", connection=connection)
        connection.execute("INSERT INTO orders VALUES (%s, %s)", (n, int(job)))
        if random.random() < 0.5:
            time.sleep(random.uniform(0, longest))
        if n % 3:
            connection.commit()
        else:
            connection.rollback()
            connection.execute("INSERT INTO rolled_back VALUES (%s, %s)", (n, int(job)))
            connection.commit()
        time.sleep(random.uniform(0, longest))
"""

ARCHIVER = """
import time
from jobs_backup import Backup
from jobs_backup.archive import archiver
from jobs_backup.spool.postgresql import spool
from jobs_backup.store import object_store

archiver.TICK = 0.1
object_store._LANDING_MARGIN = 0.5
spool._OUTBOX_SECONDS = 0.1
with Backup.from_env():
    time.sleep(600)
"""


class Crew:
    """Processes, each of which is started again when it ends."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment}
        self.commands = [
            *([RECORDER, str(n), str(RECORDERS), str(TRANSACTIONS), str(LONGEST_PAUSE)] for n in range(RECORDERS)),
            *([ARCHIVER] for _ in range(ARCHIVERS)),
        ]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * len(self.commands)
        self.done = [False] * RECORDERS

    def look(self) -> bool:
        """Start what has ended. Returns whether a recorder still has something to do."""
        for index, process in enumerate(self.processes):
            if process is not None and process.poll() == 0 and index < RECORDERS:
                self.done[index] = True
            elif process is None or process.poll() is not None:
                command = [sys.executable, "-c", *self.commands[index]]
                self.processes[index] = subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)
        return not all(self.done)

    def kill(self, dice: random.Random) -> None:
        """Kill one that is alive."""
        alive = [process for process in self.processes if process is not None and process.poll() is None]
        victim = dice.choice(alive)
        victim.kill()
        victim.wait()

    def end(self) -> None:
        for process in self.processes:
            if process is not None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def working(environment: dict[str, str]) -> Iterator[Crew]:
    crew = Crew(environment)
    try:
        yield crew
    finally:
        crew.end()


def numbers(directory: Path) -> Counter[int]:
    return Counter(event["payload"]["n"] for event in events(directory))


def rows(server: Postgres, database: str, table: str) -> dict[int, int]:
    """The application's own: number -> job."""
    with server.admin(database) as admin:
        found: list[tuple[Any, ...]] = admin.execute(f"SELECT n, job FROM {table}".encode()).fetchall()
        return {row[0]: int(row[1]) for row in found}


def disturb(crew: Crew, server: Postgres, database: str) -> tuple[int, int]:
    """Kill processes and connections until all transactions were done. Returns how many of each."""
    dice = random.Random(11)
    kills = terminated = following = 0
    while crew.look():
        time.sleep(dice.uniform(0, 0.2))
        if (count := len(rows(server, database, "orders")) + len(rows(server, database, "rolled_back"))) < following:
            continue
        following = count + dice.randint(*BETWEEN_KILLS)
        if dice.random() < 0.1:
            terminated += server.terminate(database)
        else:
            crew.kill(dice)
            kills += 1
    return kills, terminated


def wait_for(what: Callable[[], bool], why: str) -> None:
    until = time.monotonic() + 120
    while not what():
        assert time.monotonic() < until, why
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_bucket_has_what_was_committed(database_server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs_backup.store.object_store._LANDING_MARGIN", 0.5)
    (tmp_path / "bucket").mkdir()
    with database_server.database() as database:
        environment = {
            "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
            "JOBS_BACKUP_BUCKET": str(tmp_path / "bucket"),
            "JOBS_BACKUP_SPOOL": database_server.url(database),
            "JOBS_BACKUP_SPOOL_LEASE": "2s",
            "JOBS_BACKUP_BATCH_EVENTS": "100" if ALL else "20",
            "JOBS_BACKUP_REQUEST_TIMEOUT": "2s",
            **FAST_RETRY,
        }
        with database_server.admin(database) as admin:
            admin.execute("CREATE TABLE orders (n integer PRIMARY KEY, job numeric); CREATE TABLE rolled_back (LIKE orders)")
        begun = time.monotonic()
        with working(environment) as crew:
            kills, terminated = disturb(crew, database_server, database)
        seconds = time.monotonic() - begun
        committed, rolled_back = rows(database_server, database, "orders"), rows(database_server, database, "rolled_back")
        assert set(committed) == {n for n in range(TRANSACTIONS) if n % 3}
        assert set(rolled_back) == {n for n in range(TRANSACTIONS) if n % 3 == 0}
        with Backup.from_env(environment) as backup:
            backup.flush(120)
            wait_for(lambda: len(numbers(tmp_path)) == len(committed), "some are lost")  # or wait for the leases of the killed
            assert numbers(tmp_path) == Counter([*committed]), "each is there once"
            backup.delivered(job for n, job in committed.items() if n % 2)
            with pytest.raises(UnknownJob) as raised:
                backup.delivered(rolled_back.values())
            assert raised.value.count == len(rolled_back)
            time.sleep(2)
            left = numbers(tmp_path)
            assert all(left[n] == 1 for n in committed if n % 2 == 0), "deleted early"
            backup.delivered(committed.values())
            wait_for(lambda: not numbers(tmp_path), "delivered, and not deleted")
        assert read_status(CoreSettings.from_environment(environment).spool_place).events == 0
    assert kills > 3
    counts = f"{TRANSACTIONS} transactions, {len(committed)} of them committed, {kills} kills, {terminated} backends ended"
    sys.stdout.write(f"{counts}, {seconds:.0f} s\n")
