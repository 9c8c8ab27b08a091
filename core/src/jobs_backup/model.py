"""The words of the contract: bodies, uploads, receipts, and the batch that becomes an object."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from enum import StrEnum
from typing import BinaryIO

import msgspec

from jobs_backup.checksum import crc32c

_BLOCK = 1 << 17


class Body(ABC):
    """The bytes of an object or of a part: of fixed size, and to be opened as often as needed.

    Every attempt MUST open its own reader and close it. Opening again gives the same bytes again. Whoever makes one sets `size` and
    implements `open`; the rest goes by these two.

    Attributes:
        size: in bytes.
    """

    size: int

    @abstractmethod
    def open(self) -> BinaryIO:
        """A new reader at the first byte: readable and seekable. The caller closes it."""

    def slice(self, offset: int, size: int) -> Body:
        """The part of `size` bytes that begins at byte `offset`."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"slice {offset}+{size} lies outside of a body of {self.size} bytes")
        return _Slice(self, offset, size)

    def crc32c(self) -> int:
        """CRC-32C (Castagnoli) of all bytes, as an unsigned integer. Reads the body once, in constant memory."""
        value = 0
        with self.open() as reader:
            while block := reader.read(_BLOCK):
                value = crc32c(block, value)
        return value

    def md5(self) -> bytes:
        """MD5 digest of all bytes (16 bytes, for Content-MD5). Reads the body once, in constant memory."""
        digest = hashlib.md5(usedforsecurity=False)
        with self.open() as reader:
            while block := reader.read(_BLOCK):
                digest.update(block)
        return digest.digest()


class BytesBody(Body):
    """A body that is held in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self._data)


class _Slice(Body):
    def __init__(self, whole: Body, offset: int, size: int) -> None:
        self._whole = whole
        self._offset = offset
        self.size = size

    def open(self) -> BinaryIO:
        return io.BufferedReader(_SliceReader(self._whole.open(), self._offset, self.size), _BLOCK)


class _SliceReader(io.RawIOBase):
    """The window of a seekable reader that starts at `offset` and has `size` bytes."""

    def __init__(self, whole: BinaryIO, offset: int, size: int) -> None:
        self._whole = whole
        self._offset = offset
        self._size = size
        self._position = 0
        whole.seek(offset)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        self._whole.seek(self._offset + self._position)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        block = self._whole.read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._whole.close()
        super().close()


class Upload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A multipart upload that was begun. It is journaled as it is, and given back after a crash as it was.

    Attributes:
        key: the object that it will become.
        id: the store's name for it; who knows it may write to it, so it is in no `repr` and no log.
        extra: whatever else the provider has to remember.
    """

    key: str
    id: str
    extra: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Upload(key={self.key!r}, id=****)"


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The receipt of one part.

    Attributes:
        number: 1 for the first.
        etag: what the store wants to be told at completion; may be empty.
        crc32c: of the part's bytes, None if the provider does not compute it.
    """

    number: int
    etag: str = ""
    crc32c: int | None = None


class WriteReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """The object stands in the bucket.

    Attributes:
        etag: the store's, empty if it has none. Never compared: encryption changes it.
        version: the store's version or generation, empty if it has none.
        existed: it stood there already, written by an earlier attempt.
        at: when it was stored by the store's own clock, in seconds since 1970; None if it does not tell.
    """

    etag: str = ""
    version: str = ""
    existed: bool = False
    at: float | None = None


class Outcome(StrEnum):
    """What `abort_multipart` found."""

    ABORTED = "aborted"
    GONE = "gone"


class AbortReceipt(msgspec.Struct, frozen=True):
    """After this receipt the upload holds no bytes. GONE: there was none (any more), or it was completed."""

    outcome: Outcome


class DeleteReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome for each key.

    Attributes:
        deleted: keys that are gone; a key that was not there counts as deleted.
        failed: key -> why it could not be deleted. Together the two have every key that was asked for.
    """

    deleted: frozenset[str]
    failed: dict[str, Exception] = {}


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """An object as `list` sees it; `size` in bytes."""

    key: str
    size: int


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Some objects in the order of their keys. `after` is what to pass for the next page, None after the last."""

    objects: list[Listed]
    after: str | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The narrowest rights that suffice.

    Attributes:
        format: the language of `text`: `json`, `terraform` or `commands`.
        text: ready to paste.
        grants: hook -> the permission that it needs, in the store's own words, of all hooks that the policy allows.
        resource: what they are granted on.
    """

    format: str
    text: str
    grants: dict[str, str] = {}
    resource: str = ""


class Kind(StrEnum):
    """What a stream's records are."""

    RAW = "raw"
    FAILED = "failed"


class Stream(msgspec.Struct, frozen=True):
    """Jobs of one stream share objects."""

    kind: Kind
    workspace_id: str
    source_id: str


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed batch: what one object will be. Nothing of it changes any more.

    Attributes:
        id: the batch number (42 bits); a job's id is this number shifted by 21 bits, plus the job's index.
        events: lines in the object.
        raw_bytes: bytes of these lines before compression.
        size: bytes of the object.
        crc32c: of the object.
        key: where it goes, below the bucket.
        uuid: minted when it was sealed; part of the key.
        content_type: of the object, a media type.
        wrappers: what the object is made by, in this order: `FORMAT=PARAMETER` of each wrapper that changes bytes. Size and CRC are
            those of the bytes that come to the first of them.
        blobs: the spool's file that holds its bytes.
    """

    id: int
    stream: Stream
    events: int
    raw_bytes: int
    size: int
    crc32c: int
    key: str
    uuid: str
    content_type: str
    wrappers: tuple[str, ...]
    blobs: str

    @property
    def formats(self) -> list[str]:
        """What the wrappers make that it was opened with, in this order."""
        return [one.partition("=")[0] for one in self.wrappers]

    def parameter_of(self, format_: str) -> str:
        """The parameter of the wrapper that makes this format.

        Raises:
            KeyError: none was to make it.
        """
        return dict(one.split("=", 1) for one in self.wrappers)[format_]
