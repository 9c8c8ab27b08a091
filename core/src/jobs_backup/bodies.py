"""Bodies for providers: a reader for the SDK to upload from, and an object read from the bucket."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

from jobs_backup.errors import IntegrityError, JobsBackupError, SpoolError
from jobs_backup.model import Body, SeekableReader


class ResponseStream(Protocol):
    """A response of the store, as it is read."""

    def read(self, amt: int, /) -> bytes:
        """Up to `amt` bytes; empty at the end."""
        ...

    def close(self) -> object:
        """Release or drop the connection."""
        ...


Translated = Callable[[], AbstractContextManager[None]]
"""Returns a context manager that translates the SDK's errors into those of `jobs_backup.errors`."""
_BLOCK: Final = 1 << 20


class Source:
    """Reader that passes a body to an SDK: a context manager with `read`, `seek` and `tell`.

    An SDK takes an error of the body for a network error. This reader remembers it and raises it again when the block ends. An
    error outside `jobs_backup.errors` becomes a SpoolError.

    It yields exactly the promised number of bytes: with fewer the store would wait for the rest, with more it would see garbage.
    `read(n)` returns less than `n` bytes only at the end. If the body ends early, it raises IntegrityError.
    """

    def __init__(self, body: Body, size: int) -> None:
        self._body = body
        self._size = size
        self._position = 0
        self._error: JobsBackupError | None = None

    def __enter__(self) -> Self:
        try:
            self._reader = self._body.open()
        except JobsBackupError:
            raise
        except Exception as error:
            raise _unreadable(error) from error
        return self

    def __exit__(self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._reader.close()
        if self._error is not None:
            raise self._error from None

    def read(self, size: int | None = -1) -> bytes:
        left = self._size - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        try:
            block = self._reader.read(wanted) if wanted else b""
            while block and len(block) < wanted and (more := self._reader.read(wanted - len(block))):
                block += more  # a body may return fewer bytes than requested
            if len(block) < wanted:
                raise IntegrityError(f"the body ended after {self._position + len(block)} of {self._size} bytes")
        except JobsBackupError as error:
            self._error = error
            raise
        except Exception as error:
            self._error = _unreadable(error)
            raise self._error from error
        self._position += len(block)
        return block

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        self._reader.seek(self._position)
        return self._position

    def tell(self) -> int:
        return self._position


def _unreadable(error: Exception) -> SpoolError:
    # Repeat only what the system says: the text of another error may contain anything.
    said = f": {error}" if isinstance(error, OSError) else ""
    return SpoolError(f"cannot read the body: {type(error).__name__}{said}")


class ObjectBody(Body):
    """An object in the bucket, for `read`. Each reader requests it again, from the offset where reading starts."""

    def __init__(self, size: int, get: Callable[[int], ResponseStream], translated: Translated) -> None:
        """Read the object through `get`, which returns its bytes from an offset on.

        Args:
            size: of the object, in bytes.
            get: makes a request; its errors pass through unchanged.
            translated: wraps each read from the stream that `get` returned.
        """
        self.size = size
        self._get = get
        self._translated = translated

    def open(self) -> BinaryIO:
        return io.BufferedReader(_ObjectReader(self.size, self._get, self._translated), _BLOCK)


class _ObjectReader(SeekableReader):
    def __init__(self, size: int, get: Callable[[int], ResponseStream], translated: Translated) -> None:
        super().__init__(size)
        self._get = get
        self._translated = translated
        self._stream: ResponseStream | None = None
        self._stream_at = 0

    def piece(self, position: int, size: int) -> tuple[int, bytes]:
        if self._stream_at != position:
            self.release()
        if self._stream is None:
            self._stream = self._get(position)
        self._stream_at = position
        with self._translated():
            block = self._stream.read(size)
        if not block:
            raise IntegrityError(f"the object ended after {position} of {self._size} bytes")
        self._stream_at += len(block)
        return position, block

    def release(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
