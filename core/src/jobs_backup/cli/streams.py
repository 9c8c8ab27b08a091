"""Standard output and standard error of the command.

Lost output is an error, unless its reader has closed it; a lost diagnostic is not.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

import click
import msgspec

from jobs_backup.errors import JobsBackupError

_STDOUT: Final = 1
_STDERR: Final = 2
_WHY: Final = {errno.EBADF: "it is closed"}
_PATIENCE: Final = 2.0
"""Seconds that a diagnostic waits for a reader that has stopped."""


def prepare() -> None:
    """Replace both streams, for the rest of the process.

    A closed stream still gets a descriptor. Otherwise the next file, such as the spool's, would get its number, and output to
    standard error would go into that file.
    """
    _reserve(_STDOUT, os.O_RDONLY)  # writing to it still fails
    _reserve(_STDERR, os.O_WRONLY)
    sys.stdout = _stream(_Output, _STDOUT, sys.stdout)
    sys.stderr = _stream(_Diagnostics, _STDERR, sys.stderr)


def can_output() -> bool:
    """Whether standard output is open for writing."""
    try:
        return fcntl.fcntl(_STDOUT, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False


def is_reader_gone() -> bool:
    """Whether the reader of standard output has closed it, so that nothing more need be printed."""
    return bool(getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "is_reader_gone", False))


def print_json(value: object) -> None:
    """Print a value on one line, in ASCII: text from a store or a file name can neither end the line nor move the cursor.

    Raises:
        JobsBackupError: standard output cannot be written.
    """
    click.echo(json.dumps(_encodable(msgspec.to_builtins(value, str_keys=True)), separators=(",", ":")))


def _encodable(value: object) -> object:
    """Make a value valid for every JSON reader: a file name may not be UTF-8, and JSON has no infinity."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(name): _encodable(one) for name, one in cast(dict[str, object], value).items()}
    if isinstance(value, list | tuple):
        return [_encodable(one) for one in cast(list[object], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reserve(descriptor: int, mode: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, mode)
        os.dup2(opened, descriptor)
        if opened != descriptor:
            os.close(opened)


def _stream(raw: Callable[[int], io.FileIO], descriptor: int, before: Any) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    made = io.BufferedWriter(raw(descriptor))
    is_line_buffered = descriptor == _STDERR or made.isatty()
    return io.TextIOWrapper(made, encoding=encoding, errors="backslashreplace", line_buffering=is_line_buffered)


class _Output(io.FileIO):
    """Raises JobsBackupError on the first failed write; later writes are dropped, so that the interpreter exits quietly.

    A reader that closes its end, as `head` does, has what it wants: the rest is dropped.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_lost = False
        self.is_reader_gone = False

    def write(self, data: Any, /) -> int:
        if self._is_lost:
            return len(data)
        try:
            written = super().write(data)
            while written is None:  # the descriptor was made non-blocking  # pyright: ignore[reportUnnecessaryComparison]
                select.select([], [self], [])
                written = super().write(data)
        except BrokenPipeError:
            self._is_lost = self.is_reader_gone = True
            return len(data)
        except OSError as error:
            self._is_lost = True
            why = _WHY.get(error.errno or 0, error.strerror)
            raise JobsBackupError(f"cannot write to standard output: {why}") from error
        return written


class _Diagnostics(io.FileIO):
    """Drops what cannot be written: neither a full disk nor a stopped reader may prevent backups."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._patience = _PATIENCE

    def write(self, data: Any, /) -> int:
        with suppress(OSError, ValueError):
            if not select.select([], [self], [], self._patience)[1]:
                self._patience = 0.0
                return len(data)
            self._patience = _PATIENCE
            # A pipe that `select` calls writable accepts this many bytes without blocking (pipe(7)).
            return super().write(data[: select.PIPE_BUF]) or len(data)
        return len(data)
