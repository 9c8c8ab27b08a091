"""The progress display of a terminal; nothing where standard error is none."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

from jobs_backup.backup import Backup
from jobs_backup.cli.ndjson import Input


class Progress(Protocol):
    """What the commands tell."""

    def recorded(self, events: int, read: int) -> None:
        """Events were recorded; so many bytes of the current file have been read."""

    def look(self) -> None:
        """Time has passed: show what was sent."""


class _Silent:
    def recorded(self, events: int, read: int) -> None:
        pass

    def look(self) -> None:
        pass


@contextmanager
def progress(backup: Backup, inputs: Sequence[Input]) -> Generator[Progress]:
    """Shows the progress while the block runs."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from jobs_backup.cli.terminal import Terminal  # noqa: PLC0415  # rich is slow to import

    with Terminal(backup, inputs) as terminal:
        yield terminal
