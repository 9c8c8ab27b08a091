"""Standard output for a reader that may be slow, or may close it."""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Callable
from typing import Final

_STANDARD_OUTPUT: Final = 1
_FILE_BLOCK: Final = 1 << 20
_LOOK: Final = 0.2


class Output:
    """Writes data completely, bypassing Python's buffers. Once `stop` is set, it continues for at most `grace` seconds."""

    def __init__(self, stop: threading.Event, grace: float, unwritten: Callable[[str, int], Exception]) -> None:
        """`unwritten` makes the error from a reason and the number of bytes that a call has written."""
        self.is_closed = False
        """Whether the reader has closed it."""
        self._stop = stop
        self._grace = grace
        self._until = float("inf")
        self._unwritten = unwritten
        # A pipe accepts this many bytes without blocking if `select` reports it writable (pipe(7)).
        self._at_once = _FILE_BLOCK if _is_file(_STANDARD_OUTPUT) else select.PIPE_BUF

    def write(self, data: bytes) -> None:
        """Write all of it. Raises the error made by `unwritten` if that fails, or the reader is too slow."""
        left = memoryview(data)

        def unwritten(why: str) -> Exception:
            return self._unwritten(why, len(data) - len(left))

        while left:
            if self._stop.is_set():
                self._until = min(self._until, time.monotonic() + self._grace)
            if time.monotonic() > self._until:
                raise unwritten("the reader is too slow")
            try:
                if select.select([], [_STANDARD_OUTPUT], [], _LOOK)[1]:
                    left = left[os.write(_STANDARD_OUTPUT, left[: self._at_once]) :]
            except BlockingIOError:
                continue  # another process has filled it
            except BrokenPipeError:
                self.is_closed = True
                raise unwritten("output closed early") from None
            except OSError as error:
                raise unwritten(error.strerror or type(error).__name__) from None


def _is_file(descriptor: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False  # it is closed, which writing will report
