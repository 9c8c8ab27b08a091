"""The command: resuming, rejects, exit codes, signals; with a directory as the bucket."""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import pty
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buckets import FAST_RETRY, events, file_environment, left_over, objects, realistic
from commands import COMMAND, invoke, ndjson, numbers, run, start, summary, wait_until_recorded

from jobs_backup.backup.backup import session_of


def test_files_and_gz_files_are_backed_up(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    one = ndjson(tmp_path / "one.ndjson", 100)
    two = tmp_path / "two.ndjson.gz"
    two.write_bytes(gzip.compress(ndjson(tmp_path / "two", 100, first=100).read_bytes()))
    code, _, stderr = run("run", one, two, "--source-id", "web", "--workspace-id", "w", env=env)
    assert code == 0
    assert "200 events recorded; 200 events in 1 object " in stderr
    assert numbers(tmp_path) == list(range(200))
    assert left_over(tmp_path) == []


def test_standard_input_is_backed_up(tmp_path: Path) -> None:
    found = summary("run", "--source-id", "web", env=file_environment(tmp_path), stdin='{"n":1}\n{"n":2}\n{"n":3}')
    assert (found["events"], found["objects"], found["stored_events"], found["waiting"]) == (3, 1, 3, [])
    assert numbers(tmp_path) == [1, 2, 3]


def test_what_comes_slowly_is_recorded_at_once(tmp_path: Path) -> None:
    """A line that arrived is durable, though the pipe stays open."""
    env = file_environment(tmp_path, JOBS_BACKUP_UPLOAD_FREQUENCY="100ms")
    with start("run", "--source-id", "web", env=env, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write('{"n":1}\n')
        process.stdin.flush()
        deadline = time.monotonic() + 120
        while not objects(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert numbers(tmp_path) == [1]
        process.stdin.write('{"n":2}\n')
        process.communicate(timeout=120)
    assert process.returncode == 0
    assert numbers(tmp_path) == [1, 2]


def test_an_env_file_is_read_as_docker_reads_it_and_comes_first(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = tmp_path / "docker.env"
    file.write_text("# my pipeline\n" + "".join(f"{name}={value}\n" for name, value in env.items()) + "JOBS_BACKUP_BUKET=x\n")
    code, _, stderr = run(
        "run", ndjson(tmp_path / "in", 1), "--source-id", "web", "--env-file", file, env={"JOBS_BACKUP_STORAGE_PROVIDER": "NOSUCH"}
    )
    assert code == 0
    assert "JOBS_BACKUP_BUKET is not a setting: did you mean JOBS_BACKUP_BUCKET?" in stderr
    assert numbers(tmp_path) == [0]


def test_run_again_goes_on_where_it_was(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = ndjson(tmp_path / "in", 100)
    assert summary("run", file, "--source-id", "web", env=env)["events"] == 100
    assert summary("run", file, "--source-id", "web", env=env)["events"] == 0
    with file.open("a") as more:
        more.write('{"n":100}\n')
    found = summary("run", file, "--source-id", "web", env=env)
    assert (found["events"], found["resumed"]) == (1, True)
    assert numbers(tmp_path) == list(range(101))


def test_again_starts_over(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = ndjson(tmp_path / "in", 10)
    summary("run", file, "--source-id", "web", env=env)
    assert summary("run", file, "--source-id", "web", "--again", env=env)["events"] == 10
    assert len(events(tmp_path)) == 20


def test_another_file_of_the_same_name_is_read_from_its_beginning(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    summary("run", ndjson(tmp_path / "in", 10), "--source-id", "web", env=env)
    _, _, stderr = run("run", ndjson(tmp_path / "in", 20, first=100), "--source-id", "web", env=env)
    assert "another file than at the last run" in stderr
    assert numbers(tmp_path) == [*range(10), *range(100, 120)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_lines_that_are_no_events_are_put_aside_and_the_rest_goes_on(tmp_path: Path, suffix: str) -> None:
    env = file_environment(tmp_path)
    content = b'{"n":1}\nnot json\n\n[2]\r\n{"n":3}\n{"n":"\xff"}\n  \n{"n":4}\n{"cut\n'
    file = tmp_path / f"in.ndjson{suffix}"
    file.write_bytes(gzip.compress(content) if suffix else content)
    code, stdout, stderr = run("run", file, "--source-id", "web", "--json", env=env)
    assert code == 3
    found = json.loads(stdout)
    assert (found["complete"], found["events"], found["rejected"]) == (True, 3, 4)
    for line in (2, 4, 6, 9):
        assert f"{file}:{line}: not " in stderr
    (rejects,) = found["rejects"]
    assert Path(rejects).read_bytes() == b'not json\n[2]\r\n{"n":"\xff"}\n{"cut\n'
    assert numbers(tmp_path) == [1, 3, 4]
    assert summary("run", file, "--source-id", "web", env=env)["rejected"] == 0


def test_many_bad_lines_do_not_flood_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_text("x\n" * 5000)
    _, stdout, stderr = run("run", file, "--source-id", "web", "--json", env=file_environment(tmp_path))
    assert json.loads(stdout)["rejected"] == 5000
    assert len(stderr.splitlines()) < 30


def test_a_broken_gz_file_is_named_and_what_was_read_is_kept(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = tmp_path / "in.gz"
    payloads = b"".join(line + b"\n" for line in realistic(20_000))
    file.write_bytes(gzip.compress(payloads, compresslevel=1)[:-1_000_000])
    code, stdout, _ = run("run", file, "--source-id", "web", "--json", env=env)
    found = json.loads(stdout)
    assert code == 1
    assert str(file) in found["problems"][0]
    assert found["events"] == found["stored_events"] == len(events(tmp_path)) > 1000


def test_a_file_that_another_process_reads_is_left_to_it(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with start("run", fifo, "--source-id", "web", env=env) as first:
        with fifo.open("w") as pipe:
            pipe.write('{"n":1}\n')
            pipe.flush()
            # The first one has opened the fifo by now; a second reader of the same name is refused.
            with start("run", fifo, "--source-id", "web", env=env) as second:
                _, stderr = second.communicate(timeout=120)
            assert second.returncode == 1
            assert "another process is reading it" in stderr
        first.communicate(timeout=120)
    assert first.returncode == 0
    assert numbers(tmp_path) == [1]


def test_damage_is_reported_and_keeps_nothing_else_back(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    before: set[Path] = set()
    for source in ("web", "app"):
        with start("run", "--source-id", source, env=env, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write('{"n":1}\n')
            process.stdin.flush()
            while not (new := {*(tmp_path / "spool" / "blobs").glob("*.db")} - before) or not chunks(max(new)):
                time.sleep(0.02)
            before |= new
            process.kill()
            process.communicate()
        if source == "web":
            with sqlite3.connect(max(new)) as database:
                database.execute("UPDATE chunks SET data=zeroblob(length(data))")
            database.close()
            assert run("archive", "--once", env=env)[0] == 1
    code, _, stderr = run("archive", "--once", env=env)
    assert code == 1
    assert "damaged in the spool and quarantined: 1 event or more" in stderr
    assert [key.split("/")[0] for key in objects(tmp_path)] == ["app"]


def chunks(path: Path) -> int:
    """Count the chunks in a blob file, once it has a table for them."""
    database = sqlite3.connect(path)
    try:
        return int(database.execute("SELECT count(*) FROM chunks").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        database.close()


@pytest.mark.slow
def test_killed_five_times_every_event_is_in_the_bucket_once(tmp_path: Path) -> None:
    """kill -9 at five moments while it reads and uploads; each time the same command is started again."""
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="7000", JOBS_BACKUP_SPOOL_DURABILITY="process")
    file = tmp_path / "in.ndjson"
    with file.open("wb") as output:
        for number, payload in enumerate(realistic(60_000)):
            output.write(b'{"n":%d,"event":%b}\n' % (number, payload))
            if number % 10_000 == 5000:
                output.write(b"no event %d\n" % number)
    kills = 0
    for wait in (0.25, 0.3, 0.35, 0.4, 0.45):
        with start("run", file, "--source-id", "web", env=env) as process:
            time.sleep(wait)
            kills += process.poll() is None
            process.kill()
            process.communicate()
    found = summary("run", file, "--source-id", "web", env=env)
    assert found["complete"]
    assert kills >= 2  # of five: a fast machine finishes before the last ones
    assert numbers(tmp_path) == list(range(60_000))
    (rejects,) = (tmp_path / "spool" / "rejects").iterdir()
    assert rejects.read_bytes() == b"".join(b"no event %d\n" % number for number in range(5000, 60_000, 10_000))
    rejects.unlink()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """Lines read before are uploaded; the same command continues with the rest."""
    env = file_environment(tmp_path)
    with start("run", "--source-id", "web", env=env, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write('{"n":1}\n')
        process.stdin.flush()
        wait_until_recorded(tmp_path, 1)
        process.send_signal(number)
        stderr = process.stderr.read() if process.stderr else ""
        assert process.wait(timeout=120) == 1
    assert "interrupted: what was read until then is recorded" in stderr
    assert numbers(tmp_path) == [1]
    assert left_over(tmp_path) == []


@pytest.mark.slow
def test_the_exit_code_of_an_exhausted_limit_is_1_wherever_it_is_met(tmp_path: Path) -> None:
    """2 would blame the settings, while recorded events may wait."""
    env = file_environment(tmp_path)
    file = ndjson(tmp_path / "in", 10)
    codes = set[int]()
    for most in range(6, 20):
        limited = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (most, most))
        with start("run", file, "--source-id", "web", env=env, preexec_fn=limited) as process:
            _, stderr = process.communicate(timeout=120)
        assert process.returncode in (0, 1), stderr
        assert process.returncode == 0 or "[SpoolError]" in stderr
        codes.add(process.returncode)
    assert codes == {0, 1}
    assert numbers(tmp_path) == list(range(10))


@pytest.mark.parametrize("module", ["jobs_backup.cli", "msgspec", "click", "jobs_backup.cli.commands.env"])
def test_an_interrupt_while_it_starts_is_no_traceback(module: str) -> None:
    """Ctrl-C while it imports a module."""
    interrupting = f"""
import sys
from jobs_backup.__main__ import main

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
sys.argv = ["jobs-backup", "env", "FILE"]
main()
"""
    ended = subprocess.run([sys.executable, "-c", interrupting], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (130, "", "")


@pytest.mark.slow
def test_interrupted_on_a_file_it_goes_on_with_the_same_command(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    file = tmp_path / "in.ndjson"
    file.write_bytes(b"".join(b'{"n":%d,"event":%b}\n' % (number, payload) for number, payload in enumerate(realistic(60_000))))
    with start("run", file, "--source-id", "web", env=env) as process:
        while not list((tmp_path / "spool" / "blobs").glob("*.db")):
            time.sleep(0.01)
        process.terminate()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "interrupted: run the same command again to resume" in stderr
    assert 0 <= len(events(tmp_path)) < 60_000
    assert summary("run", file, "--source-id", "web", env=env)["complete"]
    assert numbers(tmp_path) == list(range(60_000))


def test_the_workspace_comes_from_the_option_or_the_environment(tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_WORKSPACE_ID="from-environment")
    assert run("run", ndjson(tmp_path / "one", 1), "--source-id", "web", env=env)[2].count("\n") == 1
    run("run", ndjson(tmp_path / "two", 1), "--source-id", "web", "--workspace-id", "given", env=env)
    assert sorted(key.split("_")[2] for key in objects(tmp_path)) == ["from-environment", "given"]


def test_archive_runs_until_it_is_stopped(tmp_path: Path) -> None:
    from jobs_backup import Backup

    env = file_environment(tmp_path)
    with start("archive", env=env) as process:
        with Backup.from_env(env, archive=False) as recorder:
            recorder.record({"n": 1}, source_id="web")
            deadline = time.monotonic() + 120
            while not session_of(recorder).spool.has_archiver() and time.monotonic() < deadline:
                time.sleep(0.05)
            recorder.flush(timeout=120)
        assert process.poll() is None
        process.terminate()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "1 event in 1 object " in stderr
    assert numbers(tmp_path) == [1]


@pytest.mark.parametrize("command", ["run", "archive"])
@pytest.mark.parametrize("ends", [True, False])
def test_what_another_process_is_sending_is_waited_for(tmp_path: Path, command: str, ends: bool) -> None:
    """And not forever, if that process hangs."""
    from jobs_backup import Backup

    env = file_environment(tmp_path, JOBS_BACKUP_SHUTDOWN_GRACE="60" if ends else "2")
    arguments = ["run", str(ndjson(tmp_path / "in", 1)), "--source-id", "web"] if command == "run" else ["archive", "--once"]
    with Backup.from_env(env, archive=False) as sender:
        sender.record({"n": 2}, source_id="web")
        spool = session_of(sender).spool
        spool.seal()
        assert spool.claim() is not None
        with start(*arguments, env=env) as process:
            if ends:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(timeout=4)
                assert spool.give_back_claims() == 1
            _, stderr = process.communicate(timeout=120)
    assert process.returncode == (0 if ends else 1), stderr
    assert ("1 event waits in" in stderr) is not ends
    assert numbers(tmp_path) == ([0] if command == "run" else []) + ([2] if ends else [])


def test_archive_says_in_its_log_why_nothing_is_sent(tmp_path: Path) -> None:
    env = file_environment(tmp_path, **FAST_RETRY)
    (tmp_path / "bucket").rmdir()
    assert run("run", ndjson(tmp_path / "in", 10), "--source-id", "web", env=env)[0] == 1
    with start("archive", env=env) as process:
        assert process.stderr is not None
        logged = ""
        while "are paused for" not in logged:
            logged += process.stderr.readline()
        assert f"mkdir -p {tmp_path / 'bucket'}" in logged
        process.terminate()
        process.communicate(timeout=120)
    assert process.returncode == 1


def test_an_old_name_of_a_setting_is_taken_with_a_warning(tmp_path: Path) -> None:
    env = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "MINIO",
        "JOBS_BACKUP_BUCKET": "events",
        "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        "MINIO_END_POINT": "127.0.0.1:9",
        "MINIO_ACCESS_KEY_ID": "key",
        "MINIO_SECRET_ACCESS_KEY": "canary-secret",
        **FAST_RETRY,
    }
    code, _, stderr = run("archive", "--once", env=env)
    assert code == 0
    assert "MINIO_END_POINT is an old name: use MINIO_ENDPOINT" in stderr
    assert "canary-secret" not in stderr


def test_archive_once_sends_what_was_left(tmp_path: Path) -> None:
    env = file_environment(tmp_path, **FAST_RETRY)
    bucket = tmp_path / "bucket"
    bucket.rmdir()
    code, _, stderr = run("run", ndjson(tmp_path / "in", 10), "--source-id", "web", env=env)
    assert code == 1
    assert f"10 events wait in {tmp_path / 'spool'}" in stderr
    assert f"mkdir -p {bucket}" in stderr
    assert "archive --once" in stderr
    bucket.mkdir()
    found = summary("archive", "--once", env=env)
    assert found["stored_events"] == 10
    assert numbers(tmp_path) == list(range(10))


def test_a_corrected_bucket_gets_what_waited_for_the_wrong_one(tmp_path: Path) -> None:
    """The same command with the corrected setting uploads every event once."""
    env = file_environment(tmp_path, **FAST_RETRY)
    file = ndjson(tmp_path / "in", 10)
    code, _, stderr = run("run", file, "--source-id", "web", env={**env, "JOBS_BACKUP_BUCKET": str(tmp_path / "bukket")})
    assert code == 1
    assert "does not exist" in stderr
    code, _, stderr = run("run", file, "--source-id", "web", "-v", env=env)
    assert code == 0
    assert "bukket, which never accepted anything, and now go to the bucket in the settings" in stderr
    assert numbers(tmp_path) == list(range(10))


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    env = file_environment(tmp_path, TERM="xterm")
    leader, follower = pty.openpty()
    arguments = [*COMMAND, "run", str(ndjson(tmp_path / "in", 5)), "--source-id", "web"]
    with subprocess.Popen(arguments, env={**os.environ, **env}, stderr=follower, stdin=subprocess.DEVNULL) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                block = os.read(leader, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not block:
                break
            shown += block
        process.wait(timeout=120)
    os.close(leader)
    assert process.returncode == 0
    assert b"recorded" in shown
    assert b"uploaded" in shown
    assert b"\x1b[" in shown
    _, _, stderr = run("run", tmp_path / "in", "--source-id", "web", env=env)
    assert "\x1b" not in stderr


def test_each_command_has_a_summary_of_its_own(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    ids = run("run", "--source-id", "web", "--emit-ids", env=env, stdin="{}\nno\n")
    assert "jobs-backup: 1 event recorded; 1 event in 1 object (" in ids[2]
    assert "1 line rejected, in " in ids[2]
    failure = f'{{"jobId":{ids[1].splitlines()[0]},"error":"no","payload":1}}\n'
    assert "jobs-backup: 2 failures recorded; 2 events in 1 object (" in run("failed", env=env, stdin=2 * failure)[2]
    said = run("delivered", env=env, stdin=ids[1].splitlines()[0])[2]
    assert said.startswith("jobs-backup: 1 event acknowledged; 1 object deleted, all of whose events were delivered; ")
    said = run("delivered", env=env, stdin='"1"\n"2"\n')[2]
    assert "jobs-backup: 0 events acknowledged, 2 unknown; " in said
    assert "2 job ids unknown" in said
    assert run("archive", "--once", env=env)[2].startswith("jobs-backup: 0 events in 0 objects (0 bytes) uploaded to file:")
    assert run("replay", "--kind", "failed", env=env)[2].startswith("jobs-backup: 2 events of 1 object (")
    assert "1 object (" in run("replay", "--kind", "failed", "--dry-run", env=env)[1]


@pytest.mark.parametrize(("command", "reads"), [("archive --once", False), ("run in --source-id web", True)])
def test_no_progress_is_shown_of_what_a_command_does_not_do(command: str, reads: bool, tmp_path: Path) -> None:
    env = {**os.environ, **file_environment(tmp_path, TERM="xterm", COLUMNS="200")}
    ndjson(tmp_path / "in", 5)
    leader, follower = pty.openpty()
    done = subprocess.Popen([*COMMAND, *command.split()], env=env, cwd=tmp_path, stderr=follower, stdin=subprocess.DEVNULL)
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while block := os.read(leader, 65536):
            shown += block
    os.close(leader)
    assert done.wait(60) == 0
    assert b"uploaded" in shown
    assert (re.search(rb"\bread\b", shown) is not None) is reads
    assert not re.search(rb"\b0/|/0 |/\?", shown.replace(os.fsencode(tmp_path), b""))


def test_a_message_for_every_wrong_configuration(tmp_path: Path) -> None:
    good = file_environment(tmp_path)
    file = ndjson(tmp_path / "in", 1)
    unreadable = tmp_path / "directory"
    unreadable.mkdir()
    without = {name: value for name, value in good.items() if name != "JOBS_BACKUP_STORAGE_PROVIDER"}
    no_bucket = {name: value for name, value in good.items() if name != "JOBS_BACKUP_BUCKET"}
    cases: list[tuple[list[str | Path], dict[str, str], list[str]]] = [
        ([file], without, ["JOBS_BACKUP_STORAGE_PROVIDER is not set"]),
        ([file], {**without, "JOBS_BACKUP_STORAGE_PROVIDR": "S3"}, ["JOBS_BACKUP_STORAGE_PROVIDR is: a typo?"]),
        ([file], {**good, "JOBS_BACKUP_STORAGE_PROVIDER": "floppy"}, ["provider 'floppy' is not installed (installed: ", "FILE"]),
        ([file], no_bucket, ["JOBS_BACKUP_BUCKET is not set"]),
        ([file], {**good, "JOBS_BACKUP_BATCH_EVENTS": "many"}, ["JOBS_BACKUP_BATCH_EVENTS='many'"]),
        ([file], {**good, "JOBS_BACKUP_UPLOAD_FREQUENCY": "5 parsecs"}, ["JOBS_BACKUP_UPLOAD_FREQUENCY", "such as"]),
        ([file], {**good, "JOBS_BACKUP_PREFIX": "a/../b"}, ["JOBS_BACKUP_PREFIX"]),
        ([file], {**good, "JOBS_BACKUP_SPOOL_DIR": str(file)}, [str(file), "JOBS_BACKUP_SPOOL_DIR"]),
        ([file, "--env-file", tmp_path / "nosuch.env"], good, ["nosuch.env", "No such file"]),
        ([file, "--env-file", unreadable], good, ["Is a directory"]),
        ([tmp_path / "nosuch.ndjson"], good, ["nosuch.ndjson", "No such file"]),
        ([unreadable], good, ["Is a directory"]),
    ]
    for arguments, env, wanted in cases:
        code, stdout, stderr = run("run", *arguments, "--source-id", "web", env=env)
        assert code == 2, stderr
        assert stdout == ""
        assert len(stderr.splitlines()) == 1, stderr
        for text in wanted:
            assert text in stderr
    code, _, stderr = run("run", file, env=good)
    assert code == 2
    assert "--source-id" in stderr
    assert numbers(tmp_path) == []


def test_providers_lists_what_is_installed(tmp_path: Path) -> None:
    code, stdout, _ = run("providers", "--json", env={})
    assert code == 0
    found = {one["name"]: one for one in json.loads(stdout)}
    assert {"FILE", "S3", "MINIO", "DIGITAL_OCEAN_SPACES"} <= found.keys()
    assert found["FILE"]["distribution"] == "jobs-backup"
    assert {"write", "abort_multipart", "delete", "create_multipart", "write_part", "complete_multipart"} <= set(
        found["S3"]["hooks"]
    )
    secret = {one["variable"] for one in found["S3"]["settings"] if one["secret"]}
    assert "AWS_SECRET_ACCESS_KEY" in secret
    code, stdout, _ = run("providers", "file", env={})
    assert code == 0
    assert "JOBS_BACKUP_BUCKET  (required)" in stdout
    code, _, stderr = run("providers", "nosuch", env={})
    assert code == 2
    assert "provider 'nosuch' is not installed" in stderr


def test_version_and_help(tmp_path: Path) -> None:
    code, stdout, _ = run("--version", env={})
    assert code == 0
    assert stdout.startswith("jobs-backup 0.")
    code, stdout, _ = run("--help", env={})
    assert all(command in stdout for command in ("run", "archive", "providers"))
    for command in ("run", "archive", "providers"):
        code, stdout, _ = run(command, "--help", env={})
        assert code == 0
        assert "Example:" in stdout
    code, _, stderr = run("nosuch", env={})
    assert code == 2
    assert "nosuch" in stderr


def test_no_wrapper_is_told_as_such(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs_backup.store.plugins._entry_points", lambda _group: ())
    code, out, err = invoke(capsys, "wrappers")
    assert (code, out, err) == (0, "", "jobs-backup: no wrapper is installed\n")
