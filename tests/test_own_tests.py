"""What the tests themselves promise to whoever runs them: nothing outlives them, and no proxy or machine's speed decides them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent
WAITS: Final = """
import os, pathlib, subprocess, sys, time

def test_waits({fixtures}):
    group = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
    pathlib.Path({report!r}).with_suffix(".part").write_text(str(os.getpid()))
    os.rename(pathlib.Path({report!r}).with_suffix(".part"), {report!r})
    time.sleep(600)
"""


def pytest_run(test: Path, *arguments: str) -> list[str]:
    """A pytest of its own with the fixtures of these tests."""
    own = ("-p", "conftest", "-p", "no:cacheprovider", f"--rootdir={TESTS.parent}", "-c", str(TESTS.parent / "pyproject.toml"))
    return [sys.executable, "-m", "pytest", "-q", *own, f"--basetemp={test.parent / 'base'}", *arguments, str(test)]


def processes() -> dict[int, tuple[int, str]]:
    """All that run: the parent and the command line of each."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 3) for line in listed.splitlines())
    return {int(row[0]): (int(row[1]), row[3]) for row in rows if len(row) == 4 and not row[2].startswith("Z")}


def descendants(root: int) -> dict[int, str]:
    running, found = processes(), {root: ""}
    while more := {pid: args for pid, (parent, args) in running.items() if parent in found and pid not in found}:
        found |= more
    return {pid: args for pid, args in found.items() if pid != root}


@pytest.mark.parametrize(
    ("fixtures", "servers", "workers"),
    [
        ("emulator", "fake-gcs-server", ["-n", "1"]),
        pytest.param("store, aws, emulator", "weed|moto_server|fake-gcs-server", [], marks=pytest.mark.slow),
    ],
    ids=["xdist", "servers"],
)
def test_what_tests_start_ends_with_a_pytest_that_is_killed(
    tmp_path: Path, fixtures: str, servers: str, workers: list[str]
) -> None:
    report, test = tmp_path / "waits", tmp_path / "test_waits.py"
    test.write_text(WAITS.format(fixtures=fixtures, report=str(report)))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            pytest_run(test, *workers), env={**os.environ, "PYTHONPATH": str(TESTS)}, stdout=log, stderr=log, start_new_session=True
        )
    while not report.exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    started = descendants(process.pid)
    process.kill()
    process.wait()
    assert len({match for args in started.values() for match in re.findall(servers, args)}) == len(servers.split("|"))
    assert any("sleep 600" in args for args in started.values())
    while left := {pid: args for pid, args in started.items() if processes().get(pid, (0, ""))[1] == args}:
        time.sleep(0.1)  # the test's own time limit is the only one
    assert not left


def test_a_proxy_of_the_machine_is_not_used(tmp_path: Path) -> None:
    test = tmp_path / "test_bucket.py"
    test.write_text("def test_bucket(store, bucket):\n    assert store.keys(bucket) == []\n")
    names = ("http_proxy", "https_proxy", "all_proxy")
    proxies = {spelt: "http://127.0.0.1:9" for name in names for spelt in (name, name.upper())}
    environment = {**os.environ, **proxies, "PYTHONPATH": str(TESTS)}
    result = subprocess.run(pytest_run(test), env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
