"""Make files and their names durable: a name survives a power loss only once its directory was synced, too."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path


def sync_file(descriptor: int) -> None:
    """Wait until an open file, or an open directory's entries, are on the disk."""
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - only needed there

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync(2) of macOS may leave the bytes in the drive's cache
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL):
                raise  # else the file system has only the weaker call
    os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Wait until a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def sync_parents(path: Path) -> None:
    """Make the name of a path and those of its parents durable, including existing ones.

    Whoever created them may have died before syncing them. Stops at the first directory that this user may not read: those above
    belong to other users, and existed before.
    """
    for parent in path.parents:
        try:
            sync_directory(parent)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS):
                return
            raise
