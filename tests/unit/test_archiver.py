"""Uploads continue whatever a provider does: no worker dies, no batch is held up, and none is uploaded to two places."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from buckets import FAST_RETRY, events, file_environment, objects
from spools import archiver_of, engine, tampering

from jobs_backup import Backup, StorePaused
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import PermissionDenied, SpoolCorrupt, SpoolError, StorageError, Throttled, Unavailable, Unreachable
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, Body, Outcome, Upload, WriteReceipt
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.store.file_provider import FileProvider

Write = Callable[[FileProvider, str, Body, int, bool], WriteReceipt]


@pytest.fixture
def replace_write(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Write, str], WriteReceipt | None]], None]:
    """Run a function before FILE's `write`: it gets the original and the key, and returns None to call the original."""
    original = FileProvider.write

    def replace(function: Callable[[Write, str], WriteReceipt | None]) -> None:
        def write(self: FileProvider, key: str, body: Body, checksum: int, if_absent: bool) -> WriteReceipt:
            def really(*_: object) -> WriteReceipt:
                return original(self, key, body, checksum, if_absent)

            return function(really, key) or really()

        monkeypatch.setattr(FileProvider, "write", hookimpl(write))

    return replace


def wait_for(condition: Callable[[], object], timeout: float = 120) -> bool:
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


@pytest.mark.parametrize(
    "error",
    [Throttled("slow down", retry_after=99_999_999_999.0), StorageError("no text: \ud800"), ValueError("unforeseen \ud800")],
)
def test_no_error_of_a_provider_ends_a_worker(tmp_path: Path, replace_write: Callable[..., None], error: Exception) -> None:
    failed = threading.Event()

    def write(_: Write, __: str) -> None:
        if not failed.is_set():
            failed.set()
            raise error

    replace_write(write)
    with Backup.from_env(file_environment(tmp_path, **{**FAST_RETRY, "JOBS_BACKUP_RETRY_ATTEMPTS": "1"})) as backup:
        backup.record({"n": 1}, source_id="web")
        with pytest.raises(StorePaused):
            backup.flush(timeout=120)
        assert all(thread.is_alive() for thread in archiver_of(backup)._threads)
        assert archiver_of(backup)._paused_until - time.monotonic() <= 3600
    with Backup.from_env(file_environment(tmp_path)) as backup:
        assert archiver_of(backup).drain(120)
    assert len(events(tmp_path)) == 1


def test_a_batch_that_is_refused_keeps_no_other_back(
    tmp_path: Path, replace_write: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy for one prefix only, and a batch that was sealed with another one."""
    monkeypatch.setattr("jobs_backup.archive.archiver._FIRST_PAUSE", 1.0)

    def write(_: Write, key: str) -> None:
        if key.startswith("wrong/"):
            raise PermissionDenied("no", action="s3:PutObject", resource="right/*")

    replace_write(write)
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_PREFIX="wrong"), archive=False) as recorder:
        recorder.record({"n": 1}, source_id="web")
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_PREFIX="right")) as backup:
        assert wait_for(lambda: archiver_of(backup) and archiver_of(backup).paused)
        backup.record({"n": 2}, source_id="web")
        session_of(backup).spool.seal()
        assert wait_for(lambda: objects(tmp_path), timeout=120)
    assert [event["payload"]["n"] for event in events(tmp_path)] == [2]


def test_what_may_have_arrived_is_never_sent_to_another_bucket(tmp_path: Path, replace_write: Callable[..., None]) -> None:
    """The first attempt arrives but its answer is lost; the last one gets a 404, which does not prove that nothing arrived."""
    attempts = iter([Unavailable("the answer is lost"), Unreachable("nobody there"), Unreachable("nobody there")])

    def write(really: Write, _: str) -> None:
        error = next(attempts)
        if isinstance(error, Unreachable):
            raise error
        really()  # type: ignore[call-arg]
        raise error

    replace_write(write)
    environment = file_environment(tmp_path, **FAST_RETRY)
    with Backup.from_env(environment) as backup:
        backup.record({"n": 1}, source_id="web")
        with pytest.raises(StorePaused):
            backup.flush(timeout=120)
    other = tmp_path / "other"
    other.mkdir()
    with Backup.from_env({**environment, "JOBS_BACKUP_BUCKET": str(other)}) as backup:
        assert archiver_of(backup).drain(120)
    assert len(events(tmp_path)) == 1
    assert not list(other.iterdir())


HANGS = """
import json, sys, threading
from jobs_backup import Backup
from jobs_backup.store.file_provider import FileProvider
from jobs_backup.hookspecs import hookimpl
FileProvider.write_part = hookimpl(lambda self, upload: threading.Event().wait())
backup = Backup.from_env(json.loads(sys.argv[1]))
backup.record({"text": "x" * 100}, source_id="web")
backup.close(grace=0.5)
"""


def test_a_request_that_hangs_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    environment = file_environment(tmp_path, JOBS_BACKUP_MULTIPART_THRESHOLD="1", JOBS_BACKUP_PART_SIZE="10")
    subprocess.run([sys.executable, "-c", HANGS, json.dumps(environment)], check=True, timeout=120)
    with Backup.from_env(environment) as backup:
        assert archiver_of(backup).drain(120)
    assert len(events(tmp_path)) == 1


def test_an_abort_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = threading.Event(), threading.Event()

    def hang(self: FileProvider, upload: Upload) -> AbortReceipt:
        entered.set()
        release.wait(120)
        return AbortReceipt(Outcome.ABORTED)

    monkeypatch.setattr(FileProvider, "abort_multipart", hookimpl(hang))
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_UPLOAD_FREQUENCY="200ms")) as backup:
        backup.record({"n": 1}, source_id="web")
        assert wait_for(lambda: objects(tmp_path))
        batch = session_of(backup).spool.last_batch()
        with tampering(engine(session_of(backup).spool)._catalog._database) as connection:
            connection.execute(
                "INSERT INTO uploads (batch, store, upload, part_size, abandoned) VALUES (?, ?, ?, 1, 1)",
                (batch, engine(session_of(backup).spool).store, b'{"key":"k","id":"i"}'),
            )
        assert entered.wait(120)
        backup.record({"n": 2}, source_id="web")
        assert wait_for(lambda: len(objects(tmp_path)) == 2)
        release.set()
    assert len(events(tmp_path)) == 2


def test_an_upload_that_was_begun_is_ended_in_parts_whatever_is_set_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At some stores the pending parts would block a write in one request."""
    original = FileProvider.complete_multipart

    def refuse(self: FileProvider) -> WriteReceipt:
        raise PermissionDenied("no", action="complete", resource="r")

    monkeypatch.setattr(FileProvider, "complete_multipart", hookimpl(refuse))
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_MULTIPART_THRESHOLD="1")) as backup:
        backup.record({"n": 1}, source_id="web")
        with pytest.raises(StorePaused):
            backup.flush(timeout=120)
    monkeypatch.setattr(FileProvider, "complete_multipart", original)
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_MULTIPART_THRESHOLD="1GB")) as backup:
        assert archiver_of(backup).drain(120)
        assert session_of(backup).store.attempts == {("complete_multipart", "ok"): 1}
    assert len(events(tmp_path)) == 1


@pytest.mark.parametrize("what", ["uploads", "deletes"])
def test_what_another_process_does_meanwhile_is_drained(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers of a server stop at once, and each waits for the uploads and deletions of all."""
    environment = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="1")
    with Backup.from_env(environment) as waiting:
        archiver = archiver_of(waiting)
        assert archiver.drain(120)
        if what == "uploads":
            monkeypatch.setattr(archiver, "_claim", lambda: None)  # the other one is always faster
        else:
            monkeypatch.setattr(session_of(waiting).spool, "claim_deletes", lambda _: [])
        job = waiting.record({"n": 1}, source_id="web")
        if what == "deletes":
            assert archiver.drain(120)
            waiting.delivered(job)
        looks: list[bool] = []
        has = "has_claimable" if what == "uploads" else "has_deletes"
        look = getattr(session_of(waiting).spool, has)

        def looked() -> bool:
            looks.append(look())
            return looks[-1]

        monkeypatch.setattr(session_of(waiting).spool, has, looked)
        drained: list[bool] = []
        drain = threading.Thread(target=lambda: drained.append(archiver.drain()), daemon=True)
        drain.start()
        assert wait_for(lambda: True in looks, 60)
        with Backup.from_env(environment):
            drain.join(120)
        assert drained == [True]


@pytest.mark.parametrize("name", ["claim", "stored"])
@pytest.mark.parametrize("error", [SpoolError("busy"), SpoolCorrupt("EIO, as SQLite reports it"), MemoryError()])
def test_an_error_behind_a_commit_duplicates_nothing_and_holds_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    """The first call fails before its transaction, the second one after it."""
    original, calls = getattr(Catalog, name), list[int]()

    def spoiled(self: Catalog, *arguments: Any, **more: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] == 0:
            raise error
        result = original(self, *arguments, **more)
        if calls[-1] == 1:
            raise error
        return result

    monkeypatch.setattr(Catalog, name, spoiled)
    with Backup.from_env(file_environment(tmp_path) | FAST_RETRY | {"JOBS_BACKUP_UPLOAD_CONCURRENCY": "1"}) as backup:
        for number in range(3):
            backup.record({"messageId": str(number)}, source_id=f"source{number}")
        backup.flush(120)
        assert not session_of(backup).spool.quarantined()
    assert len(calls) > 3
    assert sorted(event["payload"]["messageId"] for event in events(tmp_path)) == ["0", "1", "2"]
    assert len(objects(tmp_path)) == 3
