"""Backpressure: whether the spool has space for more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from jobs_backup.errors import SpoolFull
from jobs_backup.spool.interface import QuotaLimits
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.database import database_errors
from jobs_backup.spool.sqlite.disk import Ballast, free_bytes

_DISK_SECONDS: Final = 0.02
_LOOK_SECONDS: Final = 0.25
_LOOK_BYTES: Final = 1 << 20


class Quota:
    """Check the limits for recording. Each process may exceed them by what it records between two checks: about 1 MiB, or a commit.

    The limits apply to recording only. Sealing and uploading continue, because they free space.
    """

    def __init__(
        self, directory: Path, catalog: Catalog, ballast: Ballast, session: Callable[[], str], limits: QuotaLimits
    ) -> None:
        """`session` returns this process's session, which changes if its files are lost."""
        self._directory = directory
        self._catalog = catalog
        self._ballast = ballast
        self._session = session
        self.limits = limits
        self._disk_looked_at = -math.inf
        self._looked_at = 0.0
        self._looked_with = 0
        self._of_others = 0
        self._reported = ("", 0)  # session, and its bytes

    def check(self, open_bytes: Callable[[], int]) -> None:
        """Check that more may be recorded. `open_bytes` returns the bytes of this process's open batches.

        Raises:
            SpoolFull: there is no space.
        """
        now = time.monotonic()
        if now - self._disk_looked_at >= _DISK_SECONDS:
            self._check_disk()
            self._disk_looked_at = now
        if self.limits.max_bytes is not None:
            self._check_quota(open_bytes(), self.limits.max_bytes)

    def _check_disk(self) -> None:
        with database_errors(self._directory):
            free, floor = free_bytes(self._directory), self._ballast.min_free
        if free < floor:
            raise SpoolFull(
                f"the disk of {self._directory} has {free:,} bytes left, and recording keeps {floor:,} free",
                hint="free space there; `jobs-backup status` shows what waits in the spool",
            )

    def _check_quota(self, own: int, max_bytes: int) -> None:
        now = time.monotonic()
        looked_long_ago = now - self._looked_at >= _LOOK_SECONDS or abs(own - self._looked_with) >= _LOOK_BYTES
        if looked_long_ago or own + self._of_others >= max_bytes:
            session = self._session()
            self._of_others = self._catalog.spooled_bytes(session)
            self._looked_at, self._looked_with = now, own
            reported = self._reported[1] if self._reported[0] == session else 0
            if abs(own - reported) >= _LOOK_BYTES:
                self._catalog.report_spooled(session, own)
                self._reported = (session, own)
        if own + self._of_others >= max_bytes:
            raise SpoolFull(
                f"the spool in {self._directory} holds {own + self._of_others:,} bytes of events, and its limit is {max_bytes:,}",
                hint="`jobs-backup status` shows why they are not uploaded; or raise JOBS_BACKUP_SPOOL_MAX_BYTES",
            )
