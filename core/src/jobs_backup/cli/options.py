"""What the commands share: --env-file, --verbose, errors in one line, and an orderly end on SIGTERM and SIGINT."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from jobs_backup.backup import Backup
from jobs_backup.env_file import read_env_file
from jobs_backup.errors import ConfigurationError, JobsBackupError, SpoolError
from jobs_backup.providers import load_class, settings_of
from jobs_backup.settings import CoreSettings, report_unknown

INCOMPLETE: Final = 1
MISUSED: Final = 2

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_M_MMAP_THRESHOLD: Final = -3  # of glibc's malloc.h


def printable(text: str) -> str:
    """A text that may hold the name of a file, which may be no UTF-8, or what a store has said, as one line for a terminal."""
    shown = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
    return shown.encode("utf-8", "backslashreplace").decode()


def say(text: str) -> None:
    """A line on standard error."""
    click.echo(f"jobs-backup: {printable(text)}", err=True)


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
    """End with an error that keeps the command from starting."""
    say(error.one_line())
    sys.exit(MISUSED)


def bound_memory() -> None:
    """Have glibc's malloc give large buffers back to the system, as MALLOC_MMAP_THRESHOLD_ does; elsewhere nothing.

    Otherwise it keeps, for each thread that sends, a heap of the size of the largest buffers that were ever in use.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 18)


def summarize_failures() -> None:
    """Without --verbose, leave it to the summary to tell what could not be sent, in one line instead of one for each attempt."""
    if logging.getLogger("jobs_backup").level > logging.INFO:
        for module in ("retry", "archiver", "deleter", "multipart"):
            logging.getLogger(f"jobs_backup.{module}").setLevel(logging.CRITICAL)


def leave(code: int, backup: Backup) -> NoReturn:
    """End with this exit code."""
    if backup.archiver is not None and backup.archiver.is_working:
        # A request that hangs must not keep the process: its batch is in the spool, and is sent at the next start.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def with_environment(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --env-file and --verbose. The file's variables become the process's: as with `docker run`, they come first."""

    @click.option(
        "--env-file", type=click.Path(path_type=Path), help="Read variables from this file, as `docker run --env-file` does."
    )
    @click.option("-v", "--verbose", is_flag=True, help="Log what happens, to standard error.")
    @functools.wraps(command)
    def wrapper(*args: Any, env_file: Path | None, verbose: bool, **kwargs: Any) -> Any:
        # Only our own lines and the provider's: those of the SDKs may carry URLs with the ids of uploads in them.
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr, level=logging.CRITICAL)
        logging.getLogger("jobs_backup").setLevel(logging.INFO if verbose else logging.WARNING)
        try:
            if env_file is not None:
                os.environ.update(read_env_file(env_file, os.environ))
            return command(*args, **kwargs)
        except (ConfigurationError, SpoolError) as error:
            fail(error)

    return wrapper


def read_settings() -> CoreSettings:
    """Core's settings. Names that look like a setting and are none are reported.

    Raises:
        ConfigurationError: they are wrong.
    """
    settings = CoreSettings.from_environment(os.environ)
    _, provider = load_class(settings.storage_provider)
    package = provider.__module__.partition(".")[0]
    logging.getLogger(package).setLevel(logging.getLogger("jobs_backup").level)
    of_provider = settings_of(provider)
    known = (CoreSettings, of_provider) if of_provider else (CoreSettings,)
    for line in report_unknown(os.environ, *known):
        say(f"warning: {line}")
    return settings


@contextmanager
def stopping() -> Generator[threading.Event]:
    """An event that SIGTERM or SIGINT sets. A second signal ends the process at once: what is recorded is safe."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_DFL)

    before = {one: signal.signal(one, on_signal) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
