"""What a child does with its parent's Backup, or with its own: `python -m deployments.children DIRECTORY CASE`."""

from __future__ import annotations

import _imp
import asyncio
import contextlib
import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from deployments.counting import Receipts
from deployments.orders import Recorder, fork
from deployments.recording import die_with
from jobs_backup import AsyncBackup, Backup, BackupClosed, Event, JobsBackupError

FROM_SHELL = (
    "import os; from jobs_backup import Backup; b = Backup.from_env(); b.record({'messageId': os.environ['ID']}, source_id='s')"
)
"""A program that ends without closing its Backup."""


def refused(call: Callable[[], object]) -> None:
    """Check that `call` raises BackupClosed with advice on what to do."""
    try:
        call()
    except BackupClosed as error:
        assert "after the fork" in error.hint
    else:
        raise AssertionError("a child uses its parent's Backup")


def wait_for(pid: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def every_method(directory: Path, backup: Backup, mine: Recorder) -> None:
    """Check that every method of an inherited Backup is refused, and that closing it does nothing."""
    job = backup.record({"messageId": "of-parent"}, source_id="web")

    def child() -> None:
        refused(lambda: backup.record({}, source_id="web"))
        refused(lambda: backup.record_many([{}], source_id="web"))
        refused(lambda: backup.record_many([], source_id="web"))
        refused(lambda: backup.delivered(job))
        refused(lambda: backup.failed(Event(payload={}, source_id="web"), error="no"))
        refused(lambda: backup.failed(job, error="no", payload={}))
        refused(backup.flush)
        backup.close()

    wait_for(fork(child))
    mine.record_some()


def with_block(directory: Path, backup: Backup, mine: Recorder) -> None:
    """The child leaves the parent's `with` block, normally and by an exception."""

    def child() -> None:
        with backup:
            pass
        with contextlib.suppress(KeyError), backup:
            raise KeyError

    wait_for(fork(child))
    mine.record_some()


def of_forks(directory: Path, backup: Backup, mine: Recorder) -> None:
    """Four generations, each with its own Backup, which stays open while the next one is forked, used and closed."""

    def generation(number: int, before: Backup) -> None:
        refused(lambda: before.record({}, source_id="web"))
        with Backup.from_env() as own:
            recorder = Recorder(own, directory, f"generation-{number}")
            recorder.record_on()
            for _ in range(2):
                recorder.record_some()
                if number < 4:
                    wait_for(fork(lambda: generation(number + 1, own)))
        before.close()

    wait_for(fork(lambda: generation(1, backup)))
    mine.record_some()


def many(directory: Path, backup: Backup, mine: Recorder) -> None:
    """Threads fork at the same time while others record."""

    def fork_some(thread: int) -> None:
        for number in range(5):
            wait_for(fork(lambda number=number: one(thread, number)))  # type: ignore[misc]

    def one(thread: int, number: int) -> None:
        with Backup.from_env(archive=False) as own:
            Recorder(own, directory, f"child-{thread}-{number}").record_some()

    mine.record_on()
    threads = [threading.Thread(target=fork_some, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def then_exec(directory: Path, backup: Backup, mine: Recorder) -> None:
    """A child replaces itself with another program, which records on the same spool and is finally killed."""

    def child() -> None:
        os.execve(sys.executable, [sys.executable, "-c", FROM_SHELL], {**os.environ, "ID": "of-exec"})

    wait_for(fork(child))
    Receipts(directory).add("of-exec")
    mine.record_some()


def subprocesses(directory: Path, backup: Backup, mine: Recorder) -> None:
    """With `preexec_fn`, which forks as `os.fork` does, and without, which does not."""
    for number in range(6):
        environment = {**os.environ, "ID": f"of-subprocess-{number}"}
        preexec = os.setpgrp if number % 2 else None
        subprocess.run([sys.executable, "-c", FROM_SHELL], env=environment, preexec_fn=preexec, check=True)
        Receipts(directory).add(environment["ID"])
        mine.record_some()


def behind_python(directory: Path, backup: Backup, mine: Recorder) -> None:
    """Fork without Python's hooks until afterwards, as uWSGI does: the child cannot use the spool and does no harm."""
    sys.setswitchinterval(1000)  # the child holds the GIL until then: no thread is left there to release it
    _imp.acquire_lock()  # Python's own code takes this lock before a fork, and the child relies on it
    if (pid := ctypes.PyDLL(None).fork()) == 0:
        code = 1
        try:
            ctypes.pythonapi.PyOS_AfterFork_Child()
            refused(lambda: backup.record({}, source_id="web"))
            backup.close()
            with Backup.from_env(archive=False):
                pass
        except JobsBackupError as error:
            code = 0 if "fork" in str(error) and error.hint else 2
        finally:
            os._exit(code)
    _imp.release_lock()
    sys.setswitchinterval(0.005)
    wait_for(pid)
    mine.record_some()


def asynchronous(directory: Path, backup: Backup, mine: Recorder) -> None:
    """An AsyncBackup, open and busy in the parent: the child's loop cannot use it, but may close it and open it again."""
    receipts = Receipts(directory)
    shared = AsyncBackup.from_env()

    async def record(name: str) -> None:
        await shared.record({"messageId": name}, source_id="web")
        receipts.add(name)

    async def in_child() -> None:
        for call in (record("no"), shared.flush(), shared.delivered(1), shared.record_many([{}], source_id="web")):
            try:
                await call
            except BackupClosed as error:
                assert "after the fork" in error.hint
            else:
                raise AssertionError("a child uses its parent's AsyncBackup")
        await shared.close()
        async with shared:
            await asyncio.gather(*(record(f"child-{number}") for number in range(20)))

    async def in_parent() -> None:
        async with shared:
            under_way = [asyncio.create_task(record(f"parent-async-{number}")) for number in range(20)]
            await asyncio.sleep(0)
            pid = await asyncio.to_thread(fork, lambda: asyncio.run(in_child()))
            await asyncio.gather(*under_way)
            await asyncio.to_thread(wait_for, pid)
            await record("parent-async-last")

    asyncio.run(in_parent())
    mine.record_some()


CASES = {
    one.__name__: one for one in (every_method, with_block, of_forks, many, then_exec, subprocesses, behind_python, asynchronous)
}


def main(directory: Path, case: str) -> None:
    die_with(int(os.environ["DEPLOYMENTS_LIFE"]))
    with Backup.from_env() as backup:
        mine = Recorder(backup, directory, "parent")
        mine.record_some()
        CASES[case](directory, backup, mine)
        mine.record_some()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
