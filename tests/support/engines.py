"""The engines of the spool, for tests of what each of them does."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import spools
from postgres import Postgres

from jobs_backup.format.compression import GZIP, Compression
from jobs_backup.settings.core import SpoolPlace
from jobs_backup.spool.interface import BatchLimits, DeleteAfter, QuotaLimits, Spool
from jobs_backup.spool.postgresql.spool import PostgresqlSpool
from jobs_backup.spool.sqlite.spool import SqliteSpool


class Engine(Protocol):
    """One spool, which processes open."""

    name: str
    place: SpoolPlace

    def open(
        self,
        *,
        location: str = "s3://bucket",
        limits: BatchLimits = spools.LIMITS,
        room: QuotaLimits = spools.ANY_ROOM,
        compression: Compression = GZIP,
        delete_after: DeleteAfter = "delivered",
    ) -> Spool:
        """What another process does."""
        ...

    def die(self, spool: Spool) -> None:
        """What a killed process leaves, once others know that it is dead."""
        ...


class SqliteEngine:
    name = "sqlite"

    def __init__(self, directory: Path) -> None:
        self.place: SpoolPlace = directory
        self._directory = directory

    def open(
        self,
        *,
        location: str = "s3://bucket",
        limits: BatchLimits = spools.LIMITS,
        room: QuotaLimits = spools.ANY_ROOM,
        compression: Compression = GZIP,
        delete_after: DeleteAfter = "delivered",
    ) -> Spool:
        return SqliteSpool(
            self._directory, location=location, prefix="p", instance_id="1", limits=limits, room=room, compression=compression,
            delete_after=delete_after,
        )  # fmt: skip

    def die(self, spool: Spool) -> None:
        spools.die(spools.engine(spool))


class PostgresqlEngine:
    name = "postgresql"

    def __init__(self, server: Postgres, database: str, *, lease: float = 60.0) -> None:
        self.place: SpoolPlace = server.place(database)
        self.server = server
        self.database = database
        self._lease = lease

    def open(
        self,
        *,
        location: str = "s3://bucket",
        limits: BatchLimits = spools.LIMITS,
        room: QuotaLimits = spools.ANY_ROOM,
        compression: Compression = GZIP,
        delete_after: DeleteAfter = "delivered",
    ) -> PostgresqlSpool:
        return PostgresqlSpool(
            self.server.place(self.database), location=location, prefix="p", instance_id="1", limits=limits, room=room,
            compression=compression, delete_after=delete_after, lease=self._lease, workers=1,
        )  # fmt: skip

    def die(self, spool: Spool) -> None:
        assert isinstance(spool, PostgresqlSpool)
        spool._heartbeat.stop()
        spool._pulse.close()
        spool._database.close()
        self.expire(spool.session)

    def expire(self, session: str) -> None:
        """End a lease."""
        with self.server.admin(self.database) as connection:
            connection.execute("UPDATE jobs_backup.sessions SET lease_until = 0 WHERE id = %s", (session,))
