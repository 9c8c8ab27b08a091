"""Start a program that forks, kill its workers at random, and wait until every process of it has ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from places import SUPPORT

PATIENCE = 240.0
"""Seconds after which an unmet condition fails a test, however slow the machine is."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"it never came true: {what}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The live children of a process."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(child) for child, parent, state in rows if int(parent) == pid and not state.startswith("Z")]


def kill_one(candidates: Sequence[int], randomly: random.Random) -> None:
    if candidates:
        os.kill(randomly.choice(candidates), signal.SIGKILL)


class Program:
    """A process and all that it forks. They die with the test: see `recording.die_with`.

    Attributes:
        process: the one that was started.
    """

    def __init__(self, command: Sequence[str], directory: Path, environment: Mapping[str, str], descriptors: Sequence[int]) -> None:
        reading, writing = os.pipe()
        life, self._life = os.pipe()
        self._log = directory / f"log-{time.monotonic_ns()}"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env={**_variables(environment), "DEPLOYMENTS_LIFE": str(life)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[*descriptors, writing, life],
                start_new_session=True,
            )
        os.close(writing)
        os.close(life)
        self._reading = reading

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM, *, kills_rest: bool = False) -> None:
        """Send the signal to the started process, and wait for all its descendants: each holds the pipe.

        `kills_rest` is for workers that outlive a killed parent.
        """
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        if kills_rest:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        os.read(self._reading, 1)

    def clean_up(self) -> None:
        """Let no process outlive a failed test."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # all have ended
            return
        finally:
            self.process.wait(PATIENCE)
            os.close(self._reading)
            os.close(self._life)


@contextmanager
def program(
    command: Sequence[str], directory: Path, environment: Mapping[str, str], descriptors: Sequence[int] = ()
) -> Iterator[Program]:
    started = Program(command, directory, environment, descriptors)
    try:
        yield started
    except BaseException as error:
        error.add_note(started.log[-4000:])
        raise
    finally:
        started.clean_up()


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(SUPPORT), "HOME": str(Path(environment["JOBS_BACKUP_SPOOL_DIR"]).parent), **environment}
