"""Sessions that others end while their process is alive, since its lock file was removed; forked, killed and failing meanwhile."""

from __future__ import annotations

import gzip
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from spools import claim, content, die, open_spool, record

from jobs_backup.errors import SpoolError
from jobs_backup.spool import Spool
from jobs_backup.spool.catalog import Catalog
from jobs_backup.spool.database import FilesLost


def remove_lock(spool: Spool) -> None:
    (spool.directory / "locks" / f"{spool.session}.lock").unlink()


def fork() -> None:
    """A child that ends at once. All connections of this process are closed before."""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def in_child(work: Callable[[], object]) -> None:
    """What a process does that is killed at the end of it."""
    if (pid := os.fork()) == 0:
        work()
        os._exit(0)
    os.waitpid(pid, 0)


def send_all(spool: Spool) -> list[bytes]:
    """The lines of all batches, which count as stored after that."""
    found: list[bytes] = []
    while (claimed := spool.claim()) is not None:
        found += gzip.decompress(content(spool, claimed.batch)).splitlines(keepends=True)
        spool.stored(claimed.batch)
    return found


def test_who_records_nothing_notices_that_its_session_was_ended(tmp_path: Path) -> None:
    idle = open_spool(tmp_path)
    remove_lock(idle)
    other = open_spool(tmp_path)
    assert other.recover() == 1
    record(other, [b"{}\n"])
    other.seal()
    for take in (idle.claim, lambda: idle.claim_deletes(10)):
        with pytest.raises(FilesLost, match="was ended by another process"):
            take()
    idle.seal_due()
    claim(idle)
    die(idle)
    assert other.recover() == 1
    assert send_all(other) == [b"{}\n"], "what a killed process had claimed is free again"


def test_no_batch_is_opened_for_a_session_that_was_ended(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    blobs = spool._writer._blobs.name
    spool._catalog.end_session(spool.session, [])
    with pytest.raises(FilesLost):
        spool._catalog.open_batches([], spool._writer._placement, blobs=blobs, epoch=1)


@pytest.mark.parametrize("forks", [False, True])
@pytest.mark.parametrize("taken_over", [False, True])
def test_a_removed_lock_costs_nothing_and_reports_nothing(tmp_path: Path, forks: bool, taken_over: bool) -> None:
    spool, sent = open_spool(tmp_path), list[bytes]()
    record(spool, [b"1\n"])
    if forks:
        fork()
    remove_lock(spool)
    if taken_over and not forks:
        other = open_spool(tmp_path)
        assert other.recover() == 1
        sent += send_all(other)
        other.close()
    record(spool, [b"2\n"])
    spool.seal()
    assert sorted(sent + send_all(spool)) == [b"1\n", b"2\n"]
    assert spool.quarantined() == []


def test_who_has_forked_goes_on_where_its_file_was_taken_over_and_removed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    spool.seal()
    fork()
    remove_lock(spool)
    other = open_spool(tmp_path)
    assert other.recover() == 1
    assert send_all(other) == [b"1\n"]
    assert not list((tmp_path / "blobs").glob(f"{spool.session}*"))
    record(spool, [b"2\n"])
    spool.seal()
    assert send_all(spool) == [b"2\n"]
    assert spool.quarantined() == []


def test_who_has_forked_names_a_file_that_is_gone_and_goes_on(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    lost = spool.session
    fork()
    (tmp_path / "blobs" / f"{lost}.db").unlink()
    record(spool, [b"2\n"])
    spool.seal()
    assert send_all(spool) == [b"2\n"]
    assert {damage.file for damage in spool.quarantined()} == {f"quarantine/{lost}.missing"}


def test_a_session_that_cannot_be_renewed_is_renewed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    remove_lock(spool)

    def full(*_: object, **__: object) -> None:
        raise SpoolError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "begin_session", full)
        for _ in range(2):
            with pytest.raises(SpoolError, match="the disk is full"):
                record(spool, [b"not recorded\n"])
    record(spool, [b"2\n"])
    spool.seal()
    assert sorted(send_all(spool)) == [b"1\n", b"2\n"]


@pytest.mark.parametrize("number", [0, 1])
def test_killed_while_a_file_was_made(tmp_path: Path, number: int) -> None:
    dead = open_spool(tmp_path)
    if number:
        record(dead, [b"1\n"])
    session = dead.session
    die(dead)
    path = tmp_path / "blobs" / (f"{session}-{number}.db" if number else f"{session}.db")
    path.unlink(missing_ok=True)

    def make() -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA cache_size=1")
        connection.execute("CREATE TABLE before (data BLOB)")
        connection.execute("BEGIN")
        connection.execute("CREATE TABLE half (data BLOB)")
        connection.executemany("INSERT INTO half VALUES (zeroblob(5000))", [()] * 100)

    in_child(make)
    assert Path(f"{path}-journal").stat().st_size > 0
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True).execute("SELECT * FROM before")
    alive = open_spool(tmp_path)
    alive.recover()
    assert alive.unreadable == []
    assert send_all(alive) == [b"1\n"] * number


def test_a_log_that_a_reader_has_left_is_removed_and_one_with_something_in_it_is_not(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    blobs = tmp_path / "blobs"
    for name, log in (("reader", b""), ("writer", b"something")):
        (blobs / f"{name}.db-wal").write_bytes(log)
        (blobs / f"{name}.db-shm").write_bytes(b"\0" * 100)
    spool.begin_sending()
    left = {path.name for path in blobs.iterdir() if not path.name.startswith(spool.session)}
    assert left == {"writer.db-wal", "writer.db-shm"}
