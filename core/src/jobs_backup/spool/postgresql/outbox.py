"""Events that become part of an application's own transaction: what is inserted through its connection.

The application's transaction only inserts, into a table that is never dropped: it reads nothing that changes and locks nothing that
others need. So it may have any isolation level, last for hours, or be prepared for two phases. `collector.py` does the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from jobs_backup.errors import ConfigurationError, SpoolError
from jobs_backup.format.compression import GZIP
from jobs_backup.model import Stream
from jobs_backup.spool.batches import BatchOptions
from jobs_backup.spool.chunks import Chunk, ChunkKind
from jobs_backup.spool.id_ranges import Numbering
from jobs_backup.spool.ids import local, origin_of
from jobs_backup.spool.interface import Recording
from jobs_backup.spool.postgresql.aliases import ROW_EVENTS
from jobs_backup.spool.postgresql.catalog import open_range
from jobs_backup.spool.postgresql.chunks import Row, columns, portions, row_of_chunk
from jobs_backup.spool.postgresql.connection import PRIVILEGES, Database, one, sql
from jobs_backup.spool.postgresql.rows import encoded

if TYPE_CHECKING:
    import psycopg

_ROW_BYTES: Final = 1 << 20
"""So many bytes of lines end a row."""
_PACKED_BYTES: Final = 8 << 10
"""Rows are compressed from this size of their lines on, with gzip whatever the setting: so each row can be read by itself."""
_INSERT: Final = (
    "INSERT INTO jobs_backup.outbox (workspace_id, source_id, epoch, batch, start, events, raw_bytes, first_at, last_at, form,"
    " crc32c, size, data) SELECT u.* FROM jobs_backup.spool s, unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[],"
    " %s::integer[], %s::integer[], %s::bigint[], %s::bigint[], %s::bigint[], %s::smallint[], %s::bigint[], %s::bigint[],"
    " %s::bytea[]) u WHERE s.id = %s::uuid RETURNING 1"
)
_TAKES: Final = "pass a psycopg 3 connection, or a SQLAlchemy session or connection that uses psycopg 3"


class Outbox:
    """Gives ids to events before their transaction commits, and makes the rows that it inserts."""

    def __init__(
        self,
        database: Database,
        placement: BatchOptions,
        epoch: int,
        *,
        session: Callable[[], str],
        max_events: int,
        check_room: Callable[[], None],
    ) -> None:
        """`session` names this process's; no row has more than `max_events`, so that a batch can end after any of them."""
        self._name = database.name
        self._spool = str(database.read(lambda db: one(db, "SELECT id::text FROM jobs_backup.spool")[0]))
        self._numbering = Numbering(_Ranges(database, session), placement, epoch)
        self._max_events = min(max_events, ROW_EVENTS)
        self._check_room = check_room

    def entry(self, recordings: Sequence[Recording]) -> TransactionEntry:
        """Give ids to these recordings; see `SpoolRecorder.entry`."""
        self._check_room()
        rows: list[Row] = []
        for recording in recordings:
            recording.jobs = self._numbering.take(recording.stream, len(recording.lines))
            begin = 0
            for first, count in recording.jobs:
                rows += self._rows(recording, first, recording.lines[begin : begin + count])
                begin += count
        return TransactionEntry(rows, self._spool, self._name)

    def _rows(self, recording: Recording, first: int, lines: Sequence[bytes]) -> list[Row]:
        """The rows of consecutive ids."""
        made: list[Row] = []
        begin = size = 0
        for end, line in enumerate(lines, 1):
            size += len(line)
            if end == len(lines) or end - begin == self._max_events or size >= _ROW_BYTES:
                made.append(_row(recording, first + begin, lines[begin:end]))
                begin, size = end, 0
        return made


class TransactionEntry:
    """Rows that a transaction of the application is to insert; see `interface.Entry`."""

    def __init__(self, rows: Sequence[Row], spool: str, name: str) -> None:
        """`spool` is the id of the spool, which must be in the connection's database; `name` is its address."""
        self._rows = rows
        self._spool = spool
        self._name = name

    def write(self, connection: object) -> None:
        """Insert the rows through the application's connection."""
        import psycopg
        from psycopg.rows import tuple_row

        found = self._checked(_driver_connection(connection), psycopg.Connection)
        cursor = psycopg.Cursor(found, row_factory=tuple_row)
        try:
            for some in portions(self._rows):
                cursor.execute(sql(_INSERT), (*columns(some), self._spool), prepare=False)
                self._check_written(cursor.fetchall())
        except psycopg.Error as error:
            raise self._translated(error) from error

    async def write_async(self, connection: object) -> None:
        """Insert the rows through the application's asynchronous connection."""
        import psycopg
        from psycopg.rows import tuple_row

        found = self._checked(await _async_driver_connection(connection), psycopg.AsyncConnection)
        cursor = psycopg.AsyncCursor(found, row_factory=tuple_row)
        try:
            for some in portions(self._rows):
                await cursor.execute(sql(_INSERT), (*columns(some), self._spool), prepare=False)
                self._check_written(await cursor.fetchall())
        except psycopg.Error as error:
            raise self._translated(error) from error

    def _checked(self, connection: Any, wanted: Any) -> Any:
        """The connection, if an event can become part of its transaction."""
        import psycopg

        if not isinstance(connection, wanted):
            kind = _class(connection)
            other = isinstance(connection, psycopg.Connection | psycopg.AsyncConnection)
            raise ConfigurationError(
                f"connection= got {kind.__module__}.{kind.__qualname__}, and takes psycopg.{wanted.__name__}",
                hint="use Backup with a Connection, and AsyncBackup with an AsyncConnection" if other else _TAKES,
            )
        if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            raise ConfigurationError(
                "connection= got a connection in autocommit mode that is not in a transaction",
                hint="record within `with connection.transaction():`, or without connection=",
            )
        return connection

    def _check_written(self, rows: Sequence[object]) -> None:
        if not rows:
            raise self._elsewhere()

    def _elsewhere(self) -> ConfigurationError:
        return ConfigurationError(
            f"the connection is to another database than the spool {self._name}",
            hint="roll back, and connect to the spool's database; or record without connection= after the commit",
        )

    def _translated(self, error: psycopg.Error) -> Exception:
        """The driver's error, as the application knows it from its own statements, unless it is about the spool."""
        from psycopg import errors

        if isinstance(error, errors.UndefinedTable | errors.InvalidSchemaName | errors.UndefinedColumn):
            return self._elsewhere()
        if isinstance(error, errors.InsufficientPrivilege):
            return SpoolError(
                f"the connection's user may not record in {self._name}: {error.diag.message_primary}", hint=PRIVILEGES
            )
        return error


class _Ranges:
    """Opens what gives ids to the outbox: see `Numbering`."""

    def __init__(self, database: Database, session: Callable[[], str]) -> None:
        self._database = database
        self._session = session

    def number(self, stream: Stream, placement: BatchOptions, epoch: int, jobs: int, /) -> int:  # noqa: ARG002 - all that fit
        """A number that gives ids to events of a stream, which will be bound to this placement."""
        return self._database.write(
            lambda db: open_range(db, stream, placement, self._session(), epoch), is_idempotent=True
        )  # a second one only leaves numbers unused


def _row(recording: Recording, first: int, lines: Sequence[bytes]) -> Row:
    data = b"".join(lines)
    is_packed = len(data) >= _PACKED_BYTES
    form = ChunkKind.COMPRESSED if is_packed else ChunkKind.RAW
    chunk = Chunk(local(first), len(lines), len(data), recording.first_at, recording.last_at, form)
    batch, start, _, *rest = row_of_chunk(chunk, GZIP.compress(data) if is_packed else data)
    stream = recording.stream
    return (encoded(stream.workspace_id), encoded(stream.source_id), origin_of(first)[0], batch, start, *rest)


def _driver_connection(given: Any) -> Any:
    """The driver's connection of a SQLAlchemy Session or Connection; anything else as it is."""
    if hasattr(_class(given), "get_bind") and _has(given, "connection"):
        given = given.connection()
    if _has(given, "exec_driver_sql"):
        if not given.in_transaction():  # else its `commit` would find nothing to commit
            given.begin()
        given = given.connection.driver_connection
    return given


async def _async_driver_connection(given: Any) -> Any:
    """The driver's connection of a SQLAlchemy AsyncSession or AsyncConnection; anything else as it is."""
    if hasattr(_class(given), "get_bind") and _has(given, "connection", is_async=True):
        given = await given.connection()
    if _has(given, "exec_driver_sql", is_async=True):
        if not given.in_transaction():
            await given.begin()
        given = (await given.get_raw_connection()).driver_connection
    return given


def _class(given: object) -> type[object]:
    return type(given)


def _has(given: object, method: str, *, is_async: bool = False) -> bool:
    """Whether its class has this method, for asyncio or not."""
    found = getattr(_class(given), method, None)
    return callable(found) and inspect.iscoroutinefunction(found) is is_async
