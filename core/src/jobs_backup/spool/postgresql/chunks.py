"""The bytes of batches: rows of plain tables, the segments, which are dropped once nothing in them waits.

No row is ever deleted there but waiting lines that have become a member: a table that is dropped gives its space back at once, and
needs no vacuum.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, LiteralString, Self

from jobs_backup.errors import SpoolCorrupt, SpoolError
from jobs_backup.model import Body
from jobs_backup.spool.batches import BatchHeader
from jobs_backup.spool.bodies import MembersReader
from jobs_backup.spool.chunks import Chunk, ChunkKind, checksum, joined
from jobs_backup.spool.ids import INDEX_BITS
from jobs_backup.spool.postgresql.connection import Database, sql

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

_HELD_BYTES: Final = 4 << 20
"""So much of a body is held in memory."""
_STATEMENT_BYTES: Final = 16 << 20
"""So many bytes of chunks are sent in one statement."""
_LOOK: Final = "look at the server's disk and log; nothing was removed"
_FIELDS: Final = "batch, start, events, raw_bytes, first_at, last_at, form, crc32c, data"
# %b: in binary. As text, psycopg escapes arrays of bytes, which doubles them, and changes them where the server takes
# backslashes in literals for escapes (standard_conforming_strings=off).
_INSERT: Final = (
    "INSERT INTO {chunks} (batch, start, is_member, events, raw_bytes, first_at, last_at, form, crc32c, size, data)"
    " SELECT u.* FROM {source} unnest(%s::bigint[], %s::integer[], %s::boolean[], %s::integer[], %s::bigint[], %s::bigint[],"
    " %s::bigint[], %s::smallint[], %s::bigint[], %s::bigint[], %b::bytea[]) u"
)
Row = tuple[Any, ...]


def table(segment: int) -> str:
    """The table of a segment."""
    return f"jobs_backup.chunks_{int(segment)}"


def statement(text: str, segment: int, source: str = "") -> LiteralString:
    """A statement about a segment; `source` is what it selects from beside the parameters."""
    return sql(text.replace("{chunks}", table(segment)).replace("{source}", source))


class Changes:
    """What a transaction does to chunks; see `ChunkChanges`. It reads at once, and writes with `write`, or in one statement.

    Attributes:
        size: bytes of all chunks.
    """

    def __init__(self, db: Db, segments: Mapping[int, int], name: str) -> None:
        """`segments` is batch -> segment; `name` is that of the database."""
        self._db = db
        self._segments = segments
        self._name = name
        self._added: defaultdict[int, list[Row]] = defaultdict(list)
        self._compacted: list[tuple[int, int, int]] = []
        self.size = 0

    @property
    def is_plain(self) -> bool:
        """Whether one statement suffices, in one round trip: nothing is folded, and it is not large."""
        return not self._compacted and self.size <= _STATEMENT_BYTES

    def append(self, chunk: Chunk, data: bytes) -> None:
        """Add a chunk."""
        self._added[self._segments[chunk.batch]].append(row_of_chunk(chunk, data))
        self.size += len(data)

    def compact(self, chunk: Chunk, member: bytes) -> None:
        """Replace all chunks of a batch, from the new chunk's first job on, by one member."""
        self._compacted.append((self._segments[chunk.batch], chunk.batch, chunk.start))
        self.append(chunk, member)

    def lines(self, first_job: int, unpack: Callable[[bytes], bytes]) -> bytes:
        """A batch's waiting lines from `first_job` on; `unpack` decompresses the packed ones."""
        batch, start = first_job >> INDEX_BITS, first_job & ((1 << INDEX_BITS) - 1)
        rows = self._db.execute(
            statement(
                f"SELECT {_FIELDS} FROM {{chunks}} WHERE batch = %s AND start >= %s AND form != %s ORDER BY start",
                self._segments[batch],
            ),
            (batch, start, ChunkKind.LOST.value),
            binary=True,
        ).fetchall()
        return joined([(row[6], _checked(self._name, row)) for row in rows], unpack)

    def statement(self) -> tuple[str, list[Any]]:
        """What adds the chunks, as parts of a WITH that come behind one that is called `me`, and their parameters."""
        parts: list[str] = []
        parameters: list[Any] = []
        for segment, rows in self._added.items():
            parts.append(f", added_{segment} AS ({statement(_INSERT, segment, 'me,')})")
            parameters += columns(rows)
        return "".join(parts), parameters

    def write(self) -> None:
        """Write it, in the transaction of the caller."""
        for segment, batch, start in self._compacted:
            self._db.execute(
                statement("DELETE FROM {chunks} WHERE batch = %s AND start >= %s AND NOT is_member", segment), (batch, start)
            )
        for segment, rows in self._added.items():
            for some in portions(rows):
                self._db.execute(statement(_INSERT, segment), columns(some))
        self._compacted, self._added = [], defaultdict(list)


class Importer:
    """Writes the chunks of a sealed batch of another spool, as a context manager: the rest at its end."""

    def __init__(self, db: Db, segment: int) -> None:
        self._db = db
        self._segment = segment
        self._rows: list[Row] = []
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write()

    def add(self, chunk: Chunk, data: bytes, *, batch: int) -> None:
        """Add a chunk under the number of its batch in this spool."""
        self._rows.append(row_of_chunk(chunk._replace(job=batch << INDEX_BITS | chunk.start), data))
        self._size += len(data)
        if self._size >= _STATEMENT_BYTES:
            self._write()

    def _write(self) -> None:
        if self._rows:
            self._db.execute(statement(_INSERT, self._segment), columns(self._rows))
        self._rows, self._size = [], 0


class Chunks:
    """The chunks of batches that nobody records into meanwhile; see `ChunkReader`."""

    def __init__(self, db: Db, segments: Mapping[int, int], name: str) -> None:
        """`segments` is batch -> segment."""
        self._db = db
        self._segments = segments
        self.name = name

    def chunks(self, batch: int) -> list[Chunk]:
        """A batch's chunks, in order."""
        rows = self._db.execute(
            statement(
                "SELECT start, events, raw_bytes, first_at, last_at, form FROM {chunks} WHERE batch = %s ORDER BY start",
                self._segments[batch],
            ),
            (batch,),
        )
        return [Chunk(batch << INDEX_BITS | row[0], row[1], row[2], row[3], row[4], ChunkKind(row[5])) for row in rows]

    def data(self, job: int) -> bytes:
        """The bytes of one chunk. Raises SpoolCorrupt."""
        data, is_good = self.examine(job)
        if not is_good:
            raise _damaged(self.name, job)
        return data

    def examine(self, job: int) -> tuple[bytes, bool]:
        """The bytes of one chunk, and whether they are undamaged."""
        row = _chunk(self._db, self._segments[job >> INDEX_BITS], job)
        return (b"", False) if row is None else (row[-1], is_good(row))

    def header(self, batch: int) -> BatchHeader | None:  # noqa: ARG002 - the catalog has it
        """Nothing: the catalog has it, in the same database."""
        return None

    def lose(self, job: int, events: int) -> None:
        """Record a gap where events were damaged or are missing."""
        batch, start = job >> INDEX_BITS, job & ((1 << INDEX_BITS) - 1)
        segment = self._segments[batch]
        self._db.execute(statement("DELETE FROM {chunks} WHERE batch = %s AND start = %s", segment), (batch, start))
        gap = row_of_chunk(Chunk(job, events, 0, 0, 0, ChunkKind.LOST), b"")
        self._db.execute(statement(_INSERT, segment), columns([gap]))


def end_of(db: Db, segment: int, batch: int) -> int:
    """The index that the next event of a batch will have, by what is there."""
    row = db.execute(
        statement("SELECT start + events FROM {chunks} WHERE batch = %s ORDER BY start DESC LIMIT 1", segment), (batch,)
    ).fetchone()
    return 0 if row is None else int(row[0])


class SpooledBody(Body):
    """The members of a batch, one after another, read from the database chunk by chunk; a small one at once."""

    def __init__(self, database: Database, segment: int, batch: int, check: Callable[[], None]) -> None:
        """`check` is called before each attempt to send it: it raises what forbids that."""
        self._database = database
        self._segment = segment
        self._check = check

        def look(db: Db) -> list[tuple[int, int]]:
            rows = db.execute(
                statement("SELECT start, size FROM {chunks} WHERE batch = %s AND form != %s ORDER BY start", segment),
                (batch, ChunkKind.LOST.value),
            )
            return [(batch << INDEX_BITS | start, size) for start, size in rows]

        found = database.read(look)
        self._jobs = [job for job, size in found if size]
        self._ends = list(itertools.accumulate(size for _, size in found if size))
        self.size = self._ends[-1] if self._ends else 0
        self._whole: bytes | None = None
        if self.size <= _HELD_BYTES:  # read two or three times: for the checksum, the signature, and the upload
            self._whole = b"".join(self._read(index) for index in range(len(self._jobs)))

    def open(self) -> BinaryIO:
        self._check()
        if self._whole is not None:
            return io.BytesIO(self._whole)
        return io.BufferedReader(MembersReader(self._ends, self._read, lambda: None), 1 << 16)

    def _read(self, index: int) -> bytes:
        job = self._jobs[index]
        row = self._database.read(lambda db: _chunk(db, self._segment, job))
        if row is None:
            raise SpoolCorrupt(f"{self._database.name}: the bytes of job {job} are missing", hint=_LOOK)
        return _checked(self._database.name, row)


def _chunk(db: Db, segment: int, job: int) -> Row | None:
    batch, start = job >> INDEX_BITS, job & ((1 << INDEX_BITS) - 1)
    return db.execute(
        statement(f"SELECT {_FIELDS} FROM {{chunks}} WHERE batch = %s AND start = %s", segment), (batch, start), binary=True
    ).fetchone()


def row_of_chunk(chunk: Chunk, data: bytes) -> Row:
    """A row of a segment: batch, start, is_member, events, raw_bytes, first_at, last_at, form, crc32c, size, data."""
    _, events, raw_bytes, first_at, last_at, form = chunk
    is_member = form is ChunkKind.MEMBER
    fields = (events, raw_bytes, first_at, last_at, form.value, checksum(*chunk, data), len(data), data)
    return (chunk.batch, chunk.start, is_member, *fields)


def columns(rows: Sequence[Row]) -> list[list[Any]]:
    """The parameters of a statement that unnests them."""
    return [list(column) for column in zip(*rows, strict=True)]


def portions(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in portions for one statement each; the last column has the bytes."""
    made: list[list[Row]] = [[]]
    size = 0
    for row in rows:
        if made[-1] and size + len(row[-1]) > _STATEMENT_BYTES:
            made.append([])
            size = 0
        made[-1].append(row)
        size += len(row[-1])
    return made


def _checked(name: str, row: Row) -> bytes:
    if not is_good(row):
        raise _damaged(name, row[0] << INDEX_BITS | row[1])
    data: bytes = row[-1]
    return data


def is_good(row: Row) -> bool:
    """Whether a row of (batch, start, events, raw_bytes, first_at, last_at, form, crc32c, data) is what was written."""
    batch, start, events, raw_bytes, first_at, last_at, form, found, data = row
    try:
        return bool(checksum(batch << INDEX_BITS | start, events, raw_bytes, first_at, last_at, form, data) == found)
    except (struct.error, TypeError):
        return False


def _damaged(name: str, job: int) -> SpoolError:
    return SpoolCorrupt(f"{name}: the bytes of job {job} are not those that were written", hint=_LOOK)
