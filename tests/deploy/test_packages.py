"""Published packages: every sdist and wheel builds, has the required files, and installs with the oldest and newest pip."""

from __future__ import annotations

import email
import email.message
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest
from places import ROOT
from projects import NAMES, PROJECTS, Environment, build, clean_environment, project, run
from trove_classifiers import classifiers

OLD_PIPS: Final = {(3, 11): "22.3", (3, 12): "23.2.1", (3, 13): "24.2"}
"""The pip that came with each Python's first release."""


@pytest.fixture(scope="module")
def sdists(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    return {path: sdist(path, tmp_path_factory.mktemp(path.name)) for path in PROJECTS}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    return {path: build(path, tmp_path_factory.mktemp(path.name)) for path in PROJECTS}


def sdist(path: Path, directory: Path) -> Path:
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", directory, path)
    (made,) = directory.iterdir()
    return made


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (one for one in opened.namelist() if one.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(opened.read(name))


# Contents


@pytest.mark.parametrize("path", PROJECTS, ids=NAMES)
def test_a_sdist_has_every_file_of_its_own_and_no_link(path: Path, sdists: dict[Path, Path]) -> None:
    with tarfile.open(sdists[path]) as archive:
        members = archive.getmembers()
        assert [one.name for one in members if not (one.isfile() or one.isdir())] == [], "pip refuses links that leave the archive"
        names = {one.name.partition("/")[2] for one in members}
        (license_text,) = (archive.extractfile(one) for one in members if one.name.endswith("/LICENSE"))
        assert license_text is not None
        assert license_text.read() == (ROOT / "LICENSE").read_bytes()
    own = {str(file.relative_to(path)) for file in (path / "src").rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert names >= own | {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO"}


@pytest.mark.parametrize("path", PROJECTS, ids=NAMES)
def test_a_wheel_has_the_license(path: Path, wheels: dict[Path, Path]) -> None:
    with zipfile.ZipFile(wheels[path]) as wheel:
        (name,) = (one for one in wheel.namelist() if one.endswith("/licenses/LICENSE"))
        assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()


def test_no_file_of_a_distribution_is_a_link() -> None:
    listed = run("git", "-C", ROOT, "ls-files", "--stage", *(str(path) for path in PROJECTS), "contrib/provider-template")
    assert [line for line in listed.splitlines() if line.startswith("120000")] == []


# Metadata


@pytest.mark.parametrize("path", PROJECTS, ids=NAMES)
def test_the_metadata_is_complete(path: Path, wheels: dict[Path, Path]) -> None:
    found = metadata(wheels[path])
    assert found["Name"] == project(path)["name"]
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Author"] or found["Author-email"]
    assert len(found["Keywords"].split(",")) > 3
    assert 10 < len(found["Summary"]) < 100
    assert found["Description-Content-Type"] == "text/markdown"
    urls = dict(one.split(", ") for one in found.get_all("Project-URL", []))
    assert set(urls) == {"Homepage", "Documentation", "Source", "Changelog", "Issues"}
    assert all(url.startswith("https://") for url in urls.values())


@pytest.mark.parametrize("path", PROJECTS, ids=NAMES)
def test_the_classifiers_exist_and_say_what_is_tested(path: Path, wheels: dict[Path, Path]) -> None:
    said = set(metadata(wheels[path]).get_all("Classifier", []))
    assert said <= classifiers
    assert not any(one.startswith("License ::") for one in said), "the license is an expression: PEP 639 allows only one of them"
    assert {"Operating System :: POSIX :: Linux", "Operating System :: MacOS", "Typing :: Typed"} <= said
    versions = {one.rpartition(" ")[2] for one in said if one.startswith("Programming Language :: Python :: 3.")}
    assert versions == {"3.11", "3.12", "3.13"}


def test_all_distributions_name_the_same_home() -> None:
    homes: list[Any] = [project(path)["urls"] for path in PROJECTS]
    assert all(one == homes[0] for one in homes)


# Installation


@pytest.mark.slow
@pytest.mark.parametrize("pip", ["old", "new"])
def test_every_sdist_and_wheel_installs(pip: str, sdists: dict[Path, Path], wheels: dict[Path, Path], tmp_path: Path) -> None:
    """An sdist installs the same files as the wheel."""
    version = OLD_PIPS[sys.version_info[:2]] if pip == "old" else "26.3"
    environment = Environment(tmp_path / "venv")
    environment.install("hatchling")
    environment.install(f"pip=={version}", constrained=False)
    python = environment.bin / "python"
    assert f"pip {version} " in run(python, "-m", "pip", "--version", env=clean_environment())
    installed = {}
    for kind, files in (("wheel", wheels), ("sdist", sdists)):
        # Other tests install the dependencies.
        options = ("--quiet", "--force-reinstall", "--no-deps", "--no-build-isolation", "--no-compile")
        run(python, "-m", "pip", "install", *options, *files.values(), env=clean_environment())
        names = [project(path)["name"] for path in PROJECTS]
        code = (
            "from importlib.metadata import distribution\n"
            f"for name in {names}:\n"
            "    print(name, sorted((str(one), one.hash and one.hash.value) for one in distribution(name).files\n"
            "        if one.suffix == '.py' or one.name in ('LICENSE', 'py.typed', 'METADATA', 'entry_points.txt')))\n"
        )
        installed[kind] = environment.python(code)
    assert installed["wheel"] == installed["sdist"]
    assert installed["wheel"].count("LICENSE") == len(PROJECTS)
