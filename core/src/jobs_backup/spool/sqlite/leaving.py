"""A spool in a directory, on its way into a spool that hosts share: see `spool/moving.py`.

The catalog itself notes where it goes, in one transaction with a version that no program opens, earlier ones neither.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from jobs_backup.errors import SpoolCorrupt, SpoolError
from jobs_backup.model import Kind, Stream
from jobs_backup.spool.chunks import Chunk
from jobs_backup.spool.interface import BatchLimits, Damage, InputPosition, Total
from jobs_backup.spool.moving import Counts, MovedBatch, MovedForgotten, MovedStore, MovedUpload, Note
from jobs_backup.spool.sqlite.blobs import BlobFile, BlobFiles
from jobs_backup.spool.sqlite.clock import Clock, Reading, read_clocks
from jobs_backup.spool.sqlite.database import MOVED_VERSION, Connection, database_errors, file_version
from jobs_backup.spool.sqlite.locks import ProcessLock
from jobs_backup.spool.sqlite.schema import VERSION
from jobs_backup.spool.sqlite.spool import SqliteSpool
from jobs_backup.spool.sqlite.status import look

_LOCK: Final = "move"
_BUSY_SECONDS: Final = 60.0
_PAGE: Final = 1000
_HELD_BYTES: Final = 64 << 20
"""Damaged bytes move up to this size. Larger files, whole blob files, stay in the directory."""
# Also for a process that opened the catalog just before.
_CLOSED: Final = (
    "CREATE TRIGGER moved BEFORE INSERT ON sessions BEGIN"
    " SELECT RAISE(ABORT, 'this spool is moved into another one: see jobs-backup spool move'); END"
)


@contextmanager
def leaving(directory: Path, host: str) -> Generator[Departure]:
    """A spool to be moved. One process at a time moves it.

    Raises:
        SpoolError: there is none, it cannot be read, or another process is moving it.
    """
    path = directory / "catalog.db"
    if file_version(path) != MOVED_VERSION:
        with look(directory):  # that it is there, and of this version
            pass
    lock = ProcessLock.try_to_take(directory / "locks", _LOCK)
    if lock is None:
        raise SpoolError(f"another process is moving {directory}", hint="wait for it, then run the command again")
    departure = Departure(directory, host)
    try:
        yield departure
    finally:
        departure.close()
        lock.release(remove=True)


class Departure:
    """A spool in a directory as a `Source`."""

    def __init__(self, directory: Path, host: str) -> None:
        self.name = str(directory)
        self.origin = f"{host}:{directory}"
        self._directory = directory
        self._host = host
        self._path = directory / "catalog.db"
        self._files = BlobFiles(directory / "blobs", durability="full")
        self._connection = Connection(self._path, timeout=_BUSY_SECONDS, prepare=("PRAGMA synchronous=FULL", "PRAGMA fullfsync=ON"))
        self._blobs: BlobFile | None = None
        self._clock: Clock | None = None

    def close(self) -> None:
        """Close all files."""
        self._close_blobs()
        self._connection.close()

    @property
    def left(self) -> list[str]:
        """The directories with rejected lines and with damaged files, if there are any in them."""
        with database_errors(self._directory):
            paths = (self._directory / "rejects", self._directory / "quarantine")
            return [str(path) for path in paths if path.is_dir() and any(path.iterdir())]

    # Steps

    def note(self) -> Note | None:
        """See `Source.note`."""
        if file_version(self._path) != MOVED_VERSION:
            return None
        id_, target, identity, is_done, version = self._rows("SELECT id, target, identity, is_done, version FROM moved")[0]
        if version != VERSION and not is_done:
            raise SpoolError(
                f"the move of {self._directory} was begun by another version of jobs-backup", hint="finish it with that version"
            )
        return Note(id_, target, identity, bool(is_done))

    def processes(self) -> list[int]:
        """See `Source.processes`."""
        rows = self._rows("SELECT id, pid FROM sessions ORDER BY began_at")
        return [pid for session, pid in rows if ProcessLock.is_held(self._directory / "locks", session)]

    def count(self) -> Counts:
        """See `Source.count`."""
        batches: dict[str, tuple[int, int, int]] = {
            state: (count, events, size)
            for state, count, events, size in self._rows(
                "SELECT state, count(*), sum(events), sum(coalesce(size, 0)) FROM batches WHERE state!='open' GROUP BY state"
            )
        }
        waiting = batches.pop("sealed", (0, 0, 0))
        stored = batches.pop("stored", (0, 0, 0))
        for name, batch in self._rows("SELECT blobs, id FROM batches WHERE state='open' AND blobs!=''"):
            if not self._files.exists(name):
                continue  # its process had written nothing, or what is missing is reported once it is recovered
            with self._files.open(name, only_reads=True) as blobs:
                events, size = blobs.spooled(batch)
            if events:
                waiting = (waiting[0] + 1, waiting[1] + events, waiting[2] + size)
        inputs = {row[0] for row in self._rows("SELECT input FROM positions")}
        for (name,) in self._rows("SELECT blobs FROM sessions"):
            if self._files.exists(name):
                with self._files.open(name, only_reads=True) as blobs:
                    inputs.update(one.input for one in blobs.positions())
        return Counts(
            waiting_batches=waiting[0],
            waiting_events=waiting[1],
            waiting_bytes=waiting[2],
            stored_objects=stored[0],
            stored_events=stored[1],
            other_batches=sum(one[0] for one in batches.values()),
            uploads=self._one("SELECT count(*) FROM uploads"),
            inputs=len(inputs),
            quarantined=len(self._reports()),
        )

    def prepare(self) -> None:
        """See `Source.prepare`."""
        self._refuse_processes()
        locations = self._rows("SELECT location FROM stores ORDER BY id DESC LIMIT 1")
        self._connection.close(for_good=False)
        if not locations:
            return  # its only process was killed before it had recorded anything
        spool = SqliteSpool(
            self._directory,
            location=locations[0][0],
            prefix="",
            instance_id="1",
            limits=BatchLimits(events=1, bytes=1, age=0),  # it records nothing
            archives=False,
        )
        try:
            spool.recover()
            problems = spool.account().problems
        finally:
            spool.close()
        self._refuse_processes()
        if problems:
            raise problems[0]

    def begin(self, note: Note) -> None:
        """See `Source.begin`."""

        def work(db: sqlite3.Connection) -> None:
            if (row := db.execute("SELECT pid FROM sessions").fetchone()) is not None:
                raise self._in_use(row[0])
            db.execute(
                "CREATE TABLE moved (id TEXT NOT NULL, target TEXT NOT NULL, identity INTEGER NOT NULL, is_done INTEGER NOT NULL,"
                " version INTEGER NOT NULL) STRICT"
            )
            db.execute("INSERT INTO moved VALUES (?, ?, ?, 0, ?)", (note.id, note.target, note.identity, VERSION))
            db.execute(_CLOSED)
            db.execute(f"PRAGMA user_version={MOVED_VERSION}")

        self._write(work)

    def undo(self) -> None:
        """See `Source.undo`."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DROP TRIGGER moved")
            db.execute("DROP TABLE moved")
            db.execute(f"PRAGMA user_version={VERSION}")

        self._write(work)

    def finish(self) -> None:
        """See `Source.finish`."""
        self._write(lambda db: db.execute("UPDATE moved SET is_done=1"))

    # Contents

    def now(self) -> float:
        """See `Source.now`."""
        if self._clock is None:
            rows = self._rows("SELECT boot, wall, uptime, spool FROM clock")
            self._clock = Clock(read_clocks(Reading(*rows[0]) if rows else None))
        return self._clock.now()

    def knowledge(self) -> tuple[int, int]:
        """See `SpoolReader.knowledge`."""
        noted = dict(self._rows("SELECT name, value FROM counters"))
        return noted["known_since"], noted["lost_until"]

    def stores(self) -> list[MovedStore]:
        """See `Source.stores`."""
        return [MovedStore(*row) for row in self._rows("SELECT id, location, standing, delete_after FROM stores ORDER BY id")]

    def batches(self) -> Iterator[list[MovedBatch]]:
        """See `Source.batches`."""
        query = f"SELECT {', '.join(MovedBatch._fields)} FROM batches WHERE id>? ORDER BY id LIMIT {_PAGE}"
        after = -1
        while rows := self._rows(query, (after,)):
            after = rows[-1][0]
            batches = [MovedBatch(*row) for row in rows]
            yield [one._replace(is_doubted=bool(one.is_doubted)) for one in batches]

    def chunks(self, batch: MovedBatch) -> Iterator[tuple[Chunk, bytes]]:
        """See `Source.chunks`."""
        blobs = self._file(batch.blobs)
        size = 0
        for chunk in blobs.chunks(batch.id):
            try:
                data = blobs.data(chunk.job)
            except SpoolCorrupt as error:
                raise self._damaged(error.message) from error
            size += len(data)
            yield chunk, data
        if size != batch.size:
            raise self._damaged(f"batch {batch.id} has {size} bytes in {batch.blobs}.db instead of {batch.size}")

    def marks(self) -> Iterator[tuple[int, bytes, bytes]]:
        """See `Source.marks`."""
        return self._pages("SELECT segment, delivered, settled FROM acknowledged WHERE segment>? ORDER BY segment")

    def settling(self) -> Iterator[tuple[int, int]]:
        """See `Source.settling`."""
        return iter(self._rows("SELECT batch, job FROM settling ORDER BY batch, job"))

    def uploads(self) -> list[MovedUpload]:
        """See `Source.uploads`."""
        rows = self._rows("SELECT id, batch, store, upload, part_size, abandoned, failures, error, hint FROM uploads ORDER BY id")
        parts = "SELECT number, part FROM parts WHERE upload=? ORDER BY number"
        return [
            MovedUpload(batch, store, upload, part_size, bool(abandoned), failures, error, hint, self._rows(parts, (id_,)))
            for id_, batch, store, upload, part_size, abandoned, failures, error, hint in rows
        ]

    def positions(self) -> Iterator[InputPosition]:
        """How far inputs were read, under the names by which the shared spool finds them: see `inputs/contents.py`."""
        for row in self._rows("SELECT input, at, position FROM positions ORDER BY input"):
            found = InputPosition(*row)
            yield found._replace(input=f"{self._host}/{found.input}")

    def forgotten(self) -> list[MovedForgotten]:
        """See `Source.forgotten`."""
        query = f"SELECT {', '.join(MovedForgotten._fields)} FROM forgotten"
        return [MovedForgotten(*row) for row in self._rows(query)]

    def damages(self) -> list[tuple[Damage, bytes]]:
        """See `Source.damages`."""
        found: list[tuple[Damage, bytes]] = []
        for damage, path in self._reports():
            with database_errors(path):
                if path.suffix != ".db" and path.stat().st_size <= _HELD_BYTES:
                    found.append((damage, path.read_bytes()))
                else:
                    found.append((damage._replace(error=f"{damage.error}; the file is {self._host}:{path}"), b""))
        return found

    def _reports(self) -> list[tuple[Damage, Path]]:
        """All reports whose file is there: removing it ends a report."""
        query = "SELECT file, batch, kind, workspace_id, source_id, job, events, error FROM damages ORDER BY file, batch"
        found: list[tuple[Damage, Path]] = []
        for noted, batch, kind, workspace_id, source_id, job, events, error in self._rows(query):
            damage = Damage(batch, Stream(Kind(kind), workspace_id, source_id), job, events, noted, error)
            # `Quarantine.retire` moves a file, then notes it.
            paths = (self._directory / noted, self._directory / "quarantine" / Path(noted).name)
            with database_errors(self._directory):
                found += [(damage, path) for path in paths if path.is_file()][:1]
        return found

    def totals(self) -> list[Total]:
        """See `Source.totals`."""
        return [Total(*row) for row in self._rows("SELECT kind, state, batches, events, raw_bytes, size, stored_at FROM totals")]

    # SQLite

    def _rows(self, query: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        with database_errors(self._path):
            return self._connection.use(lambda db: db.execute(query, parameters).fetchall())

    def _one(self, query: str) -> Any:
        return self._rows(query)[0][0]

    def _pages(self, query: str) -> Iterator[Any]:
        after = -1
        while rows := self._rows(f"{query} LIMIT {_PAGE}", (after,)):
            after = rows[-1][0]
            yield from rows

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        def transaction(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            try:
                work(db)
                db.execute("COMMIT")
            except BaseException:
                db.rollback()
                raise

        with database_errors(self._path):
            self._connection.use(transaction)

    def _file(self, name: str) -> BlobFile:
        """A blob file, open until another one is needed: batches of a file follow each other."""
        if self._blobs is None or self._blobs.name != name:
            self._close_blobs()
            self._blobs = BlobFile(self._files.path(name), durability="full", only_reads=True)
        return self._blobs

    def _close_blobs(self) -> None:
        if self._blobs is not None:
            self._blobs.close()
            self._blobs = None

    def _refuse_processes(self) -> None:
        if processes := self.processes():
            raise self._in_use(processes[0])

    def _in_use(self, pid: int) -> SpoolError:
        return SpoolError(f"process {pid} uses {self._directory}", hint="stop it first: what it recorded is kept")

    def _damaged(self, why: str) -> SpoolError:
        return SpoolCorrupt(
            f"{self._directory}: {why}", hint="run `jobs-backup archive --once`, which quarantines what is damaged, then move it"
        )
