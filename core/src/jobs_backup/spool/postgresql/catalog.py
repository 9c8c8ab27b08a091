"""Batches and stores, from when a batch is opened until it is stored."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from jobs_backup.model import Batch, Stream
from jobs_backup.spool.batches import BatchOptions, BatchRow, Seal
from jobs_backup.spool.ids import INDEX_BITS, SEGMENT_BITS
from jobs_backup.spool.interface import Damage, Waiting
from jobs_backup.spool.postgresql.connection import NOW, Database, each, one, sql
from jobs_backup.spool.postgresql.deliveries import forget_settling, is_complete, mark_deleted, settle_jobs_of
from jobs_backup.spool.postgresql.rows import MAX_DELAY, ROW, batch_of, decoded, encoded, row_of, stream_of, writable
from jobs_backup.spool.postgresql.segments import last_segment
from jobs_backup.spool.postgresql.sessions import hold

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

_SEAL: Final = (
    "UPDATE jobs_backup.batches SET state = 'sealed', jobs = greatest(jobs, %s), events = %s, raw_bytes = %s, first_at = %s,"
    " last_at = %s, size = %s, crc32c = %s, uuid = %s, key = %s, made = '', is_doubted = false"
)
DUE: Final = f"(retry_at <= {NOW} OR retry_at > {NOW} + {MAX_DELAY})"
_CLAIMABLE: Final = f"store = %s AND state = 'sealed' AND claimed_by IS NULL AND {DUE}"
_FIELDS: Final = (
    "b.id, kind, workspace_id, source_id, events, raw_bytes, size, crc32c, key, uuid, compression, wrappers, segment, failures,"
    " claims, kind = 'raw' AND delivered >= jobs"
)


class Catalog:
    """The tables `batches` and `stores`. Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Batches

    def store(self, location: str) -> int:
        """The number of a store, added if new."""

        def work(db: Db) -> int:
            db.execute("INSERT INTO jobs_backup.stores (location) VALUES (%s) ON CONFLICT DO NOTHING", (encoded(location),))
            return int(one(db, "SELECT id FROM jobs_backup.stores WHERE location = %s", (encoded(location),))[0])

        return self._database.write(work, is_idempotent=True)

    def number(self, stream: Stream, placement: BatchOptions, epoch: int, jobs: int, /) -> int:
        """Open a batch for events that are not kept: its number gives them ids, and nothing of it is uploaded."""

        def work(db: Db) -> int:
            (batch,) = open_in(db, [stream], placement, "", 0, epoch)
            db.execute("UPDATE jobs_backup.batches SET state = 'deleted', jobs = %s WHERE id = %s", (jobs, batch))
            return batch

        return self._database.write(work, is_idempotent=True)  # a second one only leaves numbers unused

    def open_batches(self, streams: Sequence[Stream], placement: BatchOptions, session: str, epoch: int) -> list[tuple[int, int]]:
        """New batches, in the last segment: (number, segment). A number is never used again.

        Raises:
            SessionLost: the session has ended.
        """

        def work(db: Db) -> list[tuple[int, int]]:
            hold(db, session)
            segment = last_segment(db)
            return [(number, segment) for number in open_in(db, streams, placement, session, segment, epoch)]

        return self._database.write(work, is_idempotent=True)  # what is opened twice stays empty, and is removed at the end

    def given(self, epoch: int, batch: int) -> int | None:
        """How many ids were given in a batch that is no longer open; None if there is no such batch."""
        row = self._database.read(
            lambda db: db.execute(
                "SELECT jobs FROM jobs_backup.batches WHERE id = %s AND epoch = %s AND state != 'open'", (batch, epoch)
            ).fetchone()
        )
        return None if row is None else int(row[0])

    def last_batch(self) -> int:
        """The number of the most recently opened batch."""
        return int(self._database.read(lambda db: one(db, "SELECT coalesce(max(id), 0) FROM jobs_backup.batches")[0]))

    def is_unsent(self, sessions: Sequence[str], last: int) -> bool:
        """Whether a sealed batch that one of these sessions has recorded, up to the number `last`, is not stored yet.

        So is one that is still open there, if the session is not the last of them: another process has to seal it first.
        """
        query = (
            "SELECT EXISTS (SELECT 1 FROM jobs_backup.batches WHERE session = ANY(%s) AND state = 'sealed' AND id <= %s)"
            " OR EXISTS (SELECT 1 FROM jobs_backup.sessions WHERE id = ANY(%s))"
            # Another process may have collected what was recorded in transactions.
            " OR EXISTS (SELECT 1 FROM jobs_backup.batches b JOIN jobs_backup.aliases a ON a.batch = b.id"
            " JOIN jobs_backup.batches r ON r.id = a.segment >> %s WHERE b.state = 'sealed' AND b.id <= %s AND r.session = ANY(%s))"
        )
        names = list(sessions)
        values = (names, last, names[:-1], INDEX_BITS - SEGMENT_BITS, last, names)
        return bool(self._database.read(lambda db: one(db, query, values)[0]))

    def batches_of(self, sessions: Sequence[str]) -> set[int]:
        """The numbers of all batches that these sessions have recorded."""
        query = "SELECT id FROM jobs_backup.batches WHERE session = ANY(%s)"
        return self._database.read(lambda db: {row[0] for row in db.execute(query, (list(sessions),))})

    # Sending

    def claim(self, store: int, session: str) -> tuple[Batch, int, int, bool] | None:
        """A sealed batch that nobody is sending and whose time has come: the one that was not tried for the longest time.

        Beside it, how often it failed, how often it was claimed, and whether all of it was delivered. From now on it is claimed by
        `session`, and the store does not count as one that has refused everything.

        Raises:
            SessionLost: the session has ended.
        """

        def work(db: Db) -> tuple[Batch, int, int, bool] | None:
            hold(db, session)
            row = db.execute(
                sql(
                    "UPDATE jobs_backup.batches b SET claimed_by = %s, claims = claims + 1 WHERE id ="
                    f" (SELECT id FROM jobs_backup.batches WHERE {_CLAIMABLE} ORDER BY retry_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)"
                    f" RETURNING {_FIELDS}"
                ),
                (session, store),
            ).fetchone()
            if row is None:
                return None
            db.execute("UPDATE jobs_backup.stores SET standing = 'untried' WHERE id = %s AND standing = 'refused'", (store,))
            batch = batch_of(row[:13])
            return batch, row[13], row[14], bool(row[15]) and is_complete(db, batch.id, "delivered")

        return self._database.write(work)

    def has_claimable(self, store: int) -> bool:
        """Whether `claim` would return a batch."""
        query = f"SELECT EXISTS (SELECT 1 FROM jobs_backup.batches WHERE {_CLAIMABLE})"
        return bool(self._database.read(lambda db: one(db, query, (store,))[0]))

    def give_back_claims(self, session: str) -> int:
        """Release everything a session has claimed, while it uploads none of it. Returns the number of batches."""
        mine = "claimed_by = %s AND state = 'sealed'"
        has = f"SELECT EXISTS (SELECT 1 FROM jobs_backup.batches WHERE {mine})"
        if not self._database.read(lambda db: one(db, has, (session,))[0]):
            return 0
        free = f"UPDATE jobs_backup.batches SET claimed_by = NULL WHERE {mine}"
        return self._database.write(lambda db: db.execute(free, (session,)).rowcount, is_idempotent=True)

    def release(self, batch: int, session: str, *, error: str, hint: str, delay: float, standing: str | None) -> None:
        """Give a batch back that `session` has claimed: it was not stored. One that is no longer its own stays as it is.

        `standing` is what its failure shows of the store, if anything. A store counts as refusing only while no other batch is on
        its way there.
        """

        def work(db: Db) -> None:
            db.execute(
                "UPDATE jobs_backup.batches SET claimed_by = NULL, failures = failures + 1, error = %s, hint = %s,"
                f" retry_at = {NOW} + %s WHERE id = %s AND state = 'sealed' AND claimed_by = %s",
                (writable(error), writable(hint), delay, batch, session),
            )
            if standing is not None:
                db.execute(
                    "UPDATE jobs_backup.stores d SET standing = %s WHERE id = (SELECT store FROM jobs_backup.batches WHERE id = %s)"
                    " AND standing != 'proven' AND (%s = 'proven' OR NOT EXISTS (SELECT 1 FROM jobs_backup.batches b"
                    " WHERE b.store = d.id AND b.claimed_by IS NOT NULL))",
                    (standing, batch, standing),
                )

        self._database.write(work)

    def stored(self, batch: int, *, deletable_after: float) -> None:
        """The batch's object is in the bucket, sent by any process. An upload of it that was not completed is to be aborted."""

        def work(db: Db) -> None:
            row = db.execute("SELECT state FROM jobs_backup.batches WHERE id = %s FOR UPDATE", (batch,)).fetchone()
            if row is None or row[0] == "deleted":
                return  # another process has stored it, and all of it was delivered since
            db.execute(
                "UPDATE jobs_backup.batches SET state = 'stored', claimed_by = NULL, error = '', hint = '', failures = 0,"
                f" retry_at = CASE WHEN %s > 0 THEN {NOW} + %s ELSE 0 END, stored_at = {NOW} WHERE id = %s",
                (deletable_after, deletable_after, batch),
            )
            settle_jobs_of(db, batch)
            db.execute("UPDATE jobs_backup.uploads SET abandoned = true WHERE batch = %s", (batch,))
            db.execute(
                "UPDATE jobs_backup.stores SET standing = 'proven', error = '', hint = '', paused_until = 0"
                " WHERE id = (SELECT store FROM jobs_backup.batches WHERE id = %s) AND (standing != 'proven' OR error != '')",
                (batch,),
            )

        self._database.write(work, is_idempotent=True)

    def skipped(self, batch: int, session: str) -> None:
        """The batch is not sent, since all of it was delivered. One that `session` no longer claims stays as it is."""

        def work(db: Db) -> None:
            mine = "SELECT 1 FROM jobs_backup.batches WHERE id = %s AND state = 'sealed' AND claimed_by = %s FOR UPDATE"
            if db.execute(mine, (batch, session)).fetchone() is not None:
                mark_deleted(db, [batch])

        self._database.write(work, is_idempotent=True)

    def pin_content(self, batch: int, made: str) -> bool:
        """Note what the wrappers made of a batch at the first attempt. False if it was something else then."""

        def work(db: Db) -> bool:
            db.execute("UPDATE jobs_backup.batches SET made = %s WHERE id = %s AND made = ''", (made, batch))
            return bool(one(db, "SELECT made = %s FROM jobs_backup.batches WHERE id = %s", (made, batch))[0])

        return self._database.write(work, is_idempotent=True)

    def doubt(self, key: str) -> None:
        """Note that the store may hold other bytes under a sealed batch's key.

        Ends when the batch is sealed again, under another key.
        """
        query = "UPDATE jobs_backup.batches SET is_doubted = true WHERE key = %s AND state = 'sealed'"
        self._database.write(lambda db: db.execute(query, (encoded(key),)), is_idempotent=True)

    def is_doubted(self, key: str) -> bool:
        """Whether a doubt was noted."""
        query = "SELECT EXISTS (SELECT 1 FROM jobs_backup.batches WHERE key = %s AND state = 'sealed' AND is_doubted)"
        return bool(self._database.read(lambda db: one(db, query, (encoded(key),))[0]))

    def waiting(self, session: str, last: int | None) -> list[Waiting]:
        """What is sealed but not uploaded, for each store, as `session` sees it; up to the batch `last`, if given."""
        query = (
            "SELECT location, count(*), count(*) FILTER (WHERE claimed_by != %s), sum(events)::bigint, sum(size)::bigint,"
            " max(b.error), (array_agg(b.hint ORDER BY b.error DESC))[1] FROM jobs_backup.stores d JOIN jobs_backup.batches b"
            " ON b.store = d.id AND b.state = 'sealed' AND b.id <= %s GROUP BY d.id, location ORDER BY d.id"
        )
        return self._database.read(
            lambda db: [
                Waiting(decoded(row[0]), *row[1:]) for row in db.execute(query, (session, sys.maxsize if last is None else last))
            ]
        )

    # Quota

    def spooled_bytes(self, session: str, /) -> int:
        """Bytes of all batches not yet uploaded, except those that `session` has open."""
        query = (
            "SELECT ((SELECT coalesce(sum(size), 0) FROM jobs_backup.batches WHERE state = 'sealed')"
            " + (SELECT coalesce(sum(spooled), 0) FROM jobs_backup.sessions WHERE id != %s)"
            " + jobs_backup.outbox_bytes())::bigint"
        )
        return int(self._database.read(lambda db: one(db, query, (session,))[0]))

    def report_spooled(self, session: str, size: int, /) -> None:
        """Tell other processes how many bytes a session has in open batches."""
        query = "UPDATE jobs_backup.sessions SET spooled = %s WHERE id = %s"
        self._database.write(lambda db: db.execute(query, (size, session)), is_idempotent=True)

    # Stores

    def pause(self, store: int, *, error: str, hint: str, seconds: float) -> None:
        """Note why nothing is uploaded for `seconds`."""
        query = f"UPDATE jobs_backup.stores SET error = %s, hint = %s, paused_until = {NOW} + %s WHERE id = %s"
        self._database.write(lambda db: db.execute(query, (writable(error), writable(hint), seconds, store)), is_idempotent=True)

    def follow(self, store: int) -> list[tuple[str, int]]:
        """Give `store` the batches of those that were tried, refused everything, and that no session still uses.

        But not what was claimed more often than it came back: who had it was killed, perhaps after it had arrived. Returns the
        locations that lost batches, and how many.
        """

        def work(db: Db) -> list[tuple[str, int]]:
            left = db.execute(
                "SELECT d.id, d.location, count(*) FROM jobs_backup.stores d JOIN jobs_backup.batches b ON b.store = d.id"
                " AND b.state = 'sealed' WHERE d.standing = 'refused' AND d.id != %s AND b.claimed_by IS NULL"
                " AND b.claims = b.failures AND NOT EXISTS (SELECT 1 FROM jobs_backup.sessions s WHERE s.store = d.id)"
                " GROUP BY d.id, d.location",
                (store,),
            ).fetchall()
            each(
                db,
                "UPDATE jobs_backup.batches SET store = %s, retry_at = 0 WHERE store = %s AND state = 'sealed'"
                " AND claimed_by IS NULL AND claims = failures",
                [(store, id_) for id_, _, _ in left],
            )
            return [(decoded(location), count) for _, location, count in left]

        return self._database.write(work)

    def begin_sending(self, store: int) -> None:
        """Let everything be tried at once that failed and waits for its time, and be claimed what no session has."""

        def work(db: Db) -> None:
            db.execute(
                "UPDATE jobs_backup.batches SET claimed_by = NULL WHERE id IN (SELECT id FROM jobs_backup.batches"
                " WHERE claimed_by IS NOT NULL AND claimed_by NOT IN (SELECT id FROM jobs_backup.sessions) ORDER BY id FOR UPDATE)"
            )
            db.execute(
                "UPDATE jobs_backup.batches SET retry_at = 0 WHERE id IN (SELECT id FROM jobs_backup.batches WHERE store = %s"
                " AND state = 'sealed' AND retry_at > 0 ORDER BY id FOR UPDATE)",
                (store,),
            )
            db.execute("UPDATE jobs_backup.uploads SET retry_at = 0 WHERE store = %s AND retry_at > 0", (store,))

        self._database.write(work, is_idempotent=True)

    # Damage

    def damages(self) -> list[tuple[int, Damage]]:
        """All that is in quarantine: (number of its row, what it is)."""
        query = "SELECT id, batch, kind, workspace_id, source_id, job, events, error FROM jobs_backup.damages ORDER BY id"
        return self._database.read(
            lambda db: [
                (row[0], Damage(row[1], stream_of(*row[2:5]), row[5], row[6], f"jobs_backup.damages, id {row[0]}", row[7]))
                for row in db.execute(query)
            ]
        )


def open_rows(db: Db, session: str) -> list[tuple[BatchRow, int]]:
    """The open batches of a session, with their segments."""
    return [row_of(row) for row in db.execute(f"{ROW} WHERE session = %s AND state = 'open' ORDER BY id FOR UPDATE", (session,))]


def open_range(db: Db, stream: Stream, placement: BatchOptions, session: str, epoch: int) -> int:
    """A number that gives ids to events of the outbox. Their batches will be bound to this placement."""
    (number,) = open_in(db, [stream], placement, session, 0, epoch)
    db.execute("UPDATE jobs_backup.batches SET state = 'outbox' WHERE id = %s", (number,))
    return number


def restore_range(db: Db, ranges: Iterable[tuple[int, int, str, str]], placement: BatchOptions) -> None:
    """Enter those of (number, epoch, workspace_id, source_id) that were forgotten while a transaction took that long."""
    bound = (placement.store, encoded(placement.prefix), encoded(placement.instance_id))
    made_by = (str(placement.compression), ",".join(placement.wrappers))
    db.execute(
        "INSERT INTO jobs_backup.batches (id, epoch, workspace_id, source_id, kind, state, store, prefix, instance_id, compression,"
        f" wrappers, session, segment, opened_at) SELECT u.*, 'raw', 'outbox', %s, %s, %s, %s, %s, '', 0, {NOW}"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[]) u ON CONFLICT (id) DO NOTHING",
        (*bound, *made_by, *[list(column) for column in zip(*sorted(ranges), strict=True)]),
    )


def seal(db: Db, seals: Sequence[Seal]) -> None:
    """Fix open batches for ever; from now on they wait to be sent."""
    each(db, f"{_SEAL} WHERE id = %s AND state = 'open'", [_sealed(one) for one in sorted(seals, key=lambda one: one.id)])


def reseal(db: Db, batch: int, new: Seal | None) -> None:
    """Seal a batch again after part of it was quarantined; None if nothing is left. It may be claimed again at once."""
    db.execute(
        "UPDATE jobs_backup.batches SET state = 'set aside', claimed_by = NULL, retry_at = 0"
        " WHERE id = %s AND state != 'set aside'",
        (batch,),
    )
    if new is not None:
        db.execute(f"{_SEAL} WHERE id = %s", _sealed(new))
    db.execute("UPDATE jobs_backup.uploads SET abandoned = true WHERE batch = %s", (batch,))
    forget_settling(db, batch)  # some of its failure records may never reach the bucket


def remove_empty(db: Db, session: str) -> None:
    """Remove the open batches of a session, which are empty."""
    db.execute("DELETE FROM jobs_backup.batches WHERE session = %s AND state = 'open'", (session,))


def mark_empty(db: Db, batches: Sequence[int]) -> None:
    """These open batches have no event. They stay, so that who was only taken for dead finds that nothing was recorded."""
    each(db, "UPDATE jobs_backup.batches SET state = 'deleted' WHERE id = %s", [(batch,) for batch in batches])


def report(db: Db, damage: Damage, data: bytes = b"") -> None:
    """Put damaged bytes into quarantine."""
    stream = damage.stream
    db.execute(
        "INSERT INTO jobs_backup.damages (batch, kind, workspace_id, source_id, job, events, error, data)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (
            *(damage.batch, str(stream.kind), encoded(stream.workspace_id), encoded(stream.source_id)),
            *(damage.job, damage.events, writable(damage.error), data),
        ),
    )


def _sealed(new: Seal) -> tuple[Any, ...]:
    return new._replace(key=encoded(new.key))


def open_in(db: Db, streams: Sequence[Stream], placement: BatchOptions, session: str, segment: int, epoch: int) -> list[int]:
    """Open batches in a segment, one for each of the streams. Returns their numbers."""
    numbers = [
        row[0]
        for row in db.execute("SELECT nextval('jobs_backup.batch_numbers') FROM generate_series(1, %s)", (len(streams),)).fetchall()
    ]
    compression, wrappers = str(placement.compression), ",".join(placement.wrappers)
    bound = (placement.store, encoded(placement.prefix), encoded(placement.instance_id), compression, wrappers)
    each(
        db,
        "INSERT INTO jobs_backup.batches (id, kind, workspace_id, source_id, store, prefix, instance_id, compression, wrappers,"
        f" session, segment, epoch, opened_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, {NOW})",
        [
            (number, str(stream.kind), encoded(stream.workspace_id), encoded(stream.source_id), *bound, session, segment, epoch)
            for number, stream in zip(numbers, streams, strict=True)
        ],
    )
    return numbers


def segments_of(rows: Sequence[tuple[BatchRow, int]]) -> Mapping[int, int]:
    """Batch -> segment."""
    return {row.id: segment for row, segment in rows}
