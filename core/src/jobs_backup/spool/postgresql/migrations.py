"""Make the tables, or those of the next version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobs_backup.errors import SpoolError
from jobs_backup.spool.postgresql.connection import Database, one, sql
from jobs_backup.spool.postgresql.policy import OUTBOX, OWNER, grants
from jobs_backup.spool.postgresql.schema import MIGRATION_LOCK, MIGRATIONS, SCHEMA, TABLES, VERSION
from jobs_backup.util.installing import how_to_install

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

UPGRADE: Final = "let the database's administrator run what `jobs-backup policy --spool --upgrade` prints"
_LOCK_TIMEOUT: Final = "2s"
"""Whoever waits for a table blocks everybody that comes later, and with them all leases."""


def migrate(database: Database) -> None:
    """Make the tables where there are none, or those of this version of earlier ones.

    Raises:
        SpoolError: a newer version has made them, this user may not, or the database cannot be used.
    """
    version = database.read(lambda db: found_version(db, database.name))
    if version >= VERSION:
        return

    def change(db: Db) -> None:
        db.execute("SELECT pg_advisory_xact_lock(%s::bigint)", (MIGRATION_LOCK,))
        db.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        found = found_version(db, database.name)  # again: another process may have been quicker
        if found == 0:
            encoding = one(db, "SELECT current_setting('server_encoding')")[0]
            if encoding != "UTF8":
                raise SpoolError(f"{database.name} has the encoding {encoding}", hint="create a database WITH ENCODING 'UTF8'")
            if not _has_schema(db):
                db.execute(f"CREATE SCHEMA {SCHEMA}")
            db.execute(TABLES)  # several statements, so without parameters
            found = 1
        elif found < VERSION:
            check_upgrade(db, database.name, found)
            db.execute("SELECT set_config('role', %s, true)", (_owner(db),))
        for step in range(found, VERSION):
            db.execute(sql(MIGRATIONS[step]))
        if _owner(db) == OWNER:
            db.execute(sql("\n".join(grants())))

    database.write(change, is_idempotent=True)


def check_version(database: Database) -> None:
    """Check that there are tables that this version of the program understands.

    Raises:
        SpoolError: there are none, or those of another version.
    """
    version = database.read(lambda db: found_version(db, database.name))
    if version == 0:
        raise SpoolError(f"no spool found in {database.name}", hint="set JOBS_BACKUP_SPOOL as in the processes that record")
    if version < VERSION:
        raise SpoolError(
            f"{database.name} has tables of an earlier version",
            hint="the next process that opens it, for example `jobs-backup archive`, upgrades them",
        )


def found_version(db: Db, name: str) -> int:
    """The version of the tables; 0 if there are none.

    Raises:
        SpoolError: this version of the program does not understand them.
    """
    # A query, since `to_regclass` may answer from a cache that does not know what was made while this waited for the lock.
    there = (
        "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = 'version')"
    )
    if not one(db, there, (SCHEMA,))[0]:
        return 0
    version, oldest = one(db, "SELECT version, oldest FROM jobs_backup.version")
    if oldest > VERSION:
        raise SpoolError(
            f"{name} needs a newer version of jobs-backup (its tables are for versions {oldest} to {version}, this one knows"
            f" {VERSION})",
            hint=how_to_install("jobs-backup", "--upgrade"),
        )
    return int(version)


def check_upgrade(db: Db, name: str, found: int) -> None:
    """Check that this user may upgrade tables of the version `found`.

    Raises:
        SpoolError: it may not, or a role is missing.
    """
    what = f"{name} has tables of version {found}, and"
    if not one(db, "SELECT pg_has_role(nspowner, 'MEMBER') FROM pg_catalog.pg_namespace WHERE nspname = %s", (SCHEMA,))[0]:
        raise SpoolError(f"{what} this user may not upgrade them to version {VERSION}", hint=UPGRADE)
    if _owner(db) == OWNER and not _has_role(db, OUTBOX):
        raise SpoolError(f"{what} version {VERSION} needs the role {OUTBOX}", hint=UPGRADE)


def _owner(db: Db) -> str:
    return str(one(db, "SELECT pg_get_userbyid(nspowner) FROM pg_catalog.pg_namespace WHERE nspname = %s", (SCHEMA,))[0])


def _has_schema(db: Db) -> bool:
    return bool(one(db, "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %s)", (SCHEMA,))[0])


def _has_role(db: Db, name: str) -> bool:
    return bool(one(db, "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = %s)", (name,))[0])
