"""What the operating system refuses, as an error of the spool: for its engines, and for what lies beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jobs_backup.errors import SpoolError
from jobs_backup.util.exhaustion import explain

LOOK: Final = "look at the disk and the permissions of the spool's directory"


def file_error(path: Path, error: OSError | MemoryError) -> SpoolError:
    """The error of a file or directory at `path`, with what has run out, and what to do."""
    if isinstance(error, MemoryError):
        return SpoolError(f"{path}: out of memory", hint="give the process more memory")
    why, hint = explain(error, path, LOOK)
    return SpoolError(f"{path}: {why}", hint=hint)
