"""The least privileges on the database of a spool, as SQL for its administrator."""

from __future__ import annotations

from typing import Final

from jobs_backup.spool.postgresql.schema import SCHEMA, TABLES

ALL_TABLES: Final = (
    "version", "spool", "stores", "sessions", "ended_sessions", "readers", "positions", "segments", "batches", "uploads", "parts",
    "acknowledged", "settling", "forgotten", "damages", "totals",
)  # fmt: skip
RECORDER: Final = {
    "SELECT": ("version", "spool", "stores", "sessions", "ended_sessions", "readers", "positions", "segments", "batches",
               "acknowledged", "settling", "totals"),
    "INSERT": ("stores", "sessions", "ended_sessions", "readers", "positions", "batches", "acknowledged", "settling", "damages"),
    "UPDATE": ("stores", "sessions", "positions", "segments", "batches", "acknowledged", "totals"),
    "DELETE": ("sessions", "readers", "batches", "acknowledged", "settling"),
}  # fmt: skip
OF_BYTES: Final = ("SELECT", "INSERT", "DELETE")
OF_SEGMENTS: Final = ("add_segment", "drop_segment", "segment_bytes")
_STATUS: Final = ("version", "spool", "stores", "sessions", "ended_sessions", "segments", "batches", "forgotten", "totals")
# Not the ids of uploads, which are secrets, nor damaged bytes.
_OF_UPLOADS: Final = "id, batch, store, part_size, abandoned, failures, retry_at, error, hint"
_OF_DAMAGES: Final = "id, batch, kind, workspace_id, source_id, job, events, error"

_HEAD: Final = f"""\
-- Roles and tables of a jobs-backup spool. Run it once, in the database, as a role that may create roles and schemas:
--   jobs-backup policy --spool | psql --set ON_ERROR_STOP=1 --single-transaction postgresql://ADMINISTRATOR@HOST/DATABASE
-- Then create users, which log in, in one of the last three roles:
--   CREATE USER my_archivers PASSWORD '...' IN ROLE {SCHEMA}_archiver;
CREATE ROLE {SCHEMA}_owner NOLOGIN;      -- owns the tables; nobody needs to log in as it
CREATE ROLE {SCHEMA}_recorder NOLOGIN;   -- records and acknowledges: Backup(archive=False)
CREATE ROLE {SCHEMA}_archiver NOLOGIN;   -- the same, uploads and deletes: Backup, run, archive, serve, delivered, failed
CREATE ROLE {SCHEMA}_status NOLOGIN;     -- status and replay: sees no event
GRANT {SCHEMA}_owner TO CURRENT_USER;
CREATE SCHEMA {SCHEMA} AUTHORIZATION {SCHEMA}_owner;
SET LOCAL ROLE {SCHEMA}_owner;
GRANT USAGE ON SCHEMA {SCHEMA} TO {SCHEMA}_recorder, {SCHEMA}_archiver, {SCHEMA}_status;
-- The tables with the bytes are made and dropped by functions of the owner.
ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT {", ".join(OF_BYTES)} ON TABLES TO {SCHEMA}_recorder, {SCHEMA}_archiver;
"""


def statements() -> str:
    """Everything that an administrator has to run."""
    grants = [f"REVOKE ALL ON {_named(ALL_TABLES)} FROM {SCHEMA}_recorder;"]
    grants += [f"GRANT {privilege} ON {_named(tables)} TO {SCHEMA}_recorder;" for privilege, tables in RECORDER.items()]
    grants += [
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {_named(ALL_TABLES)} TO {SCHEMA}_archiver;",
        f"GRANT SELECT ON {_named(_STATUS)} TO {SCHEMA}_status;",
        f"GRANT SELECT ({_OF_UPLOADS}) ON {SCHEMA}.uploads TO {SCHEMA}_recorder, {SCHEMA}_status;",
        f"GRANT SELECT ({_OF_DAMAGES}) ON {SCHEMA}.damages TO {SCHEMA}_recorder, {SCHEMA}_status;",
        f"GRANT USAGE ON SEQUENCE {SCHEMA}.batch_numbers TO {SCHEMA}_recorder, {SCHEMA}_archiver;",
        f"GRANT EXECUTE ON FUNCTION {SCHEMA}.open_events() TO {SCHEMA}_recorder, {SCHEMA}_archiver, {SCHEMA}_status;",
        *(f"GRANT EXECUTE ON FUNCTION {SCHEMA}.{name}(bigint) TO {SCHEMA}_archiver;" for name in OF_SEGMENTS),
    ]
    return "\n".join([_HEAD.rstrip(), TABLES.strip(), *grants, "RESET ROLE;", ""])


def _named(tables: tuple[str, ...]) -> str:
    return ", ".join(f"{SCHEMA}.{table}" for table in tables)
