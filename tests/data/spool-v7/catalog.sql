BEGIN TRANSACTION;
CREATE TABLE acknowledged (
    segment INTEGER PRIMARY KEY,  -- of the ids: see job_set.py
    delivered BLOB NOT NULL,
    settled BLOB NOT NULL         -- they have a failure record in the bucket
) STRICT;
INSERT INTO "acknowledged" VALUES(919552918052864,X'01',X'');
INSERT INTO "acknowledged" VALUES(919552918085120,X'02',X'');
INSERT INTO "acknowledged" VALUES(919552918105088,X'01',X'');
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
    stored_at REAL,
    claimed_by TEXT,              -- the session that is sending or deleting it
    claims INTEGER NOT NULL DEFAULT 0,      -- how often it was claimed to be sent
    failures INTEGER NOT NULL DEFAULT 0,    -- this and the rest: of sending it, and once it is stored, of deleting it
    retry_at REAL NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT INTO "batches" VALUES(1796001793072,'raw','w','web','stored',1,'p','1','gzip','','c5cf1688c837a7af',3,1,0,3,57,1000000,1000000,48,3980953585,'4be6ce70-6bf8-4e4c-a0a3-f637fe45dd16','p/web/gw/1970-01-01/0/1/1_1_w_4be6ce70-6bf8-4e4c-a0a3-f637fe45dd16.json.gz','',1.79600179313290238378e+09,NULL,1,0,0.0,'','');
INSERT INTO "batches" VALUES(1796001793135,'raw','w','web','sealed',1,'p','1','gzip','','c5cf1688c837a7af',5,1,0,5,95,1000000,1000000,54,4226925633,'c92131de-920e-41a1-af82-af6369ea4c81','p/web/gw/1970-01-01/0/1/1_1_w_c92131de-920e-41a1-af82-af6369ea4c81.json.gz','',NULL,'c5cf1688c837a7af',1,0,0.0,'','');
INSERT INTO "batches" VALUES(1796001793166,'failed','w','web','open',1,'p','1','gzip','','c5cf1688c837a7af',0,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,'',NULL,NULL,0,0,0.0,'','');
INSERT INTO "batches" VALUES(1796001793174,'raw','w','app','open',1,'p','1','gzip','','c5cf1688c837a7af',1,1,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,'',NULL,NULL,0,0,0.0,'','');
INSERT INTO "batches" VALUES(1796001793182,'raw','w','web','deleted',1,'p','1','gzip','','',2097152,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,'',NULL,NULL,0,0,0.0,'','');
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO "counters" VALUES('batch',1796001793182);
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
INSERT INTO "parts" VALUES(1,1,X'7B226E756D626572223A312C2265746167223A226F6E65227D');
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
INSERT INTO "sessions" VALUES('c5cf1688c837a7af',4427,1,1,1.79600179304594898227e+09,'c5cf1688c837a7af',0);
CREATE TABLE settling (batch INTEGER NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (batch, job)) STRICT, WITHOUT ROWID;
INSERT INTO "settling" VALUES(1796001793166,3766488752344530945);
CREATE TABLE totals (
    kind TEXT NOT NULL,
    state TEXT NOT NULL,          -- 'skipped': deleted before it was ever stored
    batches INTEGER NOT NULL DEFAULT 0,
    events INTEGER NOT NULL DEFAULT 0,
    raw_bytes INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL DEFAULT 0,
    stored_at REAL NOT NULL DEFAULT 0,      -- of the one that was stored last
    PRIMARY KEY (kind, state)
) STRICT, WITHOUT ROWID;
INSERT INTO "totals" VALUES('failed','deleted',0,0,0,0,0.0);
INSERT INTO "totals" VALUES('failed','sealed',0,0,0,0,0.0);
INSERT INTO "totals" VALUES('failed','set aside',0,0,0,0,0.0);
INSERT INTO "totals" VALUES('failed','skipped',0,0,0,0,0.0);
INSERT INTO "totals" VALUES('failed','stored',0,0,0,0,0.0);
INSERT INTO "totals" VALUES('raw','deleted',0,0,0,0,0.0);
INSERT INTO "totals" VALUES('raw','sealed',2,8,152,102,0.0);
INSERT INTO "totals" VALUES('raw','set aside',0,0,0,0,0.0);
INSERT INTO "totals" VALUES('raw','skipped',0,0,0,0,0.0);
INSERT INTO "totals" VALUES('raw','stored',1,3,57,48,1.79600179313290238378e+09);
CREATE TABLE uploads (
    -- Never given again: another process that aborts an upload, too, forgets it by its id when this one has begun the next.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
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
INSERT INTO "uploads" VALUES(1,1796001793135,1,X'7B226B6579223A22702F7765622F67772F313937302D30312D30312F302F312F315F315F775F63393231333164652D393230652D343161312D616638322D6166363336396561346338312E6A736F6E2E677A222C226964223A22616E2D75706C6F6164227D',5242880,0,0,0.0,'','');
CREATE INDEX sealed_batches ON batches (destination, claimed_by, retry_at, id) WHERE state = 'sealed';
CREATE INDEX sealed_sizes ON batches (size) WHERE state = 'sealed';
CREATE INDEX unsent_batches ON batches (blobs, id) WHERE state IN ('open', 'sealed');
CREATE INDEX delivered_batches ON batches (destination, retry_at) WHERE state = 'stored' AND delivered >= jobs;
CREATE INDEX settled_batches ON batches (destination, retry_at) WHERE state = 'stored' AND jobs <= delivered + settled;
CREATE INDEX claimed_batches ON batches (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX uploads_by_batch ON uploads (batch);
CREATE TRIGGER total AFTER UPDATE OF state ON batches
WHEN new.state!=old.state AND new.blobs!='' AND (new.state!='sealed' OR old.state='open') BEGIN
    UPDATE totals SET batches=batches+1, events=events+new.events, raw_bytes=raw_bytes+new.raw_bytes,
        size=size+coalesce(new.size, 0), stored_at=max(stored_at, coalesce(new.stored_at, 0))
    WHERE kind=new.kind AND state=iif(new.state='deleted' AND old.state!='stored', 'skipped', new.state); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('uploads',1);
COMMIT;
PRAGMA user_version=7;
