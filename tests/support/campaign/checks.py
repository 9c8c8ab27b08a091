"""The final checks: every acknowledged event is in exactly one object, unless all events of that object were delivered, and
nothing is left over.
"""

from __future__ import annotations

import contextlib
import gzip
import sqlite3
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec
from campaign.targets import Target
from campaign.worker import EventId

from jobs_backup.spool.ids import job_id, origin_of
from jobs_backup.spool.sqlite.disk import Ballast

if TYPE_CHECKING:
    from postgres import Postgres  # not there when a part of the tests runs without psycopg

_FIELDS: Final = ["userId", "payload", "createdAt", "messageId"]
_FAILURE_FIELDS: Final = [
    *_FIELDS, "workspaceId", "sourceId", "destinationId", "jobId", "error", "attempts", "failedAt",
]  # fmt: skip
_SHOWN: Final = 5
_IDLE: Final = {"catalog.db", "catalog.db-wal", "catalog.db-shm", "ballast", "made"}


@dataclass
class Figures:
    """The counts of a campaign. All from `lost` on must be 0.

    `bare_uploads` are the uploads that kills may leave behind; `refused` counts the events that found no room or, in a fleet, no
    database; `uncertain` those of which a process could not learn whether they were recorded. `deleted` are objects, `gone` the
    events in them. `kills` counts workers, not their children; `forks` includes the grandchildren; `locks_removed` are lock files
    of processes that were alive, or just killed.
    """

    cycles: int = 0
    kills: int = 0
    kills_at_points: int = 0
    terms: int = 0
    forks: int = 0
    grandchildren: int = 0
    children_killed: int = 0
    children_ended: int = 0
    clock_leaps: int = 0
    locks_removed: int = 0
    acknowledged: int = 0
    stored: int = 0
    objects: int = 0
    in_parts: int = 0
    bare_uploads: int = 0
    refused: int = 0
    uncertain: int = 0
    failures: int = 0
    delivered: int = 0
    deleted: int = 0
    gone: int = 0
    lost: int = 0
    duplicates: int = 0
    damaged: int = 0
    torn_calls: int = 0
    misplaced: int = 0
    refused_yet_stored: int = 0
    deleted_early: int = 0
    undeleted: int = 0
    open_uploads: int = 0
    left_over: int = 0
    other: int = 0
    points: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    clocks: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Sum up."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def violation(self, figure: str, what: Iterable[object]) -> None:
        """Count each of `what`, and show the first few."""
        found = list(what)
        setattr(self, figure, getattr(self, figure) + len(found))
        if found:
            more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            self.violations.append(f"{figure}: {', '.join(map(str, found[:_SHOWN]))}{more}")


class Records(Protocol):
    """A spool, as the final checks see it."""

    def batches(self) -> list[BatchRecord]:
        """All batches that were sealed."""
        ...

    def left_over(self) -> list[str]:
        """What must not be there once everything is uploaded and all processes have ended."""
        ...


def check(directory: Path, target: Target, figures: Figures, spool: Records | None = None) -> None:
    """Compare the acknowledged events with the bucket, and look for leftovers. Unless given, the spool is in `directory`."""
    spool = spool or SqliteRecords(directory / "spool")
    acknowledged = _acknowledged(directory / "acks")
    batches = spool.batches()
    stored = _Stored(target, batches, figures)
    deleted = _check_deleted(directory, batches, stored.keys, figures)
    figures.acknowledged += len(acknowledged)
    figures.stored += stored.places.total()
    missing = acknowledged.keys() - stored.places.keys()
    gone = {id_ for id_ in missing if origin_of(acknowledged[id_])[1] in deleted}
    figures.gone += len(gone)
    figures.violation("lost", missing - gone)
    figures.violation("duplicates", (id_ for id_, times in stored.places.items() if times > 1))
    refused = _noted(directory / "refused")
    figures.refused += len(refused)
    figures.violation("refused_yet_stored", refused & stored.places.keys())
    figures.violation("torn_calls", _torn_calls({*stored.places, *gone}))
    figures.violation("misplaced", (id_ for id_, job in acknowledged.items() if stored.jobs.get(id_, job) != job))
    figures.uncertain += len(_noted(directory / "uncertain"))
    _check_left_over(directory, target, figures)
    figures.violation("left_over", spool.left_over())


class BatchRecord(NamedTuple):
    """A batch as the catalog reports it. `jobs`: the number of ids assigned in it."""

    id: int
    epoch: int
    key: str
    kind: str
    state: str
    events: int
    jobs: int

    @property
    def ids(self) -> range:
        first = job_id(self.epoch, self.id, 0)
        return range(first, first + self.jobs)


def _check_deleted(directory: Path, batches: Sequence[BatchRecord], keys: Set[str], figures: Figures) -> set[int]:
    """Check that batches are deleted if, and only if, they may be. Returns the deleted batches."""
    delivering = {int(job) for job in _noted(directory / "delivering")}
    delivered = {int(job) for job in _noted(directory / "delivered")}
    figures.delivered += len(delivered)
    deleted = {one.id for one in batches if one.state == "deleted"}
    figures.deleted += len(deleted)
    figures.violation("deleted_early", (one.key for one in batches if one.id in deleted and not delivering.issuperset(one.ids)))
    complete = (one for one in batches if one.kind == "raw" and delivered.issuperset(one.ids))
    figures.violation("undeleted", (one.key for one in complete if one.key in keys))
    figures.violation("undeleted", (f"{one.key} came back" for one in batches if one.id in deleted and one.key in keys))
    return deleted


class _Stored:
    """The bucket's contents: how often each event is in it, and the job id implied by its position."""

    def __init__(self, target: Target, batches: Sequence[BatchRecord], figures: Figures) -> None:
        by_key = {one.key: one for one in batches}
        self.keys: set[str] = set()
        self.places: Counter[str] = Counter()
        self.jobs: dict[str, int] = {}
        unlike: list[str] = []
        damaged: list[str] = []
        for key, content in target.objects():
            figures.objects += 1
            figures.in_parts += len(content) > target.threshold
            lines = gzip.decompress(content).splitlines()
            self.keys.add(key)
            batch = by_key.get(key)
            if batch is None or batch.events != len(lines):
                unlike.append(f"{key} has {len(lines)} lines; in the catalog it is {batch}")
            is_failure = "/rudder-proc-err-logs/" in f"/{key}"
            figures.failures += len(lines) if is_failure else 0
            for number, line in enumerate(lines):
                id_ = _message_id(line, _FAILURE_FIELDS if is_failure else _FIELDS)
                if id_ is None:
                    damaged.append(f"line {number + 1} of {key}")
                    continue
                self.places[id_] += 1
                if batch is not None and not is_failure:
                    self.jobs[id_] = job_id(batch.epoch, batch.id, number)
        figures.violation("other", unlike)
        figures.violation("damaged", damaged)


def _message_id(line: bytes, wanted: list[str]) -> str | None:
    """Check that a line has all fields and an unchanged payload."""
    try:
        event: dict[str, Any] = msgspec.json.decode(line)
        payload = event["payload"]
        id_: str = event["messageId"]
        whole = (
            list(event) == wanted
            and event["userId"] == payload["userId"] == payload["messageId"] == id_
            and zlib.crc32(payload["text"].encode()) == payload["crc32"]
        )
    except (msgspec.DecodeError, KeyError, TypeError):
        return None
    return id_ if whole else None


def _acknowledged(directory: Path) -> dict[str, int]:
    """Message id -> job id. A last line without its end was cut by a kill: its event counts as not acknowledged."""
    found: dict[str, int] = {}
    for path in directory.iterdir():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                job, _, id_ = line[:-1].partition(" ")
                found[id_] = int(job)
    return found


def _noted(path: Path) -> set[str]:
    return set(path.read_text().splitlines()) if path.exists() else set()


def _torn_calls(ids: Iterable[str]) -> list[str]:
    """Calls recorded in one commit (all or nothing) of which some events are, or were, in the bucket."""
    calls: defaultdict[tuple[str, int, int], set[int]] = defaultdict(set)
    counts: dict[tuple[str, int, int], int] = {}
    for id_ in ids:
        one = msgspec.json.decode(id_, type=EventId)
        if one.whole:
            call = one.worker, one.thread, one.call
            calls[call].add(one.index)
            counts[call] = one.count
    return [f"{call}: {len(indexes)} of {counts[call]}" for call, indexes in calls.items() if len(indexes) != counts[call]]


def _check_left_over(directory: Path, target: Target, figures: Figures) -> None:
    journaled = _noted(directory / "journaled")
    uploads = target.open_uploads()
    figures.violation("open_uploads", (one for one in uploads if one.id in journaled or one.parts))
    figures.bare_uploads += sum(one.id not in journaled and not one.parts for one in uploads)
    figures.violation("left_over", target.drafts())
    figures.violation("other", (f"{operation} is not granted" for operation in target.not_granted()))


_BATCHES: Final = "SELECT id, epoch, key, kind, state, events, jobs FROM {} WHERE key IS NOT NULL"
_EMPTY: Final = (
    ("sessions", ""),
    ("batches", " WHERE state NOT IN ('stored', 'deleted')"),
    ("settling", ""),
    ("uploads", ""),
    ("parts", ""),
    ("damages", ""),
)
"""Tables, and conditions on their rows, that must be empty in the end."""


class SqliteRecords:
    """A spool in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def batches(self) -> list[BatchRecord]:
        with contextlib.closing(sqlite3.connect(self._directory / "catalog.db")) as db:
            return [BatchRecord(*row) for row in db.execute(_BATCHES.format("batches"))]

    def left_over(self) -> list[str]:
        spool = self._directory
        found = [str(path.relative_to(spool)) for path in spool.rglob("*") if path.is_file() and path.name not in _IDLE]
        ballast = spool / "ballast"
        if ballast.exists() and ballast.stat().st_size < Ballast.SIZE:
            found.append("a ballast that is too small")
        with contextlib.closing(sqlite3.connect(spool / "catalog.db")) as db:
            for table, where in _EMPTY:
                (rows,) = db.execute(f"SELECT count(*) FROM {table}{where}").fetchone()
                found += [f"{rows} rows of {table}{where}"] if rows else []
        return found


class FleetRecords:
    """A spool in a database."""

    def __init__(self, server: Postgres, database: str) -> None:
        self._server = server
        self._database = database

    def batches(self) -> list[BatchRecord]:
        return [BatchRecord(*row) for row in self._rows(_BATCHES.format("jobs_backup.batches"))]

    def left_over(self) -> list[str]:
        found = []
        for table, where in (
            *_EMPTY,
            ("readers", ""),
            ("batches", " WHERE claimed_by IS NOT NULL"),
            ("segments", " WHERE id < (SELECT max(id) FROM jobs_backup.segments)"),
            (
                "acknowledged",
                " a WHERE NOT EXISTS (SELECT 1 FROM jobs_backup.batches WHERE id = a.segment >> 9 AND state = 'stored')",
            ),
        ):
            ((rows,),) = self._rows(f"SELECT count(*) FROM jobs_backup.{table}{where}")
            found += [f"{rows} rows of {table}{where}"] if rows else []
        tables = self._rows(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'jobs_backup' AND tablename LIKE 'chunks\\_%'"
            " AND tablename NOT IN (SELECT 'chunks_' || id FROM jobs_backup.segments)"
        )
        return [*found, *(name for (name,) in tables)]

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._server.admin(self._database) as connection:
            return connection.execute(query).fetchall()
