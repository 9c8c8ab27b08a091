"""`make` on a newcomer's machine: an old Python, an environment made by one, no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from places import ROOT
from projects import clean_environment

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in clean_environment(**variables).items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def old_python(path: Path, version: str) -> Path:
    """A Python that reports this version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = f"import sys; sys.version_info = tuple(map(int, '{version}'.split('.'))) + ('final', 0); exec(sys.argv[1])"
    path.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exit 9\nexec "{sys.executable}" -c "{code}" "$2"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("target", ["demo", "environment", "test", "lint"])
@pytest.mark.parametrize("version", ["2.7.18", "3.8.18", "3.9.6", "3.10.13"])
def test_an_old_python_is_named_before_anything_is_made(tmp_path: Path, target: str, version: str) -> None:
    python = old_python(tmp_path / "python3", version)
    done = make(target, f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 2
    short = version.rpartition(".")[0]
    assert f"jobs-backup needs Python 3.11 or later, and {python} is {short}: name another one" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("state", ["old", "broken", "unfinished"])
def test_an_environment_that_cannot_be_used_is_made_anew(tmp_path: Path, state: str) -> None:
    venv = tmp_path / "venv"
    python = old_python(venv / "bin/python", "3.9.6")
    if state == "broken":  # its Python was removed
        python.unlink()
        python.symlink_to(tmp_path / "nowhere")
    if state != "unfinished":
        for stamp in ("core.stamp", "test.stamp"):
            (venv / stamp).touch()
    done = make("--dry-run", "test", f"PYTHON={sys.executable}", f"VENV={venv}")
    assert done.returncode == 0, done.stderr
    assert f"{sys.executable} -m venv --clear {venv}\n" in done.stdout


def test_an_environment_that_can_be_used_is_kept(tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    later = max(path.stat().st_mtime for path in (ROOT / "core/pyproject.toml", ROOT / "constraints.txt")) + 1
    (tmp_path / "venv/core.stamp").touch()
    os.utime(tmp_path / "venv/core.stamp", (later, later))
    done = make("--dry-run", "demo", f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 0, done.stderr
    assert "-m venv" not in done.stdout


@pytest.mark.slow
def test_an_index_that_is_not_reached_is_named(tmp_path: Path) -> None:
    variables = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    done = make("environment", f"PYTHON={sys.executable}", f"VENV={tmp_path / 'venv'}", **variables)
    assert done.returncode == 2
    assert "Can this machine reach the package index (pip config list; HTTPS_PROXY)?" in done.stderr
    assert not (tmp_path / "venv/core.stamp").exists()


def test_the_demo_and_the_documents_use_what_a_mac_has_too() -> None:
    """BSD's zcat requires the suffix .Z, and its sed -i a suffix."""
    pages = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").rglob("*.md"), *(ROOT / "contrib").rglob("*.md")]
    for page in pages:
        text = page.read_text()
        assert " zcat " not in text, page
        assert "sed -i " not in text, page


def test_what_the_workflow_runs_exists() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert {job["runs-on"].partition("-")[0] for job in workflow["jobs"].values()} == {"ubuntu", "macos"}
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    for command in commands:
        if command.startswith("make "):
            done = make("--dry-run", *command.split()[1:])
            assert done.returncode == 0, done.stderr
        else:
            assert os.access(ROOT / command, os.X_OK)
    portable = make("--dry-run", "portable").stdout.split()
    files = [one for one in portable if one.startswith("tests/")]
    assert len(files) > 10
    assert all((ROOT / one).is_file() for one in files)
