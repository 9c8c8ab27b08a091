"""AsyncBackup and event loops: one after another, several at once, closed too early, and calls cancelled anywhere."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest
from buckets import events, file_environment, left_over

from jobs_backup import AsyncBackup, Backup, BackupClosed, Job, JobsBackupError
from jobs_backup.backup.async_backup import AsyncSession
from jobs_backup.backup.backup import session_of
from jobs_backup.spool.sqlite.spool import SqliteSpool

PATIENCE = 120
"""Seconds after which a call counts as hung, however slow the machine is."""


class Disk:
    """Commits that start when `let_go` is called.

    Attributes:
        busy: set once a commit is in progress.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.busy = threading.Event()
        self._free = threading.Event()
        append = SqliteSpool.append

        def slow(*arguments: Any) -> Any:
            self.busy.set()
            assert self._free.wait(PATIENCE)
            return append(*arguments)

        patch.setattr(SqliteSpool, "append", slow)

    def let_go(self) -> None:
        self._free.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Backup]:
    """Collect every Backup that a test opens."""
    found: list[Backup] = []
    init = Backup.__init__

    def noting(self: Backup, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        found.append(self)

    monkeypatch.setattr(Backup, "__init__", noting)
    return found


def all_closed(backups: list[Backup]) -> bool:
    """Wait until each has uploaded its events."""
    deadline = time.monotonic() + PATIENCE
    sessions = [session_of(backup) for backup in backups]
    while not all(one._closed and one._stop.is_set() for one in sessions) and time.monotonic() < deadline:
        time.sleep(0.01)
    return all(one._closed and one._stop.is_set() for one in sessions)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run in a new loop, which is closed afterwards. It must not hang."""

    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, PATIENCE)

    return asyncio.run(bounded())


async def record(backup: AsyncBackup, number: int) -> Job:
    return await backup.record(b'{"n": %d}' % number, source_id="web")


def stored(directory: Path) -> list[int]:
    return sorted(event["payload"]["n"] for event in events(directory))


def abandon(disk: Disk, first: Coroutine[Any, Any, Any], second: Coroutine[Any, Any, Any]) -> None:
    """Close a loop while its first task is in a commit and the second one has started. The tasks get no notice."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(first)]
    loop.run_until_complete(asyncio.sleep(0))
    assert disk.busy.wait(PATIENCE)
    tasks.append(loop.create_task(second))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # suppress an irrelevant warning of asyncio


def test_one_loop_after_another_with_one_object(tmp_path: Path, opened: list[Backup]) -> None:
    backup = AsyncBackup.from_env(file_environment(tmp_path))

    async def use(number: int) -> None:
        async with backup:
            await asyncio.gather(*(record(backup, number * 10 + one) for one in range(10)))

    for number in range(3):
        run(use(number))
    assert stored(tmp_path) == list(range(30))
    assert len(opened) == 3
    assert all_closed(opened)
    assert left_over(tmp_path) == []


def test_one_opening_for_loops_one_after_another(tmp_path: Path, opened: list[Backup]) -> None:
    """Opened in the first loop, used in the second, closed in the third."""
    backup = AsyncBackup.from_env(file_environment(tmp_path))
    run(backup.__aenter__())
    jobs = [run(record(backup, number)) for number in range(3)]
    run(backup.delivered(jobs))
    run(backup.flush(PATIENCE))
    run(backup.close())
    assert all_closed(opened)
    with pytest.raises(BackupClosed):
        run(record(backup, 4))


@pytest.mark.parametrize("call", ["record", "record_many", "delivered", "flush", "close"])
def test_a_loop_that_is_closed_with_a_commit_under_way(
    tmp_path: Path, disk: Disk, opened: list[Backup], caplog: pytest.LogCaptureFixture, call: str
) -> None:
    backup = AsyncBackup.from_env(file_environment(tmp_path))
    run(backup.__aenter__())
    calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "record": lambda: record(backup, 2),
        "record_many": lambda: backup.record_many([{"n": 2}], source_id="web"),
        "delivered": lambda: backup.delivered([]),
        "flush": backup.flush,
        "close": backup.close,
    }
    abandon(disk, record(backup, 1), calls[call]())
    disk.let_go()
    if call == "close":
        run(backup.close())
        run(backup.__aenter__())
    run(record(backup, 3))
    run(backup.close())
    assert all_closed(opened)
    assert {3} <= set(stored(tmp_path)) <= {1, 2, 3}
    assert len(stored(tmp_path)) == len(set(stored(tmp_path)))
    assert [one for one in caplog.records if one.name.startswith("concurrent") or one.levelno >= logging.ERROR] == []


def test_loops_in_threads_share_one(tmp_path: Path, opened: list[Backup]) -> None:
    backup = AsyncBackup.from_env(file_environment(tmp_path))
    run(backup.__aenter__())
    jobs: list[list[Job]] = [[] for _ in range(4)]

    async def work(number: int) -> None:
        for some in range(10):
            jobs[number] += await asyncio.gather(*(record(backup, number * 100 + some * 10 + one) for one in range(10)))
        await backup.flush(PATIENCE)

    threads = [threading.Thread(target=lambda number=number: run(work(number))) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(backup.close())
    assert len({job for some in jobs for job in some}) == 400
    assert stored(tmp_path) == list(range(400))
    assert all_closed(opened)


def test_closed_by_one_loop_while_others_record(tmp_path: Path) -> None:
    backup = AsyncBackup.from_env(file_environment(tmp_path))
    for _ in range(5):
        run(backup.__aenter__())
        recorded, ready, numbers = set[int](), threading.Barrier(4), itertools.count(len(events(tmp_path)) * 1000)

        async def work(ready: threading.Barrier, numbers: itertools.count[int], recorded: set[int]) -> None:
            await asyncio.to_thread(ready.wait)

            async def record_on() -> None:
                for number in numbers:
                    await record(backup, number)
                    recorded.add(number)

            with pytest.raises(BackupClosed):
                await record_on()

        threads = [threading.Thread(target=lambda: run(work(ready, numbers, recorded))) for _ in range(3)]  # noqa: B023 - joined below
        for thread in threads:
            thread.start()
        ready.wait()
        run(backup.close())
        for thread in threads:
            thread.join()
        assert recorded <= set(stored(tmp_path))


def test_opened_twice(tmp_path: Path, opened: list[Backup]) -> None:
    backup = AsyncBackup.from_env(file_environment(tmp_path))

    async def use() -> None:
        async with backup:
            with pytest.raises(JobsBackupError, match="already open") as caught:
                async with backup:
                    raise AssertionError("not reached")
            assert "share it" in caught.value.hint
            await record(backup, 1)

    run(use())
    assert stored(tmp_path) == [1]
    assert len(opened) == 1


def test_closing_that_was_cancelled_and_opened_again(tmp_path: Path, opened: list[Backup], monkeypatch: pytest.MonkeyPatch) -> None:
    close, may_close = Backup.close, threading.Event()

    def slow(self: Backup, *arguments: Any) -> None:
        assert may_close.wait(PATIENCE)
        close(self, *arguments)

    monkeypatch.setattr(Backup, "close", slow)
    backup = AsyncBackup.from_env(file_environment(tmp_path))

    async def use() -> None:
        for number in range(3):
            await backup.__aenter__()
            await record(backup, number)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(backup.close(), 0.01)
            with pytest.raises(BackupClosed):
                await record(backup, -1)
        may_close.set()
        await backup.close()

    run(use())
    assert len(opened) == 3
    assert all_closed(opened)
    assert stored(tmp_path) == [0, 1, 2]


async def cancelled_at(coroutine: Coroutine[Any, Any, Any], place: int) -> bool:
    """Run this and cancel it at its n-th wait. False if it has fewer waits."""

    @types.coroutine
    def drive() -> Generator[Any, Any, bool]:
        try:
            for _ in range(place):
                yield coroutine.send(None)
            coroutine.send(None)
        except StopIteration:
            return False
        try:
            coroutine.throw(asyncio.CancelledError())
        except (StopIteration, asyncio.CancelledError):
            return True
        raise AssertionError("it waits after it was cancelled")

    return await drive()


@pytest.mark.parametrize(
    "call", ["record", "record_many", "record_many of a stream", "delivered", "failed", "flush", "close", "open"]
)
def test_cancelled_at_each_await(tmp_path: Path, opened: list[Backup], call: str) -> None:
    backup = AsyncBackup.from_env(file_environment(tmp_path))

    async def stream() -> Any:
        for number in range(1500):
            yield {"n": -number}

    async def use(place: int) -> bool:
        await backup.__aenter__()
        job = await record(backup, place)
        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "record": lambda: backup.record({"n": -1}, source_id="web"),
            "record_many": lambda: backup.record_many([{"n": -1}], source_id="web"),
            "record_many of a stream": lambda: backup.record_many(stream(), source_id="web"),
            "delivered": lambda: backup.delivered(job),
            "failed": lambda: backup.failed(job, error="no", payload={"n": -1}),
            "flush": backup.flush,
            "close": backup.close,
            "open": lambda: AsyncBackup.from_env(file_environment(tmp_path)).__aenter__(),
        }
        was_cancelled = await cancelled_at(calls[call](), place)
        if call == "close":
            await backup.__aenter__()
        await record(backup, place + 1000)
        await backup.flush(PATIENCE)
        await backup.close()
        return was_cancelled

    places = 0
    while run(use(places)):
        places += 1
    assert places >= 1, "it never waits"
    assert all_closed(opened if call != "open" else opened[:-1])
    for backup_of_test in opened:
        backup_of_test.close()
    assert set(stored(tmp_path)) >= {number for place in range(places) for number in (place, place + 1000)} or call == "delivered"


def test_one_that_is_lent_stays_open_when_its_opening_is_cancelled(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as lent:
        for place in range(3):
            run(cancelled_at(AsyncSession(session_of(lent)).__aenter__(), place))
        lent.record({"n": 1}, source_id="web")
    assert stored(tmp_path) == [1]
