"""Run a forking program while its threads record: `python -m deployments.recording DIRECTORY MODULE ARGUMENT ...`

Whenever the program forks, its Backup is open, its archiver is busy and its threads are recording. Children inherit all of it,
including the handler that closes it at exit.
"""

from __future__ import annotations

import atexit
import itertools
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from deployments.counting import Receipts
from jobs_backup import Backup, BackupClosed

THREADS = 2
_PAUSE_SECONDS = 0.002


def record(backup: Backup, receipts: Receipts, name: str) -> None:
    """Record until the Backup is closed."""
    for number in itertools.count():
        id_ = f"parent-{os.getpid()}-{name}-{number}"
        try:
            backup.record({"messageId": id_}, source_id="parent")
        except BackupClosed:
            return
        receipts.add(id_)
        time.sleep(_PAUSE_SECONDS)


def die_with(life: int) -> None:
    """Kill the whole session once the test closes its end of this pipe: in this process, and in each one it forks."""

    def wait() -> None:
        os.read(life, 1)
        os.killpg(0, signal.SIGKILL)

    def watch() -> None:
        threading.Thread(target=wait, daemon=True).start()

    watch()
    os.register_at_fork(after_in_child=watch)


def main(directory: str, module: str, *arguments: str) -> None:
    die_with(int(os.environ["DEPLOYMENTS_LIFE"]))
    backup = Backup.from_env()
    atexit.register(backup.close)
    receipts = Receipts(Path(directory))
    for number in range(THREADS):
        threading.Thread(target=record, args=(backup, receipts, str(number)), daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
