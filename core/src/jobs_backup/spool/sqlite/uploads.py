"""Journal of multipart uploads: their ids, noted before the first part, and the receipts of their parts."""

from __future__ import annotations

import sqlite3
from typing import Any, Final, TypeVar

import msgspec

from jobs_backup.errors import JobsBackupError, SpoolCorrupt
from jobs_backup.model import Batch, Part, Upload
from jobs_backup.spool.interface import JournaledUpload
from jobs_backup.spool.sqlite.clock import Clock
from jobs_backup.spool.sqlite.database import Database, reads, writes

T = TypeVar("T")
MAX_DELAY: Final = 3600.0
"""Seconds; the longest delay ever set. A later time was noted before the clock was set back."""


class UploadJournal:
    """The tables `uploads` and `parts` of the catalog. Every method is one transaction."""

    def __init__(self, database: Database, store: int, clock: Clock) -> None:
        """`store` is the number of its store."""
        self._database = database
        self._store = store
        self._clock = clock

    @writes
    def begin(self, db: sqlite3.Connection, batch: Batch, upload: Upload, part_size: int) -> JournaledUpload:
        """Note an upload, before its first part is sent."""
        id_ = db.execute(
            "INSERT INTO uploads (batch, store, upload, part_size) VALUES (?, ?, ?, ?)",
            (batch.id, self._store, msgspec.json.encode(upload), part_size),
        ).lastrowid
        assert id_ is not None
        return JournaledUpload(id_, batch.id, upload, part_size, 0)

    @reads
    def of(self, db: sqlite3.Connection, batch: Batch) -> tuple[JournaledUpload, list[Part]] | None:
        """The upload to resume for a batch, with its uploaded parts."""
        row = db.execute(
            "SELECT id, batch, upload, part_size, failures FROM uploads WHERE batch=? AND NOT abandoned ORDER BY id DESC LIMIT 1",
            (batch.id,),
        ).fetchone()
        if row is None:
            return None
        parts = db.execute("SELECT part FROM parts WHERE upload=? ORDER BY number", (row[0],))
        return _upload(row), [_decode(part, Part) for (part,) in parts]

    @writes
    def add_part(self, db: sqlite3.Connection, upload: JournaledUpload, part: Part) -> None:
        """Note the receipt of a part."""
        db.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (upload.id, part.number, msgspec.json.encode(part)))
        db.execute("UPDATE uploads SET failures=0 WHERE id=? AND failures>0 AND NOT abandoned", (upload.id,))

    @writes
    def failed(self, db: sqlite3.Connection, upload: JournaledUpload) -> int:
        """Note a failed attempt. Returns the number of failures since the last part."""
        (failures,) = db.execute("UPDATE uploads SET failures=failures+1 WHERE id=? RETURNING failures", (upload.id,)).fetchone()
        return int(failures)

    @writes
    def abandon(self, db: sqlite3.Connection, upload: JournaledUpload) -> None:
        """Mark an upload that will not be resumed, so that it is aborted."""
        db.execute("UPDATE uploads SET abandoned=1, failures=0 WHERE id=?", (upload.id,))

    @writes
    def forget(self, db: sqlite3.Connection, upload: JournaledUpload) -> None:
        """Forget an upload that was completed or aborted."""
        db.execute("DELETE FROM uploads WHERE id=?", (upload.id,))

    @reads
    def abandoned(self, db: sqlite3.Connection) -> list[JournaledUpload]:
        """The uploads to this store that are due to be aborted."""
        rows = db.execute(
            "SELECT id, batch, upload, part_size, failures FROM uploads WHERE store=? AND abandoned"
            " AND (retry_at<=? OR retry_at>?) ORDER BY id",
            (self._store, self._clock.now(), self._clock.now() + MAX_DELAY),
        ).fetchall()
        return [_upload(row) for row in rows]

    @writes
    def postpone(self, db: sqlite3.Connection, upload: JournaledUpload, error: JobsBackupError, *, delay: float) -> None:
        """Note a failed abort, to be retried after `delay` seconds."""
        db.execute(
            "UPDATE uploads SET failures=failures+1, error=?, hint=?, retry_at=? WHERE id=?",
            (writable(str(error)), writable(error.hint), self._clock.now() + delay, upload.id),
        )

    @reads
    def waiting(self, db: sqlite3.Connection) -> list[tuple[str, str, str]]:
        """(key, error, hint) of every upload still to be aborted, for any store."""
        rows = db.execute("SELECT upload, error, hint FROM uploads WHERE abandoned ORDER BY id").fetchall()
        return [(_decode(upload, Upload).key, error, hint) for upload, error, hint in rows]


def _upload(row: tuple[Any, ...]) -> JournaledUpload:
    return JournaledUpload(row[0], row[1], _decode(row[2], Upload), row[3], row[4])


def _decode(data: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise SpoolCorrupt("the journal of uploads is not what was written", hint="check the disk") from None


def writable(text: str) -> str:
    """Make text of any origin acceptable to SQLite."""
    return text.encode("utf-8", "backslashreplace").decode()
