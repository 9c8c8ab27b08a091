"""What the spool remembers of objects, for those who read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from jobs_backup.model import Kind
from jobs_backup.spool.interface import StoredObject, StreamObjects
from jobs_backup.spool.postgresql.connection import Database, one, sql
from jobs_backup.spool.postgresql.rows import decoded, encoded, stream_of

_SELECT: Final = (
    "SELECT b.id, kind, workspace_id, source_id, key, first_at, last_at, size, crc32c, events, coalesce(stored_at, 0)"
    " FROM jobs_backup.batches b JOIN jobs_backup.stores d ON d.id = b.store"
)


class CatalogReader:
    """Reads the tables `batches`, `stores`, `forgotten` and `forgotten_streams`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def stored(self, location: str, kind: Kind, after: int, limit: int) -> list[StoredObject]:
        """What is in a bucket, by batch numbers, from behind `after` on."""
        query = f"{_SELECT} WHERE b.id > %s AND state = 'stored' AND kind = %s AND location = %s ORDER BY b.id LIMIT %s"
        values = (after, str(kind), encoded(location), limit)
        return self._database.read(lambda db: [_object(row) for row in db.execute(sql(query), values)])

    def written(self, location: str, kind: Kind, key: str) -> StoredObject | None:
        """What is in a bucket under a key, or was there until it was deleted."""
        query = f"{_SELECT} WHERE key = %s AND state IN ('stored', 'deleted') AND kind = %s AND location = %s"
        values = (encoded(key), str(kind), encoded(location))
        row = self._database.read(lambda db: db.execute(query, values).fetchone())
        return _object(row) if row else None

    def stored_elsewhere(self, location: str, kind: Kind) -> list[StreamObjects]:
        """What is in other buckets."""
        query = (
            "SELECT workspace_id, source_id, count(*), sum(events)::bigint FROM jobs_backup.batches b JOIN jobs_backup.stores d"
            " ON d.id = b.store WHERE state = 'stored' AND kind = %s AND location != %s GROUP BY workspace_id, source_id"
        )
        return self._streams(query, (str(kind), encoded(location)))

    def forgotten(self, location: str, kind: Kind, begin: int, end: int) -> list[StreamObjects]:
        """What is in a bucket, may have events between these times, and was forgotten."""
        query = (
            "SELECT workspace_id, source_id, objects, events FROM (TABLE jobs_backup.forgotten UNION ALL SELECT store, kind,"
            " workspace_id, source_id, objects, events, first_at, last_at FROM jobs_backup.forgotten_streams) f"
            " JOIN jobs_backup.stores d"
            " ON d.id = f.store WHERE location = %s AND kind = %s AND last_at >= %s AND first_at < %s"
        )
        return self._streams(query, (encoded(location), str(kind), begin, end))

    def knowledge(self) -> tuple[int, int]:
        """Since when there are records, and until when those of a moved spool may have gaps; 0 if none has.

        The tables themselves are not lost without everything else.
        """
        query = (
            "SELECT least(known_since, (SELECT min(known_since) FROM jobs_backup.moves)),"
            " (SELECT coalesce(max(lost_until), 0) FROM jobs_backup.moves) FROM jobs_backup.spool"
        )
        since, lost_until = self._database.read(lambda db: one(db, query))
        return int(since), int(lost_until)

    def streams(self) -> list[tuple[str, str]]:
        """Workspace and source of everything ever recorded."""
        columns = "SELECT workspace_id, source_id FROM jobs_backup."
        query = f"{columns}batches UNION {columns}forgotten UNION {columns}forgotten_streams"
        return self._database.read(lambda db: [(decoded(row[0]), decoded(row[1])) for row in db.execute(query)])

    def _streams(self, query: str, values: Sequence[Any]) -> list[StreamObjects]:
        return self._database.read(
            lambda db: [StreamObjects(decoded(row[0]), decoded(row[1]), row[2], row[3]) for row in db.execute(sql(query), values)]
        )


def _object(row: Sequence[Any]) -> StoredObject:
    return StoredObject(row[0], stream_of(*row[1:4]), decoded(row[4]), *row[5:])
