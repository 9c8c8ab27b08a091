"""The spool: the writer of this process, and the batches of all processes on their way to the bucket."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from jobs_backup.compression import GZIP, Compression
from jobs_backup.errors import JobsBackupError, SpoolCorrupt, SpoolError, WrapperMissing
from jobs_backup.hookspecs import hookimpl
from jobs_backup.measures import Recorded
from jobs_backup.model import Batch, Body, Stream
from jobs_backup.spool.blobs import INDEX_BITS, BlobFile, BlobFiles, InputPosition, SpooledBody, file_number
from jobs_backup.spool.catalog import Catalog
from jobs_backup.spool.database import Durability
from jobs_backup.spool.deliveries import Acknowledger, DeleteAfter, DueObject, WaitingDeletes
from jobs_backup.spool.disk import Ballast, make_directories, refuse_network
from jobs_backup.spool.job_set import JobSet
from jobs_backup.spool.locks import ProcessLock
from jobs_backup.spool.numbering import Numbering
from jobs_backup.spool.open_batch import SEALED_AT_ONCE, OpenBatch, seal_batches
from jobs_backup.spool.quarantine import Quarantine
from jobs_backup.spool.room import Room, RoomLimits
from jobs_backup.spool.rows import BatchRow, Damage, Placement, Waiting
from jobs_backup.spool.writer import BatchLimits, Recording, Writer

log: Final = logging.getLogger(__name__)

_LOOKED_AT_ONCE: Final = 1000


class Claim(NamedTuple):
    """A batch that this process alone may send.

    Attributes:
        failures: how often sending it has failed.
        times: how often it was claimed, now included.
        is_delivered: all of its jobs were delivered already.
    """

    batch: Batch
    failures: int
    times: int
    is_delivered: bool


class Spool:
    """A directory with `catalog.db` (all state), `blobs/` (the bytes), `locks/` (one for each process and input), `rejects/` (of
    the command), `quarantine/` (what was damaged) and `ballast` (for a full disk).

    Bytes are committed in the writer's file, then sealed in the catalog, then stored in the catalog; at last their file is
    removed. Each step may be repeated, so that no transaction spans two files.

    Attributes:
        uploads: the journal of multipart uploads to its destination.
    """

    def __init__(
        self,
        directory: Path,
        *,
        location: str,
        prefix: str,
        instance_id: str,
        limits: BatchLimits,
        room: RoomLimits = RoomLimits(),  # noqa: B008 - frozen
        durability: Durability = "full",
        compression: Compression = GZIP,
        wrappers: tuple[str, ...] = (),
        archives: bool = True,
        delete_after: DeleteAfter = "delivered",
    ) -> None:
        """Open the spool, create it where it does not exist.

        Args:
            location: of the destination; what is recorded here is bound to it.
            wrappers: what its objects will be made by, see `Batch.wrappers`.
            archives: whether this process also sends, and deletes.

        Raises:
            SpoolError: the directory can't be used.
        """
        self.directory = directory
        self.session = secrets.token_hex(8)
        self._delete_after: DeleteAfter = delete_after
        self._unreadable: dict[str, SpoolError] = {}
        make_directories(directory)
        refuse_network(directory)
        self._ballast = Ballast(directory, min_free=room.min_free)
        if archives:
            self.keep_ballast()  # before the first file is opened, which fails on a full disk
        self._refuse_to_upgrade_in_use()
        self._catalog = Catalog(directory / "catalog.db", durability=durability)
        self._files = BlobFiles(directory / "blobs", durability=durability)
        self._quarantine = Quarantine(directory / "quarantine", self._catalog, self._files)
        lock: ProcessLock | None = None
        try:
            while (lock := self._try_lock(self.session)) is None:
                self.session = secrets.token_hex(8)  # somebody looks whether it was left over
            self._lock = lock
            self.destination = self._catalog.destination(location)
            self.uploads = self._catalog.uploads(self.destination)
            self._catalog.begin_session(self.session, os.getpid(), self.destination, archives=archives)
            placement = Placement(
                destination=self.destination,
                prefix=prefix,
                instance_id=instance_id,
                compression=compression,
                wrappers=wrappers,
            )
            self._numbering = Numbering(self._catalog, placement)
            self._acknowledger = Acknowledger(self._catalog.deliveries, self._files.ends)
            self._writer = Writer(
                self._catalog,
                self._files,
                session=self.session,
                placement=placement,
                limits=limits,
                room=Room(directory, self._catalog, self._ballast, self.session, room),
                quarantine=self._quarantine,
                retire=self._clean_up,
            )
        except BaseException:
            self._catalog.close()
            if lock is not None:
                lock.release(remove=False)
            raise

    # Recording

    def append(self, recordings: Sequence[Recording]) -> None:
        """Make the recordings durable. See `Writer.append`."""
        self._writer.append(recordings)

    def check_room(self) -> None:
        """Check that what is recorded now would find room, and that the catalog can be read.

        Raises:
            SpoolFull: there is no room.
            SpoolError: the spool can't be used.
            BackupClosed: after `close`.
        """
        self._writer.check_room()
        self._catalog.last_batch()

    @property
    def recorded(self) -> Recorded:
        """What this process has recorded."""
        return self._writer.recorded

    @property
    def acknowledged(self) -> int:
        """How many deliveries this process has taken."""
        return self._acknowledger.acknowledged

    def number(self, stream: Stream, events: int) -> list[tuple[int, int]]:
        """Ids for events that are not kept, as runs: (first, how many)."""
        return self._numbering.take(stream, events)

    def on_sealed(self, call: Callable[[], None]) -> None:
        """Have something called whenever this process has sealed something."""
        self._writer.on_sealed = call

    def seal(self) -> int:
        """Seal what this process has open. Returns the number of batches."""
        return self._writer.seal()

    def seal_due(self) -> int:
        """Seal what this process has open and what has reached the limit of age. Returns the number of batches."""
        return self._writer.seal_due()

    @contextmanager
    def reading(self, source: str) -> Generator[bool]:
        """The right to read an input, within the block; False if another process has it.

        Whoever has it next sees how far the input was read: see `position`.
        """
        lock = self._try_lock(f"input-{source}")
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.release(remove=True)

    def position(self, source: str) -> InputPosition | None:
        """How far an input was read, by any process; None if it never was. Raises as `positions` does."""
        return next((position for position in self.positions(source) if position.input == source), None)

    def positions(self, prefix: str) -> list[InputPosition]:
        """How far the inputs were read whose ids begin with `prefix`, by any process: of each the latest position.

        Raises:
            SpoolError: a file can't be read now, for example because too many are open. What is damaged tells no position.
        """
        found = self._catalog.positions(prefix)
        for name in self._catalog.blob_files().values():  # those of files that are not written any more are in the catalog
            try:
                with self._files.open(name) as blobs:
                    found += [position for position in blobs.positions() if position.input.startswith(prefix)]
            except SpoolCorrupt:
                continue
            except SpoolError:
                if self._files.path(name).exists():
                    raise
        # The catalog again: a file may have been left between the two.
        found += self._catalog.positions(prefix)
        return list({position.input: position for position in sorted(found, key=lambda position: position.at)}.values())

    # Deliveries

    def delivered(self, jobs: JobSet) -> JobSet:
        """Remember that these were delivered; durable when it returns. Returns those that are unknown."""
        return self._acknowledger.add(jobs)

    def stream_of(self, job: int) -> Stream | None:
        """The stream of a raw event that this spool has or had; None if it knows no such job."""
        return self._catalog.deliveries.stream_of(job, self._files.ends)

    def settle(self, failures: Sequence[tuple[int, int]]) -> None:
        """Each job has a failure record: (job, id of that). It is settled once that is stored."""
        self._catalog.deliveries.settle([(failure >> INDEX_BITS, job) for job, failure in failures])

    def claim_deletes(self, limit: int) -> list[DueObject]:
        """Objects that only this process may delete now, since all of their jobs were delivered."""
        return self._catalog.deliveries.claim(self.destination, self.session, self._delete_after, limit)

    def has_deletes(self) -> bool:
        """Whether `claim_deletes` would give any."""
        return self._catalog.deliveries.has_due(self.destination, self._delete_after)

    def waiting_deletes(self) -> list[WaitingDeletes]:
        """What is to be deleted and was not yet, for each destination."""
        return self._catalog.deliveries.waiting()

    def deleted(self, objects: Sequence[DueObject]) -> None:
        """These are gone."""
        self._catalog.deliveries.deleted(self.destination, [one.batch for one in objects])

    def give_back_deletes(
        self, retries: Sequence[tuple[DueObject, float | None]], error: JobsBackupError, *, paused_until: float
    ) -> None:
        """Deleting these failed; from then on (seconds since 1970) each may be claimed again, at any time where it is None.

        Nothing is deleted before `paused_until`.
        """
        batches = [(one.batch, retry_at) for one, retry_at in retries]
        self._catalog.deliveries.give_back(self.destination, batches, error=str(error), hint=error.hint, paused_until=paused_until)

    def retry_deletes(self) -> None:
        """What could not be deleted need not wait any longer."""
        self._catalog.deliveries.begin(self.destination, self._delete_after)

    def forget(self, before: float, after: int) -> int | None:
        """Forget batches that were stored, or at least opened, before (seconds since 1970), unless something is still to be done
        with them. It looks at some behind the number `after`. Returns what to go on behind; None at the end."""
        return self._catalog.deliveries.forget(before, after, _LOOKED_AT_ONCE)

    # Sending

    def claim(self) -> Claim | None:
        """A batch for this destination that can be sent now, the one that has waited for the longest; None if there is none."""
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
        body = SpooledBody(self._files.path(batch.blobs), batch.id)
        if body.size != batch.size:
            raise SpoolCorrupt(
                f"batch {batch.id} has {body.size} bytes in {batch.blobs}.db instead of {batch.size}", hint="look at the disk"
            )
        return body

    def stored(self, batch: Batch, *, deletable_at: float = 0.0) -> None:
        """The batch's object stands in the bucket. Its bytes go with their file, once that is left and nothing in it waits.

        It is not deleted before `deletable_at` (seconds since 1970): an earlier attempt may still arrive, and would bring it back.
        """
        self._catalog.stored(batch.id, deletable_at=deletable_at)
        self._clean_up(batch.blobs)

    def hold_to(self, made: Batch) -> None:
        """Hold a batch to what its wrappers have made of it at the first attempt.

        An upload would be continued with other bytes, and encryption with the same key and nonce would give both contents away.

        Args:
            made: as `Destination.prepare` gives it.

        Raises:
            WrapperMissing: they make something else of it now.
        """
        if not self._catalog.hold_to(made.id, f"{made.size}:{made.crc32c:08x}"):
            raise WrapperMissing(
                f"{made.key} would not have the bytes of the first attempt: a wrapper makes something else of its batch now",
                hint="put back the version of the wrapper, and its settings, until the object is stored",
            )

    def skip(self, batch: Batch) -> None:
        """A batch that was never tried to be sent will not be: all of it was delivered."""
        self._catalog.skipped(batch.id)
        self._clean_up(batch.blobs)

    def set_aside(self, claim: Claim, error: SpoolCorrupt) -> None:
        """A claimed batch turned out to be damaged, while it was sent or before.

        What is damaged goes into quarantine. The rest is sealed anew, unless an earlier attempt may have stored the whole.
        """
        self._quarantine.set_aside(claim.batch, whole=claim.times > 1 or error.attempts > 1)
        self._clean_up(claim.batch.blobs)

    def release(self, batch: Batch, error: JobsBackupError, *, retry_at: float, standing: str | None = None) -> None:
        """Sending a batch that this process has claimed failed; from `retry_at` (seconds since 1970) on it may be claimed again.

        `standing` is what is known of the destination now: it has `refused` everything, or it is `proven`: it may have got
        something.
        """
        self._catalog.release(batch.id, self.session, error=str(error), hint=error.hint, retry_at=retry_at, standing=standing)

    def waiting(self) -> list[Waiting]:
        """What is sealed and not stored, for each destination."""
        return self._catalog.waiting()

    def pause(self, error: JobsBackupError, *, until: float) -> None:
        """Note for others that nothing is sent before `until` (seconds since 1970), and why."""
        self._catalog.pause(self.destination, error=str(error), hint=error.hint, until=until)

    @property
    def unreadable(self) -> list[SpoolError]:
        """Why some of what dead processes recorded can't be sent: they can't be replaced yet."""
        return list(self._unreadable.values())

    def quarantined(self, *, own: bool = False) -> list[Damage]:
        """What was damaged, and set aside; if `own`, of what this process has recorded."""
        found = self._quarantine.reports()
        if found and own:
            batches = self._catalog.batches_of(self.session)
            found = [damage for damage in found if damage.batch in batches]
        return found

    def last_batch(self) -> int:
        """The number of the batch that was opened last."""
        return self._catalog.last_batch()

    def is_unsent(self, last: int) -> bool:
        """Whether a sealed batch that this process has recorded, up to the number `last`, is not stored yet."""
        return self._catalog.is_unsent(self.session, last)

    def has_archiver(self) -> bool:
        """Whether a process that sends is alive."""
        return any(session == self.session or self._is_alive(session) for session in self._catalog.sessions(archives=True))

    # Life and death

    def recover(self) -> int:
        """Take the place of processes that died: seal what they had open, free what they were sending. Returns how many.

        One whose files can't be read is reported, keeps no other from being recovered, and is tried again: a disk may only be full.
        """
        recovered = 0
        for session in self._catalog.sessions():
            if session == self.session or (lock := self._try_lock(session)) is None:
                continue
            adopted = False
            try:
                if (blobs := self._catalog.blob_files().get(session)) is not None:  # else another process was quicker
                    self._adopt(session, blobs)
                    recovered += 1
                adopted = True
                self._unreadable.pop(session, None)
            except SpoolError as error:
                if str(self._unreadable.get(session)) != str(error):  # else it would be said at every look
                    log.error("what a dead process recorded can't be taken over yet: %s", error.one_line())
                self._unreadable[session] = error
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
        self._catalog.deliveries.begin(self.destination, self._delete_after)
        names, written = self._files.names(), self._catalog.blob_files()
        for name in names:  # who should have removed it was killed
            session = name.partition("-")[0]
            if session not in written or file_number(name) < file_number(written[session]):
                self._clean_up(name)
        self._remove_left_locks()

    def keep_ballast(self) -> None:
        """Look after the reserve of space with which the catalog can be written on a full disk.

        For those who send: what recorders gave up would only be taken by whoever fills the disk.
        """
        try:
            self._ballast.balance()
        except OSError as error:
            log.debug("no ballast: %s", error)

    def close(self) -> None:
        """Seal what is open and leave. What is not sent yet waits for the next process.

        Raises:
            SpoolError: it can't be sealed. It is safe all the same: the next process takes this one's place.
        """
        ended = False
        try:
            positions = self._writer.close()
            names = self._files.names()
            self._catalog.end_session(self.session, positions)
            ended = True
            self._writer.close_file()
            self._remove_drained_of(self.session, names)
        finally:
            self._writer.close_file()
            self._catalog.close()
            self._lock.release(remove=ended)

    def _adopt(self, session: str, name: str) -> None:
        rows = self._catalog.open_batches_of(name)
        names = self._files.names()
        positions: list[InputPosition] = []
        if rows or name in names:  # else it died before it had a file, or all of it was sent
            try:
                with self._files.open(name) as blobs:
                    for start in range(0, len(rows), SEALED_AT_ONCE):
                        self._seal_rows(rows[start : start + SEALED_AT_ONCE], blobs)
                    positions = blobs.positions()
            except SpoolCorrupt as error:  # the file as a whole; what is sealed of it may be readable all the same
                for row in self._catalog.open_batches_of(name):
                    self._quarantine.leave_in_file(row, name, error)
        self._catalog.end_session(session, positions)
        self._remove_drained_of(session, names)

    def _seal_rows(self, rows: Sequence[BatchRow], blobs: BlobFile) -> None:
        batches: list[OpenBatch] = []
        for row in rows:
            try:
                batches.append(self._quarantine.restore(row, blobs)[0])
            except SpoolCorrupt as error:
                self._quarantine.leave_in_file(row, blobs.name, error)
        seal_batches(self._catalog, blobs, [batch for batch in batches if batch.fill.events])

    def _is_alive(self, session: str) -> bool:
        return ProcessLock.is_held(self.directory / "locks", session)

    def _try_lock(self, name: str) -> ProcessLock | None:
        return ProcessLock.try_to_take(self.directory / "locks", name)

    def _remove_left_locks(self) -> None:
        """Locks of those that were killed before they were a session, or when they no longer were one."""
        for path in (self.directory / "locks").glob("*.lock"):
            if path.stem in self._catalog.sessions() or (lock := self._try_lock(path.stem)) is None:
                continue
            # That of an input is not held while the catalog is asked: who wants to read it meanwhile would be refused.
            lock.release(remove=path.stem.startswith("input-") or path.stem not in self._catalog.sessions())

    def _remove_drained_of(self, session: str, names: Sequence[str]) -> None:
        for name in names:
            if name.partition("-")[0] == session:
                self._clean_up(name)

    def _clean_up(self, name: str) -> None:
        """Remove a file that nobody writes any more, once everything in it is stored; or retire it, if it is damaged.

        It comes behind what was to be done, which must not count as failed now: who starts to send next tries it again.
        """
        try:
            is_left = name not in self._catalog.blob_files().values()
            if is_left and not self._catalog.is_needed(name) and not self._quarantine.retire(name):
                self._files.remove(name)
        except SpoolError as error:
            log.warning("a file of the spool that is not needed any more can't be removed yet: %s", error.one_line())

    def _refuse_to_upgrade_in_use(self) -> None:
        if not Catalog.is_older(self.directory / "catalog.db"):
            return
        for path in (self.directory / "locks").glob("*.lock"):
            # Again: another one that has just started may have upgraded it.
            if self._is_alive(path.stem) and Catalog.is_older(self.directory / "catalog.db"):
                raise SpoolError(
                    f"{self.directory} is used by a process with an earlier version of jobs-backup",
                    hint="stop it first: what it has recorded is kept",
                )
