"""Forks in every order: what a parent, its children and others on the spool have recorded is in the bucket once.

JOBS_BACKUP_TEST_EVENTS=10000 tries all orders; otherwise a seventh of them, in which each pair of values comes up.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

import pytest
from buckets import file_environment
from deployments.counting import RECEIPTS, Outcome, acknowledged, outcome
from deployments.orders import EVENTS, Scenario
from deployments.programs import program, wait_until
from servers import Store

from jobs_backup.testing.fault_proxy import Delay, FaultProxy

ALL = [
    Scenario(*values)  # type: ignore[arg-type]
    for values in itertools.product(
        ("closes", "dies", "goes on"), ("closes", "dies"), ("parent", "child"), (False, True), (False, True), (False, True)
    )
]
SOME = ALL if int(os.environ.get("JOBS_BACKUP_TEST_EVENTS", "0")) >= 1000 else ALL[::7]


def name(scenario: Scenario) -> str:
    words = (f"parent {scenario.parent}", f"child {scenario.child}", f"{scenario.first} first")
    extras = [one for one in ("third", "threads", "archive") if getattr(scenario, one)]
    return ", ".join((*words, *extras))


def run_scenario(directory: Path, environment: dict[str, str], scenario: Scenario) -> None:
    arguments = [sys.executable, "-m", "deployments.orders", str(directory), json.dumps(scenario)]
    with program(arguments, directory, environment) as running:
        assert running.process.wait(120) == 0
        assert running.log == ""


@pytest.mark.parametrize("scenario", SOME, ids=name)
def test_nothing_is_lost_in_any_order(tmp_path: Path, scenario: Scenario) -> None:
    environment = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="2")
    run_scenario(tmp_path, environment, scenario)
    assert outcome(tmp_path, environment) == Outcome()
    assert len(acknowledged(tmp_path)) >= EVENTS * 4
