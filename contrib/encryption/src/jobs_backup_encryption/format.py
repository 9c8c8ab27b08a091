"""The format `enc` of encrypted objects. Any part can be made, or read, without the parts before it.

    magic (16 bytes) | id of the key (8) | uuid of the batch (16) | chunks

Each chunk is 64 KiB of the content (the last one has the rest, which may be empty) and a tag of 16 bytes: AES-256-GCM (NIST SP
800-38D). Its key is derived from the master key with HKDF-SHA256 (RFC 5869), with the header as the salt. So every object has its
own key, and nothing in the header can be changed. The nonce is the chunk's number, in 11 bytes, and one byte that is 1 for the last
chunk. So chunks cannot be moved, left out or added (STREAM: Hoang, Reyhanitabar, Rogaway and Vizar, 2015).

The same batch and master key give the same bytes, as a retry requires. The uuid ensures that a nonce is never used for other bytes:
it is minted when the content is fixed.
"""

from __future__ import annotations

import io
import uuid
from typing import TYPE_CHECKING, BinaryIO, Final

from jobs_backup.errors import IntegrityError
from jobs_backup.model import Body, SeekableReader
from jobs_backup_encryption.keys import KEY_BYTES, Keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC: Final = b"jobs-backup enc1"
HEADER_BYTES: Final = len(MAGIC) + 8 + 16
CHUNK_BYTES: Final = 1 << 16
TAG_BYTES: Final = 16
_SEALED_BYTES: Final = CHUNK_BYTES + TAG_BYTES
_BUFFER_BYTES: Final = 1 << 18


class EncryptedBody(Body):
    """The bytes of the encrypted object."""

    def __init__(self, content: Body, key: bytes, key_id: str, batch: str) -> None:
        """`batch` is the batch's uuid, which no other content may have."""
        self._content = content
        self._header = MAGIC + bytes.fromhex(key_id) + uuid.UUID(batch).bytes
        self._cipher = _cipher(key, self._header)
        self.size = HEADER_BYTES + content.size + TAG_BYTES * _chunks(content.size)

    def open(self) -> BinaryIO:
        reader = _Encrypting(self._content.open(), self._content.size, self._cipher, self._header, self.size)
        return io.BufferedReader(reader, _BUFFER_BYTES)


class DecryptedBody(Body):
    """The content of an object. Reading a changed part raises IntegrityError."""

    def __init__(self, encrypted: Body, keys: Keys, name: str, *, has_its_key: bool = False) -> None:
        """`name` is the object's, for messages. `has_its_key`: it is the object's key, which contains the batch's uuid.

        Raises:
            IntegrityError: no encrypted object has this size.
        """
        self._encrypted = encrypted
        self._keys = keys
        self._name = name
        self._has_its_key = has_its_key
        sealed = encrypted.size - HEADER_BYTES
        chunks = max(1, -(-sealed // _SEALED_BYTES))
        self.size = sealed - TAG_BYTES * chunks
        if self.size < 0 or chunks != _chunks(self.size):
            raise IntegrityError(f"{name} has {encrypted.size:,} bytes, which no encrypted object can have")

    def open(self) -> BinaryIO:
        reader = self._encrypted.open()
        try:
            header = _exactly(reader, HEADER_BYTES)
            if not header.startswith(MAGIC):
                raise IntegrityError(f"{self._name} does not begin like an encrypted object")
            batch = str(uuid.UUID(bytes=header[-16:]))
            if self._has_its_key and batch not in self._name.rpartition("/")[2]:
                raise IntegrityError(f"{self._name} has the content of another object, of batch {batch}")
            key = self._keys.find(header[len(MAGIC) : len(MAGIC) + 8].hex(), self._name)
            decrypting = _Decrypting(reader, self.size, _cipher(key, header), self._name)
        except BaseException:
            reader.close()
            raise
        return io.BufferedReader(decrypting, _BUFFER_BYTES)


class _ByChunks(SeekableReader):
    """A file that is made of another one chunk by chunk."""

    def __init__(self, source: BinaryIO, size: int) -> None:
        """`size` is that of this file, in bytes."""
        super().__init__(size)
        self._source = source
        self._source_at = source.tell()

    def release(self) -> None:
        self._source.close()

    def _take(self, at: int, size: int) -> bytes:
        """Read `size` bytes of the source, from `at` on."""
        if self._source_at != at:
            self._source.seek(at)
        self._source_at = -1  # if reading fails, the position is unknown
        data = _exactly(self._source, size)
        self._source_at = at + size
        return data


class _Encrypting(_ByChunks):
    def __init__(self, content: BinaryIO, content_size: int, cipher: AESGCM, header: bytes, size: int) -> None:
        super().__init__(content, size)
        self._content_size = content_size
        self._last = _chunks(content_size) - 1
        self._cipher = cipher
        self._header = header

    def piece(self, position: int, size: int) -> tuple[int, bytes]:  # noqa: ARG002 - as large as the chunk is
        if position < HEADER_BYTES:
            return 0, self._header
        number = (position - HEADER_BYTES) // _SEALED_BYTES
        at = number * CHUNK_BYTES
        data = self._take(at, min(CHUNK_BYTES, self._content_size - at))
        return HEADER_BYTES + number * _SEALED_BYTES, self._cipher.encrypt(_nonce(number, number == self._last), data, None)


class _Decrypting(_ByChunks):
    def __init__(self, encrypted: BinaryIO, size: int, cipher: AESGCM, name: str) -> None:
        super().__init__(encrypted, size)
        self._last = _chunks(size) - 1
        self._cipher = cipher
        self._name = name
        if not size:
            self.piece(0, 0)  # nothing will be read, but the empty chunk must be verified, too

    def piece(self, position: int, size: int) -> tuple[int, bytes]:  # noqa: ARG002 - as large as the chunk is
        from cryptography.exceptions import InvalidTag  # imported on first use

        number = position // CHUNK_BYTES
        at = number * CHUNK_BYTES
        sealed = self._take(HEADER_BYTES + number * _SEALED_BYTES, min(CHUNK_BYTES, self._size - at) + TAG_BYTES)
        try:
            return at, self._cipher.decrypt(_nonce(number, number == self._last), sealed, None)
        except InvalidTag:
            raise IntegrityError(
                f"{self._name}: the bytes from {at:,} on differ from those that were encrypted",
                hint="the object was changed, or cut",
            ) from None


def _exactly(source: BinaryIO, size: int) -> bytes:
    """Read `size` bytes; a source may return fewer at a time."""
    data = source.read(size)
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            raise IntegrityError(f"the content ended {size - len(data):,} bytes too early")
        data += more
    return data


def _chunks(size: int) -> int:
    return max(1, -(-size // CHUNK_BYTES))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _cipher(key: bytes, header: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # imported on first use
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derive = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=header, info=b"jobs-backup encryption: key of an object")
    return AESGCM(derive.derive(key))
