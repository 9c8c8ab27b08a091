"""Events back from the bucket: which objects there are, in which order, and what of their lines is wanted."""

from __future__ import annotations

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
from contextlib import closing
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
from jobs_backup.spool.status import look

_BLOCK: Final = 1 << 20
_PAGE: Final = 1000
_SECOND: Final = 1_000_000
_DAY: Final = 86_400 * _SECOND
_NEVER: Final = 1 << 62
_FAILED: Final = "rudder-proc-err-logs"
_RAW_KEY: Final = re.compile(
    r"(?P<source>[^/]+)/gw/\d{4}-\d\d-\d\d/\d{1,2}/[^/]+/(?P<first>\d+)_(?P<last>\d+)_(?P<workspace>[^/]*)_[^/_]+\.json\.(gz|zst)"
)
_FAILED_KEY: Final = re.compile(
    rf"{_FAILED}/\d\d-\d\d-\d{{4}}/(?P<first>\d+)\.[^/]+\.(?P<job>\d+)-\d+\.[0-9a-f-]{{32,36}}(\.(?P<workspace>[^/]*))?\.json\.(gz|zst)"
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
        first, last: times of its first and last event, as far as they are known: none is earlier, none is later.
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
        self._db.executemany("INSERT OR IGNORE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)", objects)
        self._db.execute("COMMIT")

    def totals(self) -> tuple[int, int, int | None]:
        """Objects, bytes, and events where they are known of all."""
        row = self._db.execute("SELECT count(*), coalesce(sum(size), 0), sum(events), count(events) FROM objects").fetchone()
        return row[0], row[1], (row[2] or 0) if row[3] == row[0] else None

    def objects(self, begin: str = "") -> Iterator[Found]:
        """From the object with the key `begin` on.

        Raises:
            ConfigurationError: there is no such object.
        """
        rows = self._db.execute("SELECT * FROM objects WHERE key=?", (begin,)).fetchall() if begin else []
        if begin and not rows:
            raise ConfigurationError(f"there is no object {begin!r} among those that are asked for", hint="correct --after")
        first = rows[0][:3] if rows else (-_NEVER, 0, "")
        found = self._db.execute("SELECT * FROM objects WHERE (first, tie, key) >= (?, ?, ?) ORDER BY first, tie, key", first)
        return map(Found._make, found)

    def close(self) -> None:
        """Remove it."""
        self._db.close()


def known(directory: Path, location: str, query: Query) -> Iterator[Found]:
    """The objects of a query that the catalog of a spool knows to stand in this bucket. Needs no right to list.

    Raises:
        SpoolError: there is no spool, or it can't be read.
    """
    try:
        with look(directory) as catalog:
            begin = 0
            while rows := catalog.overview.stored(location, query.kind, begin, _PAGE):
                begin = rows[-1].id
                for row in rows:
                    stream, other = row.stream, (query.source_id, query.workspace_id)
                    if all(want in (None, has) for want, has in zip(other, (stream.source_id, stream.workspace_id), strict=True)):
                        late = query.until is not None and row.first_at >= query.until
                        if not late and not (query.since is not None and row.last_at < query.since):
                            yield Found(row.first_at, row.id, row.key, row.last_at, row.size, row.crc32c, row.events)
    except SpoolError as error:
        hint = f"{error.hint}; or find the objects by listing the bucket: --list"
        raise SpoolError(error.message, hint=hint) from error


def listed(destination: Destination, prefix: str, query: Query) -> Iterator[Found]:
    """The objects of a query that stand in the bucket, as far as their keys tell: RudderStack's, too.

    Of raw events those of other times are left out. A failure's key tells when its object was made, not when its events were.

    Raises:
        PermissionDenied: the right to list is missing.
    """
    below = f"{prefix}/" if prefix else ""
    where, after, pattern = f"{below}{_FAILED}/", "", _FAILED_KEY
    if query.kind is Kind.RAW:
        where, pattern = below, _RAW_KEY
        if query.source_id is not None:
            where = f"{below}{safe_id(query.source_id)}/gw/"
            # An object lies where its first event does, which may be the day before.
            after = where + _day(query.since - _DAY) if query.since is not None else ""
    behind = where + _day(query.until) + "~" if query.source_id is not None and query.until is not None else ""
    token: str | None = after
    while token is not None:
        page = destination.list(where, token)
        for one in page.objects:
            if behind and query.kind is Kind.RAW and one.key > behind:
                return
            match = pattern.fullmatch(one.key.removeprefix(below))
            if match is not None and _is_wanted(match, query):
                first, last = int(match["first"]) * _SECOND, _NEVER
                if query.kind is Kind.RAW:
                    tie, last = int(match["last"]), (int(match["last"]) + 1) * _SECOND
                else:
                    tie = int(match["job"])
                yield Found(first, tie, one.key, last, one.size, None, None)
        token = page.after


def _is_wanted(match: re.Match[str], query: Query) -> bool:
    if query.workspace_id is not None and match["workspace"] not in (None, safe_id(query.workspace_id)):
        return False
    if query.kind is Kind.FAILED:
        return True
    if query.source_id is not None and match["source"] != safe_id(query.source_id):
        return False
    early = query.since is not None and (int(match["last"]) + 1) * _SECOND <= query.since
    return not early and not (query.until is not None and int(match["first"]) * _SECOND >= query.until)


def _day(at: int) -> str:
    return datetime.fromtimestamp(at / _SECOND, UTC).strftime("%Y-%m-%d")


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
        for found, file, error in self._fetched(selection.objects(key)):
            if error is not None:
                self.damaged.append(Damaged(found.key, error))
                # S3 answers so for a missing object, too, unless one may list. Once something was read, it is that.
                if isinstance(error, PermissionDenied) and not self.objects and len(self.damaged) >= self._window:
                    break
                continue
            with file:
                self.objects += 1
                self.bytes += found.size
                skipped = lines if found.key == key else 0
                if skipped is None:
                    continue
                try:
                    if not self._give(found, file, skipped, write, stop):
                        self.finished = self.limited
                        return
                except IntegrityError as damage:
                    self.damaged.append(Damaged(found.key, damage))
                    continue
                self.cursor = found.key
                done()
        if not self.objects and self.damaged and isinstance(self.damaged[0].error, PermissionDenied):
            raise self.damaged.pop(0).error
        self.finished = not stop.is_set()

    def _fetched(self, objects: Iterator[Found]) -> Generator[tuple[Found, BinaryIO, JobsBackupError | None]]:
        with ThreadPoolExecutor(self._window) as pool:
            window: deque[tuple[Found, BinaryIO, Future[object]]] = deque()
            try:
                while True:
                    while len(window) < self._window and (found := next(objects, None)) is not None:
                        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by who gets it
                        window.append((found, file, pool.submit(self._fetch, found, file)))
                    if not window:
                        return
                    found, file, future = window.popleft()
                    try:
                        future.result()
                    except (IntegrityError, ObjectNotFound, PermissionDenied) as error:
                        file.close()
                        yield found, file, error
                    except BaseException:
                        file.close()
                        raise
                    else:
                        yield found, file, None
            finally:
                for _, file, future in window:
                    future.cancel()
                    if future.cancelled():
                        file.close()
                    else:
                        future.add_done_callback(functools.partial(_close, file))

    def _fetch(self, found: Found, file: BinaryIO) -> None:
        known = found.crc32c is not None
        self._destination.fetch(found.key, file, size=found.size if known else None, crc=found.crc32c)
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
                        size += len(wanted)
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
        since = query.since if query.since is not None and found.first < query.since else None
        until = query.until if query.until is not None and found.last >= query.until else None
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


def _close(file: BinaryIO, _: object) -> None:
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
