"""CRC-32C (Castagnoli), with which bytes are checked on all of their way."""

from __future__ import annotations


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """Of these bytes, behind others whose checksum is `value`; an unsigned integer of 32 bits."""
    from crc32c import crc32c as calculate  # noqa: PLC0415 - slow to import, and not needed by all who import this package

    return calculate(data, value)
