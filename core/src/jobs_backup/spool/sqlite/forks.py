"""A lock that forks wait for: what a thread does while it holds it is either not begun or complete in a child."""

from __future__ import annotations

import threading
from contextlib import suppress


class ForkLock:
    """The lock, and the hooks that take it around a fork.

    The thread that holds it can take it again, so a signal handler may fork wherever it has interrupted that thread.

    Attributes:
        lock: to be entered with `with`.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget who holds it, in a child, where only the thread that forked exists.

        Any thread may have held it if a program that embeds Python forks and notifies Python only afterwards, as uWSGI does.
        """
        self.lock = threading.RLock()

    def begin_fork(self) -> None:
        """Take the lock."""
        self.lock.acquire()

    def end_fork(self) -> None:
        """Release the lock."""
        with suppress(RuntimeError):  # an interrupt arrived before it was taken
            self.lock.release()
