"""The asyncio API: the promises of Backup, and an event loop that is never blocked."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from buckets import FAST_RETRY, events, file_environment, left_over, objects
from spools import archiver_of

from jobs_backup import (
    AsyncBackup,
    Backup,
    BackupClosed,
    ConfigurationError,
    Event,
    InvalidEvent,
    Job,
    StorePaused,
    UnknownJob,
)
from jobs_backup.backup.backup import session_of
from jobs_backup.spool.sqlite.spool import SqliteSpool


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test."""

    def run(**arguments: object) -> None:
        asyncio.run(test(**arguments), debug=False)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run


async def numbers(count: int) -> AsyncIterator[dict[str, int]]:
    for number in range(count):
        if number % 100 == 0:
            await asyncio.sleep(0)
        yield {"n": number}


async def deleted(backup: AsyncBackup, directory: Path) -> None:
    deadline = time.monotonic() + 120
    while objects(directory) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert objects(directory) == {}


class Heartbeat:
    """Counts the loop's iterations."""

    def __init__(self) -> None:
        self.beats = 0

    def wait(self) -> None:
        """Wait until the loop has advanced. Call it in another thread: in the loop's own it would fail."""
        before, until = self.beats, time.monotonic() + 120
        while self.beats == before:
            assert time.monotonic() < until, "the loop is held up"
            time.sleep(0.005)

    async def __aenter__(self) -> Heartbeat:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.005)
            self.beats += 1


@asynchronous
async def test_an_event_from_its_recording_to_its_deletion(tmp_path: Path) -> None:
    async with AsyncBackup.from_env(file_environment(tmp_path)) as backup:
        job = await backup.record(b'{"n": 1.10}', source_id="web", workspace_id="ws")
        assert isinstance(job, Job)
        await backup.flush(timeout=120)
        assert [event["payload"] for event in events(tmp_path)] == [{"n": 1.1}]
        await backup.delivered(job)
        await deleted(backup, tmp_path)
        await backup.failed(job, error=ValueError("no"), payload={"final": 1}, destination_id="d")
        await backup.flush()
        (event,) = events(tmp_path)
        assert (event["jobId"], event["error"]["code"]) == (str(job), "ValueError")
    assert left_over(tmp_path) == []


@asynchronous
async def test_what_was_recorded_survives_a_kill(tmp_path: Path) -> None:
    script = (
        "import asyncio, json, os, sys\n"
        "from jobs_backup import AsyncBackup\n"
        "async def main():\n"
        "    async with AsyncBackup.from_env(json.loads(sys.argv[1]), archive=False) as backup:\n"
        "        jobs = await asyncio.gather(*(backup.record({'n': n}, source_id='web') for n in range(200)))\n"
        "        await asyncio.gather(*(backup.delivered(job) for job in jobs[:100]))\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    environment = file_environment(tmp_path)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, json.dumps(environment))
    assert await process.wait() == -9
    async with AsyncBackup.from_env(environment) as backup:
        deadline = time.monotonic() + 120
        while len(objects(tmp_path)) < 1 and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert sorted(event["payload"]["n"] for event in events(tmp_path)) == list(range(200))
        with pytest.raises(UnknownJob):
            await backup.delivered(12)


@asynchronous
async def test_many_events_from_anything_that_can_be_iterated(tmp_path: Path) -> None:
    async with AsyncBackup.from_env(file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="1000")) as backup:
        one = await backup.record_many(numbers(2500), source_id="web")
        other = await backup.record_many([{"n": number} for number in range(2500, 3000)], source_id="web")
        third = await backup.record_many(Event(payload={"n": n}, source_id="ios") for n in range(3000, 3100))
        assert (len(one), len(other), len(third)) == (2500, 500, 100)
        assert len({*one, *other, *third}) == 3100
        await backup.flush(120)
        assert sorted(event["payload"]["n"] for event in events(tmp_path)) == list(range(3100))
        await asyncio.gather(backup.delivered(one), backup.delivered(other), backup.delivered(third))
        await deleted(backup, tmp_path)


@asynchronous
async def test_an_invalid_payload_is_named_and_those_before_it_are_recorded(tmp_path: Path) -> None:
    async def payloads() -> AsyncIterator[bytes]:
        for number in range(2700):
            yield b'{"n":%d}' % number if number != 2600 else b"[]"

    async with AsyncBackup.from_env(file_environment(tmp_path)) as backup:
        with pytest.raises(InvalidEvent) as caught:
            await backup.record_many(payloads(), source_id="web")
        assert (caught.value.index, len(caught.value.recorded)) == (2600, 2600)
        await backup.delivered(caught.value.recorded)
    assert len(events(tmp_path)) in (0, 2600)


@asynchronous
async def test_what_is_no_payload_is_named(tmp_path: Path) -> None:
    async def payloads() -> AsyncIterator[Any]:
        yield b"{}"
        yield 7

    wrong: list[Any] = [None, 7, ["x"]]
    async with AsyncBackup.from_env(file_environment(tmp_path)) as backup:
        for one in wrong:
            with pytest.raises(InvalidEvent):
                await backup.record(one, source_id="web")
        for many in (payloads(), iter([b"{}", 7])):
            with pytest.raises(InvalidEvent) as caught:
                await backup.record_many(cast(Any, many), source_id="web")
            assert (caught.value.index, len(caught.value.recorded)) == (1, 1)


@asynchronous
async def test_the_loop_goes_on_while_the_disk_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, acknowledge, heart, calls = SqliteSpool.append, SqliteSpool.delivered, Heartbeat(), Counter[str]()

    def slow(*arguments: Any) -> Any:
        calls["append"] += 1
        heart.wait()
        return append(*arguments)

    def slow_too(*arguments: Any) -> Any:
        calls["acknowledge"] += 1
        heart.wait()
        return acknowledge(*arguments)

    monkeypatch.setattr(SqliteSpool, "append", slow)
    monkeypatch.setattr(SqliteSpool, "delivered", slow_too)
    async with AsyncBackup.from_env(file_environment(tmp_path)) as backup, heart:
        jobs = await asyncio.gather(*(backup.record({"n": n}, source_id="web") for n in range(8)))
        await asyncio.gather(*(backup.delivered(job) for job in jobs))
        await backup.failed(jobs[0], error="no", payload={})
        await backup.flush(120)
    assert calls["append"] > 0
    assert calls["acknowledge"] > 0


@asynchronous
async def test_flush_does_not_hold_up_what_is_recorded_meanwhile(tmp_path: Path) -> None:
    """More flushes than threads; none of them ends before the bucket exists."""
    environment = file_environment(tmp_path, **FAST_RETRY)
    (tmp_path / "bucket").rmdir()
    async with AsyncBackup.from_env(environment) as backup:
        await backup.record({"n": 0}, source_id="web")
        with pytest.raises(StorePaused):
            await backup.flush(120)
    async with AsyncBackup.from_env(environment, archive=False) as recorder, AsyncBackup.from_env(environment) as other:
        archiver_of(other._opened().backup).stop(5)  # alive, but uploads nothing
        await recorder.record({"n": 1}, source_id="web")
        flushes = [asyncio.create_task(recorder.flush(10)) for _ in range(40)]
        await asyncio.sleep(0.1)
        await recorder.record({"n": 2}, source_id="web")
        assert not any(flush.done() for flush in flushes)
        found = await asyncio.gather(*flushes, return_exceptions=True)
        assert {type(error) for error in found} == {TimeoutError}


@asynchronous
async def test_flush_waits_for_what_was_recorded_before_it_and_for_nothing_else(tmp_path: Path) -> None:
    async with AsyncBackup.from_env(file_environment(tmp_path)) as backup:
        stop = asyncio.Event()

        async def record() -> None:
            while not stop.is_set():
                await backup.record({}, source_id="busy")

        busy = asyncio.create_task(record())
        for _ in range(5):
            await backup.record({}, source_id="web")
            await asyncio.wait_for(backup.flush(), 120)
            assert not busy.done()
        stop.set()
        await busy


@asynchronous
async def test_a_call_that_is_given_up_harms_no_other(tmp_path: Path) -> None:
    async with AsyncBackup.from_env(file_environment(tmp_path)) as backup:
        tasks = [asyncio.create_task(backup.record({"n": n}, source_id="web")) for n in range(50)]
        await asyncio.sleep(0.001)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        await backup.flush(120)
    stored = {event["payload"]["n"] for event in events(tmp_path)}
    assert stored >= {n for n, one in enumerate(done) if isinstance(one, Job)}


@asynchronous
async def test_closed_and_not_opened(tmp_path: Path) -> None:
    backup = AsyncBackup.from_env(file_environment(tmp_path))
    with pytest.raises(BackupClosed) as caught:
        await backup.record({}, source_id="web")
    assert "async with" in caught.value.hint
    async with backup:
        await backup.record({}, source_id="web")
    for call in (backup.record({}, source_id="web"), backup.delivered(1), backup.flush(1), backup.record_many([], source_id="w")):
        with pytest.raises(BackupClosed):
            await call
    await backup.close()
    async with backup:
        await backup.record({}, source_id="web")
    assert len(events(tmp_path)) == 2


@asynchronous
async def test_to_close_needs_no_thread_of_the_others_and_goes_on_when_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = SqliteSpool.append

    def slow(*arguments: Any) -> Any:
        time.sleep(0.5)
        return append(*arguments)

    backup = AsyncBackup.from_env(file_environment(tmp_path))
    await backup.__aenter__()
    inner = backup._opened().backup
    await backup.record({"n": 0}, source_id="web")
    monkeypatch.setattr(SqliteSpool, "append", slow)
    calls = [asyncio.create_task(backup.record({"n": n}, source_id="web")) for n in range(1, 65)]
    await asyncio.sleep(0.05)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(backup.close(), 0.001)
    await backup.close()
    assert session_of(inner)._closed
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, (Job, BackupClosed)) for one in outcomes)
    assert {event["payload"]["n"] for event in events(tmp_path)} >= {0}
    with pytest.raises(BackupClosed):
        await backup.record({}, source_id="web")


@asynchronous
async def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="JOBS_BACKUP_BUCKET"):
        async with AsyncBackup.from_env({"JOBS_BACKUP_STORAGE_PROVIDER": "FILE", "JOBS_BACKUP_SPOOL_DIR": str(tmp_path)}):
            pass


@asynchronous
async def test_given_up_while_it_is_opened_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Backup] = []
    init = Backup.__init__

    def slow(self: Backup, *arguments: Any, **options: Any) -> None:
        time.sleep(0.2)
        init(self, *arguments, **options)
        opened.append(self)

    monkeypatch.setattr(Backup, "__init__", slow)

    async def use() -> None:
        async with AsyncBackup.from_env(file_environment(tmp_path)):
            raise AssertionError("not reached")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(use(), 0.05)
    deadline = time.monotonic() + 120
    while not (opened and session_of(opened[0])._closed) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert session_of(opened[0])._closed


def test_it_has_what_backup_has() -> None:
    """Every method of the public API, with the same parameters."""
    for name in ("record", "record_many", "delivered", "failed", "flush", "close"):
        of_both = [vars(one)[name] for one in (Backup, AsyncBackup)]
        assert inspect.iscoroutinefunction(of_both[1])
        assert inspect.getdoc(of_both[1])
        one, other = (list(inspect.signature(method).parameters) for method in of_both)
        assert one == other
