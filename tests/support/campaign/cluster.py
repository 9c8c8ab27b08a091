"""The database of a campaign: a primary, a synchronous standby to promote, and pgbouncer in front if it is installed."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
from postgres import BIN, Postgres, _user, postgres
from servers import free_ports

_SYNCHRONOUS: Final = "*"
_STATES: Final = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'"
_WAIT: Final = 60.0
_OPTIONS: Final = {"max_wal_size": "512MB", "wal_keep_size": "64MB", "max_connections": "300", "deadlock_timeout": "200ms"}


class Pooler:
    """pgbouncer in transaction mode."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    def lead_to(self, port: int) -> None:
        """Send transactions to the server on this port from now on."""
        configuration = self.directory / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\n* = host=127.0.0.1 port={port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\nmax_client_conn = 1000\n"
            f"default_pool_size = 30\nserver_login_retry = 0.2\nlogfile = {self.directory / 'log'}\n"
        )
        if self._process is None:
            command = [_pgbouncer(), "-q", str(configuration)]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **_user())
        else:
            self._process.send_signal(signal.SIGHUP)

    def end(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Cluster:
    """A database that survives the loss of its server.

    Attributes:
        primary: the server that takes writes.
        pooler: None where pgbouncer is not installed.
        database: its name.
    """

    def __init__(self, primary: Postgres, pooler: Pooler | None, *, has_standby: bool) -> None:
        self.primary = primary
        self.pooler = pooler
        self.database = primary.create()
        self._has_standby = has_standby
        self._standby: Postgres | None = None
        self._of_standby = contextlib.ExitStack()
        self._of_primary = contextlib.ExitStack()
        if pooler is not None:
            pooler.lead_to(primary.port)
        if has_standby:
            self._add_standby()
            self._set("synchronous_standby_names", _SYNCHRONOUS)

    @property
    def port(self) -> int:
        """Port for clients."""
        return self.primary.port if self.pooler is None else self.pooler.port

    def restart(self) -> None:
        """`pg_ctl -m immediate restart`: the server recovers as after a crash."""
        self.primary.restart(signal.SIGQUIT)

    def terminate(self) -> int:
        """Kill all backends. Returns how many."""
        return self.primary.terminate(self.database)

    def fail_over(self) -> bool:
        """Stop the primary, promote the standby, and add another one. Returns False, and does nothing, if it is not in sync."""
        standby, of_primary = self._standby, self._of_primary
        if standby is None or not self._is_synchronous():
            return False
        self.primary.stop(signal.SIGQUIT)
        self.primary, self._of_primary = standby, self._of_standby
        standby.promote()
        if self.pooler is not None:
            self.pooler.lead_to(standby.port)
        of_primary.close()
        self._add_standby()
        return True

    @contextlib.contextmanager
    def held_snapshot(self) -> Iterator[None]:
        """Keep a transaction open within the block, so that vacuum can remove no row version."""
        with contextlib.suppress(psycopg.OperationalError), self.primary.admin(self.database) as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            connection.execute("SELECT count(*) FROM pg_class")
            yield
            connection.execute("COMMIT")

    def dump(self) -> int:
        """`pg_dump` of everything. Returns its exit code."""
        command: list[str | Path] = [BIN / "pg_dump", "--schema=jobs_backup", "--file=/dev/null", self.primary.url(self.database)]
        return subprocess.run(command, check=False, capture_output=True, cwd="/", **_user()).returncode

    def end(self) -> None:
        """Stop the standby, and the primary if it was one."""
        self._of_standby.close()
        self._of_primary.close()

    def _add_standby(self) -> None:
        self._of_standby = contextlib.ExitStack()
        # After its promotion, commits wait until it has a standby of its own.
        self._standby = self._of_standby.enter_context(self.primary.standby(synchronous_standby_names=_SYNCHRONOUS))

    def _is_synchronous(self) -> bool:
        until = time.monotonic() + _WAIT
        while time.monotonic() < until:
            with self.primary.admin() as connection:
                rows = connection.execute(_STATES).fetchall()
            if ("sync",) in rows:
                return True
            time.sleep(0.1)
        return False

    def _set(self, name: str, value: str) -> None:
        with self.primary.admin() as connection:
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            connection.execute("SELECT pg_reload_conf()")


def _pgbouncer() -> str:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin") or ""


def why_no_pooler() -> str:
    """Return why pgbouncer cannot be used; empty if it can."""
    return "" if _pgbouncer() else "pgbouncer is not installed"


@contextlib.contextmanager
def cluster(*, has_standby: bool = True, has_pooler: bool = True) -> Iterator[Cluster]:
    """Start a database, with a standby and pgbouncer if asked for."""
    with postgres(None, **_OPTIONS) as primary, contextlib.ExitStack() as stack:
        pooler = None
        if has_pooler:
            directory = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=primary.directory.parent))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            if "user" in _user():
                shutil.chown(directory, "nobody")
            pooler = Pooler(directory)
            stack.callback(pooler.end)
        found = Cluster(primary, pooler, has_standby=has_standby)
        stack.callback(found.end)
        yield found
