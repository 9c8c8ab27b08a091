"""Read NDJSON inputs: files and streams, compressed or not; in blocks, from where the last run ended."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import stat
import threading
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from jobs_backup.errors import ConfigurationError
from jobs_backup.format.lines import MAX_PAYLOAD
from jobs_backup.inputs.formats import STDIN, NotPacked, Source, Stopped, Unpacked, refuse_what_is_not_ndjson, unpacked
from jobs_backup.inputs.identity import Fingerprint, Position, Sample, SeenFile
from jobs_backup.util.exhaustion import explain

MAX_LINE: Final = MAX_PAYLOAD
"""Maximum bytes of a line (not less than a block): a longer one would not fit into memory, and is not an event."""

_BLOCK: Final = 1 << 20
_LOOKED_AHEAD: Final = 1 << 16
_ENDS: Final = 4096


class Block(NamedTuple):
    """Some lines, without their newlines.

    Attributes:
        first: number of the first line, from 1.
        continued: the first line is the rest of one whose beginning was recorded when it was the file's end.
        unfinished: the only line is the file's end, and its newline may still be written.
        hole: zero bytes before the first line that are left out: a program left them that kept its offset in a truncated file.
    """

    lines: list[bytes]
    first: int
    continued: bool
    unfinished: bool
    hole: int


class LongLine(NamedTuple):
    """A line of more than MAX_LINE bytes, to be read piece by piece before anything else."""

    number: int
    pieces: Iterator[bytes | bytearray]


class Input:
    """A named file or stream of NDJSON. Opened when its turn comes."""

    def __init__(self, path: Path | None) -> None:
        """`path` is None for standard input, which is always a stream: its provider may have read part of it.

        Raises:
            ConfigurationError: it cannot be read.
        """
        self.path = path
        self.name = STDIN if path is None else str(path)
        try:
            status = os.fstat(0) if path is None else _check(path)
        except OSError as error:
            why, hint = explain(error, Path(self.name), "name a readable NDJSON file")
            raise ConfigurationError(f"{self.name}: {why}", hint=hint) from error
        self.size = status.st_size if path is not None and stat.S_ISREG(status.st_mode) else None
        """Size of the file in bytes; None for a stream, which cannot be read again."""
        self.noted = None if path is None or self.size is None else SeenFile.of(path, status)
        """The file as first seen; None for a stream."""
        self.opened: SeenFile | None = None
        """The file opened when its turn came, which may be another one."""

    def lock(self) -> str:
        """Key shared by processes that read it at the same time, under any name. Raises as `open` does."""
        assert self.path is not None
        with _errors(self.name):
            return _lock_of(self.path.stat())

    @contextmanager
    def open(self, stop: threading.Event, lock: str = "") -> Generator[Reader]:
        """Open it. Reading ends once `stop` is set.

        Raises:
            ConfigurationError: it cannot be opened, or `lock` is that of another file.
        """
        with _errors(self.name):
            if self.path is None:
                descriptor = os.dup(0)
            else:
                # Opening a named pipe must not wait for its writer: nothing could interrupt that.
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                os.set_blocking(descriptor, True)
            file = os.fdopen(descriptor, "rb", buffering=0)
        with file:
            status = os.fstat(descriptor)
            is_file = self.path is not None and stat.S_ISREG(status.st_mode)
            if lock and lock != _lock_of(status):
                raise ConfigurationError(f"{self.name} was replaced while it was opened", hint="run the same command again")
            with _errors(self.name):
                reader = Reader(self.name, self.path if is_file else None, Source(file, stop, is_file=is_file), descriptor)
            self.opened = reader.seen()
            yield reader


class Reader:
    """An open input. `path` is None for a stream, which cannot be read again.

    Attributes:
        sample: of the lines before `offset`.
    """

    def __init__(self, name: str, path: Path | None, source: Source, descriptor: int) -> None:
        self.name = name
        self._path = path
        self._source = source
        self._descriptor = descriptor
        self._fingerprint = Fingerprint()
        self.sample = Sample()
        self._continued = False
        self._ahead = b""  # read, but not returned yet
        self._rest = b""  # what follows a LongLine
        self._cut: Exception | None = None
        self._packed = None if path is None else self._unpack()

    @property
    def read(self) -> int:
        """Bytes read from the file; 0 for a stream."""
        return self._source.tell() if self._path is not None else 0

    @property
    def offset(self) -> int:
        """Bytes read after decompression, without an unfinished line."""
        return self._fingerprint.offset

    @property
    def is_packed(self) -> bool:
        """Whether the file is compressed."""
        return self._packed is not None

    def seen(self) -> SeenFile | None:
        """The file's present state; None for a stream."""
        if self._path is None:
            return None
        with _errors(self.name):
            return SeenFile.of(self._path, os.fstat(self._descriptor))

    def check(self) -> None:
        """Check that the file still holds what was read of it.

        Raises:
            ConfigurationError: it was truncated or rewritten.
        """
        with _errors(self.name):
            is_as_it_was_read = self._source.is_as_it_was_read()
        if not is_as_it_was_read:
            raise ConfigurationError(
                f"{self.name} was truncated or rewritten while it was read: a copy of it may have lines that were not read",
                hint="run the same command on the copy (logrotate's copytruncate makes one), and again on this file",
            )

    def position(self) -> Position:
        """Position after what was read."""
        found = self._fingerprint
        return Position(offset=found.offset, line=found.line, content=found.content, first=found.first, sample=self.sample.kept())

    def go_to(self, fingerprint: Fingerprint, sample: Sample) -> None:
        """Resume after the part with this fingerprint and sample, in the file where they were found.

        Raises:
            ConfigurationError: the file cannot be read or decompressed.
            Stopped: the command is to end.
        """
        with _errors(self.name):
            if not (fingerprint.offset == self._fingerprint.offset and fingerprint.content == self._fingerprint.content):
                self._rewind()
                if self._packed is None:
                    self._source.seek(fingerprint.offset)
                else:
                    self._advance(fingerprint.offset)
            self._fingerprint, self.sample = fingerprint.copy(), sample
            self._continued = not fingerprint.ends_line

    def fingerprints(self, offsets: list[int]) -> Iterator[Fingerprint]:
        """Fingerprints up to each of these offsets, in their order, as far as the file is long enough."""
        with _errors(self.name):
            self._rewind()
            for offset in offsets:
                if not self._advance(offset - self._fingerprint.offset):
                    return
                yield self._fingerprint.copy()

    def sample_of(self, size: int) -> Sample:
        """Sample of the lines in its first `size` bytes."""
        sample = Sample()
        with _errors(self.name):
            self._rewind()
            begun = b""
            while size > 0 and (data := self._take(min(size, _BLOCK))):
                size -= len(data)
                *lines, begun = (begun + data).split(b"\n")
                sample.add(lines)
                begun = begun[-_BLOCK:]  # of a longer line, which is in no sample
            sample.add([begun])
            self._rewind()
        return sample

    def has_ends(self, size: int, digest: str) -> bool:
        """Whether the first and last bytes of its first `size` bytes match a position of an earlier version."""
        with _errors(self.name):
            self._rewind()
            head = tail = b""
            while size > 0 and (data := self._take(min(size, _BLOCK))):
                size -= len(data)
                head = (head + data[:_ENDS])[:_ENDS]
                tail = (tail + data[-_ENDS:])[-_ENDS:]
            self._rewind()
        return size == 0 and hashlib.sha256(head + tail).hexdigest() == digest

    def look_ahead(self) -> bytes:
        """Peek at some of what follows."""
        with _errors(self.name):
            while len(self._ahead) < _LOOKED_AHEAD and self._cut is None and (data := self._fresh()):
                self._ahead += data
        return self._ahead[:_LOOKED_AHEAD]

    def parts(self) -> Iterator[Block | LongLine]:
        """What follows, until the end or until the command is to end.

        Raises:
            ConfigurationError: the file cannot be read or decompressed, or is not NDJSON.
        """
        with _errors(self.name):
            if self._path is None:
                self._packed = self._unpack()
            is_start = self.offset == 0
            begun = bytearray()  # a line whose end was not read yet
            hole = 0  # zero bytes before it: more than fit into memory
            while data := self._read():
                if is_start:
                    refuse_what_is_not_ndjson(self.name, data)
                    is_start = False
                end = data.find(b"\n")
                if len(begun) + (len(data) if end < 0 else end) > MAX_LINE:
                    yield LongLine(self._fingerprint.line + 1, self._long_line(begun, data, hole))
                    hole = 0
                    data = self._rest
                    end = data.find(b"\n")
                if end < 0:
                    begun += data
                    if len(begun) > _BLOCK and begun.startswith(b"\0\0"):  # a small one stays as it is, also in a rejected line
                        bare = begun.lstrip(b"\0")
                        hole += len(begun) - len(bare) - 1
                        begun = bytearray(b"\0") + bare  # one shows that they were there
                    continue
                begun += data[:end]
                first = bytes(begun)
                last = data.rfind(b"\n")
                begun = bytearray(data[last + 1 :])
                yield self._block(first, data[end : last + 1], hole)
                del first  # it may be large
                hole = 0
            if begun and data is not None:
                yield self._block(bytes(begun), b"", hole)

    def _block(self, first: bytes, following: bytes, hole: int) -> Block:
        """Split into lines: `first` (without its `hole`), and those in `following`, from its newline to the last one's."""
        lines = [first, *following[1:-1].split(b"\n")] if len(following) > 1 else [first]
        may_grow = self._path is not None and self._packed is None and not following
        block = Block(lines, self._fingerprint.line + 1, self._continued, may_grow, hole)
        self.sample.add(lines[self._continued :])
        self._pass_hole(hole)
        self._pass(first, following)
        return block

    def _long_line(self, begun: bytearray, data: bytes, hole: int) -> Iterator[bytes | bytearray]:
        self._pass_hole(hole)
        self._pass(begun)
        yield begun
        begun.clear()
        while (end := data.find(b"\n")) < 0:
            self._pass(data)
            yield data
            data = self._read() or b""
            if not data:
                break
        else:
            self._pass(data[: end + 1])
            yield data[:end]
        self._rest = data[end + 1 :]

    def _pass(self, *parts: bytes | bytearray) -> None:
        for part in parts:
            self._fingerprint.add(part)
        self._continued = False

    def _pass_hole(self, size: int) -> None:
        for at in range(0, size, _BLOCK):
            self._pass(bytes(min(_BLOCK, size - at)))

    def _unpack(self) -> Unpacked | None:
        return unpacked(self._source, self._source.head())

    def _rewind(self) -> None:
        self._source.seek(0)
        self._ahead, self._cut = b"", None
        self._packed = self._unpack()
        self._fingerprint, self.sample = Fingerprint(), Sample()

    def _advance(self, size: int) -> bool:
        """Skip `size` bytes. Returns whether there were that many."""
        while size and (data := self._take(min(_BLOCK, size))):
            self._pass(data)
            size -= len(data)
        return not size

    def _take(self, size: int) -> bytes:
        """Up to `size` of the next bytes; empty at the end, even if that was cut off."""
        try:
            data = self._next()
        except (OSError, EOFError):
            if self._cut is None:
                raise
            return b""
        self._ahead = data[size:]
        return data[:size]

    def _read(self) -> bytes | None:
        """The next bytes; empty at the end; None once the command is to end."""
        try:
            return self._next()
        except Stopped:
            return None

    def _next(self) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        return self._fresh()

    def _fresh(self) -> bytes:
        return self._source.read(_BLOCK) if self._packed is None else self._unpacked(self._packed)

    def _unpacked(self, packed: Unpacked) -> bytes:
        """Decompress the next bytes. For a truncated file, everything that can be decompressed comes before the error."""
        if self._cut is not None:
            raise self._cut
        data = bytearray()
        try:
            while len(data) < _BLOCK and (piece := packed.read1(_BLOCK - len(data))):
                data += piece
                if self._path is None:
                    break  # the rest may take a while
        except (EOFError, NotPacked, gzip.BadGzipFile) as error:
            # After any other error, this block's bytes may differ from the original. Bytes before trailing garbage were verified,
            # and a truncated member may have no more than these.
            if isinstance(error, gzip.BadGzipFile) and not str(error).startswith("Not a gzipped file"):
                raise
            self._cut = error
            if not data:
                raise
        return bytes(data)


def _lock_of(status: os.stat_result) -> str:
    return hashlib.sha256(f"{status.st_dev}:{status.st_ino}".encode()).hexdigest()[:32]


def _check(path: Path) -> os.stat_result:
    """Check a file. Raises OSError if it cannot be read. Does not open a named pipe: its writer would see a reader come and go."""
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
        why, hint = str(error), "repair the file"
        if isinstance(error, OSError):
            why, hint = explain(error, Path(name), hint)
        raise ConfigurationError(f"{name}: {why}", hint=f"what was read before is recorded; {hint} and run again") from error
