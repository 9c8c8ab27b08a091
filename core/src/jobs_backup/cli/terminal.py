"""Progress bars, with rich."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jobs_backup.backup.session import Session
from jobs_backup.inputs.ndjson import Input
from jobs_backup.util.logs import printable


class Terminal:
    """Two lines: what was read, and what was uploaded, or why the store is paused."""

    def __init__(self, session: Session, inputs: Sequence[Input], counted: str) -> None:
        sizes = [one.size for one in inputs]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        self._archiver = session.archiver
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[size]}"),
            TextColumn("{task.fields[count]:,} {task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._of = f" of {decimal(total)}" if total else ""
        # Hidden for a command without inputs.
        self._read = self._bars.add_task(
            "read", total=total or None, count=0, unit=counted, note="", size=decimal(0), visible=bool(inputs)
        )
        self._stored = self._bars.add_task("uploaded", total=None, count=0, unit="objects", note="", size=decimal(0))
        self._count = 0
        self._before = 0
        self._last = 0

    def taken(self, count: int, read: int) -> None:
        """See `Progress`."""
        self._count += count
        if read < self._last:  # the next file has begun
            self._before += self._last
        self._last = read
        self._bars.update(
            self._read, completed=self._before + read, count=self._count, size=decimal(self._before + read) + self._of
        )
        self.look()

    def look(self) -> None:
        """See `Progress`."""
        if self._archiver is not None:
            sent, error = self._archiver.sent, self._archiver.paused
            note = printable(f"waiting: {error}") if error else ""
            self._bars.update(self._stored, completed=sent.bytes, count=sent.objects, note=note, size=decimal(sent.bytes))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._bars.stop()
