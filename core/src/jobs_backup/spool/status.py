"""The status of a spool, and the limits it is held to. `engines.py` reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import msgspec

from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.errors import file_error

_LATE_SECONDS: Final = 60.0
"""How long uploading sealed batches may take, in addition to twice the time after which they are sealed."""


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


class ProcessStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A process that has opened the spool; one that is not alive waits for another one to take its place.

    In a fleet, `host` names its machine, and `lease` is the seconds until others may take its place, 0 if they may now. On one
    machine, `host` is empty and `lease` is None.
    """

    pid: int
    alive: bool
    sends: bool
    seconds: float
    host: str = ""
    lease: float | None = None


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


class MemberStatus(msgspec.Struct, kw_only=True):
    """The process that reports, as one of those that share a spool in PostgreSQL.

    Attributes:
        lease: seconds until others may take its place unless it is renewed, 0 if they may now.
        takeovers: dead processes whose place it has taken.
        lost_sessions: how often another process has taken its place.
        connections: in its pool; `idle` of them are unused, and there may be `max_connections`.
        waiting: threads waiting for a connection.
    """

    lease: float
    takeovers: int
    lost_sessions: int
    connections: int
    idle: int
    max_connections: int
    waiting: int


class DatabaseStatus(msgspec.Struct, kw_only=True):
    """What a spool in PostgreSQL takes up on its server.

    Attributes:
        segments: tables of waiting bytes, with their `segment_bytes` on the disk, indexes included.
        oldest_segment: seconds since the oldest one was made that takes no new batches; 0 if there is none.
        xmin_age: transactions since the oldest snapshot that is still in use, which vacuum has to respect.
        member: None if the process that reports is only looking.
    """

    segments: int
    segment_bytes: int
    oldest_segment: float
    xmin_age: int
    member: MemberStatus | None = None


class Status(msgspec.Struct, kw_only=True):
    """The whole spool. `events` wait, in `bytes`; `free` bytes are left on its disk, None where that cannot be known.

    Attributes:
        directory: where it is; of a database its address, without user and password.
        full: what has run out, so that nothing can be recorded; empty if nothing has.
        behind: why the backup is behind, in one line; empty if it is not. It is while a store is paused or failing and
            something waits for it, something was damaged or cannot be read, or the oldest event that waits is older than it should
            get.
        unreadable: its events are not counted.
        database: None if the spool is in a directory.
    """

    directory: str
    behind: str
    full: str
    events: int
    bytes: int
    free: int | None
    oldest: float
    stores: list[StoreStatus]
    processes: list[ProcessStatus]
    quarantine: list[QuarantineStatus]
    unreadable: list[UnreadableStatus]
    rejected: list[RejectedStatus]
    database: DatabaseStatus | None = None


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


def behind(stores: Sequence[StoreStatus], unreadable: Mapping[str, str], is_damaged: bool, oldest: float, limits: Limits) -> str:
    """Why the backup is behind: see `Status.behind`. `unreadable` is file -> error; `oldest` as in `Status`."""
    longest = 2 * limits.upload_frequency + _LATE_SECONDS
    for one in stores:
        if one.streams and (one.error or one.paused):  # else nothing is waiting there
            return " ".join(f"uploads to {one.location} {'are paused' if one.paused else 'fail'}: {one.error}".split())
    for file, error in unreadable.items():
        return f"the events in {file} cannot be uploaded yet: {error}"
    if is_damaged:
        return "some events were damaged on the disk, and are quarantined"
    if oldest > longest:
        return f"the oldest event has waited for {oldest:.0f} s, more than {longest:.0f} s"
    return ""


def rejected_files(directory: Path) -> list[RejectedStatus]:
    """The files of rejected lines in a directory.

    Raises:
        SpoolError: it cannot be read.
    """
    found: list[RejectedStatus] = []
    try:
        for path in sorted(directory.iterdir()):
            with suppress(FileNotFoundError):  # somebody has just removed it
                if size := path.stat().st_size:
                    found.append(RejectedStatus(file=str(path), bytes=size))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise file_error(directory, error) from error
    return found
