"""The file of rejected lines, unchanged."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jobs_backup.spool.errors import file_error
from jobs_backup.util.fsync import sync_directory, sync_file
from jobs_backup.util.opening import make_directory, open_file, read_file


@contextmanager
def _spool_errors(path: Path) -> Generator[None]:
    try:
        yield
    except (OSError, MemoryError) as error:
        raise file_error(path, error) from error


def short_name(name: str) -> str:
    """Name of an input's file, for use in other file names."""
    # File systems limit the length in bytes; a character cut in half is dropped.
    return os.fsencode(Path(name).name.replace(" ", "-"))[:160].decode("utf-8", "ignore")


def rejects_name(name: str, unique: str) -> str:
    """Name of an input's rejects file."""
    return f"{short_name(name)}-{unique}.ndjson"


def rejects_path(directory: Path, name: str) -> Path:
    """Path of that file, in the directory of rejects."""
    return directory / os.fsdecode(name.encode())  # the system's encoding may not be UTF-8


class Rejects:
    """Appends lines. Its size is always that of the committed position, also after a crash.

    Every method raises SpoolError if the file cannot be used.
    """

    def __init__(self, path: Path, committed: int | None) -> None:
        """`committed` is its size at the position from which the input is read, None if that is the beginning."""
        self.path = path
        self._file: BinaryIO | None = None
        self._synced = True
        with _spool_errors(path):
            self._size = path.stat().st_size if path.exists() else 0
            if committed is not None and committed < self._size:
                os.truncate(path, committed)
                self._size = committed

    def _make_directory(self) -> None:
        """That of a spool in a directory is there."""
        parents = (self.path.parent, *self.path.parent.parents)
        for missing in reversed([path for path in parents if not path.exists()]):
            make_directory(missing)

    def add(self, *parts: bytes | bytearray) -> None:
        """Reject a line, or parts of one."""
        with _spool_errors(self.path):
            if self._file is None:
                self._make_directory()
                descriptor = open_file(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                self._file = os.fdopen(descriptor, "ab")
                sync_directory(self.path.parent)
            for part in parts:
                self._file.write(part)
                self._size += len(part)
        self._synced = False

    def sync(self) -> int:
        """Its size, once all of it is on disk."""
        if self._file is not None and not self._synced:
            with _spool_errors(self.path):
                self._file.flush()
                sync_file(self._file.fileno())
            self._synced = True
        return self._size

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with _spool_errors(self.path):
                self._file.close()


def rejected_lines(path: Path) -> int:
    """Number of lines in such a file; 0 if it no longer exists. Raises SpoolError if it cannot be read."""
    lines = 0
    with _spool_errors(path):
        try:
            with read_file(path) as file:
                while block := file.read(1 << 20):
                    lines += block.count(b"\n")
        except FileNotFoundError:
            pass
    return lines
