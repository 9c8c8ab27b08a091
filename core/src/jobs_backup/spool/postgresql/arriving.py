"""Take in the spool of a single machine: see `spool/moving.py`.

Everything is one transaction, whose first statement enters the move's id. So a kill leaves nothing behind, and whoever asks for the
id waits for the transaction's end. Batches get numbers of this spool; `moved_batches` knows them by the ones in their job ids.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobs_backup.errors import SpoolError
from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.spool.ids import INDEX_BITS, LOCAL_BITS, batch_of, job_index, segment_in
from jobs_backup.spool.interface import InputPosition
from jobs_backup.spool.moving import Counts, MovedBatch, Source
from jobs_backup.spool.postgresql.catalog import Catalog, report
from jobs_backup.spool.postgresql.chunks import Importer
from jobs_backup.spool.postgresql.connection import BEGIN, HAS_TRANSACTION_TIMEOUT, NOW, Database, each, one
from jobs_backup.spool.postgresql.deliveries import STREAM
from jobs_backup.spool.postgresql.migrations import migrate
from jobs_backup.spool.postgresql.rows import encoded, writable
from jobs_backup.spool.postgresql.schema import KNOWS_MOVES
from jobs_backup.spool.postgresql.segments import last_segment
from jobs_backup.spool.postgresql.sessions import IS_OVER
from jobs_backup.spool.postgresql.status import DEFAULT_MAX_BYTES

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

_PAGE: Final = 1000
_CONNECTIONS: Final = 2
_WAITS: Final = "SET LOCAL lock_timeout = '60s'; SET LOCAL idle_in_transaction_session_timeout = '5min'"
"""For another attempt, whose host may have been cut off: the server then ends it."""
_MAY: Final = ("moves", "moved_batches", "batches", "totals")
_MAY_WRITE: Final = "SELECT has_table_privilege(%s, 'INSERT') AND has_table_privilege(%s, 'UPDATE')"
_COLUMNS: Final = (
    "id, epoch, opened_at, kind, workspace_id, source_id, state, store, prefix, instance_id, compression, wrappers, session,"
    " segment, jobs, delivered, settled, events, raw_bytes, first_at, last_at, size, crc32c, uuid, key, made, is_doubted,"
    " stored_at, claims, failures, retry_at, error, hint"
)
_INSERT_BATCH: Final = f"INSERT INTO jobs_backup.batches ({_COLUMNS}) VALUES ({', '.join(['%s'] * len(_COLUMNS.split(',')))})"
_ADD_FORGOTTEN: Final = (
    "INSERT INTO jobs_backup.forgotten_streams AS f"
    " (store, kind, stream, workspace_id, source_id, objects, events, first_at, last_at)"
    f" SELECT store, kind, {STREAM}, workspace_id, source_id, objects, events, first_at, last_at FROM (VALUES (%s::integer, %s,"
    " %s::text, %s::text, %s::bigint, %s::bigint, %s::bigint, %s::bigint))"
    " v (store, kind, workspace_id, source_id, objects, events, first_at, last_at)"
    " ON CONFLICT (store, kind, stream) DO UPDATE SET objects = f.objects + excluded.objects,"
    " events = f.events + excluded.events, first_at = least(f.first_at, excluded.first_at),"
    " last_at = greatest(f.last_at, excluded.last_at)"
)
_ADD_TOTAL: Final = (
    "UPDATE jobs_backup.totals SET batches = batches + %s, events = events + %s, raw_bytes = raw_bytes + %s, size = size + %s,"
    " stored_at = greatest(stored_at, %s) WHERE kind = %s AND state = %s AND part = 0"
)
_SET_POSITION: Final = (
    "INSERT INTO jobs_backup.positions AS p (input, at, position) VALUES (%s, %s, %s) ON CONFLICT (input) DO UPDATE"
    " SET at = excluded.at, position = excluded.position WHERE p.at < excluded.at"
)


@contextmanager
def arriving(place: DatabaseSpool, max_bytes: int | None) -> Generator[Arrival]:
    """A spool in PostgreSQL that takes in another one; its tables are made where there are none.

    Args:
        max_bytes: its quota; None for the default.

    Raises:
        ConfigurationError: the driver is not installed, or the URL is wrong.
        SpoolError: the database cannot be used.
    """
    database = Database(place, connections=_CONNECTIONS)
    try:
        migrate(database)
        yield Arrival(database, DEFAULT_MAX_BYTES if max_bytes is None else max_bytes)
    finally:
        database.close()


class Arrival:
    """A spool in PostgreSQL as a `Target`."""

    def __init__(self, database: Database, max_bytes: int) -> None:
        self._database = database
        self._max_bytes = max_bytes
        self.name = database.name
        # In microseconds: when its tables were made.
        self.identity = int(database.read(lambda db: one(db, "SELECT known_since FROM jobs_backup.spool")[0]))

    def check(self, counts: Counts) -> None:
        """See `Target.check`."""
        self._database.read(_check_processes)
        missing = self._database.read(
            lambda db: [table for table in _MAY if not one(db, _MAY_WRITE, [f"jobs_backup.{table}"] * 2)[0]]
        )
        if missing:
            raise SpoolError(
                f"{self.name}: this user may not write jobs_backup.{', jobs_backup.'.join(missing)}",
                hint="use a user with the role jobs_backup_archiver",
            )
        waiting = Catalog(self._database).spooled_bytes("")
        if counts.waiting_bytes and waiting + counts.waiting_bytes > self._max_bytes:
            raise SpoolError(
                f"{counts.waiting_bytes:,} bytes wait beside {waiting:,} in {self.name}, whose quota is {self._max_bytes:,}",
                hint="upload them first with `jobs-backup archive --once`, or raise JOBS_BACKUP_SPOOL_MAX_BYTES",
            )

    def take_in(self, source: Source, move: str) -> Counts:
        """See `Target.take_in`."""
        # Before the transaction: others that open a spool for the same store would wait for its end.
        catalog = Catalog(self._database)
        stores = {store.id: catalog.store(store.location) for store in source.stores()}
        return self._database.write(lambda db: _Taking(db, source, move, stores, self.name).run(), is_idempotent=True)

    def has(self, move: str) -> Counts | None:
        """See `Target.has`."""

        def ask(db: Db) -> Counts | None:
            db.execute(BEGIN)
            try:
                return _begin(db, move, "")
            finally:
                db.execute("ROLLBACK")

        return self._database.read(ask)


def _begin(db: Db, move: str, origin: str) -> Counts | None:
    """Enter a move. Waits for a transaction that has entered it; what it has brought, if it was committed."""
    db.execute(_WAITS)
    if db.info.server_version >= HAS_TRANSACTION_TIMEOUT:
        db.execute("SET LOCAL transaction_timeout = 0")  # it lasts for as long as there is something to move
    entered = db.execute(
        f"INSERT INTO jobs_backup.moves VALUES (%s, %s, {NOW}, 0, 0, '') ON CONFLICT DO NOTHING", (move, encoded(origin))
    ).rowcount
    if entered:
        return None
    (counts,) = one(db, "SELECT counts FROM jobs_backup.moves WHERE id = %s", (move,))
    return msgspec.json.decode(counts, type=Counts)


def _check_processes(db: Db) -> None:
    """Check that each process knows the ids of moved batches, and the inputs.

    Raises:
        SpoolError: one does not.
    """
    row = db.execute(
        f"SELECT host, pid FROM jobs_backup.sessions WHERE version < %s AND NOT {IS_OVER} LIMIT 1", (KNOWS_MOVES,)
    ).fetchone()
    if row is not None:
        raise SpoolError(
            f"process {row[1]} on {row[0]} has an earlier version of jobs-backup, which would not know the ids of a moved spool",
            hint="update it first",
        )


class _Taking:
    """One attempt."""

    def __init__(self, db: Db, source: Source, move: str, stores: dict[int, int], name: str) -> None:
        self._db = db
        self._source = source
        self._move = move
        self._stores = stores
        self._name = name
        self._numbers: dict[int, int] = {}
        # A moved batch must be found by its old name alone: nobody gives ids with this epoch.
        self._epoch = secrets.randbits(LOCAL_BITS - 1) + 1
        self._shift = 0.0
        self._counts: dict[str, int] = {}

    def run(self) -> Counts:
        if (before := _begin(self._db, self._move, self._source.origin)) is not None:
            return before
        _check_processes(self._db)
        # A program that would not know the ids is refused from now on.
        self._db.execute("UPDATE jobs_backup.version SET oldest = greatest(oldest, %s)", (KNOWS_MOVES,))
        self._shift = float(one(self._db, f"SELECT {NOW}")[0]) - self._source.now()
        segment = last_segment(self._db)
        for batches in self._source.batches():
            self._add_batches(batches, segment)
        self._add_marks()
        self._add_uploads()
        self._add_quarantine()
        self._add_positions(self._source.positions())
        self._add_stores()
        # Last, since others that count wait for these rows.
        each(
            self._db,
            _ADD_TOTAL,
            [
                (one.batches, one.events, one.raw_bytes, one.size, one.stored_at, one.kind, one.state)
                for one in self._source.totals()
            ],
        )
        counts = Counts(**self._counts)
        if counts != (expected := self._source.count()):
            raise SpoolError(f"{counts} arrived, and {expected} were in {self._source.name}", hint="report this: it is a defect")
        self._db.execute(
            "UPDATE jobs_backup.moves SET known_since = %s, lost_until = %s, counts = %s WHERE id = %s",
            (*self._source.knowledge(), msgspec.json.encode(counts).decode(), self._move),
        )
        return counts

    def _count(self, name: str, more: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + more

    def _add_batches(self, batches: Sequence[MovedBatch], segment: int) -> None:
        batches = [batch for batch in batches if batch.state != "open"]  # they are empty
        query = "SELECT nextval('jobs_backup.batch_numbers') FROM generate_series(1, %s)"
        numbers = dict(
            zip((batch.id for batch in batches), (row[0] for row in self._db.execute(query, (len(batches),))), strict=True)
        )
        self._numbers.update(numbers)
        named = each(
            self._db,
            "INSERT INTO jobs_backup.moved_batches VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            [(batch.epoch, batch.id, numbers[batch.id]) for batch in batches],
        )
        if named != len(batches):
            raise SpoolError(
                f"{self._name} has batches of {self._source.name} already, from another copy of it",
                hint="do not move this copy: what it holds was moved before, and is uploaded from there",
            )
        for batch in batches:
            if batch.state == "sealed":
                with Importer(self._db, segment) as importer:
                    for chunk, data in self._source.chunks(batch):
                        importer.add(chunk, data, batch=numbers[batch.id])
                self._count("waiting_batches", 1)
                self._count("waiting_events", batch.events)
                self._count("waiting_bytes", batch.size or 0)
            elif batch.state == "stored":
                self._count("stored_objects", 1)
                self._count("stored_events", batch.events)
            else:
                self._count("other_batches", 1)
        each(self._db, _INSERT_BATCH, [self._row(batch, numbers[batch.id], segment) for batch in batches])

    def _row(self, batch: MovedBatch, number: int, segment: int) -> tuple[Any, ...]:
        return (
            *(
                number,
                self._epoch,
                batch.opened_at + self._shift,
                batch.kind,
                encoded(batch.workspace_id),
                encoded(batch.source_id),
            ),
            *(batch.state, self._stores[batch.store], encoded(batch.prefix), encoded(batch.instance_id), batch.compression),
            *(batch.wrappers, self._move, segment if batch.blobs else 0, batch.jobs, batch.delivered, batch.settled, batch.events),
            *(batch.raw_bytes, batch.first_at, batch.last_at, batch.size, batch.crc32c, batch.uuid),
            *(None if batch.key is None else encoded(batch.key), batch.made, batch.is_doubted),
            *(None if batch.stored_at is None else batch.stored_at + self._shift, batch.claims, batch.failures),
            *(batch.retry_at + self._shift if batch.retry_at else 0.0, writable(batch.error), writable(batch.hint)),
        )

    def _add_marks(self) -> None:
        marks = (
            (segment_in(self._numbers[batch_of(segment)], segment), delivered, settled)
            for segment, delivered, settled in self._source.marks()
            if batch_of(segment) in self._numbers
        )
        for rows in _pages(marks):
            each(self._db, "INSERT INTO jobs_backup.acknowledged VALUES (%s, %s, %s)", rows)
        settling = (
            (self._numbers[batch], self._job(job))
            for batch, job in self._source.settling()
            if batch in self._numbers and job >> INDEX_BITS in self._numbers
        )
        for rows in _pages(settling):
            each(self._db, "INSERT INTO jobs_backup.settling VALUES (%s, %s)", rows)

    def _add_uploads(self) -> None:
        for upload in self._source.uploads():
            (id_,) = one(
                self._db,
                "INSERT INTO jobs_backup.uploads (batch, store, upload, part_size, abandoned, failures, error, hint)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING id",
                (
                    *(self._numbers[upload.batch], self._stores[upload.store], upload.upload, upload.part_size),
                    *(upload.is_abandoned, upload.failures, writable(upload.error), writable(upload.hint)),
                ),
            )
            parts = [(id_, number, part) for number, part in upload.parts]
            each(self._db, "INSERT INTO jobs_backup.parts VALUES (%s, %s, %s)", parts)
            self._count("uploads", 1)

    def _add_quarantine(self) -> None:
        for damage, data in self._source.damages():
            batch = self._numbers.get(damage.batch, 0)
            report(self._db, damage._replace(batch=batch, job=self._job(damage.job) if damage.job else 0), data)
            self._count("quarantined", 1)

    def _add_positions(self, positions: Iterable[InputPosition]) -> None:
        for rows in _pages(positions):
            each(self._db, _SET_POSITION, rows)
            self._count("inputs", len(rows))

    def _add_stores(self) -> None:
        each(
            self._db,
            _ADD_FORGOTTEN,
            [
                (self._stores[row.store], row.kind, encoded(row.workspace_id), encoded(row.source_id), *row[4:])
                for row in self._source.forgotten()
            ],
        )
        # What a store has accepted is known of it; the next attempt shows whether it still refuses.
        proven = [(self._stores[store.id],) for store in self._source.stores() if store.standing == "proven"]
        each(self._db, "UPDATE jobs_backup.stores SET standing = 'proven' WHERE id = %s AND standing != 'proven'", proven)

    def _job(self, job: int) -> int:
        """A job's id within this spool; 0 if its batch is forgotten."""
        batch = self._numbers.get(job >> INDEX_BITS)
        return 0 if batch is None else batch << INDEX_BITS | job_index(job)


def _pages(rows: Iterable[Any]) -> Iterable[list[Any]]:
    left = iter(rows)
    while page := list(islice(left, _PAGE)):
        yield page
