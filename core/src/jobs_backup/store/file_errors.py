"""File system errors as errors of jobs-backup, for the provider FILE."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from jobs_backup.errors import JobsBackupError, NotSupported, ObjectNotFound, PermissionDenied, Unavailable
from jobs_backup.sdk import explain

LACKING: Final = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""Errors for an operation that a file system lacks. Some operations have further numbers."""
MAX_NAME_BYTES: Final = 255
"""Longest name, in bytes, that format/keys.py makes of ids."""
_ELSEWHERE: Final = "use a directory on another file system"
NO_LINKS: Final = f"set JOBS_BACKUP_CONDITIONAL_WRITES=false, or {_ELSEWHERE}"
_NAMES: Final = (
    "shorten or change the ids of sources and workspaces, INSTANCE_ID or JOBS_BACKUP_PREFIX;"
    " or set JOBS_BACKUP_BUCKET to a directory on another file system"
)

_OF_THE_KEY: Final[Mapping[int, tuple[str, str]]] = {
    errno.ENAMETOOLONG: ("a name in it is too long for the file system", _NAMES),
    errno.EILSEQ: ("the file system does not allow such a name", _NAMES),
    errno.EINVAL: ("the file system does not allow such a name", _NAMES),
    errno.EFBIG: ("the object is too large for the file system", f"lower JOBS_BACKUP_BATCH_BYTES, or {_ELSEWHERE}"),
    errno.EXDEV: (
        "a directory on its path is on another file system than the bucket",
        "keep the bucket on one file system: remove the mount or the link",
    ),
}
"""Errors specific to one object."""
_MAY_PASS: Final[Mapping[int, str]] = {
    errno.EIO: "check the disk of {root}, and the kernel's log",
    errno.ESTALE: "mount {root} again",
    errno.ENOTCONN: "mount {root} again",
    errno.ENOTDIR: "a file is where a directory must be: move it away",
    errno.EISDIR: "a directory is where the object must be: move it away",
}


@contextmanager
def translated(action: str, key: str, root: Path) -> Generator[None]:
    """Turn the operating system's errors within the block into our own."""
    try:
        yield
    except OSError as error:
        raise _translated(f"{action} {key!r}", error, root) from None  # its path contains the upload's id


def _translated(what: str, error: OSError, root: Path) -> JobsBackupError:
    said = error.strerror or type(error).__name__
    if isinstance(error, PermissionError):
        hint = f"let this user read and write {root}"
        return PermissionDenied(f"{what}: permission denied", action="writing", resource=str(root), hint=hint)
    if isinstance(error, FileNotFoundError):
        return ObjectNotFound(f"{what}: no such file")
    if error.errno == errno.EROFS:
        hint = f"mount {root} for writing; errors make a file system read-only: check the kernel's log"
        return PermissionDenied(f"{what}: {said}", action="writing", resource=str(root), hint=hint)
    number = error.errno or 0
    if number in LACKING or number in _OF_THE_KEY:
        why, hint = _OF_THE_KEY.get(number, (f"the file system of {root} cannot do this", _ELSEWHERE))
        return lacks(f"{what}: {why}: {said}", hint)
    hint = _MAY_PASS.get(number, "check the file system of {root}").format(root=root)
    why, hint = explain(error, root, hint)
    return Unavailable(f"{what}: {root}: {why}", hint=hint)


def lacks(message: str, hint: str) -> NotSupported:
    """An error that may be specific to one object, and may come after the object got its name."""
    error = NotSupported(message, hint=hint)
    error.refused = False
    return error


@contextmanager
def written(key: str, root: Path) -> Generator[None]:
    """Ensure that once an object has its name, no error says the store refused it: core would also upload it elsewhere."""
    try:
        yield
    except PermissionError as error:
        hint = f"retried; let this user read {root} and all directories in it"
        raise Unavailable(f"{key!r} is written, but not durable yet: {error.strerror}", hint=hint) from None
    except OSError as error:
        if error.errno in LACKING | {errno.EINVAL}:  # fsync(2): EINVAL
            message = f"{key!r} is written, but not durable: the file system of {root} cannot sync what was written"
            raise lacks(message, f"{_ELSEWHERE}: otherwise a power loss may destroy the object") from None
        raise Unavailable(f"{key!r} is written, but not durable yet: {error.strerror}", hint="retried") from None


def warnings(root: Path, work: str) -> list[str]:
    """Warn of what does not prevent writing objects, but is worth knowing. `work`: a directory in `root`, in lower case."""
    found: list[str] = []
    with suppress(OSError):
        if (root / work.upper()).exists():
            found.append(
                f"the file system of {root} ignores upper and lower case: sources whose ids differ in nothing else share a"
                " directory, and replay --list finds their events under one id"
            )
        longest = os.pathconf(root, "PC_NAME_MAX")
        if 0 < longest < MAX_NAME_BYTES:
            found.append(
                f"names on the file system of {root} have at most {longest} bytes instead of {MAX_NAME_BYTES}: with long ids of"
                " sources and workspaces, objects cannot be written"
            )
    return found
