"""Standard output that somebody reads who may be slow, or may go away."""

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
    """Writes whole, whatever buffers Python has. Once `stop` is set, it goes on for at most `grace` seconds."""

    def __init__(self, stop: threading.Event, grace: float, unwritten: Callable[[str, int], Exception]) -> None:
        """`unwritten` makes the error, of the reason and of how many bytes of a call were written."""
        self.is_closed = False
        """Whether its reader has closed it."""
        self._stop = stop
        self._grace = grace
        self._until = float("inf")
        self._unwritten = unwritten
        # Of a pipe, so much is taken without waiting where `select` says that something can be written (pipe(7)).
        self._at_once = _FILE_BLOCK if _is_file(_STANDARD_OUTPUT) else select.PIPE_BUF

    def write(self, data: bytes) -> None:
        """Write all of it. Raises what `unwritten` makes where it can't be written, or is not read in time."""
        left = memoryview(data)

        def unwritten(why: str) -> Exception:
            return self._unwritten(why, len(data) - len(left))

        while left:
            if self._stop.is_set():
                self._until = min(self._until, time.monotonic() + self._grace)
            if time.monotonic() > self._until:
                raise unwritten("they are not read fast enough")
            try:
                if select.select([], [_STANDARD_OUTPUT], [], _LOOK)[1]:
                    left = left[os.write(_STANDARD_OUTPUT, left[: self._at_once]) :]
            except BlockingIOError:
                continue  # somebody else has filled it
            except BrokenPipeError:
                self.is_closed = True
                raise unwritten("nobody reads them any more") from None
            except OSError as error:
                raise unwritten(error.strerror or type(error).__name__) from None


def _is_file(descriptor: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False  # it is closed: writing tells
