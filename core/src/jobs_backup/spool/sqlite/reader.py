"""Queries of the catalog for status and replay only."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from jobs_backup.model import Kind, Stream
from jobs_backup.spool.interface import StoredObject, StreamObjects, Total
from jobs_backup.spool.sqlite.database import Database, reads


class SealedStream(NamedTuple):
    """What is sealed but not uploaded, of one stream for one store."""

    store: int
    stream: Stream
    batches: int
    events: int
    size: int
    opened_at: float
    claimed: int


class StoreRow(NamedTuple):
    """A store, with the number of its multipart uploads: in progress, and to be aborted."""

    id: int
    location: str
    error: str
    hint: str
    paused_until: float
    uploads: int
    aborts: int
    abort_error: str


class SessionRow(NamedTuple):
    """A session: see the table `sessions`."""

    id: str
    pid: int
    archives: bool
    began_at: float
    error: str


_SELECT_OBJECT: Final = (
    "SELECT b.id, kind, workspace_id, source_id, key, first_at, last_at, size, crc32c, events, coalesce(stored_at, 0)"
    " FROM batches b JOIN stores d ON d.id=b.store"
)


def _stored_object(row: Sequence[Any]) -> StoredObject:
    return StoredObject(row[0], Stream(Kind(row[1]), row[2], row[3]), *row[4:])


class CatalogReader:
    """Read the catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @reads
    def stored(self, db: sqlite3.Connection, location: str, kind: Kind, after: int, limit: int) -> list[StoredObject]:
        """Objects in a bucket, by batch number, from after `after`."""
        rows = db.execute(
            f"{_SELECT_OBJECT} WHERE b.id>? AND state='stored' AND kind=? AND location=? ORDER BY b.id LIMIT ?",
            (after, kind, location, limit),
        )
        return [_stored_object(row) for row in rows]

    @reads
    def written(self, db: sqlite3.Connection, location: str, kind: Kind, key: str) -> StoredObject | None:
        """The object under a key of a bucket, including one that was deleted since."""
        row = db.execute(
            f"{_SELECT_OBJECT} WHERE key=? AND state IN ('stored', 'deleted') AND kind=? AND location=?", (key, kind, location)
        ).fetchone()
        return _stored_object(row) if row else None

    @reads
    def stored_elsewhere(self, db: sqlite3.Connection, location: str, kind: Kind) -> list[StreamObjects]:
        """Objects in other buckets."""
        rows = db.execute(
            "SELECT workspace_id, source_id, count(*), sum(events) FROM batches b JOIN stores d ON d.id=b.store"
            " WHERE state='stored' AND kind=? AND location!=? GROUP BY workspace_id, source_id",
            (kind, location),
        )
        return [StreamObjects(*row) for row in rows]

    @reads
    def forgotten(self, db: sqlite3.Connection, location: str, kind: Kind, begin: int, end: int) -> list[StreamObjects]:
        """Objects in a bucket that may have events in this time range, but are no longer in the catalog."""
        rows = db.execute(
            "SELECT workspace_id, source_id, objects, events FROM forgotten f JOIN stores d ON d.id=f.store"
            " WHERE location=? AND kind=? AND last_at>=? AND first_at<?",
            (location, kind, begin, end),
        )
        return [StreamObjects(*row) for row in rows]

    @reads
    def knowledge(self, db: sqlite3.Connection) -> tuple[int, int]:
        """When the catalog was made, and until when it may have gaps because an earlier one was lost; 0 if none was."""
        noted = dict(db.execute("SELECT name, value FROM counters WHERE name!='batch'").fetchall())
        return noted["known_since"], noted["lost_until"]

    @reads
    def streams(self, db: sqlite3.Connection) -> list[tuple[str, str]]:
        """Workspace and source of everything ever recorded."""
        return db.execute(
            "SELECT workspace_id, source_id FROM batches UNION SELECT workspace_id, source_id FROM forgotten"
        ).fetchall()

    @reads
    def sealed_streams(self, db: sqlite3.Connection) -> list[SealedStream]:
        """What is sealed but not uploaded, for each store and stream."""
        rows = db.execute(
            "SELECT store, kind, workspace_id, source_id, count(*), sum(events), sum(size), min(opened_at),"
            " sum(claimed_by IS NOT NULL) FROM batches WHERE state='sealed'"
            " GROUP BY store, kind, workspace_id, source_id"
        )
        return [SealedStream(row[0], Stream(Kind(row[1]), row[2], row[3]), *row[4:]) for row in rows]

    @reads
    def stores(self, db: sqlite3.Connection) -> list[StoreRow]:
        """All stores ever used. The error is the store's, or else the one of its latest failing batch."""
        rows = db.execute(
            "SELECT d.id, d.location, CASE WHEN d.error!='' THEN d.error ELSE coalesce(b.error, '') END,"
            " CASE WHEN d.error!='' THEN d.hint ELSE coalesce(b.hint, '') END, d.paused_until,"
            " (SELECT count(*) FROM uploads u WHERE u.store=d.id AND NOT u.abandoned),"
            " (SELECT count(*) FROM uploads u WHERE u.store=d.id AND u.abandoned),"
            " (SELECT coalesce(max(u.error), '') FROM uploads u WHERE u.store=d.id AND u.abandoned)"
            " FROM stores d LEFT JOIN batches b ON b.id=(SELECT id FROM batches e WHERE e.store=d.id"
            " AND e.state='sealed' AND e.error!='' ORDER BY e.retry_at DESC LIMIT 1) ORDER BY d.id"
        )
        return [StoreRow(*row) for row in rows]

    @reads
    def totals(self, db: sqlite3.Connection) -> list[Total]:
        """Totals of all processes since the spool was made, with every state of every kind."""
        rows = db.execute("SELECT kind, state, batches, events, raw_bytes, size, stored_at FROM totals")
        return [Total(*row) for row in rows]

    @reads
    def sessions(self, db: sqlite3.Connection) -> list[SessionRow]:
        """All sessions that have not ended."""
        rows = db.execute("SELECT id, pid, archives, began_at, error FROM sessions ORDER BY began_at")
        return [SessionRow(row[0], row[1], bool(row[2]), row[3], row[4]) for row in rows]
