"""Races between processes on a spool: each step of one is run exactly between two steps of another."""

from __future__ import annotations

import errno
import gzip
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from buckets import file_environment, objects
from commands import ndjson, numbers, run
from spools import APP, WEB, archiver_of, claim, claimed, content, die, open_spool, position, record, rows, tampering

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import SpoolCorrupt, SpoolError, Unavailable
from jobs_backup.spool.ids import local
from jobs_backup.spool.interface import InputPosition, Recording
from jobs_backup.spool.sqlite import writer
from jobs_backup.spool.sqlite.blobs import BlobFiles
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.schema import VERSION
from jobs_backup.spool.sqlite.spool import SqliteSpool


def rot(of: SqliteSpool, job: int) -> None:
    with tampering(of._writer._blobs._database) as connection:
        connection.execute("UPDATE chunks SET data=zeroblob(length(data)) WHERE job=?", (local(job),))


# Inputs


@pytest.fixture
def clock(tmp_path: Path) -> Mapping[str, str]:
    """Variables for a command whose clock is off by CLOCK seconds."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(
        "import os, time\n"
        "off, real, real_ns = int(os.environ['CLOCK']), time.time, time.time_ns\n"
        "time.time = lambda: real() + off\n"
        "time.time_ns = lambda: real_ns() + off * 10**9\n"
    )
    return {"PYTHONPATH": str(tmp_path / "clock")}


@pytest.mark.parametrize("again", [False, True])
def test_an_input_is_read_once_though_the_clock_is_set_back(tmp_path: Path, clock: Mapping[str, str], again: bool) -> None:
    env = file_environment(tmp_path, **clock)
    file = tmp_path / "in.ndjson"
    for first, seconds in ((0, 3600), (3, 0), (6, 60)):
        ndjson(file, first + 3)
        options = ["--again"] if again and first == 3 else []
        code, _, err = run("run", file, "--source-id", "web", *options, env=env | {"CLOCK": str(seconds)})
        assert code == 0, err
    assert numbers(tmp_path) == sorted([*range(9), *([0, 1, 2] if again else [])])


def test_a_file_that_cannot_be_read_now_is_not_taken_for_one_without_a_position(tmp_path: Path) -> None:
    dead = open_spool(tmp_path)
    dead.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("in", 1, b"100"))])
    die(dead)
    of = open_spool(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # open files stay open, and no more can be opened
    try:
        with pytest.raises(SpoolError):
            of.position("in")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert position(of, "in") == b"100"
    (tmp_path / "blobs" / f"{dead.session}.db").unlink()
    assert position(of, "in") is None
    of.close()


def test_who_removes_left_locks_never_keeps_that_of_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, of = open_spool(tmp_path), open_spool(tmp_path)
    (tmp_path / "locks" / "input-file.lock").touch()  # left by a killed process
    sessions, granted = of._catalog.sessions, list[bool]()

    def asked() -> list[str]:
        with other.reading("file") as mine:
            granted.append(mine)
        return sessions()

    monkeypatch.setattr(of._catalog, "sessions", asked)
    of._remove_left_locks()
    assert granted
    assert all(granted)
    other.close()
    monkeypatch.undo()
    of.close()


# Batches


def test_a_batch_that_is_another_ones_is_not_given_back(tmp_path: Path) -> None:
    first, second = open_spool(tmp_path), open_spool(tmp_path)
    record(first, [b"{}\n"])
    first.seal()
    batch = claim(first)
    first.release(batch, Unavailable("no"), delay=0)
    assert claim(second).id == batch.id
    first.release(batch, Unavailable("no"), delay=0)
    assert first.claim() is None
    second.stored(batch, deletable_after=100)
    first.release(batch, Unavailable("no"), delay=0)
    assert rows(first._catalog._database, "SELECT state, failures, retry_at > 1 FROM batches") == [("stored", 0, 1)]
    first.close()
    second.close()


def test_what_fails_of_the_cleaning_up_makes_no_sent_batch_a_failed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: BlobFiles, name: str) -> None:
        raise SpoolError("it can't be removed", hint="check the disk")

    env = file_environment(tmp_path)
    dead = open_spool(tmp_path / "spool", location=(tmp_path / "bucket").as_uri())
    record(dead, [b"{}\n"])
    die(dead)
    monkeypatch.setattr(BlobFiles, "remove", fails)
    with Backup.from_env(env) as backup:
        deadline = time.monotonic() + 120
        while not (archiver_of(backup).sent.objects or archiver_of(backup).failure) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (archiver_of(backup).sent.objects, archiver_of(backup).failure) == (1, None)
    assert len(objects(tmp_path)) == 1
    monkeypatch.undo()
    with Backup.from_env(env) as backup:
        backup.flush(120)
    assert list((tmp_path / "spool" / "blobs").iterdir()) == []


def test_two_processes_retire_the_same_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = open_spool(tmp_path)
    jobs = [record(dead, [b"{}\n"], stream=stream)[0][0] for stream in (WEB, APP)]
    dead.seal()
    with tampering(dead._writer._blobs._database) as connection:
        connection.execute("DELETE FROM chunks WHERE job=?", (local(jobs[0]),))
    die(dead)
    slow, quick = open_spool(tmp_path), open_spool(tmp_path)
    slow.recover()
    one = claimed(slow)
    slow.quarantine_batch(one, SpoolCorrupt("its bytes are not there"))
    batch = claim(slow)
    move, moves = BlobFiles.move, list[str]()

    def interleaved(self: BlobFiles, name: str, directory: Path) -> None:
        moves.append(name)
        if len(moves) == 1:
            quick._clean_up(name)
        move(self, name, directory)

    monkeypatch.setattr(BlobFiles, "move", interleaved)
    slow.stored(batch)
    assert moves == [dead.session] * 2
    assert {damage.file for damage in slow.quarantined()} == {f"quarantine/{dead.session}.db"}
    slow.close()
    quick.close()


@pytest.mark.parametrize("killed", [True, False])
def test_a_report_of_damage_outlives_the_move_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    class Killed(BaseException):
        pass

    dead = open_spool(tmp_path)
    (job, _) = record(dead, [b"{}\n"])[0]
    dead.seal()
    with tampering(dead._writer._blobs._database) as connection:
        connection.execute("DELETE FROM chunks WHERE job=?", (local(job),))
    die(dead)
    of, other = open_spool(tmp_path), open_spool(tmp_path)
    of.recover()
    one = claimed(of)
    noted, seen = of._catalog.moved, set[str]()

    def between(file: str, to: str) -> None:
        if killed:
            raise Killed
        seen.update(damage.file for damage in other.quarantined())
        noted(file, to)

    monkeypatch.setattr(of._catalog, "moved", between)
    if killed:
        with pytest.raises(Killed):
            of.quarantine_batch(one, SpoolCorrupt("its bytes are not there"))
        die(of)
    else:
        of.quarantine_batch(one, SpoolCorrupt("its bytes are not there"))
        assert seen == {f"quarantine/{dead.session}.db"}
        of.close()
    assert {damage.file for damage in other.quarantined()} == {f"quarantine/{dead.session}.db"}
    assert rows(other._catalog._database, "SELECT DISTINCT file FROM damages") == [(f"quarantine/{dead.session}.db",)]
    (tmp_path / "quarantine" / f"{dead.session}.db").unlink()
    assert other.quarantined() == []
    other.close()


def test_a_full_disk_for_what_is_set_aside_ends_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_UPLOAD_CONCURRENCY="1")
    dead = open_spool(tmp_path / "spool", location=(tmp_path / "bucket").as_uri())
    (job, _) = record(dead, [b"{}\n"])[0]
    record(dead, [b'{"n":2}\n'], stream=APP)
    dead.seal()
    rot(dead, job)
    dead.close()
    full, real = threading.Event(), os.open
    full.set()

    def limited(path: Any, *arguments: Any, **options: Any) -> int:
        if "quarantine/" in str(path) and full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", limited)
    with Backup.from_env(env) as backup:
        deadline = time.monotonic() + 120
        while not objects(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [gzip.decompress(data) for data in objects(tmp_path).values()] == [b'{"n":2}\n'], "the other one goes on"
        assert session_of(backup).health_error == ""
        full.clear()
    with Backup.from_env(env) as backup:
        while not session_of(backup).spool.quarantined() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [damage.events for damage in session_of(backup).spool.quarantined()] == [1]


def test_what_cannot_be_set_aside_keeps_no_other_from_being_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lines in ([b"1\n"], [b"2\n"]):
        dead = open_spool(tmp_path)
        (job, _) = record(dead, lines)[0]
        if lines == [b"1\n"]:
            rot(dead, job)
        die(dead)
    real = os.open

    def full(path: Any, *arguments: Any, **options: Any) -> int:
        if "quarantine/" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", full)
    of = open_spool(tmp_path)
    assert of.recover() == 1
    assert len(of.unreadable) == 1
    assert gzip.decompress(content(of, claim(of))) == b"2\n"
    monkeypatch.undo()
    assert of.recover() == 1
    assert (of.unreadable, len(of.quarantined())) == ([], 1)
    of.close()


# Files and versions


def test_an_interrupt_right_behind_the_change_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_IDLE_FILE_BYTES", 1)
    of = open_spool(tmp_path)
    record(of, [b"1\n"])
    change = of._catalog.change_file

    def interrupted(session: str, blobs: str, positions: Any) -> None:
        change(session, blobs, positions)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(of._catalog, "change_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            of.seal()
    monkeypatch.setattr(writer, "_IDLE_FILE_BYTES", 1 << 30)
    of.stored(claim(of))  # by another thread, and the file left over is deleted
    assert {path.name for path in (tmp_path / "blobs").glob("*.db")} == {f"{of.session}-1.db"}
    record(of, [b"2\n"])
    of.seal()
    assert gzip.decompress(content(of, claim(of))) == b"2\n"
    of.close()


def test_an_interrupt_before_the_change_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_IDLE_FILE_BYTES", 1)
    of = open_spool(tmp_path)
    record(of, [b"1\n"])

    def interrupted(session: str, blobs: str, positions: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(of._catalog, "change_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            of.seal()
    assert {path.name for path in (tmp_path / "blobs").glob("*.db")} == {f"{of.session}.db"}
    record(of, [b"2\n"])
    of.seal()
    assert [gzip.decompress(content(of, claim(of))) for _ in range(2)] == [b"1\n", b"2\n"]
    of.close()


def test_two_processes_start_at_once_on_a_spool_of_an_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_spool(tmp_path).close()
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute(f"PRAGMA user_version={VERSION - 1}")
    connection.close()
    is_older, quick = Catalog.is_older, list[SqliteSpool]()

    def looked(path: Path) -> bool:
        found = is_older(path)
        if not quick:
            monkeypatch.undo()
            quick.append(open_spool(tmp_path))
        return found

    monkeypatch.setattr(Catalog, "is_older", staticmethod(looked))
    slow = open_spool(tmp_path)
    for spool in (slow, *quick):
        record(spool, [b"{}\n"])
        spool.close()
    after = open_spool(tmp_path)
    assert sum(waiting.events for waiting in after.waiting()) == 2
    after.close()
