"""The status of a spool in PostgreSQL, read beside the processes that use it, without becoming one of them."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from jobs_backup.model import Stream
from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.spool.interface import Total
from jobs_backup.spool.postgresql.catalog import Catalog
from jobs_backup.spool.postgresql.connection import NOW, Database, one
from jobs_backup.spool.postgresql.deliveries import Deliveries
from jobs_backup.spool.postgresql.migrations import check_version
from jobs_backup.spool.postgresql.reader import CatalogReader
from jobs_backup.spool.postgresql.rows import decoded, stream_of
from jobs_backup.spool.postgresql.sessions import IS_OVER
from jobs_backup.spool.status import (
    DatabaseStatus,
    Limits,
    MemberStatus,
    ProcessStatus,
    QuarantineStatus,
    Status,
    StoreStatus,
    StreamStatus,
    UnreadableStatus,
    behind,
    rejected_files,
)

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

DEFAULT_MAX_BYTES: Final = 10 * 10**9
"""The quota, where none is set: nobody sees how full the server's disk is, and a full one stops everybody on that server."""


class _Session(NamedTuple):
    name: str
    host: str
    pid: int
    archives: bool
    seconds: float
    is_over: bool
    error: str
    lease: float


def read_status(place: DatabaseSpool, limits: Limits, rejects: Path | None) -> Status:
    """See `engines.read_status`."""
    with look(place) as database:
        return read(database, limits, rejects)


@contextmanager
def open_reader(place: DatabaseSpool) -> Generator[CatalogReader]:
    """See `engines.open_reader`."""
    with look(place) as database:
        yield CatalogReader(database)


@contextmanager
def look(place: DatabaseSpool) -> Generator[Database]:
    """The database of a spool that is there, for reading.

    Raises:
        SpoolError: there is none, or it cannot be read.
    """
    database = Database(place, connections=1)
    try:
        check_version(database)
        yield database
    finally:
        database.close()


def read(database: Database, limits: Limits, rejects: Path | None, member: MemberStatus | None = None) -> Status:
    """The status, through these connections. `member` is the process that reports."""
    streams = database.read(_streams)
    sessions = database.read(_sessions)
    stores = database.read(_stores)
    now = float(database.read(lambda db: one(db, f"SELECT {NOW}")[0]))
    deletes = {one.location: one for one in Deliveries(database).waiting()}
    for number, store in stores.items():
        store.streams = [stream for (of, _), stream in streams.items() if of == number]
        if (waiting := deletes.get(store.location)) is not None:
            store.deletes, store.delete_error, store.delete_hint = waiting.objects, waiting.error, waiting.hint
            store.deletes_paused = max(0.0, waiting.paused_until - now)
    quarantine = Catalog(database).damages()
    unreadable = {f"session {one.name} on {one.host}": one.error for one in sessions if one.is_over and one.error}
    oldest = max((stream.oldest for stream in streams.values()), default=0.0)
    size = sum(stream.bytes for stream in streams.values())
    max_bytes = DEFAULT_MAX_BYTES if limits.max_bytes is None else limits.max_bytes
    return Status(
        directory=database.name,
        behind=behind([*stores.values()], unreadable, bool(quarantine), oldest, limits),
        full=f"{size:,} bytes wait, and JOBS_BACKUP_SPOOL_MAX_BYTES is {max_bytes:,}" if size >= max_bytes else "",
        events=sum(stream.events + stream.open_events for stream in streams.values()),
        bytes=size,
        free=None,
        oldest=oldest,
        stores=[one for one in stores.values() if one.streams or one.uploads or one.aborts or one.deletes or one.error],
        processes=[
            ProcessStatus(
                pid=one.pid,
                alive=not one.is_over,
                sends=one.archives,
                seconds=max(0.0, one.seconds),
                host=one.host,
                lease=0.0 if one.is_over else max(0.0, one.lease),
            )
            for one in sessions
        ],
        quarantine=[
            QuarantineStatus(
                kind=damage.stream.kind,
                workspace_id=damage.stream.workspace_id,
                source_id=damage.stream.source_id,
                events=damage.events,
                file=damage.file,
                error=damage.error,
            )
            for _, damage in quarantine
        ],
        unreadable=[UnreadableStatus(file=file, error=error) for file, error in unreadable.items()],
        rejected=[] if rejects is None else rejected_files(rejects),
        database=database.read(lambda db: _database(db, member)),
    )


def _streams(db: Db) -> dict[tuple[int, Stream], StreamStatus]:
    found: dict[tuple[int, Stream], StreamStatus] = {}

    def of(store: int, stream: Stream, age: float) -> StreamStatus:
        status = found.setdefault(
            (store, stream), StreamStatus(kind=stream.kind, workspace_id=stream.workspace_id, source_id=stream.source_id)
        )
        status.oldest = max(status.oldest, age)
        return status

    sealed = (
        f"SELECT store, kind, workspace_id, source_id, {NOW} - min(opened_at), sum(events)::bigint, count(*), sum(size)::bigint,"
        " count(claimed_by) FROM jobs_backup.batches WHERE state = 'sealed' GROUP BY store, kind, workspace_id, source_id"
    )
    for store, kind, workspace, source, age, events, objects, size, claimed in db.execute(sealed):
        status = of(store, stream_of(kind, workspace, source), age)
        status.events, status.objects, status.bytes, status.sending = events, objects, size, claimed
    still_open = (
        f"SELECT store, kind, workspace_id, source_id, {NOW} - min(opened_at), sum(o.events)::bigint, sum(o.size)::bigint"
        " FROM jobs_backup.open_events() o JOIN jobs_backup.batches b ON b.id = o.batch AND b.state = 'open'"
        " GROUP BY store, kind, workspace_id, source_id"
    )
    in_outbox = (
        f"SELECT r.store, 'raw', o.workspace_id, o.source_id, {NOW} - min(o.recorded_at), sum(o.events)::bigint,"
        " sum(o.size)::bigint FROM jobs_backup.outbox o JOIN jobs_backup.batches r ON r.id = o.batch"
        " GROUP BY r.store, o.workspace_id, o.source_id"
    )
    for store, kind, workspace, source, age, events, size in itertools.chain(db.execute(still_open), db.execute(in_outbox)):
        status = of(store, stream_of(kind, workspace, source), age)
        status.open_events += events
        status.bytes += size
    return found


def _sessions(db: Db) -> list[_Session]:
    query = (
        f"SELECT id, host, pid, archives, {NOW} - began_at, {IS_OVER}, error, lease_until - {NOW} FROM jobs_backup.sessions"
        " ORDER BY began_at"
    )
    return [_Session(*row) for row in db.execute(query)]


def _database(db: Db, member: MemberStatus | None) -> DatabaseStatus:
    """What is on the server. A user without any privilege on other sessions or on the bytes may see it."""
    segments, size, oldest = one(
        db,
        "SELECT count(*), coalesce(sum(pg_total_relation_size(to_regclass('jobs_backup.chunks_' || id))), 0)::bigint,"
        f" coalesce({NOW} - min(opened_at) FILTER (WHERE id < (SELECT max(id) FROM jobs_backup.segments)), 0)"
        " FROM jobs_backup.segments",
    )
    # Walsenders belong to no database. Snapshots in other databases keep nothing in this one.
    (xmin_age,) = one(
        db,
        "SELECT coalesce(max(age), 0)::bigint FROM ("
        " SELECT greatest(age(backend_xmin), age(backend_xid)) FROM pg_stat_activity"
        " WHERE pid != pg_backend_pid() AND (datname = current_database() OR datname IS NULL)"
        " UNION ALL SELECT age(xmin) FROM pg_replication_slots"
        " UNION ALL SELECT age(transaction) FROM pg_prepared_xacts WHERE database = current_database()) held (age)",
    )
    return DatabaseStatus(segments=segments, segment_bytes=size, oldest_segment=max(0.0, oldest), xmin_age=xmin_age, member=member)


def _stores(db: Db) -> dict[int, StoreStatus]:
    """All stores ever used. The error is the store's, or else the one of its latest failing batch."""
    query = (
        "SELECT d.id, d.location, CASE WHEN d.error != '' THEN d.error ELSE coalesce(b.error, '') END,"
        f" CASE WHEN d.error != '' THEN d.hint ELSE coalesce(b.hint, '') END, greatest(0, d.paused_until - {NOW}),"
        " (SELECT count(*) FROM jobs_backup.uploads u WHERE u.store = d.id AND NOT u.abandoned),"
        " (SELECT count(*) FROM jobs_backup.uploads u WHERE u.store = d.id AND u.abandoned),"
        " (SELECT coalesce(max(u.error), '') FROM jobs_backup.uploads u WHERE u.store = d.id AND u.abandoned)"
        " FROM jobs_backup.stores d LEFT JOIN jobs_backup.batches b ON b.id = (SELECT id FROM jobs_backup.batches e"
        " WHERE e.store = d.id AND e.state = 'sealed' AND e.error != '' ORDER BY e.retry_at DESC LIMIT 1) ORDER BY d.id"
    )
    return {
        row[0]: StoreStatus(
            location=decoded(row[1]), streams=[], error=row[2], hint=row[3], paused=row[4], uploads=row[5], aborts=row[6],
            abort_error=row[7],
        )
        for row in db.execute(query)
    }  # fmt: skip


def totals(database: Database) -> list[Total]:
    """What has reached which state, since the spool was made."""
    query = (
        "SELECT kind, state, sum(batches)::bigint, sum(events)::bigint, sum(raw_bytes)::bigint, sum(size)::bigint, max(stored_at)"
        " FROM jobs_backup.totals GROUP BY kind, state"
    )
    return database.read(lambda db: [Total(*row) for row in db.execute(query)])
