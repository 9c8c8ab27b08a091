"""A fleet while it is updated: processes of the version before go on beside those of this one.

`tests/data/jobs-backup-tables-1.zip` is the program as it was when its tables had version 1 (without `jobs_backup.testing`). It
runs as itself, from the archive.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from buckets import FAST_RETRY, events, objects
from commands import ndjson, numbers, run, summary
from places import TESTS
from postgres import BIN, Postgres

from jobs_backup import Backup
from jobs_backup.errors import SpoolError
from jobs_backup.spool.engines import check, read_status
from jobs_backup.spool.postgresql.schema import MIGRATIONS, TABLES, VERSION

BEFORE = TESTS / "data/jobs-backup-tables-1.zip"
RECORDER = """
import os, sys
from jobs_backup import Backup
from jobs_backup.spool.postgresql.schema import VERSION
with Backup.from_env(os.environ) as backup:
    print(VERSION, flush=True)
    for line in sys.stdin:
        command, *words = line.split()
        if command == "record":
            jobs = backup.record_many([b'{"n":%d}' % n for n in range(int(words[0]), int(words[1]))], source_id="web")
            print(*map(str, jobs), flush=True)
        elif command == "delivered":
            backup.delivered(map(int, words))
            print("ok", flush=True)
        else:
            backup.flush(60)
            print("ok", flush=True)
"""


class Fleet:
    """A database and a bucket."""

    def __init__(self, directory: Path, server: Postgres, database: str) -> None:
        self.directory = directory
        self.server = server
        self.database = database
        (directory / "bucket").mkdir()

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
            "JOBS_BACKUP_BUCKET": str(self.directory / "bucket"),
            "JOBS_BACKUP_SPOOL": self.server.url(self.database),
            "INSTANCE_ID": "host",
            **FAST_RETRY,
            **variables,
        }

    def execute(self, text: str) -> list[tuple[Any, ...]]:
        with self.server.admin(self.database) as connection:
            cursor = connection.execute(text)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def process(self, *, before: bool) -> Iterator[Callable[..., list[str]]]:
        """Run a process of this version, or of the one before. Yields a function that sends it a command and returns the answer."""
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **self.environment()}
        if before:
            environment["PYTHONPATH"] = str(BEFORE)
        command = [sys.executable, "-c", RECORDER]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            stdin, stdout = process.stdin, process.stdout
            assert stdin is not None
            assert stdout is not None
            assert stdout.readline() == f"{1 if before else VERSION}\n"

            def tell(*words: object) -> list[str]:
                print(*words, file=stdin, flush=True)
                answer = stdout.readline().split()
                assert answer, "it has ended"
                return answer

            yield tell
            stdin.close()
            assert process.wait(60) == 0


@pytest.fixture
def fleet(tmp_path: Path, database_server: Postgres) -> Iterator[Fleet]:
    with database_server.database() as database:
        yield Fleet(tmp_path, database_server, database)


def test_both_versions_side_by_side(fleet: Fleet) -> None:
    """The one before makes the tables, this one upgrades them, and both record, upload and acknowledge each other's events."""
    with fleet.process(before=True) as old:
        first = old("record", 0, 1000)
        assert fleet.execute("SELECT version, oldest FROM jobs_backup.version") == [(1, 1)]
        with fleet.process(before=False) as new:
            assert fleet.execute("SELECT version, oldest FROM jobs_backup.version") == [(VERSION, 1)]
            assert fleet.execute("SELECT version FROM jobs_backup.sessions ORDER BY began_at") == [(1,), (VERSION,)]
            assert old("flush") == ["ok"]
            second = new("record", 1000, 2000)
            third = old("record", 2000, 3000)
            assert new("flush") == ["ok"]
            assert old("flush") == ["ok"]
            assert numbers(fleet.directory) == list(range(3000))
            assert new("delivered", *first) == ["ok"]
            assert old("delivered", *second) == ["ok"]
            wait_for(lambda: numbers(fleet.directory) == list(range(2000, 3000)))
        with fleet.process(before=True) as another:  # it is restarted as it was
            assert another("delivered", *third) == ["ok"]
            wait_for(lambda: objects(fleet.directory) == {})


def test_each_takes_the_place_of_the_other(fleet: Fleet) -> None:
    """What a dead process has left open is sealed and uploaded by one of the other version."""
    for before in (True, False):
        with fleet.process(before=before) as one:
            one("record", 0, 100)
            ((session,),) = fleet.execute("SELECT id FROM jobs_backup.sessions")
            with fleet.process(before=not before) as other:

                def is_sent(session: str = session) -> bool:
                    # It is alive, and renews its lease.
                    fleet.execute(f"UPDATE jobs_backup.sessions SET lease_until = 0 WHERE id = '{session}'")
                    return len(events(fleet.directory)) == 100

                wait_for(is_sent)
                other("flush")
        for path in (fleet.directory / "bucket").rglob("*.json.gz"):
            path.unlink()


def test_new_and_upgraded_tables_are_the_same(fleet: Fleet, database_server: Postgres) -> None:
    with fleet.process(before=True):
        pass
    with fleet.process(before=False):
        pass
    with database_server.database() as database:
        fresh = Fleet.__new__(Fleet)
        fresh.directory, fresh.server, fresh.database = fleet.directory, database_server, database
        with fresh.process(before=False):
            pass
        for text in (
            "SELECT table_name, column_name, data_type, column_default, is_nullable FROM information_schema.columns"
            " WHERE table_schema = 'jobs_backup' AND table_name !~ '^chunks_' ORDER BY table_name, ordinal_position",
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'jobs_backup' AND tablename !~ '^chunks_' ORDER BY 1",
            "SELECT version, oldest FROM jobs_backup.version",
        ):
            assert fleet.execute(text) == fresh.execute(text) != []


def test_tables_of_a_newer_version_that_only_adds(fleet: Fleet) -> None:
    """As a later version may make them."""
    with fleet.process(before=False):
        pass
    fleet.execute("ALTER TABLE jobs_backup.batches ADD COLUMN later integer")
    fleet.execute("CREATE TABLE jobs_backup.later (id integer)")
    fleet.execute(f"UPDATE jobs_backup.version SET version = {VERSION + 1}, oldest = {VERSION}")
    with fleet.process(before=False) as one:
        jobs = one("record", 0, 100)
        one("flush")
        one("delivered", *jobs)
    assert run("status", env=fleet.environment())[0] == 0
    assert fleet.execute("SELECT version, oldest FROM jobs_backup.version") == [(VERSION + 1, VERSION)]


def test_tables_that_are_too_new(fleet: Fleet) -> None:
    with fleet.process(before=False):
        pass
    fleet.execute(f"UPDATE jobs_backup.version SET version = {VERSION + 2}, oldest = {VERSION + 1}")
    for command in (["archive", "--once"], ["status"], ["replay"], ["check"]):
        code, stdout, stderr = run(*command, env=fleet.environment())
        assert code in (1, 2), command
        versions = f"its tables are for versions {VERSION + 1} to {VERSION + 2}, this one knows {VERSION}"
        assert f"needs a newer version of jobs-backup ({versions})" in stdout + stderr, command
    with pytest.raises(SpoolError, match="needs a newer version"):
        read_status(fleet.server.place(fleet.database))


def test_a_watcher_that_is_updated_first(fleet: Fleet) -> None:
    with fleet.process(before=True):
        code, _, stderr = run("status", env=fleet.environment())
        assert code == 2
        assert "has tables of an earlier version: the next process that opens it" in stderr
        assert fleet.execute("SELECT version FROM jobs_backup.version") == [(1,)], "it only reads"


def test_an_upgrade_waits_for_nobody_for_long(fleet: Fleet) -> None:
    """`pg_dump` holds all tables; whoever waits for one of them would hold up all heartbeats."""
    with fleet.process(before=True) as old:
        with fleet.server.admin(fleet.database) as dump:
            dump.execute("BEGIN")
            dump.execute("LOCK TABLE jobs_backup.sessions IN ACCESS SHARE MODE")
            code, _, stderr = run("archive", "--once", env=fleet.environment())
            assert code == 1, stderr
            assert "or try again later" in stderr
            old("record", 0, 10)
        assert summary("archive", "--once", env=fleet.environment())["complete"] is not None
        assert fleet.execute("SELECT version FROM jobs_backup.version") == [(VERSION,)]


def test_a_spool_is_moved_only_where_all_know_its_ids(fleet: Fleet, tmp_path: Path) -> None:
    """A process of the version before would not know them, and read the machine's files again."""
    local = {**fleet.environment(), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
    del local["JOBS_BACKUP_SPOOL"]
    assert summary("run", ndjson(tmp_path / "in", 10), "--source-id", "web", env=local)["complete"]
    both = {**local, **fleet.environment()}
    with fleet.process(before=True):
        code, _, stderr = run("spool", "move", env=both)
        assert code == 2
        assert re.search(r"process \d+ on host has an earlier version of jobs-backup.*update it first", stderr)
    assert run("spool", "move", env=both)[0] == 0
    assert fleet.execute("SELECT version, oldest FROM jobs_backup.version") == [(VERSION, 2)]
    refused = subprocess.run(
        [sys.executable, "-m", "jobs_backup", "archive", "--once"],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(BEFORE), **fleet.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "was made by a newer version of jobs-backup: update jobs-backup" in refused.stderr


def test_migrations_only_add() -> None:
    """So that processes of the version before go on. What it removes, the version after it may: then this test says which."""
    allowed = (
        r"CREATE TABLE|CREATE (UNIQUE )?INDEX|CREATE FUNCTION|ALTER TABLE \S+ ADD COLUMN|UPDATE jobs_backup\.version|INSERT INTO"
        r"|ALTER TABLE (\S+) DROP CONSTRAINT (\S+), ADD CONSTRAINT \3 CHECK"  # it allows more
        r"|ALTER TABLE \S+ ALTER COLUMN \S+ SET STORAGE|REVOKE EXECUTE ON FUNCTION"  # of what it creates
    )
    for version, text in MIGRATIONS.items():
        for statement in re.sub(r"--[^\n]*|\$\$.*?\$\$", "", text, flags=re.DOTALL).split(";"):
            found = " ".join(statement.split())
            assert not found or re.match(allowed, found), f"{version}: {found}"
            if "ADD COLUMN" in found:
                assert "NOT NULL" not in found or "DEFAULT" in found, f"{version}: {found}"
    assert sorted(MIGRATIONS) == list(range(1, VERSION))
    assert "version VALUES (1, 1)" in TABLES


class TestLeastPrivilege:
    """Who uses the tables may not change them: their administrator does."""

    @pytest.fixture
    def users(self, fleet: Fleet) -> Iterator[Fleet]:
        policy = subprocess.run(
            [sys.executable, "-m", "jobs_backup", "policy", "--spool"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(BEFORE)},
            capture_output=True,
            text=True,
            check=True,
        )
        self.administer(fleet, policy.stdout)
        with fleet.server.admin() as connection:
            for role in ("archiver", "status"):
                connection.execute(f"CREATE USER my_{role} IN ROLE jobs_backup_{role}")
        try:
            yield fleet
        finally:
            fleet.server.drop(fleet.database)
            with fleet.server.admin() as connection:
                for role in (
                    "my_archiver",
                    "my_status",
                    *(f"jobs_backup_{one}" for one in ("recorder", "archiver", "status", "outbox", "owner")),
                ):
                    connection.execute(f"DROP ROLE IF EXISTS {role}")

    def administer(self, fleet: Fleet, text: str) -> None:
        tool = [str(BIN / "psql"), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--single-transaction"]
        made = subprocess.run([*tool, fleet.server.url(fleet.database)], input=text, text=True, capture_output=True, check=False)
        assert made.returncode == 0, made.stderr

    def test_the_administrator_upgrades(self, users: Fleet, tmp_path: Path) -> None:
        archiver = users.environment(JOBS_BACKUP_SPOOL=users.server.url(users.database, user="my_archiver"))
        status = users.environment(JOBS_BACKUP_SPOOL=users.server.url(users.database, user="my_status"))
        for user, why in (
            (archiver, "this user may not upgrade them"),
            (users.environment(), "version 2 needs the role jobs_backup_outbox"),
        ):
            for command in (["archive", "--once"], ["check"]):
                code, stdout, stderr = run(*command, env=user)
                assert code == 2, stdout + stderr
                assert f"tables of version 1, and {why}" in stdout + stderr
                assert "policy --spool --upgrade" in stdout + stderr
        code, upgrade, _ = run("policy", "--spool", "--upgrade", env={})
        assert code == 0
        self.administer(users, upgrade)
        self.administer(users, upgrade)  # again does no harm
        assert users.execute("SELECT version, oldest FROM jobs_backup.version") == [(VERSION, 1)]
        assert run("check", env=archiver)[0] == 0
        local = {**users.environment(), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
        del local["JOBS_BACKUP_SPOOL"]
        found = summary("run", ndjson(tmp_path / "in", 10), "--source-id", "web", env=local)
        assert found["complete"]
        assert run("spool", "move", env={**local, "JOBS_BACKUP_SPOOL": status["JOBS_BACKUP_SPOOL"]})[0] == 2
        code, stdout, stderr = run("spool", "move", env={**local, "JOBS_BACKUP_SPOOL": archiver["JOBS_BACKUP_SPOOL"]})
        assert code == 0, stderr
        assert len(run("replay", env=status)[1].splitlines()) == 10
        with psycopg.connect(users.server.url(users.database, user="my_status")) as connection:
            assert connection.execute("SELECT count(*) FROM jobs_backup.moves").fetchone() == (1,)
        users.execute("GRANT jobs_backup_outbox TO my_status")
        with (
            Backup.from_env(archiver) as backup,
            psycopg.connect(users.server.url(users.database, user="my_status")) as connection,
        ):
            backup.record({"n": 10}, source_id="web", connection=connection)
            connection.commit()
            backup.flush(30)
        assert len(run("replay", env=status)[1].splitlines()) == 11


def wait_for(what: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.05)


def test_check_knows_the_tables(fleet: Fleet) -> None:
    with fleet.process(before=True):
        pass
    assert any("superuser" in warning for warning in check(fleet.server.place(fleet.database), 0)), "it may upgrade them"
