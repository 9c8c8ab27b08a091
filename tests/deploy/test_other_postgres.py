"""The PostgreSQL versions that are installed on this machine, besides the one from the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

INSTALLED = sorted(path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("bin_", INSTALLED, ids=lambda path: path.parent.name)
def test_the_engine_works_on_it(bin_: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-k", "not sqlite", "-m", "not slow",
         "tests/unit/test_engines.py", "tests/unit/test_outbox.py", "tests/unit/test_fleet_status.py"],
        cwd=ROOT, env={**os.environ, "JOBS_BACKUP_TEST_POSTGRES": str(bin_)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]


def test_one_is_installed() -> None:
    if not INSTALLED:
        pytest.skip("no other PostgreSQL is installed: with Debian's packages, /usr/lib/postgresql/15/bin")
    assert all(os.access(bin_ / "initdb", os.X_OK) for bin_ in INSTALLED)
