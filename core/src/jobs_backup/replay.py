"""Events back from the bucket: which objects there are, in which order, and what of their lines is wanted."""

from __future__ import annotations

import errno
import functools
import io
import json
import re
import sqlite3
import sys
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import msgspec
from isal import igzip

from jobs_backup.destination import Destination
from jobs_backup.encoding import microseconds
from jobs_backup.errors import ConfigurationError, IntegrityError, JobsBackupError, ObjectNotFound, PermissionDenied, SpoolError
from jobs_backup.layout import safe_id
from jobs_backup.model import Kind
from jobs_backup.spool.catalog import Catalog
from jobs_backup.spool.overview import StoredObject
from jobs_backup.spool.status import look

_BLOCK: Final = 1 << 20
_PAGE: Final = 1000
_SECOND: Final = 1_000_000
_DAY: Final = 86_400 * _SECOND
_NEVER: Final = 1 << 62
_LAST: Final = microseconds(datetime.max.replace(tzinfo=UTC))
_SLACK: Final = 300 * _SECOND
"""Threads record at the same time, and clocks are set back: some events of an object may lie a little outside of its times."""
_FAILED: Final = "rudder-proc-err-logs"
_RAW_KEY: Final = re.compile(
    r"(?P<source>[^/]+)/gw/\d{4}-\d\d-\d\d/\d{1,2}/[^/]+/(?P<first>\d+)_(?P<last>\d+)_(?P<workspace>[^/]*)_[^/_.]+(\.json)?"
    r"\.(gz|zst)"
)
_FAILED_KEY: Final = re.compile(
    rf"{_FAILED}/\d\d-\d\d-\d{{4}}/(?P<first>\d+)\.[^/]+\.(?P<job>\d+)-\d+\.[0-9a-f-]{{32,36}}(\.(?!json\.\w+$)(?P<workspace>[^/]*?))?"
    r"(\.json)?\.(gz|zst)"
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


class Damaged(NamedTuple):
    """An object whose events, or the rest of them, can't be given."""

    key: str
    error: JobsBackupError


class Replay:
    """Gives the events of a selection.

    Attributes:
        events: that were given.
        objects, bytes: that were read.
        cursor: where to go on, as `KEY` or `KEY:LINES`: everything up to there was given. Empty at the beginning.
        damaged: what could not be given.
        finished: whether all was given that was asked for.
        limited: whether there is more, behind the limit.
    """

    def __init__(
        self, destination: Destination, query: Query, *, payload_only: bool = False, limit: int | None = None, window: int = 4
    ) -> None:
        """`window` is the number of objects that are fetched at the same time, each into a file without a name."""
        self._destination = destination
        self._query = query
        self._payload_only = payload_only
        self._limit = limit
        self._window = window
        self.events = 0
        self.objects = 0
        self.bytes = 0
        self.cursor = ""
        self.damaged: list[Damaged] = []
        self.finished = False
        self.limited = False

    def run(
        self,
        selection: Selection,
        write: Callable[[bytes], object],
        stop: threading.Event,
        done: Callable[[], object],
        after: str = "",
    ) -> None:
        """Write lines, in blocks of about a MiB, until the end, the limit, or `stop` is set; `done` is called behind each object.

        Raises:
            ConfigurationError: `after` is no cursor of this selection.
            StorageError: nothing can be read. What was given until then is told by `cursor`.
        """
        key, lines = split_cursor(after)
        self.cursor = after
        refused: list[PermissionDenied] = []
        for found, file, error in self._fetched(selection.objects(key, behind=lines is None)):
            if error is not None:
                self.damaged.append(Damaged(found.key, error))
                # S3 answers so for a missing object, too, unless one may list. Once something was read, it is that.
                if isinstance(error, PermissionDenied) and not self.objects:
                    refused.append(error)
                    if len(refused) >= self._window:
                        break
                continue
            with file:
                if stop.is_set():
                    return
                self.objects += 1
                self.bytes += found.size
                skipped = lines or 0 if found.key == key else 0
                try:
                    if not self._give(found, file, skipped, write, stop):
                        self.finished = self.limited
                        return
                except IntegrityError as damage:
                    self.damaged.append(Damaged(found.key, damage))
                    continue
                self.cursor = found.key
                done()
        if refused and not self.objects:
            self.damaged = [one for one in self.damaged if one.error not in refused]
            raise refused[0]
        self.finished = not stop.is_set()

    def _fetched(self, objects: Iterator[Found]) -> Generator[tuple[Found, BinaryIO, JobsBackupError | None]]:
        with ThreadPoolExecutor(self._window) as pool:
            window: deque[tuple[Found, BinaryIO, Future[object]]] = deque()
            try:
                while True:
                    while len(window) < self._window and (found := next(objects, None)) is not None:
                        file = _temporary()
                        window.append((found, file, pool.submit(self._fetch, found, file)))
                    if not window:
                        return
                    found, file, future = window.popleft()
                    try:
                        future.result()
                    except (IntegrityError, ObjectNotFound, PermissionDenied) as error:
                        _close(file)
                        yield found, file, error
                    except BaseException:
                        _close(file)
                        raise
                    else:
                        yield found, file, None
            finally:
                for _, file, future in window:
                    future.cancel()
                    if future.cancelled():
                        _close(file)
                    else:
                        future.add_done_callback(functools.partial(_close, file))

    def _fetch(self, found: Found, file: BinaryIO) -> None:
        known = found.crc32c is not None
        try:
            self._destination.fetch(found.key, file, size=found.size if known else None, crc=found.crc32c)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise _no_room(error) from error
        if not known:
            # Its format's own checksums stand at the ends of its pieces: nothing of it is given before all were seen.
            with _opened(found.key, file) as lines:
                while lines.read(_BLOCK):
                    pass
            file.seek(0)

    def _give(self, found: Found, file: BinaryIO, skip: int, write: Callable[[bytes], object], stop: threading.Event) -> bool:
        """Returns whether to go on."""
        pick = self._picker(found)
        block: list[bytes] = []
        size, number, goes_on = 0, 0, True

        def flush() -> None:
            if block:
                write(b"".join(block))
                self.events += len(block)
            block.clear()
            if number > skip:
                self.cursor = f"{found.key}:{number}"

        with _opened(found.key, file) as lines:
            for line in lines:
                if number >= skip:
                    if self._limit is not None and self.events + len(block) >= self._limit:
                        self.limited, goes_on = True, False
                        break
                    try:
                        wanted = pick(line)
                    except (msgspec.DecodeError, ValueError) as error:
                        flush()
                        raise IntegrityError(f"{found.key}: line {number + 1} is no event: {error}") from None
                    if wanted:
                        block.append(wanted if wanted.endswith(b"\n") else wanted + b"\n")
                size += len(line)  # also where nothing is wanted: `stop` is looked at
                number += 1
                if size >= _BLOCK:
                    flush()
                    size = 0
                    if stop.is_set():
                        return False
        flush()
        return goes_on and not stop.is_set()

    def _picker(self, found: Found) -> Callable[[bytes], bytes]:
        """What of a line is wanted; empty if nothing is. Lines are looked into only where it has to be."""
        query = self._query
        begin, end = _bounds(found.first, found.last)
        since = query.since if query.since is not None and begin < query.since else None
        until = query.until if query.until is not None and end >= query.until else None
        if query.kind is Kind.FAILED:
            since, until = query.since, query.until
        # With the catalog, objects are chosen by what it knows of them.
        by_line = query.kind is Kind.FAILED and found.crc32c is None
        source = query.source_id if by_line else None
        workspace = query.workspace_id if by_line else None
        if not self._payload_only and all(one is None for one in (since, until, source, workspace)):
            return lambda line: line if not line.isspace() else b""

        def pick(line: bytes) -> bytes:
            if line.isspace():
                return b""
            event = _decode(line)
            if since is not None or until is not None:
                at = event.at
                if (since is not None and at < since) or (until is not None and at >= until):
                    return b""
            if (source is not None and event.source != source) or (workspace is not None and event.workspace != workspace):
                return b""
            return event.content if self._payload_only else line

        return pick


def _temporary() -> BinaryIO:
    try:
        return cast(BinaryIO, tempfile.TemporaryFile())
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> ConfigurationError:
    return ConfigurationError(f"no temporary file could be written: {error.strerror}", hint="set TMPDIR to a directory with room")


def _close(file: BinaryIO, _: object = None) -> None:
    with suppress(OSError):  # what was not written for want of room is tried once more
        file.close()


class _Event(msgspec.Struct):
    """A line: one of ours, or a job as RudderStack wrote its failures."""

    payload: msgspec.Raw = msgspec.Raw()
    created_at: str | None = msgspec.field(default=None, name="createdAt")
    failed_at: str | None = msgspec.field(default=None, name="failedAt")
    source_id: str | None = msgspec.field(default=None, name="sourceId")
    workspace_id: str | None = msgspec.field(default=None, name="workspaceId")
    their_payload: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="EventPayload")
    their_created_at: str | None = msgspec.field(default=None, name="CreatedAt")
    their_workspace_id: str | None = msgspec.field(default=None, name="WorkspaceId")
    their_parameters: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"null"), name="Parameters")

    @property
    def content(self) -> bytes:
        found = bytes(self.payload) or bytes(self.their_payload)
        if not found:
            raise ValueError("it has no payload")
        return found

    @property
    def at(self) -> int:
        text = self.failed_at or self.created_at or self.their_created_at
        if not text:
            raise ValueError("it has no time")
        when = datetime.fromisoformat(text)
        return microseconds(when if when.tzinfo else when.replace(tzinfo=UTC))

    @property
    def source(self) -> str:
        if self.source_id is not None:
            return self.source_id
        told: object = json.loads(bytes(self.their_parameters))
        return str(cast(dict[str, object], told).get("source_id", "")) if isinstance(told, dict) else ""

    @property
    def workspace(self) -> str:
        return self.workspace_id or self.their_workspace_id or ""


# isal has types for some of it only.
_gzip_file: Final[Callable[..., object]] = igzip.IGzipFile  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
_decode: Final = msgspec.json.Decoder(_Event).decode


def split_cursor(cursor: str) -> tuple[str, int | None]:
    """The key, and how many of its lines were read; None if all."""
    key, colon, lines = cursor.rpartition(":")
    return (key, int(lines)) if colon and lines.isdecimal() else (cursor, None)


def _opened(key: str, file: BinaryIO) -> closing[BinaryIO]:
    """An object's lines, whatever it is compressed with."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    raw: BinaryIO
    errors: tuple[type[Exception], ...] = ()
    if magic.startswith(b"\x1f\x8b"):
        raw = cast(BinaryIO, _gzip_file(fileobj=file, mode="rb"))
    elif magic == b"\x28\xb5\x2f\xfd":
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - for those who need it alone
        else:
            from backports import zstd  # noqa: PLC0415

        raw, errors = cast(BinaryIO, zstd.ZstdFile(file, "rb")), (zstd.ZstdError,)
    else:
        raise IntegrityError(f"{key} is neither gzip nor zstd")
    return closing(cast(BinaryIO, io.BufferedReader(_Checked(key, raw, errors), _BLOCK)))


class _Checked(io.RawIOBase):
    """Decompressed bytes. What is wrong with them is an IntegrityError."""

    def __init__(self, key: str, raw: BinaryIO, errors: tuple[type[Exception], ...]) -> None:
        self._key = key
        self._raw = raw
        self._errors: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, zlib.error, *errors)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._raw.read(len(buffer))
        except self._errors as error:
            raise IntegrityError(f"{self._key} is damaged: {error}") from error
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._raw.close()
        super().close()
