"""The status of a spool in a directory, read without becoming one of the processes that use it."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from jobs_backup.errors import SpoolError
from jobs_backup.model import Stream
from jobs_backup.spool.interface import Total
from jobs_backup.spool.sqlite.blobs import BlobFiles
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.database import database_errors, refuse_moved
from jobs_backup.spool.sqlite.disk import free_bytes, refuse_network
from jobs_backup.spool.sqlite.locks import ProcessLock
from jobs_backup.spool.sqlite.quarantine import Quarantine
from jobs_backup.spool.sqlite.reader import CatalogReader, SessionRow
from jobs_backup.spool.status import (
    Limits,
    ProcessStatus,
    QuarantineStatus,
    Status,
    StoreStatus,
    StreamStatus,
    UnreadableStatus,
    behind,
    rejected_files,
)
from jobs_backup.util.exhaustion import NO_INODES, explain, has_inodes
from jobs_backup.util.logs import plural


def read_status(directory: Path, limits: Limits, rejects: Path | None = None) -> Status:
    """See `engines.read_status`."""
    with look(directory) as catalog:
        return _read(directory, catalog, limits, rejects, only_reads=False)


def watch(directory: Path, limits: Limits, rejects: Path | None = None) -> tuple[Status, list[Total]]:
    """See `SpoolAccount.watch`."""
    with look(directory, only_reads=True) as catalog:
        return _read(directory, catalog, limits, rejects, only_reads=True), catalog.overview.totals()


@contextmanager
def look(directory: Path, *, only_reads: bool = False) -> Generator[Catalog]:
    """Open the catalog of an existing spool for reading.

    Raises:
        SpoolError: it does not exist or cannot be read.
    """
    path = directory / "catalog.db"
    with database_errors(path):
        is_there = path.exists()
    if not is_there:
        with database_errors(directory):
            has_blobs = any((directory / "blobs").glob("*.db"))
        if has_blobs:
            raise SpoolError(
                f"{path} is missing, but the files in {directory / 'blobs'} may hold events",
                hint="run `jobs-backup archive --once`, which rebuilds the catalog from them",
            )
        raise SpoolError(f"no spool found in {directory}", hint="set JOBS_BACKUP_SPOOL_DIR as in the processes that record")
    if Catalog.is_older(path):
        raise SpoolError(
            f"{directory} was written by an earlier version",
            hint="the next process that opens it, for example `jobs-backup archive`, upgrades it",
        )
    catalog = Catalog(path, durability="full", only_reads=only_reads, notes_clock=False)
    try:
        if not only_reads:
            catalog.check()
        yield catalog
    finally:
        catalog.close()


@contextmanager
def open_reader(directory: Path) -> Generator[CatalogReader]:
    """See `engines.open_reader`."""
    with look(directory) as catalog:
        yield catalog.overview


def _read(directory: Path, catalog: Catalog, limits: Limits, rejects: Path | None, *, only_reads: bool) -> Status:
    now = catalog.clock.now()
    files = BlobFiles(directory / "blobs", durability="full")
    unreadable: dict[str, str] = {}
    streams = _streams(catalog, files, now, unreadable)
    processes = [_process(directory, row, now, unreadable) for row in catalog.overview.sessions()]
    _find_strangers(directory, catalog, files, unreadable)
    stores = [
        StoreStatus(
            location=row.location,
            streams=[stream for (of, _), stream in streams.items() if of == row.id],
            error=row.error,
            hint=row.hint,
            paused=max(0.0, row.paused_until - now),
            uploads=row.uploads,
            aborts=row.aborts,
            abort_error=row.abort_error,
        )
        for row in catalog.overview.stores()
    ]
    deletes = {one.location: one for one in catalog.deliveries.waiting()}
    for store in stores:
        if (waiting := deletes.get(store.location)) is not None:
            store.deletes, store.delete_error, store.delete_hint = waiting.objects, waiting.error, waiting.hint
            store.deletes_paused = max(0.0, waiting.paused_until - now)
    quarantine = Quarantine(directory / "quarantine", catalog, files).reports(only_reads=only_reads)
    oldest = max((stream.oldest for stream in streams.values()), default=0.0)
    waiting_bytes = sum(stream.bytes for stream in streams.values())
    return Status(
        directory=str(directory),
        behind=behind(stores, unreadable, bool(quarantine), oldest, limits),
        full=_full(directory, waiting_bytes, limits),
        events=sum(stream.events + stream.open_events for stream in streams.values()),
        bytes=waiting_bytes,
        free=free_bytes(directory),
        oldest=oldest,
        stores=[one for one in stores if one.streams or one.uploads or one.aborts or one.deletes or one.error],
        processes=processes,
        quarantine=[
            QuarantineStatus(
                kind=damage.stream.kind,
                workspace_id=damage.stream.workspace_id,
                source_id=damage.stream.source_id,
                events=damage.events,
                file=str(directory / damage.file),
                error=damage.error,
            )
            for damage in quarantine
        ],
        unreadable=[UnreadableStatus(file=file, error=error) for file, error in unreadable.items()],
        rejected=rejected_files(rejects or directory / "rejects"),
    )


def _full(directory: Path, waiting: int, limits: Limits) -> str:
    if not has_inodes(directory):
        return NO_INODES.why
    if (free := free_bytes(directory)) < limits.min_free:
        return f"{free:,} bytes are free, less than the {limits.min_free:,} of JOBS_BACKUP_SPOOL_MIN_FREE"
    if limits.max_bytes is not None and waiting >= limits.max_bytes:
        return f"{waiting:,} bytes wait, and JOBS_BACKUP_SPOOL_MAX_BYTES is {limits.max_bytes:,}"
    return ""


def _process(directory: Path, row: SessionRow, now: float, unreadable: dict[str, str]) -> ProcessStatus:
    """The status of a process. If it is dead, what keeps others from replacing it is added to `unreadable`."""
    try:
        alive = ProcessLock.is_held(directory / "locks", row.id)
        error = row.error
    except SpoolError as failure:
        alive, error = False, failure.one_line()
    if error and not alive:
        unreadable.setdefault(str(directory / "blobs" / f"{row.id}.db"), error)
    return ProcessStatus(pid=row.pid, alive=alive, sends=row.archives, seconds=max(0.0, now - row.began_at))


def _find_strangers(directory: Path, catalog: Catalog, files: BlobFiles, unreadable: dict[str, str]) -> None:
    """Find blob files that no process writes and that hold something unknown to the catalog."""
    written = catalog.blob_files()
    for name in files.names():
        if name in written.values():
            continue
        path = files.path(name)
        try:
            with files.open(name, only_reads=True) as blobs:
                unknown = catalog.unknown(name, blobs.batches())
            if unknown and not ProcessLock.is_held(directory / "locks", name.partition("-")[0]):
                unreadable[str(path)] = f"it holds {plural(len(unknown), 'batch')} that the catalog does not know"
        except SpoolError as error:
            if path.exists():
                unreadable[str(path)] = error.one_line()


def _streams(catalog: Catalog, files: BlobFiles, now: float, unreadable: dict[str, str]) -> dict[tuple[int, Stream], StreamStatus]:
    found: dict[tuple[int, Stream], StreamStatus] = {}

    def of(store: int, stream: Stream, opened_at: float) -> StreamStatus:
        status = found.setdefault(
            (store, stream),
            StreamStatus(kind=stream.kind, workspace_id=stream.workspace_id, source_id=stream.source_id),
        )
        status.oldest = max(status.oldest, now - opened_at)
        return status

    for row in catalog.overview.sealed_streams():
        status = of(row.store, row.stream, row.opened_at)
        status.events, status.objects, status.bytes, status.sending = row.events, row.batches, row.size, row.claimed
    for name in catalog.blob_files().values():
        rows = catalog.open_batches_of(name)
        if not rows:
            continue
        try:
            with files.open(name, only_reads=True) as blobs:
                for batch in rows:
                    events, size = blobs.spooled(batch.id)
                    if events:
                        status = of(batch.placement.store, batch.stream, batch.opened_at)
                        status.open_events += events
                        status.bytes += size
        except SpoolError as error:
            if catalog.open_batches_of(name):  # else the session has just left it
                unreadable[str(files.path(name))] = error.one_line()
    return found


def check_directory(directory: Path, min_free: int) -> None:
    """Check that a spool could be used in a directory, without creating it.

    Raises:
        SpoolError: it could not.
    """
    hint = "set JOBS_BACKUP_SPOOL_DIR to a directory on a local disk that this user can write to"
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        if not existing.is_dir():
            raise SpoolError(f"{existing} is not a directory", hint=hint)
        if not os.access(existing, os.W_OK | os.X_OK):
            raise SpoolError(f"{existing} is not writable by this user", hint=hint)
        refuse_network(directory)
        refuse_moved(directory / "catalog.db")
        free = free_bytes(existing)
    except OSError as error:
        why, hint = explain(error, directory, hint)
        raise SpoolError(f"{directory}: {why}", hint=hint) from error
    if not has_inodes(existing):
        raise SpoolError(f"{directory}: {NO_INODES.why}", hint=NO_INODES.hint)
    if free < min_free:
        raise SpoolError(
            f"{free:,} bytes are free on the disk of {directory}, less than the {min_free:,} of JOBS_BACKUP_SPOOL_MIN_FREE",
            hint="free space, or set JOBS_BACKUP_SPOOL_DIR to another disk",
        )
