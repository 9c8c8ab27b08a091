"""Rate limit: events per second for each caller."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from jobs_backup.inputs.http.responses import HttpError

_BURST_SECONDS: Final = 10.0
_MAX_CALLERS: Final = 10_000


class Rate:
    """Maximum events per second for each caller in the long run; ten seconds' worth at once."""

    def __init__(self, per_second: int | None) -> None:
        self._per_second = per_second
        self._free_at: OrderedDict[str, float] = OrderedDict()  # caller -> when everything taken is paid for

    def take(self, caller: str, events: int) -> None:
        """Count events. Raises Refused (429) if the caller recorded too many before."""
        if self._per_second is None:
            return
        now = time.monotonic()
        free_at = max(self._free_at.pop(caller, 0.0), now - _BURST_SECONDS)
        if free_at > now:
            self._free_at[caller] = free_at
            hint = "retry later; the limit is the server's JOBS_BACKUP_SERVER_RATE"
            message = f"more than {self._per_second:,} events a second"
            raise HttpError(429, "TooManyEvents", message, hint=hint, retry_after=free_at - now)
        self._free_at[caller] = free_at + events / self._per_second
        if len(self._free_at) > _MAX_CALLERS:
            self._free_at.popitem(last=False)
