BEGIN TRANSACTION;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    source_id TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'sealed', 'stored', 'set aside')),
    destination INTEGER NOT NULL REFERENCES destinations,
    prefix TEXT NOT NULL,         -- of its key, as it was set when it was opened
    instance_id TEXT NOT NULL,
    wrappers TEXT NOT NULL,       -- names of those that make its bytes, outermost first, separated by commas
    blobs TEXT NOT NULL,          -- name of the blob file
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
    claims INTEGER NOT NULL DEFAULT 0,      -- how often it was claimed
    failures INTEGER NOT NULL DEFAULT 0,
    retry_at REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT INTO "batches" VALUES(1795488374892,'raw','w','web','stored',1,'p','1','','213c2b1896912d97',3,57,1000000,1000000,48,4787537,'56d0fd1f-9044-42b3-9f65-e484d71b67db','p/web/gw/1970-01-01/0/1/1_1_w_56d0fd1f-9044-42b3-9f65-e484d71b67db.json.gz',1.7954883748949878216e+09,NULL,1,0,0.0,'','');
INSERT INTO "batches" VALUES(1795488374895,'raw','w','web','sealed',1,'p','1','','213c2b1896912d97',5,95,1000000,1000000,54,2905168685,'13f860ce-8a3e-4ee4-b574-84f32d2d08a5','p/web/gw/1970-01-01/0/1/1_1_w_13f860ce-8a3e-4ee4-b574-84f32d2d08a5.json.gz',NULL,NULL,0,0,0.0,'','');
INSERT INTO "batches" VALUES(1795488374897,'raw','w','app','open',1,'p','1','','213c2b1896912d97',0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0,0.0,'','');
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO "counters" VALUES('batch',1795488374897);
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
INSERT INTO "damages" VALUES('quarantine/1795488374895-5.ndjson',1795488374895,'raw','w','web',3765412036387799045,2,'rotten');
CREATE TABLE destinations (
    id INTEGER PRIMARY KEY,
    location TEXT NOT NULL UNIQUE,
    standing TEXT NOT NULL DEFAULT 'untried' CHECK (standing IN ('untried', 'refused', 'proven')),
    error TEXT NOT NULL DEFAULT '',         -- why it is paused
    hint TEXT NOT NULL DEFAULT '',
    paused_until REAL NOT NULL DEFAULT 0
) STRICT;
INSERT INTO "destinations" VALUES(1,'file:///srv/bucket','proven','','',0.0);
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
INSERT INTO "sessions" VALUES('213c2b1896912d97',2379,1,1,1.79548837488760638239e+09,'213c2b1896912d97',0);
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
CREATE INDEX claimed_batches ON batches (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX uploads_by_batch ON uploads (batch);
COMMIT;
PRAGMA user_version=2;
