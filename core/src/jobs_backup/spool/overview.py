"""What is going on in the catalog, for whoever looks: queries that nothing else needs."""

from __future__ import annotations

from typing import NamedTuple

from jobs_backup.model import Kind, Stream
from jobs_backup.spool.database import Database


class SealedStream(NamedTuple):
    """What is sealed of a stream for a destination, and not stored."""

    destination: int
    stream: Stream
    batches: int
    events: int
    size: int
    first_batch: int
    claimed: int


class DestinationRow(NamedTuple):
    """A destination, with its multipart uploads: those under way, those to be aborted."""

    id: int
    location: str
    error: str
    hint: str
    paused_until: float
    uploads: int
    aborts: int
    abort_error: str


class SessionRow(NamedTuple):
    """See the table."""

    id: str
    pid: int
    archives: bool
    began_at: float


class StoredObject(NamedTuple):
    """A batch whose object stands in the bucket."""

    id: int
    stream: Stream
    key: str
    first_at: int
    last_at: int
    size: int
    crc32c: int
    events: int


class Overview:
    """Reads the catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def stored(self, location: str, kind: Kind, after: int, limit: int) -> list[StoredObject]:
        """What stands in a bucket, by batch numbers, from behind `after` on."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT id, kind, workspace_id, source_id, key, first_at, last_at, size, crc32c, events FROM batches WHERE id>?"
                " AND state='stored' AND kind=? AND destination=(SELECT id FROM destinations WHERE location=?) ORDER BY id LIMIT ?",
                (after, kind, location, limit),
            )
            return [StoredObject(row[0], Stream(Kind(row[1]), row[2], row[3]), *row[4:]) for row in rows]

    def sealed_streams(self) -> list[SealedStream]:
        """What is sealed and not stored, for each destination and stream."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT destination, kind, workspace_id, source_id, count(*), sum(events), sum(size), min(id),"
                " sum(claimed_by IS NOT NULL) FROM batches WHERE state='sealed'"
                " GROUP BY destination, kind, workspace_id, source_id"
            )
            return [SealedStream(row[0], Stream(Kind(row[1]), row[2], row[3]), *row[4:]) for row in rows]

    def destinations(self) -> list[DestinationRow]:
        """Every destination there ever was. The error is the last one's of those that delay something."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT d.id, d.location, CASE WHEN d.error!='' THEN d.error ELSE coalesce(b.error, '') END,"
                " CASE WHEN d.error!='' THEN d.hint ELSE coalesce(b.hint, '') END, d.paused_until,"
                " (SELECT count(*) FROM uploads u WHERE u.destination=d.id AND NOT u.abandoned),"
                " (SELECT count(*) FROM uploads u WHERE u.destination=d.id AND u.abandoned),"
                " (SELECT coalesce(max(u.error), '') FROM uploads u WHERE u.destination=d.id AND u.abandoned)"
                " FROM destinations d LEFT JOIN batches b ON b.id=(SELECT id FROM batches e WHERE e.destination=d.id"
                " AND e.state='sealed' AND e.error!='' ORDER BY e.retry_at DESC LIMIT 1) ORDER BY d.id"
            )
            return [DestinationRow(*row) for row in rows]

    def sessions(self) -> list[SessionRow]:
        """All sessions that were not ended."""
        with self._database.reading() as db:
            rows = db.execute("SELECT id, pid, archives, began_at FROM sessions ORDER BY began_at")
            return [SessionRow(row[0], row[1], bool(row[2]), row[3]) for row in rows]
