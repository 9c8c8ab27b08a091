"""SQLite as the spool uses it: WAL, one connection behind a lock, safe across forks and interrupts, with the spool's errors."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Concatenate, Final, Literal, ParamSpec, Protocol, TypeVar

import msgspec

from jobs_backup.errors import SpoolCorrupt, SpoolError, SpoolFull
from jobs_backup.spool.errors import LOOK, file_error, reentered
from jobs_backup.spool.interface import Durability
from jobs_backup.spool.sqlite.forks import ForkLock
from jobs_backup.util.exhaustion import NO_INODES, Explained, explain, has_inodes
from jobs_backup.util.fsync import sync_directory
from jobs_backup.util.installing import how_to_install
from jobs_backup.util.opening import make_file, open_file

T = TypeVar("T")
P = ParamSpec("P")

_BUSY_SECONDS: Final = 60.0
READER_BUSY_SECONDS: Final = 1.0
"""Readers wait only while another process repairs or removes the log."""
_FORK_SECONDS: Final = 60.0
"""How long a fork waits for running transactions."""
_OLDEST: Final = (3, 37)  # for STRICT tables; RETURNING is older
_SYNCHRONOUS: Final = {"full": "FULL", "process": "NORMAL"}  # in WAL mode, NORMAL does not wait for the disk at a commit
_FILES: Final = ("", "-wal", "-shm")
MOVED_VERSION: Final = 1 << 30
"""The version of a catalog that was moved, or is being moved: above all others, so that no program opens it."""


class FilesLost(SpoolError):
    """The files of an open database were removed or replaced, or another process has adopted them."""


class Connection:
    """A connection to a SQLite file, opened on first use and used by one thread at a time.

    A fork closes it, and the next use opens it again. SQLite keeps locks and shared memory per process and file
    (sqlite.org/howtocorrupt.html, "Carrying an open database across a fork"): a child that inherits an open connection and opens
    the same file itself mistakes the parent's locks for its own, and damages the file.
    """

    def __init__(self, path: Path, *, timeout: float, mode: Literal["ro", "rw"] = "rw", prepare: Sequence[str] = ()) -> None:
        """`prepare` are statements to run on each new connection. Never creates a file."""
        self.path = path.absolute()
        self._timeout = timeout
        self._mode = mode
        self._prepare = prepare
        self._lock = threading.Lock()
        self._user = 0  # id of the thread that holds the lock
        self._connection: sqlite3.Connection | None = None
        self._is_ready = False
        self._is_closed = False
        self.identity: tuple[object, ...] = ()
        """Identity of the files when it was opened."""

    def use(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call `work` with the connection.

        Takes a function rather than being a context manager: an interrupt (Ctrl-C, an alarm) between enter and exit would leave the
        lock held. A transaction left by an interrupt is rolled back at the next use.

        Raises:
            SpoolError: this thread is already using it: see `reentered`.
        """
        me = threading.get_ident()
        if self._user == me:
            raise reentered()
        with self._lock:
            self._user = me
            try:
                return work(self._usable())
            finally:
                self._user = 0

    def prepare(self, statement: str) -> None:
        """Run a statement on this connection, and on each new one."""
        self._prepare = (*self._prepare, statement)
        self.use(lambda connection: connection.execute(statement))

    def close(self, *, for_good: bool = True) -> None:
        """Close it; unless `for_good`, the next use opens it again if it is still the same file."""
        with self._lock:
            self._is_closed = for_good
            self._suspend()

    def current_identity(self) -> tuple[object, ...]:
        """Identity of the files at its path now."""
        return tuple(_file_identity(f"{self.path}{suffix}") for suffix in _FILES)

    def _usable(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is None:
            if self._is_closed:
                raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
            connection = self._open()
        elif not self._is_ready:  # an interrupt arrived while it was opened
            self._suspend()
            connection = self._open()
        elif connection.in_transaction:
            connection.rollback()
        return connection

    def _open(self) -> sqlite3.Connection:
        with _opening.lock:
            _notice_fork()
            if _file_identity(str(self.path)) in _inherited:
                raise SpoolError(
                    f"{self.path} was in use when this process was forked, and could not be closed before",
                    hint="fork before you open a Backup, or while none of its calls is running",
                )
            if self.identity and self.identity[0] != _file_identity(str(self.path)):
                raise _lost(self.path)  # replaced while a fork had it closed
            _check_kind(self.path)
            connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode={self._mode}",
                uri=True,
                timeout=self._timeout,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                # From here on, a fork by this thread itself, in a signal handler, finds it.
                self._is_ready, self._connection = False, connection
                _opened.add(self)
                for statement in self._prepare:
                    connection.execute(statement)
                connection.execute("SELECT 1 FROM sqlite_schema").fetchone()  # also opens the log
            except BaseException:
                self._suspend()
                raise
            self.identity = self.current_identity()
            self._is_ready = True
        return connection

    def _suspend(self) -> None:
        """Close the connection; the lock is held."""
        if (connection := self._connection) is not None:
            self._connection = None
            connection.close()

    # For forks

    @property
    def is_lost(self) -> bool:
        """Whether its files are known to have been removed or replaced."""
        try:
            return self.current_identity() != self.identity
        except OSError:
            return False

    @property
    def is_open(self) -> bool:
        """Whether there is an open connection."""
        return self._connection is not None

    @property
    def is_used_here(self) -> bool:
        """Whether this thread is using it."""
        return self._user == threading.get_ident()

    def hold(self, timeout: float) -> bool:
        """Block all use of it. False if it stays in use for `timeout` seconds."""
        return not self.is_used_here and self._lock.acquire(timeout=timeout)

    def suspend(self) -> None:
        """Close the connection while it is held; the next use opens it again."""
        self._suspend()

    def release(self) -> None:
        """End `hold`."""
        self._lock.release()

    @property
    def file(self) -> object:
        """Identity of the open file."""
        return self.identity[0] if self._is_ready else _file_identity(str(self.path))

    def keep_for_ever(self) -> None:
        """Make the connection outlive this object and the interpreter: a child must not even close what it inherited."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))


def _lost(path: Path) -> FilesLost:
    return FilesLost(
        f"{path} or its log was removed or replaced while it was in use",
        hint="find out what did it (a cleaner of old files, for example), and restart this process",
    )


_opening: Final = ForkLock()
"""Held while a connection is opened."""
_opened: Final = weakref.WeakSet[Connection]()
_held_for_fork: Final = list[Connection]()
_inherited: Final = set[object]()
"""Files that were open when this process was forked: SQLite's state for them is the parent's."""
_process: Final = [os.getpid()]


def _before_fork() -> None:
    """Close all connections, each between two uses. A connection in use for too long stays open: see `_notice_fork`.

    A connection whose files were removed or replaced stays open as well: closing it would lose what only it can still reach. If
    only the log is gone, a child cannot open the file; it is refused as in `_notice_fork`.
    """
    until = time.monotonic() + _FORK_SECONDS
    while True:
        _opening.begin_fork()
        is_busy = False
        for connection in list(_opened):
            if connection.hold(0.01):
                _held_for_fork.append(connection)
            elif not connection.is_used_here:
                is_busy = True
        if not is_busy or time.monotonic() >= until:
            break
        _after_fork()  # a user of one may need another that is held: release all before trying again
        time.sleep(0.005)
    for connection in _held_for_fork:
        if not connection.is_lost:
            connection.suspend()


def _after_fork() -> None:
    _release_held()
    _opening.end_fork()


def _release_held() -> None:
    while _held_for_fork:
        _held_for_fork.pop().release()


def _after_fork_in_child() -> None:
    _opening.reset()
    _release_held()
    _notice_fork()


def _notice_fork() -> None:
    """In a child, note which files were open, as opening them again would damage them. `_before_fork` normally leaves none."""
    if os.getpid() == _process[0]:
        return
    _process[0] = os.getpid()
    for connection in list(_opened):
        if connection.is_open:
            _inherited.add(connection.file)
            connection.keep_for_ever()
    _opened.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


class Database:
    """One SQLite file. All methods may be called from any thread."""

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
        additions: Mapping[int, Sequence[str]] = MappingProxyType({}),
        renamed: Mapping[str, str] = MappingProxyType({}),
        only_reads: bool = False,
    ) -> None:
        """Open the file, creating it if needed and if `create` is set.

        Args:
            upgrades: version -> statements that complete the data copied from a file of that version: see `_upgrade`.
            additions: version -> statements that add everything a file of that version lacks.
            renamed: names of tables and columns in files with an upgrade -> their current names.
            only_reads: the file exists and has this version. Never waits for writers, nor makes them wait.

        Raises:
            SpoolError: it was written by a newer version, or cannot be opened.
        """
        self.path = path
        if sqlite3.sqlite_version_info < _OLDEST:
            raise SpoolError(f"SQLite {sqlite3.sqlite_version} is too old", hint="use a Python with SQLite 3.37 or later")
        if only_reads:
            self._connection = Connection(path, timeout=READER_BUSY_SECONDS, mode="ro")
            self.read(lambda _: None)
            return
        self._connection = Connection(
            path,
            timeout=_BUSY_SECONDS,
            prepare=[
                f"PRAGMA page_size={page_size}",
                "PRAGMA journal_mode=WAL",
                f"PRAGMA synchronous={_SYNCHRONOUS[durability]}",
                "PRAGMA fullfsync=ON",  # on macOS, where fsync alone does not reach the disk
                f"PRAGMA wal_autocheckpoint={checkpoint_pages}",
            ],
        )
        with database_errors(path):
            # Not by SQLite: another process may have removed a drained file, which must not come back empty.
            if create:
                if not path.exists():
                    make_file(path)
                sync_directory(path.parent)  # even if it exists: its maker may have died before it was durable
        try:
            self.write(functools.partial(_create, path, schema, version, upgrades, additions, renamed))
            self._connection.prepare("PRAGMA foreign_keys=ON")  # only now: an upgrade rebuilds tables
        except BaseException:
            self._connection.close()
            raise

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` as one transaction: committed when it returns, rolled back when it raises.

        Raises:
            FilesLost: the files were removed or replaced, so no process will find what was committed.
        """
        return self._used(functools.partial(_transact, work), self._check_files)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` to read. Keep it short: the log grows during long reads."""
        return self._used(work)

    def use(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, which begins and commits by itself. Raises as `write` does."""
        return self._used(work, self._check_files)

    def check(self) -> None:
        """Check the structure of the whole file, including indexes and constraints.

        Raises:
            SpoolCorrupt: it is damaged.
        """
        found = self.read(lambda connection: connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
        if found == "ok":
            row = self.read(lambda connection: connection.execute("PRAGMA foreign_key_check").fetchone())
            found = "ok" if row is None else f"a row of {row[0]} names one of {row[2]} that does not exist"
        if found != "ok":
            raise SpoolCorrupt(f"{self.path} is damaged: {' '.join(str(found).split())}", hint=_DAMAGED)

    def check_files(self) -> None:
        """Raise FilesLost if the files were removed or replaced."""
        with database_errors(self.path):
            self._connection.use(lambda _: self._check_files())

    @property
    def size(self) -> int:
        """Bytes on the disk, including the log."""
        # In a read, which reopens what a fork has closed: closing it may have removed the log.
        return self.read(lambda _: self.path.stat().st_size + Path(f"{self.path}-wal").stat().st_size)

    def copy_to(self, path: Path) -> None:
        """Copy the whole database, as this connection sees it, to a new file."""

        def copy(connection: sqlite3.Connection) -> None:
            target = sqlite3.connect(path)
            try:
                connection.backup(target)
            finally:
                target.close()

        self.read(copy)

    def close(self, *, for_good: bool = True) -> None:
        """Close the connection. See `Connection.close`."""
        self._connection.close(for_good=for_good)

    def _used(self, work: Callable[[sqlite3.Connection], T], check: Callable[[], None] = lambda: None) -> T:
        def checked(connection: sqlite3.Connection) -> T:
            try:
                result = work(connection)
            except (TypeError, ValueError, LookupError, AttributeError, OverflowError, msgspec.DecodeError) as error:
                # Only a damaged row fails to convert.
                raise SpoolCorrupt(f"{self.path}: a row is not what was written ({error})", hint=_DAMAGED) from error
            check()
            return result

        with database_errors(self.path):
            return self._connection.use(checked)

    def _check_files(self) -> None:
        if self._connection.current_identity() != self._connection.identity:
            raise _lost(self.path)


class _HasDatabase(Protocol):
    @property
    def _database(self) -> Database: ...


S = TypeVar("S", bound=_HasDatabase)


def writes(method: Callable[Concatenate[S, sqlite3.Connection, P], T]) -> Callable[Concatenate[S, P], T]:
    """Run a method as one transaction of its object's database: see `Database.write`."""

    @functools.wraps(method)
    def in_transaction(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._database.write(lambda connection: method(self, connection, *args, **kwargs))  # pyright: ignore[reportPrivateUsage] - of the methods of such classes

    return in_transaction


def reads(method: Callable[Concatenate[S, sqlite3.Connection, P], T]) -> Callable[Concatenate[S, P], T]:
    """Give a method the connection to its object's database, for reading: see `Database.read`."""

    @functools.wraps(method)
    def in_use(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._database.read(lambda connection: method(self, connection, *args, **kwargs))  # pyright: ignore[reportPrivateUsage] - as above

    return in_use


_beside: Final = list[int]()
"""Descriptors that `read_beside` cannot close yet."""


def read_beside(path: Path) -> None:
    """Read all bytes of a database's file without SQLite, to detect read errors.

    Its descriptor is closed only when no connection of this process has the file open: closing any descriptor of a file releases
    all of the process's locks on it (POSIX), including SQLite's.

    Raises:
        OSError: they cannot be read.
    """
    descriptor = open_file(path)
    _beside.append(descriptor)
    with _opening.lock:
        open_files = {file for one in list(_opened) if one.is_open for file in one.identity}
        for left in [one for one in _beside if one != descriptor and _identity_of(os.fstat(one)) not in open_files]:
            _beside.remove(left)
            os.close(left)
    while os.read(descriptor, 1 << 20):
        pass


def file_version(path: Path) -> int:
    """The format version of a file; 0 if there is none yet."""
    connection = Connection(path, timeout=READER_BUSY_SECONDS)
    try:
        with database_errors(path):
            return connection.use(_version) if path.exists() else 0
    finally:
        connection.close()


def _transact(work: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
    try:
        connection.execute("BEGIN IMMEDIATE")
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise
    return result


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _create(
    path: Path,
    schema: str,
    version: int,
    upgrades: Mapping[int, Sequence[str]],
    additions: Mapping[int, Sequence[str]],
    renamed: Mapping[str, str],
    connection: sqlite3.Connection,
) -> None:
    found = _version(connection)
    if found == MOVED_VERSION:
        raise _moved(path, connection)
    if found > version:
        raise SpoolError(
            f"{path} was written by a newer jobs-backup (version {found} of the format, this one knows {version})",
            hint=how_to_install("jobs-backup", "--upgrade"),
        )
    if found == version:
        return
    if found in additions:
        for statement in additions[found]:
            connection.execute(statement)
    elif found:
        _upgrade(connection, schema, upgrades[found], renamed)
    else:
        _run(connection, schema)
    connection.execute(f"PRAGMA user_version={version}")


def _moved(path: Path, connection: sqlite3.Connection) -> SpoolError:
    target, is_done = connection.execute("SELECT target, is_done FROM moved").fetchone()
    if is_done:
        return SpoolError(
            f"the spool in {path.parent} was moved to {target}", hint="set JOBS_BACKUP_SPOOL to that, and not JOBS_BACKUP_SPOOL_DIR"
        )
    return SpoolError(
        f"the spool in {path.parent} is being moved to {target}", hint="run `jobs-backup spool move` again to finish that"
    )


def refuse_moved(path: Path) -> None:
    """Raise SpoolError if a catalog was moved, or is being moved."""
    if file_version(path) == MOVED_VERSION:
        connection = Connection(path, timeout=READER_BUSY_SECONDS)
        try:
            with database_errors(path):
                raise connection.use(functools.partial(_moved, path))
        finally:
            connection.close()


def _run(connection: sqlite3.Connection, schema: str) -> None:
    for statement in schema.split(";\n"):
        connection.execute(statement)


def _upgrade(connection: sqlite3.Connection, schema: str, statements: Sequence[str], renamed: Mapping[str, str]) -> None:
    """Rebuild all tables, copy the old data, and complete it. Runs in a transaction, so all or nothing."""
    names = "SELECT name FROM sqlite_schema WHERE type=? AND name NOT LIKE 'sqlite_%'"
    tables = [row[0] for row in connection.execute(names, ("table",)).fetchall()]
    for kind in ("index", "trigger"):
        for (name,) in connection.execute(names, (kind,)).fetchall():
            connection.execute(f"DROP {kind} {name}")
    for table in tables:
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    _run(connection, schema)
    for table in tables:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info(old_{table})").fetchall()]
        names_now = ", ".join(renamed.get(column, column) for column in columns)
        connection.execute(
            f"INSERT OR REPLACE INTO {renamed.get(table, table)} ({names_now}) SELECT {', '.join(columns)} FROM old_{table}"
        )
        connection.execute(f"DROP TABLE old_{table}")
    for statement in statements:
        connection.execute(statement)


def _file_identity(path: str) -> object:
    try:
        status = os.stat(path)  # noqa: PTH116 - three calls per commit, and a Path would take longer than the call
    except FileNotFoundError:
        return None
    return _identity_of(status)


def _check_kind(path: Path) -> None:
    """Check that a database's files are regular ones, as far as they exist. SQLite would wait forever for a named pipe's other end.

    Raises:
        SpoolError: one is not.
    """
    for suffix in _FILES:
        with suppress(FileNotFoundError):
            mode = Path(f"{path}{suffix}").stat().st_mode
            if not stat.S_ISREG(mode):
                what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
                raise SpoolError(f"{path}{suffix}: it is {what}", hint="find out what made it, and move it away")


def _identity_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@contextmanager
def database_errors(path: Path) -> Generator[None]:
    """Turn errors of SQLite and the operating system into the spool's."""
    try:
        yield
    except sqlite3.Error as error:
        raise _sqlite_error(path, error) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes a schema that is no longer text
        raise SpoolCorrupt(f"{path}: its schema is not what was written", hint=_DAMAGED) from error
    except (OSError, MemoryError) as error:
        raise file_error(path, error) from error


_DESCRIPTORS: Final = 4
"""Descriptors that SQLite needs to open a database: the file, its log, their index, and the directory."""
_DAMAGED: Final = "check the disk; nothing was removed"


def _sqlite_error(path: Path, error: sqlite3.Error) -> SpoolError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    text = str(error)
    if code == sqlite3.SQLITE_FULL:
        return SpoolFull(f"{path}: the disk is full", hint="free space on the spool's disk")
    # All statements are ours and correct: if SQLite does not understand one, the file's schema or a row is damaged.
    is_strange = code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH) or (
        (code == sqlite3.SQLITE_ERROR and not text.startswith("cannot ")) or text.startswith("Could not decode")
    )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or is_strange:
        return SpoolCorrupt(f"{path}: {text}", hint=_DAMAGED)
    if code == sqlite3.SQLITE_BUSY:
        return SpoolError(
            f"{path}: another process has kept it locked for too long",
            hint="find the process that hangs or is stopped (`fuser` shows who has the file open), and continue or end it",
        )
    if code == sqlite3.SQLITE_CANTOPEN and (why := _why_not_opened(path)):
        return SpoolError(f"{path}: {text}: {why[0]}", hint=why[1])
    return SpoolError(f"{path}: {text}", hint=LOOK)


def _why_not_opened(path: Path) -> Explained | None:
    """Find out why SQLite cannot open a file, which it does not report."""
    opened: list[int] = []
    try:
        for _ in range(_DESCRIPTORS):
            opened.append(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))  # noqa: PERF401 - closed in any case
        path.stat()
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            return explain(OSError(errno.EROFS, os.strerror(errno.EROFS)), path, LOOK)
        if not os.access(path, os.R_OK | os.W_OK):  # opening it here and closing it would release locks: see `read_beside`
            return Explained("Permission denied", f"let this user (uid {os.geteuid()}) read and write it")
        return None if has_inodes(path) else NO_INODES
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not has_inodes(path):
            return NO_INODES
        return explain(error, path, LOOK)
    finally:
        for descriptor in opened:
            os.close(descriptor)
