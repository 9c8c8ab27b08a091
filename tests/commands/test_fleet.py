"""A fleet: processes on several "hosts" that share a spool in PostgreSQL, and nothing else but the bucket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from buckets import FAST_RETRY, events, objects
from commands import ndjson, numbers, run, start, summary
from postgres import BIN, Postgres
from serving import Answer, Sidecar, serve

from jobs_backup import AsyncBackup, Backup, ConfigurationError
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.engines import read_status

LEASE = 2.0
SLACK = 2.0
"""Seconds beyond the lease until another process has taken over."""


class Fleet:
    """A database and a bucket, and the environments of its hosts."""

    def __init__(self, directory: Path, server: Postgres, database: str) -> None:
        self.directory = directory
        self.server = server
        self.database = database
        (directory / "bucket").mkdir()

    def host(self, name: str, **variables: str) -> dict[str, str]:
        """The environment of a host; its directory is its working directory."""
        (self.directory / name).mkdir(exist_ok=True)
        return {
            "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
            "JOBS_BACKUP_BUCKET": str(self.directory / "bucket"),
            "JOBS_BACKUP_SPOOL": self.server.url(self.database),
            "JOBS_BACKUP_SPOOL_LEASE": f"{LEASE}s",
            "INSTANCE_ID": name,
            **FAST_RETRY,
            **variables,
        }

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.server.admin(self.database) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture
def fleet(tmp_path: Path, database_server: Postgres) -> Iterator[Fleet]:
    with database_server.database() as database:
        yield Fleet(tmp_path, database_server, database)


def wait_for(what: Callable[[], object], seconds: float = 30.0) -> float:
    """Wait until something holds. Returns how long it took."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds, "it did not come"
        time.sleep(0.05)
    return time.monotonic() - begun


RECORDER = """
import os, sys, time
from jobs_backup import Backup
backup = Backup.from_env(os.environ, archive=False)
jobs = backup.record_many([b'{"messageId":"%d","n":%d}' % (n, n) for n in range(int(sys.argv[1]))], source_id="web")
print(*map(str, jobs), flush=True)
if sys.argv[2] == "wait":
    time.sleep(600)
backup.close()
"""


@contextlib.contextmanager
def recorder(environment: dict[str, str], count: int, then: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that records, and then waits or closes."""
    with subprocess.Popen(
        [sys.executable, "-c", RECORDER, str(count), then],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, [int(job) for job in process.stdout.readline().split()]
        finally:
            process.kill()


def test_the_library(fleet: Fleet) -> None:
    with Backup.from_env(fleet.host("a")) as backup:
        job = backup.record({"n": 0}, source_id="web")
        jobs = backup.record_many([b'{"n":%d}' % number for number in range(1, 5000)], source_id="web", workspace_id="w")
        backup.flush(60)
        assert numbers(fleet.directory) == list(range(5000))
        backup.failed(job, error="gone", payload=b"{}")
        backup.delivered([job, *jobs])
        backup.flush(60)
        wait_for(lambda: [event["payload"] for event in events(fleet.directory)] == [{}])
    assert fleet.rows("SELECT count(*) FROM jobs_backup.sessions") == [(0,)]


def test_the_library_for_asyncio(fleet: Fleet) -> None:
    async def work() -> None:
        async with AsyncBackup.from_env(fleet.host("a")) as backup:
            jobs = await asyncio.gather(*(backup.record({"n": number}, source_id="web") for number in range(200)))
            await backup.flush(60)
            assert numbers(fleet.directory) == list(range(200))
            await backup.delivered(jobs)

    asyncio.run(work())


def test_both_settings_of_the_spool_are_one_too_many(fleet: Fleet, tmp_path: Path) -> None:
    code, _, stderr = run("archive", "--once", env=fleet.host("a", JOBS_BACKUP_SPOOL_DIR=str(tmp_path / "spool")))
    assert code == 2
    assert "JOBS_BACKUP_SPOOL and JOBS_BACKUP_SPOOL_DIR are both set" in stderr
    with pytest.raises(ConfigurationError, match="both set"):
        Backup.from_env(fleet.host("a", JOBS_BACKUP_SPOOL_DIR=str(tmp_path / "spool")))


FORKING = """
import os, sys
from jobs_backup import Backup
with Backup.from_env(os.environ) as backup:
    backup.record({"n": 0}, source_id="web")
    child = os.fork()
    if child == 0:
        with Backup.from_env(os.environ) as own:
            own.record({"n": 1}, source_id="web")
            own.flush(60)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    backup.record({"n": 2}, source_id="web")
    backup.flush(60)
"""


def test_a_process_that_forks(fleet: Fleet) -> None:
    """A child opens a Backup of its own, and its parent goes on."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **fleet.host("a")}
    result = subprocess.run(
        [sys.executable, "-c", FORKING], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert numbers(fleet.directory) == [0, 1, 2]


def test_a_file_on_each_host_is_an_input_of_its_own(fleet: Fleet) -> None:
    """The same path, and the same content; and what one host has read it reads once."""
    file = ndjson(fleet.directory / "data", 1000)
    for host in ("a", "b"):
        found = summary("run", file, "--source-id", "web", env=fleet.host(host))
        assert (found["events"], found["complete"]) == (1000, True)
        again = summary("run", file, "--source-id", "web", env=fleet.host(host))
        assert (again["events"], again["complete"]) == (0, True)
    ndjson(fleet.directory / "more", 10, first=1000)
    with file.open("ab") as grown:
        grown.write((fleet.directory / "more").read_bytes())
    assert summary("run", file, "--source-id", "web", env=fleet.host("a"))["events"] == 10
    assert numbers(fleet.directory) == sorted([*range(1000)] * 2 + [*range(1000, 1010)])


def test_rejected_lines_are_beside_the_command(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "in"
    file.write_text('{"n":1}\nnot json\n')
    environment = fleet.host("a")
    with start("run", file, "--source-id", "web", env=environment, cwd=tmp_path / "a") as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3, stderr
    (rejects,) = (tmp_path / "a" / "jobs-backup-rejects").iterdir()
    assert rejects.read_text() == "not json\n"
    elsewhere = str(tmp_path / "elsewhere")
    assert run("run", file, "--source-id", "web", "--again", env=fleet.host("b", JOBS_BACKUP_REJECTS_DIR=elsewhere))[0] == 3
    assert len(list(Path(elsewhere).iterdir())) == 1
    code, stdout, _ = run("status", env=fleet.host("b", JOBS_BACKUP_REJECTS_DIR=elsewhere))
    assert (code, elsewhere in stdout) == (0, True)


def test_acknowledgements_are_taken_by_any_host(fleet: Fleet) -> None:
    with recorder(fleet.host("a"), 3000, "close") as (process, jobs):
        process.wait(60)
    summary("archive", "--once", env=fleet.host("b"))
    assert len(events(fleet.directory)) == 3000
    code, _, stderr = run("delivered", env=fleet.host("c"), stdin="".join(f"{job}\n" for job in jobs[:2999]))
    assert code == 0, stderr
    run("archive", "--once", env=fleet.host("b"))
    assert len(events(fleet.directory)) == 3000, "one event was not delivered"
    failure = json.dumps({"jobId": str(jobs[2999]), "error": "refused", "payload": {}})
    code, _, stderr = run("failed", env=fleet.host("c"), stdin=f"{failure}\n")
    assert code == 0, stderr
    assert len([event for event in events(fleet.directory) if "failedAt" in event]) == 1
    found = summary("delivered", env=fleet.host("a"), stdin=f"{jobs[2999]}\n{jobs[2999] + 1}\n")
    assert (found["ids"], found["unknown"]) == (2, 1)
    run("archive", "--once", env=fleet.host("b"))
    assert [event for event in events(fleet.directory) if "failedAt" not in event] == []


def test_a_killed_hosts_events_are_sent_by_others_within_seconds(fleet: Fleet) -> None:
    with (
        recorder(fleet.host("a"), 2000, "wait") as (killed, jobs),
        start("archive", env=fleet.host("b")) as archiver,
    ):
        assert len(jobs) == 2000
        wait_for(lambda: any(one.sends for one in read_status(place(fleet)).processes))
        time.sleep(LEASE)
        assert events(fleet.directory) == [], "it is alive, and its batch is open"
        killed.kill()
        took = wait_for(lambda: len(events(fleet.directory)) == 2000)
        assert took < LEASE + SLACK + 3.0, "with what the upload itself takes"
        archiver.terminate()
        _, stderr = archiver.communicate(timeout=60)
    assert numbers(fleet.directory) == list(range(2000)), stderr


def test_after_a_clean_close_nobody_waits_for_a_lease(fleet: Fleet) -> None:
    environment = fleet.host("a", JOBS_BACKUP_SPOOL_LEASE="10m")
    with recorder(environment, 100, "close") as (process, _):
        process.wait(60)
    assert fleet.rows("SELECT count(*) FROM jobs_backup.sessions") == [(0,)]
    assert summary("archive", "--once", env=environment)["complete"], "it does not wait for ten minutes"
    assert numbers(fleet.directory) == list(range(100))


def test_a_frozen_process_loses_its_place_and_records_nothing_twice(fleet: Fleet) -> None:
    """SIGSTOP for longer than the lease; and then it goes on."""
    with start("run", "-", "--source-id", "web", env=fleet.host("a"), stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("".join(f'{{"n":{number}}}\n' for number in range(500)))
        process.stdin.flush()
        wait_for(lambda: tables(fleet) and read_status(place(fleet)).events + len(events(fleet.directory)) >= 500)
        process.send_signal(signal.SIGSTOP)
        with start("archive", env=fleet.host("b")) as other:
            wait_for(lambda: len(fleet.rows("SELECT 1 FROM jobs_backup.ended_sessions")) == 1)
            process.send_signal(signal.SIGCONT)
            process.stdin.write("".join(f'{{"n":{number}}}\n' for number in range(500, 1000)))
            process.stdin.close()
            process.stdin = None
            _, stderr = process.communicate(timeout=60)
            assert process.returncode == 0, stderr
            other.terminate()
            other.communicate(timeout=60)
    run("archive", "--once", env=fleet.host("c"))
    assert numbers(fleet.directory) == list(range(1000))


def test_the_sidecar_on_two_hosts(fleet: Fleet) -> None:
    variables = {"JOBS_BACKUP_UPLOAD_FREQUENCY": "1s"}
    with serve(fleet.host("a", **variables)) as first, serve(fleet.host("b", **variables)) as second:
        answer = first.post("/v1/events?source_id=web", [{"n": number} for number in range(50)])
        assert answer.status == 200, answer.body
        ids = answer.json["jobs"]
        assert second.get("/readyz").status == 200
        status = second.get("/status").json
        assert {one["host"] for one in status["processes"]} == {"a", "b"}
        assert status["directory"] == f"postgresql://127.0.0.1:{fleet.server.port}/{fleet.database}"
        page = second.get("/metrics").body.decode()
        assert 'jobs_backup_spool_processes{role="sends"} 2.0' in page
        assert "jobs_backup_spool_free_bytes" not in page, "nobody sees the server's disk"
        wait_for(lambda: len(events(fleet.directory)) == 50)
        assert second.post("/v1/delivered", ids).json == {"acknowledged": 50}
        wait_for(lambda: objects(fleet.directory) == {})


class Balancer:
    """Sends each request to the next process, over a connection of its own. Retries only what a client may retry.

    That is a refused connection, or an answer which says that nothing was recorded.
    """

    def __init__(self) -> None:
        self.sidecars: list[Sidecar] = []
        self.retried: Counter[str] = Counter()
        self._turns = itertools.count()

    def post(self, path: str, body: Any) -> Answer:
        until = time.monotonic() + 30
        while True:
            sidecars = [*self.sidecars]
            try:
                answer = sidecars[next(self._turns) % len(sidecars)].post(path, body)
            except ConnectionRefusedError:
                why = "refused"
            else:
                if answer.status != 503:
                    return answer
                why = answer.code
            assert time.monotonic() < until, why
            self.retried[why] += 1
            time.sleep(0.05)


def test_a_rolling_replacement_of_all_processes_loses_no_request(fleet: Fleet) -> None:
    """Three sidecars and an archiver, one after the other, under load; each leaves the balancer a moment before it ends."""
    variables = {"JOBS_BACKUP_UPLOAD_FREQUENCY": "1s", "JOBS_BACKUP_SHUTDOWN_GRACE": "1s"}
    balancer = Balancer()
    stop = threading.Event()
    recorded: dict[int, list[str]] = {}
    failed: list[object] = []

    def load(client: int) -> None:
        for number in itertools.count(client, 4):
            if stop.is_set():
                return
            try:
                answer = balancer.post("/v1/events?source_id=web", [{"n": number}])
                assert answer.status == 200, answer
                recorded[number] = answer.json["jobs"]
            except Exception as error:  # noqa: BLE001 - whatever a client would meet
                failed.append(error)

    with contextlib.ExitStack() as stack:
        archiver = stack.enter_context(start("archive", env=fleet.host("archiver", **variables)))
        balancer.sidecars = [stack.enter_context(serve(fleet.host(f"old{one}", **variables))) for one in range(3)]
        clients = [threading.Thread(target=load, args=(client,)) for client in range(4)]
        for client in clients:
            client.start()
        for number, old in enumerate([*balancer.sidecars]):
            new = stack.enter_context(serve(fleet.host(f"new{number}", **variables)))
            balancer.sidecars = [*(one for one in balancer.sidecars if one is not old), new]
            time.sleep(0.3)
            code, stderr = old.end()
            assert code == 0, stderr
        successor = stack.enter_context(start("archive", env=fleet.host("successor", **variables)))
        archiver.terminate()
        _, stderr = archiver.communicate(timeout=60)
        assert archiver.returncode == 0, stderr
        fleet.server.terminate(fleet.database)  # as in a failover of the database
        time.sleep(1.0)
        stop.set()
        for client in clients:
            client.join()
        assert failed == []
        assert len(recorded) > 50
        wait_for(lambda: len(events(fleet.directory)) >= len(recorded))
        assert numbers(fleet.directory) == sorted(recorded)
        kept = min(recorded)
        ids = [job for number, jobs in recorded.items() if number != kept for job in jobs]
        for some in range(0, len(ids), 100):
            assert balancer.post("/v1/delivered", ids[some : some + 100]).status == 200
        wait_for(lambda: sum(1 for event in events(fleet.directory)) < len(recorded) and len(objects(fleet.directory)) == 1)
        assert kept in numbers(fleet.directory), "its object has an event that was not delivered"
        assert balancer.post("/v1/delivered", recorded[kept]).status == 200
        wait_for(lambda: objects(fleet.directory) == {})
        successor.terminate()
        _, stderr = successor.communicate(timeout=60)
        assert successor.returncode == 0, stderr
        for sidecar in balancer.sidecars:
            assert sidecar.end()[0] == 0
    assert fleet.rows("SELECT count(*) FROM jobs_backup.sessions") == [(0,)]


def test_events_come_back_by_the_catalog(fleet: Fleet) -> None:
    for host, first in (("a", 0), ("b", 100)):
        environment = fleet.host(host)
        file = ndjson(fleet.directory / host / "in", 100, first)
        summary("run", file, "--source-id", "web", env=environment)
    code, stdout, stderr = run("replay", env=fleet.host("c"))
    assert code == 0, stderr
    assert sorted(json.loads(line)["payload"]["n"] for line in stdout.splitlines()) == list(range(200))


def test_check_warns_of_what_breaks_the_promises(fleet: Fleet) -> None:
    """This server does not wait for its disk, and the user is a superuser."""
    code, stdout, stderr = run("check", "--json", env=fleet.host("a"))
    assert code == 0, stderr
    warnings = "\n".join(json.loads(stdout)["warnings"])
    assert "fsync=off" in warnings
    assert "superuser" in warnings


def test_without_a_server_the_error_says_so_and_shows_no_password(fleet: Fleet) -> None:
    url = "postgresql://user:canary-secret@127.0.0.1:1/events?sslmode=disable"
    for command in (["archive", "--once"], ["status"], ["replay"], ["check"]):
        code, stdout, stderr = run(*command, env=fleet.host("a", JOBS_BACKUP_SPOOL=url))
        assert code in (1, 2), command
        assert "postgresql://127.0.0.1:1/events" in stderr + stdout, command
        assert "canary" not in stderr + stdout, command


def place(fleet: Fleet) -> Any:
    return CoreSettings.from_environment(fleet.host("watcher")).spool_place


def tables(fleet: Fleet) -> bool:
    return fleet.rows("SELECT to_regclass('jobs_backup.acknowledged')") != [(None,)]


class TestRoles:
    """What `policy --spool` prints, run by an administrator."""

    @pytest.fixture
    def users(self, fleet: Fleet) -> Iterator[Fleet]:
        code, stdout, stderr = run("policy", "--spool", env={})
        assert code == 0, stderr
        tool = [str(BIN / "psql"), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--single-transaction"]
        with fleet.server.database() as other:  # its spool has made the roles, which belong to the server
            for database in (other, fleet.database):
                made = subprocess.run(
                    [*tool, fleet.server.url(database)], input=stdout, text=True, capture_output=True, check=False
                )
                assert made.returncode == 0, made.stderr
        roles = ("recorder", "archiver", "status")
        with fleet.server.admin() as connection:
            for role in roles:
                connection.execute(f"CREATE USER my_{role} IN ROLE jobs_backup_{role}")
            yield fleet
        with fleet.server.admin() as connection:
            fleet.server.drop(fleet.database)
            for role in (*(f"my_{role}" for role in roles), *(f"jobs_backup_{role}" for role in (*roles, "outbox", "owner"))):
                connection.execute(f"DROP ROLE {role}")

    def as_user(self, fleet: Fleet, role: str, **variables: str) -> dict[str, str]:
        url = fleet.server.url(fleet.database, user=f"my_{role}")
        return fleet.host(role, JOBS_BACKUP_SPOOL=url, **variables)

    def test_each_may_do_its_own(self, users: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        with recorder(self.as_user(users, "recorder"), 2500, "close") as (process, jobs):
            process.wait(60)
        assert len(jobs) == 2500
        with recorder(self.as_user(users, "recorder"), 10, "wait") as (killed, _):
            killed.kill()
            killed.wait()
            time.sleep(LEASE)
        assert run("check", env=self.as_user(users, "archiver"))[0] == 0
        found = summary("archive", "--once", env=self.as_user(users, "archiver"))
        assert found["complete"]
        code, stdout, stderr = run("status", "--json", env=self.as_user(users, "status"))
        assert code == 0, stderr
        assert json.loads(stdout)["events"] == 0
        assert len(run("replay", env=self.as_user(users, "status"))[1].splitlines()) == 2510
        found = summary("delivered", env=self.as_user(users, "archiver"), stdin="".join(f"{job}\n" for job in jobs))
        assert (found["unknown"], found["complete"]) == (0, True)
        assert len(events(users.directory)) == 10

    @pytest.mark.parametrize(
        ("role", "statement"),
        [
            ("status", "SELECT data FROM jobs_backup.chunks_1"),
            ("status", "SELECT upload FROM jobs_backup.uploads"),
            ("status", "SELECT data FROM jobs_backup.damages"),
            ("status", "DELETE FROM jobs_backup.batches"),
            ("status", "SELECT jobs_backup.drop_segment(1)"),
            ("recorder", "SELECT upload FROM jobs_backup.uploads"),
            ("recorder", "SELECT jobs_backup.drop_segment(1)"),
            ("recorder", "DROP TABLE jobs_backup.chunks_1"),
            ("recorder", "CREATE TABLE jobs_backup.mine (x int)"),
            ("archiver", "DROP TABLE jobs_backup.chunks_1"),
            ("archiver", "CREATE TABLE jobs_backup.mine (x int)"),
        ],
    )
    def test_and_nothing_else(self, users: Fleet, role: str, statement: str) -> None:
        with (
            psycopg.connect(users.server.url(users.database, user=f"my_{role}"), autocommit=True) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)

    @pytest.mark.parametrize(
        ("role", "privilege", "of"),
        [
            ("recorder", "INSERT", "TABLE jobs_backup.acknowledged"),
            ("recorder", "SELECT", "TABLE jobs_backup.segments"),
            ("recorder", "INSERT", "TABLE jobs_backup.chunks_1"),
            ("recorder", "UPDATE", "TABLE jobs_backup.totals"),
            ("recorder", "USAGE", "SEQUENCE jobs_backup.batch_numbers"),
            ("recorder", "USAGE", "SCHEMA jobs_backup"),
            ("recorder", "EXECUTE", "FUNCTION jobs_backup.open_events()"),
            ("archiver", "EXECUTE", "FUNCTION jobs_backup.drop_segment(bigint)"),
            ("archiver", "DELETE", "TABLE jobs_backup.uploads"),
        ],
    )
    def test_check_names_each_that_is_missing(self, users: Fleet, role: str, privilege: str, of: str) -> None:
        environment = self.as_user(users, role)
        assert run("check", env=environment)[0] == 0
        with users.server.admin(users.database) as connection:
            connection.execute(f"REVOKE {privilege} ON {of} FROM jobs_backup_{role}")
        code, stdout, stderr = run("check", env=environment)
        assert code == (2 if role == "recorder" else 0), stdout + stderr
        named = f"permission denied for {of.lower()}" if of.startswith("SCHEMA") else f"{of.partition(' ')[2]} ({privilege})"
        assert named in " ".join((stdout + stderr).split())

    def test_who_may_not_is_told_what_to_do(self, users: Fleet) -> None:
        code, _, stderr = run("archive", "--once", env=self.as_user(users, "status"))
        assert code in (1, 2)
        assert "permission denied" in stderr
        assert "policy --spool" in stderr

    def test_without_tables_check_says_so(self, fleet: Fleet) -> None:
        with fleet.server.admin() as connection:
            connection.execute("CREATE USER my_nobody")
        try:
            url = fleet.server.url(fleet.database, user="my_nobody")
            code, stdout, stderr = run("check", env=fleet.host("a", JOBS_BACKUP_SPOOL=url))
            assert code == 2, stdout + stderr
            assert "has no tables of a spool" in stdout + stderr
        finally:
            with fleet.server.admin() as connection:
                connection.execute("DROP USER my_nobody")
