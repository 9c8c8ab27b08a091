"""The least privileges on the database of a spool, as SQL for its administrator."""

from __future__ import annotations

from typing import Final

from jobs_backup.spool.postgresql.schema import MIGRATION_LOCK, MIGRATIONS, SCHEMA, TABLES

OWNER: Final = f"{SCHEMA}_owner"
OUTBOX: Final = f"{SCHEMA}_outbox"
"""The role that version 1 did not have. Only an administrator can create it."""

ALL_TABLES: Final = (
    "version", "spool", "stores", "sessions", "ended_sessions", "readers", "positions", "segments", "batches", "uploads", "parts",
    "acknowledged", "settling", "forgotten", "damages", "totals", "moves", "moved_batches", "outbox", "outbox_0", "outbox_1",
    "outbox_2", "aliases", "forgotten_streams",
)  # fmt: skip
RECORDER: Final = {
    "SELECT": ("version", "spool", "stores", "sessions", "ended_sessions", "readers", "positions", "segments", "batches",
               "acknowledged", "settling", "totals", "moved_batches", "outbox", "aliases"),
    "INSERT": ("stores", "sessions", "ended_sessions", "readers", "positions", "batches", "acknowledged", "settling", "damages",
               "outbox", "aliases"),
    "UPDATE": ("stores", "sessions", "positions", "segments", "batches", "acknowledged", "totals"),
    "DELETE": ("sessions", "readers", "batches", "acknowledged", "settling", "outbox"),
}  # fmt: skip
OF_BYTES: Final = ("SELECT", "INSERT", "DELETE")
OF_SEGMENTS: Final = ("add_segment", "drop_segment", "segment_bytes")
_STATUS: Final = ("version", "spool", "stores", "sessions", "ended_sessions", "segments", "batches", "forgotten", "totals",
                  "moves", "forgotten_streams")  # fmt: skip
# Not the ids of uploads, which are secrets, nor damaged bytes.
_OF_UPLOADS: Final = "id, batch, store, part_size, abandoned, failures, retry_at, error, hint"
_OF_OUTBOX: Final = "batch, workspace_id, source_id, recorded_at, events, size"
_OF_DAMAGES: Final = "id, batch, kind, workspace_id, source_id, job, events, error"


def _create(*roles: str) -> str:
    """Create roles. They belong to the whole server: the spool of another database may have them."""
    names = ", ".join(f"'{SCHEMA}_{role}'" for role in roles)
    return (
        f"DO $roles$ DECLARE role text; BEGIN\nFOREACH role IN ARRAY ARRAY[{names}] LOOP\n"
        "    IF NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = role) THEN\n"
        "        EXECUTE format('CREATE ROLE %I NOLOGIN', role);\n    END IF;\nEND LOOP;\nEND $roles$;"
    )


_HEAD: Final = f"""\
-- Roles and tables of a jobs-backup spool. Run it once, in the database, as a role that may create roles and schemas:
--   jobs-backup policy --spool | psql --set ON_ERROR_STOP=1 --single-transaction postgresql://ADMINISTRATOR@HOST/DATABASE
-- Then create users, which log in, in one of the last four roles:
--   CREATE USER my_archivers PASSWORD '...' IN ROLE {SCHEMA}_archiver;
-- {SCHEMA}_owner     owns the tables; nobody needs to log in as it
-- {SCHEMA}_recorder  records and acknowledges: Backup(archive=False)
-- {SCHEMA}_archiver  the same, uploads and deletes: Backup, run, archive, serve, delivered, failed
-- {SCHEMA}_status    status and replay: sees no event
-- {OUTBOX}    the application's own connection in record(connection=...): only inserts
{_create("owner", "recorder", "archiver", "status", "outbox")}
GRANT {SCHEMA}_owner TO CURRENT_USER;
CREATE SCHEMA {SCHEMA} AUTHORIZATION {SCHEMA}_owner;
SET LOCAL ROLE {SCHEMA}_owner;
-- The tables with the bytes are made and dropped by functions of the owner.
ALTER DEFAULT PRIVILEGES IN SCHEMA {SCHEMA} GRANT {", ".join(OF_BYTES)} ON TABLES TO {SCHEMA}_recorder, {SCHEMA}_archiver;
"""


_UPGRADE_HEAD: Final = f"""\
-- Upgrades the tables of a jobs-backup spool to this version, from any earlier one. Run it as a role that may create roles and
-- set the role {OWNER}, before the first process of this version starts; those of the version before go on:
--   jobs-backup policy --spool --upgrade | psql --set ON_ERROR_STOP=1 --single-transaction postgresql://ADMINISTRATOR@HOST/DATABASE
{_create("outbox")}
SET LOCAL ROLE {OWNER};
SET LOCAL lock_timeout = '2s';  -- if something holds a table for longer, run it again later
SELECT pg_advisory_xact_lock({MIGRATION_LOCK});
"""


def statements() -> str:
    """Everything that an administrator has to run for a new spool."""
    return "\n".join([_HEAD.rstrip(), TABLES.strip(), *(one.strip() for one in MIGRATIONS.values()), *grants(), "RESET ROLE;", ""])


def upgrade_statements() -> str:
    """What an administrator has to run for a spool that an earlier version has made."""
    steps = [
        f"DO $upgrade$ BEGIN\nIF (SELECT version FROM {SCHEMA}.version) = {version} THEN EXECUTE $step${text}$step$; END IF;\n"
        "END $upgrade$;"
        for version, text in MIGRATIONS.items()
    ]
    return "\n".join([_UPGRADE_HEAD.rstrip(), *steps, *grants(), "RESET ROLE;", ""])


def grants() -> list[str]:
    """The privileges of the roles on the tables of this version."""
    return [
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO {SCHEMA}_recorder, {SCHEMA}_archiver, {SCHEMA}_status, {OUTBOX};",
        f"REVOKE ALL ON {_named(ALL_TABLES)} FROM {SCHEMA}_recorder;",
        *(f"GRANT {privilege} ON {_named(tables)} TO {SCHEMA}_recorder;" for privilege, tables in RECORDER.items()),
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {_named(ALL_TABLES)} TO {SCHEMA}_archiver;",
        f"GRANT SELECT ON {_named(_STATUS)} TO {SCHEMA}_status;",
        f"GRANT SELECT ({_OF_UPLOADS}) ON {SCHEMA}.uploads TO {SCHEMA}_recorder, {SCHEMA}_status;",
        f"GRANT SELECT ({_OF_OUTBOX}) ON {SCHEMA}.outbox TO {SCHEMA}_status;",
        f"GRANT INSERT ON {SCHEMA}.outbox TO {OUTBOX};",
        f"GRANT SELECT (id) ON {SCHEMA}.spool TO {OUTBOX};",
        f"GRANT SELECT ({_OF_DAMAGES}) ON {SCHEMA}.damages TO {SCHEMA}_recorder, {SCHEMA}_status;",
        f"GRANT USAGE ON SEQUENCE {SCHEMA}.batch_numbers TO {SCHEMA}_recorder, {SCHEMA}_archiver;",
        f"GRANT EXECUTE ON FUNCTION {SCHEMA}.open_events() TO {SCHEMA}_recorder, {SCHEMA}_archiver, {SCHEMA}_status;",
        f"GRANT EXECUTE ON FUNCTION {SCHEMA}.outbox_bytes() TO {SCHEMA}_recorder, {SCHEMA}_archiver;",
        f"GRANT EXECUTE ON FUNCTION {SCHEMA}.empty_outbox() TO {SCHEMA}_archiver;",
        *(f"GRANT EXECUTE ON FUNCTION {SCHEMA}.{name}(bigint) TO {SCHEMA}_archiver;" for name in OF_SEGMENTS),
    ]


def _named(tables: tuple[str, ...]) -> str:
    return ", ".join(f"{SCHEMA}.{table}" for table in tables)
