"""The spool's clock: measures durations, whatever happens to the system's clock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, NamedTuple

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_LONGEST_GAP: Final = 86_400.0
"""Seconds. The most that a powered-off machine may advance the clock: its own clock may be years off when it comes back."""


_NEVER: Final = 1e11
"""Seconds since 1970, in the year 5138."""


class Reading(NamedTuple):
    """What the clocks show at one moment.

    Attributes:
        boot: the id of this boot; empty if the system has none.
        wall: seconds since 1970, by the system's clock, which may jump.
        uptime: seconds since boot, the same for all processes.
        spool: seconds by the spool's clock.
    """

    boot: str
    wall: float
    uptime: float
    spool: float


class Clock:
    """Seconds since about 1970, advanced by the machine's uptime, and between boots by the system's clock, by at most a day.

    So a clock that jumps ahead expires nothing, and one that is set back delays nothing forever.
    """

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def now(self) -> float:
        """Seconds by the spool's clock."""
        return self._reading.spool + _uptime() - self._reading.uptime


def read_clocks(before: Reading | None) -> Reading:
    """Read the clocks; `before` is an earlier reading of the same spool, None if there is none."""
    boot, wall, uptime = _boot(), time.time(), _uptime()
    if before is None or not 0 <= before.spool < _NEVER or before.uptime < 0:  # it is damaged
        return Reading(boot, wall, uptime, wall)
    if before.boot == boot and before.uptime <= uptime:
        return Reading(boot, wall, uptime, before.spool + uptime - before.uptime)
    return Reading(boot, wall, uptime, before.spool + min(max(wall - before.wall, 0.0), _LONGEST_GAP))


def _uptime() -> float:
    # CLOCK_BOOTTIME includes time asleep; only Linux has it.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _boot() -> str:
    try:
        return _BOOT_ID.read_bytes().decode().strip()
    except OSError:
        return ""
