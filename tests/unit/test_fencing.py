"""A spool in PostgreSQL: who was taken for dead commits nothing, and a commit whose answer is lost is made once.

The controls do without what keeps that so, and must fail.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from engines import PostgresqlEngine
from postgres import Postgres, postgres, wait_for_locks
from spools import LIMITS, WEB, claim, content, record
from swallowing import Swallower, swallower

from jobs_backup.errors import ConfigurationError, SpoolCorrupt, SpoolError, SpoolUncertain
from jobs_backup.model import Upload
from jobs_backup.settings.core import CoreSettings, DatabaseSpool
from jobs_backup.settings.values import DatabaseUrl
from jobs_backup.spool.engines import check, read_status
from jobs_backup.spool.ids import JobSet
from jobs_backup.spool.interface import BatchLimits, InputPosition, QuotaLimits, Recording
from jobs_backup.spool.postgresql import catalog as catalog_module
from jobs_backup.spool.postgresql.schema import VERSION
from jobs_backup.spool.postgresql.sessions import SessionLost
from jobs_backup.spool.postgresql.spool import PostgresqlSpool
from jobs_backup.spool.postgresql.writer import Writer

APPEND = b"SELECT count(*), min(place) FROM me"
COMMIT = b"COMMIT\0"
SMALL = BatchLimits(events=50, bytes=1 << 30, age=300)


@pytest.fixture
def engine(database_server: Postgres) -> Iterator[PostgresqlEngine]:
    with database_server.database() as database:
        yield PostgresqlEngine(database_server, database)


def through(
    engine: PostgresqlEngine, proxy: Swallower | None = None, *, timeout: float = 30.0, limits: BatchLimits = LIMITS
) -> PostgresqlSpool:
    """A spool whose connections go through a proxy."""
    place = engine.server.place(engine.database, port=proxy.port if proxy else None)
    return PostgresqlSpool(
        place,
        location="s3://bucket",
        prefix="p",
        instance_id="1",
        limits=limits,
        room=QuotaLimits(timeout=timeout),
        lease=60.0,
        workers=1,
    )


def line(number: int) -> bytes:
    return b'{"n":%d}\n' % number


def drain(engine: PostgresqlEngine) -> Counter[int]:
    """What is in the bucket when everything is over: number -> how often."""
    found: Counter[int] = Counter()
    with engine.server.admin(engine.database) as connection:
        connection.execute("UPDATE jobs_backup.sessions SET lease_until = 0")
    spool = engine.open()
    spool.recover()
    spool.begin_sending()
    while spool.has_claimable():
        batch = claim(spool)
        found.update(json.loads(one)["n"] for one in gzip.decompress(content(spool, batch)).splitlines())
        spool.stored(batch)
    assert spool.waiting() == []
    spool.close()
    return found


def record_under(
    spool: PostgresqlSpool, disturb: Callable[[], None], *, threads: int = 4, each: int = 150, pause: float = 0.0
) -> list[int]:
    """Record from several threads while something is disturbed. Returns what was acknowledged."""
    acknowledged: list[int] = []
    stop = threading.Event()

    def work(first: int) -> None:
        for number in range(first, first + each):
            record(spool, [line(number)])
            acknowledged.append(number)
            if pause:
                time.sleep(pause)

    def spoil() -> None:
        while not stop.is_set():
            disturb()

    recorders = [threading.Thread(target=work, args=(one * each,)) for one in range(threads)]
    spoiler = threading.Thread(target=spoil)
    for thread in (*recorders, spoiler):
        thread.start()
    for thread in recorders:
        thread.join()
    stop.set()
    spoiler.join()
    assert sorted(acknowledged) == list(range(threads * each)), "a thread has failed"
    return acknowledged


def lose_at_random(proxy: Swallower) -> Callable[[], None]:
    dice = random.Random(7)

    def lose() -> None:
        if proxy.is_idle:
            proxy.lose(dice.choice([APPEND, APPEND, COMMIT]), answer=dice.random() < 0.6)
        time.sleep(0.1)

    return lose


class TestLostAnswers:
    def test_nothing_is_lost_and_nothing_is_there_twice(self, engine: PostgresqlEngine) -> None:
        with swallower(engine.server.port) as proxy:
            spool = through(engine, proxy, limits=SMALL)
            acknowledged = record_under(spool, lose_at_random(proxy), each=200, pause=0.01)
            with contextlib.suppress(SpoolError):  # its own commits may be lost, too
                spool.close()
            assert proxy.answers > 2
            assert proxy.requests > 2
        assert drain(engine) == Counter(acknowledged)

    def test_control_a_naive_retry_doubles(self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who takes a lost answer for a commit that was not made records it twice."""

        def naive(self: Writer, pending: object) -> None:
            session = self._session
            row = self._database.read(
                lambda db: db.execute("SELECT seq FROM jobs_backup.sessions WHERE id = %s", (session.name,)).fetchone()
            )
            assert row is not None
            session.seq = row[0]
            self._pending = None
            for one in pending.recordings:  # type: ignore[attr-defined]
                one.jobs = []  # its batch has gone on, so that it gets another place

        monkeypatch.setattr(Writer, "_resolve", naive)
        with swallower(engine.server.port) as proxy:
            spool = through(engine, proxy)
            record(spool, [line(0)])
            for number in range(1, 6):
                proxy.lose(APPEND, answer=True)
                record(spool, [line(number)])
            spool.close()
        assert drain(engine)[3] == 2

    @pytest.mark.parametrize("is_made", [True, False], ids=["made", "not made"])
    def test_taken_over_before_it_could_ask(self, engine: PostgresqlEngine, is_made: bool) -> None:
        """The answer is lost, the server can't be asked, and another process takes this one's place meanwhile."""
        other = engine.open()
        with swallower(engine.server.port) as proxy:
            spool = through(engine, proxy)
            record(spool, [line(0)])
            proxy.lose(APPEND, answer=is_made)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Writer, "_settle", lambda self: (_ for _ in ()).throw(KeyboardInterrupt) if self._pending else None)
                with pytest.raises(KeyboardInterrupt):
                    record(spool, [line(1)])
            pending = spool._writer._pending
            assert pending is not None
            (again,) = pending.recordings
            engine.expire(spool.session)
            assert other.recover() == 1
            spool.append([again])
            record(spool, [line(2)])
            spool.close()
        other.close()
        assert drain(engine) == Counter([0, 1, 2])

    def test_where_nobody_knows_any_more_it_says_so(self, engine: PostgresqlEngine) -> None:
        other = engine.open()
        with swallower(engine.server.port) as proxy:
            spool = through(engine, proxy)
            proxy.lose(APPEND, answer=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Writer, "_settle", lambda self: (_ for _ in ()).throw(KeyboardInterrupt) if self._pending else None)
                with pytest.raises(KeyboardInterrupt):
                    record(spool, [line(1)])
            pending = spool._writer._pending
            assert pending is not None
            (again,) = pending.recordings
            engine.expire(spool.session)
            other.recover()
            with engine.server.admin(engine.database) as connection:
                connection.execute("DELETE FROM jobs_backup.batches")
            with pytest.raises(SpoolUncertain, match="may be recorded, or not"):
                spool.append([again])
            record(spool, [line(2)])
            spool.close()
        other.close()

    def test_a_call_that_does_not_wait_asks_all_the_same(self, engine: PostgresqlEngine) -> None:
        """As in `serve`: the server can be asked, so no call may end without an answer."""
        acknowledged: list[int] = []
        refused: list[int] = []
        unknown: list[int] = []

        def work(first: int) -> None:
            for number in range(first, first + 100):
                try:
                    record(spool, [line(number)])
                except SpoolUncertain:
                    unknown.append(number)
                except SpoolError:
                    refused.append(number)
                else:
                    acknowledged.append(number)
                time.sleep(0.01)

        with swallower(engine.server.port) as proxy:
            spool = through(engine, proxy, timeout=0.0, limits=SMALL)
            lose = lose_at_random(proxy)
            threads = [threading.Thread(target=work, args=(one * 100,)) for one in range(8)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                lose()
            with contextlib.suppress(SpoolError):
                spool.close()
        assert proxy.answers > 2
        assert unknown == []
        assert len(acknowledged) + len(refused) == 800, "a thread has failed"
        assert drain(engine) == Counter(acknowledged)

    def test_without_the_server_it_says_that_it_may_be_recorded(
        self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("jobs_backup.spool.postgresql.writer._ASK_SECONDS", 0.0)
        with swallower(engine.server.port) as proxy:
            spool = through(engine, proxy, timeout=0.0)
            record(spool, [line(0)])
            proxy.lose(APPEND, answer=True)
            recording = Recording(WEB, [line(1)], first_at=1, last_at=1)
            with pytest.raises(SpoolUncertain) as raised:
                spool.append([recording])
            assert raised.value.code == "SpoolUncertain"
            spool.append([recording])
            assert len(list(recording.ids())) == 1
            spool.close()
        assert drain(engine) == Counter([0, 1])


class TestFencing:
    def test_who_was_taken_for_dead_goes_on_in_another_session(self, engine: PostgresqlEngine) -> None:
        spool, other = through(engine), engine.open()
        before = spool.session
        record(spool, [line(0)])
        engine.expire(before)
        assert other.recover() == 1
        record(spool, [line(1)])
        assert spool.session != before
        spool.close()
        other.close()
        assert drain(engine) == Counter([0, 1])

    def test_a_claim_of_a_session_that_has_ended_is_refused(self, engine: PostgresqlEngine) -> None:
        spool, other = through(engine), engine.open()
        record(spool, [line(0)])
        spool.seal()
        engine.expire(spool.session)
        other.recover()
        with pytest.raises(SessionLost):
            spool.claim()
        assert claim(other).events == 1
        other.close()
        spool.close()

    def test_a_claim_whose_answer_is_lost_is_not_forgotten(self, engine: PostgresqlEngine) -> None:
        """Of what is to be deleted: its thread was never told, and it works for as long as its process lives."""
        with swallower(engine.server.port) as proxy:
            spool = through(engine, proxy)
            jobs = JobSet()
            jobs.add(record(spool, [line(0)])[0][0])
            spool.seal()
            spool.delivered(jobs)
            spool.stored(claim(spool))
            proxy.lose(COMMIT, answer=True)
            with pytest.raises(SpoolError):
                spool.claim_deletes(10)
            assert proxy.is_idle
            assert spool.has_deletes()
            assert len(spool.claim_deletes(10)) == 1
            spool.close()

    def test_control_an_unfenced_claim_stays_for_ever(self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        spool, other = through(engine), engine.open()
        record(spool, [line(0)])
        spool.seal()
        engine.expire(spool.session)
        other.recover()
        monkeypatch.setattr(catalog_module, "hold", lambda db, session: None)
        assert spool.claim() is not None
        assert other.claim() is None
        other.recover()
        assert other.claim() is None, "nobody frees it: its session is not there any more"
        spool._heartbeat.stop()
        spool._pulse.close()
        spool._database.close()
        other.close()

    def test_late_release_and_damage_change_nothing(self, engine: PostgresqlEngine) -> None:
        """Its batch belongs to another process by now."""
        spool, other = through(engine), engine.open()
        record(spool, [line(0)])
        spool.seal()
        late = spool.claim()
        assert late is not None
        engine.expire(spool.session)
        other.recover()
        mine = claim(other)
        spool.release(late.batch, SpoolError("late"), delay=3600)
        spool.quarantine_batch(late, SpoolCorrupt("late"))
        assert other.quarantined() == []
        assert other.claim() is None
        other.stored(mine)
        spool.stored(late.batch)
        assert other.waiting() == []
        spool.close()
        other.close()

    def test_bytes_are_not_sent_once_the_lease_is_over(self, engine: PostgresqlEngine) -> None:
        spool = through(engine)
        record(spool, [line(0)])
        spool.seal()
        body = spool.open_body(claim(spool))
        body.open().close()
        spool._writer.session._valid_until = 0.0
        with pytest.raises(SpoolError, match="lease"):
            body.open()
        spool.close()

    def test_a_position_is_not_committed_by_who_has_lost_the_input(self, engine: PostgresqlEngine) -> None:
        spool, other = through(engine), engine.open()
        with spool.reading("x") as granted:
            assert granted
            engine.expire(spool.session)
            with other.reading("x") as taken:
                assert taken, "its lease is over"
                position = InputPosition("x", 1, b"1")
                with pytest.raises(ConfigurationError, match="took this one's place"):
                    spool.append([Recording(WEB, [line(0)], first_at=1, last_at=1, position=position)])
        spool.close()
        other.close()
        assert drain(engine) == Counter()

    def test_commits_that_the_server_has_lost_are_told_loudly(self, engine: PostgresqlEngine) -> None:
        spool = through(engine)
        for number in range(5):
            record(spool, [line(number)])
        with engine.server.admin(engine.database) as connection:  # what a standby does that is behind
            connection.execute("UPDATE jobs_backup.sessions SET seq = seq - 2, events = events - 2")
        with pytest.raises(SpoolCorrupt, match="lost up to 2 events"):
            record(spool, [line(5)])
        with pytest.raises(SpoolCorrupt):
            spool.check_room()
        status = read_status(engine.place)
        assert [(one.events, "lost" in one.error) for one in status.quarantine] == [(2, True)]
        assert status.behind
        spool.close()


class TestKilledBackends:
    def test_terminated_at_any_moment(self, engine: PostgresqlEngine) -> None:
        spool = through(engine, limits=SMALL)

        def terminate() -> None:
            time.sleep(0.1)
            engine.server.terminate(engine.database)

        acknowledged = record_under(spool, terminate, each=60, pause=0.01)
        spool.close()
        assert drain(engine) == Counter(acknowledged)

    def test_a_server_that_crashes_and_recovers(self) -> None:
        with postgres() as server, server.database() as database:
            engine = PostgresqlEngine(server, database)
            spool = through(engine, limits=SMALL)

            def crash() -> None:
                time.sleep(0.4)
                server.restart(signal.SIGQUIT)

            acknowledged = record_under(spool, crash, each=40, pause=0.02)
            spool.close()
            assert drain(engine) == Counter(acknowledged)


LEVELS = pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])


def set_isolation(engine: PostgresqlEngine, level: str) -> None:
    """Set the default of the database, as its other users may need it."""
    with engine.server.admin() as admin:
        admin.execute(f"ALTER DATABASE {engine.database} SET default_transaction_isolation = '{level}'")


@LEVELS
def test_a_commit_waits_for_a_heartbeat(engine: PostgresqlEngine, level: str) -> None:
    set_isolation(engine, level)
    spool = engine.open()
    record(spool, [line(0)])
    with psycopg.connect(engine.server.url(engine.database)) as heartbeat, engine.server.admin(engine.database) as admin:
        heartbeat.execute("UPDATE jobs_backup.sessions SET lease_until = lease_until + 1")
        with ThreadPoolExecutor() as threads:
            recording = threads.submit(record, spool, [line(1)])
            wait_for_locks(admin, 1)
            heartbeat.commit()
            recording.result()
    spool.close()
    assert drain(engine) == Counter([0, 1])


class TestTables:
    @LEVELS
    def test_many_processes_make_them_at_once(self, engine: PostgresqlEngine, level: str) -> None:
        set_isolation(engine, level)
        opened: list[PostgresqlSpool] = []
        threads = [threading.Thread(target=lambda: opened.append(engine.open())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == 6
        for spool in opened:
            spool.close()

    def test_those_of_the_next_version_can_be_used(self, engine: PostgresqlEngine) -> None:
        """It only adds to them, and says which program is too old."""
        engine.open().close()
        with engine.server.admin(engine.database) as connection:
            connection.execute(f"UPDATE jobs_backup.version SET version = {VERSION + 1}")
            connection.execute("ALTER TABLE jobs_backup.batches ADD COLUMN new text NOT NULL DEFAULT ''")
            connection.execute("ALTER TABLE jobs_backup.positions ADD COLUMN new text")
        spool = engine.open()
        record(spool, [line(0)])
        spool.close()
        assert drain(engine) == Counter([0])
        with engine.server.admin(engine.database) as connection:
            connection.execute(f"UPDATE jobs_backup.version SET oldest = {VERSION + 1}")
        with pytest.raises(SpoolError, match="newer version"):
            engine.open()
        with pytest.raises(SpoolError, match="newer version"):
            read_status(engine.place)

    def test_a_database_with_another_encoding_is_refused(self, database_server: Postgres) -> None:
        with database_server.admin() as connection:
            connection.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        try:
            with pytest.raises(SpoolError, match="encoding LATIN1"):
                PostgresqlEngine(database_server, "latin").open()
            with pytest.raises(SpoolError, match="encoding LATIN1"):
                check(database_server.place("latin"), 0)
        finally:
            database_server.drop("latin")


class TestDamage:
    def spoil(self, engine: PostgresqlEngine) -> None:
        with engine.server.admin(engine.database) as connection:
            changed = "UPDATE jobs_backup.chunks_1 SET data = 'damaged' WHERE start = (SELECT min(start) FROM jobs_backup.chunks_1)"
            connection.execute(changed)

    def test_of_a_dead_process_the_rest_is_sent(self, engine: PostgresqlEngine) -> None:
        dead, alive = engine.open(), engine.open()
        record(dead, [line(0)])
        record(dead, [line(1)])
        self.spoil(engine)
        engine.die(dead)
        assert alive.recover() == 1
        assert [(damage.events, "written" in damage.error) for damage in alive.quarantined()] == [(1, True)]
        assert gzip.decompress(content(alive, claim(alive))) == line(1)
        alive.close()

    def test_while_it_records_it_goes_on_in_another_session(self, engine: PostgresqlEngine) -> None:
        spool = engine.open()
        record(spool, [line(0)])
        record(spool, [line(1)])
        self.spoil(engine)
        spool.seal()
        record(spool, [line(2)])
        assert [damage.events for damage in spool.quarantined(own=True)] == [1]
        spool.close()
        assert drain(engine) == Counter([1, 2])

    @pytest.mark.parametrize("times", [1, 2], ids=["before the first attempt", "after one"])
    def test_of_a_sealed_batch(self, engine: PostgresqlEngine, times: int) -> None:
        spool = engine.open(limits=BatchLimits(events=100_000, bytes=1 << 30, age=300))
        for _ in range(2):
            record(spool, [b'{"n":%0100d}\n' % number for number in range(9000)])
        spool.seal()
        for _ in range(times - 1):
            spool.release(claim(spool), SpoolError("no"), delay=0)
        claimed = spool.claim()
        assert claimed is not None
        self.spoil(engine)
        with pytest.raises(SpoolCorrupt) as raised, spool.open_body(claimed.batch).open() as reader:
            reader.read()
        spool.quarantine_batch(claimed, raised.value)
        events = sum(damage.events for damage in spool.quarantined())
        if times == 1:
            again = claim(spool)
            assert again.key != claimed.batch.key
            assert gzip.decompress(content(spool, again)).count(b"\n") + events == 18_000
        else:
            assert (events, spool.claim()) == (18_000, None)
        spool.close()


class TestSegments:
    def tables(self, engine: PostgresqlEngine) -> list[str]:
        with engine.server.admin(engine.database) as connection:
            query = "SELECT tablename FROM pg_tables WHERE schemaname = 'jobs_backup' AND tablename LIKE 'chunks_%' ORDER BY 1"
            return [row[0] for row in connection.execute(query).fetchall()]

    def test_a_segment_is_dropped_once_all_of_it_is_sent(self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jobs_backup.spool.postgresql.segments.SEGMENT_BYTES", 1)
        monkeypatch.setattr("jobs_backup.spool.postgresql.spool._SEGMENT_SECONDS", 0.0)
        spool = through(engine)
        record(spool, [line(0)])
        spool.maintain()
        assert self.tables(engine) == ["chunks_1", "chunks_2"], "something is open in it"
        spool.seal()
        spool.maintain()
        assert self.tables(engine) == ["chunks_1", "chunks_3"], "it waits; and in the second there was nothing"
        spool.stored(claim(spool))
        record(spool, [line(1)])
        spool.maintain()
        assert self.tables(engine) == ["chunks_3", "chunks_4"]
        spool.close()

    def test_short_processes_drop_them_too(self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """As with `run` in a cron job: none of them lives until the first look."""
        monkeypatch.setattr("jobs_backup.spool.postgresql.segments.SEGMENT_BYTES", 1)
        for number in range(4):
            spool = through(engine)
            record(spool, [line(number)])
            spool.seal()
            spool.stored(claim(spool))
            spool.close()
            assert len(self.tables(engine)) == 1

    def test_a_refused_batch_does_not_hold_an_old_segment(self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jobs_backup.spool.postgresql.segments.SEGMENT_BYTES", 1)
        monkeypatch.setattr("jobs_backup.spool.postgresql.segments.OLD_SECONDS", -1.0)
        monkeypatch.setattr("jobs_backup.spool.postgresql.spool._SEGMENT_SECONDS", 0.0)
        spool = through(engine)
        record(spool, [line(number) for number in range(20)])
        spool.seal()
        batch = claim(spool)
        before = content(spool, batch)
        spool.maintain()
        assert self.tables(engine) == ["chunks_1", "chunks_2"], "it is being sent"
        spool.release(batch, SpoolError("refused"), delay=0)
        spool.maintain()
        moved = claim(spool)
        assert moved.blobs != batch.blobs
        assert (content(spool, moved), moved.key) == (before, batch.key)
        spool.stored(moved)
        spool.maintain()
        assert self.tables(engine) == [self.tables(engine)[-1]]
        spool.close()

    def test_who_reads_a_table_delays_its_drop_and_nothing_else(
        self, engine: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As `pg_dump` does."""
        monkeypatch.setattr("jobs_backup.spool.postgresql.segments.SEGMENT_BYTES", 1)
        monkeypatch.setattr("jobs_backup.spool.postgresql.segments._LOCK_TIMEOUT", "100ms")
        monkeypatch.setattr("jobs_backup.spool.postgresql.spool._SEGMENT_SECONDS", 0.0)
        spool = through(engine)
        record(spool, [line(0)])
        spool.seal()
        spool.stored(claim(spool))
        with engine.server.admin(engine.database) as connection, connection.transaction():
            connection.execute("SELECT count(*) FROM jobs_backup.chunks_1")
            spool.maintain()
            assert "chunks_1" in self.tables(engine)
            record(spool, [line(1)])
        spool.maintain()
        assert "chunks_1" not in self.tables(engine)
        spool.close()


def test_a_commit_costs_the_same_while_a_transaction_elsewhere_is_open(engine: PostgresqlEngine) -> None:
    """As `pg_dump`'s: until it ends, the server can remove no version of the session's row, and each commit adds one."""
    spool = through(engine)
    record(spool, [line(0)])
    spool._heartbeat.stop()

    def read() -> int:
        """Blocks of the table that were read, as counted by the connection that recorded."""
        query = "SELECT heap_blks_hit + heap_blks_read FROM pg_statio_all_tables WHERE relid = 'jobs_backup.sessions'::regclass"
        spool._database.read(lambda db: db.execute("SELECT pg_stat_force_next_flush()"))
        (blocks,) = spool._database.read(lambda db: db.execute(query).fetchone()) or (0,)
        return int(blocks)

    with engine.server.admin(engine.database) as holder, holder.transaction():
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM jobs_backup.sessions")
        with engine.server.admin(engine.database) as connection:
            for _ in range(3000):
                connection.execute("UPDATE jobs_backup.sessions SET error = ''")
        record(spool, [line(1)])  # it finds the last one
        before = read()
        for number in range(2, 22):
            record(spool, [line(number)])
        assert read() - before < 20 * 10
    spool.close()
    assert drain(engine) == Counter(range(22))


def test_nothing_depends_on_a_servers_session() -> None:
    """So that a pooler may give each transaction another connection: no session settings, locks or prepared statements."""
    with postgres(log_statement="all", log_min_duration_statement="-1") as server, server.database() as database:
        engine = PostgresqlEngine(server, database)
        spool = engine.open()
        for _ in range(10):
            record(spool, [line(1)] * 100)
        spool.seal()
        batch = claim(spool)
        spool.uploads.begin(batch, Upload(key=batch.key, id="x"), 5 << 20)
        spool.stored(batch)
        spool.maintain()
        with spool.reading("x"):
            spool.append([Recording(WEB, [], first_at=1, last_at=1, position=InputPosition("x", 1, b"1"))])
        read_status(engine.place)
        spool.close()
        log = (server.directory / "log").read_text()
    statements = re.findall(r"LOG:  (?:statement|execute \S+): (.*)", log)
    assert len(statements) > 50
    assert set(re.findall(r"LOG:  execute (\S+):", log)) <= {"<unnamed>"}, "a statement was prepared"
    own = [one for one in statements if one.startswith(("SET", "LISTEN", "NOTIFY", "PREPARE")) or "pg_advisory_lock" in one]
    assert [one for one in own if not one.startswith("SET LOCAL")] == []


class TestFailover:
    """Both servers are in the URL, and the driver takes the one that takes writes."""

    def both(self, primary: Postgres, standby: Postgres, database: str) -> PostgresqlSpool:
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        place = DatabaseSpool(DatabaseUrl(f"postgresql://postgres@{hosts}/{database}?sslmode=disable"))
        return PostgresqlSpool(
            place,
            location="s3://bucket",
            prefix="p",
            instance_id="1",
            limits=SMALL,
            room=QuotaLimits(timeout=60.0),
            lease=60.0,
            workers=1,
        )

    def test_a_synchronous_standby_has_everything(self) -> None:
        with postgres() as primary, primary.database() as database, primary.standby() as standby:
            with primary.admin() as connection:
                connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                connection.execute("SELECT pg_reload_conf()")
            spool = self.both(primary, standby, database)
            failed_over = threading.Event()

            def fail_over() -> None:
                if not failed_over.is_set():
                    time.sleep(0.7)
                    primary.stop(signal.SIGQUIT)
                    standby.promote()
                    failed_over.set()
                time.sleep(0.05)

            acknowledged = record_under(spool, fail_over, each=60, pause=0.02)
            assert failed_over.is_set()
            spool.close()
            assert drain(PostgresqlEngine(standby, database)) == Counter(acknowledged)
            primary.start()  # so that its database can be dropped
            with primary.admin() as connection:
                connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
                connection.execute("SELECT pg_reload_conf()")

    def test_what_an_asynchronous_standby_lacks_is_told(self) -> None:
        with postgres() as primary, primary.database() as database:
            PostgresqlEngine(primary, database).open().close()
            with primary.standby() as standby:
                warnings = check(primary.place(database), 0)
                assert [one for one in warnings if "synchronous_standby_names" in one]
                spool = self.both(primary, standby, database)
                for number in range(5):
                    record(spool, [line(number)])
                until = time.monotonic() + 30
                while not there(standby, database, 5):
                    assert time.monotonic() < until
                    time.sleep(0.05)
                standby.stop()
                for number in range(5, 8):
                    record(spool, [line(number)])
                primary.stop(signal.SIGQUIT)
                standby.start()
                standby.promote()
                with pytest.raises(SpoolCorrupt, match="lost up to 3 events"):
                    record(spool, [line(8)])
                assert [one.events for one in read_status(standby.place(database)).quarantine] == [3]
                spool.close()
                assert drain(PostgresqlEngine(standby, database)) == Counter(range(5))
            primary.start()


def there(server: Postgres, database: str, events: int) -> bool:
    """Whether a server has so many events of a session."""
    with server.admin(database) as connection:
        return connection.execute("SELECT max(events) FROM jobs_backup.sessions").fetchone() == (events,)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://host/db",
        "postgresql://host",
        "postgresql://user:pa@ss:word@host:port/db",
        "postgresql://user:se/cret@host/db",
        "postgresql://user:12#cret@host/db",
        "postgresql://user:12?cret@host/db",
        "canary",
    ],
)
def test_a_wrong_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match=r"^expected postgresql://USER@HOST/DATABASE, with") as raised:
        DatabaseUrl(url)
    assert "cret" not in str(raised.value)


def test_a_database_has_no_directory(engine: PostgresqlEngine) -> None:
    settings = CoreSettings.from_environment(
        {"JOBS_BACKUP_STORAGE_PROVIDER": "FILE", "JOBS_BACKUP_SPOOL": engine.server.url(engine.database)}
    )
    assert settings.spool_place == engine.place
    assert settings.rejects_path.name == "jobs-backup-rejects"
    with pytest.raises(ConfigurationError, match="not in a directory"):
        _ = settings.spool_path


@pytest.mark.parametrize(
    ("url", "shown", "local"),
    [
        ("postgresql://me:canary@db.example.com:5433/events?sslmode=require", "postgresql://db.example.com:5433/events", False),
        ("postgres://db/events", "postgresql://db/events", False),
        ("postgresql://me@one:1,two:2/events", "postgresql://one:1,two:2/events", False),
        ("postgresql://me@%2Fvar%2Frun/events", "postgresql:///var/run/events", True),
        ("postgresql:///events?host=/var/run", "postgresql:///var/run/events", True),
        ("postgresql://me@[::1]:5432/events", "postgresql://[::1]:5432/events", False),
    ],
)
def test_of_a_url_the_host_and_the_database_are_shown(url: str, shown: str, local: bool) -> None:
    found = DatabaseUrl(url)
    assert (f"{found}", repr(found), str(DatabaseSpool(found)), found.is_local) == (shown, shown, shown, local)
    assert found.reveal() == url


def test_tls_is_verified_unless_the_url_says_otherwise(engine: PostgresqlEngine) -> None:
    bare = DatabaseSpool(DatabaseUrl(f"postgresql://postgres@127.0.0.1:{engine.server.port}/{engine.database}"))
    with pytest.raises(SpoolError, match=r"SSL|certificate") as raised:
        read_status(bare)
    assert "127.0.0.1" in raised.value.message


def test_the_password_comes_from_a_file_or_a_command(engine: PostgresqlEngine) -> None:
    url = DatabaseUrl(engine.server.url(engine.database))
    read = DatabaseSpool(url, password_command="printf secret")
    with pytest.raises(SpoolError, match="no spool found"):
        read_status(read)
    for command, why in (
        ("false", "exit code 1"),
        ("true", "printed nothing"),
        ("/nonexistent/x", "FileNotFoundError"),
        ("'", "ValueError"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            read_status(DatabaseSpool(url, password_command=command))
