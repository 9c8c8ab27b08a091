"""The providers S3, MINIO and DIGITAL_OCEAN_SPACES. Each hook of the contract is one call of the S3 API."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Self, TypeVar

from jobs_backup.bodies import ObjectBody, Source
from jobs_backup.errors import (
    IntegrityError,
    JobsBackupError,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
    StorageError,
    Unauthenticated,
    UploadGone,
    parse_date,
)
from jobs_backup.hookspecs import hookimpl
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
from jobs_backup.sdk import STRANGER_HINT, size_listed
from jobs_backup_s3.client import Clients
from jobs_backup_s3.errors import Call, NothingThere, answered, translated
from jobs_backup_s3.policy import aws_policy, minio_policy, spaces_policy
from jobs_backup_s3.settings import BucketSettings, Connection, MinioSettings, S3Settings, SpacesSettings

T = TypeVar("T")
Answer = Mapping[str, Any]

_TRANSCODED: Final = "a proxy or the store compresses or decompresses responses, or ignores ranges: make it pass them unchanged"
_CHECKSUM: Final = "checksum"
"""Key in `Upload.extra` for the upload's kind of checksum, which its parts must use too."""


class _Provider:
    """The shared implementation. Subclasses differ in their settings and policies."""

    API_VERSION: ClassVar[int] = 1
    max_parts: ClassVar[int] = 10_000
    min_part_size: ClassVar[int] = 5 << 20
    settings: ClassVar[type[BucketSettings]]

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._clients = Clients(connection)
        self._has_bulk_delete = True

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """Create a provider from environment variables. Neither imports the SDK nor opens a connection.

        Raises:
            ConfigurationError: a variable is missing or invalid.
        """
        return cls(cls.settings.from_environment(environment).connection())

    @property
    def location(self) -> str:
        """The bucket, and the endpoint if it is not AWS's own."""
        return self._connection.location

    @property
    def region(self) -> str:
        """The bucket's region, as far as it is known."""
        return self._clients.region

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
        """Write an object: PutObject."""
        call = self._tried("PutObject", key)._replace(if_absent=if_absent)
        request = self._object(key, content_type, metadata) | _condition(if_absent)
        answer = self._put(call, timeout, "put_object", body, size, request, self._connection.checksum, checksum)
        return _receipt(call, answer, checksum)

    @hookimpl
    def create_multipart(self, key: str, content_type: str, metadata: Mapping[str, str], timeout: float) -> Upload:
        """Start an upload: CreateMultipartUpload."""
        call = self._tried("CreateMultipartUpload", key)
        kind = self._connection.checksum
        request = self._object(key, content_type, metadata)
        if kind == "crc32c":
            request |= {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "FULL_OBJECT"}
        answer = self._send(call, timeout, lambda client: client.create_multipart_upload(**request))
        return Upload(key=key, id=_field(call, answer, "UploadId"), extra={_CHECKSUM: kind})

    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body, size: int, timeout: float) -> Part:
        """Upload a part: UploadPart."""
        call = self._tried("UploadPart", upload.key, upload.id)
        kind = upload.extra.get(_CHECKSUM, "none")
        crc = body.crc32c() if kind == "crc32c" else None
        answer = self._put(call, timeout, "upload_part", body, size, self._upload(upload) | {"PartNumber": number}, kind, crc)
        _compare(call, answer, crc)
        return Part(number=number, etag=_field(call, answer, "ETag"), crc32c=crc)

    @hookimpl
    def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], size: int, checksum: int, if_absent: bool, timeout: float
    ) -> WriteReceipt:
        """Complete an upload: CompleteMultipartUpload."""
        call = self._tried("CompleteMultipartUpload", upload.key, upload.id)._replace(if_absent=if_absent)
        listed = [{"PartNumber": part.number, "ETag": part.etag} | _crc(part.crc32c) for part in parts]
        request = self._upload(upload) | {"MultipartUpload": {"Parts": listed}} | _condition(if_absent)
        if upload.extra.get(_CHECKSUM) == "crc32c":
            request |= {"ChecksumType": "FULL_OBJECT", "MpuObjectSize": size} | _crc(checksum)
        answer = self._send(call, timeout, lambda client: client.complete_multipart_upload(**request))
        # Ceph's first answer has an empty ETag. Bucket and key in the store's own XML prove the same.
        is_named = answer.get("Bucket") and answer.get("Key")
        return _stored(call, answer, checksum, str(answer.get("ETag", "")) if is_named else _field(call, answer, "ETag"))

    @hookimpl
    def abort_multipart(self, upload: Upload, timeout: float) -> AbortReceipt:
        """Abort an upload: AbortMultipartUpload."""
        call = self._tried("AbortMultipartUpload", upload.key, upload.id)
        request = self._upload(upload)
        try:
            self._send(call, timeout, lambda client: client.abort_multipart_upload(**request))
        except UploadGone:
            return AbortReceipt(Outcome.GONE)
        return AbortReceipt(Outcome.ABORTED)

    @hookimpl
    def delete(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        """Delete objects: DeleteObjects, or DeleteObject for each key if the store lacks DeleteObjects."""
        if self._has_bulk_delete and keys:
            try:
                return self._delete_together(keys, timeout)
            except NotSupported:
                self._has_bulk_delete = False
        return self._delete_one_by_one(keys, timeout)

    @hookimpl
    def read(self, key: str, timeout: float) -> Body:
        """Read an object: GetObject of the first byte for the size, then GetObject each time the body is opened."""
        call = self._tried("GetObject", key)
        request: dict[str, Any] = {"Bucket": self._connection.bucket, "Key": key}
        try:
            first = self._send(call, timeout, lambda client: client.get_object(**request, Range="bytes=0-0"))
        except NothingThere:
            return BytesBody(b"")
        first["Body"].close()
        # "bytes 0-0/1234"; a store without ranges returns the whole object.
        size = int(str(first["ContentRange"]).rpartition("/")[2]) if "ContentRange" in first else int(first["ContentLength"])
        request["IfMatch"] = _field(call, first, "ETag")

        def get(offset: int) -> Any:
            answer = self._send(call, timeout, lambda client: client.get_object(**request, Range=f"bytes={offset}-"))
            is_whole = offset and "ContentRange" not in answer
            if is_whole or answer.get("ContentEncoding") != first.get("ContentEncoding"):
                answer["Body"].close()
                raise IntegrityError(f"{call}: the response does not have the object's own bytes", hint=_TRANSCODED)
            return answer["Body"]

        return ObjectBody(size, get, lambda: translated(call))

    @hookimpl
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool, format: str) -> Policy:
        """Return an IAM policy; for Spaces, the command that creates a key for this bucket alone."""
        return self._policy(self.settings.from_environment(settings).connection(), delete, replay, format)

    @hookimpl
    def list(self, prefix: str, after: str, timeout: float) -> Page:
        """List a page of objects: ListObjectsV2."""
        request = {"Bucket": self._connection.bucket, "Prefix": prefix} | ({"StartAfter": after} if after else {})
        call = self._tried("ListObjectsV2")
        answer = self._send(call, timeout, lambda client: client.list_objects_v2(**request))
        if answer.keys().isdisjoint(("Name", "IsTruncated")):
            raise StorageError(f"{call}: the response is not a listing of a bucket", hint=STRANGER_HINT)
        objects = [
            Listed(key=item["Key"], size=size_listed(item.get("Size"))) for item in answer.get("Contents", ()) if item.get("Key")
        ]
        if answer.get("IsTruncated") and not objects:
            raise StorageError(
                f"{call}: a page of the listing has no objects, but says that there are more", hint="its listing is unreliable"
            )
        return Page(objects=objects, after=objects[-1].key if answer.get("IsTruncated") and objects else None)

    def _put(
        self,
        call: Call,
        timeout: float,
        method: str,
        body: Body,
        size: int,
        request: Mapping[str, Any],
        kind: str,
        crc: int | None,
    ) -> Answer:
        sums = _sums(call, kind, body, crc)

        def send(client: Any) -> Answer:
            with Source(body, size) as source:
                answer: Answer = getattr(client, method)(Body=source, ContentLength=size, **sums, **request)
                return answer

        return self._send(call, timeout, send)

    def _send(self, call: Call, timeout: float, send: Callable[[Any], T]) -> T:
        """Send a request. Resend it at once if the answer says that the bucket is in another region."""
        region, client = self._clients.region, None
        try:
            with translated(call):
                client = self._clients.get(region, timeout)
                try:
                    return send(client)
                except Exception as error:
                    if not self._clients.follow(error, region):
                        raise
                client = self._clients.get(self._clients.region, timeout)
                return send(client)
        except (Unauthenticated, PermissionDenied) as error:
            # The permission to delete may be missing on purpose, and for many keys in a row.
            if isinstance(error, Unauthenticated) or call.operation != "DeleteObject":
                self._clients.renew(client)
            raise

    def _delete_together(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        call = self._tried("DeleteObjects")
        request = {"Bucket": self._connection.bucket, "Delete": {"Objects": [{"Key": key} for key in keys]}}
        answer = self._send(call, timeout, lambda client: client.delete_objects(**request))
        deleted = {str(one.get("Key")) for one in answer.get("Deleted", ())}
        failed: dict[str, Exception] = {}
        for one in answer.get("Errors", ()):
            key = str(one.get("Key"))
            error = answered({"Error": one}, call._replace(key=key))
            if isinstance(error, ObjectNotFound):
                deleted.add(key)
            else:
                failed[key] = error
        for key in set(keys) - deleted - failed.keys():
            failed[key] = StorageError(
                f"{call._replace(key=key)}: the response does not say whether it was deleted", hint=STRANGER_HINT
            )
        return DeleteReceipt(deleted=frozenset(keys) - failed.keys(), failed=failed)

    def _delete_one_by_one(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        deleted: set[str] = set()
        failed: dict[str, Exception] = {}
        for number, key in enumerate(keys):
            request = {"Bucket": self._connection.bucket, "Key": key}
            try:
                self._send(self._tried("DeleteObject", key), timeout, functools.partial(_delete_object, request))
            except ObjectNotFound:
                pass
            except PermissionDenied as error:
                failed[key] = error
                continue
            except JobsBackupError as error:
                if not deleted and not failed:
                    raise
                # Any other error affects the remaining keys too, and each request may take long to fail.
                failed |= dict.fromkeys(keys[number:], error)
                break
            deleted.add(key)
        return DeleteReceipt(deleted=frozenset(deleted), failed=failed)

    def _policy(self, connection: Connection, delete: bool, replay: bool, format_: str) -> Policy:
        return aws_policy(connection, delete=delete, replay=replay, format_=format_)

    def _tried(self, operation: str, key: str = "", upload: str = "") -> Call:
        return Call(operation, self._connection, key, upload)

    def _upload(self, upload: Upload) -> dict[str, Any]:
        return {"Bucket": self._connection.bucket, "Key": upload.key, "UploadId": upload.id}

    def _object(self, key: str, content_type: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        connection = self._connection
        options = {
            "ServerSideEncryption": connection.sse,
            "SSEKMSKeyId": connection.kms_key_id,
            "StorageClass": connection.storage_class,
            "ACL": connection.acl,
        }
        given = {name: value for name, value in options.items() if value}
        return {"Bucket": connection.bucket, "Key": key, "ContentType": content_type, "Metadata": dict(metadata), **given}


class S3Provider(_Provider):
    """AWS S3, or the S3-compatible store at AWS_ENDPOINT_URL_S3."""

    settings = S3Settings


class MinioProvider(_Provider):
    """MinIO, with the MINIO_* variables."""

    settings = MinioSettings

    def _policy(self, connection: Connection, delete: bool, replay: bool, format_: str) -> Policy:
        return minio_policy(connection, delete=delete, replay=replay, format_=format_)


class SpacesProvider(_Provider):
    """DigitalOcean Spaces, with the DO_SPACES_* variables."""

    settings = SpacesSettings

    def _policy(self, connection: Connection, delete: bool, replay: bool, format_: str) -> Policy:  # noqa: ARG002 - one for all
        return spaces_policy(connection, format_=format_)


def _delete_object(request: Mapping[str, str], client: Any) -> Answer:
    answer: Answer = client.delete_object(**request)
    return answer


def _condition(if_absent: bool) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if if_absent else {}


def _crc(value: int | None) -> dict[str, str]:
    return {} if value is None else {"ChecksumCRC32C": base64.b64encode(value.to_bytes(4, "big")).decode()}


def _sums(call: Call, kind: str, body: Body, crc: int | None) -> dict[str, str]:
    if kind == "crc32c":
        return _crc(crc)
    # The store does not check the CRC here, so check it first: never upload bytes that changed on disk.
    if crc is not None and body.crc32c() != crc:
        raise IntegrityError(f"{call}: the body's CRC-32C does not match", hint="the disk may be faulty")
    return {"ContentMD5": base64.b64encode(body.md5()).decode()} if kind == "md5" else {}


def _receipt(call: Call, answer: Answer, crc: int) -> WriteReceipt:
    return _stored(call, answer, crc, _field(call, answer, "ETag"))


def _stored(call: Call, answer: Answer, crc: int, etag: str) -> WriteReceipt:
    _compare(call, answer, crc)
    headers: Mapping[str, str] = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return WriteReceipt(etag=etag, version=answer.get("VersionId", ""), at=parse_date(headers.get("date", "")))


def _field(call: Call, answer: Answer, name: str) -> str:
    """Return a field that a successful answer must have: a 200 alone can come from anything."""
    if not answer.get(name):
        raise StorageError(f"{call}: the response has no {name}", hint=STRANGER_HINT)
    return str(answer[name])


def _compare(call: Call, answer: Answer, crc: int | None) -> None:
    """Compare the CRC-32C if the store reports that of the whole, not one composed of the parts' CRCs."""
    reported = answer.get("ChecksumCRC32C")
    if crc is None or reported is None or answer.get("ChecksumType") == "COMPOSITE" or "-" in reported:
        return
    if _crc(crc)["ChecksumCRC32C"] != reported:
        raise IntegrityError(f"{call}: the store's CRC-32C differs from that of what was sent")
