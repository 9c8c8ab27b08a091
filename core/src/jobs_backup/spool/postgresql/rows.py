"""Texts and rows, as PostgreSQL takes and gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from jobs_backup.format.compression import Compression
from jobs_backup.model import Batch, Kind, Stream
from jobs_backup.spool.batches import BatchOptions, BatchRow

MAX_DELAY: Final = 3600.0
"""Seconds; nothing is ever made to wait longer. What seems to was noted before the server's clock was set back."""
_ESCAPE: Final = "\x1b"


def encoded(text: str) -> str:
    """An id as PostgreSQL takes it: it has no NUL."""
    return text.replace(_ESCAPE, f"{_ESCAPE}1").replace("\0", f"{_ESCAPE}0") if _ESCAPE in text or "\0" in text else text


def decoded(text: str) -> str:
    """What `encoded` got."""
    return text.replace(f"{_ESCAPE}0", "\0").replace(f"{_ESCAPE}1", _ESCAPE) if _ESCAPE in text else text


def writable(text: str) -> str:
    """Text that may have come from anywhere, as PostgreSQL takes it."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def stream_of(kind: str, workspace_id: str, source_id: str) -> Stream:
    """The stream of a row."""
    return Stream(Kind(kind), decoded(workspace_id), decoded(source_id))


def batch_of(row: Sequence[Any]) -> Batch:
    """(id, kind, workspace_id, source_id, events, raw_bytes, size, crc32c, key, uuid, compression, wrappers, segment)."""
    id_, kind, workspace_id, source_id, events, raw_bytes, size, crc32c, key, uuid, compression, wrappers, segment = row
    return Batch(
        id=id_,
        stream=stream_of(kind, workspace_id, source_id),
        events=events,
        raw_bytes=raw_bytes,
        size=size,
        crc32c=crc32c,
        key=decoded(key),
        uuid=uuid,
        content_type=Compression.parse(compression).content_type,
        wrappers=names_of(wrappers),
        blobs=str(segment),
    )


ROW: Final = (
    "SELECT id, epoch, opened_at, kind, workspace_id, source_id, store, prefix, instance_id, compression, wrappers, segment"
    " FROM jobs_backup.batches"
)


def row_of(row: Sequence[Any]) -> tuple[BatchRow, int]:
    """A row of ROW, and its segment."""
    id_, epoch, opened_at, kind, workspace_id, source_id, store, prefix, instance_id, compression, wrappers, segment = row
    placement = BatchOptions(
        store=store,
        prefix=prefix,
        instance_id=decoded(instance_id),
        compression=Compression.parse(compression),
        wrappers=names_of(wrappers),
    )
    return BatchRow(id_, epoch, opened_at, stream_of(kind, workspace_id, source_id), placement), segment


def names_of(text: str) -> tuple[str, ...]:
    """Names that are separated by commas."""
    return tuple(text.split(",")) if text else ()
