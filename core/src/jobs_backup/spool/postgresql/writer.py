"""Record and seal: the open batches of this process, and the group commit that makes events durable.

A commit names the one before, so that the answer to a lost COMMIT can be asked for: see `_resolve`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from jobs_backup.errors import SpoolCorrupt, SpoolError, SpoolUncertain
from jobs_backup.model import Stream
from jobs_backup.spool.base import BaseWriter
from jobs_backup.spool.batches import BatchOptions
from jobs_backup.spool.ids import job_index, origin_of
from jobs_backup.spool.interface import BatchLimits, InputPosition, Recording
from jobs_backup.spool.open_batch import SEALED_AT_ONCE, BatchState, OpenBatch
from jobs_backup.spool.planning import Addition, due, plan
from jobs_backup.spool.postgresql.catalog import Catalog, remove_empty, seal
from jobs_backup.spool.postgresql.chunks import Changes
from jobs_backup.spool.postgresql.connection import NOW, Busy, ConnectionLost, Database, sql
from jobs_backup.spool.postgresql.positions import set_position
from jobs_backup.spool.postgresql.sessions import Session, SessionLost, committed, elapsed, end, ended, lost
from jobs_backup.spool.quota import BytesQuota
from jobs_backup.util.logs import logger_of

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

T = TypeVar("T")
log: Final = logger_of(__name__)

_RENEWALS: Final = 3
"""How often a call continues after its session was lost."""
_RECONNECT: Final = 0.05
_ASK_SECONDS: Final = 10.0
"""How long a call asks what became of its commit, even without a timeout for room: its caller cannot safely repeat it."""
_PATIENCE: Final = 5.0
"""Seconds."""
_NEXT: Final = (
    f"UPDATE jobs_backup.sessions SET seq = seq + 1, events = events + %s, lease_until = {NOW} + lease"
    " WHERE id = %s AND seq = %s{at} RETURNING ctid::text AS place"
)
# While a transaction elsewhere is open, as of `pg_dump`, no version of a row can be removed: by its id, the last one of hundreds of
# thousands would be looked for among all of them, at each commit. It is where the last commit has put it, unless the lease was
# renewed meanwhile.
_AT: Final = " AND ctid = %s::tid"


class CommitsLost(SpoolCorrupt):
    """The server has lost commits that were acknowledged."""


class _Pending(NamedTuple):
    """A commit of which nobody knows whether it was made.

    Attributes:
        seq: that it gives the session.
        events: that it adds.
        recordings: that it makes durable.
        fills: batch -> what was in it before.
        sealed: the batches that it seals.
    """

    seq: int
    events: int
    recordings: Sequence[Recording]
    fills: dict[OpenBatch, BatchState]
    sealed: Sequence[OpenBatch]


class Writer(BaseWriter[Session]):
    """Records into the database. Any number of threads may append at once: they share commits."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        *,
        session: Session,
        renew: Callable[[Session], Session],
        placement: BatchOptions,
        limits: BatchLimits,
        room: BytesQuota,
        check_session: Callable[[], bool],
        check_readers: Callable[[], None],
        report_lost: Callable[[int, str], None],
    ) -> None:
        """Open it.

        Args:
            renew: gives up a session that was lost, and begins another one.
            check_session: returns whether another process may have taken this one's place.
            check_readers: raises what keeps a position from being committed.
            report_lost: quarantines a report with the number of acknowledged events that are missing.
        """
        super().__init__(session=session, limits=limits, room=room)
        self._database = database
        self._catalog = catalog
        self._renew = renew
        self._placement = placement
        self._check_session = check_session
        self._check_readers = check_readers
        self._report_lost = report_lost
        self._segments: dict[int, int] = {}
        self._pending: _Pending | None = None
        self._uncertain: list[Recording] = []
        self._failure: CommitsLost | None = None

    def seal(self, *, older_than: float = 0.0) -> int:
        """Seal the batches opened at least `older_than` seconds ago. Returns how many."""
        return self._patiently(lambda: self._renewing(lambda: self._turns.alone(lambda: self._seal_older(older_than))))

    def close(self) -> None:
        """Seal everything, and end the session. Nothing is recorded after that, and nothing that comes meanwhile slips between."""
        self._patiently(lambda: self._renewing(lambda: self._turns.alone(self._close)))

    def _commit_by(self, until: float, recordings: Sequence[Recording]) -> None:
        """Wait while the server cannot be reached.

        Raises:
            SpoolUncertain: the server could not be asked whether it has made the commit, for 10 seconds at least.
        """
        begun = time.monotonic()
        while True:
            try:
                return super()._commit_by(until, recordings)
            except Busy as error:
                is_unknown = self._is_unknown(recordings)
                if time.monotonic() >= (max(until, begun + _ASK_SECONDS) if is_unknown else until):
                    if is_unknown:
                        raise SpoolUncertain(
                            f"the events may be recorded, or not: {error.message}",
                            hint="see that the server can be reached; recording the events again may duplicate them",
                        ) from error
                    raise
                time.sleep(_RECONNECT)

    def _is_unknown(self, recordings: Sequence[Recording]) -> bool:
        """Whether a commit with one of these may have been made. Another thread may already have found that it was."""
        pending = self._pending
        is_pending = pending is not None and any(one is other for one in recordings for other in pending.recordings)
        return is_pending or any(one.jobs for one in recordings)

    def _check_usable(self) -> None:
        super()._check_usable()
        if self._failure is not None:
            raise self._failure

    def _close(self) -> None:
        if self._failure is not None:  # another process seals what is there, once the lease is over
            self._closed = True
            return
        self._seal_older(0.0)
        session = self._session.name

        def leave(db: Db) -> None:
            if committed(db, session) is not None:
                remove_empty(db, session)
                end(db, session)

        self._database.write(leave, is_idempotent=True)
        self._closed = True

    def _seal_older(self, age: float) -> int:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            return 0
        self._settle()
        limit = time.monotonic() - age
        batches = [batch for batch in self._open.values() if batch.opened <= limit and batch.fill.events] + self._full
        self._seal(batches)
        return len(batches)

    def _commit(self, group: Sequence[Sequence[Recording]]) -> None:
        self._check_usable()
        self._room.check(self._open_bytes)
        self._settle()
        recordings = [one for some in group for one in some]
        if uncertain := [one for one in recordings if any(one is other for other in self._uncertain)]:
            self._uncertain = [one for one in self._uncertain if not any(one is other for other in uncertain)]
            raise SpoolUncertain(
                "the events may be recorded, or not: another process took this one's place meanwhile, and their batch is forgotten",
                hint="look for the events in the bucket before you record them again",
            )
        self._seal_full(self._record([one for one in recordings if not one.jobs]))  # the others are there: see `_resolve`

    def _record(self, recordings: Sequence[Recording]) -> list[OpenBatch]:
        """Commit recordings. Returns the batches that got some."""
        positions = [one.position for one in recordings if one.position is not None]
        if not positions and not any(one.lines for one in recordings):
            return []
        begun = time.perf_counter()
        try:
            additions = plan(recordings, self._open, self._full, self._limits.events, self._open_for)
        except BaseException:
            for one in recordings:
                one.jobs = []
            raise
        fills = {addition.batch: addition.batch.fill for addition in additions}
        events = sum(len(addition.lines) for addition in additions)
        self._advance(
            _Pending(self._session.seq + 1, events, recordings, fills, ()),
            lambda changes: _add(changes, additions),
            positions=positions,
        )
        self.recorded.commit_seconds.observe(time.perf_counter() - begun)
        for addition in additions:
            self.recorded.add(addition.batch.stream.kind, len(addition.lines), addition.bytes)
        return list(fills)

    def _advance(
        self,
        pending: _Pending,
        change: Callable[[Changes], None],
        *,
        positions: Sequence[InputPosition] = (),
        finish: Callable[[Db], None] | None = None,
    ) -> None:
        """Commit, if this session is still the one that the server knows.

        Args:
            pending: what the commit does.
            change: its chunks.
            positions: of inputs.
            finish: what else belongs into the transaction, behind the chunks.

        Raises:
            SessionLost: it is not. Nothing was committed.
            ConnectionLost: nobody knows whether it was committed.
        """
        session = self._session
        is_sent = False

        def next_(place: str) -> tuple[str, tuple[Any, ...]]:
            token = (pending.events, session.name, session.seq)
            return _NEXT.format(at=_AT if place else ""), (*token, place) if place else token

        def work(db: Db) -> bool:
            nonlocal is_sent
            changes = Changes(db, self._segments, self._database.name)
            change(changes)
            places = dict.fromkeys((session.place, ""))
            if changes.is_plain and not positions and finish is None and self._database.is_read_committed:
                parts, parameters = changes.statement()
                is_sent = True
                for update, token in map(next_, places):
                    query = sql(f"WITH me AS ({update}){parts} SELECT count(*), min(place) FROM me")
                    count, place = db.execute(query, (*token, *parameters)).fetchone() or (0, "")
                    if count:
                        session.place = place
                        return True
                return False
            self._database.begin(db)
            found = next((row for update, token in map(next_, places) if (row := db.execute(sql(update), token).fetchone())), None)
            if found is None:
                db.execute("ROLLBACK")
                return False
            (session.place,) = found
            changes.write()
            for position in positions:
                self._check_readers()
                set_position(db, position)
            if finish is not None:
                finish(db)
            is_sent = True
            db.execute("COMMIT")
            return True

        asked_at = elapsed()
        try:
            is_made = self._database.use(work)
        except ConnectionLost:
            self._failed(pending, is_sent=is_sent)
            raise
        except SpoolError:  # the server's own answer: it was rolled back
            self._failed(pending, is_sent=False)
            raise
        except BaseException:
            self._failed(pending, is_sent=is_sent)
            raise
        if not is_made:
            self._failed(pending, is_sent=False)
            self._look()
            raise lost(session.name)
        session.renewed(asked_at)
        self._made(pending)

    def _made(self, pending: _Pending) -> None:
        self._session.seq, self._session.events = pending.seq, self._session.events + pending.events
        for batch in pending.sealed:
            if self._open.get(batch.stream) is batch:
                del self._open[batch.stream]
            self._segments.pop(batch.id, None)
        self._full = [batch for batch in self._full if batch not in pending.sealed]

    def _failed(self, pending: _Pending, *, is_sent: bool) -> None:
        if is_sent:
            self._pending = pending
        else:
            self._undo(pending)

    def _undo(self, pending: _Pending) -> None:
        for batch, fill in pending.fills.items():
            batch.fill = fill
        for one in pending.recordings:
            one.jobs = []

    def _settle(self) -> None:
        """Know what became of the last commit, and that this session is not lost, as far as others have reported.

        Raises:
            SessionLost: it is.
            CommitsLost: the server has lost what was acknowledged.
        """
        if self._pending is not None:
            self._resolve(self._pending)
        elif self._check_session():
            self._look()

    def _resolve(self, pending: _Pending) -> None:
        """Ask the server whether it has made a commit whose answer was lost."""
        session = self._session

        def ask(db: Db) -> tuple[int, int] | None:
            found = committed(db, session.name)
            if found is not None and found[0] == session.seq:
                # It was not made. It may still be on its way: from now on it finds another number.
                db.execute("UPDATE jobs_backup.sessions SET seq = %s WHERE id = %s", (pending.seq + 1, session.name))
                return pending.seq + 1, found[1]
            return found

        found = self._database.write(ask, is_idempotent=True)
        if found is None:
            self._resolve_by_batches(pending)
            self._look()
        elif found[0] < session.seq:
            self._pending = None
            self._undo(pending)
            self._lose(found[1])
        elif found[0] == pending.seq:
            self._pending = None
            self._made(pending)
            log.info("a commit whose answer was lost has been made")
        else:
            self._pending = None
            self._undo(pending)
            session.seq = found[0]

    def _resolve_by_batches(self, pending: _Pending) -> None:
        """Another process has taken this one's place, and sealed what was there: the number of ids given in a batch shows it."""
        job = next((one.jobs[0][0] for one in pending.recordings if one.jobs), None)
        given = None if job is None else self._catalog.given(*origin_of(job))
        self._pending = None
        if job is None:
            return
        if given is None:
            self._uncertain += [one for one in pending.recordings if one.jobs]
        elif job_index(job) >= given:
            self._undo(pending)

    def _look(self) -> None:
        """Look whether this session is there, with all of its commits. Raises what `_settle` does."""
        session = self._session
        found = self._database.read(lambda db: (committed(db, session.name), ended(db, session.name)))
        there, over = found
        if there is not None:
            if there[0] < session.seq:
                self._lose(there[1])
            return
        if session.seq and (over is None or over[0] < session.seq):
            self._lose(over[1] if over is not None else 0)
        raise lost(session.name)

    def _lose(self, events: int) -> None:
        missing = self._session.events - events
        error = CommitsLost(
            f"the server of {self._database.name} has lost up to {missing:,} events that were acknowledged",
            hint="an asynchronous standby was promoted, or an older copy restored: see docs/fleet.md; then restart this process",
        )
        self._failure = error
        log.critical("%s", error.one_line())
        try:
            self._report_lost(missing, error.message)
        except SpoolError as failure:
            log.error("it is not in the quarantine: %s", failure.one_line())
        raise error

    def _patiently(self, work: Callable[[], T]) -> T:
        """Call `work`, and again for some seconds where the server can't: what became of a lost commit is asked first."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return work()
            except Busy:
                if time.monotonic() >= until:
                    raise
                time.sleep(_RECONNECT)

    def _renewing(self, work: Callable[[], T]) -> T:
        """Call `work`, and continue in another session where this one was lost, or something that was to be folded is damaged."""
        for renewals in itertools.count():
            session = self._session
            try:
                return work()
            except (SessionLost, SpoolCorrupt) as error:
                if renewals == _RENEWALS or isinstance(error, CommitsLost):
                    raise
                self._start_over(session, error)
        raise AssertionError("unreachable")

    def _start_over(self, before: Session, error: SpoolError) -> None:
        """Go on in another session, unless another thread has done so."""

        def renew() -> None:
            if self._session is not before or self._closed:
                return
            log.error("abandoning the session and starting another one; what was recorded is kept: %s", error.one_line())
            if self._pending is not None:
                self._resolve_by_batches(self._pending)
            self._session = self._renew(before)
            self._open, self._full, self._segments = {}, [], {}

        self._turns.alone(renew)

    def _open_for(self, streams: Sequence[Stream]) -> None:
        if not streams:
            return
        session = self._session
        opened = self._catalog.open_batches(streams, self._placement, session.name, session.epoch)
        for (number, segment), stream in zip(opened, streams, strict=True):
            self._open[stream] = OpenBatch(number, session.epoch, stream, self._placement)
            self._segments[number] = segment

    def _seal_full(self, changed: Iterable[OpenBatch]) -> None:
        full = due(changed, self._open, self._full, self._limits)
        try:
            if full or self._full:
                self._seal([*self._full, *full])
        except Exception as error:  # noqa: BLE001 - what was recorded is safe, so its caller gets no error; it is retried
            log.warning("sealing failed, retrying later: %s", error)

    def _seal(self, batches: Sequence[OpenBatch]) -> None:
        empty = [batch for batch in batches if not batch.fill.events]
        self._full = [batch for batch in self._full if batch not in empty]  # their commit was not made
        holding = [batch for batch in batches if batch.fill.events]
        for start in range(0, len(holding), SEALED_AT_ONCE):
            some = holding[start : start + SEALED_AT_ONCE]

            def compact(changes: Changes, some: Sequence[OpenBatch] = some) -> None:
                for batch in some:
                    batch.compact(changes)

            self._advance(
                _Pending(self._session.seq + 1, 0, (), {batch: batch.fill for batch in some}, some),
                compact,
                finish=lambda db, some=some: seal(db, [batch.seal() for batch in some]),  # type: ignore[misc]
            )
        if holding:
            self.on_sealed()


def _add(changes: Changes, additions: Sequence[Addition]) -> None:
    for addition in additions:
        addition.batch.add(changes, addition.lines, addition.first_at, addition.last_at)
