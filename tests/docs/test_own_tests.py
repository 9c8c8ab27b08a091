"""What these tests promise to those who run them: no process outlives them, and they depend on no proxy or machine speed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
from places import SUPPORT, TESTS

WAITS: Final = """
import os, pathlib, subprocess, sys, time

def test_waits({fixtures}):
    group = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
    pathlib.Path({report!r}).with_suffix(".part").write_text(str(os.getpid()))
    os.rename(pathlib.Path({report!r}).with_suffix(".part"), {report!r})
    time.sleep(600)
"""


def pytest_run(test: Path, *arguments: str) -> list[str]:
    """Run a separate pytest with the fixtures of these tests."""
    own = ("-p", "conftest", "-p", "no:cacheprovider", f"--rootdir={TESTS.parent}", "-c", str(TESTS.parent / "pyproject.toml"))
    return [sys.executable, "-m", "pytest", "-q", *own, f"--basetemp={test.parent / 'base'}", *arguments, str(test)]


def processes() -> dict[int, tuple[int, str]]:
    """All running processes: the parent and the command line of each."""
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
            pytest_run(test, *workers),
            env={**os.environ, "PYTHONPATH": f"{SUPPORT}{os.pathsep}{TESTS}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
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
    environment = {**os.environ, **proxies, "PYTHONPATH": f"{SUPPORT}{os.pathsep}{TESTS}"}
    result = subprocess.run(pytest_run(test), env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def elapsed_names(function: ast.AST) -> set[str]:
    """Names that hold a difference of times."""
    return {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and is_elapsed(node.value, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def is_elapsed(node: ast.AST, names: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)):
        return False
    clocks = {"time.monotonic()", "time.perf_counter()", "time.time()", "monotonic()", "perf_counter()"}
    return ast.unparse(node.left) in clocks


def speeds(text: str) -> list[int]:
    """Lines that assert an upper bound on elapsed time."""
    found = []
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            names = elapsed_names(function)
            for node in ast.walk(function):
                for compare in ast.walk(node) if isinstance(node, ast.Assert) else ():
                    if isinstance(compare, ast.Compare):
                        sides = [compare.left, *compare.comparators]
                        pairs = zip(sides, compare.ops, sides[1:], strict=False)
                        for left, operator, right in pairs:
                            less, more = (left, right) if isinstance(operator, ast.Lt | ast.LtE) else (right, left)
                            if is_elapsed(less, names) and isinstance(more, ast.Constant):
                                found.append(compare.lineno)
    return found


def test_no_test_asserts_a_speed() -> None:
    """A busy machine must not fail a test: tests wait for a condition, and their own time limit is the only one."""
    files = [path for path in TESTS.rglob("*.py") if "benchmarks" not in path.parts]
    assert {str(path.relative_to(TESTS)): lines for path in files if (lines := speeds(path.read_text()))} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("assert time.monotonic() - began < 5", True),
        ("assert 0.2 < time.monotonic() - began < 5", True),
        ("assert 5 > time.perf_counter() - began", True),
        ("took = time.monotonic() - began\n    assert took < 3", True),
        ("assert time.monotonic() - began >= 2", False),
        ("assert time.monotonic() < deadline", False),
        ("assert elapsed <= time.monotonic() - began", False),
    ],
)
def test_speeds_are_found(line: str, found: bool) -> None:
    assert bool(speeds(f"def test():\n    {line}\n")) is found
