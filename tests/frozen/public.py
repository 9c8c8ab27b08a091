"""What is public, as data: `python tests/frozen/public.py > tests/frozen/public_v1.json` adds what is new to the list.

Only ever add: what is taken out of the list, or changed there, breaks somebody's program.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from typing import Any, Final

import msgspec

MODULES: Final = (
    "jobs_backup",
    "jobs_backup.hookspecs",
    "jobs_backup.model",
    "jobs_backup.errors",
    "jobs_backup.bodies",
    "jobs_backup.sdk",
    "jobs_backup.settings",
    "jobs_backup.checksum",
    "jobs_backup.testing.conformance",
    "jobs_backup.testing.driver",
    "jobs_backup.testing.fault_proxy",
    "jobs_backup.testing.memory",
)
_OTHERS: Final = {"jobs_backup.checksum": ["crc32c"]}
"""What a module has from somebody else, and offers as its own."""


def public() -> dict[str, Any]:
    """`module.name` -> what it is."""
    found: dict[str, Any] = {}
    for path in MODULES:
        module = importlib.import_module(path)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", path) == path and not inspect.ismodule(value)
        ]
        own = [name for name in (*names, *_OTHERS.get(path, ())) if not name.isupper() or path == "jobs_backup.hookspecs"]
        for name in sorted(own):
            found[f"{path}.{name}"] = _described(getattr(module, name))
    return found


def _described(value: Any) -> Any:
    if inspect.isclass(value):
        described: dict[str, Any] = {"kind": "class"}
        if issubclass(value, msgspec.Struct | Exception) or "__init__" in vars(value):
            described["init"] = _parameters(value)
        if issubclass(value, Exception):
            described["flags"] = {name: getattr(value, name) for name in ("retryable", "refused") if hasattr(value, name)}
            described["bases"] = [base.__name__ for base in value.__mro__[1:] if issubclass(base, Exception)]
        # What comes from Python itself is Python's to promise, and differs from version to version.
        ours = {name for base in value.__mro__ if base.__module__.startswith("jobs_backup") for name in vars(base)}
        described["members"] = {
            name: _parameters(member) if callable(member) and not inspect.isclass(member) else "attribute"
            for name, member in inspect.getmembers(value)
            if not name.startswith("_") and name in ours
        }
        return described
    if callable(value) and not hasattr(value, "__supertype__"):
        return {"kind": "function", "parameters": _parameters(value)}
    return {"kind": "value"}


def _parameters(function: Any) -> dict[str, Any] | str:
    """Whether each has to be given; and the order of those that may be given without their names."""
    try:
        parameters = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
    except (ValueError, TypeError):
        return "unknown"
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        "required": {one.name: one.default is one.empty and one.kind not in several for one in parameters},
        "order": [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)],
    }


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(what, sort_keys=True)}" for name, what in sorted(public().items())]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")
