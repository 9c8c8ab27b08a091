"""The bytes of batches: SQLite files, each with one writer. Chunks are appended and read, and removed with their file."""

from __future__ import annotations

import functools
import io
import itertools
import os
import sqlite3
import struct
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from jobs_backup.checksum import crc32c
from jobs_backup.errors import SpoolCorrupt, SpoolError
from jobs_backup.model import Body
from jobs_backup.spool.batches import BatchHeader
from jobs_backup.spool.bodies import MembersReader
from jobs_backup.spool.chunks import Chunk, ChunkKind, checksum, joined
from jobs_backup.spool.ids import INDEX_BITS
from jobs_backup.spool.interface import Durability, InputPosition
from jobs_backup.spool.sqlite.database import Connection, Database, FilesLost, database_errors, read_beside, reads, writes
from jobs_backup.util.fsync import sync_directory, sync_file
from jobs_backup.util.opening import make_file, read_file

_INDEX_MASK: Final = (1 << INDEX_BITS) - 1
# The fastest of SQLite's page sizes, both for one event per commit and for chunks of 1 MiB.
_PAGE_SIZE: Final = 16384
_CHECKPOINT_BYTES: Final = 8 << 20
_HELD_BYTES: Final = 4 << 20
"""Most bytes of one thing to hold in memory: of data to write in a transaction, and of a body while it is uploaded."""
_READ_SECONDS: Final = 60.0
_BEFORE_ALL: Final = -(1 << 63)
"""Below all jobs: their numbers are not negative, though a damaged row's may be."""
_LOOK: Final = "check the disk; nothing was removed"
_CHUNKS: Final = """
CREATE TABLE chunks (
    job INTEGER PRIMARY KEY,      -- its first job: the batch's number and the index in it
    events INTEGER NOT NULL,
    raw_bytes INTEGER NOT NULL,   -- of its lines
    first_at INTEGER NOT NULL,    -- the earliest and the latest createdAt, microseconds
    last_at INTEGER NOT NULL,
    member INTEGER NOT NULL,      -- what data is: a ChunkKind
    crc32c INTEGER NOT NULL,      -- of all of it, in files of version 1 of data alone
    data BLOB NOT NULL
) STRICT;
CREATE TABLE positions (input TEXT PRIMARY KEY, at INTEGER NOT NULL, position BLOB NOT NULL) STRICT
"""
_SINCE_VERSION_2: Final = (
    """CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    crc32c INTEGER NOT NULL,      -- of header
    header BLOB NOT NULL          -- all that the catalog knows of the batch when it is opened, as JSON: a BatchHeader
) STRICT""",
    "CREATE TABLE owner (is_adopted INTEGER NOT NULL) STRICT",  # 1: its writer has ended, or another process has replaced it
    "INSERT INTO owner VALUES (0)",
)
_SCHEMA: Final = ";\n".join((_CHUNKS.strip(), *_SINCE_VERSION_2))
_VERSION: Final = 2
_SELECT: Final = "SELECT job, events, raw_bytes, first_at, last_at, member, crc32c, data FROM chunks"
_INSERT: Final = "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SET_POSITION: Final = (
    "INSERT INTO positions VALUES (?, ?, ?) ON CONFLICT (input) DO UPDATE SET at=excluded.at, position=excluded.position"
)
_INSERT_AS_OWNER: Final = "INSERT INTO chunks SELECT ?, ?, ?, ?, ?, ?, ?, ? FROM owner WHERE NOT is_adopted"


class BlobFile:
    """One writer's file. A batch's members come before its waiting lines; folding preserves that."""

    def __init__(self, path: Path, *, durability: Durability, create: bool = False, only_reads: bool = False) -> None:
        self.name = path.stem
        self._database = Database(
            path,
            _SCHEMA,
            version=_VERSION,
            durability=durability,
            page_size=_PAGE_SIZE,
            checkpoint_pages=_CHECKPOINT_BYTES // _PAGE_SIZE,
            create=create,
            additions={1: _SINCE_VERSION_2},
            only_reads=only_reads,
        )
        self._is_owner = create

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return self._database.size

    def change(self, work: Callable[[Changes], None], check: Callable[[InputPosition], None] = lambda _: None) -> int:
        """Apply the changes that `work` makes, all or none. Returns the bytes of its chunks.

        `check` is called for each position while no one else can read or write positions here. If it raises, everything is rolled
        back.

        Raises:
            FilesLost: this process made the file and another one has adopted it; or it was removed or replaced.
        """
        changes = Changes(self._database.path, is_owner=self._is_owner, check=check)
        self._database.use(functools.partial(changes.make, work))
        return changes.size

    @writes
    def finish(self, db: sqlite3.Connection) -> bool:
        """Keep the process that made this file from writing to it. What it committed before is kept.

        Returns whether this was done before: if so, nothing later can be missing.
        """
        return db.execute("UPDATE owner SET is_adopted=1 WHERE NOT is_adopted").rowcount == 0

    def check(self) -> None:
        """Check the structure of the whole file. Raises SpoolCorrupt."""
        self._database.check()

    def check_files(self) -> None:
        """Raise FilesLost if the file was removed or replaced."""
        self._database.check_files()

    def copy_to(self, path: Path) -> None:
        """Copy the whole file, as this process sees it, to a new one."""
        self._database.copy_to(path)

    @reads
    def logged_pages(self, db: sqlite3.Connection) -> int:
        """Number of pages in its log; 0 if there is no log, or nothing usable in it."""
        return _natural(db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1])

    @reads
    def is_blank(self, db: sqlite3.Connection) -> bool:
        """Whether it has no tables yet."""
        return _is_blank(db)

    @reads
    def batches(self, db: sqlite3.Connection) -> list[int]:
        """The numbers of all batches it has data of."""
        if _is_blank(db):
            return []  # its maker was killed before it wrote anything
        found = {row[0] for row in db.execute("SELECT id FROM batches")} if _has_batches(db) else set[int]()
        following = _BEFORE_ALL
        while (row := db.execute("SELECT job FROM chunks WHERE job>? ORDER BY job LIMIT 1", (following,)).fetchone()) is not None:
            found.add(row[0] >> INDEX_BITS)
            following = row[0] | _INDEX_MASK
        return sorted(found)

    @reads
    def header(self, db: sqlite3.Connection, batch: int) -> BatchHeader | None:
        """What a batch was bound to when it was opened; None in a file of an earlier version.

        Raises:
            SpoolCorrupt: it is damaged.
        """
        if not _has_batches(db):
            return None
        row = db.execute("SELECT crc32c, header FROM batches WHERE id=?", (batch,)).fetchone()
        if row is None:
            return None
        if crc32c(row[1]) != row[0]:
            raise SpoolCorrupt(f"{self._database.path}: the header of batch {batch} is not what was written", hint=_LOOK)
        return msgspec.json.decode(row[1], type=BatchHeader)

    @writes
    def renumber(self, db: sqlite3.Connection, changes: Sequence[tuple[int, int, BatchHeader]]) -> None:
        """Give batches other numbers, unused in this file: (number, new number, new header)."""
        for batch, to, header in changes:
            db.execute(
                "UPDATE chunks SET job=job+? WHERE job BETWEEN ? AND ?",
                ((to - batch) << INDEX_BITS, *_jobs_of(batch)),
            )
            db.execute("DELETE FROM batches WHERE id=?", (batch,))
            db.execute("INSERT INTO batches VALUES (?, ?, ?)", _header_row(to, header))

    @reads
    def chunks(self, db: sqlite3.Connection, batch: int) -> list[Chunk]:
        """A batch's chunks, in order."""
        rows = db.execute(
            "SELECT job, events, raw_bytes, first_at, last_at, iif(member=? AND length(data), ?, member) FROM chunks"
            " WHERE job BETWEEN ? AND ? ORDER BY job",
            (ChunkKind.LOST, ChunkKind.RAW, *_jobs_of(batch)),  # with bytes it is not lost: its checksum will show
        )
        return [
            Chunk(job, _natural(events), _natural(size), first, last, ChunkKind(form))
            for job, events, size, first, last, form in rows
        ]

    @reads
    def events(self, db: sqlite3.Connection) -> int:
        """Number of events ever recorded in it."""
        return _natural(db.execute("SELECT coalesce(sum(events), 0) FROM chunks").fetchone()[0])

    @reads
    def holds(self, db: sqlite3.Connection, job: int) -> bool:
        """Whether it has this job."""
        row = db.execute(
            "SELECT job+events FROM chunks WHERE job BETWEEN ? AND ? ORDER BY job DESC LIMIT 1", (job & ~_INDEX_MASK, job)
        ).fetchone()
        return row is not None and job < row[0]

    @reads
    def spooled(self, db: sqlite3.Connection, batch: int) -> tuple[int, int]:
        """Number of a batch's events in it, and their bytes on the disk."""
        row = db.execute(
            "SELECT coalesce(sum(events), 0), coalesce(sum(length(data)), 0) FROM chunks WHERE job BETWEEN ? AND ? AND member!=?",
            (*_jobs_of(batch), ChunkKind.LOST),
        ).fetchone()
        return _natural(row[0]), _natural(row[1])

    @reads
    def lines(self, db: sqlite3.Connection, first_job: int, unpack: Callable[[bytes], bytes]) -> bytes:
        """A batch's waiting lines from `first_job` on; `unpack` decompresses the packed ones."""
        return _lines(db, self._database.path, first_job, unpack)

    def data(self, job: int) -> bytes:
        """The bytes of one chunk.

        Raises:
            SpoolCorrupt: they are damaged.
        """
        data, is_good = self.examine(job)
        if not is_good:
            raise _damaged(self._database.path, job)
        return data

    @reads
    def examine(self, db: sqlite3.Connection, job: int) -> tuple[bytes, bool]:
        """The bytes of one chunk, and whether they are undamaged."""
        row = db.execute(f"{_SELECT} WHERE job=?", (job,)).fetchone()
        return row[-1], _is_good(row)

    @reads
    def positions(self, db: sqlite3.Connection) -> list[InputPosition]:
        """How far each input was read; committed together with the events read from it."""
        return [InputPosition(*row) for row in db.execute("SELECT input, at, position FROM positions")]

    @writes
    def position(self, db: sqlite3.Connection, source: str) -> InputPosition | None:
        """How far an input was read. Waits for the writer: see `Spool.reading`."""
        if _is_blank(db):
            return None
        return position_in(db, source)

    @writes
    def new_positions(self, db: sqlite3.Connection, prefix: str, after: int) -> tuple[list[InputPosition], int]:
        """See `new_positions_in`. Waits for the writer: see `Spool.reading`."""
        return ([], after) if _is_blank(db) else new_positions_in(db, prefix, after)

    @writes
    def lose(self, db: sqlite3.Connection, job: int, events: int) -> None:
        """Record a gap where events were damaged or are missing."""
        db.execute("DELETE FROM chunks WHERE job=?", (job,))
        db.execute(_INSERT, _row(Chunk(job, events, 0, 0, 0, ChunkKind.LOST), b""))

    def close(self, *, for_good: bool = True) -> None:
        """Close the file, permanently or (not `for_good`) until its next use."""
        self._database.close(for_good=for_good)


class Changes:
    """The changes of one BlobFile transaction.

    It begins late, and writes large data before the end to save memory.

    Attributes:
        size: bytes of all chunks.
    """

    def __init__(self, path: Path, *, is_owner: bool, check: Callable[[InputPosition], None] = lambda _: None) -> None:
        """`check`: see `BlobFile.change`."""
        self._path = path
        self._is_owner = is_owner
        self._check = check
        self._connection: sqlite3.Connection | None = None
        self._chunks: list[tuple[int | bytes, ...]] = []
        self._compacted: list[tuple[int, int]] = []
        self._headers: list[tuple[int, int, bytes]] = []
        self._positions: list[InputPosition] = []
        self._held = 0
        self.size = 0

    def make(self, work: Callable[[Changes], None], connection: sqlite3.Connection) -> None:
        """Call `work` and commit. For BlobFile only."""
        self._connection = connection
        try:
            work(self)
            if connection.in_transaction or self._compacted or self._headers or self._positions or len(self._chunks) != 1:
                self._write()
                connection.execute("COMMIT")
            else:  # a single statement waits for the interpreter only once
                statement = _INSERT_AS_OWNER if self._is_owner else _INSERT
                if connection.execute(statement, self._chunks[0]).rowcount != 1:
                    raise self._adopted()
        except BaseException:
            connection.rollback()
            raise

    def describe(self, batch: int, header: BatchHeader) -> None:
        """Note what a batch is bound to; along with its first chunk."""
        self._headers.append(_header_row(batch, header))

    def append(self, chunk: Chunk, data: bytes) -> None:
        """Add a chunk."""
        self._chunks.append(_row(chunk, data))
        self.size += len(data)
        self._held += len(data)
        if self._held >= _HELD_BYTES:
            self._write()

    def lines(self, first_job: int, unpack: Callable[[bytes], bytes]) -> bytes:
        """A batch's waiting lines from `first_job` on; `unpack` decompresses the packed ones. They must be unchanged so far."""
        assert self._connection is not None
        return _lines(self._connection, self._path, first_job, unpack)

    def compact(self, chunk: Chunk, member: bytes) -> None:
        """Replace all chunks of a batch, from the new chunk's first job on, by one member."""
        self._compacted.append((chunk.job, chunk.job | _INDEX_MASK))
        self.append(chunk, member)

    def set_position(self, position: InputPosition) -> None:
        """Note how far an input was read."""
        self._positions.append(position)

    def _write(self) -> None:
        """Write what is held in memory."""
        connection = self._connection
        assert connection is not None
        if not connection.in_transaction:
            connection.execute("BEGIN IMMEDIATE")
            if self._is_owner and connection.execute("SELECT is_adopted FROM owner").fetchone()[0]:
                raise self._adopted()
        self._remove_folded(connection)
        connection.executemany(_INSERT, self._chunks)
        connection.executemany("INSERT OR REPLACE INTO batches VALUES (?, ?, ?)", self._headers)
        for position in self._positions:
            self._check(position)
            # Not REPLACE, which would give the row another number: see `new_positions_in`.
            connection.execute(_SET_POSITION, position)
        self._chunks, self._headers, self._positions, self._held = [], [], [], 0

    def _remove_folded(self, connection: sqlite3.Connection) -> None:
        connection.executemany("DELETE FROM chunks WHERE job BETWEEN ? AND ?", self._compacted)
        self._compacted = []

    def _adopted(self) -> FilesLost:
        return FilesLost(f"{self._path} was taken over by another process", hint="see `jobs-backup status`")


def position_in(db: sqlite3.Connection, source: str) -> InputPosition | None:
    """How far an input was read, according to one file: a blob file or the catalog."""
    row = db.execute("SELECT input, at, position FROM positions WHERE input=?", (source,)).fetchone()
    return None if row is None else InputPosition(*row)


def new_positions_in(db: sqlite3.Connection, prefix: str, after: int) -> tuple[list[InputPosition], int]:
    """The positions of inputs whose ids begin with `prefix`, added after the row `after`; and the number of the last row.

    A row keeps its number when its position changes, and none is deleted, so later rows are those of new inputs.
    """
    rows = db.execute("SELECT rowid, input, at, position FROM positions WHERE rowid>? ORDER BY rowid", (after,)).fetchall()
    return [InputPosition(*row[1:]) for row in rows if row[1].startswith(prefix)], rows[-1][0] if rows else after


class BlobFiles:
    """The directory of blob files."""

    def __init__(self, directory: Path, *, durability: Durability) -> None:
        self._directory = directory
        self._durability: Durability = durability

    def path(self, name: str) -> Path:
        """The path of a file."""
        return self._directory / f"{name}.db"

    def exists(self, name: str) -> bool:
        """Whether a file exists."""
        with database_errors(self.path(name)):
            return self.path(name).exists()

    def names(self) -> list[str]:
        """The names of all files."""
        with database_errors(self._directory), os.scandir(self._directory) as entries:  # `glob` treats unreadable as empty
            return sorted(Path(entry.name).stem for entry in entries if entry.name.endswith(".db"))

    def create(self, name: str) -> BlobFile:
        """Create a file."""
        return BlobFile(self.path(name), durability=self._durability, create=True)

    def roll_back(self, name: str) -> None:
        """Roll back what a killed process left half done while making a file: until then it cannot be opened for reading."""
        path = self.path(name)
        with database_errors(path):
            if Path(f"{path}-journal").exists():
                with suppress(sqlite3.DatabaseError), closing(Connection(path, timeout=_READ_SECONDS)) as connection:
                    connection.use(lambda _: None)

    @contextmanager
    def open(self, name: str, *, only_reads: bool = False) -> Generator[BlobFile]:
        """Open an existing file for the duration of the block."""
        blobs = BlobFile(self.path(name), durability=self._durability, only_reads=only_reads)
        try:
            yield blobs
        finally:
            blobs.close()

    def remove(self, name: str) -> None:
        """Remove a file."""
        for path in self._paths(name):
            with database_errors(path):
                path.unlink(missing_ok=True)

    def remove_left(self) -> None:
        """Remove empty logs whose file is gone: a reader that opens a file during its removal leaves one."""
        names = set(self.names())
        with database_errors(self._directory):
            for log in self._directory.glob("*.db-wal"):
                if log.name.removesuffix(".db-wal") not in names and log.stat().st_size == 0:
                    for path in self._paths(log.name.removesuffix(".db-wal"))[:-1]:
                        path.unlink(missing_ok=True)

    @contextmanager
    def ends(self) -> Generator[Callable[[int, str], int]]:
        """A function that looks up the index of a batch's next event in its file: (batch, file) -> index.

        Each file is opened once.
        """
        with ExitStack() as opened:
            connections: dict[str, Connection] = {}

            def end_of(batch: int, name: str) -> int:
                path = self.path(name)
                with database_errors(path):
                    if name not in connections:
                        connections[name] = opened.enter_context(closing(_connect(path)))
                    row = connections[name].use(
                        lambda db: db.execute(
                            "SELECT job, events FROM chunks WHERE job BETWEEN ? AND ? ORDER BY job DESC LIMIT 1", _jobs_of(batch)
                        ).fetchone()
                    )
                return 0 if row is None else (row[0] & _INDEX_MASK) + row[1]

            yield end_of

    def restore(self, blobs: BlobFile) -> None:
        """Restore a file that was removed or replaced while this process had it open, as this process sees it.

        Raises:
            FilesLost: this process does not have it open: a fork has closed it, or the file was restored before.
        """
        copy, partial = self._copy(blobs.name), self._directory / f"{blobs.name}.restoring"
        with database_errors(copy):
            if not copy.exists():  # else an earlier call failed after this step
                partial.unlink(missing_ok=True)
                make_file(partial)
                blobs.copy_to(partial)
                with read_file(partial) as file:
                    sync_file(file.fileno())
                partial.rename(copy)
                sync_directory(self._directory)
            blobs.close(for_good=False)  # before the new file gets this name: closing may remove the log of that name
        self.finish_restoring(blobs.name)

    def finish_restoring(self, name: str) -> None:
        """Move the copy that `restore` completed into place, if there is one. Once it exists, it may be the only one."""
        with database_errors(self.path(name)):
            if self._copy(name).exists():
                for left in self._paths(name):
                    left.unlink(missing_ok=True)
                self._copy(name).rename(self.path(name))
                sync_directory(self._directory)
            (self._directory / f"{name}.restoring").unlink(missing_ok=True)

    def unfinished(self) -> set[str]:
        """The files with a copy that was not moved into place because its process was killed."""
        with database_errors(self._directory), os.scandir(self._directory) as entries:
            return {Path(entry.name).stem for entry in entries if entry.name.endswith((".restored", ".restoring"))}

    def _copy(self, name: str) -> Path:
        return self._directory / f"{name}.restored"

    def read_through(self, name: str) -> None:
        """Read all bytes of a file and its log, to detect read errors.

        SQLite reports unreadable bytes as damage (it turns EIO into a malformed file), so this is checked separately.

        Raises:
            SpoolError: the disk cannot read them.
        """
        for path in (self.path(name), Path(f"{self.path(name)}-wal")):
            with database_errors(path), suppress(FileNotFoundError):
                read_beside(path)

    def confirm_damage(self, name: str) -> None:
        """Check a damaged file again, through a new connection.

        Raises:
            SpoolError: it is not damaged, or cannot be read now.
        """
        self.read_through(name)
        try:
            with self.open(name, only_reads=True) as blobs:
                blobs.check()
                for batch in blobs.batches():
                    blobs.header(batch)
                    blobs.chunks(batch)
        except SpoolCorrupt:
            self.read_through(name)
            return
        raise SpoolError(f"{self.path(name)} could not be read before, but can be now: it is retried", hint="check the disk")

    def move(self, name: str, directory: Path) -> None:
        """Move an unused file away, unless another process has just done so."""
        for path in self._paths(name):
            with database_errors(path), suppress(FileNotFoundError):
                path.rename(directory / path.name)

    def _paths(self, name: str) -> list[Path]:
        # The file itself comes last: while it exists, the leftovers of an interrupted removal are found and removed. A journal is
        # left by a process killed while making the file.
        return [Path(f"{self.path(name)}{suffix}") for suffix in ("-wal", "-shm", "-journal", "")]


def file_name(session: str, number: int) -> str:
    """The name of a session's file."""
    return f"{session}-{number}" if number else session


def file_number(name: str) -> int:
    """Number of a file in its session, from its name; 0 for the first, and for a copy with a name of its own."""
    number = name.partition("-")[2]
    return int(number) if number.isdecimal() else 0


class SpooledBody(Body):
    """A batch's members, one after another, read from the spool chunk by chunk; a small batch at once."""

    def __init__(self, path: Path, batch: int) -> None:
        self._path = path
        self._whole: bytes | None = None
        with database_errors(path), closing(_connect(path)) as connection:
            rows = connection.use(
                lambda db: db.execute(
                    "SELECT job, length(data) FROM chunks WHERE job BETWEEN ? AND ? ORDER BY job", _jobs_of(batch)
                ).fetchall()
            )
            self._jobs: list[int] = [job for job, size in rows if size]
            self._ends: list[int] = list(itertools.accumulate(size for _, size in rows if size))
            self.size = self._ends[-1] if self._ends else 0
            if self.size <= _HELD_BYTES:  # read two or three times: for the checksum, the signature, and the upload
                self._whole = b"".join(_read(connection, path, job) for job in self._jobs)

    def open(self) -> BinaryIO:
        if self._whole is not None:
            return io.BytesIO(self._whole)
        connection = _connect(self._path)

        def read(index: int) -> bytes:
            with database_errors(self._path):
                return _read(connection, self._path, self._jobs[index])

        return io.BufferedReader(MembersReader(self._ends, read, connection.close), 1 << 16)


def _connect(path: Path) -> Connection:
    """Connect for one reader: many uploads and parts read at once, and none must wait for the writer.

    It is read-only, so that closing it last leaves the log as it is.
    """
    # One page: every byte is read once, so a larger cache would only take memory.
    return Connection(path, timeout=_READ_SECONDS, mode="ro", prepare=("PRAGMA cache_size=1",))


def _read(connection: Connection, path: Path, job: int) -> bytes:
    row = connection.use(lambda db: db.execute(f"{_SELECT} WHERE job=?", (job,)).fetchone())
    if row is None:
        raise SpoolCorrupt(f"{path}: the bytes of job {job} are missing", hint=_LOOK)
    return _checked(path, row)


def _lines(db: sqlite3.Connection, path: Path, first_job: int, unpack: Callable[[bytes], bytes]) -> bytes:
    rows = db.execute(f"{_SELECT} WHERE job BETWEEN ? AND ? ORDER BY job", (first_job, first_job | _INDEX_MASK))
    chunks = [(row[5], _checked(path, row)) for row in rows]
    return joined(chunks, unpack)


def _checked(path: Path, row: Sequence[Any]) -> bytes:
    if not _is_good(row):
        raise _damaged(path, row[0])
    data: bytes = row[-1]
    return data


def _row(chunk: Chunk, data: bytes) -> tuple[int | bytes, ...]:
    return (*chunk, checksum(*chunk, data), data)


def _is_good(row: Sequence[Any]) -> bool:
    """Whether a row is undamaged."""
    job, events, raw_bytes, first_at, last_at, form, found, data = row
    try:
        return bool(checksum(job, events, raw_bytes, first_at, last_at, form, data) == found or crc32c(data) == found)
    except (struct.error, TypeError):
        return False


def _damaged(path: Path, job: int) -> SpoolCorrupt:
    return SpoolCorrupt(f"{path}: the bytes of job {job} are not those that were written", hint=_LOOK)


def _header_row(batch: int, header: BatchHeader) -> tuple[int, int, bytes]:
    data = msgspec.json.encode(header)
    return batch, crc32c(data), data


def _is_blank(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_schema").fetchone() is None


def _has_batches(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_schema WHERE name='batches'").fetchone() is not None


def _natural(number: int) -> int:
    """A count from a row. Raises ValueError."""
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number


def _jobs_of(batch: int) -> tuple[int, int]:
    return batch << INDEX_BITS, batch << INDEX_BITS | _INDEX_MASK
