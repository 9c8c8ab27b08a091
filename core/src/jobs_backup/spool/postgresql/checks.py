"""Whether a database can be used as a spool, and what would break its promises there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jobs_backup.errors import SpoolError
from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.spool.postgresql.connection import PRIVILEGES, Database, one
from jobs_backup.spool.postgresql.migrations import check_upgrade, found_version
from jobs_backup.spool.postgresql.policy import ALL_TABLES, OF_BYTES, OF_SEGMENTS, RECORDER
from jobs_backup.spool.postgresql.schema import SCHEMA, VERSION

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db


def check_database(place: DatabaseSpool) -> list[str]:
    """Look whether a spool could be used. It is not made. Returns what would break its promises.

    Raises:
        SpoolError: it cannot be used.
    """
    database = Database(place, connections=1)
    try:
        return database.read(lambda db: list(_look(db, database.name)))
    finally:
        database.close()


def _look(db: Db, name: str) -> Iterator[str]:
    if _says(db, "server_encoding") != "UTF8":
        raise SpoolError(f"{name} has the encoding {_says(db, 'server_encoding')}", hint="create a database WITH ENCODING 'UTF8'")
    if (version := found_version(db, name)) == 0:
        (may_make,) = one(
            db,
            "SELECT CASE WHEN to_regnamespace(%s) IS NULL THEN has_database_privilege(current_database(), 'CREATE')"
            " ELSE has_schema_privilege(%s, 'CREATE') END",
            (SCHEMA, SCHEMA),
        )
        if not may_make:
            raise SpoolError(f"{name} has no tables of a spool, and this user may not make them", hint=PRIVILEGES)
    elif version < VERSION:
        check_upgrade(db, name, version)
    elif missing := _missing(db):
        raise SpoolError(f"{name}: this user may not use {', '.join(missing)}", hint=PRIVILEGES)
    elif missing := _missing_to_upload(db):
        yield f"the user of the spool's database may record, but not upload: it may not use {', '.join(missing)}"
    if one(db, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")[0]:
        yield "the user of the spool's database is a superuser: use the roles that `jobs-backup policy --spool` prints"
    yield from _of_durability(db)


def _of_durability(db: Db) -> Iterator[str]:
    if _says(db, "fsync") != "on":
        yield "the spool's server has fsync=off: a crash of its machine loses acknowledged events, and may damage all of them"
    if (found := _says(db, "synchronous_commit")) in ("off", "local"):
        yield f"the spool's server has synchronous_commit={found}: a crash or a failover loses acknowledged events"
    if _says(db, "full_page_writes") != "on":
        yield "the spool's server has full_page_writes=off: a crash of its machine may damage acknowledged events"
    # Without pg_monitor only the number of standbys is visible, which suffices.
    standbys = one(db, "SELECT count(*) FROM pg_stat_replication WHERE pid IS NOT NULL AND application_name != 'pg_basebackup'")[0]
    if standbys and not _says(db, "synchronous_standby_names"):
        yield (
            "the spool's server has standbys, and synchronous_standby_names is empty: promoting one loses acknowledged events,"
            " which is detected, and cannot be repaired"
        )


def _missing(db: Db) -> list[str]:
    """What a process that records has to be allowed, and is not."""
    if not one(db, "SELECT has_schema_privilege(%s, 'USAGE')", (SCHEMA,))[0]:
        return [f"the schema {SCHEMA} (USAGE)"]
    if missing := _missing_tables(db, [(table, privilege) for privilege, tables in RECORDER.items() for table in tables]):
        return missing
    (last,) = one(db, "SELECT max(id) FROM jobs_backup.segments")
    missing = _missing_tables(db, [(f"chunks_{last}", privilege) for privilege in OF_BYTES])
    if not one(db, "SELECT has_sequence_privilege('jobs_backup.batch_numbers', 'USAGE')")[0]:
        missing.append(f"{SCHEMA}.batch_numbers (USAGE)")
    return missing + _missing_functions(db, ["open_events()", "outbox_bytes()"])


def _missing_to_upload(db: Db) -> list[str]:
    """What a process that also uploads has to be allowed, and is not."""
    wanted = [(table, privilege) for table in ALL_TABLES for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE")]
    return _missing_tables(db, wanted) + _missing_functions(db, ["empty_outbox()", *(f"{name}(bigint)" for name in OF_SEGMENTS)])


def _missing_tables(db: Db, wanted: Sequence[tuple[str, str]]) -> list[str]:
    query = "SELECT has_table_privilege(%s, %s)"
    lacks = [(table, privilege) for table, privilege in wanted if not one(db, query, (f"{SCHEMA}.{table}", privilege))[0]]
    return [
        f"{SCHEMA}.{table} ({', '.join(found[1] for found in some)})"
        for table, some in groupby(sorted(lacks), lambda lack: lack[0])
    ]


def _missing_functions(db: Db, wanted: Sequence[str]) -> list[str]:
    query = "SELECT has_function_privilege(%s, 'EXECUTE')"
    return [f"{SCHEMA}.{name} (EXECUTE)" for name in wanted if not one(db, query, (f"{SCHEMA}.{name}",))[0]]


def _says(db: Db, setting: str) -> Any:
    return one(db, "SELECT current_setting(%s)", (setting,))[0]
