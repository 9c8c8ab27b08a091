"""Open a spool through its engine. An engine is imported on first use, so unused ones are never loaded.

The only engine so far is a directory on a local disk (`sqlite/`).
"""

# ruff: noqa: PLC0415 - see above
from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from jobs_backup.format.keys import clean_prefix
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.interface import BatchLimits, QuotaLimits, Spool, SpoolReader, Total
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
    from jobs_backup.spool.sqlite.spool import SqliteSpool

    return SqliteSpool(
        settings.spool_path,
        location=location,
        prefix=clean_prefix(settings.prefix),
        instance_id=settings.instance_id,
        limits=BatchLimits(events=settings.batch_events, bytes=settings.batch_bytes, age=settings.upload_frequency),
        room=QuotaLimits(max_bytes=settings.spool_max_bytes, min_free=settings.spool_min_free, timeout=settings.spool_full_timeout),
        durability=settings.spool_durability,
        compression=settings.compression,
        wrappers=wrappers,
        archives=archives,
        delete_after=settings.delete_after,
    )


def read_status(spool: Path, limits: Limits = Limits()) -> Status:  # noqa: B008 - frozen
    """Read the status of a spool. Changes nothing, except that reports whose file was removed are forgotten.

    Raises:
        SpoolError: it does not exist or cannot be read.
    """
    from jobs_backup.spool.sqlite import status

    return status.read_status(spool, limits)


def watch(spool: Path, limits: Limits) -> tuple[Status, list[Total]]:
    """Poll a spool that this process has open, without blocking other users or being blocked by them.

    Raises:
        SpoolError: it cannot be read.
    """
    from jobs_backup.spool.sqlite import status

    return status.watch(spool, limits)


def open_reader(spool: Path) -> AbstractContextManager[SpoolReader]:
    """Open the spool's record of objects.

    Raises:
        SpoolError: the spool does not exist or cannot be read.
    """
    from jobs_backup.spool.sqlite import status

    return status.open_reader(spool)


def check(spool: Path, min_free: int) -> None:
    """Check that a spool could be used here, without creating it.

    Raises:
        SpoolError: it could not.
    """
    from jobs_backup.spool.sqlite import status

    status.check_directory(spool, min_free)
