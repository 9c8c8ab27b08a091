"""Format of an input, by its content: gzip, zstd or text. Names the format if it is not NDJSON."""

from __future__ import annotations

import gzip
import json
import os
import re
import select
import threading
from typing import BinaryIO, Final, Protocol, cast

import msgspec

from jobs_backup.errors import ConfigurationError

BOM: Final = b"\xef\xbb\xbf"
STDIN: Final = "standard input"
"""Name of standard input in messages."""

_HEAD: Final = 64 << 10
_MARK: Final = 4096
_POLL: Final = 0.2
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # a frame, or a skippable one (RFC 8878, 3.1)
_MAY_BE_PACKED: Final = (b"", b"\x1f", b"\x28", b"\x28\xb5", b"\x28\xb5\x2f")  # too short to decide

_FOREIGN: Final = (
    (re.compile(rb"BZh[1-9]"), "is compressed with bzip2", "bzcat {0} > {0}.ndjson"),
    (re.compile(rb"\xfd7zXZ\x00"), "is compressed with xz", "xzcat {0} > {0}.ndjson"),
    (re.compile(rb"\x04\x22\x4d\x18"), "is compressed with lz4", "lz4cat {0} > {0}.ndjson"),
    (re.compile(rb"\x1f[\x9d\xa0]"), "is compressed with compress", "gzip -dc {0} > {0}.ndjson"),
    (re.compile(rb"PK\x03\x04"), "is a ZIP archive", "unzip -p {0} > {0}.ndjson"),
    (re.compile(rb"(?s)(?=.{0,256}\x00).{257}ustar"), "is a tar archive", "tar -xOf {0} > {0}.ndjson"),
    (re.compile(rb"x[\x01\x5e\x9c\xda]"), "is compressed with zlib", "pigz -dcz {0} > {0}.ndjson"),
    (re.compile(rb"\xff\x06\x00\x00sNaPpY"), "is compressed with Snappy", "snzip -dc {0} > {0}.ndjson"),
    (
        re.compile(BOM + rb"(?:\x1f\x8b|\x28\xb5\x2f\xfd)"),
        "has a byte order mark before the compressed data",
        "tail -c +4 {0} > {0}.gz",
    ),
    (re.compile(rb"[^\n]*\}[ \t]*\r[ \t]*\{[^\n]*\Z"), "has lines that end with CR only", "tr '\\r' '\\n' < {0} > {0}.ndjson"),
    (re.compile(rb"\x1f\x8b|\x28\xb5\x2f\xfd"), "is compressed twice", "gzip -dc {0} | gzip -dc > {0}.ndjson"),
    (re.compile(rb"\x1e\s*\{"), "is a JSON text sequence (RFC 7464)", "tr -d '\\036' < {0} > {0}.ndjson"),
    (re.compile(rb"PAR1"), "is a Parquet file", ""),
    (re.compile(rb"Obj\x01"), "is an Avro file", ""),
    (
        re.compile(rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff|(?:[\t-~]\x00\x00\x00){2}|(?:\x00\x00\x00[\t-~]){2}"),
        "is UTF-32, not UTF-8",
        "iconv -f UTF-32 -t UTF-8 {0} > {0}.ndjson",
    ),
    (
        re.compile(rb"\xff\xfe|\xfe\xff|(?:[\t-~]\x00){2}|(?:\x00[\t-~]){2}"),
        "is UTF-16, not UTF-8",
        "iconv -f UTF-16 -t UTF-8 {0} > {0}.ndjson",
    ),
    (re.compile(rb"(?i)\s*<(?:\?xml|!doctype|html)"), "is XML or HTML", ""),
)
_ARRAY: Final = re.compile(rb"\s*\[(?:\s*\{|[ \t]*\r?\n)")
_JSON_LINE: Final = re.compile(rb"^[ \t]*[{\[]", re.MULTILINE)
_SPREAD: Final = re.compile(rb"\s*\{[ \t\r]*\n\s*\"")


class Stopped(Exception):
    """The command is to end: nothing more is read."""


class Unpacked(Protocol):
    """A gzip or zstd file, decompressed."""

    def read1(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end."""
        ...


class Source:
    """Raw bytes of a file or a stream. Reading waits for a stream, and ends with `Stopped` once `stop` is set."""

    def __init__(self, file: BinaryIO, stop: threading.Event, *, is_file: bool) -> None:
        self._file = file
        self._stop = stop
        self._is_file = is_file
        self._ahead = b""
        self._marks: dict[str, tuple[int, bytes]] = {}
        self._furthest = 0
        self._size = os.fstat(file.fileno()).st_size if is_file else 0

    def is_as_it_was_read(self) -> bool:
        """Whether a file still holds what was read of it, judging by a few blocks: the first one, and the last ones.

        A file that was truncated and refilled beyond what was read has other bytes there. Call it after a read and before using the
        data: if everything is unchanged, both belong to the same content.
        """
        if not self._is_file:
            return True
        before, self._size = self._size, os.fstat(self._file.fileno()).st_size
        is_same = self._size >= before and all(
            os.pread(self._file.fileno(), len(data), start) == data for start, data in self._marks.values()
        )
        if is_same and "last" in self._marks:
            self._marks["checked"] = self._marks["last"]
        return is_same

    def _mark(self, data: bytes) -> None:
        """Note the end of what was just read. Earlier notes stay until checked together with it."""
        end = self._file.tell()
        last = data[-_MARK:]
        if end == len(data):
            self._marks.setdefault("first", (0, data[:_MARK]))
        self._marks["last"] = (end - len(last), last)
        if end > self._furthest:
            self._furthest = end
            self._marks["furthest"] = self._marks["last"]

    def head(self) -> bytes:
        """Peek at the first bytes, enough to recognize a format."""
        while self._ahead in _MAY_BE_PACKED and (data := self._from_file(_HEAD)):
            self._ahead += data
        return self._ahead

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; empty at the end."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self._from_file(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a place in a file."""
        self._ahead = b""
        if "furthest" in self._marks:  # a file is read to be recognized, and then again from where that ended
            self._marks["sought"] = self._marks["furthest"]
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Number of bytes read from the file."""
        return self._file.tell() - len(self._ahead)

    def _from_file(self, size: int) -> bytes:
        while not self._stop.is_set():
            # Until its writer opens it, a named pipe looks like an empty file.
            if not self._is_file and not select.select([self._file], [], [], _POLL)[0]:
                continue
            data = cast(bytes | None, self._file.read(size))
            if data and self._is_file:
                self._mark(data)
            if data is not None:  # otherwise, standard input is non-blocking, and has no data now
                return data
        raise Stopped


def unpacked(source: Source, head: bytes) -> Unpacked | None:
    """Make a decompressor; None if the source is not compressed."""
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=cast(BinaryIO, source), mode="rb")
    return _Zstd(source) if _ZSTD.match(head) else None


class NotPacked(OSError):
    """The bytes after a frame are not another frame."""


class _Zstd:
    """Frames, one after another. (`ZstdFile` does not report what follows them.)"""

    def __init__(self, source: Source) -> None:
        from jobs_backup.util.zstd import zstd  # only for those who need it

        self._source = source
        self._new = zstd.ZstdDecompressor
        self._error = zstd.ZstdError
        self._frame = self._new()
        self._is_begun = False
        self._packed = b""

    def read1(self, size: int) -> bytes:
        """See `Unpacked`."""
        while True:
            if self._frame.eof:
                self._packed = self._frame.unused_data or self._source.read(_HEAD)
                if not self._packed:
                    return b""
                self._frame, self._is_begun = self._new(), False
            elif self._frame.needs_input:
                self._packed = self._source.read(_HEAD)
                if not self._packed:
                    raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            packed, self._packed = self._packed, b""
            try:
                data = self._frame.decompress(packed, size)
            except self._error as error:
                if self._is_begun:
                    raise OSError(None, str(error)) from error
                raise NotPacked(None, "Not a zstd frame") from error
            self._is_begun = True
            if data:
                return data


def refuse_what_is_not_ndjson(name: str, head: bytes) -> None:
    """Check the first bytes of an input, decompressed.

    A line that is not an event is rejected, and the others are accepted. This check is for inputs without any usable line.

    Raises:
        ConfigurationError: the input has another format, which the error names.
    """
    for pattern, what, command in _FOREIGN:
        if pattern.match(head):
            _refuse(name, what, command)
    head = head.removeprefix(BOM)
    if _ARRAY.match(head) and not _is_only_its_first_line(head):
        _refuse(name, "is a JSON array, not a JSON object on each line", "jq -c '.[]' {0} > {0}.ndjson")
    if _SPREAD.match(head):
        _refuse(name, "has JSON objects over several lines, not one on each line", "jq -c . {0} > {0}.ndjson")
    if _is_csv(head):
        _refuse(name, "looks like CSV", "")


def _refuse(name: str, what: str, command: str) -> None:
    convert = "convert it"
    if command and name != STDIN:
        convert += f", for example `{command.format(json.dumps(name) if ' ' in name else name)}`"
    raise ConfigurationError(f"{name} {what}: none of it was read", hint=f"{convert}; NDJSON is one JSON object on each line")


def _is_only_its_first_line(head: bytes) -> bool:
    """Whether an array ends on its line, and more follows."""
    first, _, rest = head.lstrip().partition(b"\n")
    try:
        msgspec.json.decode(first, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return bool(rest.strip())


def _is_csv(head: bytes) -> bool:
    lines = [line.strip(b"\r") for line in head.split(b"\n", 3)[:3]]
    if len(lines) < 3 or _JSON_LINE.search(head):
        return False
    return any(lines[0].count(one) == lines[1].count(one) > 0 for one in (b",", b";", b"\t"))
