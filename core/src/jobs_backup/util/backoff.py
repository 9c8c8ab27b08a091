"""Exponential backoff: how long to wait after failures in a row."""

from __future__ import annotations


def backoff(failures: int, first: float, longest: float) -> float:
    """Seconds to wait: `first`, doubled for each of the earlier `failures`, and at most `longest`."""
    return min(longest, first * 2.0 ** min(failures, 32))
