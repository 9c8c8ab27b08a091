"""Where a spool in PostgreSQL is: the URL alone says it, and what is wrong with it does not pass by itself."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import start
from engines import PostgresqlEngine
from postgres import Postgres
from spools import claim, content, record

from jobs_backup.errors import SpoolError
from jobs_backup.model import Kind, Stream
from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.settings.values import DatabaseUrl
from jobs_backup.spool.engines import read_status
from jobs_backup.spool.ids import JobSet
from jobs_backup.spool.postgresql.connection import Busy, ConnectionLost, Database


@pytest.fixture
def engine(database_server: Postgres) -> Iterator[PostgresqlEngine]:
    with database_server.database() as database:
        yield PostgresqlEngine(database_server, database)


SERVICE = "[other]\nhostaddr=127.0.0.9\nport=1\ndbname=other\noptions=-c synchronous_commit=off\n"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGHOST", "other.example.com"),
        ("PGHOSTADDR", "127.0.0.9"),
        ("PGPORT", "1"),
        ("PGDATABASE", "other"),
        ("PGOPTIONS", "-c synchronous_commit=off"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGCLIENTENCODING", "LATIN1"),
        ("PGSERVICE", "other"),
        ("PGDATESTYLE", "German"),
        ("PGTZ", "Asia/Tokyo"),
    ],
)
def test_the_environment_does_not_change_it(
    engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str
) -> None:
    (tmp_path / "services").write_text(SERVICE)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv(variable, value)
    stream = Stream(Kind.RAW, "w", "\u20ac")
    spool = engine.open()
    record(spool, [b"{}\n"], stream=stream)
    spool.seal()
    assert claim(spool).stream == stream
    asked = "SELECT current_setting('synchronous_commit')"
    assert spool._database.read(lambda db: db.execute(asked).fetchone()) == ("on",)
    spool.close()


@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_isolation = 'serializable'",
        "default_transaction_isolation = 'repeatable read'",
        "search_path = 'nowhere'",
        "standard_conforming_strings = off",
        "bytea_output = 'escape'",
        "extra_float_digits = -15",
        "idle_in_transaction_session_timeout = '1ms'",
        "lock_timeout = '1ms'",
    ],
)
def test_the_databases_own_settings_do_not_change_it(engine: PostgresqlEngine, setting: str) -> None:
    if setting.startswith(("standard_conforming", "extra_float")) and engine.server.version() >= (19, 0):
        pytest.skip("it is not there any more")
    with engine.server.admin() as connection:
        connection.execute(f"ALTER DATABASE {engine.database} SET {setting}")
    spool, other = engine.open(), engine.open()
    jobs = JobSet()
    for _ in range(50):
        for one in (spool, other):
            jobs.add(record(one, [b"{}\n"])[0][0])
    spool.seal()
    engine.die(other)
    assert spool.recover() == 1
    batches = [claim(spool) for _ in range(2)]
    assert [gzip.decompress(content(spool, batch)) for batch in batches] == [b"{}\n" * 50] * 2
    spool.delivered(jobs)
    for batch in batches:
        spool.stored(batch)
    assert {one.batch for one in spool.claim_deletes(10)} == {batch.id for batch in batches}
    spool.close()


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("postgres@127.0.0.1:{port}/nowhere?sslmode=disable", "does not exist"),
        ("nobody@127.0.0.1:{port}/{database}?sslmode=disable", "does not exist"),
        ("postgres@127.0.0.1:{port}/{database}?sslmode=any", "invalid sslmode"),
        ("postgres@127.0.0.1:{port}/{database}?sslmode=require", "does not support SSL"),
        ("postgres@127.0.0.1:{port}/{database}?sslmode=verify-full&sslrootcert=/nonexistent", "SSL|root certificate"),
        ("postgres@127.0.0.1:{port}/{database}?target_session_attrs=some", "invalid target_session_attrs"),
    ],
)
def test_what_does_not_pass_by_itself_is_not_retried(engine: PostgresqlEngine, rest: str, why: str) -> None:
    url = DatabaseUrl("postgresql://" + rest.format(port=engine.server.port, database=engine.database))
    with pytest.raises(SpoolError, match=why) as raised:
        read_status(DatabaseSpool(url))
    assert not raised.value.retryable
    assert "JOBS_BACKUP_SPOOL" in raised.value.hint


def test_too_many_connections_are_said_and_retried(engine: PostgresqlEngine) -> None:
    with engine.server.admin() as connection:
        connection.execute("CREATE ROLE few LOGIN SUPERUSER")
        connection.execute("ALTER ROLE few NOSUPERUSER CONNECTION LIMIT 1")
    try:
        place = DatabaseSpool(DatabaseUrl(engine.server.url(engine.database, user="few")))
        database = Database(place, connections=1)
        database.read(lambda db: db.execute("SELECT 1").fetchone())
        with pytest.raises(ConnectionLost, match="too many connections") as raised:
            Database(place, connections=1)
        assert "pgbouncer" in raised.value.hint
        database.close()
    finally:
        with engine.server.admin() as connection:
            connection.execute("DROP ROLE few")


def test_a_pool_that_is_used_up_may_be_tried_again(engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs_backup.spool.postgresql.connection._WAIT_SECONDS", 0.2)
    database = Database(engine.place, connections=1)  # type: ignore[arg-type]
    with pytest.raises(Busy, match="all connections are in use") as raised:
        database.use(lambda _: database.use(lambda db: db.execute("SELECT 1").fetchone()))
    assert raised.value.retryable
    database.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me@%2Ftmp/events?host=other.example.com",
        "postgresql://me@one/events?host=two",
        "postgresql://me@one/events?dbname=two",
        "postgresql://me@one/events?service=two",
    ],
)
def test_a_url_that_says_two_things_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="only there"):
        DatabaseUrl(url)


@pytest.mark.parametrize("url", ["postgresql:///events?host=/tmp,db.example.com", "postgresql://me@%2Ftmp,db.example.com/events"])
def test_a_socket_among_hosts_does_not_do_without_tls(url: str) -> None:
    assert not DatabaseUrl(url).is_local
    assert DatabaseUrl(url).has_several_hosts


def test_the_password_command_reads_no_events(engine: PostgresqlEngine, tmp_path: Path) -> None:
    """It inherits the standard input of `run -`, unless something is done about it."""
    (tmp_path / "bucket").mkdir()
    greedy = f"{sys.executable} -c 'import sys; sys.stdin.read(); print(1)'"
    environment = {
        "PATH": os.environ["PATH"],
        "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
        "JOBS_BACKUP_BUCKET": str(tmp_path / "bucket"),
        "JOBS_BACKUP_SPOOL": engine.server.url(engine.database),
        "JOBS_BACKUP_SPOOL_PASSWORD_COMMAND": greedy,
        "INSTANCE_ID": "a",
    }
    with start("run", "-", "--source-id", "web", "--json", env=environment, cwd=tmp_path, stdin=-1) as process:
        out, err = process.communicate('{"n":1}\n{"n":2}\n', timeout=60)
    assert process.returncode == 0, err
    assert '"events":2' in out.replace(" ", ""), out
