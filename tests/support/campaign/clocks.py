"""System clocks that jump, as seen through `time.time` and `time.time_ns`. Each process has its own: they disagree."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Final

_DAY: Final = 86_400
LEAPS: Final = {
    "an hour ahead": 3600,
    "a year ahead": 365 * _DAY,
    "90 years ahead": 90 * 365 * _DAY,
    "a year back": -365 * _DAY,
    "right again": 0,
}
"""Possible clock errors after a jump, in seconds."""

_time, _time_ns = time.time, time.time_ns
_ahead = [0]


def _leaping_time() -> float:
    return _time() + _ahead[0]


def _leaping_time_ns() -> int:
    return _time_ns() + _ahead[0] * 1_000_000_000


def leap(name: str) -> None:
    """Make this process's clock jump."""
    _ahead[0] = LEAPS[name]
    time.time, time.time_ns = _leaping_time, _leaping_time_ns


def leap_now_and_then(rng: random.Random, pause: float, note: int) -> None:
    """Jumps at random moments, `pause` seconds apart on average, each noted in the file `note`. The first one comes at once."""

    def leap_on() -> None:
        while True:
            name = rng.choice([*LEAPS])
            leap(name)
            os.write(note, f"{name}\n".encode())
            time.sleep(rng.expovariate(1 / pause))

    threading.Thread(target=leap_on, name="clock", daemon=True).start()
