"""`jobs-backup spool move`: a machine with a spool of its own becomes a host of a fleet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from buckets import FAST_RETRY, events, objects
from commands import ndjson, numbers, run, start, summary, wait_until_recorded
from postgres import Postgres

RECORDER = """
import os, sys
from jobs_backup import Backup
backup = Backup.from_env(os.environ, archive=False)
jobs = backup.record_many([b'{"n":%d}' % n for n in range(1000, 1500)], source_id="web")
print(*map(str, jobs), flush=True)
os.kill(os.getpid(), 9)
"""


class Hosts(NamedTuple):
    """The environments of a machine: with its own spool, and in the fleet; and that of another host."""

    directory: Path
    alone: dict[str, str]
    fleet: dict[str, str]
    other: dict[str, str]

    @property
    def both(self) -> dict[str, str]:
        return {**self.alone, **self.fleet}


@pytest.fixture
def hosts(tmp_path: Path, database_server: Postgres) -> Iterator[Hosts]:
    (tmp_path / "bucket").mkdir()
    with database_server.database() as database:
        common = {"JOBS_BACKUP_STORAGE_PROVIDER": "FILE", "JOBS_BACKUP_BUCKET": str(tmp_path / "bucket"), **FAST_RETRY}
        url = database_server.url(database)
        yield Hosts(
            tmp_path,
            {**common, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"), "INSTANCE_ID": "one"},
            {**common, "JOBS_BACKUP_SPOOL": url, "INSTANCE_ID": "one"},
            {**common, "JOBS_BACKUP_SPOOL": url, "INSTANCE_ID": "two"},
        )


def record(hosts: Hosts) -> tuple[list[str], list[str]]:
    """Ids of 1000 events in the bucket, from a file, and of 500 that a killed process has left in the spool."""
    code, stdout, stderr = run("run", ndjson(hosts.directory / "in", 1000), "--source-id", "web", "--emit-ids", env=hosts.alone)
    assert code == 0, stderr
    killed = subprocess.run(
        [sys.executable, "-c", RECORDER],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **hosts.alone},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    return [line.strip('"') for line in stdout.split()], killed.stdout.split()


def moved(*options: str, env: dict[str, str]) -> dict[str, Any]:
    code, stdout, stderr = run("spool", "move", "--json", *options, env=env)
    assert code == 0, stderr
    found: dict[str, Any] = json.loads(stdout)
    return found


def test_ids_files_and_events_of_the_machine(hosts: Hosts) -> None:
    stored, waiting = record(hosts)
    before = objects(hosts.directory)
    dry = moved("--dry-run", env=hosts.both)
    assert (dry["moved"], dry["counts"]["waiting_events"], dry["counts"]["stored_events"]) == (False, 500, 1000)
    found = moved(env=hosts.both)
    shown = hosts.fleet["JOBS_BACKUP_SPOOL"].replace("postgres@", "").partition("?")[0]
    assert (found["source"], found["target"], found["moved"]) == (str(hosts.directory / "spool"), shown, True)
    assert {name: count for name, count in found["counts"].items() if name != "waiting_bytes"} == {
        "waiting_batches": 1, "waiting_events": 500, "stored_objects": 1, "stored_events": 1000, "other_batches": 0, "uploads": 0,
        "inputs": 1, "quarantined": 0,
    }  # fmt: skip
    # Another host uploads what waited, and takes the acknowledgements.
    assert summary("archive", "--once", env=hosts.other)["complete"]
    assert objects(hosts.directory).items() >= before.items()
    assert numbers(hosts.directory) == list(range(1500))
    assert summary("delivered", env=hosts.other, stdin="\n".join([*waiting, *stored[1:]]))["unknown"] == 0
    run("archive", "--once", env=hosts.other)
    assert objects(hosts.directory) == before, "one of its events was not delivered"
    failure = json.dumps({"jobId": stored[0], "error": "refused", "payload": {}})
    assert run("failed", env=hosts.other, stdin=f"{failure}\n")[0] == 0
    assert [event["payload"] for event in events(hosts.directory) if "failedAt" in event] == [{}]
    # The machine reads its file on, and the other host one of the same path from its beginning.
    with (hosts.directory / "in").open("a") as file:
        file.write('{"n":2000}\n')
    assert summary("run", hosts.directory / "in", "--source-id", "web", env=hosts.fleet)["events"] == 1
    assert summary("run", hosts.directory / "in", "--source-id", "web", env=hosts.fleet)["events"] == 0
    assert summary("run", hosts.directory / "in", "--source-id", "web", env=hosts.other)["events"] == 1001
    found = summary("delivered", env=hosts.fleet, stdin=f"{stored[0]}\n{int(stored[0]) + 1000}\n")
    assert (found["ids"], found["unknown"]) == (2, 1)
    run("archive", "--once", env=hosts.other)
    assert not objects(hosts.directory).keys() & before.keys(), "all of its events are delivered"


def test_events_come_back_by_the_fleets_catalog(hosts: Hosts) -> None:
    record(hosts)
    code, before, _ = run("replay", env=hosts.alone)
    assert code == 0
    moved(env=hosts.both)
    assert run("replay", env=hosts.fleet)[:2] == (0, before)
    run("archive", "--once", env=hosts.fleet)
    assert len(run("replay", env=hosts.other)[1].splitlines()) == 1500


def test_what_it_says(hosts: Hosts) -> None:
    record(hosts)
    code, stdout, stderr = run("spool", "move", env=hosts.both)
    assert (code, stderr) == (0, "")
    assert f"moved {hosts.directory}/spool to postgresql://127.0.0.1" in stdout
    assert "1 batch with 500 events to upload" in stdout
    assert "1 object with 1,000 events in the bucket" in stdout
    code, stdout, _ = run("spool", "move", env=hosts.both)
    assert code == 0
    assert "was already moved to" in stdout
    for command in (
        ["archive", "--once"],
        ["status"],
        ["replay"],
        ["check"],
        ["run", hosts.directory / "in", "--source-id", "web"],
    ):
        code, stdout, stderr = run(*command, env=hosts.alone)
        assert code != 0, command
        assert "was moved to postgresql://127.0.0.1" in stdout + stderr, command


def test_a_process_that_uses_it(hosts: Hosts) -> None:
    """It is named, and goes on."""
    with start("run", "-", "--source-id", "web", env=hosts.alone, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write('{"n":0}\n' * 1)
        process.stdin.flush()
        wait_until_recorded(hosts.directory, 1)
        code, _, stderr = run("spool", "move", env=hosts.both)
        assert code == 2
        assert f"process {process.pid} uses {hosts.directory}/spool: stop it first" in stderr
        assert moved("--dry-run", env=hosts.both)["processes"] == [process.pid]
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    assert numbers(hosts.directory) == [0]
    assert moved(env=hosts.both)["counts"]["stored_objects"] == 1


def test_rejected_lines_stay(hosts: Hosts) -> None:
    (hosts.directory / "in").write_text('{"n":1}\nnot json\n')
    assert run("run", hosts.directory / "in", "--source-id", "web", env=hosts.alone)[0] == 3
    assert moved(env=hosts.both)["left"] == [f"{hosts.directory}/spool/rejects"]
    rejects = {"JOBS_BACKUP_REJECTS_DIR": f"{hosts.directory}/spool/rejects"}
    found = summary("run", hosts.directory / "in", "--source-id", "web", env={**hosts.fleet, **rejects})
    assert (found["events"], found["rejected"], found["rejected_before"]) == (0, 0, 1)


class TestUrl:
    def test_in_an_option(self, hosts: Hosts) -> None:
        record(hosts)
        url = hosts.fleet["JOBS_BACKUP_SPOOL"]
        assert moved("--to", url, env=hosts.alone)["moved"]

    def test_its_password_is_a_secret(self, hosts: Hosts) -> None:
        record(hosts)
        url = hosts.fleet["JOBS_BACKUP_SPOOL"].replace("postgres@", "postgres:canary-secret@")
        code, stdout, stderr = run("spool", "move", "--to", url, env=hosts.alone)
        assert code == 0
        assert "other users of this machine can see the password in --to: set JOBS_BACKUP_SPOOL instead" in stderr
        assert "canary" not in stdout + stderr
        for target in ("postgresql://user:canary-secret@127.0.0.1:1/events?sslmode=disable", "mysql://user:canary-secret@host/x"):
            for env in ({**hosts.alone, "JOBS_BACKUP_SPOOL": target}, hosts.alone):
                options = ["--to", target] if env is hosts.alone else []
                code, stdout, stderr = run("spool", "move", *options, env=env)
                assert code in (1, 2)
                assert "canary" not in stdout + stderr

    def test_none(self, hosts: Hosts) -> None:
        code, _, stderr = run("spool", "move", env=hosts.alone)
        assert code == 2
        assert "no spool to move to: set JOBS_BACKUP_SPOOL" in stderr

    def test_no_server(self, hosts: Hosts) -> None:
        """Nothing has changed."""
        record(hosts)
        url = "postgresql://user@127.0.0.1:1/events?sslmode=disable"
        code, _, stderr = run("spool", "move", "--to", url, env=hosts.alone)
        assert code == 1, stderr
        assert run("archive", "--once", env=hosts.alone)[0] == 0
        assert len(events(hosts.directory)) == 1500


def test_no_spool(hosts: Hosts) -> None:
    code, _, stderr = run("spool", "move", env=hosts.both)
    assert code == 2
    assert "no spool found" in stderr
    assert not (hosts.directory / "spool").exists()
