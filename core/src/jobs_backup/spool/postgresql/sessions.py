"""Leases: the server's clock alone decides which session is alive; a session that is over commits nothing more.

Each commit renews the session's row and names the previous commit (`seq`). So a process that was mistaken for dead cannot add to
what another one has sealed.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from jobs_backup.errors import SpoolError
from jobs_backup.spool.ids import LOCAL_BITS
from jobs_backup.spool.postgresql.connection import NOW, Database, one
from jobs_backup.spool.postgresql.schema import VERSION
from jobs_backup.util.logs import logger_of

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

log: Final = logger_of(__name__)

# A lease that ends too far in the future was given before the server's clock was set back.
IS_OVER: Final = f"(lease_until < {NOW} OR lease_until > {NOW} + 2 * lease)"
_DEFAULT_INSTANCE: Final = "1"
_RENEWALS: Final = 5
"""In a lease: how many heartbeats may get lost."""


class SessionLost(SpoolError):
    """Another process has taken the place of this session's process."""


class Host(NamedTuple):
    """What a session records about its process."""

    name: str
    pid: int


def host_name(instance_id: str) -> str:
    """Names this machine's inputs: its INSTANCE_ID, or its host name if that is not set."""
    return socket.gethostname() if instance_id == _DEFAULT_INSTANCE else instance_id


class Session:
    """What a process records and sends as.

    Attributes:
        name: of its row.
        epoch: of the job ids that are given in it: see ids.py.
        seq, events: of its last commit that was acknowledged. Who commits, which is one thread at a time, counts them.
        place: of its row in the table, as of its last commit; empty if that is not known. See `Writer`.
    """

    def __init__(self, name: str, lease: float) -> None:
        self.name = name
        self.epoch = secrets.randbits(LOCAL_BITS - 1) + 1
        self.seq = 0
        self.events = 0
        self.place = ""
        self._lease = lease
        self._valid_until = elapsed() + lease

    def is_valid(self) -> bool:
        """Whether nobody can have taken its place, by what the server has said last."""
        return self.remaining() > 0

    def remaining(self) -> float:
        """Seconds until another process may take its place, by what the server has said last; 0 if one may now."""
        return max(0.0, self._valid_until - elapsed())

    def renewed(self, asked_at: float) -> None:
        """The server has renewed the lease, after it was asked at `asked_at`."""
        self._valid_until = max(self._valid_until, asked_at + self._lease)


class Sessions:
    """The sessions of a spool."""

    def __init__(self, database: Database, pulse: Database, *, host: Host, store: int, archives: bool, lease: float) -> None:
        """`pulse` is for signs of life alone."""
        self._database = database
        self._pulse = pulse
        self._host = host
        self._store = store
        self._archives = archives
        self._lease = lease

    def begin(self) -> Session:
        """Enter a session."""
        session = Session(secrets.token_hex(8), self._lease)
        values = (session.name, self._lease, self._lease, *self._host, self._store, self._archives, VERSION)
        self._database.write(
            lambda db: db.execute(
                "INSERT INTO jobs_backup.sessions (id, lease, lease_until, host, pid, store, archives, version, began_at)"
                f" VALUES (%s, %s, {NOW} + %s, %s, %s, %s, %s, %s, {NOW}) ON CONFLICT (id) DO NOTHING",
                values,
            ),
            is_idempotent=True,
        )
        return session

    def renew(self, session: Session) -> None:
        """A sign of life.

        Raises:
            SessionLost: another process has taken its place.
        """
        seq = session.seq
        query = f"UPDATE jobs_backup.sessions SET lease_until = {NOW} + lease WHERE id = %s RETURNING seq"

        def work(db: Db) -> tuple[float, tuple[int] | None]:
            return elapsed(), db.execute(query, (session.name,)).fetchone()

        asked_at, found = self._pulse.write(work, is_idempotent=True)
        if found is None or found[0] < seq:  # a commit that was acknowledged is not there: the writer looks into that
            raise lost(session.name)
        session.renewed(asked_at)

    def leave(self, session: Session) -> None:
        """End the lease: another process may take this one's place at once."""
        query = "UPDATE jobs_backup.sessions SET lease_until = 0 WHERE id = %s"
        self._database.write(lambda db: db.execute(query, (session.name,)), is_idempotent=True)

    def over(self) -> list[str]:
        """The sessions whose lease is over."""
        return self._database.read(
            lambda db: [row[0] for row in db.execute(f"SELECT id FROM jobs_backup.sessions WHERE {IS_OVER} ORDER BY lease_until")]
        )

    def has_archiver(self) -> bool:
        """Whether a live process uploads."""
        query = f"SELECT EXISTS (SELECT 1 FROM jobs_backup.sessions WHERE archives AND NOT {IS_OVER})"
        return bool(self._database.read(lambda db: one(db, query)[0]))

    def names(self) -> set[str]:
        """All sessions that have not ended."""
        return self._database.read(lambda db: {row[0] for row in db.execute("SELECT id FROM jobs_backup.sessions")})

    def note_error(self, session: str, error: str) -> None:
        """Note why nobody can take the place of a session."""
        self._database.write(
            lambda db: db.execute("UPDATE jobs_backup.sessions SET error = %s WHERE id = %s", (error, session)), is_idempotent=True
        )


class Heartbeat:
    """Renews the lease of this process, in a thread with nothing else to do: whatever is slow must not end it."""

    def __init__(self, sessions: Sessions, session: Callable[[], Session], lease: float) -> None:
        """`session` gives the present one."""
        self._sessions = sessions
        self._session = session
        self._pause = lease / _RENEWALS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="jobs-backup-lease", daemon=True)
        self.lost = threading.Event()
        """Set when the session was found to be taken over; beginning another one clears it."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(2 * self._pause)

    def _beat(self) -> None:
        while not self._stop.wait(self._pause):
            session = self._session()
            try:
                self._sessions.renew(session)
            except SessionLost:
                if session is self._session():
                    self.lost.set()
            except SpoolError as error:
                log.debug("the lease was not renewed: %s", error.one_line())
            except Exception:
                log.exception("the lease was not renewed")


def lost(session: str) -> SessionLost:
    """The error of a process that another one took for dead."""
    return SessionLost(
        f"the session {session} was ended by another process, since its lease was over",
        hint="another one is begun; see the log of that time, and JOBS_BACKUP_SPOOL_LEASE",
    )


def hold(db: Db, session: str) -> None:
    """Have a session last until the transaction ends. What is claimed by one that has ended would stay claimed for ever.

    Raises:
        SessionLost: it has ended.
    """
    if db.execute("SELECT 1 FROM jobs_backup.sessions WHERE id = %s FOR KEY SHARE", (session,)).fetchone() is None:
        raise lost(session)


def end(db: Db, session: str) -> None:
    """Forget a session, whose batches are sealed: what it was sending may be sent by others."""
    db.execute(
        "UPDATE jobs_backup.batches SET claimed_by = NULL WHERE id IN"
        " (SELECT id FROM jobs_backup.batches WHERE claimed_by = %s ORDER BY id FOR UPDATE)",
        (session,),
    )
    db.execute(
        "WITH gone AS (DELETE FROM jobs_backup.sessions WHERE id = %s RETURNING id, seq, events)"
        f" INSERT INTO jobs_backup.ended_sessions SELECT id, seq, events, {NOW} FROM gone ON CONFLICT DO NOTHING",
        (session,),
    )


def elapsed() -> float:
    """Seconds by this machine's uptime. It continues while the machine, or the process, is asleep."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def committed(db: Db, session: str) -> tuple[int, int] | None:
    """(seq, events) of a session, once none of its transactions is under way; None if it has ended."""
    row = db.execute("SELECT seq, events FROM jobs_backup.sessions WHERE id = %s FOR UPDATE", (session,)).fetchone()
    return None if row is None else (row[0], row[1])


def ended(db: Db, session: str) -> tuple[int, int] | None:
    """(seq, events) of a session that has ended; None if that is not known."""
    row = db.execute("SELECT seq, events FROM jobs_backup.ended_sessions WHERE id = %s", (session,)).fetchone()
    return None if row is None else (row[0], row[1])
