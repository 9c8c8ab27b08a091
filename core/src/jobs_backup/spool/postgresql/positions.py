"""How far any host has read each input, and which session reads it now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs_backup.errors import ConfigurationError
from jobs_backup.spool.interface import InputPosition
from jobs_backup.spool.postgresql.connection import Database, one
from jobs_backup.spool.postgresql.sessions import IS_OVER, hold

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db


class Positions:
    """The tables `positions` and `readers`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, source: str, session: str) -> str | None:
        """Reserve an input for reading. None if the session has it now; else the session that has it.

        Raises:
            SessionLost: the session has ended.
        """

        def work(db: Db) -> str | None:
            hold(db, session)
            query = "INSERT INTO jobs_backup.readers VALUES (%s, %s) ON CONFLICT DO NOTHING"
            if db.execute(query, (source, session)).rowcount:
                return None
            row = db.execute("SELECT session FROM jobs_backup.readers WHERE input = %s", (source,)).fetchone()
            return "" if row is None else str(row[0])  # it was just given up

        return self._database.write(work)

    def is_over(self, session: str) -> bool:
        """Whether the lease of a session is over."""
        query = f"SELECT EXISTS (SELECT 1 FROM jobs_backup.sessions WHERE id = %s AND {IS_OVER})"
        return bool(self._database.read(lambda db: one(db, query, (session,))[0]))

    def give_up(self, source: str, session: str) -> None:
        """End the reservation of an input."""
        query = "DELETE FROM jobs_backup.readers WHERE input = %s AND session = %s"
        self._database.write(lambda db: db.execute(query, (source, session)), is_idempotent=True)

    def position(self, source: str) -> InputPosition | None:
        """How far an input was read; None if it never was."""
        query = "SELECT input, at, position FROM jobs_backup.positions WHERE input = %s"
        row = self._database.read(lambda db: db.execute(query, (source,)).fetchone())
        return None if row is None else InputPosition(*row)

    def new_positions(self, prefix: str, seen: dict[str, int]) -> list[InputPosition]:
        """See `SpoolRecorder.new_positions`. `seen` notes the oldest transaction that was under way at the last look."""

        def look(db: Db) -> tuple[int, list[InputPosition]]:
            # Before the rows are read: what a transaction enters that is not seen now, has that number or a later one.
            (oldest,) = one(db, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
            rows = db.execute(
                "SELECT input, at, position FROM jobs_backup.positions WHERE entered >= %s::text::xid8 AND starts_with(input, %s)",
                (str(seen.get("", 0)), prefix),
            ).fetchall()
            return oldest, [InputPosition(*row) for row in rows]

        seen[""], found = self._database.read(look)
        return found


def set_position(db: Db, position: InputPosition) -> None:
    """Note how far an input was read, in the transaction of the events.

    Raises:
        ConfigurationError: another process has read it further.
    """
    changed = db.execute(
        "INSERT INTO jobs_backup.positions AS p (input, at, position) VALUES (%s, %s, %s) ON CONFLICT (input) DO UPDATE"
        " SET at = excluded.at, position = excluded.position"
        " WHERE p.at < excluded.at OR (p.at = excluded.at AND p.position = excluded.position)",
        position,
    ).rowcount
    if changed != 1:
        raise ConfigurationError(
            "another process has read the same input meanwhile", hint="run the same command again, one process at a time"
        )
