"""Find the requested objects and their order, from a spool's catalog or from the keys in the bucket."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from jobs_backup.errors import ConfigurationError, SpoolError
from jobs_backup.format.keys import FAILED, ParsedKey, parse_key, safe_id
from jobs_backup.model import Kind
from jobs_backup.settings.core import SpoolPlace
from jobs_backup.spool.engines import open_reader
from jobs_backup.spool.interface import SpoolReader, StoredObject
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.util.logs import plural

_PAGE: Final = 1000
_SECOND: Final = 1_000_000
_NEVER: Final = 1 << 62
_LEAST: Final = -_NEVER
_SLACK: Final = 300 * _SECOND
"""Events may lie slightly outside their object's times: threads record concurrently, and clocks are set back."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What to replay; None or no ids means all. Times in microseconds since 1970, of `createdAt` (raw) or `failedAt` (failed).

    Attributes:
        since: inclusive start of the time range.
        until: exclusive end of the time range.
        looked_at: upload time (`ObjectRef.stored`) of the newest object when an earlier part of the same replay looked.
    """

    kind: Kind = Kind.RAW
    since: int | None = None
    until: int | None = None
    looked_at: int | None = None
    source_ids: tuple[str, ...] = ()
    workspace_ids: tuple[str, ...] = ()

    def wants(self, workspace_id: str, source_id: str) -> bool:
        """Whether the query includes a stream."""
        return (not self.source_ids or source_id in self.source_ids) and (
            not self.workspace_ids or workspace_id in self.workspace_ids
        )


class Knowledge(NamedTuple):
    """What a spool's catalog knows about a query.

    Attributes:
        since: when the catalog was created. It does not know what other spools uploaded.
        missing: why it cannot find everything that this spool uploaded; empty if it can.
        elsewhere: number of objects in other buckets.
        unseen: sources and workspaces of the query for which nothing was ever recorded.
        seen: the existing sources and workspaces.
    """

    since: str
    missing: str
    elsewhere: int
    unseen: tuple[str, ...]
    seen: tuple[str, ...]


class ObjectRef(NamedTuple):
    """An object that may have requested events.

    Attributes:
        first, last: times of its first and last event, as far as known; others are within five minutes of these.
        tie: orders objects with the same first time.
        size: in bytes.
        crc32c: None if unknown.
        events: lines; None if unknown.
        stored: upload time, in microseconds by the spool's clock; 0 if unknown.
    """

    first: int
    tie: int
    key: str
    last: int
    size: int
    crc32c: int | None
    events: int | None
    stored: int = 0

    @property
    def bounds(self) -> tuple[int, int]:
        """Times before and after which it has no event."""
        return _bounds(self.first, self.last)


class Selection:
    """Objects in the order of their first events, any number of them: in a database on disk, which SQLite removes at its end."""

    def __init__(self, objects: Iterable[ObjectRef]) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute(
            "CREATE TABLE objects (first INTEGER, tie INTEGER, key TEXT, last INTEGER, size INTEGER, crc32c INTEGER,"
            " events INTEGER, stored INTEGER, PRIMARY KEY (first, tie, key)) WITHOUT ROWID"
        )
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?)", objects)
        self._db.execute("COMMIT")

    def totals(self) -> tuple[int, int, int | None]:
        """Number of objects, bytes, and events; events are None unless known for all objects."""
        row = self._db.execute("SELECT count(*), coalesce(sum(size), 0), sum(events), count(events) FROM objects").fetchone()
        return row[0], row[1], (row[2] or 0) if row[3] == row[0] else None

    def last_stored(self) -> int:
        """Upload time of the newest of them."""
        return int(self._db.execute("SELECT coalesce(max(stored), 0) FROM objects").fetchone()[0])

    def stored_late(self, begin: str, looked_at: int) -> tuple[int, int, int]:
        """Count objects before the key `begin` that were uploaded after an earlier part of a replay looked.

        Also returns the times of their first and last event. An event may wait for a day, and its object then sorts before others.
        """
        row = self._db.execute(
            "SELECT count(*), min(first), max(last) FROM objects WHERE stored>?"
            " AND (first, tie, key) < (SELECT first, tie, key FROM objects WHERE key=?)",
            (looked_at, begin),
        ).fetchone()
        return row[0], row[1] or 0, row[2] or 0

    def objects(self, begin: str = "", *, behind: bool = False) -> Iterator[ObjectRef]:
        """Iterate from the object with the key `begin` on; with `behind`, after it.

        Raises:
            ConfigurationError: there is no such object.
        """
        rows = self._db.execute("SELECT * FROM objects WHERE key=?", (begin,)).fetchall() if begin else []
        if begin and not rows:
            raise ConfigurationError(f"object {begin!r} is not among the selected ones", hint="correct --after")
        first = rows[0][:3] if rows else (_LEAST, 0, "")
        found = self._db.execute(
            "SELECT * FROM objects WHERE (first, tie, key) >= (?, ?, ?) AND (key!=? OR NOT ?) ORDER BY first, tie, key",
            (*first, begin, behind),
        )
        return map(ObjectRef._make, found)

    def close(self) -> None:
        """Delete the selection."""
        self._db.close()


def from_catalog(place: SpoolPlace, location: str, query: Query, after: str = "") -> Iterator[ObjectRef]:
    """Objects of a query that are in this bucket according to a spool's catalog. Needs no permission to list.

    The object of the cursor `after` is included, so that its place is known: it may have been deleted since it was read.

    Raises:
        SpoolError: the spool does not exist, or cannot be read.
    """
    with _catalog(place) as catalog:
        if after and (reached := catalog.written(location, query.kind, split_cursor(after)[0])) is not None:
            yield _found(reached)
        begin = 0
        while rows := catalog.stored(location, query.kind, begin, _PAGE):
            begin = rows[-1].id
            for row in rows:
                if query.wants(row.stream.workspace_id, row.stream.source_id) and not _is_outside(query, row.first_at, row.last_at):
                    yield _found(row)


def knowledge(place: SpoolPlace, location: str, query: Query) -> Knowledge:
    """What a spool's catalog knows about a query. Raises as `from_catalog`."""
    with _catalog(place) as catalog:
        since, lost_until = catalog.knowledge()
        elsewhere = [one for one in catalog.stored_elsewhere(location, query.kind) if query.wants(*one[:2])]
        begin = _LEAST if query.since is None else query.since - _SLACK
        end = _NEVER if query.until is None else query.until + _SLACK
        forgotten = [one for one in catalog.forgotten(location, query.kind, begin, end) if query.wants(*one[:2])]
        workspaces, sources = (sorted(set(ids)) for ids in list(zip(*catalog.streams(), strict=True)) or [(), ()])
    reasons: list[str] = []
    if forgotten:
        objects, events = sum(one.objects for one in forgotten), sum(one.events for one in forgotten)
        reasons.append(f"{plural(objects, 'object')} with {plural(events, 'event')} forgotten (JOBS_BACKUP_CATALOG_DAYS)")
    if lost_until and begin < lost_until:
        reasons.append(f"it, or one before it, was lost or replaced by an older copy before {_date(lost_until)}")
    unseen = [f"source {one!r}" for one in query.source_ids if one not in sources]
    unseen += [f"workspace {one!r}" for one in query.workspace_ids if one not in workspaces]
    seen = [*(sources if query.source_ids else ()), *(workspaces if query.workspace_ids else ())]
    return Knowledge(_date(since), "; ".join(reasons), sum(one.objects for one in elsewhere), tuple(unseen), tuple(seen))


def _date(at: int) -> str:
    return datetime.fromtimestamp(at // _SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def _catalog(place: SpoolPlace) -> Generator[SpoolReader]:
    try:
        with open_reader(place) as catalog:
            yield catalog
    except SpoolError as error:
        raise SpoolError(error.message, hint=f"{error.hint}; or find the objects by listing the bucket: --list") from error


def _found(row: StoredObject) -> ObjectRef:
    return ObjectRef(row.first_at, row.id, row.key, row.last_at, row.size, row.crc32c, row.events, int(row.stored_at * _SECOND))


def _is_outside(query: Query, first: int, last: int) -> bool:
    """Whether an object's events are all outside the time range; `first` and `last` as in `ObjectRef`."""
    begin, end = _bounds(first, last)
    return (query.until is not None and begin >= query.until) or (query.since is not None and end < query.since)


def _bounds(first: int, last: int) -> tuple[int, int]:
    # Callers may set the times of events, even backwards.
    return min(first, last) - _SLACK, max(first, last) + _SLACK


def from_listing(
    store: ObjectStore, prefix: str, query: Query, after: str = "", seen: set[str] | None = None
) -> Iterator[ObjectRef]:
    """Objects of a query that are in the bucket, according to their keys; RudderStack's too.

    All keys of the source are listed, whatever the time range: the day in a key is that of its first event only. Raw objects whose
    first and last event are both outside the range on the same side are left out. The key of a failure object has the time when the
    object was made, not the time of its events. Keys have whole seconds. Objects that begin in the same second are ordered by their
    end, then by their keys (for failures, by their first job ids).

    The object of the cursor `after` is included, so that its place is known: it may have been deleted since it was read. Sources
    and workspaces of the query that appear in a key, of any time, are added to `seen`; the sources of failures are in their lines.

    Raises:
        PermissionDenied: the permission to list is missing.
    """
    below = f"{prefix}/" if prefix else ""
    if query.kind is Kind.FAILED:
        places = [f"{below}{FAILED}/"]
    else:
        places = [f"{below}{safe_id(source)}/gw/" for source in sorted(set(query.source_ids))] or [below]
    if after and (place := parse_key(split_cursor(after)[0], prefix)) is not None and place.kind is query.kind:
        yield _of_key(place, split_cursor(after)[0], 0)
    for below_it in places:
        yield from _listed(store, below_it, prefix, query, set() if seen is None else seen)


def sources_in(store: ObjectStore, prefix: str, query: Query) -> set[str]:
    """Sources of a query that have raw objects in the bucket: a source may have these but no failures. Raises as `from_listing`."""
    below = f"{prefix}/" if prefix else ""
    return {source for source in query.source_ids if store.list(f"{below}{safe_id(source)}/gw/", "").objects}


def _listed(store: ObjectStore, place: str, prefix: str, query: Query, seen: set[str]) -> Iterator[ObjectRef]:
    sources, workspaces = ({safe_id(one): one for one in ids} for ids in (query.source_ids, query.workspace_ids))
    token: str | None = ""
    while token is not None:
        page = store.list(place, token)
        for one in page.objects:
            parsed = parse_key(one.key, prefix)
            if parsed is None or parsed.kind is not query.kind:
                continue
            if sources and parsed.source is not None and parsed.source not in sources:
                continue
            found = (sources.get(parsed.source or ""), None if parsed.workspace is None else workspaces.get(parsed.workspace))
            seen.update(one for one in found if one is not None)
            if workspaces and parsed.workspace is not None and parsed.workspace not in workspaces:
                continue
            if parsed.last is None or not _is_outside(query, parsed.first * _SECOND, (parsed.last + 1) * _SECOND):
                yield _of_key(parsed, one.key, one.size)
        token = page.after


def _of_key(parsed: ParsedKey, key: str, size: int) -> ObjectRef:
    first = parsed.first * _SECOND
    if parsed.last is None:
        return ObjectRef(first, parsed.first_job or 0, key, _NEVER, size, None, None)
    return ObjectRef(first, parsed.last, key, (parsed.last + 1) * _SECOND, size, None, None)


def split_cursor(cursor: str) -> tuple[str, int | None]:
    """Split into the key and the number of its lines that were read; None if all."""
    key, colon, lines = cursor.rpartition(":")
    return (key, int(lines)) if colon and lines.isdecimal() else (cursor, None)
