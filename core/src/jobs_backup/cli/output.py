"""Standard output that somebody reads who may be slow, or may go away."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from typing import Final

from jobs_backup.errors import JobsBackupError

_AT_ONCE: Final = select.PIPE_BUF
"""Bytes. So much is taken without waiting where `select` says that something can be written (pipe(7))."""
_LOOK: Final = 0.2


class LineWriter:
    """Writes whole, whatever buffers Python has. Once `stop` is set, it waits at most `grace` seconds for its reader."""

    def __init__(self, stop: threading.Event, grace: float) -> None:
        self._stop = stop
        self._grace = grace
        self._until = float("inf")
        self._descriptor = sys.stdout.fileno()

    def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            JobsBackupError: it can't be written, or is not read in time.
        """
        left = memoryview(data)
        while left:
            if self._stop.is_set():
                self._until = min(self._until, time.monotonic() + self._grace)
            if time.monotonic() > self._until:
                raise _unread("they are not read fast enough")
            try:
                if select.select([], [self._descriptor], [], _LOOK)[1]:
                    left = left[os.write(self._descriptor, left[:_AT_ONCE]) :]
            except BlockingIOError:
                continue  # somebody else has filled it
            except BrokenPipeError:
                raise _unread("nobody reads them any more") from None
            except OSError as error:
                raise _unread(error.strerror or type(error).__name__) from None


def _unread(why: str) -> JobsBackupError:
    return JobsBackupError(
        f"not all job ids were printed: {why}", hint="what was recorded until then is safe, and its object stays"
    )
