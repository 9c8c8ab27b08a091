"""PostgreSQL as the spool uses it: a pool, transactions that are repeated where that is safe, errors of the taxonomy.

It works behind a pooler in transaction mode: no session state, no prepared statements, nothing that is left between transactions.
"""

from __future__ import annotations

import logging
import os
import random
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeVar

from jobs_backup.errors import ConfigurationError, SpoolError, SpoolFull
from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.util.installing import how_to_install
from jobs_backup.util.logs import logger_of

if TYPE_CHECKING:
    import psycopg
    from psycopg_pool import ConnectionPool

    Db = psycopg.Connection[tuple[Any, ...]]

T = TypeVar("T")
log: Final = logger_of(__name__)

NOW: Final = "(SELECT extract(epoch FROM clock_timestamp())::double precision)"
"""The server's clock. In a subquery, so that an index may be used with it."""
BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
"""Whatever the default of the database or the user: what is read behind a lock must be newer than the lock."""
_IS_READ_COMMITTED: Final = "SELECT current_setting('default_transaction_isolation') = 'read committed'"
_CONNECT_SECONDS: Final = 5
_WAIT_SECONDS: Final = 10.0
"""For a connection of the pool."""
_RETRY_SECONDS: Final = 5.0
"""How long a transaction is repeated whose connection was lost before its COMMIT: a server that restarts is back by then."""
_KEEPALIVES: Final = {"keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 14_000}
"""A partition shall hold no thread for longer than a lease: the system's own limits are hours. Seconds; the last: milliseconds."""
_CONFLICTS: Final = ("40001", "40P01")
"""Serialization failure, deadlock: the server has rolled the transaction back, and it works when it is repeated."""
_LOCKED: Final = "55P03"
"""A lock was waited for until `lock_timeout`."""
_MAX_CONFLICTS: Final = 10
_PASSWORD_SECONDS: Final = 30
PRIVILEGES: Final = "ask the database's administrator for what `jobs-backup policy --spool` prints"


class ConnectionLost(SpoolError):
    """The connection was lost, so that nobody knows whether a commit was made."""

    retryable = True


class Database:
    """Connections to the database of a spool, opened when they are needed. Any number of threads may use it.

    Attributes:
        is_read_committed: whether that is the default isolation, so that a single statement may wait for a row and then change it.
    """

    def __init__(self, place: DatabaseSpool, *, connections: int) -> None:
        """Open one connection, so that what is wrong is known at once.

        Args:
            connections: how many there may be at the same time.

        Raises:
            ConfigurationError: the driver is not installed, or the URL or the password command is wrong.
            SpoolError: the server can't be used.
        """
        self.name = str(place)
        self._place = place
        driver = _driver()
        from psycopg_pool import ConnectionPool

        # The pool warns of each failed attempt in its own thread; the caller that needed the connection reports what matters.
        if (its := logging.getLogger("psycopg.pool")).level == logging.NOTSET:
            its.setLevel(logging.ERROR)
        try:
            self._connect()
        except driver.Error as error:
            raise self._translated(error) from None  # the driver's own text of an error may repeat the URL
        self._pool: ConnectionPool[Db] = ConnectionPool(
            "",
            kwargs=lambda: self._parameters(driver),
            min_size=1,
            max_size=connections,
            open=False,
            name="jobs-backup-spool",
            timeout=_WAIT_SECONDS,
            max_idle=60.0,
            reconnect_timeout=_RETRY_SECONDS,
        )
        self._pool.open()
        try:
            self.is_read_committed = bool(self.read(lambda db: one(db, _IS_READ_COMMITTED)[0]))
        except BaseException:
            self._pool.close()
            raise

    def use(self, work: Callable[[Db], T]) -> T:
        """Call `work` with a connection that commits each statement. Nothing is repeated.

        Raises:
            ConnectionLost: the connection was lost: the last statement may have been made, or not.
            SpoolError: it could not be done.
        """
        import psycopg
        import psycopg_pool

        try:
            with self._pool.connection() as connection:
                return work(connection)
        except psycopg_pool.PoolTimeout:
            raise self._unreachable() from None
        except psycopg_pool.PoolClosed:
            raise SpoolError(f"{self.name}: the spool is closed") from None
        except psycopg.Error as error:
            translated = self._translated(error)
            if isinstance(translated, ConnectionLost):
                self._pool.drain()  # a server that was restarted has ended all of them
            raise translated from error

    def read(self, work: Callable[[Db], T]) -> T:
        """Call `work`, which only reads, and again where the connection is lost. Raises SpoolError."""
        return self._repeated(lambda _: self.use(work))

    def write(self, work: Callable[[Db], T], *, is_idempotent: bool = False) -> T:
        """Call `work` in a transaction. It is repeated where it surely was not committed, and where `is_idempotent`, in any case.

        Raises:
            ConnectionLost: it is not known whether it was committed.
            SpoolError: it could not be done.
        """

        def attempt(sent: list[bool]) -> T:
            def transaction(db: Db) -> T:
                sent[0] = False
                db.execute(BEGIN)
                result = work(db)
                sent[0] = not is_idempotent
                db.execute("COMMIT")
                return result

            return self.use(transaction)

        return self._repeated(attempt)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close(timeout=2.0)

    def statistics(self) -> dict[str, int]:
        """What the pool has counted."""
        return dict(self._pool.get_stats())

    def _repeated(self, attempt: Callable[[list[bool]], T]) -> T:
        until = time.monotonic() + _RETRY_SECONDS
        conflicts = 0
        wait = 0.02
        while True:
            sent = [False]  # the COMMIT
            try:
                return attempt(sent)
            except ConnectionLost:
                if sent[0] or time.monotonic() >= until:
                    raise
            except Conflict:
                conflicts += 1
                if conflicts > _MAX_CONFLICTS:
                    raise
            time.sleep(wait * (1 + random.random()))  # noqa: S311 - so that two do not meet again
            wait = min(2 * wait, 0.5)

    def _connect(self) -> None:
        """Open a connection, to see that this works."""
        driver = _driver()
        driver.connect(**self._parameters(driver)).close()

    def _parameters(self, driver: Any) -> dict[str, Any]:
        """What a connection is opened with. Raises ConfigurationError, without a part of the URL."""
        place = self._place
        try:
            parameters: dict[str, Any] = driver.conninfo.conninfo_to_dict(place.url.reveal())
        except driver.Error:
            raise ConfigurationError(f"JOBS_BACKUP_SPOOL: {self.name} is not a valid PostgreSQL URL") from None
        if "sslmode" not in parameters and "PGSSLMODE" not in os.environ and not place.url.is_local:
            parameters["sslmode"] = "verify-full"
        if place.url.has_several_hosts:
            parameters.setdefault("target_session_attrs", "read-write")
        if place.password_file is not None:
            parameters.setdefault("passfile", str(place.password_file))
        if place.password_command:
            parameters["password"] = password_of(place.password_command)
        parameters.setdefault("application_name", "jobs-backup")
        parameters.setdefault("connect_timeout", _CONNECT_SECONDS)
        return {**_KEEPALIVES, **parameters, "autocommit": True, "prepare_threshold": None}

    def _unreachable(self) -> SpoolError:
        """Why the pool has no connection."""
        driver = _driver()
        try:
            self._connect()
        except driver.Error as error:
            return self._translated(error)
        except SpoolError as error:
            return error
        return SpoolError(f"{self.name}: all connections are in use", hint="the server is slow: look at its load and its locks")

    def _translated(self, error: psycopg.Error) -> SpoolError:
        import psycopg

        state, why = error.sqlstate or "", _message(error)
        if isinstance(error, psycopg.errors.DiskFull):
            return SpoolFull(f"{self.name}: the server has no space left", hint="free space on the server's disk")
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return SpoolError(f"{self.name}: {why}", hint=PRIVILEGES)
        if state in (*_CONFLICTS, _LOCKED):
            in_use = "another connection uses a table for long, as `pg_dump` does: try again once it is done"
            kind, hint = (TableInUse, in_use) if state == _LOCKED else (Conflict, "it is retried")
            return kind(f"{self.name}: {why}", hint=hint)
        if state in ("28P01", "28000", "3D000") or "password" in why:
            return SpoolError(f"{self.name}: {why}", hint="correct JOBS_BACKUP_SPOOL, or the password that belongs to it")
        # 25006: a standby, after a failover; 57P..: the server was stopped, or an administrator has ended the connection.
        is_lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and (not state or state[:2] in ("08", "57"))
        if (is_lost or state == "25006") and state != "57014":
            return ConnectionLost(f"{self.name}: {why}", hint="see that the server runs and can be reached; nothing is lost")
        return SpoolError(f"{self.name}: {why}", hint="look at the server's log")


class TableInUse(SpoolError):
    """Another connection holds a lock on a table for longer than a transaction waits."""

    retryable = True

    @property
    def code(self) -> str:
        return SpoolError.__name__


class Conflict(SpoolError):
    """Two transactions were in each other's way, and the server has rolled one back."""

    retryable = True


def password_of(command: str) -> str:
    """What a command prints. It is in no message, nor is what it writes to standard error.

    Raises:
        ConfigurationError: it can't be run, fails, or prints nothing.
    """
    hint = "correct JOBS_BACKUP_SPOOL_PASSWORD_COMMAND"
    try:
        words = shlex.split(command)
        found = subprocess.run(words, capture_output=True, timeout=_PASSWORD_SECONDS, check=False)  # noqa: S603 - the user's own command
        password = found.stdout.decode().rstrip("\r\n")
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"the password command took longer than {_PASSWORD_SECONDS} s", hint=hint) from None
    except (OSError, ValueError, IndexError) as error:
        raise ConfigurationError(f"the password command cannot be run: {type(error).__name__}", hint=hint) from None
    if found.returncode or not password:
        why = f"failed with exit code {found.returncode}" if found.returncode else "printed nothing"
        raise ConfigurationError(f"the password command {why}", hint=hint)
    return password


def sql(text: str) -> LiteralString:
    """A statement made from our own texts and names, for psycopg's types. Values are always parameters."""
    return text  # pyright: ignore[reportReturnType]


def each(db: Db, statement: str, rows: Sequence[Sequence[Any]]) -> int:
    """Run a statement for each of these parameters. Returns how many rows it changed."""
    if not rows:
        return 0
    with db.cursor() as cursor:
        cursor.executemany(sql(statement), rows)
        return cursor.rowcount


def one(db: Db, statement: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
    """The row of a query that finds one."""
    row = db.execute(sql(statement), parameters).fetchone()
    assert row is not None
    return row


def _driver() -> Any:
    try:
        import psycopg
        import psycopg_pool  # noqa: F401  # pyright: ignore[reportUnusedImport] - that it is there
    except ImportError as error:
        raise ConfigurationError(
            f"a spool in PostgreSQL needs psycopg 3 with its pool: {error}",
            hint=how_to_install("jobs-backup", extra="postgresql"),
        ) from error
    return psycopg


def _message(error: psycopg.Error) -> str:
    """What happened, in one line. The details are left out: they may have values of rows."""
    text = error.diag.message_primary or str(error).strip().partition("\n")[0]
    return text or type(error).__name__
