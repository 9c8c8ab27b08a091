"""The provider GCS. Each hook of the contract is one request of the JSON API of Google Cloud Storage.

Objects of up to 8 MiB take one request. Larger ones are resumable uploads: the session's URI is the upload's id, parts are its
chunks, and the last chunk creates the object.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import re
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, Self, cast
from urllib.parse import quote

from jobs_backup.bodies import ObjectBody, Source
from jobs_backup.errors import (
    AlreadyExists,
    IntegrityError,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
    StorageError,
    Unauthenticated,
    Unavailable,
    UploadGone,
)
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, Body, DeleteReceipt, Listed, Outcome, Page, Part, Policy, Upload, WriteReceipt
from jobs_backup.sdk import STRANGER_HINT, PerProcess, delete_each, size_listed
from jobs_backup_gcs import policy as rights
from jobs_backup_gcs.client import Gcs, connect
from jobs_backup_gcs.errors import Call, answered, check_bare, is_googles, translated
from jobs_backup_gcs.settings import GcsSettings

_PAGE: Final = 1000
_VANISHED: Final = "find out what deletes from this bucket; or the store refused the write for the reason above"
_TRANSCODED: Final = "a proxy or the store compresses or decompresses responses: make it leave Content-Encoding unchanged"
_SIZE: Final = "size"
_CRC: Final = "crc32c"
_IF_ABSENT: Final = "if_absent"
"""Keys in `Upload.extra`: size and CRC of the whole object, and whether the upload requires that no object exists."""


class GcsProvider:
    """Google Cloud Storage."""

    API_VERSION: ClassVar[int] = 1
    settings: ClassVar[type[GcsSettings]] = GcsSettings
    sequential_parts: ClassVar[bool] = True
    part_multiple: ClassVar[int] = 256 << 10
    min_part_size: ClassVar[int] = 256 << 10
    max_parts: ClassVar[int] = 1 << 30
    max_write_size: ClassVar[int] = 8 << 20
    """Maximum bytes of an object in one request, which the SDK holds in memory."""

    def __init__(self, settings: GcsSettings) -> None:
        self._settings = settings
        self._clients = PerProcess(functools.partial(connect, settings))
        self._reached: dict[str, int] = {}  # session -> bytes that the store has, if known

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """Create a provider from environment variables. Neither imports the SDK nor opens a connection.

        Raises:
            ConfigurationError: a variable is missing or invalid, or the credentials file cannot be read.
        """
        return cls(GcsSettings.from_environment(environment))

    @property
    def location(self) -> str:
        """The bucket, and the endpoint if it is not Google's own."""
        return self._settings.location

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.location}>"

    @hookimpl
    def write(
        self,
        key: str,
        body: Body,
        size: int,
        checksum: int,
        content_type: str,
        metadata: Mapping[str, str],
        if_absent: bool,
        timeout: float,
    ) -> WriteReceipt:
        """Write an object: objects.insert, in one request."""
        call = self._tried("write", key)._replace(if_absent=if_absent)
        if size > self.max_write_size:
            raise NotSupported(
                f"{call}: {size:,} bytes are too many for one request", hint="upload objects of more than 8 MiB in parts"
            )
        try:
            with self._requests(call) as gcs:
                blob = self._blob(gcs, key, checksum, metadata)
                with Source(body, size) as source:
                    blob.upload_from_file(
                        source,
                        size=size,
                        content_type=content_type,
                        if_generation_match=_condition(if_absent),
                        timeout=timeout,
                        checksum=None,  # the object's checksum is in its metadata
                        retry=None,
                    )
        except AlreadyExists as refusal:
            self._confirm(key, _base64(checksum), timeout, refusal)
            raise
        try:
            reported = {"crc32c": blob.crc32c, "generation": blob.generation, "at": blob.time_created}
        except (AttributeError, TypeError, ValueError) as error:  # the SDK assumes an object, whatever JSON it got
            raise _unlike_a_receipt(call) from error
        return _receipt(call, reported, _base64(checksum))

    @hookimpl
    def create_multipart(
        self,
        key: str,
        size: int,
        checksum: int,
        content_type: str,
        metadata: Mapping[str, str],
        if_absent: bool,
        timeout: float,
    ) -> Upload:
        """Start a resumable upload."""
        try:
            with self._requests(self._tried("create", key)._replace(if_absent=if_absent)) as gcs:
                uri = self._blob(gcs, key, checksum, metadata).create_resumable_upload_session(
                    content_type=content_type,
                    size=size,
                    if_generation_match=_condition(if_absent),
                    timeout=timeout,
                    checksum=None,
                    retry=None,
                )
        except AlreadyExists as refusal:
            self._confirm(key, _base64(checksum), timeout, refusal)
            raise
        self._reached[uri] = 0
        return Upload(key=key, id=uri, extra={_SIZE: str(size), _CRC: _base64(checksum), _IF_ABSENT: str(int(if_absent))})

    @hookimpl
    def write_part(self, upload: Upload, number: int, offset: int, body: Body, size: int, timeout: float) -> Part:
        """Upload the bytes of a chunk that the store does not have yet. The last chunk creates the object."""
        call = self._part(upload)
        known = self._reached.pop(upload.id, None)  # unknown until this request succeeds
        reached = self._ask(call, upload, timeout) if known is None else known
        end = offset + size
        if isinstance(reached, int) and reached < end:
            if reached < offset:
                raise UploadGone(f"{call}: the store has {reached} bytes instead of {offset}", hint="another one must be started")
            reached = self._send_chunk(call, upload, reached, body.slice(reached - offset, end - reached), timeout)
            if isinstance(reached, int) and reached < end:
                self._reached[upload.id] = reached
                raise Unavailable(f"{call}: the store has taken {max(0, reached - offset)} of {size} bytes")
        if isinstance(reached, int):
            self._reached[upload.id] = reached
            return Part(number=number)
        return Part(number=number, etag=reached.version)

    @hookimpl
    def complete_multipart(self, upload: Upload, parts: Sequence[Part], checksum: int, timeout: float) -> WriteReceipt:
        """Return the receipt. The last chunk created the object, and its answer had the generation."""
        call = self._part(upload)
        generation = parts[-1].etag if parts else ""
        reached = WriteReceipt(version=generation) if generation else self._ask(call, upload, timeout)
        if isinstance(reached, int):
            raise UploadGone(f"{call}: the store has {reached} bytes and lacks the rest", hint="another one must be started")
        if upload.extra[_CRC] != _base64(checksum):
            raise IntegrityError(f"{call}: the upload was begun for other bytes")
        return reached

    @hookimpl
    def abort_multipart(self, upload: Upload, timeout: float) -> AbortReceipt:
        """Cancel a resumable upload."""
        call = self._tried("cancel", upload.key, upload.id)
        self._reached.pop(upload.id, None)
        with self._requests(call) as gcs:
            answer = gcs.session.request("DELETE", upload.id, headers={"Content-Length": "0"}, timeout=timeout)
            if answer.status_code in (204, 499):
                check_bare(answer, call)
                return AbortReceipt(Outcome.ABORTED)
            if answer.status_code not in (404, 410) or not is_googles(answer):
                raise answered(answer, call)
        return AbortReceipt(Outcome.GONE)

    @hookimpl
    def delete(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        """Delete objects: objects.delete for each key, several at once."""

        def delete(key: str) -> None:
            call = self._tried("delete", key)
            with self._requests(call) as gcs:
                answer = gcs.session.request("DELETE", self._url(key), timeout=timeout)
                if answer.status_code not in (200, 204):
                    raise answered(answer, call)
                check_bare(answer, call)

        return delete_each(keys, delete)

    @hookimpl
    def read(self, key: str, timeout: float) -> Body:
        """Read an object: objects.get of the metadata for the size, then of the bytes each time the body is opened."""
        call = self._tried("get", key)
        with self._requests(call) as gcs:
            blob = gcs.bucket.blob(key)
            blob.reload(timeout=timeout, retry=None)
        size, stored_as = int(blob.size or 0), blob.content_encoding or "identity"

        def get(offset: int) -> Any:
            with self._requests(call) as gcs:
                answer = gcs.session.request(
                    "GET",
                    self._url(key),
                    params={"alt": "media", "generation": str(blob.generation)},
                    # Unless gzip is accepted, Google decompresses objects marked as gzip, and ignores the range.
                    headers={"Range": f"bytes={offset}-", "Accept-Encoding": stored_as},
                    timeout=timeout,
                    stream=True,
                )
                if answer.status_code not in (200, 206):
                    raise answered(answer, call)
                is_whole = offset and answer.status_code == 200
                is_marked_so = answer.headers.get("Content-Encoding", "identity") == stored_as
                if is_whole or not (is_marked_so or answer.headers.get("Content-Length") == str(size - offset)):
                    answer.close()
                    raise IntegrityError(f"{call}: the response does not have the object's own bytes", hint=_TRANSCODED)
                return answer.raw

        return ObjectBody(size, get, lambda: translated(call))

    @hookimpl
    def list(self, prefix: str, after: str, timeout: float) -> Page:
        """List a page of objects: objects.list, without the SDK, which fails the whole listing for one incomplete entry."""
        call = self._tried("list")
        # `startOffset` is inclusive.
        query = {"prefix": prefix, "startOffset": after, "maxResults": str(_PAGE), "fields": "kind,nextPageToken,items(name,size)"}
        with self._requests(call) as gcs:
            answer = gcs.session.request("GET", self._url(), params=query, timeout=timeout)
            if answer.status_code != 200:
                raise answered(answer, call)
            listing: Any = answer.json()
            if not isinstance(listing, dict) or ("kind" not in listing and "items" not in listing):
                raise StorageError(f"{call}: the response is not a listing of a bucket", hint=STRANGER_HINT)
            found = cast(dict[str, Any], listing)
        items = cast(list[Any], found.get("items") or [])
        entries = [cast(dict[str, Any], one) for one in items if isinstance(one, dict) and isinstance(one.get("name"), str)]  # pyright: ignore[reportUnknownMemberType]
        objects = [Listed(key=one["name"], size=size_listed(one.get("size"))) for one in entries if one["name"] > after]
        more = found.get("nextPageToken")
        if more and not objects:
            raise StorageError(
                f"{call}: a page of the listing has no objects, but says that there are more", hint="its listing is unreliable"
            )
        return Page(objects=objects, after=objects[-1].key if more else None)

    @hookimpl
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool, format: str) -> Policy:
        """Return the policy as gcloud commands, as JSON (the role), or for Terraform."""
        return rights.policy(self.settings.from_environment(settings), delete=delete, replay=replay, format_=format)

    def _send_chunk(self, call: Call, upload: Upload, start: int, body: Body, timeout: float) -> int | WriteReceipt:
        """Send bytes from `start`. Return how many bytes the store has, or the object's receipt if it is complete."""
        headers = {
            "Content-Length": str(body.size),
            "Content-Range": f"bytes {start}-{start + body.size - 1}/{upload.extra[_SIZE]}",
        }
        try:
            with self._requests(call) as gcs, Source(body, body.size) as source:
                return self._outcome(
                    call, upload, gcs.session.request("PUT", upload.id, data=source, headers=headers, timeout=timeout)
                )
        except AlreadyExists as refusal:
            self._confirm(upload.key, upload.extra[_CRC], timeout, refusal)
            raise

    def _ask(self, call: Call, upload: Upload, timeout: float) -> int | WriteReceipt:
        """Return how many bytes the store has, or the object's receipt if it is complete."""
        headers = {"Content-Length": "0", "Content-Range": f"bytes */{upload.extra[_SIZE]}"}
        with self._requests(call) as gcs:
            return self._outcome(call, upload, gcs.session.request("PUT", upload.id, headers=headers, timeout=timeout))

    def _outcome(self, call: Call, upload: Upload, answer: Any) -> int | WriteReceipt:
        if answer.status_code == 308:
            reached = re.fullmatch(r"bytes=0-(\d+)", answer.headers.get("Range", ""))
            return int(reached[1]) + 1 if reached else 0
        if answer.status_code in (200, 201):
            return _receipt(call, answer.json(), upload.extra[_CRC])
        raise answered(answer, call)

    def _confirm(self, key: str, checksum: str, timeout: float, refusal: AlreadyExists) -> None:
        """Confirm that the object under the key comes from our own earlier attempt, with the same bytes.

        Without permission to get it, assume so: the key contains a UUID, so another writer is very unlikely.

        Raises:
            IntegrityError: the object has other bytes.
        """
        call = self._tried("get", key)
        try:
            with self._requests(call) as gcs:
                blob = gcs.bucket.blob(key)
                blob.reload(timeout=timeout, retry=None)
        except PermissionDenied:
            return
        except ObjectNotFound as gone:
            raise Unavailable(f"{refusal.message}; but the object does not exist now", hint=_VANISHED) from gone
        if blob.crc32c != checksum:
            raise IntegrityError(
                f"{call}: the object under this key has other bytes (CRC-32C {blob.crc32c} instead of {checksum})",
                hint="it is not overwritten; find out what writes to this bucket",
            )

    @contextlib.contextmanager
    def _requests(self, call: Call) -> Generator[Gcs]:
        """Yield the client, and translate the block's errors.

        After refused credentials or a refused token, the next block reads them again: their file may have been replaced.
        """
        gcs: Gcs | None = None
        try:
            with translated(call):
                gcs = self._clients.get()
                yield gcs
        except (Unauthenticated, PermissionDenied) as error:
            # The permissions to get and to delete may be missing on purpose, and for many keys in a row.
            if isinstance(error, Unauthenticated) or call.operation not in ("get", "delete"):
                self._clients.renew(gcs)
            raise

    def _blob(self, gcs: Gcs, key: str, checksum: int, metadata: Mapping[str, str]) -> Any:
        blob: Any = gcs.bucket.blob(key, kms_key_name=self._settings.kms_key)
        blob.metadata = dict(metadata)
        blob.crc32c = _base64(checksum)  # the store refuses other bytes
        if self._settings.storage_class:
            blob.storage_class = self._settings.storage_class
        return blob

    def _part(self, upload: Upload) -> Call:
        return self._tried("part", upload.key, upload.id)._replace(if_absent=upload.extra.get(_IF_ABSENT) == "1")

    def _url(self, key: str = "") -> str:
        return f"{self._settings.base}/storage/v1/b/{self._settings.bucket}/o" + (f"/{quote(key, safe='')}" if key else "")

    def _tried(self, operation: str, key: str = "", upload: str = "") -> Call:
        return Call(operation, self._settings, key, upload)


def _unlike_a_receipt(call: Call) -> Unavailable:
    return Unavailable(f"{call}: the response has no generation", hint=STRANGER_HINT)


def _condition(if_absent: bool) -> int | None:
    return 0 if if_absent else None


def _base64(crc: int) -> str:
    """Return a CRC-32C as Google writes it: big-endian, in base64."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _receipt(call: Call, answer: object, checksum: str) -> WriteReceipt:
    """Return the receipt, after checking the fields that a success must have: a 200 alone can come from anything."""
    reported = cast(dict[str, Any], answer) if isinstance(answer, dict) else {}
    if not str(reported.get("generation")).isdecimal():
        raise _unlike_a_receipt(call)
    if reported.get("crc32c") not in (None, checksum):
        raise IntegrityError(f"{call}: the store has CRC-32C {reported['crc32c']} instead of {checksum}")
    at: datetime | None = reported.get("at")
    return WriteReceipt(version=str(reported["generation"]), at=None if at is None else at.timestamp())
