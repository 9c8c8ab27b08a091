"""What is in a spool, for whoever asks, and what it is held to. `engines.py` reads it."""

from __future__ import annotations

from typing import Self

import msgspec

from jobs_backup.settings.core import CoreSettings


class StreamStatus(msgspec.Struct, kw_only=True):
    """What of one stream waits for one store.

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


class StoreStatus(msgspec.Struct, kw_only=True):
    """A store for which something waits, or uploads are open, or objects are to be deleted.

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
        behind: why the backup is behind, in one line; empty if it is not. It is while a store is paused or failing and
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
    stores: list[StoreStatus]
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
