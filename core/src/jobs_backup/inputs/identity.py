"""How an input is recognized: by a checksum of all that was read of it, whatever its name; and what its repetition proves."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
from isal import isal_zlib

from jobs_backup.checksum import crc32c

_SAMPLE: Final = 32
_ENOUGH: Final = 16
"""Number of lines that each occur once, from which on another file that begins with them must be the same one."""

_FEW: Final = 4
"""If fewer than one line in this many occurs only once, the content repeats itself."""

_FIRST_LINE: Final = 4096
_SEARCHED: Final = 1 << 20
"""Bytes of a line searched for what names it: in a line of 256 MiB, the search would take a minute."""
_HASHES: Final = 1 << 32
_NAMED: Final = re.compile(
    rb'"messageId"\s*:\s*"[^"]'  # an event's own id
    rb"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d"  # or its time
    rb"|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-"  # or a UUID
    rb"|\d{10}"  # or a time as a number, or a long id
)

_crc32: Callable[..., int] = isal_zlib.crc32  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # ten times zlib's


class SeenFile(msgspec.Struct, frozen=True):
    """The file in which a content was last seen. Times are nanoseconds since 1970.

    Attributes:
        path: a hash of it.
        changed: of the inode (`st_ctime`); 0 if the file may have changed since without a new one.
    """

    path: str
    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path, status: os.stat_result) -> SeenFile:
        """Describe an open file."""
        hashed = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16]
        return cls(hashed, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_file(self, other: SeenFile) -> bool:
        """Whether both are the same file. A device may get another number when it is mounted again."""
        return self.inode == other.inode and (self.device == other.device or self.path == other.path)

    def is_unchanged(self, now: SeenFile) -> bool:
        """Whether nothing can have been written since."""
        same = (self.size, self.modified, self.changed) == (now.size, now.modified, now.changed)
        return same and self.changed != 0 and self.is_file(now)


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far an input was read. Committed to the spool together with the events.

    Attributes:
        offset: bytes (after decompression).
        line: newlines before it.
        rejects: size of the rejects file at that point, in bytes.
        digest: from earlier versions: SHA-256 of the first and the last 4 KiB before `offset`.
        content: checksums of all bytes before `offset`.
        first: a hash of the first line.
        sample: of the lines, see `Sample`.
        name: of the file in which it was first read, for messages and the rejects file.
        rejects_name: of the rejects file.
        seen: the file in which it was last read.
    """

    offset: int = 0
    line: int = 0
    rejects: int = 0
    digest: str = ""
    content: str = ""
    first: str = ""
    sample: list[tuple[int, int, bool]] = []
    name: str = ""
    rejects_name: str = ""
    seen: SeenFile | None = None


class Sample:
    """A sample of a content's distinct lines, with their counts: those with the smallest checksums.

    It is independent of the lines' positions, so samples of two contents show what they have in common.
    """

    def __init__(self, kept: Iterable[tuple[int, int, bool]] = ()) -> None:
        self._lines = {value: (count, named) for value, count, named in kept}
        self._limit = self._new_limit()

    def add(self, lines: Sequence[bytes]) -> None:
        """Add lines, without their newlines."""
        limit = self._limit
        for index, value in enumerate(map(_crc32, lines)):
            if value <= limit and (line := lines[index]) and not line.isspace():
                self._add(value, line)
                limit = self._limit

    def _add(self, value: int, line: bytes) -> None:
        count, named = self._lines.get(value, (0, None))
        self._lines[value] = count + 1, _NAMED.search(line, 0, _SEARCHED) is not None if named is None else named
        if len(self._lines) > _SAMPLE:
            del self._lines[max(self._lines)]
        if count == 0:
            self._limit = self._new_limit()

    def _new_limit(self) -> int:
        # Lines left out once stay out, so that the counts cover the whole content.
        return max(self._lines) if len(self._lines) >= _SAMPLE else _HASHES

    def kept(self) -> list[tuple[int, int, bool]]:
        """Arguments for `Sample`."""
        return [(value, *counted) for value, counted in self._lines.items()]

    def among(self, following: Sequence[bytes]) -> Sample:
        """The same lines, counted in the following lines as well."""
        sample = Sample(self.kept())
        for value in map(_crc32, following):
            if value in sample._lines:
                count, named = sample._lines[value]
                sample._lines[value] = count + 1, named
        return sample

    @property
    def proves(self) -> bool:
        """Whether another file that begins with all of these lines must be the same one, or a copy."""
        once = [named for count, named in self._lines.values() if count == 1]
        return any(once) or len(once) >= _ENOUGH

    @property
    def repeats(self) -> bool:
        """Whether most lines recur, so that similar lines prove nothing."""
        once = sum(count == 1 for count, _ in self._lines.values())
        return not self.proves and _FEW * once < sum(count for count, _ in self._lines.values())

    @property
    def recurs(self) -> bool:
        """Whether there are lines, and each of them recurs."""
        return bool(self._lines) and all(count > 1 for count, _ in self._lines.values())

    def overlaps(self, other: Sample) -> bool:
        """Whether both contents share lines that are not equal by chance."""
        limit = min(self._limit, other._limit)
        mine = {value for value in self._lines if value <= limit}
        theirs = {value for value in other._lines if value <= limit}
        common = mine & theirs
        named = sum(self._lines[value][1] for value in common)
        least = max(1, min(len(mine), len(theirs)))
        return 2 * len(common) >= least or (named > 0 and 4 * named >= least)


class Fingerprint:
    """Identifies all bytes from a content's start: two 32-bit checksums, and the first line.

    Not SHA-256: a file is read again to be recognized, and a checksum takes a tenth of the time.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.line = 0
        self.ends_line = True
        self._crc32 = 0
        self._crc32c = 0
        self._first = b""
        self._first_ended = False

    def add(self, data: bytes | bytearray) -> None:
        """Add the bytes that follow."""
        if not data:
            return
        if not self._first_ended:
            line, newline, _ = bytes(data[:_FIRST_LINE]).partition(b"\n")
            self._first = (self._first + line)[:_FIRST_LINE]
            self._first_ended = bool(newline) or len(self._first) == _FIRST_LINE
        self._crc32 = _crc32(data, self._crc32)
        self._crc32c = crc32c(data, self._crc32c)
        self.offset += len(data)
        self.line += data.count(b"\n")
        self.ends_line = data[-1] == ord("\n")

    @property
    def content(self) -> str:
        """The checksums."""
        return f"{self._crc32:08x}{self._crc32c:08x}"

    @property
    def first(self) -> str:
        """A hash of the first line, as far as it has been read."""
        return hashlib.sha256(self._first).hexdigest()[:16] if self.offset else ""

    def copy(self) -> Fingerprint:
        """A copy of its present state."""
        copied = Fingerprint()
        copied.__dict__.update(self.__dict__)
        return copied
