"""Uploads in parts that can't go on: another one is begun where that helps, and the old one does not stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from buckets import FAST_RETRY, events, file_environment

from jobs_backup import Backup, DestinationPaused
from jobs_backup.errors import ConfigurationError, IntegrityError, JobsBackupError, NotSupported, Throttled, Unavailable
from jobs_backup.file_provider import FileProvider
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import Body, Part, Upload

_write_part = FileProvider.write_part
IN_PARTS = {"JOBS_BACKUP_MULTIPART_THRESHOLD": "64KiB", "JOBS_BACKUP_PART_SIZE": "256KiB", "JOBS_BACKUP_RETRY_ATTEMPTS": "2"}


def uploads(directory: Path) -> list[str]:
    work = directory / "bucket" / ".jobs-backup"
    return [path.name for path in work.iterdir() if path.is_dir()] if work.exists() else []


def record(env: dict[str, str]) -> None:
    """An object of 600 KB, sent or not."""
    with Backup.from_env(env) as backup:
        backup.record({"n": os.urandom(300_000).hex()}, source_id="web")
        with pytest.raises(JobsBackupError):
            backup.flush(timeout=120)


def send(env: dict[str, str]) -> bool:
    """All that waits, and what is to be aborted."""
    with Backup.from_env(env) as backup:
        assert backup.archiver is not None
        drained = backup.archiver.drain(120)
        return drained and aborted(backup)


def aborted(backup: Backup) -> bool:
    deadline = time.monotonic() + 120
    while backup.spool.uploads.waiting() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not backup.spool.uploads.waiting()


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
        with pytest.raises(DestinationPaused):
            backup.flush(timeout=2)
    assert failed == [1, 1]
    assert send(env)
    assert (len(events(tmp_path)), len(seen)) == (1, 1)
