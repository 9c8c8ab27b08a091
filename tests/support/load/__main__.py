"""`python -m load`: put the sidecar under load and kill -9 it; then report the bucket's contents and the response times."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from buckets import events as recorded
from buckets import file_environment
from commands import run
from reaper import watch
from serving import serve


class Found(NamedTuple):
    """The result of a run; counts are of events."""

    seconds: float
    kills: int
    acknowledged: int
    retried: int
    lost: int
    twice: int
    twice_after_retry: int
    statuses: dict[str, int]
    percentiles: dict[str, float]

    def line(self) -> str:
        rate = self.acknowledged / self.seconds
        shown = ", ".join(f"p{name} {seconds * 1000:.1f}" for name, seconds in self.percentiles.items())
        return (
            f"{self.acknowledged:,} events acknowledged in {self.seconds:.0f} s ({rate:,.0f}/s), {self.kills} kills,"
            f" {self.retried:,} sent again; lost {self.lost}, twice {self.twice} (after sending again: {self.twice_after_retry});"
            f" statuses {self.statuses}; ms until durable: {shown}"
        )


def load(directory: Path, *, seconds: float, kills: int, connections: int, events: int, seed: int) -> Found:
    """One run in an empty directory."""
    env = file_environment(directory, JOBS_BACKUP_UPLOAD_FREQUENCY="5s")
    rng = random.Random(seed)
    times = sorted(rng.uniform(0.1, 0.9) * seconds for _ in range(kills))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serve(env))
        port = first.url.rpartition(":")[2]
        arguments = [first.url, f"--seconds={seconds}", f"--connections={connections}", f"--events={events}"]
        client = subprocess.Popen([sys.executable, "-m", "load.client", *arguments], stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        client.stdout.readline()  # the first event was acknowledged
        begun, sidecar = time.monotonic(), first
        for at in times:
            time.sleep(max(0.0, begun + at - time.monotonic()))
            sidecar.process.kill()
            sidecar.process.communicate()
            sidecar = stack.enter_context(serve(env, "--port", port))
        output, _ = client.communicate(timeout=seconds + 240)
        sidecar.process.terminate()
        sidecar.process.communicate(timeout=60)
    run("archive", "--once", env=env)
    return compare(directory, json.loads(output), seconds=seconds, kills=kills, events=events)


def compare(directory: Path, summary: dict[str, Any], *, seconds: float, kills: int, events: int) -> Found:
    """Compare the client's answers with the bucket."""
    count = Counter(int(event["messageId"]) for event in recorded(directory))
    acknowledged = {one for number in summary["acknowledged"] for one in range(number * events, (number + 1) * events)}
    retried = {one for number in summary["retried"] for one in range(number * events, (number + 1) * events)}
    return Found(
        seconds=seconds,
        kills=kills,
        acknowledged=len(acknowledged),
        retried=len(retried),
        lost=len(acknowledged - count.keys()),
        twice=sum(n > 1 for one, n in count.items() if one not in retried),
        twice_after_retry=sum(n > 1 for one, n in count.items() if one in retried),
        statuses=summary["statuses"],
        percentiles=summary["percentiles"],
    )


def main() -> None:
    """Exit with code 1 if an event is lost, or is in the bucket twice without having been retried."""
    parser = argparse.ArgumentParser(prog="python -m load")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--events", type=int, default=1, help="in a request")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="on the disk that is to be measured; else a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        found = load(
            Path(directory),
            seconds=options.seconds,
            kills=options.kills,
            connections=options.connections,
            events=options.events,
            seed=options.seed,
        )
    sys.stdout.write(f"{found.line()}\n")
    sys.exit(1 if found.lost or found.twice else 0)


if __name__ == "__main__":
    watch()
    main()
