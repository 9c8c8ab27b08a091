"""What all commands share: --env-file, --verbose, and errors in one line."""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from jobs_backup.errors import ConfigurationError, JobsBackupError, SpoolCorrupt, SpoolError, SpoolFull
from jobs_backup.util.exhaustion import explain
from jobs_backup.util.logs import configure, is_json, json_line, printable

INCOMPLETE: Final = 1
MISUSED: Final = 2
REJECTED: Final = 3
"""All that could be used is in the bucket, and some lines could not."""


def say(text: str, code: str = "", *, level: int | None = None) -> None:
    """A line on standard error. `code` is what `jobs-backup help` explains, a section of docs/messages.md.

    `level` is for JOBS_BACKUP_LOG_FORMAT=json: a warning where there is something to be done, if it is not given.
    """
    if is_json(os.environ):
        level = level or (logging.WARNING if code else logging.INFO)
        click.echo(json_line(time.time(), logging.getLevelName(level), "jobs_backup.cli", text, {"code": code}), err=True)
        return
    click.echo(f"jobs-backup: {printable(text)}" + (f" [{code}]" if code else ""), err=True)


def only_one(_context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> str | None:
    """For an option that counts once: which of several is meant, nobody knows. As `callback=` beside `multiple=True`."""
    if len(given) > 1:
        raise click.BadParameter(f"{option.opts[0]} is given {len(given)} times, and counts once")
    return given[0] if given else None


def show_usage(error: click.ClickException) -> None:
    """What is wrong with the command line. The shell may have put names of files into it that others have chosen."""
    if is_json(os.environ):
        say(error.format_message(), "Usage", level=logging.ERROR)
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n", err=True)
    click.echo(f"Error: {printable(error.format_message())}", err=True)
    click.echo("See `--help`. [Usage]", err=True)


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


def of_machine(error: BaseException) -> JobsBackupError | None:
    """An error of the machine that nothing below has translated: no memory, no thread, a call of the system. None if it is another.

    Others are defects of the program, and keep their traceback.
    """
    if isinstance(error, MemoryError):
        return JobsBackupError("out of memory", hint="give the process more memory")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return JobsBackupError("a thread could not be started", hint="look at the limits of processes and memory")
    if isinstance(error, OSError):
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        why, hint = explain(error, Path(where), "look at the disk, the permissions and the limits")
        return JobsBackupError(f"{where}: {why}" if where else why, hint=hint)
    return None


@contextmanager
def machine_errors() -> Generator[None]:
    """Errors of the machine as ours: see `of_machine`."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if (translated := of_machine(error)) is None:
            raise
        raise translated from error


_INPUT_OPTIONS: Final = (
    click.option("--allow-rejects", is_flag=True, help="Exit code 0 instead of 3 where lines were rejected."),
    click.option(
        "--append-only",
        is_flag=True,
        help="Files are rotated by rename and never emptied: resume after lines that repeat, which prove nothing otherwise.",
    ),
    click.option("--again", is_flag=True, help="Read files from their beginning, also where an earlier run has read them."),
)


def with_input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --again, --append-only and --allow-rejects, see `InputOptions`."""
    for option in _INPUT_OPTIONS:
        command = option(command)
    return command


def _read(env_file: Path) -> None:
    """Make the file's variables the process's own. Raises ConfigurationError."""
    from jobs_backup.checks.settings import warn_of_relative_paths  # noqa: PLC0415
    from jobs_backup.settings.env_file import read_env_file  # noqa: PLC0415 - `--version` and `--help` need no settings

    variables = read_env_file(env_file, os.environ)
    os.environ.update(variables)
    configure(as_json=is_json(os.environ))
    warn_of_relative_paths(variables)


def tell_misspelt_settings() -> None:
    """Report names that only look like a setting, for commands that read no settings of a Backup."""
    from jobs_backup.checks.settings import misspelt_settings  # noqa: PLC0415 - as above

    for line in misspelt_settings(os.environ):
        say(f"warning: {line}", "UnknownSetting")


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
                _read(env_file)
            return command(*args, **kwargs)
        except (ConfigurationError, SpoolError) as error:
            fail(error)

    return wrapper
