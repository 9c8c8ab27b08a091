"""Forks in every order: all events of a parent, its children and others on the spool are in the bucket once.

JOBS_BACKUP_TEST_EVENTS=10000 runs all orders; otherwise a seventh of them, in which each pair of values occurs.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path

import pytest
from buckets import file_environment, objects
from deployments.children import CASES
from deployments.counting import Outcome, Receipts, acknowledged, outcome
from deployments.orders import EVENTS, Scenario
from deployments.programs import PATIENCE, program, wait_until
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


def run(module: str, *arguments: str, directory: Path, environment: dict[str, str]) -> None:
    """Run a program of `deployments` to its end."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", f"deployments.{module}", str(directory), *arguments]
    with program(command, directory, environment) as running:
        assert running.process.wait(PATIENCE) == 0
        assert running.log == ""


@pytest.mark.parametrize("scenario", SOME, ids=name)
@pytest.mark.sample(8)
def test_nothing_is_lost_in_any_order(tmp_path: Path, scenario: Scenario) -> None:
    environment = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="2")
    run("orders", json.dumps(scenario), directory=tmp_path, environment=environment)
    assert outcome(tmp_path, environment) == Outcome()
    assert len(acknowledged(tmp_path)) >= EVENTS * 4


@pytest.mark.parametrize("case", CASES)
@pytest.mark.sample(6)
def test_a_child_harms_nobody(tmp_path: Path, case: str) -> None:
    environment = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="2")
    run("children", case, directory=tmp_path, environment=environment)
    assert outcome(tmp_path, environment) == Outcome()
    assert len(acknowledged(tmp_path)) >= EVENTS * 2


UPLOADS = {
    "one request": {"JOBS_BACKUP_BATCH_EVENTS": "2"},
    "parts": {"JOBS_BACKUP_BATCH_EVENTS": "2", "JOBS_BACKUP_MULTIPART_THRESHOLD": "1"},
}


@pytest.mark.parametrize("upload", UPLOADS)
@pytest.mark.parametrize("scenario", [one for one in ALL if one.archive and not one.third and not one.threads], ids=name)
@pytest.mark.sample(8)
def test_forked_while_an_upload_is_under_way(tmp_path: Path, store: Store, upload: str, scenario: Scenario) -> None:
    if SOME is not ALL and (upload == "parts") == (scenario.child == "dies"):
        pytest.skip("one of two, except in the full size")
    bucket = store.bucket()
    with FaultProxy("127.0.0.1", store.port) as proxy:
        proxy.fail(Delay(1.0), method="PUT", times=2)
        environment = {
            **store.environment(bucket, url=f"http://127.0.0.1:{proxy.port}"),
            **UPLOADS[upload],
            "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
            "ORDERS_UPLOADING": str(tmp_path / "uploading"),
        }
        command = [sys.executable, "-m", "deployments.orders", str(tmp_path), json.dumps(scenario)]
        with program(command, tmp_path, environment) as running:
            wait_until(lambda: any(request.method == "PUT" for request in proxy.requests), "an upload")
            (tmp_path / "uploading").touch()
            assert running.process.wait(PATIENCE) == 0
        assert outcome(tmp_path, environment, lambda: [store.get(bucket, key) for key in store.keys(bucket)]) == Outcome()
    if "dies" not in scenario:  # killed between creating an upload and noting its id, a process may leave one: see docs/promises.md
        assert store.open_uploads(bucket) == []


def test_what_is_lost_or_twice_is_counted(tmp_path: Path) -> None:
    """The count itself finds what it should."""
    environment = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="2")
    run("orders", json.dumps(ALL[1]), directory=tmp_path, environment=environment)
    Receipts(tmp_path).add("never recorded")
    key = next(iter(objects(tmp_path)))
    (tmp_path / "bucket" / f"{key}-again").write_bytes(objects(tmp_path)[key])
    found = outcome(tmp_path, environment)
    assert (found.lost, len(found.twice) > 0, found.damaged, found.code) == (("never recorded",), True, (), 0)
