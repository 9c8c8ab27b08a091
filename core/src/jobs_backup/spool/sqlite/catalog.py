"""All state of the spool: batches, stores, journaled uploads and their parts, sessions, input positions."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from jobs_backup.format.compression import Compression
from jobs_backup.model import Batch, Kind, Stream
from jobs_backup.spool.batches import BatchHeader, BatchOptions, BatchRow, Seal
from jobs_backup.spool.interface import Damage, Durability, InputPosition, Waiting
from jobs_backup.spool.sqlite.blobs import new_positions_in, position_in
from jobs_backup.spool.sqlite.clock import Clock, Reading, read_clocks
from jobs_backup.spool.sqlite.database import Database, file_version, reads, writes
from jobs_backup.spool.sqlite.deliveries import (
    Deliveries,
    check_session,
    forget_settling,
    is_complete,
    mark_deleted,
    settle_jobs_of,
)
from jobs_backup.spool.sqlite.reader import CatalogReader
from jobs_backup.spool.sqlite.schema import REBUILT, RENAMED, SCHEMA, UPGRADES, VERSION
from jobs_backup.spool.sqlite.uploads import MAX_DELAY, UploadJournal, writable

_SELECT_ROW: Final = (
    "SELECT id, epoch, opened_at, kind, workspace_id, source_id, store, prefix, instance_id, compression, wrappers FROM batches"
)
_SEAL: Final = (
    "UPDATE batches SET state='sealed', jobs=max(jobs, ?), events=?, raw_bytes=?, first_at=?, last_at=?, size=?, crc32c=?, uuid=?,"
    " key=?, made='', is_doubted=0"
)


class Catalog:
    """`catalog.db`. Every method is one transaction.

    Attributes:
        deliveries: what was delivered, and what is to be deleted.
        overview: queries for status and replay.
    """

    def __init__(
        self, path: Path, *, durability: Durability, only_reads: bool = False, notes_clock: bool = True, is_rebuilt: bool = False
    ) -> None:
        """Open it, creating it if needed.

        `notes_clock`: this process uses the spool, so note its clocks for processes of later boots to continue from.
        `is_rebuilt`: if it is created, an earlier one existed.
        """
        is_rebuilt = is_rebuilt and file_version(path) == 0
        schema = f"{SCHEMA.rstrip()};\n{REBUILT}" if is_rebuilt else SCHEMA
        self._database = Database(
            path, schema, version=VERSION, durability=durability, upgrades=UPGRADES, renamed=RENAMED, only_reads=only_reads
        )
        try:
            self.clock = Clock(self.set_clock() if notes_clock and not only_reads else self._look_at_clock())
        except BaseException:
            self._database.close()
            raise
        self.deliveries = Deliveries(self._database, self.clock)
        self.overview = CatalogReader(self._database)

    @writes
    def set_clock(self, db: sqlite3.Connection) -> Reading:
        """Note the clocks, for processes of later boots."""
        reading = read_clocks(_last_reading(db))
        db.execute("DELETE FROM clock")
        db.execute("INSERT INTO clock VALUES (?, ?, ?, ?)", reading)
        return reading

    @reads
    def _look_at_clock(self, db: sqlite3.Connection) -> Reading:
        return read_clocks(_last_reading(db))

    def check(self) -> None:
        """Check the structure of the whole file. Raises SpoolCorrupt."""
        self._database.check()

    def check_files(self) -> None:
        """Raise FilesLost if the file was removed or replaced."""
        self._database.check_files()

    @staticmethod
    def is_older(path: Path) -> bool:
        """Whether opening the file would upgrade it."""
        return 0 < file_version(path) < VERSION

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def uploads(self, store: int) -> UploadJournal:
        """The journal of multipart uploads to a store."""
        return UploadJournal(self._database, store, self.clock)

    # Sessions

    @writes
    def begin_session(self, db: sqlite3.Connection, session: str, pid: int, store: int, *, archives: bool) -> None:
        """Register a session whose lock is held."""
        db.execute(
            "INSERT INTO sessions (id, pid, store, archives, began_at, blobs) VALUES (?, ?, ?, ?, ?, ?)",
            (session, pid, store, archives, self.clock.now(), session),
        )

    @reads
    def sessions(self, db: sqlite3.Connection, *, archives: bool | None = None) -> list[str]:
        """All sessions that have not ended, alive or not yet adopted; `archives` selects those that do or do not archive."""
        rows = db.execute("SELECT id FROM sessions WHERE ? IS NULL OR archives=? ORDER BY began_at", (archives, archives))
        return [row[0] for row in rows]

    @reads
    def blob_files(self, db: sqlite3.Connection) -> dict[str, str]:
        """session -> the blob file it writes."""
        return dict(db.execute("SELECT id, blobs FROM sessions").fetchall())

    @writes
    def change_file(self, db: sqlite3.Connection, session: str, blobs: str, positions: Iterable[InputPosition]) -> None:
        """Move a session to another file. Nothing is open in the previous one, whose positions are kept here."""
        _leave_file(db, session, positions)
        db.execute("UPDATE sessions SET blobs=? WHERE id=?", (blobs, session))

    @writes
    def end_session(self, db: sqlite3.Connection, session: str, positions: Iterable[InputPosition]) -> None:
        """End a session: its batches are sealed, others may upload what it was uploading, and its positions are kept here."""
        _leave_file(db, session, positions)
        db.execute("UPDATE batches SET claimed_by=NULL WHERE claimed_by=?", (session,))
        db.execute("DELETE FROM sessions WHERE id=?", (session,))

    @writes
    def report_spooled(self, db: sqlite3.Connection, session: str, size: int) -> None:
        """Tell other processes how many bytes a session has in open batches."""
        db.execute("UPDATE sessions SET spooled=? WHERE id=?", (size, session))

    @reads
    def spooled_bytes(self, db: sqlite3.Connection, session: str) -> int:
        """Bytes of all batches not yet uploaded, except those that `session` has open."""
        row = db.execute(
            "SELECT (SELECT coalesce(sum(size), 0) FROM batches WHERE state='sealed')"
            " + (SELECT coalesce(sum(spooled), 0) FROM sessions WHERE id!=?)",
            (session,),
        ).fetchone()
        return int(row[0])

    @reads
    def position(self, db: sqlite3.Connection, source: str) -> InputPosition | None:
        """How far ended sessions have read an input."""
        return position_in(db, source)

    @reads
    def new_positions(self, db: sqlite3.Connection, prefix: str, after: int) -> tuple[list[InputPosition], int]:
        """How far ended sessions have read inputs: see `new_positions_in`."""
        return new_positions_in(db, prefix, after)

    # Batches

    @writes
    def store(self, db: sqlite3.Connection, location: str) -> int:
        """The number of a store, added if new."""
        db.execute("INSERT OR IGNORE INTO stores (location) VALUES (?)", (location,))
        return int(db.execute("SELECT id FROM stores WHERE location=?", (location,)).fetchone()[0])

    @writes
    def number(self, db: sqlite3.Connection, stream: Stream, placement: BatchOptions, epoch: int, jobs: int) -> int:
        """Open a batch for events that are not kept: its number gives them ids, and nothing of it is uploaded."""
        (batch,) = _open(db, [stream], placement, "", epoch, self.clock.now())
        db.execute("UPDATE batches SET state='deleted', jobs=? WHERE id=?", (jobs, batch))
        return batch

    @writes
    def open_batches(
        self, db: sqlite3.Connection, streams: Sequence[Stream], placement: BatchOptions, *, blobs: str, epoch: int
    ) -> list[int]:
        """Open batches. A number is never reused in this catalog.

        Raises:
            FilesLost: no session writes this file, or it no longer does.
        """
        check_session(db, blobs.partition("-")[0])
        return _open(db, streams, placement, blobs, epoch, self.clock.now())

    @reads
    def open_batches_of(self, db: sqlite3.Connection, blobs: str) -> list[BatchRow]:
        """The open batches in a blob file."""
        rows = db.execute(f"{_SELECT_ROW} WHERE blobs=? AND state='open' AND state IN ('open', 'sealed') ORDER BY id", (blobs,))
        return [_batch_row(row) for row in rows]

    @reads
    def batch(self, db: sqlite3.Connection, batch: int) -> BatchRow:
        """One batch."""
        return _batch_row(db.execute(f"{_SELECT_ROW} WHERE id=?", (batch,)).fetchone())

    @writes
    def seal(self, db: sqlite3.Connection, seals: Sequence[Seal]) -> None:
        """Seal batches, permanently; from now on they wait to be uploaded."""
        db.executemany(f"{_SEAL} WHERE id=? AND state='open'", seals)

    @writes
    def claim(self, db: sqlite3.Connection, store: int, session: str) -> tuple[Batch, int, int, bool] | None:
        """Claim the due sealed batch that has not been tried for the longest time.

        Returns it with its numbers of failures and claims, and whether all of it was delivered; None if there is none.

        From now on it is claimed by `session`, and the store no longer counts as refusing everything.

        Raises:
            FilesLost: the session has ended.
        """
        check_session(db, session)
        while (row := self._claim(db, store, session)) is not None:
            try:
                batch = _batch(row[:13])
            except (TypeError, ValueError) as error:  # it must not block the others
                why = f"its row in the catalog is not what was written ({error})"
                db.execute(
                    "UPDATE batches SET claimed_by=NULL, failures=failures+1, error=?, retry_at=? WHERE id=?",
                    (writable(why), self.clock.now() + MAX_DELAY, row[0]),
                )
                continue
            db.execute("UPDATE stores SET standing='untried' WHERE id=? AND standing='refused'", (store,))
            return batch, row[13], row[14], bool(row[15]) and is_complete(db, batch.id, "delivered")
        return None

    def _claim(self, db: sqlite3.Connection, store: int, session: str) -> Any:
        now = self.clock.now()
        return db.execute(
            "UPDATE batches SET claimed_by=?, claims=claims+1 WHERE id=(SELECT id FROM batches WHERE store=?"
            " AND state='sealed' AND claimed_by IS NULL AND (retry_at<=? OR retry_at>?) ORDER BY retry_at, id LIMIT 1)"
            " RETURNING id, kind, workspace_id, source_id, events, raw_bytes, size, crc32c, key, uuid, compression, wrappers,"
            " blobs, failures, claims, kind='raw' AND delivered>=jobs",
            (session, store, now, now + MAX_DELAY),
        ).fetchone()

    @reads
    def has_claimable(self, db: sqlite3.Connection, store: int) -> bool:
        """Whether `claim` would return a batch."""
        now = self.clock.now()
        found = db.execute(
            "SELECT 1 FROM batches WHERE store=? AND state='sealed' AND claimed_by IS NULL AND (retry_at<=? OR retry_at>?) LIMIT 1",
            (store, now, now + MAX_DELAY),
        )
        return found.fetchone() is not None

    @reads
    def has_claimed(self, db: sqlite3.Connection, session: str) -> bool:
        """Whether a session has claimed a sealed batch."""
        return db.execute("SELECT 1 FROM batches WHERE claimed_by=? AND state='sealed' LIMIT 1", (session,)).fetchone() is not None

    @writes
    def give_back_claims(self, db: sqlite3.Connection, session: str) -> int:
        """Release everything a session has claimed, while it uploads none of it. Returns the number of batches."""
        return db.execute("UPDATE batches SET claimed_by=NULL WHERE claimed_by=? AND state='sealed'", (session,)).rowcount

    @writes
    def release(
        self, db: sqlite3.Connection, batch: int, session: str, *, error: str, hint: str, delay: float, standing: str | None
    ) -> None:
        """Release a batch that `session` claimed and could not upload. A batch it no longer owns stays unchanged.

        `standing` is what the failure says about the store, if anything.

        A store counts as refusing only while no other batch is being uploaded to it.
        """
        db.execute(
            "UPDATE batches SET claimed_by=NULL, failures=failures+1, error=?, hint=?, retry_at=? WHERE id=?"
            " AND state='sealed' AND claimed_by=?",
            (writable(error), writable(hint), self.clock.now() + delay, batch, session),
        )
        if standing is not None:
            db.execute(
                "UPDATE stores SET standing=? WHERE id=(SELECT store FROM batches WHERE id=?)"
                " AND standing!='proven' AND (?='proven' OR NOT EXISTS (SELECT 1 FROM batches b"
                " WHERE b.store=stores.id AND b.claimed_by IS NOT NULL))",
                (standing, batch, standing),
            )

    @writes
    def stored(self, db: sqlite3.Connection, batch: int, *, deletable_after: float) -> None:
        """Mark a batch as uploaded. Any incomplete upload of it is left to be aborted."""
        db.execute(
            "UPDATE batches SET state='stored', claimed_by=NULL, error='', hint='', failures=0, retry_at=?, stored_at=? WHERE id=?",
            (self.clock.now() + deletable_after if deletable_after else 0.0, self.clock.now(), batch),
        )
        settle_jobs_of(db, batch)
        db.execute("UPDATE uploads SET abandoned=1 WHERE batch=?", (batch,))
        db.execute(
            "UPDATE stores SET standing='proven', error='', hint='', paused_until=0"
            " WHERE id=(SELECT store FROM batches WHERE id=?) AND (standing!='proven' OR error!='')",
            (batch,),
        )

    @writes
    def pin_content(self, db: sqlite3.Connection, batch: int, made: str) -> bool:
        """Note what the wrappers made of a batch at the first attempt. False if it was something else then."""
        db.execute("UPDATE batches SET made=? WHERE id=? AND made=''", (made, batch))
        return bool(db.execute("SELECT made=? FROM batches WHERE id=?", (made, batch)).fetchone()[0])

    @writes
    def doubt(self, db: sqlite3.Connection, key: str) -> None:
        """Note that the store may hold other bytes under a sealed batch's key.

        Ends when the batch is sealed again, under another key.
        """
        db.execute("UPDATE batches SET is_doubted=1 WHERE key=? AND state='sealed'", (key,))

    @reads
    def is_doubted(self, db: sqlite3.Connection, key: str) -> bool:
        """Whether a doubt was noted."""
        found = db.execute("SELECT is_doubted FROM batches WHERE key=? AND state='sealed'", (key,)).fetchone()
        return found is not None and bool(found[0])

    @writes
    def skipped(self, db: sqlite3.Connection, batch: int) -> None:
        """Mark a batch as not uploaded, because all of it was delivered."""
        mark_deleted(db, batch)

    @writes
    def skip_numbers(self, db: sqlite3.Connection, last: int) -> None:
        """Never issue a number up to `last` again. If it had not been issued yet, this catalog is an older copy."""
        if last > db.execute("SELECT value FROM counters WHERE name='batch'").fetchone()[0]:
            db.execute(REBUILT)
        db.execute("UPDATE counters SET value=max(value, ?) WHERE name='batch'", (last,))

    @reads
    def last_batch(self, db: sqlite3.Connection) -> int:
        """The number of the most recently opened batch."""
        return int(db.execute("SELECT value FROM counters WHERE name='batch'").fetchone()[0])

    @reads
    def is_needed(self, db: sqlite3.Connection, blobs: str) -> bool:
        """Whether a blob file has a batch still to be uploaded."""
        found = db.execute("SELECT 1 FROM batches WHERE blobs=? AND state IN ('open', 'sealed') LIMIT 1", (blobs,))
        return found.fetchone() is not None

    @reads
    def is_unsent(self, db: sqlite3.Connection, session: str, last: int) -> bool:
        """Whether a sealed batch of a session, up to the number `last`, is not uploaded yet."""
        found = db.execute(
            "SELECT 1 FROM batches WHERE blobs BETWEEN ? AND ? AND id<=? AND state IN ('open', 'sealed') AND state='sealed'"
            " LIMIT 1",
            (session, f"{session}~", last),
        )
        return found.fetchone() is not None

    @reads
    def given(self, db: sqlite3.Connection, epoch: int, batch: int) -> tuple[str, int | None] | None:
        """A batch's blob file and its number of issued ids (None while it is open); None if it does not exist."""
        row = db.execute(
            "SELECT blobs, iif(state='open', NULL, jobs) FROM batches WHERE id=? AND epoch=?", (batch, epoch)
        ).fetchone()
        return None if row is None else (row[0], row[1])

    @writes
    def replace_taken(self, db: sqlite3.Connection, batches: Sequence[int]) -> dict[int, int]:
        """Assign new numbers to those of a blob file's batches (at least one) whose numbers are taken.

        None of the old or new numbers is issued again.
        """
        db.execute("UPDATE counters SET value=max(value, ?) WHERE name='batch'", (max(batches),))
        taken = [batch for batch in batches if db.execute("SELECT 1 FROM batches WHERE id=?", (batch,)).fetchone() is not None]
        return dict(zip(taken, _new_numbers(db, len(taken)), strict=True))

    @writes
    def adopt(self, db: sqlite3.Connection, batch: int, header: BatchHeader, blobs: str) -> None:
        """Adopt an open batch found in a blob file but not in this catalog. It may have been uploaded already."""
        db.execute(REBUILT)
        db.execute("INSERT OR IGNORE INTO stores (location) VALUES (?)", (header.location,))
        db.execute(
            "INSERT INTO batches (id, epoch, opened_at, kind, workspace_id, source_id, store, prefix, instance_id,"
            " compression, wrappers, blobs, claims)"
            " VALUES (?, ?, ?, ?, ?, ?, (SELECT id FROM stores WHERE location=?), ?, ?, ?, ?, ?, 1)",
            (
                *(batch, header.epoch, self.clock.now(), header.kind, header.workspace_id, header.source_id, header.location),
                *(header.prefix, header.instance_id, header.compression, ",".join(header.wrappers), blobs),
            ),
        )

    @reads
    def unknown(self, db: sqlite3.Connection, blobs: str, batches: Sequence[int]) -> list[int]:
        """Which of a blob file's batches are not in this catalog."""
        return [
            batch
            for batch in batches
            if db.execute("SELECT 1 FROM batches WHERE id=? AND blobs=?", (batch, blobs)).fetchone() is None
        ]

    @reads
    def unsent_of(self, db: sqlite3.Connection, batches: Sequence[int]) -> list[int]:
        """Which of these batches are not known to be finished, whether uploaded or otherwise."""
        found = [(batch, db.execute("SELECT state FROM batches WHERE id=?", (batch,)).fetchone()) for batch in batches]
        return [batch for batch, row in found if row is None or row[0] in ("open", "sealed")]

    @writes
    def note_dead(self, db: sqlite3.Connection, session: str, error: str) -> None:
        """Record why a dead session cannot be recovered; empty if no longer known."""
        db.execute("UPDATE sessions SET error=? WHERE id=? AND error!=?", (writable(error), session, writable(error)))

    @reads
    def waiting(self, db: sqlite3.Connection, session: str, last: int | None) -> list[Waiting]:
        """What is sealed but not uploaded, for each store, as `session` sees it; up to the batch `last`, if given."""
        rows = db.execute(
            "SELECT location, count(*), total(claimed_by!=?), sum(events), sum(size), max(b.error), b.hint FROM stores d"
            " JOIN batches b ON b.store=d.id AND b.state='sealed' AND b.id<=? GROUP BY d.id ORDER BY d.id",
            (session, sys.maxsize if last is None else last),
        )
        return [Waiting(location, batches, int(elsewhere), *rest) for location, batches, elsewhere, *rest in rows]

    @reads
    def batches_of(self, db: sqlite3.Connection, session: str) -> set[int]:
        """The numbers of all batches a session has recorded."""
        return {row[0] for row in db.execute("SELECT id FROM batches WHERE blobs BETWEEN ? AND ?", (session, f"{session}~"))}

    # Damage

    @writes
    def quarantine_batch(self, db: sqlite3.Connection, damage: Damage, *, instead_of_batch: bool = False) -> None:
        """Report bytes that cannot be uploaded; `instead_of_batch` means they are the whole batch, which then never will be."""
        stream = damage.stream
        row = (stream.kind, stream.workspace_id, stream.source_id, damage.job, damage.events, writable(damage.error))
        db.execute("INSERT OR REPLACE INTO damages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (damage.file, damage.batch, *row))
        if instead_of_batch:
            _reseal(db, damage.batch, None)

    @writes
    def reseal(self, db: sqlite3.Connection, batch: int, seal: Seal | None) -> None:
        """Seal a batch again after part of it was quarantined; None if nothing is left. It may be claimed again at once."""
        _reseal(db, batch, seal)

    @reads
    def damages(self, db: sqlite3.Connection) -> list[Damage]:
        """Everything in quarantine."""
        rows = db.execute("SELECT batch, kind, workspace_id, source_id, job, events, file, error FROM damages ORDER BY job")
        return [Damage(row[0], Stream(Kind(row[1]), row[2], row[3]), *row[4:]) for row in rows]

    @reads
    def is_damaged(self, db: sqlite3.Connection, blobs: str) -> bool:
        """Whether a blob file has something unreadable that therefore could not be taken out of it."""
        return db.execute("SELECT 1 FROM damages WHERE file=? LIMIT 1", (f"blobs/{blobs}.db",)).fetchone() is not None

    @writes
    def moved(self, db: sqlite3.Connection, file: str, to: str) -> None:
        """Note that a file with damage was moved."""
        db.execute("UPDATE OR REPLACE damages SET file=? WHERE file=?", (to, file))

    @writes
    def forget_damages(self, db: sqlite3.Connection, files: Iterable[str]) -> None:
        """Forget the damage in files that were removed."""
        db.executemany("DELETE FROM damages WHERE file=?", [(file,) for file in files])

    # Stores

    @writes
    def pause(self, db: sqlite3.Connection, store: int, *, error: str, hint: str, seconds: float) -> None:
        """Note why nothing is uploaded for `seconds`."""
        db.execute(
            "UPDATE stores SET error=?, hint=?, paused_until=? WHERE id=?",
            (writable(error), writable(hint), self.clock.now() + seconds, store),
        )

    @writes
    def follow(self, db: sqlite3.Connection, store: int) -> list[tuple[str, int]]:
        """Move to `store` the batches of stores that refused everything and that no session uses.

        Leaves batches that were claimed more often than released: their process was killed, perhaps after the object had arrived.

        Returns the locations that lost batches, and how many.
        """
        lost = db.execute(
            "SELECT d.id, d.location, count(*) FROM stores d JOIN batches b ON b.store=d.id AND b.state='sealed'"
            " WHERE d.standing='refused' AND d.id!=? AND b.claimed_by IS NULL AND b.claims=b.failures"
            " AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.store=d.id) GROUP BY d.id",
            (store,),
        ).fetchall()
        db.executemany(
            "UPDATE batches SET store=?, retry_at=0 WHERE store=? AND state='sealed' AND claimed_by IS NULL AND claims=failures",
            [(store, id_) for id_, _, _ in lost],
        )
        return [(location, count) for _, location, count in lost]

    @writes
    def free_claims(self, db: sqlite3.Connection) -> None:
        """Release batches claimed by sessions that no longer exist."""
        db.execute(
            "UPDATE batches SET claimed_by=NULL WHERE claimed_by IS NOT NULL AND claimed_by NOT IN (SELECT id FROM sessions)"
        )

    @writes
    def make_due(self, db: sqlite3.Connection, store: int) -> None:
        """Make all retries due now."""
        db.execute("UPDATE batches SET retry_at=0 WHERE store=? AND state='sealed' AND retry_at>0", (store,))
        db.execute("UPDATE uploads SET retry_at=0 WHERE store=? AND retry_at>0", (store,))


def _batch(row: tuple[Any, ...]) -> Batch:
    if None in row:
        raise ValueError("part of it is missing")
    id_, kind, workspace_id, source_id, events, raw_bytes, size, crc32c, key, uuid, compression, wrappers, blobs = row
    return Batch(
        id=id_,
        stream=Stream(Kind(kind), workspace_id, source_id),
        events=events,
        raw_bytes=raw_bytes,
        size=size,
        crc32c=crc32c,
        key=key,
        uuid=uuid,
        content_type=Compression.parse(compression).content_type,
        wrappers=_names(wrappers),
        blobs=blobs,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _batch_row(row: tuple[Any, ...]) -> BatchRow:
    id_, epoch, opened_at, kind, workspace_id, source_id, store, prefix, instance_id, compression, wrappers = row
    placement = BatchOptions(
        store=store,
        prefix=prefix,
        instance_id=instance_id,
        compression=Compression.parse(compression),
        wrappers=_names(wrappers),
    )
    return BatchRow(id_, epoch, opened_at, Stream(Kind(kind), workspace_id, source_id), placement)


def _open(
    db: sqlite3.Connection, streams: Sequence[Stream], placement: BatchOptions, blobs: str, epoch: int, now: float
) -> list[int]:
    numbers = _new_numbers(db, len(streams))
    compression, wrappers = str(placement.compression), ",".join(placement.wrappers)
    bound = (placement.store, placement.prefix, placement.instance_id, compression, wrappers, blobs, epoch, now)
    db.executemany(
        "INSERT INTO batches (id, kind, workspace_id, source_id, store, prefix, instance_id, compression, wrappers, blobs,"
        " epoch, opened_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (number, stream.kind, stream.workspace_id, stream.source_id, *bound)
            for number, stream in zip(numbers, streams, strict=True)
        ],
    )
    return numbers


def _new_numbers(db: sqlite3.Connection, count: int) -> list[int]:
    # Compared with the table, because the counter may be damaged: a number that exists would be refused forever.
    (last,) = db.execute(
        "SELECT max(value, coalesce((SELECT max(id) FROM batches), 0)) FROM counters WHERE name='batch'"
    ).fetchone()
    db.execute("UPDATE counters SET value=? WHERE name='batch'", (last + count,))
    return list(range(last + 1, last + count + 1))


def _last_reading(db: sqlite3.Connection) -> Reading | None:
    row = db.execute("SELECT boot, wall, uptime, spool FROM clock").fetchone()
    return None if row is None else Reading(*row)


def _reseal(db: sqlite3.Connection, batch: int, seal: Seal | None) -> None:
    db.execute("UPDATE batches SET state='set aside', claimed_by=NULL, retry_at=0 WHERE id=?", (batch,))
    if seal is not None:
        db.execute(f"{_SEAL} WHERE id=?", seal)
    db.execute("UPDATE uploads SET abandoned=1 WHERE batch=?", (batch,))
    forget_settling(db, batch)  # some of its failure records may never reach the bucket


def _leave_file(db: sqlite3.Connection, session: str, positions: Iterable[InputPosition]) -> None:
    db.execute(
        "DELETE FROM batches WHERE blobs=(SELECT blobs FROM sessions WHERE id=?) AND state='open'"  # they are empty
        " AND state IN ('open', 'sealed')",
        (session,),
    )
    db.executemany(
        "INSERT INTO positions VALUES (?, ?, ?) ON CONFLICT (input) DO UPDATE SET at=excluded.at, position=excluded.position"
        " WHERE excluded.at>at",
        positions,
    )
