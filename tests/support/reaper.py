"""End everything that the tests start when they end, even when pytest is killed with SIGKILL.

`watch()` starts this file as a separate process, and reports to it every process started from then on. The pipe between them
closes when pytest ends for any reason. Then the reaper kills what still runs, with its descendants and its process group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def watch() -> None:
    """Make all processes that this one starts die with it."""
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],
        stdin=subprocess.PIPE,
        start_new_session=True,  # an interrupt of pytest from its terminal does not reach it
    )
    assert reaper.stdin is not None
    pipe = reaper.stdin.fileno()
    os.register_at_fork(after_in_child=lambda: os.close(pipe))  # or a surviving child would keep it open
    original: Any = subprocess.Popen

    class Watched(original):  # type: ignore[misc]
        _reaper = reaper  # keeps the pipe open

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            with contextlib.suppress(OSError):  # a forked child has no reaper to report to
                os.write(pipe, b"%d\n" % self.pid)

    subprocess.Popen = Watched  # type: ignore[misc]


def _started(pid: int) -> str:
    """When the process started, to distinguish it from a later one with the same id; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _ps("-o", "lstart=", "-p", str(pid)).strip()


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout


def _family(roots: Iterable[int]) -> list[int]:
    """These processes, their descendants, and all members of their process groups."""
    rows = [tuple(map(int, line.split())) for line in _ps("-A", "-o", "pid=,ppid=,pgid=").splitlines()]
    found = set(roots)
    while more := {pid for pid, parent, group in rows if parent in found or group in found} - found:
        found |= more
    return sorted(found)


def main() -> None:
    """Read process ids until the pipe closes; then kill those that still run."""
    known: dict[int, str] = {}
    for line in sys.stdin:
        pid = int(line)
        known[pid] = _started(pid)
    alive = [pid for pid, started in known.items() if started and _started(pid) == started]
    for pid in _family(alive) if alive else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
