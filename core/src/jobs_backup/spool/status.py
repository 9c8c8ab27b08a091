"""What is in a spool, for whoever asks: read beside the processes that use it, without becoming one of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import msgspec

from jobs_backup.errors import SpoolError
from jobs_backup.model import Stream
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.sqlite.blobs import BlobFiles
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.database import database_errors
from jobs_backup.spool.sqlite.disk import free_bytes
from jobs_backup.spool.sqlite.locks import ProcessLock
from jobs_backup.spool.sqlite.quarantine import Quarantine
from jobs_backup.spool.sqlite.reader import SessionRow, Total
from jobs_backup.util.exhaustion import NO_INODES, has_inodes

_LATE_SECONDS: Final = 60.0
"""How long it may take to send what was sealed, beside twice the time after which that is done."""


class StreamStatus(msgspec.Struct, kw_only=True):
    """What of one stream waits for one destination.

    Attributes:
        open_events: in batches that still take events.
        events: in batches that are sealed; `objects` of them, which is also the number of objects that they will be.
        bytes: of both, as they are stored (mostly compressed).
        sending: so many objects are on their way.
        oldest: seconds since the first of these events was recorded, about.
    """

    kind: str
    workspace_id: str
    source_id: str
    open_events: int = 0
    events: int = 0
    objects: int = 0
    bytes: int = 0
    sending: int = 0
    oldest: float = 0.0


class DestinationStatus(msgspec.Struct, kw_only=True):
    """A destination for which something waits, or uploads are open, or objects are to be deleted.

    Attributes:
        error, hint: of the last failure, if nothing was stored since then.
        paused: seconds until it is probed; 0 if it is not paused.
        uploads: multipart uploads that are being continued.
        aborts: multipart uploads that are still to be aborted; `abort_error` is why one of them was not.
        deletes: objects that are still to be deleted; `delete_error` and `delete_hint` are why the last ones were not, and
            `deletes_paused` so many seconds nothing is deleted.
    """

    location: str
    streams: list[StreamStatus]
    error: str
    hint: str
    paused: float
    uploads: int
    aborts: int
    abort_error: str
    deletes: int = 0
    delete_error: str = ""
    delete_hint: str = ""
    deletes_paused: float = 0.0


class ProcessStatus(msgspec.Struct, kw_only=True):
    """A process that has opened the spool; one that is not alive waits for another one to take its place."""

    pid: int
    alive: bool
    sends: bool
    seconds: float


class QuarantineStatus(msgspec.Struct, kw_only=True):
    """Damaged bytes: `file` has them. `events` is 0 where it is not known."""

    kind: str
    workspace_id: str
    source_id: str
    events: int
    file: str
    error: str


class UnreadableStatus(msgspec.Struct, kw_only=True):
    """What a dead process has recorded, and nobody could take over so far: its file or lock, and why."""

    file: str
    error: str


class RejectedStatus(msgspec.Struct, kw_only=True):
    """Lines of inputs that were rejected: `file` has them, until somebody removes it."""

    file: str
    bytes: int


class Status(msgspec.Struct, kw_only=True):
    """The whole spool. `events` wait, in `bytes`; `free` bytes are left on its disk.

    Attributes:
        full: what has run out, so that nothing can be recorded; empty if nothing has.
        behind: why the backup is behind, in one line; empty if it is not. It is while a destination is paused or failing and
            something waits for it, something was damaged or can't be read, or the oldest event that waits is older than it should
            get.
        unreadable: its events are not counted.
    """

    directory: str
    behind: str
    full: str
    events: int
    bytes: int
    free: int
    oldest: float
    destinations: list[DestinationStatus]
    processes: list[ProcessStatus]
    quarantine: list[QuarantineStatus]
    unreadable: list[UnreadableStatus]
    rejected: list[RejectedStatus]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a spool is held to: settings of those that record.

    Attributes:
        upload_frequency: seconds after which a batch is sealed; where the oldest event waits for more than twice that and a
            minute, the backup is behind.
        min_free: bytes that recording leaves free on the disk.
        max_bytes: of all that waits; None for no limit.
    """

    upload_frequency: float = 300.0
    min_free: int = 0
    max_bytes: int | None = None

    @classmethod
    def of(cls, settings: CoreSettings) -> Self:
        """Those of a process that records."""
        return cls(upload_frequency=settings.upload_frequency, min_free=settings.spool_min_free, max_bytes=settings.spool_max_bytes)


def read_status(directory: Path, limits: Limits = Limits()) -> Status:  # noqa: B008 - frozen
    """Look at a spool. Nothing in it is changed, but that reports are forgotten whose file somebody has removed.

    Raises:
        SpoolError: there is none, or it can't be read.
    """
    with look(directory) as catalog:
        return _read(directory, catalog, limits, only_reads=False)


def watch(directory: Path, limits: Limits) -> tuple[Status, list[Total]]:
    """For who looks again and again at a spool that this process has open: nobody waits for it, nor it for anybody.

    Raises:
        SpoolError: it can't be read.
    """
    with look(directory, only_reads=True) as catalog:
        return _read(directory, catalog, limits, only_reads=True), catalog.overview.totals()


@contextmanager
def look(directory: Path, *, only_reads: bool = False) -> Generator[Catalog]:
    """The catalog of a spool that is there, for reading.

    Raises:
        SpoolError: there is none, or it can't be read.
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
                hint="run `jobs-backup archive --once`, which makes the catalog anew from them",
            )
        raise SpoolError(f"there is no spool in {directory}", hint="set JOBS_BACKUP_SPOOL_DIR as those do that record")
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


def _read(directory: Path, catalog: Catalog, limits: Limits, *, only_reads: bool) -> Status:
    now = catalog.clock.now()
    files = BlobFiles(directory / "blobs", durability="full")
    unreadable: dict[str, str] = {}
    streams = _streams(catalog, files, now, unreadable)
    processes = [_process(directory, row, now, unreadable) for row in catalog.overview.sessions()]
    _find_strangers(directory, catalog, files, unreadable)
    destinations = [
        DestinationStatus(
            location=row.location,
            streams=[stream for (of, _), stream in streams.items() if of == row.id],
            error=row.error,
            hint=row.hint,
            paused=max(0.0, row.paused_until - now),
            uploads=row.uploads,
            aborts=row.aborts,
            abort_error=row.abort_error,
        )
        for row in catalog.overview.destinations()
    ]
    deletes = {one.location: one for one in catalog.deliveries.waiting()}
    for destination in destinations:
        if (waiting := deletes.get(destination.location)) is not None:
            destination.deletes, destination.delete_error, destination.delete_hint = waiting.objects, waiting.error, waiting.hint
            destination.deletes_paused = max(0.0, waiting.paused_until - now)
    quarantine = Quarantine(directory / "quarantine", catalog, files).reports(only_reads=only_reads)
    oldest = max((stream.oldest for stream in streams.values()), default=0.0)
    waiting_bytes = sum(stream.bytes for stream in streams.values())
    return Status(
        directory=str(directory),
        behind=_behind(destinations, unreadable, bool(quarantine), oldest, 2 * limits.upload_frequency + _LATE_SECONDS),
        full=_full(directory, waiting_bytes, limits),
        events=sum(stream.events + stream.open_events for stream in streams.values()),
        bytes=waiting_bytes,
        free=free_bytes(directory),
        oldest=oldest,
        destinations=[one for one in destinations if one.streams or one.uploads or one.aborts or one.deletes or one.error],
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
        rejected=_rejected(directory / "rejects"),
    )


def _full(directory: Path, waiting: int, limits: Limits) -> str:
    if not has_inodes(directory):
        return NO_INODES.why
    if (free := free_bytes(directory)) < limits.min_free:
        return f"{free:,} bytes are free, less than the {limits.min_free:,} of JOBS_BACKUP_SPOOL_MIN_FREE"
    if limits.max_bytes is not None and waiting >= limits.max_bytes:
        return f"{waiting:,} bytes wait, and JOBS_BACKUP_SPOOL_MAX_BYTES is {limits.max_bytes:,}"
    return ""


def _rejected(directory: Path) -> list[RejectedStatus]:
    found: list[RejectedStatus] = []
    with database_errors(directory), suppress(FileNotFoundError):
        for path in sorted(directory.iterdir()):
            with suppress(FileNotFoundError):  # somebody has just removed it
                if size := path.stat().st_size:
                    found.append(RejectedStatus(file=str(path), bytes=size))
    return found


def _process(directory: Path, row: SessionRow, now: float, unreadable: dict[str, str]) -> ProcessStatus:
    """A process; what keeps others from taking its place, if it is dead, is added to `unreadable`."""
    try:
        alive = ProcessLock.is_held(directory / "locks", row.id)
        error = row.error
    except SpoolError as failure:
        alive, error = False, failure.one_line()
    if error and not alive:
        unreadable.setdefault(str(directory / "blobs" / f"{row.id}.db"), error)
    return ProcessStatus(pid=row.pid, alive=alive, sends=row.archives, seconds=max(0.0, now - row.began_at))


def _find_strangers(directory: Path, catalog: Catalog, files: BlobFiles, unreadable: dict[str, str]) -> None:
    """Blob files that nobody writes, and that hold something of which the catalog does not know."""
    written = catalog.blob_files()
    for name in files.names():
        if name in written.values():
            continue
        path = files.path(name)
        try:
            with files.open(name, only_reads=True) as blobs:
                unknown = catalog.unknown(name, blobs.batches())
            if unknown and not ProcessLock.is_held(directory / "locks", name.partition("-")[0]):
                unreadable[str(path)] = f"it holds {len(unknown)} batches that the catalog does not know"
        except SpoolError as error:
            if path.exists():
                unreadable[str(path)] = error.one_line()


def _behind(
    destinations: Sequence[DestinationStatus], unreadable: Mapping[str, str], is_damaged: bool, oldest: float, longest: float
) -> str:
    for one in destinations:
        if one.streams and (one.error or one.paused):  # else nothing has to be done there
            return " ".join(f"{one.location} {'is paused' if one.paused else 'fails'}: {one.error}".split())
    for file, error in unreadable.items():
        return f"the events in {file} can't be sent yet: {error}"
    if is_damaged:
        return "some events were damaged on the disk, and are set aside"
    if oldest > longest:
        return f"the oldest event waits for {oldest:.0f} s, more than {longest:.0f} s"
    return ""


def _streams(catalog: Catalog, files: BlobFiles, now: float, unreadable: dict[str, str]) -> dict[tuple[int, Stream], StreamStatus]:
    found: dict[tuple[int, Stream], StreamStatus] = {}

    def of(destination: int, stream: Stream, opened_at: float) -> StreamStatus:
        status = found.setdefault(
            (destination, stream),
            StreamStatus(kind=stream.kind, workspace_id=stream.workspace_id, source_id=stream.source_id),
        )
        status.oldest = max(status.oldest, now - opened_at)
        return status

    for row in catalog.overview.sealed_streams():
        status = of(row.destination, row.stream, row.opened_at)
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
                        status = of(batch.placement.destination, batch.stream, batch.opened_at)
                        status.open_events += events
                        status.bytes += size
        except SpoolError as error:
            if catalog.open_batches_of(name):  # else it was left just now
                unreadable[str(files.path(name))] = error.one_line()
    return found
