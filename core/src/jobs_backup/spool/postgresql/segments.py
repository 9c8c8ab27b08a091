"""When a segment is left for a new one, and dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobs_backup.errors import SpoolError
from jobs_backup.spool.postgresql.connection import NOW, Database, one
from jobs_backup.util.logs import logger_of

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

log: Final = logger_of(__name__)

SEGMENT_BYTES: Final = 512 << 20
SEGMENT_SECONDS: Final = 600.0
_LOCK_TIMEOUT: Final = "2s"
"""Whoever reads a table, as `pg_dump` does, keeps it from being dropped, and others would queue up behind who waits to drop it."""


class Segments:
    """The segments of a spool."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rotate(self) -> None:
        """Add a segment, if the last one is large, or old and not empty."""

        def look(db: Db) -> int | None:
            row = db.execute(
                f"SELECT id, opened_at < {NOW} - %s FROM jobs_backup.segments ORDER BY id DESC LIMIT 1", (SEGMENT_SECONDS,)
            ).fetchone()
            if row is None:
                return 0
            last, is_old = row
            is_large = one(db, "SELECT jobs_backup.segment_bytes(%s)", (last,))[0] >= SEGMENT_BYTES
            is_used = is_old and one(db, "SELECT EXISTS (SELECT 1 FROM jobs_backup.batches WHERE segment = %s)", (last,))[0]
            return last if is_large or is_used else None

        if (last := self._database.read(look)) is not None:
            self._database.write(lambda db: db.execute("SELECT jobs_backup.add_segment(%s)", (last,)), is_idempotent=True)

    def drop_sent(self) -> int:
        """Drop the segments in which nothing waits any more. Returns how many."""
        drained = self._database.read(
            lambda db: [
                row[0]
                for row in db.execute(
                    "SELECT id FROM jobs_backup.segments s WHERE id < (SELECT max(id) FROM jobs_backup.segments) AND NOT EXISTS"
                    " (SELECT 1 FROM jobs_backup.batches b WHERE b.segment = s.id AND b.state IN ('open', 'sealed')) ORDER BY id"
                )
            ]
        )
        return sum(self._drop(segment) for segment in drained)

    def _drop(self, segment: int) -> bool:
        def drop(db: Db) -> bool:
            db.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            return bool(one(db, "SELECT jobs_backup.drop_segment(%s)", (segment,))[0])

        try:
            return self._database.write(drop, is_idempotent=True)
        except SpoolError as error:  # tried again at the next look
            log.debug("segment %d is not dropped yet: %s", segment, error.one_line())
            return False
