"""Work without the names that a Mac lacks: they are removed from the commands, which keep every promise testable on Linux."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from buckets import events, file_environment
from commands import ndjson, run, start
from places import TESTS
from projects import PROJECTS
from serving import serve

from jobs_backup.spool.sqlite import disk

MACOS: Final = TESTS / "macos"
SOURCES: Final = sorted(file for path in PROJECTS for file in (path / "src").rglob("*.py"))


def environment(directory: Path) -> dict[str, str]:
    return {**file_environment(directory), "PYTHONPATH": str(MACOS)}


def test_the_names_are_taken_away() -> None:
    code = (
        "import os, time\n"
        "assert not hasattr(os, 'posix_fallocate') and not hasattr(time, 'CLOCK_BOOTTIME')\n"
        "assert not os.path.exists('/proc/self/stat')\n"
        "try:\n    open('/proc/self/stat')\nexcept FileNotFoundError:\n    print('none')\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(MACOS)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True).stdout == "none\n"
    )


def test_all_commands_work(tmp_path: Path) -> None:
    env = environment(tmp_path)
    assert run("check", env=env)[0] == 0
    assert run("run", ndjson(tmp_path / "in", 1000), "--source-id", "web", env=env)[0] == 0
    assert run("status", env=env)[0] == 0
    code, out, stderr = run("replay", "--payload-only", "--output", tmp_path / "back", env=env)
    assert (code, out) == (0, ""), stderr
    assert (tmp_path / "back").read_bytes() == (tmp_path / "in").read_bytes()
    assert (tmp_path / "spool/ballast").stat().st_size == disk.Ballast.SIZE


def test_what_is_not_an_event_is_kept(tmp_path: Path) -> None:
    assert run("run", "--source-id", "web", env=environment(tmp_path), stdin='{"n":0}\nnot one\n')[0] == 3
    assert len(list(events(tmp_path))) == 1


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    env = environment(tmp_path) | {"JOBS_BACKUP_UPLOAD_FREQUENCY": "1h"}
    with start("run", "--source-id", "web", "--emit-ids", env=env, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('{"n":0}\n')
        process.stdin.flush()
        assert process.stdout.readline(), "it is recorded"
        process.kill()
    assert run("archive", "--once", env=env)[0] == 0
    assert [event["payload"] for event in events(tmp_path)] == [{"n": 0}]


def test_the_sidecar_works(tmp_path: Path) -> None:
    with serve(environment(tmp_path), JOBS_BACKUP_SERVER_MAX_CONNECTIONS="60000") as sidecar:
        assert sidecar.post("/v1/events?source_id=web", json.dumps({"n": 0}).encode()).status == 200
        assert sidecar.end()[0] == 0
    assert [event["payload"] for event in events(tmp_path)] == [{"n": 0}]


def test_a_file_that_takes_up_space_is_written_where_it_cannot_be_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "file").open("wb") as file:
        disk._allocate(file.fileno(), (3 << 20) + 5)
    found = (tmp_path / "file").stat()
    assert found.st_size == (3 << 20) + 5
    assert found.st_blocks * 512 >= found.st_size, "a hole takes up nothing"


# Durability


def calls(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_only_one_module_syncs() -> None:
    """On macOS fsync(2) may leave the bytes in the drive's cache, so that everything has to go through F_FULLFSYNC."""
    weak = {"os.fsync", "os.fdatasync", "os.sync"}
    assert {path.name for path in SOURCES if calls(path) & weak} == {"fsync.py"}
