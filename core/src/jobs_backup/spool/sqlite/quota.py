"""Backpressure: whether the spool has space for more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from jobs_backup.errors import SpoolFull
from jobs_backup.spool.interface import QuotaLimits
from jobs_backup.spool.quota import BytesQuota
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.database import database_errors
from jobs_backup.spool.sqlite.disk import Ballast, free_bytes

_DISK_SECONDS: Final = 0.02


class Quota(BytesQuota):
    """The quota, and the free space on the disk."""

    def __init__(
        self, directory: Path, catalog: Catalog, ballast: Ballast, session: Callable[[], str], limits: QuotaLimits
    ) -> None:
        """`session` returns this process's session, which changes if its files are lost."""
        super().__init__(str(directory), catalog, session, limits)
        self._directory = directory
        self._ballast = ballast
        self._disk_looked_at = -math.inf

    def check(self, open_bytes: Callable[[], int]) -> None:
        """Check that more may be recorded. `open_bytes` returns the bytes of this process's open batches.

        Raises:
            SpoolFull: there is no space.
        """
        now = time.monotonic()
        if now - self._disk_looked_at >= _DISK_SECONDS:
            self._check_disk()
            self._disk_looked_at = now
        super().check(open_bytes)

    def _check_disk(self) -> None:
        with database_errors(self._directory):
            free, floor = free_bytes(self._directory), self._ballast.min_free
        if free < floor:
            raise SpoolFull(
                f"the disk of {self._directory} has {free:,} bytes left, and recording keeps {floor:,} free",
                hint="free space there; `jobs-backup status` shows what waits in the spool",
            )
