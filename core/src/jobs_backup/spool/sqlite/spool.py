"""The spool: this process's writer, and the batches of all processes on their way to the bucket."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from jobs_backup.errors import ConfigurationError, JobsBackupError, SpoolCorrupt, SpoolError
from jobs_backup.format.compression import GZIP, Compression
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import Batch, Body, Stream
from jobs_backup.spool.acknowledger import Acknowledger
from jobs_backup.spool.base import BaseSpool
from jobs_backup.spool.batches import BatchHeader, BatchOptions, BatchRow
from jobs_backup.spool.id_ranges import Numbering
from jobs_backup.spool.ids import LOCAL_BITS
from jobs_backup.spool.interface import (
    Account,
    BatchLimits,
    Claim,
    Damage,
    DeleteAfter,
    DueObject,
    Durability,
    Entry,
    InputPosition,
    QuotaLimits,
    Recording,
    Total,
)
from jobs_backup.spool.open_batch import SEALED_AT_ONCE, OpenBatch
from jobs_backup.spool.sqlite.blobs import BlobFile, BlobFiles, SpooledBody, file_name, file_number
from jobs_backup.spool.sqlite.catalog import Catalog
from jobs_backup.spool.sqlite.database import FilesLost, database_errors, read_beside
from jobs_backup.spool.sqlite.deliveries import Deliveries
from jobs_backup.spool.sqlite.disk import Ballast, make_directories, refuse_network
from jobs_backup.spool.sqlite.locks import ProcessLock, Witness
from jobs_backup.spool.sqlite.quarantine import Quarantine
from jobs_backup.spool.sqlite.quota import Quota
from jobs_backup.spool.sqlite.sealing import seal_batches
from jobs_backup.spool.sqlite.status import read_status, watch
from jobs_backup.spool.sqlite.writer import Session, Writer
from jobs_backup.spool.status import Limits, Status
from jobs_backup.util.fsync import sync_directory
from jobs_backup.util.logs import logger_of, plural
from jobs_backup.util.opening import make_file

T = TypeVar("T")
log: Final = logger_of(__name__)

_LOOKED_AT_ONCE: Final = 1000
_CATALOG_DAMAGED: Final = (
    "nothing was removed; if the disk is healthy, move catalog.db, catalog.db-wal and catalog.db-shm away and keep them: the"
    " next start rebuilds the catalog from blobs/"
)


class SqliteSpool(BaseSpool[Catalog, Deliveries, Writer]):
    """A spool in a directory.

    It has `catalog.db` (all state), `blobs/` (the bytes), `locks/` (one per process and input), `rejects/` (used by the command),
    `quarantine/` (damaged bytes) and `ballast` (for a full disk).

    Bytes are committed in the writer's file, then sealed in the catalog, then marked there as uploaded; finally their file is
    removed. Each step may be repeated, so no transaction spans two files.

    Attributes:
        uploads: the journal of multipart uploads to its store.
    """

    def __init__(
        self,
        directory: Path,
        *,
        location: str,
        prefix: str,
        instance_id: str,
        limits: BatchLimits,
        room: QuotaLimits = QuotaLimits(),
        durability: Durability = "full",
        compression: Compression = GZIP,
        wrappers: tuple[str, ...] = (),
        archives: bool = True,
        delete_after: DeleteAfter = "delivered",
    ) -> None:
        """Open the spool, creating it if needed.

        Args:
            location: the store's; everything recorded here is bound to it.
            wrappers: what its objects will be made with, see `Batch.wrappers`.
            archives: whether this process also uploads and deletes.

        Raises:
            SpoolError: the directory cannot be used.
        """
        self.directory = directory
        self._delete_after: DeleteAfter = delete_after
        self._archives = archives
        self._unreadable: dict[str, SpoolError] = {}
        make_directories(directory)
        refuse_network(directory)
        self._ballast = Ballast(directory, min_free=room.min_free)
        if archives:
            self.maintain()  # before opening the first file, which fails on a full disk
        try:
            self._refuse_to_upgrade_in_use()
            # Made after the catalog, so if it exists, a catalog did, too.
            made = directory / "made"
            self._catalog = Catalog(directory / "catalog.db", durability=durability, is_rebuilt=made.exists())
        except SpoolCorrupt as error:
            error.hint = _CATALOG_DAMAGED
            error.add_note(_CATALOG_DAMAGED)
            raise
        self._files = BlobFiles(directory / "blobs", durability=durability)
        self._quarantine = Quarantine(directory / "quarantine", self._catalog, self._files)
        self._sessions: list[str] = []
        self._input_locks: list[ProcessLock] = []
        self._known_files = set[str]()  # of dead sessions, and fully known to the catalog
        session: Session | None = None
        try:
            self._check_catalog()
            with database_errors(made):
                make_file(made)
                sync_directory(directory)
            self._skip_numbers()
            self.store = self._catalog.store(location)
            self.uploads = self._catalog.uploads(self.store)
            session = self._begin_session()
            placement = BatchOptions(
                store=self.store,
                prefix=prefix,
                instance_id=instance_id,
                compression=compression,
                wrappers=wrappers,
            )
            self._numbering = Numbering(self._catalog, placement, session.epoch)
            self._deliveries = self._catalog.deliveries
            self._acknowledger = Acknowledger(lambda jobs: self._deliveries.add(jobs, self._files.ends))
            self._writer = Writer(
                self._catalog,
                self._files,
                session=session,
                renew=self._renew,
                location=location,
                placement=placement,
                limits=limits,
                room=Quota(directory, self._catalog, self._ballast, lambda: self._sessions[-1], room),
                quarantine=self._quarantine,
                retire=self._clean_up,
                check_position=self._check_position,
            )
        except BaseException:
            self._catalog.close()
            if session is not None:
                session.blobs.close()
                session.lock.release(remove=False)
            raise

    @property
    def name(self) -> str:
        """The directory."""
        return str(self.directory)

    @property
    def host(self) -> str:
        """Empty: one machine alone uses it."""
        return ""

    @property
    def quarantine(self) -> str:
        """The directory of quarantined bytes."""
        return str(self.directory / "quarantine")

    # Recording

    def entry(self, recordings: Sequence[Recording]) -> Entry:  # noqa: ARG002 - see `interface.SpoolRecorder`
        """Refuse: no transaction of an application's database includes this directory."""
        raise ConfigurationError(
            f"connection= needs a spool in the application's PostgreSQL database, and this one is in {self.name}",
            hint="set JOBS_BACKUP_SPOOL, see docs/outbox.md; or record without connection= after the commit",
        )

    def check_room(self) -> None:
        """Check that there is space to record, and that the catalog is readable and is the one other processes see.

        Raises:
            SpoolFull: there is no space.
            SpoolError: the spool cannot be used.
            BackupClosed: after `close`.
        """
        self._writer.check_room()
        self._catalog.last_batch()
        self._catalog.check_files()
        self._writer.check_files()

    @contextmanager
    def reading(self, source: str) -> Generator[bool]:
        """Hold the lock on reading an input within the block; yields False if another process has it.

        The next holder sees how far the input was read: see `position`. Within the block, a position is committed only if the lock
        still exists, which is checked while no process can read positions. So if the lock is removed and another process takes it,
        that process sees this one's last position, or this one commits no other.
        """
        lock = self._try_lock(f"input-{source}")
        try:
            if lock is not None:
                self._input_locks.append(lock)
            yield lock is not None
        finally:
            if lock is not None:
                self._input_locks.remove(lock)
                lock.release(remove=True)

    def position(self, source: str) -> InputPosition | None:
        """How far any process has read an input; None if it was never read. Raises as `new_positions` does."""
        found = [self._catalog.position(source)]
        for name in self._written_files():
            found += self._of_file(name, lambda blobs: [blobs.position(source)])
        found.append(self._catalog.position(source))  # again: a file may have been left in between
        return max((one for one in found if one is not None), key=lambda one: one.at, default=None)

    def new_positions(self, prefix: str, seen: dict[str, int]) -> list[InputPosition]:
        """How far any process has read the inputs whose ids begin with `prefix`, without those already in `seen`.

        Args:
            seen: initially empty. It notes what was returned, so that the next call returns only new inputs. Returned positions may
                have changed since: see `position`.

        Raises:
            SpoolError: a file cannot be read now, for example because too many are open. Damaged files contribute no positions.
        """
        found: list[InputPosition] = []

        def take(name: str, given: tuple[list[InputPosition], int]) -> list[InputPosition]:
            seen[name] = given[1]
            return given[0]

        found += take("", self._catalog.new_positions(prefix, seen.get("", 0)))
        for name in self._written_files():
            found += self._of_file(name, lambda blobs: take(blobs.name, blobs.new_positions(prefix, seen.get(blobs.name, 0))))
        found += take("", self._catalog.new_positions(prefix, seen.get("", 0)))
        return list({one.input: one for one in sorted(found, key=lambda one: one.at)}.values())

    def _written_files(self) -> list[str]:
        return list(self._catalog.blob_files().values())  # files no longer written have left theirs to the catalog

    def _of_file(self, name: str, read: Callable[[BlobFile], list[T]]) -> list[T]:
        try:
            with self._files.open(name) as blobs:
                return read(blobs)
        except SpoolCorrupt:
            return []
        except SpoolError:
            if self._files.exists(name):
                raise
            return []

    def _check_position(self, position: InputPosition) -> None:
        """Check, before committing a position, that only this process reads the input, and that it follows the previous position.

        Raises:
            ConfigurationError: another process may be reading the input, or has read it.
        """
        for lock in self._input_locks:
            if not lock.is_there():
                raise ConfigurationError(
                    f"the lock of an input was removed while it was read: {self.directory / 'locks' / lock.name}.lock",
                    hint="find out what did it: a cleaner of old files, for example, which must leave the spool alone; then run"
                    " the same command again",
                )
        there = self._catalog.position(position.input)
        if there is not None and there.at >= position.at and there != position:
            raise ConfigurationError(
                "another process has read the same input meanwhile", hint="run the same command again, one process at a time"
            )

    # Deliveries

    def stream_of(self, job: int) -> Stream | None:
        """The stream of a raw event, past or present; None if the job is unknown."""
        return self._deliveries.stream_of(job, self._files.ends)

    def give_back_deletes(self, retries: Sequence[tuple[DueObject, float | None]], error: JobsBackupError, *, pause: float) -> None:
        """Release objects whose delete failed; each may be claimed again after its seconds, or at any time if None.

        Nothing is deleted for `pause` seconds.
        """
        batches = [(one.batch, delay) for one, delay in retries]
        self._deliveries.give_back(self.store, batches, error=str(error), hint=error.hint, pause=pause)

    def forget(self, age: float, after: int) -> int | None:
        """Forget batches uploaded, or at least opened, at least `age` seconds ago, unless something is left to do for them.

        Examines some with numbers above `after`. Returns where to continue; None at the end.
        """
        self._catalog.set_clock()
        return self._deliveries.forget(age, after, _LOOKED_AT_ONCE, self._files.names())

    # Uploading

    def give_back_claims(self) -> int:
        """Release all batches this process has claimed. Call it only while uploading nothing. Returns how many."""
        return self._catalog.give_back_claims(self.session) if self._catalog.has_claimed(self.session) else 0

    @hookimpl
    def open_body(self, batch: Batch) -> Body:
        """The bytes of a sealed batch.

        Raises:
            SpoolCorrupt: they differ from what was sealed.
        """
        try:
            body = SpooledBody(self._files.path(batch.blobs), batch.id)
        except SpoolError:
            if self._files.exists(batch.blobs):
                raise
            raise SpoolError(
                f"{self._files.path(batch.blobs)} is missing, and with it {batch.events:,} events that are not uploaded yet",
                hint="find out what removed it, and put it back from a copy of the spool",
            ) from None
        if body.size != batch.size:
            raise SpoolCorrupt(
                f"batch {batch.id} has {body.size} bytes in {batch.blobs}.db instead of {batch.size}", hint="check the disk"
            )
        return body

    def stored(self, batch: Batch, *, deletable_after: float = 0.0) -> None:
        """Mark a batch as uploaded. Its bytes are deleted with their file, once no session writes it and nothing in it waits.

        Its object is kept for `deletable_after` seconds, because an earlier attempt may still arrive and would bring it back.
        """
        self._catalog.stored(batch.id, deletable_after=deletable_after)
        self._clean_up(batch.blobs)

    def skip(self, batch: Batch) -> None:
        """Mark a batch that was never attempted as not to be uploaded, because all of it was delivered."""
        self._catalog.skipped(batch.id)
        self._clean_up(batch.blobs)

    def quarantine_batch(self, claim: Claim, error: SpoolCorrupt) -> None:
        """Quarantine what is damaged of a claimed batch.

        The rest is sealed again, unless an earlier attempt may have uploaded the whole batch.
        """
        self._quarantine.quarantine_batch(claim.batch, whole=claim.attempts > 1 or error.attempts > 1)
        self._clean_up(claim.batch.blobs)

    def quarantined(self, *, own: bool = False) -> list[Damage]:
        """Damage in quarantine; with `own`, only from what this process recorded."""
        found = self._quarantine.reports()
        if found and own:
            batches = set[int]().union(*map(self._catalog.batches_of, self._sessions))
            found = [damage for damage in found if damage.batch in batches]
        return found

    def account(self) -> Account:
        """Count the unsealed events of each session and file: anything that is in none of them and not sealed is in the bucket."""
        problems: dict[str, SpoolError] = {}
        open_elsewhere = 0
        written = self._catalog.blob_files()
        for session, name in written.items():
            try:
                is_alive = session != self.session and self._is_alive(session)
                events = self._open_events(name)
                if is_alive:
                    open_elsewhere += events
                elif events or session != self.session:
                    raise SpoolError(f"{events:,} events in blobs/{name}.db are not sealed", hint="run the command again")
            except SpoolError as error:
                if session in self._catalog.blob_files():  # else it has ended meanwhile
                    problems[session] = error
        for name in self._files.names():
            if name in written.values():
                continue
            try:
                if unknown := self._unknown_in(name):
                    why = f"blobs/{name}.db holds {plural(len(unknown), 'batch')} that the catalog does not know"
                    raise SpoolError(why, hint="run the command again")
            except SpoolError as error:
                session = name.partition("-")[0]
                if self._files.exists(name) and session not in self._catalog.blob_files() and not self._is_alive(session):
                    problems[session] = error
        return Account([*({**problems, **self._unreadable}).values()], open_elsewhere)

    def _open_events(self, name: str) -> int:
        if not (rows := self._catalog.open_batches_of(name)):
            return 0
        with self._files.open(name, only_reads=True) as blobs:
            return sum(blobs.spooled(row.id)[0] for row in rows)

    def is_unsent(self, last: int) -> bool:
        """Whether a sealed batch of this process, up to the number `last`, is not uploaded yet."""
        left = set(self._sessions[:-1])
        return any(self._catalog.is_unsent(session, last) for session in self._sessions) or bool(
            left and left.intersection(self._catalog.sessions())
        )

    def has_archiver(self) -> bool:
        """Whether a live process uploads."""
        return any(session == self.session or self._is_alive(session) for session in self._catalog.sessions(archives=True))

    @property
    def member(self) -> None:
        """None: one machine alone uses the spool."""

    def status(self, limits: Limits, rejects: Path | None) -> Status:
        """The status of the whole spool."""
        return read_status(self.directory, limits, rejects)

    def watch(self, limits: Limits, rejects: Path | None) -> tuple[Status, list[Total]]:
        """Poll: the status, and the totals."""
        return watch(self.directory, limits, rejects)

    # Recovery and upkeep

    def recover(self) -> int:
        """Replace dead processes: seal what they had open, release what they were uploading. Returns how many.

        A process whose files cannot be read is reported and retried, as the disk may only be full, and does not block the others.
        Files unknown to the catalog are adopted by their contents: it may have been lost, or be an older copy.
        """
        written = self._catalog.blob_files()
        names = {name for name in self._files.names() if name not in self._known_files} | self._files.unfinished()
        strangers = {name.partition("-")[0] for name in names} - written.keys()
        for session in self._unreadable.keys() - written.keys() - strangers:
            self._unreadable.pop(session, None)  # another process or thread has replaced it
        return sum(self._recover(session) for session in (*written, *strangers) if session != self.session)

    def _recover(self, session: str, *, is_whole: bool = False) -> bool:
        """Replace one process; False if it is alive. `is_whole`: nothing of its file can be missing."""
        adopted = is_recovered = False
        lock: ProcessLock | None = None
        try:
            if (lock := self._try_lock(session)) is None:
                return False
            name = self._catalog.blob_files().get(session, "")  # empty if another process was faster
            is_recovered = bool(name)
            self._adopt(session, name, lock, is_whole=is_whole)
            adopted = True
            self._unreadable.pop(session, None)
        except SpoolError as error:
            if str(self._unreadable.get(session)) != str(error):  # else it would be logged at every poll
                log.error("cannot take over yet what a dead process recorded: %s", error.one_line())
            self._unreadable[session] = error
            self._note_dead(session, error)
        finally:
            if lock is not None:
                lock.release(remove=adopted)
        return adopted and is_recovered

    def _note_dead(self, session: str, error: SpoolError) -> None:
        try:
            self._catalog.note_dead(session, error.one_line())
        except SpoolError as failure:
            log.debug("cannot note that a process died: %s", failure.one_line())

    def begin_sending(self) -> None:
        """Prepare for uploading at start: the settings or permissions may have changed.

        Takes over what waits for stores that refused every attempt and so never got any of it: they were misconfigured, which has
        since been fixed. All other batches stay with their store. Retries that were waiting become due at once.
        """
        self._follow_settings()
        self._catalog.free_claims()
        self._catalog.make_due(self.store)
        self._deliveries.begin(self.store, self._delete_after)
        names, written = self._files.names(), self._catalog.blob_files()
        for name in names:  # their remover was killed
            session = name.partition("-")[0]
            if session in written and file_number(name) < file_number(written[session]):
                self._clean_up(name)
        self._files.remove_left()
        self._remove_left_locks()

    def maintain(self) -> None:
        """Maintain the reserve of space with which the catalog can be written on a full disk.

        For uploading processes only: space that recorders release would just be taken by whatever fills the disk.
        """
        try:
            self._ballast.balance()
        except OSError as error:
            log.debug("cannot create the ballast file: %s", error)

    def close(self) -> None:
        """Seal what is open and leave. What is not uploaded yet waits for the next process.

        Raises:
            SpoolError: sealing failed. Nothing is lost: the next process replaces this one.
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
            self._writer.session.lock.release(remove=ended)

    def _check_catalog(self) -> None:
        try:
            self._catalog.check()
        except SpoolCorrupt:
            try:
                read_beside(self.directory / "catalog.db")  # a read error is not damage, although SQLite says so
                self._catalog.check()
            except SpoolCorrupt as error:
                error.hint = _CATALOG_DAMAGED
                error.add_note(_CATALOG_DAMAGED)
                raise
            except OSError as error:
                raise SpoolError(f"{self.directory / 'catalog.db'}: {error.strerror}", hint="check the disk") from error

    def _skip_numbers(self) -> None:
        """Never reissue the number of a batch in a file: a catalog that was lost, or is an older copy, does not know it.

        Such a batch may be in the bucket, under a key with its number.
        """
        last = 0
        for name in self._files.names():
            try:
                last = max([last, *self._batches_in(name)])
            except SpoolError as error:  # reported when the file is recovered
                log.debug("%s", error.one_line())
        self._catalog.skip_numbers(last)

    def _begin_session(self) -> Session:
        while (lock := self._try_lock(name := secrets.token_hex(8))) is None:
            pass  # another process is checking for leftover locks
        try:
            self._catalog.begin_session(name, os.getpid(), self.store, archives=self._archives)
            blobs = self._files.create(name)
            lock.witness(0, 0)  # from now on, a lock file without a witness is a different file
        except BaseException:
            lock.release(remove=False)
            raise
        self._sessions.append(name)
        return Session(name, _new_epoch(), lock, blobs)

    def _renew(self, lost: Session, blobs: BlobFile) -> Session:
        """Begin another session because this one's lock or file was lost; the old one is recovered like a dead one."""
        is_whole = True
        make_directories(self.directory)  # one of them may have been removed
        try:
            blobs.check_files()
        except FilesLost:
            try:
                self._files.restore(blobs)
            except FilesLost:
                is_whole = False
        session = self._begin_session()
        blobs.close()  # only now: if it fails, all this is retried
        lost.lock.release(remove=False)
        self._recover(lost.name, is_whole=is_whole)
        return session

    def _adopt(self, session: str, name: str, lock: ProcessLock, *, is_whole: bool) -> None:
        """Replace a dead session; `name` is its file, empty if the catalog does not know it."""
        for one in self._files.unfinished():
            if one.partition("-")[0] == session:
                self._files.finish_restoring(one)
        names = [one for one in self._files.names() if one.partition("-")[0] == session]
        for one in names:
            self._files.roll_back(one)
        witness = lock.read_witness()
        positions: list[InputPosition] = []
        last = name
        if not last and witness is not None and witness.events:
            last = file_name(session, witness.file)
        if last and last not in names:
            rows = self._catalog.open_batches_of(last)
            events = witness.events if witness is not None and witness.file == file_number(last) else 0
            # Else it died before it had a file, or it had ended and its file was drained.
            if rows or (events and (name or not self._catalog.batches_of(session))):
                self._quarantine.report_missing(last, rows, events)
        for one in names:
            is_left = file_number(one) < max(map(file_number, [*names, last]))
            if one == last or self._is_strange(one, is_left=is_left):
                positions += self._take_over(one, witness, is_left=is_left, is_whole=is_whole)
        self._catalog.end_session(session, positions)
        for one in names:
            self._known_files.add(one)
            self._clean_up(one)

    def _is_strange(self, name: str, *, is_left: bool) -> bool:
        """Whether a file may hold something unknown to the catalog. If the catalog is right, everything in it is sealed."""
        try:
            batches = self._batches_in(name)
        except SpoolCorrupt:
            return True
        except SpoolError:
            if self._files.exists(name):
                raise
            return False  # another thread has just removed it, as `_clean_up` does
        return bool(self._catalog.unknown(name, batches)) or (is_left and not batches)  # no file is left without a batch

    def _batches_in(self, name: str) -> list[int]:
        with self._files.open(name, only_reads=True) as blobs:
            return blobs.batches()

    def _unknown_in(self, name: str) -> list[int]:
        """The batches in a file that the catalog does not know; none if another thread has just removed it, as `_clean_up` does."""
        try:
            return self._catalog.unknown(name, self._batches_in(name))
        except SpoolError:
            if self._files.exists(name):
                raise
            return []

    def _take_over(self, name: str, witness: Witness | None, *, is_left: bool, is_whole: bool) -> list[InputPosition]:
        """Seal what is open in a dead process's file, which no process writes. Returns its positions."""
        try:
            with self._files.open(name, only_reads=True) as blobs:
                is_blank = blobs.is_blank()  # opening it for writing would change that
            with self._files.open(name) as blobs:
                is_without_log = is_blank or not blobs.logged_pages()
                is_whole = blobs.finish() or is_whole
                blobs.check()
                self._take_up(blobs)
                rows = self._catalog.open_batches_of(name)
                for start in range(0, len(rows), SEALED_AT_ONCE):
                    self._seal_rows(rows[start : start + SEALED_AT_ONCE], blobs)
                events = blobs.events()
                if witness is not None and witness.file == file_number(name) and events < witness.events:
                    missing = witness.events - events
                    self._quarantine.report(name, 0, f"the last {missing} recorded events are missing", events=missing)
                elif is_left and not blobs.batches():
                    self._quarantine.report(name, 0, "it is empty, but was not when it was left: the events in it are lost")
                elif witness is None and is_without_log and not is_whole and any(row.epoch for row in rows):
                    self._quarantine.report(name, 0, "its log and its lock are lost, and perhaps the last recorded events")
                return blobs.positions()
        except SpoolCorrupt as error:  # of the whole file; what is sealed in it may still be readable
            self._files.confirm_damage(name)
            rows = self._catalog.open_batches_of(name)
            if witness is not None and witness.file == file_number(name):
                held = plural(witness.events, "event")
                error = SpoolCorrupt(f"{error.message}; it should hold {held}, including sealed ones", hint=error.hint)
            for row in rows:
                self._quarantine.leave_in_file(row, name, error)
            if not rows:
                self._quarantine.report(name, 0, error.message)
            return []

    def _take_up(self, blobs: BlobFile) -> None:
        """Adopt batches that the catalog does not know."""
        headers: dict[int, BatchHeader] = {}
        for batch in self._catalog.unknown(blobs.name, blobs.batches()):
            if (header := blobs.header(batch)) is None:
                self._quarantine.report(blobs.name, batch, f"the catalog does not know batch {batch}, whose source is not known")
            else:
                headers[batch] = header
        if not headers:
            return
        # In the file first, where it is one step: after a kill, the next process finds numbers that are free.
        if numbers := self._catalog.replace_taken(list(headers)):
            changes = [(batch, to, _renumbered(headers.pop(batch), batch)) for batch, to in numbers.items()]
            blobs.renumber(changes)
            headers.update({to: header for _, to, header in changes})
        for batch, header in headers.items():
            log.warning("batch %d in %s.db is unknown to the catalog, adopting it", batch, blobs.name)
            self._catalog.adopt(batch, header, blobs.name)

    def _seal_rows(self, rows: Sequence[BatchRow], blobs: BlobFile) -> None:
        batches: list[OpenBatch] = []
        for row in rows:
            try:
                batches.append(self._quarantine.restore(row, blobs)[0])
            except SpoolCorrupt as error:
                self._files.confirm_damage(blobs.name)
                self._quarantine.leave_in_file(row, blobs.name, error)
        seal_batches(self._catalog, blobs, [batch for batch in batches if batch.fill.events])

    def _is_alive(self, session: str) -> bool:
        return ProcessLock.is_held(self.directory / "locks", session)

    def _try_lock(self, name: str) -> ProcessLock | None:
        return ProcessLock.try_to_take(self.directory / "locks", name)

    def _remove_left_locks(self) -> None:
        """Remove the locks of processes killed before their session began, or after it ended."""
        for path in (self.directory / "locks").glob("*.lock"):
            if path.stem in self._catalog.sessions():
                continue
            if not path.stem.startswith("input-"):
                self._recover(path.stem)
            elif (lock := self._try_lock(path.stem)) is not None:
                # Released before asking the catalog: otherwise another process that wants to read the input meanwhile would be
                # refused.
                lock.release(remove=True)

    def _remove_drained_of(self, session: str, names: Sequence[str]) -> None:
        for name in names:
            if name.partition("-")[0] == session:
                self._clean_up(name)

    def _clean_up(self, name: str) -> None:
        """Remove a file that no process writes, once everything in it is uploaded; or retire it, if it is damaged.

        It is removed only if the catalog says that each batch in it is uploaded. It runs after the actual work, which must not
        count as failed now: the next process that starts to upload retries the removal.
        """
        try:
            is_left = name not in self._catalog.blob_files().values()
            if not is_left or self._catalog.is_needed(name):
                return
            if self._quarantine.retire(name):
                return
            if unsent := self._catalog.unsent_of(self._batches_in(name)):
                raise SpoolError(
                    f"blobs/{name}.db holds batches that the catalog does not know as uploaded: {unsent[:10]}",
                    hint="run `jobs-backup archive --once`, which uploads them",
                )
            self._files.remove(name)
            self._known_files.discard(name)
        except SpoolError as error:
            if not self._files.exists(name):
                return  # another process has removed it
            self._known_files.discard(name)
            log.warning("cannot remove an unneeded file of the spool yet: %s", error.one_line())

    def _refuse_to_upgrade_in_use(self) -> None:
        if not Catalog.is_older(self.directory / "catalog.db"):
            return
        for path in (self.directory / "locks").glob("*.lock"):
            # Checked again: a process that has just started may have upgraded it.
            if self._is_alive(path.stem) and Catalog.is_older(self.directory / "catalog.db"):
                raise SpoolError(
                    f"{self.directory} is used by a process with an earlier version of jobs-backup",
                    hint="stop it first: what it recorded is kept",
                )


def _renumbered(header: BatchHeader, batch: int) -> BatchHeader:
    """The header of a batch that gets another number, and so another epoch, as its ids may also refer to other events."""
    return msgspec.structs.replace(header, epoch=_new_epoch(), origin=header.origin or (header.epoch, batch))


def _new_epoch() -> int:
    return secrets.randbits(LOCAL_BITS - 1) + 1
