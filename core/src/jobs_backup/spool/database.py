"""SQLite as the spool uses it: WAL, one connection behind a lock, errors of the taxonomy."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from jobs_backup.errors import SpoolCorrupt, SpoolError, SpoolFull
from jobs_backup.fsync import sync_directory

Durability = Literal["full", "process"]

_BUSY_SECONDS: Final = 60.0
_READER_BUSY_SECONDS: Final = 1.0
"""Readers wait only where somebody repairs or removes the log."""
_OLDEST: Final = (3, 37)  # STRICT tables; RETURNING is older
_SYNCHRONOUS: Final = {"full": "FULL", "process": "NORMAL"}  # in WAL mode, NORMAL does not wait for the disk at a commit


class Database:
    """One SQLite file. All its methods may be called from any thread."""

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        version: int,
        durability: Durability,
        page_size: int = 4096,
        checkpoint_pages: int = 1000,
        create: bool = True,
        upgrades: Mapping[int, Sequence[str]] = MappingProxyType({}),
        only_reads: bool = False,
    ) -> None:
        """Open the file; `create` it where it does not exist.

        Args:
            upgrades: version -> statements that complete what was copied from a file of that version: see `_upgrade`.
            only_reads: it is there, with this version. Nobody who writes is ever waited for, or has to wait.

        Raises:
            SpoolError: it was written by a newer version, or can't be opened.
        """
        self.path = path
        self._lock = threading.RLock()
        if sqlite3.sqlite_version_info < _OLDEST:
            raise SpoolError(f"SQLite {sqlite3.sqlite_version} is too old", hint="use a Python with SQLite 3.37 or later")
        with database_errors(path):
            if create and not only_reads and not path.exists():
                path.touch(mode=0o600)
                sync_directory(path.parent)
            # Not created here: another process may have removed a file that was drained, and it shall not come back empty.
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=_READER_BUSY_SECONDS if only_reads else _BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            _databases.add(self)
            try:
                if only_reads:
                    self._connection.execute("PRAGMA query_only=ON")
                    return
                self._connection.execute(f"PRAGMA page_size={page_size}")
                self._connection.execute("PRAGMA journal_mode=WAL")
                self._connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability]}")
                self._connection.execute(f"PRAGMA wal_autocheckpoint={checkpoint_pages}")
                self._create(schema, version, upgrades)
                self._connection.execute("PRAGMA foreign_keys=ON")
            except BaseException:
                self._connection.close()
                raise

    def _create(self, schema: str, version: int, upgrades: Mapping[int, Sequence[str]]) -> None:
        with self.transaction() as connection:
            found: int = connection.execute("PRAGMA user_version").fetchone()[0]
            if found > version:
                raise SpoolError(
                    f"{self.path} was written by a newer jobs-backup (version {found} of the format, this one knows {version})",
                    hint="pip install --upgrade jobs-backup",
                )
            if found == version:
                return
            if found:
                _upgrade(connection, schema, upgrades[found])
            else:
                _run(connection, schema)
            connection.execute(f"PRAGMA user_version={version}")

    @contextmanager
    def transaction(self) -> Generator[sqlite3.Connection]:
        """A write transaction: committed at the end, rolled back at an exception."""
        with self._lock, database_errors(self.path):
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def execute(self, statement: str, parameters: Sequence[object]) -> None:
        """One statement, which is a transaction of its own."""
        with self._lock, database_errors(self.path):
            self._connection.execute(statement, parameters)

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """The connection, for statements that only read. Keep it short: a long read lets the WAL grow."""
        with self._lock, database_errors(self.path):
            yield self._connection

    @property
    def size(self) -> int:
        """Bytes on the disk, with those of the log."""
        with database_errors(self.path):
            return self.path.stat().st_size + Path(f"{self.path}-wal").stat().st_size

    def keep_for_ever(self) -> None:
        """Have the connection outlive this object, and the interpreter."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A child may not even close a connection that it has inherited (sqlite.org/howtocorrupt.html): it never goes away there.
    for database in list(_databases):
        database.keep_for_ever()


os.register_at_fork(after_in_child=_after_fork_in_child)


def file_version(path: Path) -> int:
    """The version of the format that a file has; 0 if there is none yet."""
    if not path.exists():
        return 0
    with database_errors(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _run(connection: sqlite3.Connection, schema: str) -> None:
    for statement in schema.split(";\n"):
        connection.execute(statement)


def _upgrade(connection: sqlite3.Connection, schema: str, statements: Sequence[str]) -> None:
    """Make all tables anew, copy what the old ones have, and complete it. In a transaction: all of it or nothing."""
    names = "SELECT name FROM sqlite_schema WHERE type=? AND name NOT LIKE 'sqlite_%'"
    tables = [row[0] for row in connection.execute(names, ("table",)).fetchall()]
    for kind in ("index", "trigger"):
        for (name,) in connection.execute(names, (kind,)).fetchall():
            connection.execute(f"DROP {kind} {name}")
    for table in tables:
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    _run(connection, schema)
    for table in tables:
        columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA table_info(old_{table})").fetchall())
        connection.execute(f"INSERT OR REPLACE INTO {table} ({columns}) SELECT {columns} FROM old_{table}")  # noqa: S608 - our own names
        connection.execute(f"DROP TABLE old_{table}")
    for statement in statements:
        connection.execute(statement)


@contextmanager
def database_errors(path: Path) -> Generator[None]:
    """SQLite's and the operating system's errors as the taxonomy's."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise SpoolFull(f"{path}: the disk is full", hint="free space on the spool's disk") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise SpoolCorrupt(f"{path}: {error}", hint="keep the file for a repair, and report it") from error
        raise SpoolError(f"{path}: {error}", hint="look at the disk and the permissions of the spool's directory") from error
    except OSError as error:
        raise SpoolError(
            f"{path}: {error.strerror}", hint="look at the disk and the permissions of the spool's directory"
        ) from error
