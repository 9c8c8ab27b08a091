"""Operating system errors as spool errors, for the engines and the modules beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jobs_backup.errors import SpoolError
from jobs_backup.util.exhaustion import explain

LOOK: Final = "check the disk and the permissions of the spool's directory"


def file_error(path: Path, error: OSError | MemoryError) -> SpoolError:
    """The error for a file or directory at `path`: which resource ran out, and what to do."""
    if isinstance(error, MemoryError):
        return SpoolError(f"{path}: out of memory", hint="give the process more memory")
    why, hint = explain(error, path, LOOK)
    return SpoolError(f"{path}: {why}", hint=hint)


def reentered() -> SpoolError:
    """The error for a call inside another one of the same thread, which would wait for itself forever."""
    return SpoolError(
        "called within another call of the same Backup in this thread, as from a signal handler, `__del__` or a logging handler",
        hint="hand the event to another thread there, for example by a queue.SimpleQueue",
    )
