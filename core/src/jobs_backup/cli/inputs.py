"""Shared by `run`, `delivered` and `failed`: read the inputs, upload, print the summary, and exit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from jobs_backup.backup.session import Session
from jobs_backup.cli.options import echo_message, machine_errors
from jobs_backup.cli.process import bound_memory, exit_process, monitored_session, stopping
from jobs_backup.cli.progress import Progress, progress
from jobs_backup.cli.summary import Counted, Summary, Unfinished
from jobs_backup.errors import AmbiguousInput, ConfigurationError, JobsBackupError
from jobs_backup.inputs.contents import Contents
from jobs_backup.inputs.intake import Handler, Ingest, InputOptions
from jobs_backup.inputs.ndjson import Input
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.values import Duration

_REPORTED: Final = 20
_LOOK_SECONDS: Final = Duration(1)
"""Interval between checks whether waiting for room in a full spool makes sense."""


def inputs_of(files: Sequence[Path]) -> list[Input]:
    """The named inputs, or standard input if none.

    Raises:
        ConfigurationError: one of them cannot be read.
    """
    return [Input(None if str(file) == "-" else file) for file in files or (Path("-"),)]


def take_in(
    inputs: Sequence[Input],
    settings: CoreSettings,
    counted: Counted,
    make_handler: Callable[[Session, Summary, threading.Event], Handler[Any]],
    *,
    options: InputOptions,
    as_json: bool = False,
    is_measured: bool = False,
) -> NoReturn:
    """Read the inputs, upload as much as possible, print the summary, and exit.

    `is_measured`: write JOBS_BACKUP_METRICS_FILE, which only one process on a spool should.
    """
    bound_memory()
    with stopping() as stop:
        # No port, so that two such commands can run at once.
        own = msgspec.structs.replace(
            settings,
            spool_full_timeout=_LOOK_SECONDS,
            metrics_port=None,
            metrics_file=settings.metrics_file if is_measured else None,
        )
        with monitored_session(own, stop) as session:
            summary = Summary(session, counted, go_on=_how_to_go_on(inputs, options))
            handler = make_handler(session, summary, stop)
            contents = Contents(session.spool, str(handler.job))
            with progress(session, inputs, counted) as shown:
                report = _Report(summary, shown)
                for one in inputs:
                    try:
                        with machine_errors():
                            Ingest(session, one, handler, contents, report, stop, options).take()
                    except (ConfigurationError, AmbiguousInput) as error:
                        summary.problem(error)
                    except JobsBackupError as error:
                        summary.problem(error)
                        break  # the others would fail the same way
                if not stop.is_set():
                    _report_replaced(inputs, contents, summary)
                summary.finish(stop, shown)
        code = summary.show(as_json=as_json, interrupted=stop.is_set(), allow_rejects=options.allow_rejects)
    exit_process(code, session)


def _how_to_go_on(inputs: Sequence[Input], options: InputOptions) -> str:
    if any(one.size is None for one in inputs):
        return ""  # a stream cannot be read again
    return "run the same command without --again" if options.again else "run the same command again"


def _report_replaced(inputs: Sequence[Input], contents: Contents, summary: Summary) -> None:
    """Report files that existed when the command started, but were rotated away before their turn."""
    opened = [one.opened for one in inputs if one.opened is not None]
    for one in inputs:
        if one.opened is None or one.noted is None or one.noted.is_file(one.opened):
            continue
        if any(one.noted.is_file(file) for file in opened):  # under another name
            continue
        if contents.is_unchanged(one.noted) is None:  # otherwise, an earlier run has read all of it
            summary.problem(
                ConfigurationError(
                    f"{one.name} was replaced before it was read, as by log rotation: the old file was not read",
                    hint="run the same command again, and include rotated files",
                )
            )


class _Report:
    """Counts of what was read, for the summary and the progress display."""

    def __init__(self, summary: Summary, shown: Progress) -> None:
        self._summary = summary
        self._shown = shown
        self._rejected = 0
        self.note = echo_message

    def taken(self, count: int, read: int) -> None:
        self._summary.count += count
        self._shown.taken(count, read)

    def resumed(self) -> None:
        self._summary.resumed = True

    def rejected(self, why: str) -> None:
        self._rejected += 1
        if self._rejected <= _REPORTED:
            echo_message(why, "Rejected")
        elif self._rejected == _REPORTED + 1:
            echo_message("more lines were rejected; the rejects file has them all", "Rejected")

    def rejects_kept(self, lines: int, path: Path) -> None:
        self._summary.rejected += lines
        if path not in self._summary.rejects:
            self._summary.rejects.append(path)

    def rejected_before(self, path: Path) -> None:
        self._summary.remember_rejects(path)

    def left(self, name: str, line: int, size: int) -> None:
        self._summary.unfinished.append(Unfinished(name, line, size))
        echo_message(f"{name}:{line}: an unfinished line of {size:,} bytes is left for the next run", "Unfinished")
