"""A spool in a directory becomes part of one in PostgreSQL: all of it, once, whenever the process that moves it is killed."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from engines import PostgresqlEngine
from places import TESTS
from postgres import Postgres
from spools import APP, LIMITS, WEB, claim, claimed, content, die, open_spool, record, rows, tampering
from swallowing import swallower

from jobs_backup.errors import SpoolCorrupt, SpoolError, Unavailable
from jobs_backup.model import Kind, Part, Stream, Upload
from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.spool.engines import move_spool, open_reader, read_status
from jobs_backup.spool.ids import INDEX_BITS, JobSet
from jobs_backup.spool.interface import BatchLimits, InputPosition, Recording
from jobs_backup.spool.moving import Counts, Moved
from jobs_backup.spool.postgresql import arriving
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.database import MOVED_VERSION, file_version
from jobs_backup.spool.sqlite.leaving import leaving

LOCATION = "s3://bucket"
FAILED = Stream(Kind.FAILED, "w", "web")


class Local(NamedTuple):
    """A spool with something of everything, whose last process was killed.

    Attributes:
        waits: number of each event that is not in the bucket.
        stored: ids of the events of an object of which 3 were delivered.
        settled: ids of the events of another one; each has a failure record that waits.
        deleted: an id of one that was deleted.
        given: an id of an event that is not kept.
        sealed, left_open: ids of events that wait.
        elsewhere: an id for another store.
    """

    directory: Path
    waits: Counter[int]
    stored: list[int]
    settled: list[int]
    deleted: int
    given: int
    sealed: list[int]
    left_open: list[int]
    elsewhere: int


def line(number: int) -> bytes:
    return b'{"n":%d}\n' % number


def ids(runs: list[tuple[int, int]]) -> list[int]:
    return [job for first, count in runs for job in range(first, first + count)]


def job_set(*jobs: int) -> JobSet:
    found = JobSet()
    for job in jobs:
        found.add(job)
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Local:
    directory = tmp_path_factory.mktemp("local") / "spool"
    other = open_spool(directory, location="s3://elsewhere")
    elsewhere = ids(record(other, [line(900)], APP))[0]
    other.close()
    old = open_spool(directory)
    record(old, [line(13)])
    old.seal()
    old.stored(claim(old))
    old.close()
    spool = open_spool(directory, limits=BatchLimits(events=1_000_000, bytes=1 << 30, age=300))
    spool.forget(-1e6, 0)  # what may be: the one before
    stored = ids(record(spool, [line(number) for number in range(10)]))
    spool.seal()
    spool.stored(claim(spool))
    spool.delivered(job_set(*stored[:3]))
    settled = ids(record(spool, [line(number) for number in range(10, 12)]))
    spool.seal()
    spool.stored(claim(spool))
    (deleted,) = ids(record(spool, [line(12)]))
    spool.seal()
    spool.stored(claim(spool))
    spool.delivered(job_set(deleted))
    spool.deleted(spool.claim_deletes(10))
    ((given, _),) = spool.number(WEB, 5)
    # Damaged before it was ever sent: its first chunk is in quarantine, and the rest waits.
    for number in (20, 21):
        record(spool, [line(number)] * 40_000)
    spool.seal()
    damaged = claimed(spool)
    with tampering(spool._writer.session.blobs._database) as db:
        db.execute("UPDATE chunks SET data=zeroblob(length(data)) WHERE job=?", (damaged.batch.id << INDEX_BITS,))
    spool.quarantine_batch(damaged, SpoolCorrupt("rotten"))
    spool.release(claim(spool), Unavailable("busy"), delay=1000)
    sealed = ids(record(spool, [line(number) for number in range(100, 150)]))
    spool.seal()
    uploading = claim(spool)
    upload = spool.uploads.begin(uploading, Upload(key=uploading.key, id="an-upload"), 5 << 20)
    spool.uploads.add_part(upload, Part(number=1, etag="one"))
    failures = ids(record(spool, [line(200), line(201)], FAILED))
    spool.settle(list(zip(settled, failures, strict=True)))
    spool.append([Recording(WEB, [], first_at=0, last_at=0, position=InputPosition("0123-input", 3, b"{}"))])
    left_open = ids(record(spool, [line(number) for number in range(300, 310)], APP))
    die(spool)
    waits = Counter({900: 1, 21: 40_000, 200: 1, 201: 1, **dict.fromkeys([*range(100, 150), *range(300, 310)], 1)})
    return Local(directory, waits, stored, settled, deleted, given, sealed, left_open, elsewhere)


@pytest.fixture
def local(template: Local, tmp_path: Path) -> Local:
    shutil.copytree(template.directory, tmp_path / "spool")
    return template._replace(directory=tmp_path / "spool")


@pytest.fixture
def fleet(database_server: Postgres) -> Iterator[PostgresqlEngine]:
    with database_server.database() as database:
        yield PostgresqlEngine(database_server, database)


def move(directory: Path, place: DatabaseSpool, *, dry_run: bool = False, max_bytes: int | None = None) -> Moved:
    return move_spool(directory, place, instance_id="host", max_bytes=max_bytes, dry_run=dry_run)


def place(fleet: PostgresqlEngine, port: int | None = None) -> DatabaseSpool:
    return fleet.server.place(fleet.database, port=port)


def query(fleet: PostgresqlEngine, text: str) -> list[Any]:
    with fleet.server.admin(fleet.database) as connection:
        return connection.execute(text).fetchall()


def drain(fleet: PostgresqlEngine) -> Counter[int]:
    """All that waits in a fleet, uploaded by another process: number -> how often."""
    found: Counter[int] = Counter()
    for location in (LOCATION, "s3://elsewhere"):
        spool = fleet.open(location=location)
        spool.begin_sending()
        while spool.has_claimable():
            batch = claim(spool)
            found.update(json.loads(one)["n"] for one in gzip.decompress(content(spool, batch)).splitlines())
            spool.stored(batch)
        spool.close()
    return found


def objects_of(spool: Any) -> list[tuple[Any, ...]]:
    """What a spool knows of objects, but for its own numbers and times."""
    with open_reader(spool) as reader:
        return sorted(
            tuple(one)[1:-1]
            for kind in Kind
            for location in (LOCATION, "s3://elsewhere")
            for one in reader.stored(location, kind, 0, 99)
        )


COUNTS = Counts(
    waiting_batches=5, waiting_events=40_063, waiting_bytes=0, stored_objects=2, stored_events=12, other_batches=2, uploads=1,
    inputs=1, quarantined=1,
)  # fmt: skip


def without_bytes(counts: Counts) -> Counts:
    return Counts(**{name: getattr(counts, name) * (name != "waiting_bytes") for name in counts.__struct_fields__})


class TestAllOfIt:
    def test_what_waits_is_uploaded_by_the_fleet(self, local: Local, fleet: PostgresqlEngine) -> None:
        before = rows(_catalog(local), "SELECT key FROM batches WHERE state='sealed' ORDER BY key")
        dry = move(local.directory, place(fleet), dry_run=True)
        found = move(local.directory, place(fleet))
        assert (dry.moved, found.moved, found.before) == (False, True, False)
        assert without_bytes(found.counts) == COUNTS
        assert without_bytes(dry.counts) == COUNTS, "what a dead process left open counts as well"
        keys = query(fleet, "SELECT key FROM jobs_backup.batches WHERE state = 'sealed' ORDER BY key")
        assert {key for (key,) in before} < {key for (key,) in keys}
        assert read_status(place(fleet)).bytes == found.counts.waiting_bytes
        assert drain(fleet) == local.waits
        assert drain(fleet) == Counter()

    def test_ids_are_acknowledged_and_nothing_else_is(self, local: Local, fleet: PostgresqlEngine) -> None:
        busy = fleet.open()  # has given ids of the same numbers
        own = ids(record(busy, [line(number) for number in range(1000, 1020)]))
        move(local.directory, place(fleet))
        spool = fleet.open()
        known = [*local.stored, *local.settled, local.deleted, local.given, *local.sealed, *local.left_open, local.elsewhere, *own]
        strangers = (
            [job + 10_000 for job in known if job != local.given] + [job ^ (1 << 80) for job in known] + [local.stored[0] + 10]
        )
        assert [job for job in known if spool.stream_of(job) is None] == []
        assert [job for job in strangers if spool.stream_of(job) is not None] == []
        assert spool.stream_of(local.left_open[0]) == APP
        assert spool.claim_deletes(10) == []
        assert list(spool.delivered(job_set(*local.stored[:9], *strangers))) == sorted(strangers)
        assert spool.claim_deletes(10) == [], "one was not delivered"
        assert not spool.delivered(job_set(local.stored[9], local.deleted, local.given))
        (due,) = spool.claim_deletes(10)
        assert query(fleet, f"SELECT jobs, delivered FROM jobs_backup.batches WHERE id = {due.batch}") == [(10, 10)]
        spool.deleted([due])
        # What waits is deleted, too, once it is in the bucket: by ids of the machine and by those of the fleet.
        busy.close()
        assert not spool.delivered(job_set(*local.sealed, *own))
        assert drain(fleet) == local.waits + Counter(range(1000, 1020))
        assert len(spool.claim_deletes(10)) == 2
        spool.close()

    def test_numbers_of_the_fleet_are_not_those_of_moved_ids(self, local: Local, fleet: PostgresqlEngine) -> None:
        """An id names a batch by its first number, which another moved batch may have here."""
        move(local.directory, place(fleet))
        spool = fleet.open()
        named = query(fleet, "SELECT m.epoch, m.number, m.batch FROM jobs_backup.moved_batches m")
        assert any(batch != number for _, number, batch in named)
        for epoch, _, batch in named:
            if not any((one[0], one[1]) == (epoch, batch) for one in named):
                assert spool.stream_of(epoch << 63 | batch << INDEX_BITS) is None
        spool.close()

    def test_failures_settle_jobs_of_the_machine(self, local: Local, fleet: PostgresqlEngine) -> None:
        move(local.directory, place(fleet))
        spool = fleet.open(delete_after="settled")
        assert spool.claim_deletes(10) == [], "the records are not in the bucket yet"
        drain(fleet)
        (due,) = spool.claim_deletes(10)
        assert query(fleet, f"SELECT events FROM jobs_backup.batches WHERE id = {due.batch}") == [(2,)]
        spool.deleted([due])
        # A failure that comes now, of an old id.
        spool.delivered(job_set(*local.sealed[:49]))
        failure = ids(record(spool, [line(400)], FAILED))
        spool.settle([(local.sealed[49], failure[0])])
        spool.seal()
        assert spool.claim_deletes(10) == []
        drain(fleet)
        assert len(spool.claim_deletes(10)) == 1
        spool.close()

    def test_objects_quarantine_uploads_and_inputs(self, local: Local, fleet: PostgresqlEngine) -> None:
        before = objects_of(local.directory)
        since, _ = _knowledge(local.directory)
        forgotten = _forgotten(local.directory)
        (file,) = (local.directory / "quarantine").iterdir()
        data = file.read_bytes()
        move(local.directory, place(fleet))
        assert objects_of(place(fleet)) == before
        assert len(before) == 2
        assert _forgotten(place(fleet)) == forgotten != []
        assert _knowledge(place(fleet)) == (since, 0)
        assert query(fleet, "SELECT data, events, error FROM jobs_backup.damages") == [
            (data, 40_000, "these are not the bytes that were written")
        ]
        spool = fleet.open()
        uploading = next(batch for batch in _claimed(spool) if batch.events == 50)
        journaled = spool.uploads.of(uploading)
        assert journaled is not None
        assert (journaled[0].upload.id, [part.etag for part in journaled[1]]) == ("an-upload", ["one"])
        assert spool.new_positions("host/0123-", {}) == [InputPosition("host/0123-input", 3, b"{}")]
        spool.close()
        totals = query(
            fleet, "SELECT state, sum(events)::int FROM jobs_backup.totals WHERE kind = 'raw' GROUP BY state ORDER BY state"
        )
        local_totals = rows(_catalog(local), "SELECT state, events FROM totals WHERE kind='raw' ORDER BY state")
        assert totals == local_totals

    def test_retries_wait_as_long_as_before(self, local: Local, fleet: PostgresqlEngine) -> None:
        move(local.directory, place(fleet))
        ((seconds, failures, claims),) = query(
            fleet,
            "SELECT retry_at - extract(epoch FROM clock_timestamp()), failures, claims FROM jobs_backup.batches WHERE failures > 0",
        )
        assert 900 < seconds <= 1000
        assert (failures, claims) == (1, 2)

    def test_ids_from_before_they_had_an_epoch(self, tmp_path: Path, fleet: PostgresqlEngine) -> None:
        (tmp_path / "blobs").mkdir()
        (tmp_path / "locks").mkdir()
        earlier = TESTS / "data/spool-v7"
        for script in earlier.rglob("*.sql"):
            with contextlib.closing(sqlite3.connect((tmp_path / script.relative_to(earlier)).with_suffix(".db"))) as connection:
                connection.executescript(script.read_text())
        with pytest.raises(SpoolError, match="written by an earlier version"):
            move(tmp_path, place(fleet))
        spool = open_spool(tmp_path, location="file:///srv/bucket")
        spool.recover()
        spool.close()
        old = rows(
            Catalog(tmp_path / "catalog.db", durability="full")._database, "SELECT id FROM batches WHERE epoch=0 AND kind='raw'"
        )
        move(tmp_path, place(fleet))
        other = fleet.open()
        assert old
        assert [batch for (batch,) in old if other.stream_of(batch << INDEX_BITS) is None] == []
        assert other.stream_of(999 << INDEX_BITS) is None
        other.close()


SWEEP = """
import os, signal, sys
import psycopg
from jobs_backup.errors import SpoolError
from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.settings.values import DatabaseUrl
from jobs_backup.spool.engines import move_spool
from jobs_backup.spool.sqlite.database import Connection
from pathlib import Path

left = [0]

def counting(call):
    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return counted

Connection.use = counting(Connection.use)
psycopg.Connection.execute = counting(psycopg.Connection.execute)
psycopg.Cursor.executemany = counting(psycopg.Cursor.executemany)
for line in sys.stdin:
    directory, url, steps = line.split()
    child = os.fork()
    if child == 0:
        left[0] = int(steps)
        move_spool(Path(directory), DatabaseSpool(DatabaseUrl(url)), instance_id="host", max_bytes=None)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextlib.contextmanager
def mover() -> Iterator[Callable[[Path, str, int], int]]:
    """Move a spool in a process that is killed at its n-th step: a transaction here or a statement there. Returns its exit code."""
    with subprocess.Popen([sys.executable, "-c", SWEEP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(directory: Path, url: str, steps: int) -> int:
            print(directory, url, steps, file=stdin, flush=True)
            return int(stdout.readline())

        yield run
        stdin.close()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose disk nothing waits for, where the system has one: the sweep copies a spool for each step."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


class TestKilled:
    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_at_any_step(self, template: Local, memory: Path, database_server: Postgres) -> None:
        states: Counter[tuple[int, bool]] = Counter()
        with mover() as run:
            # Fewer of the first ones, in which dead processes are replaced as always.
            for steps in itertools.chain(range(1, 96, 8), itertools.count(96)):
                directory = memory / str(steps)
                shutil.copytree(template.directory, directory)
                with database_server.database() as database:
                    fleet = PostgresqlEngine(database_server, database)
                    code = run(directory, database_server.url(database), steps)
                    assert code in (0, -9)
                    states[_state(fleet), _has_noted(directory)] += 1
                    if steps % 5 == 0:  # some of them once more, at another place
                        assert run(directory, database_server.url(database), steps // 2) in (0, -9)
                    assert run(directory, database_server.url(database), 0) == 0
                    assert (_state(fleet), _has_noted(directory)) == (1, True)
                    waits = "SELECT count(*), sum(events), sum(size) FROM jobs_backup.batches WHERE state = 'sealed'"
                    chunks = "SELECT count(DISTINCT batch), sum(events), sum(size) FROM jobs_backup.chunks_1 WHERE form = 1"
                    assert query(fleet, waits) == query(fleet, chunks)
                    assert query(fleet, waits)[0][:2] == (COUNTS.waiting_batches, COUNTS.waiting_events)
                    assert query(fleet, "SELECT count(*) FROM jobs_backup.moved_batches") == [(9,)]
                    if steps % 16 == 0:  # it takes longer than the rest
                        assert drain(fleet) == template.waits, steps
                shutil.rmtree(directory)
                if code == 0:
                    break
        assert (1, False) not in states, "it is there, and the machine could go on"
        assert states[0, False] > 10, "before it was noted"
        assert states[0, True] > 10, "noted, and not there yet"
        assert states[1, True] > 1, "there"

    def test_the_answer_to_the_commit_is_lost(self, local: Local, fleet: PostgresqlEngine) -> None:
        with swallower(fleet.server.port) as proxy:
            fleet.open().close()
            proxy.lose(b"UPDATE jobs_backup.moves", answer=False)
            with pytest.raises(SpoolError, match=r"closed|lost|terminat"):
                _once(local.directory, place(fleet, proxy.port))
            assert _is_usable(local.directory), "nothing was committed, and it is as before"
            proxy.lose(b"COMMIT", answer=True)  # of the store's row
            assert move(local.directory, place(fleet, proxy.port)).moved
        assert drain(fleet) == local.waits

    def test_where_nobody_can_be_asked_it_waits(
        self, local: Local, fleet: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fleet.open().close()
        take_in = arriving.Arrival.take_in

        def cut(self: arriving.Arrival, *arguments: Any) -> Counts:
            take_in(self, *arguments)
            self._database.close()
            raise SpoolError("the connection was lost")

        with monkeypatch.context() as patch:
            patch.setattr(arriving.Arrival, "take_in", cut)
            with pytest.raises(SpoolError, match="the connection was lost"):
                move(local.directory, place(fleet))
        with pytest.raises(SpoolError, match="is being moved to postgresql://"):
            open_spool(local.directory)
        found = move(local.directory, place(fleet))
        assert (found.moved, found.before) == (True, True)
        assert without_bytes(found.counts) == COUNTS
        assert drain(fleet) == local.waits


class TestRefused:
    def test_a_moved_spool_says_where_it_is(self, local: Local, fleet: PostgresqlEngine) -> None:
        move(local.directory, place(fleet))
        for use in (open_spool, read_status, objects_of):
            with pytest.raises(SpoolError, match=f"was moved to {place(fleet)}"):
                use(local.directory)
        again = move(local.directory, place(fleet))
        assert (again.moved, again.before) == (True, True)
        assert without_bytes(again.counts) == COUNTS
        assert move(local.directory, place(fleet), dry_run=True).before

    def test_a_live_process(self, local: Local, fleet: PostgresqlEngine) -> None:
        spool = open_spool(local.directory)
        with pytest.raises(SpoolError, match=r"process \d+ uses"):
            move(local.directory, place(fleet))
        assert len(move(local.directory, place(fleet), dry_run=True).processes) == 1
        record(spool, [line(500)])
        spool.close()
        move(local.directory, place(fleet))
        assert drain(fleet) == local.waits + Counter([500])

    def test_one_that_comes_meanwhile(self, local: Local, fleet: PostgresqlEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has opened the catalog before the move was noted, and begins its session after."""
        begin = Catalog.begin_session

        def late(self: Catalog, *arguments: Any, **options: Any) -> None:
            monkeypatch.setattr(Catalog, "begin_session", begin)
            move(local.directory, place(fleet))
            begin(self, *arguments, **options)

        monkeypatch.setattr(Catalog, "begin_session", late)
        with pytest.raises(SpoolError, match="this spool is moved into another one"):
            open_spool(local.directory)
        assert drain(fleet) == local.waits

    def test_one_that_began_just_before_the_note(self, local: Local, fleet: PostgresqlEngine) -> None:
        with leaving(local.directory, "host") as source:
            source.prepare()
            spool = open_spool(local.directory)
            with pytest.raises(SpoolError, match=r"process \d+ uses"):
                source.begin(arriving_note(fleet))
        record(spool, [line(500)])
        spool.close()
        assert _is_usable(local.directory)

    def test_two_at_once(self, local: Local, fleet: PostgresqlEngine) -> None:
        with leaving(local.directory, "host"), pytest.raises(SpoolError, match="another process is moving"):
            move(local.directory, place(fleet))

    def test_what_fails_leaves_the_machine_as_it_was(self, local: Local, fleet: PostgresqlEngine) -> None:
        """Bytes that are damaged, found only when they are read."""
        spool = open_spool(local.directory)
        jobs = ids(record(spool, [line(number) for number in range(500, 510)]))
        spool.seal()
        file = spool._writer.session.blobs._database
        spool.close()
        with tampering(file) as db:
            changed = "UPDATE chunks SET data=zeroblob(length(data)) WHERE job=?"
            assert db.execute(changed, (jobs[0] & ((1 << 63) - 1),)).rowcount == 1
        with pytest.raises(SpoolCorrupt, match="not those that were written") as caught:
            move(local.directory, place(fleet))
        assert "archive --once" in caught.value.hint
        assert _state(fleet) == 0
        assert query(fleet, "SELECT version, oldest FROM jobs_backup.version") == [(2, 1)]
        spool = open_spool(local.directory)
        while (claimed_ := spool.claim()) is not None:
            if claimed_.batch.events == 10 and claimed_.batch.stream == WEB:
                spool.quarantine_batch(claimed_, SpoolCorrupt("rotten"))
        spool.close()
        assert move(local.directory, place(fleet)).counts.quarantined == 2
        assert drain(fleet) == local.waits

    def test_beyond_the_quota(self, local: Local, fleet: PostgresqlEngine) -> None:
        with pytest.raises(SpoolError, match="whose quota is 10") as caught:
            move(local.directory, place(fleet), max_bytes=10)
        assert "archive --once" in caught.value.hint
        open_spool(local.directory).close()

    def test_another_copy(self, local: Local, fleet: PostgresqlEngine, tmp_path: Path) -> None:
        shutil.copytree(local.directory, tmp_path / "copy")
        move(local.directory, place(fleet))
        with pytest.raises(SpoolError, match="from another copy of it"):
            move(tmp_path / "copy", place(fleet))
        assert drain(fleet) == local.waits

    def test_another_target(self, local: Local, fleet: PostgresqlEngine, database_server: Postgres) -> None:
        move(local.directory, place(fleet))
        with (
            database_server.database() as other,
            pytest.raises(SpoolError, match=r"was moved to .* which is another spool"),
        ):
            move(local.directory, database_server.place(other))

    def test_a_database_that_was_set_back(self, local: Local, fleet: PostgresqlEngine) -> None:
        move(local.directory, place(fleet))
        with fleet.server.admin(fleet.database) as connection:
            connection.execute("DELETE FROM jobs_backup.moves")
        with pytest.raises(SpoolError, match="does not know it any more"):
            move(local.directory, place(fleet))

    def test_one_whose_first_process_was_killed_at_once(self, tmp_path: Path, fleet: PostgresqlEngine) -> None:
        """It had made the tables, and not yet entered its store."""
        open_spool(tmp_path / "spool").close()
        with contextlib.closing(sqlite3.connect(tmp_path / "spool/catalog.db")) as db, db:
            db.execute("DELETE FROM stores")
        found = move(tmp_path / "spool", place(fleet))
        assert (found.moved, found.counts) == (True, Counts())

    def test_no_spool(self, tmp_path: Path, fleet: PostgresqlEngine) -> None:
        with pytest.raises(SpoolError, match="no spool found"):
            move(tmp_path, place(fleet))
        assert list(tmp_path.iterdir()) == []


def test_several_machines_beside_a_busy_fleet(tmp_path: Path, fleet: PostgresqlEngine) -> None:
    """Each has batches of the same numbers, and large ones."""
    dice = random.Random(7)
    recorder = fleet.open(limits=BatchLimits(events=100, bytes=1 << 30, age=300))
    expected: Counter[int] = Counter()
    jobs: dict[str, list[int]] = {}
    for host in ("a", "b", "c"):
        spool = open_spool(tmp_path / host, limits=LIMITS)
        for batch in range(5):
            numbers = range(len(expected), len(expected) + dice.randrange(1, 300))
            jobs[f"{host}{batch}"] = ids(
                record(spool, [b'{"n":%d,"x":"%s"}\n' % (n, b"%x" % dice.getrandbits(4000)) for n in numbers])
            )
            expected.update(numbers)
            spool.seal()
        spool.close()
        number = len(expected)
        expected.update([number])
        jobs[f"fleet{host}"] = ids(record(recorder, [line(number)]))
        assert move_spool(tmp_path / host, place(fleet), instance_id=host, max_bytes=None).counts.waiting_batches == 5
    recorder.close()
    assert drain(fleet) == expected
    taker = fleet.open()
    for name in ("b2", "a0", "c4"):
        assert not taker.delivered(job_set(*jobs[name]))
        (due,) = taker.claim_deletes(10)
        assert query(fleet, f"SELECT events FROM jobs_backup.batches WHERE id = {due.batch}") == [(len(jobs[name]),)], name
        taker.deleted([due])
    taker.close()


def arriving_note(fleet: PostgresqlEngine) -> Any:
    from jobs_backup.spool.moving import Note

    return Note("0" * 32, str(place(fleet)), 1, is_done=False)


def _once(directory: Path, place: DatabaseSpool) -> Moved:
    """Move, with no second attempt at a lost connection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs_backup.spool.postgresql.connection._RETRY_SECONDS", 0.0)
        return move(directory, place)


def _catalog(local: Local) -> Any:
    class Named(NamedTuple):
        path: Path

    return Named(local.directory / "catalog.db")


def _claimed(spool: Any) -> Iterator[Any]:
    spool.begin_sending()
    while (found := spool.claim()) is not None:
        yield found.batch


def _knowledge(spool: Any) -> tuple[int, int]:
    with open_reader(spool) as reader:
        return reader.knowledge()


def _forgotten(spool: Any) -> list[Any]:
    with open_reader(spool) as reader:
        return list(reader.forgotten(LOCATION, Kind.RAW, 0, 1 << 60))


def _state(fleet: PostgresqlEngine) -> int:
    """How many moves a database knows."""
    if query(fleet, "SELECT to_regclass('jobs_backup.moves')") == [(None,)]:
        return 0
    return int(query(fleet, "SELECT count(*) FROM jobs_backup.moves")[0][0])


def _has_noted(directory: Path) -> bool:
    """Whether a directory says that it is moved, so that nobody uses it."""
    return file_version(directory / "catalog.db") == MOVED_VERSION


def _is_usable(directory: Path) -> bool:
    try:
        open_spool(directory).close()
    except SpoolError as error:
        assert "moved to postgresql://" in str(error)
        return False
    return True
