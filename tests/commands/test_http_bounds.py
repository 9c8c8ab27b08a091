"""Limits on what clients can make the server hold: whatever bodies contain, however they arrive, and if clients do not read."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import pytest
from buckets import events, file_environment
from serving import TOKEN, Sidecar, serve

MIB: Final = 1 << 20
PENDING: Final = 32
"""MiB, as set here."""
BASE: Final = 110
"""Maximum in MiB: of the process, and of two bodies of these sizes while they are parsed."""


class Kind(NamedTuple):
    name: str
    path: str
    body: Callable[[], bytes]
    statuses: set[int]
    headers: Mapping[str, str] = MappingProxyType({})


def _many(one: bytes, count: int) -> bytes:
    return b"[" + b",".join([one] * count) + b"]"


NDJSON: Final = {"Content_Type": "application/x-ndjson"}
GZIP: Final = {"Content_Encoding": "gzip"}
EVENTS: Final = "/v1/events?source_id=web"
FAILURE: Final = b'{"sourceId":"web","payload":{},"error":%b}'
KINDS: Final = [
    Kind("tiny events", EVENTS, lambda: _many(b"{}", 639_000), {413}),
    Kind("tiny members that are no events", EVENTS, lambda: _many(b"1", 639_000), {400}),
    Kind("tiny arrays", EVENTS, lambda: _many(b"[]", 639_000), {400}),
    Kind("tiny events, packed", EVENTS, lambda: gzip.compress(_many(b"{}", 5_000_000), 1), {413}, GZIP),
    Kind("tiny events, then one that is none", EVENTS, lambda: b"[" + b"{}," * 9_000 + _many(b"1", 639_000) + b"]", {400}),
    Kind("as many events as may be", EVENTS, lambda: _many(b"{}", 10_000), {200}),
    Kind("tiny lines", EVENTS, lambda: b"{}\n" * 1_000_000, {413}, NDJSON),
    Kind("empty lines", EVENTS, lambda: b"\n" * 15 * MIB, {200}, NDJSON),
    Kind("lines of spaces", EVENTS, lambda: b" \n" * 7 * MIB, {200}, NDJSON),
    Kind("nested arrays", EVENTS, lambda: b"[" * 4 * MIB, {400}),
    Kind("an event of nested arrays", EVENTS, lambda: b'{"a":' + b"[" * MIB + b"]" * MIB + b"}", {400}),
    Kind("events of nested objects", EVENTS, lambda: _many(b'{"a":' * 500 + b"1" + b"}" * 500, 1_000), {200}),
    Kind("an event of many members", EVENTS, lambda: b'{"a":' + _many(b"1", 2 * MIB) + b"}", {200}),
    Kind("an event of many fields", EVENTS, lambda: b"{" + b",".join(b'"%d":1' % n for n in range(400_000)) + b"}", {200}),
    Kind("an id of quotes", EVENTS, lambda: b'{"messageId":{' + b",".join([b'"":""'] * 400_000) + b"}}", {200}),
    Kind("spaces, packed", EVENTS, lambda: gzip.compress(b"{}" + b" " * 15 * MIB), {200}, GZIP),
    Kind("a bomb", EVENTS, lambda: zlib.compress(bytes(500 * MIB), 9, 31), {413}, GZIP),
    Kind("empty gzip members", EVENTS, lambda: gzip.compress(b"") * 700_000, {413}, GZIP),
    Kind(
        "tiny gzip members before a large one",
        EVENTS,
        lambda: gzip.compress(b" ") * 9_000 + gzip.compress(os.urandom(12 * MIB), 0),
        {400},
        GZIP,
    ),
    Kind("tiny acknowledgements", "/v1/delivered", lambda: _many(b'"1"', 639_000), {413}),
    Kind("unknown ids", "/v1/delivered", lambda: json.dumps([str(n) for n in range(10_000)]).encode(), {200}),
    Kind("tiny failures", "/v1/failures", lambda: _many(b"{}", 639_000), {413}),
    Kind("an error of tiny arrays", "/v1/failures", lambda: FAILURE % _many(b"[]", 2 * MIB), {413}),
    Kind("an error of nested arrays", "/v1/failures", lambda: FAILURE % (b"[" * MIB + b"]" * MIB), {400}),
]


def _peak(sidecar: Sidecar) -> float:
    """MiB."""
    status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.sample(12)
def test_memory_is_bounded_whatever_bodies_contain(tmp_path: Path, kind: Kind) -> None:
    body, answered = kind.body(), []
    with serve(file_environment(tmp_path), JOBS_BACKUP_SERVER_MAX_PENDING=f"{PENDING}MiB") as sidecar:
        assert sidecar.post(EVENTS, {}).status == 200
        with ThreadPoolExecutor(12) as threads:
            posted = [threads.submit(sidecar.post, kind.path, body, **kind.headers) for _ in range(12)]
            while not all(one.done() for one in posted):
                assert sidecar.get("/healthz").status == 200
                time.sleep(0.05)
            answered = [one.result() for one in posted]
        assert {answer.status for answer in answered} <= kind.statuses | {503}, answered
        assert {answer.code for answer in answered if answer.status == 503} <= {"Busy"}
        assert sidecar.post(kind.path, body, **kind.headers).status in kind.statuses, "when it is alone"
        assert _peak(sidecar) < BASE + PENDING
        code, stderr = sidecar.end()
        assert code == 0, stderr


def _connect(sidecar: Sidecar) -> socket.socket:
    place = urlsplit(sidecar.url)
    return socket.create_connection((place.hostname, place.port), timeout=120)


def test_tiny_pieces_of_a_body_take_no_more_than_the_body(tmp_path: Path) -> None:
    with serve(file_environment(tmp_path)) as sidecar:
        assert sidecar.post(EVENTS, {}).status == 200
        before = _peak(sidecar)
        with _connect(sidecar) as connection:
            connection.sendall(
                b"POST %b HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" % (EVENTS.encode(), TOKEN.encode())
            )
            for _ in range(30):
                connection.sendall(b"1\r\n \r\n" * 20_000)
            connection.sendall(b"2\r\n{}\r\n0\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert _peak(sidecar) < before + 20


def test_requests_that_are_sent_ahead_are_left_in_the_socket(tmp_path: Path) -> None:
    """A client that keeps sending and reads no response: the server leaves it waiting, and accepts nothing more from it."""
    one = b"GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n"
    with serve(file_environment(tmp_path)) as sidecar:
        assert sidecar.get("/openapi.json").status == 200
        before = _peak(sidecar)
        with _connect(sidecar) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(2)
            with pytest.raises(TimeoutError):  # noqa: PT012 - once the kernel's buffers are full
                for _ in range(10_000):
                    connection.sendall(one * 1000)
            assert sidecar.get("/healthz").status == 200
            assert _peak(sidecar) < before + 20


def test_a_large_answer_that_nobody_reads_counts_until_the_client_is_gone(tmp_path: Path) -> None:
    """Its request counts as being in memory: others are refused until it is gone."""
    body = _many(b"{}", 10_000)
    head = (
        b"POST %b HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    with serve(file_environment(tmp_path), JOBS_BACKUP_SERVER_MAX_PENDING="4MiB") as sidecar:
        connection = _connect(sidecar)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(100):  # the kernel buffers some megabytes of responses
            try:
                connection.settimeout(0.5)
                connection.sendall(head % (EVENTS.encode(), TOKEN.encode(), len(body)) + body)
            except TimeoutError:
                break
        assert sidecar.post(EVENTS, body).status == 503
        assert sidecar.post(EVENTS, {}).status == 200, "there is room for a small one"
        connection.close()
        until = time.monotonic() + 120
        while (status := sidecar.post(EVENTS, body).status) != 200 and time.monotonic() < until:
            time.sleep(0.1)
        assert status == 200


class TestEarlyAnswers:
    def test_the_rest_of_a_refused_body_is_never_a_request(self, tmp_path: Path) -> None:
        """The request is refused at its head; the rest of its body looks like a request."""
        inner = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}" % EVENTS.encode()
        with serve(file_environment(tmp_path)) as sidecar, _connect(sidecar) as connection:
            connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(inner))
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404")
            connection.sendall(inner + b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            answered = b""
            while data := connection.recv(1 << 16):
                answered += data
            assert answered.count(b"HTTP/1.1") == 1
            assert answered.endswith(b"ok\n")
            sidecar.end()
        assert events(tmp_path) == []

    def test_a_client_that_waits_to_be_reported_to_send_can_go_on(self, tmp_path: Path) -> None:
        """botocore and others keep the connection; their next request must not be taken for the body that they held back."""
        with serve(file_environment(tmp_path)) as sidecar, _connect(sidecar) as connection:
            connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, answer.getheader("Connection")) == (404, "close")
            answer.read()
            assert connection.recv(1) == b""

    def test_a_refused_body_that_never_ends_is_cut(self, tmp_path: Path) -> None:
        with serve(file_environment(tmp_path), JOBS_BACKUP_SERVER_READ_TIMEOUT="300ms") as sidecar, _connect(sidecar) as connection:
            connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 404")
            with pytest.raises(OSError, match=r"reset|[Bb]roken"):  # noqa: PT012 - the sockets decide which
                while True:
                    connection.sendall(b"1\r\n \r\n")
                    time.sleep(0.02)


def test_a_head_that_trickles_in_is_cut_while_others_are_answered(tmp_path: Path) -> None:
    stop = threading.Event()
    with serve(file_environment(tmp_path), JOBS_BACKUP_SERVER_READ_TIMEOUT="500ms") as sidecar:

        def trickle() -> int:
            sent = 0
            with _connect(sidecar) as connection:
                try:
                    while not stop.wait(0.02):
                        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nX: "[sent : sent + 1] or b"y")
                        sent += 1
                except OSError:
                    return sent
            return -1

        with ThreadPoolExecutor(8) as threads:
            trickling = [threads.submit(trickle) for _ in range(8)]
            assert sidecar.post(EVENTS, {}).status == 200
            assert all(one.result(timeout=120) > 0 for one in trickling)
        stop.set()
