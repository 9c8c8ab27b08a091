"""Journal of multipart uploads: their ids, noted before the first part, and the receipts of their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from jobs_backup.errors import JobsBackupError, SpoolCorrupt
from jobs_backup.model import Batch, Part, Upload
from jobs_backup.spool.interface import JournaledUpload
from jobs_backup.spool.postgresql.connection import NOW, Database, one, sql
from jobs_backup.spool.postgresql.rows import MAX_DELAY, writable

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

T = TypeVar("T")
_FIELDS: Final = "id, batch, upload, part_size, failures"


class UploadJournal:
    """The tables `uploads` and `parts`. Every method is one transaction."""

    def __init__(self, database: Database, store: int) -> None:
        """`store` is the number of its store."""
        self._database = database
        self._store = store

    def begin(self, batch: Batch, upload: Upload, part_size: int) -> JournaledUpload:
        """Note an upload, before its first part is sent."""

        def work(db: Db) -> JournaledUpload:
            (id_,) = one(
                db,
                "INSERT INTO jobs_backup.uploads (batch, store, upload, part_size) VALUES (%s, %s, %s, %s) RETURNING id",
                (batch.id, self._store, msgspec.json.encode(upload), part_size),
            )
            return JournaledUpload(id_, batch.id, upload, part_size, 0)

        return self._database.write(work)

    def of(self, batch: Batch) -> tuple[JournaledUpload, list[Part]] | None:
        """The upload to resume for a batch, with its uploaded parts."""

        def look(db: Db) -> tuple[JournaledUpload, list[Part]] | None:
            row = db.execute(
                f"SELECT {_FIELDS} FROM jobs_backup.uploads WHERE batch = %s AND NOT abandoned ORDER BY id DESC LIMIT 1",
                (batch.id,),
            ).fetchone()
            if row is None:
                return None
            parts = db.execute("SELECT part FROM jobs_backup.parts WHERE upload = %s ORDER BY number", (row[0],)).fetchall()
            return _upload(row), [_decode(part, Part) for (part,) in parts]

        return self._database.read(look)

    def add_part(self, upload: JournaledUpload, part: Part) -> None:
        """Note the receipt of a part."""

        def work(db: Db) -> None:
            db.execute(
                "INSERT INTO jobs_backup.parts VALUES (%s, %s, %s) ON CONFLICT (upload, number) DO UPDATE SET part = excluded.part",
                (upload.id, part.number, msgspec.json.encode(part)),
            )
            db.execute("UPDATE jobs_backup.uploads SET failures = 0 WHERE id = %s AND failures > 0 AND NOT abandoned", (upload.id,))

        self._database.write(work, is_idempotent=True)

    def failed(self, upload: JournaledUpload) -> int:
        """Note a failed attempt. Returns the number of failures since the last part."""
        query = "UPDATE jobs_backup.uploads SET failures = failures + 1 WHERE id = %s RETURNING failures"
        return int(self._database.write(lambda db: one(db, query, (upload.id,))[0]))

    def abandon(self, upload: JournaledUpload) -> None:
        """Mark an upload that will not be resumed, so that it is aborted."""
        query = "UPDATE jobs_backup.uploads SET abandoned = true, failures = 0 WHERE id = %s"
        self._database.write(lambda db: db.execute(query, (upload.id,)), is_idempotent=True)

    def forget(self, upload: JournaledUpload) -> None:
        """Forget an upload that was completed or aborted."""
        self._database.write(
            lambda db: db.execute("DELETE FROM jobs_backup.uploads WHERE id = %s", (upload.id,)), is_idempotent=True
        )

    def abandoned(self) -> list[JournaledUpload]:
        """The uploads to this store that are due to be aborted."""
        query = sql(
            f"SELECT {_FIELDS} FROM jobs_backup.uploads WHERE store = %s AND abandoned"
            f" AND (retry_at <= {NOW} OR retry_at > {NOW} + {MAX_DELAY}) ORDER BY id"
        )
        return self._database.read(lambda db: [_upload(row) for row in db.execute(query, (self._store,)).fetchall()])

    def postpone(self, upload: JournaledUpload, error: JobsBackupError, *, delay: float) -> None:
        """Note a failed abort, to be retried after `delay` seconds."""
        query = (
            f"UPDATE jobs_backup.uploads SET failures = failures + 1, error = %s, hint = %s, retry_at = {NOW} + %s WHERE id = %s"
        )
        values = (writable(str(error)), writable(error.hint), delay, upload.id)
        self._database.write(lambda db: db.execute(query, values), is_idempotent=True)

    def waiting(self) -> list[tuple[str, str, str]]:
        """(key, error, hint) of every upload still to be aborted, for any store."""
        query = "SELECT upload, error, hint FROM jobs_backup.uploads WHERE abandoned ORDER BY id"
        rows = self._database.read(lambda db: db.execute(query).fetchall())
        return [(_decode(upload, Upload).key, error, hint) for upload, error, hint in rows]


def _upload(row: tuple[Any, ...]) -> JournaledUpload:
    return JournaledUpload(row[0], row[1], _decode(row[2], Upload), row[3], row[4])


def _decode(data: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SpoolCorrupt("the journal of uploads is not what was written", hint="look at the server's disk") from None
