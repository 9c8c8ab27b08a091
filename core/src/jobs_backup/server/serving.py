"""Listens: uvicorn with an application, bounds on slow clients, TLS, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import resource
import socket
import ssl
import threading
from collections.abc import Generator
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jobs_backup.backup import Backup
from jobs_backup.errors import ConfigurationError
from jobs_backup.server.access import Access
from jobs_backup.server.app import App
from jobs_backup.server.settings import ServerSettings

log: Final = logging.getLogger(__name__)

_HEAD_BYTES: Final = 64 << 10
_SPARE_CONNECTIONS: Final = 64
"""Beyond what may be open: they are told so; those beyond these are cut."""
_OTHER_FILES: Final = 256
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
_KEEP_ALIVE_SECONDS: Final = 75
_LATE_SECONDS: Final = 5.0
"""What arrives later than in time is refused with an answer first, and then cut."""
_DRAIN_SECONDS: Final = 10
_BACKLOG: Final = 2048


class Server:
    """A socket that is listened on, and what answers there."""

    def __init__(self, settings: ServerSettings) -> None:
        """Listen.

        Raises:
            ConfigurationError: the address or the certificate can't be used, or whom the settings let in.
        """
        self._settings = settings
        self._access = Access(settings)
        _check_tls(settings)
        self._listener = _listen(settings)
        _make_room_for(settings.max_connections + _SPARE_CONNECTIONS + _OTHER_FILES)
        scheme = "http" if settings.tls_certificate is None else "https"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"{scheme}://{host}:{self._listener.getsockname()[1]}"

    def serve(self, backup: Backup, stop: threading.Event) -> None:
        """Answer requests until `stop` is set; then those that have begun, for some seconds."""
        asyncio.run(self._serve(backup, stop))

    async def _serve(self, backup: Backup, stop: threading.Event) -> None:
        settings = self._settings
        async with App(backup, settings, self._access, is_stopping=stop.is_set) as app:
            config = uvicorn.Config(
                app,
                http=functools.partial(_Bounded, read_timeout=settings.read_timeout),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=settings.max_connections,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
            )
            await _Server(config, stop).serve([self._listener])


class _Server(uvicorn.Server):
    """Ends when it is told to; signals are the command's."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._stop.is_set()


class _Bounded(HttpToolsProtocol):
    """A connection on which each request has to arrive, head and body, within a time; and what is no body of it within a size.

    uvicorn bounds neither: the parser keeps a head of any size, or a trailer behind a chunked body, for as long as bytes of it
    trickle in. Nor does it bound connections that ask for nothing. And where a client offers to upgrade the connection, which a
    server may ignore (RFC 9110, 7.8), the parser ends the message behind its head: its body would be lost.
    """

    def __init__(self, *args: Any, read_timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timeout = read_timeout + _LATE_SECONDS
        self._arriving: asyncio.TimerHandle | None = None
        self._extra_bytes = 0  # since the last piece of a body
        self._in_head = True
        self._head = bytearray()  # and what came with it; of the first message in what was received

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()
        if len(self.connections) > (self.limit_concurrency or 0) + _SPARE_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._expect()
        self._extra_bytes += len(data)
        if self._in_head:
            self._head += data
        super().data_received(data)
        if self._extra_bytes > _HEAD_BYTES:
            if self._in_head:
                head = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                self.transport.write(head)
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer: nothing of ours
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._in_head, self._extra_bytes = False, 0
            self._head.clear()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._extra_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._in_head, self._extra_bytes = True, 0
            self._has_arrived()
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return True  # asked where an upgrade is offered: then the message is not begun, but handed over below

    def handle_websocket_upgrade(self) -> None:
        head, end, rest = bytes(self._head).partition(b"\r\n\r\n")
        self._head.clear()
        if not end:  # it came behind another request, before that was answered; or it is a CONNECT, which offers nothing else
            self.send_400_response("An upgrade is not supported here.")
            return
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        super().data_received(_UPGRADE.sub(b"", head) + end + rest)

    def _expect(self) -> None:
        if self._arriving is None:
            self._arriving = self.loop.call_later(self._read_timeout, self._cut)

    def _has_arrived(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _cut(self) -> None:
        self._arriving = None
        self.transport.abort()


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"{settings.host}:{settings.port} can't be listened on: {getattr(error, 'strerror', None) or error}",
            hint="set JOBS_BACKUP_SERVER_PORT to another port, or JOBS_BACKUP_SERVER_HOST to an address of this machine",
        ) from error
    # Connections inherit it. asyncio sets it only where the socket's protocol is not 0. Without it answers wait 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: also who does not read the answers is cut
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _KEEP_ALIVE_SECONDS)
    return listener


def _make_room_for(descriptors: int) -> None:
    """Who has none left can't open the spool's files, so nothing is sent: connections must leave some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < descriptors:
        limit = descriptors if hard == resource.RLIM_INFINITY else min(descriptors, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
        if limit < descriptors:
            log.warning(
                "only %d files may be open: lower JOBS_BACKUP_SERVER_MAX_CONNECTIONS, or raise the limit (ulimit -n) to %d",
                limit,
                descriptors,
            )


def _check_tls(settings: ServerSettings) -> None:
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise ConfigurationError(
            "TLS needs both JOBS_BACKUP_SERVER_TLS_CERTIFICATE and JOBS_BACKUP_SERVER_TLS_KEY", hint="set both"
        )
    for name, path in (("JOBS_BACKUP_SERVER_TLS_CERTIFICATE", certificate), ("JOBS_BACKUP_SERVER_TLS_KEY", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigurationError(f"{name}={path}: {error.strerror}", hint="name a readable file of PEM") from error
    try:
        # Without the password, an encrypted key would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"{certificate} and {key} can't be used for TLS: {getattr(error, 'reason', None) or error}",
            hint="both are PEM, the key is that of the certificate and has no password",
        ) from error
