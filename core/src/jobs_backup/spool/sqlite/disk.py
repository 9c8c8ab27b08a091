"""The disk under the spool: private directories, no network file system, free space, and a reserve for when there is none."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from typing import Final

from jobs_backup.errors import SpoolError
from jobs_backup.util.exhaustion import explain
from jobs_backup.util.fsync import sync_directory

_MOUNTS: Final = Path("/proc/self/mountinfo")

_NETWORK: Final = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "smb3", "smbfs",
    "fuse.blobfuse", "fuse.blobfuse2", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs", "fuse.moosefs",
    "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.seaweedfs", "fuse.sshfs",
})  # fmt: skip

_MAX_PATH: Final = 478
"""Bytes. SQLite takes 504, and the longest name in a spool, with the ending of its log, has 26 (tried)."""
_RELEASE_BELOW: Final = 4 << 20


def make_directories(directory: Path) -> None:
    """Make the spool's directories, for their owner alone, whatever the umask is; those that were there become so.

    Raises:
        SpoolError: they can't be made, or are another user's.
    """
    try:
        if len(os.fsencode(directory.resolve())) > _MAX_PATH:
            raise SpoolError(
                f"the path of the spool, {directory}, has more than {_MAX_PATH} bytes, which SQLite does not take",
                hint="set JOBS_BACKUP_SPOOL_DIR to a shorter path",
            )
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        for path in reversed(missing):
            _make_directory(path)
        _make_private(directory)
        _sync_names(directory)
        for name in ("blobs", "locks", "rejects", "quarantine"):
            path = directory / name
            if path.is_symlink():
                raise SpoolError(f"{path} is a symbolic link", hint="set JOBS_BACKUP_SPOOL_DIR to where the whole spool shall be")
            if not path.is_dir():
                _make_directory(path)
            _make_private(path)
        sync_directory(directory)
    except OSError as error:
        hint = "set JOBS_BACKUP_SPOOL_DIR to a directory on a local disk that this user may write to"
        why, hint = explain(error, directory, hint)
        raise SpoolError(f"{directory}: {why}", hint=hint) from error


def _make_directory(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)


def _sync_names(directory: Path) -> None:
    """Make the names on the way to a directory durable, whoever made them: a process may have died before it did.

    Those above the first one that this user may not read are somebody else's, and were there before.
    """
    for parent in directory.resolve().parents:
        try:
            sync_directory(parent)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EROFS):
                return
            raise


def _make_private(path: Path) -> None:
    status = path.stat()
    if os.geteuid() and status.st_uid not in (os.geteuid(), 0):
        raise SpoolError(
            f"{path} belongs to another user (uid {status.st_uid})", hint="set JOBS_BACKUP_SPOOL_DIR to a directory of this user"
        )
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        path.chmod(0o700)  # else it is the system's, as a volume's directory may be; what we make in it is private all the same


def free_bytes(directory: Path) -> int:
    """What this user can still write on the directory's file system."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def refuse_network(directory: Path, mounts: Path = _MOUNTS) -> None:
    """Check that a directory is on a local file system: where Linux tells (proc(5), `mountinfo`); elsewhere nothing is checked.

    SQLite's write-ahead log needs memory that all processes share, which a network file system does not give
    (sqlite.org/wal.html), and locks there may be lost.

    Raises:
        SpoolError: it is on a network.
    """
    try:
        lines = mounts.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    directory = directory.resolve()
    best, type_ = Path(), ""
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split()[4]))
        # Of several on one point the last one counts: it hides the others.
        if directory.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, type_ = point, rest.split()[0]
    if type_ in _NETWORK:
        raise SpoolError(
            f"{directory} is on a network file system ({type_}), on which a spool would be damaged",
            hint="set JOBS_BACKUP_SPOOL_DIR to a directory on a local disk",
        )


class Ballast:
    """A file that only takes up space. On a full disk it is given up, so that the catalog can still be written.

    SQLite can't insert, delete or checkpoint on a full disk: without it, what is sent could not even be marked as stored.
    """

    SIZE: Final = 16 << 20
    """Bytes; several times what the catalog's log may have before its checkpoint."""

    def __init__(self, directory: Path, *, min_free: int) -> None:
        """`min_free` is what recording leaves free on the disk, beside the ballast."""
        self._path = directory / "ballast"
        self._min_free = min_free

    @property
    def min_free(self) -> int:
        """What recording leaves free now: it shall not take what was given up."""
        return self._min_free if self._is_there() else self._min_free + self.SIZE

    def balance(self) -> None:
        """Give the file up on a full disk; make it where there is plenty of space.

        Raises:
            OSError: the directory can't be written.
        """
        free = free_bytes(self._path.parent)
        if free < _RELEASE_BELOW:
            self._path.unlink(missing_ok=True)
        elif free >= self._min_free + 2 * self.SIZE and not self._is_there():
            self._make()

    def _is_there(self) -> bool:
        """In full: who was killed while making it has left less."""
        try:
            return self._path.stat().st_size >= self.SIZE
        except FileNotFoundError:
            return False

    def _make(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _allocate(descriptor, self.SIZE)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def _allocate(descriptor: int, size: int) -> None:
    """Have an empty file take up this much space. macOS has no call for it, nor has every file system: there it is written."""
    if sys.platform != "darwin" and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    block = memoryview(bytes(1 << 20))
    while size > 0:
        size -= os.write(descriptor, block[:size])
