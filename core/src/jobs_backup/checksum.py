"""CRC-32C (Castagnoli), which protects every byte from the spool to the bucket."""

from __future__ import annotations

from fastcrc.crc32 import iscsi


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """CRC-32C of `data`, as an unsigned 32-bit integer. `value` is the checksum of the bytes before it."""
    return iscsi(data, value)
