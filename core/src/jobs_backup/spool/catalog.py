"""All state of the spool: batches, destinations, journaled uploads and their parts, sessions, input positions."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from jobs_backup.model import Batch, Kind, Stream
from jobs_backup.spool.blobs import InputPosition
from jobs_backup.spool.database import Database, Durability
from jobs_backup.spool.uploads import MAX_DELAY, UploadJournal, writable

_SCHEMA: Final = """
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO counters VALUES ('batch', 0);
CREATE TABLE destinations (
    id INTEGER PRIMARY KEY,
    location TEXT NOT NULL UNIQUE,
    standing TEXT NOT NULL DEFAULT 'untried' CHECK (standing IN ('untried', 'refused', 'proven')),
    error TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,          -- also the name of its lock and of its blob file
    pid INTEGER NOT NULL,
    destination INTEGER NOT NULL REFERENCES destinations,
    archives INTEGER NOT NULL,    -- 1: it sends what is sealed
    began_at REAL NOT NULL
) STRICT;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    source_id TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'sealed', 'stored')),
    destination INTEGER NOT NULL REFERENCES destinations,
    prefix TEXT NOT NULL,         -- of its key, as it was set when it was opened
    instance_id TEXT NOT NULL,
    wrappers TEXT NOT NULL,       -- names of those that make its bytes, outermost first, separated by commas
    blobs TEXT NOT NULL,          -- name of the blob file: the session that recorded it
    events INTEGER NOT NULL DEFAULT 0,
    raw_bytes INTEGER NOT NULL DEFAULT 0,
    first_at INTEGER,
    last_at INTEGER,
    size INTEGER,
    crc32c INTEGER,
    uuid TEXT,
    key TEXT,
    stored_at REAL,
    claimed_by TEXT,              -- the session that is sending it
    failures INTEGER NOT NULL DEFAULT 0,
    retry_at REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX sealed_batches ON batches (destination, claimed_by, retry_at, id) WHERE state = 'sealed';
CREATE INDEX unstored_batches ON batches (blobs, id) WHERE state != 'stored';
CREATE INDEX claimed_batches ON batches (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE TABLE uploads (
    id INTEGER PRIMARY KEY,
    batch INTEGER NOT NULL REFERENCES batches,
    destination INTEGER NOT NULL REFERENCES destinations,
    upload BLOB NOT NULL,         -- as the provider returned it, as JSON; a secret
    part_size INTEGER NOT NULL,
    abandoned INTEGER NOT NULL DEFAULT 0,   -- 1: to be aborted
    failures INTEGER NOT NULL DEFAULT 0,
    retry_at REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX uploads_by_batch ON uploads (batch);
CREATE TABLE parts (
    upload INTEGER NOT NULL REFERENCES uploads ON DELETE CASCADE,
    number INTEGER NOT NULL,
    part BLOB NOT NULL,           -- the receipt, as JSON
    PRIMARY KEY (upload, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE positions (input TEXT PRIMARY KEY, at INTEGER NOT NULL, position BLOB NOT NULL) STRICT
"""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch is bound to when it is opened: the destination's number, the wrappers, and the parts of its key."""

    destination: int
    prefix: str
    instance_id: str
    wrappers: tuple[str, ...] = ()


class OpenRow(NamedTuple):
    """An open batch, as its adopter needs it."""

    id: int
    stream: Stream
    placement: Placement


class Seal(NamedTuple):
    """What sealing fixes of a batch; see the columns."""

    events: int
    raw_bytes: int
    first_at: int
    last_at: int
    size: int
    crc32c: int
    uuid: str
    key: str
    id: int


class Waiting(msgspec.Struct, frozen=True):
    """What a destination still has to get. `error` and `hint` are the last failure's, empty if there was none."""

    location: str
    batches: int
    events: int
    bytes: int
    error: str
    hint: str


class Catalog:
    """`catalog.db`. Every method is one transaction."""

    def __init__(self, path: Path, *, durability: Durability) -> None:
        self._database = Database(path, _SCHEMA, version=1, durability=durability)
        self.uploads = UploadJournal(self._database)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # Sessions

    def begin_session(self, session: str, pid: int, destination: int, *, archives: bool) -> None:
        """Enter a session, whose lock is held."""
        with self._database.transaction() as db:
            db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", (session, pid, destination, archives, time.time()))

    def sessions(self, *, archives: bool | None = None) -> list[str]:
        """All sessions that were not ended: alive, or waiting to be adopted; those that (do not) archive, if asked for."""
        with self._database.reading() as db:
            rows = db.execute("SELECT id FROM sessions WHERE ? IS NULL OR archives=? ORDER BY began_at", (archives, archives))
            return [row[0] for row in rows]

    def end_session(self, session: str, positions: Iterable[InputPosition]) -> None:
        """Forget a session: its batches are sealed, what it was sending may be sent by others, and its positions are kept here."""
        with self._database.transaction() as db:
            _merge(db, session, positions)
            db.execute("DELETE FROM batches WHERE blobs=? AND state='open' AND state!='stored'", (session,))  # they are empty
            db.execute("DELETE FROM sessions WHERE id=?", (session,))

    def salvage_session(self, session: str, positions: Iterable[InputPosition]) -> None:
        """As much of `end_session` as can be done for a dead session whose open batches can't all be read."""
        with self._database.transaction() as db:
            _merge(db, session, positions)

    def position(self, source: str) -> InputPosition | None:
        """How far an input was read by the sessions that have ended."""
        with self._database.reading() as db:
            row = db.execute("SELECT input, at, position FROM positions WHERE input=?", (source,)).fetchone()
        return InputPosition(*row) if row else None

    # Batches

    def destination(self, location: str) -> int:
        """The number of a destination."""
        with self._database.transaction() as db:
            db.execute("INSERT OR IGNORE INTO destinations (location) VALUES (?)", (location,))
            return int(db.execute("SELECT id FROM destinations WHERE location=?", (location,)).fetchone()[0])

    def open_batches(self, streams: Sequence[Stream], placement: Placement, *, blobs: str) -> list[int]:
        """New batches. A number is never used again, not even by a spool that is made anew: it is at least the time in ms."""
        with self._database.transaction() as db:
            last = int(db.execute("SELECT value FROM counters WHERE name='batch'").fetchone()[0])
            first = max(last + 1, time.time_ns() // 1_000_000)
            numbers = list(range(first, first + len(streams)))
            db.execute("UPDATE counters SET value=? WHERE name='batch'", (numbers[-1],))
            bound = (placement.destination, placement.prefix, placement.instance_id, ",".join(placement.wrappers), blobs)
            db.executemany(
                "INSERT INTO batches (id, kind, workspace_id, source_id, destination, prefix, instance_id, wrappers, blobs)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (number, stream.kind, stream.workspace_id, stream.source_id, *bound)
                    for number, stream in zip(numbers, streams, strict=True)
                ],
            )
        return numbers

    def open_batches_of(self, blobs: str) -> list[OpenRow]:
        """The open batches in a blob file."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT id, kind, workspace_id, source_id, destination, prefix, instance_id, wrappers FROM batches"
                " WHERE blobs=? AND state='open' AND state!='stored' ORDER BY id",
                (blobs,),
            )
            return [
                OpenRow(
                    row[0],
                    Stream(Kind(row[1]), row[2], row[3]),
                    Placement(destination=row[4], prefix=row[5], instance_id=row[6], wrappers=_names(row[7])),
                )
                for row in rows
            ]

    def seal(self, seals: Sequence[Seal]) -> None:
        """Fix batches for ever; from now on they wait to be sent."""
        with self._database.transaction() as db:
            db.executemany(
                "UPDATE batches SET state='sealed', events=?, raw_bytes=?, first_at=?, last_at=?, size=?, crc32c=?, uuid=?, key=?"
                " WHERE id=? AND state='open'",
                seals,
            )

    def claim(self, destination: int, session: str) -> tuple[Batch, int] | None:
        """A sealed batch that nobody is sending and whose time has come, and how often it failed; the longest untried one.

        From now on it is claimed by `session`, and the destination does not count as one that has refused everything.
        """
        now = time.time()
        with self._database.transaction() as db:
            row = db.execute(
                "UPDATE batches SET claimed_by=? WHERE id=(SELECT id FROM batches WHERE destination=? AND state='sealed'"
                " AND claimed_by IS NULL AND (retry_at<=? OR retry_at>?) ORDER BY retry_at, id LIMIT 1)"
                " RETURNING id, kind, workspace_id, source_id, events, raw_bytes, size, crc32c, key, uuid, wrappers, blobs,"
                " failures",
                (session, destination, now, now + MAX_DELAY),
            ).fetchone()
            if row is not None:
                db.execute("UPDATE destinations SET standing='untried' WHERE id=? AND standing='refused'", (destination,))
        return None if row is None else (_batch(row), row[12])

    def has_claimable(self, destination: int) -> bool:
        """Whether `claim` would give one."""
        now = time.time()
        with self._database.reading() as db:
            found = db.execute(
                "SELECT 1 FROM batches WHERE destination=? AND state='sealed' AND claimed_by IS NULL"
                " AND (retry_at<=? OR retry_at>?) LIMIT 1",
                (destination, now, now + MAX_DELAY),
            )
            return found.fetchone() is not None

    def release(self, batch: int, *, error: str, hint: str, retry_at: float, standing: str | None) -> None:
        """Give a claimed batch back: it was not stored. `standing` is what its failure tells of the destination, if anything.

        A destination counts as refusing only while no other batch is on its way there.
        """
        with self._database.transaction() as db:
            db.execute(
                "UPDATE batches SET claimed_by=NULL, failures=failures+1, error=?, hint=?, retry_at=? WHERE id=?",
                (writable(error), writable(hint), retry_at, batch),
            )
            if standing is not None:
                db.execute(
                    "UPDATE destinations SET standing=? WHERE id=(SELECT destination FROM batches WHERE id=?)"
                    " AND standing!='proven' AND (?='proven' OR NOT EXISTS (SELECT 1 FROM batches b"
                    " WHERE b.destination=destinations.id AND b.claimed_by IS NOT NULL))",
                    (standing, batch, standing),
                )

    def stored(self, batch: int) -> None:
        """The batch's object stands in the bucket. An upload of it that was not completed is left to be aborted."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE batches SET state='stored', claimed_by=NULL, error='', hint='', stored_at=? WHERE id=?",
                (time.time(), batch),
            )
            db.execute("UPDATE uploads SET abandoned=1 WHERE batch=?", (batch,))
            db.execute(
                "UPDATE destinations SET standing='proven' WHERE id=(SELECT destination FROM batches WHERE id=?)"
                " AND standing!='proven'",
                (batch,),
            )

    def last_batch(self) -> int:
        """The number of the batch that was opened last."""
        with self._database.reading() as db:
            return int(db.execute("SELECT value FROM counters WHERE name='batch'").fetchone()[0])

    def is_unstored(self, blobs: str) -> bool:
        """Whether a batch of a blob file is not stored yet."""
        with self._database.reading() as db:
            found = db.execute("SELECT 1 FROM batches WHERE blobs=? AND state!='stored' LIMIT 1", (blobs,))
            return found.fetchone() is not None

    def is_unsent(self, blobs: str, last: int) -> bool:
        """Whether a sealed batch of a blob file, up to the number `last`, is not stored yet."""
        with self._database.reading() as db:
            found = db.execute(
                "SELECT 1 FROM batches WHERE blobs=? AND id<=? AND state!='stored' AND state='sealed' LIMIT 1", (blobs, last)
            )
            return found.fetchone() is not None

    def waiting(self) -> list[Waiting]:
        """What is sealed and not stored, for each destination."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT location, count(*), sum(events), sum(size), max(b.error), max(b.hint) FROM destinations d"
                " JOIN batches b ON b.destination=d.id AND b.state='sealed' GROUP BY d.id ORDER BY d.id"
            )
            return [Waiting(*row) for row in rows]

    # Destinations

    def follow(self, destination: int) -> list[tuple[str, int]]:
        """Give `destination` the batches of those that were tried, refused everything, and that no session uses any more.

        Returns the locations that lost batches, and how many.
        """
        with self._database.transaction() as db:
            lost = db.execute(
                "SELECT d.id, d.location, count(*) FROM destinations d JOIN batches b ON b.destination=d.id AND b.state='sealed'"
                " WHERE d.standing='refused' AND d.id!=? AND b.claimed_by IS NULL"
                " AND NOT EXISTS (SELECT 1 FROM sessions s WHERE s.destination=d.id) GROUP BY d.id",
                (destination,),
            ).fetchall()
            db.executemany(
                "UPDATE batches SET destination=?, retry_at=0 WHERE destination=? AND state='sealed' AND claimed_by IS NULL",
                [(destination, id_) for id_, _, _ in lost],
            )
        return [(location, count) for _, location, count in lost]

    def make_due(self, destination: int) -> None:
        """Let everything be tried at once that failed and waits for its time."""
        with self._database.transaction() as db:
            db.execute("UPDATE batches SET retry_at=0 WHERE destination=? AND state='sealed' AND retry_at>0", (destination,))
            db.execute("UPDATE uploads SET retry_at=0 WHERE destination=? AND retry_at>0", (destination,))


def _batch(row: tuple[Any, ...]) -> Batch:
    id_, kind, workspace_id, source_id, events, raw_bytes, size, crc32c, key, uuid, wrappers, blobs, _ = row
    return Batch(
        id=id_,
        stream=Stream(Kind(kind), workspace_id, source_id),
        events=events,
        raw_bytes=raw_bytes,
        size=size,
        crc32c=crc32c,
        key=key,
        uuid=uuid,
        wrappers=_names(wrappers),
        blobs=blobs,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _merge(db: sqlite3.Connection, session: str, positions: Iterable[InputPosition]) -> None:
    db.executemany(
        "INSERT INTO positions VALUES (?, ?, ?) ON CONFLICT (input) DO UPDATE SET at=excluded.at, position=excluded.position"
        " WHERE excluded.at>at",
        positions,
    )
    db.execute("UPDATE batches SET claimed_by=NULL WHERE claimed_by=?", (session,))
