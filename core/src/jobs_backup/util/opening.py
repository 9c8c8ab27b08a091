"""Open files that must be regular ones. A named pipe in their place would block until it has another end: forever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file without waiting. One that is created is private, whatever the umask. Returns its descriptor."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if flags & os.O_CREAT:
        keep_private(descriptor)
    return descriptor


def keep_private(descriptor: int) -> None:
    """Give the owner of a new file the permissions that a umask may have taken."""
    status = os.fstat(descriptor)
    if status.st_mode & 0o600 != 0o600 and status.st_uid == os.geteuid():
        os.fchmod(descriptor, 0o600)


def make_directory(path: Path) -> bool:
    """Create a private directory, whatever the umask. Returns False if it exists."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    path.chmod(0o700)  # a umask may take the owner's own permissions
    return True


def make_file(path: Path) -> None:
    """Create an empty private file, whatever the umask, or leave the one that exists."""
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT)
    os.close(descriptor)


def read_file(path: Path) -> BinaryIO:
    """Open a file to read it. A named pipe appears empty."""
    return os.fdopen(open_file(path), "rb")
