"""Quarantine what is damaged, with a report, and continue with the rest."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from jobs_backup.errors import SpoolCorrupt, SpoolError
from jobs_backup.model import Batch, Kind, Stream
from jobs_backup.spool.batches import BatchRow
from jobs_backup.spool.chunks import Chunk, ChunkKind
from jobs_backup.spool.ids import INDEX_BITS
from jobs_backup.spool.interface import Damage
from jobs_backup.spool.open_batch import OpenBatch
from jobs_backup.spool.sqlite.blobs import BlobFile, BlobFiles
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.database import database_errors
from jobs_backup.util.fsync import sync_directory, sync_file
from jobs_backup.util.logs import logger_of, printable
from jobs_backup.util.opening import make_directory, open_file

log: Final = logger_of(__name__)

_NO_STREAM: Final = Stream(Kind.RAW, "", "")


class Quarantine:
    """The directory `quarantine/`. A report lasts as long as its file: removing the file ends the report.

    A disk that is unreadable for a moment is not damage, although SQLite reports it as such: everything quarantined was read twice.
    """

    def __init__(self, directory: Path, catalog: Catalog, files: BlobFiles) -> None:
        self._directory = directory
        self._catalog = catalog
        self._files = files

    def restore(self, row: BatchRow, blobs: BlobFile) -> tuple[OpenBatch, bool]:
        """Restore the undamaged part of an open batch, after quarantining damaged chunks. Also returns whether that is all of it.

        Raises:
            SpoolCorrupt: the file itself is damaged.
            SpoolError: it cannot be read now.
        """
        try:
            return OpenBatch.restored(row, blobs), True
        except SpoolCorrupt:
            self._set_chunks_aside(row, blobs.name)
            return OpenBatch.restored(row, blobs), False

    def quarantine_batch(self, batch: Batch, *, whole: bool) -> None:
        """Quarantine what is damaged of a sealed batch, and seal the rest again: other bytes, so another key and uuid.

        `whole`: an earlier attempt may have uploaded it, so no part of it may be uploaded under another key. All of it is
        quarantined.

        Raises:
            SpoolError: it is not damaged, or cannot be read now. Nothing has changed.
        """
        row = self._catalog.batch(batch.id)
        try:
            self._set_chunks_aside(row, batch.blobs, good_too=whole, size=batch.size)
            with self._files.open(batch.blobs) as blobs:
                rest = OpenBatch.restored(row, blobs)
            set_aside = sum(damage.events for damage in self._catalog.damages() if damage.batch == batch.id)
            if (missing := batch.events - rest.fill.events - set_aside) > 0:
                raise SpoolCorrupt(f"{missing} of its {batch.events} events are missing")
        except SpoolCorrupt as error:
            self.leave_in_file(row, batch.blobs, error)
            return
        self._catalog.reseal(batch.id, rest.seal() if rest.fill.events else None)

    def leave_in_file(self, row: BatchRow, blobs: str, error: SpoolCorrupt) -> None:
        """Give up a batch that cannot be taken out of its damaged file. `retire` moves the file."""
        damage = Damage(row.id, row.stream, 0, 0, _in_blobs(blobs), error.message)
        log.error("%s: batch %d stays in it: %s", damage.file, row.id, error.one_line())
        self._catalog.quarantine_batch(damage, instead_of_batch=True)

    def report(self, blobs: str, batch: int, why: str, *, events: int = 0, stream: Stream = _NO_STREAM) -> None:
        """Report events missing from a file, or found there without a known origin. `retire` moves the file."""
        log.error("%s: %s", _in_blobs(blobs), why)
        self._catalog.quarantine_batch(Damage(batch, stream, 0, events, _in_blobs(blobs), why))

    def report_missing(self, blobs: str, rows: Sequence[BatchRow], events: int) -> None:
        """Report a missing file into which something was, or may have been, recorded. A note takes its place.

        `events` is how many were recorded into it, 0 if unknown.
        """
        why = "the blob file is missing: the events in it are lost"
        file = self._write(blobs, ".missing", f"blobs/{blobs}.db: {why}\n".encode())
        for row in rows:
            log.error("%s: batch %d of source %s: %s", _in_blobs(blobs), row.id, printable(row.stream.source_id), why)
            self._catalog.quarantine_batch(Damage(row.id, row.stream, 0, 0, f"quarantine/{file}", why), instead_of_batch=True)
        if events:
            log.error("%s: %d events: %s", _in_blobs(blobs), events, why)
            self._catalog.quarantine_batch(Damage(0, _NO_STREAM, 0, events, f"quarantine/{file}", why))

    def retire(self, blobs: str) -> bool:
        """Move a damaged file here once nothing else in it is needed. False if it is not damaged."""
        if not self._catalog.is_damaged(blobs):
            return False
        self._files.move(blobs, self._directory)
        self._catalog.moved(_in_blobs(blobs), f"quarantine/{blobs}.db")
        return True

    def reports(self, *, only_reads: bool = False) -> list[Damage]:
        """All reports. Forgets those whose file was removed, unless `only_reads`."""
        found: list[Damage] = []
        gone: set[str] = set()
        for one in self._catalog.damages():
            # `retire` moves a file, then notes it: between the two, or after a kill there, the file was not removed.
            moved = f"quarantine/{Path(one.file).name}"
            place = next((file for file in (one.file, moved) if (self._directory.parent / file).exists()), None)
            if place is None:
                gone.add(one.file)
                continue
            if place != one.file and not only_reads:
                self._catalog.moved(one.file, place)
            found.append(one._replace(file=place))
        if gone and not only_reads:
            self._catalog.forget_damages(gone)
        return found + self._unreported({Path(one.file).name for one in found})

    def _unreported(self, reported: set[str]) -> list[Damage]:
        """Files here that the catalog does not know: it was rebuilt, or their writer was killed before reporting them."""
        with database_errors(self._directory):
            try:
                names = sorted(path.name for path in self._directory.iterdir())
            except FileNotFoundError:
                names = []
        # A name beginning with a dot is unfinished: its bytes are still in blobs/.
        strange = [n for n in names if n not in reported and not n.startswith(".") and not n.endswith(("-wal", "-shm", "-journal"))]
        return [Damage(0, _NO_STREAM, 0, 0, f"quarantine/{name}", "the catalog does not know what it is") for name in strange]

    def _set_chunks_aside(self, row: BatchRow, name: str, *, good_too: bool = False, size: int | None = None) -> None:
        """Quarantine the damaged chunks of a batch, or all of them with `good_too`. `size` is a sealed batch's.

        Raises:
            SpoolCorrupt: the file itself is damaged.
            SpoolError: the batch is not damaged, or cannot be read now.
        """
        with self._files.open(name) as blobs:  # a second read, by a connection without a cache
            self._files.read_through(name)
            chunks = blobs.chunks(row.id)
            examined = [(chunk, *blobs.examine(chunk.job)) for chunk in chunks if chunk.form is not ChunkKind.LOST]
            self._files.read_through(name)
            gaps = list(_gaps(row.id, chunks))
            is_whole = all(is_good for _, _, is_good in examined) and not gaps
            if is_whole and size in (None, sum(len(data) for _, data, _ in examined)):
                raise SpoolError(
                    f"batch {row.id} in {name}.db could not be read before, but can be now: it is retried", hint="check the disk"
                )
            if missing := sum(events for _, events in gaps):
                self.report(name, row.id, f"{missing} events of batch {row.id} are missing", events=missing, stream=row.stream)
            for job, events in gaps:
                blobs.lose(job, events)
            for chunk, data, is_good in examined:
                if is_good and not good_too:
                    continue
                why = "its object may be in the bucket already" if is_good else "these are not the bytes that were written"
                suffix = "" if chunk.form is ChunkKind.RAW else Path(row.placement.compression.suffix).suffix
                file = self._write(f"{row.id}-{chunk.start}", f".ndjson{suffix}", data)
                damage = Damage(row.id, row.stream, chunk.job, chunk.events, f"quarantine/{file}", why)
                source = printable(row.stream.source_id)
                log.error("%d events of source %s are quarantined in %s: %s", chunk.events, source, damage.file, why)
                self._catalog.quarantine_batch(damage)
                blobs.lose(chunk.job, chunk.events)

    def _write(self, name: str, suffix: str, data: bytes) -> str:
        """Write a file, unless a process killed after this step has left it. Returns its name.

        Nothing is overwritten: with a lost catalog, the same numbers may belong to other events here.
        """
        path, numbers = self._directory / f"{name}{suffix}", itertools.count(2)
        with database_errors(path):
            make_directory(self._directory)
            while path.exists():
                if path.is_file() and path.read_bytes() == data:
                    return path.name
                path = path.with_name(f"{name}-{next(numbers)}{suffix}")
            partial = path.with_name(f".{path.name}")
            with os.fdopen(open_file(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as opened:
                opened.write(data)
                opened.flush()
                sync_file(opened.fileno())
            partial.rename(path)
            sync_directory(self._directory)
        return path.name


def _gaps(batch: int, chunks: Sequence[Chunk]) -> Iterator[tuple[int, int]]:
    """Find gaps between chunks: (job, number of events).

    Raises:
        SpoolCorrupt: chunks overlap.
    """
    end = 0
    for chunk in chunks:
        if chunk.start < end:
            raise SpoolCorrupt(f"the chunks of batch {batch} overlap", hint="check the disk; nothing was removed")
        if chunk.start > end:
            yield (batch << INDEX_BITS) + end, chunk.start - end
        end = chunk.start + chunk.events


def _in_blobs(name: str) -> str:
    return f"blobs/{name}.db"
