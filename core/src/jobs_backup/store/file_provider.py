"""FILE: a directory as bucket. Needs no cloud and no dependency: for trials, and for a disk that something else backs up."""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Annotated, BinaryIO, ClassVar, Final, Self

from jobs_backup.bodies import Source
from jobs_backup.checksum import crc32c
from jobs_backup.errors import (
    AlreadyExists,
    BucketNotFound,
    ConfigurationError,
    IntegrityError,
    JobsBackupError,
    NotSupported,
    UploadGone,
)
from jobs_backup.hookspecs import MANDATORY, MULTIPART, hookimpl
from jobs_backup.model import AbortReceipt, Body, DeleteReceipt, Listed, Outcome, Page, Part, Policy, Upload, WriteReceipt
from jobs_backup.sdk import sync_directory, sync_file, sync_parents
from jobs_backup.settings import Settings, Variable
from jobs_backup.store.file_errors import LACKING, NO_LINKS, translated, warnings, written

_BLOCK: Final = 1 << 17
_WORK: Final = ".jobs-backup"
"""Directory in the bucket for files being written; on the same file system, so that they can be renamed into place."""
_PAGE: Final = 1000
_NO_LINKS: Final = LACKING | {errno.EPERM, errno.EMLINK}
"""Errors of link(2) where there are no hard links."""
_NAMELESS: Final[int] = getattr(os, "O_TMPFILE", 0) if Path("/proc/self/fd").is_dir() else 0


class FileSettings(Settings, frozen=True, kw_only=True):
    """Settings of FILE in the environment."""

    bucket: Annotated[Path, Variable("JOBS_BACKUP_BUCKET", "Directory for the objects. It must exist.", example="/backups")]


class FileProvider:
    """Store objects as files below a directory, durably.

    A file is written without a name, fsynced, then linked; then every directory on its path is fsynced. A call that reports an
    object as uploaded has itself synced its bytes and each name on its path. Earlier calls are not trusted: one may have died, or
    failed, between creating a name and syncing it. Objects are not read back, because the page cache would answer instead of the
    disk.
    """

    API_VERSION: ClassVar = 1
    settings: ClassVar = FileSettings

    def __init__(self, settings: FileSettings) -> None:
        self._root = settings.bucket.absolute()
        self._named: object = None  # the directory whose name, and those of its parents, this process has synced
        self.location = self._root.as_uri()

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.from_settings`."""
        return cls(FileSettings.from_environment(environment))

    @property
    def warnings(self) -> list[str]:
        """See `Provider`."""
        return warnings(self._root, _WORK)

    @hookimpl
    def write(self, key: str, body: Body, checksum: int, if_absent: bool) -> WriteReceipt:
        with self._errors("write", key), _Draft(self._work()) as draft:
            _copy(body, draft.file, checksum)
            return self._publish(draft, key, if_absent)

    @hookimpl
    def create_multipart(self, key: str) -> Upload:
        with self._errors("create_multipart", key):
            self._target(key)
            upload = Upload(key=key, id=secrets.token_hex(16))
            (self._work() / upload.id).mkdir(mode=0o700)
            sync_directory(self._work())
            return upload

    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body) -> Part:
        with self._errors("write_part", upload.key):
            directory = self._parts(upload)
            if directory is None:
                raise UploadGone(f"the upload of {upload.key} no longer exists")
            with _Draft(directory) as draft:
                value = _copy(body, draft.file, None)
                draft.replace(directory / str(number))
            with written(f"part {number} of {upload.key}", self._root):
                sync_directory(directory)
            return Part(number=number, crc32c=value)

    @hookimpl
    def complete_multipart(self, upload: Upload, parts: Sequence[Part], size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        with self._errors("complete_multipart", upload.key):
            directory = self._parts(upload)
            files = [directory / str(part.number) for part in parts] if directory else []
            if directory is None or not all(file.is_file() for file in files):
                raise UploadGone(f"the upload of {upload.key} no longer exists, or lacks a part")
            with _Draft(self._work()) as draft:
                value = 0
                for file in files:
                    with file.open("rb") as part:
                        value = _append(part, draft.file, value)
                if draft.file.tell() != size or value != checksum:
                    raise IntegrityError(f"the parts of {upload.key} do not match its checksum")
                receipt = self._publish(draft, upload.key, if_absent)
            with written(upload.key, self._root):
                self._remove(upload)
            return receipt

    @hookimpl
    def abort_multipart(self, upload: Upload) -> AbortReceipt:
        with self._errors("abort_multipart", upload.key):
            return AbortReceipt(Outcome.ABORTED if self._remove(upload) else Outcome.GONE)

    @hookimpl
    def delete(self, keys: Sequence[str]) -> DeleteReceipt:
        deleted: set[str] = set()
        failed: dict[str, Exception] = {}
        for key in keys:
            try:
                with self._errors("delete", key):
                    target = self._target(key)
                    target.unlink(missing_ok=True)
                    if target.parent.is_dir():
                        sync_directory(target.parent)
                deleted.add(key)
            except JobsBackupError as error:
                failed[key] = error
        return DeleteReceipt(deleted=frozenset(deleted), failed=failed)

    @hookimpl
    def read(self, key: str) -> Body:
        with self._errors("read", key):
            return _FileBody(self._target(key))

    @hookimpl
    def list(self, prefix: str, after: str) -> Page:
        with self._errors("list", prefix):
            self._bucket()
            found = [*islice(self._walk("", prefix, after), _PAGE + 1)]
        objects = found[:_PAGE]
        return Page(objects=objects, after=objects[-1].key if len(found) > _PAGE else None)

    @hookimpl
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool, format: str) -> Policy:  # noqa: ARG002
        """Print the command that creates the directory for this user only: write access implies all other access."""
        if format not in ("", "commands"):
            raise NotSupported(f"permissions of a directory are not available as {format}", hint="use --format commands")
        root = FileSettings.from_environment(settings).bucket.absolute()
        grants: dict[str, str] = dict.fromkeys((*MANDATORY, *MULTIPART, "read", "list"), "the directory")
        text = f'install --directory --owner="$(id -un)" --mode=700 {shlex.quote(str(root))}\n'
        return Policy(format="commands", text=text, grants=grants, resource=str(root))

    def _walk(self, below: str, prefix: str, after: str) -> Iterator[Listed]:
        """List objects whose keys begin with `below` (a directory or empty), in key order. Skips those deleted meanwhile."""
        try:
            with os.scandir(self._root / below) as entries:
                # With its slash, a directory sorts where its objects do: "a.b" before "a/b", though "a" is before "a.b".
                named = [one for one in entries if _is_utf8(one.name)]  # as keys are
            found = {f"{below}{one.name}{'/' * one.is_dir(follow_symlinks=False)}": one for one in named}
        except (FileNotFoundError, NotADirectoryError):
            return
        except PermissionError:
            if below == "lost+found/":  # the file system's own, if it is mounted here
                return
            raise
        for key in sorted(found):
            if key.endswith("/"):
                may_match = key.startswith(prefix) or prefix.startswith(key)
                if may_match and (key > after or after.startswith(key)) and key != f"{_WORK}/":
                    yield from self._walk(key, prefix, after)
            elif key.startswith(prefix) and key > after and found[key].is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    yield Listed(key=key, size=found[key].stat(follow_symlinks=False).st_size)

    def _bucket(self) -> Path:
        if not self._root.is_dir():
            raise BucketNotFound(
                f"directory {self._root} does not exist", hint=f"mkdir -p {self._root}, or correct JOBS_BACKUP_BUCKET"
            )
        return self._root

    def _work(self) -> Path:
        work = self._bucket() / _WORK
        work.mkdir(mode=0o700, exist_ok=True)
        if work.is_symlink():
            raise ConfigurationError(f"{work} is a symbolic link", hint="remove the link")
        return work

    def _parts(self, upload: Upload) -> Path | None:
        """The directory of an upload's parts, None if there is none. Ignores symbolic links, whose targets are not ours."""
        directory = self._work() / upload.id
        return directory if upload.id.isalnum() and directory.is_dir() and not directory.is_symlink() else None

    def _target(self, key: str) -> Path:
        """The file of a key. Refuses any path outside of the bucket, including through a symbolic link in it."""
        parts = PurePosixPath(key).parts
        if not key or key.startswith("/") or ".." in parts or "\0" in key or parts[0] == _WORK or "/".join(parts) != key:
            raise ConfigurationError(
                f"key {key!r} does not name a file in the bucket", hint="use keys without empty parts, '.' and '..'"
            )
        target = self._bucket() / key
        try:
            root, directory = self._root.resolve(), target.parent.resolve()
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                target.parent.stat()  # from Python 3.13 on, `resolve` accepts a loop of links
        except (RuntimeError, OSError) as error:
            raise ConfigurationError(f"key {key!r} has no valid path in the bucket: {error}", hint="remove the link") from error
        if target.is_symlink() or not directory.is_relative_to(root) or directory.is_relative_to(root / _WORK):
            raise ConfigurationError(f"key {key!r} leaves the bucket through a symbolic link", hint="remove the link")
        return target

    def _publish(self, draft: _Draft, key: str, if_absent: bool) -> WriteReceipt:
        target = self._target(key)
        missing = [parent for parent in target.parents if not parent.exists()]
        for directory in reversed(missing):
            directory.mkdir(mode=0o700, exist_ok=True)  # as private as the objects, whatever the umask is
        exists = False
        if if_absent:
            try:
                draft.link(target)  # unlike a rename, a link never replaces
            except FileExistsError:
                exists = True
        else:
            draft.replace(target)
        with written(key, self._root):
            if exists:
                self._renew(draft, target, key)
            self._sync_path(target.parent)
        if exists:
            raise AlreadyExists(f"{key} exists")
        return WriteReceipt()

    def _renew(self, draft: _Draft, target: Path, key: str) -> None:
        """Replace an object that has the same bytes by the draft.

        That object may never have reached the disk: after a failed fsync the kernel may count lost bytes as clean
        (fsync(2)), so neither reading nor syncing them again shows it. The draft has just been synced.
        """
        if not target.is_file() or not _are_same(draft.file, target):
            raise IntegrityError(f"{key!r} exists with other bytes", hint="check what it is, and move it away")
        draft.replace(target)

    def _sync_path(self, directory: Path) -> None:
        """Sync all directories from an object's up to the root of the file system, including those behind symbolic links.

        Those above the bucket only once: nothing here changes them, but whoever made the bucket may not have synced them.
        """
        root = self._root.resolve()
        status = root.stat()
        if self._named != (found := (root, status.st_dev, status.st_ino)):
            sync_parents(self._root)
            sync_parents(root)
            self._named = found
        for path in dict.fromkeys((*_upwards(directory, self._root), *_upwards(directory.resolve(), root))):
            sync_directory(path)

    def _remove(self, upload: Upload) -> bool:
        directory = self._parts(upload)
        if directory is None:
            return False
        with suppress(FileNotFoundError):  # another process may also be removing it
            for file in directory.iterdir():
                file.unlink(missing_ok=True)
            directory.rmdir()
        sync_directory(directory.parent)
        return True

    def _errors(self, action: str, key: str) -> AbstractContextManager[None]:
        return translated(action, key, self._root)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _upwards(directory: Path, root: Path) -> list[Path]:
    """A directory below `root` and its parents, up to `root`."""
    return [path for path in (directory, *directory.parents) if path.is_relative_to(root)]


def _are_same(draft: BinaryIO, target: Path) -> bool:
    draft.seek(0)
    with target.open("rb") as other:
        while block := draft.read(_BLOCK):
            if block != other.read(_BLOCK):
                return False
        return not other.read(1)


class _Draft:
    """A new file that gets its name once it is complete. Until then it has none, so that a kill leaves nothing behind.

    If the file system cannot make one without a name (Linux's O_TMPFILE, open(2)), a kill leaves it in the work directory.
    """

    def __init__(self, directory: Path) -> None:
        self._named = directory / f"{secrets.token_hex(16)}.tmp"
        self._path = self._named
        try:
            descriptor = os.open(directory, os.O_RDWR | _NAMELESS | os.O_CLOEXEC, 0o600)
            self._path = Path(f"/proc/self/fd/{descriptor}")
        except OSError:  # not supported, or not Linux: there, a directory cannot be opened for writing
            descriptor = os.open(self._named, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.file: BinaryIO = os.fdopen(descriptor, "w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.file.close()
        self._named.unlink(missing_ok=True)

    def link(self, target: Path) -> None:
        """Give it a name that is not in use.

        Raises:
            NotSupported: the file system has no hard links.
        """
        try:
            self._link(target)
        except OSError as error:
            if error.errno in _NO_LINKS and not self._can_link():
                raise NotSupported(f"the file system of {target} has no hard links", hint=NO_LINKS) from None
            raise

    def replace(self, target: Path) -> None:
        """Give it a name, replacing any file that had it."""
        if self._path != self._named:
            try:
                self._link(self._named)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._copy()
        self._named.replace(target)

    def _link(self, target: Path) -> None:
        # With a descriptor, meaningless for an absolute path, Python follows the link to the file, see linkat(2).
        os.link(self._path, target, src_dir_fd=self.file.fileno(), follow_symlinks=True)

    def _can_link(self) -> bool:
        """Whether it can get another name here: link(2) has one error for both "not permitted" and "not supported"."""
        name = self._named.with_suffix(".link")
        try:
            self._link(name)
        except OSError:
            return False
        name.unlink()
        return True

    def _copy(self) -> None:
        with self._named.open("xb") as named:
            self.file.seek(0)
            shutil.copyfileobj(self.file, named, _BLOCK)
            named.flush()
            sync_file(named.fileno())


class _FileBody(Body):
    def __init__(self, path: Path) -> None:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a named pipe would wait for its other end
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._path = path
        self.size = status.st_size

    def open(self) -> BinaryIO:
        return self._path.open("rb")


def _copy(body: Body, target: BinaryIO, checksum: int | None) -> int:
    """Write a body to the disk. Returns its CRC-32C.

    Raises:
        IntegrityError: the body does not match `checksum` or its size.
    """
    with Source(body, body.size) as source:
        value = _append(source, target, 0)
    if checksum is not None and value != checksum:
        raise IntegrityError("the bytes do not match the checksum")
    return value


def _append(source: BinaryIO | Source, target: BinaryIO, value: int) -> int:
    while block := source.read(_BLOCK):
        target.write(block)
        value = crc32c(block, value)
    target.flush()
    sync_file(target.fileno())
    return value
