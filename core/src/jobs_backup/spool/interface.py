"""What a spool is to everybody else: the data that goes in and out, and what each role may ask of it.

A spool keeps recorded events until they are in the bucket, on whatever it stands: see `engines.py`. Any number of processes record,
send and read at once. Each method is atomic, and durable when it returns.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from jobs_backup.errors import JobsBackupError, SpoolCorrupt, SpoolError
from jobs_backup.model import Batch, Body, Kind, Part, Stream, Upload
from jobs_backup.spool.ids import JobSet
from jobs_backup.util.histogram import Histogram

Durability = Literal["full", "process"]


DeleteAfter = Literal["delivered", "settled", "never"]
"""When an object is deleted: all of its jobs were delivered; or each was delivered or has a failure record in the bucket; never."""


COMMIT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """When a batch is sealed: events, bytes of its lines, seconds since it was opened."""

    events: int
    bytes: int
    age: float


class QuotaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What recording has to leave.

    Attributes:
        max_bytes: of all events in the spool, as they are stored (mostly compressed); None: as much as the disk has.
        min_free: bytes on the disk.
        timeout: seconds that recording waits for room.
    """

    max_bytes: int | None = None
    min_free: int = 0
    timeout: float = 0.0


class InputPosition(NamedTuple):
    """How far an input was read. `at` counts the positions: of two, the one with the higher `at` counts.

    It is no time, although earlier versions took microseconds since 1970: a clock may leap.
    """

    input: str
    at: int
    position: bytes


class Recording:
    """Lines of one stream on their way to the disk: what `Writer.append` takes and fills in.

    Attributes:
        lines: each with its newline.
        first_at, last_at: the earliest and the latest createdAt (failedAt) of the lines, microseconds.
        position: how far the input is read with these lines; committed together with them.
        jobs: the result: (id of the first job, how many) for each run of consecutive ids.
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
        """The ids of the jobs, in the order of the lines."""
        return itertools.chain.from_iterable(range(first, first + count) for first, count in self.jobs)


class Recorded:
    """What a process has made durable since its start. Who commits counts, which is one thread at a time.

    Attributes:
        events, bytes: kind -> how many lines, and their bytes before compression.
        rejected: lines of inputs that could not be used.
        commit_seconds: of one group commit, compressing and waiting for the disk.
    """

    __slots__ = ("bytes", "commit_seconds", "events", "rejected")

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.rejected = 0
        self.commit_seconds = Histogram(COMMIT_SECONDS)

    def add(self, kind: str, events: int, size: int) -> None:
        """Count what was committed of one stream."""
        self.events[kind] += events
        self.bytes[kind] += size


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


class JournaledUpload(NamedTuple):
    """A multipart upload in the journal."""

    id: int
    batch: int
    upload: Upload
    part_size: int
    failures: int
    """How often sending it has failed since a part of it arrived; once it is abandoned, aborting it."""


class Waiting(msgspec.Struct, frozen=True):
    """What a store still has to get; other processes are sending `sent_elsewhere` of the batches.

    `error` and `hint` are the last failure's, empty if there was none.
    """

    location: str
    batches: int
    sent_elsewhere: int
    events: int
    bytes: int
    error: str
    hint: str


class Damage(NamedTuple):
    """Bytes that were set aside: see the table."""

    batch: int
    stream: Stream
    job: int
    events: int
    file: str
    error: str


class Account(NamedTuple):
    """What the spool holds that is not sealed, as its files say.

    Attributes:
        problems: why some of it can't be said, or nobody seals it.
        open_elsewhere: events in open batches of other processes that are alive.
    """

    problems: list[SpoolError]
    open_elsewhere: int


class DueObject(NamedTuple):
    """An object that is to be deleted, which this process alone does now. `failures`: how often that has failed."""

    batch: int
    key: str
    failures: int


class WaitingDeletes(msgspec.Struct, frozen=True):
    """Objects of a store that are to be deleted. `error` and `hint` are why the last ones could not be, empty if they could;
    nothing is deleted before `paused_until` (seconds since 1970)."""

    location: str
    objects: int
    error: str
    hint: str
    paused_until: float


class StoredObject(NamedTuple):
    """A batch whose object stands in the bucket."""

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
    """So many objects of a stream, with so many events."""

    workspace_id: str
    source_id: str
    objects: int
    events: int


class Total(NamedTuple):
    """How many batches of a kind came to a state, and what was in them: see the table."""

    kind: str
    state: str
    batches: int
    events: int
    raw_bytes: int
    size: int
    stored_at: float


class SpoolRecorder(Protocol):
    """Recording, and how far inputs are read."""

    @property
    def recorded(self) -> Recorded:
        """What this process has recorded."""
        ...

    def append(self, recordings: Sequence[Recording]) -> None:
        """Make the recordings durable, and fill in their jobs: all of them, or none.

        Raises:
            SpoolFull: there is no room, and there was none for the time that the limits say.
            SpoolError: it could not be done. The call may be repeated with the same recordings: nothing is recorded twice.
            BackupClosed: after `close`.
        """
        ...

    def check_room(self) -> None:
        """Check that what is recorded now would find room, and that the spool can be used.

        Raises:
            SpoolFull: there is no room.
            SpoolError: the spool can't be used.
            BackupClosed: after `close`.
        """
        ...

    def number(self, stream: Stream, events: int) -> list[tuple[int, int]]:
        """Ids for events that are not kept, as runs: (first, how many)."""
        ...

    def on_sealed(self, call: Callable[[], None]) -> None:
        """Have something called whenever this process has sealed something."""
        ...

    def seal(self) -> int:
        """Seal what this process has open. Returns the number of batches."""
        ...

    def seal_due(self) -> int:
        """Seal what this process has open and what has reached the limit of age. Returns the number of batches."""
        ...

    def reading(self, source: str) -> AbstractContextManager[bool]:
        """The right to read an input, within the block; False if another process has it.

        Whoever has it next sees how far the input was read: see `position`. Who has lost it commits no position.
        """
        ...

    def position(self, source: str) -> InputPosition | None:
        """How far an input was read, by any process; None if it never was. Raises as `new_positions` does."""
        ...

    def new_positions(self, prefix: str, seen: dict[str, int]) -> list[InputPosition]:
        """How far the inputs were read whose ids begin with `prefix`, by any process: those of which `seen` knows nothing.

        Args:
            seen: empty at first. It notes what was given, so that the next call gives only what was entered meanwhile. What was
                given may have changed since: see `position`.

        Raises:
            SpoolError: it can't be read now. What is damaged tells no position.
        """
        ...


class SpoolAcknowledger(Protocol):
    """What became of events at their destinations."""

    @property
    def acknowledged(self) -> int:
        """How many deliveries this process has taken."""
        ...

    def delivered(self, jobs: JobSet) -> JobSet:
        """Remember that these were delivered. Returns those that are unknown."""
        ...

    def settle(self, failures: Sequence[tuple[int, int]]) -> None:
        """Each job has a failure record: (job, id of that). It is settled once that is stored."""
        ...

    def stream_of(self, job: int) -> Stream | None:
        """The stream of a raw event that this spool has or had; None if it knows no such job."""
        ...


class UploadJournal(Protocol):
    """The multipart uploads to one store: their ids, before the first part is sent, and the receipts of their parts."""

    def begin(self, batch: Batch, upload: Upload, part_size: int) -> JournaledUpload:
        """Remember an upload; before its first part is sent."""
        ...

    def of(self, batch: Batch) -> tuple[JournaledUpload, list[Part]] | None:
        """The upload to be continued for a batch, with the parts that the store has."""
        ...

    def add_part(self, upload: JournaledUpload, part: Part) -> None:
        """Remember the receipt of a part."""
        ...

    def failed(self, upload: JournaledUpload) -> int:
        """Sending it has failed. Returns how often it has since a part of it arrived."""
        ...

    def abandon(self, upload: JournaledUpload) -> None:
        """It will not be continued: it has to be aborted."""
        ...

    def forget(self, upload: JournaledUpload) -> None:
        """It was completed or aborted."""
        ...

    def abandoned(self) -> list[JournaledUpload]:
        """The uploads that have to be aborted and whose time has come."""
        ...

    def postpone(self, upload: JournaledUpload, error: JobsBackupError, *, delay: float) -> None:
        """Aborting it failed; after `delay` seconds it is tried again."""
        ...

    def waiting(self) -> list[tuple[str, str, str]]:
        """(key, error, hint) of every upload that is to be aborted and was not yet, whichever store it goes to."""
        ...


class SpoolSender(Protocol):
    """Sending sealed batches to the store, and deleting objects from it."""

    @property
    def uploads(self) -> UploadJournal:
        """The journal of multipart uploads to its store."""
        ...

    def begin_sending(self) -> None:
        """What a process does that starts to send: whoever starts it may have changed the settings, or the rights.

        It takes over what waits for stores that were tried, refused everything, and so never got any of it: they were a mistake,
        since corrected. All other batches stay where they belong. And what failed need not wait any longer.
        """
        ...

    def recover(self) -> int:
        """Take the place of processes that died: seal what they had open, free what they were sending. Returns how many."""
        ...

    def maintain(self) -> None:
        """What has to be looked after each second or so, beside recovering and sealing."""
        ...

    def forget(self, age: float, after: int) -> int | None:
        """Forget batches that were stored, or at least opened, so many seconds ago, unless something is still to be done with them.

        It looks at some behind the number `after`. Returns what to go on behind; None at the end.
        """
        ...

    def claim(self) -> Claim | None:
        """A batch for this store that can be sent now, the one that has waited for the longest; None if there is none."""
        ...

    def has_claimable(self) -> bool:
        """Whether `claim` would give one."""
        ...

    def give_back_claims(self) -> int:
        """Let everything be claimed again that this process has claimed. Returns how many batches: for when it sends nothing."""
        ...

    def open_body(self, batch: Batch) -> Body:
        """The bytes of a sealed batch.

        Raises:
            SpoolCorrupt: they are not those that were sealed.
        """
        ...

    def pin_content(self, made: Batch) -> None:
        """Hold a batch to what its wrappers have made of it at the first attempt.

        An upload would be continued with other bytes, and encryption with the same key and nonce would give both contents away.

        Raises:
            WrapperMissing: they make something else of it now.
        """
        ...

    def doubt(self, key: str) -> None:
        """Note that the store may hold other bytes under the key of a batch that waits."""
        ...

    def is_doubted(self, key: str) -> bool:
        """Whether that was noted, by whichever process."""
        ...

    def stored(self, batch: Batch, *, deletable_after: float = 0.0) -> None:
        """The batch's object stands in the bucket.

        It is not deleted for `deletable_after` seconds: an earlier attempt may still arrive, and would bring it back.
        """
        ...

    def skip(self, batch: Batch) -> None:
        """A batch that was never tried to be sent will not be: all of it was delivered."""
        ...

    def set_aside(self, claim: Claim, error: SpoolCorrupt) -> None:
        """A claimed batch turned out to be damaged, while it was sent or before.

        What is damaged goes into quarantine. The rest is sealed anew, unless an earlier attempt may have stored the whole.
        """
        ...

    def release(self, batch: Batch, error: JobsBackupError, *, delay: float, standing: str | None = None) -> None:
        """Sending a batch that this process has claimed failed; after `delay` seconds it may be claimed again.

        `standing` is what is known of the store now: it has `refused` everything, or it is `proven`: it may have got something.
        """
        ...

    def pause(self, error: JobsBackupError, *, seconds: float) -> None:
        """Note for others that nothing is sent for so many seconds, and why."""
        ...

    def claim_deletes(self, limit: int) -> list[DueObject]:
        """Objects that only this process may delete now, since all of their jobs were delivered."""
        ...

    def has_deletes(self) -> bool:
        """Whether `claim_deletes` would give any."""
        ...

    def deleted(self, objects: Sequence[DueObject]) -> None:
        """These are gone."""
        ...

    def give_back_deletes(self, retries: Sequence[tuple[DueObject, float | None]], error: JobsBackupError, *, pause: float) -> None:
        """Deleting these failed; after so many seconds each may be claimed again, at any time where it is None.

        Nothing is deleted for `pause` seconds.
        """
        ...

    def retry_deletes(self) -> None:
        """What could not be deleted need not wait any longer."""
        ...


class SpoolAccount(Protocol):
    """What is not in the bucket yet, and why: completeness is proven by counting, never taken from silence."""

    @property
    def unreadable(self) -> list[SpoolError]:
        """Why some of what dead processes recorded can't be sent: they can't be replaced yet."""
        ...

    def account(self) -> Account:
        """Look at each session: what is in none of them, and is not sealed, is in the bucket."""
        ...

    def waiting(self, last: int | None = None) -> list[Waiting]:
        """What is sealed and not stored, for each store; only batches up to the number `last`, if it is given."""
        ...

    def waiting_deletes(self) -> list[WaitingDeletes]:
        """What is to be deleted and was not yet, for each store."""
        ...

    def quarantined(self, *, own: bool = False) -> list[Damage]:
        """What was damaged, and set aside; if `own`, of what this process has recorded."""
        ...

    def last_batch(self) -> int:
        """The number of the batch that was opened last."""
        ...

    def is_unsent(self, last: int) -> bool:
        """Whether a sealed batch that this process has recorded, up to the number `last`, is not stored yet."""
        ...

    def has_archiver(self) -> bool:
        """Whether a process that sends is alive."""
        ...


class Spool(SpoolRecorder, SpoolAcknowledger, SpoolSender, SpoolAccount, Protocol):
    """A spool that a process has opened, in all roles."""

    @property
    def name(self) -> str:
        """Where it is, for messages. It has no secrets in it."""
        ...

    @property
    def quarantine(self) -> str:
        """Where what was damaged is, for messages."""
        ...

    def close(self) -> None:
        """Seal what is open and leave. What is not sent yet waits for the next process.

        Raises:
            SpoolError: it can't be sealed. It is safe all the same: another process takes this one's place.
        """
        ...


class SpoolReader(Protocol):
    """What a spool remembers of objects: for those who read back."""

    def stored(self, location: str, kind: Kind, after: int, limit: int) -> list[StoredObject]:
        """What stands in a bucket, by batch numbers, from behind `after` on."""
        ...

    def written(self, location: str, kind: Kind, key: str) -> StoredObject | None:
        """What stands in a bucket under a key, or stood there until it was deleted."""
        ...

    def stored_elsewhere(self, location: str, kind: Kind) -> list[StreamObjects]:
        """What stands in other buckets."""
        ...

    def forgotten(self, location: str, kind: Kind, begin: int, end: int) -> list[StreamObjects]:
        """What stands in a bucket, may have events between these times, and is not remembered any more."""
        ...

    def knowledge(self) -> tuple[int, int]:
        """Since when it remembers, and until when it may have missed something since its memory was lost; 0 if it never was."""
        ...

    def streams(self) -> list[tuple[str, str]]:
        """Workspace and source of everything that was ever recorded."""
        ...
