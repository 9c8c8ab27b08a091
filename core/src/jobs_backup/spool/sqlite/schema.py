"""The catalog's tables, and how to upgrade those of earlier versions."""

from __future__ import annotations

from typing import Final

SCHEMA: Final = """
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO counters VALUES ('batch', 0);
-- In microseconds since 1970: since when this catalog has known what is stored; and until when it may have missed something,
-- since it was lost or replaced by an older copy (0: nothing).
INSERT INTO counters VALUES ('known_since', CAST((julianday('now')-2440587.5)*86400000000 AS INTEGER)), ('lost_until', 0);
-- What the clocks showed when a process last looked: see clock.py. One row.
CREATE TABLE clock (boot TEXT NOT NULL, wall REAL NOT NULL, uptime REAL NOT NULL, spool REAL NOT NULL) STRICT;
CREATE TABLE stores (
    id INTEGER PRIMARY KEY,
    location TEXT NOT NULL UNIQUE,
    standing TEXT NOT NULL DEFAULT 'untried' CHECK (standing IN ('untried', 'refused', 'proven')),
    error TEXT NOT NULL DEFAULT '',         -- why it is paused
    hint TEXT NOT NULL DEFAULT '',
    paused_until REAL NOT NULL DEFAULT 0,
    delete_after TEXT NOT NULL DEFAULT 'delivered',     -- the setting of who sends there
    delete_error TEXT NOT NULL DEFAULT '',  -- why deletes are paused
    delete_hint TEXT NOT NULL DEFAULT '',
    deletes_paused_until REAL NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,          -- also the name of its lock
    pid INTEGER NOT NULL,
    store INTEGER NOT NULL REFERENCES stores,
    archives INTEGER NOT NULL,    -- 1: it sends what is sealed
    began_at REAL NOT NULL,
    blobs TEXT NOT NULL DEFAULT '',         -- the blob file that it writes
    error TEXT NOT NULL DEFAULT '',         -- it is dead, and this is why nobody can take its place
    spooled INTEGER NOT NULL DEFAULT 0      -- bytes in batches that it has open; about
) STRICT;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL DEFAULT 0,       -- of its job ids: see ids.py
    opened_at REAL NOT NULL DEFAULT 0,      -- this and all other times by the spool's clock
    kind TEXT NOT NULL CHECK (kind IN ('raw', 'failed')),
    workspace_id TEXT NOT NULL,
    source_id TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'sealed', 'stored', 'deleted', 'set aside')),
    store INTEGER NOT NULL REFERENCES stores,
    prefix TEXT NOT NULL,         -- of its key, as it was set when it was opened
    instance_id TEXT NOT NULL,
    compression TEXT NOT NULL DEFAULT 'gzip',
    wrappers TEXT NOT NULL,       -- FORMAT=PARAMETER of those that make its bytes, in this order, separated by commas
    blobs TEXT NOT NULL,          -- name of the blob file
    jobs INTEGER NOT NULL DEFAULT 0,        -- ids that were given; more than `events` where some were damaged
    delivered INTEGER NOT NULL DEFAULT 0,   -- how many of them were delivered
    settled INTEGER NOT NULL DEFAULT 0,     -- and how many of the others have a failure record in the bucket
    events INTEGER NOT NULL DEFAULT 0,
    raw_bytes INTEGER NOT NULL DEFAULT 0,
    first_at INTEGER,
    last_at INTEGER,
    size INTEGER,
    crc32c INTEGER,
    uuid TEXT,
    key TEXT,
    made TEXT NOT NULL DEFAULT '',          -- size and CRC-32C of what its wrappers made of it at the first attempt
    is_doubted INTEGER NOT NULL DEFAULT 0,  -- 1: the store may hold other bytes under its key
    stored_at REAL,
    claimed_by TEXT,              -- the session that is sending or deleting it
    claims INTEGER NOT NULL DEFAULT 0,      -- how often it was claimed to be sent
    failures INTEGER NOT NULL DEFAULT 0,    -- this and the rest: of sending it, and once it is stored, of deleting it
    retry_at REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT ''
) STRICT;
-- A statement has to repeat the condition of such an index as it stands here, or SQLite reads all batches there ever were. (With
-- the sum on the left it would, too: SQLite turns such a term round before it compares.)
CREATE INDEX sealed_batches ON batches (store, claimed_by, retry_at, id) WHERE state = 'sealed';
CREATE INDEX sealed_sizes ON batches (size) WHERE state = 'sealed';
CREATE INDEX unsent_batches ON batches (blobs, id) WHERE state IN ('open', 'sealed');
CREATE INDEX delivered_batches ON batches (store, retry_at) WHERE state = 'stored' AND delivered >= jobs;
CREATE INDEX settled_batches ON batches (store, retry_at) WHERE state = 'stored' AND jobs <= delivered + settled;
CREATE INDEX claimed_batches ON batches (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE TABLE uploads (
    -- Never given again: another process that aborts an upload, too, forgets it by its id when this one has begun the next.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    batch INTEGER NOT NULL REFERENCES batches,
    store INTEGER NOT NULL REFERENCES stores,
    upload BLOB NOT NULL,         -- as the provider returned it, as JSON; a secret
    part_size INTEGER NOT NULL,
    abandoned INTEGER NOT NULL DEFAULT 0,   -- 1: to be aborted
    failures INTEGER NOT NULL DEFAULT 0,    -- of sending it since its last part; once it is abandoned, of aborting it
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
-- A bit for each job, of 4096 consecutive ids. Rows go when their object is deleted.
CREATE TABLE acknowledged (
    segment INTEGER PRIMARY KEY,  -- of the ids: see ids.py
    delivered BLOB NOT NULL,
    settled BLOB NOT NULL         -- they have a failure record in the bucket
) STRICT;
-- Jobs whose failure record is in this batch, until that is stored.
CREATE TABLE settling (batch INTEGER NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (batch, job)) STRICT, WITHOUT ROWID;
CREATE TABLE positions (input TEXT PRIMARY KEY, at INTEGER NOT NULL, position BLOB NOT NULL) STRICT;
-- What is in a bucket and was forgotten, so that `replay` can tell that it lacks something. Times as in `batches`.
CREATE TABLE forgotten (
    store INTEGER NOT NULL REFERENCES stores,
    kind TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    source_id TEXT NOT NULL,
    objects INTEGER NOT NULL,
    events INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    PRIMARY KEY (store, kind, workspace_id, source_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE damages (
    file TEXT NOT NULL,           -- where the bytes are now, below the spool's directory
    batch INTEGER NOT NULL,
    kind TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    source_id TEXT NOT NULL,
    job INTEGER NOT NULL,         -- the first of those events; 0: not known
    events INTEGER NOT NULL,      -- 0: not known
    error TEXT NOT NULL,
    PRIMARY KEY (file, batch)
) STRICT, WITHOUT ROWID;
-- How many batches came to each state since the spool was made, or upgraded to version 5, and what was in them: in the transaction
-- of the change itself, so that these are right whatever process makes it and however that ends.
CREATE TABLE totals (
    kind TEXT NOT NULL,
    state TEXT NOT NULL,          -- 'skipped': deleted before it was ever stored
    batches INTEGER NOT NULL DEFAULT 0,
    events INTEGER NOT NULL DEFAULT 0,
    raw_bytes INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0,
    stored_at REAL NOT NULL DEFAULT 0,      -- of the one that was stored last, by the system's clock
    PRIMARY KEY (kind, state)
) STRICT, WITHOUT ROWID;
INSERT INTO totals (kind, state) SELECT kinds.column1, states.column1 FROM (VALUES ('raw'), ('failed')) kinds,
    (VALUES ('sealed'), ('stored'), ('skipped'), ('deleted'), ('set aside')) states;
-- Without those that only number events (they have no file), and without the rest of a damaged batch, which was sealed before.
CREATE TRIGGER total AFTER UPDATE OF state ON batches
WHEN new.state!=old.state AND new.blobs!='' AND (new.state!='sealed' OR old.state='open') BEGIN
    UPDATE totals SET batches=batches+1, events=events+new.events, raw_bytes=raw_bytes+new.raw_bytes,
        size=size+coalesce(new.size, 0),
        stored_at=iif(new.state='stored', (julianday('now')-2440587.5)*86400, stored_at)
    WHERE kind=new.kind AND state=iif(new.state='deleted' AND old.state!='stored', 'skipped', new.state); END
"""

VERSION: Final = 10
RENAMED: Final = {"destinations": "stores", "destination": "store"}
"""Tables and columns of versions up to 9 -> their current names."""
# The number of issued ids was not recorded, and damage may have taken the last ones. The maximum is assumed, so that an object is
# never deleted before all its jobs are delivered.
_GIVEN_IDS: Final = "UPDATE batches SET jobs=1<<21 WHERE state IN ('sealed', 'stored')"
_OPENED_AT: Final = "UPDATE batches SET opened_at=id/1000.0"  # a batch's number was the time it was opened
REBUILT: Final = "UPDATE counters SET value=CAST((julianday('now')-2440587.5)*86400000000 AS INTEGER) WHERE name='lost_until'"
"""Run when a catalog is made beside the files of an earlier one."""
# Versions up to 8 did not record what they forgot. The known history starts with the oldest batch, unless fewer are left than were
# uploaded.
_KNOWN: Final = (
    "UPDATE counters SET value=min(value, coalesce((SELECT min(first_at) FROM batches), value)) WHERE name='known_since'",
    f"{REBUILT} AND (SELECT sum(iif(state='stored', batches, iif(state='deleted', -batches, 0))) FROM totals)"
    " > (SELECT count(*) FROM batches WHERE state='stored')",
)
UPGRADES: Final = {
    # Version 1 did not count claims: anything it sealed may have been uploaded.
    1: (
        "UPDATE sessions SET blobs=id",
        "UPDATE batches SET claims=failures+1 WHERE state='sealed'",
        _GIVEN_IDS,
        _OPENED_AT,
        *_KNOWN,
    ),
    2: (_GIVEN_IDS, _OPENED_AT, *_KNOWN),
    **dict.fromkeys(range(3, 8), (_OPENED_AT, *_KNOWN)),
    8: _KNOWN,
    9: (),
}
