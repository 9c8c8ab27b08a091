"""Requests as bytes, valid and hostile, each with its expected result; and a way to replay them in any pieces.

The server is the real one, with its parser and a real Backup; only the socket is in memory, so that every piece arrives alone.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import uvicorn
from serving import TOKEN
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from jobs_backup.inputs.http.connections import Connections, Protocol

AUTH: Final = b"Authorization: Bearer %b\r\n" % TOKEN.encode()
HOST: Final = b"Host: h\r\n"
LINE: Final = b'{"messageId":"m"}'
LENGTH: Final = b"Content-Length: 17\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
CHUNKS: Final = b"11\r\n" + LINE + b"\r\n0\r\n\r\n"
H2C: Final = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
"""As Java's HttpClient sends it, unless set to HTTP/1.1."""
WEBSOCKET: Final = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n"
)
LAST: Final = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def post(
    fields: bytes = LENGTH, body: bytes = LINE, *, line: bytes = b"POST /v1/events?source_id=web HTTP/1.1", host: bytes = HOST
) -> bytes:
    return line + b"\r\n" + host + AUTH + b"Content-Type: application/json\r\n" + fields + b"\r\n" + body


class Case(NamedTuple):
    name: str
    sent: bytes
    statuses: tuple[int, ...]
    events: int
    """Recorded events, each of them `LINE`."""


def _refused(name: str, sent: bytes, status: int = 400) -> Case:
    """The request is rejected, and everything after it."""
    return Case(name, sent + LAST, (status,), 0)


def _taken(name: str, sent: bytes, *statuses: int, events: int = 1) -> Case:
    """The request is accepted, and the next one is read after it."""
    return Case(name, sent + LAST, (*(statuses or (200,)), 200), events)


_SMUGGLED: Final = b"POST /v1/events?source_id=evil HTTP/1.1\r\n" + AUTH + b"Content-Type: application/json\r\n"

CORPUS: Final = [
    _taken("a length", post()),
    _taken("chunked", post(CHUNKED, CHUNKS)),
    _taken("several chunks", post(CHUNKED, b"1\r\n{\r\n010\r\n" + LINE[1:] + b"\r\n000\r\n\r\n")),
    _taken("a chunk's extension", post(CHUNKED, CHUNKS.replace(b"11\r\n", b'11;name="a;b"\r\n'))),
    _taken("a trailer", post(CHUNKED, CHUNKS[:-2] + b"X-Checksum: 1\r\n\r\n")),
    _taken("pipelined", post() + post(CHUNKED, CHUNKS) + post(), 200, 200, 200, events=3),
    _taken("GET, POST, GET", LAST.replace(b"Connection: close\r\n", b"") + post(), 200, 200),
    _taken("HEAD", LAST.replace(b"GET", b"HEAD").replace(b"Connection: close\r\n", b"") + post(), 200, 200),
    _taken("GET with a body", post(line=b"GET /healthz HTTP/1.1"), events=0),
    _taken("a method that is none", post(line=b"PUT /v1/events HTTP/1.1"), 405, events=0),
    _taken("another path", post(line=b"POST /nowhere HTTP/1.1"), 404, events=0),
    _taken("refused before its body", post().replace(AUTH, b""), 401, events=0),
    _taken("Expect", post(LENGTH + b"Expect: 100-continue\r\n"), 100, 200),
    Case("Expect, refused before its body", post(LENGTH + b"Expect: 100-continue\r\n").replace(AUTH, b"") + LAST, (401,), 0),
    _taken("an absolute target", post(line=b"POST http://h:80/v1/events?source_id=web HTTP/1.1")),
    _taken("an absolute target with a slash", post(line=b"POST http://h:80//v1/events/?source_id=web HTTP/1.1")),
    _taken("an absolute target without a path", post(line=b"POST http://h?source_id=web HTTP/1.1"), 404, events=0),
    _taken("a slash at the end", post(line=b"POST /v1/events/?source_id=web HTTP/1.1")),
    _taken("slashes at the end", post(line=b"POST /v1/events///?source_id=web HTTP/1.1")),
    _taken("two slashes", post(line=b"POST //v1//events?source_id=web HTTP/1.1")),
    _taken("a slash in the query", post(line=b"POST /v1/events?source_id=web&x=//a/ HTTP/1.1")),
    _taken("an escaped slash", post(line=b"POST /v1%2Fevents%2f?source_id=web HTTP/1.1")),
    _taken("dots", post(line=b"POST /v1/./events?source_id=web HTTP/1.1"), 404, events=0),
    _taken("GET with a slash", LAST.replace(b"/healthz", b"/healthz/").replace(b"Connection: close\r\n", b""), events=0),
    _taken("HEAD with a slash", LAST.replace(b"GET /healthz", b"HEAD //healthz/").replace(b"Connection: close\r\n", b""), events=0),
    _taken("HEAD of what takes POST", b"HEAD /v1/events/ HTTP/1.1\r\nHost: h\r\n\r\n", 405, events=0),
    _taken("OPTIONS of all", b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 404, events=0),
    _taken(
        "a preflight",
        b"OPTIONS /v1/track HTTP/1.1\r\nHost: h\r\nOrigin: https://a\r\nAccess-Control-Request-Method: POST\r\n\r\n",
        405,
        events=0,
    ),
    _taken(
        "behind TLS",
        post(LENGTH + b"X-Forwarded-Proto: https\r\nForwarded: proto=https\r\n", line=b"POST /v1/events/?source_id=web HTTP/1.1"),
    ),
    _taken("twice the same length", post(LENGTH + LENGTH)),
    _taken("an empty body", post(b"Content-Length: 0\r\n", b""), 400, events=0),
    _taken("no body", post(b"", b""), 400, events=0),
    _taken("Latin-1 in a field", post(LENGTH + b"X-Note: \xe9\r\n")),
    _taken("names in another case", post().replace(b"Content-Length", b"cONTENT-lENGTH")),
    _taken("tabs around a value", post(b"Content-Length: \t 17 \t\r\n")),
    _taken("many fields", post(LENGTH + b"".join(b"X-%d: y\r\n" % n for n in range(80)))),
    Case("HTTP/1.0", post(line=b"POST /v1/events?source_id=web HTTP/1.0", host=b"") + LAST, (200,), 1),
    _taken("HTTP/1.0, kept", post(LENGTH + b"Connection: keep-alive\r\n", line=b"POST /v1/events?source_id=web HTTP/1.0")),
    Case("HTTP/1.0 without a length", post(b"", line=b"POST /v1/events?source_id=web HTTP/1.0"), (400,), 0),
    Case("close", post(LENGTH + b"Connection: close\r\n") + post() + LAST, (200,), 1),
    # Upgrade: ignored; its body is the request's, and the next request follows.
    _taken("h2c", post(LENGTH + H2C)),
    _taken("h2c, chunked", post(CHUNKED + H2C, CHUNKS)),
    _taken("h2c, pipelined", post() + post(LENGTH + H2C) + post(), 200, 200, 200, events=3),
    _taken("h2c without a body", LAST.replace(b"Connection: close\r\n", H2C) + post(), 200, 200),
    _taken("websocket", post(LENGTH + WEBSOCKET)),
    _taken("websocket without a body", LAST.replace(b"Connection: close\r\n", WEBSOCKET) + post(), 200, 200),
    _taken("Upgrade without Connection", post(LENGTH + b"Upgrade: h2c\r\n")),
    _taken("a request in a field", post() + post(b"X-Note: " + _SMUGGLED + LENGTH + H2C), 200, 200, events=2),
    _taken("CONNECT", b"CONNECT example:443 HTTP/1.1\r\nHost: example\r\n\r\n", 404, events=0),
    _refused("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    # Ends of bodies.
    _refused("a length and chunked", post(LENGTH + CHUNKED, CHUNKS)),
    _refused("chunked and a length", post(CHUNKED + LENGTH, CHUNKS)),
    _refused("two lengths", post(LENGTH + b"Content-Length: 3\r\n")),
    _refused("a list of lengths", post(b"Content-Length: 17, 17\r\n")),
    *(
        _refused(f"length {value!r}", post(b"Content-Length: " + value + b"\r\n"))
        for value in (b"+17", b"-17", b"0x11", b"", b"1 7", b"17;", b"17\0", b"99999999999999999999999", b"\xc2\xb9")
    ),
    *(
        _refused(f"coding {value!r}", post(b"Transfer-Encoding: " + value + b"\r\n", CHUNKS))
        for value in (b"xchunked", b"chunked, identity", b"identity", b"", b"chunked;", b"chunked\0", b'"chunked"', b"gzip")
    ),
    _refused("another coding before chunked", post(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS)),
    _refused("chunked twice", post(CHUNKED + CHUNKED, CHUNKS)),
    _refused("a space before the colon", post(b"Transfer-Encoding : chunked\r\n" + LENGTH)),
    _refused("a length with a space before the colon", post(b"Content-Length : 17\r\n")),
    _refused("a folded line", post(b"X-Note: a\r\n b\r\n" + LENGTH)),
    _refused("a folded coding", post(b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH)),
    _refused("a size that is none", post(CHUNKED, b"zz\r\n" + LINE + b"\r\n0\r\n\r\n")),
    _refused("a size that is huge", post(CHUNKED, b"FFFFFFFFFFFFFFFFF\r\n" + LINE + b"\r\n0\r\n\r\n")),
    _refused("a size below nothing", post(CHUNKED, b"-11\r\n" + LINE + b"\r\n0\r\n\r\n")),
    _refused("a size with 0x", post(CHUNKED, b"0x11\r\n" + LINE + b"\r\n0\r\n\r\n")),
    _refused("a chunk longer than its size", post(CHUNKED, b"10\r\n" + LINE + b"\r\n0\r\n\r\n")),
    _refused("chunks with bare line feeds", post(CHUNKED, CHUNKS.replace(b"\r", b""))),
    _refused("an extension with a bare line feed", post(CHUNKED, CHUNKS.replace(b"11\r\n", b"11;a\nb\r\n"))),
    # Parts of a head.
    _refused("bare line feeds", post().replace(b"\r\n", b"\n")),
    _refused("a bare line feed", post(b"X-Note: a\n" + LENGTH)),
    _refused("a bare carriage return", post(b"X-Note: a\rb\r\n" + LENGTH)),
    _refused("NUL in a value", post(b"X-Note: a\0b\r\n" + LENGTH)),
    _refused("NUL in a name", post(b"X\0Note: a\r\n" + LENGTH)),
    _refused("a field without a colon", post(b"X-Note\r\n" + LENGTH)),
    _refused("a field without a name", post(b": a\r\n" + LENGTH)),
    _refused("a space before the first field", post(host=b" Host: h\r\n")),
    _refused("no host", post(host=b"")),
    _refused("two hosts", post(host=HOST + b"Host: i\r\n")),
    _refused("no version", b"GET /healthz\r\n\r\n"),
    _refused("a version that is none", post(line=b"POST /v1/events?source_id=web HTTP/9.9")),
    _refused("a version in lower case", post(line=b"POST /v1/events?source_id=web http/1.1")),
    _refused("two spaces", post(line=b"POST  /v1/events?source_id=web HTTP/1.1")),
    _refused("a path that is not ASCII", post(line=b"POST /\xc3\xa9 HTTP/1.1")),
    _refused("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    Case("a good one, then nonsense", post() + b"\0\0\0\0 / HTTP/1.1\r\n\r\n" + LAST, (200, 400), 1),
    Case("a good one, then a path that is not ASCII", post() + post(line=b"POST /\xc3\xa9 HTTP/1.1") + LAST, (200, 400), 1),
]
LARGE: Final = [
    _refused("a head that is too large", post(b"".join(b"X-%d: %b\r\n" % (n, b"y" * 1000) for n in range(90)) + LENGTH)),
    _refused("a field that is too large", post(b"X-Note: " + b"y" * 70_000 + b"\r\n" + LENGTH)),
    _refused("a target that is too large", post(line=b"POST /" + b"y" * 70_000 + b" HTTP/1.1")),
    _refused("too many fields", post(b"".join(b"X-%d: y\r\n" % n for n in range(2000)) + LENGTH)),
    _refused("a trailer that is too large", post(CHUNKED, CHUNKS[:-2] + b"X-Note: " + b"y" * 70_000 + b"\r\n\r\n")),
    _refused("an extension that is too large", post(CHUNKED, CHUNKS.replace(b"11\r\n", b"11;" + b"y" * 70_000 + b"\r\n"))),
]


class Outcome(NamedTuple):
    statuses: tuple[int, ...]
    sent: bytes
    """The whole response, without the parts that differ each time."""


class Wire(asyncio.Transport):
    """A socket in memory."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 1024)})
        self.sent = b""
        self.closed = asyncio.Event()

    def write(self, data: Any) -> None:
        if not self.closed.is_set():
            self.sent += data

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def close(self) -> None:
        self.closed.set()

    abort = close

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def replay(app: ASGIApp, pieces: Sequence[bytes], protocol: type[asyncio.Protocol] | None = None) -> Outcome:
    """The responses to these pieces; each piece arrives once the server is idle."""
    connections = Connections(most=10, arrival_seconds=60, protocol=protocol or Protocol)
    config = uvicorn.Config(app, http=connections, ws="none", lifespan="off", log_config=None, log_level=50, access_log=False)  # type: ignore[arg-type]
    config.load()
    state, wire = ServerState(), Wire()
    connection = connections(config, state, {}, asyncio.get_running_loop())
    connection.connection_made(wire)
    for piece in pieces:
        if wire.is_closing():
            break
        connection.data_received(piece)
        for _ in range(4):
            await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await wire.closed.wait()
    connection.connection_lost(None)
    if state.tasks:
        await asyncio.wait(state.tasks)
    found = tuple(int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", wire.sent))
    return Outcome(found, re.sub(rb'date: [^\r]*|x-request-id: [^\r]*|"request_id":"[^"]*"|"[0-9]{15,38}"', b"*", wire.sent))
