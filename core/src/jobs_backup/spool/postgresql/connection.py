"""PostgreSQL as the spool uses it: a pool, transactions that are repeated where that is safe, errors of the taxonomy.

It works behind a pooler in transaction mode: no session state, no prepared statements, nothing that is left between transactions.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
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
ANSWER_SECONDS: Final = 30.0
"""After this time without an answer, a connection counts as lost: a server that hangs keeps it open and sends nothing."""
_LOCK_SECONDS: Final = 10
"""For a lock. Less than for an answer, so that the server ends what waits, and nobody is left behind there."""
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
# The server waits without a limit for the rest of a message: of a host that is gone, it finds out by these; of a process that is
# frozen, by `transaction_timeout`, if it has that.
_SERVER_KEEPALIVES: Final = "; ".join(f"SET LOCAL tcp_{name.removeprefix('tcp_')} = {value}" for name, value in _KEEPALIVES.items())
HAS_TRANSACTION_TIMEOUT: Final = 170_000
_TRANSACTION_LEASES: Final = 2
"""No transaction lasts as long, unless its process is frozen or its host is gone."""
_OF_URL: Final = {"hostaddr": "", "port": "5432", "options": "", "target_session_attrs": "any"}
"""What libpq would read from the environment, or from a service, where the URL does not say it."""
_CONFLICTS: Final = ("40001", "40P01")
"""Serialization failure, deadlock: the server has rolled the transaction back, and it works when it is repeated."""
_MAX_CONFLICTS: Final = 10
_WRONG: Final = ("28P01", "28000", "3D000")
"""The password, the user, the database."""
_PASSWORD_SECONDS: Final = 30
_MISCONFIGURED: Final = re.compile(
    "password|does not exist|no pg_hba.conf entry|not permitted to log in|invalid .* value|does not support SSL|server requires SSL"
    "|root certificate|certificate verify failed|does not match host name|definition of service|service file|private key"
)
"""Texts of refused connections, for which libpq gives no code. These problems do not pass by themselves."""
_TOO_MANY: Final = re.compile("too many clients|too many connections|connection slots|no more connections")
PRIVILEGES: Final = "ask the database's administrator for what `jobs-backup policy --spool` prints"


class Busy(SpoolError):
    """The server could not do it now: nothing was changed, and it may work when it is tried again."""

    retryable = True


class Conflict(Busy):
    """Two transactions were in each other's way, and the server has rolled one back."""


class ConnectionLost(Busy):
    """The connection was lost, so that nobody knows whether a commit was made."""


class Database:
    """Connections to the database of a spool, opened when they are needed. Any number of threads may use it.

    Attributes:
        is_read_committed: whether that is the default isolation, so that a single statement may wait for a row and then change it.
    """

    def __init__(
        self, place: DatabaseSpool, *, connections: int, answer_seconds: float | None = None, idle_seconds: float = ANSWER_SECONDS
    ) -> None:
        """Open one connection, so that what is wrong is known at once.

        Args:
            connections: how many there may be at the same time.
            answer_seconds: without a byte from the server, after which a connection is lost; None for ANSWER_SECONDS.
            idle_seconds: without a statement from this process, after which the server rolls its transaction back. A process that
                is frozen in a transaction must not keep its locks: others could not take its place.

        Raises:
            ConfigurationError: the driver is not installed, or the URL or the password command is wrong.
            SpoolError: the server cannot be used.
        """
        self.name = str(place)
        self._place = place
        answer_seconds = ANSWER_SECONDS if answer_seconds is None else answer_seconds
        lock_seconds = min(_LOCK_SECONDS, answer_seconds / 2)
        self._begin = (
            f"{BEGIN}; SET LOCAL lock_timeout = '{lock_seconds * 1000:.0f}ms';"
            f" SET LOCAL idle_in_transaction_session_timeout = '{idle_seconds * 1000:.0f}ms'; {_SERVER_KEEPALIVES}"
        )
        self._end_seconds = _TRANSACTION_LEASES * idle_seconds
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
            connection_class=_bounded(answer_seconds),
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
                self.begin(db)
                result = work(db)
                sent[0] = not is_idempotent
                db.execute("COMMIT")
                return result

            return self.use(transaction)

        return self._repeated(attempt)

    def begin(self, db: Db) -> None:
        """Begin a transaction, which neither waits for a lock for ever nor is left open by a process that is frozen."""
        begin = self._begin
        if db.info.server_version >= HAS_TRANSACTION_TIMEOUT:
            begin += f"; SET LOCAL transaction_timeout = '{self._end_seconds * 1000:.0f}ms'"
        db.execute(sql(begin))

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
        # The URL alone says which server this is, and how it is used: PGHOSTADDR, PGPORT, PGOPTIONS and their like change nothing.
        for name, default in _OF_URL.items():
            parameters.setdefault(name, default)
        if place.url.has_several_hosts and not place.url.says("target_session_attrs"):
            parameters["target_session_attrs"] = "read-write"
        if place.password_file is not None:
            parameters.setdefault("passfile", str(place.password_file))
        if place.password_command:
            parameters["password"] = password_of(place.password_command)
        parameters.setdefault("application_name", "jobs-backup")
        parameters.setdefault("connect_timeout", _CONNECT_SECONDS)
        return {**_KEEPALIVES, **parameters, "client_encoding": "UTF8", "autocommit": True, "prepare_threshold": None}

    def _unreachable(self) -> SpoolError:
        """Why the pool has no connection."""
        driver = _driver()
        try:
            self._connect()
        except driver.Error as error:
            return self._translated(error)
        except SpoolError as error:
            return error
        return Busy(f"{self.name}: all connections are in use", hint="the server is slow: look at its load and its locks")

    def _translated(self, error: psycopg.Error) -> SpoolError:
        why = _message(error)
        kind, hint = _meaning(error, why)
        return kind(f"{self.name}: {why}", hint=hint)


def _meaning(error: psycopg.Error, why: str) -> tuple[type[SpoolError], str]:
    """The error of the taxonomy, and what to do."""
    state = error.sqlstate or ""
    # 57P..: the server was stopped, or an administrator has ended the connection. 25P0.: it has, since this process was frozen.
    is_silent = not state and isinstance(error, _driver().OperationalError | _driver().InterfaceError)
    is_lost = is_silent or state in ("25P03", "25P04") or state.startswith(("08", "57P"))
    meanings: tuple[tuple[bool, type[SpoolError], str], ...] = (
        (state == "53100", SpoolFull, "free space on the server's disk"),
        (state == "42501", SpoolError, PRIVILEGES),
        (state in _CONFLICTS, Conflict, "it is retried"),
        (
            state == "55P03",
            Busy,
            "another transaction holds a lock, as `pg_dump` does: see pg_stat_activity, or try again later",
        ),
        (
            state in _WRONG or (not state and bool(_MISCONFIGURED.search(why))),
            SpoolError,
            "correct JOBS_BACKUP_SPOOL, or the password that belongs to it",
        ),
        (
            state == "53300" or (not state and bool(_TOO_MANY.search(why))),
            ConnectionLost,
            "use pgbouncer, or raise max_connections: see docs/fleet.md",
        ),
        (state == "25006", ConnectionLost, "a standby takes no writes: name the server that does; nothing is lost"),
        (is_lost, ConnectionLost, "see that the server runs and can be reached; nothing is lost"),
    )
    return next(((kind, hint) for holds, kind, hint in meanings if holds), (SpoolError, "look at the server's log"))


def password_of(command: str) -> str:
    """What a command prints. It is in no message, nor is what it writes to standard error.

    Raises:
        ConfigurationError: it cannot be run, fails, or prints nothing.
    """
    hint = "correct JOBS_BACKUP_SPOOL_PASSWORD_COMMAND"
    try:
        words = shlex.split(command)
        # It reads nothing: this process's standard input may be events.
        found = subprocess.run(  # noqa: S603 - the user's own command
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PASSWORD_SECONDS, check=False
        )
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


@functools.cache
def _bounded(seconds: float) -> type[Db]:
    """Connections that are lost when the server sends nothing for this time."""
    import psycopg
    from psycopg.waiting import Ready

    class Bounded(psycopg.Connection[tuple[Any, ...]]):
        def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
            return super().wait(self._watched(gen), *args, **kwargs)

        def _watched(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
            until = time.monotonic() + seconds
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    if ready != Ready.NONE:
                        until = time.monotonic() + seconds
                    elif time.monotonic() >= until:
                        self.pgconn.finish()
                        raise psycopg.OperationalError(f"the server has not answered for {seconds:.0f} s")
                    wanted = gen.send(ready)
            except StopIteration as end:
                result: T = end.value
                return result

    return Bounded


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
