"""Distributions made for a test: a module beside a `dist-info` directory, as pip installs them."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Arguments: the module's text; the entry point's name, its group and the class's name; the distribution's name, version and
# requirements. Returns the module's name.
Install = Callable[..., str]
_numbers = itertools.count()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution for this test only."""
    modules: list[str] = []

    def install(
        text: str,
        *,
        name: str = "ACME",
        group: str = "jobs_backup.providers",
        target: str = "Provider",
        distribution: str = "acme-backup",
        version: str = "2.1",
        requires: str = "",
    ) -> str:
        module = f"acme_provider_{next(_numbers)}"
        modules.append(module)
        site = tmp_path / f"site-{module}"
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(text)
        required = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{required}")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:{target}\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)  # for other processes
        return module

    yield install
    for module in modules:
        sys.modules.pop(module, None)
