"""Take the place of a session whose lease is over; and what is damaged goes into quarantine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobs_backup.errors import SpoolCorrupt, SpoolError
from jobs_backup.model import Batch
from jobs_backup.spool.batches import BatchRow
from jobs_backup.spool.chunks import ChunkKind
from jobs_backup.spool.ids import INDEX_BITS
from jobs_backup.spool.interface import Damage
from jobs_backup.spool.open_batch import OpenBatch
from jobs_backup.spool.postgresql.catalog import mark_empty, open_rows, report, reseal, seal, segments_of
from jobs_backup.spool.postgresql.chunks import Changes, Chunks
from jobs_backup.spool.postgresql.connection import Database
from jobs_backup.spool.postgresql.rows import ROW, row_of
from jobs_backup.spool.postgresql.sessions import IS_OVER, end
from jobs_backup.util.logs import logger_of, printable

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

log: Final = logger_of(__name__)


def take_over(database: Database, session: str, *, is_own: bool = False) -> bool:
    """Seal what a session has open, free what it was sending, and end it, in one transaction. False if it is alive, or has ended.

    `is_own`: it is this process's, whatever its lease.
    """
    is_over = "true" if is_own else IS_OVER

    def work(db: Db) -> bool:
        query = f"SELECT 1 FROM jobs_backup.sessions WHERE id = %s AND {is_over} FOR UPDATE SKIP LOCKED"
        if db.execute(query, (session,)).fetchone() is None:
            return False
        rows = open_rows(db, session)
        segments = segments_of(rows)
        empty: list[int] = []
        for row, _ in rows:
            batch = _restored(db, row, Chunks(db, segments, database.name))
            if not batch.fill.events:
                empty.append(row.id)
                continue
            changes = Changes(db, segments, database.name)
            batch.compact(changes)
            changes.write()
            seal(db, [batch.seal()])
        mark_empty(db, empty)
        end(db, session)
        return True

    return database.write(work, is_idempotent=True)


def quarantine_batch(database: Database, batch: Batch, session: str, *, whole: bool) -> None:
    """Put what is damaged of a sealed batch into quarantine, and seal the rest anew: other bytes, so another key and uuid.

    `whole`: an earlier attempt may have stored it under its key, so that no part of it may be sent under another one. A batch that
    `session` no longer claims stays as it is.

    Raises:
        SpoolError: it is not damaged. Nothing has changed.
    """

    def work(db: Db) -> None:
        found = db.execute(
            f"{ROW} WHERE id = %s AND state = 'sealed' AND claimed_by = %s FOR UPDATE", (batch.id, session)
        ).fetchone()
        if found is None:
            return
        row, segment = row_of(found)
        chunks = Chunks(db, {row.id: segment}, database.name)
        size = sum(len(chunks.examine(one.job)[0]) for one in chunks.chunks(row.id))
        if _set_chunks_aside(db, row, chunks, whole=whole) == 0 and not whole and size == batch.size:
            raise SpoolError(
                f"batch {batch.id} could not be read, and can be now: it is retried", hint="look at the server's disk and log"
            )
        rest = OpenBatch.restored(row, chunks)
        missing = batch.events - rest.fill.end
        if missing > 0:
            report(db, Damage(row.id, row.stream, 0, missing, "", f"{missing} of its {batch.events} events are missing"))
        reseal(db, batch.id, rest.seal() if rest.fill.events else None)

    database.write(work, is_idempotent=True)


def _restored(db: Db, row: BatchRow, chunks: Chunks) -> OpenBatch:
    """What is good of an open batch; the rest goes into quarantine."""
    try:
        return OpenBatch.restored(row, chunks)
    except SpoolCorrupt:
        _set_chunks_aside(db, row, chunks, whole=False)
        return OpenBatch.restored(row, chunks)


def _set_chunks_aside(db: Db, row: BatchRow, chunks: Chunks, *, whole: bool) -> int:
    """Returns how many events are damaged or missing."""
    count = end_ = 0
    for chunk in chunks.chunks(row.id):
        if chunk.start > end_:
            missing = chunk.start - end_
            report(db, Damage(row.id, row.stream, row.id << INDEX_BITS | end_, missing, "", f"{missing} events are missing"))
            chunks.lose(row.id << INDEX_BITS | end_, missing)
            count += missing
        end_ = chunk.start + chunk.events
        if chunk.form is ChunkKind.LOST:
            continue
        data, is_good = chunks.examine(chunk.job)
        if is_good and not whole:
            continue
        why = "its object may be in the bucket already" if is_good else "these are not the bytes that were written"
        log.error("%d events of source %s are in quarantine: %s", chunk.events, printable(row.stream.source_id), why)
        report(db, Damage(row.id, row.stream, chunk.job, chunk.events, "", why), data)
        chunks.lose(chunk.job, chunk.events)
        count += chunk.events
    return count
