"""Turns: one thread at a time works on a file, and commits for all that wait for theirs."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from jobs_backup.errors import SpoolError

T = TypeVar("T")
_LONG_SECONDS: Final = 0.0005


class _Waiter(Generic[T]):
    """A thread that wants a turn, or that its item is committed in another's.

    Attributes:
        item: what is to be committed; None if it wants the turn for itself.
        called: released when the turn is its, or when its item was committed.
        group: once the turn is its: those whose items it commits beside its own. None before.
        error: why its item was not committed, or may not have been.
    """

    __slots__ = ("called", "error", "group", "item")

    def __init__(self, item: T | None) -> None:
        self.item = item
        self.called = threading.Lock()
        self.group: list[_Waiter[T]] | None = None
        self.error: Exception | None = None


class Turns(Generic[T]):
    """Group commit: whatever has queued up while a turn lasted is committed in the next one, so that it waits for the disk once.

    Each thread waits for a lock of its own: with a common one, all would wake up to fight for it. And the next turn is handed over
    before those are woken whose items were committed, so that they run while it waits for the disk.
    """

    def __init__(self, commit: Callable[[Sequence[T]], None], *, hint: str) -> None:
        """`commit` makes items durable, all or none; `hint` is for those whose commit was interrupted in another thread."""
        self._commit = commit
        self._hint = hint
        self._mutex = threading.Lock()
        self._is_taken = False
        self._waiting = deque[_Waiter[T]]()  # before those who commit, those who want to be alone
        self._took = 0.0  # seconds, the last commit
        self._last = 0  # how many items it had

    def commit(self, item: T) -> None:
        """Make the item durable, alone or together with others'. Raises what that raises."""
        me = _Waiter[T](item)
        try:
            self._wait(me)
            if me.group is not None:
                self._commit_group(me, me.group)
        finally:
            self._leave(me)
        if me.error is not None:
            raise copy.copy(me.error) from me.error  # the threads share it; what callers add to theirs (`recorded`) they don't

    @contextmanager
    def alone(self) -> Generator[None]:
        """A turn for something else, before all that wait to commit: else they could keep it waiting for ever."""
        me = _Waiter[T](None)
        try:
            self._wait(me)
            yield
        finally:
            self._leave(me)

    def _wait(self, me: _Waiter[T]) -> None:
        with self._mutex:
            if not self._is_taken:
                self._is_taken, me.group = True, []
                return
            me.called.acquire()
            if me.item is None:
                self._waiting.appendleft(me)
            else:
                self._waiting.append(me)
        me.called.acquire()

    def _commit_group(self, me: _Waiter[T], group: list[_Waiter[T]]) -> None:
        if self._took >= _LONG_SECONDS and self._last + len(group) > 1:
            # Those whose items were committed last may have more already. Else the threads would share in two groups, each of
            # which waits while the other's items are committed.
            time.sleep(self._took / 10)
            with self._mutex:
                self._join(group)
        error: Exception | None = None
        begun = time.monotonic()
        try:
            self._commit([one.item for one in (me, *group) if one.item is not None])
        except Exception as caught:  # noqa: BLE001  # each of the group raises it
            error = caught
        self._took, self._last = time.monotonic() - begun, len(group) + 1
        for one in (me, *group):
            one.error = error

    def _join(self, group: list[_Waiter[T]]) -> None:
        """All that wait to commit, and that come first: those who want to be alone come before."""
        while self._waiting and self._waiting[0].item is not None:
            one = self._waiting.popleft()
            one.error = SpoolError("the commit was interrupted in another thread", hint=self._hint)  # until it is done
            group.append(one)

    def _leave(self, me: _Waiter[T]) -> None:
        with self._mutex:
            if me.group is None:  # committed by another, or interrupted while it waited
                if me in self._waiting:
                    self._waiting.remove(me)
                return
            if self._waiting:
                following = self._waiting.popleft()
                following.group = []
                if following.item is not None:
                    self._join(following.group)
                following.called.release()
            else:
                self._is_taken = False
        for one in me.group:
            one.called.release()
