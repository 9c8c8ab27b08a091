"""Keep the documented pool busy, and replace it whenever one of its processes is killed: `deployments.pools DIRECTORY`."""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from deployments.counting import Receipts

_AT_ONCE = 50


def main(directory: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    sys.path.insert(0, directory)
    pool: Any = importlib.import_module("pool")
    receipts = Receipts(Path(directory))
    numbers = itertools.count()
    while True:
        with pool.make_pool() as workers:
            try:
                while True:
                    ids = [f"pool-{os.getpid()}-{next(numbers)}" for _ in range(_AT_ONCE)]
                    calls = {workers.submit(pool.track, {"messageId": id_}): id_ for id_ in ids}
                    for call in as_completed(calls):
                        call.result()
                        receipts.add(calls[call])
            except BrokenProcessPool:
                continue


if __name__ == "__main__":
    main(*sys.argv[1:])
