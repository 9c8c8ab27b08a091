"""Group commit: one thread at a time works on a file, and commits for all waiting threads."""

from __future__ import annotations

import copy
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from jobs_backup.errors import JobsBackupError
from jobs_backup.spool.errors import reentered

T = TypeVar("T")
R = TypeVar("R")
_LONG_SECONDS: Final = 0.0005
"""A commit that takes this long is worth waiting for more items."""
_LONGEST_WAIT: Final = 0.01
"""Seconds. A slow commit may have waited for something other than the disk."""


class _Waiter(Generic[T]):
    """A thread waiting for a turn, or for another thread to commit its item.

    Attributes:
        item: what to commit; None if the turn is for something else.
        shares: whether its item may be committed together with others.
        called: released when its turn comes, or when its item is committed.
        group: during its turn, the waiters whose items it commits along with its own. None before.
        is_settled: whether the outcome of its item is known: committed, or failed with `error`.
        following, has_left: who gets the next turn, and whether it was handed over.
        is_out: everyone sharing its turn was notified.
        interrupt: an exception that arrived meanwhile.
    """

    __slots__ = ("called", "error", "following", "group", "has_left", "interrupt", "is_out", "is_settled", "item", "shares")

    def __init__(self, item: T | None, *, shares: bool) -> None:
        self.item = item
        self.shares = shares
        self.called = threading.Lock()
        self.group: list[_Waiter[T]] | None = None
        self.is_settled = False
        self.error: JobsBackupError | None = None
        self.has_left = self.is_out = False
        self.interrupt: BaseException | None = None
        self.following: _Waiter[T] | None = None


class _Inside(threading.local):
    """Whether this thread is inside a call."""

    value = False


class GroupCommit(Generic[T]):
    """Commit everything that queued up during one turn in the next turn, with a single wait for the disk.

    Each thread waits on its own lock: with a shared one, all would wake up and contend for it. The next turn is handed over before
    the threads whose items were committed are woken, so they run while it waits for the disk.

    Only a JobsBackupError belongs to the whole group. Any other error (recursion limit, interrupt) belongs to the committing thread
    alone, and the others' items are committed again, one by one.
    """

    def __init__(self, commit: Callable[[Sequence[T]], None]) -> None:
        """`commit` makes items durable, all or none. It gets an item again if the outcome is unknown."""
        self._commit = commit
        self._mutex = threading.Lock()
        self._is_taken = False
        self._waiting = deque[_Waiter[T]]()  # those who want to be alone are first
        self._inside = _Inside()
        self._took = 0.0  # seconds the last commit took
        self._last = 0  # how many items it had

    def commit(self, item: T) -> None:
        """Make the item durable, alone or together with others'. Also raises whatever the commit raises.

        Raises:
            SpoolError: this thread is already inside a call.
        """
        if self._inside.value:
            raise reentered()
        try:
            self._inside.value = True
            me = _Waiter[T](item, shares=True)
            self._take_part(me, functools.partial(self._commit_group, me))
            while not me.is_settled:
                me = _Waiter[T](item, shares=False)
                self._take_part(me, functools.partial(self._commit_group, me))
        finally:
            self._inside.value = False
        if me.error is not None:
            raise copy.copy(me.error) from me.error  # the threads share it, but callers add to their own copy (`recorded`)

    def alone(self, work: Callable[[], R]) -> R:
        """Run `work` in a turn of its own, ahead of all waiting commits, which could otherwise delay it forever.

        Takes a function rather than being a context manager: an interrupt between enter and exit would keep the turn.

        Raises:
            SpoolError: this thread is already inside a call.
        """
        if self._inside.value:
            raise reentered()
        results: list[R] = []
        try:
            self._inside.value = True
            self._take_part(_Waiter[T](None, shares=False), lambda: results.append(work()))
        finally:
            self._inside.value = False
        return results[0]

    def _take_part(self, me: _Waiter[T], work: Callable[[], None]) -> None:
        """Wait for the turn and run `work`, unless another thread commits the item first."""
        try:
            self._wait(me)
            if me.group is not None:
                work()
        finally:
            # Run despite any interrupt: otherwise no thread would ever get a turn again. Inline, because entering a method can
            # be interrupted too.
            while not me.is_out:
                try:
                    self._hand_over(me)
                except BaseException as error:  # noqa: BLE001 - raised below
                    me.interrupt = error
        if me.interrupt is not None:
            raise me.interrupt

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

    def _commit_group(self, me: _Waiter[T]) -> None:
        group = me.group
        assert group is not None
        if me.shares and self._took >= _LONG_SECONDS and self._last + len(group) > 1:
            # Threads whose items were just committed may soon have more. Without the wait, threads would split into two groups that
            # take turns, each waiting out the other's commit.
            time.sleep(min(self._took / 10, _LONGEST_WAIT))
            with self._mutex:
                self._join(group)
        error: JobsBackupError | None = None
        begun = time.monotonic()
        try:
            self._commit([one.item for one in (me, *group) if one.item is not None])
        except JobsBackupError as caught:  # raised by every thread of the group
            error = caught
        except Exception:
            if not group:
                raise
            return  # not settled: each is committed alone
        self._took, self._last = time.monotonic() - begun, len(group) + 1
        for one in (me, *group):
            one.error, one.is_settled = error, True

    def _join(self, group: list[_Waiter[T]]) -> None:
        """Add the waiters at the head of the queue that can share a commit. Safe to repeat."""
        while self._waiting and self._waiting[0].shares:
            one = self._waiting[0]
            if not group or group[-1] is not one:
                group.append(one)
            self._waiting.popleft()

    def _hand_over(self, me: _Waiter[T]) -> None:
        """Hand the turn to the next waiter, then notify all that shared this one. Safe to repeat from any point."""
        with self._mutex:
            if me.group is None:  # committed by another, or interrupted while it waited
                if me in self._waiting:
                    self._waiting.remove(me)
                me.is_out = True
                return
            if me.group and self._waiting and self._waiting[0] is me.group[-1]:
                self._waiting.popleft()  # `_join` was interrupted
            if not me.has_left:
                me.following = me.following or (self._waiting[0] if self._waiting else None)
                if me.following is None:
                    self._is_taken = False
                else:
                    self._call_next(me.following)
                me.has_left = True
        for one in me.group:
            _call(one)
        me.is_out = True

    def _call_next(self, following: _Waiter[T]) -> None:
        if self._waiting and self._waiting[0] is following:
            self._waiting.popleft()
        following.group = following.group or []
        if following.shares:
            self._join(following.group)
        _call(following)


def _call(waiter: _Waiter[T]) -> None:
    """Wake a waiter. A second call is harmless: the waiter takes its lock only once."""
    if waiter.called.locked():
        waiter.called.release()
