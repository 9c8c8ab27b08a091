"""An HTTP proxy on loopback that fails on demand and notes requests; without a server behind it, a scripted server.

with FaultProxy("127.0.0.1", store.port) as proxy:
    proxy.fail(Cut(after=1000), method="PUT", target="partNumber=2")    # the first such request
    proxy.fail(Swallow(), method="PUT", times=3)
    ...
    assert [request.method for request in proxy.requests] == ["POST", "PUT", "PUT", "POST"]

with FaultProxy() as server:                                            # nothing behind it
    server.fail(Answer(503, headers={"Retry-After": "7"}), times=ALWAYS)
    server.fail(lambda request: Answer(200, headers={"ETag": '"1"'}), method="PUT")
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import BinaryIO, Final, Self, TypeAlias

ALWAYS: Final = 1 << 62
_BLOCK: Final = 64 * 1024
_NO_LINGER: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Cut:
    """Break the connection after passing on `after` bytes of the request's body."""

    after: int = 0


@dataclass(frozen=True)
class Delay:
    """Pass the request on after a delay in seconds; the answer is the server's."""

    seconds: float


@dataclass(frozen=True)
class Swallow:
    """Let the server get the whole request and answer, but break the connection instead of passing the answer on."""


@dataclass(frozen=True)
class Answer:
    """Answer instead of the server. The request's body is read, but not passed on."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Fault: TypeAlias = "Cut | Delay | Swallow | Answer | Callable[[Request], Answer]"
"""A callable makes the answer from the request: this scripts a server."""


@dataclass
class Request:
    """A request as the proxy saw it.

    Attributes:
        target: as in the request line: path and query.
        headers: with lower-case names.
        body_bytes: bytes of the body that the client sent, including chunked framing.
        body: the first of them, up to the proxy's `keep`.
        status: of the answer that the client got, 0 if it got none.
        fault: what was done to the request.
    """

    method: str
    target: str
    headers: dict[str, str]
    body_bytes: int = 0
    body: bytes = b""
    status: int = 0
    fault: Fault | None = None


@dataclass
class _Rule:
    fault: Fault
    method: str
    target: re.Pattern[str]
    skip: int
    times: int

    def takes(self, request: Request) -> bool:
        if self.times <= 0 or self.method not in ("", request.method) or not self.target.search(request.target):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class FaultProxy:
    """A context manager that listens on a free port. It passes on unchanged what no rule matches; `CONNECT` opens a tunnel.

    Attributes:
        port: where it listens, on 127.0.0.1.
        requests: all requests so far, in the order in which their heads arrived.
    """

    def __init__(self, host: str = "", port: int = 0, *, tls: ssl.SSLContext | None = None, keep: int = _BLOCK) -> None:
        """Without `host`, no server is behind the proxy: a request that matches no rule is answered with 404.

        Args:
            tls: for connections with clients; plain HTTP without it. The server behind is always reached over plain HTTP.
            keep: bytes of each request's body kept for the test.
        """
        self._plan = _Plan((host, port) if host else None, keep)
        self._tls = tls
        self._threads: list[threading.Thread] = []
        self.port = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, name=f"fault proxy {self.port}", daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self._plan.end()
        for thread in self._threads:
            thread.join()

    @property
    def url(self) -> str:
        """URL of the proxy, without a path."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Request]:
        with self._plan.lock:
            return list(self._plan.requests)

    def fail(self, fault: Fault, *, method: str = "", target: str = "", skip: int = 0, times: int = 1) -> None:
        """Apply `fault` to the next `times` requests with this method whose target matches the regular expression `target`.

        The first `skip` of them pass. The rule added first applies, until its `times` are used up.
        """
        with self._plan.lock:
            self._plan.rules.append(_Rule(fault, method, re.compile(target), skip, times))

    def clear(self) -> None:
        """Discard all rules, and the requests seen so far."""
        with self._plan.lock:
            self._plan.rules.clear()
            self._plan.requests.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError), self._plan.tracked(client):
            if self._tls is None:
                _Connection(self._plan, client).serve()
            else:
                with self._tls.wrap_socket(client, server_side=True) as secured, self._plan.tracked(secured):
                    _Connection(self._plan, secured).serve()


class _Plan:
    """State shared by a proxy and its connections: the rules, the requests seen, and the open sockets."""

    def __init__(self, upstream: tuple[str, int] | None, keep: int) -> None:
        self.upstream = upstream
        self.keep = keep
        self.lock = threading.Lock()
        self.rules: list[_Rule] = []
        self.requests: list[Request] = []
        self.ended = threading.Event()
        self._open: set[socket.socket] = set()

    def note(self, request: Request) -> None:
        """Add the request to the list, with the fault of the first matching rule."""
        with self.lock:
            self.requests.append(request)
            request.fault = next((rule.fault for rule in self.rules if rule.takes(request)), None)
        if request.fault is None and self.upstream is None:
            request.fault = Answer(404)

    @contextlib.contextmanager
    def tracked(self, connection: socket.socket) -> Generator[None, None, None]:
        """Close the connection at the end of the block or of the proxy, whichever comes first."""
        with connection:
            with self.lock:
                self._open.add(connection)
            try:
                if self.ended.is_set():
                    raise ConnectionAbortedError
                yield
            finally:
                with self.lock:
                    self._open.discard(connection)

    def end(self) -> None:
        self.ended.set()
        with self.lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Connection:
    """A client's connection, and its connection to the server."""

    def __init__(self, plan: _Plan, client: socket.socket) -> None:
        self._plan = plan
        self._client = client
        self._stack = contextlib.ExitStack()
        self._server: socket.socket | None = None

    def serve(self) -> None:
        with self._stack:
            self._from_client = self._stack.enter_context(self._client.makefile("rb"))
            while (head := _read_head(self._from_client)) is not None:
                method, target, _ = head.first.split(" ", 2)
                if method == "CONNECT":
                    self._tunnel()
                    break
                if not self._exchange(head, Request(method, target, head.headers)):
                    break

    def _exchange(self, head: _Head, request: Request) -> bool:
        """Handle one request and its answer. Returns whether the connection can be reused."""
        self._plan.note(request)
        match request.fault:
            case None:
                return self._pass_on(head, request)
            case Delay(seconds):
                return not self._plan.ended.wait(seconds) and self._pass_on(head, request)
            case Cut(after):
                return self._pass_on(head, request, limit=after)
            case Swallow():
                return self._pass_on(head, request, swallow=True)
            case answer:
                return self._answer(request, answer)

    def _answer(self, request: Request, answer: Answer | Callable[[Request], Answer]) -> bool:
        if "expect" in request.headers:
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        for _ in self._body(request):
            pass
        if not isinstance(answer, Answer):
            answer = answer(request)
        request.status = answer.status
        # Like any answer to HEAD, 204 has no body, and no length.
        length = {} if answer.status == HTTPStatus.NO_CONTENT else {"Content-Length": str(len(answer.body))}
        headers = [f"{name}: {value}" for name, value in {**length, **answer.headers}.items()]
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", *headers]
        body = b"" if request.method == "HEAD" else answer.body
        self._client.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return True

    def _pass_on(self, head: _Head, request: Request, *, limit: int | None = None, swallow: bool = False) -> bool:
        server = self._connected()
        answer = None if limit == 0 else self._send(server, head, request, limit)
        if limit is not None:
            return self._break(server)
        while answer is None or answer.status < HTTPStatus.OK:
            answer = _read_head(self._from_server)
            if answer is None:
                return self._break(server)
        return self._break(server) if swallow else self._relay(answer, request)

    def _send(self, server: socket.socket, head: _Head, request: Request, limit: int | None) -> _Head | None:
        """Send the request. Returns the answer's head if it came before the body was requested."""
        server.sendall(head.raw)
        if "expect" in request.headers:
            answer = _read_head(self._from_server)
            if answer is None or answer.status != HTTPStatus.CONTINUE:
                return answer
            self._client.sendall(answer.raw)
        for block in self._body(request):
            excess = 0 if limit is None else max(0, request.body_bytes - limit)
            try:
                server.sendall(block[: len(block) - excess])
            except (BrokenPipeError, ConnectionResetError):
                break  # a server may refuse, answer and close before the request's end: its answer counts
            if excess:
                break
        return None

    def _relay(self, answer: _Head, request: Request) -> bool:
        request.status = answer.status
        self._client.sendall(answer.raw)
        if request.method != "HEAD" and answer.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            for block in _body(self._from_server, answer.headers, until_end=True):
                self._client.sendall(block)
        ends = (
            "close" in answer.headers.get("connection", "") or not {"content-length", "transfer-encoding"} & answer.headers.keys()
        )
        return not ends or answer.status == HTTPStatus.NO_CONTENT

    def _body(self, request: Request) -> Iterator[bytes]:
        for block in _body(self._from_client, request.headers):
            request.body += block[: self._plan.keep - len(request.body)]
            request.body_bytes += len(block)
            yield block

    def _connected(self) -> socket.socket:
        if self._server is None:
            if self._plan.upstream is None:
                raise ConnectionRefusedError("this proxy has no server")
            self._server = socket.create_connection(self._plan.upstream)
            self._stack.enter_context(self._plan.tracked(self._server))
            self._from_server = self._stack.enter_context(self._server.makefile("rb"))
        return self._server

    def _break(self, server: socket.socket) -> bool:
        """Close with a reset on both sides, not in order."""
        for one in (self._client, server):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        return False

    def _tunnel(self) -> None:
        server = self._connected()
        self._client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ways = {self._client: server, server: self._client}
        while True:
            for readable in select.select(list(ways), [], [])[0]:
                block = readable.recv(_BLOCK)
                if not block:
                    return
                ways[readable].sendall(block)


@dataclass(frozen=True)
class _Head:
    """The first line and the headers of a request or an answer."""

    raw: bytes
    first: str
    headers: dict[str, str]

    @property
    def status(self) -> int:
        return int(self.first.split(" ")[1])


def _read_head(stream: BinaryIO) -> _Head | None:
    lines = [stream.readline()]
    while lines[-1] not in (b"\r\n", b""):
        lines.append(stream.readline())
    if lines[-1] == b"":
        return None
    first, *rest = (line.decode("latin-1").rstrip("\r\n") for line in lines[:-1])
    pairs = (line.partition(":") for line in rest)
    return _Head(b"".join(lines), first, {name.strip().lower(): value.strip() for name, _, value in pairs})


def _body(stream: BinaryIO, headers: Mapping[str, str], *, until_end: bool = False) -> Iterator[bytes]:
    """The bytes that follow a head, as on the wire."""
    if "chunked" in headers.get("transfer-encoding", ""):
        size = -1
        while size:
            line = stream.readline()
            yield line
            size = int(line.split(b";")[0] or b"0", 16)
            yield from _exactly(stream, size + 2 if size else 0)
        while (line := stream.readline()) not in (b"\r\n", b""):  # trailers
            yield line
        yield line
    elif "content-length" in headers:
        yield from _exactly(stream, int(headers["content-length"]))
    elif until_end:
        while block := stream.read(_BLOCK):
            yield block


def _exactly(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        block = stream.read(min(size, _BLOCK))
        if not block:
            raise ConnectionResetError("the other side closed the connection in the middle of a body")
        size -= len(block)
        yield block
