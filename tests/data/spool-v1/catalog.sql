BEGIN TRANSACTION;
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
INSERT INTO "batches" VALUES(1795390964800,'raw','w','web','stored',1,'p','1','','0123456789abcdef',5,445,1767323045000000,1767323045000000,131,3120200405,'1740248f-b98e-4e35-9f1c-5600a5f096db','p/web/gw/2026-01-02/3/1/1767323045_1767323045_w_1740248f-b98e-4e35-9f1c-5600a5f096db.json.gz',1.79539096480329394339e+09,NULL,0,0.0,'','');
INSERT INTO "batches" VALUES(1795390964804,'raw','w','web','sealed',1,'p','1','','0123456789abcdef',5,445,1767323045000000,1767323045000000,131,1133131760,'69337641-e981-439b-a4c9-f53cc15cfc46','p/web/gw/2026-01-02/3/1/1767323045_1767323045_w_69337641-e981-439b-a4c9-f53cc15cfc46.json.gz',NULL,NULL,1,0.0,'down','');
INSERT INTO "batches" VALUES(1795390964807,'raw','w','app','open',1,'p','1','','0123456789abcdef',0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0.0,'','');
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO "counters" VALUES('batch',1795390964807);
CREATE TABLE destinations (
    id INTEGER PRIMARY KEY,
    location TEXT NOT NULL UNIQUE,
    standing TEXT NOT NULL DEFAULT 'untried' CHECK (standing IN ('untried', 'refused', 'proven')),
    error TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT INTO "destinations" VALUES(1,'file:///srv/bucket','proven','','');
CREATE TABLE parts (
    upload INTEGER NOT NULL REFERENCES uploads ON DELETE CASCADE,
    number INTEGER NOT NULL,
    part BLOB NOT NULL,           -- the receipt, as JSON
    PRIMARY KEY (upload, number)
) STRICT, WITHOUT ROWID;
INSERT INTO "parts" VALUES(1,1,X'7B226E756D626572223A312C2265746167223A226F6E65227D');
CREATE TABLE positions (input TEXT PRIMARY KEY, at INTEGER NOT NULL, position BLOB NOT NULL) STRICT
;
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,          -- also the name of its lock and of its blob file
    pid INTEGER NOT NULL,
    destination INTEGER NOT NULL REFERENCES destinations,
    archives INTEGER NOT NULL,    -- 1: it sends what is sealed
    began_at REAL NOT NULL
) STRICT;
INSERT INTO "sessions" VALUES('0123456789abcdef',6607,1,1,1.79539096479719495775e+09);
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
INSERT INTO "uploads" VALUES(1,1795390964804,1,X'7B226B6579223A22702F7765622F67772F323032362D30312D30322F332F312F313736373332333034355F313736373332333034355F775F36393333373634312D653938312D343339622D613463392D6635336363313563666334362E6A736F6E2E677A222C226964223A22616E2D75706C6F6164227D',5242880,0,0,0.0,'','');
CREATE INDEX sealed_batches ON batches (destination, claimed_by, retry_at, id) WHERE state = 'sealed';
CREATE INDEX unstored_batches ON batches (blobs, id) WHERE state != 'stored';
CREATE INDEX claimed_batches ON batches (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX uploads_by_batch ON uploads (batch);
COMMIT;
PRAGMA user_version=1;
