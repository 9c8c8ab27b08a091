"""A proxy in front of PostgreSQL that loses commits, the answers to them, or everything for a while."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_BLOCK = 1 << 16


class Swallower:
    """Forwards every connection. Once `lose` is called, the next request with that text has no answer: its connection is closed.

    Attributes:
        answers, requests: lost answers, and requests lost before they reached the server.
        server_port: port of the server for the next connection.
    """

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        """`address` is where it listens."""
        self.server_port = port
        self._listener = socket.create_server((address, 0), backlog=128)
        self._passes = threading.Event()
        self._passes.set()
        self._stranded = threading.Event()
        """Set for the connections that exist; replaced for those to come."""
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

    def strand(self) -> None:
        """Leave the server with the connections that exist: it hears nothing on them any more, nor that they have ended."""
        self._stranded.set()
        self._stranded = threading.Event()

    def lose_no_more(self) -> None:
        """Forget what was to be lost and has not come by."""
        with self._lock:
            self._armed.clear()

    def cut(self) -> None:
        """Forward nothing in either direction, and close nothing, as a partitioned network does."""
        self._passes.clear()

    def heal(self) -> None:
        """Forward again, beginning with what was held back."""
        self._passes.set()

    @property
    def is_idle(self) -> bool:
        """Whether everything that was to be lost is."""
        return not self._armed

    def close(self) -> None:
        self._listener.close()
        self.heal()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        self._passes.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self.server_port))
        except OSError:
            _close(client)
            return
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        swallows, stranded = threading.Event(), self._stranded
        threading.Thread(target=self._answers, args=(client, server, swallows), daemon=True).start()
        self._requests(client, server, swallows, stranded)

    def _requests(self, client: socket.socket, server: socket.socket, swallows: threading.Event, stranded: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while block := client.recv(_BLOCK):
                self._passes.wait()
                if stranded.is_set():
                    break
                if (found := self._take(block)) is not None:
                    if not found:
                        self.requests += 1
                        break
                    self.answers += 1
                    swallows.set()
                server.sendall(block)
        if stranded.is_set():
            _close(client)  # `_answers` closes the other one once the server gives it up
        elif not swallows.is_set():
            _close(client, server)

    def _answers(self, client: socket.socket, server: socket.socket, swallows: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while block := server.recv(_BLOCK):
                if swallows.is_set():  # the first block of the answer: so the server has done it
                    break
                self._passes.wait()
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
def swallower(port: int, address: str = "127.0.0.1") -> Iterator[Swallower]:
    """A proxy in front of the server on this port, which listens on `address`."""
    proxy = Swallower(port, address)
    try:
        yield proxy
    finally:
        proxy.close()
