"""What a spool stands on. An engine is imported when it is used, so that nobody loads what is not.

There is one so far: a directory on a local disk (`sqlite/`).
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
    """Open the spool of these settings; make it where there is none.

    Args:
        location: of the store; what is recorded is bound to it.
        wrappers: what its objects will be made by, see `Batch.wrappers`.
        archives: whether this process also sends, and deletes.

    Raises:
        ConfigurationError: the settings are wrong.
        SpoolError: it can't be used.
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
    """Look at a spool. Nothing in it is changed, but that reports are forgotten whose file somebody has removed.

    Raises:
        SpoolError: there is none, or it can't be read.
    """
    from jobs_backup.spool.sqlite import status

    return status.read_status(spool, limits)


def watch(spool: Path, limits: Limits) -> tuple[Status, list[Total]]:
    """For who looks again and again at a spool that this process has open: nobody waits for it, nor it for anybody.

    Raises:
        SpoolError: it can't be read.
    """
    from jobs_backup.spool.sqlite import status

    return status.watch(spool, limits)


def open_reader(spool: Path) -> AbstractContextManager[SpoolReader]:
    """What a spool remembers of objects.

    Raises:
        SpoolError: there is none, or it can't be read.
    """
    from jobs_backup.spool.sqlite import status

    return status.open_reader(spool)


def check(spool: Path, min_free: int) -> None:
    """Look whether a spool could be used. It is not made.

    Raises:
        SpoolError: it can't.
    """
    from jobs_backup.spool.sqlite import status

    status.check_directory(spool, min_free)
