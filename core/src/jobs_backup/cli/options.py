"""Shared by all commands: --env-file, --verbose, and one-line errors."""

from __future__ import annotations

import errno
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
"""All valid input is in the bucket, but some lines were rejected."""
_EXHAUSTED: Final = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)
"""Errors of a machine that is broken or at its limits, not of a setting."""


def echo_message(text: str, code: str = "", *, level: int | None = None) -> None:
    """Print a line on standard error. `code` is what `jobs-backup help` explains, a section of docs/messages.md.

    `level` applies to JOBS_BACKUP_LOG_FORMAT=json. Default: warning if there is a `code`, else info.
    """
    if is_json(os.environ):
        level = level or (logging.WARNING if code else logging.INFO)
        click.echo(json_line(time.time(), logging.getLevelName(level), "jobs_backup.cli", text, {"code": code}), err=True)
        return
    click.echo(f"jobs-backup: {printable(text)}" + (f" [{code}]" if code else ""), err=True)


def one_option(*names: str, default: str | None = None, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Like `click.option`, for an option with a value: rejects a repeated one, of which click would silently take the last."""
    defaults = None if default is None else (default,)
    return click.option(*names, multiple=True, callback=_only_one, default=defaults, **attributes)


def _only_one(_context: click.Context, option: click.Parameter, given: tuple[Any, ...]) -> Any:
    if len(given) > 1:
        raise click.BadParameter(f"{option.opts[0]} is given {len(given)} times, but may be given only once")
    return given[0] if given else None


def show_usage(error: click.ClickException) -> None:
    """Print what is wrong with the command line, escaped: the shell may have put file names into it that others chose."""
    if is_json(os.environ):
        echo_message(error.format_message(), "Usage", level=logging.ERROR)
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n", err=True)
    click.echo(f"Error: {printable(error.format_message())}", err=True)
    click.echo("See `--help`. [Usage]", err=True)


def check_text(name: str, text: str) -> None:
    """Check the text of an option or a variable: keys, lines and requests are UTF-8.

    Raises:
        ConfigurationError: the text cannot be written as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name} is not UTF-8", hint="correct it") from None


def fail(error: JobsBackupError) -> NoReturn:
    """End with an error that keeps the command from starting: of the settings, or of the disk or server, where events may wait."""
    echo_message(error.one_line(), error.code, level=logging.ERROR)
    cause = error.__cause__
    is_exhausted = isinstance(cause, MemoryError | RuntimeError) or (isinstance(cause, OSError) and cause.errno in _EXHAUSTED)
    is_of_machine = isinstance(cause, sqlite3.Error) or (isinstance(error, SpoolError) and is_exhausted)
    is_incomplete = isinstance(error, SpoolCorrupt | SpoolFull) or is_of_machine
    sys.exit(INCOMPLETE if is_incomplete or error.retryable else MISUSED)


def of_machine(error: BaseException) -> JobsBackupError | None:
    """Translate a machine's error that nothing below has translated: out of memory, no thread, a system call. None for any other.

    Others are defects of the program, and keep their traceback.
    """
    if isinstance(error, MemoryError):
        return JobsBackupError("out of memory", hint="give the process more memory")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return JobsBackupError("cannot start a thread", hint="check the limits of processes and memory")
    if isinstance(error, OSError):
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        why, hint = explain(error, Path(where), "check the disk, the permissions and the limits")
        return JobsBackupError(f"{where}: {why}" if where else why, hint=hint)
    return None


@contextmanager
def machine_errors() -> Generator[None]:
    """Raise the machine's errors as ours: see `of_machine`."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if (translated := of_machine(error)) is None:
            raise
        raise translated from error


_INPUT_OPTIONS: Final = (
    click.option("--allow-rejects", is_flag=True, help="Exit with 0 instead of 3 if lines were rejected."),
    click.option(
        "--append-only",
        is_flag=True,
        help="Files are rotated by rename and never emptied: resume even if their lines repeat.",
    ),
    click.option("--again", is_flag=True, help="Read files from their beginning, even if an earlier run has read them."),
)


def with_input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --again, --append-only and --allow-rejects, see `InputOptions`."""
    for option in _INPUT_OPTIONS:
        command = option(command)
    return command


def _read(env_file: Path) -> None:
    """Put the file's variables into the process's environment. Raises ConfigurationError."""
    from jobs_backup.checks.settings import warn_of_relative_paths
    from jobs_backup.settings.env_file import read_env_file  # `--version` and `--help` need no settings

    variables = read_env_file(env_file, os.environ)
    os.environ.update(variables)
    configure(as_json=is_json(os.environ))
    warn_of_relative_paths(variables)


def warn_of_misspelt_settings() -> None:
    """Report names that only resemble a setting, for commands that read no settings of a Backup."""
    from jobs_backup.checks.settings import misspelt_settings  # as above

    for line in misspelt_settings(os.environ):
        echo_message(f"warning: {line}", "UnknownSetting")


def with_environment(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --env-file and --verbose. The file's variables override the process's, as with `docker run`."""

    @one_option("--env-file", type=click.Path(path_type=Path), help="File to read variables from, as with `docker run --env-file`.")
    @click.option("-v", "--verbose", is_flag=True, help="Log each step to standard error.")
    @functools.wraps(command)
    def wrapper(*args: Any, env_file: Path | None, verbose: bool, **kwargs: Any) -> Any:
        # Only our own lines and the provider's: those of SDKs may contain URLs with upload ids.
        configure(as_json=is_json(os.environ))
        logging.getLogger("jobs_backup").setLevel(logging.INFO if verbose else logging.WARNING)
        try:
            if env_file is not None:
                _read(env_file)
            return command(*args, **kwargs)
        except (ConfigurationError, SpoolError) as error:
            fail(error)

    return wrapper
