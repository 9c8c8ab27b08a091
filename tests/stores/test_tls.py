"""Broken TLS: a failure after which the request may have arrived is not a refusal, or two buckets could get the object."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import certificate
from unreachable import variables

from jobs_backup.checksum import crc32c
from jobs_backup.errors import ConfigurationError, JobsBackupError, Unavailable
from jobs_backup.model import BytesBody
from jobs_backup.store import providers

BODY = b"x" * 1_000_000


def close(connection: ssl.SSLSocket, read: Callable[[], None]) -> None:
    connection.recv(2000)
    connection.close()


def alert(connection: ssl.SSLSocket, read: Callable[[], None]) -> None:
    read()
    with socket.socket(fileno=connection.detach()) as raw:
        raw.sendall(bytes([21, 3, 3, 0, 2, 2, 80]))  # a fatal, unencrypted alert, as from a middlebox


def plain(connection: ssl.SSLSocket, read: Callable[[], None]) -> None:
    read()
    with socket.socket(fileno=connection.detach()) as raw:
        raw.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")


class Server:
    """Answer each request over TLS with bytes that break the connection."""

    def __init__(self, directory: Path, breaks: Callable[[ssl.SSLSocket, Callable[[], None]], None]) -> None:
        self._context, self.certificate = certificate(directory)
        self._breaks = breaks
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self.arrived = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            with raw, contextlib.suppress(OSError):  # from a client that does not trust it
                connection = self._context.wrap_socket(raw, server_side=True)
                connection.settimeout(10)
                with connection:
                    self._breaks(connection, lambda to=connection: self._read(to))  # type: ignore[misc]

    def _read(self, connection: ssl.SSLSocket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(1 << 16)
        head, _, body = data.partition(b"\r\n\r\n")
        lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
        size = next(int(value) for name, _, value in lines if name == b"content-length")
        if b"100-continue" in head.lower() and not body:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.arrived = len(body)
        while self.arrived < size:
            self.arrived += len(connection.recv(1 << 16))


def environment(provider: str, url: str, ca: Path) -> dict[str, str]:
    return variables(provider, url) | ({"JOBS_BACKUP_S3_CA_BUNDLE": str(ca)} if provider == "S3" else {})


def write(provider: str, env: dict[str, str]) -> JobsBackupError:
    hooks = providers.load(provider, env).manager.hook
    with pytest.raises(JobsBackupError) as caught:
        hooks.write(
            key="key", body=BytesBody(BODY), size=len(BODY), checksum=crc32c(BODY), content_type="application/gzip", metadata={},
            if_absent=True, timeout=120,
        )  # fmt: skip
    return caught.value


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as stack:

        def start(breaks: Callable[[ssl.SSLSocket, Callable[[], None]], None]) -> Server:
            server = Server(tmp_path, breaks)
            stack.callback(server.close)
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.certificate))
            return server

        yield start


@pytest.mark.parametrize("provider", ["S3", "GCS", "AZURE_BLOB"])
class TestBroken:
    @pytest.mark.parametrize("breaks", [close, alert])
    def test_it_is_tried_again(
        self, trusted: Callable[..., Server], provider: str, breaks: Callable[[ssl.SSLSocket, Callable[[], None]], None]
    ) -> None:
        server = trusted(breaks)
        error = write(provider, environment(provider, server.url, server.certificate))
        assert type(error) is Unavailable
        assert (error.retryable, error.refused) == (True, False)
        assert (server.arrived >= len(BODY)) == (breaks is alert)

    def test_what_may_have_arrived_was_not_refused(self, trusted: Callable[..., Server], provider: str) -> None:
        server = trusted(plain)
        error = write(provider, environment(provider, server.url, server.certificate))
        assert type(error) is ConfigurationError
        assert "does not use TLS" in error.hint
        assert not error.refused
        assert server.arrived >= len(BODY)

    def test_a_certificate_that_nobody_trusts_is_reported(
        self, trusted: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
    ) -> None:
        server = trusted(close)
        (tmp_path / "other").mkdir()
        _, other = certificate(tmp_path / "other")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
        error = write(provider, environment(provider, server.url, other))
        assert type(error) is ConfigurationError
        assert "certificate" in error.hint
        assert error.refused
        assert server.arrived == 0
