"""Multipart uploads that cannot continue: a new one is started where that helps, and the old one is aborted."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from buckets import FAST_RETRY, events, file_environment
from spools import archiver_of

from jobs_backup import Backup, StorePaused
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import (
    ConfigurationError,
    IntegrityError,
    JobsBackupError,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
    StorageError,
    Throttled,
    Unavailable,
    Unreachable,
    UploadGone,
)
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, Body, Part, Upload, WriteReceipt
from jobs_backup.store.file_provider import FileProvider

_write_part = FileProvider.write_part
IN_PARTS = {"JOBS_BACKUP_MULTIPART_THRESHOLD": "64KiB", "JOBS_BACKUP_PART_SIZE": "256KiB", "JOBS_BACKUP_RETRY_ATTEMPTS": "2"}


def uploads(directory: Path) -> list[str]:
    work = directory / "bucket" / ".jobs-backup"
    return [path.name for path in work.iterdir() if path.is_dir()] if work.exists() else []


def record(env: dict[str, str]) -> None:
    """An object of 600 KB, uploaded or not."""
    with Backup.from_env(env) as backup:
        backup.record({"n": os.urandom(300_000).hex()}, source_id="web")
        with pytest.raises(JobsBackupError):
            backup.flush(timeout=120)


def send(env: dict[str, str]) -> bool:
    """Everything that waits, and the uploads to abort."""
    with Backup.from_env(env) as backup:
        drained = archiver_of(backup).drain(120)
        return drained and aborted(backup)


def aborted(backup: Backup) -> bool:
    deadline = time.monotonic() + 120
    while session_of(backup).spool.uploads.waiting() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not session_of(backup).spool.uploads.waiting()


@pytest.mark.parametrize(
    "error", [NotSupported("too large", hint="lower the size"), ConfigurationError("no such key", hint="change it")]
)
def test_what_an_upload_was_begun_with_can_be_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: JobsBackupError
) -> None:
    seen: set[str] = set()

    def write_part(self: FileProvider, upload: Upload, number: int, body: Body) -> Part:
        seen.add(upload.id)
        if body.size > 128 << 10:
            raise error
        return _write_part(self, upload, number, body)

    monkeypatch.setattr(FileProvider, "write_part", hookimpl(write_part))
    env = file_environment(tmp_path, **FAST_RETRY | IN_PARTS)
    record(env)
    assert events(tmp_path) == []
    assert send(env | {"JOBS_BACKUP_PART_SIZE": "128KiB"})
    assert len(events(tmp_path)) == 1
    assert len(seen) >= 2
    assert uploads(tmp_path) == []


@pytest.mark.parametrize("error", [Unavailable("no"), Throttled("slower")])
def test_what_only_takes_longer_goes_on_with_its_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: JobsBackupError
) -> None:
    seen: set[str] = set()
    fails = [True]

    def write_part(self: FileProvider, upload: Upload, number: int, body: Body) -> Part:
        seen.add(upload.id)
        if number == 2 and fails[0]:
            raise error
        return _write_part(self, upload, number, body)

    monkeypatch.setattr(FileProvider, "write_part", hookimpl(write_part))
    env = file_environment(tmp_path, **FAST_RETRY | IN_PARTS)
    record(env)
    fails[0] = False
    assert send(env)
    assert (len(events(tmp_path)), len(seen)) == (1, 1)


def test_where_the_last_part_completes_it_a_wrong_checksum_begins_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def write_part(self: FileProvider, upload: Upload, number: int, body: Body, last: bool) -> Part:
        if upload.id not in seen:
            seen.append(upload.id)
        if last and upload.id == seen[0]:
            raise IntegrityError("the store has other bytes")
        return _write_part(self, upload, number, body)

    monkeypatch.setattr(FileProvider, "write_part", hookimpl(write_part))
    monkeypatch.setattr(FileProvider, "sequential_parts", True, raising=False)
    env = file_environment(tmp_path, **FAST_RETRY | IN_PARTS)
    with Backup.from_env(env) as backup:
        backup.record({"n": os.urandom(300_000).hex()}, source_id="web")
        backup.flush(timeout=120)
        assert aborted(backup)
    assert (len(events(tmp_path)), len(seen), uploads(tmp_path)) == (1, 2, [])


def test_where_it_does_not_the_part_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    failed: list[int] = []

    def write_part(self: FileProvider, upload: Upload, number: int, body: Body) -> Part:
        seen.add(upload.id)
        if len(failed) < 2:
            failed.append(number)
            raise IntegrityError("the store has refused other bytes")
        return _write_part(self, upload, number, body)

    monkeypatch.setattr(FileProvider, "write_part", hookimpl(write_part))
    env = file_environment(tmp_path, **FAST_RETRY | IN_PARTS | {"JOBS_BACKUP_UPLOAD_CONCURRENCY": "1"})
    with Backup.from_env(env) as backup:
        backup.record({"n": os.urandom(300_000).hex()}, source_id="web")
        with pytest.raises(StorePaused):
            backup.flush(timeout=2)
    assert failed == [1, 1]
    assert send(env)
    assert (len(events(tmp_path)), len(seen)) == (1, 1)


def once(env: dict[str, str]) -> JobsBackupError | None:
    """Like `jobs-backup archive --once`: a new process each time, which tries all pending batches."""
    with Backup.from_env(env) as backup:
        assert archiver_of(backup).drain(20)
        return archiver_of(backup).failure


@pytest.mark.parametrize("hook", ["write_part", "complete_multipart"])
@pytest.mark.parametrize("error", [Unavailable("500"), StorageError("no success"), Throttled("slower"), ObjectNotFound("404")])
def test_an_upload_that_keeps_failing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str, error: JobsBackupError
) -> None:
    seen: list[str] = []
    original = getattr(FileProvider, hook)

    def of_the_first(upload: Upload, number: int = 2) -> None:
        if upload.id not in seen:
            seen.append(upload.id)
        if upload.id == seen[0] and number == 2:
            raise error

    def write_part(self: FileProvider, upload: Upload, number: int, body: Body) -> Part:
        of_the_first(upload, number)
        return _write_part(self, upload, number, body)

    def complete(
        self: FileProvider, upload: Upload, parts: Sequence[Part], size: int, checksum: int, if_absent: bool
    ) -> WriteReceipt:
        of_the_first(upload)
        receipt: WriteReceipt = original(self, upload, parts, size, checksum, if_absent)
        return receipt

    monkeypatch.setattr(FileProvider, hook, hookimpl(write_part if hook == "write_part" else complete))
    env = file_environment(tmp_path, **FAST_RETRY | IN_PARTS)
    record(env)
    assert (len(seen), events(tmp_path)) == (1, [])
    runs = 0
    while once(env) is not None:
        runs += 1
        assert runs <= 2, "it is tried for ever"
    assert (len(events(tmp_path)), len(seen)) == (1, 2)
    assert send(env)
    assert uploads(tmp_path) == []


@pytest.mark.parametrize("error", [Unavailable("503"), Unreachable("no route"), PermissionDenied("403", action="w", resource="b")])
def test_where_no_other_upload_can_be_begun_the_parts_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: JobsBackupError
) -> None:
    begun: list[str] = []
    sent: list[int] = []
    is_down = [False]
    create = FileProvider.create_multipart

    def create_multipart(self: FileProvider, key: str) -> Upload:
        if is_down[0]:
            raise error
        upload: Upload = create(self, key)
        begun.append(upload.id)
        return upload

    def write_part(self: FileProvider, upload: Upload, number: int, body: Body) -> Part:
        is_down[0] |= number == 2 and not sent.count(2)
        if is_down[0]:
            raise error
        sent.append(number)
        return _write_part(self, upload, number, body)

    monkeypatch.setattr(FileProvider, "create_multipart", hookimpl(create_multipart))
    monkeypatch.setattr(FileProvider, "write_part", hookimpl(write_part))
    env = file_environment(tmp_path, **FAST_RETRY | IN_PARTS | {"JOBS_BACKUP_UPLOAD_CONCURRENCY": "1"})
    record(env)
    for _ in range(4):
        assert once(env) is not None
    assert sent == [1]
    monkeypatch.setattr(FileProvider, "write_part", hookimpl(_write_part))
    is_down[0] = False
    assert send(env)
    assert (len(events(tmp_path)), len(begun), uploads(tmp_path)) == (1, 1, [])


def test_a_long_fault_costs_few_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    create = FileProvider.create_multipart
    rounds = [0]

    def create_multipart(self: FileProvider, key: str) -> Upload:
        begun.append(rounds[0])
        upload: Upload = create(self, key)
        return upload

    def complete(self: FileProvider, upload: Upload) -> WriteReceipt:
        raise Unavailable(f"500 for {upload.key} of {self.location}")

    original = FileProvider.complete_multipart
    monkeypatch.setattr(FileProvider, "create_multipart", hookimpl(create_multipart))
    monkeypatch.setattr(FileProvider, "complete_multipart", hookimpl(complete))
    env = file_environment(tmp_path, **FAST_RETRY | IN_PARTS | {"JOBS_BACKUP_RETRY_ATTEMPTS": "1"})
    record(env)
    for rounds[0] in range(2, 12):
        assert isinstance(once(env), Unavailable)
    assert begun[0] == 0
    assert len(begun) <= 6, "each is given up about twice as late as the one before it"
    monkeypatch.setattr(FileProvider, "complete_multipart", original)
    assert send(env)
    assert (len(events(tmp_path)), uploads(tmp_path)) == (1, [])


@pytest.mark.parametrize("found", [UploadGone("no such upload"), ObjectNotFound("no such key")])
def test_an_abort_that_finds_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: JobsBackupError) -> None:
    def abort(self: FileProvider, upload: Upload) -> AbortReceipt:
        assert upload.id
        assert self.location
        raise found

    def write_part(self: FileProvider, upload: Upload) -> Part:
        assert upload.id
        assert self.location
        raise NotSupported("no parts")

    monkeypatch.setattr(FileProvider, "abort_multipart", hookimpl(abort))
    with monkeypatch.context() as patch:
        patch.setattr(FileProvider, "write_part", hookimpl(write_part))
        env = file_environment(tmp_path, **FAST_RETRY | IN_PARTS)
        record(env)
    assert send(env)
    assert len(events(tmp_path)) == 1
