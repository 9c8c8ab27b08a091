"""A provider written for API version 1, as it was when that was published. It is NEVER CHANGED: it has to go on working.

It has every hook, and takes every argument that version 1 has. Its bucket is a SQLite database.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, ClassVar

from jobs_backup.checksum import crc32c
from jobs_backup.errors import (
    AlreadyExists,
    BucketNotFound,
    IntegrityError,
    NotSupported,
    ObjectNotFound,
    StorageError,
    Unavailable,
    UploadGone,
)
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

TABLES = """
    CREATE TABLE IF NOT EXISTS objects (key TEXT PRIMARY KEY, data BLOB, content_type TEXT, metadata TEXT);
    CREATE TABLE IF NOT EXISTS uploads (id TEXT PRIMARY KEY, key TEXT);
    CREATE TABLE IF NOT EXISTS parts (upload TEXT, number INTEGER, data BLOB, PRIMARY KEY (upload, number));
"""


class FrozenSettings(Settings, frozen=True, kw_only=True):
    bucket: Annotated[Path, Variable("JOBS_BACKUP_BUCKET", "The database. It has to exist.", example="/var/lib/bucket.db")]
    token: Annotated[Secret | None, Variable("FROZEN_TOKEN", "A secret.", credential=True)] = None


class FrozenProvider:
    API_VERSION: ClassVar[int] = 1
    settings: ClassVar = FrozenSettings
    sequential_parts: ClassVar[bool] = False
    max_parts: ClassVar[int] = 1000
    part_multiple: ClassVar[int] = 16
    min_part_size: ClassVar[int] = 1024
    max_write_size: ClassVar[int] = 4 << 20

    def __init__(self, settings: FrozenSettings) -> None:
        self._bucket = settings.bucket.absolute()

    @property
    def location(self) -> str:
        return f"frozen://{self._bucket}"

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> FrozenProvider:
        return cls(FrozenSettings.from_environment(environment))

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
        data = _read(body, size)
        with self._connected(timeout) as db:
            return _publish(db, key, data, checksum, content_type, repr(dict(metadata)), if_absent)

    @hookimpl
    def abort_multipart(self, upload: Upload, timeout: float) -> AbortReceipt:
        with self._connected(timeout) as db:
            found = _end(db, upload)
        return AbortReceipt(Outcome.ABORTED if found else Outcome.GONE)

    @hookimpl
    def delete(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        with self._connected(timeout) as db:
            db.executemany("DELETE FROM objects WHERE key=?", [(key,) for key in keys])
        return DeleteReceipt(deleted=frozenset(keys), failed={})

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
        extra = {"content_type": content_type, "metadata": repr(dict(metadata)), "size": str(size), "checksum": str(checksum)}
        upload = Upload(key=key, id=secrets.token_hex(16), extra=extra | {"if_absent": str(if_absent)})
        with self._connected(timeout) as db:
            db.execute("INSERT INTO uploads VALUES (?, ?)", (upload.id, key))
        return upload

    @hookimpl
    def write_part(self, upload: Upload, number: int, offset: int, body: Body, size: int, last: bool, timeout: float) -> Part:
        if offset % self.part_multiple or (not last and size % self.part_multiple):
            raise StorageError(f"part {number} of {upload.key} is at {offset} with {size} bytes")
        data = _read(body, size)
        with self._connected(timeout) as db:
            _need(db, upload)
            db.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (upload.id, number, data))
        return Part(number=number, etag=hashlib.sha256(data).hexdigest(), crc32c=crc32c(data))

    @hookimpl
    def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], size: int, checksum: int, if_absent: bool, timeout: float
    ) -> WriteReceipt:
        with self._connected(timeout) as db:
            _need(db, upload)
            stored = dict(db.execute("SELECT number, data FROM parts WHERE upload=?", (upload.id,)).fetchall())
            if any(hashlib.sha256(stored.get(part.number, b"")).hexdigest() != part.etag for part in parts):
                raise UploadGone(f"{upload.key}: the parts are not those that were stored")
            data = b"".join(stored[part.number] for part in parts)
            if len(data) != size:
                raise IntegrityError(f"{upload.key}: the parts have {len(data)} bytes instead of {size}")
            receipt = _publish(db, upload.key, data, checksum, upload.extra["content_type"], upload.extra["metadata"], if_absent)
            _end(db, upload)
        return receipt

    @hookimpl
    def read(self, key: str, timeout: float) -> Body:
        with self._connected(timeout) as db:
            row = db.execute("SELECT data FROM objects WHERE key=?", (key,)).fetchone()
        if row is None:
            raise ObjectNotFound(f"there is no {key}")
        return BytesBody(row[0])

    @hookimpl
    def list(self, prefix: str, after: str, timeout: float) -> Page:
        with self._connected(timeout) as db:
            query = "SELECT key, length(data) FROM objects WHERE key>? AND substr(key, 1, ?)=? ORDER BY key LIMIT 100"
            found = [Listed(key=key, size=size) for key, size in db.execute(query, (after, len(prefix), prefix))]
        return Page(objects=found, after=found[-1].key if len(found) == 100 else None)

    @hookimpl
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool, format: str) -> Policy:
        if format not in {"", "commands"}:
            raise NotSupported(f"there is none as {format}", hint="use --format commands")
        hooks = ["write", "abort_multipart", *MULTIPART, *(["delete"] if delete else []), *(["read", "list"] if replay else [])]
        bucket = settings["JOBS_BACKUP_BUCKET"]
        return Policy(
            format="commands", text=f"allow {' '.join(hooks)} on {bucket}\n", grants=dict.fromkeys(hooks, "rw"), resource=bucket
        )

    @contextmanager
    def _connected(self, timeout: float) -> Generator[sqlite3.Connection, None, None]:
        if not self._bucket.is_file():
            raise BucketNotFound(f"there is no database {self._bucket}", hint="make it")
        try:
            with closing(sqlite3.connect(self._bucket, timeout=timeout, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise Unavailable(f"{self.location}: {error}", retry_after=None, hint="look at the disk") from error


def _read(body: Body, size: int) -> bytes:
    with body.open() as reader:
        data = reader.read()
    if len(data) != size:
        raise IntegrityError(f"the body has {len(data)} bytes instead of {size}")
    return data


def _publish(
    db: sqlite3.Connection, key: str, data: bytes, checksum: int, content_type: str, metadata: str, if_absent: bool
) -> WriteReceipt:
    if crc32c(data) != checksum:
        raise IntegrityError(f"the bytes of {key} are not those of the checksum")
    verb = "INSERT OR IGNORE" if if_absent else "INSERT OR REPLACE"
    if not db.execute(f"{verb} INTO objects VALUES (?, ?, ?, ?)", (key, data, content_type, metadata)).rowcount:
        raise AlreadyExists(f"{key} exists")
    return WriteReceipt(etag=hashlib.sha256(data).hexdigest(), version="1", existed=False, at=None)


def _need(db: sqlite3.Connection, upload: Upload) -> None:
    if db.execute("SELECT 1 FROM uploads WHERE id=? AND key=?", (upload.id, upload.key)).fetchone() is None:
        raise UploadGone(f"the upload of {upload.key} does not exist any more")


def _end(db: sqlite3.Connection, upload: Upload) -> bool:
    db.execute("DELETE FROM parts WHERE upload=?", (upload.id,))
    return bool(db.execute("DELETE FROM uploads WHERE id=?", (upload.id,)).rowcount)
