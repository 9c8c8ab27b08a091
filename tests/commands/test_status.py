"""`jobs-backup status`: pending batches with their store, age and reason; and the processes that use the spool."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from buckets import FAST_RETRY, file_environment
from click.testing import CliRunner
from commands import run, start
from spools import APP, claim, die, open_spool, record

from jobs_backup import Backup
from jobs_backup.cli import cli
from jobs_backup.errors import PermissionDenied, StorePaused
from jobs_backup.model import Upload
from jobs_backup.spool.engines import read_status


def status(directory: Path, *arguments: str) -> str:
    result = CliRunner().invoke(cli, ["status", *arguments], env={"JOBS_BACKUP_SPOOL_DIR": str(directory)})
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(directory: Path) -> Any:
    return json.loads(status(directory, "--json"))


def test_what_waits_is_reported_for_each_stream_and_store(tmp_path: Path) -> None:
    old = open_spool(tmp_path, location="s3://old")
    record(old, [b"{}\n"] * 5)
    old.seal()
    old.close()
    spool = open_spool(tmp_path)
    record(spool, [b"{}\n"] * 3)
    spool.seal()
    record(spool, [b"{}\n"] * 2)
    record(spool, [b"{}\n"] * 4, stream=APP)
    batch = claim(spool)
    time.sleep(0.01)
    found = as_json(tmp_path)
    assert (found["events"], found["quarantine"]) == (14, [])
    assert found["oldest"] > 0
    rows = {
        (one["location"], stream["source_id"]): [
            stream[name] for name in ("workspace_id", "events", "objects", "open_events", "sending")
        ]
        for one in found["stores"]
        for stream in one["streams"]
    }
    assert rows == {
        ("s3://old", "web"): ["w", 5, 1, 0, 0],
        ("s3://bucket", "web"): ["w", 3, 1, 2, 1],
        ("s3://bucket", "app"): ["w", 0, 0, 4, 0],
    }
    assert all(stream["bytes"] > 0 for one in found["stores"] for stream in one["streams"])
    spool.stored(batch)
    assert as_json(tmp_path)["events"] == 11
    text = status(tmp_path)
    assert "11 events wait" in text
    assert "s3://old" in text
    spool.close()


def test_failures_pauses_and_uploads_are_reported(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for _ in range(2):
        record(spool, [b"{}\n"])
        spool.seal()
    one, other = claim(spool), claim(spool)
    spool.uploads.begin(one, Upload(key=one.key, id="a secret"), 5 << 20)
    journaled = spool.uploads.begin(other, Upload(key=other.key, id="a secret"), 5 << 20)
    spool.uploads.abandon(journaled)
    error = PermissionDenied("s3:PutObject is refused", action="s3:PutObject", resource="arn:aws:s3:::bucket/*")
    spool.uploads.postpone(journaled, error, delay=60)
    spool.release(one, error, delay=0)
    (store,) = as_json(tmp_path)["stores"]
    assert (store["error"], store["paused"]) == ("s3:PutObject is refused", 0)
    spool.pause(error, seconds=90)
    text = status(tmp_path)
    (store,) = as_json(tmp_path)["stores"]
    assert (store["uploads"], store["aborts"], store["abort_error"]) == (1, 1, "s3:PutObject is refused")
    assert store["hint"] == "grant s3:PutObject on arn:aws:s3:::bucket/*"
    assert 80 < store["paused"] <= 90
    assert "paused, next try in" in text
    assert "1 multipart upload still to be aborted" in text
    assert "secret" not in text + json.dumps(store)
    spool.stored(one)
    (store,) = as_json(tmp_path)["stores"]
    assert (store["error"], store["paused"]) == ("", 0), "something was stored since then"
    spool.close()


def test_a_living_archiver_reports_why_it_is_paused(tmp_path: Path) -> None:
    environment = file_environment(tmp_path, **FAST_RETRY)
    (tmp_path / "bucket").rmdir()
    with Backup.from_env(environment) as backup:
        backup.record({"a": 1}, source_id="web")
        with pytest.raises(StorePaused):
            backup.flush(timeout=120)
        (store,) = as_json(tmp_path / "spool")["stores"]
        assert store["error"].endswith("does not exist")
        assert 0 < store["paused"] <= 5
        (tmp_path / "bucket").mkdir()
        (process,) = as_json(tmp_path / "spool")["processes"]
        assert (process["alive"], process["sends"]) == (True, True)
        assert "records and uploads" in status(tmp_path / "spool")


def test_dead_processes_and_damage_are_reported_and_nothing_is_changed(tmp_path: Path) -> None:
    dead = open_spool(tmp_path)
    record(dead, [b"{}\n"] * 7)
    die(dead)
    found = as_json(tmp_path)
    assert (found["events"], [process["alive"] for process in found["processes"]]) == (7, [False])
    assert "has died" in status(tmp_path)
    path = tmp_path / "blobs" / f"{dead.session}.db"
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(len(data) - 100))
    Path(f"{path}-wal").unlink(missing_ok=True)
    assert as_json(tmp_path)["events"] == 0
    alive = open_spool(tmp_path)
    alive.recover()
    (damage,) = as_json(tmp_path)["quarantine"]
    assert damage["source_id"] == "web"
    assert Path(damage["file"]).exists()
    assert damage["file"] in status(tmp_path)
    alive.close()


def test_names_with_brackets_and_control_characters_are_shown_as_they_are(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"{}\n"], stream=type(APP)(APP.kind, "[red]w[/red]", "a[0]\x1b[2J"))
    text = status(tmp_path)
    assert "[red]w[/red]" in text
    assert r"a[0]\x1b[2J" in text
    spool.close()


def test_without_its_catalog_what_the_other_files_may_hold_is_named(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"1\n"])
    spool.close()
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    result = CliRunner().invoke(cli, ["status"], env={"JOBS_BACKUP_SPOOL_DIR": str(tmp_path)})
    assert (result.exit_code, "catalog.db is missing, but the files in" in result.stderr) == (2, True)
    assert "jobs-backup archive --once" in result.stderr


def test_an_empty_spool_and_none(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["status"], env={"JOBS_BACKUP_SPOOL_DIR": str(tmp_path)})
    assert (result.exit_code, "no spool found in" in result.stderr) == (2, True)
    open_spool(tmp_path).close()
    assert "nothing waits" in status(tmp_path)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.db"))
    read_status(tmp_path)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.db")) == before


# Health


def exit_code(directory: Path, **variables: str) -> int:
    env = {"JOBS_BACKUP_SPOOL_DIR": str(directory), **variables}
    return CliRunner().invoke(cli, ["status", "--exit-code"], env=env).exit_code


def test_the_exit_code_reports_the_health(tmp_path: Path) -> None:
    assert exit_code(tmp_path / "none") == 2
    spool = open_spool(tmp_path)
    assert exit_code(tmp_path) == 0
    record(spool, [b"{}\n"])
    assert exit_code(tmp_path) == 0, "it waits, and not for long"
    assert exit_code(tmp_path, JOBS_BACKUP_SPOOL_MIN_FREE="1000000TB") == 2
    assert exit_code(tmp_path, JOBS_BACKUP_SPOOL_MAX_BYTES="1") == 2
    spool.seal()
    spool.pause(PermissionDenied("no", action="put", resource="b"), seconds=60)
    assert exit_code(tmp_path) == 1
    assert CliRunner().invoke(cli, ["status"], env={"JOBS_BACKUP_SPOOL_DIR": str(tmp_path)}).exit_code == 0
    spool.close()
    (tmp_path / "catalog.db").write_bytes(b"no database" * 1000)
    assert exit_code(tmp_path) == 2


def test_what_has_run_out_is_reported(tmp_path: Path) -> None:
    open_spool(tmp_path).close()
    env = {"JOBS_BACKUP_SPOOL_DIR": str(tmp_path), "JOBS_BACKUP_SPOOL_MIN_FREE": "1000000TB"}
    assert "full: nothing can be recorded: " in CliRunner().invoke(cli, ["status"], env=env).stdout
    assert "MIN_FREE" in json.loads(CliRunner().invoke(cli, ["status", "--json"], env=env).stdout)["full"]
    assert as_json(tmp_path)["full"] == ""


def test_rejected_lines_are_reported_until_their_file_is_removed(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    assert run("run", "--source-id", "web", env=env, stdin="no event\n{}\n")[0] == 3
    ((file),) = (tmp_path / "spool" / "rejects").iterdir()
    assert as_json(tmp_path / "spool")["rejected"] == [{"file": str(file), "bytes": 9}]
    assert f"{file}: 9 bytes" in status(tmp_path / "spool")
    assert exit_code(tmp_path / "spool") == 0
    file.unlink()
    assert "[Rejected]" not in status(tmp_path / "spool")


def test_it_is_watched_until_somebody_stops_it(tmp_path: Path) -> None:
    open_spool(tmp_path).close()
    env = {"JOBS_BACKUP_SPOOL_DIR": str(tmp_path)}
    with start("status", "--watch", "0.1", "--json", "--exit-code", env=env) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["events"] == 0
        process.terminate()
        process.stdout.read()
        assert process.wait(30) == 0


def test_watching_ends_with_its_reader_and_goes_on_without_a_spool(tmp_path: Path) -> None:
    with start("status", "--watch", "0.1", "--exit-code", env={"JOBS_BACKUP_SPOOL_DIR": str(tmp_path)}) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "no spool found" in process.stderr.readline()
        open_spool(tmp_path).close()
        assert "nothing waits" in next(filter(str.strip, process.stdout))
        process.stdout.close()
        assert process.wait(30) == 0


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e12", "0", "x"])
def test_no_pause_between_two_looks_is_no_number_of_seconds(tmp_path: Path, seconds: str) -> None:
    code, _, err = run("status", f"--watch={seconds}", env={"JOBS_BACKUP_SPOOL_DIR": str(tmp_path)})
    assert (code, "--watch" in err, "Traceback" in err) == (2, True, False), err
