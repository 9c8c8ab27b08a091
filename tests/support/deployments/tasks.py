"""Send tasks to Celery's workers, a few at a time, and note those that succeeded: `python -m deployments.tasks DIRECTORY`."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from deployments.counting import Receipts
from deployments.recording import die_with

_AT_ONCE = 20
_GIVEN_UP_SECONDS = 5.0
"""A task whose worker was killed has no result; waiting for it only delays the other tasks."""


def main(directory: str) -> None:
    die_with(int(os.environ["DEPLOYMENTS_LIFE"]))
    sys.path.insert(0, directory)
    track: Any = importlib.import_module("tasks").track
    importlib.import_module("deployment")
    receipts = Receipts(Path(directory))

    def send(client: int) -> None:
        for number in itertools.count():
            id_ = f"task-{client}-{number}"
            result = track.delay({"messageId": id_})
            deadline = time.monotonic() + _GIVEN_UP_SECONDS
            while not result.ready() and time.monotonic() < deadline:
                time.sleep(0.02)
            if result.successful():
                receipts.add(id_)

    threads = [threading.Thread(target=send, args=(client,), daemon=True) for client in range(_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
