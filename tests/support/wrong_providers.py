"""Faulty providers with one fault each. `EXPECTED` are the tests of the conformance suite that must find it."""

# mypy: disable-error-code="override"
# (hooks may take fewer arguments)

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec

from jobs_backup.checksum import crc32c
from jobs_backup.errors import AlreadyExists, BucketNotFound, IntegrityError, ObjectNotFound, SpoolCorrupt, Unavailable, UploadGone
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, Body, DeleteReceipt, Outcome, Page, Part, Policy, Upload, WriteReceipt
from jobs_backup.testing.memory import MemoryProvider, MemorySettings


class AbortsNothing(MemoryProvider):
    @hookimpl
    def abort_multipart(self, upload: Upload) -> AbortReceipt:
        return AbortReceipt(Outcome.ABORTED)


class LosesTheLastPart(MemoryProvider):
    @hookimpl
    def complete_multipart(self, upload: Upload, parts: Sequence[Part], if_absent: bool) -> WriteReceipt:
        data = b"".join(self.begun(upload).parts[part.number] for part in parts[:-1])
        return self.publish(upload.key, data, crc32c(data), if_absent=if_absent)


class Overwrites(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int) -> WriteReceipt:
        with body.open() as reader:
            return self.publish(key, reader.read(), checksum, if_absent=False)


class AnswersNone(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, checksum: int, if_absent: bool) -> None:
        with body.open() as reader:
            self.publish(key, reader.read(), checksum, if_absent=if_absent)


class SwallowsErrors(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        try:
            with body.open() as reader:
                self.publish(key, reader.read(), checksum, if_absent=if_absent)
        except AlreadyExists:
            raise
        except Exception as error:  # noqa: BLE001 - this is the fault
            logging.getLogger(__name__).warning("could not write: %s", error)
        return WriteReceipt()


class RetriesByItself(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, checksum: int, if_absent: bool) -> WriteReceipt:
        for _ in range(2):
            try:
                with body.open() as reader:
                    return self.publish(key, reader.read(), checksum, if_absent=if_absent)
            except AlreadyExists:
                continue
        with body.open() as reader:
            return self.publish(key, reader.read(), checksum, if_absent=if_absent)


class ShowsItsSecret(MemoryProvider):
    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self.token = settings.token.reveal() if settings.token else ""


class ShowsItsUploads(MemoryProvider):
    def begun(self, upload: Upload) -> Any:
        if upload.id not in self.uploads:
            raise UploadGone(f"there is no upload {upload.id}")
        return super().begun(upload)


class TakesAnyAnswerForSuccess(MemoryProvider):
    """Such as a 200 with an error in its body."""

    @hookimpl
    def complete_multipart(self, upload: Upload) -> WriteReceipt:
        self.uploads.pop(upload.id, None)
        return WriteReceipt(etag="?")


class DeletesTheFirst(MemoryProvider):
    @hookimpl
    def delete(self, keys: Sequence[str]) -> DeleteReceipt:
        for key in keys[:1]:
            self.objects.pop(key, None)
        return DeleteReceipt(deleted=frozenset(keys))


class MissesWhatIsAbsent(MemoryProvider):
    @hookimpl
    def delete(self, keys: Sequence[str]) -> DeleteReceipt:
        failed: dict[str, Exception] = {key: ObjectNotFound(key) for key in keys if self.objects.pop(key, None) is None}
        return DeleteReceipt(deleted=frozenset(keys) - failed.keys(), failed=failed)


class LeavesReadersOpen(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        return self.publish(key, body.open().read(), checksum, if_absent=if_absent)


class WritesOtherKeys(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        return super().write(key.replace(" ", "_").replace("+", " "), body, size, checksum, if_absent)


class IgnoresChecksums(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, size: int, if_absent: bool) -> WriteReceipt:
        return super().write(key, body, size, body.crc32c(), if_absent)


class PublishesWhatIsShort(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, checksum: int, if_absent: bool) -> WriteReceipt:
        with body.open() as reader:
            data = reader.read()
        return self.publish(key, data, checksum or crc32c(data), if_absent=if_absent)


class PublishesParts(MemoryProvider):
    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body, size: int) -> Part:
        self.objects[upload.key] = b"".join([self.objects.get(upload.key, b""), body.open().read()])
        return super().write_part(upload, number, body, size)


class CountsAPartTwice(MemoryProvider):
    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body, size: int) -> Part:
        before = self.begun(upload).parts.get(number, b"")
        part = super().write_part(upload, number, body, size)
        self.begun(upload).parts[number] = before + self.begun(upload).parts[number]
        return part


class RemembersUploadsItself(MemoryProvider):
    uploads: ClassVar[Any]

    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self.uploads = {}  # type: ignore[misc]


class MakesBuckets(MemoryProvider):
    @property
    def objects(self) -> dict[str, bytes]:
        return self.buckets.setdefault(self._bucket, {})


class SaysNotWhatToDo(MemoryProvider):
    @property
    def objects(self) -> dict[str, bytes]:
        if self._bucket not in self.buckets:
            raise BucketNotFound("404")
        return self.buckets[self._bucket]


class NamesNoSetting(MemoryProvider):
    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Any:
        return cls(MemorySettings(bucket=environment.get("JOBS_BACKUP_BUCKET", "default")))


class LeaksBehindAnError(MemoryProvider):
    """The message is clean; the SDK's error, which is its cause, has the upload's URL."""

    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body, size: int) -> Part:
        try:
            return super().write_part(upload, number, body, size)
        except UploadGone as error:
            raise error from OSError(f"404 for http://store/{upload.key}?uploadId={upload.id}")


class LeaksInBase64(MemoryProvider):
    """As HTTP Basic encodes user and password, and as a store may quote them."""

    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self._header = settings.token

    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        try:
            return super().write(key, body, size, checksum, if_absent)
        except AlreadyExists as error:
            header = base64.b64encode(f"user:{self._header.reveal() if self._header else ''}".encode()).decode()
            raise AlreadyExists(f"{key} exists: Authorization: Basic {header}") from error


class ListsForEver(MemoryProvider):
    @hookimpl
    def list(self, prefix: str) -> Page:
        return super().list(prefix, "")


class ShowsTheBeginning(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        if key in self.objects and if_absent:
            raise AlreadyExists(f"{key} exists")
        data = self.objects[key] = b""
        try:
            with body.open() as reader:
                while block := reader.read(1 << 16):
                    data = self.objects[key] = data + block
            if len(data) != size:
                raise IntegrityError(f"the body has {len(data)} bytes instead of {size}")
            return self.publish(key, data, checksum, if_absent=False)
        except Exception:
            del self.objects[key]
            raise


class AlwaysAsksForTheSame(MemoryProvider):
    @hookimpl
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool) -> Policy:
        found = super().policy(settings, delete, replay)
        return msgspec.structs.replace(found, text=f"everything on {found.resource}")


class LeaksInALog(MemoryProvider):
    @hookimpl
    def create_multipart(self, key: str) -> Upload:
        upload = super().create_multipart(key)
        logging.getLogger("sdk").info("POST /%s: uploadId=%s", key, upload.id)
        return upload


class ReadsTheBodyOnce(MemoryProvider):
    """Resends its copy of the body."""

    @hookimpl
    def write(self, key: str, body: Body, checksum: int, if_absent: bool) -> WriteReceipt:
        kept: dict[Body, bytes] = self.__dict__.setdefault("kept", {})
        if body not in kept:
            with body.open() as reader:
                kept[body] = reader.read()
        return self.publish(key, kept[body], checksum, if_absent=if_absent)


class ReadsAgainWhatFailed(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        try:
            return super().write(key, body, size, checksum, if_absent)
        except SpoolCorrupt:
            return super().write(key, body, size, checksum, if_absent)


class TakesTheDiskForTheStore(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        try:
            return super().write(key, body, size, checksum, if_absent)
        except OSError as error:
            raise Unavailable(f"{key}: {error}", hint="check the network") from error


class TakesAShortReadForTheEnd(MemoryProvider):
    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        with body.open() as reader:
            data = reader.read(size)
        if len(data) != size:
            raise IntegrityError(f"the body has {len(data)} bytes instead of {size}")
        return self.publish(key, data, checksum, if_absent=if_absent)


class HasOneUploadForAKey(MemoryProvider):
    """Behaves as a store that identifies parts by key alone: aborting one upload ends the other."""

    @hookimpl
    def create_multipart(self, key: str) -> Upload:
        with self.lock:
            upload = Upload(key=key, id=f"{self._bucket} {key}")
            self.uploads[upload.id] = self.uploads.get(upload.id) or self.begin(key)
        return upload


class RefusesASecondUpload(MemoryProvider):
    """Blocks until the first one ends, which may be never."""

    @hookimpl
    def create_multipart(self, key: str) -> Upload:
        with self.lock:
            if any((one.bucket, one.key) == (self._bucket, key) for one in self.uploads.values()):
                raise Unavailable(f"an upload of {key} is under way", hint="wait for it")
            return super().create_multipart(key)


class TakesLateParts(MemoryProvider):
    """A part creates its upload if missing."""

    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body, size: int) -> Part:
        with self.lock:
            self.uploads.setdefault(upload.id, self.begin(upload.key))
            return super().write_part(upload, number, body, size)


class IsWhereverYouLook(MemoryProvider):
    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self.location = "memory://"


EXPECTED: Final[dict[type[MemoryProvider], set[str]]] = {
    AbortsNothing: {"test_abort", "test_abort_twice", "test_abort_of_an_unknown_upload"},
    LosesTheLastPart: {"test_multipart", "test_multipart_of_one_part"},
    Overwrites: {"test_write_to_an_existing_key"},
    AnswersNone: {"test_write"},
    SwallowsErrors: {"test_failing_body_publishes_nothing", "test_wrong_checksum_publishes_nothing"},
    RetriesByItself: {"test_body_is_opened_anew_and_closed"},
    ShowsItsSecret: {"test_secrets_are_in_no_repr"},
    ShowsItsUploads: {"test_abort"},
    TakesAnyAnswerForSuccess: {"test_multipart", "test_multipart_wrong_checksum_publishes_nothing"},
    DeletesTheFirst: {"test_delete", "test_delete_thousands"},
    MissesWhatIsAbsent: {"test_delete"},
    LeavesReadersOpen: {"test_body_is_opened_anew_and_closed"},
    WritesOtherKeys: {"test_write_and_delete_odd_keys"},
    IgnoresChecksums: {"test_wrong_checksum_publishes_nothing"},
    PublishesWhatIsShort: {"test_short_body_publishes_nothing"},
    PublishesParts: {"test_multipart", "test_abort"},
    CountsAPartTwice: {"test_multipart_part_sent_twice"},
    RemembersUploadsItself: {"test_multipart_continued_by_another_process", "test_abort"},
    MakesBuckets: {"test_bucket_that_does_not_exist"},
    SaysNotWhatToDo: {"test_bucket_that_does_not_exist"},
    NamesNoSetting: {"test_missing_settings_are_named"},
    LeaksBehindAnError: {"test_secrets_are_in_no_error_and_no_log"},
    LeaksInBase64: {"test_secrets_are_in_no_error_and_no_log"},
    ListsForEver: {"test_list_in_pages"},
    ShowsTheBeginning: {"test_it_appears_whole"},
    AlwaysAsksForTheSame: {"test_policy"},
    LeaksInALog: {"test_secrets_are_in_no_error_and_no_log"},
    ReadsTheBodyOnce: {"test_body_is_opened_anew_and_closed"},
    ReadsAgainWhatFailed: {"test_a_call_is_one_attempt"},
    TakesTheDiskForTheStore: {"test_failing_body_publishes_nothing"},
    TakesAShortReadForTheEnd: {"test_reads_may_be_short"},
    HasOneUploadForAKey: {"test_multipart_begun_again"},
    RefusesASecondUpload: {"test_multipart_begun_again"},
    TakesLateParts: {"test_multipart_late_part", "test_abort"},
    IsWhereverYouLook: {"test_bucket_that_does_not_exist"},
}
