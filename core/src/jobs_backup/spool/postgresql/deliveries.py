"""What was delivered: a bit for each job, and the objects that can be deleted since all of their jobs were.

Rows of batches are locked in the order of their numbers, so that acknowledgements do not lock each other out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from jobs_backup.errors import SpoolError
from jobs_backup.model import Kind, Stream
from jobs_backup.spool.acknowledger import Added
from jobs_backup.spool.ids import (
    INDEX_BITS,
    LOCAL_BITS,
    SEGMENT_BITS,
    SEGMENT_MASK,
    JobSet,
    batch_of,
    first_index,
    job_index,
    local,
    origin_of,
    origin_of_segment,
    segment_in,
    segments_of,
)
from jobs_backup.spool.interface import DeleteAfter, DueObject, WaitingDeletes
from jobs_backup.spool.postgresql.aliases import Alias, resolve
from jobs_backup.spool.postgresql.chunks import end_of
from jobs_backup.spool.postgresql.connection import NOW, Database, each, one, sql
from jobs_backup.spool.postgresql.rows import MAX_DELAY, decoded, writable
from jobs_backup.spool.postgresql.sessions import hold

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

_OF: Final = "FROM jobs_backup.batches WHERE store = %s AND state = 'stored'"
_TO_DELETE: Final = {
    "delivered": f"{_OF} AND delivered >= jobs",
    "settled": f"{_OF} AND delivered + settled >= jobs",
    "never": f"{_OF} AND false",
}
_SHIFT: Final = INDEX_BITS - SEGMENT_BITS
# What the session itself has claimed, too: it deletes from one thread, so a claim it does not know of is one whose answer was lost.
_DUE: Final = f"AND (claimed_by IS NULL OR claimed_by = %s) AND (retry_at <= {NOW} OR retry_at > {NOW} + {MAX_DELAY})"


class Deliveries:
    """The tables `acknowledged` and `settling`, and batches from stored to deleted. A method is a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, jobs: JobSet) -> Added:
        """Mark these jobs as delivered. A problem with some does not keep the others from being marked."""
        return self._database.write(lambda db: _add(db, jobs), is_idempotent=True)

    def stream_of(self, job: int) -> Stream | None:
        """The stream of a raw event; None if it is not one of this spool's."""
        end = (job & ((1 << INDEX_BITS) - 1)) + 1
        epoch, batch = origin_of(job)
        if epoch >> LOCAL_BITS:
            return None  # no spool has ever issued such an id

        def look(db: Db) -> tuple[_Found, int] | None:
            if (found := _find(db, [(epoch, batch)]).get((epoch, batch))) is None:
                return None
            # It may be sealed meanwhile: then its row has the end, which only grows.
            is_open = found.state == "open" and end > found.jobs
            return found, max(found.jobs, end_of(db, found.segment, found.batch)) if is_open else found.jobs

        if (seen := self._database.read(look)) is None:
            return None
        found, known = seen
        if found.state == "outbox" and self._database.write(lambda db: _is_in_outbox(db, batch, local(job)), is_idempotent=True):
            known = end
        return Stream(Kind.RAW, decoded(found.workspace_id), decoded(found.source_id)) if end <= known else None

    def settle(self, failures: Sequence[tuple[int, int]]) -> None:
        """Note which batch has a job's failure record: (batch, job). The job is settled once that batch is uploaded."""

        def work(db: Db) -> None:
            moved = _moved(db, {origin_of(job) for _, job in failures})
            each(
                db,
                "INSERT INTO jobs_backup.settling VALUES (%s, %s) ON CONFLICT DO NOTHING",
                [
                    (batch, moved.get(origin_of(job), local(job) >> INDEX_BITS) << INDEX_BITS | job_index(job))
                    for batch, job in failures
                ],
            )
            for batch in sorted({batch for batch, _ in failures}):
                (state,) = one(db, "SELECT state FROM jobs_backup.batches WHERE id = %s FOR UPDATE", (batch,))
                if state == "stored":
                    settle_jobs_of(db, batch)
                elif state == "set aside":
                    forget_settling(db, batch)

        self._database.write(work, is_idempotent=True)

    # Deleting

    def begin(self, store: int, delete_after: DeleteAfter) -> None:
        """Make failed deletes due, at the start of a process that deletes.

        Objects that an attempt may still bring back keep waiting.
        """

        def work(db: Db) -> None:
            db.execute(
                "UPDATE jobs_backup.stores SET delete_after = %s, deletes_paused_until = 0 WHERE id = %s", (delete_after, store)
            )
            failed = f"SELECT id {_TO_DELETE[delete_after]} AND failures > 0 AND retry_at > 0 ORDER BY id FOR UPDATE"
            db.execute(sql(f"UPDATE jobs_backup.batches SET retry_at = 0 WHERE id IN ({failed})"), (store,))

        self._database.write(work, is_idempotent=True)

    def claim(self, store: int, session: str, delete_after: DeleteAfter, limit: int) -> list[DueObject]:
        """Objects that can be deleted now and that no other session is deleting. From now on `session` is, in one thread at a time.

        Raises:
            SessionLost: the session has ended.
        """

        def work(db: Db) -> list[DueObject]:
            hold(db, session)
            rows = db.execute(
                sql(f"SELECT id, key, failures {_TO_DELETE[delete_after]} {_DUE} ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED"),
                (store, session, limit),
            ).fetchall()
            due = [row for row in rows if is_complete(db, row[0], delete_after)]
            each(db, "UPDATE jobs_backup.batches SET claimed_by = %s WHERE id = %s", [(session, id_) for id_, _, _ in due])
            return [DueObject(id_, decoded(key), failures) for id_, key, failures in due]

        return self._database.write(work)

    def has_due(self, store: int, session: str, delete_after: DeleteAfter) -> bool:
        """Whether `claim` would return any."""
        query = f"SELECT EXISTS (SELECT 1 {_TO_DELETE[delete_after]} {_DUE})"
        return bool(self._database.read(lambda db: one(db, query, (store, session))[0]))

    def waiting(self) -> list[WaitingDeletes]:
        """Pending deletes for each store, by the setting of the process that last uploaded to it."""

        def look(db: Db) -> list[WaitingDeletes]:
            found: list[WaitingDeletes] = []
            for id_, delete_after, *row in db.execute(
                "SELECT id, delete_after, location, delete_error, delete_hint, deletes_paused_until FROM jobs_backup.stores"
                " ORDER BY id"
            ).fetchall():
                (objects,) = one(db, f"SELECT count(*) {_TO_DELETE[delete_after]}", (id_,))
                if objects:
                    found.append(WaitingDeletes(decoded(row[0]), objects, *row[1:]))
            return found

        return self._database.read(look)

    def deleted(self, store: int, batches: Sequence[int]) -> None:
        """Mark these objects as deleted, and deleting as working."""

        def work(db: Db) -> None:
            mark_deleted(db, batches)
            db.execute(
                "UPDATE jobs_backup.stores SET delete_error = '', delete_hint = '', deletes_paused_until = 0"
                " WHERE id = %s AND delete_error != ''",
                (store,),
            )

        self._database.write(work, is_idempotent=True)

    def give_back(
        self, store: int, session: str, retries: Iterable[tuple[int, float | None]], *, error: str, hint: str, pause: float
    ) -> None:
        """Deleting these has failed: (batch, after how many seconds it is retried, or None where it was not its own fault).

        What `session` no longer claims stays as it is. Nothing is deleted for `pause` seconds.
        """
        found = sorted(retries)

        def work(db: Db) -> None:
            each(
                db,
                "UPDATE jobs_backup.batches SET claimed_by = NULL, failures = failures + %s,"
                f" retry_at = coalesce({NOW} + %s, retry_at) WHERE id = %s AND state = 'stored' AND claimed_by = %s",
                [(int(delay is not None), delay, batch, session) for batch, delay in found],
            )
            db.execute(
                f"UPDATE jobs_backup.stores SET delete_error = %s, delete_hint = %s,"
                f" deletes_paused_until = {NOW} + %s WHERE id = %s",
                (writable(error), writable(hint), pause, store),
            )

        self._database.write(work)

    def forget(self, age: float, after: int, limit: int) -> int | None:
        """Look at `limit` batches behind the number `after`, and forget those that were stored, or at least opened, so many seconds
        ago and whose objects stay for ever, or are gone. Those that are to be deleted are kept until they are.

        Returns the last number that was looked at; None at the end.
        """

        def work(db: Db) -> int | None:
            db.execute(f"DELETE FROM jobs_backup.ended_sessions WHERE ended_at < {NOW} - %s", (age,))
            rows = db.execute(
                f"SELECT b.id, coalesce(stored_at, 0) < {NOW} - %s AND (state = 'deleted'"
                " OR (state = 'set aside' AND NOT EXISTS (SELECT 1 FROM jobs_backup.damages WHERE batch = b.id))"
                " OR (state = 'stored' AND claimed_by IS NULL AND (d.delete_after = 'never' OR delivered < jobs)"
                " AND (d.delete_after != 'settled' OR delivered + settled < jobs))"
                " OR (state = 'outbox' AND NOT EXISTS (SELECT 1 FROM jobs_backup.aliases"
                " WHERE segment BETWEEN b.id << %s AND (b.id + 1 << %s) - 1)"
                " AND NOT EXISTS (SELECT 1 FROM jobs_backup.outbox WHERE batch = b.id)))"
                " AND NOT EXISTS (SELECT 1 FROM jobs_backup.uploads u WHERE u.batch = b.id)"
                " FROM jobs_backup.batches b JOIN jobs_backup.stores d ON d.id = b.store"
                f" WHERE b.id > %s AND b.opened_at < {NOW} - %s ORDER BY b.id LIMIT %s FOR UPDATE OF b",
                (age, _SHIFT, _SHIFT, after, age, limit),
            ).fetchall()
            for batch in [row[0] for row in rows if row[1]]:
                db.execute("DELETE FROM jobs_backup.acknowledged WHERE segment BETWEEN %s AND %s", segments_of(batch))
                db.execute("DELETE FROM jobs_backup.aliases WHERE batch = %s", (batch,))
                forget_settling(db, batch)
                db.execute(_NOTE_FORGOTTEN, (batch,))
                db.execute("DELETE FROM jobs_backup.moved_batches WHERE batch = %s", (batch,))
                db.execute("DELETE FROM jobs_backup.batches WHERE id = %s", (batch,))
            return rows[-1][0] if len(rows) == limit else None

        return self._database.write(work, is_idempotent=True)


STREAM: Final = "sha256(sha256(convert_to(workspace_id, 'UTF8')) || sha256(convert_to(source_id, 'UTF8')))"
_NOTE_FORGOTTEN: Final = (
    "INSERT INTO jobs_backup.forgotten_streams AS f"
    " (store, kind, stream, workspace_id, source_id, objects, events, first_at, last_at)"
    f" SELECT store, kind, {STREAM}, workspace_id, source_id, 1, events, least(first_at, last_at), greatest(first_at, last_at)"
    " FROM jobs_backup.batches WHERE id = %s AND state = 'stored'"
    " ON CONFLICT (store, kind, stream) DO UPDATE SET objects = f.objects + 1,"
    " events = f.events + excluded.events, first_at = least(f.first_at, excluded.first_at),"
    " last_at = greatest(f.last_at, excluded.last_at)"
)


class _Found(NamedTuple):
    batch: int
    state: str
    workspace_id: str
    source_id: str
    jobs: int
    segment: int


# Job ids name a batch by its epoch and number, or as it was named before it was moved here.
_FIND: Final = (
    "SELECT o.epoch, o.number, b.id, state, workspace_id, source_id, jobs, segment"
    " FROM unnest(%s::bigint[], %s::bigint[]) o (epoch, number) LEFT JOIN jobs_backup.moved_batches m USING (epoch, number)"
    " JOIN jobs_backup.batches b ON b.id = coalesce(m.batch, o.number) AND (m.batch IS NOT NULL OR b.epoch = o.epoch)"
    " WHERE kind = 'raw'"
)


def _find(db: Db, origins: Sequence[tuple[int, int]], suffix: str = "") -> dict[tuple[int, int], _Found]:
    """The batches of raw events that job ids name by these epochs and numbers."""
    rows = db.execute(sql(f"{_FIND} {suffix}"), [[one[0] for one in origins], [one[1] for one in origins]])
    return {(row[0], row[1]): _Found(*row[2:]) for row in rows.fetchall()}


def _moved(db: Db, origins: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """The numbers here of those batches that were moved."""
    given = list(origins)
    query = (
        "SELECT epoch, number, batch FROM jobs_backup.moved_batches JOIN unnest(%s::bigint[], %s::bigint[]) o (epoch, number)"
        " USING (epoch, number)"
    )
    return {(row[0], row[1]): row[2] for row in db.execute(query, [[one[0] for one in given], [one[1] for one in given]])}


def _add(db: Db, jobs: JobSet) -> Added:
    added = Added(JobSet(), JobSet())
    asked = [(key, list(some)) for key, some in groupby(sorted(jobs.masks()), lambda one: origin_of_segment(one[0]))]
    wanted = [key for key, _ in asked if not key[0] >> LOCAL_BITS]
    found = _find(db, wanted, "ORDER BY b.id FOR UPDATE OF b")
    known: defaultdict[int, int] = defaultdict(int)  # segment here -> mask; one job may have been given by two ids
    in_outbox: dict[int, tuple[int, int]] = {}
    for origin, segments in asked:
        its = found.get(origin)
        end = 0
        if its is not None and its.state == "outbox":
            in_outbox.update({segment_in(its.batch, segment): (segment, mask) for segment, mask in segments})
            continue
        if its is not None:
            try:
                end = _end_of_batch(db, its, _end(*segments[-1]))
            except SpoolError as error:
                added.error = error
                for segment, mask in segments:
                    added.unreadable.add_mask(segment, mask)
                continue
        for segment, mask in segments:
            taken = mask & _mask_below(end - first_index(segment))
            if taken != mask:
                added.unknown.add_mask(segment, mask & ~taken)
            if taken and its is not None and its.state != "deleted":
                known[segment_in(its.batch, segment)] |= taken
    if in_outbox:
        resolved = resolve(db, [(segment, mask) for segment, (_, mask) in in_outbox.items()])
        for segment, mask in resolved.unknown.items():
            added.unknown.add_mask(in_outbox[segment][0], mask)
        for _, collected in _by_batch(db, resolved.collected):
            for segment, mask in collected:
                known[segment] |= mask
        _mark_waiting(db, [(segment, mask, 0) for segment, mask in resolved.waiting.items()])
    _mark_delivered(db, [(batch, [*some]) for batch, some in groupby(sorted(known.items()), lambda one: batch_of(one[0]))])
    return added


def _is_in_outbox(db: Db, batch: int, job: int) -> bool:
    """Whether a job of the outbox is known. Its range is locked, or it could be collected between two looks."""
    db.execute("SELECT 1 FROM jobs_backup.batches WHERE id = %s FOR UPDATE", (batch,))
    return not resolve(db, [(job >> SEGMENT_BITS, 1 << (job & SEGMENT_MASK))]).unknown


def _by_batch(db: Db, segments: Mapping[int, int]) -> list[tuple[int, list[tuple[int, int]]]]:
    """These ids by batches, without those of deleted ones. The others are locked."""
    batches = {key: list(some) for key, some in groupby(sorted(segments.items()), lambda one: batch_of(one[0]))}
    locked = db.execute(
        "SELECT id FROM jobs_backup.batches WHERE id = ANY(%s) AND state != 'deleted' ORDER BY id FOR UPDATE", ([*batches],)
    ).fetchall()
    return [(row[0], batches[row[0]]) for row in locked]


def _mark_waiting(db: Db, rows: Sequence[tuple[int, int, int]]) -> None:
    """Keep (segment, delivered, settled) of events in the outbox, until they are collected: see `move_marks`."""
    marks = _read_marks(db, [segment for segment, _, _ in rows])
    changed: list[tuple[int, bytes, bytes]] = []
    for segment, delivered, settled in rows:
        before = marks.get(segment, (0, 0))
        changed.append((segment, _bytes(before[0] | delivered), _bytes(before[1] | settled)))
    _write_marks(db, changed)


def move_marks(db: Db, aliases: Sequence[Alias]) -> None:
    """Enter where events of the outbox are now, and give their marks to their batches. Their ranges must be locked."""
    columns = ([one.segment for one in aliases], [one.batch for one in aliases], [one.first for one in aliases])
    db.execute(
        "INSERT INTO jobs_backup.aliases SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::integer[], %s::bytea[])",
        (*columns, [_bytes(one.jobs) for one in aliases]),
    )
    left = dict(_read_marks(db, columns[0]))
    if not left:
        return
    delivered: defaultdict[int, int] = defaultdict(int)
    settled: defaultdict[int, int] = defaultdict(int)
    for alias in aliases:
        marks = left.get(alias.segment, (0, 0))
        for found, mask in zip((delivered, settled), marks, strict=True):
            for segment, part in alias.translated(mask):
                found[segment] |= part
        left[alias.segment] = marks[0] & ~alias.jobs, marks[1] & ~alias.jobs
    _write_marks(db, [(segment, _bytes(one), _bytes(other)) for segment, (one, other) in left.items()])
    db.execute("DELETE FROM jobs_backup.acknowledged WHERE segment = ANY(%s) AND delivered = '' AND settled = ''", (columns[0],))
    moved = sorted(delivered.keys() | settled.keys())
    _write_marks(db, [(segment, _bytes(delivered[segment]), _bytes(settled[segment])) for segment in moved])
    counts = [(delivered[one].bit_count(), (settled[one] & ~delivered[one]).bit_count(), 0, batch_of(one)) for one in moved]
    _count(db, counts)


def _end_of_batch(db: Db, found: _Found, wanted: int) -> int:
    """How many ids were given in a batch: of an open one at least whether `wanted` were."""
    if found.state != "open" or wanted <= found.jobs:
        return found.jobs
    return max(found.jobs, end_of(db, found.segment, found.batch))


def _mark_delivered(db: Db, batches: Sequence[tuple[int, list[tuple[int, int]]]]) -> None:
    marks = _read_marks(db, [segment for _, segments in batches for segment, _ in segments])
    changed: list[tuple[int, bytes, bytes]] = []
    counts: list[tuple[int, int, int, int]] = []
    for batch, segments in batches:
        more = settled_before = end = 0
        for segment, mask in segments:
            delivered, settled = marks.get(segment, (0, 0))
            if new := mask & ~delivered:
                changed.append((segment, _bytes(delivered | new), _bytes(settled)))
                more += new.bit_count()
                settled_before += (new & settled).bit_count()
                end = _end(segment, new)  # in order
        if more:
            counts.append((more, -settled_before, end, batch))
    _write_marks(db, changed)
    _count(db, counts)


def settle_jobs_of(db: Db, batch: int) -> None:
    """Settle the jobs whose failure records are in this uploaded batch."""
    jobs = JobSet()
    for (job,) in db.execute("SELECT job FROM jobs_backup.settling WHERE batch = %s", (batch,)):
        jobs.add(job)
    if not jobs:
        return
    masks = dict(jobs.masks())
    there = {
        row[0]: row[1]
        for row in db.execute(
            "SELECT id, state FROM jobs_backup.batches WHERE id = ANY(%s) AND state != 'deleted' ORDER BY id FOR UPDATE",
            ([batch_of(segment) for segment in masks],),
        ).fetchall()
    }
    in_outbox = [(segment, mask) for segment, mask in masks.items() if there.get(batch_of(segment)) == "outbox"]
    native = {segment: mask for segment, mask in masks.items() if there.get(batch_of(segment), "outbox") != "outbox"}
    if in_outbox:
        resolved = resolve(db, in_outbox)
        for _, segments in _by_batch(db, resolved.collected):
            for segment, mask in segments:
                native[segment] = native.get(segment, 0) | mask
        _mark_waiting(db, [(segment, 0, mask) for segment, mask in resolved.waiting.items()])
    marks = _read_marks(db, [*native])
    for segment, mask in sorted(native.items()):
        delivered, settled = marks.get(segment, (0, 0))
        new = mask & ~settled
        _write_marks(db, [(segment, _bytes(delivered), _bytes(settled | new))])
        _count(db, [(0, (new & ~delivered).bit_count(), _end(segment, mask), batch_of(segment))])
    forget_settling(db, batch)


def forget_settling(db: Db, batch: int) -> None:
    """Forget the failure records in this batch: they settle nothing, or nothing more."""
    db.execute("DELETE FROM jobs_backup.settling WHERE batch = %s", (batch,))


def mark_deleted(db: Db, batches: Sequence[int]) -> None:
    """These batches have no object, or no longer."""
    for batch in sorted(batches):
        db.execute(
            "UPDATE jobs_backup.batches SET state = 'deleted', claimed_by = NULL, error = '', hint = '' WHERE id = %s", (batch,)
        )
        db.execute("DELETE FROM jobs_backup.acknowledged WHERE segment BETWEEN %s AND %s", segments_of(batch))


def is_complete(db: Db, batch: int, delete_after: DeleteAfter) -> bool:
    """Whether each job of a batch has its bit. They are counted again, before something is deleted."""
    (jobs,) = one(db, "SELECT greatest(jobs, events) FROM jobs_backup.batches WHERE id = %s FOR UPDATE", (batch,))
    delivered = settled = 0
    rows = db.execute(
        "SELECT segment, delivered, settled FROM jobs_backup.acknowledged WHERE segment BETWEEN %s AND %s", segments_of(batch)
    )
    for segment, *its in rows.fetchall():
        given = _mask_below(jobs - first_index(segment))
        marks = [int.from_bytes(mask, "little") & given for mask in its]
        delivered += marks[0].bit_count()
        settled += (marks[1] & ~marks[0]).bit_count()
    if delivered + (settled if delete_after == "settled" else 0) >= jobs > 0:
        return True
    db.execute(
        "UPDATE jobs_backup.batches SET jobs = %s, delivered = %s, settled = %s WHERE id = %s", (jobs, delivered, settled, batch)
    )
    return False


def _read_marks(db: Db, segments: Sequence[int]) -> Mapping[int, tuple[int, int]]:
    rows = db.execute("SELECT segment, delivered, settled FROM jobs_backup.acknowledged WHERE segment = ANY(%s)", (list(segments),))
    return {row[0]: (int.from_bytes(row[1], "little"), int.from_bytes(row[2], "little")) for row in rows.fetchall()}


def _write_marks(db: Db, rows: Sequence[tuple[int, bytes, bytes]]) -> None:
    if rows:
        db.execute(
            "INSERT INTO jobs_backup.acknowledged SELECT * FROM unnest(%s::bigint[], %b::bytea[], %b::bytea[])"
            " ON CONFLICT (segment) DO UPDATE SET delivered = excluded.delivered, settled = excluded.settled",
            [list(column) for column in zip(*rows, strict=True)],
        )


def _count(db: Db, rows: Sequence[tuple[int, int, int, int]]) -> None:
    """(more delivered, more settled, end, batch). What is counted lies below `jobs`, whatever is damaged later on."""
    each(
        db,
        "UPDATE jobs_backup.batches SET delivered = delivered + %s, settled = settled + %s,"
        " jobs = greatest(jobs, %s) WHERE id = %s",
        rows,
    )


def _bytes(mask: int) -> bytes:
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def _end(segment: int, mask: int) -> int:
    """The index in its batch just after the last of these jobs."""
    return first_index(segment) + mask.bit_length()


def _mask_below(end: int) -> int:
    """The bits of a segment below `end`, which may be before, within or after it."""
    return (1 << min(max(end, 0), 1 << SEGMENT_BITS)) - 1
