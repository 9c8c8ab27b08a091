"""The engines of the spool. Each is imported when it is used, so that its driver is not loaded without need.

There are two: a directory on a local disk (`sqlite/`), and a PostgreSQL database that hosts share (`postgresql/`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from jobs_backup.format.keys import clean_prefix
from jobs_backup.settings.core import CoreSettings, DatabaseSpool, SpoolPlace
from jobs_backup.spool import moving
from jobs_backup.spool.interface import BatchLimits, QuotaLimits, Spool, SpoolReader
from jobs_backup.spool.moving import Moved
from jobs_backup.spool.status import Limits, Status


def open_spool(settings: CoreSettings, *, location: str, wrappers: tuple[str, ...], archives: bool) -> Spool:
    """Open the spool for these settings, creating it if needed.

    Args:
        location: the store's; everything recorded is bound to it.
        wrappers: what its objects will be made with, see `Batch.wrappers`.
        archives: whether this process also uploads and deletes.

    Raises:
        ConfigurationError: the settings are invalid.
        SpoolError: the spool cannot be used.
    """
    place = settings.spool_place
    limits = BatchLimits(events=settings.batch_events, bytes=settings.batch_bytes, age=settings.upload_frequency)
    room = QuotaLimits(max_bytes=settings.spool_max_bytes, min_free=settings.spool_min_free, timeout=settings.spool_full_timeout)
    if isinstance(place, Path):
        from jobs_backup.spool.sqlite.spool import SqliteSpool

        return SqliteSpool(
            place,
            location=location,
            prefix=clean_prefix(settings.prefix),
            instance_id=settings.instance_id,
            limits=limits,
            room=room,
            durability=settings.spool_durability,
            compression=settings.compression,
            wrappers=wrappers,
            archives=archives,
            delete_after=settings.delete_after,
        )
    from jobs_backup.spool.postgresql.spool import PostgresqlSpool

    return PostgresqlSpool(
        place,
        location=location,
        prefix=clean_prefix(settings.prefix),
        instance_id=settings.instance_id,
        limits=limits,
        room=room,
        compression=settings.compression,
        wrappers=wrappers,
        archives=archives,
        delete_after=settings.delete_after,
        lease=settings.spool_lease,
        workers=settings.upload_concurrency if archives else 0,
    )


def read_status(place: SpoolPlace, limits: Limits = Limits(), rejects: Path | None = None) -> Status:
    """Read a spool's status. Changes nothing, except that it forgets reports whose file was removed.

    Args:
        rejects: where rejected lines are; None for the directory of the spool.

    Raises:
        SpoolError: the spool does not exist or cannot be read.
    """
    if isinstance(place, Path):
        from jobs_backup.spool.sqlite import status

        return status.read_status(place, limits, rejects)
    from jobs_backup.spool.postgresql import status as of_database

    return of_database.read_status(place, limits, rejects)


def open_reader(place: SpoolPlace) -> AbstractContextManager[SpoolReader]:
    """Open the spool's record of objects.

    Raises:
        SpoolError: the spool does not exist or cannot be read.
    """
    if isinstance(place, Path):
        from jobs_backup.spool.sqlite import status

        return status.open_reader(place)
    from jobs_backup.spool.postgresql import status as of_database

    return of_database.open_reader(place)


def check(place: SpoolPlace, min_free: int) -> list[str]:
    """Check whether a spool could be used, without creating it. Returns what would break its promises.

    Args:
        min_free: bytes that must be free on the disk of a directory.

    Raises:
        SpoolError: it cannot be used.
    """
    if isinstance(place, Path):
        from jobs_backup.spool.sqlite import status

        status.check_directory(place, min_free)
        return []
    from jobs_backup.spool.postgresql import checks

    return checks.check_database(place)


def move_spool(directory: Path, place: DatabaseSpool, *, instance_id: str, max_bytes: int | None, dry_run: bool = False) -> Moved:
    """Move the spool of this machine into a shared one, or finish what an earlier call began.

    Args:
        instance_id: as in the processes of this machine: its inputs are found by that.
        max_bytes: the quota of the shared spool; None for the default.
        dry_run: only look what would be moved.

    Raises:
        ConfigurationError: the settings of the database are invalid.
        SpoolError: it was not moved. What is in it is safe: see `moving.move`.
    """
    from jobs_backup.spool.postgresql.arriving import arriving
    from jobs_backup.spool.postgresql.sessions import host_name
    from jobs_backup.spool.sqlite.leaving import leaving

    with leaving(directory, host_name(instance_id)) as source, arriving(place, max_bytes) as target:
        return moving.plan(source, target) if dry_run else moving.move(source, target)


def spool_policy(*, upgrade: bool = False) -> str:
    """SQL that creates the roles and tables of a spool in PostgreSQL, with least privileges. Needs no server.

    `upgrade`: SQL that upgrades tables of an earlier version instead.
    """
    from jobs_backup.spool.postgresql import policy

    return policy.upgrade_statements() if upgrade else policy.statements()
