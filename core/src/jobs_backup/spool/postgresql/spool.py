"""The spool in PostgreSQL: the writer of this process, and the batches of all hosts on their way to the bucket."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobs_backup.errors import ConfigurationError, JobsBackupError, SpoolCorrupt, SpoolError
from jobs_backup.format.compression import GZIP, Compression
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import Batch, Body, Kind, Stream
from jobs_backup.settings.core import DatabaseSpool
from jobs_backup.spool.acknowledger import Acknowledger
from jobs_backup.spool.base import BaseSpool
from jobs_backup.spool.batches import BatchOptions
from jobs_backup.spool.id_ranges import Numbering
from jobs_backup.spool.interface import (
    Account,
    BatchLimits,
    Claim,
    Damage,
    DeleteAfter,
    DueObject,
    Entry,
    InputPosition,
    QuotaLimits,
    Recording,
    Total,
)
from jobs_backup.spool.postgresql.catalog import Catalog, report
from jobs_backup.spool.postgresql.chunks import SpooledBody
from jobs_backup.spool.postgresql.collector import Collector
from jobs_backup.spool.postgresql.connection import ANSWER_SECONDS, Database
from jobs_backup.spool.postgresql.deliveries import Deliveries
from jobs_backup.spool.postgresql.migrations import migrate
from jobs_backup.spool.postgresql.outbox import Outbox
from jobs_backup.spool.postgresql.positions import Positions
from jobs_backup.spool.postgresql.segments import Segments
from jobs_backup.spool.postgresql.sessions import Heartbeat, Host, Session, Sessions, host_name
from jobs_backup.spool.postgresql.status import DEFAULT_MAX_BYTES, look, read, totals
from jobs_backup.spool.postgresql.takeover import quarantine_batch, take_over
from jobs_backup.spool.postgresql.uploads import UploadJournal
from jobs_backup.spool.postgresql.writer import Writer
from jobs_backup.spool.quota import BytesQuota
from jobs_backup.spool.status import Limits, MemberStatus, Status
from jobs_backup.util.logs import logger_of

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

log: Final = logger_of(__name__)

_LOOKED_AT_ONCE: Final = 1000
_RECORDING_CONNECTIONS: Final = 4
"""For recording, acknowledging, and looking after the rest; the lease has one of its own."""
_SEGMENT_SECONDS: Final = 5.0
"""Between two looks at the segments."""
_OUTBOX_SECONDS: Final = 5.0
"""Between two looks at what waits in the outbox, and its age."""
_NO_STREAM: Final = Stream(Kind.RAW, "", "")


class PostgresqlSpool(BaseSpool[Catalog, Deliveries, Writer]):
    """A database, in whose schema `jobs_backup` everything is.

    A process has a session with a lease, by the server's clock. Who takes the place of one whose lease is over seals what it had
    open, in the transaction that ends the session: what the process commits later finds no session, and is not made.

    Attributes:
        uploads: the journal of multipart uploads to its store.
        host: names this machine's inputs.
    """

    def __init__(
        self,
        place: DatabaseSpool,
        *,
        location: str,
        prefix: str,
        instance_id: str,
        limits: BatchLimits,
        room: QuotaLimits = QuotaLimits(),
        compression: Compression = GZIP,
        wrappers: tuple[str, ...] = (),
        archives: bool = True,
        delete_after: DeleteAfter = "delivered",
        lease: float = 15.0,
        workers: int = 4,
    ) -> None:
        """Open the spool, make its tables where there are none.

        Args:
            location: of the store; what is recorded here is bound to it.
            wrappers: what its objects will be made by, see `Batch.wrappers`.
            archives: whether this process also sends, and deletes.
            lease: seconds without a sign of life after which another process takes this one's place.
            workers: threads that send.

        Raises:
            ConfigurationError: the driver is not installed, or the URL is wrong.
            SpoolError: the database cannot be used.
        """
        self.host = host_name(instance_id)
        self._delete_after: DeleteAfter = delete_after
        self._archives = archives
        self._lease = lease
        self._unreadable: dict[str, SpoolError] = {}
        self._reading: dict[str, str] = {}  # input -> the session as which it is read
        self._reading_lock = threading.Lock()
        self._segments_looked_at = self._outbox_looked_at = 0.0
        self._place = place
        self._is_closed = False
        self._counting = threading.Lock()
        self._takeovers = 0
        self._lost_sessions = 0
        self._database = Database(place, connections=_RECORDING_CONNECTIONS + 2 * workers, idle_seconds=lease)
        try:  # so that no thread that holds connections can end the lease, nor a connection on which nothing comes back
            self._pulse = Database(place, connections=1, answer_seconds=min(lease / 3, ANSWER_SECONDS), idle_seconds=lease)
        except BaseException:
            self._database.close()
            raise
        try:
            migrate(self._database)
            self._catalog = Catalog(self._database)
            self._deliveries = Deliveries(self._database)
            self._positions = Positions(self._database)
            self._segments = Segments(self._database)
            self.store = self._catalog.store(location)
            self.uploads = UploadJournal(self._database, self.store)
            self._sessions = Sessions(
                self._database, self._pulse, host=Host(self.host, os.getpid()), store=self.store, archives=archives, lease=lease
            )
            session = self._sessions.begin()
            self._names = [session.name]
            placement = BatchOptions(
                store=self.store, prefix=prefix, instance_id=instance_id, compression=compression, wrappers=wrappers
            )
            quota = QuotaLimits(max_bytes=DEFAULT_MAX_BYTES if room.max_bytes is None else room.max_bytes, timeout=room.timeout)
            self._numbering = Numbering(self._catalog, placement, session.epoch)
            self._acknowledger = Acknowledger(self._deliveries.add)
            self._heartbeat = Heartbeat(self._sessions, lambda: self._writer.session, lease)
            self._writer = Writer(
                self._database,
                self._catalog,
                session=session,
                renew=self._renew,
                placement=placement,
                limits=limits,
                room=BytesQuota(self.name, self._catalog, lambda: self._names[-1], quota),
                check_session=self._heartbeat.lost.is_set,
                check_readers=self._check_readers,
                report_lost=self._report_lost,
            )
            self._outbox = Outbox(
                self._database,
                placement,
                session.epoch,
                session=lambda: self._names[-1],
                max_events=limits.events,
                check_room=self._writer.check_room,
            )
            self._collector = Collector(self._database, placement, limits, session=lambda: self._names[-1], lease=lease)
            self._heartbeat.start()
        except BaseException:
            self._pulse.close()
            self._database.close()
            raise

    @property
    def name(self) -> str:
        """The address of the database, without user and password."""
        return self._database.name

    @property
    def quarantine(self) -> str:
        """The table of what was damaged."""
        return f"the table jobs_backup.damages of {self.name}"

    # Recording

    def entry(self, recordings: Sequence[Recording]) -> Entry:
        """Fill in the jobs of recordings that a transaction of the application is to commit; see `Outbox`."""
        return self._outbox.entry(recordings)

    def check_room(self) -> None:
        """Check that what is recorded now would find room, and that the server can be used.

        Raises:
            SpoolFull: there is no room.
            SpoolError: the spool cannot be used.
            BackupClosed: after `close`.
        """
        self._writer.check_room()
        self._catalog.last_batch()

    def seal(self) -> int:
        """Seal this process's open batches, and what waits in the outbox. Returns how many batches."""
        return self._writer.seal() + self._collect(self._collector.collect)

    def seal_due(self) -> int:
        """Seal this process's open batches that have reached the age limit, and the outbox if it has. Returns how many batches."""
        sealed = self._writer.seal_due()
        if time.monotonic() - self._outbox_looked_at < _OUTBOX_SECONDS:
            return sealed
        self._outbox_looked_at = time.monotonic()
        return sealed + self._collect(self._collector.collect_due)

    def _collect(self, work: Callable[[], int]) -> int:
        if sealed := work():
            self._writer.on_sealed()
        return sealed

    @contextmanager
    def reading(self, source: str) -> Generator[bool]:
        """The right to read an input, within the block; False if another process has it.

        It belongs to the session: a process that takes this one's place has ended the session before, and with it what could commit
        a position.
        """
        with self._reading_lock:
            session = self._take_reader(source)
            if session:
                self._reading[source] = session
        try:
            yield bool(session)
        finally:
            if session:
                with self._reading_lock:
                    del self._reading[source]
                try:
                    self._positions.give_up(source, session)
                except SpoolError as error:  # it ends with the session
                    log.debug("an input is not given up: %s", error.one_line())

    def position(self, source: str) -> InputPosition | None:
        """How far an input was read, by any process; None if it never was."""
        return self._positions.position(source)

    def new_positions(self, prefix: str, seen: dict[str, int]) -> list[InputPosition]:
        """How far the inputs were read whose ids begin with `prefix`, by any process: those of which `seen` knows nothing."""
        return self._positions.new_positions(prefix, seen)

    def _take_reader(self, source: str) -> str:
        """The session as which this process may read an input now; empty if another one does."""
        session = self._writer.session.name
        if (other := self._positions.take(source, session)) is None:
            return session
        if other and self._positions.is_over(other) and self._take_over(other):
            return session if self._positions.take(source, session) is None else ""
        return ""

    def _check_readers(self) -> None:
        """Check, before a position is committed, that this process alone reads its inputs.

        Raises:
            ConfigurationError: another process may read one, or has read it.
        """
        session = self._writer.session.name
        if any(other != session for other in [*self._reading.values()]):
            raise ConfigurationError(
                "another process took this one's place while it read an input", hint="run the same command again"
            )

    # Deliveries

    def stream_of(self, job: int) -> Stream | None:
        """The stream of a raw event, past or present; None if the job is unknown."""
        return self._deliveries.stream_of(job)

    def give_back_deletes(self, retries: Sequence[tuple[DueObject, float | None]], error: JobsBackupError, *, pause: float) -> None:
        """Release objects whose delete failed; each may be claimed again after its seconds, or at any time if None.

        Nothing is deleted for `pause` seconds.
        """
        batches = [(one.batch, delay) for one, delay in retries]
        self._deliveries.give_back(self.store, self.session, batches, error=str(error), hint=error.hint, pause=pause)

    def forget(self, age: float, after: int) -> int | None:
        """Forget batches uploaded, or at least opened, at least `age` seconds ago, unless something is left to do for them.

        Examines some with numbers above `after`. Returns where to continue; None at the end.
        """
        return self._deliveries.forget(age, after, _LOOKED_AT_ONCE)

    # Sending

    def give_back_claims(self) -> int:
        """Release all batches this process has claimed. Call it only while uploading nothing. Returns how many."""
        return self._catalog.give_back_claims(self.session)

    @hookimpl
    def open_body(self, batch: Batch) -> Body:
        """The bytes of a sealed batch. Before each attempt to send them it is looked whether this process still may.

        Raises:
            SpoolCorrupt: they are not those that were sealed.
        """
        session = self._writer.session

        def check() -> None:
            if not session.is_valid():
                raise SpoolError(
                    f"the lease of this process is over, so that another one may send {batch.key}",
                    hint="see that the database can be reached; it is retried",
                )

        body = SpooledBody(self._database, int(batch.blobs), batch.id, check)
        if body.size != batch.size:
            raise SpoolCorrupt(
                f"batch {batch.id} has {body.size} bytes in {self.name} instead of {batch.size}",
                hint="look at the server's disk and log",
            )
        return body

    def stored(self, batch: Batch, *, deletable_after: float = 0.0) -> None:
        """The batch's object is in the bucket. Its bytes go with their segment, once nothing in that waits.

        It is not deleted for `deletable_after` seconds and a lease: an earlier attempt may still arrive, perhaps that of a process
        whose place this one took, and would bring it back.
        """
        self._catalog.stored(batch.id, deletable_after=deletable_after + self._lease if deletable_after else 0.0)

    def skip(self, batch: Batch) -> None:
        """Mark a batch that was never attempted as not to be uploaded, because all of it was delivered."""
        self._catalog.skipped(batch.id, self.session)

    def quarantine_batch(self, claim: Claim, error: SpoolCorrupt) -> None:
        """Quarantine what is damaged of a claimed batch.

        The rest is sealed again, unless an earlier attempt may have uploaded the whole batch.
        """
        quarantine_batch(self._database, claim.batch, self.session, whole=claim.attempts > 1 or error.attempts > 1)

    def quarantined(self, *, own: bool = False) -> list[Damage]:
        """Damage in quarantine; with `own`, only from what this process recorded."""
        found = [damage for _, damage in self._catalog.damages()]
        if found and own:
            batches = self._catalog.batches_of(self._names)
            found = [damage for damage in found if damage.batch in batches]
        return found

    def account(self) -> Account:
        """Count the unsealed events of each session: anything that is in no session and not sealed is in the bucket."""
        query = (
            "SELECT b.session, sum(o.events)::bigint FROM jobs_backup.open_events() o JOIN jobs_backup.batches b ON b.id = o.batch"
            " AND b.state = 'open' GROUP BY b.session"
        )
        events: dict[str, int] = self._database.read(lambda db: {row[0]: row[1] for row in db.execute(query)})
        over = set(self._sessions.over())
        problems: list[SpoolError] = []
        open_elsewhere = 0
        for session, count in events.items():
            if session == self.session or session in over:
                why = f"{count:,} events of session {session} in {self.name} are not sealed"
                problems.append(SpoolError(why, hint="run the command again"))
            else:
                open_elsewhere += count
        return Account([*problems, *self._unreadable.values()], open_elsewhere)

    def is_unsent(self, last: int) -> bool:
        """Whether a sealed batch of this process, up to the number `last`, is not uploaded yet."""
        return self._catalog.is_unsent(self._names, last)

    def has_archiver(self) -> bool:
        """Whether a process that sends is alive, on any host."""
        return self._sessions.has_archiver()

    @property
    def member(self) -> MemberStatus:
        """This process, as one of the fleet."""
        pool = self._database.statistics()
        return MemberStatus(
            lease=self._writer.session.remaining(),
            takeovers=self._takeovers,
            lost_sessions=self._lost_sessions,
            connections=pool["pool_size"],
            idle=pool["pool_available"],
            max_connections=pool["pool_max"],
            waiting=pool["requests_waiting"],
        )

    def status(self, limits: Limits, rejects: Path | None) -> Status:
        """The status of the whole spool."""
        with self._looking() as database:
            return read(database, limits, rejects, self.member)

    def watch(self, limits: Limits, rejects: Path | None) -> tuple[Status, list[Total]]:
        """The status, and what has reached which state."""
        with self._looking() as database:
            return read(database, limits, rejects, self.member), totals(database)

    @contextmanager
    def _looking(self) -> Generator[Database]:
        """The pool; after `close`, a connection for this once."""
        if self._is_closed:
            with look(self._place) as database:
                yield database
        else:
            yield self._database

    # Recovery and upkeep

    def recover(self) -> int:
        """Take the place of processes whose lease is over: seal what they had open, free what they were sending.

        Returns how many.
        """
        recovered = 0
        over = [session for session in self._sessions.over() if session != self.session]
        for gone in self._unreadable.keys() - set(over):
            self._unreadable.pop(gone, None)  # another process has taken its place, or it is alive
        for session in over:
            try:
                recovered += self._take_over(session)
                self._unreadable.pop(session, None)
            except SpoolError as error:
                if str(self._unreadable.get(session)) != str(error):  # else it would be logged at every poll
                    log.error("cannot take over yet what a dead process recorded: %s", error.one_line())
                    self._note_dead(session, error)
                self._unreadable[session] = error
        return recovered

    def begin_sending(self) -> None:
        """Prepare for uploading at start: the settings or permissions may have changed.

        Takes over what waits for stores that refused every attempt and so never got any of it: they were misconfigured, which has
        since been fixed. All other batches stay with their store. Retries that were waiting become due at once.
        """
        self._follow_settings()
        self._collect(self._collector.collect)  # those that recorded it may never have archived
        self._catalog.begin_sending(self.store)
        self._deliveries.begin(self.store, self._delete_after)

    def maintain(self) -> None:
        """Leave segments that are large or old, empty those that are nearly sent, and drop the empty ones."""
        if time.monotonic() - self._segments_looked_at >= _SEGMENT_SECONDS:
            self._segments_looked_at = time.monotonic()
            self._segments.rotate()
            self._segments.empty_old()
            self._segments.drop_sent()
            self._collector.give_space_back()

    def close(self) -> None:
        """Seal what is open and leave. What is not sent yet waits for another process.

        Raises:
            SpoolError: it cannot be sealed. It is safe all the same: another process takes this one's place.
        """
        try:
            self._writer.close()
            self._maintain_at_end()
        except BaseException:
            self._heartbeat.stop()
            with suppress(SpoolError):  # else another process waits for the end of the lease
                self._sessions.leave(self._writer.session)
            raise
        finally:
            self._is_closed = True
            self._heartbeat.stop()
            self._pulse.close()
            self._database.close()

    def _maintain_at_end(self) -> None:
        """Where every process is a short one, as with `run` in a cron job, nobody else would do it."""
        if self._archives:
            self._segments_looked_at = 0.0
            try:
                self.maintain()
            except SpoolError as error:  # the next process does it
                log.debug("%s", error.one_line())

    def _take_over(self, session: str) -> bool:
        if not take_over(self._database, session):
            return False
        with self._counting:
            self._takeovers += 1
        return True

    def _renew(self, before: Session) -> Session:
        """Begin another session. What the one before has recorded is sealed, if nobody has done so."""
        if not take_over(self._database, before.name, is_own=True):
            with self._counting:
                self._lost_sessions += 1
        session = self._sessions.begin()
        self._names.append(session.name)
        self._heartbeat.lost.clear()
        return session

    def _note_dead(self, session: str, error: SpoolError) -> None:
        try:
            self._sessions.note_error(session, error.one_line())
        except SpoolError as failure:
            log.debug("cannot note that a process died: %s", failure.one_line())

    def _report_lost(self, events: int, why: str) -> None:
        def work(db: Db) -> None:
            report(db, Damage(0, _NO_STREAM, 0, events, "", why))

        self._database.write(work)
