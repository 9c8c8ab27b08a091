"""Sessions that others end while their process is alive, because its lock file was removed; with forks, kills and failures."""

from __future__ import annotations

import errno
import gzip
import itertools
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from spools import APP, WEB, claim, content, die, open_spool, record

from jobs_backup.errors import SpoolError, SpoolFull
from jobs_backup.spool.interface import BatchLimits, QuotaLimits
from jobs_backup.spool.sqlite import blobs as blob_files
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.database import FilesLost
from jobs_backup.spool.sqlite.locks import ProcessLock
from jobs_backup.spool.sqlite.spool import SqliteSpool


def remove_lock(spool: SqliteSpool) -> None:
    (spool.directory / "locks" / f"{spool.session}.lock").unlink()


def fork() -> None:
    """Run a child that ends at once. All connections of this process are closed before."""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def in_child(work: Callable[[], object]) -> None:
    """Run this in a process that is killed at the end."""
    if (pid := os.fork()) == 0:
        work()
        os._exit(0)
    os.waitpid(pid, 0)


def send_all(spool: SqliteSpool) -> list[bytes]:
    """The lines of all batches, which count as uploaded after that."""
    found: list[bytes] = []
    while (claimed := spool.claim()) is not None:
        found += gzip.decompress(content(spool, claimed.batch)).splitlines(keepends=True)
        spool.stored(claimed.batch)
    return found


def test_a_child_keeps_no_lock_alive_that_its_parent_checked_or_took(tmp_path: Path) -> None:
    """It inherits what other threads have open at that moment; a lock lasts until its last descriptor is closed."""
    is_over = threading.Event()

    def check() -> None:
        while not is_over.is_set():
            ProcessLock.is_held(tmp_path, "checked")

    def take() -> None:
        while not is_over.is_set():
            if (lock := ProcessLock.try_to_take(tmp_path, "taken")) is not None:
                lock.release(remove=True)

    (tmp_path / "checked.lock").touch()
    threads = [threading.Thread(target=work) for work in (check, check, take, take)]
    children: list[int] = []
    try:
        for thread in threads:
            thread.start()
        for _ in range(100):
            if (pid := os.fork()) == 0:
                signal.pause()
            children.append(pid)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        held = [name for name in ("checked", "taken") if ProcessLock.is_held(tmp_path, name)]
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert held == []


def test_who_records_nothing_notices_that_its_session_was_ended(tmp_path: Path) -> None:
    idle = open_spool(tmp_path)
    remove_lock(idle)
    other = open_spool(tmp_path)
    assert other.recover() == 1
    record(other, [b"{}\n"])
    other.seal()
    for take in (idle.claim, lambda: idle.claim_deletes(10)):
        with pytest.raises(FilesLost, match="another process ended the session"):
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


CALLS = {
    "sync_file": (blob_files, "sync_file"),
    "sync_directory": (blob_files, "sync_directory"),
    "touch": (Path, "touch"),
    "unlink": (Path, "unlink"),
    "rename": (Path, "rename"),
    "open": (Path, "open"),
}


def remove_blobs(spool: SqliteSpool) -> None:
    for path in (spool.directory / "blobs").glob(f"{spool.session}*"):
        path.unlink()


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_while_a_removed_file_is_restored_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """One call fails once; its data is still there for the next attempt."""
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    remove_blobs(spool)
    owner, name = CALLS[call]
    original, calls = getattr(owner, name), itertools.count(1)

    def fail_once(*args: object, **arguments: object) -> object:
        if next(calls) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(*args, **arguments)

    monkeypatch.setattr(owner, name, fail_once)
    recorded = [b"1\n"]
    for line in (b"2\n", b"3\n", b"4\n"):
        try:
            record(spool, [line])
        except SpoolError:
            continue
        recorded.append(line)
    monkeypatch.undo()
    record(spool, [b"5\n"])
    spool.recover()
    spool.seal()
    assert set(recorded) | {b"5\n"} <= set(send_all(spool))
    assert spool.quarantined() == []


@pytest.mark.parametrize("keeps_catalog", [True, False])
def test_killed_before_the_copy_of_a_removed_file_is_in_its_place(tmp_path: Path, keeps_catalog: bool) -> None:
    def work() -> None:
        spool = open_spool(tmp_path)
        record(spool, [b"1\n"])
        remove_blobs(spool)
        blob_files.BlobFiles.finish_restoring = lambda *_: os._exit(0)  # type: ignore[method-assign]
        record(spool, [b"2\n"])

    in_child(work)
    assert list((tmp_path / "blobs").glob("*.restored"))
    if not keeps_catalog:
        for path in tmp_path.glob("catalog.db*"):
            path.unlink()
    alive = open_spool(tmp_path)
    assert alive.recover() == (1 if keeps_catalog else 0)
    assert send_all(alive) == [b"1\n", b"2\n"], "the second was committed, although nobody was told"
    assert (alive.quarantined(), alive.unreadable, list((tmp_path / "blobs").glob("*.restor*"))) == ([], [], [])


def test_a_file_that_is_removed_before_a_fork_is_restored_after_it(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    remove_blobs(spool)
    fork()
    record(spool, [b"2\n"])
    spool.seal()
    assert sorted(send_all(spool)) == [b"1\n", b"2\n"]
    assert spool.quarantined() == []


def test_a_log_that_is_removed_before_a_fork_costs_nobody_anything(tmp_path: Path) -> None:
    """The file keeps its name: a child that inherited the connection works beside it anyway."""
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    (tmp_path / "blobs" / f"{spool.session}.db-wal").unlink()

    def work() -> None:
        own = open_spool(tmp_path)
        record(own, [b"of the child\n"])
        own.close()

    in_child(work)
    record(spool, [b"2\n"])
    spool.seal()
    assert sorted(send_all(spool)) == [b"1\n", b"2\n", b"of the child\n"]
    assert spool.quarantined() == []


def test_a_sealed_batch_whose_file_is_removed_is_named(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"1\n", b"2\n"])
    spool.close()
    other = open_spool(tmp_path)
    for path in (tmp_path / "blobs").glob(f"{spool.session}*"):
        path.unlink()
    with pytest.raises(SpoolError, match=r"\.db is missing, and with it 2 events") as caught:
        other.open_body(claim(other))
    assert "copy of the spool" in caught.value.hint


def test_a_lock_that_another_process_keeps_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs_backup.spool.sqlite.database._BUSY_SECONDS", 0.1)
    spool = open_spool(tmp_path)
    with closing(sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SpoolError, match="another process has kept it locked") as caught:
            record(spool, [b"1\n"])
    assert "hangs or is stopped" in caught.value.hint
    record(spool, [b"2\n"])


@pytest.mark.parametrize("name", ["blobs", "locks", "quarantine", "rejects"])
def test_a_directory_of_the_spool_is_removed_while_it_is_used(tmp_path: Path, name: str) -> None:
    """It is not ready until the next call has recreated the directory."""
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    shutil.rmtree(tmp_path / name)
    if name in ("blobs", "locks"):
        with pytest.raises(FilesLost):
            spool.check_room()
    record(spool, [b"2\n"])
    spool.check_room()
    spool.seal()
    assert sorted(send_all(spool)) == [b"1\n", b"2\n"]


def test_a_directory_of_the_spool_is_replaced_by_a_file(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    shutil.rmtree(tmp_path / "blobs")
    (tmp_path / "blobs").touch()
    with pytest.raises(SpoolError):
        record(spool, [b"2\n"])
    with pytest.raises(SpoolError):
        spool.check_room()
    (tmp_path / "blobs").unlink()
    record(spool, [b"3\n"])
    spool.seal()
    assert {b"1\n", b"3\n"} <= set(send_all(spool))


def test_what_a_renewed_session_has_open_counts_for_others(tmp_path: Path) -> None:
    limits = BatchLimits(events=1 << 20, bytes=1 << 30, age=300)
    room = QuotaLimits(max_bytes=8 << 20)
    first = open_spool(tmp_path, limits=limits, room=room)
    record(first, [b"1\n"])
    remove_lock(first)
    line = os.urandom(100_000).hex().encode() + b"\n"

    def fill(spool: SqliteSpool, times: int) -> None:
        for _ in range(times):
            record(spool, [line])

    fill(first, 30)
    second = open_spool(tmp_path, limits=limits, room=room)
    with pytest.raises(SpoolFull):  # alone it would have room for this many
        fill(second, 60)


def test_files_whose_numbers_are_taken_keep_their_sources_and_their_objects(tmp_path: Path) -> None:
    """The catalog was lost, and a file could not be read until others had used some of its numbers."""
    dead = open_spool(tmp_path / "old")
    for number in range(3):
        record(dead, [b"web %d\n" % number], WEB)
        record(dead, [b"app %d\n" % number], APP)
    die(dead)
    left = list((tmp_path / "old" / "blobs").iterdir())
    objects: list[dict[str, set[bytes]]] = []
    for taken in (0, 1):
        spool = open_spool(tmp_path / f"new-{taken}")
        jobs = [record(spool, [b"new\n"], WEB)[0][0]] if taken else []
        for path in left:
            shutil.copy(path, spool.directory / "blobs")
        spool.recover()
        spool.seal()
        found: dict[str, set[bytes]] = {}
        while (claimed := spool.claim()) is not None:
            lines = set(gzip.decompress(content(spool, claimed.batch)).splitlines(keepends=True))
            found[claimed.batch.key] = lines
            spool.stored(claimed.batch)
            if lines != {b"new\n"}:
                assert {line.split()[0].decode() for line in lines} == {claimed.batch.stream.source_id}
        objects.append({key: lines for key, lines in found.items() if lines != {b"new\n"}})
        assert set().union(*objects[-1].values()) == {b"%s %d\n" % (name, n) for name in (b"web", b"app") for n in range(3)}
        assert all(spool.stream_of(job) == WEB for job in jobs)
        spool.close()
    assert objects[0] == objects[1], "else what is in the bucket already would come there again"


@pytest.mark.parametrize("leaves", [False, True])
def test_of_a_process_that_has_ended_nothing_is_missed_without_the_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    if leaves:
        monkeypatch.setattr("jobs_backup.spool.sqlite.writer._IDLE_FILE_BYTES", 0)
    spool = open_spool(tmp_path)
    for line in (b"1\n", b"2\n"):
        record(spool, [line])
        spool.seal()
    spool.close()
    assert len(list((tmp_path / "blobs").glob("*.db"))) == (2 if leaves else 1)
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    alive = open_spool(tmp_path)
    alive.recover()
    assert (sorted(send_all(alive)), alive.quarantined()) == ([b"1\n", b"2\n"], [])
