"""`requirements.py PROJECT...`: print the projects' third-party requirements, one per line, with all extras except `testing`.

The Dockerfile installs these before it copies any source, so that a changed source keeps the dependency layer cached.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any


def requirements(path: Path) -> set[str]:
    """Return a project's requirements, except those on our other projects."""
    project: dict[str, Any] = tomllib.loads((path / "pyproject.toml").read_text())["project"]
    extras = {name: wanted for name, wanted in project.get("optional-dependencies", {}).items() if name != "testing"}
    wanted = [*project["dependencies"], *(one for more in extras.values() for one in more)]
    return {one for one in wanted if not re.match(r"jobs-backup\b", one)}


if __name__ == "__main__":
    print("\n".join(sorted(set().union(*(requirements(Path(path)) for path in sys.argv[1:])))))
