"""Errors, `check` and `status` name the exhausted resource: inodes, space, open files, memory."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import FAST_RETRY, events, file_environment
from commands import COMMAND, run
from mounts import small_file_system

from jobs_backup.errors import SpoolError
from jobs_backup.inputs.rejects import Rejects
from jobs_backup.util.exhaustion import NO_INODES, explain, has_inodes


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 files."""
    with small_file_system(tmp_path / "few", "size=512m,nr_inodes=64") as directory:
        yield directory


def use_up(directory: Path) -> list[Path]:
    """Create files until that fails."""
    made: list[Path] = []
    while True:
        try:
            (directory / f"used-{len(made)}").touch()
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return made
        made.append(directory / f"used-{len(made)}")


def test_a_spool_without_inodes(tmp_path: Path, few_inodes: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_SPOOL_DIR=str(few_inodes / "spool"), **FAST_RETRY)
    used = use_up(few_inodes)
    for _ in range(2):  # one that is missing, and one that exists
        code, _, err = run("run", "--source-id", "web", env=env, stdin="{}\n")
        assert (code != 0, "no inodes are left on its file system: remove files there" in err) == (True, True), err
        code, out, _ = run("check", env=env)
        assert (code, "no inodes are left on its file system" in out) == (2, True)
        for path in used:
            path.unlink()
        assert run("run", "--source-id", "web", env=env, stdin="{}\n")[0] == 0
        assert run("status", "--exit-code", env=env)[0] == 0
        used = use_up(few_inodes)
    code, out, err = run("status", "--exit-code", env=env)
    assert code == 2
    assert "no inodes are left on its file system" in out + err
    assert len(events(tmp_path)) == 2


def test_a_bucket_without_inodes(tmp_path: Path, few_inodes: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_BUCKET=str(few_inodes), **FAST_RETRY)
    use_up(few_inodes)
    code, _, err = run("run", "--source-id", "web", env=env, stdin="{}\n")
    assert (code, "no inodes are left on its file system" in err) == (1, True), err
    code, out, _ = run("status", "--exit-code", env=env)
    assert (code, "no inodes are left on its file system" in out) == (1, True)
    assert "no inodes are left on its file system" in run("check", env=env)[1]


@pytest.mark.parametrize("limit", [8, 12, 16, 20, 24])
@pytest.mark.parametrize("command", ["run in --source-id web", "archive --once", "status", "check", "replay --output out"])
def test_too_few_open_files(tmp_path: Path, command: str, limit: int) -> None:
    """Either it works, or it names the exhausted resource."""
    env = {**os.environ, **file_environment(tmp_path, **FAST_RETRY)}
    (tmp_path / "in").write_text("{}\n")
    assert run("run", "--source-id", "web", env=env, stdin="{}\n")[0] == 0
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$0" {command}', *COMMAND],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = done.stdout + done.stderr
    if done.returncode:
        assert "too many open files" in said.lower(), said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "quota"),
        (errno.EMFILE, "this process has too many open files"),
        (errno.ENFILE, "this machine has too many open files"),
        (errno.ENOMEM, "out of memory"),
        (errno.EROFS, "read-only"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_errors_of_the_system(tmp_path: Path, number: int, why: str) -> None:
    found = explain(OSError(number, os.strerror(number)), tmp_path / "not" / "there", "look")
    assert why in found.why
    assert (found.hint == "look") is (number == errno.EIO)


def test_inodes_are_looked_for_where_a_file_is_to_be(few_inodes: Path) -> None:
    assert has_inodes(few_inodes / "not" / "there")
    use_up(few_inodes)
    assert not has_inodes(few_inodes / "not" / "there")
    assert explain(OSError(errno.ENOSPC, "full"), few_inodes / "not", "look") is NO_INODES


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_what_the_file_of_rejects_meets_is_an_error_of_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    rejects = Rejects(tmp_path / "rejects.ndjson", None)

    def refused(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)
        with pytest.raises(SpoolError, match=r"rejects\.ndjson: "):
            rejects.add(b"line\n")
