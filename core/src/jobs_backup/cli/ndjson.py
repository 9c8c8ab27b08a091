"""Reads NDJSON inputs: files, `.gz` too, and streams; in blocks, from where the last run got to."""

from __future__ import annotations

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

from jobs_backup.errors import ConfigurationError

BLOCK: Final = 1 << 20
_HEAD: Final = 4096
_POLL: Final = 0.2


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far an input was read. Committed to the spool together with the events.

    Attributes:
        offset: bytes (after decompression).
        line: lines before it.
        rejects: bytes that the rejects file had then.
        head: SHA-256 of the first bytes of the input, by which it is known again; `head_size` says of how many.
    """

    offset: int = 0
    line: int = 0
    rejects: int = 0
    head: str = ""
    head_size: int = 0


class Block(NamedTuple):
    """Some lines, without their newlines; `offset` is where they end; `read` counts bytes of the file, for a progress bar."""

    lines: list[bytes]
    offset: int
    read: int


class Input:
    """One file or stream of NDJSON."""

    def __init__(self, path: Path | None) -> None:
        """`path` is None for standard input.

        Raises:
            ConfigurationError: it can't be opened.
        """
        self.name = "standard input" if path is None else str(path)
        try:
            self._file: BinaryIO = os.fdopen(os.dup(0), "rb", buffering=0) if path is None else path.open("rb", buffering=0)
        except OSError as error:
            raise ConfigurationError(f"{self.name}: {error.strerror}", hint="name a readable file of NDJSON") from error
        status = os.fstat(self._file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        """Bytes of the file; None for a stream, which can't be read again."""
        self._gzip = path is not None and path.suffix == ".gz"
        self._head: tuple[str, int] = ("", 0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def is_at(self, position: Position) -> bool:
        """Whether this is the input in which that position was reached: it begins with the same bytes, and is long enough."""
        if self.size is None or (not self._gzip and self.size < position.offset):
            return False
        with self._errors(), self._open(0) as reader:
            return hashlib.sha256(reader.read(position.head_size)).hexdigest() == position.head

    def position(self, offset: int, line: int, rejects: int) -> Position:
        """The position to be committed."""
        head, size = self._head
        return Position(offset=offset, line=line, rejects=rejects, head=head, head_size=size)

    def blocks(self, start: int, stop: threading.Event) -> Iterator[Block]:
        """The lines from byte `start` on, until the end or until `stop` is set.

        Raises:
            ConfigurationError: the file can't be read, or what it holds can't be unpacked.
        """
        with self._errors():
            if self.size is not None:
                with self._open(0) as reader:
                    head = reader.read(_HEAD)
                self._head = (hashlib.sha256(head).hexdigest(), len(head))
            with self._open(start) as reader:
                yield from self._split(reader, start, stop)

    def _split(self, reader: BinaryIO, start: int, stop: threading.Event) -> Iterator[Block]:
        offset = start
        pieces: list[bytes] = []  # of a line whose end was not read yet
        while not stop.is_set():
            data = self._read(reader)
            if data is None:
                continue
            if not data:
                if rest := b"".join(pieces):
                    yield Block([rest], offset + len(rest), self._file.tell() if self.size is not None else 0)
                return
            end = data.rfind(b"\n") + 1
            if not end:
                pieces.append(data)
                continue
            lines = b"".join((*pieces, data[: end - 1])).split(b"\n")
            pieces = [data[end:]] if end < len(data) else []
            offset += sum(map(len, lines)) + len(lines)
            yield Block(lines, offset, self._file.tell() if self.size is not None else 0)

    def _read(self, reader: BinaryIO) -> bytes | None:
        """The next bytes; none at the end; None if a stream has nothing to read just now."""
        if self.size is None and not self._gzip:
            ready, _, _ = select.select([reader], [], [], _POLL)
            if not ready:
                return None
        return reader.read(BLOCK)

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigurationError(
                f"{self.name}: {getattr(error, 'strerror', None) or error}",
                hint="what was read before is recorded; repair the file and run again",
            ) from error

    @contextmanager
    def _open(self, offset: int) -> Generator[BinaryIO]:
        """A reader at that offset."""
        if self.size is not None:
            self._file.seek(0)
        if not self._gzip:
            if offset:
                self._file.seek(offset)
            yield self._file
            return
        with gzip.GzipFile(fileobj=self._file) as reader:
            left = offset
            while left and (block := reader.read(min(BLOCK, left))):
                left -= len(block)
            yield cast(BinaryIO, reader)
