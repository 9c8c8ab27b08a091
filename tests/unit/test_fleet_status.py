"""What `status` and the metrics say of a spool in PostgreSQL: leases, takeovers, segments, snapshots, connections."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from commands import run
from engines import PostgresqlEngine
from postgres import Postgres
from scrapes import parse, value
from spools import record

from jobs_backup import Backup, SpoolError
from jobs_backup.backup.backup import session_of
from jobs_backup.monitoring.health import metrics_page
from jobs_backup.spool.engines import read_status
from jobs_backup.spool.postgresql.spool import PostgresqlSpool
from jobs_backup.spool.status import DatabaseStatus, Limits, Status

LEASE = 60.0


@pytest.fixture
def engine(database_server: Postgres) -> Iterator[PostgresqlEngine]:
    with database_server.database() as database:
        yield PostgresqlEngine(database_server, database, lease=LEASE)


@pytest.fixture
def spool(engine: PostgresqlEngine) -> Iterator[PostgresqlSpool]:
    with contextlib.closing(engine.open()) as spool:
        yield spool


def database_of(status: Status) -> DatabaseStatus:
    assert status.database is not None
    return status.database


@contextlib.contextmanager
def no_new_connections(engine: PostgresqlEngine) -> Iterator[None]:
    """The server refuses every new connection to the spool's database, and leaves those that are open."""
    alter = f"ALTER DATABASE {engine.database} WITH ALLOW_CONNECTIONS"
    with engine.server.admin() as connection:
        connection.execute(f"{alter} false")
        try:
            yield
        finally:
            connection.execute(f"{alter} true")


def test_each_process_has_its_lease(engine: PostgresqlEngine, spool: PostgresqlSpool) -> None:
    with contextlib.closing(engine.open()) as other:
        leases = [one.lease for one in read_status(engine.place).processes]
        assert len(leases) == 2
        assert all(lease is not None and LEASE - 10 < lease <= LEASE for lease in leases)
        assert LEASE - 10 < spool.member.lease <= LEASE
        engine.expire(other.session)
        assert sorted((one.alive, one.lease == 0) for one in read_status(engine.place).processes) == [(False, True), (True, False)]


def test_takeovers_are_counted_by_both_sides(engine: PostgresqlEngine, spool: PostgresqlSpool) -> None:
    with contextlib.closing(engine.open()) as frozen:
        record(frozen, [b"{}\n"])
        engine.expire(frozen.session)
        assert (spool.member.takeovers, frozen.member.lost_sessions) == (0, 0)
        assert spool.recover() == 1
        assert (spool.member.takeovers, spool.member.lost_sessions) == (1, 0)
        record(frozen, [b"{}\n"])
        assert (frozen.member.takeovers, frozen.member.lost_sessions) == (0, 1)


def test_segments_are_counted_and_only_full_ones_age(engine: PostgresqlEngine, spool: PostgresqlSpool) -> None:
    empty = database_of(read_status(engine.place))
    assert (empty.segments, empty.oldest_segment) == (1, 0)
    record(spool, [b"%d\n" % number for number in range(5000)])
    used = database_of(read_status(engine.place))
    assert used.segment_bytes > empty.segment_bytes > 0
    with engine.server.admin(engine.database) as connection:
        connection.execute("UPDATE jobs_backup.segments SET opened_at = opened_at - 7200")
        assert database_of(read_status(engine.place)).oldest_segment == 0, "it takes the next batch, however old it is"
        connection.execute("SELECT jobs_backup.add_segment(1)")
        found = database_of(read_status(engine.place))
        assert (found.segments, 7200 <= found.oldest_segment < 7300) == (2, True)
        spool.seal()
        connection.execute("UPDATE jobs_backup.batches SET state = 'stored'")
        connection.execute("SELECT jobs_backup.drop_segment(1)")
    assert database_of(read_status(engine.place)).segments == 1


def test_a_snapshot_that_is_held_ages_with_each_transaction(engine: PostgresqlEngine, spool: PostgresqlSpool) -> None:
    with psycopg.connect(engine.server.url(engine.database)) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT 1")
        before = database_of(read_status(engine.place)).xmin_age
        for _ in range(30):
            record(spool, [b"{}\n"])
        assert database_of(read_status(engine.place)).xmin_age >= before + 30
    record(spool, [b"{}\n"])
    assert database_of(read_status(engine.place)).xmin_age < before + 30


def test_a_snapshot_in_another_database_holds_nothing_here(engine: PostgresqlEngine, spool: PostgresqlSpool) -> None:
    with engine.server.database() as other, psycopg.connect(engine.server.url(other)) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT 1")
        for _ in range(30):
            record(spool, [b"{}\n"])
        assert database_of(read_status(engine.place)).xmin_age < 30


def test_the_pool_and_who_waits_for_it(spool: PostgresqlSpool) -> None:
    def hold(_: object) -> None:
        holding.release()
        done.wait(60)

    most = spool.member.max_connections
    holding, done = threading.Semaphore(0), threading.Event()
    threads = [threading.Thread(target=spool._database.use, args=(hold,)) for _ in range(most + 1)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(most):
            assert holding.acquire(timeout=30)
        until = time.monotonic() + 30
        while not spool.member.waiting:
            assert time.monotonic() < until
            time.sleep(0.01)
        found = spool.member
        assert (found.connections, found.idle, found.waiting) == (most, 0, 1)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert (spool.member.waiting, spool.member.idle) == (0, most)


def test_a_process_that_has_connections_opens_none_to_look(engine: PostgresqlEngine, spool: PostgresqlSpool) -> None:
    record(spool, [b"{}\n"])
    with no_new_connections(engine):
        with pytest.raises(SpoolError, match="not currently accepting connections"):
            read_status(engine.place)
        status = spool.status(Limits(), None)
        member = database_of(status).member
        assert member is not None
        assert (status.events, member.max_connections) == (1, 6)
        assert spool.watch(Limits(), None)[0].events == 1


def test_a_closed_one_can_still_be_looked_at(engine: PostgresqlEngine) -> None:
    spool = engine.open()
    record(spool, [b"{}\n"])
    spool.close()
    assert spool.status(Limits(), None).events == 1
    assert spool.watch(Limits(), None)[0].processes == []


def environment(engine: PostgresqlEngine, directory: Path) -> dict[str, str]:
    (directory / "bucket").mkdir(exist_ok=True)
    return {
        "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
        "JOBS_BACKUP_BUCKET": str(directory / "bucket"),
        "JOBS_BACKUP_SPOOL": engine.server.url(engine.database),
        "JOBS_BACKUP_SPOOL_LEASE": f"{LEASE:.0f}s",
        "INSTANCE_ID": "host-1",
    }


def test_the_metrics(engine: PostgresqlEngine, tmp_path: Path) -> None:
    with Backup.from_env(environment(engine, tmp_path)) as backup:
        backup.record({}, source_id="web")
        dead = engine.open()
        record(dead, [b"{}\n"])
        with no_new_connections(engine):
            samples = parse(metrics_page(backup, "")[0].decode())
        assert value(samples, "scrape_errors_total") == 0
        assert LEASE - 10 < value(samples, "fleet_lease_seconds") <= LEASE
        assert value(samples, "fleet_expired_leases") == 0
        assert value(samples, "fleet_segments") == 1
        assert value(samples, "fleet_segment_bytes") > 0
        assert value(samples, "fleet_oldest_segment_seconds") == 0
        assert value(samples, "fleet_xmin_age_transactions") < 1000
        assert value(samples, "fleet_max_connections") == 12
        assert value(samples, "fleet_waiting_threads") == 0
        connections = value(samples, "fleet_connections", state="idle")
        assert 1 <= connections + value(samples, "fleet_connections", state="used") <= 12
        engine.die(dead)
        until = time.monotonic() + 30
        while session_of(backup).spool.status(Limits(), None).processes[1:]:
            assert time.monotonic() < until, "the archiver takes over"
            time.sleep(0.05)
        backup.flush(60)
    samples = parse(metrics_page(backup, "")[0].decode())
    assert value(samples, "fleet_takeovers_total") == 1
    assert value(samples, "fleet_lost_sessions_total") == 0


def test_the_command(engine: PostgresqlEngine, spool: PostgresqlSpool, tmp_path: Path) -> None:
    record(spool, [b"{}\n"])
    code, stdout, stderr = run("status", env=environment(engine, tmp_path))
    assert code == 0, stderr
    assert "unless it is renewed" in stdout
    assert "server: 1 table with " in stdout
    (process,) = json.loads(run("status", "--json", env=environment(engine, tmp_path))[1])["processes"]
    assert LEASE - 10 < process["lease"] <= LEASE
