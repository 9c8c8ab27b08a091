"""Listen: uvicorn with an application, limits for slow clients, TLS, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import threading
from collections.abc import Generator
from typing import Final

import uvicorn

from jobs_backup.backup.session import Session
from jobs_backup.errors import ConfigurationError
from jobs_backup.inputs.http.app import App
from jobs_backup.inputs.http.auth import Access
from jobs_backup.inputs.http.connections import KEEP_ALIVE_SECONDS, Connections
from jobs_backup.settings.server import ServerSettings
from jobs_backup.util import listening
from jobs_backup.util.logs import logger_of

log: Final = logger_of(__name__)

_SPARE_CONNECTIONS: Final = 64
"""Connections beyond the maximum that get an answer saying so; further ones are cut."""
_OTHER_FILES: Final = 256
_DRAIN_SECONDS: Final = 10
_BACKLOG: Final = 2048
_ACCEPTED_AT_ONCE: Final = 16
"""Each takes a descriptor before it can be counted and refused."""


class Server:
    """A listening socket, and the server behind it."""

    def __init__(self, settings: ServerSettings) -> None:
        """Listen.

        Raises:
            ConfigurationError: the address, the certificate or the access settings cannot be used.
        """
        self._settings = settings
        self._access = Access(settings)
        _check_tls(settings)
        self._listeners = _listen(settings)
        self._most = _room_for(settings.max_connections)
        scheme = "http" if settings.tls_certificate is None else "https"
        self.url = listening.url(scheme, settings.host, self._listeners[0])

    def serve(self, session: Session, stop: threading.Event) -> None:
        """Answer requests until `stop` is set, then finish those under way, for a few seconds."""
        asyncio.run(self._serve(session, stop))

    async def _serve(self, session: Session, stop: threading.Event) -> None:
        settings = self._settings
        async with App(session, settings, self._access, is_stopping=stop.is_set) as app:
            connections = Connections(most=self._most, spare=_SPARE_CONNECTIONS, arrival_seconds=settings.read_timeout)
            config = uvicorn.Config(
                app,
                http=connections,  # type: ignore[arg-type] # it is called to make a protocol
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=logging.ERROR,  # clients' errors are not ours
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_ACCEPTED_AT_ONCE,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
            )
            await _Server(config, stop).serve(self._listeners)


class _Server(uvicorn.Server):
    """Ends when `stop` is set; the command handles signals."""

    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._stop.is_set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has one number for the queue and for how many it accepts from it at once


def _listen(settings: ServerSettings) -> list[socket.socket]:
    try:
        listeners = listening.listen(settings.host, settings.port, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"cannot listen on {settings.host}:{settings.port}: {getattr(error, 'strerror', None) or error}",
            hint="set JOBS_BACKUP_SERVER_PORT to another port, or JOBS_BACKUP_SERVER_HOST to an address of this machine",
        ) from error
    for listener in listeners:
        # Connections inherit it. asyncio sets it only if a socket's protocol is not 0. Without it, answers wait 40 ms for an ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: also cuts clients that do not read the answers
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * KEEP_ALIVE_SECONDS)
    return listeners


def _room_for(connections: int) -> int:
    """Limit connections by free descriptors: without any, the spool's files cannot be opened, and nothing is uploaded."""
    others = _SPARE_CONNECTIONS + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= connections + others:
        return connections
    limit = connections + others if hard == resource.RLIM_INFINITY else min(connections + others, hard)
    limit = max(soft, limit)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (ValueError, OSError):  # macOS has a lower limit of its own, which no call reports
        limit = soft
    room = min(connections, max(limit - others, limit // 4))
    if room < connections:
        log.warning(
            "at most %d files may be open, which allows at most %d connections: lower JOBS_BACKUP_SERVER_MAX_CONNECTIONS, or"
            " raise the limit (ulimit -n) to %d",
            limit,
            room,
            connections + others,
        )
    return room


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
            raise ConfigurationError(f"{name}={path}: {error.strerror}", hint="name a readable PEM file") from error
    try:
        # Without the password, an encrypted key would prompt on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"cannot use {certificate} and {key} for TLS: {getattr(error, 'reason', None) or error}",
            hint="both must be PEM, and the key must match the certificate and have no password",
        ) from error
