"""The conformance suite finds its targets: providers with one fault each are caught by name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from web_memory import EXPECTED as EXPECTED_ON_THE_WEB
from wrong_providers import EXPECTED

from jobs_backup.testing.memory import MemoryProvider

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, set[str]]]:
    """Provider -> outcome -> names of tests, of one run of the suite on all of them."""
    here = Path(__file__).parent
    command: list[str | Path] = [
        sys.executable, "-m", "pytest", here / "memory_conformance.py", "-v", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist",
        "-o", "addopts=", "-o", f"python_files={here / 'memory_conformance.py'}", "--rootdir", here,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False, timeout=250)
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for class_, test, outcome in re.findall(r"::Test(\w+)::(\w+)\S* (PASSED|FAILED|SKIPPED|ERROR)", done.stdout):
        found[class_][outcome].add(test)
    assert found, done.stdout + done.stderr
    return found


@pytest.mark.parametrize("right", ["Memory", "WebMemory"])
def test_the_right_one_passes(outcomes: dict[str, dict[str, set[str]]], right: str) -> None:
    found = outcomes[right]
    assert found["FAILED"] | found["ERROR"] == set()
    assert len(found["PASSED"]) > 30
    assert MemoryProvider not in EXPECTED


@pytest.mark.parametrize("wrong", [*EXPECTED, *EXPECTED_ON_THE_WEB], ids=lambda wrong: str(wrong.__name__))
def test_a_wrong_one_is_caught(outcomes: dict[str, dict[str, set[str]]], wrong: type[MemoryProvider]) -> None:
    found = outcomes[wrong.__name__]
    expected: dict[Any, set[str]] = {**EXPECTED, **EXPECTED_ON_THE_WEB}
    assert expected[wrong] <= found["FAILED"] | found["ERROR"], f"only {sorted(found['FAILED'] | found['ERROR'])} failed"
