"""Reads NDJSON inputs: files, `.gz` too, and streams; in blocks, from where the last run got to."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import select
import stat
import threading
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import msgspec

from jobs_backup.encoding import MAX_PAYLOAD
from jobs_backup.errors import ConfigurationError

MAX_LINE: Final = MAX_PAYLOAD
"""Bytes of a line (not less than a block): a longer one would not fit into memory, and is no event."""

_BLOCK: Final = 1 << 20
_KEPT: Final = 4096
_POLL: Final = 0.2


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far an input was read. Committed to the spool together with the events.

    Attributes:
        offset: bytes (after decompression).
        line: newlines before it.
        rejects: bytes that the rejects file had then.
        digest: SHA-256 of the first and the last bytes before `offset`, by which the input is known again.
    """

    offset: int = 0
    line: int = 0
    rejects: int = 0
    digest: str = ""


class Block(NamedTuple):
    """Some lines, without their newlines.

    Attributes:
        first: the number of the first line, from 1.
        continued: the first line is the rest of one whose beginning was recorded when it was the file's end.
        unfinished: the only line is the file's end, and its newline may still be written.
    """

    lines: list[bytes]
    first: int
    continued: bool
    unfinished: bool


class LongLine(NamedTuple):
    """A line of more than MAX_LINE bytes, to be read piece by piece before anything else."""

    number: int
    pieces: Iterator[bytes | bytearray]


class Input:
    """A file or stream of NDJSON that was named. It is opened when its turn comes."""

    def __init__(self, path: Path | None) -> None:
        """`path` is None for standard input, which is always a stream: whoever gave it may have read some of it.

        Raises:
            ConfigurationError: it can't be read.
        """
        self.path = path
        self.name = "standard input" if path is None else str(path)
        try:
            status = os.fstat(0) if path is None else _check(path)
        except OSError as error:
            raise ConfigurationError(f"{self.name}: {error.strerror}", hint="name a readable file of NDJSON") from error
        self.size = status.st_size if path is not None and stat.S_ISREG(status.st_mode) else None
        """Bytes of the file; None for a stream, which can't be read again."""

    @contextmanager
    def open(self) -> Generator[Reader]:
        """Opens it.

        Raises:
            ConfigurationError: it can't be opened.
        """
        with _errors(self.name):
            if self.path is None:
                descriptor = os.dup(0)
            else:
                # Opening a named pipe must not wait for its writer: nothing could interrupt it.
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                os.set_blocking(descriptor, True)
            file = os.fdopen(descriptor, "rb", buffering=0)
        with file:
            is_gzip = self.path is not None and self.path.suffix == ".gz"
            yield Reader(self.name, file, is_file=self.size is not None, is_gzip=is_gzip)


class Reader:
    """An open input."""

    def __init__(self, name: str, file: BinaryIO, *, is_file: bool, is_gzip: bool) -> None:
        self._name = name
        self._file = file
        self._gzip = gzip.GzipFile(fileobj=file) if is_gzip else None
        self._bytes = cast(BinaryIO, self._gzip or file)
        self._cut: Exception | None = None
        self._is_file = is_file
        self._is_gzip = is_gzip
        self._offset = 0
        self._line = 0
        self._ends = _Ends()
        self._continued = False
        self._rest = b""  # what follows a LongLine

    @property
    def read(self) -> int:
        """How many bytes of the file were read; 0 of a stream."""
        return self._file.tell() if self._is_file else 0

    def position(self, rejects: int) -> Position:
        """The position after what was read, to be committed."""
        return Position(offset=self._offset, line=self._line, rejects=rejects, digest=self._ends.digest())

    def go_to(self, position: Position) -> bool:
        """Go on from a position. False if this is not the file in which it was reached; then it is read from its beginning.

        Raises:
            ConfigurationError: the file can't be read, or what it holds can't be unpacked.
        """
        with _errors(self._name):
            self._skip(min(position.offset, _KEPT))
            if not self._is_gzip and position.offset > 2 * _KEPT:
                self._offset = self._bytes.seek(position.offset - _KEPT)
            self._skip(position.offset - self._offset)
            if self._offset == position.offset and self._ends.digest() == position.digest:
                self._line = position.line
                self._continued = not self._ends.tail.endswith(b"\n")
                return True
            self._offset = self._bytes.seek(0)
            self._line = 0
            self._ends = _Ends()
            return False

    def parts(self, stop: threading.Event) -> Iterator[Block | LongLine]:
        """What follows, until the end or until `stop` is set.

        Raises:
            ConfigurationError: the file can't be read, or what it holds can't be unpacked.
        """
        with _errors(self._name):
            begun = bytearray()  # a line whose end was not read yet
            while data := self._read(stop):
                end = data.find(b"\n")
                if len(begun) + (len(data) if end < 0 else end) > MAX_LINE:
                    yield LongLine(self._line + 1, self._long_line(begun, data, stop))
                    data = self._rest
                    end = data.find(b"\n")
                if end < 0:
                    begun += data
                    continue
                begun += data[:end]
                first = bytes(begun)
                last = data.rfind(b"\n")
                begun = bytearray(data[last + 1 :])
                yield self._block(first, data[end : last + 1])
                del first  # it may be large
            if begun and data is not None:
                yield self._block(bytes(begun), b"")

    def _block(self, first: bytes, following: bytes) -> Block:
        """The lines of which `first` is one, and `following`, from its newline to that of the last, the others."""
        lines = [first, *following[1:-1].split(b"\n")] if len(following) > 1 else [first]
        block = Block(lines, self._line + 1, self._continued, self._is_file and not self._is_gzip and not following)
        self._pass(first, following)
        return block

    def _long_line(self, begun: bytearray, data: bytes, stop: threading.Event) -> Iterator[bytes | bytearray]:
        self._pass(begun)
        yield begun
        begun.clear()
        while (end := data.find(b"\n")) < 0:
            self._pass(data)
            yield data
            data = self._read(stop) or b""
            if not data:
                break
        else:
            self._pass(data[: end + 1])
            yield data[:end]
        self._rest = data[end + 1 :]

    def _pass(self, *parts: bytes | bytearray) -> None:
        self._offset += sum(map(len, parts))
        self._line += sum(part.count(b"\n") for part in parts)
        self._ends.add(*parts)
        self._continued = False

    def _skip(self, size: int) -> None:
        while size and (data := self._bytes.read(min(_BLOCK, size))):
            self._pass(data)
            size -= len(data)

    def _read(self, stop: threading.Event) -> bytes | None:
        """The next bytes; none at the end; None once `stop` is set."""
        while not stop.is_set():
            # Before its writer comes a named pipe looks like an empty file. Later on select can't see what GzipFile has read ahead.
            waits = not self._is_file and not (self._is_gzip and self._offset)
            if waits and not select.select([self._file], [], [], _POLL)[0]:
                continue
            data = cast(bytes | None, self._file.read(_BLOCK)) if self._gzip is None else self._unpacked(self._gzip)
            if data is not None:  # else standard input was made not to block, and there is nothing just now
                return data
        return None

    def _unpacked(self, packed: gzip.GzipFile) -> bytes:
        """The next bytes. Of a file that was cut all that can be unpacked is given before the error is raised."""
        if self._cut is not None:
            raise self._cut
        data = bytearray()
        try:
            while len(data) < _BLOCK and (piece := packed.read1(_BLOCK - len(data))):
                data += piece
                if not self._is_file:
                    break  # the rest may take its time
        except (EOFError, gzip.BadGzipFile) as error:
            # Whatever else is wrong, this block's bytes may not be those that were packed. What stands before something that is
            # no member was checked; and of a member that was cut there may be so little.
            if not data or (isinstance(error, gzip.BadGzipFile) and not str(error).startswith("Not a gzipped file")):
                raise
            self._cut = error
        return bytes(data)


class _Ends:
    """The first and the last bytes of what was read."""

    def __init__(self) -> None:
        self._head = b""
        self.tail = b""

    def add(self, *parts: bytes | bytearray) -> None:
        if len(self._head) < _KEPT:
            self._head = b"".join((self._head, *(part[:_KEPT] for part in parts)))[:_KEPT]
        self.tail = b"".join((self.tail, *(part[-_KEPT:] for part in parts)))[-_KEPT:]

    def digest(self) -> str:
        return hashlib.sha256(self._head + self.tail).hexdigest()


def _check(path: Path) -> os.stat_result:
    """Raises OSError if it can't be read. A named pipe is not opened: its writer would see its reader come and go."""
    status = path.stat()
    if not stat.S_ISFIFO(status.st_mode):
        path.open("rb").close()
    elif not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return status


@contextmanager
def _errors(name: str) -> Generator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigurationError(
            f"{name}: {getattr(error, 'strerror', None) or error}",
            hint="what was read before is recorded; repair the file and run again",
        ) from error
