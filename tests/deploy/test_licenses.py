"""No package that users install with us has a stricter license than ours."""

from __future__ import annotations

import pytest
from licenses import EXCEPTIONS, OURS, is_allowed, license_of, required
from packaging.requirements import Requirement
from places import ROOT
from projects import PROJECTS, project


def test_every_distribution_and_extra_is_looked_at() -> None:
    extras = {project(path)["name"]: set(project(path).get("optional-dependencies", {})) - {"testing"} for path in PROJECTS}
    looked_at: dict[str, set[str]] = {}
    for one in map(Requirement, OURS):
        looked_at.setdefault(one.name, set()).update(one.extras)
    assert looked_at == extras


@pytest.mark.parametrize("ours", OURS)
def test_the_licenses_of_all_dependencies_are_permissive(ours: str) -> None:
    found = {name: license_of(name) for name in required(ours)}
    assert {name: said for name, said in found.items() if not is_allowed(name, said)} == {}


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 OR BSD-3-Clause", True),
        ("Apache-2.0 AND BSD-2-Clause", True),
        ("GPL-3.0-only OR MIT", True),
        ("LGPL-2.1-or-later", False),
        ("MIT AND LGPL-2.1-or-later", False),
        ("MPL-2.0", False),
        ("", False),
        ("UNKNOWN", False),
        ("Dual License", False),
    ],
)
def test_what_is_permissive(expression: str, allowed: bool) -> None:
    assert is_allowed("some-package", expression) is allowed


def test_the_exceptions_are_needed_and_named_on_the_page() -> None:
    needed = set().union(*map(required, OURS))
    page = (ROOT / "docs/reference/licenses.md").read_text()
    for name, license_ in EXCEPTIONS.items():
        assert name in needed
        assert name in page.partition("| package")[0]
        assert license_ in page


def test_the_checksum_is_not_of_the_lgpl_any_more() -> None:
    """The tests themselves need that library: moto depends on it."""
    assert "crc32c" not in set().union(*map(required, OURS))
    assert license_of("crc32c") == "LGPL-2.1-or-later"
    assert not is_allowed("crc32c", license_of("crc32c"))
