"""CRC-32C (Castagnoli), which protects every byte from the spool to the bucket."""

from __future__ import annotations

from fastcrc.crc32 import iscsi


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """Checksum of these bytes, continuing from `value`, the checksum of what precedes them; an unsigned integer of 32 bits."""
    return iscsi(data, value)
