"""Damage: what can't be read is set aside with a report, and the rest goes on."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from jobs_backup.errors import SpoolCorrupt
from jobs_backup.fsync import sync_directory
from jobs_backup.model import Batch
from jobs_backup.spool.blobs import BlobFile, BlobFiles, Form
from jobs_backup.spool.catalog import Catalog
from jobs_backup.spool.database import database_errors
from jobs_backup.spool.open_batch import OpenBatch
from jobs_backup.spool.rows import BatchRow, Damage

log: Final = logging.getLogger(__name__)


class Quarantine:
    """The directory `quarantine/`. Its reports last as long as the files in it: removing a file ends its report."""

    def __init__(self, directory: Path, catalog: Catalog, files: BlobFiles) -> None:
        self._directory = directory
        self._catalog = catalog
        self._files = files

    def restore(self, row: BatchRow, blobs: BlobFile) -> tuple[OpenBatch, bool]:
        """What is good of an open batch, and whether that is all of it: damaged chunks are set aside first.

        Raises:
            SpoolCorrupt: the file itself is damaged.
        """
        try:
            return OpenBatch.restored(row, blobs), True
        except SpoolCorrupt:
            self._set_chunks_aside(row, blobs)
            return OpenBatch.restored(row, blobs), False

    def set_aside(self, batch: Batch, *, whole: bool) -> None:
        """Set aside what is damaged of a sealed batch, and seal the rest anew: other bytes, so another key and uuid.

        `whole`: an earlier attempt may have stored it under its key, so that no part of it may be sent under another one. Then
        all of it is set aside.
        """
        row = self._catalog.batch(batch.id)
        try:
            with self._files.open(batch.blobs) as blobs:
                self._set_chunks_aside(row, blobs, good_too=whole)
                rest = OpenBatch.restored(row, blobs)
            set_aside = sum(damage.events for damage in self._catalog.damages() if damage.batch == batch.id)
            if (missing := batch.events - rest.fill.events - set_aside) > 0:
                raise SpoolCorrupt(f"{missing} of its {batch.events} events are not there")
        except SpoolCorrupt as error:
            self.leave_in_file(row, batch.blobs, error)
            return
        self._catalog.reseal(batch.id, rest.seal() if rest.fill.events else None)

    def leave_in_file(self, row: BatchRow, blobs: str, error: SpoolCorrupt) -> None:
        """A batch that can't be taken out of its damaged file. `retire` moves the file."""
        damage = Damage(row.id, row.stream, 0, 0, f"blobs/{blobs}.db", error.message)
        log.error("%s: batch %d stays in it: %s", damage.file, row.id, error.one_line())
        self._catalog.set_aside(damage, instead_of_batch=True)

    def retire(self, blobs: str) -> bool:
        """Move a damaged file here that holds nothing else any more. False if it is not damaged."""
        if not self._catalog.is_damaged(blobs):
            return False
        self._files.move(blobs, self._directory)
        self._catalog.moved(f"blobs/{blobs}.db", f"quarantine/{blobs}.db")
        return True

    def reports(self, *, only_reads: bool = False) -> list[Damage]:
        """What is set aside. What somebody has removed is forgotten, unless this `only_reads`."""
        found: list[Damage] = []
        gone: set[str] = set()
        for one in self._catalog.damages():
            # `retire` moves a file and then notes it: who is in between, or was killed there, has not removed it.
            moved = f"quarantine/{Path(one.file).name}"
            place = next((file for file in (one.file, moved) if (self._directory.parent / file).exists()), None)
            if place is None:
                gone.add(one.file)
                continue
            if place != one.file and not only_reads:
                self._catalog.moved(one.file, place)
            found.append(one._replace(file=place))
        if not only_reads:
            self._catalog.forget_damages(gone)
        return found

    def _set_chunks_aside(self, row: BatchRow, blobs: BlobFile, *, good_too: bool = False) -> None:
        for chunk in blobs.chunks(row.id):
            data, is_good = blobs.examine(chunk.job)
            if is_good and not good_too:
                continue
            why = "its object may be in the bucket already" if is_good else "these are not the bytes that were written"
            suffix = "" if chunk.form is Form.LINES else Path(row.placement.compression.suffix).suffix
            name = f"{row.id}-{chunk.start}.ndjson{suffix}"
            self._write(name, data)
            damage = Damage(row.id, row.stream, chunk.job, chunk.events, f"quarantine/{name}", why)
            log.error("%d events of source %s are set aside in %s: %s", chunk.events, row.stream.source_id, damage.file, why)
            self._catalog.set_aside(damage)
            blobs.remove(chunk.job)

    def _write(self, name: str, data: bytes) -> None:
        path = self._directory / name
        with database_errors(path):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            sync_directory(self._directory)
