"""The process of a command that records or uploads: settings, memory, and an orderly end on SIGTERM and SIGINT."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Final, NoReturn

from jobs_backup.backup.session import Session
from jobs_backup.checks.settings import plugins_of, unknown_settings
from jobs_backup.cli.options import echo_message
from jobs_backup.errors import ConfigurationError
from jobs_backup.monitoring.health import monitored
from jobs_backup.settings.core import CoreSettings

_M_MMAP_THRESHOLD: Final = -3  # from glibc's malloc.h


def read_settings() -> CoreSettings:
    """Read core's settings, and report variables that only look like settings.

    Raises:
        ConfigurationError: a setting is missing or invalid.
    """
    settings = CoreSettings.from_environment(os.environ)
    for plugin in plugins_of(settings):
        package = plugin.__module__.partition(".")[0]
        logging.getLogger(package).setLevel(logging.getLogger("jobs_backup").level)
    for line in unknown_settings(settings, os.environ):
        echo_message(f"warning: {line}", "UnknownSetting")
    return settings


def bound_memory() -> None:
    """Make glibc's malloc return large buffers to the system, as MALLOC_MMAP_THRESHOLD_ does; no effect elsewhere.

    Otherwise, each uploading thread keeps a heap of the size of the largest buffers ever in use.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 18)


def summarize_failures() -> None:
    """Without --verbose, let the summary report failed uploads in one line, instead of one for each attempt."""
    if logging.getLogger("jobs_backup").level > logging.INFO:
        for module in ("store.retry", "archive.archiver", "archive.deleter", "archive.multipart"):
            logging.getLogger(f"jobs_backup.{module}").setLevel(logging.CRITICAL)


@contextmanager
def stopping() -> Generator[threading.Event]:
    """An event that SIGTERM or SIGINT sets. A second signal ends the process at once: recorded events are safe."""
    stop = threading.Event()
    waits = threading.Lock()
    waits.acquire()
    is_signalled = False

    def set_when_signalled() -> None:
        # In a thread of its own: the handler may have interrupted `stop.wait`, which holds the event's lock. The thread starts
        # before the signal, when a thread limit can still be reported.
        with waits:
            if is_signalled:
                stop.set()

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal is_signalled
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_DFL)
        is_signalled = True
        if waits.locked():
            waits.release()

    threading.Thread(target=set_when_signalled, name="jobs-backup-stop", daemon=True).start()
    before = {one: signal.signal(one, on_signal) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        if waits.locked():
            waits.release()


@contextmanager
def monitored_session(settings: CoreSettings, stop: threading.Event) -> Generator[Session]:
    """A Session and its monitoring while the block runs; the block closes the session.

    Raises:
        ConfigurationError: of either. Nothing was sent.
    """
    session = Session(settings)
    with ExitStack() as stack:
        try:
            url = stack.enter_context(monitored(session, settings, is_stopping=stop.is_set))
        except ConfigurationError:
            session.close(grace=0)
            raise
        if url:
            echo_message(f"/metrics, /healthz and /readyz are at {url}")
        yield session


def exit_process(code: int, session: Session) -> NoReturn:
    """Exit with this code."""
    if session.archiver is not None and session.archiver.is_working:
        # A hanging request must not keep the process alive: its batch is in the spool, and is uploaded at the next start.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    sys.exit(code)
