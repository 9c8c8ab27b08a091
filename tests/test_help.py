"""What `--help` shows runs, and the shell completes it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import click
import pytest
from commands import COMMAND

from jobs_backup.cli import cli

CONTEXT = click.Context(cli)
NAMES = cli.list_commands(CONTEXT)
ENV = "JOBS_BACKUP_STORAGE_PROVIDER=FILE\nJOBS_BACKUP_BUCKET=bucket\nJOBS_BACKUP_SPOOL_DIR=spool\n"


def shell(text: str, directory: Path, **variables: str) -> str:
    path = f"{Path(COMMAND[0]).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-euc", text],
        cwd=directory,
        env={"PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    command = cli.get_command(CONTEXT, name)
    assert command is not None
    assert command.help is not None
    (example,) = re.findall(r"Example:\n((?:  .+\n?)+)", command.help)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "docker.env").write_text(ENV)
    (tmp_path / "events.ndjson").write_text('{"a":1}\n')
    ids = shell("jobs-backup run events.ndjson --source-id web --env-file docker.env --emit-ids", tmp_path)
    (tmp_path / "ids.ndjson").write_text(ids)
    (tmp_path / "failures.ndjson").write_text(f'{{"jobId":{ids.strip()},"error":"no","payload":{{}}}}\n')
    if name == "serve":  # until it is told to end
        example = f"timeout --foreground --preserve-status 4 {example.strip()} --port 0"
    shell(example, tmp_path)


def test_help_and_completion_tell_the_same_of_a_command(tmp_path: Path) -> None:
    """One sentence each, told without importing the commands."""
    told = shell("jobs-backup --help", tmp_path)
    variables = {"_JOBS_BACKUP_COMPLETE": "zsh_complete", "COMP_WORDS": "jobs-backup ", "COMP_CWORD": "1"}
    completed = shell("jobs-backup", tmp_path, **variables)
    for name in NAMES:
        command = cli.get_command(CONTEXT, name)
        assert command is not None
        assert command.short_help
        assert re.search(rf"^  {name} +{re.escape(command.short_help)}$", told, re.MULTILINE)
        assert f"plain\n{name}\n{command.short_help}\n" in completed


def test_completion_can_be_turned_on(tmp_path: Path) -> None:
    assert "_jobs_backup_completion" in shell("jobs-backup", tmp_path, _JOBS_BACKUP_COMPLETE="bash_source")
