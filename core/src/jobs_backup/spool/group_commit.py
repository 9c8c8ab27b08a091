"""Turns: one thread at a time works on a file, and commits for all that wait for theirs."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from jobs_backup.errors import JobsBackupError
from jobs_backup.spool.sqlite.database import reentered

T = TypeVar("T")
R = TypeVar("R")
_LONG_SECONDS: Final = 0.0005
"""A commit that took so long is worth a wait for more."""
_LONGEST_WAIT: Final = 0.01
"""Seconds. A commit may have waited for something else than the disk."""


class _Waiter(Generic[T]):
    """A thread that wants a turn, or that its item is committed in another's.

    Attributes:
        item: what is to be committed; None if it wants the turn for something else.
        shares: whether its item may be committed together with others.
        called: released when the turn is its, or when its item was committed.
        group: once the turn is its: those whose items it commits beside its own. None before.
        is_settled: whether it is known what became of its item: it was committed, or `error` tells why not.
        following, has_left: to whom it has given the turn, and whether that is done.
        is_out: all that share its turn know.
        interrupt: what came meanwhile.
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
    """Whether this thread is within a call."""

    value = False


class GroupCommit(Generic[T]):
    """Group commit: whatever has queued up while a turn lasted is committed in the next one, so that it waits for the disk once.

    Each thread waits for a lock of its own: with a common one, all would wake up to fight for it. And the next turn is handed over
    before those are woken whose items were committed, so that they run while it waits for the disk.

    What a thread meets that commits for others is its own: only a JobsBackupError is the commit's, and so everybody's. After
    anything else (too deep a recursion, an interrupt) the others' items are committed again, each alone.
    """

    def __init__(self, commit: Callable[[Sequence[T]], None]) -> None:
        """`commit` makes items durable, all or none. It gets an item again where it is not known whether it did."""
        self._commit = commit
        self._mutex = threading.Lock()
        self._is_taken = False
        self._waiting = deque[_Waiter[T]]()  # those who want to be alone come first
        self._inside = _Inside()
        self._took = 0.0  # seconds, the last commit
        self._last = 0  # how many items it had

    def commit(self, item: T) -> None:
        """Make the item durable, alone or together with others'. Raises what that raises.

        Raises:
            SpoolError: this thread is within a call already.
        """
        if self._inside.value:
            raise reentered()
        try:
            self._inside.value = True
            me = _Waiter[T](item, shares=True)
            self._take_part(me, lambda: self._commit_group(me))
            while not me.is_settled:
                me = _Waiter[T](item, shares=False)
                self._take_part(me, lambda: self._commit_group(me))  # noqa: B023 - called at once
        finally:
            self._inside.value = False
        if me.error is not None:
            raise copy.copy(me.error) from me.error  # the threads share it; what callers add to theirs (`recorded`) they don't

    def alone(self, work: Callable[[], R]) -> R:
        """A turn for something else, before all that wait to commit: else they could keep it waiting for ever.

        It takes a function and is no context manager: an interrupt between the two halves of one would keep the turn.

        Raises:
            SpoolError: this thread is within a call already.
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
        """Wait for the turn, and work then; or until another thread has committed the item."""
        try:
            self._wait(me)
            if me.group is not None:
                work()
        finally:
            # Whatever interrupts it: otherwise nobody would ever have a turn again. No method: its entry could be interrupted, too.
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
            # Those whose items were committed last may have more already. Else the threads would share in two groups, each of
            # which waits while the other's items are committed.
            time.sleep(min(self._took / 10, _LONGEST_WAIT))
            with self._mutex:
                self._join(group)
        error: JobsBackupError | None = None
        begun = time.monotonic()
        try:
            self._commit([one.item for one in (me, *group) if one.item is not None])
        except JobsBackupError as caught:  # each of the group raises it
            error = caught
        except Exception:
            if not group:
                raise
            return  # not settled: each is committed alone
        self._took, self._last = time.monotonic() - begun, len(group) + 1
        for one in (me, *group):
            one.error, one.is_settled = error, True

    def _join(self, group: list[_Waiter[T]]) -> None:
        """All that wait to commit together with others, and that come first. May be repeated."""
        while self._waiting and self._waiting[0].shares:
            one = self._waiting[0]
            if not group or group[-1] is not one:
                group.append(one)
            self._waiting.popleft()

    def _hand_over(self, me: _Waiter[T]) -> None:
        """The turn to the next one, and then news to all that shared this one. May be repeated, from anywhere."""
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
    """Again is once too often, and does no harm: the waiter takes its lock no second time."""
    if waiter.called.locked():
        waiter.called.release()
