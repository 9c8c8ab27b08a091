"""Which resource ran out when a system call fails, and what to do: the system's own message is often misleading."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final, NamedTuple


class Explained(NamedTuple):
    """Why a call failed, and what the operator can do."""

    why: str
    hint: str


NO_INODES: Final = Explained("no inodes are left on its file system", "remove files there, or use another file system")
_KNOWN: Final = {
    errno.ENOSPC: Explained("no space is left on its file system", "free space there"),
    errno.EDQUOT: Explained("the disk quota of this user is exhausted", "free space there, or raise the quota"),
    errno.EFBIG: Explained("the file would exceed the allowed size", "raise the limit (ulimit -f)"),
    errno.EMFILE: Explained(
        "this process has too many open files", "raise the limit of open files (ulimit -n, LimitNOFILE of systemd)"
    ),
    errno.ENFILE: Explained("this machine has too many open files", "raise fs.file-max, or find out what has them open"),
    errno.ENOMEM: Explained("out of memory", "give the process more memory"),
    errno.EAGAIN: Explained("too many processes or threads", "raise their limit (ulimit -u, pids of the container)"),
    errno.EROFS: Explained("its file system is read-only", "remount it; the kernel's log may say why"),
}


def explain(error: OSError, path: Path, hint: str) -> Explained:
    """Explain an error met at or below `path`; `hint` is used if nothing better is known."""
    if error.errno == errno.ENOSPC and not has_inodes(path):
        return NO_INODES
    return _KNOWN.get(error.errno or 0) or Explained(error.strerror or str(error), hint)


def has_inodes(path: Path) -> bool:
    """Whether a file can still be created at or for `path`. File systems that do not count inodes always have some."""
    try:
        found = os.statvfs(next(one for one in (path, *path.absolute().parents) if os.path.lexists(one)))
    except (OSError, StopIteration):
        return True
    return not found.f_files or found.f_favail > 0
