"""Operating-system locks, which end with their process: they show which processes are alive, and who reads an input."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
import weakref
from pathlib import Path
from typing import Final, NamedTuple, Self

from jobs_backup.checksum import crc32c
from jobs_backup.spool.sqlite.database import FilesLost, database_errors
from jobs_backup.spool.sqlite.forks import ForkLock
from jobs_backup.util.logs import logger_of
from jobs_backup.util.opening import keep_private

log: Final = logger_of(__name__)

_LOOK_SECONDS: Final = 0.005
_WITNESS: Final = struct.Struct("<IQ")


class Witness(NamedTuple):
    """Number of events a process had recorded into the file it wrote last, and the number of that file."""

    file: int
    events: int


class ProcessLock:
    """An exclusive lock on `<directory>/<name>.lock`. It ends with its process, however that ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.name = path.stem
        self._path = path
        self._descriptor: int | None = descriptor
        self._file = os.fstat(descriptor)
        _held.add(self)

    @classmethod
    def try_to_take(cls, directory: Path, name: str) -> Self | None:
        """Take the lock; None if another process has it."""
        path = directory / f"{name}.lock"
        with database_errors(path):
            if (descriptor := _try(path)) is None:
                time.sleep(_LOOK_SECONDS)  # another process may only have been checking it
                descriptor = _try(path)
            return None if descriptor is None else cls(path, descriptor)

    @staticmethod
    def is_held(directory: Path, name: str) -> bool:
        """Whether a process holds the lock."""
        path = directory / f"{name}.lock"
        with database_errors(path), _looking.lock:
            try:
                descriptor = _open(path, os.O_RDWR)
            except FileNotFoundError:
                return False
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                _close(descriptor)
        return False

    def is_there(self) -> bool:
        """Whether other processes can still find it."""
        with database_errors(self._path):
            try:
                return os.path.samestat(self._path.stat(), self._file)
            except FileNotFoundError:
                return False

    def check(self) -> None:
        """Check that other processes can still find it.

        Raises:
            FilesLost: its file was removed, so another process may consider this one dead.
        """
        if not self.is_there():
            raise FilesLost(
                f"{self._path} was removed or replaced while it was in use",
                hint="find out what did it: a cleaner of old files, for example, which must leave the spool alone",
            )

    def witness(self, file: int, events: int) -> None:
        """Note how many events this process has recorded into a file.

        The process that recovers its events compares the count, which reveals a truncated log. It is not synced, because it only
        needs to survive the process.
        """
        data = _WITNESS.pack(file, events)
        with database_errors(self._path):
            assert self._descriptor is not None
            os.pwrite(self._descriptor, data + crc32c(data).to_bytes(4, "little"), 0)

    def read_witness(self) -> Witness | None:
        """Read what the previous holder noted; None if there is nothing, or nothing readable."""
        with database_errors(self._path):
            assert self._descriptor is not None
            noted = os.pread(self._descriptor, _WITNESS.size + 4, 0)
        data = noted[: _WITNESS.size]
        if len(noted) != _WITNESS.size + 4 or crc32c(data) != int.from_bytes(noted[_WITNESS.size :], "little"):
            return None
        return Witness(*_WITNESS.unpack(data))

    def release(self, *, remove: bool) -> None:
        """Release the lock; `remove` also removes its file, if no process will need it again."""
        if self._descriptor is not None:
            try:
                if remove and os.path.samestat(self._path.stat(), self._file):  # else it already belongs to another process
                    self._path.unlink(missing_ok=True)
            except FileNotFoundError:
                pass
            except OSError as error:  # the next process that starts to upload removes it
                log.warning("cannot remove %s yet: %s", self._path, error.strerror)
            finally:
                self.drop()

    def forget(self) -> None:
        """Give up the lock in a child: it is the parent's."""
        self._descriptor = None

    def drop(self) -> None:
        """Close the descriptor."""
        if (descriptor := self._descriptor) is not None:
            self._descriptor = None
            with contextlib.suppress(OSError):  # it is closed anyway, close(2), and there was nothing written to lose
                _close(descriptor)


def _try(path: Path) -> int | None:
    while True:
        with _looking.lock:
            descriptor = _open(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, descriptor):
                    return descriptor
                _close(descriptor)  # removed meanwhile: no other process would find this lock
            except BlockingIOError:
                _close(descriptor)
                return None
            except BaseException:
                _close(descriptor)
                raise


def _open(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    _descriptors.add(descriptor)
    if flags & os.O_CREAT:
        keep_private(descriptor)
    return descriptor


def _close(descriptor: int) -> None:
    with _looking.lock:  # else another thread may open it again before it is discarded
        os.close(descriptor)
        _descriptors.discard(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


_held: Final = weakref.WeakSet[ProcessLock]()
_descriptors: Final = set[int]()
"""Of lock files that are open, whether the lock is held or only checked."""
_looking: Final = ForkLock()
"""Held from opening a lock file until its descriptor is known."""


def _after_fork_in_child() -> None:
    # The lock belongs to the open file, which the child shares, so it would outlive the parent. Closing the child's descriptor
    # leaves the parent's lock in place (unlocking it would not).
    _looking.reset()
    for lock in list(_held):
        lock.forget()
    while _descriptors:
        with contextlib.suppress(OSError):
            os.close(_descriptors.pop())


os.register_at_fork(before=_looking.begin_fork, after_in_parent=_looking.end_fork, after_in_child=_after_fork_in_child)
