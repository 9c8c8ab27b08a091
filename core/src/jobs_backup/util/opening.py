"""Open files that must be regular ones. A named pipe in their place would block until it has another end: forever."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file without waiting. One that is created is private. Returns its descriptor."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


def read_file(path: Path) -> BinaryIO:
    """Open a file to read it. A named pipe appears empty."""
    return os.fdopen(open_file(path), "rb")
