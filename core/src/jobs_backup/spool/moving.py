"""Move the spool of one machine into a spool that hosts share: what is moved, and in which steps.

1. The source seals what dead processes left open. A live process keeps it from being moved.
2. The source notes where it goes. From now on no process can use it.
3. The target takes in everything in one transaction, under the move's id.
4. The source notes that it is done.

Whoever is killed in between repeats the command: the target knows by the id whether the transaction was committed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

import msgspec

from jobs_backup.errors import SpoolError
from jobs_backup.spool.chunks import Chunk
from jobs_backup.spool.interface import Damage, InputPosition, Total
from jobs_backup.util.logs import logger_of

log: Final = logger_of(__name__)


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a spool, or was moved.

    Attributes:
        waiting_batches, waiting_events, waiting_bytes: not uploaded yet; bytes as they are kept.
        stored_objects, stored_events: in a bucket, as far as the spool remembers.
        other_batches: whose object was deleted, that were quarantined, or that only gave ids.
        uploads: multipart uploads, to be resumed or aborted.
        inputs: whose position is known.
        quarantined: reports of damage.
    """

    waiting_batches: int = 0
    waiting_events: int = 0
    waiting_bytes: int = 0
    stored_objects: int = 0
    stored_events: int = 0
    other_batches: int = 0
    uploads: int = 0
    inputs: int = 0
    quarantined: int = 0


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a move.

    Attributes:
        source: the directory.
        target: the database, without user and password.
        moved: whether it is there now; false for a dry run.
        before: whether an earlier run of the command had moved it.
        processes: ids of live processes that use the source; only in a dry run.
        left: what stays in the source: directories with rejected lines or damaged files.
    """

    source: str
    target: str
    moved: bool
    counts: Counts
    before: bool = False
    processes: list[int] = []
    left: list[str] = []


class Note(NamedTuple):
    """What a source notes of its move.

    Attributes:
        id: of the move.
        target: the name of the target, for messages.
        identity: of the target: see `Target.identity`.
    """

    id: str
    target: str
    identity: int
    is_done: bool


class MovedStore(NamedTuple):
    """A row of the source's table `stores`."""

    id: int
    location: str
    standing: str
    delete_after: str


class MovedBatch(NamedTuple):
    """A row of the source's table `batches`. Times are seconds by its clock. `blobs` is empty if it only gave ids."""

    id: int
    epoch: int
    opened_at: float
    kind: str
    workspace_id: str
    source_id: str
    state: str
    store: int
    prefix: str
    instance_id: str
    compression: str
    wrappers: str
    jobs: int
    delivered: int
    settled: int
    events: int
    raw_bytes: int
    first_at: int | None
    last_at: int | None
    size: int | None
    crc32c: int | None
    uuid: str | None
    key: str | None
    made: str
    is_doubted: bool
    stored_at: float | None
    claims: int
    failures: int
    retry_at: float
    error: str
    hint: str
    blobs: str


class MovedUpload(NamedTuple):
    """A multipart upload in the source's journal, with its parts: (number, receipt)."""

    batch: int
    store: int
    upload: bytes
    part_size: int
    is_abandoned: bool
    failures: int
    error: str
    hint: str
    parts: list[tuple[int, bytes]]


class MovedForgotten(NamedTuple):
    """A row of the source's table `forgotten`."""

    store: int
    kind: str
    workspace_id: str
    source_id: str
    objects: int
    events: int
    first_at: int
    last_at: int


class Source(Protocol):
    """A spool that is moved. Nobody else uses it while its contents are read."""

    @property
    def name(self) -> str:
        """Where it is."""
        ...

    @property
    def origin(self) -> str:
        """Where it is, on which host."""
        ...

    @property
    def left(self) -> list[str]:
        """What is not moved, and stays where it is."""
        ...

    def note(self) -> Note | None:
        """What it has noted; None if it is not being moved."""
        ...

    def processes(self) -> list[int]:
        """The ids of live processes that use it."""
        ...

    def count(self) -> Counts:
        """What is in it."""
        ...

    def prepare(self) -> None:
        """Seal what dead processes left open.

        Raises:
            SpoolError: a live process uses it, or something in it cannot be sealed. Nothing is lost.
        """
        ...

    def begin(self, note: Note) -> None:
        """Note where it goes: from now on no process can use it.

        Raises:
            SpoolError: a process has just begun to use it. Nothing was noted.
        """
        ...

    def undo(self) -> None:
        """Forget the note: it can be used again."""
        ...

    def finish(self) -> None:
        """Note that it was moved."""
        ...

    def now(self) -> float:
        """Seconds by its clock."""
        ...

    def knowledge(self) -> tuple[int, int]:
        """See `SpoolReader.knowledge`."""
        ...

    def stores(self) -> list[MovedStore]:
        """All stores it has used."""
        ...

    def batches(self) -> Iterator[list[MovedBatch]]:
        """All batches, in order of their numbers, some at a time."""
        ...

    def chunks(self, batch: MovedBatch) -> Iterator[tuple[Chunk, bytes]]:
        """The bytes of a sealed batch.

        Raises:
            SpoolCorrupt: they are damaged.
        """
        ...

    def marks(self) -> Iterator[tuple[int, bytes, bytes]]:
        """(segment of job ids, delivered, settled): see the table `acknowledged`."""
        ...

    def settling(self) -> Iterator[tuple[int, int]]:
        """(batch of a failure record, job): see the table `settling`."""
        ...

    def uploads(self) -> list[MovedUpload]:
        """The journal of multipart uploads."""
        ...

    def positions(self) -> Iterator[InputPosition]:
        """How far inputs were read."""
        ...

    def forgotten(self) -> list[MovedForgotten]:
        """What was forgotten of stores."""
        ...

    def damages(self) -> list[tuple[Damage, bytes]]:
        """What is in quarantine; without bytes where they stay in a file."""
        ...

    def totals(self) -> list[Total]:
        """What came to each state."""
        ...


class Target(Protocol):
    """A spool that takes in another one."""

    @property
    def name(self) -> str:
        """Its location, for messages, without secrets."""
        ...

    @property
    def identity(self) -> int:
        """Its identity, whatever name it is reached by."""
        ...

    def check(self, counts: Counts) -> None:
        """Check that it can take in so much.

        Raises:
            SpoolError: it cannot.
        """
        ...

    def take_in(self, source: Source, move: str) -> Counts:
        """Take in everything, in one transaction; nothing if the move's transaction was committed before.

        Raises:
            SpoolError: it failed. See `has` whether it was committed.
        """
        ...

    def has(self, move: str) -> Counts | None:
        """What a move has brought; None if its transaction was rolled back. One that is under way is waited for.

        Raises:
            SpoolError: that cannot be asked now.
        """
        ...


def plan(source: Source, target: Target) -> Moved:
    """Look what would be moved. Nothing is changed.

    Raises:
        SpoolError: one of the spools cannot be read, or the target cannot take it in.
    """
    note = source.note()
    _check_target(source, target, note)
    if note is not None and (counts := target.has(note.id)) is not None:
        return _result(source, target, counts, before=True)
    counts = source.count()
    target.check(counts)
    return Moved(source=source.name, target=target.name, moved=False, counts=counts, processes=source.processes(), left=source.left)


def move(source: Source, target: Target) -> Moved:
    """Move a spool, or finish what an earlier call began.

    Raises:
        SpoolError: it was not moved. The source is as before if that is certain; else it waits for another call.
    """
    note = source.note()
    _check_target(source, target, note)
    if note is None:
        source.prepare()
        target.check(source.count())
        note = Note(secrets.token_hex(16), target.name, target.identity, is_done=False)
        source.begin(note)
    elif (found := target.has(note.id)) is not None:
        source.finish()
        return _result(source, target, found, before=True)
    elif note.is_done:
        raise SpoolError(
            f"{source.name} was moved to {note.target}, which does not know it any more",
            hint="the database is an older copy: restore a newer one; the files of the spool are still there",
        )
    try:
        counts = target.take_in(source, note.id)
    except SpoolError:
        if (brought := _outcome(source, target, note)) is None:
            raise
        counts = brought
    source.finish()
    return _result(source, target, counts, before=False)


def _outcome(source: Source, target: Target, note: Note) -> Counts | None:
    """After an error: what was moved all the same. If nothing was, the source can be used again; if unknown, it cannot."""
    try:
        found = target.has(note.id)
    except SpoolError as error:
        log.warning("it is not known whether the spool was moved: run the same command again: %s", error.one_line())
        return None
    if found is None:
        source.undo()
    return found


def _check_target(source: Source, target: Target, note: Note | None) -> None:
    if note is not None and note.identity != target.identity:
        state = "was moved" if note.is_done else "is being moved"
        raise SpoolError(
            f"{source.name} {state} to {note.target}, which is another spool than {target.name}", hint=f"give {note.target}"
        )


def _result(source: Source, target: Target, counts: Counts, *, before: bool) -> Moved:
    return Moved(source=source.name, target=target.name, moved=True, counts=counts, before=before, left=source.left)
