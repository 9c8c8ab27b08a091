"""The command as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from buckets import events
from command_server import server

from jobs_backup.cli import cli
from jobs_backup.spool.engines import read_status

COMMAND = [str(Path(sys.executable).with_name("jobs-backup"))]


def start(*arguments: str | Path, env: dict[str, str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=_environment(env),
        text=True,
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def run(*arguments: str | Path, env: dict[str, str], stdin: str | None = None) -> tuple[int, str, str]:
    if (ended := server().run(list(map(str, arguments)), _environment(env), stdin)) is None:
        with start(*arguments, env=env, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL) as process:
            stdout, stderr = process.communicate(stdin, timeout=120)
        ended = process.returncode, stdout, stderr
    assert "Traceback" not in ended[2], ended[2]
    return ended


def _environment(env: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true", **env}


def summary(*arguments: str | Path, env: dict[str, str], stdin: str | None = None) -> dict[str, Any]:
    code, stdout, stderr = run(*arguments, "--json", env=env, stdin=stdin)
    found: dict[str, Any] = json.loads(stdout)
    assert code == (1 if not found["complete"] else 3 if found["rejected"] or found["rejected_before"] else 0), stderr
    return found


def invoke(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Like `run`, but in this process and its environment: faster, for tests that do not concern processes."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, arguments)])
    stdout, stderr = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, stdout, stderr


def wait_until_recorded(directory: Path, events: int) -> None:
    """Wait until the spool in this directory has this many events."""
    while not (directory / "spool/catalog.db").exists() or read_status(directory / "spool").events < events:
        time.sleep(0.02)


def ndjson(path: Path, count: int, first: int = 0) -> Path:
    path.write_text("".join(f'{{"messageId":"{number}","n":{number}}}\n' for number in range(first, first + count)))
    return path


def numbers(directory: Path) -> list[int]:
    return sorted(event["payload"]["n"] for event in events(directory))
