"""Run contenders in their own processes and keep every reading."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
from benchmarks.contenders.common import Job
from benchmarks.data import corpus
from benchmarks.sink import UPLOADS, Sink, sink
from servers import weed

_TIMEOUT: Final = 300
_ERROR: Final = 300
"""Maximum characters of an error to keep, from its end."""
Values = dict[str, float]


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of one run of a contender.

    Attributes:
        case: the task that all contenders share.
        values: the measurements: seconds, bytes, counts.
        error: why the run failed; then there are no values.
    """

    scenario: str
    case: str
    contender: str
    round: int
    values: Values = {}
    error: str = ""


class Failed(Exception):
    """A contender failed its job."""


@dataclass
class Bench:
    """A benchmark run. `contenders`: those that take part; all, if empty."""

    directory: Path
    rounds: int
    scale: float
    quick: bool
    contenders: frozenset[str]
    echo: Callable[[str], None]
    readings: list[Reading] = field(default_factory=list)

    def count(self, number: int, least: int = 1) -> int:
        """The number of events (or other units) to run; smaller in a smoke test."""
        return max(least, round(number * self.scale))

    def corpus(self, name: str) -> str:
        return str(corpus(name, self.directory / "data"))

    @contextlib.contextmanager
    def work(self) -> Generator[Path, None, None]:
        """Return an empty directory on disk, not in memory."""
        (self.directory / "work").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.directory / "work", ignore_cleanup_errors=True) as made:
            yield Path(made)

    def interleaved(self, scenario: str, case: str, contenders: Mapping[str, Callable[[], Values]]) -> None:
        """Run each contender in turn, once per round, so that disturbances of the machine hit all of them."""
        for number in range(1, self.rounds + 1):
            for name, measure in contenders.items():
                self.once(scenario, case, name, number, measure)

    def once(self, scenario: str, case: str, contender: str, number: int, measure: Callable[[], Values]) -> None:
        """Keep the values that `measure` returns, or its failure."""
        if self.contenders and contender not in self.contenders:
            return
        values, error = Values(), ""
        try:
            values = measure()
        except (Failed, OSError, subprocess.SubprocessError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        self.readings.append(Reading(scenario=scenario, case=case, contender=contender, round=number, values=values, error=error))
        shown = error or ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
        self.echo(f"{scenario} | {case} | {contender} | {number} | {shown}")


def child(module: str, job: msgspec.Struct) -> Values:
    """Run `python -m benchmarks.contenders.MODULE JOB` and return its measurements.

    Raises:
        Failed: the process exited with an error, or hung.
    """
    command = [sys.executable, "-m", f"benchmarks.contenders.{module}", msgspec.json.encode(job).decode()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"not done after {_TIMEOUT} s") from error
    if done.returncode:
        raise Failed(" ".join(done.stderr.split())[-_ERROR:] or f"exit {done.returncode}")
    values: Values = json.loads(done.stdout.strip().rpartition("\n")[2])
    return values


@dataclass
class Target:
    """A store to write to."""

    name: str
    endpoint: str
    access_key: str = "key"
    secret_key: str = "secret"
    bucket: str = "bucket"
    sink: Sink | None = None

    @property
    def certificate(self) -> str:
        return str(self.sink.certificate) if self.sink and self.sink.certificate else ""

    def job(self, directory: Path, **fields: object) -> Job:
        """A job against this store."""
        connection = {
            "endpoint": self.endpoint,
            "bucket": self.bucket,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "certificate": self.certificate,
            "directory": str(directory),
        }
        return msgspec.convert(connection | fields, Job)

    def measured(self, bench: Bench, module: str, **fields: object) -> Values:
        """Run a job in a new directory. A sink adds its counts: requests, requests with a body, and bytes stored."""
        if self.sink:
            self.sink.reset()
        with bench.work() as directory:
            values = child(module, self.job(directory, **fields))
        if self.sink:
            counts = self.sink.counts()
            values["requests"] = sum(counts["requests"].values())
            values["puts"] = counts["requests"].get("PutObject", 0) + counts["requests"].get("CreateMultipartUpload", 0)
            values["stored"] = sum(counts["bytes"].get(kind, 0) for kind in UPLOADS)
        return values


@contextlib.contextmanager
def target(name: str, bench: Bench) -> Generator[Target, None, None]:
    """Start a store: `http` or `TLS` (sinks), or `weed`."""
    with bench.work() as directory:
        if name == "weed":
            with weed(directory / "weed") as store:
                admin = store.admin_identity
                yield Target(name, store.url, admin.access_key, admin.secret_key, store.bucket())
        else:
            with sink(directory, tls=name == "TLS") as swallowing:
                yield Target(name, swallowing.url, sink=swallowing)
