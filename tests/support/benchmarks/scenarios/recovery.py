"""A spool with millions of pending events from a killed process: time until the next process starts to upload."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from benchmarks.contenders.common import Job
from benchmarks.runner import Bench, Failed, Target, Values, target

NAME: Final = "recovery"
CASE: Final = "10 million waiting events"
_EVENTS: Final = 10_000_000
_TIMEOUT: Final = 60.0


def run(bench: Bench) -> None:
    with target("http", bench) as to, bench.work() as directory:
        job = to.job(directory / "left", corpus=bench.corpus("short"), events=bench.count(_EVENTS))
        (directory / "left").mkdir()
        command = [sys.executable, "-m", "benchmarks.contenders.waiting", msgspec.json.encode(job).decode()]
        done = subprocess.run(command, check=False, capture_output=True)
        if done.returncode != -signal.SIGKILL:
            raise RuntimeError(done.stderr.decode())
        bench.interleaved(NAME, CASE, {"jobs-backup": partial(_measure, bench, to, job)})


def _measure(bench: Bench, to: Target, job: Job) -> Values:
    from benchmarks.contenders.ours import environment

    assert to.sink is not None
    with bench.work() as directory:
        shutil.copytree(Path(job.directory) / "spool", directory / "spool")
        # Otherwise the process would wait until the copy is on disk.
        os.sync()
        variables = environment(msgspec.structs.replace(job, directory=str(directory)))
        to.sink.reset()
        script = str(Path(sys.executable).with_name("jobs-backup"))
        began = time.monotonic()
        with subprocess.Popen([script, "archive", "--once"], env={**os.environ, **variables}, stderr=subprocess.DEVNULL) as process:
            try:
                while not (first := to.sink.counts()["first_upload"]):
                    if time.monotonic() > began + _TIMEOUT or process.poll() is not None:
                        raise Failed("it has sent nothing")
                    time.sleep(0.01)
            finally:
                process.kill()
    return {"seconds": first - began, "events": job.events}
