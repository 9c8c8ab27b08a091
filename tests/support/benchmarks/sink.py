"""An S3 server that discards what it receives: `python -m benchmarks.sink [CERTIFICATE KEY]`. It waits for no disk or lock.

It answers upload requests, counts them, and throws bodies away unread; over http the kernel does so, with MSG_TRUNC. It runs one
thread per connection: they only wait, even for TLS, and so leave most of the CPU to the processes under measurement.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from servers import certificate, operation

from jobs_backup.testing.fault_proxy import Request

_WASTE: Final = 1 << 20
_BLOCK: Final = 1 << 16
UPLOADS: Final = ("PutObject", "UploadPart")
"""The requests that carry an object's bytes."""
_ETAG: Final = '"d41d8cd98f00b204e9800998ecf8427e"'
"""The ETag of every response: no contender compares it with what it sent."""
_XMLNS: Final = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


@dataclass
class Counts:
    """Counts since the last reset."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    first_upload: float = 0.0
    """When the first request that creates or uploads something began, by `time.monotonic`; 0 if none did."""


class _Server:
    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._counts = Counts()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, EOFError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if self._context:
                connection = stack.enter_context(self._context.wrap_socket(connection, server_side=True))
            reader = _Reader(connection, 0 if self._context else socket.MSG_TRUNC)
            while head := reader.head():
                connection.sendall(self._answer(connection, reader, head))

    def _answer(self, connection: socket.socket, reader: _Reader, head: bytes) -> bytes:
        first, *rest = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        if target in ("/_counts", "/_reset"):
            return self._own(target)
        request = Request(method, target, headers)
        kind = operation(request).partition(" ")[0]
        with self._lock:
            self._counts.requests[kind] += 1
            if not self._counts.first_upload and kind in (*UPLOADS, "CreateMultipartUpload"):
                self._counts.first_upload = time.monotonic()
        if headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        kept = bytearray() if kind == "DeleteObjects" else None
        if headers.get("transfer-encoding", "").lower() == "chunked":
            size = reader.skip_chunks()
        else:
            size = int(headers.get("content-length", "0"))
            reader.skip(size, kept)
        with self._lock:
            # A body with a trailing checksum is framed; count the object's bytes.
            self._counts.bytes[kind] += int(headers.get("x-amz-decoded-content-length", size))
        return _response(kind, method, target, bytes(kept or b""))

    def _own(self, target: str) -> bytes:
        with self._lock:
            if target == "/_reset":
                self._counts = Counts()
            counts = self._counts
            body = {"requests": counts.requests, "bytes": counts.bytes, "first_upload": counts.first_upload}
            return _http(200, json.dumps(body))


class _Reader:
    """Reads heads and throws bodies away."""

    def __init__(self, connection: socket.socket, flags: int) -> None:
        self._connection = connection
        self._flags = flags
        self._buffer = bytearray()
        self._waste = memoryview(bytearray(_WASTE))

    def head(self) -> bytes:
        """Read the next request's head; empty at the end of the connection."""
        return self._until(b"\r\n\r\n")

    def skip(self, size: int, kept: bytearray | None = None) -> None:
        had = min(size, len(self._buffer))
        if kept is not None:
            kept += self._buffer[:had]
        del self._buffer[:had]
        size -= had
        while size:
            flags = self._flags if kept is None else 0
            got = self._connection.recv_into(self._waste, min(size, _WASTE), flags)
            if not got:
                raise EOFError
            if kept is not None:
                kept += self._waste[:got]
            size -= got

    def skip_chunks(self) -> int:
        """Count the bytes in all chunks."""
        total = 0
        while size := int(self._until(b"\r\n").partition(b";")[0], 16):
            self.skip(size + 2)
            total += size
        while self._until(b"\r\n"):
            pass
        return total

    def _until(self, end: bytes) -> bytes:
        while (place := self._buffer.find(end)) < 0:
            block = self._connection.recv(_BLOCK)
            if not block:
                return b""
            self._buffer += block
        found = bytes(self._buffer[:place])
        del self._buffer[: place + len(end)]
        return found


def _response(kind: str, method: str, target: str, body: bytes) -> bytes:
    parts = urlsplit(target)
    name = f"<Bucket>bucket</Bucket><Key>{unquote(parts.path.lstrip('/')).partition('/')[2]}</Key>"
    prefix = parse_qs(parts.query).get("prefix", [""])[0]
    deleted = "".join(f"<Deleted>{key.decode()}</Deleted>" for key in re.findall(rb"<Key>[^<]*</Key>", body))
    found = f"<Prefix>{prefix}</Prefix><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated>"
    listed = f"<ListBucketResult {_XMLNS}>{found}</ListBucketResult>"
    answers = {
        "PutObject": (200, ""),
        "UploadPart": (200, ""),
        "CreateMultipartUpload": (
            200,
            f"<InitiateMultipartUploadResult {_XMLNS}>{name}<UploadId>1</UploadId></InitiateMultipartUploadResult>",
        ),
        "CompleteMultipartUpload": (
            200,
            f"<CompleteMultipartUploadResult {_XMLNS}>{name}<ETag>{_ETAG}</ETag></CompleteMultipartUploadResult>",
        ),
        "AbortMultipartUpload": (204, ""),
        "DeleteObject": (204, ""),
        "DeleteObjects": (200, f"<DeleteResult {_XMLNS}>{deleted}</DeleteResult>"),
        "ListObjectsV2": (200, listed),
        "ListObjects": (200, listed),
        "GetBucketLocation": (200, f"<LocationConstraint {_XMLNS}/>"),
        "CreateBucket": (200, ""),
        "HeadBucket": (200, ""),
    }
    nothing = (404, "" if method == "HEAD" else "<Error><Code>NoSuchKey</Code></Error>")
    status, text = answers.get(kind, nothing)
    return _http(status, text, etag=kind in UPLOADS)


def _http(status: int, body: str = "", *, etag: bool = False) -> bytes:
    data = body.encode()
    more = f"ETag: {_ETAG}\r\n" if etag else ""
    kind = "application/json" if body.startswith("{") else "application/xml"
    # A 204 has neither body nor length.
    length = "" if status == 204 else f"Content-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
    return f"HTTP/1.1 {status} {http.client.responses[status]}\r\n{length}{more}\r\n".encode() + data


@dataclass(frozen=True)
class Sink:
    """A running sink, seen from outside."""

    port: int
    certificate: Path | None

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def counts(self) -> Mapping[str, Any]:
        """Requests and bytes by kind of request, since the last reset."""
        return self._ask("GET", "/_counts")

    def reset(self) -> None:
        self._ask("POST", "/_reset")

    def _ask(self, method: str, path: str) -> Mapping[str, Any]:
        if self.certificate:
            context = ssl.create_default_context(cafile=str(self.certificate))
            connection: http.client.HTTPConnection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
        with contextlib.closing(connection):
            connection.request(method, path)
            answer: Mapping[str, Any] = json.loads(connection.getresponse().read())
            return answer


@contextlib.contextmanager
def sink(directory: Path, *, tls: bool) -> Generator[Sink, None, None]:
    """Run a sink in its own process; its certificates, if any, are in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    trusted = certificate(directory)[1] if tls else None
    files = [str(trusted), str(directory / "key.pem")] if trusted else []
    command = [sys.executable, "-m", "benchmarks.sink", *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield Sink(int(process.stdout.readline()), trusted)
        finally:
            process.kill()


def main(arguments: list[str]) -> None:
    context = None
    if arguments:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*arguments)
    server = _Server(context)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
