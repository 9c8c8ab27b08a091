"""What the engines of the spool have in common: calls that only reach one of an engine's parts, and how recorders wait."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from jobs_backup.errors import BackupClosed, JobsBackupError, SpoolError, SpoolFull, WrapperMissing
from jobs_backup.model import Batch, Stream
from jobs_backup.spool.acknowledger import Acknowledger
from jobs_backup.spool.group_commit import GroupCommit
from jobs_backup.spool.id_ranges import Numbering
from jobs_backup.spool.ids import JobSet, origin_of
from jobs_backup.spool.interface import BatchLimits, Claim, DeleteAfter, DueObject, Recorded, Recording, Waiting, WaitingDeletes
from jobs_backup.spool.open_batch import OpenBatch
from jobs_backup.spool.planning import WAIT_FOR_ROOM
from jobs_backup.spool.quota import BytesQuota
from jobs_backup.util.logs import logger_of, plural

R = TypeVar("R")
log: Final = logger_of(__name__)


class Catalog(Protocol):
    """An engine's table of batches and stores. A method without a docstring does what its namesake of the interface does."""

    def claim(self, store: int, session: str, /) -> tuple[Batch, int, int, bool] | None:
        """The fields of a `Claim`."""
        ...

    def has_claimable(self, store: int, /) -> bool: ...
    def release(self, batch: int, session: str, /, *, error: str, hint: str, delay: float, standing: str | None) -> None: ...
    def doubt(self, key: str, /) -> None: ...
    def is_doubted(self, key: str, /) -> bool: ...
    def waiting(self, session: str, last: int | None, /) -> list[Waiting]: ...
    def pause(self, store: int, /, *, error: str, hint: str, seconds: float) -> None: ...
    def last_batch(self) -> int: ...
    def pin_content(self, batch: int, made: str, /) -> bool:
        """Note what the wrappers made of a batch at the first attempt. False if it was something else then."""
        ...

    def follow(self, store: int, /) -> list[tuple[str, int]]:
        """Move to `store` what waits for stores that refused everything. Returns their locations, and how many batches."""
        ...


class Deliveries(Protocol):
    """An engine's table of deliveries and deletes. A method without a docstring does what its namesake of the interface does."""

    def settle(self, failures: Sequence[tuple[int, int]], /) -> None:
        """Note which batch has a job's failure record: (batch, job)."""
        ...

    def claim(self, store: int, session: str, delete_after: DeleteAfter, limit: int, /) -> list[DueObject]: ...
    def has_due(self, store: int, session: str, delete_after: DeleteAfter, /) -> bool: ...
    def waiting(self) -> list[WaitingDeletes]: ...
    def deleted(self, store: int, batches: Sequence[int], /) -> None: ...
    def begin(self, store: int, delete_after: DeleteAfter, /) -> None:
        """Make failed deletes due."""
        ...


class Named(Protocol):
    """A session of an engine."""

    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=Catalog)
D = TypeVar("D", bound=Deliveries)
S_co = TypeVar("S_co", bound=Named, covariant=True)
W = TypeVar("W", bound="BaseWriter[Named]")


class BaseWriter(ABC, Generic[S_co]):
    """Records for any number of threads, which share commits and wait for room."""

    def __init__(self, *, session: S_co, limits: BatchLimits, room: BytesQuota) -> None:
        self._session = session
        self._limits = limits
        self._room = room
        self._open: dict[Stream, OpenBatch] = {}
        self._full: list[OpenBatch] = []  # replaced by newer batches of their streams, and waiting to be sealed
        self._turns = GroupCommit[Sequence[Recording]](self._commit)
        self._closed = False
        self.recorded = Recorded()
        self.on_sealed: Callable[[], None] = lambda: None
        """Called when something was sealed."""

    @property
    def session(self) -> S_co:
        """The current session."""
        return self._session

    def append(self, recordings: Sequence[Recording]) -> None:
        """Make the recordings durable, all or none: see `SpoolRecorder.append`. Waits for space."""
        until = time.monotonic() + self._room.limits.timeout
        waits = False
        while True:
            try:
                self._commit_by(until, recordings)
            except SpoolFull:
                if not waits:
                    self._make_room()
                waits = True
                if time.monotonic() >= until:
                    raise
                time.sleep(WAIT_FOR_ROOM)
            else:
                return

    def seal_due(self) -> int:
        """Seal the batches that have reached the age limit. Returns how many."""
        return self.seal(older_than=self._limits.age)

    def check_room(self) -> None:
        """Check that there is space to record. Waits for no commit, and changes nothing.

        Raises:
            SpoolFull: there is none.
            SpoolError: the spool cannot be checked.
            BackupClosed: after `close`.
        """
        self._check_usable()
        self._room.check(self._open_bytes)

    @abstractmethod
    def seal(self, *, older_than: float = 0.0) -> int:
        """Seal the batches opened at least `older_than` seconds ago. Returns how many."""

    @abstractmethod
    def _commit(self, group: Sequence[Sequence[Recording]]) -> None:
        """Make the recordings of many threads durable."""

    @abstractmethod
    def _renewing(self, work: Callable[[], R]) -> R:
        """Run `work`, and continue in another session if this one was lost."""

    def _commit_by(self, until: float, recordings: Sequence[Recording]) -> None:  # noqa: ARG002 - for engines that wait here
        """Take part in a group commit. Waits at most until this time, by the monotonic clock, if an engine can be unreachable."""
        self._renewing(lambda: self._turns.commit(recordings))

    def _check_usable(self) -> None:
        if self._closed:
            raise BackupClosed("the Backup is closed", hint="open a new one")

    def _open_bytes(self) -> int:
        # Copies first, because another thread may be recording: copying to a list is atomic.
        return sum(batch.fill.spooled for batch in [*self._open.values(), *self._full])

    def _make_room(self) -> None:
        """Seal what is open, so that it can be uploaded and free space."""
        try:
            self.seal()
        except SpoolError as error:
            log.warning("sealing failed, retrying later: %s", error.one_line())


class BaseSpool(Generic[C, D, W]):
    """The part of a `Spool` that is the same over every engine's catalog, deliveries and writer. The engine sets its attributes.

    Attributes:
        store: the number of its store in the catalog.
    """

    store: int
    _catalog: C
    _deliveries: D
    _writer: W
    _acknowledger: Acknowledger
    _numbering: Numbering
    _delete_after: DeleteAfter
    _unreadable: dict[str, SpoolError]

    @property
    def session(self) -> str:
        """The name of this process's session."""
        return self._writer.session.name

    # Recording

    def append(self, recordings: Sequence[Recording]) -> None:
        """Make the recordings durable. See `SpoolRecorder.append`."""
        self._writer.append(recordings)

    @property
    def recorded(self) -> Recorded:
        """Counts of what this process has recorded."""
        return self._writer.recorded

    def number(self, stream: Stream, events: int) -> list[tuple[int, int]]:
        """Issue ids for events that are not kept, as runs: (first, count)."""
        return self._numbering.take(stream, events)

    def on_sealed(self, call: Callable[[], None]) -> None:
        """Register a function to call whenever this process has sealed something."""
        self._writer.on_sealed = call

    def seal(self) -> int:
        """Seal this process's open batches. Returns how many."""
        return self._writer.seal()

    def seal_due(self) -> int:
        """Seal this process's open batches that have reached the age limit. Returns how many."""
        return self._writer.seal_due()

    # Deliveries

    @property
    def acknowledged(self) -> int:
        """Number of deliveries this process has acknowledged."""
        return self._acknowledger.acknowledged

    def delivered(self, jobs: JobSet) -> JobSet:
        """Mark these jobs as delivered, durably. Returns the unknown ones."""
        return self._acknowledger.add(jobs)

    def settle(self, failures: Sequence[tuple[int, int]]) -> None:
        """Note failure records: (job, id of its record). A job is settled once its record is uploaded."""
        self._deliveries.settle([(origin_of(failure)[1], job) for job, failure in failures])

    def claim_deletes(self, limit: int) -> list[DueObject]:
        """Claim objects to delete, since all their jobs were delivered."""
        return self._deliveries.claim(self.store, self.session, self._delete_after, limit)

    def has_deletes(self) -> bool:
        """Whether `claim_deletes` would return any."""
        return self._deliveries.has_due(self.store, self.session, self._delete_after)

    def waiting_deletes(self) -> list[WaitingDeletes]:
        """Pending deletes for each store."""
        return self._deliveries.waiting()

    def deleted(self, objects: Sequence[DueObject]) -> None:
        """Mark these objects as deleted."""
        self._deliveries.deleted(self.store, [one.batch for one in objects])

    def retry_deletes(self) -> None:
        """Make all failed deletes due now."""
        self._deliveries.begin(self.store, self._delete_after)

    # Uploading

    def claim(self) -> Claim | None:
        """Claim the batch for this store that has waited longest and can be uploaded now; None if there is none."""
        claimed = self._catalog.claim(self.store, self.session)
        return None if claimed is None else Claim(*claimed)

    def has_claimable(self) -> bool:
        """Whether `claim` would return a batch."""
        return self._catalog.has_claimable(self.store)

    def pin_content(self, made: Batch) -> None:
        """Hold a batch to what its wrappers made of it at the first attempt: see `SpoolSender.pin_content`.

        Args:
            made: as returned by `ObjectStore.prepare`.

        Raises:
            WrapperMissing: the wrappers make something else now.
        """
        if not self._catalog.pin_content(made.id, f"{made.size}:{made.crc32c:08x}"):
            raise WrapperMissing(
                f"{made.key} would differ from the first attempt: a wrapper now makes other bytes of its batch",
                hint="restore the earlier version and settings of the wrapper until the object is uploaded",
            )

    def doubt(self, key: str) -> None:
        """Note that the store may hold other bytes under the key of a waiting batch."""
        self._catalog.doubt(key)

    def is_doubted(self, key: str) -> bool:
        """Whether any process has noted a doubt about this key."""
        return self._catalog.is_doubted(key)

    def release(self, batch: Batch, error: JobsBackupError, *, delay: float, standing: str | None = None) -> None:
        """Release a claimed batch whose upload failed; it may be claimed again after `delay` seconds.

        `standing` is what is now known about the store: it has `refused` everything, or is `proven`, as it may have accepted
        something.
        """
        self._catalog.release(batch.id, self.session, error=str(error), hint=error.hint, delay=delay, standing=standing)

    def pause(self, error: JobsBackupError, *, seconds: float) -> None:
        """Note for other processes that uploads pause for `seconds`, and why."""
        self._catalog.pause(self.store, error=str(error), hint=error.hint, seconds=seconds)

    def _follow_settings(self) -> None:
        """Take over what waits for stores that refused every attempt and so never got any of it."""
        for location, batches in self._catalog.follow(self.store):
            log.warning(
                "%s waited for %s, which never accepted anything, and now go to the bucket in the settings",
                plural(batches, "batch"),
                location,
            )

    # Accounting

    @property
    def unreadable(self) -> list[SpoolError]:
        """Why some records of dead processes cannot be uploaded: those processes cannot be replaced yet."""
        return list(self._unreadable.values())

    def waiting(self, last: int | None = None) -> list[Waiting]:
        """What is sealed but not uploaded, for each store; up to the batch number `last`, if given."""
        return self._catalog.waiting(self.session, last)

    def last_batch(self) -> int:
        """The number of the most recently opened batch."""
        return self._catalog.last_batch()
