"""Inputs of `run`: files that grow, are replaced or broken; streams; long lines; names of any bytes; rejects; a full disk."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from buckets import events, file_environment, objects
from commands import COMMAND, ndjson, numbers, run, start, summary, wait_until_recorded
from memory import peak_memory

from jobs_backup.spool.engines import read_status
from jobs_backup.spool.sqlite.disk import Ballast

pytestmark = pytest.mark.slow  # one or more processes for each test

SMALL_LINES = [
    sys.executable,
    "-c",
    "import jobs_backup.inputs.ndjson as ndjson, jobs_backup.cli as cli; ndjson.MAX_LINE = 2 << 20; cli.main()",
]
"""The command, with lines of at most 2 MiB instead of 256."""


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def rejects(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "spool/rejects").iterdir()}


# Which input was read before


def test_standard_input_from_a_file_is_a_stream(tmp_path: Path) -> None:
    """Whatever was redirected before: each run reads all of it, from the caller's offset."""
    env = file_environment(tmp_path)
    for first in (0, 10, 10):
        with (
            ndjson(tmp_path / "in", 10, first=first).open() as stdin,
            start("run", "--source-id", "web", env=env, stdin=stdin) as process,
        ):
            _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert "another file than at the last run" not in stderr
    with (tmp_path / "in").open() as stdin:
        os.lseek(stdin.fileno(), len('{"messageId":"10","n":10}\n') * 9, os.SEEK_SET)
        with start("run", "--source-id", "web", env=env, stdin=stdin) as process:
            process.communicate(timeout=120)
    assert numbers(tmp_path) == sorted([*range(10), *range(10, 20), *range(10, 20), 19])


def test_two_processes_read_their_own_standard_inputs(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    with start("run", "--source-id", "web", env=env, stdin=subprocess.PIPE) as first:
        assert first.stdin is not None
        first.stdin.write('{"n":1}\n')
        first.stdin.flush()
        while not list((tmp_path / "spool" / "blobs").glob("*.db")):
            time.sleep(0.02)
        assert summary("run", "--source-id", "web", env=env, stdin='{"n":2}\n')["events"] == 1
        first.communicate(timeout=120)
    assert first.returncode == 0
    assert numbers(tmp_path) == [1, 2]


def test_a_gz_file_to_which_a_member_was_added_goes_on(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = tmp_path / "in.gz"
    file.write_bytes(gzip.compress(ndjson(tmp_path / "content", 3000).read_bytes()))
    summary("run", file, "--source-id", "web", env=env)
    with file.open("ab") as more:
        more.write(gzip.compress(ndjson(tmp_path / "content", 10, first=3000).read_bytes()))
    assert summary("run", file, "--source-id", "web", env=env)["events"] == 10
    assert numbers(tmp_path) == list(range(3010))


def test_the_same_file_twice_on_one_command_line_is_read_once(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = ndjson(tmp_path / "in", 10)
    (tmp_path / "link").symlink_to(file)
    assert summary("run", file, file, tmp_path / "link", "--source-id", "web", env=env)["events"] == 10


def test_a_file_that_a_living_process_has_read_is_not_read_again(tmp_path: Path) -> None:
    """It has recorded the whole file, and is busy with another input."""
    env = file_environment(tmp_path)
    file = ndjson(tmp_path / "in", 10)
    with start("run", file, "-", "--source-id", "web", env=env, stdin=subprocess.PIPE) as first:
        assert first.stdin is not None
        first.stdin.write('{"n":10}\n')
        first.stdin.flush()
        while json.loads(run("status", "--json", env=env)[1] or '{"events": 0}')["events"] < 11:
            time.sleep(0.02)
        assert summary("run", file, "--source-id", "web", env=env)["events"] == 0
        first.communicate(timeout=120)
    assert first.returncode == 0
    assert numbers(tmp_path) == list(range(11))


def test_many_files_need_few_descriptors(tmp_path: Path) -> None:
    files = [ndjson(tmp_path / f"in-{number}", 1, first=number) for number in range(300)]
    command = " ".join(map(str, [*COMMAND, "run", *files, "--source-id", "web"]))
    environment = {"PATH": os.environ["PATH"], **file_environment(tmp_path)}
    result = subprocess.run(
        ["bash", "-c", f"ulimit -n 64; {command}"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert numbers(tmp_path) == list(range(300))


# Files that grow


def test_a_line_that_is_being_written_is_left_for_the_next_run(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = tmp_path / "in"
    file.write_text('{"n":1}\n{"n":')
    for _ in range(2):
        code, stdout, stderr = run("run", file, "--source-id", "web", "--json", env=env)
        assert (code, json.loads(stdout)["rejected"]) == (0, 0)
        assert stderr == f"jobs-backup: {file}:2: an unfinished line of 5 bytes is left for the next run [Unfinished]\n"
        assert json.loads(stdout)["unfinished"] == [{"input": str(file), "line": 2, "bytes": 5}]
    append(file, '2}\n{"n":3}\n  ')
    code, _, stderr = run("run", file, "--source-id", "web", env=env)
    assert (code, "unfinished" in stderr) == (0, False)
    append(file, '{"n":4}\n')
    assert summary("run", file, "--source-id", "web", env=env)["events"] == 1
    assert numbers(tmp_path) == [1, 2, 3, 4]
    assert rejects(tmp_path) == {}


@pytest.mark.parametrize(
    ("growth", "recorded", "put_aside", "reported"),
    [
        ("\n", [], b"", ""),
        ('\n{"n":3}\n', [3], b"", ""),
        ('\r\n{"n":3}\nbad\n', [3], b"bad\n", ":4: not a JSON object"),
        (' // x\n{"n":3}\n', [3], b" // x\n", ":2: not a complete line"),
        ('{"n":9}\n{"n":3}\n', [3], b'{"n":9}\n', ":2: not a complete line"),
        ('{"n":9}', [], b"", ":2: an unfinished line"),
    ],
)
def test_a_file_without_a_last_newline_grows(
    tmp_path: Path, growth: str, recorded: list[int], put_aside: bytes, reported: str
) -> None:
    """Its last event is recorded once; what follows starts with the next line."""
    env = file_environment(tmp_path)
    file = tmp_path / "in"
    file.write_text('{"n":1}\n{"n":2}')
    assert summary("run", file, "--source-id", "web", env=env)["events"] == 2
    assert summary("run", file, "--source-id", "web", env=env)["events"] == 0
    append(file, growth)
    code, _, stderr = run("run", file, "--source-id", "web", env=env)
    assert code == (3 if put_aside else 0)
    assert f"{file}{reported}" in stderr if reported else str(file) not in stderr
    append(file, '\n{"n":4}\n' if not growth.endswith("\n") else '{"n":4}\n')
    summary("run", file, "--source-id", "web", env=env)
    assert numbers(tmp_path) == [1, 2, *recorded, 4]
    assert b"".join(rejects(tmp_path).values()) == (put_aside or (b"" if growth.endswith("\n") else growth.encode() + b"\n"))


def test_what_ends_a_stream_is_a_line(tmp_path: Path) -> None:
    found = summary("run", "--source-id", "web", env=file_environment(tmp_path), stdin='{"n":1}\n{"n":2}\n{"cut')
    assert (found["events"], found["rejected"]) == (2, 1)


# Rejects


def test_rejects_of_earlier_runs_are_kept(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = tmp_path / "in"
    file.write_text("bad 1\n")
    summary("run", file, "--source-id", "web", env=env)
    summary("run", file, "--source-id", "web", "--again", env=env)
    file.write_text('{"n":1}\n')
    summary("run", file, "--source-id", "web", env=env)
    append(file, "bad 2\n")
    summary("run", file, "--source-id", "web", env=env)
    (first,) = [name for name, content in rejects(tmp_path).items() if content == b"bad 1\nbad 1\n"]
    (second,) = [name for name, content in rejects(tmp_path).items() if content == b"bad 2\n"]
    (tmp_path / "spool/rejects" / second).rename(tmp_path / "moved")
    append(file, "bad 3\n")
    summary("run", file, "--source-id", "web", env=env)
    assert rejects(tmp_path) == {first: b"bad 1\nbad 1\n", second: b"bad 3\n"}


def test_a_rejects_file_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file, other = tmp_path / "in", ndjson(tmp_path / "other", 1)
    file.write_text("bad 1\n")
    (path,) = summary("run", file, "--source-id", "web", env=env)["rejects"]
    Path(path).unlink()
    Path(path).mkdir()
    append(file, '{"n":7}\nbad 2\n')
    found = summary("run", file, other, "--source-id", "web", env=env)
    assert found["problems"] == [
        f"{path}: Is a directory: check the disk and the permissions of the spool's directory [SpoolError]"
    ]
    assert found["events"] == 0
    Path(path).rmdir()
    assert summary("run", file, other, "--source-id", "web", env=env)["events"] == 2
    assert numbers(tmp_path) == [0, 7]
    assert rejects(tmp_path) == {Path(path).name: b"bad 2\n"}


@pytest.mark.parametrize("command", ["run", "failed", "delivered"])
def test_no_line_counts_as_rejected_before_its_file_has_it(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = file_environment(tmp_path, JOBS_BACKUP_REJECTS_DIR=str(tmp_path / "file" / "rejects"))
    options = ("--source-id", "web") if command == "run" else ()
    code, _, stderr = run(command, *options, env=env, stdin="bad\n")
    assert (code, "Not a directory" in stderr) == (1, True), stderr
    assert "rejected, in" not in stderr
    assert "[Rejected]" not in stderr


# Names


def test_a_long_name_of_any_letters(tmp_path: Path) -> None:
    file = tmp_path / ("é" * 125)
    file.write_text('bad\n{"n":1}\n')
    (path,) = summary("run", file, "--source-id", "web", env=file_environment(tmp_path))["rejects"]
    assert len(Path(path).name.encode()) <= 200
    assert Path(path).read_bytes() == b"bad\n"


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = Path(os.fsdecode(bytes(tmp_path) + b"/in-\xff"))
    file.write_text('bad\n{"n":1}\n')
    code, stdout, stderr = run("run", file, "--source-id", "web", "--json", env=env)
    assert code == 3
    assert f"{tmp_path}/in-\\udcff:1: not a JSON object" in stderr
    (path,) = json.loads(stdout)["rejects"]
    assert Path(path).read_bytes() == b"bad\n"
    file.unlink()
    code, _, stderr = run("run", file, "--source-id", "web", "--json", env=env)
    assert code == 2
    assert "in-\\udcff: No such file" in stderr
    broken = file.with_suffix(".gz")
    broken.write_bytes(gzip.compress(b"{}")[:-1])
    (problem,) = summary("run", broken, "--source-id", "web", env=env)["problems"]
    assert "in-\\udcff.gz: Compressed file ended" in problem


@pytest.mark.parametrize("name", ["--source-id", "--workspace-id", "INSTANCE_ID", "JOBS_BACKUP_WORKSPACE_ID"])
def test_an_id_that_is_not_utf_8_is_refused(tmp_path: Path, name: str) -> None:
    env = file_environment(tmp_path)
    ids = {"--source-id": "web"} if name.startswith("--") else {"--source-id": "web", "--workspace-id": "w"}
    if name.startswith("--"):
        ids[name] = "\udcff"
    else:
        env[name] = "\udcff"
    options = [text for pair in ids.items() for text in pair]
    code, stdout, stderr = run("run", ndjson(tmp_path / "in", 1), *options, env=env)
    assert (code, stdout) == (2, "")
    assert re.fullmatch(rf"jobs-backup: {name} is not UTF-8: correct .*\n", stderr)


# Limits


def test_a_file_is_opened_when_its_turn_comes(tmp_path: Path) -> None:
    """There may be more files than a process can open. All are checked before anything is recorded."""
    env = file_environment(tmp_path)
    files = [ndjson(tmp_path / f"in-{number}", 1, first=number) for number in range(1, 4)]
    with start("run", "-", *files, "--source-id", "web", env=env, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write('{"n":0}\n')
        process.stdin.flush()
        wait_until_recorded(tmp_path, 1)
        descriptors = Path(f"/proc/{process.pid}/fd")
        open_files = {descriptor.readlink() for descriptor in descriptors.iterdir() if descriptor.is_symlink()}
        assert not open_files & {*files}
        files[2].unlink()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"{files[2]}: No such file" in stderr
    assert numbers(tmp_path) == [0, 1, 2]
    code, _, stderr = run("run", ndjson(tmp_path / "new", 1), files[2], "--source-id", "web", env=env)
    assert code == 2
    assert len(events(tmp_path)) == 3


def test_a_named_pipe_without_a_writer_can_be_interrupted(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    for name in ("pipe", "pipe.gz"):
        os.mkfifo(tmp_path / name)
        with start("run", tmp_path / name, "--source-id", "web", env=env) as process:
            locks = tmp_path / "spool" / "locks"
            while not locks.exists() or not list(locks.glob("input-*")):
                time.sleep(0.02)
            time.sleep(0.3)
            assert process.poll() is None
            process.terminate()
            process.communicate(timeout=120)
        assert process.returncode == 1


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_that_is_too_long_is_put_aside_and_the_rest_goes_on(tmp_path: Path, suffix: str) -> None:
    env = file_environment(tmp_path)
    long = b'{"text":"' + b"x" * 5_000_000 + b'"}'
    file = tmp_path / f"in{suffix}"
    content = b'{"n":1}\n' + long + b'\n{"n":2}\nbad\n{"n":3,"text":"' + b"y" * 1_900_000 + b'"}\n' + long
    file.write_bytes(gzip.compress(content, 1) if suffix else content)

    def run_small(**options: Any) -> tuple[dict[str, Any], str]:
        result = subprocess.run(
            [*SMALL_LINES, "run", str(file), "--source-id", "web", "--json"],
            env={"PATH": os.environ["PATH"], **env}, capture_output=True, text=True, check=False, timeout=120, **options,
        )  # fmt: skip
        found = json.loads(result.stdout)
        assert result.returncode == 3, result.stderr
        return found, result.stderr

    found, stderr = run_small()
    assert (found["events"], found["rejected"]) == (3, 3)
    assert f"{file}:2: longer than 2 MiB" in stderr
    assert f"{file}:4: not a JSON object" in stderr
    assert f"{file}:6: longer than 2 MiB" in stderr
    assert numbers(tmp_path) == [1, 2, 3]
    assert list(rejects(tmp_path).values()) == [long + b"\nbad\n" + long + b"\n"]
    found, _ = run_small()
    assert (found["events"], found["rejected"], found["rejected_before"]) == (0, 0, 3)


def test_memory_does_not_grow_with_a_line_that_has_no_end(tmp_path: Path) -> None:
    file = tmp_path / "zeros"
    with file.open("wb") as sparse:
        sparse.write(b"x")  # otherwise it would be a hole before a line
        sparse.truncate(400_000_000)
    environment = {"PATH": os.environ["PATH"], **file_environment(tmp_path)}
    assert peak_memory([*SMALL_LINES, "run", str(file), "--source-id", "web", "--allow-rejects"], environment) < 150_000
    (path,) = (tmp_path / "spool/rejects").iterdir()
    assert path.stat().st_size == 400_000_001
    path.unlink()


def test_a_hole_is_skipped_however_large_it_is(tmp_path: Path) -> None:
    """A program that keeps its offset in a truncated file leaves it; here it is larger than the longest line."""
    file = tmp_path / "in"
    environment = {"PATH": os.environ["PATH"], **file_environment(tmp_path)}

    def run_small() -> dict[str, Any]:
        command = [*SMALL_LINES, "run", str(file), "--source-id", "web", "--json"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    hole = 5_000_001
    with file.open("wb") as sparse:
        sparse.truncate(hole)
    assert [one["bytes"] for one in run_small()["unfinished"]] == [hole]
    append(file, '{"n":1,"id":"1234567890"}\n{"n":2}\n')
    assert run_small()["events"] == 2
    os.truncate(file, file.stat().st_size + hole)
    append(file, '{"n":3}\n{"n":4}')
    assert run_small()["events"] == 2
    assert run_small()["events"] == 0
    assert numbers(tmp_path) == [1, 2, 3, 4]


def test_a_file_that_fails_at_its_first_byte_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    other = ndjson(tmp_path / "other", 3)
    code, _, stderr = run("run", "/proc/self/mem", other, "--source-id", "web", env=file_environment(tmp_path))
    assert code == 1
    assert "/proc/self/mem: Input/output error" in stderr
    assert numbers(tmp_path) == [0, 1, 2]


def test_a_full_disk_ends_in_a_summary(tmp_path: Path) -> None:
    """Recorded lines are kept, other inputs are not started, and the same command resumes."""
    env = file_environment(tmp_path)
    file, other = tmp_path / "in", ndjson(tmp_path / "other", 1)
    file.write_text("".join(f'{{"n":{number},"noise":"{os.urandom(500).hex()}"}}\n' for number in range(1, 10_001)))
    limit = 2 << 20
    with start(
        "run", file, other, "--source-id", "web", "--json", env=env,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    ) as process:  # fmt: skip
        stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr
    assert process.returncode == 1
    found = json.loads(stdout)
    assert found["problems"]
    assert found["events"] < 10_000
    before = found["events"]
    assert summary("run", file, other, "--source-id", "web", env=env)["events"] == 10_001 - before
    assert numbers(tmp_path) == list(range(10_001))
    assert objects(tmp_path)


def wait_until_started(spool: Path) -> None:
    """Wait until a process has written all its startup files."""
    ballast = spool / "ballast"
    while (
        not ballast.exists() or ballast.stat().st_size < Ballast.SIZE or not any(one.sends for one in read_status(spool).processes)
    ):
        time.sleep(0.02)
    time.sleep(0.3)


@pytest.mark.parametrize("command", ["run", "archive"])
def test_a_disk_that_is_full_at_the_end_leaves_a_summary(tmp_path: Path, command: str) -> None:
    """Recorded events cannot be sealed; they are uploaded once there is room again. Where there were none, this is no failure."""
    env = file_environment(tmp_path)
    arguments = ["run", "--source-id", "web"] if command == "run" else ["archive"]
    with start(*arguments, "--json", env=env, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        if command == "run":
            process.stdin.write('{"n":1}\n')
            process.stdin.flush()
            wait_until_recorded(tmp_path, 1)
        wait_until_started(tmp_path / "spool")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, 1))
        if command == "archive":
            process.terminate()
        stdout, stderr = process.communicate(timeout=120)
    assert "Traceback" not in stderr
    assert process.returncode == (command == "run")
    assert ["disk" in problem for problem in json.loads(stdout)["problems"]][:1] == [True] * (command == "run")
    assert summary("archive", "--once", env=env)["stored_events"] == (command == "run")
    assert numbers(tmp_path) == [1] * (command == "run")
