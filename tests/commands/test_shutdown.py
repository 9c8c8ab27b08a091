"""Shutdown: within its grace period, at once at a second signal; and leftovers of a changed setting."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from buckets import FAST_RETRY, events, file_environment
from commands import run, start

from jobs_backup import Backup


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a store that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def stalled(directory: Path, endpoint: str) -> dict[str, str]:
    """An environment whose spool has one event for a store that does not answer."""
    environment = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "S3",
        "JOBS_BACKUP_BUCKET": "bucket",
        "AWS_ENDPOINT_URL_S3": endpoint,
        "JOBS_BACKUP_SPOOL_DIR": str(directory / "spool"),
        "JOBS_BACKUP_SHUTDOWN_GRACE": "1s",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        **FAST_RETRY,
    }
    with Backup.from_env(environment, archive=False) as backup:
        backup.record({"n": 1}, source_id="web")
    return environment


def status(environment: dict[str, str]) -> Any:
    return json.loads(run("status", "--json", env=environment)[1])


def archive(environment: dict[str, str]) -> subprocess.Popen[str]:
    """An archiver with a request in progress."""
    process = start("archive", env=environment)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if any(stream["sending"] for one in status(environment)["stores"] for stream in one["streams"]):
            return process
    process.kill()
    raise AssertionError("it never began to send")


def test_on_sigterm_it_ends_within_its_grace_and_reports_what_is_left(tmp_path: Path, silent: str) -> None:
    environment = stalled(tmp_path, silent)
    with archive(environment) as process:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
        assert time.monotonic() - began >= 1
    assert process.returncode == 1, stderr
    assert "1 event waits in" in stderr
    assert "nothing is lost" in stderr


def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(tmp_path: Path, silent: str) -> None:
    environment = stalled(tmp_path, silent) | {"JOBS_BACKUP_SHUTDOWN_GRACE": "60s"}
    with archive(environment) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None, "it uses its grace"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGTERM
    assert status(environment)["events"] == 1


def test_what_waits_for_the_old_bucket_is_sent_there_and_nowhere_else(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for directory in (old, new):
        directory.mkdir()
    of_old = file_environment(old, JOBS_BACKUP_SPOOL_DIR=str(tmp_path / "spool"))
    of_new = file_environment(new, JOBS_BACKUP_SPOOL_DIR=str(tmp_path / "spool"))
    with Backup.from_env(of_old) as backup:
        backup.record({"n": 0}, source_id="web")
    (old / "bucket").rename(old / "away")
    with Backup.from_env(of_old) as backup:
        backup.record({"n": 1}, source_id="web")
    with Backup.from_env(of_new) as backup:
        backup.record({"n": 2}, source_id="web")
        backup.flush(120)
    assert [event["payload"]["n"] for event in events(new)] == [2]
    _, shown, _ = run("status", env=of_new)
    assert f"{(old / 'bucket').as_uri()}\n  paused, next try in" in shown
    (old / "away").rename(old / "bucket")
    file = tmp_path / "old.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in of_old.items()))
    assert run("archive", "--once", "--env-file", file, env=of_new)[0] == 0
    assert sorted(event["payload"]["n"] for event in events(old)) == [0, 1]
    assert [event["payload"]["n"] for event in events(new)] == [2]
