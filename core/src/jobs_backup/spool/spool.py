"""The spool: the writer of this process, and the batches of all processes on their way to the bucket."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from jobs_backup.errors import JobsBackupError, SpoolCorrupt, SpoolError
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import Batch, Body, Part, Upload
from jobs_backup.spool.blobs import BlobFile, SpooledBody
from jobs_backup.spool.catalog import Catalog, JournaledUpload, Placement, Waiting
from jobs_backup.spool.database import Durability
from jobs_backup.spool.locks import ProcessLock
from jobs_backup.spool.writer import BatchLimits, OpenBatch, Recording, Writer, seal_batches

log: Final = logging.getLogger(__name__)


class Claim(NamedTuple):
    """A batch that this process alone may send, and how often sending it has failed."""

    batch: Batch
    failures: int


class Spool:
    """A directory with `catalog.db` (all state), `blobs/` (the bytes), `locks/` (one for each process and input), `rejects/`.

    Bytes are committed in the writer's file, then sealed in the catalog, then stored in the catalog, then dropped. Each step may
    be repeated, so that no transaction spans two files.
    """

    def __init__(
        self,
        directory: Path,
        *,
        location: str,
        prefix: str,
        instance_id: str,
        limits: BatchLimits,
        durability: Durability = "full",
        archives: bool = True,
    ) -> None:
        """Open the spool, create it where it does not exist.

        Args:
            location: of the destination; what is recorded here is bound to it.
            archives: whether this process also sends.

        Raises:
            SpoolError: the directory can't be used.
        """
        self.directory = directory
        self._durability: Durability = durability
        _make_directories(directory)
        self._catalog = Catalog(directory / "catalog.db", durability=durability)
        try:
            self.session = secrets.token_hex(8)
            lock = self._try_lock(self.session)
            assert lock is not None, "nobody else knows this name"
            self._lock = lock
            self._catalog.begin_session(self.session, os.getpid(), archives=archives)
            self._blobs = BlobFile(self._blob_path(self.session), durability=durability)
            self.destination = self._catalog.destination(location)
            placement = Placement(destination=self.destination, prefix=prefix, instance_id=instance_id)
            self._writer = Writer(self._catalog, self._blobs, session=self.session, placement=placement, limits=limits)
        except BaseException:
            self._catalog.close()
            raise

    # Recording

    def append(self, recordings: Sequence[Recording]) -> None:
        """Make the recordings durable. See `Writer.append`."""
        self._writer.append(recordings)

    def seal(self) -> int:
        """Seal what this process has open. Returns the number of batches."""
        return self._writer.seal()

    def seal_due(self) -> int:
        """Seal what this process has open and what has reached the limit of age. Returns the number of batches."""
        return self._writer.seal_due()

    def lock_input(self, source: str) -> ProcessLock | None:
        """The right to read an input; None while another process reads it."""
        return self._try_lock(f"input-{source}")

    def position(self, source: str) -> bytes | None:
        """How far an input was read; None if it never was."""
        return self._blobs.positions().get(source) or self._catalog.position(source)

    # Sending

    def claim(self) -> Claim | None:
        """The oldest batch for this destination that can be sent now; None if there is none."""
        claimed = self._catalog.claim(self.destination, self.session)
        return None if claimed is None else Claim(*claimed)

    def has_claimable(self) -> bool:
        """Whether `claim` would give one."""
        return self._catalog.has_claimable(self.destination)

    @hookimpl
    def open_body(self, batch: Batch) -> Body:
        """The bytes of a sealed batch.

        Raises:
            SpoolCorrupt: they are not those that were sealed.
        """
        body = SpooledBody(self._blob_path(batch.blobs), batch.id)
        if body.size != batch.size:
            raise SpoolCorrupt(
                f"batch {batch.id} has {body.size} bytes in {batch.blobs}.db instead of {batch.size}", hint="look at the disk"
            )
        return body

    def stored(self, batch: Batch) -> None:
        """The batch's object stands in the bucket: its bytes are dropped."""
        self._catalog.stored(batch.id)
        self._catalog.mark(self.destination, "proven")
        if batch.blobs in self._catalog.sessions():
            with self._blob_file(batch.blobs) as blobs:
                blobs.drop(batch.id)
        else:
            self._remove_if_drained(batch.blobs)

    def release(self, batch: Batch, error: JobsBackupError, *, retry_at: float) -> None:
        """Sending the batch failed; from `retry_at` (seconds since 1970) on it may be claimed again."""
        self._catalog.release(batch.id, error=str(error), hint=error.hint, retry_at=retry_at)

    def mark_destination(self, *, refused: bool) -> None:
        """Note that the destination refused everything so far, or else that it may have got something."""
        self._catalog.mark(self.destination, "refused" if refused else "proven")

    def waiting(self) -> list[Waiting]:
        """What is sealed and not stored, for each destination."""
        return self._catalog.waiting()

    def unsent(self) -> int:
        """How many batches that this process has recorded are not stored."""
        return self._catalog.unsent(self.session)

    def has_archiver(self) -> bool:
        """Whether a process that sends is alive."""
        return any(session == self.session or self._is_alive(session) for session in self._catalog.sessions(archives=True))

    # Multipart uploads

    def upload_of(self, batch: Batch) -> tuple[JournaledUpload, list[Part]] | None:
        """The upload to be continued for a batch, with the parts that the store has."""
        return self._catalog.upload_of(batch.id)

    def journal_upload(self, batch: Batch, upload: Upload, part_size: int) -> JournaledUpload:
        """Remember an upload; before its first part is sent."""
        self._catalog.mark(self.destination, "proven")
        return self._catalog.journal_upload(batch.id, self.destination, upload, part_size)

    def journal_part(self, upload: JournaledUpload, part: Part) -> None:
        """Remember the receipt of a part."""
        self._catalog.journal_part(upload.id, part)

    def abandon_upload(self, upload: JournaledUpload) -> None:
        """It will not be continued: it has to be aborted."""
        self._catalog.abandon_upload(upload.id)

    def forget_upload(self, upload: JournaledUpload) -> None:
        """It was completed or aborted."""
        self._catalog.forget_upload(upload.id)

    def abandoned_uploads(self) -> list[JournaledUpload]:
        """The uploads to this destination that have to be aborted and whose time has come."""
        return self._catalog.abandoned_uploads(self.destination)

    def postpone_abort(self, upload: JournaledUpload, error: JobsBackupError, *, retry_at: float) -> None:
        """Aborting it failed; from `retry_at` (seconds since 1970) on it is tried again."""
        self._catalog.postpone_abort(upload.id, error=str(error), hint=error.hint, retry_at=retry_at)

    def open_uploads(self) -> list[tuple[str, str, str]]:
        """(key, error, hint) of every upload that still has to be aborted."""
        return self._catalog.open_uploads()

    # Life and death

    def recover(self) -> int:
        """Take the place of processes that died: seal what they had open, free what they were sending. Returns how many."""
        recovered = 0
        for session in self._catalog.sessions():
            if session == self.session or (lock := self._try_lock(session)) is None:
                continue
            adopted = False
            try:
                if session in self._catalog.sessions():  # else another process was quicker
                    self._adopt(session)
                    recovered += 1
                adopted = True
            except SpoolCorrupt as error:
                log.error("the events of a dead process can't be read: %s", error.one_line())
            finally:
                lock.release(remove=adopted)
        return recovered

    def begin_sending(self) -> None:
        """What a process does that starts to send: whoever starts it may have changed the settings, or the rights.

        It takes over what waits for destinations that were tried, refused everything, and so never got any of it: they were a
        mistake, since corrected. All other batches stay where they belong. And what failed need not wait any longer.
        """
        for location, batches in self._catalog.follow(self.destination):
            log.warning(
                "%d batches waited for %s, which never accepted anything; they now go where the settings say", batches, location
            )
        self._catalog.make_due(self.destination)

    def close(self) -> None:
        """Seal what is open and leave. What is not sent yet waits for the next process.

        Raises:
            SpoolError: it can't be sealed. It is safe all the same: the next process takes this one's place.
        """
        ended = False
        try:
            self._writer.seal()
            self._leave(self.session, self._blobs)
            self._blobs.close()
            self._remove_if_drained(self.session)
            ended = True
        finally:
            self._blobs.close()
            self._catalog.close()
            self._lock.release(remove=ended)

    def _adopt(self, session: str) -> None:
        path = self._blob_path(session)
        if not path.exists():
            self._catalog.discard(row.id for row in self._catalog.open_batches_of(session))
            self._catalog.end_session(session, {})
            return
        blobs = BlobFile(path, durability=self._durability)
        try:
            for row in self._catalog.open_batches_of(session):
                batch = OpenBatch.restored(row, blobs)
                if batch.fill.events:
                    seal_batches(self._catalog, blobs, [batch])
            self._leave(session, blobs)
        finally:
            blobs.close()
        self._remove_if_drained(session)

    def _leave(self, session: str, blobs: BlobFile) -> None:
        """The end of a session whose batches are sealed; open ones are empty."""
        self._catalog.discard(row.id for row in self._catalog.open_batches_of(session))
        self._catalog.end_session(session, blobs.positions())

    def _is_alive(self, session: str) -> bool:
        lock = self._try_lock(session)
        if lock is not None:
            lock.release(remove=False)
        return lock is None

    def _try_lock(self, name: str) -> ProcessLock | None:
        return ProcessLock.try_to_take(self.directory / "locks", name)

    def _blob_path(self, name: str) -> Path:
        return self.directory / "blobs" / f"{name}.db"

    @contextmanager
    def _blob_file(self, name: str) -> Generator[BlobFile]:
        if name == self.session:
            yield self._blobs
            return
        blobs = BlobFile(self._blob_path(name), durability=self._durability)
        try:
            yield blobs
        finally:
            blobs.close()

    def _remove_if_drained(self, name: str) -> None:
        """Remove the file of a session that has ended, once everything in it is stored."""
        if not self._catalog.unsent(name):
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._blob_path(name)}{suffix}").unlink(missing_ok=True)


def _make_directories(directory: Path) -> None:
    try:
        for path in (directory, directory / "blobs", directory / "locks", directory / "rejects"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SpoolError(
            f"{directory}: {error.strerror}",
            hint="set JOBS_BACKUP_SPOOL_DIR to a directory on a local disk that this user may write to",
        ) from error
