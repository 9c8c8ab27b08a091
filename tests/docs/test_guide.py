"""The guide for provider authors works from an empty directory, in an environment of wheels, and is complete."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
from pathlib import Path

import pytest
from documents import BLOCK
from places import ROOT
from projects import CORE, Environment, build, clean_environment

from jobs_backup import errors, hookspecs
from jobs_backup.hookspecs import MANDATORY, MULTIPART, OPTIONAL
from jobs_backup.testing.conformance import ProviderConformance

GUIDE = ROOT / "docs/provider-guide.md"


def sections() -> dict[str, str]:
    """Each section's text by its title."""
    parts = re.split(r"^#{2,3} (.+)$", GUIDE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.slow
def test_who_follows_the_guide_has_a_conforming_provider_that_core_uses(tmp_path: Path) -> None:
    """Follow every block: write or append to the file that it names, or run its commands, in order."""
    wheels, here = tmp_path / "wheels", tmp_path / "here"
    wheels.mkdir()
    here.mkdir()
    environment = Environment(tmp_path / "venv", with_pip=True)
    environment.install(f"{build(CORE, wheels)}[testing]")
    variables = clean_environment(
        PATH=f"{environment.bin}{os.pathsep}{os.environ['PATH']}",
        PIP_CONSTRAINT=str(ROOT / "constraints.txt"),
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_NO_INPUT="1",
    )
    outputs: list[str] = []
    shown: list[str] = []
    for language, text in BLOCK.findall(GUIDE.read_text()):
        if language == "text":
            shown.append(text)
        elif language == "sh":
            assert "copier copy contrib/provider-template" in text, "only these are done elsewhere: test_template.py"
        elif named := re.match(r"# ([\w.]+)(, continued)?\n", text):
            with (here / named[1]).open("a" if named[2] else "w") as file:
                file.write(text.removeprefix(named[0]) if named[2] else text)
        else:
            assert language == "shell", text
            result = subprocess.run(
                ["bash", "-euc", text], cwd=here, env=variables, capture_output=True, text=True, check=False, timeout=240
            )
            assert result.returncode == 0, f"{text}\n{result.stdout}{result.stderr}"
            outputs.append(result.stdout)
    first, written, suite, used = outputs
    assert "acme-backup 1.0.0" in first
    assert "ACME_TOKEN" in first
    assert shown == [line + "\n" for line in first.splitlines() if line.startswith("  NO ")], "what the guide shows is what is said"
    marks = [line[:5].strip() for line in written.splitlines()]
    assert marks == ["ok"] * 7 + ["-"], written
    assert re.search(r"^\d\d passed, \d\d skipped in", suite, re.MULTILINE), suite
    assert "ready: events can be backed up" in used
    assert (here / "back.ndjson").read_bytes() == (here / "events.ndjson").read_bytes()
    assert (here / "back.ndjson").read_bytes().count(b"\n") == 1000
    assert len((here / "acme_backup.py").read_text().splitlines()) < 80
    # It is listed beside core's own providers, without a change to core.
    listed = subprocess.run(["jobs-backup", "providers"], env=variables, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines() if line[0] != " "] == ["ACME", "FILE"]


def test_every_hook_and_every_argument_has_its_place_in_the_guide() -> None:
    found = sections()
    missing: list[str] = []
    for spec in (hookspecs.StorageProvider, hookspecs.ObjectHooks):
        for name, function in inspect.getmembers(spec, inspect.isfunction):
            if hasattr(function, "jobs_backup_spec"):
                arguments = [one for one in inspect.signature(function).parameters if one != "self"]
                missing += [f"{name}({one})" for one in arguments if f"`{one}`" not in found.get(name, "")]
    assert missing == []
    assert {*MANDATORY, *MULTIPART, *OPTIONAL, "open_body"} <= found.keys()


def test_no_argument_is_described_that_no_hook_has() -> None:
    for name, text in sections().items():
        spec = hookspecs.ObjectHooks if name == "open_body" else hookspecs.StorageProvider
        if (function := getattr(spec, name, None)) is not None:
            described = {one for row in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE) for one in re.findall(r"`(\w+)`", row)}
            assert described == set(inspect.signature(function).parameters) - {"self"}, name


def test_every_attribute_that_a_provider_may_have_is_in_the_guide() -> None:
    named = re.findall(r"`(\w+): \w+", inspect.getdoc(hookspecs.Provider) or "")
    assert {"max_write_size", "sequential_parts"} <= set(named)
    assert [one for one in (*named, "API_VERSION", "location", "settings") if f"{one}" not in GUIDE.read_text()] == []


def test_the_errors_in_the_guide_exist() -> None:
    table = re.findall(r"^\| [^`|]+ \| (.+) \|$", sections()["4. Errors"], re.MULTILINE)
    named = {name for row in table for name in re.findall(r"`([A-Z][A-Za-z]+)", row)}
    assert {"Unreachable", "PermissionDenied", "Throttled"} <= named
    assert [name for name in named if not hasattr(errors, name)] == []


def test_every_test_of_the_suite_says_what_it_wants_and_why() -> None:
    for name, function in inspect.getmembers(ProviderConformance, inspect.isfunction):
        if name.startswith("test_"):
            wants, _, why = (inspect.getdoc(function) or "").partition("\n\n")
            assert wants.strip(), name
            assert why.strip(), name
