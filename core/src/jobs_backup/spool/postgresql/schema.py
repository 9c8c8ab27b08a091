"""The tables, and how they are made. Everything is in the schema `jobs_backup` of the database.

Programs of version N and N-1 work side by side. A migration only adds: tables, indexes, functions, and columns that are null or
have a default. What it makes superfluous, the migration after it may remove. `version.oldest` is the oldest version whose programs
understand the tables; `sessions.version` shows which ones are running.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = 2
SCHEMA: Final = "jobs_backup"
MIGRATION_LOCK: Final = 0x6A6F6273_62616B75
"""Of `pg_advisory_xact_lock`: one process at a time changes tables. It ends with the transaction, so that a pooler keeps none."""

# As in version 1: MIGRATIONS make the rest, so that new and upgraded tables are the same.
TABLES: Final = """
CREATE TABLE jobs_backup.version (version integer NOT NULL, oldest integer NOT NULL);
INSERT INTO jobs_backup.version VALUES (1, 1);
CREATE TABLE jobs_backup.spool (known_since bigint NOT NULL);
-- Microseconds since 1970.
INSERT INTO jobs_backup.spool VALUES ((extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
-- All times are seconds since 1970 by this server's clock, unless something else is noted.
CREATE TABLE jobs_backup.stores (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    location text NOT NULL UNIQUE,
    standing text NOT NULL DEFAULT 'untried' CHECK (standing IN ('untried', 'refused', 'proven')),
    error text NOT NULL DEFAULT '',
    hint text NOT NULL DEFAULT '',
    paused_until double precision NOT NULL DEFAULT 0,
    delete_after text NOT NULL DEFAULT 'delivered',
    delete_error text NOT NULL DEFAULT '',
    delete_hint text NOT NULL DEFAULT '',
    deletes_paused_until double precision NOT NULL DEFAULT 0
);
-- A process as long as it uses the spool. Another one takes its place once its lease is over.
CREATE TABLE jobs_backup.sessions (
    id text PRIMARY KEY,
    seq bigint NOT NULL DEFAULT 0,        -- of its commits: each one names the one before
    events bigint NOT NULL DEFAULT 0,     -- that were recorded in it
    lease double precision NOT NULL,      -- seconds
    lease_until double precision NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    store integer NOT NULL REFERENCES jobs_backup.stores,
    archives boolean NOT NULL,
    began_at double precision NOT NULL,
    spooled bigint NOT NULL DEFAULT 0,    -- bytes in batches that it has open; about
    error text NOT NULL DEFAULT ''        -- its lease is over, and this is why nobody can take its place
) WITH (fillfactor = 50);
-- Sessions that were closed or taken over: what they had committed then. Less than was acknowledged means that it was lost.
CREATE TABLE jobs_backup.ended_sessions (
    id text PRIMARY KEY, seq bigint NOT NULL, events bigint NOT NULL, ended_at double precision NOT NULL
);
-- Who reads an input; it ends with the session.
CREATE TABLE jobs_backup.readers (
    input text PRIMARY KEY,
    session text NOT NULL REFERENCES jobs_backup.sessions ON DELETE CASCADE
);
CREATE INDEX readers_of_session ON jobs_backup.readers (session);
CREATE TABLE jobs_backup.positions (
    input text PRIMARY KEY,
    at bigint NOT NULL,
    position bytea NOT NULL,
    entered xid8 NOT NULL DEFAULT pg_current_xact_id()      -- the transaction that has entered the row, not the last one
);
CREATE INDEX positions_entered ON jobs_backup.positions (entered);
-- The bytes: segment n is the table chunks_n. New batches go into the last one; the others are dropped once nothing waits in them.
CREATE TABLE jobs_backup.segments (id bigint PRIMARY KEY, opened_at double precision NOT NULL);
CREATE SEQUENCE jobs_backup.batch_numbers AS bigint;
CREATE TABLE jobs_backup.batches (
    id bigint PRIMARY KEY DEFAULT nextval('jobs_backup.batch_numbers'),
    epoch bigint NOT NULL,                -- of its job ids: see ids.py
    opened_at double precision NOT NULL,
    kind text NOT NULL CHECK (kind IN ('raw', 'failed')),
    workspace_id text NOT NULL,
    source_id text NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'sealed', 'stored', 'deleted', 'set aside')),
    store integer NOT NULL REFERENCES jobs_backup.stores,
    prefix text NOT NULL,
    instance_id text NOT NULL,
    compression text NOT NULL,
    wrappers text NOT NULL,
    session text NOT NULL,                -- that has recorded it
    segment bigint NOT NULL,              -- 0: it has no bytes, and only gives ids
    jobs bigint NOT NULL DEFAULT 0,       -- ids that were given; more than `events` where some were damaged
    delivered bigint NOT NULL DEFAULT 0,
    settled bigint NOT NULL DEFAULT 0,    -- those of the others that have a failure record in the bucket
    events bigint NOT NULL DEFAULT 0,
    raw_bytes bigint NOT NULL DEFAULT 0,
    first_at bigint,
    last_at bigint,
    size bigint,
    crc32c bigint,
    uuid text,
    key text,
    made text NOT NULL DEFAULT '',        -- size and CRC-32C of what its wrappers made of it at the first attempt
    is_doubted boolean NOT NULL DEFAULT false,
    stored_at double precision,
    claimed_by text,                      -- the session that is sending or deleting it
    claims integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    retry_at double precision NOT NULL DEFAULT 0,
    error text NOT NULL DEFAULT '',
    hint text NOT NULL DEFAULT ''
) WITH (fillfactor = 70);
CREATE INDEX batches_open ON jobs_backup.batches (session, id) WHERE state = 'open';
CREATE INDEX batches_sealed ON jobs_backup.batches (store, retry_at, id) WHERE state = 'sealed';
CREATE INDEX batches_unsent_of_session ON jobs_backup.batches (session, id) WHERE state = 'sealed';
CREATE INDEX batches_of_segment ON jobs_backup.batches (segment) WHERE state IN ('open', 'sealed');
CREATE INDEX batches_delivered ON jobs_backup.batches (store, retry_at) WHERE state = 'stored' AND delivered >= jobs;
CREATE INDEX batches_settled ON jobs_backup.batches (store, retry_at) WHERE state = 'stored' AND delivered + settled >= jobs;
CREATE INDEX batches_claimed ON jobs_backup.batches (claimed_by) WHERE claimed_by IS NOT NULL;
CREATE INDEX batches_by_key ON jobs_backup.batches (key) WHERE key IS NOT NULL;
CREATE TABLE jobs_backup.uploads (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch bigint NOT NULL,
    store integer NOT NULL REFERENCES jobs_backup.stores,
    upload bytea NOT NULL,                -- as the provider returned it, as JSON; a secret
    part_size bigint NOT NULL,
    abandoned boolean NOT NULL DEFAULT false,
    failures integer NOT NULL DEFAULT 0,
    retry_at double precision NOT NULL DEFAULT 0,
    error text NOT NULL DEFAULT '',
    hint text NOT NULL DEFAULT ''
);
CREATE INDEX uploads_by_batch ON jobs_backup.uploads (batch);
CREATE TABLE jobs_backup.parts (
    upload bigint NOT NULL REFERENCES jobs_backup.uploads ON DELETE CASCADE,
    number integer NOT NULL,
    part bytea NOT NULL,
    PRIMARY KEY (upload, number)
);
-- A bit for each job, of 4096 consecutive ids. Rows are deleted with their object.
CREATE TABLE jobs_backup.acknowledged (segment bigint PRIMARY KEY, delivered bytea NOT NULL, settled bytea NOT NULL);
-- Jobs whose failure record is in this batch, until that is stored.
CREATE TABLE jobs_backup.settling (batch bigint NOT NULL, job bigint NOT NULL, PRIMARY KEY (batch, job));
-- What is in a bucket and was forgotten, so that `replay` can tell that it lacks something.
CREATE TABLE jobs_backup.forgotten (
    store integer NOT NULL REFERENCES jobs_backup.stores,
    kind text NOT NULL,
    workspace_id text NOT NULL,
    source_id text NOT NULL,
    objects bigint NOT NULL,
    events bigint NOT NULL,
    first_at bigint NOT NULL,
    last_at bigint NOT NULL,
    PRIMARY KEY (store, kind, workspace_id, source_id)
);
-- Damaged bytes. Delete the row once you have seen to them.
CREATE TABLE jobs_backup.damages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch bigint NOT NULL,
    kind text NOT NULL,
    workspace_id text NOT NULL,
    source_id text NOT NULL,
    job bigint NOT NULL,                  -- the first of those events; 0: not known
    events bigint NOT NULL,               -- 0: not known
    error text NOT NULL,
    data bytea NOT NULL                   -- lines, or a member of an object
);
-- In 16 parts, so that transactions seldom wait for each other.
CREATE TABLE jobs_backup.totals (
    kind text NOT NULL,
    state text NOT NULL,                  -- 'skipped': deleted before it was ever stored
    part integer NOT NULL,
    batches bigint NOT NULL DEFAULT 0,
    events bigint NOT NULL DEFAULT 0,
    raw_bytes bigint NOT NULL DEFAULT 0,
    size bigint NOT NULL DEFAULT 0,
    stored_at double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, state, part)
) WITH (fillfactor = 50);
INSERT INTO jobs_backup.totals (kind, state, part)
    SELECT kind, state, part FROM unnest(ARRAY['raw', 'failed']) kind,
    unnest(ARRAY['sealed', 'stored', 'skipped', 'deleted', 'set aside']) state, generate_series(0, 15) part;
CREATE FUNCTION jobs_backup.count_batch() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    UPDATE jobs_backup.totals SET batches = batches + 1, events = events + new.events, raw_bytes = raw_bytes + new.raw_bytes,
        size = totals.size + coalesce(new.size, 0),
        stored_at = CASE WHEN new.state = 'stored' THEN extract(epoch FROM clock_timestamp()) ELSE stored_at END
    WHERE kind = new.kind AND part = pg_current_xact_id()::text::bigint % 16
        AND state = CASE WHEN new.state = 'deleted' AND old.state != 'stored' THEN 'skipped' ELSE new.state END;
    RETURN NULL;
END $$;
-- Without those that only number events, and without the rest of a damaged batch, which was sealed before.
CREATE TRIGGER count_batch AFTER UPDATE OF state ON jobs_backup.batches FOR EACH ROW
    WHEN (new.state != old.state AND new.segment != 0 AND new.events > 0 AND (new.state != 'sealed' OR old.state = 'open'))
    EXECUTE FUNCTION jobs_backup.count_batch();
-- The functions below run as the owner of the tables: who records and sends need not be allowed to make or drop any.
CREATE FUNCTION jobs_backup.add_segment(after bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    last bigint;
    added text;
BEGIN
    LOCK TABLE jobs_backup.segments IN SHARE ROW EXCLUSIVE MODE;
    SELECT max(id) INTO last FROM jobs_backup.segments;
    IF last > after THEN
        RETURN last;  -- another process was quicker
    END IF;
    last := coalesce(last, 0) + 1;
    added := format('jobs_backup.chunks_%s', last);
    EXECUTE format('CREATE TABLE %s (
        batch bigint NOT NULL, start integer NOT NULL, is_member boolean NOT NULL, events integer NOT NULL,
        raw_bytes bigint NOT NULL, first_at bigint NOT NULL, last_at bigint NOT NULL, form smallint NOT NULL,
        crc32c bigint NOT NULL, size bigint NOT NULL,
        data bytea NOT NULL, PRIMARY KEY (batch, start, is_member)
    ) WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)', added);
    EXECUTE format('ALTER TABLE %s ALTER COLUMN data SET STORAGE EXTERNAL', added);  -- as a part of the above only since 16
    INSERT INTO jobs_backup.segments VALUES (last, extract(epoch FROM clock_timestamp()));
    RETURN last;
END $$;
CREATE FUNCTION jobs_backup.drop_segment(segment bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    PERFORM 1 FROM jobs_backup.segments WHERE id = drop_segment.segment FOR UPDATE SKIP LOCKED;
    IF NOT FOUND OR segment >= (SELECT max(id) FROM jobs_backup.segments) THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT 1 FROM jobs_backup.batches b WHERE b.segment = drop_segment.segment AND b.state IN ('open', 'sealed')) THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE jobs_backup.chunks_%s', segment);
    DELETE FROM jobs_backup.segments WHERE id = drop_segment.segment;
    RETURN true;
END $$;
CREATE FUNCTION jobs_backup.segment_bytes(segment bigint) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT coalesce(pg_total_relation_size(to_regclass(format('jobs_backup.chunks_%s', segment))), 0)
$$;
CREATE FUNCTION jobs_backup.open_events() RETURNS TABLE (batch bigint, events bigint, size bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    one bigint;
BEGIN
    FOR one IN SELECT DISTINCT b.segment FROM jobs_backup.batches b WHERE b.state = 'open' AND b.segment != 0 LOOP
        IF to_regclass(format('jobs_backup.chunks_%s', one)) IS NOT NULL THEN
            RETURN QUERY EXECUTE format('SELECT c.batch, sum(c.events)::bigint, sum(c.size)::bigint FROM jobs_backup.chunks_%s c
                JOIN jobs_backup.batches b ON b.id = c.batch AND b.state = ''open'' WHERE c.form != 3 GROUP BY c.batch', one);
        END IF;
    END LOOP;
END $$;
SELECT jobs_backup.add_segment(0);
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA jobs_backup FROM PUBLIC;
"""

MIGRATIONS: Final[dict[int, str]] = {
    1: """
ALTER TABLE jobs_backup.sessions ADD COLUMN version integer NOT NULL DEFAULT 1;  -- of the tables, as its program knows them
-- Spools of single machines that were moved here: see `jobs-backup spool move`.
CREATE TABLE jobs_backup.moves (
    id text PRIMARY KEY,
    origin text NOT NULL,                 -- host and directory
    moved_at double precision NOT NULL,
    known_since bigint NOT NULL,          -- of its catalog, in microseconds since 1970
    lost_until bigint NOT NULL,           -- 0: nothing of its catalog was ever lost
    counts text NOT NULL                  -- what was moved, as JSON
);
-- Job ids name a moved batch as in its first spool. Its row's epoch is in no id.
CREATE TABLE jobs_backup.moved_batches (
    epoch bigint NOT NULL,
    number bigint NOT NULL,
    batch bigint NOT NULL UNIQUE,
    PRIMARY KEY (epoch, number)
);
-- record(connection=...): see outbox.py. The application names the spool that it means.
ALTER TABLE jobs_backup.spool ADD COLUMN id uuid NOT NULL DEFAULT gen_random_uuid();
-- A batch in the state 'outbox' only gives ids. Rows that are there need no check: what was allowed still is.
ALTER TABLE jobs_backup.batches DROP CONSTRAINT batches_state_check, ADD CONSTRAINT batches_state_check
    CHECK (state IN ('open', 'sealed', 'stored', 'deleted', 'set aside', 'outbox')) NOT VALID;
-- What applications have recorded in their own transactions, until it is collected into batches. The application only inserts.
-- The slot changes every 10 minutes, so that the other two come to rest and give their space back at once, without vacuum.
CREATE TABLE jobs_backup.outbox (
    slot smallint NOT NULL DEFAULT extract(epoch FROM clock_timestamp())::bigint / 600 % 3,
    recorded_at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
    workspace_id text NOT NULL,
    source_id text NOT NULL,
    epoch bigint NOT NULL,                -- of the ids: see ids.py
    batch bigint NOT NULL,                -- that gave the ids, in the state 'outbox'
    start integer NOT NULL,
    events integer NOT NULL,
    raw_bytes bigint NOT NULL,
    first_at bigint NOT NULL,
    last_at bigint NOT NULL,
    form smallint NOT NULL,
    crc32c bigint NOT NULL,
    size bigint NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (batch, start, slot)
) PARTITION BY LIST (slot);
CREATE TABLE jobs_backup.outbox_0 PARTITION OF jobs_backup.outbox FOR VALUES IN (0);
CREATE TABLE jobs_backup.outbox_1 PARTITION OF jobs_backup.outbox FOR VALUES IN (1);
CREATE TABLE jobs_backup.outbox_2 PARTITION OF jobs_backup.outbox FOR VALUES IN (2);
ALTER TABLE jobs_backup.outbox_0 ALTER COLUMN data SET STORAGE EXTERNAL;
ALTER TABLE jobs_backup.outbox_1 ALTER COLUMN data SET STORAGE EXTERNAL;
ALTER TABLE jobs_backup.outbox_2 ALTER COLUMN data SET STORAGE EXTERNAL;
-- Where collected events are: ids that were given to the outbox -> ids of the batch that has them, in the same order.
CREATE TABLE jobs_backup.aliases (
    segment bigint NOT NULL,              -- of 4096 consecutive ids that were given to the outbox
    batch bigint NOT NULL,
    first integer NOT NULL,               -- index in the batch of the first of these
    jobs bytea NOT NULL,                  -- a bit for each of these
    PRIMARY KEY (segment, batch)
);
CREATE INDEX aliases_of_batch ON jobs_backup.aliases (batch);
CREATE FUNCTION jobs_backup.outbox_bytes() RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT coalesce(sum(pg_relation_size(c.oid) + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0)), 0)::bigint
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'jobs_backup.outbox'::regclass
$$;
-- Waits for nobody: a transaction that has recorded keeps its slot from being emptied, and the next look tries again.
CREATE FUNCTION jobs_backup.empty_outbox() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    slot text;
    is_used boolean;
    emptied integer := 0;
BEGIN
    FOR slot IN SELECT format('jobs_backup.%I', c.relname) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'jobs_backup.outbox'::regclass AND pg_relation_size(c.oid) > 0
    LOOP
        BEGIN
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', slot);
            EXECUTE format('SELECT EXISTS (SELECT 1 FROM %s)', slot) INTO is_used;
            IF NOT is_used THEN
                EXECUTE format('TRUNCATE %s', slot);
                emptied := emptied + 1;
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    RETURN emptied;
END $$;
REVOKE EXECUTE ON FUNCTION jobs_backup.outbox_bytes(), jobs_backup.empty_outbox() FROM PUBLIC;
-- In place of `forgotten`, whose index takes no long ids. Programs of version 1 still write that, so both are read.
CREATE TABLE jobs_backup.forgotten_streams (
    store integer NOT NULL REFERENCES jobs_backup.stores,
    kind text NOT NULL,
    stream bytea NOT NULL,                -- SHA-256 of the two below
    workspace_id text NOT NULL,
    source_id text NOT NULL,
    objects bigint NOT NULL,
    events bigint NOT NULL,
    first_at bigint NOT NULL,
    last_at bigint NOT NULL,
    PRIMARY KEY (store, kind, stream)
);
UPDATE jobs_backup.version SET version = 2;
""",
}
"""Version -> what makes its tables those of the next one. Each only adds, so that processes of both versions may use them."""
KNOWS_MOVES: Final = 2
"""The first version whose programs understand the ids and inputs of a moved spool."""
