"""The interface of a spool: the data that goes in and out, and what each role may ask of it.

A spool keeps recorded events until they are in the bucket; `engines.py` lists its implementations. Any number of processes record,
upload and read at once. Each method is atomic, and durable when it returns.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from jobs_backup.errors import JobsBackupError, SpoolCorrupt, SpoolError
from jobs_backup.model import Batch, Body, Kind, Part, Stream, Upload
from jobs_backup.spool.ids import JobSet
from jobs_backup.spool.status import Limits, MemberStatus, Status
from jobs_backup.util.histogram import Histogram

Durability = Literal["full", "process"]


DeleteAfter = Literal["delivered", "settled", "never"]
"""When to delete an object: all its jobs are delivered; each is delivered or has a failure record in the bucket; never."""


COMMIT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits at which a batch is sealed: events, bytes of its lines, seconds since it was opened."""

    events: int
    bytes: int
    age: float


class QuotaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits for recording.

    Attributes:
        max_bytes: of all events in the spool, as they are kept (mostly compressed); None for no limit but the disk.
        min_free: bytes to leave free on the disk.
        timeout: seconds that recording waits for space.
    """

    max_bytes: int | None = None
    min_free: int = 0
    timeout: float = 0.0


class InputPosition(NamedTuple):
    """How far an input was read. Of two positions, the one with the higher `at` is valid.

    `at` is a counter, not a time, because clocks may jump. Earlier versions used microseconds since 1970.
    """

    input: str
    at: int
    position: bytes


class Recording:
    """Lines of one stream on their way to the disk. `Writer.append` takes them and fills in their jobs.

    Attributes:
        lines: each with its newline.
        first_at, last_at: the earliest and latest createdAt (failedAt) of the lines, in microseconds.
        position: how far the input is read with these lines; committed together with them.
        jobs: the result: (id of the first job, count) for each run of consecutive ids.
    """

    __slots__ = ("first_at", "jobs", "last_at", "lines", "position", "stream")

    def __init__(
        self, stream: Stream, lines: list[bytes], *, first_at: int, last_at: int, position: InputPosition | None = None
    ) -> None:
        self.stream = stream
        self.lines = lines
        self.first_at = first_at
        self.last_at = last_at
        self.position = position
        self.jobs: list[tuple[int, int]] = []

    def ids(self) -> Iterator[int]:
        """Iterate over the job ids, in the order of the lines."""
        return itertools.chain.from_iterable(range(first, first + count) for first, count in self.jobs)


class Recorded:
    """Counts of what a process has made durable since its start. Only the committing thread updates them.

    Attributes:
        events, bytes: kind -> number of lines, and their bytes before compression.
        rejected: invalid lines of inputs.
        commit_seconds: of one group commit: compressing, and waiting for the disk.
    """

    __slots__ = ("bytes", "commit_seconds", "events", "rejected")

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.rejected = 0
        self.commit_seconds = Histogram(COMMIT_SECONDS)

    def add(self, kind: str, events: int, size: int) -> None:
        """Count a commit to one stream."""
        self.events[kind] += events
        self.bytes[kind] += size


class Claim(NamedTuple):
    """A batch that only this process may upload.

    Attributes:
        failures: number of failed attempts.
        attempts: how often it was claimed, including this time.
        is_delivered: whether all its jobs were already delivered.
    """

    batch: Batch
    failures: int
    attempts: int
    is_delivered: bool


class JournaledUpload(NamedTuple):
    """A multipart upload in the journal."""

    id: int
    batch: int
    upload: Upload
    part_size: int
    failures: int
    """Failed upload attempts since its last part; once it is abandoned, failed aborts."""


class Waiting(msgspec.Struct, frozen=True):
    """Batches waiting for a store; other processes are uploading `sent_elsewhere` of them.

    `error` and `hint` are those of the last failure, or empty.
    """

    location: str
    batches: int
    sent_elsewhere: int
    events: int
    bytes: int
    error: str
    hint: str


class Damage(NamedTuple):
    """Quarantined bytes: see the table `damages`."""

    batch: int
    stream: Stream
    job: int
    events: int
    file: str
    error: str


class Account(NamedTuple):
    """What the spool holds unsealed, according to its files.

    Attributes:
        problems: why some of it cannot be counted, or is not being sealed.
        open_elsewhere: events in open batches of other live processes.
    """

    problems: list[SpoolError]
    open_elsewhere: int


class DueObject(NamedTuple):
    """An object that only this process may delete now. `failures` counts failed attempts."""

    batch: int
    key: str
    failures: int


class WaitingDeletes(msgspec.Struct, frozen=True):
    """Objects of a store waiting to be deleted.

    `error` and `hint` say why the last deletes failed, or are empty. Deletes are paused until `paused_until` (seconds since 1970).
    """

    location: str
    objects: int
    error: str
    hint: str
    paused_until: float


class StoredObject(NamedTuple):
    """A batch whose object is in the bucket."""

    id: int
    stream: Stream
    key: str
    first_at: int
    last_at: int
    size: int
    crc32c: int
    events: int
    stored_at: float


class StreamObjects(NamedTuple):
    """Number of objects of a stream, and of their events."""

    workspace_id: str
    source_id: str
    objects: int
    events: int


class Total(NamedTuple):
    """Number of batches of a kind that reached a state, and what they held: see the table `totals`."""

    kind: str
    state: str
    batches: int
    events: int
    raw_bytes: int
    size: int
    stored_at: float


class Entry(Protocol):
    """Recordings that are to become part of a transaction of the application. Their jobs are filled in."""

    def write(self, connection: object) -> None:
        """Make them part of the connection's transaction. Other errors are the driver's own.

        Raises:
            ConfigurationError: they cannot become part of it.
            SpoolError: the connection's user may not record.
        """
        ...

    async def write_async(self, connection: object) -> None:
        """As `write`, for an asynchronous connection."""
        ...


class SpoolRecorder(Protocol):
    """Record events, and how far inputs were read."""

    @property
    def recorded(self) -> Recorded:
        """Counts of what this process has recorded."""
        ...

    def append(self, recordings: Sequence[Recording]) -> None:
        """Make all of the recordings durable and fill in their jobs, or none.

        Raises:
            SpoolFull: there was no space within the timeout.
            SpoolError: it failed. Calling again with the same recordings is safe: nothing is recorded twice.
            BackupClosed: after `close`.
        """
        ...

    def entry(self, recordings: Sequence[Recording]) -> Entry:
        """Fill in the jobs of recordings that a transaction of the application is to commit, or roll back.

        Raises:
            ConfigurationError: the spool is not in a database.
            SpoolFull: there is no space.
            SpoolError: the spool cannot be used.
            BackupClosed: after `close`.
        """
        ...

    def check_room(self) -> None:
        """Check that there is space to record, and that the spool can be used.

        Raises:
            SpoolFull: there is no space.
            SpoolError: the spool cannot be used.
            BackupClosed: after `close`.
        """
        ...

    def number(self, stream: Stream, events: int) -> list[tuple[int, int]]:
        """Issue ids for events that are not kept, as runs: (first, count)."""
        ...

    def on_sealed(self, call: Callable[[], None]) -> None:
        """Register a function to call whenever this process has sealed something."""
        ...

    def seal(self) -> int:
        """Seal this process's open batches. Returns how many."""
        ...

    def seal_due(self) -> int:
        """Seal this process's open batches that have reached the age limit. Returns how many."""
        ...

    def reading(self, source: str) -> AbstractContextManager[bool]:
        """Hold the lock on reading an input within the block; yields False if another process has it.

        The next holder sees how far the input was read: see `position`. A process that lost the lock commits no position.
        """
        ...

    def position(self, source: str) -> InputPosition | None:
        """How far any process has read an input; None if it was never read. Raises as `new_positions` does."""
        ...

    def new_positions(self, prefix: str, seen: dict[str, int]) -> list[InputPosition]:
        """How far any process has read the inputs whose ids begin with `prefix`, without those already in `seen`.

        Args:
            seen: initially empty. It notes what was returned, so that the next call returns only new inputs. Returned positions may
                have changed since: see `position`.

        Raises:
            SpoolError: it cannot be read now. Damaged files contribute no positions.
        """
        ...


class SpoolAcknowledger(Protocol):
    """Record what happened to events at their destinations."""

    @property
    def acknowledged(self) -> int:
        """Number of deliveries this process has acknowledged."""
        ...

    def delivered(self, jobs: JobSet) -> JobSet:
        """Mark these jobs as delivered. Returns the unknown ones."""
        ...

    def settle(self, failures: Sequence[tuple[int, int]]) -> None:
        """Note failure records: (job, id of its record). A job is settled once its record is uploaded."""
        ...

    def stream_of(self, job: int) -> Stream | None:
        """The stream of a raw event, past or present; None if the job is unknown."""
        ...


class UploadJournal(Protocol):
    """Journal of one store's multipart uploads: their ids, noted before the first part, and the receipts of their parts."""

    def begin(self, batch: Batch, upload: Upload, part_size: int) -> JournaledUpload:
        """Note an upload, before its first part is sent."""
        ...

    def of(self, batch: Batch) -> tuple[JournaledUpload, list[Part]] | None:
        """The upload to resume for a batch, with its uploaded parts."""
        ...

    def add_part(self, upload: JournaledUpload, part: Part) -> None:
        """Note the receipt of a part."""
        ...

    def failed(self, upload: JournaledUpload) -> int:
        """Note a failed attempt. Returns the number of failures since the last part."""
        ...

    def abandon(self, upload: JournaledUpload) -> None:
        """Mark an upload that will not be resumed, so that it is aborted."""
        ...

    def forget(self, upload: JournaledUpload) -> None:
        """Forget an upload that was completed or aborted."""
        ...

    def abandoned(self) -> list[JournaledUpload]:
        """The uploads that are due to be aborted."""
        ...

    def postpone(self, upload: JournaledUpload, error: JobsBackupError, *, delay: float) -> None:
        """Note a failed abort, to be retried after `delay` seconds."""
        ...

    def waiting(self) -> list[tuple[str, str, str]]:
        """(key, error, hint) of every upload still to be aborted, for any store."""
        ...


class SpoolSender(Protocol):
    """Upload sealed batches to the store, and delete objects from it."""

    @property
    def uploads(self) -> UploadJournal:
        """The journal of multipart uploads to its store."""
        ...

    def begin_sending(self) -> None:
        """Prepare for uploading at start: the settings or permissions may have changed.

        Takes over what waits for stores that refused every attempt and so never got any of it: they were misconfigured, which has
        since been fixed. All other batches stay with their store. Retries that were waiting become due at once.
        """
        ...

    def recover(self) -> int:
        """Replace dead processes: seal what they had open, release what they were uploading. Returns how many."""
        ...

    def maintain(self) -> None:
        """Do the upkeep due every second or so, apart from recovering and sealing."""
        ...

    def forget(self, age: float, after: int) -> int | None:
        """Forget batches uploaded, or at least opened, at least `age` seconds ago, unless something is left to do for them.

        Examines some with numbers above `after`. Returns where to continue; None at the end.
        """
        ...

    def claim(self) -> Claim | None:
        """Claim the batch for this store that has waited longest and can be uploaded now; None if there is none."""
        ...

    def has_claimable(self) -> bool:
        """Whether `claim` would return a batch."""
        ...

    def give_back_claims(self) -> int:
        """Release all batches this process has claimed. Call it only while uploading nothing. Returns how many."""
        ...

    def open_body(self, batch: Batch) -> Body:
        """The bytes of a sealed batch.

        Raises:
            SpoolCorrupt: they differ from what was sealed.
        """
        ...

    def pin_content(self, made: Batch) -> None:
        """Hold a batch to what its wrappers made of it at the first attempt.

        Otherwise an upload could resume with other bytes, and encrypting them with the same key and nonce would reveal both
        contents.

        Raises:
            WrapperMissing: the wrappers make something else now.
        """
        ...

    def doubt(self, key: str) -> None:
        """Note that the store may hold other bytes under the key of a waiting batch."""
        ...

    def is_doubted(self, key: str) -> bool:
        """Whether any process has noted a doubt about this key."""
        ...

    def stored(self, batch: Batch, *, deletable_after: float = 0.0) -> None:
        """Mark a batch as uploaded.

        Its object is kept for `deletable_after` seconds, because an earlier attempt may still arrive and would bring it back.
        """
        ...

    def skip(self, batch: Batch) -> None:
        """Mark a batch that was never attempted as not to be uploaded, because all of it was delivered."""
        ...

    def quarantine_batch(self, claim: Claim, error: SpoolCorrupt) -> None:
        """Quarantine what is damaged of a claimed batch.

        The rest is sealed again, unless an earlier attempt may have uploaded the whole batch.
        """
        ...

    def release(self, batch: Batch, error: JobsBackupError, *, delay: float, standing: str | None = None) -> None:
        """Release a claimed batch whose upload failed; it may be claimed again after `delay` seconds.

        `standing` is what is now known about the store: it has `refused` everything, or is `proven`, as it may have accepted
        something.
        """
        ...

    def pause(self, error: JobsBackupError, *, seconds: float) -> None:
        """Note for other processes that uploads pause for `seconds`, and why."""
        ...

    def claim_deletes(self, limit: int) -> list[DueObject]:
        """Claim objects to delete, since all their jobs were delivered."""
        ...

    def has_deletes(self) -> bool:
        """Whether `claim_deletes` would return any."""
        ...

    def deleted(self, objects: Sequence[DueObject]) -> None:
        """Mark these objects as deleted."""
        ...

    def give_back_deletes(self, retries: Sequence[tuple[DueObject, float | None]], error: JobsBackupError, *, pause: float) -> None:
        """Release objects whose delete failed; each may be claimed again after its seconds, or at any time if None.

        Nothing is deleted for `pause` seconds.
        """
        ...

    def retry_deletes(self) -> None:
        """Make all failed deletes due now."""
        ...


class SpoolAccount(Protocol):
    """Report what is not in the bucket yet, and why: completeness is proven by counting, never inferred from silence."""

    @property
    def unreadable(self) -> list[SpoolError]:
        """Why some records of dead processes cannot be uploaded: those processes cannot be replaced yet."""
        ...

    def account(self) -> Account:
        """Count the unsealed events of each session: anything that is in no session and not sealed is in the bucket."""
        ...

    def waiting(self, last: int | None = None) -> list[Waiting]:
        """What is sealed but not uploaded, for each store; up to the batch number `last`, if given."""
        ...

    def waiting_deletes(self) -> list[WaitingDeletes]:
        """Pending deletes for each store."""
        ...

    def quarantined(self, *, own: bool = False) -> list[Damage]:
        """Damage in quarantine; with `own`, only from what this process recorded."""
        ...

    def last_batch(self) -> int:
        """The number of the most recently opened batch."""
        ...

    def is_unsent(self, last: int) -> bool:
        """Whether a sealed batch of this process, up to the number `last`, is not uploaded yet."""
        ...

    def has_archiver(self) -> bool:
        """Whether a live process uploads."""
        ...

    @property
    def member(self) -> MemberStatus | None:
        """This process as one of a fleet; None where one machine alone uses the spool."""
        ...

    def status(self, limits: Limits, rejects: Path | None) -> Status:
        """The status of the whole spool, also after `close`.

        Args:
            rejects: directory of rejected lines; None for the directory of the spool.

        Raises:
            SpoolError: it cannot be read.
        """
        ...

    def watch(self, limits: Limits, rejects: Path | None) -> tuple[Status, list[Total]]:
        """Poll: as `status`, with the totals, without blocking other users or being blocked by them."""
        ...


class Spool(SpoolRecorder, SpoolAcknowledger, SpoolSender, SpoolAccount, Protocol):
    """A spool opened by a process, in all roles."""

    @property
    def name(self) -> str:
        """Its location, for messages, without secrets."""
        ...

    @property
    def host(self) -> str:
        """Names the inputs of this machine; empty where one machine alone uses the spool."""
        ...

    @property
    def quarantine(self) -> str:
        """Location of quarantined bytes, for messages."""
        ...

    def close(self) -> None:
        """Seal what is open and leave. What is not uploaded yet waits for the next process.

        Raises:
            SpoolError: sealing failed. Nothing is lost: another process replaces this one.
        """
        ...


class SpoolReader(Protocol):
    """A spool's record of objects, for replay."""

    def stored(self, location: str, kind: Kind, after: int, limit: int) -> list[StoredObject]:
        """Objects in a bucket, by batch number, from after `after`."""
        ...

    def written(self, location: str, kind: Kind, key: str) -> StoredObject | None:
        """The object under a key of a bucket, including one that was deleted since."""
        ...

    def stored_elsewhere(self, location: str, kind: Kind) -> list[StreamObjects]:
        """Objects in other buckets."""
        ...

    def forgotten(self, location: str, kind: Kind, begin: int, end: int) -> list[StreamObjects]:
        """Forgotten objects in a bucket that may have events in this time range."""
        ...

    def knowledge(self) -> tuple[int, int]:
        """Since when it has records, and until when it may have gaps because its records were lost; 0 if they never were."""
        ...

    def streams(self) -> list[tuple[str, str]]:
        """Workspace and source of everything ever recorded."""
        ...
