"""Combines the CRC-32Cs of parts into that of the whole. Azure does not support CRC-32C, so only we can compare it."""

from __future__ import annotations

import functools
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78
"""Castagnoli's polynomial. A number's highest bit is the coefficient of x to the power of 0."""
_ONE: Final = 1 << 31
_BYTE: Final = 1 << 23  # x to the power of 8: the effect of one more byte on all bytes before it


def combined(first: int, second: int, size: int) -> int:
    """Return the CRC-32C of two adjacent pieces from their CRCs. `size` is the second piece's, in bytes."""
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
    """Return the product of two polynomials, modulo Castagnoli's."""
    product = 0
    for bit in range(31, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product
