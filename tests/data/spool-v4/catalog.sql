BEGIN TRANSACTION;
CREATE TABLE acknowledged (
    segment INTEGER PRIMARY KEY,  -- of the ids: see job_set.py
    delivered BLOB NOT NULL,
    settled BLOB NOT NULL         -- they have a failure record in the bucket
) STRICT;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    source_id TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'sealed', 'stored', 'deleted', 'set aside')),
    destination INTEGER NOT NULL REFERENCES destinations,
    prefix TEXT NOT NULL,         -- of its key, as it was set when it was opened
    instance_id TEXT NOT NULL,
    compression TEXT NOT NULL DEFAULT 'gzip',
    wrappers TEXT NOT NULL,       -- names of those that make its bytes, outermost first, separated by commas
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
    stored_at REAL,
    claimed_by TEXT,              -- the session that is sending or deleting it
    claims INTEGER NOT NULL DEFAULT 0,      -- how often it was claimed to be sent
    failures INTEGER NOT NULL DEFAULT 0,    -- this and the rest: of sending it, and once it is stored, of deleting it
    retry_at REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT INTO "batches" VALUES(1795609854164,'raw','w','web','stored',1,'p','1','gzip','','74aa9f6586dbc463',3,0,0,3,57,1000000,1000000,48,3980953585,'8b491088-feda-4b41-a25c-e0fc0a4da862','p/web/gw/1970-01-01/0/1/1_1_w_8b491088-feda-4b41-a25c-e0fc0a4da862.json.gz',1.79560985417967724801e+09,NULL,1,0,0.0,'','');
INSERT INTO "batches" VALUES(1795609854180,'raw','w','web','sealed',1,'p','1','gzip','','74aa9f6586dbc463',5,0,0,5,95,1000000,1000000,54,4226925633,'c8a7d2e8-47e1-4996-af3a-d398e3a86bf8','p/web/gw/1970-01-01/0/1/1_1_w_c8a7d2e8-47e1-4996-af3a-d398e3a86bf8.json.gz',NULL,NULL,0,0,0.0,'','');
INSERT INTO "batches" VALUES(1795609854181,'raw','w','app','open',1,'p','1','gzip','','74aa9f6586dbc463',0,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0.0,'','');
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO "counters" VALUES('batch',1795609854181);
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
) STRICT, WITHOUT ROWID
;
CREATE TABLE destinations (
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
INSERT INTO "destinations" VALUES(1,'file:///srv/bucket','proven','','',0.0,'delivered','','',0.0);
CREATE TABLE parts (
    upload INTEGER NOT NULL REFERENCES uploads ON DELETE CASCADE,
    number INTEGER NOT NULL,
    part BLOB NOT NULL,           -- the receipt, as JSON
    PRIMARY KEY (upload, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE positions (input TEXT PRIMARY KEY, at INTEGER NOT NULL, position BLOB NOT NULL) STRICT;
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,          -- also the name of its lock
    pid INTEGER NOT NULL,
    destination INTEGER NOT NULL REFERENCES destinations,
    archives INTEGER NOT NULL,    -- 1: it sends what is sealed
    began_at REAL NOT NULL,
    blobs TEXT NOT NULL DEFAULT '',         -- the blob file that it writes
    spooled INTEGER NOT NULL DEFAULT 0      -- bytes in batches that it has open; about
) STRICT;
INSERT INTO "sessions" VALUES('74aa9f6586dbc463',9251,1,1,1.79560985416150522232e+09,'74aa9f6586dbc463',0);
CREATE TABLE settling (batch INTEGER NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (batch, job)) STRICT, WITHOUT ROWID;
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
CREATE INDEX sealed_batches ON batches (destination, claimed_by, retry_at, id) WHERE state = 'sealed';
CREATE INDEX sealed_sizes ON batches (size) WHERE state = 'sealed';
CREATE INDEX unsent_batches ON batches (blobs, id) WHERE state IN ('open', 'sealed');
CREATE INDEX delivered_batches ON batches (destination, retry_at) WHERE state = 'stored' AND delivered >= jobs;
CREATE INDEX settled_batches ON batches (destination, retry_at) WHERE state = 'stored' AND jobs <= delivered + settled;
CREATE INDEX claimed_batches ON batches (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX uploads_by_batch ON uploads (batch);
COMMIT;
PRAGMA user_version=4;
