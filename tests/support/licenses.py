"""The licenses of all dependencies of our distributions, from the metadata of the installed packages."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from typing import Final

from packaging.requirements import Requirement

OURS: Final = (
    "jobs-backup[server,metrics]",
    "jobs-backup[postgresql]",
    "jobs-backup-s3",
    "jobs-backup-gcs",
    "jobs-backup-azure-blob[identity]",
    "jobs-backup-encryption",
    "jobs-backup-opentelemetry",
)
PERMISSIVE: Final = frozenset({"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSD", "ISC", "MIT", "MIT-0", "PSF-2.0", "Zlib"})
EXCEPTIONS: Final = {
    "certifi": "MPL-2.0",
    "psycopg": "LGPL-3.0-only",
    "psycopg-binary": "LGPL-3.0-only",
    "psycopg-pool": "LGPL-3.0-only",
}
"""Copyleft of single files or libraries, which we neither change nor copy. Each is named, with its reason on the page."""
_SPELLINGS: Final = {
    "MIT License": "MIT",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "3-Clause BSD License": "BSD-3-Clause",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
# Always Python 3.11 on Linux: it needs the most packages.
_MARKERS: Final = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux", "platform_system": "Linux"}


def required(root: str) -> set[str]:
    """Normalized names of this requirement's dependencies, itself excepted."""
    extras: dict[str, set[str]] = {}
    waiting = [Requirement(root)]
    while waiting:
        one = waiting.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        if name in extras and one.extras <= extras[name]:
            continue
        wanted = extras.setdefault(name, {""})
        wanted |= one.extras
        waiting += [one for one in map(Requirement, distribution(name).requires or ()) if _applies(one, wanted)]
    own = {Requirement(ours).name for ours in OURS}
    return set(extras) - own


def _applies(one: Requirement, extras: set[str]) -> bool:
    return one.marker is None or any(one.marker.evaluate({**_MARKERS, "extra": extra}) for extra in extras)


def license_of(name: str) -> str:
    """The SPDX expression in the metadata; without one, its license or its classifiers."""
    metadata = distribution(name).metadata
    if expression := metadata["License-Expression"]:
        return str(expression)
    text = str(metadata["License"] or "")
    if (spelt := _SPELLINGS.get(text, text)) and " " not in spelt:
        return spelt
    classified = [one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier", []) if one.startswith("License ::")]
    return " OR ".join(sorted({_SPELLINGS.get(one, one) for one in classified}))


def is_allowed(name: str, expression: str) -> bool:
    """Whether the license permits using, changing and redistributing the whole under Apache-2.0."""
    if EXCEPTIONS.get(name) == expression:
        return True
    choices = [one.split(" AND ") for one in expression.strip("()").split(" OR ")]
    return any(all(part in PERMISSIVE for part in choice) for choice in choices)


def page() -> str:
    """The table in the documentation."""
    roots: dict[str, list[str]] = {}
    for ours in OURS:
        for name in required(ours):
            roots.setdefault(name, []).append(f"`{ours}`")
    core = required("jobs-backup")  # includes all of its plugins
    needed_by = {name: "`jobs-backup`" if name in core else ", ".join(who) for name, who in sorted(roots.items())}
    rows = "".join(f"| {name} | {license_of(name)} | {who} |\n" for name, who in needed_by.items())
    return (
        "# Licenses\n\n<!-- Generated from the metadata of what is installed: run `make reference`. -->\n\n"
        "jobs-backup and its plugins are licensed under Apache-2.0. The table lists every package that they install, directly or"
        " not, on Python 3.11 and Linux, with the license that its metadata states.\n\n"
        "All of these licenses are permissive, with two exceptions. The license of certifi, the list of certificate authorities"
        " that requests uses, is MPL-2.0, which covers certifi's own files alone. The license of psycopg, psycopg-binary and"
        " psycopg-pool is LGPL-3.0-only, which covers these libraries alone; they are installed only with the extra `postgresql`."
        " jobs-backup neither changes nor copies any of them.\n\n"
        f"| package | license | comes with |\n|---|---|---|\n{rows}"
    )
