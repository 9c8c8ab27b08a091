"""The CRC-32C of a whole from those of its parts: Azure knows no CRC-32C, so that nobody but us can compare it."""

from __future__ import annotations

import functools
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78
"""Castagnoli's. The highest bit of a number is the coefficient of x to the power of 0."""
_ONE: Final = 1 << 31
_BYTE: Final = 1 << 23  # x to the power of 8: what one byte more does to all that stand before it


def combined(first: int, second: int, size: int) -> int:
    """Of two pieces, one behind the other; `size` is that of the second one, in bytes."""
    return _product(first, _shift(size)) ^ second


@functools.lru_cache(maxsize=8)
def _shift(size: int) -> int:
    power, square = _ONE, _BYTE
    while size:
        if size & 1:
            power = _product(power, square)
        square = _product(square, square)
        size >>= 1
    return power


def _product(left: int, right: int) -> int:
    """Of two polynomials, modulo Castagnoli's."""
    product = 0
    for bit in range(31, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product
