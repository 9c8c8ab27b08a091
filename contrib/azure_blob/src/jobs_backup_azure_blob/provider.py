"""The provider AZURE_BLOB. Each hook of the contract is one request of the REST API of Azure Blob Storage.

Azure has no uploads, only blocks: each is sent under a key with its own id, and a list of ids turns them into the object. The
upload's id and the object's properties are created in `create_multipart`, and exist only in core's journal. Block ids begin with
the upload's id, so two uploads of one key never mix.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import importlib
import json
import re
import secrets
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, NamedTuple, Self

from jobs_backup.bodies import ObjectBody, Source
from jobs_backup.checksum import crc32c
from jobs_backup.errors import IntegrityError, NotSupported, PermissionDenied, StorageError, Unauthenticated, Unavailable
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, Body, DeleteReceipt, Listed, Outcome, Page, Part, Policy, Upload, WriteReceipt
from jobs_backup.sdk import STRANGER_HINT, PerProcess, delete_each, size_listed
from jobs_backup_azure_blob import policy as rights
from jobs_backup_azure_blob.client import Azure, connect
from jobs_backup_azure_blob.crc import combined
from jobs_backup_azure_blob.errors import Call, check_origin, translated
from jobs_backup_azure_blob.settings import AzureBlobSettings

_LARGEST: Final = 5000 << 20
"""Maximum bytes for Put Blob."""
_BLOCK: Final = 1 << 20
_PAGE: Final = 1000
_TYPE: Final = "content_type"
_METADATA: Final = "metadata"
"""Keys in `Upload.extra` for the properties sent with the list of blocks."""

_NO_SIZE: Final = re.compile(rb"<Content-Length>(?!\s*[0-9]{1,18}\s*</)[^<]*</Content-Length>")
_ENDLESS: Final = "its listing is unreliable: replay without --list, on the machine that has the spool"


class _Request(NamedTuple):
    """The SDK's container and the options of each request. Untyped: the types alone do not justify importing Azure's library."""

    container: Any
    options: dict[str, Any]

    def streaming(self, source: Source, size: int, md5: bytes) -> dict[str, Any]:
        """Return options that stream this body. The SDK itself would read all of it into memory, or read it twice."""
        authorize = self.options["raw_request_hook"]

        def stream(request: Any) -> None:
            if size:  # an empty stream would be sent chunked, which the store refuses
                request.http_request.data = source
            request.http_request.headers["Content-Length"] = str(size)
            request.http_request.headers["Content-MD5"] = base64.b64encode(md5).decode()
            authorize(request)

        return {**self.options, "raw_request_hook": stream}


class AzureBlobProvider:
    """Azure Blob Storage."""

    API_VERSION: ClassVar[int] = 1
    settings: ClassVar[type[AzureBlobSettings]] = AzureBlobSettings
    max_parts: ClassVar[int] = 50_000
    min_part_size: ClassVar[int] = 1
    # No `max_write_size`: with a JOBS_BACKUP_MULTIPART_THRESHOLD high enough, the permission to create is all that is needed.

    def __init__(self, settings: AzureBlobSettings) -> None:
        self._settings = settings
        self._clients = PerProcess(functools.partial(connect, settings))

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """Create a provider from environment variables. Neither imports the SDK nor opens a connection.

        Raises:
            ConfigurationError: a variable is missing or invalid, or two contradict each other.
        """
        return cls(AzureBlobSettings.from_environment(environment))

    @property
    def location(self) -> str:
        """The account and container, and the endpoint if it is not Azure's own."""
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
        """Write an object: Put Blob."""
        call = Call("Put Blob", self._settings, key, if_absent)
        if size > _LARGEST:
            raise NotSupported(f"{call}: {size:,} bytes are too many for one request", hint="lower JOBS_BACKUP_MULTIPART_THRESHOLD")
        crc, md5 = _sums(call, body, size)
        _compare(call, crc, checksum)
        with Source(body, size) as source, self._request(call, timeout) as request:
            answer = request.container.get_blob_client(key).upload_blob(
                b"",
                length=0,
                overwrite=not if_absent,
                **self._bears(content_type, metadata),
                **request.streaming(source, size, md5),
            )
            return _receipt(call, answer)

    @hookimpl
    def create_multipart(self, key: str, content_type: str, metadata: Mapping[str, str]) -> Upload:
        """Start an upload. Sends nothing: Azure has no operation for this."""
        return Upload(key=key, id=secrets.token_hex(16), extra={_TYPE: content_type, _METADATA: json.dumps(dict(metadata))})

    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body, size: int, timeout: float) -> Part:
        """Upload a part: Put Block."""
        call = Call("Put Block", self._settings, upload.key)
        crc, md5 = _sums(call, body, size)
        with Source(body, size) as source, self._request(call, timeout) as request:
            blob = request.container.get_blob_client(upload.key)
            blob.stage_block(_block(upload, number), b"", length=0, **request.streaming(source, size, md5))
        # Azure returns no tags for blocks. Completion compares the parts itself, and needs their sizes for that.
        return Part(number=number, etag=str(size), crc32c=crc)

    @hookimpl
    def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], size: int, checksum: int, if_absent: bool, timeout: float
    ) -> WriteReceipt:
        """Complete an upload: Put Block List."""
        call = Call("Put Block List", self._settings, upload.key, if_absent)
        sizes = [int(part.etag) for part in parts]
        if sum(sizes) != size:
            raise IntegrityError(f"{call}: the parts have {sum(sizes)} bytes instead of {size}")
        crcs = ((part.crc32c or 0, size) for part, size in zip(parts, sizes, strict=True))
        _compare(call, functools.reduce(lambda whole, one: combined(whole, *one), crcs, 0), checksum)
        blob, core = importlib.import_module("azure.storage.blob"), importlib.import_module("azure.core")
        condition = {"match_condition": core.MatchConditions.IfMissing} if if_absent else {}
        with self._request(call, timeout) as request:
            answer = request.container.get_blob_client(upload.key).commit_block_list(
                [blob.BlobBlock(_block(upload, part.number)) for part in parts],
                **self._bears(upload.extra[_TYPE], json.loads(upload.extra[_METADATA])),
                **condition,
                **request.options,
            )
            return _receipt(call, answer)

    @hookimpl
    def abort_multipart(self, upload: Upload) -> AbortReceipt:  # noqa: ARG002 - the store needs no request
        """Abort an upload. Sends nothing: Azure has no operation that only discards blocks.

        The blocks can no longer become part of an object, because only this upload lists them. Azure discards them once the key's
        object is uploaded, which core keeps trying; otherwise a week after the last block arrived.

        Deleting the key would discard them at once, but needs a permission that backups do not need. It would also delete an object
        whose completion succeeded although the answer was lost. An empty list of blocks would create an empty object, which the
        next write would take for its own.
        """
        return AbortReceipt(Outcome.ABORTED)

    @hookimpl
    def delete(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        """Delete objects: Delete Blob for each key, several at once. Each has its own answer and needs only delete permission."""

        def delete(key: str) -> None:
            with self._request(Call("Delete Blob", self._settings, key), timeout) as request:
                request.container.get_blob_client(key).delete_blob(**request.options)

        return delete_each(keys, delete)

    @hookimpl
    def read(self, key: str, timeout: float) -> Body:
        """Read an object: Get Blob Properties for the size, then Get Blob each time the body is opened."""
        call = Call("Get Blob", self._settings, key)
        with self._request(call, timeout) as request:
            found = request.container.get_blob_client(key).get_blob_properties(**request.options)
        size, stored_as = int(found.size or 0), found.content_settings.content_encoding

        def get(offset: int) -> Any:
            same = importlib.import_module("azure.core").MatchConditions.IfNotModified
            with self._request(call, timeout) as request:
                blob = request.container.get_blob_client(key)
                options = request.options | {"raw_response_hook": functools.partial(_take, call, stored_as)}
                try:
                    blob.download_blob(offset, size - offset, etag=found.etag, match_condition=same, **options)
                except _Taken as taken:
                    return taken.stream
            raise Unavailable(f"{call}: there was no response")

        return ObjectBody(size, get, lambda: translated(call))

    @hookimpl
    def list(self, prefix: str, after: str, timeout: float) -> Page:
        """List a page of objects: List Blobs. Skips keys up to `after`: a store without `startFrom` lists from the beginning."""
        objects: list[Listed] = []
        call = Call("List Blobs", self._settings)
        with self._request(call, timeout) as request:
            options = request.options | {"raw_response_hook": functools.partial(_mend, call)}
            pages = request.container.list_blobs(
                name_starts_with=prefix or None, start_from=after or None, results_per_page=_PAGE + 1, **options
            ).by_page()
            last = ""
            for blobs in pages:
                page = list(blobs)
                names = [blob.name for blob in page if blob.name]
                if names and names[-1] <= last:
                    raise StorageError(f"{call}: a page of the listing does not continue after the previous one", hint=_ENDLESS)
                last = names[-1] if names else last
                objects += [Listed(key=blob.name, size=size_listed(blob.size)) for blob in page if blob.name and blob.name > after]
                if len(objects) > _PAGE:
                    break
        return Page(objects=objects[:_PAGE], after=objects[_PAGE - 1].key if len(objects) > _PAGE else None)

    @hookimpl
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool, format: str) -> Policy:
        """Return the policy as az commands, or as JSON (the role)."""
        return rights.policy(self.settings.from_environment(settings), delete=delete, replay=replay, format_=format)

    @contextlib.contextmanager
    def _request(self, call: Call, timeout: float) -> Generator[_Request]:
        """Yield what one request needs, and translate the block's errors."""
        azure: Azure | None = None
        try:
            with translated(call):
                azure = self._clients.get()
                options = {
                    "connection_timeout": timeout,
                    "read_timeout": timeout,
                    "raw_request_hook": azure.authorize,
                    "raw_response_hook": functools.partial(check_origin, call),
                }
                yield _Request(azure.container, options)
        except (Unauthenticated, PermissionDenied) as error:
            # The next request reads the credentials again: their file may have been replaced. The permissions to read and to delete
            # may be missing on purpose, and for many keys in a row.
            if isinstance(error, Unauthenticated) or call.operation not in ("Get Blob", "Delete Blob"):
                self._clients.renew(azure)
            raise

    def _bears(self, content_type: str, metadata: Mapping[str, str]) -> dict[str, Any]:
        """Return the properties of an object. Azure requires metadata names that are valid identifiers."""
        blob: Any = importlib.import_module("azure.storage.blob")
        return {
            "content_settings": blob.ContentSettings(content_type=content_type),
            "metadata": {re.sub(r"\W", "_", name, flags=re.ASCII): value for name, value in metadata.items()},
            "standard_blob_tier": blob.StandardBlobTier(self._settings.tier) if self._settings.tier else None,
        }


def _mend(call: Call, response: Any) -> None:
    """Remove invalid sizes from a listing: one of them would make the SDK fail the whole listing."""
    check_origin(call, response)
    answer = response.http_response
    mended = _NO_SIZE.sub(b"", answer.internal_response.content)
    for one in (answer, answer.internal_response):  # the SDK's version decides which of the two is parsed
        one._content = mended  # noqa: SLF001 - there is no option for it


class _Taken(Exception):
    """The answer has arrived. `stream` reads its body."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.stream = stream


def _take(call: Call, stored_as: str | None, response: Any) -> None:
    """Take the answer from the SDK, which would hold all of it in memory, and would retry by itself if the connection breaks.

    Raises:
        _Taken: the answer is a success.
        IntegrityError: it is a success with other bytes: its Content-Encoding is not the object's own, `stored_as`.
    """
    check_origin(call, response)
    answer = response.http_response
    if answer.status_code in (200, 206):
        if answer.headers.get("Content-Encoding") != stored_as:
            answer.internal_response.close()
            hint = "a proxy compresses or decompresses responses: make it leave Content-Encoding unchanged"
            raise IntegrityError(f"{call}: the response does not have the object's own bytes", hint=hint)
        raise _Taken(answer.internal_response.raw)


def _block(upload: Upload, number: int) -> str:
    """Return a block's id. All ids under one key must have the same length."""
    return f"{upload.id}-{number:08}"


def _sums(call: Call, body: Body, size: int) -> tuple[int, bytes]:
    """Return a body's CRC-32C, for us, and MD5, for the store. Reads the body once for both.

    Raises:
        IntegrityError: the body does not have the expected size.
    """
    crc, found, md5 = 0, 0, hashlib.md5(usedforsecurity=False)
    with body.open() as reader:
        while block := reader.read(_BLOCK):
            crc = crc32c(block, crc)
            md5.update(block)
            found += len(block)
    if found != size:
        raise IntegrityError(f"{call}: the body has {found} bytes instead of {size}")
    return crc, md5.digest()


def _compare(call: Call, crc: int, wanted: int) -> None:
    """Compare the CRC-32C, which Azure cannot check: never upload bytes that changed on disk."""
    if crc != wanted:
        raise IntegrityError(f"{call}: the body's CRC-32C does not match", hint="the disk may be faulty")


def _receipt(call: Call, answer: Mapping[str, Any]) -> WriteReceipt:
    if not answer.get("etag"):
        raise Unavailable(f"{call}: the response has no ETag", hint=STRANGER_HINT)
    at: datetime | None = answer.get("date")
    return WriteReceipt(
        etag=str(answer["etag"]), version=str(answer.get("version_id") or ""), at=None if at is None else at.timestamp()
    )
