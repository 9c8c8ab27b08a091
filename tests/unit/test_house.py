"""Import rules between modules, as in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "core/src/jobs_backup"
PUBLIC = {"errors", "hookspecs", "model", "bodies", "sdk", "checksum", "settings", "testing"}
"""What authors of providers and wrappers may import."""
ENGINES = ("jobs_backup.spool.sqlite", "jobs_backup.spool.postgresql")
OURS = [
    *(ROOT / "plugins").glob("*/src/**/*.py"),
    *(ROOT / "contrib").glob("*/src/**/*.py"),
    *(ROOT / "contrib/provider-template/template").rglob("*.jinja"),
    *(PACKAGE / "store").glob("file_*.py"),
]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> Iterator[str]:
    """The modules of core that a module imports at any place, except for types only."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jobs_backup":
            for one in node.names:
                full = f"{node.module}.{one.name}"
                yield full if full in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name in MODULES)


def room_of(module: str) -> str:
    """The module's folder; a module of the root is its own folder. An engine belongs to its spool."""
    parts = module.split(".")[1:]
    if MODULES[module].name != "__init__.py":
        parts = parts[:-1]
    return ".".join(parts[:1] if parts[:1] == ["spool"] else parts) or module


def test_folders_import_only_what_stands_below_them() -> None:
    arrows: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        arrows.setdefault(room_of(module), set()).update(room_of(one) for one in imported(path))
    left = {room: its - {room} for room, its in arrows.items()}
    while lowest := [room for room, its in left.items() if not its & left.keys()]:
        for room in lowest:
            del left[room]
    assert left == {}, "these import each other in a circle"


def test_an_engine_is_behind_the_interface() -> None:
    found = {
        f"{module} imports {one}"
        for module, path in MODULES.items()
        for one in imported(path)
        if one.startswith(ENGINES) and not module.startswith((*ENGINES, "jobs_backup.spool.engines"))
    }
    assert found == set()


def test_engines_do_not_import_each_other() -> None:
    found = {
        f"{module} imports {one}"
        for module, path in MODULES.items()
        for one in imported(path)
        for engine in ENGINES
        if module.startswith(engine) and one.startswith(ENGINES) and not one.startswith(engine)
    }
    assert found == set()


def test_the_driver_is_imported_when_its_engine_is_used() -> None:
    """Neither by a module of core outside of the engine, nor by one of the engine when that is imported."""
    drivers = re.compile(r"^(import|from) (psycopg|sqlite3)", re.MULTILINE)
    by_driver = {(found[2], module) for module, path in MODULES.items() for found in drivers.finditer(path.read_text())}
    assert {module for driver, module in by_driver if driver == "psycopg"} == set()
    shared = {module for module in MODULES if module.startswith("jobs_backup.spool.") and not module.startswith(ENGINES)}
    assert not {module for driver, module in by_driver if driver == "sqlite3"} & shared


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_plugin_imports_what_is_public(path: Path) -> None:
    text = path.read_text()
    lines = [line for line in text.splitlines() if line.startswith(("from jobs_backup.", "import jobs_backup."))]
    of_core = [line.split()[1].split(".")[1] for line in lines]
    if path.is_relative_to(PACKAGE):
        of_core = [line.split()[1].split(".")[1] for line in lines if ".store.file_errors" not in line]  # a part of it
    assert set(of_core) <= PUBLIC
    assert not [line for line in lines if line.startswith("from jobs_backup.settings.")]


def test_modules_that_comments_and_the_fault_sweep_name_are_there() -> None:
    """Renaming a module leaves its old name in comments, and in the sweep's searches, which would then find nothing."""
    there = {path.name for path in [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]}
    texts = [*MODULES.values(), *(ROOT / "tests/support/faults").glob("*.py")]
    named = {(path.name, name) for path in texts for name in re.findall(r"(?<![\w.-])([a-z_]+\.py)\b", path.read_text())}
    assert sorted(one for one in named if one[1] not in there) == []
