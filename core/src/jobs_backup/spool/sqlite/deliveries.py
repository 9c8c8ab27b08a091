"""Deliveries: a bit for each delivered job, and the objects to delete because all their jobs were delivered."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Final, NamedTuple

from jobs_backup.errors import SpoolError
from jobs_backup.model import Kind, Stream
from jobs_backup.spool.acknowledger import Added
from jobs_backup.spool.ids import (
    INDEX_BITS,
    LOCAL_BITS,
    SEGMENT_BITS,
    JobSet,
    batch_of,
    first_index,
    local,
    local_segment,
    origin_of,
    origin_of_segment,
    segments_of,
)
from jobs_backup.spool.interface import DeleteAfter, DueObject, WaitingDeletes
from jobs_backup.spool.sqlite.clock import Clock
from jobs_backup.spool.sqlite.database import Database, FilesLost, reads, writes
from jobs_backup.spool.sqlite.uploads import MAX_DELAY, writable

EndOf = Callable[[int, str], int]
"""(batch, its blob file) -> the index of the next job of this open batch. Raises SpoolError."""
Ends = Callable[[], AbstractContextManager[EndOf]]
"""Opens blob files, to look up the ends of batches."""

# Which objects are to be deleted, now or later. The indexes' conditions must match the schema's text.
_OF: Final = "SELECT id, key, failures FROM batches WHERE store=? AND state = 'stored'"
_TO_DELETE: Final = {
    "delivered": f"{_OF} AND delivered >= jobs",
    "settled": f"{_OF} AND jobs <= delivered + settled",
    "never": f"{_OF} AND 0",
}
_DUE: Final = "AND claimed_by IS NULL AND (retry_at<=? OR retry_at>?)"


class Deliveries:
    """The tables `acknowledged` and `settling` of the catalog, and batches from uploaded to deleted. One transaction per method."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    @writes
    def add(self, db: sqlite3.Connection, jobs: JobSet, ends: Ends) -> Added:
        """Mark these jobs as delivered. A problem with some does not keep the others from being marked."""
        added = Added(JobSet(), JobSet())
        with ends() as end_of:
            for (epoch, batch), some in groupby(sorted(jobs.masks()), lambda one: origin_of_segment(one[0])):
                segments = list(some)
                try:
                    found = _find(db, epoch, batch, _end(*segments[-1]), end_of)
                except SpoolError as error:
                    added.error = error
                    for segment, mask in segments:
                        added.unreadable.add_mask(segment, mask)
                    continue
                known: list[tuple[int, int]] = []
                for segment, mask in segments:
                    given = mask & _mask_below((0 if found is None else found.end) - first_index(segment))
                    if given != mask:
                        added.unknown.add_mask(segment, mask & ~given)
                    if given and found is not None and found.state != "deleted":
                        known.append((local_segment(segment), given))
                _mark_delivered(db, batch, known)
        return added

    @writes
    def stream_of(self, db: sqlite3.Connection, job: int, ends: Ends) -> Stream | None:
        """The stream of a raw event; None if it is not one of this spool's."""
        end = (job & ((1 << INDEX_BITS) - 1)) + 1
        with ends() as end_of:
            found = _find(db, *origin_of(job), end, end_of)
            return None if found is None or end > found.end else found.stream

    @writes
    def settle(self, db: sqlite3.Connection, failures: Sequence[tuple[int, int]]) -> None:
        """Note which batch has a job's failure record: (batch, job). The job is settled once that batch is uploaded."""
        db.executemany("INSERT OR IGNORE INTO settling VALUES (?, ?)", [(batch, local(job)) for batch, job in failures])
        for batch in {batch for batch, _ in failures}:
            (state,) = db.execute("SELECT state FROM batches WHERE id=?", (batch,)).fetchone()
            if state == "stored":
                settle_jobs_of(db, batch)
            elif state == "set aside":
                forget_settling(db, batch)

    def _now(self) -> tuple[float, float]:
        """The parameters of `_DUE`: now, and the latest time that anything may wait for."""
        now = self._clock.now()
        return now, now + MAX_DELAY

    # Deleting

    @writes
    def begin(self, db: sqlite3.Connection, store: int, delete_after: DeleteAfter) -> None:
        """Make failed deletes due, at the start of a process that deletes.

        Objects that an attempt may still bring back keep waiting.
        """
        db.execute("UPDATE stores SET delete_after=?, deletes_paused_until=0 WHERE id=?", (delete_after, store))
        failed = db.execute(f"{_TO_DELETE[delete_after]} AND failures>0 AND retry_at>0", (store,)).fetchall()
        db.executemany("UPDATE batches SET retry_at=0 WHERE id=?", [(id_,) for id_, _, _ in failed])

    @writes
    def claim(self, db: sqlite3.Connection, store: int, session: str, delete_after: DeleteAfter, limit: int) -> list[DueObject]:
        """Claim objects that can be deleted now and that no process is deleting.

        Raises:
            FilesLost: the session has ended.
        """
        check_session(db, session)
        due = [
            row
            for row in db.execute(f"{_TO_DELETE[delete_after]} {_DUE} LIMIT ?", (store, *self._now(), limit)).fetchall()
            if is_complete(db, row[0], delete_after)
        ]
        db.executemany("UPDATE batches SET claimed_by=? WHERE id=?", [(session, id_) for id_, _, _ in due])
        return [DueObject(*row) for row in due]

    @reads
    def has_due(self, db: sqlite3.Connection, store: int, _session: str, delete_after: DeleteAfter) -> bool:
        """Whether `claim` would return any."""
        return db.execute(f"{_TO_DELETE[delete_after]} {_DUE} LIMIT 1", (store, *self._now())).fetchone() is not None

    @reads
    def waiting(self, db: sqlite3.Connection) -> list[WaitingDeletes]:
        """Pending deletes for each store, by the setting of the process that last uploaded to it."""
        waiting: list[WaitingDeletes] = []
        for id_, delete_after, *row in db.execute(
            "SELECT id, delete_after, location, delete_error, delete_hint, deletes_paused_until FROM stores ORDER BY id"
        ).fetchall():
            to_delete = _TO_DELETE[delete_after]
            (objects,) = db.execute(f"SELECT count(*) FROM ({to_delete})", (id_,)).fetchone()
            if objects:
                waiting.append(WaitingDeletes(row[0], objects, *row[1:]))
        return waiting

    @writes
    def deleted(self, db: sqlite3.Connection, store: int, batches: Sequence[int]) -> None:
        """Mark these objects as deleted, and deleting as working."""
        for batch in batches:
            mark_deleted(db, batch)
        db.execute(
            "UPDATE stores SET delete_error='', delete_hint='', deletes_paused_until=0 WHERE id=? AND delete_error!=''",
            (store,),
        )

    @writes
    def give_back(
        self,
        db: sqlite3.Connection,
        store: int,
        retries: Iterable[tuple[int, float | None]],
        *,
        error: str,
        hint: str,
        pause: float,
    ) -> None:
        """Release objects whose delete failed: (batch, seconds until the retry, or None if it was not to blame).

        Nothing is deleted for `pause` seconds.
        """
        now = self._clock.now()
        db.executemany(
            "UPDATE batches SET claimed_by=NULL, failures=failures+?, retry_at=coalesce(?, retry_at) WHERE id=? AND state='stored'",
            [(delay is not None, None if delay is None else now + delay, batch) for batch, delay in retries],
        )
        db.execute(
            "UPDATE stores SET delete_error=?, delete_hint=?, deletes_paused_until=? WHERE id=?",
            (writable(error), writable(hint), now + pause, store),
        )

    @writes
    def forget(self, db: sqlite3.Connection, age: float, after: int, limit: int, keep: Sequence[str]) -> int | None:
        """Forget old batches whose objects are deleted, or will never be.

        Examines `limit` batches with numbers above `after`. Old are those uploaded, or at least opened, more than `age` seconds
        ago. Batches that are to be deleted are kept until they are, as are those in the blob files `keep`: before removing a file,
        its batches are checked to be uploaded. Returns the last number examined; None at the end.
        """
        before = self._clock.now() - age
        rows = db.execute(
            "SELECT b.id, coalesce(stored_at, 0)<? AND (state='deleted'"
            " OR (state='set aside' AND NOT EXISTS (SELECT 1 FROM damages WHERE batch=b.id))"
            " OR (state='stored' AND claimed_by IS NULL AND (d.delete_after='never' OR delivered<jobs)"
            " AND (d.delete_after!='settled' OR delivered+settled<jobs)))"
            " AND NOT EXISTS (SELECT 1 FROM uploads u WHERE u.batch=b.id), blobs"
            " FROM batches b JOIN stores d ON d.id=b.store WHERE b.id>? AND b.opened_at<? ORDER BY b.id LIMIT ?",
            (before, after, before, limit),
        ).fetchall()
        kept = set(keep)
        for batch, is_over, blobs in rows:
            if is_over and blobs not in kept:
                db.execute("DELETE FROM acknowledged WHERE segment BETWEEN ? AND ?", segments_of(batch))
                db.execute("DELETE FROM settling WHERE batch=?", (batch,))
                db.execute(_NOTE_FORGOTTEN, (batch,))
                db.execute("DELETE FROM batches WHERE id=?", (batch,))
        return rows[-1][0] if len(rows) == limit else None


_NOTE_FORGOTTEN: Final = (
    "INSERT INTO forgotten SELECT store, kind, workspace_id, source_id, 1, events,"
    " min(first_at, last_at), max(first_at, last_at) FROM batches WHERE id=? AND state='stored'"
    " ON CONFLICT DO UPDATE SET objects=objects+1, events=events+excluded.events,"
    " first_at=min(first_at, excluded.first_at), last_at=max(last_at, excluded.last_at)"
)


def check_session(db: sqlite3.Connection, session: str) -> None:
    """Check that a session has not ended: what an ended session claims would stay claimed forever.

    Raises:
        FilesLost: another process considered this one dead and ended its session.
    """
    if db.execute("SELECT 1 FROM sessions WHERE id=?", (session,)).fetchone() is None:
        raise FilesLost(
            f"another process ended the session {session}, taking this process for dead",
            hint="a new one starts within a second; see the log of that time",
        )


def settle_jobs_of(db: sqlite3.Connection, batch: int) -> None:
    """Settle the jobs whose failure records are in this uploaded batch."""
    jobs = JobSet()
    for (job,) in db.execute("SELECT job FROM settling WHERE batch=?", (batch,)):
        jobs.add(job)
    for segment, mask in jobs.masks():
        delivered, settled = _marks(db, segment)
        new = mask & ~settled
        if db.execute("SELECT 1 FROM batches WHERE id=? AND state!='deleted'", (batch_of(segment),)).fetchone():
            _write_marks(db, segment, delivered, settled | new)
            _count(db, batch_of(segment), delivered=0, settled=(new & ~delivered).bit_count(), end=_end(segment, mask))
    forget_settling(db, batch)


def forget_settling(db: sqlite3.Connection, batch: int) -> None:
    """Forget the failure records in this batch: they settle nothing, or nothing more."""
    db.execute("DELETE FROM settling WHERE batch=?", (batch,))


def mark_deleted(db: sqlite3.Connection, batch: int) -> None:
    """Mark a batch as having no object, or no longer having one."""
    db.execute("UPDATE batches SET state='deleted', claimed_by=NULL, error='', hint='' WHERE id=?", (batch,))
    db.execute("DELETE FROM acknowledged WHERE segment BETWEEN ? AND ?", segments_of(batch))


class _Found(NamedTuple):
    state: str
    stream: Stream
    end: int


def _find(db: sqlite3.Connection, epoch: int, batch: int, end: int, end_of: EndOf) -> _Found | None:
    """Find a batch of raw events and its number of issued ids; of an open one, at least whether `end` were issued.

    Nothing of it changes before the transaction ends.
    """
    if epoch >> LOCAL_BITS:
        return None  # no spool has ever issued such an id
    row = db.execute(
        "SELECT state, workspace_id, source_id, jobs, blobs FROM batches WHERE id=? AND epoch=? AND kind='raw'", (batch, epoch)
    ).fetchone()
    if row is None:
        return None
    state, workspace_id, source_id, jobs, blobs = row
    if state == "open" and end > jobs:
        jobs = max(jobs, end_of(batch, blobs))
    return _Found(state, Stream(Kind.RAW, workspace_id, source_id), jobs)


def _mark_delivered(db: sqlite3.Connection, batch: int, segments: Sequence[tuple[int, int]]) -> None:
    more = settled_before = end = 0
    for segment, mask in segments:
        delivered, settled = _marks(db, segment)
        if new := mask & ~delivered:
            _write_marks(db, segment, delivered | new, settled)
            more += new.bit_count()
            settled_before += (new & settled).bit_count()
            end = _end(segment, new)  # in order
    if more:
        _count(db, batch, delivered=more, settled=-settled_before, end=end)


def _marks(db: sqlite3.Connection, segment: int) -> tuple[int, int]:
    row = db.execute("SELECT delivered, settled FROM acknowledged WHERE segment=?", (segment,)).fetchone()
    return (0, 0) if row is None else (int.from_bytes(row[0], "little"), int.from_bytes(row[1], "little"))


def _write_marks(db: sqlite3.Connection, segment: int, *marks: int) -> None:
    written = [mask.to_bytes((mask.bit_length() + 7) // 8, "little") for mask in marks]
    db.execute("INSERT OR REPLACE INTO acknowledged VALUES (?, ?, ?)", (segment, *written))


def _count(db: sqlite3.Connection, batch: int, *, delivered: int, settled: int, end: int) -> None:
    # Everything counted is below `jobs`, whatever is damaged later: otherwise a batch could seem complete.
    db.execute(
        "UPDATE batches SET delivered=delivered+?, settled=settled+?, jobs=max(jobs, ?) WHERE id=?",
        (delivered, settled, end, batch),
    )


def _end(segment: int, mask: int) -> int:
    """The index in its batch just after the last of these jobs."""
    return first_index(segment) + mask.bit_length()


def _mask_below(end: int) -> int:
    """The bits of a segment below `end`, which may be before, within or after it."""
    return (1 << min(max(end, 0), 1 << SEGMENT_BITS)) - 1


def is_complete(db: sqlite3.Connection, batch: int, delete_after: DeleteAfter) -> bool:
    """Whether each job of a batch has its bit.

    Counts the bits, because the counters may be damaged. If the batch is not complete, it corrects them.
    """
    (jobs,) = db.execute("SELECT max(jobs, events) FROM batches WHERE id=?", (batch,)).fetchone()
    delivered = settled = 0
    for (segment,) in db.execute("SELECT segment FROM acknowledged WHERE segment BETWEEN ? AND ?", segments_of(batch)).fetchall():
        given = _mask_below(jobs - first_index(segment))
        marks = _marks(db, segment)
        delivered += (marks[0] & given).bit_count()
        settled += (marks[1] & ~marks[0] & given).bit_count()
    if delivered + (settled if delete_after == "settled" else 0) >= jobs > 0:
        return True
    db.execute("UPDATE batches SET jobs=?, delivered=?, settled=? WHERE id=?", (jobs, delivered, settled, batch))
    return False
