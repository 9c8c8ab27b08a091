"""Types of the contract: bodies, uploads, receipts, and the batch that becomes an object."""

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
    """The bytes of an object or a part: of fixed size, and readable any number of times.

    Every attempt MUST open its own reader and close it. Every reader yields the same bytes. A subclass sets `size` and implements
    `open`; the other methods use these two.

    Attributes:
        size: in bytes.
    """

    size: int

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open a new reader at the first byte: readable and seekable. The caller closes it."""

    def slice(self, offset: int, size: int) -> Body:
        """The `size` bytes from byte `offset` on, as a body."""
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
    """A body held in memory."""

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


class SeekableReader(io.RawIOBase, ABC):
    """Base of a body's reader that makes its bytes when they are asked for: implement `piece` and, if need be, `release`.

    Wrap it in `io.BufferedReader`. It holds at most one piece in memory.
    """

    def __init__(self, size: int) -> None:
        """`size` is that of the body, in bytes."""
        self._size = size
        self._position = 0
        self._held = memoryview(b"")
        self._held_at = 0

    @abstractmethod
    def piece(self, position: int, size: int) -> tuple[int, bytes]:
        """The bytes around a position: where they begin, and the bytes.

        Args:
            position: of the first byte that is wanted, in the body. It is before the end.
            size: bytes that fit into the caller's buffer. The piece may be of any size that contains the position.

        A piece without bytes ends the body early.
        """

    def release(self) -> None:
        """Close the source. Called once, by `close`."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position >= self._size:
            return 0
        if not 0 <= self._position - self._held_at < len(self._held):
            self._held_at, piece = self.piece(self._position, len(buffer))
            self._held = memoryview(piece)
        offset = self._position - self._held_at
        block = self._held[offset : offset + len(buffer)]
        buffer[: len(block)] = block
        if offset + len(block) == len(self._held):
            self._held = memoryview(b"")
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self.release()
        super().close()


class _SliceReader(SeekableReader):
    """Window of a seekable reader: `size` bytes from `offset` on."""

    def __init__(self, whole: BinaryIO, offset: int, size: int) -> None:
        super().__init__(size)
        self._whole = whole
        self._offset = offset
        self._whole_at = -1  # not known

    def piece(self, position: int, size: int) -> tuple[int, bytes]:
        if self._whole_at != position:
            self._whole.seek(self._offset + position)
        self._whole_at = -1
        block = self._whole.read(min(size, self._size - position))
        self._whole_at = position + len(block)
        return position, block

    def release(self) -> None:
        self._whole.close()


class Upload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An open multipart upload. Journaled as it is, and passed back unchanged after a crash.

    Attributes:
        key: key of the object that it will become.
        id: the store's name for it. Anybody who knows it may write to it, so it appears in no `repr` and no log.
        extra: anything else the provider has to remember.
    """

    key: str
    id: str
    extra: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Upload(key={self.key!r}, id=****)"


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Receipt for one part.

    Attributes:
        number: 1 for the first.
        etag: what the store requires at completion; may be empty.
        crc32c: of the part's bytes; None if the provider does not compute it.
    """

    number: int
    etag: str = ""
    crc32c: int | None = None


class WriteReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """Receipt for an object that is in the bucket.

    Attributes:
        etag: the store's ETag, empty if it has none. Never compared: encryption changes it.
        version: the store's version or generation, empty if it has none.
        existed: whether an earlier attempt had already written it.
        at: upload time by the store's clock, in seconds since 1970; None if the store does not report it.
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
    """Receipt for an upload that holds no bytes. GONE: the upload does not exist, or was completed."""

    outcome: Outcome


class DeleteReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome for each key.

    Attributes:
        deleted: keys that are deleted; a key that did not exist counts as deleted.
        failed: key -> why it could not be deleted. Together, the two contain every requested key.
    """

    deleted: frozenset[str]
    failed: dict[str, Exception] = {}


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """An object as listed; `size` in bytes."""

    key: str
    size: int


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Some objects in key order. `after` is the argument for the next page; None on the last page."""

    objects: list[Listed]
    after: str | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Least-privilege permissions.

    Attributes:
        format: the language of `text`: `json`, `terraform` or `commands`.
        text: ready to paste.
        grants: hook -> the permission it needs, in the store's terms, for all hooks that the policy allows.
        resource: what the permissions are granted on.
    """

    format: str
    text: str
    grants: dict[str, str] = {}
    resource: str = ""


class Kind(StrEnum):
    """Whether a stream holds raw events or failure records."""

    RAW = "raw"
    FAILED = "failed"


class Stream(msgspec.Struct, frozen=True):
    """Jobs of one stream share objects."""

    kind: Kind
    workspace_id: str
    source_id: str


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed batch, which becomes one object. It never changes.

    Attributes:
        id: batch number (42 bits); a job's id is this number shifted by 21 bits, plus the job's index.
        events: lines in the object.
        raw_bytes: size of these lines before compression, in bytes.
        size: size of the object in bytes.
        crc32c: of the object.
        key: the object's key, below the bucket.
        uuid: minted when the batch was sealed; part of the key.
        content_type: the object's media type.
        wrappers: `FORMAT=PARAMETER` of each wrapper that changes bytes, in the order applied. Size and CRC are those of the bytes
            before the first wrapper.
        blobs: the spool file that holds its bytes.
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
        """Formats of the wrappers that the batch was opened with, in order."""
        return [one.partition("=")[0] for one in self.wrappers]

    def parameter_of(self, format_: str) -> str:
        """Parameter of the wrapper that makes this format.

        Raises:
            KeyError: the batch was not opened with such a wrapper.
        """
        return dict(one.split("=", 1) for one in self.wrappers)[format_]
