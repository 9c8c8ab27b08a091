"""The process of a command that records or sends: its settings, its memory, and an orderly end on SIGTERM and SIGINT."""

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
from jobs_backup.cli.options import say
from jobs_backup.errors import ConfigurationError
from jobs_backup.monitoring.health import monitored
from jobs_backup.settings.core import CoreSettings

_M_MMAP_THRESHOLD: Final = -3  # of glibc's malloc.h


def read_settings() -> CoreSettings:
    """Core's settings. Names that look like a setting and are none are reported.

    Raises:
        ConfigurationError: they are wrong.
    """
    settings = CoreSettings.from_environment(os.environ)
    for plugin in plugins_of(settings):
        package = plugin.__module__.partition(".")[0]
        logging.getLogger(package).setLevel(logging.getLogger("jobs_backup").level)
    for line in unknown_settings(settings, os.environ):
        say(f"warning: {line}", "UnknownSetting")
    return settings


def bound_memory() -> None:
    """Have glibc's malloc give large buffers back to the system, as MALLOC_MMAP_THRESHOLD_ does; elsewhere nothing.

    Otherwise it keeps, for each thread that sends, a heap of the size of the largest buffers that were ever in use.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 18)


def summarize_failures() -> None:
    """Without --verbose, leave it to the summary to tell what could not be sent, in one line instead of one for each attempt."""
    if logging.getLogger("jobs_backup").level > logging.INFO:
        for module in ("store.retry", "archive.archiver", "archive.deleter", "archive.multipart"):
            logging.getLogger(f"jobs_backup.{module}").setLevel(logging.CRITICAL)


@contextmanager
def stopping() -> Generator[threading.Event]:
    """An event that SIGTERM or SIGINT sets. A second signal ends the process at once: what is recorded is safe."""
    stop = threading.Event()
    waits = threading.Lock()
    waits.acquire()
    is_signalled = False

    def set_when_signalled() -> None:
        # In a thread of its own: the handler's may have been interrupted within `stop.wait`, which holds the event's lock.
        # It is started before the signal, when a limit of threads can still be reported.
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
    """A Session with what tells others of it, for as long as the block runs, which closes it.

    Raises:
        ConfigurationError: either is wrong. Then nothing was sent.
    """
    session = Session(settings)
    with ExitStack() as stack:
        try:
            url = stack.enter_context(monitored(session, settings, is_stopping=stop.is_set))
        except ConfigurationError:
            session.close(grace=0)
            raise
        if url:
            say(f"/metrics, /healthz and /readyz are at {url}")
        yield session


def leave(code: int, session: Session) -> NoReturn:
    """End with this exit code."""
    if session.archiver is not None and session.archiver.is_working:
        # A request that hangs must not keep the process: its batch is in the spool, and is sent at the next start.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        os._exit(code)
    sys.exit(code)
