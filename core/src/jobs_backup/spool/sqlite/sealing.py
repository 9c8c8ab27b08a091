"""Sealing in two steps, each of which may be repeated: the bytes in the blob file, then the catalog."""

from __future__ import annotations

from collections.abc import Sequence

from jobs_backup.spool.open_batch import OpenBatch
from jobs_backup.spool.sqlite.blobs import BlobFile, Changes
from jobs_backup.spool.sqlite.catalog import Catalog


def seal_batches(catalog: Catalog, blobs: BlobFile, batches: Sequence[OpenBatch]) -> None:
    """Fix the bytes (in the blob file), then key, uuid and checksum (in the catalog). Safe to repeat after a crash in between."""

    def compact(changes: Changes) -> None:
        for batch in batches:
            batch.compact(changes)

    if any(batch.fill.tail_events for batch in batches):
        blobs.change(compact)
    catalog.seal([batch.seal() for batch in batches])
