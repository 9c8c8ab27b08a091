"""Compress objects, in formats whose pieces can be concatenated to a file of the format."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Final, Literal

from isal import igzip

FormatName = Literal["gzip", "zstd"]

_ISAL_LEVELS: Final = 3


class Compression:
    """A format and its level, written as `gzip`, `gzip:6` or `zstd:3`. Two with the same text are equal.

    Pieces of both formats may be concatenated (RFC 1952, 2.2; RFC 8878, 3), so nothing is compressed twice.

    Attributes:
        format: its name.
        level: 1 to 9 for gzip, 1 to 19 for zstd; higher is slower and smaller. Levels of gzip up to 3 are ISA-L's, the others
            zlib's.
        suffix: of object keys.
        content_type: of objects.
        compress: makes one piece from bytes; the same bytes give the same piece.
        decompress: returns the bytes of one or several pieces.
    """

    __slots__ = ("_text", "compress", "content_type", "decompress", "format", "level", "suffix")

    def __init__(self, format_: FormatName, level: int = 1) -> None:
        self.format: FormatName = format_
        self.level = level
        self._text = f"{format_}:{level}"
        self.compress: Callable[[bytes], bytes]
        self.decompress: Callable[[bytes], bytes]
        if format_ == "gzip":
            self.suffix, self.content_type = ".json.gz", "application/gzip"
            self.compress, self.decompress = _gzip(level)
        else:
            self.suffix, self.content_type = ".json.zst", "application/zstd"
            self.compress, self.decompress = _zstd(level)

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Parse a format with an optional level. Raises ValueError."""
        match = re.fullmatch(r"(gzip|zstd)(?::(\d{1,2}))?", text.strip().lower())
        if match is None:
            raise ValueError("expected gzip or zstd, with a level or without, for example zstd:3")
        name: FormatName = "gzip" if match[1] == "gzip" else "zstd"
        level, highest = int(match[2] or 1), 9 if name == "gzip" else 19
        if not 1 <= level <= highest:
            raise ValueError(f"expected a level from 1 to {highest}")
        return cls(name, level)

    def __str__(self) -> str:
        return self._text if self.level > 1 else self.format

    def __repr__(self) -> str:
        return f"Compression.parse({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Compression) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


Function = Callable[[bytes], bytes]
# isal has types for only some of it.
_gzip_compress: Callable[..., bytes] = igzip.compress  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
_gzip_decompress: Function = igzip.decompress  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _gzip(level: int) -> tuple[Function, Function]:
    if level <= _ISAL_LEVELS:
        # mtime: otherwise the current time would be written, and the same bytes would give another piece.
        return lambda data: _gzip_compress(data, level, mtime=0), _gzip_decompress
    return lambda data: zlib.compress(data, level, wbits=31), _gzip_decompress


def _zstd(level: int) -> tuple[Function, Function]:
    from jobs_backup.util.zstd import zstd  # noqa: PLC0415 - only for those who need it

    parameter = zstd.CompressionParameter
    # With a checksum, as in gzip: damage is found wherever the object is read.
    options = {int(parameter.compression_level): level, int(parameter.checksum_flag): 1}
    return lambda data: zstd.compress(data, options=options), zstd.decompress


GZIP: Final = Compression("gzip")
"""The format that RudderStack's tools read."""
