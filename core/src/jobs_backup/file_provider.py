"""FILE: a directory as bucket. No cloud, no dependency: for trying things, and for a disk that something else backs up."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, ClassVar, Final, Self

import crc32c

from jobs_backup.errors import (
    AlreadyExists,
    BucketNotFound,
    ConfigurationError,
    IntegrityError,
    JobsBackupError,
    ObjectNotFound,
    PermissionDenied,
    Unavailable,
    UploadGone,
)
from jobs_backup.fsync import sync_directory
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, Body, DeleteReceipt, Listed, Outcome, Page, Part, Upload, WriteReceipt
from jobs_backup.settings import Settings, Variable

_BLOCK: Final = 1 << 17
_WORK: Final = ".jobs-backup"
"""Directory in the bucket for what is being written; on the same file system, so that it can be renamed into its place."""
_PAGE: Final = 1000


class FileSettings(Settings, frozen=True, kw_only=True):
    """What FILE reads from the environment."""

    bucket: Annotated[
        Path, Variable("JOBS_BACKUP_BUCKET", "The directory. It has to exist, as a bucket has to.", example="/backups")
    ]


class FileProvider:
    """Objects are files below a directory: written beside their place, fsynced, renamed, and the directories fsynced."""

    API_VERSION: ClassVar = 1
    settings: ClassVar = FileSettings

    def __init__(self, settings: FileSettings) -> None:
        self._root = settings.bucket.absolute()
        self.location = self._root.as_uri()

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.from_settings`."""
        return cls(FileSettings.from_environment(environment))

    @hookimpl
    def write(self, key: str, body: Body, checksum: int, if_absent: bool) -> WriteReceipt:
        with self._errors("write", key), self._draft() as (draft, path):
            _copy(body, draft, checksum)
            return self._publish(path, key, if_absent)

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
                raise UploadGone(f"the upload of {upload.key} does not exist any more")
            with self._draft() as (draft, path):
                value = _copy(body, draft, None)
                path.replace(directory / str(number))
            sync_directory(directory)
            return Part(number=number, crc32c=value)

    @hookimpl
    def complete_multipart(self, upload: Upload, parts: Sequence[Part], size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        with self._errors("complete_multipart", upload.key):
            directory = self._parts(upload)
            files = [directory / str(part.number) for part in parts] if directory else []
            if directory is None or not all(file.is_file() for file in files):
                raise UploadGone(f"the upload of {upload.key} does not exist any more, or lacks a part")
            with self._draft() as (draft, path):
                value = 0
                for file in files:
                    with file.open("rb") as part:
                        value = _append(part, draft, value)
                if draft.tell() != size or value != checksum:
                    raise IntegrityError(f"the parts of {upload.key} are not the bytes that its checksum was made of")
                receipt = self._publish(path, upload.key, if_absent)
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
            found = sorted(self._walk(), key=lambda one: one.key)
        objects = [one for one in found if one.key.startswith(prefix) and one.key > after]
        more = len(objects) > _PAGE
        return Page(objects=objects[:_PAGE], after=objects[_PAGE - 1].key if more else None)

    def _walk(self) -> Iterator[Listed]:
        for path in self._bucket().rglob("*"):
            key = path.relative_to(self._root).as_posix()
            if path.is_file() and not path.is_symlink() and not key.startswith(_WORK + "/"):
                yield Listed(key=key, size=path.stat().st_size)

    def _bucket(self) -> Path:
        if not self._root.is_dir():
            raise BucketNotFound(
                f"there is no directory {self._root}", hint=f"mkdir -p {self._root}, or correct JOBS_BACKUP_BUCKET"
            )
        return self._root

    def _work(self) -> Path:
        work = self._bucket() / _WORK
        work.mkdir(mode=0o700, exist_ok=True)
        if work.is_symlink():
            raise ConfigurationError(f"{work} is a symbolic link", hint="remove the link")
        return work

    def _parts(self, upload: Upload) -> Path | None:
        """The directory of an upload's parts, None if there is none. What a link leads to is none of ours to write or remove."""
        directory = self._work() / upload.id
        return directory if upload.id.isalnum() and directory.is_dir() and not directory.is_symlink() else None

    def _target(self, key: str) -> Path:
        """The file of a key. Refuses what would lie outside of the bucket, also through a symbolic link in it."""
        parts = PurePosixPath(key).parts
        if not key or key.startswith("/") or ".." in parts or "\0" in key or parts[0] == _WORK or "/".join(parts) != key:
            raise ConfigurationError(
                f"key {key!r} does not name a file in the bucket", hint="use keys without empty parts, '.' and '..'"
            )
        target = self._bucket() / key
        try:
            root, directory = self._root.resolve(), target.parent.resolve()
        except RuntimeError as error:  # a loop of links
            raise ConfigurationError(f"key {key!r} has no place in the bucket: {error}", hint="remove the link") from error
        if target.is_symlink() or not directory.is_relative_to(root) or directory.is_relative_to(root / _WORK):
            raise ConfigurationError(f"key {key!r} leads out of its place through a symbolic link", hint="remove the link")
        return target

    @contextmanager
    def _draft(self) -> Generator[tuple[BinaryIO, Path]]:
        """A new file in the work directory; what of it was not renamed is removed."""
        path = self._work() / f"{secrets.token_hex(16)}.tmp"
        try:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w+b") as draft:
                yield draft, path
        finally:
            path.unlink(missing_ok=True)

    def _publish(self, draft: Path, key: str, if_absent: bool) -> WriteReceipt:
        target = self._target(key)
        missing = [parent for parent in target.parents if not parent.exists()]
        for directory in reversed(missing):
            directory.mkdir(mode=0o700, exist_ok=True)  # as private as the objects, whatever the umask is
        if if_absent:
            try:
                os.link(draft, target)  # unlike a rename, a link never replaces
            except FileExistsError as error:
                raise AlreadyExists(f"{key} exists") from error
        else:
            draft.replace(target)
        for directory in (target.parent, *(parent.parent for parent in missing)):
            sync_directory(directory)
        return WriteReceipt()

    def _remove(self, upload: Upload) -> bool:
        directory = self._parts(upload)
        if directory is None:
            return False
        for file in directory.iterdir():
            file.unlink(missing_ok=True)
        directory.rmdir()
        sync_directory(directory.parent)
        return True

    @contextmanager
    def _errors(self, action: str, key: str) -> Generator[None]:
        """The operating system's errors as the taxonomy's."""
        try:
            yield
        except PermissionError as error:
            raise PermissionDenied(
                f"{action} {key!r}: permission denied",
                action="writing",
                resource=str(self._root),
                hint=f"let this user write to {self._root}",
            ) from error
        except FileNotFoundError as error:
            raise ObjectNotFound(f"{action} {key!r}: no such file") from error
        except OSError as error:
            raise Unavailable(f"{action} {key!r}: {error.strerror}", hint=f"look at the file system of {self._root}") from error


class _FileBody(Body):
    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    def open(self) -> BinaryIO:
        return self._path.open("rb")


def _copy(body: Body, target: BinaryIO, checksum: int | None) -> int:
    """Write a body, to the disk. Returns its CRC-32C.

    Raises:
        IntegrityError: the body is not what `checksum` and its size promise.
    """
    with body.open() as source:
        value = _append(source, target, 0)
    if target.tell() != body.size or (checksum is not None and value != checksum):
        raise IntegrityError("the bytes are not those that the checksum was made of")
    return value


def _append(source: BinaryIO, target: BinaryIO, value: int) -> int:
    while block := source.read(_BLOCK):
        target.write(block)
        value = crc32c.crc32c(block, value)
    target.flush()
    os.fsync(target.fileno())
    return value
