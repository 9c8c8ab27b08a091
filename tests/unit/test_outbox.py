"""Recording in the application's own transaction: an event exists if and only if that transaction commits."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from buckets import FAST_RETRY, events
from engines import PostgresqlEngine
from postgres import Postgres, wait_for_locks
from spools import APP, LIMITS, WEB, claim, content
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from jobs_backup import AsyncBackup, Backup, ConfigurationError, Event, InvalidEvent, SpoolError, SpoolFull, UnknownJob
from jobs_backup.model import Kind, Stream
from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.settings.values import DatabaseUrl
from jobs_backup.spool.engines import read_status, spool_policy
from jobs_backup.spool.ids import JobSet
from jobs_backup.spool.interface import BatchLimits, QuotaLimits, Recording
from jobs_backup.spool.postgresql import collector
from jobs_backup.spool.postgresql.spool import PostgresqlSpool
from jobs_backup.spool.status import Limits

ROLES = [f"jobs_backup_{name}" for name in ("outbox", "recorder", "archiver", "status", "owner")]


@pytest.fixture
def engine(database_server: Postgres) -> Iterator[PostgresqlEngine]:
    with database_server.database() as database:
        yield PostgresqlEngine(database_server, database)


def connect(engine: PostgresqlEngine, **options: Any) -> psycopg.Connection[Any]:
    """A connection of the application."""
    return psycopg.connect(engine.server.url(engine.database), **options)


def enter(
    spool: PostgresqlSpool, connection: psycopg.Connection[Any], lines: list[bytes], stream: Stream = WEB, at: int = 1_000_000
) -> list[int]:
    recording = Recording(stream, lines, first_at=at, last_at=at)
    spool.entry([recording]).write(connection)
    return list(recording.ids())


def line(number: int) -> bytes:
    return b'{"n":%d}\n' % number


def drain(spool: PostgresqlSpool) -> Counter[int]:
    """Seal and store everything: number -> how often it was there."""
    found: Counter[int] = Counter()
    spool.seal()
    while (claimed := spool.claim()) is not None:
        batch = claimed.batch
        lines = gzip.decompress(content(spool, batch)).splitlines(keepends=True)
        assert (batch.events, batch.raw_bytes) == (len(lines), sum(map(len, lines)))
        assert batch.crc32c == spool.open_body(batch).crc32c()
        found.update(json.loads(one)["n"] for one in lines)
        spool.stored(batch)
    return found


def jobs_of(ids: list[int]) -> JobSet:
    jobs = JobSet()
    for id_ in ids:
        jobs.add(id_)
    return jobs


class TestTransactions:
    def test_committed_events_are_there_and_others_are_not(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        with connect(engine) as connection:
            enter(spool, connection, [line(0)])
        with connect(engine) as connection:
            enter(spool, connection, [line(1)])
            connection.rollback()
        with connect(engine) as connection, connection.transaction():
            enter(spool, connection, [line(2)])
            with connection.transaction(force_rollback=True):
                enter(spool, connection, [line(3)])
            with connection.transaction():
                enter(spool, connection, [line(4)])
        assert drain(spool) == Counter([0, 2, 4])
        spool.close()

    def test_a_long_transaction_holds_up_nothing_and_comes_later(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        with connect(engine) as connection, connect(engine) as slow:
            late = enter(spool, slow, [line(0)])
            early = enter(spool, connection, [line(1)])
            connection.commit()
            assert drain(spool) == Counter([1])
            spool.maintain()
            assert list(spool.delivered(jobs_of([*late, *early]))) == late, "nobody knows yet whether it will exist"
            (due,) = spool.claim_deletes(10)  # this object need not wait for it
            spool.deleted([due])
            slow.commit()
        assert not spool.delivered(jobs_of(late))
        assert drain(spool) == Counter([0])
        assert len(spool.claim_deletes(10)) == 1
        spool.close()

    @pytest.mark.parametrize("level", [*psycopg.IsolationLevel])
    def test_any_isolation_level(self, engine: PostgresqlEngine, level: psycopg.IsolationLevel) -> None:
        """Two transactions at once, while the spool works, do not get into each other's way."""
        spool = engine.open()
        with connect(engine) as one, connect(engine) as other:
            for connection in (one, other):
                connection.isolation_level = level
                connection.execute("SELECT count(*) FROM pg_class")
            for number in range(5):
                enter(spool, one, [line(2 * number)])
                spool.append([Recording(WEB, [line(100 + number)], first_at=1, last_at=1)])
                enter(spool, other, [line(2 * number + 1)])
                spool.seal()
            one.commit()
            spool.seal()
            other.commit()
        assert drain(spool) == Counter([*range(10), *range(100, 105)])
        spool.close()

    def test_two_phases(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        for number, name in enumerate(("kept", "dropped")):
            connection = connect(engine)
            connection.tpc_begin(connection.xid(1, name, engine.database))
            enter(spool, connection, [line(number)])
            connection.tpc_prepare()
            connection.close()
        assert drain(spool) == Counter()
        with connect(engine) as connection:
            connection.tpc_commit(connection.xid(1, "kept", engine.database))
            connection.tpc_rollback(connection.xid(1, "dropped", engine.database))
        assert drain(spool) == Counter([0])
        spool.close()

    def test_the_order_and_bytes_of_many_events(self, engine: PostgresqlEngine) -> None:
        """Of more than a row, a member, and a batch; and their ids are those of their lines."""
        spool = engine.open(limits=BatchLimits(events=5000, bytes=1 << 30, age=300))
        lines = [b'{"n":%d,"x":"%0500d"}\n' % (number, number * 7919) for number in range(12_000)]
        with connect(engine) as connection:
            ids = [id_ for start in (0, 3, 5000) for id_ in enter(spool, connection, lines[start : {0: 3, 3: 5000}.get(start)])]
        assert len(set(ids)) == 12_000
        spool.seal()
        found = list[bytes]()
        sizes = list[int]()
        while spool.has_claimable():
            batch = claim(spool)
            sizes.append(batch.events)
            found += gzip.decompress(content(spool, batch)).splitlines(keepends=True)
            spool.stored(batch)
        assert found == lines
        assert max(sizes) <= 5000
        assert not spool.delivered(jobs_of(ids[:-1]))
        due = spool.claim_deletes(10)
        assert len(due) == len(sizes) - 1
        spool.deleted(due)
        assert not spool.delivered(jobs_of(ids[-1:]))
        assert len(spool.claim_deletes(10)) == 1
        spool.close()

    def test_a_pipeline(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        with connect(engine, autocommit=True) as connection, connection.pipeline(), connection.transaction():
            connection.execute("CREATE TABLE orders (n integer)")
            enter(spool, connection, [line(0)])
            connection.execute("INSERT INTO orders VALUES (1)")
            enter(spool, connection, [line(1)])
        assert drain(spool) == Counter([0, 1])
        spool.close()

    def test_the_applications_own_way_of_using_its_connection(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        options = {"row_factory": psycopg.rows.dict_row, "cursor_factory": psycopg.ClientCursor, "prepare_threshold": 0}
        query = "SELECT count(*) AS count FROM pg_prepared_statements WHERE statement ~ 'outbox'"
        with connect(engine, **options) as connection:
            connection.execute("CREATE SCHEMA jobs; SET search_path = jobs; SET application_name = 'app'")
            for number in range(3):
                enter(spool, connection, [line(number)])
            assert connection.execute("SELECT 1 AS one").fetchone() == {"one": 1}
            assert connection.execute(query).fetchone() == {"count": 0}, "a pooler may give it to another client"
        assert drain(spool) == Counter([0, 1, 2])
        spool.close()


class TestRefusals:
    def test_another_database(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        with engine.server.database() as other, psycopg.connect(engine.server.url(other)) as connection:
            with pytest.raises(ConfigurationError, match="another database than the spool"):
                enter(spool, connection, [line(0)])
            connection.rollback()
            there = PostgresqlEngine(engine.server, other)
            there.open().close()
            with pytest.raises(ConfigurationError, match="another database than the spool"):
                enter(spool, connection, [line(0)])
            connection.commit()
            with connect(there) as looking:
                assert looking.execute("SELECT count(*) FROM jobs_backup.outbox").fetchone() == (0,)
        spool.close()

    def test_autocommit_without_a_transaction(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        with connect(engine, autocommit=True) as connection:
            with pytest.raises(ConfigurationError, match="autocommit"):
                enter(spool, connection, [line(0)])
            with connection.transaction():
                enter(spool, connection, [line(1)])
            connection.execute("BEGIN")
            enter(spool, connection, [line(2)])
            connection.execute("COMMIT")
        assert drain(spool) == Counter([1, 2])
        spool.close()

    def test_what_the_application_knows_from_its_own_statements(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        connection = connect(engine)
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1 / 0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            enter(spool, connection, [line(0)])
        connection.rollback()
        connection.read_only = True
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            enter(spool, connection, [line(0)])
        connection.close()
        with pytest.raises(psycopg.OperationalError, match="closed"):
            enter(spool, connection, [line(0)])
        spool.close()

    @pytest.mark.parametrize("given", [object(), "postgresql://localhost/x", 1], ids=["object", "url", "number"])
    def test_something_else(self, engine: PostgresqlEngine, given: object) -> None:
        spool = engine.open()
        with pytest.raises(ConfigurationError, match=r"takes psycopg\.Connection") as raised:
            spool.entry([Recording(WEB, [line(0)], first_at=1, last_at=1)]).write(given)
        assert "SQLAlchemy" in raised.value.hint
        spool.close()

    def test_a_full_spool(self, engine: PostgresqlEngine) -> None:
        spool = engine.open(room=QuotaLimits(max_bytes=20_000))
        with connect(engine) as connection:
            for number in range(20):
                enter(spool, connection, [b'{"n":%d,"x":"%s"}\n' % (number, b"x" * 1000)])
            time.sleep(0.3)  # it looks 4 times a second
            with pytest.raises(SpoolFull, match="may hold 20,000"):
                enter(spool, connection, [line(0)])
            connection.rollback()
        spool.maintain()
        time.sleep(0.3)
        spool.check_room()
        spool.close()

    def test_with_a_directory(self, tmp_path: Path, engine: PostgresqlEngine) -> None:
        environment = {
            "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
            "JOBS_BACKUP_BUCKET": str(tmp_path / "bucket"),
            "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        }
        (tmp_path / "bucket").mkdir()
        with Backup.from_env(environment) as backup, connect(engine) as connection:
            with pytest.raises(ConfigurationError, match="needs a spool in the application's PostgreSQL database"):
                backup.record({"n": 1}, source_id="web", connection=connection)
            backup.record({"n": 2}, source_id="web")
        assert [event["payload"]["n"] for event in events(tmp_path)] == [2]


class TestRoles:
    def test_the_applications_user_only_inserts(self, engine: PostgresqlEngine) -> None:
        users = ("my_outbox", "my_recorder", "my_stranger")
        with engine.server.admin(engine.database) as admin:
            admin.execute(f"BEGIN; {spool_policy()} COMMIT".encode())
            for user in users:
                admin.execute(f"CREATE USER {user}".encode())
            admin.execute("GRANT jobs_backup_outbox TO my_outbox; GRANT jobs_backup_recorder TO my_recorder")
        try:
            spool = engine.open()
            for number, user in enumerate(users[:2]):
                with psycopg.connect(engine.server.url(engine.database, user=user)) as connection:
                    enter(spool, connection, [line(number)])
            with psycopg.connect(engine.server.url(engine.database, user="my_outbox")) as connection:
                for what in (
                    "SELECT * FROM jobs_backup.outbox",
                    "DELETE FROM jobs_backup.outbox",
                    "SELECT * FROM jobs_backup.batches",
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        connection.execute(what.encode())
                    connection.rollback()
            with psycopg.connect(engine.server.url(engine.database, user="my_stranger")) as connection:
                with pytest.raises(SpoolError, match="may not record") as raised:
                    enter(spool, connection, [line(0)])
                assert "policy --spool" in raised.value.hint
            assert drain(spool) == Counter([0, 1])
            spool.close()
        finally:
            engine.server.drop(engine.database)
            with engine.server.admin() as admin:
                for role in (*users, *ROLES):
                    admin.execute(f"DROP ROLE IF EXISTS {role}".encode())

    def test_a_recorder_collects(self, engine: PostgresqlEngine) -> None:
        """What `flush` does in a process that may not upload."""
        with engine.server.admin(engine.database) as admin:
            admin.execute(f"BEGIN; {spool_policy()} COMMIT".encode())
            admin.execute("CREATE USER my_recorder IN ROLE jobs_backup_recorder")
        try:
            spool = PostgresqlSpool(
                DatabaseSpool(DatabaseUrl(engine.server.url(engine.database, user="my_recorder"))),
                location="s3://bucket", prefix="p", instance_id="1", limits=LIMITS, archives=False, lease=60.0, workers=0,
            )  # fmt: skip
            with connect(engine) as connection:
                ids = enter(spool, connection, [line(0), line(1)])
                connection.commit()
                assert not spool.delivered(jobs_of(ids[:1])), "while it waits"
                assert spool.seal() == 1
            assert not spool.delivered(jobs_of(ids))
            spool.close()
        finally:
            engine.server.drop(engine.database)
            with engine.server.admin() as admin:
                for role in (
                    "my_recorder",
                    *(f"jobs_backup_{one}" for one in ("outbox", "recorder", "archiver", "status", "owner")),
                ):
                    admin.execute(f"DROP ROLE IF EXISTS {role}".encode())


class TestIds:
    def test_acknowledged_before_and_after_it_is_collected(self, engine: PostgresqlEngine) -> None:
        """By another host, in any part, with ids that were rolled back in between."""
        spool, other = engine.open(), engine.open()
        dice = random.Random(5)
        committed = list[int]()
        rolled_back = list[int]()
        for number in range(120):
            with connect(engine) as connection:
                ids = enter(spool, connection, [line(number)] * dice.choice([1, 1, 1, 2, 100]))
                if dice.random() < 0.3:
                    connection.rollback()
                    rolled_back += ids
                else:
                    connection.commit()
                    committed += ids
            if number % 7 == 0:
                some = dice.sample(committed, len(committed) // 3)
                assert not other.delivered(jobs_of(some))
            if number % 31 == 0:
                spool.seal()
        assert list(other.delivered(jobs_of([*rolled_back, *committed[:-1]]))) == sorted(rolled_back)
        assert sum(drain(spool).values()) == len(committed)
        assert other.stream_of(rolled_back[0]) is None
        assert other.stream_of(committed[0]) == WEB
        objects = 4
        due = spool.claim_deletes(100)
        assert len(due) == objects - 1, "one event was not delivered"
        spool.deleted(due)
        assert not other.delivered(jobs_of(committed[-1:]))
        assert len(spool.claim_deletes(100)) == 1
        spool.close()
        other.close()

    @pytest.mark.parametrize("level", ["repeatable read", "serializable"])
    def test_acknowledged_while_it_is_collected(self, engine: PostgresqlEngine, level: str) -> None:
        """What an acknowledgement reads once its range is free is newer than that, whatever the default of the database."""
        with engine.server.admin() as admin:
            admin.execute(f"ALTER DATABASE {engine.database} SET default_transaction_isolation = '{level}'")
        spool = engine.open()
        with connect(engine) as connection:
            given = enter(spool, connection, [line(number) for number in range(3)])
        threads = [threading.Thread(target=work) for work in (spool.seal, lambda: spool.delivered(jobs_of(given)))]
        with connect(engine) as holder, engine.server.admin(engine.database) as admin:
            holder.execute("SELECT 1 FROM jobs_backup.batches WHERE state = 'outbox' FOR UPDATE")
            for waiting, thread in enumerate(threads, 1):
                thread.start()
                wait_for_locks(admin, waiting)
        for thread in threads:
            thread.join()
        assert drain(spool) == Counter([0, 1, 2])
        assert len(spool.claim_deletes(10)) == 1
        spool.close()

    def test_a_delivered_event_is_counted_once(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        with connect(engine) as connection:
            ids = enter(spool, connection, [line(0), line(1)])
        for _ in range(2):
            assert not spool.delivered(jobs_of(ids[:1]))
        drain(spool)
        for _ in range(2):
            assert not spool.delivered(jobs_of(ids[:1]))
        assert spool.claim_deletes(10) == []
        assert not spool.delivered(jobs_of(ids[1:]))
        (due,) = spool.claim_deletes(10)
        spool.deleted([due])
        assert not spool.delivered(jobs_of(ids)), "still known"
        assert list(spool.delivered(jobs_of([ids[-1] + 1]))) == [ids[-1] + 1]
        spool.close()

    @pytest.mark.parametrize("is_early", [True, False], ids=["while it waits", "collected"])
    def test_settled_by_a_failure_record(self, engine: PostgresqlEngine, is_early: bool) -> None:
        spool = engine.open(delete_after="settled")
        with connect(engine) as connection:
            first, second = enter(spool, connection, [line(0), line(1)])
        if not is_early:
            drain(spool)
        record = Recording(Stream(Kind.FAILED, "w", "web"), [line(7)], first_at=1, last_at=1)
        spool.append([record])
        spool.settle([(first, record.jobs[0][0])])
        with engine.server.admin(engine.database) as admin:  # its batch alone, so that the other waits
            assert admin.execute("SELECT count(*) FROM jobs_backup.outbox").fetchone() == (int(is_early),)
        spool._writer.seal()
        spool.stored(claim(spool))
        assert not spool.delivered(jobs_of([second]))
        drain(spool)
        assert len([one for one in spool.claim_deletes(10) if "proc-err" not in one.key]) == 1
        spool.close()

    def test_what_was_forgotten_is_unknown_and_what_is_used_is_not_forgotten(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        with connect(engine) as connection, connect(engine) as slow:
            (id_,) = enter(spool, connection, [line(0)])
            (late,) = enter(spool, slow, [line(1)])
            connection.commit()
            with engine.server.admin(engine.database) as admin:
                age = "UPDATE jobs_backup.batches SET opened_at = opened_at - 1000, stored_at = stored_at - 1000"
                admin.execute(age)
                spool.forget(500, 0)
                assert not spool.delivered(jobs_of([id_])), "it waits"
                drain(spool)
                spool.forget(500, 0)
                assert not spool.delivered(jobs_of([id_]))
                (due,) = spool.claim_deletes(10)
                spool.deleted([due])
                admin.execute(age)
                for _ in range(2):
                    spool.forget(500, 0)
                assert admin.execute("SELECT count(*) FROM jobs_backup.batches").fetchone() == (0,)
                assert admin.execute("SELECT count(*) FROM jobs_backup.aliases").fetchone() == (0,)
            assert len(spool.delivered(jobs_of([id_]))) == 1
            slow.commit()
        assert drain(spool) == Counter([1]), "its transaction took longer than ids are remembered"
        assert not spool.delivered(jobs_of([late]))
        spool.close()

    def test_damaged_rows_are_quarantined_and_the_others_uploaded(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        ids = []
        with connect(engine) as connection:
            for number in range(3):
                ids += enter(spool, connection, [line(number)])
            connection.execute("UPDATE jobs_backup.outbox SET data = %s WHERE start = 1", (b'{"n":8}\n',))
        assert drain(spool) == Counter([0, 2])
        assert [damage.events for damage in spool.quarantined()] == [1]
        assert list(spool.delivered(jobs_of(ids))) == [ids[1]]
        assert len(spool.claim_deletes(10)) == 1
        spool.close()


class TestCollecting:
    def test_by_age_and_by_number(self, engine: PostgresqlEngine) -> None:
        spool = engine.open(limits=BatchLimits(events=3, bytes=1 << 30, age=300))
        with connect(engine) as connection:
            enter(spool, connection, [line(0)])
            connection.commit()
            assert spool._collector.collect_due() == 0
            enter(spool, connection, [line(1), line(2)])
            connection.commit()
            assert spool._collector.collect_due() == 1
            enter(spool, connection, [line(3)])
            connection.execute("UPDATE jobs_backup.outbox SET recorded_at = recorded_at - 301")
            connection.commit()
            assert spool.seal_due() == 1
        assert drain(spool) == Counter(range(4))
        spool.close()

    def test_the_oldest_of_many_rows(self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """More rows wait than a collection takes, and fewer events than a batch may have: the old ones are not passed over."""
        monkeypatch.setattr(collector, "_COLLECTED_ROWS", 50)
        spool = engine.open(limits=BatchLimits(events=100_000, bytes=1 << 30, age=300))
        with connect(engine) as connection:
            for number in range(60):
                enter(spool, connection, [line(number)])
        with engine.server.admin(engine.database) as admin:  # its new version is behind the others
            admin.execute("UPDATE jobs_backup.outbox SET recorded_at = recorded_at - 1000 WHERE start = 5")
        assert spool.seal_due() == 2
        assert drain(spool) == Counter(range(60))
        spool.close()

    def test_lines_that_compress_well(self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """A transaction does not compress more than it can within a lease."""
        monkeypatch.setattr(collector, "_COLLECTED_RAW_BYTES", 4 << 20)
        spool = engine.open(limits=BatchLimits(events=100_000, bytes=1 << 30, age=300))
        with connect(engine) as connection:
            enter(spool, connection, [b'{"n":1,"x":"%s"}\n' % (b"x" * 1_000_000)] * 10)
        assert spool.seal() == 3
        assert drain(spool) == Counter({1: 10})
        spool.close()

    def test_events_wait_in_the_status(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        with connect(engine) as connection:
            enter(spool, connection, [line(0)] * 3)
            enter(spool, connection, [line(0)], stream=APP)
            connection.execute("UPDATE jobs_backup.outbox SET recorded_at = recorded_at - 1000")
        status = read_status(engine.place, Limits(upload_frequency=300))
        found = {stream.source_id: stream.open_events for store in status.stores for stream in store.streams}
        assert (found, status.events) == ({"web": 3, "app": 1}, 4)
        assert "has waited for 1000 s" in status.behind
        spool.close()

    def test_processes_that_collect_at_once(self, engine: PostgresqlEngine) -> None:
        spools = [engine.open() for _ in range(3)]
        stop = threading.Event()
        found: list[Counter[int]] = []

        def collect(spool: PostgresqlSpool) -> None:
            mine: Counter[int] = Counter()
            while not stop.is_set():
                mine += drain(spool)
            found.append(mine)

        threads = [threading.Thread(target=collect, args=(spool,)) for spool in spools]
        for thread in threads:
            thread.start()
        with connect(engine) as connection:
            for number in range(300):
                enter(spools[number % 3], connection, [line(number)])
                connection.commit() if number % 3 else connection.rollback()
        stop.set()
        for thread in threads:
            thread.join()
        total = sum(found, drain(spools[0]))
        assert total == Counter(number for number in range(300) if number % 3)
        for spool in spools:
            spool.close()

    def test_another_process_collects_everything_first(self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        spool, other = engine.open(), engine.open()
        with connect(engine) as connection:
            enter(spool, connection, [line(0)])
        waiting = spool._collector._waiting

        def look() -> tuple[list[tuple[int, int]], bool]:
            found = waiting()
            other.seal()
            return found

        monkeypatch.setattr(spool._collector, "_waiting", look)
        assert spool.seal() == 0
        assert drain(other) == Counter([0])
        spool.close()
        other.close()

    def test_a_frozen_collector_holds_up_the_others_for_a_lease_at_most(self, engine: PostgresqlEngine) -> None:
        engine._lease = 1.0
        spool, frozen = engine.open(), engine.open()
        with connect(engine) as connection:
            enter(spool, connection, [line(0)])
        entered, thaw = threading.Event(), threading.Event()
        with pytest.MonkeyPatch.context() as patch:

            def freeze(*arguments: Any) -> int:
                entered.set()
                thaw.wait(30)
                return 0

            collector = frozen._collector
            patch.setattr(collector, "_seal_at", freeze)

            def collect() -> None:
                with contextlib.suppress(SpoolError):  # the server has ended its connection: it does all of it again
                    collector.collect()

            thread = threading.Thread(target=collect)
            thread.start()
            assert entered.wait(30)
            assert drain(spool) == Counter([0])
            thaw.set()
            thread.join()
        spool.close()
        frozen.close()

    def test_the_space_is_given_back(self, engine: PostgresqlEngine) -> None:
        """Though an old transaction keeps dead rows from being vacuumed; and one that has recorded keeps its slot."""
        spool = engine.open()

        def size() -> int:
            with engine.server.admin(engine.database) as admin:
                row = admin.execute("SELECT jobs_backup.outbox_bytes()").fetchone()
                assert row is not None
                return int(row[0])

        with connect(engine) as connection, connect(engine) as old, connect(engine) as slow:
            old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            old.execute("SELECT pg_current_xact_id()")
            for _ in range(100):
                enter(spool, connection, [b'{"n":1,"x":"%s"}\n' % (b"x" * 5000)])
                connection.commit()
            enter(spool, slow, [line(2)])
            assert sum(drain(spool).values()) == 100
            before = size()
            assert before > 500_000
            spool._collector.give_space_back()
            assert size() == before, "a transaction has recorded there, and may commit"
            slow.commit()
            spool._collector.give_space_back()
            assert size() == before, "an event waits there"
            assert drain(spool) == Counter([2])
            spool._collector.give_space_back()
            assert size() == 0
        spool.close()


@pytest.fixture
def environment(engine: PostgresqlEngine, tmp_path: Path) -> dict[str, str]:
    """Of a Backup with a directory as its bucket."""
    (tmp_path / "bucket").mkdir()
    return {
        "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
        "JOBS_BACKUP_BUCKET": str(tmp_path / "bucket"),
        "JOBS_BACKUP_SPOOL": engine.server.url(engine.database),
        **FAST_RETRY,
    }


def payloads(directory: Path) -> list[int]:
    return sorted(event["payload"]["n"] for event in events(directory))


class TestBackup:
    def test_record_and_record_many(self, environment: dict[str, str], engine: PostgresqlEngine, tmp_path: Path) -> None:
        with Backup.from_env(environment) as backup, connect(engine) as connection:
            connection.execute("CREATE TABLE orders (n integer, job numeric)")
            job = backup.record({"n": 0}, source_id="web", connection=connection)
            connection.execute("INSERT INTO orders VALUES (0, %s)", (int(job),))
            jobs = backup.record_many([{"n": number} for number in range(1, 3000)], source_id="web", connection=connection)
            at = datetime(2026, 1, 1, tzinfo=UTC)
            more = backup.record_many(
                [Event(payload={"n": number}, source_id=f"s{number % 3}", created_at=at) for number in range(3000, 3010)],
                connection=connection,
            )
            connection.commit()
            backup.record({"n": 9999}, source_id="web", connection=connection)
            connection.rollback()
            backup.flush(60)
            assert payloads(tmp_path) == list(range(3010))
            row = connection.execute("SELECT job FROM orders").fetchone()
            assert row is not None
            backup.delivered([int(row[0]), *jobs, *more[:-1]])
            backup.failed(more[-1], error="gone", payload=b"{}")
            backup.delivered(more[-1])
            until = time.monotonic() + 30
            while any("failedAt" not in one for one in events(tmp_path)):
                assert time.monotonic() < until, "delivered objects are deleted"
                time.sleep(0.1)

    def test_an_invalid_event(self, environment: dict[str, str], engine: PostgresqlEngine, tmp_path: Path) -> None:
        with Backup.from_env(environment) as backup, connect(engine) as connection:
            with pytest.raises(InvalidEvent) as raised:
                backup.record_many([b'{"n":0}', b"x"], source_id="web", connection=connection)
            assert (raised.value.index, len(raised.value.recorded or ())) == (1, 1)
            connection.rollback()
            with pytest.raises(InvalidEvent):
                backup.record(b"x", source_id="web", connection=connection)
            backup.flush(60)
        assert payloads(tmp_path) == []

    def test_flush_waits_for_what_another_process_has_collected(
        self, environment: dict[str, str], engine: PostgresqlEngine, tmp_path: Path
    ) -> None:
        collecting = engine.open()
        with Backup.from_env(environment, archive=False) as backup, connect(engine) as connection:
            backup.record({"n": 0}, source_id="web", connection=connection)
            connection.commit()
            assert collecting.seal() == 1
            with pytest.raises(TimeoutError):
                backup.flush(1)
            with Backup.from_env(environment):
                backup.flush(60)
                assert payloads(tmp_path) == [0]
        collecting.close()

    def test_without_raw_events_ids_are_given(self, environment: dict[str, str], engine: PostgresqlEngine, tmp_path: Path) -> None:
        with Backup.from_env({**environment, "JOBS_BACKUP_RAW": "false"}) as backup, connect(engine) as connection:
            job = backup.record({"n": 0}, source_id="web", connection=connection)
            connection.commit()
            backup.failed(job, error="gone", payload=b"{}")
            backup.flush(60)
        assert ["failedAt" in one for one in events(tmp_path)] == [True]

    def test_an_asynchronous_connection_is_for_the_other_class(self, environment: dict[str, str], engine: PostgresqlEngine) -> None:
        async def work() -> None:
            async with await psycopg.AsyncConnection.connect(engine.server.url(engine.database)) as connection:
                with Backup.from_env(environment) as backup, pytest.raises(ConfigurationError) as raised:
                    backup.record({"n": 0}, source_id="web", connection=connection)
                assert "AsyncBackup" in raised.value.hint
            async with AsyncBackup.from_env(environment) as backup:
                with connect(engine) as sync, pytest.raises(ConfigurationError, match=r"takes psycopg\.AsyncConnection"):
                    await backup.record({"n": 0}, source_id="web", connection=sync)

        asyncio.run(work())


class TestAsyncBackup:
    def test_record_and_record_many(self, environment: dict[str, str], engine: PostgresqlEngine, tmp_path: Path) -> None:
        async def numbers(first: int, end: int) -> AsyncIterator[dict[str, int]]:
            for number in range(first, end):
                yield {"n": number}

        async def one(backup: AsyncBackup, number: int) -> None:
            async with await psycopg.AsyncConnection.connect(engine.server.url(engine.database)) as connection:
                await backup.record({"n": number}, source_id="web", connection=connection)
                if number % 3 == 0:
                    await connection.rollback()

        async def work() -> None:
            async with AsyncBackup.from_env(environment) as backup:
                await asyncio.gather(*(one(backup, number) for number in range(30)))
                async with await psycopg.AsyncConnection.connect(engine.server.url(engine.database)) as connection:
                    jobs = await backup.record_many(numbers(30, 2530), source_id="web", connection=connection)
                    more = await backup.record_many(
                        [Event(payload={"n": number}, source_id="app") for number in range(2530, 2600)], connection=connection
                    )
                    with pytest.raises(InvalidEvent) as raised:
                        await backup.record_many(iter([b'{"n":0}', b"x"]), source_id="web", connection=connection)
                    assert (raised.value.index, len(raised.value.recorded or ())) == (1, 1)
                    await connection.rollback()
                    with pytest.raises(UnknownJob):
                        await backup.delivered([*jobs, *more])
                    jobs = await backup.record_many(numbers(30, 2530), source_id="web", connection=connection)
                    await connection.commit()
                await backup.flush(60)
                await backup.delivered(jobs)

        asyncio.run(work())
        assert payloads(tmp_path) == sorted([*(number for number in range(30) if number % 3), *range(30, 2530)])


class TestSqlalchemy:
    def url(self, engine: PostgresqlEngine) -> str:
        return engine.server.url(engine.database).replace("postgresql://", "postgresql+psycopg://")

    def test_sessions_and_connections(self, environment: dict[str, str], engine: PostgresqlEngine, tmp_path: Path) -> None:
        database = sqlalchemy.create_engine(self.url(engine))
        with Backup.from_env(environment) as backup:
            for number, commits in ((0, True), (1, False)):
                with Session(database) as session:
                    backup.record({"n": number}, source_id="web", connection=session)
                    session.execute(sqlalchemy.text("SELECT 1"))
                    if commits:
                        session.commit()
                with Session(database) as session, session.begin(), session.begin_nested() as savepoint:
                    backup.record({"n": 10 + number}, source_id="web", connection=session)
                    if not commits:
                        savepoint.rollback()
                with database.connect() as connection:
                    backup.record({"n": 20 + number}, source_id="web", connection=connection)
                    if commits:
                        connection.commit()
                with database.begin() as connection:
                    backup.record({"n": 30 + number}, source_id="web", connection=connection)
                    if not commits:
                        connection.rollback()
            scoped = scoped_session(sessionmaker(database))
            backup.record({"n": 40}, source_id="web", connection=scoped)
            scoped.commit()
            scoped.remove()
            with (
                database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
                pytest.raises(ConfigurationError, match="autocommit"),
            ):
                backup.record({"n": 50}, source_id="web", connection=connection)
        database.dispose()
        assert payloads(tmp_path) == [0, 10, 20, 30, 40]

    def test_another_driver(self, environment: dict[str, str]) -> None:
        database = sqlalchemy.create_engine("sqlite://")
        with (
            Backup.from_env(environment) as backup,
            Session(database) as session,
            pytest.raises(ConfigurationError, match=r"got sqlite3\.Connection"),
        ):
            backup.record({"n": 0}, source_id="web", connection=session)
        database.dispose()

    def test_asynchronous_sessions_and_connections(
        self, environment: dict[str, str], engine: PostgresqlEngine, tmp_path: Path
    ) -> None:
        async def work() -> None:
            database = create_async_engine(self.url(engine))
            async with AsyncBackup.from_env(environment) as backup:
                for number, commits in ((0, True), (1, False)):
                    async with AsyncSession(database) as session:
                        await backup.record({"n": number}, source_id="web", connection=session)
                        if commits:
                            await session.commit()
                    async with database.connect() as connection:
                        await backup.record({"n": 10 + number}, source_id="web", connection=connection)
                        if commits:
                            await connection.commit()
                    async with database.begin() as connection:
                        await backup.record_many([{"n": 20 + number}], source_id="web", connection=connection)
                        if not commits:
                            await connection.rollback()
                async with AsyncSession(database) as session:
                    with pytest.raises(ConfigurationError), Backup.from_env(environment) as sync:
                        sync.record({"n": 30}, source_id="web", connection=session)
            await database.dispose()

        asyncio.run(work())
        assert payloads(tmp_path) == [0, 10, 20]
