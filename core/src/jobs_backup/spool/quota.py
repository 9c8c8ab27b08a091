"""Backpressure by the bytes of all processes: whether the spool may hold more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from jobs_backup.errors import SpoolFull
from jobs_backup.spool.interface import QuotaLimits

_LOOK_SECONDS: Final = 0.25
_LOOK_BYTES: Final = 1 << 20


class ByteCounts(Protocol):
    """The catalog of an engine."""

    def spooled_bytes(self, session: str, /) -> int:
        """Bytes of all batches not yet uploaded, except those that `session` has open."""
        ...

    def report_spooled(self, session: str, size: int, /) -> None:
        """Tell other processes how many bytes a session has in open batches."""
        ...


class BytesQuota:
    """All processes together may go over the limit by what they record between two looks of theirs: each about 1 MiB, or a commit.

    The limit is for recording alone. Sealing and uploading continue, since they make room.
    """

    def __init__(self, name: str, catalog: ByteCounts, session: Callable[[], str], limits: QuotaLimits) -> None:
        """`name` is where the spool is, for messages; `session` names that of this process, which may get another one."""
        self._name = name
        self._catalog = catalog
        self._session = session
        self.limits = limits
        self._looked_at = 0.0
        self._looked_with = 0
        self._of_others = 0
        self._reported = ("", 0)  # session, and its bytes

    def check(self, open_bytes: Callable[[], int]) -> None:
        """Check that more may be recorded. `open_bytes` returns the bytes of this process's open batches.

        Raises:
            SpoolFull: there is no space.
        """
        if (max_bytes := self.limits.max_bytes) is None:
            return
        own = open_bytes()
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
                f"the spool in {self._name} holds {own + self._of_others:,} bytes of events, and may hold {max_bytes:,}",
                hint="`jobs-backup status` shows why they are not uploaded; or raise JOBS_BACKUP_SPOOL_MAX_BYTES",
            )
