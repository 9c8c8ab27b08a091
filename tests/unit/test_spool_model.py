"""The spool against a model: processes that record, send, acknowledge, delete, fail and are killed at any moment, in any order,
on one directory, or one database.

A kill ends a step at a boundary: before or after a transaction, before a file is removed, before a lock is released. From then on
the process does nothing more; its transactions are rolled back and its locks are free, as the system leaves them.
`HYPOTHESIS_PROFILE=campaign` runs it for hours.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from postgres import Postgres
from spools import position

from jobs_backup.checksum import crc32c
from jobs_backup.errors import SpoolError, Unavailable
from jobs_backup.model import Batch, Kind, Part, Stream, Upload
from jobs_backup.spool.chunks import ChunkKind
from jobs_backup.spool.ids import INDEX_BITS, LOCAL_BITS, SEGMENT_BITS, JobSet, job_id, job_index, local, origin_of
from jobs_backup.spool.interface import BatchLimits, DueObject, InputPosition, JournaledUpload, QuotaLimits, Recording
from jobs_backup.spool.postgresql.connection import Database as PostgresqlDatabase
from jobs_backup.spool.postgresql.sessions import Heartbeat
from jobs_backup.spool.postgresql.spool import PostgresqlSpool
from jobs_backup.spool.postgresql.writer import Writer
from jobs_backup.spool.sqlite.blobs import BlobFile, Changes
from jobs_backup.spool.sqlite.database import Database
from jobs_backup.spool.sqlite.disk import Ballast
from jobs_backup.spool.sqlite.locks import ProcessLock
from jobs_backup.spool.sqlite.spool import SqliteSpool

STREAMS: Final = [Stream(Kind.RAW, "w", "web"), Stream(Kind.RAW, "", "web"), Stream(Kind.FAILED, "w", "web")]
LOCATIONS: Final = ["s3://one", "s3://two"]
BATCH_EVENTS: Final = 8
BATCH_BYTES: Final = 3000
MEMBER_BYTES: Final = 400
PACKED_BYTES: Final = 150
FILE_BYTES: Final = 5 * 65536
LATER: Final = 3000.0

PICK: Final = st.integers(0, 11)
FAULT: Final = st.none() | st.none() | st.tuples(st.sampled_from(["kill", "disk", "lost"]), st.integers(0, 15))
Fault = tuple[str, int] | None
T = TypeVar("T")


class Killed(BaseException):
    """The process ends here."""


class Row(NamedTuple):
    """A batch in the catalog."""

    state: str
    location: str
    owner: str  # the session that recorded it
    blobs: str
    claimed_by: str | None
    kind: str
    delivered: int
    epoch: int
    seal: tuple[Any, ...]  # events, size, crc32c, uuid, key


class Snapshot(NamedTuple):
    """The contents of the catalog."""

    batches: dict[int, Row]
    sessions: set[str]
    uploads: dict[str, tuple[int, bool, dict[int, str]]]  # id -> batch, abandoned, parts
    delivered: set[int]  # without their epoch


@dataclass
class Process:
    """A living process."""

    location: str
    databases: list[Any] = field(default_factory=list)
    locks: list[ProcessLock] = field(default_factory=list)
    claims: dict[int, Batch] = field(default_factory=dict)
    deletes: dict[int, DueObject] = field(default_factory=dict)
    uploads: dict[str, JournaledUpload] = field(default_factory=dict)
    last_job: dict[Stream, int] = field(default_factory=dict)
    accepted: bool = False  # its store has taken something from it
    spool: SqliteSpool | PostgresqlSpool = None  # type: ignore[assignment]


class Machinery:
    """Knows the open files of each process, and ends it at the chosen boundary."""

    fails: BaseException = sqlite3.OperationalError("disk I/O error")

    def __init__(self) -> None:
        self.current: Process | None = None
        self._fault: Fault = None
        self._dead = False

    def boundary(self, *, can_fail: bool = False, can_lose: bool = False) -> None:
        """A moment at which a process may end, its disk fail, or an answer to a commit get lost."""
        if self._dead:
            raise Killed
        if self._fault is None:
            return
        kind, left = self._fault
        if left:
            self._fault = kind, left - 1
        elif kind == "kill":
            self._dead = True
            raise Killed
        elif kind == "disk" and can_fail:
            self._fault = None
            raise self.fails
        elif kind == "lost" and can_lose:
            self._fault = None
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    def run(self, process: Process, fault: Fault, step: Callable[[], object]) -> str:
        """The outcome of a step: done, failed, or killed. `fault` is what happens, and after how many boundaries."""
        self.current, self._fault, self._dead = process, fault, False
        try:
            step()
        except Killed:
            return "killed"
        except SpoolError:
            assert fault is not None, "nothing was wrong with the disk"
            assert fault[0] in ("disk", "lost")
            return "failed"
        else:
            return "done"
        finally:
            was_killed = self._dead
            self.current, self._fault, self._dead = None, None, False
            if was_killed:
                self.kill(process)

    def open(self, process: Process, age: float) -> None:
        """Start a process."""
        raise NotImplementedError

    def kill(self, process: Process) -> None:
        """What the system does for a process that ends."""
        raise NotImplementedError

    def snapshot(self) -> Snapshot:
        """What the catalog tells."""
        raise NotImplementedError

    def chunks(self, blobs: str, id_: int) -> list[tuple[int, int, bytes]]:
        """(first job, form, bytes) of the chunks of a batch."""
        raise NotImplementedError

    def files(self) -> list[str]:
        """What is in the spool besides what an idle one has."""
        return []

    def close(self) -> None:
        """Remove everything."""


class SqliteMachinery(Machinery):
    """A directory."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        # Where there is memory to put it: no power is lost here, so that nothing has to wait for a disk.
        memory = Path("/dev/shm")
        self.directory = Path(tempfile.mkdtemp(prefix="spool-model-", dir=memory if os.access(memory, os.W_OK) else None))
        machinery, directory = self, self.directory
        begin, write, change = Database.__init__, Database.write, BlobFile.change
        take, release, unlink = ProcessLock.try_to_take.__func__, ProcessLock.release, Path.unlink  # type: ignore[attr-defined]

        def opened(database: Database, *arguments: Any, **options: Any) -> None:
            if machinery.current is not None:
                machinery.current.databases.append(database)
            begin(database, *arguments, **options)

        def written(database: Database, work: Callable[[sqlite3.Connection], T]) -> T:
            def bounded(connection: sqlite3.Connection) -> T:
                result = work(connection)
                machinery.boundary(can_fail=True)
                return result

            machinery.boundary()
            result = write(database, bounded)
            machinery.boundary()
            return result

        def changed(blobs: BlobFile, work: Callable[[Changes], None], *check: Callable[[InputPosition], None]) -> int:
            def bounded(changes: Changes) -> None:
                work(changes)
                machinery.boundary(can_fail=True)

            machinery.boundary()
            size = change(blobs, bounded, *check)
            machinery.boundary()
            return size

        def taken(cls: type[ProcessLock], locks: Path, name: str) -> ProcessLock | None:
            lock: ProcessLock | None = take(cls, locks, name)
            if lock is not None and machinery.current is not None:
                machinery.current.locks.append(lock)
            return lock

        def released(lock: ProcessLock, *, remove: bool) -> None:
            machinery.boundary()
            release(lock, remove=remove)

        def unlinked(path: Path, missing_ok: bool = False) -> None:
            if directory in path.parents:
                machinery.boundary()
            unlink(path, missing_ok=missing_ok)

        patch.setattr(Database, "__init__", opened)
        patch.setattr(Database, "write", written)
        patch.setattr(BlobFile, "change", changed)
        patch.setattr(ProcessLock, "try_to_take", classmethod(taken))
        patch.setattr(ProcessLock, "release", released)
        patch.setattr(Path, "unlink", unlinked)

    def open(self, process: Process, age: float) -> None:
        limits = BatchLimits(events=BATCH_EVENTS, bytes=BATCH_BYTES, age=age)
        process.spool = SqliteSpool(
            self.directory,
            location=process.location,
            prefix="p",
            instance_id="1",
            limits=limits,
            durability="process",
            archives=True,
        )

    def kill(self, process: Process) -> None:
        for database in process.databases:
            if hasattr(database, "_connection"):
                database.close()
        for lock in process.locks:
            lock.drop()

    def chunks(self, blobs: str, id_: int) -> list[tuple[int, int, bytes]]:
        path = self.directory / "blobs" / f"{blobs}.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(
                "SELECT job, member, data FROM chunks WHERE job >> ? = ? ORDER BY job", (INDEX_BITS, id_)
            ).fetchall()

    def snapshot(self) -> Snapshot:
        path = self.directory / "catalog.db"
        if not path.exists():
            return Snapshot({}, set(), {}, set())
        with closing(sqlite3.connect(path)) as db:
            if not db.execute("PRAGMA user_version").fetchone()[0]:
                return Snapshot({}, set(), {}, set())
            batches = {
                row[0]: Row(row[1], row[2], row[3].partition("-")[0], row[3], row[4], row[5], row[6], row[7], row[8:])
                for row in db.execute(
                    "SELECT b.id, state, location, blobs, claimed_by, kind, delivered, epoch, events, size, crc32c, uuid, key"
                    " FROM batches b JOIN stores d ON d.id=b.store"
                )
            }
            sessions = {row[0] for row in db.execute("SELECT id FROM sessions")}
            uploads: dict[str, tuple[int, bool, dict[int, str]]] = {}
            for id_, name, batch, abandoned in db.execute(
                "SELECT id, upload ->> 'id', batch, abandoned FROM (SELECT id, CAST(upload AS TEXT) AS upload, batch, abandoned"
                " FROM uploads) ORDER BY id"
            ):
                parts = db.execute("SELECT number, CAST(part AS TEXT) ->> 'etag' FROM parts WHERE upload=?", (id_,))
                uploads[name] = (batch, bool(abandoned), dict(parts.fetchall()))
            delivered = {
                (segment << SEGMENT_BITS) + bit
                for segment, bits in db.execute("SELECT segment, delivered FROM acknowledged")
                for bit in range(8 * len(bits))
                if bits[bit // 8] >> bit % 8 & 1
            }
        return Snapshot(batches, sessions, uploads, delivered)

    def files(self) -> list[str]:
        return sorted(
            path.relative_to(self.directory).as_posix()
            for path in self.directory.rglob("*")
            if path.is_file() and not path.name.startswith(("catalog.db", "ballast", "made"))
        )

    def close(self) -> None:
        shutil.rmtree(self.directory)


class PostgresqlMachinery(Machinery):
    """A database. A process that was killed has a lease that is over."""

    fails = psycopg.errors.IoError("disk I/O error")

    def __init__(self, patch: pytest.MonkeyPatch, server: Postgres, live: list[Process]) -> None:
        super().__init__()
        self._server = server
        self._live = live
        self._name = server.create()
        self._db = psycopg.connect(server.url(self._name), autocommit=True)
        machinery = self
        begin, use, read, write, advance = (
            PostgresqlDatabase.__init__,
            PostgresqlDatabase.use,
            PostgresqlDatabase.read,
            PostgresqlDatabase.write,
            Writer._advance,
        )
        commits: list[bool] = []

        def opened(database: PostgresqlDatabase, *arguments: Any, **options: Any) -> None:
            if machinery.current is not None:
                machinery.current.databases.append(database)
            begin(database, *arguments, **options)

        def written(database: PostgresqlDatabase, work: Callable[[Any], T], *, is_idempotent: bool = False) -> T:
            def bounded(connection: Any) -> T:
                result = work(connection)
                machinery.boundary(can_fail=True)
                return result

            machinery.boundary()
            result = write(database, bounded, is_idempotent=is_idempotent)
            machinery.boundary()
            return result

        def used(database: PostgresqlDatabase, work: Callable[[Any], T]) -> T:
            if not commits:
                return use(database, work)
            commits.pop()

            def bounded(connection: Any) -> T:
                machinery.boundary(can_lose=True)
                result = work(connection)
                machinery.boundary(can_lose=True)
                return result

            return use(database, bounded)

        def advanced(writer: Writer, pending: Any, change: Callable[[Any], None], **options: Any) -> None:
            def bounded(changes: Any) -> None:
                change(changes)
                machinery.boundary(can_fail=True)

            commits.append(True)
            try:
                advance(writer, pending, bounded, **options)
            finally:
                commits.clear()

        patch.setattr(PostgresqlDatabase, "__init__", opened)
        patch.setattr(PostgresqlDatabase, "write", written)
        patch.setattr(PostgresqlDatabase, "use", used)
        patch.setattr(PostgresqlDatabase, "read", lambda database, work: _without(commits, lambda: read(database, work)))
        patch.setattr(Writer, "_advance", advanced)
        patch.setattr(Heartbeat, "start", lambda heartbeat: None)
        patch.setattr("jobs_backup.spool.postgresql.segments.SEGMENT_BYTES", 1)
        patch.setattr("jobs_backup.spool.postgresql.spool._SEGMENT_SECONDS", 0.0)
        patch.setattr("jobs_backup.spool.postgresql.chunks._STATEMENT_BYTES", 2000)

    def open(self, process: Process, age: float) -> None:
        process.spool = PostgresqlSpool(
            self._server.place(self._name),
            location=process.location,
            prefix="p",
            instance_id="1",
            limits=BatchLimits(events=BATCH_EVENTS, bytes=BATCH_BYTES, age=age),
            room=QuotaLimits(timeout=30.0),
            lease=600.0,
            workers=1,
        )

    def kill(self, process: Process) -> None:
        for database in process.databases:
            if hasattr(database, "_pool"):
                database.close()
        alive = [one.spool.session for one in self._live if one is not process]
        if self._has_tables():
            self._db.execute("UPDATE jobs_backup.sessions SET lease_until = 0 WHERE NOT id = ANY(%s)", (alive,))

    def chunks(self, blobs: str, id_: int) -> list[tuple[int, int, bytes]]:
        if self._db.execute(f"SELECT to_regclass('jobs_backup.chunks_{blobs}')").fetchone() == (None,):
            return []
        rows = self._db.execute(f"SELECT start, form, data FROM jobs_backup.chunks_{blobs} WHERE batch = %s ORDER BY start", (id_,))
        return [(id_ << INDEX_BITS | row[0], row[1], row[2]) for row in rows]

    def snapshot(self) -> Snapshot:
        if not self._has_tables():
            return Snapshot({}, set(), {}, set())
        db = self._db
        batches = {
            row[0]: Row(row[1], row[2], row[3], str(row[4]), row[5], row[6], row[7], row[8], tuple(row[9:]))
            for row in db.execute(
                "SELECT b.id, state, location, session, segment, claimed_by, kind, delivered, epoch, events, size, crc32c,"
                " uuid, key FROM jobs_backup.batches b JOIN jobs_backup.stores d ON d.id = b.store"
            )
        }
        uploads: dict[str, tuple[int, bool, dict[int, str]]] = {}
        for id_, upload, batch, abandoned in db.execute("SELECT id, upload, batch, abandoned FROM jobs_backup.uploads ORDER BY id"):
            parts = db.execute("SELECT number, part FROM jobs_backup.parts WHERE upload = %s", (id_,))
            uploads[json.loads(upload)["id"]] = (batch, abandoned, {row[0]: json.loads(row[1])["etag"] for row in parts})
        delivered = {
            (segment << SEGMENT_BITS) + bit
            for segment, bits in db.execute("SELECT segment, delivered FROM jobs_backup.acknowledged")
            for bit in range(8 * len(bits))
            if bits[bit // 8] >> bit % 8 & 1
        }
        return Snapshot(batches, {row[0] for row in db.execute("SELECT id FROM jobs_backup.sessions")}, uploads, delivered)

    def files(self) -> list[str]:
        """Segments beside the last one."""
        rows = self._db.execute("SELECT id FROM jobs_backup.segments ORDER BY id DESC OFFSET 1")
        return [f"chunks_{row[0]}" for row in rows]

    def close(self) -> None:
        self._db.close()
        self._server.drop(self._name)

    def _has_tables(self) -> bool:
        return self._db.execute("SELECT to_regclass('jobs_backup.acknowledged')").fetchone() != (None,)


def _without(commits: list[bool], work: Callable[[], T]) -> T:
    before = commits.copy()
    commits.clear()
    try:
        return work()
    finally:
        commits.extend(before)


class Model(RuleBasedStateMachine):
    """The acknowledged events, the sealed batches, and the contents of the buckets."""

    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.ERROR)  # faults are logged, and there are many
        self.patch = pytest.MonkeyPatch()
        self.live: list[Process] = []
        self.machinery = self.make_machinery()
        # Small, so that lines are folded and files rotated all the time.
        for module in [module for name, module in sys.modules.items() if name.startswith("jobs_backup.spool.")]:
            for name, value in (("MEMBER_BYTES", MEMBER_BYTES), ("_PACKED_BYTES", PACKED_BYTES), ("_FILE_BYTES", FILE_BYTES)):
                if hasattr(module, name):
                    self.patch.setattr(module, name, value)
        self.patch.setattr(Ballast, "SIZE", 4096)
        self.number = 0
        self.acknowledged: dict[int, bytes] = {}  # job -> line
        self.batch_of: dict[int, tuple[str, Stream]] = {}  # batch -> its session and stream
        self.doubtful: list[tuple[str, dict[Stream, list[bytes]], int]] = []  # commits ended by a kill: session, lines, position
        self.frozen: dict[int, tuple[tuple[Any, ...], bytes]] = {}  # sealed batch -> its seal and its bytes
        self.stored: set[int] = set()
        self.buckets: dict[str, dict[str, bytes]] = {location: {} for location in LOCATIONS}  # including deleted objects
        self.delivered: set[int] = set()
        self.deleted: set[int] = set()  # batches deleted from their bucket
        self.noted: set[int] = set()  # deletions that the spool knows of
        self.arrived: set[int] = set()  # batches of which a store has received at least a part
        self.later = False  # a deletion waits for its time
        self.unanswered: Counter[int] = Counter()  # attempts of a batch that have not ended, or whose process was killed
        self.accepted: set[str] = set()  # locations that accepted at least a part
        self.refused: set[str] = set()  # locations that refused everything
        self.uploads: dict[str, tuple[int, bool, dict[int, str]]] = {}
        self.at = 0  # the latest acknowledged position
        self.before = Snapshot({}, set(), {}, set())

    def make_machinery(self) -> Machinery:
        """What it runs on."""
        return SqliteMachinery(self.patch)

    # Rules

    @precondition(lambda self: len(self.live) < 3)
    @rule(location=st.sampled_from(LOCATIONS), age=st.sampled_from([0.0, 300.0]), fault=FAULT)
    def open(self, location: str, age: float, fault: Fault) -> None:
        process = Process(location)
        outcome = self.machinery.run(process, fault, lambda: self.machinery.open(process, age))
        if outcome == "done":
            self.live.append(process)
        else:
            self.machinery.kill(process)
        self.look("open", process)

    @precondition(lambda self: self.live)
    @rule(
        pick=PICK,
        recordings=st.lists(
            st.tuples(st.sampled_from(STREAMS), st.lists(st.sampled_from([0, 50, 300, 1000]), min_size=0, max_size=12)),
            min_size=1,
            max_size=3,
        ),
        with_position=st.booleans(),
        fault=FAULT,
    )
    def record(self, pick: int, recordings: list[tuple[Stream, list[int]]], with_position: bool, fault: Fault) -> None:
        process = self.process(pick)
        made = [self.recording(stream, sizes) for stream, sizes in recordings]
        lines = [list(recording.lines) for recording in made]
        at = 0
        if with_position:
            self.number += 1
            at = self.number
            made[-1].position = InputPosition("input", at, b"%d" % at)
        outcome = self.run(process, fault, lambda: process.spool.append(made))
        session = process.spool.session
        if outcome == "killed":
            unknown: dict[Stream, list[bytes]] = {}
            for recording, some in zip(made, lines, strict=True):
                unknown.setdefault(recording.stream, []).extend(some)
            self.doubtful.append((session, unknown, at))
        elif outcome == "done":
            self.at = max(self.at, at)
            for recording, some in zip(made, lines, strict=True):
                self.acknowledge(process, recording, some)
        self.look("record", process)

    @precondition(lambda self: self.live)
    @rule(pick=PICK, fault=FAULT)
    def seal(self, pick: int, fault: Fault) -> None:
        process = self.process(pick)
        outcome = self.run(process, fault, process.spool.seal)
        after = self.look("seal", process)
        if outcome == "done":
            events = Counter(batch_of(job) for job in self.acknowledged)
            open_ = {id_ for id_, row in after.batches.items() if row.state == "open" and row.owner == process.spool.session}
            assert not [id_ for id_ in open_ if events[id_]], "seal() left something open"

    @precondition(lambda self: self.live)
    @rule(pick=PICK, fault=FAULT)
    def seal_due(self, pick: int, fault: Fault) -> None:
        process = self.process(pick)
        self.run(process, fault, process.spool.seal_due)
        self.look("seal_due", process)

    @precondition(lambda self: self.live)
    @rule(pick=PICK, fault=FAULT)
    def claim(self, pick: int, fault: Fault) -> None:
        process = self.process(pick)
        could = process.spool.has_claimable()
        got: list[Batch] = []

        def step() -> None:
            claimed = process.spool.claim()
            if claimed is not None:
                got.append(claimed.batch)

        outcome = self.run(process, fault, step)
        self.refused.discard(process.location)
        if got:
            (batch,) = got
            row = self.before.batches[batch.id]
            assert batch.id not in self.stored, "it is in the bucket already"
            assert not [one for one in self.live if batch.id in one.claims], "another process sends it"
            assert (row.state, row.location) == ("sealed", process.location)
            self.check_frozen(batch.id, row)
            self.check_seal(batch)
            process.claims[batch.id] = batch
        if outcome == "done":
            assert bool(got) == could
        self.look("claim", process)

    @precondition(lambda self: self.sending())
    @rule(pick=PICK, start=st.integers(0, 200))
    def read(self, pick: int, start: int) -> None:
        """An uploading process reads parts of a body at once, from anywhere; any process may have recorded it."""
        process, batch = self.claimed(pick)
        whole = self.frozen[batch.id][1]
        body = process.spool.open_body(batch)
        assert (body.size, body.crc32c()) == (len(whole), batch.crc32c)
        with body.open() as reader:
            reader.seek(start)
            assert reader.read() == whole[start:]

    @precondition(lambda self: self.sending())
    @rule(pick=PICK, fault=FAULT)
    def store(self, pick: int, fault: Fault) -> None:
        process, batch = self.claimed(pick)
        self.write(process, batch)
        outcome = self.run(process, fault, lambda: process.spool.stored(batch))
        after = self.look("stored", process, batch.id)
        if after.batches[batch.id].state == "stored":
            process.claims.pop(batch.id, None)
            self.stored.add(batch.id)
        if outcome == "done":
            assert batch.id in self.stored

    @precondition(lambda self: self.sending())
    @rule(pick=PICK, arrived=st.booleans(), later=st.booleans(), fault=FAULT)
    def fail(self, pick: int, arrived: bool, later: bool, fault: Fault) -> None:
        """An attempt ends with an error, but may have arrived."""
        process, batch = self.claimed(pick)
        if arrived:
            self.write(process, batch)
        standing = "proven" if process.accepted else "refused"  # it does not know what others uploaded to it
        delay = LATER if later else 0.0
        error = Unavailable("no", hint="wait")
        outcome = self.run(process, fault, lambda: process.spool.release(batch, error, delay=delay, standing=standing))
        after = self.look("release", process, batch.id)
        if outcome == "done":
            del process.claims[batch.id]
            assert after.batches[batch.id].claimed_by is None
            claimed = [row for row in after.batches.values() if row.claimed_by is not None and row.location == process.location]
            if process.location not in self.accepted and not claimed:
                self.refused.add(process.location)

    @precondition(lambda self: self.live and self.before.batches)
    @rule(
        pick=PICK,
        which=PICK,
        indexes=st.none() | st.lists(st.integers(0, BATCH_EVENTS + 1), max_size=6),
        unknown=st.booleans(),
        fault=FAULT,
    )
    def deliver(self, pick: int, which: int, indexes: list[int] | None, unknown: bool, fault: Fault) -> None:
        """Acknowledge all or some jobs of a batch, and unknown ids, from any process and in any state of the batch."""
        process = self.process(pick)
        id_ = sorted(self.before.batches)[which % len(self.before.batches)]
        known = self.known(id_)
        epoch = self.before.batches[id_].epoch
        ids = set(known) if indexes is None else {job_id(epoch, id_, index) for index in indexes}
        if unknown:
            ids.add(job_id(epoch, max(self.before.batches) + 1, 0))
            ids.add(job_id(epoch ^ 1, id_, 0))  # of another spool
        jobs = JobSet()
        for job in ids:
            jobs.add(job)
        found: list[JobSet] = []
        outcome = self.run(process, fault, lambda: found.append(process.spool.delivered(jobs)))
        if outcome == "done":
            assert set(found[0]) == ids - known
        there = {job for job in known if local(job) in self.snapshot().delivered}
        if outcome == "done" or (outcome == "killed" and ids & known <= self.delivered | there):
            self.delivered |= ids & known
        self.look("deliver", process, id_)

    @precondition(lambda self: self.live)
    @rule(pick=PICK, limit=st.integers(1, 3), fault=FAULT)
    def claim_deletes(self, pick: int, limit: int, fault: Fault) -> None:
        process = self.process(pick)
        due = {
            id_
            for id_, row in self.before.batches.items()
            if (row.state, row.location, row.kind) == ("stored", process.location, "raw")
            and row.claimed_by in (None, *self.claims_again(process))
            and self.known(id_) <= self.delivered
        }
        assert process.spool.has_deletes() == bool(due) or self.later
        got: list[DueObject] = []
        outcome = self.run(process, fault, lambda: got.extend(process.spool.claim_deletes(limit)))
        claimed = {one.batch for one in got}
        assert claimed <= due, "an event of it was not delivered, or another process deletes it"
        assert outcome != "done" or len(got) == min(limit, len(due)) or self.later
        for one in got:
            assert one.key == self.before.batches[one.batch].seal[4]
            process.deletes[one.batch] = one
        self.look("claim_deletes", process, *due)

    @precondition(lambda self: self.deleting())
    @rule(pick=PICK, gone=st.booleans(), noted=st.booleans(), later=st.booleans(), fault=FAULT)
    def delete(self, pick: int, gone: bool, noted: bool, later: bool, fault: Fault) -> None:
        """The objects claimed by one process are deleted or not, and it learns of it or not."""
        found = self.deleting()
        process = found[pick % len(found)]
        claimed = list(process.deletes.values())
        if gone or noted:
            self.deleted |= process.deletes.keys()
        if noted:
            outcome = self.run(process, fault, lambda: process.spool.deleted(claimed))
        elif later:
            retries = [(one, LATER) for one in claimed]
            outcome = self.run(process, fault, lambda: process.spool.give_back_deletes(retries, Unavailable("no"), pause=0))
            self.later = True
        else:
            own = [(one, None) for one in claimed]
            outcome = self.run(process, fault, lambda: process.spool.give_back_deletes(own, Unavailable("no"), pause=0))
        after = self.look("deleted" if noted else "postpone", process, *process.deletes)
        if outcome == "done" or (outcome == "killed" and after.batches[claimed[0].batch].claimed_by is None):
            if noted:
                self.noted |= process.deletes.keys()
            process.deletes.clear()

    @precondition(lambda self: self.live)
    @rule(
        pick=PICK,
        size=st.sampled_from([0, 1000]),
        end=st.sampled_from(["stored", "refused", "moved", "killed"]),
        arrived=st.booleans(),
    )
    def send(self, pick: int, size: int, end: str, arrived: bool) -> None:
        """Several steps in one, since their sequel is rarely reached otherwise."""
        process = self.process(pick)
        self.recover(pick, None)
        self.record(pick, [(STREAMS[0], [size]), (STREAMS[0], [0])], with_position=False, fault=None)
        self.seal(pick, None)
        if not process.spool.has_claimable():
            return
        self.claim(pick, None)
        which = [one for one, _ in self.sending()].index(process) + len(process.claims) - 1
        if end == "stored":
            self.store(which, None)
        elif end in ("refused", "moved"):
            self.fail(which, arrived=False, later=False, fault=None)
            if end == "moved":
                self.close(pick, None)
                (other,) = {*LOCATIONS} - {process.location}
                self.open(other, 300.0, None)
                self.recover(-1, None)
                self.begin_sending(-1, None)
        else:
            if arrived:
                self.write(*self.claimed(which))
            self.kill(pick)

    @precondition(lambda self: self.live)
    @rule(pick=PICK, early=st.booleans(), end=st.sampled_from(["noted", "gone", "killed", "refused"]))
    def send_and_delete(self, pick: int, early: bool, end: str) -> None:
        """Several steps in one, as above."""
        process = self.process(pick)
        before = set(self.before.batches)
        self.record(pick, [(STREAMS[0], [0, 0])], with_position=False, fault=None)
        new = sorted(set(self.before.batches) - before) or [max(self.before.batches)]
        place = sorted(self.before.batches).index(new[-1])
        if early:
            self.deliver(pick, place, None, unknown=False, fault=None)
        self.seal(pick, None)
        while process.spool.has_claimable():
            self.claim(pick, None)
            which = [one for one, _ in self.sending()].index(process) + len(process.claims) - 1
            self.store(which, None)
        self.deliver(pick, place, None, unknown=False, fault=None)
        self.claim_deletes(pick, 3, None)
        if process.deletes and end == "killed":
            self.kill(pick)
        elif process.deletes:
            which = self.deleting().index(process)
            self.delete(which, gone=end == "gone", noted=end == "noted", later=end == "refused", fault=None)

    @precondition(lambda self: self.sending())
    @rule(pick=PICK, numbers=st.lists(st.integers(1, 3), max_size=4), gone=st.booleans())
    def send_parts(self, pick: int, numbers: list[int], gone: bool) -> None:
        """Several steps in one, as above. The upload may be lost, and another one is started."""
        process, _ = self.claimed(pick)
        self.begin_upload(pick, None)
        which = [one for one, _ in self.uploading()].index(process) + sum(one is process for one, _ in self.uploading()) - 1
        for number in numbers:
            self.journal_part(which, number, None)
        self.continue_upload(pick)
        if gone:
            self.abandon(which, None)
            self.continue_upload(pick)

    @precondition(lambda self: self.sending())
    @rule(pick=PICK, fault=FAULT)
    def begin_upload(self, pick: int, fault: Fault) -> None:
        process, batch = self.claimed(pick)
        self.number += 1
        name = f"upload-{self.number}"
        self.accept(process, batch)

        def step() -> None:
            process.uploads[name] = process.spool.uploads.begin(batch, Upload(key=batch.key, id=name), 5 << 20)

        self.journal(process, fault, step, {**self.uploads, name: (batch.id, False, {})})

    @precondition(lambda self: self.uploading())
    @rule(pick=PICK, number=st.integers(1, 3), fault=FAULT)
    def journal_part(self, pick: int, number: int, fault: Fault) -> None:
        process, name = self.upload(pick)
        self.number += 1
        batch, abandoned, parts = self.uploads[name]
        part = Part(number=number, etag=str(self.number))
        after = {**self.uploads, name: (batch, abandoned, {**parts, number: part.etag})}
        self.journal(process, fault, lambda: process.spool.uploads.add_part(process.uploads[name], part), after)

    @precondition(lambda self: self.uploading())
    @rule(pick=PICK, fault=FAULT)
    def abandon(self, pick: int, fault: Fault) -> None:
        process, name = self.upload(pick)
        batch, _, parts = self.uploads[name]
        after = {**self.uploads, name: (batch, True, parts)}
        self.journal(process, fault, lambda: process.spool.uploads.abandon(process.uploads[name]), after)

    @precondition(lambda self: self.live and any(abandoned for _, abandoned, _ in self.uploads.values()))
    @rule(pick=PICK, refused=st.booleans(), fault=FAULT)
    def abort(self, pick: int, refused: bool, fault: Fault) -> None:
        process = self.process(pick)
        abandoned = process.spool.uploads.abandoned()
        assert {one.upload.id for one in abandoned} <= {name for name, (_, gone, _) in self.uploads.items() if gone}
        if not abandoned:
            return
        one = abandoned[pick % len(abandoned)]
        after = dict(self.uploads)
        if refused:
            self.journal(process, fault, lambda: process.spool.uploads.postpone(one, Unavailable("no"), delay=LATER), after)
        else:
            del after[one.upload.id]
            self.journal(process, fault, lambda: process.spool.uploads.forget(one), after)

    @precondition(lambda self: self.sending())
    @rule(pick=PICK)
    def continue_upload(self, pick: int) -> None:
        process, batch = self.claimed(pick)
        going_on = [name for name, (id_, abandoned, _) in self.uploads.items() if id_ == batch.id and not abandoned]
        found = process.spool.uploads.of(batch)
        assert (found is not None) == bool(going_on)
        if found is not None:
            assert found[0].upload == Upload(key=batch.key, id=going_on[-1])
            assert {part.number: part.etag for part in found[1]} == self.uploads[going_on[-1]][2]
            process.uploads[going_on[-1]] = found[0]

    @precondition(lambda self: self.live)
    @rule(pick=PICK, fault=FAULT)
    def recover(self, pick: int, fault: Fault) -> None:
        process = self.process(pick)
        outcome = self.run(process, fault, process.spool.recover)
        after = self.look("recover", process)
        if outcome == "done" and not process.spool.unreadable:
            alive = {one.spool.session for one in self.live}
            assert after.sessions <= alive
            assert {row.claimed_by for row in after.batches.values()} <= {*alive, None}
            assert {row.owner for row in after.batches.values() if row.state == "open"} <= alive
        if fault is None:
            assert not [error for error in process.spool.unreadable if "I/O error" not in str(error)]

    @precondition(lambda self: self.live)
    @rule(pick=PICK, fault=FAULT)
    def begin_sending(self, pick: int, fault: Fault) -> None:
        process = self.process(pick)
        outcome = self.run(process, fault, process.spool.begin_sending)
        before = self.before
        after = self.look("begin_sending", process)
        if outcome == "done":
            to_delete = {
                id_
                for id_, row in after.batches.items()
                if (row.state, row.location, row.kind) == ("stored", process.location, "raw")
                and row.claimed_by in (None, *self.claims_again(process))
                and self.known(id_) <= self.delivered
            }
            assert process.spool.has_deletes() == bool(to_delete), "nor who starts to delete"
            in_use = {one.location for one in self.live}
            if before.sessions <= {one.spool.session for one in self.live}:
                left = {
                    row.location
                    for id_, row in after.batches.items()
                    if row.state == "sealed" and row.claimed_by is None and not self.unanswered[id_]
                }
                assert not left & self.refused - in_use, "what a store refused follows the settings"
            due = [id_ for id_, row in after.batches.items() if row[:2] == ("sealed", process.location) and row.claimed_by is None]
            assert process.spool.has_claimable() == bool(due), "who starts to send need not wait"

    @precondition(lambda self: self.live)
    @rule(pick=PICK, fault=FAULT)
    def close(self, pick: int, fault: Fault) -> None:
        process = self.process(pick)
        session = process.spool.session
        outcome = self.run(process, fault, process.spool.close)
        if process in self.live:
            self.live.remove(process)
        after = self.look("close", process)
        if outcome == "done":
            assert session not in after.sessions
            assert not [row for row in after.batches.values() if row.state == "open" and row.owner == session]
            assert not [file for file in self.machinery.files() if file == f"locks/{session}.lock"]

    @precondition(lambda self: self.live)
    @rule(pick=PICK)
    def maintain(self, pick: int) -> None:
        self.process(pick).spool.maintain()

    @precondition(lambda self: self.live)
    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        process = self.process(pick)
        self.live.remove(process)
        self.machinery.kill(process)

    # Invariants after each step

    @invariant()
    def holds(self) -> None:
        self.every_event_is_in_one_place()
        self.nothing_is_deleted_early()
        self.what_was_delivered_is_known()
        self.what_waits_is_reported()
        self.positions_are_as_late_as_what_was_recorded()

    def every_event_is_in_one_place(self) -> None:
        batches = self.before.batches
        wanted: dict[int, dict[int, bytes]] = {}
        for job, line in self.acknowledged.items():
            wanted.setdefault(batch_of(job), {})[job_index(job)] = line
        for id_, lines in wanted.items():
            row = batches.get(id_)
            if id_ in self.stored:
                assert row is not None
                assert row.state == ("deleted" if id_ in self.noted else "stored")
            else:
                assert row is not None, f"batch {id_} is lost"
                assert row.state in ("open", "sealed")
                found = self.lines(row, id_)
                for index, line in lines.items():
                    assert found[index : index + 1] == [line], f"event {index} of batch {id_}"
        for id_, row in batches.items():
            if row.state == "sealed":
                self.check_frozen(id_, row)
        for process in self.live:
            for id_ in process.claims:
                assert (batches[id_].state, batches[id_].claimed_by) == ("sealed", process.spool.session)
            for id_ in process.deletes:
                assert (batches[id_].state, batches[id_].claimed_by) == ("stored", process.spool.session)

    def nothing_is_deleted_early(self) -> None:
        for id_ in self.deleted:
            assert id_ in self.stored
            assert self.known(id_) <= self.delivered

    def what_was_delivered_is_known(self) -> None:
        kept = {local(job) for job in self.delivered if batch_of(job) not in self.noted}
        assert self.before.delivered == kept
        counts = Counter(batch_of(job) for job in self.delivered)
        for id_, row in self.before.batches.items():
            assert row.delivered == counts[id_]

    def what_waits_is_reported(self) -> None:
        if not self.live:
            return
        reported = {one.location: (one.batches, one.events, one.bytes) for one in self.live[0].spool.waiting()}
        waits: dict[str, tuple[int, int, int]] = {}
        for row in self.before.batches.values():
            if row.state == "sealed":
                count, events, size = waits.get(row.location, (0, 0, 0))
                waits[row.location] = (count + 1, events + row.seal[0], size + row.seal[1])
        assert reported == waits

    def positions_are_as_late_as_what_was_recorded(self) -> None:
        if self.live:
            at = int(position(self.live[-1].spool, "input") or 0)
            assert at == self.at or at in {one[2] for one in self.doubtful if one[2] > self.at}, (at, self.at)

    def teardown(self) -> None:
        try:
            if not sys.exc_info()[1]:
                self.end()
        finally:
            for process in self.live:
                self.machinery.kill(process)
            self.patch.undo()
            logging.disable(logging.NOTSET)
            self.machinery.close()

    def end(self) -> None:
        """Kill all processes and upload the rest with one process per store: then the buckets are complete, and nothing is left."""
        for process in list(self.live):
            self.live.remove(process)
            self.machinery.kill(process)
        for location in LOCATIONS:
            process = Process(location)
            assert self.machinery.run(process, None, lambda process=process: self.machinery.open(process, 300.0)) == "done"  # type: ignore[misc]
            self.live.append(process)
            self.look("open", process)
            self.recover(len(self.live) - 1, None)
            self.begin_sending(len(self.live) - 1, None)
            while process.spool.has_claimable():
                self.claim(len(self.live) - 1, None)
                self.store(0, None)
                self.every_event_is_in_one_place()
            for one in process.spool.uploads.abandoned():
                process.spool.uploads.forget(one)
                del self.uploads[one.upload.id]
            reached = int(position(process.spool, "input") or 0)
            assert process.spool.quarantined() == []
            for number in range(len(self.before.batches)):
                self.deliver(len(self.live) - 1, number, None, unknown=False, fault=None)
            while process.spool.has_deletes():
                self.claim_deletes(len(self.live) - 1, 3, None)
                self.delete(0, gone=True, noted=True, later=False, fault=None)
            process.spool.maintain()
            self.close(len(self.live) - 1, None)
        raw = {id_ for id_, row in self.before.batches.items() if row.kind == "raw" and row.seal[0]}
        assert raw == self.deleted == self.noted, "something stays in the buckets though all was delivered"
        assert self.before.delivered == set()
        assert self.uploads == {}
        found = Counter(
            line for bucket in self.buckets.values() for data in bucket.values() for line in split(gzip.decompress(data))
        )
        assert set(found.values()) <= {1}, "something is in the buckets twice"
        lines = found.keys()
        assert lines >= set(self.acknowledged.values()), "something is lost"
        rest = lines - set(self.acknowledged.values())
        for _, unknown, at in self.doubtful:
            doubted = {line for some in unknown.values() for line in some}
            assert doubted <= lines or not doubted & lines, "a commit is there in part"
            if doubted and at:
                assert doubted <= lines if reached == at else not doubted <= lines or reached > at, "a position without its events"
            rest -= doubted
        assert not rest, "nobody recorded that, or its caller was told that it failed"
        assert self.machinery.files() == []

    # Helpers

    def process(self, pick: int) -> Process:
        return self.live[pick % len(self.live)]

    def known(self, id_: int) -> set[int]:
        """The jobs of a batch of raw events, whether acknowledged to their recorder or not."""
        row = self.before.batches[id_]
        if row.kind != "raw":
            return set()
        count = len(self.lines(row, id_)) if row.state == "open" else row.seal[0]
        return {job_id(row.epoch, id_, index) for index in range(count)}

    def claims_again(self, process: Process) -> list[str]:
        """The sessions whose claimed deletes this process may claim once more."""
        return []

    def deleting(self) -> list[Process]:
        return [process for process in self.live if process.deletes]

    def sending(self) -> list[tuple[Process, Batch]]:
        return [(process, batch) for process in self.live for batch in process.claims.values()]

    def claimed(self, pick: int) -> tuple[Process, Batch]:
        found = self.sending()
        return found[pick % len(found)]

    def uploading(self) -> list[tuple[Process, str]]:
        """Uploads in progress by a process."""
        return [
            (process, name)
            for process in self.live
            for name in process.uploads
            if name in self.uploads and not self.uploads[name][1] and self.uploads[name][0] in process.claims
        ]

    def upload(self, pick: int) -> tuple[Process, str]:
        found = self.uploading()
        return found[pick % len(found)]

    def run(self, process: Process, fault: Fault, step: Callable[[], object]) -> str:
        outcome = self.machinery.run(process, fault, step)
        if outcome == "killed":
            self.live.remove(process)
        return outcome

    def journal(
        self, process: Process, fault: Fault, step: Callable[[], None], uploads: dict[str, tuple[int, bool, dict[int, str]]]
    ) -> None:
        """A step of the journal; if killed, it took effect or not."""
        before = self.uploads
        outcome = self.run(process, fault, step)
        self.uploads = {"done": uploads, "failed": before}.get(outcome) or self.snapshot().uploads
        assert self.uploads in (before, uploads)
        self.look("journal", process)

    def recording(self, stream: Stream, sizes: list[int]) -> Recording:
        lines = []
        for size in sizes:
            self.number += 1
            lines.append(b'{"n":%d,"x":"%b"}\n' % (self.number, b"x" * size))
        at = self.number * 1_000_000
        return Recording(stream, lines, first_at=at, last_at=at)

    def acknowledge(self, process: Process, recording: Recording, lines: list[bytes]) -> None:
        jobs = [first + offset for first, count in recording.jobs for offset in range(count)]
        assert len(jobs) == len(lines)
        last = process.last_job
        for job, line in zip(jobs, lines, strict=True):
            assert job not in self.acknowledged, "an id is given twice"
            assert job > last.get(recording.stream, 0), "ids of a stream grow"
            assert job >> LOCAL_BITS, "it names its process"
            last[recording.stream] = job
            whose = (process.spool.session, recording.stream)
            assert self.batch_of.setdefault(batch_of(job), whose) == whose, "a batch is one process's and one stream's"
            self.acknowledged[job] = line

    def accept(self, process: Process, batch: Batch) -> None:
        process.accepted = True
        self.arrived.add(batch.id)
        self.accepted.add(process.location)
        self.refused.discard(process.location)

    def write(self, process: Process, batch: Batch) -> None:
        """What an attempt puts into the bucket, whether its answer arrives or not."""
        self.accept(process, batch)
        with process.spool.open_body(batch).open() as reader:
            data = reader.read()
        assert data == self.frozen[batch.id][1]
        assert self.buckets[process.location].setdefault(batch.key, data) == data, "another attempt, other bytes"

    def look(self, name: str, process: Process, *targets: int) -> Snapshot:
        """Compare the catalog with its state before the step."""
        before, after = self.before, self.snapshot()
        session = process.spool.session if process.spool else ""
        alive = {one.spool.session for one in self.live} | {session}
        for id_ in before.batches.keys() | after.batches.keys():
            old, new = before.batches.get(id_), after.batches.get(id_)
            if old is None:
                assert new is not None
                assert (name, new.owner) == ("record", session)
            elif new is None:
                assert old.state == "stored" or (old.state == "open" and name in ("close", "recover") and id_ not in self.batch_of)
            else:
                self.check_change(name, process, id_, targets, old, new, alive)
        gone = before.sessions - after.sessions
        assert gone <= ({session} if name == "close" else before.sessions - alive if name == "recover" else set())
        if name == "stored":
            for upload, (batch, abandoned, parts) in self.uploads.items():
                now = abandoned or (batch in targets and after.batches[batch].state == "stored")
                self.uploads[upload] = (batch, now, parts)
        assert after.uploads == self.uploads
        self.before = after
        return after

    def check_change(
        self, name: str, process: Process, id_: int, targets: Sequence[int], old: Row, new: Row, alive: set[str]
    ) -> None:
        session = process.spool.session if process.spool else ""
        mine, dead = old.owner == session, old.owner not in alive
        match old.state, new.state:
            case ("open", "sealed"):
                assert (mine and name in ("record", "seal", "seal_due", "close")) or (dead and name == "recover")
            case ("sealed", "stored"):
                assert name == "stored"
                assert id_ in targets
            case ("open", "deleted"):  # it was empty: see `mark_empty`
                assert (name, new.seal[0]) == ("recover", 0)
                assert dead
                assert id_ not in self.batch_of
            case ("stored", "deleted"):
                assert name == "deleted"
                assert id_ in targets
            case (one, other):
                assert one == other
        if old.state != "open":
            assert old.seal == new.seal, "it was frozen"
        if old.claimed_by != new.claimed_by:
            if old.claimed_by is None:
                assert new.claimed_by == session
                assert name == "claim" or (name == "claim_deletes" and id_ in targets)
                self.unanswered[id_] += name == "claim"
            else:
                assert new.claimed_by is None
                self.unanswered[id_] -= name == "release"
                done = name in ("release", "stored", "deleted", "postpone") and id_ in targets
                ended = old.claimed_by == session and (name == "close" or done)
                assert ended or (name == "recover" and old.claimed_by not in alive)
        if old.location != new.location:
            assert (name, new.location, new.claimed_by) == ("begin_sending", process.location, None)
            assert old.location not in {one.location for one in self.live}, "a living process sends it there"
            assert id_ not in self.arrived, "it may have arrived there"

    def check_seal(self, batch: Batch) -> None:
        assert (batch.events, batch.size, batch.crc32c, batch.uuid, batch.key) == self.before.batches[batch.id].seal
        assert batch.uuid in batch.key
        if batch.id in self.batch_of:
            assert batch.stream == self.batch_of[batch.id][1]

    def check_frozen(self, id_: int, row: Row) -> None:
        data = b"".join(data for _, _, data in self.chunks(row.blobs, id_))
        assert self.frozen.setdefault(id_, (row.seal, data)) == (row.seal, data), "it was frozen"
        events, size, checksum, _, _ = row.seal
        assert (len(data), crc32c(data), len(split(gzip.decompress(data)))) == (size, checksum, events)
        assert events
        known = {line for job, line in self.acknowledged.items() if batch_of(job) == id_}
        doubted = {
            line for session, unknown, _ in self.doubtful if session == row.owner for some in unknown.values() for line in some
        }
        assert set(split(gzip.decompress(data))) <= known | doubted

    def lines(self, row: Row, id_: int) -> list[bytes]:
        """The lines of a batch, open or sealed."""
        chunks = self.chunks(row.blobs, id_)
        assert row.state == "open" or all(form == ChunkKind.MEMBER for _, form, _ in chunks)
        return [line for _, form, data in chunks for line in split(data if form == ChunkKind.RAW else gzip.decompress(data))]

    def chunks(self, blobs: str, id_: int) -> list[tuple[int, int, bytes]]:
        return self.machinery.chunks(blobs, id_)

    def snapshot(self) -> Snapshot:
        return self.machinery.snapshot()


def batch_of(job: int) -> int:
    """The number of its batch."""
    return origin_of(job)[1]


def split(data: bytes) -> list[bytes]:
    """Lines, each with its newline."""
    return data.splitlines(keepends=True)


LONG: Final = os.environ.get("HYPOTHESIS_PROFILE") == "campaign"

SETTINGS: Final = settings(
    max_examples=settings.get_profile("campaign").max_examples if LONG else 60,
    stateful_step_count=80 if LONG else 30,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

TestModel = Model.TestCase
TestModel.settings = SETTINGS


@pytest.mark.timeout(1200)
def test_postgresql_behaves_as_the_model(database_server: Postgres) -> None:
    class OnPostgresql(Model):
        def make_machinery(self) -> Machinery:
            return PostgresqlMachinery(self.patch, database_server, self.live)

        def claims_again(self, process: Process) -> list[str]:
            return [process.spool.session]  # the answer to its claim may have been lost

    fewer = settings(SETTINGS, max_examples=SETTINGS.max_examples // 3)  # each needs a database of its own
    run_state_machine_as_test(OnPostgresql, settings=fewer)
