"""The examples in `--help` run, and the shell completes it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import click
import pytest
from buckets import file_environment
from commands import COMMAND, invoke, run
from places import ROOT

from jobs_backup.cli import cli
from jobs_backup.cli.commands.help import read_sections

CONTEXT = click.Context(cli)
NAMES = [name for name in cli.list_commands(CONTEXT) if not isinstance(cli.get_command(CONTEXT, name), click.Group)]
"""`spool move` needs a server: tests/docs/test_fleet_docs.py runs it."""
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
    if name == "serve":  # runs until it is stopped
        waiting = "until grep --quiet 'listening on' log; do kill -0 $!; sleep 0.1; done"
        example = f"{example.strip()} --port 0 2> log & {waiting}; kill $!; wait $!"
    shell(example, tmp_path)


def test_help_and_completion_say_the_same_of_a_command(tmp_path: Path) -> None:
    """One sentence each, printed without importing the commands."""
    output = shell("jobs-backup --help", tmp_path)
    variables = {"_JOBS_BACKUP_COMPLETE": "zsh_complete", "COMP_WORDS": "jobs-backup ", "COMP_CWORD": "1"}
    completed = shell("jobs-backup", tmp_path, **variables)
    for name in NAMES:
        command = cli.get_command(CONTEXT, name)
        assert command is not None
        assert command.short_help
        assert re.search(rf"^  {name} +{re.escape(command.short_help)}$", output, re.MULTILINE)
        assert f"plain\n{name}\n{command.short_help}\n" in completed


def test_completion_can_be_turned_on(tmp_path: Path) -> None:
    assert "_jobs_backup_completion" in shell("jobs-backup", tmp_path, _JOBS_BACKUP_COMPLETE="bash_source")


# `jobs-backup help CODE`: without a clone, and without a network


CODES = read_sections()


def test_every_code_of_the_page_has_its_section(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/messages.md").read_text()
    assert list(CODES) == re.findall(r"^## (\w+)$", page, re.MULTILINE)
    code, listed, _ = invoke(capsys, "help")
    assert code == 0
    assert re.findall(r"^  (\w+)$", listed, re.MULTILINE) == list(CODES)
    for name in CODES:
        code, out, err = invoke(capsys, "help", name)
        assert (code, err) == (0, "")
        assert out.startswith(f"{name}\n\n")
        assert "What to do: " in out
        assert "Lost: " in out
        assert not re.search(r"```|\*\*|\]\(|^## ", out, re.MULTILINE)


@pytest.mark.parametrize("written", ["Waiting", "waiting", "[Waiting]", "WAITING", "[Waiting].", " Waiting:"])
def test_a_code_may_be_written_as_the_message_has_it(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(capsys, "help", written)[1] == invoke(capsys, "help", "Waiting")[1]


def test_a_code_that_is_none_is_an_error_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = invoke(capsys, "help", "Waitin")
    assert (code, out) == (2, "")
    assert "no message has the code 'Waitin': did you mean Waiting?" in err


def test_help_with_a_command_is_that_commands_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "status [OPTIONS]\n\n  Show what waits" in invoke(capsys, "help", "status")[1]


def test_every_error_and_warning_of_the_command_ends_with_a_code_that_help_explains(tmp_path: Path) -> None:
    """One of each kind, as text: settings, usage, plugins, the store, the spool, the input."""
    environment = file_environment(tmp_path)
    wrong = tmp_path / "wrong.ndjson"
    wrong.write_text("no event\n")
    for arguments, variables in (
        (["archive", "--once"], {"JOBS_BACKUP_BUKET": "x"}),
        (["archive", "--once"], {"JOBS_BACKUP_BATCH_EVENTS": "x"}),
        (["archive", "--once"], {"JOBS_BACKUP_STORAGE_PROVIDER": "NONE"}),
        (["archive", "--once"], {"JOBS_BACKUP_WRAPPERS": "none"}),
        (["archive", "--once"], {"JOBS_BACKUP_PREFIX": '"x"'}),
        (["archive", "--once"], {"JOBS_BACKUP_SPOOL_DIR": "/dev/null/spool"}),
        (["status"], {"JOBS_BACKUP_SPOOL_DIR": "/nonexistent/spool"}),
        (["run", "--source-id", "web", str(wrong)], {}),
        (["run", "--source-id", "web", str(wrong), "--again"], {"JOBS_BACKUP_BUCKET": str(tmp_path / "none")}),
        (["run"], {}),
        (["no-such-command"], {}),
    ):
        code, _, err = run(*arguments, env={**environment, **variables})
        assert err, arguments
        lines = [
            line
            for line in err.splitlines()
            if line and not line.startswith(("Usage:", "Try '", "Error: ")) and " uploaded to " not in line
        ]
        for line in lines:
            found = re.search(r" \[(\w+)\]$", line)
            assert found, f"{arguments} {code}: {line}"
            assert found[1] in CODES
        assert lines
