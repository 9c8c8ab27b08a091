"""The spool's disk: private directories, no network file systems, free space, and a reserve for when there is none."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from typing import Final

from jobs_backup.errors import SpoolError
from jobs_backup.util.exhaustion import explain
from jobs_backup.util.fsync import sync_directory, sync_parents
from jobs_backup.util.opening import make_directory, open_file

_MOUNTS: Final = Path("/proc/self/mountinfo")

_NETWORK: Final = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "smb3", "smbfs",
    "fuse.blobfuse", "fuse.blobfuse2", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys", "fuse.juicefs", "fuse.moosefs",
    "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.seaweedfs", "fuse.sshfs",
})  # fmt: skip

_MAX_PATH: Final = 478
"""Bytes. SQLite's limit is 504, and the longest name in a spool, with the suffix of its log, has 26 (tested)."""
_RELEASE_BELOW: Final = 4 << 20


def make_directories(directory: Path) -> None:
    """Create the spool's directories, private to their owner whatever the umask; existing ones become private.

    Raises:
        SpoolError: they cannot be created, or belong to another user.
    """
    try:
        if len(os.fsencode(directory.resolve())) > _MAX_PATH:
            raise SpoolError(
                f"the path of the spool, {directory}, has more than {_MAX_PATH} bytes, which SQLite does not support",
                hint="set JOBS_BACKUP_SPOOL_DIR to a shorter path",
            )
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        for path in reversed(missing):
            _make_directory(path)
        _make_private(directory)
        sync_parents(directory.resolve())
        for name in ("blobs", "locks", "rejects", "quarantine"):
            path = directory / name
            if path.is_symlink():
                raise SpoolError(
                    f"{path} is a symbolic link", hint="set JOBS_BACKUP_SPOOL_DIR to the directory where the whole spool should be"
                )
            if not path.is_dir():
                _make_directory(path)
            _make_private(path)
        sync_directory(directory)
    except OSError as error:
        hint = "set JOBS_BACKUP_SPOOL_DIR to a directory on a local disk that this user can write to"
        why, hint = explain(error, directory, hint)
        raise SpoolError(f"{directory}: {why}", hint=hint) from error


def _make_directory(path: Path) -> None:
    make_directory(path)
    sync_directory(path.parent)


def _make_private(path: Path) -> None:
    status = path.stat()
    if os.geteuid() and status.st_uid not in (os.geteuid(), 0):
        raise SpoolError(
            f"{path} belongs to another user (uid {status.st_uid})", hint="set JOBS_BACKUP_SPOOL_DIR to a directory of this user"
        )
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        path.chmod(0o700)  # else it is the system's, like a volume's directory; what we create in it is private anyway


def free_bytes(directory: Path) -> int:
    """Bytes this user can still write on the directory's file system."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def refuse_network(directory: Path, mounts: Path = _MOUNTS) -> None:
    """Check that a directory is on a local file system. Linux only (proc(5), `mountinfo`); elsewhere nothing is checked.

    SQLite's write-ahead log needs memory shared by all processes, which network file systems do not provide (sqlite.org/wal.html),
    and locks there may be lost.

    Raises:
        SpoolError: it is on a network file system.
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
        # Of several mounts on one point, the last one hides the others.
        if directory.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, type_ = point, rest.split()[0]
    if type_ in _NETWORK:
        raise SpoolError(
            f"{directory} is on a network file system ({type_}), which would damage a spool",
            hint="set JOBS_BACKUP_SPOOL_DIR to a directory on a local disk",
        )


class Ballast:
    """A file that only takes up space. It is released on a full disk, so that the catalog can still be written.

    SQLite cannot insert, delete or checkpoint on a full disk: without the ballast, uploads could not even be noted.
    """

    SIZE: Final = 16 << 20
    """Bytes; several times what the catalog's log may hold before its checkpoint."""

    def __init__(self, directory: Path, *, min_free: int) -> None:
        """`min_free` is what recording leaves free on the disk, in addition to the ballast."""
        self._path = directory / "ballast"
        self._min_free = min_free

    @property
    def min_free(self) -> int:
        """What recording leaves free now: it must not use up the released ballast."""
        return self._min_free if self._is_there() else self._min_free + self.SIZE

    def balance(self) -> None:
        """Release the file on a full disk; create it when there is plenty of space.

        Raises:
            OSError: the directory cannot be written.
        """
        free = free_bytes(self._path.parent)
        if free < _RELEASE_BELOW:
            self._path.unlink(missing_ok=True)
        elif free >= self._min_free + 2 * self.SIZE and not self._is_there():
            self._make()

    def _is_there(self) -> bool:
        """Whether it is complete: a process killed while making it leaves less."""
        try:
            return self._path.stat().st_size >= self.SIZE
        except FileNotFoundError:
            return False

    def _make(self) -> None:
        descriptor = open_file(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            _allocate(descriptor, self.SIZE)
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def _allocate(descriptor: int, size: int) -> None:
    """Allocate space for an empty file. macOS and some file systems have no call for this: write the space instead."""
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
