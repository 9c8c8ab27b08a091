"""What requests take of the memory: counted by what comes of them, bounded for all together."""

from __future__ import annotations

import threading
from typing import Final

from jobs_backup.inputs.http.answers import Refused

_WAIT: Final = 1.0
"""Seconds, until there may be room."""
MEMBER_BYTES: Final = 256
"""What an event, an id or a failure takes beside its own bytes: views, objects, a place in lists, its id in the answer."""


class Memory:
    """Bytes that all requests in flight may take. Any thread may use it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self.taken = 0

    def share(self) -> Share:
        """A request's share: nothing yet."""
        return Share(self)

    def take(self, size: int, held: int) -> None:
        """Take more for one that holds `held`. Raises Refused (503): others leave too little."""
        with self._lock:
            if self.taken + size > self._most and self.taken > held:  # alone it may exceed it: other settings bound a request
                hint = "come again; the server's JOBS_BACKUP_SERVER_MAX_PENDING"
                raise Refused(503, "Busy", "the server has too many requests in memory", hint=hint, retry_after=_WAIT)
            self.taken += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self.taken -= size


class Share:
    """What one request takes, until it has been answered."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._bytes = 0
        self._is_released = False

    def need(self, size: int) -> None:
        """Have at least so many bytes. Raises Refused (503)."""
        if self._is_released:  # a thread goes on with a request that was given up
            raise Refused(503, "Busy", "the request was given up")
        if size > self._bytes:
            self._memory.take(size - self._bytes, self._bytes)
            self._bytes = size

    def release(self) -> None:
        """Give everything back."""
        self._is_released = True
        self._memory.give_back(self._bytes)
        self._bytes = 0
