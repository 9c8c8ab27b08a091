"""Act in the middle of a call, at its n-th call or return: between any two lines that matter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType


def act_within(call: Callable[[], object], place: int, act: Callable[[], object]) -> bool:
    """Call, and act at the n-th call or return inside. Returns whether there were as many. What `act` raises comes from there."""
    left = place

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event in ("call", "return"):
            left -= 1
            if left == -1:
                sys.setprofile(None)
                act()

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return left < 0
