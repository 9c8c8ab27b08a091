"""Sweep a command: choose the faults, run them in several workers, and count the results."""

from __future__ import annotations

import errno
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import msgspec
from faults.injector import Fault
from faults.runner import Call, Verdict, Violation, Worker
from faults.scenarios import Scenario

KINDS: Final = ("calls", "lines", "sqlite", "python")
ERRORS: Final = (errno.EIO, errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.EINTR, errno.ENOMEM)
_PYTHON_RUNS: Final = 600
"""Python allocates some 200,000 times in each command: the whole sweep fails this many of them."""
_SHARES: Final = {"calls": 0.55, "lines": 0.25, "sqlite": 0.1, "python": 0.1}
"""Runs in a sample, by kind."""


@dataclass(frozen=True)
class Plan:
    """Which faults to inject.

    Attributes:
        count: calls that fail in a row.
        sample: runs of each command; None for the whole sweep.
        everywhere: fail every system call with every error. Otherwise every call fails with one error, and every place in the
            code with each of them.
    """

    seed: int = 1
    kinds: Sequence[str] = KINDS
    errors: Sequence[int] = ERRORS
    count: int = 1
    sample: int | None = None
    everywhere: bool = False

    def faults(self, kind: str, calls: Sequence[Call]) -> list[Fault]:
        """The faults of one kind, given the calls of a survey."""
        rng = random.Random(f"{self.seed} {kind}")
        places: dict[tuple[str, ...], list[Call]] = {}
        for call in calls:
            places.setdefault(call.where, []).append(call)
        if self.sample is not None:
            share = sum(_SHARES[one] for one in self.kinds)
            return self._sampled(kind, places, rng, max(1, round(self.sample * _SHARES[kind] / share)))
        if kind == "calls":
            return self._all_calls(calls, places)
        if kind == "python":
            spread = [msgspec.structs.replace(call.fault(kind), first=rng.randrange(calls[-1].number)) for call in calls]
            return rng.sample(spread, min(_PYTHON_RUNS, len(spread)))
        # The first, the last, and one in between: most passes through the same line, or allocation, are alike.
        chosen = {call.number: call for all_ in places.values() for call in (all_[0], all_[-1], rng.choice(all_))}
        return [self._fault(kind, call) for _, call in sorted(chosen.items())]

    def _all_calls(self, calls: Sequence[Call], places: dict[tuple[str, ...], list[Call]]) -> list[Fault]:
        if self.everywhere:
            return [self._fault("calls", call, error) for call in calls for error in self.errors]
        turns = len(self.errors)
        chosen = {(call.number, self.errors[(call.number + self.seed) % turns]): call for call in calls}
        chosen |= {
            (call.number, error): call
            for all_ in places.values()
            for call, error in zip(itertools.cycle(all_), self.errors, strict=False)
        }
        return [self._fault("calls", call, error) for (_, error), call in sorted(chosen.items())]

    def _sampled(self, kind: str, places: dict[tuple[str, ...], list[Call]], rng: random.Random, size: int) -> list[Fault]:
        """Choose as many different places as possible."""
        names = sorted(places)
        chosen = rng.sample(names, min(size, len(names))) + rng.choices(names, k=max(0, size - len(names)))
        return [self._fault(kind, rng.choice(places[name]), rng.choice(self.errors)) for name in chosen]

    def _fault(self, kind: str, call: Call, error: int = 0) -> Fault:
        return msgspec.structs.replace(call.fault(kind), count=self.count, error=error if kind == "calls" else 0)


@dataclass
class Figures:
    """The results of one kind of faults in one command.

    Attributes:
        counted: calls, lines or allocations of a healthy run.
        places: different places in the code that they come from.
        reached: runs in which the fault was hit. In the others the command ended before.
        cautious: runs in which everything was done but the command reported a failure, by its reason.
    """

    scenario: str
    kind: str
    counted: int = 0
    places: int = 0
    runs: int = 0
    reached: int = 0
    cautious: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> tuple[object, ...]:
        kinds = Counter(one.kind for one in self.violations)
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "0"
        return (self.scenario, self.kind, self.counted, self.places, self.runs, self.reached, self.cautious.total(), found)


Tell = Callable[[str], None]


def sweep(
    directory: Path,
    library: Path,
    scenario: Scenario,
    plan: Plan,
    *,
    workers: int = 1,
    limit: float = 60.0,
    tell: Tell = lambda _: None,
) -> list[Figures]:
    """Sweep a command. `tell` is called with each violation."""
    found = []
    with ExitStack() as stack:
        crew: SimpleQueue[Worker] = SimpleQueue()
        for number in range(workers):
            place = directory / f"{scenario.name}-{number}"
            crew.put(stack.enter_context(Worker(place, library, scenario, limit=limit)))
        for kind in plan.kinds:
            worker = crew.get()
            calls = worker.survey(kind)
            crew.put(worker)
            figures = Figures(scenario.name, kind, counted=calls[-1].number + 1, places=len({call.where for call in calls}))
            found.append(figures)
            _run(crew, plan.faults(kind, calls), figures, workers, tell)
    return found


def _run(crew: SimpleQueue[Worker], faults: Iterable[Fault], figures: Figures, workers: int, tell: Tell) -> None:
    lock, began = threading.Lock(), time.monotonic()

    def run(fault: Fault) -> None:
        worker = crew.get()
        try:
            verdict = worker.run(fault)
        finally:
            crew.put(worker)
        with lock:
            _add(figures, verdict, tell)

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(run, fault) for fault in faults]:
            done.result()
    figures.seconds = time.monotonic() - began


def _add(figures: Figures, verdict: Verdict, tell: Tell) -> None:
    figures.runs += 1
    figures.reached += verdict.reached
    figures.violations += verdict.violations
    if verdict.cautious:
        figures.cautious[verdict.cautious] += 1
    for violation in verdict.violations:
        tell(violation.line())
