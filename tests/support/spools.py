"""Spools without a Backup."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from jobs_backup import Backup
from jobs_backup.archive.archiver import Archiver
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import JobsBackupError
from jobs_backup.format.compression import GZIP, Compression
from jobs_backup.model import Batch, Kind, Stream
from jobs_backup.spool.interface import BatchLimits, Claim, QuotaLimits, Recording, Spool
from jobs_backup.spool.sqlite.database import Database
from jobs_backup.spool.sqlite.spool import SqliteSpool

WEB = Stream(Kind.RAW, "w", "web")
APP = Stream(Kind.RAW, "w", "app")
LIMITS = BatchLimits(events=1000, bytes=1 << 30, age=300)


ANY_ROOM = QuotaLimits()


def open_spool(
    directory: Path,
    *,
    location: str = "s3://bucket",
    limits: BatchLimits = LIMITS,
    room: QuotaLimits = ANY_ROOM,
    compression: Compression = GZIP,
) -> SqliteSpool:
    return SqliteSpool(directory, location=location, prefix="p", instance_id="1", limits=limits, room=room, compression=compression)


def archiver_of(backup: Backup) -> Archiver:
    """The archiver of a Backup that has one."""
    archiver = session_of(backup).archiver
    assert archiver is not None
    return archiver


def assert_waits(backup: Backup) -> JobsBackupError:
    """Check that nothing counts as stored, and that the error has a hint."""
    archiver = archiver_of(backup)
    assert archiver.drain(120)
    error = archiver.blocked_by
    assert error is not None
    assert archiver.sent.objects == 0
    (waiting,) = session_of(backup).spool.waiting()
    assert waiting.events == 1
    assert waiting.hint == error.hint != ""
    return error


def engine(spool: Spool) -> SqliteSpool:
    """The engine of a spool, for tests that inspect it."""
    assert isinstance(spool, SqliteSpool)
    return spool


def record(spool: Spool, lines: Sequence[bytes], stream: Stream = WEB, at: int = 1_000_000) -> list[tuple[int, int]]:
    recording = Recording(stream, list(lines), first_at=at, last_at=at)
    spool.append([recording])
    return recording.jobs


def claimed(spool: Spool) -> Claim:
    found = spool.claim()
    assert found is not None
    return found


def claim(spool: Spool) -> Batch:
    return claimed(spool).batch


def position(spool: Spool, source: str) -> bytes | None:
    found = spool.position(source)
    return None if found is None else found.position


def content(spool: Spool, batch: Batch) -> bytes:
    with spool.open_body(batch).open() as reader:
        return reader.read()


def die(spool: SqliteSpool) -> None:
    """Leave a spool as a killed process does: nothing is closed, but its lock is free."""
    spool._writer.close_file()
    spool._catalog.close()
    spool._writer.session.lock.drop()


@contextmanager
def tampering(database: Database) -> Generator[sqlite3.Connection]:
    """A transaction of another program that does not know the spool."""
    with closing(sqlite3.connect(database.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")


def rows(database: Database, statement: str, parameters: Sequence[object] = ()) -> list[Any]:
    """The rows of a query."""
    with closing(sqlite3.connect(database.path)) as connection:
        return connection.execute(statement, parameters).fetchall()
