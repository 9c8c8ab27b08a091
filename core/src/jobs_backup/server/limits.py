"""How much of whom: the body of a request within its bounds, and events within a rate."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import Request

from jobs_backup.server.answers import Refused
from jobs_backup.server.settings import ServerSettings

_GZIP: Final = 16 + zlib.MAX_WBITS
_UNPACKED_AT_ONCE: Final = 1 << 20
_BURST_SECONDS: Final = 10.0
_MAX_CALLERS: Final = 10_000
_WAIT: Final = 1.0


class Bodies:
    """Reads the bodies of requests. All that are in memory at a time share a bound."""

    def __init__(self, settings: ServerSettings) -> None:
        self._max_body: int = settings.max_body
        self._max_pending: int = settings.max_pending
        self._timeout: float = settings.read_timeout
        self.pending = 0
        """Bytes in memory now, or announced."""

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncGenerator[bytes]:
        """The body, unpacked. It counts as being in memory until the end of the block.

        Raises:
            Refused: 400: it can't be unpacked; 408: it takes too long; 413: it is too large; 415: it is packed in another way; 503:
                too many bytes are in memory.
        """
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise Refused(415, "UnsupportedType", f"the body is encoded as {encoding[:40]!a}", hint="send it as it is, or as gzip")
        share = _Share(self, self._max_pending)
        try:
            body = _Body(share, self._max_body, int(request.headers.get("content-length", "0")), is_packed=encoding != "identity")
            await self._receive(request, body)
            yield body.whole()
        finally:
            self.pending -= share.bytes

    async def _receive(self, request: Request, body: _Body) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                async for piece in request.stream():
                    body.add(piece)
        except TimeoutError:
            hint = "send faster, or less at once; the server's JOBS_BACKUP_SERVER_READ_TIMEOUT"
            headers = {"Connection": "close"}
            raise Refused(
                408, "TooSlow", f"the body did not arrive within {self._timeout:g} s", hint=hint, headers=headers
            ) from None


class _Share:
    """What one request has of the bytes in memory."""

    def __init__(self, bodies: Bodies, max_pending: int) -> None:
        self._bodies = bodies
        self._max_pending = max_pending
        self.bytes = 0

    def grow(self, size: int) -> None:
        """Raises Refused."""
        if self._bodies.pending + size > self._max_pending and self._bodies.pending > self.bytes:
            hint = "come again; the server's JOBS_BACKUP_SERVER_MAX_PENDING"
            raise Refused(503, "Busy", "the server has too many requests in memory", hint=hint, retry_after=_WAIT)
        self._bodies.pending += size
        self.bytes += size


class _Body:
    """A body that comes in pieces."""

    def __init__(self, share: _Share, max_size: int, length: int, *, is_packed: bool) -> None:
        """`length` is what was announced, 0 if nothing was. Raises Refused."""
        self._share = share
        self._max_size = max_size
        self._received = 0
        self._announced = length
        self._pieces = bytearray()
        self._unpacker = zlib.decompressobj(_GZIP) if is_packed else None
        self._check(length)
        share.grow(length)

    def add(self, piece: bytes) -> None:
        """Raises Refused."""
        self._received += len(piece)
        self._check(self._received)
        self._share.grow(max(0, min(len(piece), self._received - self._announced)))
        if self._unpacker is None:
            self._pieces += piece
            return
        for data in self._unpacked(piece):
            self._share.grow(len(data))
            self._pieces += data
            self._check(len(self._pieces))

    def whole(self) -> bytes:
        """All of it. Raises Refused."""
        if self._received < self._announced:
            raise Refused(400, "BadRequest", f"the body has {self._received:,} of {self._announced:,} bytes", hint="send it whole")
        if self._unpacker is not None and not self._unpacker.eof:
            raise Refused(400, "BadRequest", "the body ends within its gzip data", hint="send it whole")
        if not self._pieces:  # more likely lost on its way than meant
            raise Refused(400, "BadRequest", "the body is empty", hint="send it with a Content-Length, or chunked")
        return bytes(self._pieces)

    def _unpacked(self, piece: bytes) -> Iterator[bytes]:
        """A bounded amount at a time, whatever it unpacks to; one gzip member may follow another (RFC 1952)."""
        while piece:
            if self._unpacker is None or self._unpacker.eof:
                self._unpacker = zlib.decompressobj(_GZIP)
            try:
                yield self._unpacker.decompress(piece, _UNPACKED_AT_ONCE)
            except zlib.error:
                raise Refused(400, "BadRequest", "the body is no gzip data, though it is said to be") from None
            piece = self._unpacker.unused_data if self._unpacker.eof else self._unpacker.unconsumed_tail

    def _check(self, size: int) -> None:
        if size > self._max_size:
            hint = "send less at once; the server's JOBS_BACKUP_SERVER_MAX_BODY"
            raise Refused(413, "TooLarge", f"the body has more than {self._max_size:,} bytes", hint=hint)


class Rate:
    """So many events a second of each caller, in the long run; those of ten seconds at once."""

    def __init__(self, per_second: int | None) -> None:
        self._per_second = per_second
        self._free_at: OrderedDict[str, float] = OrderedDict()  # caller -> when all that was taken is paid for

    def take(self, caller: str, events: int) -> None:
        """Count these. Raises Refused (429): there were too many before them."""
        if self._per_second is None:
            return
        now = time.monotonic()
        free_at = max(self._free_at.pop(caller, 0.0), now - _BURST_SECONDS)
        if free_at > now:
            self._free_at[caller] = free_at
            hint = "come again later; the server's JOBS_BACKUP_SERVER_RATE"
            message = f"more than {self._per_second:,} events a second"
            raise Refused(429, "TooManyEvents", message, hint=hint, retry_after=free_at - now)
        self._free_at[caller] = free_at + events / self._per_second
        if len(self._free_at) > _MAX_CALLERS:
            self._free_at.popitem(last=False)
