"""Write the lines of a selection: objects are prefetched, several at once, and verified before their first line is written."""

from __future__ import annotations

import errno
import functools
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

import msgspec

from jobs_backup.errors import (
    ConfigurationError,
    IntegrityError,
    JobsBackupError,
    ObjectNotFound,
    PermissionDenied,
    WrapperMissing,
)
from jobs_backup.format.keys import formats_of
from jobs_backup.format.lines import MAX_PAYLOAD
from jobs_backup.replay.lines import line_filter, opened
from jobs_backup.replay.selection import ObjectRef, Query, Selection, split_cursor
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.util.exhaustion import explain

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOCK: Final = 1 << 20
_MAX_LINE: Final = 2 * MAX_PAYLOAD
"""Bytes: a payload and the fields around it."""


class Unwritten(JobsBackupError):
    """A block could not be written completely; `written` bytes of it were."""

    retryable = True

    def __init__(self, message: str, *, hint: str = "", written: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.written = written

    @property
    def code(self) -> str:
        return "Incomplete"


class Damaged(NamedTuple):
    """An object whose events could not be replayed, or not all of them."""

    key: str
    error: JobsBackupError


class Replay:
    """Replays the events of a selection.

    Attributes:
        events: written so far.
        objects, bytes: read so far.
        cursor: the place to resume from, as `KEY` or `KEY:LINES`: everything up to it was written. Empty at the beginning.
        damaged: objects that could not be replayed.
        unwrapped: format of an active wrapper -> number of objects made without it.
        finished: whether everything requested was written.
        limited: whether there are more events beyond the limit.
        seen: sources and workspaces of the query that were found in lines.
    """

    def __init__(
        self,
        store: ObjectStore,
        query: Query,
        *,
        payload_only: bool = False,
        wrapped_only: bool = False,
        limit: int | None = None,
        window: int = 4,
    ) -> None:
        """Prefetch `window` objects at a time, each into an unnamed file.

        With `wrapped_only`, an object made without an active wrapper counts as damaged.
        """
        self._store = store
        self._query = query
        self._payload_only = payload_only
        self._wrapped_only = wrapped_only
        self._limit = limit
        self._window = window
        self.events = 0
        self.objects = 0
        self.bytes = 0
        self.cursor = ""
        self.damaged: list[Damaged] = []
        self.unwrapped: Counter[str] = Counter()
        self.finished = False
        self.limited = False
        self.seen: set[str] = set()

    def run(
        self,
        selection: Selection,
        write: Callable[[bytes], object],
        stop: threading.Event,
        done: Callable[[], object],
        after: str = "",
    ) -> None:
        """Write lines, in blocks of about 1 MiB, until the end, the limit, or `stop` is set. Calls `done` after each object.

        Raises:
            ConfigurationError: `after` is not a place in this selection.
            StorageError: nothing can be read. `cursor` shows what was written until then.
            Unwritten: raised by `write`.
        """
        key, lines = split_cursor(after)
        self.cursor = after
        refused: list[JobsBackupError] = []
        for found, file, error in self._fetched(selection.objects(key, behind=lines is None)):
            if error is not None:
                self.damaged.append(Damaged(found.key, error))
                # Without permission to list, S3 also denies access to missing objects. A single object may need a wrapper or a key
                # that is missing. Once anything was read, a refusal means one of these.
                if isinstance(error, PermissionDenied | WrapperMissing) and not self.objects:
                    refused.append(error)
                    if isinstance(error, PermissionDenied) and len(refused) >= self._window:
                        break
                continue
            with file:
                if stop.is_set():
                    return
                self.objects += 1
                self.unwrapped.update(self._store.wrappers.left_out(formats_of(found.key)))
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
            self.damaged = [one for one in self.damaged if not isinstance(one.error, PermissionDenied | WrapperMissing)]
            raise refused[0]
        self.finished = not stop.is_set()

    def _fetched(self, objects: Iterator[ObjectRef]) -> Generator[tuple[ObjectRef, BinaryIO, JobsBackupError | None]]:
        with ThreadPoolExecutor(self._window) as pool:
            window: deque[tuple[ObjectRef, BinaryIO, Future[object]]] = deque()
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
                    except (IntegrityError, ObjectNotFound, PermissionDenied, WrapperMissing) as error:
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

    def _fetch(self, found: ObjectRef, file: BinaryIO) -> None:
        known = found.crc32c is not None
        if self._wrapped_only and (missing := self._store.wrappers.left_out(formats_of(found.key))):
            raise IntegrityError(f"{found.key} has no .{missing[0]}: it was recorded without it, or something else wrote it")
        try:
            self._store.fetch(found.key, file, size=found.size if known else None, crc=found.crc32c)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise _no_room(error) from error
        if not known:
            # The format's own checksums are at the ends of its pieces: write nothing before all were checked.
            with opened(found.key, file) as lines:
                _check_lines(found.key, lines)
            file.seek(0)

    def _give(self, found: ObjectRef, file: BinaryIO, skip: int, write: Callable[[bytes], object], stop: threading.Event) -> bool:
        """Return whether to continue."""
        pick = line_filter(self._query, found, self.seen, payload_only=self._payload_only)
        block: list[bytes] = []
        places: list[int] = []
        size, number, goes_on = 0, 0, True

        def flush() -> None:
            if block:
                data = b"".join(block)
                try:
                    write(data)
                except Unwritten as error:
                    if written := data.count(b"\n", 0, error.written):
                        self.events += written
                        self.cursor = f"{found.key}:{places[written - 1] + 1}"
                    raise
                self.events += len(block)
            block.clear()
            places.clear()
            if number > skip:
                self.cursor = f"{found.key}:{number}"

        with opened(found.key, file) as lines:
            for line in lines:
                if number >= skip:
                    if self._limit is not None and self.events + len(block) >= self._limit:
                        self.limited, goes_on = True, False
                        break
                    try:
                        wanted = pick(line)
                    except (msgspec.DecodeError, ValueError, RecursionError) as error:
                        flush()
                        raise IntegrityError(f"{found.key}: line {number + 1} is not an event: {error}") from None
                    if wanted:
                        block.append(wanted if wanted.endswith(b"\n") else wanted + b"\n")
                        places.append(number)
                size += len(line)  # also for unwanted lines, so that `stop` is checked
                number += 1
                if size >= _BLOCK:
                    flush()
                    size = 0
                    if stop.is_set():
                        return False
        flush()
        return goes_on and not stop.is_set()


def _check_lines(key: str, lines: BinaryIO) -> None:
    """Read all lines in constant memory, since anybody may have made the object. Raises IntegrityError."""
    length = 0
    while block := lines.read(_BLOCK):
        newline = block.rfind(b"\n")
        length = len(block) - newline if newline >= 0 else length + len(block)
        if length > _MAX_LINE:
            raise IntegrityError(f"{key} has a line of more than {_MAX_LINE >> 20} MiB, which jobs-backup never writes")


def _temporary() -> BinaryIO:
    try:
        return cast(BinaryIO, tempfile.TemporaryFile())
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> ConfigurationError:
    why, hint = explain(error, Path(tempfile.gettempdir()), "set TMPDIR to a directory with free space")
    if error.errno in _NO_ROOM:
        hint = "set TMPDIR to a directory with free space"
    return ConfigurationError(f"cannot write a temporary file: {why}", hint=hint)


def _close(file: BinaryIO, _: object = None) -> None:
    with suppress(OSError):  # closing retries what was not written for lack of space
        file.close()
