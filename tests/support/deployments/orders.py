"""One fork, in a given order of events: `python -m deployments.orders DIRECTORY SCENARIO`.

This process never opens the spool. It forks the parent, which forks the child, and perhaps a third process; it waits for all.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from deployments.counting import Receipts
from deployments.recording import die_with
from jobs_backup import Backup, BackupClosed

EVENTS = 7
"""Events of each process, before and after each step. Batches have 2, so that files are rotated and removed meanwhile."""
_THREADS = 3
_PAUSE_SECONDS = 0.005


class Scenario(NamedTuple):
    """The order of events around a fork.

    Attributes:
        parent: what it does, before or after the child ends.
        child: how it ends.
        first: which one acts first. The other keeps recording after that.
        third: whether a third process records and uploads throughout.
        threads: whether threads of the parent record during and after the fork.
        archive: whether parent and child upload as well.
    """

    parent: Literal["closes", "dies", "goes on"]
    child: Literal["closes", "dies"]
    first: Literal["parent", "child"]
    third: bool
    threads: bool
    archive: bool


class Recorder:
    """Records with a Backup and notes each acknowledged event."""

    def __init__(self, backup: Backup, directory: Path, name: str) -> None:
        self._backup = backup
        self._receipts = Receipts(directory)
        self._name = f"{name}-{os.getpid()}"
        self._numbers = itertools.count()  # safe to share between threads

    def record(self, source: str) -> None:
        id_ = f"{self._name}-{next(self._numbers)}"
        self._backup.record({"messageId": id_}, source_id=source)
        self._receipts.add(id_)

    def record_some(self) -> None:
        for number in range(EVENTS):
            self.record("web" if number % 2 else "ios")

    def record_on(self) -> None:
        """Record in the background until closed."""

        def record() -> None:
            while True:
                try:
                    self.record(self._name)
                except BackupClosed:
                    return
                time.sleep(_PAUSE_SECONDS)

        threading.Thread(target=record, daemon=True).start()


class Gate:
    """Opens once its creator, and every process forked since, has opened it or ended."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def open(self) -> None:
        os.close(self._writing)

    def wait(self) -> None:
        self.open()
        os.read(self._reading, 1)


def fork(work: Callable[[], object]) -> int:
    """Fork a child that runs `work` and then ends as an interpreter does; at once, if a thread forked it."""
    is_thread = threading.current_thread() is not threading.main_thread()
    if (pid := os.fork()) == 0:
        try:
            work()
        except Exception:  # noqa: BLE001 - the traceback and the exit code report it
            traceback.print_exc()
            os._exit(1)
        if is_thread:
            os._exit(0)
        sys.exit(0)
    return pid


def end(backup: Backup, how: str) -> None:
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "closes":
        backup.close()


def parent(directory: Path, scenario: Scenario) -> None:
    """Open a Backup, fork, and follow the scenario."""
    backup = Backup.from_env(archive=scenario.archive)
    mine = Recorder(backup, directory, "parent")
    mine.record_some()
    for number in range(_THREADS if scenario.threads else 0):
        Recorder(backup, directory, f"thread-{number}").record_on()
    await_upload()
    child_is_ready, parent_has_ended = Gate(), Gate()

    def child() -> None:
        own_backup = Backup.from_env(archive=scenario.archive)
        own = Recorder(own_backup, directory, "child")
        own.record_some()
        child_is_ready.open()
        if scenario.first == "parent":
            parent_has_ended.wait()
            own.record_some()
        end(own_backup, scenario.child)

    pid = fork(child)
    child_is_ready.wait()
    mine.record_some()
    if scenario.first == "child":
        os.waitpid(pid, 0)
        mine.record_some()
    end(backup, scenario.parent)
    parent_has_ended.open()
    if scenario.parent == "goes on":
        mine.record_some()
    if scenario.first == "parent":
        os.waitpid(pid, 0)
    if scenario.parent == "goes on":
        mine.record_some()
        backup.close()


def await_upload() -> None:
    """If a test must see an upload in progress, wait until the upload makes this file."""
    if path := os.environ.get("ORDERS_UPLOADING"):
        while not Path(path).exists():
            time.sleep(0.01)


def main(directory: Path, scenario: Scenario) -> None:
    die_with(int(os.environ["DEPLOYMENTS_LIFE"]))
    all_have_ended, third_may_end = Gate(), Gate()

    def third() -> None:
        with Backup.from_env() as backup:
            Recorder(backup, directory, "third").record_on()
            third_may_end.wait()

    if scenario.third:
        fork(third)
    fork(lambda: parent(directory, scenario))
    third_may_end.open()  # once parent and child have ended, too
    all_have_ended.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Scenario(*json.loads(sys.argv[2])))
