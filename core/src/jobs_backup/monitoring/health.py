"""Monitoring of a process: /metrics, /healthz and /readyz on a port of their own, and metrics in a file."""

from __future__ import annotations

import functools
import http.server
import io
import logging
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobs_backup.backup.backup import Backup, session_of
from jobs_backup.backup.session import Session
from jobs_backup.errors import ConfigurationError, JobsBackupError
from jobs_backup.settings.core import CoreSettings
from jobs_backup.util import listening
from jobs_backup.util.exhaustion import explain
from jobs_backup.util.logs import logger_of, printable

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from jobs_backup.monitoring.metrics import Metrics

log: Final = logger_of(__name__)

FILE_SECONDS: Final = 15.0
"""Interval between writes of the metrics file."""
_REQUEST_SECONDS: Final = 5.0
_THREADS: Final = 4
_HEAD_BYTES: Final = 16 << 10
_TEXT: Final = "text/plain; charset=utf-8"
_ABSOLUTE: Final = re.compile(r"https?://[^/]*(.*)", re.IGNORECASE | re.DOTALL)


def health(backup: Backup | Session) -> str:
    """Why the process needs a restart: one of its threads died or hung. Empty if it is healthy."""
    return session_of(backup).health_error


def readiness(backup: Backup | Session) -> str:
    """Why an event would be rejected now, or others cannot be uploaded, in one line. Empty if ready.

    Reasons: a full spool, an unusable spool, a dead process's events that cannot be recovered, or shutdown.
    """
    error: JobsBackupError | None
    try:
        session = session_of(backup)
        session.check_room()
        error = next(iter(session.spool.unreadable), None)
    except JobsBackupError as failure:
        error = failure
    return "" if error is None else f"{error.one_line()} [{error.code}]"


def metrics_page(backup: Backup | Session, accept: str) -> tuple[bytes, str]:
    """The metrics and their content type: Prometheus' text format, or OpenMetrics if the `accept` header asks for it.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    collected = registry(backup)
    from prometheus_client.exposition import choose_encoder  # an extra

    encode, content_type = choose_encoder(accept)
    return encode(collected), content_type


def path_of(target: str) -> str:
    """The path of a request's target: without a host (RFC 9112, 3.2.2), and without trailing or repeated slashes.

    This serves both spellings. A redirect would repeat a body, and behind a proxy that terminates TLS it would lead to plain HTTP.
    """
    if found := _ABSOLUTE.fullmatch(target):
        target = found[1]
    return "/" + "/".join(filter(None, target.split("/"))) if target != "*" else target


@contextmanager
def monitored(
    backup: Backup | Session, settings: CoreSettings, *, is_stopping: Callable[[], bool] = lambda: False
) -> Generator[str]:
    """Serve JOBS_BACKUP_METRICS_PORT and write JOBS_BACKUP_METRICS_FILE while the block runs, if they are set.

    Yields the URL that it listens on, empty if none. It may outlast the Backup: the file is written once more at the end.

    Args:
        is_stopping: whether the process is about to end, and so accepts nothing.

    Raises:
        ConfigurationError: the port cannot be opened, the file cannot be written, or a required extra is not installed.
    """
    with ExitStack() as stack:
        if settings.metrics_file is not None:
            stack.enter_context(metrics_file(backup, settings.metrics_file))
        url = ""
        if settings.metrics_port is not None:
            url = stack.enter_context(_listening(backup, settings.metrics_host, settings.metrics_port, is_stopping))
        yield url


@contextmanager
def metrics_file(backup: Backup | Session, path: Path) -> Generator[None]:
    """Write the metrics to a file atomically, every 15 s while the block runs, and at its end.

    Raises:
        ConfigurationError: the file cannot be written, or the extra is not installed. Later failures only log a warning.
    """
    if path.suffix != ".prom":
        raise ConfigurationError(
            f"JOBS_BACKUP_METRICS_FILE={path}: its name must end in .prom",
            hint="rename it: the textfile collector reads only such files",
        )
    try:
        _write(backup, path)
    except OSError as error:
        why, hint = explain(error, path, "name a file in a writable directory")
        raise ConfigurationError(f"JOBS_BACKUP_METRICS_FILE={path}: {why}", hint=hint) from error
    end = threading.Event()

    def write() -> None:
        try:
            _write(backup, path)
        except OSError as error:
            log.warning("cannot write the metrics to %s, retrying: %s", path, explain(error, path, "").why)

    def work() -> None:
        while not end.wait(FILE_SECONDS):
            write()

    thread = threading.Thread(target=work, name="jobs-backup-metrics-file", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        _collected(session_of(backup))[1].expire()
        write()


def _write(backup: Backup | Session, path: Path) -> None:
    """Write the metrics once. Raises OSError and ConfigurationError."""
    collected = registry(backup)
    from prometheus_client import write_to_textfile  # an extra

    write_to_textfile(str(path), collected)


def registry(backup: Backup | Session) -> CollectorRegistry:
    """The registry behind `metrics_page`, to which others may add collectors.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    return _collected(session_of(backup))[0]


@functools.lru_cache(maxsize=8)
def _collected(session: Session) -> tuple[CollectorRegistry, Metrics]:
    """One registry per Backup, so that not every request reads the spool again."""
    from jobs_backup.monitoring import metrics  # an extra

    collector = metrics.Metrics(session)
    return metrics.registry(session, collector), collector


@contextmanager
def _listening(backup: Backup | Session, host: str, port: int, is_stopping: Callable[[], bool]) -> Generator[str]:
    def answer(path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        health_error = "not found: the paths are /metrics, /healthz and /readyz"
        status = HTTPStatus.NOT_FOUND
        if path == "/metrics":
            try:
                body, content_type = metrics_page(backup, accept)
            except ConfigurationError as error:
                health_error = error.one_line()
            else:
                return HTTPStatus.OK, content_type, body
        elif path == "/healthz":
            health_error, status = health(backup), HTTPStatus.SERVICE_UNAVAILABLE
        elif path == "/readyz":
            health_error, status = "stopping" if is_stopping() else readiness(backup), HTTPStatus.SERVICE_UNAVAILABLE
        return (status, _TEXT, f"{printable(health_error)}\n".encode()) if health_error else (HTTPStatus.OK, _TEXT, b"ok\n")

    class Handler(_Handler):
        respond = staticmethod(answer)

    try:
        listeners = listening.listen(host, port)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"JOBS_BACKUP_METRICS_PORT: cannot listen on {host}:{port}: {getattr(error, 'strerror', error)}",
            hint="set another port, or JOBS_BACKUP_METRICS_HOST to an address of this machine",
        ) from error
    free = threading.Semaphore(_THREADS)
    servers = [_Server(listener, Handler, free) for listener in listeners]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.1,), name="jobs-backup-monitoring", daemon=True).start()
    try:
        yield listening.url("http", host, listeners[0])
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server with a few threads at most: further connections wait."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, handler: type[_Handler], free: threading.Semaphore) -> None:
        socketserver.BaseServer.__init__(self, listener.getsockname(), handler)  # not TCPServer's, which opens a socket itself
        self.socket = listener
        self._free = free

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(timeout=2 * _REQUEST_SECONDS):  # each thread is free again in half of that
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's
        of_network = isinstance(sys.exception(), OSError)
        log.log(logging.DEBUG if of_network else logging.ERROR, "a request to the monitoring port failed", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request, whose head must arrive completely within the timeout."""

    timeout = _REQUEST_SECONDS
    server_version = "jobs-backup"
    sys_version = ""
    respond: Callable[[str, str], tuple[HTTPStatus, str, bytes]]

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(io.BytesIO(self._head()))

    def _head(self) -> bytes:
        until = time.monotonic() + _REQUEST_SECONDS
        head = b""
        while b"\n\r\n" not in head and b"\n\n" not in head and len(head) < _HEAD_BYTES:
            if (left := until - time.monotonic()) <= 0:
                return b""
            self.connection.settimeout(left)
            try:
                received = self.connection.recv(4096)
            except OSError:
                return b""
            if not received:
                return b""
            head += received
        self.connection.settimeout(_REQUEST_SECONDS)
        return head

    def do_GET(self) -> None:
        status, content_type, body = self.respond(path_of(self.path.partition("?")[0]), self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server's

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
