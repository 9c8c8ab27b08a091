"""One connection: limits that uvicorn does not enforce, between the socket and its protocol."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any, Final, cast

from uvicorn import Config
from uvicorn.protocols.http.zttp_impl import RequestResponseCycle, ZttpProtocol
from uvicorn.server import ServerState

from jobs_backup.inputs.http import responses
from jobs_backup.inputs.http.responses import HttpError
from jobs_backup.util.logs import logger_of

log: Final = logger_of(__name__)
KEEP_ALIVE_SECONDS: Final = 75
_STATE: Final = "jobs_backup.connection"
_MAX_AHEAD: Final = 128 << 10
"""Maximum bytes that may arrive after a request before it is answered: the parser would hold them all."""
_FLUSH_SECONDS: Final = 5
"""How long uvicorn, which closes idle connections, may take to write the rest."""
_NOT_HTTP: Final = responses.of_error(
    HttpError(400, "BadRequest", "the request is not valid HTTP/1.1, or its head is too large", hint="see docs/serve.md, HTTP"), ""
)
_BAD_REQUEST: Final = (
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    % (len(_NOT_HTTP.body), bytes(_NOT_HTTP.body))
)
_WARNING_SECONDS: Final = 60
"""Interval between warnings that idle connections are closed for new ones."""


class Protocol(ZttpProtocol):
    """uvicorn's protocol, with JSON for an invalid request."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.abort()  # otherwise it would become part of another answer
        else:
            self.transport.write(_BAD_REQUEST)
            self.transport.close()


class Connections:
    """The open connections of a server: the `http` of `uvicorn.Config`.

    Beyond `most`, the connection that has been idle longest is closed for a new one. If none is idle, the new one is surplus: it
    gets an answer that says so. Connections beyond `spare` surplus ones are closed at once.
    """

    def __init__(self, *, most: int, spare: int = 0, arrival_seconds: float, protocol: type[asyncio.Protocol] = Protocol) -> None:
        """Prepare for any number of connections.

        Args:
            most: maximum open connections.
            spare: maximum surplus connections, which are refused.
            arrival_seconds: maximum time for a request to reach the application.
            protocol: uvicorn's, for one parser or another.
        """
        self.most = most
        self.spare = spare
        self.arrival_seconds = arrival_seconds
        self.protocol = protocol
        self.open = 0
        self.idle: dict[Connection, None] = {}
        """Connections without a request, longest idle first."""
        self._warned_at = -math.inf

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> asyncio.Protocol:
        """Make a protocol; uvicorn calls this for each connection."""
        connection = Connection(self)
        state = {**app_state, _STATE: connection}
        connection.inner = self.protocol(config=config, server_state=server_state, app_state=state, _loop=_loop)  # type: ignore[call-arg]
        return connection

    def enter(self, connection: Connection) -> bool:
        """Count a connection. Returns whether it is surplus."""
        self.open += 1
        if self.open > self.most:
            self._warn()
            if not self.idle:
                return True
            oldest = next(iter(self.idle))
            del self.idle[oldest]
            oldest.close()
        self.idle[connection] = None
        return False

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_SECONDS:
            self._warned_at = now
            log.warning("%d connections are open, the maximum: idle ones are closed for new ones", self.most)


class Connection(asyncio.Protocol):
    """Passes everything on to uvicorn's protocol, unchanged: only its parser reads what arrives.

    The application calls `begin`, `wants` and `took` (for the body), and `end`. So whatever a client does, one of two clocks runs:
    the connection's or the application's. What the client sends ahead stays in the socket.
    """

    inner: asyncio.Protocol

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0  # by the loop's clock: when it is closed
        self._is_arriving = False  # a request has begun to arrive, but has not reached the application
        self._requests = 0  # in the application; a pipelined request begins before this one ends
        self._ahead = 0
        self._is_paused = False
        self._is_wanted = False
        self.is_surplus = False
        """There are too many connections: its requests are refused."""

    def begin(self) -> None:
        """Note that a request has reached the application, which limits the time from now on."""
        self._requests += 1
        self._is_arriving = False
        self._until = math.inf

    def wants(self) -> None:
        """Note that the application asks for a piece of the body."""
        if self._is_paused:
            self._is_wanted = True
            self._loop.call_soon(self._read_what_is_wanted)

    def took(self, *, is_all: bool) -> None:
        """Note that the application has got a piece of the body: all of it that has arrived."""
        self._is_wanted = False
        if not is_all:  # so nothing follows it
            self._read_on()

    def end(self) -> None:
        """Note that the application has finished the request."""
        self._loop.call_soon(self._ended)  # by then the next request has begun, if it has arrived

    def refuse(self) -> None:
        """Answer a request that uvicorn cannot pass on, and close."""
        if self._transport is not None:
            self._transport.write(_BAD_REQUEST)
            self._transport.close()

    def close(self) -> None:
        """Close it once everything is written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close it at once, with unwritten data."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_surplus = self._connections.enter(self)
        self._expire_in(self._connections.arrival_seconds)
        self._look()
        self.inner.connection_made(transport)
        if self._connections.open > self._connections.most + self._connections.spare:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._connections.open -= 1
        self._connections.idle.pop(self, None)
        self.inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._requests:
            self._ahead += len(data)
            if self._ahead > _MAX_AHEAD and self._transport is not None:
                self._is_paused = True
                self._transport.pause_reading()
        elif not self._is_arriving:
            self._is_arriving = True
            self._connections.idle.pop(self, None)
            self._expire_in(self._connections.arrival_seconds)
        try:
            self.inner.data_received(data)
        except UnicodeDecodeError:  # uvicorn assumes that a path is ASCII
            self.refuse()

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def _read_what_is_wanted(self) -> None:
        if self._is_wanted:
            self._read_on()

    def _ended(self) -> None:
        self._requests -= 1
        if not self._requests and self._transport is not None and not self._transport.is_closing():
            self._connections.idle[self] = None
            self._expire_in(KEEP_ALIVE_SECONDS + _FLUSH_SECONDS)
            self._read_on()

    def _read_on(self) -> None:
        self._ahead = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def _expire_in(self, seconds: float) -> None:
        """Note the time only: a timer per request would cost more than everything else here."""
        self._until = self._loop.time() + seconds

    def _look(self) -> None:
        left = self._until - self._loop.time()
        if left <= 0:
            self.abort()
        else:
            self._timer = self._loop.call_later(min(left, self._connections.arrival_seconds), self._look)


def connection_of(scope: Mapping[str, Any]) -> Connection:
    """The connection that a request arrived on."""
    connection: Connection = scope["state"][_STATE]
    return connection
