"""A proxy in front of PostgreSQL that loses answers to commits, or the commits themselves."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_BLOCK = 1 << 16


class Swallower:
    """Forwards every connection. Once `lose` is called, the next request with that text has no answer: its connection is closed.

    `answers` counts those that the server has answered, and `requests` those that never reached it.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._armed: list[tuple[bytes, bool]] = []
        self._lock = threading.Lock()
        self.answers = 0
        self.requests = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def lose(self, text: bytes, *, answer: bool) -> None:
        """Lose the answer to the next request with this text, or the request itself."""
        with self._lock:
            self._armed.append((text, answer))

    @property
    def is_idle(self) -> bool:
        """Whether everything that was to be lost is."""
        return not self._armed

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                swallows = threading.Event()
                threading.Thread(target=self._requests, args=(client, server, swallows), daemon=True).start()
                threading.Thread(target=self._answers, args=(client, server, swallows), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, swallows: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while block := client.recv(_BLOCK):
                if (found := self._take(block)) is not None:
                    if not found:
                        self.requests += 1
                        break
                    self.answers += 1
                    swallows.set()
                server.sendall(block)
        if not swallows.is_set():
            _close(client, server)

    def _answers(self, client: socket.socket, server: socket.socket, swallows: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while block := server.recv(_BLOCK):
                if swallows.is_set():  # the first block of the answer: so the server has done it
                    break
                client.sendall(block)
        _close(client, server)

    def _take(self, block: bytes) -> bool | None:
        with self._lock:
            for armed in self._armed:
                if armed[0] in block:
                    self._armed.remove(armed)
                    return armed[1]
        return None


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@contextlib.contextmanager
def swallower(port: int) -> Iterator[Swallower]:
    """A proxy in front of the server on this port."""
    proxy = Swallower(port)
    try:
        yield proxy
    finally:
        proxy.close()
