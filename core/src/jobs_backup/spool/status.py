"""The status of a spool, and the limits it is held to. `engines.py` reads it."""

from __future__ import annotations

from typing import Self

import msgspec

from jobs_backup.settings.core import CoreSettings


class StreamStatus(msgspec.Struct, kw_only=True):
    """What is waiting in one stream for one store.

    Attributes:
        open_events: in batches that still take events.
        events: in sealed batches; `objects` counts those batches, each of which becomes one object.
        bytes: of both, as they are kept (mostly compressed).
        sending: number of objects being uploaded.
        oldest: approximate seconds since the first of these events was recorded.
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
    """A store with waiting batches, open uploads, or objects to delete.

    Attributes:
        error, hint: of the last failure, unless something was uploaded since.
        paused: seconds until the next probe; 0 if not paused.
        uploads: multipart uploads in progress.
        aborts: multipart uploads still to be aborted; `abort_error` says why one of them was not.
        deletes: objects still to be deleted; `delete_error` and `delete_hint` say why the last ones were not. Deletes are paused
            for `deletes_paused` seconds.
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
    """A process that has opened the spool. One that is not alive is waiting to be replaced by another."""

    pid: int
    alive: bool
    sends: bool
    seconds: float


class QuarantineStatus(msgspec.Struct, kw_only=True):
    """Damaged bytes, kept in `file`. `events` is 0 if unknown."""

    kind: str
    workspace_id: str
    source_id: str
    events: int
    file: str
    error: str


class UnreadableStatus(msgspec.Struct, kw_only=True):
    """Records of a dead process that could not be recovered yet: its file or lock, and why."""

    file: str
    error: str


class RejectedStatus(msgspec.Struct, kw_only=True):
    """Rejected lines of inputs, kept in `file` until it is removed."""

    file: str
    bytes: int


class Status(msgspec.Struct, kw_only=True):
    """The status of a whole spool: number and bytes of waiting events, and bytes free on its disk.

    Attributes:
        full: which resource ran out, so that nothing can be recorded; empty if none.
        behind: why the backup is behind, in one line; empty if it is not. It is behind while something waits for a paused or
            failing store, something is damaged or unreadable, or the oldest waiting event is too old.
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
    """The limits a spool is held to, from the settings of recording processes.

    Attributes:
        upload_frequency: seconds after which a batch is sealed. The backup is behind if the oldest event waits for more than twice
            that plus a minute.
        min_free: bytes that recording leaves free on the disk.
        max_bytes: of everything waiting; None for no limit.
    """

    upload_frequency: float = 300.0
    min_free: int = 0
    max_bytes: int | None = None

    @classmethod
    def of(cls, settings: CoreSettings) -> Self:
        """The limits of a process that records."""
        return cls(upload_frequency=settings.upload_frequency, min_free=settings.spool_min_free, max_bytes=settings.spool_max_bytes)
