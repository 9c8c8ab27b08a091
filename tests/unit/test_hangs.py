"""A spool in PostgreSQL: nobody waits for ever, neither for a server that hangs nor for a process that does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from engines import PostgresqlEngine
from postgres import Postgres
from spools import claim, record

from jobs_backup.errors import SpoolError, SpoolUncertain
from jobs_backup.spool.engines import read_status
from jobs_backup.spool.ids import JobSet
from jobs_backup.spool.interface import QuotaLimits
from jobs_backup.spool.postgresql import connection as connection_module
from jobs_backup.spool.postgresql.connection import Busy
from jobs_backup.spool.postgresql.spool import PostgresqlSpool

ANSWER = 2.0


@pytest.fixture
def engine(database_server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresqlEngine]:
    monkeypatch.setattr(connection_module, "ANSWER_SECONDS", ANSWER)
    monkeypatch.setattr(connection_module, "_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(connection_module, "_CONNECT_SECONDS", 2)
    with database_server.database() as database:
        yield PostgresqlEngine(database_server, database)


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Start it. The list gets what it returns, or raises."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - it is looked at
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


class TestAServerThatHangs:
    """It keeps its connections up and says nothing, so that no keepalive notices."""

    @pytest.mark.parametrize(
        "call",
        [
            pytest.param(lambda spool: record(spool, [b"{}\n"]), id="record"),
            pytest.param(lambda spool: spool.claim(), id="claim"),
            pytest.param(lambda spool: spool.has_archiver(), id="read"),
        ],
    )
    def test_a_call_ends(self, engine: PostgresqlEngine, call: Callable[[PostgresqlSpool], object]) -> None:
        spool = engine.open(room=QuotaLimits(timeout=0.0))
        record(spool, [b"{}\n"])
        with engine.server.frozen():
            thread, found = in_thread(lambda: call(spool))
            thread.join(60)
            assert not thread.is_alive(), "it waits for ever"
        (error,) = found
        assert isinstance(error, SpoolError)
        assert error.retryable, error
        spool.close()

    def test_what_was_recorded_meanwhile_is_there_once(self, engine: PostgresqlEngine) -> None:
        spool = engine.open(room=QuotaLimits(timeout=60.0))
        record(spool, [b"{}\n"])
        with engine.server.frozen():
            threads = [in_thread(lambda: record(spool, [b"{}\n"])) for _ in range(4)]
            time.sleep(3 * ANSWER)
            assert all(thread.is_alive() for thread, _ in threads)
        for thread, found in threads:
            thread.join(60)
            assert isinstance(found[0], list), found
        spool.seal()
        assert claim(spool).events == 5
        spool.close()

    def test_a_commit_that_waits_for_a_standby_is_uncertain(self, engine: PostgresqlEngine) -> None:
        """It never comes: the commit is there, and nobody may call it acknowledged."""
        spool = engine.open(room=QuotaLimits(timeout=0.0))
        record(spool, [b"{}\n"])
        with engine.server.admin() as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
            admin.execute("SELECT pg_reload_conf()")
            try:
                time.sleep(1.0)
                thread, found = in_thread(lambda: record(spool, [b"{}\n"]))
                thread.join(60)
                assert isinstance(found[0], SpoolUncertain), found
            finally:
                admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
                admin.execute("SELECT pg_reload_conf()")
        spool.seal()
        assert claim(spool).events == 2, "it was made"
        spool.close()

    def test_status_ends(self, engine: PostgresqlEngine) -> None:
        engine.open().close()
        with engine.server.frozen(), pytest.raises(SpoolError, match="timeout"):
            read_status(engine.place)


class TestAProcessThatHangs:
    """Frozen in the middle of a transaction, it keeps its locks."""

    def test_its_place_is_taken_all_the_same(self, engine: PostgresqlEngine) -> None:
        lease = 2.0
        frozen = PostgresqlEngine(engine.server, engine.database, lease=lease).open()
        record(frozen, [b"{}\n"])
        other = engine.open()
        holds, thaws = threading.Event(), threading.Event()

        def freeze() -> None:
            def work(db: connection_module.Db) -> None:
                db.execute("SELECT 1 FROM jobs_backup.sessions WHERE id = %s FOR UPDATE", (frozen.session,))
                db.execute("SELECT 1 FROM jobs_backup.batches FOR UPDATE")
                holds.set()
                thaws.wait(60)

            frozen._database.write(work)

        frozen._heartbeat.stop()
        thread, _ = in_thread(freeze)
        assert holds.wait(30)
        begun = time.monotonic()
        while not other.recover():
            assert time.monotonic() - begun < 2 * lease + 3, "nobody can take its place"
            time.sleep(0.1)
        assert claim(other).events == 1
        thaws.set()
        thread.join(30)
        other.close()
        frozen.close()

    def test_who_waits_for_a_lock_leaves_nobody_behind_on_the_server(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        record(spool, [b"{}\n"])
        jobs = jobs_of(spool)
        with engine.server.admin(engine.database) as admin, admin.transaction():
            admin.execute("SELECT 1 FROM jobs_backup.batches FOR UPDATE")
            with pytest.raises(Busy) as raised:
                spool.delivered(jobs)
            assert raised.value.retryable
            query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            assert admin.execute(query).fetchone() == (0,)
        spool.close()


def jobs_of(spool: PostgresqlSpool) -> JobSet:
    jobs = JobSet()
    jobs.add(record(spool, [b"{}\n"])[0][0])
    return jobs
