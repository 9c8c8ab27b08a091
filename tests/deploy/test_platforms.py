"""Unsupported platforms get a one-line error; supported ones are listed in the same words everywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest
from commands import COMMAND
from places import ROOT

import jobs_backup

WINDOWS = "import sys\nfor name in ('fcntl', 'resource', 'pwd', 'grp'):\n    sys.modules[name] = None\n"
"""Names that Windows lacks, removed from this Python."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("argument", ["--version", "run", "no-such-command"])
def test_the_command_names_the_platform_in_one_line(argument: str) -> None:
    done = python(f"{WINDOWS}sys.argv[1:] = [{argument!r}]\nfrom jobs_backup.__main__ import main\nmain()\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "jobs-backup: only Linux and macOS are supported: on Windows, use WSL 2 or a container [UnsupportedPlatform]\n"
    )


@pytest.mark.parametrize("name", jobs_backup.__all__)
def test_the_library_names_the_platform(name: str) -> None:
    done = python(f"{WINDOWS}import jobs_backup\ntry:\n    jobs_backup.{name}\nexcept ImportError as error:\n    print(error)\n")
    assert "only Linux and macOS are supported" in done.stdout, done.stderr


def test_the_documents_say_which_platforms() -> None:
    for path in ("README.md", "docs/quick-start.md", "docs/messages.md", "core/README.md"):
        text = (ROOT / path).read_text()
        assert "Linux" in text, path
        assert "macOS" in text, path
        assert "WSL" in text, path


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["run", "--help"], ["no-such-command"], ["providers"]])
def test_the_module_is_the_command(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "jobs_backup"]
    module = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    script = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    same = (module.returncode, module.stdout.replace("python -m jobs_backup", "jobs-backup"))
    assert same == (script.returncode, script.stdout)
    assert module.stderr.replace("python -m jobs_backup", "jobs-backup") == script.stderr
