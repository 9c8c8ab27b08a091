"""A provider with buckets in memory: for tests of programs that use jobs-backup, and as an example of a whole provider.

It has no entry point, since its objects are lost with its process:

    MemoryProvider.buckets["events"] = {}
    with Backup.from_env({..., "JOBS_BACKUP_BUCKET": "events"}) as backup: ...
    assert MemoryProvider.buckets["events"]

To load it, define an entry point in your tests, or use `jobs_backup.testing.memory.loaded` without one.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final, Self

import msgspec

from jobs_backup.checksum import crc32c
from jobs_backup.errors import AlreadyExists, BucketNotFound, IntegrityError, ObjectNotFound, UploadGone
from jobs_backup.hookspecs import MULTIPART, hookimpl
from jobs_backup.model import (
    AbortReceipt,
    Body,
    BytesBody,
    DeleteReceipt,
    Listed,
    Outcome,
    Page,
    Part,
    Policy,
    Upload,
    WriteReceipt,
)
from jobs_backup.settings import Secret, Settings, Variable
from jobs_backup.store import providers
from jobs_backup.store.plugins import Installed

_PAGE: Final = 1000


class MemorySettings(Settings, frozen=True, kw_only=True):
    """The provider's settings."""

    bucket: Annotated[str, Variable("JOBS_BACKUP_BUCKET", "Bucket for the objects. It must be in `MemoryProvider.buckets`.")]
    token: Annotated[Secret | None, Variable("MEMORY_TOKEN", "Secret that is never used.")] = None


class _Begun(msgspec.Struct):
    bucket: str
    key: str
    parts: dict[int, bytes]


class MemoryProvider:
    """A provider whose user creates the buckets: `MemoryProvider.buckets["events"] = {}`."""

    API_VERSION: ClassVar[int] = 1
    settings: ClassVar = MemorySettings
    buckets: ClassVar[dict[str, dict[str, bytes]]] = {}
    uploads: ClassVar[dict[str, _Begun]] = {}
    lock: ClassVar = threading.RLock()

    def __init__(self, settings: MemorySettings) -> None:
        self._bucket = settings.bucket
        self.location = f"memory://{settings.bucket}"

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """See `Provider.from_settings`."""
        return cls(MemorySettings.from_environment(environment))

    @property
    def objects(self) -> dict[str, bytes]:
        """The bucket's objects."""
        try:
            return self.buckets[self._bucket]
        except KeyError:
            raise BucketNotFound(f"bucket {self._bucket} does not exist", hint="create it, or correct JOBS_BACKUP_BUCKET") from None

    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        return self.publish(key, _bytes(body, size), checksum, if_absent=if_absent)

    @hookimpl
    def create_multipart(self, key: str) -> Upload:
        upload = Upload(key=key, id=secrets.token_hex(16))
        with self.lock:
            self.uploads[upload.id] = self.begin(key)
        return upload

    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body, size: int) -> Part:
        data = _bytes(body, size)
        with self.lock:
            self.begun(upload).parts[number] = data
        return Part(number=number, crc32c=crc32c(data))

    @hookimpl
    def complete_multipart(self, upload: Upload, parts: Sequence[Part], checksum: int, if_absent: bool) -> WriteReceipt:
        with self.lock:
            begun = self.begun(upload)
            receipt = self.publish(upload.key, b"".join(begun.parts[part.number] for part in parts), checksum, if_absent=if_absent)
            del self.uploads[upload.id]
        return receipt

    @hookimpl
    def abort_multipart(self, upload: Upload) -> AbortReceipt:
        with self.lock:
            return AbortReceipt(Outcome.GONE if self.uploads.pop(upload.id, None) is None else Outcome.ABORTED)

    @hookimpl
    def delete(self, keys: Sequence[str]) -> DeleteReceipt:
        with self.lock:
            for key in keys:
                self.objects.pop(key, None)
        return DeleteReceipt(deleted=frozenset(keys))

    @hookimpl
    def read(self, key: str) -> Body:
        try:
            return BytesBody(self.objects[key])
        except KeyError:
            raise ObjectNotFound(f"object {key} does not exist") from None

    @hookimpl
    def list(self, prefix: str, after: str) -> Page:
        keys = sorted((key for key in self.objects if key.startswith(prefix) and key > after), key=str.encode)
        objects = [Listed(key=key, size=len(self.objects[key])) for key in keys[:_PAGE]]
        return Page(objects=objects, after=keys[_PAGE - 1] if len(keys) > _PAGE else None)

    @hookimpl
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool) -> Policy:
        hooks = ["write", *MULTIPART, "abort_multipart", *(["delete"] if delete else []), *(["read", "list"] if replay else [])]
        bucket = settings["JOBS_BACKUP_BUCKET"]
        text = f"{', '.join(hooks)} on {bucket}\n"
        return Policy(format="commands", text=text, grants={hook: hook for hook in hooks}, resource=bucket)

    def publish(self, key: str, data: bytes, checksum: int, *, if_absent: bool) -> WriteReceipt:
        """Create an object, whole or not at all."""
        if crc32c(data) != checksum:
            raise IntegrityError(f"the bytes of {key} do not match the checksum")
        with self.lock:
            if if_absent and key in self.objects:
                raise AlreadyExists(f"{key} exists")
            self.objects[key] = data
        return WriteReceipt()

    def begin(self, key: str) -> _Begun:
        """An upload without parts."""
        return _Begun(self._bucket, key, {})

    def begun(self, upload: Upload) -> _Begun:
        """An upload that is neither completed nor aborted."""
        try:
            return self.uploads[upload.id]
        except KeyError:
            raise UploadGone(f"the upload of {upload.key} no longer exists") from None


def loaded(class_: type[MemoryProvider], environment: Mapping[str, str]) -> providers.LoadedProvider:
    """Load the provider as core does, without an entry point."""
    one = Installed(name="MEMORY", distribution="jobs-backup", version="0", target=f"{class_.__module__}:{class_.__name__}")
    provider = class_.from_settings(environment)
    manager, hooks = providers.register(provider, one)
    return providers.LoadedProvider(installed=one, provider=provider, manager=manager, hooks=hooks)


def _bytes(body: Body, size: int) -> bytes:
    with body.open() as reader:
        data = reader.read()
    if len(data) != size:
        raise IntegrityError(f"the body has {len(data)} bytes instead of {size}")
    return data
