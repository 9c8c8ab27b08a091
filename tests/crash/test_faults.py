"""A sample of the fault sweep, and proof that it finds faults. `make faults` is the full sweep."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.injector import Fault, build, temporary_directory, why_not
from faults.runner import Worker
from faults.sabotage import ALL, Sabotage, commit, find, guarded
from faults.scenarios import SCENARIOS
from faults.sweep import Plan, sweep

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "faults can be injected")

_SAMPLES = {"archive": 12, "archive-open": 12, "run": 16, "serve": 12, "delivered": 8, "replay": 12, "replay-list": 8}
_KINDS = ("calls",)
"""System calls only. `make faults` sweeps MemoryError at each line and allocation: thread timing decides where it hits."""
_LIMIT = 120.0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def directory() -> Iterator[Path]:
    with temporary_directory(None) as found:
        yield found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_one_fault_in_each_run_does_no_harm(scenario: str, directory: Path, library: Path) -> None:
    plan = Plan(seed=1, sample=_SAMPLES[scenario], kinds=_KINDS)
    found = sweep(directory, library, SCENARIOS[scenario], plan, limit=_LIMIT)
    assert [violation.line() for figures in found for violation in figures.violations] == []
    assert sum(figures.runs for figures in found) >= _SAMPLES[scenario] - len(found)
    assert sum(figures.reached for figures in found) > _SAMPLES[scenario] / 2


def test_a_fault_hits_the_call_that_was_chosen(directory: Path, library: Path) -> None:
    """No object can be linked into the bucket, in any number of attempts."""
    with Worker(directory, library, SCENARIOS["archive"], limit=_LIMIT) as worker:
        calls = [call for call in worker.survey("calls") if call.name == "linkat" and "_publish" in " ".join(call.site)]
        assert len(calls) == 7
        verdict = worker.run(Fault(kind="calls", first=0, count=1000, error=errno.ENOSPC, name="linkat", path="bucket"))
    assert verdict.reached
    assert [violation.line() for violation in verdict.violations] == []


@pytest.mark.parametrize("sabotage", ALL.values(), ids=list(ALL))
def test_every_guard_that_is_removed_exists(sabotage: Sabotage) -> None:
    for place, guard, _ in sabotage.edits:
        function, source = guarded(place, guard)
        assert function.__name__ in place
        assert guard in source


@pytest.mark.parametrize("name", ["a batch is marked as stored before it is written", "the proof is not asked"])
def test_a_guard_that_is_removed_is_missed(name: str, directory: Path, library: Path) -> None:
    assert find(ALL[name], directory, library, limit=_LIMIT, tell=print) is not None


def test_a_guard_that_is_gone_is_an_error() -> None:
    (first, *_) = ALL.values()
    changed = Sabotage("changed", first.place, "no such text", "", first.scenario, first.calls, first.found)
    with pytest.raises(LookupError, match="0 times"):
        commit(changed)
