"""Request bodies: received within limits, and decompressed a bounded amount at a time."""

from __future__ import annotations

import asyncio
import zlib
from typing import Final

from starlette.requests import Request

from jobs_backup.inputs.http.memory import Share
from jobs_backup.inputs.http.responses import HttpError
from jobs_backup.settings.server import ServerSettings

_GZIP: Final = 16 + zlib.MAX_WBITS
_UNPACKED_AT_ONCE: Final = 1 << 20
_MAX_GZIP_MEMBERS: Final = 10_000
"""Each costs time, even if it is empty."""
_LARGE: Final = 64 << 10
_LARGE_PACKED: Final = 1 << 10
"""Size in bytes above which a body is processed in a thread; compressed, a thousandth of it may take as long."""
_COPIES: Final = 2
"""A body is in memory as sent, and as lines."""


class Body:
    """A body that has arrived."""

    def __init__(self, data: bytes, share: Share, max_size: int, *, is_packed: bool) -> None:
        self._data = data
        self._share = share
        self._max_size = max_size
        self._is_packed = is_packed
        self.is_large = len(data) > (_LARGE_PACKED if is_packed else _LARGE)

    def read(self) -> bytes:
        """Return all of it, decompressed; call it once.

        Raises:
            Refused: 400: it cannot be decompressed, or is empty; 413: it is too large; 503: too much is in memory.
        """
        data, self._data = self._data, b""
        if self._is_packed:
            data = self._unpacked(data)
        if not data:  # more likely lost in transit than intended
            raise HttpError(400, "BadRequest", "the body is empty", hint="send it with a Content-Length, or chunked")
        return data

    def _unpacked(self, packed: bytes) -> bytes:
        """Decompress; gzip members may follow one another (RFC 1952)."""
        pieces: list[bytes] = []
        size = members = at = 0
        view = memoryview(packed)
        while at < len(packed):
            members += 1
            if members > _MAX_GZIP_MEMBERS:
                raise HttpError(
                    413, "TooLarge", f"the body has more than {_MAX_GZIP_MEMBERS:,} gzip members", hint="put more into each"
                )
            unpacker = zlib.decompressobj(_GZIP)
            while not unpacker.eof:
                chunk = view[at : at + _LARGE]  # zlib copies what it does not use
                if not chunk:
                    raise HttpError(400, "BadRequest", "the gzip data of the body is incomplete", hint="send it whole")
                try:
                    pieces.append(unpacker.decompress(chunk, _UNPACKED_AT_ONCE))
                except zlib.error:
                    raise HttpError(400, "BadRequest", "the body is not gzip data, despite its Content-Encoding") from None
                at += len(chunk) - len(unpacker.unconsumed_tail) - len(unpacker.unused_data)
                size += len(pieces[-1])
                check_size(size, self._max_size)
                self._share.need(len(packed) + _COPIES * size)
        return b"".join(pieces)


async def receive(request: Request, share: Share, settings: ServerSettings) -> Body:
    """Receive the body of a request.

    Raises:
        Refused: 400: it is incomplete; 408: it takes too long; 413: it is too large; 415: its encoding is not supported; 503: too
            much is in memory.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise HttpError(
            415, "UnsupportedType", f"the body is encoded as {encoding[:40]!a}", hint="send it uncompressed, or as gzip"
        )
    is_packed = encoding != "identity"
    announced = int(request.headers.get("content-length", "0"))
    check_size(announced, settings.max_body)
    copies = 1 if is_packed else _COPIES
    share.need(copies * announced)
    data = bytearray()
    try:
        async with asyncio.timeout(settings.read_timeout):
            async for piece in request.stream():
                check_size(len(data) + len(piece), settings.max_body)
                share.need(copies * (len(data) + len(piece)))
                data += piece  # pieces may be single bytes: a list of them would take forty times as much
    except TimeoutError:
        hint = "send faster, or less at once; the limit is the server's JOBS_BACKUP_SERVER_READ_TIMEOUT"
        message = f"the body did not arrive within {settings.read_timeout:g} s"
        raise HttpError(408, "TooSlow", message, hint=hint, headers={"Connection": "close"}) from None
    if len(data) < announced:
        raise HttpError(400, "BadRequest", f"the body has {len(data):,} of {announced:,} bytes", hint="send it whole")
    return Body(bytes(data), share, settings.max_body, is_packed=is_packed)


def check_size(size: int, most: int) -> None:
    """Raises Refused (413) if `size` exceeds `most`."""
    if size > most:
        hint = "send less at once; the limit is the server's JOBS_BACKUP_SERVER_MAX_BODY"
        raise HttpError(413, "TooLarge", f"the body has more than {most:,} bytes", hint=hint)
