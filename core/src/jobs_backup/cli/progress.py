"""The progress display of a terminal; silent if standard error is not a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

from jobs_backup.backup.session import Session
from jobs_backup.inputs.ndjson import Input
from jobs_backup.util.logs import is_json


class Progress(Protocol):
    """What the commands report."""

    def taken(self, count: int, read: int) -> None:
        """Report `count` more lines, and `read` bytes of the current file so far."""

    def look(self) -> None:
        """Refresh what was uploaded."""


class _Silent:
    def taken(self, count: int, read: int) -> None:
        pass

    def look(self) -> None:
        pass


@contextmanager
def progress(session: Session, inputs: Sequence[Input], counted: str) -> Generator[Progress]:
    """Show the progress while the block runs. `counted` names what the lines of the inputs are."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()  # pyright: ignore[reportUnnecessaryComparison] - it may be closed
    if not is_terminal or is_json(os.environ):
        yield _Silent()
        return
    from jobs_backup.cli.terminal import Terminal  # rich is slow to import

    with Terminal(session, inputs, counted) as terminal:
        yield terminal
