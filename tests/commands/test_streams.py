"""Standard output and error that are closed, full, or not read: the work is done, and only lost output is an error."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from buckets import events, file_environment
from commands import COMMAND, ndjson, run, start

CLOSED, FULL = "{}>&-", "{}>/dev/full"


def shell(env: dict[str, str], arguments: str, redirect: str, stdin: str = "") -> tuple[int, str]:
    """The exit code, and the output on the streams that are still open."""
    command = f'"$0" {arguments} {redirect}'
    done = subprocess.run(
        ["sh", "-c", command, *COMMAND],
        env={**os.environ, **env},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    assert "Exception ignored" not in said, said
    return done.returncode, said


@pytest.mark.parametrize("stdout", ["", CLOSED.format(1), FULL.format(1)])
@pytest.mark.parametrize("stderr", ["", CLOSED.format(2), FULL.format(2)])
def test_events_are_backed_up_whoever_listens(stdout: str, stderr: str, tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    lines = '{"n":1}\nno event\n{"n":2}\n'
    code, _ = shell(env, "run --source-id web -v", f"{stdout} {stderr}", lines)
    assert code == 3, "its summary goes to standard error, and is a diagnostic; a line was rejected"
    code, said = shell(env, "run --source-id web --json", f"{stdout} {stderr}", lines)
    assert code == (1 if stdout else 3), "its summary is output"
    assert ("cannot write to standard output" in said) is (stdout != "" and stderr == "")
    for options in ("archive --once", "delivered /dev/null", "failed /dev/null"):
        assert shell(env, options, f"{stdout} {stderr}")[0] == 0
    assert sorted(event["payload"]["n"] for event in events(tmp_path)) == [1, 1, 2, 2]


@pytest.mark.parametrize("stderr", ["", CLOSED.format(2), FULL.format(2)])
@pytest.mark.parametrize("command", ["status --json", "check", "policy", "replay --dry-run", "--help"])
@pytest.mark.sample(10)
def test_output_that_is_lost_is_an_error(command: str, stderr: str, tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    run("run", "--source-id", "web", env=env, stdin='{"n":1}\n')
    code, said = shell(env, command, stderr)
    assert (code, said != "") == (0, True)
    for stdout in (CLOSED, FULL):
        code, said = shell(env, command, f"{stdout.format(1)} {stderr}")
        assert code == 1
        assert said.startswith("jobs-backup: cannot write to standard output: ") is (stderr == "")
        assert len(said.splitlines()) == (1 if stderr == "" else 0)


def test_events_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    run("run", "--source-id", "web", env=env, stdin='{"n":1}\n')
    for stderr in ("", CLOSED.format(2), FULL.format(2)):
        assert shell(env, "replay", f"{FULL.format(1)} {stderr}")[0] == 1
        assert shell(env, "replay", f"{CLOSED.format(1)} {stderr}")[0] == 2
        assert shell(env, "run --source-id web --emit-ids", f"{CLOSED.format(1)} {stderr}", '{"n":2}\n')[0] == 2
        assert shell(env, "bogus", stderr)[0] == 2
    assert len(events(tmp_path)) == 1


PRINTS = [
    *("env FILE", "env", "providers", "providers FILE --json", "wrappers", "policy", "check", "check --json", "status"),
    *("status --json", "status --watch", "replay", "replay --dry-run", "replay --list --dry-run --json", "--help", "run --help"),
    *("archive --once --json", "delivered /dev/null --json", "failed /dev/null --json", "run /dev/null --source-id web --json"),
]


@pytest.mark.parametrize("command", PRINTS)
@pytest.mark.sample(14)
def test_a_reader_that_goes_away_has_what_it_wants(command: str, tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    run("run", "--source-id", "web", env=env, stdin='{"n":1}\n')
    # The reader has gone before anything is printed.
    code, said = shell(env, command, "| true", "")
    assert code == 0
    closed = f'{{ "$0" {command}; echo "code $?" >&2; }} | {{ exec <&-; sleep 0; }}'
    done = subprocess.run(["sh", "-c", closed, *COMMAND], env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert "code 0" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr + said
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("command", PRINTS)
@pytest.mark.sample(14)
def test_output_on_a_full_disk_is_an_error_of_every_command(command: str, tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    run("run", "--source-id", "web", env=env, stdin='{"n":1}\n')
    for redirect in (FULL.format(1), CLOSED.format(1)):
        code, said = shell(env, command, redirect)
        assert code == (2 if command == "replay" and redirect == CLOSED.format(1) else 1)
        assert len([line for line in said.splitlines() if line.startswith("jobs-backup: ")]) >= 1


def test_a_standard_error_that_nobody_reads_does_not_stop_the_work(tmp_path: Path) -> None:
    """Its pipe is full after 64 KiB: later output is dropped."""
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="1", JOBS_BACKUP_SPOOL_DURABILITY="process")
    file = ndjson(tmp_path / "in", 600)
    with start("run", file, "--source-id", "web", "-v", "--json", env=env) as process:
        assert process.stdout is not None
        summary = json.loads(process.stdout.read())
        process.wait(120)
        assert (process.returncode, summary["stored_events"], summary["complete"]) == (0, 600, True)
        assert process.stderr is not None
        said = process.stderr.read()
    assert 600 > said.count("INFO uploaded") > 0, "the pipe was full"


@pytest.mark.parametrize("stderr", [CLOSED.format(2), FULL.format(2)])
def test_serve_needs_nobody_who_listens(stderr: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, **file_environment(tmp_path), "JOBS_BACKUP_LOG_FORMAT": "json"}
    with subprocess.Popen(["sh", "-c", f'exec "$0" serve -v --port {port} {stderr}', *COMMAND], env=env) as process:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/events?source_id=web", b'{"n":1}', {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    assert answer.status == 200
                break
            except OSError:  # it does not listen yet
                assert time.monotonic() < deadline
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert [event["payload"] for event in events(tmp_path)] == [{"n": 1}]


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Otherwise a library's output would go into the spool."""
    program = (
        "import os, sys\n"
        "from jobs_backup.cli import streams\n"
        "streams.prepare()\n"
        "found = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "os.write(2, b'printed by a library')\n"
        "print('said', file=sys.stderr, flush=True)\n"
        "assert found > 2, found\n"
    )
    target = tmp_path / "file"
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" "$2" >&- 2>&-', Path(COMMAND[0]).with_name("python"), program, target], check=False
    )
    assert done.returncode == 0
    assert target.read_bytes() == b""


def in_no_directory(env: dict[str, str], arguments: str, stdin: str = "") -> tuple[int, str]:
    """The exit code and the output of a command whose working directory was removed."""
    script = f'mkdir "$1" && cd "$1" && rmdir "$1" && exec {" ".join(COMMAND)} {arguments}'
    gone = Path(env["JOBS_BACKUP_SPOOL_DIR"]).with_name("gone").absolute()
    done = subprocess.run(
        ["sh", "-c", script, "sh", gone],
        env={**os.environ, **env},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["run --source-id web", "status", "check", "archive --once", "delivered", "replay"])
def test_no_command_needs_its_working_directory(command: str, tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    run("run", "--source-id", "web", env=env, stdin='{"n":1}\n')
    code, said = in_no_directory(env, command, '{"n":2}\n' if command.startswith("run") else "")
    assert code == 0, said


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("JOBS_BACKUP_SPOOL_DIR", "spool", "status"),
        ("JOBS_BACKUP_BUCKET", "bucket", "check"),
        ("JOBS_BACKUP_REJECTS_DIR", "rejects", "run --source-id web"),
        ("JOBS_BACKUP_SERVER_TLS_KEY", "key", "serve"),
    ],
)
def test_a_relative_path_in_no_directory_is_a_wrong_setting(name: str, text: str, command: str, tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_SERVER_TOKEN="0123456789abcdef")
    file = tmp_path / "docker.env"
    file.write_text(f"{name}={text}\n")
    for more in ({"env": {**env, name: text}, "arguments": command}, {"env": env, "arguments": f"{command} --env-file {file}"}):
        code, said = in_no_directory(**more)  # type: ignore[arg-type]
        assert code == 2, said
        assert f"{name}='{text}': a relative path, and the working directory is gone" in said
        assert "[ConfigurationError]" in said
