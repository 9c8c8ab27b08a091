"""Group commit: which thread commits for which, how long threads wait, and what an interrupt does to them."""

from __future__ import annotations

import linecache
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import pytest

from jobs_backup.errors import SpoolError
from jobs_backup.spool.group_commit import GroupCommit


class Disk:
    """Commits, as slowly as configured. `groups` lists the items of each commit."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.groups: list[list[int]] = []
        self.seconds = seconds
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: BaseException | None = None

    def commit(self, items: Sequence[int]) -> None:
        self.begun.set()
        self.go_on.wait()
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.groups.append(list(items))


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def turns(disk: Disk) -> GroupCommit[int]:
    return GroupCommit(disk.commit)


def wait_for(turns: GroupCommit[int], waiting: int) -> None:
    until = time.monotonic() + 120
    while len(turns._waiting) < waiting:
        assert time.monotonic() < until
        time.sleep(0.001)


def start(turns: GroupCommit[int], *items: int, errors: list[BaseException] | None = None) -> list[threading.Thread]:
    """Start a thread for each item, one after another."""

    def work(item: int) -> None:
        try:
            turns.commit(item)
        except (SpoolError, KeyboardInterrupt, RecursionError, MemoryError, TypeError) as error:
            assert errors is not None
            errors.append(error)

    threads = []
    for item in items:
        threads.append(threading.Thread(target=work, args=(item,), daemon=True))
        waiting = len(turns._waiting) + turns._is_taken
        threads[-1].start()
        wait_for(turns, waiting)
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


def test_what_queues_up_during_a_commit_shares_the_next_one(turns: GroupCommit[int], disk: Disk) -> None:
    disk.go_on.clear()
    threads = start(turns, 0)
    disk.begun.wait()
    threads += start(turns, 1, 2, 3, 4)
    disk.go_on.set()
    join(threads)
    assert disk.groups == [[0], [1, 2, 3, 4]]
    turns.commit(5)
    assert disk.groups[-1] == [5]


def test_who_wants_to_be_alone_comes_before_all_that_wait_to_commit(turns: GroupCommit[int], disk: Disk) -> None:
    disk.go_on.clear()
    threads = start(turns, 0)
    disk.begun.wait()
    threads += start(turns, 1, 2)

    def alone() -> None:
        def work() -> None:
            disk.groups.append([])
            time.sleep(0.05)
            disk.groups.append([])

        turns.alone(work)

    threads.append(threading.Thread(target=alone))
    threads[-1].start()
    wait_for(turns, 3)
    disk.go_on.set()
    join(threads)
    assert disk.groups == [[0], [], [], [1, 2]]


def test_an_error_is_everybodys_and_the_next_commit_works(turns: GroupCommit[int], disk: Disk) -> None:
    disk.go_on.clear()
    errors: list[BaseException] = []
    threads = start(turns, 0, errors=errors)
    disk.begun.wait()
    threads += start(turns, 1, 2, errors=errors)
    disk.error = SpoolError("no")
    disk.go_on.set()
    join(threads)
    assert [str(error) for error in errors] == ["no"] * 3
    assert len(set(map(id, errors))) == 3
    disk.error = None
    turns.commit(3)
    assert disk.groups == [[3]]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RecursionError, MemoryError, TypeError])
def test_what_the_committing_thread_meets_is_its_own(
    turns: GroupCommit[int], disk: Disk, interruption: type[BaseException]
) -> None:
    disk.go_on.clear()
    errors: list[BaseException] = []
    threads = start(turns, 0, errors=errors)
    disk.begun.wait()
    threads += start(turns, 1, 2, 3, errors=errors)
    leader = threads[1].ident

    def interrupt(items: Sequence[int]) -> None:
        if threading.get_ident() == leader:
            raise interruption
        disk.commit(items)

    turns._commit = interrupt
    disk.go_on.set()
    join(threads)
    assert [type(error) for error in errors] == [interruption], "it alone"
    assert sorted(disk.groups) == [[0], [2], [3]], "each alone, since it is not known what became of them"
    turns.commit(4)
    assert disk.groups[-1] == [4]


@pytest.mark.parametrize("first", ["commit", "alone"])
@pytest.mark.parametrize("second", ["commit", "alone"])
def test_a_call_within_a_call_is_refused_at_once(turns: GroupCommit[int], disk: Disk, first: str, second: str) -> None:
    calls: dict[str, Any] = {"commit": lambda: turns.commit(9), "alone": lambda: turns.alone(lambda: None)}

    def again(*_: object) -> None:
        with pytest.raises(SpoolError, match="within another call"):
            calls[second]()

    if first == "commit":
        turns._commit = again
        turns.commit(1)
    else:
        turns.alone(again)
    turns._commit = disk.commit
    turns.commit(2)
    assert disk.groups == [[2]]


@pytest.mark.parametrize("line", range(60))
def test_who_is_interrupted_while_it_hands_over_keeps_nobody_waiting(turns: GroupCommit[int], disk: Disk, line: int) -> None:
    """At each line from the end of a commit on, as Ctrl-C does."""
    disk.go_on.clear()
    errors: list[BaseException] = []
    left = [line]

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        # Not where a lock is released: Python handles no signal between the end of a block and that.
        is_with = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith("with ")
        if event == "line" and not is_with and frame.f_code.co_name in ("_hand_over", "_call_next", "_join", "_call"):
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
        return interrupt

    def first() -> None:
        sys.settrace(interrupt)
        try:
            turns.commit(0)
        except KeyboardInterrupt as error:
            errors.append(error)
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=first, daemon=True)]
    threads[0].start()
    disk.begun.wait()
    threads += start(turns, 1, 2, 3)
    disk.go_on.set()
    join(threads)
    assert sorted(item for group in disk.groups for item in group) == [0, 1, 2, 3]
    assert len(errors) == (left[0] < 0)
    turns.commit(4)
    turns.alone(lambda: None)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["who would commit", "one in the middle", "the last one"])
def test_who_is_interrupted_while_it_waits_keeps_nobody_waiting(turns: GroupCommit[int], disk: Disk, place: int) -> None:
    disk.go_on.clear()
    errors: list[BaseException] = []
    threads = start(turns, 0, errors=errors)
    disk.begun.wait()
    threads += start(turns, 1, 2, 3, errors=errors)
    # Interrupt its wait as a signal would: the lock's `acquire` raises in that thread.
    waiter = turns._waiting[place]
    turns._hand_over(waiter)
    disk.go_on.set()
    rest = [thread for index, thread in enumerate(threads) if index != place + 1]
    join(rest)
    assert disk.groups == [[0], [item for item in (1, 2, 3) if item != place + 1]]
    waiter.called.release()  # ends that thread
    join(threads)
    turns.commit(4)
    assert disk.groups[-1] == [4]
    assert not errors


def test_where_commits_take_long_all_threads_share_them() -> None:
    """Without a short wait they would form two groups of half of them: threads that just committed miss the next group."""
    disk = Disk(0.02)
    turns = GroupCommit(disk.commit)

    def work() -> None:
        for item in range(10):
            turns.commit(item)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    join(threads)
    assert sum(map(len, disk.groups)) == 80
    assert sorted(map(len, disk.groups))[len(disk.groups) // 2] > 6, disk.groups


def test_a_single_thread_never_waits_for_others() -> None:
    disk = Disk(0.01)
    turns = GroupCommit(disk.commit)
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs_backup.spool.group_commit.time.sleep", slept.append)
        for item in range(5):
            turns.commit(item)
    assert slept == [0.01] * 5  # the disk's own time
