"""Flipped bits, zeroed blocks and swapped files: a clear error in bounded time, and no silent loss."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from buckets import objects
from profiles import ALL
from wrecks import Process, Wreck, command, sample

from jobs_backup.spool.sqlite.schema import SCHEMA

FILES: Final = ["catalog", "catalog-wal", "left", "open", "open-wal", "other", "other-wal", "lock", "other lock"]
BLOCK: Final = 4096


class Change(NamedTuple):
    """A change of a file's bytes. `seed` chooses the place: in the first bytes of small files, anywhere in others."""

    file: str
    how: str
    seed: int
    is_checkpointed: bool = False

    def make(self, wreck: Wreck) -> None:
        path = wreck.path(self.file)
        data = bytearray(path.read_bytes())
        if not data:
            return
        rng = random.Random(self.seed)
        if self.how == "flip":
            data[self._place(rng, len(data))] ^= 1 << rng.randrange(8)
        elif self.how == "overwrite":
            start = self._place(rng, len(data))
            data[start : start + 8] = rng.randbytes(min(8, len(data) - start))
        elif self.how == "zero":
            start = rng.randrange(0, len(data), BLOCK)
            data[start : start + BLOCK] = bytes(min(BLOCK, len(data) - start))
        elif self.how == "schema":  # SQLite quotes the schema in its messages, and it is then not valid text
            begin = data.find(b"CREATE TABLE")
            data[begin + rng.randrange(min(1500, len(data) - begin))] ^= rng.choice([0x80, 1, 0x20])
        elif self.how == "cut":
            del data[self._place(rng, len(data)) :]
        elif self.how == "swap":
            other = wreck.path(rng.choice([one for one in FILES if one != self.file]))
            data, before = bytearray(other.read_bytes()), data
            other.write_bytes(before)
        path.write_bytes(data)

    def _place(self, rng: random.Random, size: int) -> int:
        # Headers matter most: of the file, of its first pages, of the log and its first frame.
        return rng.randrange(min(size, 200)) if self.seed % 3 == 0 else rng.randrange(size)


CHANGES: Final = [
    Change(file, how, seed, is_checkpointed)
    for file in FILES
    for how, times in (("flip", 24), ("overwrite", 8), ("zero", 12), ("cut", 4), ("swap", 2))
    for seed in range(times)
    for is_checkpointed in ((False, True) if not file.endswith(("-wal", "lock")) else (False,))
]


def checkpoint(wreck: Wreck) -> None:
    """As after an orderly shutdown, or with a large log: the files contain everything, and the logs nothing."""
    for path in wreck.spool.rglob("*.db"):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def prove(wreck: Wreck) -> None:
    """After any change: exit 0 only with everything in the bucket, nothing twice; missing events are reported."""
    for _ in range(2):
        outcome = wreck.archive()
    command("status", env=wreck.env)
    if outcome.is_refusal:
        assert "catalog.db" in outcome.stderr
        aside = wreck.directory / "aside"
        aside.mkdir()
        for path in wreck.spool.glob("catalog.db*"):
            path.rename(aside / path.name)  # as the error says
        outcome = wreck.archive()
        assert not outcome.is_refusal, outcome
    if wreck.missing():
        reported = wreck.reported()
        assert "quarantine" in reported or "blobs" in reported, reported


SCHEMAS: Final = [
    Change(file, "schema", seed, is_checkpointed=True) for file in ("catalog", "left", "open", "other") for seed in range(60)
]
TRIED: Final = [*sample(CHANGES, 24, seed=4), *sample(SCHEMAS, 12, seed=5)]


@pytest.mark.parametrize("change", TRIED, ids=lambda change: "-".join(map(str, change)))
@pytest.mark.sample(16)
def test_changed_bytes_are_never_missed_in_silence(wreck: Wreck, change: Change) -> None:
    if change.is_checkpointed:
        checkpoint(wreck)
    change.make(wreck)
    prove(wreck)


# Rows


VALUES: Final = [None, -1, 0, 1, 7, 1 << 62, -(1 << 62), 1e300, -1e300, "", "?", "raw", "\x00", b"", b"\xff\x00"]


def columns() -> list[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
        return [
            (table, row[1])
            for table in tables
            if not table.startswith("sqlite_")
            for row in connection.execute(f"PRAGMA table_info({table})")
        ]


def put(path: Path, table: str, column: str, value: object, where: str = "1") -> bool:
    """Put a value into rows as a disk would, despite constraints. False if there is no row, or it cannot hold the value."""

    def with_schema(change: Callable[[str], str]) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema=ON")
            (sql,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name=? AND type='table'", (table,)).fetchone()
            connection.execute("UPDATE sqlite_schema SET sql=? WHERE name=? AND type='table'", (change(sql), table))
            sqls.append(sql)

    sqls: list[str] = []
    with_schema(lambda sql: sql.replace(" STRICT", "").replace("NOT NULL", "").replace(", WITHOUT ROWID", " WITHOUT ROWID"))
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA ignore_check_constraints=ON")
            try:
                return connection.execute(f"UPDATE {table} SET {column}=? WHERE {where}", (value,)).rowcount > 0
            except (sqlite3.IntegrityError, sqlite3.OperationalError):
                return False
    finally:
        with_schema(lambda _: sqls[0])


ROWS: Final = [(table, column, value) for table, column in columns() for value in VALUES]


def one_row(table: str) -> str:
    return "id=(SELECT max(id) FROM batches WHERE state='open')" if table == "batches" else "1"


@pytest.mark.parametrize(("table", "column", "value"), sample(ROWS, 16, seed=2))
def test_a_value_of_the_catalog_stops_nothing_in_silence(wreck: Wreck, table: str, column: str, value: object) -> None:
    put(wreck.path("catalog"), table, column, value, one_row(table))
    prove(wreck)


SEALED: Final = [(column, value) for table, column in columns() if table == "batches" for value in VALUES]


@pytest.mark.parametrize(("column", "value"), sample(SEALED, 10, seed=3))
def test_a_value_of_a_sealed_batch_stops_nothing_in_silence(wreck: Wreck, column: str, value: object) -> None:
    put(wreck.path("catalog"), "batches", column, value, "id=(SELECT min(id) FROM batches WHERE state='sealed')")
    if column == "state" and value in ("stored", "deleted", "set aside"):
        return
    prove(wreck)


CHUNKS: Final = [
    (file, column, value)
    for file in ("left", "open", "other")
    for column in ("job", "events", "raw_bytes", "first_at", "last_at", "member", "crc32c", "data")
    for value in VALUES
] + [(file, column, value) for file in ("open", "other") for column in ("id", "crc32c", "header") for value in VALUES]


@pytest.mark.parametrize(("file", "column", "value"), sample(CHUNKS, 12, seed=5))
def test_a_value_of_a_blob_file_is_found_by_its_checksum(wreck: Wreck, file: str, column: str, value: object) -> None:
    table = "batches" if column in ("id", "header") else "chunks"
    key = "id" if table == "batches" else "job"
    if put(wreck.path(file), table, column, value, f"{key}=(SELECT max({key}) FROM {table})"):
        prove(wreck)


@pytest.mark.parametrize(("table", "column", "value"), sample(ROWS, 6, seed=6))
def test_a_value_that_changes_under_a_living_process(wreck: Wreck, table: str, column: str, value: object) -> None:
    alive = Process(wreck.env)
    names = [f"alive{number}" for number in range(4)]
    alive.record("web", names[:2])
    put(wreck.path("catalog"), table, column, value, one_row(table))
    wreck.acknowledged += names[:2]
    try:
        for step in (lambda: alive.record("web", names[2:3]), lambda: alive.ask("seal"), lambda: alive.record("new", names[3:])):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - from its Backup; it has to be one of ours
                assert str(error).startswith(("Spool", "BackupClosed")), error

        alive.kill()
        prove(wreck)
    finally:
        del wreck.acknowledged[-2:]


# Deliveries


@pytest.mark.parametrize("column", ["delivered", "settled", "jobs", "events"])
@pytest.mark.parametrize("value", [-1, 0, 1, 5, 1 << 40])
@pytest.mark.parametrize("delete_after", ["delivered", "settled"])
@pytest.mark.sample(16)
def test_a_count_that_has_changed_deletes_no_object_early(wreck: Wreck, column: str, value: int, delete_after: str) -> None:
    env = {**wreck.env, "JOBS_BACKUP_DELETE_AFTER": delete_after}
    command("archive", "--once", env=env)
    before = objects(wreck.directory).keys()
    assert before
    with closing(sqlite3.connect(wreck.path("catalog"))) as connection:
        connection.execute(f"UPDATE batches SET {column}=? WHERE state='stored'", (value,))
        connection.commit()
    for _ in range(2):
        command("archive", "--once", env=env)
    assert objects(wreck.directory).keys() == before
    assert ALL or not wreck.missing()
