"""When a segment is left for a new one, emptied, and dropped."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from jobs_backup.errors import SpoolError
from jobs_backup.spool.postgresql.chunks import table
from jobs_backup.spool.postgresql.connection import NOW, Database, one, sql
from jobs_backup.util.logs import logger_of

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

log: Final = logger_of(__name__)

SEGMENT_BYTES: Final = 512 << 20
SEGMENT_SECONDS: Final = 600.0
OLD_SECONDS: Final = 3600.0
"""Age after which the rest of a segment moves to the last one: one batch that the store refuses must not keep a whole segment."""
_SMALL_SHARE: Final = 8
"""The rest moves only if it is at most this part (1/n) of the segment: in an outage of the store, nothing moves."""
_LOCK_TIMEOUT: Final = "2s"
"""A reader such as `pg_dump` blocks the drop, and a drop that waits would block everybody else."""


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

    def empty_old(self) -> int:
        """Move batches out of an old segment in which little else is. Returns how many."""
        query = (
            "SELECT s.id FROM jobs_backup.segments s JOIN jobs_backup.batches b ON b.segment = s.id"
            " AND b.state IN ('open', 'sealed')"
            f" WHERE s.id < (SELECT max(id) FROM jobs_backup.segments) AND s.opened_at < {NOW} - %s GROUP BY s.id"
            " HAVING bool_and(b.state = 'sealed') AND sum(b.size) * %s <= jobs_backup.segment_bytes(s.id) ORDER BY s.id LIMIT 1"
        )
        row = self._database.read(lambda db: db.execute(query, (OLD_SECONDS, _SMALL_SHARE)).fetchone())
        if row is None:
            return 0
        batches = self._database.read(
            lambda db: [
                found[0]
                for found in db.execute(
                    "SELECT id FROM jobs_backup.batches WHERE segment = %s AND state = 'sealed' AND claimed_by IS NULL ORDER BY id",
                    row,
                )
            ]
        )
        return sum(self._move(batch, row[0]) for batch in batches)

    def _move(self, batch: int, segment: int) -> bool:
        """Move one batch, unless another process sends it now. Its old rows are dropped with their table."""

        def move(db: Db) -> bool:
            mine = (
                "SELECT 1 FROM jobs_backup.batches WHERE id = %s AND segment = %s AND state = 'sealed' AND claimed_by IS NULL"
                " FOR UPDATE SKIP LOCKED"
            )
            if db.execute(mine, (batch, segment)).fetchone() is None:
                return False
            last = last_segment(db)
            db.execute(sql(f"INSERT INTO {table(last)} SELECT * FROM {table(segment)} WHERE batch = %s"), (batch,))
            db.execute("UPDATE jobs_backup.batches SET segment = %s WHERE id = %s", (last, batch))
            return True

        return self._database.write(move, is_idempotent=True)

    def drop_sent(self) -> int:
        """Drop the segments in which nothing waits. Returns how many."""
        drained = self._database.read(
            lambda db: [
                row[0]
                for row in db.execute(
                    "SELECT id FROM jobs_backup.segments s WHERE id < (SELECT max(id) FROM jobs_backup.segments) AND NOT EXISTS"
                    " (SELECT 1 FROM jobs_backup.batches b WHERE b.segment = s.id AND b.state IN ('open', 'sealed')) ORDER BY id"
                )
            ]
        )
        # What keeps one from being dropped, as `pg_dump` does, mostly keeps the others, too.
        return sum(1 for _ in itertools.takewhile(self._drop, drained))

    def _drop(self, segment: int) -> bool:
        def drop(db: Db) -> bool:
            db.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            return bool(one(db, "SELECT jobs_backup.drop_segment(%s)", (segment,))[0])

        try:
            return self._database.write(drop, is_idempotent=True)
        except SpoolError as error:  # tried again at the next look
            log.debug("segment %d is not dropped yet: %s", segment, error.one_line())
            return False


def last_segment(db: Db) -> int:
    """The segment for new batches, held until the transaction ends, so that it is not dropped before they are seen in it."""
    query = "SELECT id FROM jobs_backup.segments WHERE id = (SELECT max(id) FROM jobs_backup.segments) FOR KEY SHARE"
    return int(one(db, query)[0])
