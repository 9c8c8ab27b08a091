"""Memory of requests: counted by what they expand to, and limited for all together."""

from __future__ import annotations

import threading
from typing import Final

from jobs_backup.inputs.http.responses import HttpError

_WAIT: Final = 1.0
"""Seconds until there may be room."""
MEMBER_BYTES: Final = 256
"""Bytes that an event, an id or a failure takes besides its own: views, objects, list entries, its id in the answer."""


class Memory:
    """Bytes that all requests in flight may take. Any thread may use it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self.taken = 0

    def share(self) -> Share:
        """A request's share: empty at first."""
        return Share(self)

    def take(self, size: int, held: int) -> None:
        """Take more for a request that holds `held`. Raises Refused (503) if others leave too little."""
        with self._lock:
            if self.taken + size > self._most and self.taken > held:  # a lone request may exceed it: other settings limit a request
                hint = "retry later; the limit is the server's JOBS_BACKUP_SERVER_MAX_PENDING"
                raise HttpError(503, "Busy", "the server has too many requests in memory", hint=hint, retry_after=_WAIT)
            self.taken += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self.taken -= size


class Share:
    """What one request takes, until it is answered."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._bytes = 0
        self._is_released = False

    def need(self, size: int) -> None:
        """Hold at least `size` bytes. Raises Refused (503)."""
        if self._is_released:  # a thread continues with an abandoned request
            raise HttpError(503, "Busy", "the request was abandoned")
        if size > self._bytes:
            self._memory.take(size - self._bytes, self._bytes)
            self._bytes = size

    def release(self) -> None:
        """Give everything back."""
        self._is_released = True
        self._memory.give_back(self._bytes)
        self._bytes = 0
