"""The bytes of batches: SQLite files, each with one writer; chunks are appended and read, and removed with their file."""

from __future__ import annotations

import bisect
import io
import itertools
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from jobs_backup.checksum import crc32c
from jobs_backup.errors import SpoolCorrupt
from jobs_backup.model import Body
from jobs_backup.spool.database import Database, Durability, database_errors

INDEX_BITS: Final = 21
"""A job's id is its batch's number, shifted by so many bits, plus its index in the batch."""

_INDEX_MASK: Final = (1 << INDEX_BITS) - 1
# Of the sizes that SQLite has it is the fastest both for an event a commit and for chunks of 1 MiB.
_PAGE_SIZE: Final = 16384
_CHECKPOINT_BYTES: Final = 8 << 20
_HELD_BYTES: Final = 4 << 20
"""So much of one thing is held in memory: of what is to be written in a transaction, and of a body while it is sent."""
_SCHEMA: Final = """
CREATE TABLE chunks (
    job INTEGER PRIMARY KEY,      -- id of its first job: the batch and the order in it
    events INTEGER NOT NULL,
    raw_bytes INTEGER NOT NULL,   -- of its lines
    first_at INTEGER NOT NULL,    -- the earliest and the latest createdAt, microseconds
    last_at INTEGER NOT NULL,
    member INTEGER NOT NULL,      -- what data is: a Form
    crc32c INTEGER NOT NULL,      -- of data
    data BLOB NOT NULL
) STRICT;
CREATE TABLE positions (input TEXT PRIMARY KEY, at INTEGER NOT NULL, position BLOB NOT NULL) STRICT
"""
_INSERT: Final = "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class Form(IntEnum):
    """What the bytes of a chunk are: a member of the object; or lines that wait to become one, compressed or as they are."""

    LINES = 0
    MEMBER = 1
    PACKED = 2


class Chunk(NamedTuple):
    """Consecutive events of one batch, without their bytes: see the table."""

    job: int
    events: int
    raw_bytes: int
    first_at: int
    last_at: int
    form: Form

    @property
    def start(self) -> int:
        """The place of its first event in the batch."""
        return self.job & _INDEX_MASK


class InputPosition(NamedTuple):
    """How far an input was read. Of two, the one with the later `at` (microseconds since 1970) counts."""

    input: str
    at: int
    position: bytes


class BlobFile:
    """One writer's file. The members of a batch stand before its waiting lines; folding keeps it so."""

    def __init__(self, path: Path, *, durability: Durability, create: bool = False, only_reads: bool = False) -> None:
        self.name = path.stem
        self._database = Database(
            path,
            _SCHEMA,
            version=1,
            durability=durability,
            page_size=_PAGE_SIZE,
            checkpoint_pages=_CHECKPOINT_BYTES // _PAGE_SIZE,
            create=create,
            only_reads=only_reads,
        )

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return self._database.size

    @contextmanager
    def changing(self) -> Generator[Changes]:
        """Changes that are made together when the block ends, or not at all."""
        with ExitStack() as stack:
            changes = Changes(lambda: stack.enter_context(self._database.transaction()))
            yield changes
            if (only := changes.only_chunk) is None:
                changes.write()
            else:
                self._database.execute(_INSERT, only)  # quicker: it waits for the interpreter once

    def chunks(self, batch: int) -> list[Chunk]:
        """A batch's chunks in order."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT job, events, raw_bytes, first_at, last_at, member FROM chunks WHERE job BETWEEN ? AND ? ORDER BY job",
                _jobs_of(batch),
            )
            return [Chunk(job, events, size, first, last, Form(form)) for job, events, size, first, last, form in rows]

    def spooled(self, batch: int) -> tuple[int, int]:
        """How many events of a batch there are, and their bytes on the disk."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT coalesce(sum(events), 0), coalesce(sum(length(data)), 0) FROM chunks WHERE job BETWEEN ? AND ?",
                _jobs_of(batch),
            ).fetchone()
        return row[0], row[1]

    def lines(self, first_job: int, unpack: Callable[[bytes], bytes]) -> bytes:
        """The waiting lines of a batch, from `first_job` on; `unpack` is for those that are packed."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT member, job, crc32c, data FROM chunks WHERE job BETWEEN ? AND ? ORDER BY job",
                (first_job, first_job | _INDEX_MASK),
            )
            chunks = [(form, _checked(self._database.path, *row)) for form, *row in rows]
        return b"".join(unpack(data) if form == Form.PACKED else data for form, data in chunks)

    def data(self, job: int) -> bytes:
        """The bytes of one chunk.

        Raises:
            SpoolCorrupt: they are not those that were written.
        """
        data, is_good = self.examine(job)
        if not is_good:
            raise _damaged(self._database.path, job)
        return data

    def examine(self, job: int) -> tuple[bytes, bool]:
        """The bytes of one chunk, and whether they are those that were written."""
        with self._database.reading() as connection:
            checksum, data = connection.execute("SELECT crc32c, data FROM chunks WHERE job=?", (job,)).fetchone()
        return data, crc32c(data) == checksum

    def positions(self) -> list[InputPosition]:
        """How far each input was read; committed together with the events read from it."""
        with self._database.reading() as connection:
            return [InputPosition(*row) for row in connection.execute("SELECT input, at, position FROM positions")]

    def remove(self, job: int) -> None:
        """Remove one chunk."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM chunks WHERE job=?", (job,))

    def close(self) -> None:
        """Close the file."""
        self._database.close()


class Changes:
    """What is done in a transaction of a BlobFile. It begins late, and what is large is written before its end, so that it takes no
    memory.

    Attributes:
        size: bytes of all chunks.
    """

    def __init__(self, begin: Callable[[], sqlite3.Connection]) -> None:
        self._begin = begin
        self._connection: sqlite3.Connection | None = None
        self._chunks: list[tuple[int | bytes, ...]] = []
        self._folded: list[tuple[int, int]] = []
        self._positions: list[InputPosition] = []
        self._held = 0
        self.size = 0

    @property
    def only_chunk(self) -> tuple[int | bytes, ...] | None:
        """The chunk, if it is all that is to be done."""
        is_all = len(self._chunks) == 1 and self._connection is None and not self._folded and not self._positions
        return self._chunks[0] if is_all else None

    def append(self, chunk: Chunk, data: bytes) -> None:
        """Add a chunk."""
        self._chunks.append((*chunk, crc32c(data), data))
        self.size += len(data)
        self._held += len(data)
        if self._held >= _HELD_BYTES:
            self.write()

    def fold(self, chunk: Chunk, member: bytes) -> None:
        """Put one member into the place of all chunks of its batch from its first job on."""
        self._folded.append((chunk.job, chunk.job | _INDEX_MASK))
        self.append(chunk, member)

    def set_position(self, position: InputPosition) -> None:
        """Remember how far an input was read."""
        self._positions.append(position)

    def write(self) -> None:
        """Write what is held."""
        self._connection = self._connection or self._begin()
        self._remove_folded(self._connection)
        self._connection.executemany(_INSERT, self._chunks)
        self._connection.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", self._positions)
        self._chunks, self._positions, self._held = [], [], 0

    def _remove_folded(self, connection: sqlite3.Connection) -> None:
        connection.executemany("DELETE FROM chunks WHERE job BETWEEN ? AND ?", self._folded)
        self._folded = []


class BlobFiles:
    """The directory of blob files."""

    def __init__(self, directory: Path, *, durability: Durability) -> None:
        self._directory = directory
        self._durability: Durability = durability

    def path(self, name: str) -> Path:
        """Where a file is."""
        return self._directory / f"{name}.db"

    def names(self) -> list[str]:
        """All files."""
        return [path.stem for path in self._directory.glob("*.db")]

    def create(self, name: str) -> BlobFile:
        """A new file."""
        return BlobFile(self.path(name), durability=self._durability, create=True)

    @contextmanager
    def open(self, name: str, *, only_reads: bool = False) -> Generator[BlobFile]:
        """A file that is there, for as long as the block lasts."""
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

    @contextmanager
    def ends(self) -> Generator[Callable[[int, str], int]]:
        """A function that tells, by what is in its file, which index the next event of a batch will have: (batch, file) -> index.

        Each file is opened once.
        """
        with ExitStack() as opened:
            connections: dict[str, sqlite3.Connection] = {}

            def end_of(batch: int, name: str) -> int:
                path = self.path(name)
                with database_errors(path):
                    if name not in connections:
                        connections[name] = opened.enter_context(closing(_connect(path)))
                    row = (
                        connections[name]
                        .execute(
                            "SELECT job, events FROM chunks WHERE job BETWEEN ? AND ? ORDER BY job DESC LIMIT 1", _jobs_of(batch)
                        )
                        .fetchone()
                    )
                return 0 if row is None else (row[0] & _INDEX_MASK) + row[1]

            yield end_of

    def move(self, name: str, directory: Path) -> None:
        """Take a file away that nobody uses, unless another process has just done so."""
        for path in self._paths(name):
            with database_errors(path), suppress(FileNotFoundError):
                path.rename(directory / path.name)

    def _paths(self, name: str) -> list[Path]:
        # The file itself comes last: as long as it is there, what a kill has left of the removal is found and removed. A journal
        # is left by who was killed while making the file.
        return [Path(f"{self.path(name)}{suffix}") for suffix in ("-wal", "-shm", "-journal", "")]


def file_number(name: str) -> int:
    """Which of its session's files it is, by its name; 0 for the first."""
    return int(name.partition("-")[2] or 0)


class SpooledBody(Body):
    """The members of a batch, one after another, read from the spool chunk by chunk; a small one at once."""

    def __init__(self, path: Path, batch: int) -> None:
        self._path = path
        self._whole: bytes | None = None
        with database_errors(path), closing(_connect(path)) as connection:
            rows = connection.execute(
                "SELECT job, length(data) FROM chunks WHERE job BETWEEN ? AND ? ORDER BY job", _jobs_of(batch)
            ).fetchall()
            self._jobs: list[int] = [job for job, _ in rows]
            self._ends: list[int] = list(itertools.accumulate(size for _, size in rows))
            self.size = self._ends[-1] if rows else 0
            if self.size <= _HELD_BYTES:  # it will be read two or three times: for a checksum, for the signature, and to be sent
                self._whole = b"".join(_read(connection, path, job) for job in self._jobs)

    def open(self) -> BinaryIO:
        if self._whole is not None:
            return io.BytesIO(self._whole)
        return io.BufferedReader(_MembersReader(self._path, self._jobs, self._ends), 1 << 16)


class _MembersReader(io.RawIOBase):
    """Reads chunks as one file. Holds one chunk in memory, and no transaction between two reads."""

    def __init__(self, path: Path, jobs: Sequence[int], ends: Sequence[int]) -> None:
        self._path = path
        self._jobs = jobs
        self._ends = ends
        self._position = 0
        self._chunk = memoryview(b"")
        self._chunk_start = 0
        with database_errors(path):
            self._connection = _connect(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1] if self._ends else 0}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        offset = self._position - self._chunk_start
        if not 0 <= offset < len(self._chunk):
            index = bisect.bisect_right(self._ends, self._position)
            if index == len(self._ends):
                return 0
            with database_errors(self._path):
                self._chunk = memoryview(_read(self._connection, self._path, self._jobs[index]))
            self._chunk_start = self._ends[index] - len(self._chunk)
            offset = self._position - self._chunk_start
        block = self._chunk[offset : offset + len(buffer)]
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._connection.close()
        super().close()


def _connect(path: Path) -> sqlite3.Connection:
    """A connection of its own for a reader: many uploads and parts read at once, and none shall wait for the writer."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=60.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA cache_size=1")  # page: every byte is read once, so that a cache would only take memory
    except BaseException:
        connection.close()
        raise
    return connection


def _read(connection: sqlite3.Connection, path: Path, job: int) -> bytes:
    row = connection.execute("SELECT job, crc32c, data FROM chunks WHERE job=?", (job,)).fetchone()
    if row is None:
        raise SpoolCorrupt(f"{path}: the bytes of job {job} are missing")
    return _checked(path, *row)


def _checked(path: Path, job: int, checksum: int, data: bytes) -> bytes:
    if crc32c(data) != checksum:
        raise _damaged(path, job)
    return data


def _damaged(path: Path, job: int) -> SpoolCorrupt:
    return SpoolCorrupt(f"{path}: the bytes of job {job} are not those that were written", hint="look at the disk")


def _jobs_of(batch: int) -> tuple[int, int]:
    return batch << INDEX_BITS, batch << INDEX_BITS | _INDEX_MASK
