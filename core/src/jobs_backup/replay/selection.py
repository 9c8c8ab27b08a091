"""Which objects have what is asked for, and in which order: from the catalog of a spool, or from their keys in the bucket."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from jobs_backup.destination import Destination
from jobs_backup.encoding import microseconds
from jobs_backup.errors import ConfigurationError, SpoolError
from jobs_backup.layout import ENDING, safe_id
from jobs_backup.model import Kind
from jobs_backup.spool.catalog import Catalog
from jobs_backup.spool.overview import StoredObject
from jobs_backup.spool.status import look

_PAGE: Final = 1000
_SECOND: Final = 1_000_000
_DAY: Final = 86_400 * _SECOND
_NEVER: Final = 1 << 62
_LAST: Final = microseconds(datetime.max.replace(tzinfo=UTC))
_SLACK: Final = 300 * _SECOND
"""Threads record at the same time, and clocks are set back: some events of an object may lie a little outside of its times."""
_FAILED: Final = "rudder-proc-err-logs"
_SUFFIX: Final = rf"(\.json\.(gz|zst){ENDING}|\.(gz|zst))"
_RAW_KEY: Final = re.compile(
    r"(?P<source>[^/]+)/gw/\d{4}-\d\d-\d\d/\d{1,2}/[^/]+/(?P<first>\d+)_(?P<last>\d+)_(?P<workspace>[^/]*)_[^/_.]+"
    rf"{_SUFFIX}"
)
_FAILED_KEY: Final = re.compile(
    rf"{_FAILED}/\d\d-\d\d-\d{{4}}/(?P<first>\d+)\.[^/]+\.(?P<job>\d+)-\d+\.[0-9a-f-]{{32,36}}(\.(?!json\.\w+$)(?P<workspace>[^/]*?))?"
    rf"{_SUFFIX}"
)


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted; None: all of them. Times in microseconds since 1970, of `createdAt` (raw) or `failedAt` (failed).

    Attributes:
        since: the first one that is wanted.
        until: the first one behind those that are wanted.
    """

    kind: Kind = Kind.RAW
    since: int | None = None
    until: int | None = None
    source_id: str | None = None
    workspace_id: str | None = None


class Found(NamedTuple):
    """An object that may have some of it.

    Attributes:
        first, last: times of its first and last event, as far as they are known; others lie within five minutes around these.
        tie: which of two with the same first time comes first.
        size: in bytes.
        crc32c: None where it is not known.
        events: lines; None where it is not known.
    """

    first: int
    tie: int
    key: str
    last: int
    size: int
    crc32c: int | None
    events: int | None

    @property
    def bounds(self) -> tuple[int, int]:
        """No event of it is earlier, or later."""
        return _bounds(self.first, self.last)


class Selection:
    """Objects in the order of their first events. On disk, however many there are: a database that SQLite removes at its end."""

    def __init__(self, objects: Iterable[Found]) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute(
            "CREATE TABLE objects (first INTEGER, tie INTEGER, key TEXT, last INTEGER, size INTEGER, crc32c INTEGER,"
            " events INTEGER, PRIMARY KEY (first, tie, key)) WITHOUT ROWID"
        )
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)", objects)
        self._db.execute("COMMIT")

    def totals(self) -> tuple[int, int, int | None]:
        """Objects, bytes, and events where they are known of all."""
        row = self._db.execute("SELECT count(*), coalesce(sum(size), 0), sum(events), count(events) FROM objects").fetchone()
        return row[0], row[1], (row[2] or 0) if row[3] == row[0] else None

    def objects(self, begin: str = "", *, behind: bool = False) -> Iterator[Found]:
        """From the object with the key `begin` on; or those behind it alone.

        Raises:
            ConfigurationError: there is no such object.
        """
        rows = self._db.execute("SELECT * FROM objects WHERE key=?", (begin,)).fetchall() if begin else []
        if begin and not rows:
            raise ConfigurationError(f"there is no object {begin!r} among those that are asked for", hint="correct --after")
        first = rows[0][:3] if rows else (-_NEVER, 0, "")
        found = self._db.execute(
            "SELECT * FROM objects WHERE (first, tie, key) >= (?, ?, ?) AND (key!=? OR NOT ?) ORDER BY first, tie, key",
            (*first, begin, behind),
        )
        return map(Found._make, found)

    def close(self) -> None:
        """Remove it."""
        self._db.close()


def known(directory: Path, location: str, query: Query, after: str = "") -> Iterator[Found]:
    """The objects of a query that the catalog of a spool knows to stand in this bucket. Needs no right to list.

    The object of the cursor `after` comes, too, so that its place is known: it may have been deleted since it was read.

    Raises:
        SpoolError: there is no spool, or it can't be read.
    """
    with _catalog(directory) as catalog:
        if after and (place := catalog.overview.written(location, query.kind, split_cursor(after)[0])) is not None:
            yield _found(place)
        begin = 0
        while rows := catalog.overview.stored(location, query.kind, begin, _PAGE):
            begin = rows[-1].id
            for row in rows:
                is_of_them = query.source_id in (None, row.stream.source_id)
                is_of_them &= query.workspace_id in (None, row.stream.workspace_id)
                if is_of_them and not _is_outside(query, row.first_at, row.last_at):
                    yield _found(row)


def elsewhere(directory: Path, location: str, query: Query) -> int:
    """How many objects of the query's kind, source and workspace the catalog knows to stand in other buckets. Raises as `known`."""
    with _catalog(directory) as catalog:
        return catalog.overview.stored_elsewhere(location, query.kind, query.source_id, query.workspace_id)


@contextmanager
def _catalog(directory: Path) -> Generator[Catalog]:
    try:
        with look(directory) as catalog:
            yield catalog
    except SpoolError as error:
        raise SpoolError(error.message, hint=f"{error.hint}; or find the objects by listing the bucket: --list") from error


def _found(row: StoredObject) -> Found:
    return Found(row.first_at, row.id, row.key, row.last_at, row.size, row.crc32c, row.events)


def _is_outside(query: Query, first: int, last: int) -> bool:
    """Whether an object's events are of other times; `first` and `last` as in `Found`."""
    begin, end = _bounds(first, last)
    return (query.until is not None and begin >= query.until) or (query.since is not None and end < query.since)


def _bounds(first: int, last: int) -> tuple[int, int]:
    # Who records may give the times of events, also backwards.
    return min(first, last) - _SLACK, max(first, last) + _SLACK


def listed(destination: Destination, prefix: str, query: Query, after: str = "") -> Iterator[Found]:
    """The objects of a query that stand in the bucket, as far as their keys tell: RudderStack's, too.

    Of raw events those of other times are left out. A failure's key tells when its object was made, not when its events were.
    Keys tell whole seconds: of objects that begin in the same one, those that end first come first, else the order of the keys
    decides (of failures that of the first job ids). With a source and a time, objects are missed that last longer than a day.

    The object of the cursor `after` comes, too, so that its place is known: it may have been deleted since it was read.

    Raises:
        PermissionDenied: the right to list is missing.
    """
    below = f"{prefix}/" if prefix else ""
    pattern = _RAW_KEY if query.kind is Kind.RAW else _FAILED_KEY
    if after and (match := pattern.fullmatch(split_cursor(after)[0].removeprefix(below))) is not None:
        yield _of_key(query.kind, match, split_cursor(after)[0], 0)
    where, begin, behind = f"{below}{_FAILED}/", "", ""
    if query.kind is Kind.RAW:
        where = below
        if query.source_id is not None:
            where = f"{below}{safe_id(query.source_id)}/gw/"
            # An object lies where its first event does, which may be the day before.
            begin = where + _day(query.since - _DAY) if query.since is not None else ""
            behind = where + _day(query.until + _SLACK) + "~" if query.until is not None else ""
    token: str | None = begin
    while token is not None:
        page = destination.list(where, token)
        for one in page.objects:
            if behind and one.key > behind:
                return
            match = pattern.fullmatch(one.key.removeprefix(below))
            if match is not None and _is_wanted(match, query):
                yield _of_key(query.kind, match, one.key, one.size)
        token = page.after


def _of_key(kind: Kind, match: re.Match[str], key: str, size: int) -> Found:
    first = int(match["first"]) * _SECOND
    if kind is Kind.FAILED:
        return Found(first, int(match["job"]), key, _NEVER, size, None, None)
    return Found(first, int(match["last"]), key, (int(match["last"]) + 1) * _SECOND, size, None, None)


def _is_wanted(match: re.Match[str], query: Query) -> bool:
    if query.workspace_id is not None and match["workspace"] not in (None, safe_id(query.workspace_id)):
        return False
    if query.kind is Kind.FAILED:
        return True
    if query.source_id is not None and match["source"] != safe_id(query.source_id):
        return False
    return not _is_outside(query, int(match["first"]) * _SECOND, (int(match["last"]) + 1) * _SECOND)


def _day(at: int) -> str:
    # Before 1970 there are none, and not every number of seconds has a date.
    return datetime.fromtimestamp(min(max(at, 0), _LAST) // _SECOND, UTC).date().isoformat()


def split_cursor(cursor: str) -> tuple[str, int | None]:
    """The key, and how many of its lines were read; None if all."""
    key, colon, lines = cursor.rpartition(":")
    return (key, int(lines)) if colon and lines.isdecimal() else (cursor, None)
