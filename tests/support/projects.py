"""Our distributions: their metadata, how to build them, and empty environments to install them into."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

from places import ROOT
from proxies import REMOVED

import jobs_backup

PROJECTS = sorted(path.parent for one in ("core", "plugins/*", "contrib/*") for path in ROOT.glob(f"{one}/pyproject.toml"))
NAMES = [str(path.relative_to(ROOT)) for path in PROJECTS]
CORE, S3, GCS = ROOT / "core", ROOT / "plugins" / "s3", ROOT / "plugins" / "gcs"


def project(path: Path) -> dict[str, Any]:
    """The table `project` of a distribution's pyproject.toml, with its version."""
    table: dict[str, Any] = tomllib.loads((path / "pyproject.toml").read_text())["project"]
    return {"version": jobs_backup.__version__} | table  # core's is there


def run(*command: str | Path, **options: Any) -> str:
    """Return the command's standard output; a failure shows its output."""
    result: subprocess.CompletedProcess[str] = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(path: Path, wheels: Path) -> Path:
    """Build a wheel with the installed back end, without downloads."""
    before = set(wheels.iterdir())
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, path)
    (wheel,) = set(wheels.iterdir()) - before
    return wheel


class Environment:
    """An empty virtual environment; `bin` has its commands."""

    def __init__(self, path: Path, *, with_pip: bool = False) -> None:
        venv.create(path, symlinks=True, with_pip=with_pip)
        self.bin = path / "bin"

    def install(self, *wheels: Path | str, constrained: bool = True) -> None:
        constraints = ("--constraint", ROOT / "constraints.txt") if constrained else ()
        self._pip("install", "--quiet", "--no-compile", *constraints, *wheels)

    def python(self, code: str) -> str:
        # Isolated: neither the current directory nor PYTHONPATH can provide what the wheel lacks.
        return run(self.bin / "python", "-I", "-c", code, env=clean_environment())

    def packages(self) -> set[str]:
        return {package["name"].lower().replace("_", "-") for package in json.loads(self._pip("list", "--format=json"))}

    def _pip(self, *arguments: str | Path) -> str:
        # Point the installed pip at that environment: installing pip into each one takes a while.
        return run(sys.executable, "-m", "pip", "--python", self.bin / "python", *arguments, env=clean_environment(**REMOVED))


def clean_environment(**variables: str) -> dict[str, str]:
    ours = ("JOBS_BACKUP_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables
