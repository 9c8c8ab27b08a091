"""What all commands share: --env-file, --verbose, and errors in one line."""

from __future__ import annotations

import functools
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from jobs_backup.env_file import read_env_file
from jobs_backup.errors import ConfigurationError, JobsBackupError, SpoolCorrupt, SpoolError, SpoolFull
from jobs_backup.logs import configure, is_json, json_line

INCOMPLETE: Final = 1
MISUSED: Final = 2

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A text that may hold the name of a file, which may be no UTF-8, or what a store has said, as one line for a terminal."""
    shown = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
    return shown.encode("utf-8", "backslashreplace").decode()


def say(text: str, code: str = "", *, level: int | None = None) -> None:
    """A line on standard error. `code` names the section of docs/messages.md that tells what to do.

    `level` is for JOBS_BACKUP_LOG_FORMAT=json: a warning where there is something to be done, if it is not given.
    """
    if is_json(os.environ):
        level = level or (logging.WARNING if code else logging.INFO)
        click.echo(json_line(time.time(), logging.getLevelName(level), "jobs_backup.cli", text, {"code": code}), err=True)
        return
    click.echo(f"jobs-backup: {printable(text)}" + (f" [{code}]" if code else ""), err=True)


def check_text(name: str, text: str) -> None:
    """Check what was given as an option or a variable: keys, lines and requests are UTF-8.

    Raises:
        ConfigurationError: it can't be written as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name} is not UTF-8", hint="correct it") from None


def fail(error: JobsBackupError) -> NoReturn:
    """End with an error that keeps the command from starting: the settings', or the disk's, and then events may wait there."""
    say(error.one_line(), error.code, level=logging.ERROR)
    is_of_disk = isinstance(error, SpoolCorrupt | SpoolFull) or isinstance(error.__cause__, sqlite3.Error)
    sys.exit(INCOMPLETE if is_of_disk else MISUSED)


def with_environment(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --env-file and --verbose. The file's variables become the process's: as with `docker run`, they come first."""

    @click.option(
        "--env-file", type=click.Path(path_type=Path), help="Read variables from this file, as `docker run --env-file` does."
    )
    @click.option("-v", "--verbose", is_flag=True, help="Log what happens, to standard error.")
    @functools.wraps(command)
    def wrapper(*args: Any, env_file: Path | None, verbose: bool, **kwargs: Any) -> Any:
        # Only our own lines and the provider's: those of the SDKs may carry URLs with the ids of uploads in them.
        configure(as_json=is_json(os.environ))
        logging.getLogger("jobs_backup").setLevel(logging.INFO if verbose else logging.WARNING)
        try:
            if env_file is not None:
                os.environ.update(read_env_file(env_file, os.environ))
                configure(as_json=is_json(os.environ))
            return command(*args, **kwargs)
        except (ConfigurationError, SpoolError) as error:
            fail(error)

    return wrapper
