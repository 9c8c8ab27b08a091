"""Read inputs into the spool, line by line, for the commands: unusable lines are rejected, the others are kept."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from jobs_backup.backup.session import Session
from jobs_backup.errors import (
    AmbiguousInput,
    ConfigurationError,
    InvalidEvent,
    SpoolFull,
    UnknownJob,
)
from jobs_backup.inputs.contents import Contents, Known, digest, moved
from jobs_backup.inputs.formats import BOM, Stopped
from jobs_backup.inputs.identity import Fingerprint, Position, Sample, SeenFile
from jobs_backup.inputs.ndjson import MAX_LINE, Block, Input, LongLine, Reader
from jobs_backup.inputs.recognition import Found, Recognition, new_id
from jobs_backup.inputs.rejects import Rejects, rejects_name, rejects_path, short_name
from jobs_backup.spool.interface import InputPosition

T = TypeVar("T")
_ROOM_SECONDS: Final = 0.1
_BLANKS: Final = b" \t\r"
_TRUNCATED: Final = "Input data was truncated"
"""msgspec's message for the beginning of valid JSON."""
_is_json: Final = msgspec.json.Decoder(msgspec.Raw).decode
_ENDS_OF_VALUES: Final = b'}]"'
"""After any other byte, a JSON value may continue: it is a number."""

_TICK: Final = 2_000_000_000
"""Nanoseconds within which two writes may leave the same time, on any file system (FAT's are two seconds)."""


class Handler(Protocol[T]):
    """How a command handles lines."""

    job: str | None
    """Identifies this use of a file, so that the next run resumes it. None: always read files from the beginning."""

    begins: bytes
    """Bytes that one of its lines may begin with, after blanks."""

    def parser(self) -> Callable[[bytes], T | None]:
        """Make a parser for each line of the next block; it returns None for a line without meaning.

        It raises InvalidEvent or UnknownJob for an unusable line.
        """
        ...

    def keep(self, found: Sequence[T | None], position: InputPosition | None) -> None:
        """Make the results durable, together with the position. One per line: None if the line had nothing usable.

        If it raises SpoolFull, it has kept nothing, and may be called again.
        """
        ...

    def announce(self) -> None:
        """Announce what `keep` has kept, once that is counted: output may fail, and the events are recorded."""


class InputOptions(NamedTuple):
    """How inputs are read.

    Attributes:
        again: read files from their beginning, whatever was read of them before.
        append_only: files only grow, and are never emptied.
        allow_rejects: rejected lines do not change the exit code.
    """

    again: bool = False
    append_only: bool = False
    allow_rejects: bool = False


class Report(Protocol):
    """Progress of an input while it is read."""

    def note(self, text: str) -> None:
        """Tell the user something."""

    def taken(self, count: int, read: int) -> None:
        """Report `count` more lines, and `read` bytes of the current file so far."""

    def resumed(self) -> None:
        """Report that it resumes where an earlier run ended."""

    def rejected(self, why: str) -> None:
        """Report a line that is not an event."""

    def rejects_kept(self, lines: int, path: Path) -> None:
        """Report that the file `path` now holds this number of further rejected lines."""

    def rejected_before(self, path: Path) -> None:
        """Report that earlier runs rejected lines of this input, kept in the file `path`. Raises SpoolError."""

    def left(self, name: str, line: int, size: int) -> None:
        """Report an unfinished line, left for the next run."""


class Ingest(Generic[T]):
    """Reads one input."""

    def __init__(
        self,
        session: Session,
        source: Input,
        handler: Handler[T],
        contents: Contents,
        report: Report,
        stop: threading.Event,
        options: InputOptions,
    ) -> None:
        self._session = session
        self._spool = session.spool
        self._input = source
        self._handler = handler
        self._contents = contents
        self._report = report
        self._rejects = session.settings.rejects_path
        self._stop = stop
        self._options = options
        # Standard input has no path, and the working directory need not exist for it.
        name = source.name if source.path is None else os.path.realpath(source.name)
        names = [name, str(handler.job)]
        self._path_id = digest("\0".join([*names, *filter(None, [session.spool.host])]))[:32]
        self._path_ids = (self._path_id, *moved(session.spool, digest("\0".join(names))[:32]))
        self._id: str | None = None
        """Id of the position; None if none is kept."""
        self._reached = Position()
        self._stored: Position | None = None
        self._opened: SeenFile | None = None
        self._seen: SeenFile | None = None
        self._unfinished = False
        self._unkept = 0
        """Rejected lines that the disk may not hold yet."""

    def take(self) -> None:
        """Read what was not read before.

        Raises:
            ConfigurationError: the input cannot be read, or another process is reading it.
            AmbiguousInput: cannot determine whether it was read before.
            SpoolError: what was read cannot be kept.
        """
        with suppress(Stopped):  # before anything was read
            if self._input.path is None:  # no other process shares standard input
                with self._input.open(self._stop) as reader:
                    self._read(reader)
                return
            lock = self._input.lock()
            with self._spool.reading(digest(lock + self._contents.prefix)[:32]) as granted:
                self._check_granted(granted=granted)
                with self._input.open(self._stop, lock) as reader:
                    self._read(reader)

    def _read(self, reader: Reader) -> None:
        opened = self._input.opened
        if opened is None or self._handler.job is None:
            self._reached = Position(rejects_name=rejects_name(self._input.name, self._unique()))
            self._take_all(reader, committed=None)
            return
        # Until its end is read, a write may leave the time unchanged.
        self._opened, self._seen = opened, msgspec.structs.replace(opened, changed=0)
        self._contents.load()
        known = self._contents.is_unchanged(opened)
        if known is not None and not self._options.again:
            self._report.resumed()
            self._remember_rejects(known.position)
            return
        self._contents.look()
        while not self._is_taken(self._find(reader, opened), reader):
            pass

    def _is_taken(self, found: Found, reader: Reader) -> bool:
        """Read on from there; False if another process has done so in the meantime."""
        # Another reader of the same content, under another name in another file, also keeps this position.
        with self._spool.reading(self._id or "") as granted:
            self._check_granted(granted=granted)
            if found.known is not None and found.known.id and not self._contents.is_current(found.known):
                return False
            self._take_from(found, reader)
            return True

    def _find(self, reader: Reader, seen: SeenFile) -> Found:
        """Find where to resume."""
        again = self._options.again
        before: InputPosition | None = None
        if self._contents.in_file(seen) is None and self._contents.at_path(seen) is None:
            before = next(filter(None, map(self._spool.position, self._path_ids)), None)
        earlier = Known.of(before)._replace(id="") if before is not None else None
        recognition = Recognition(reader, seen, self._contents, earlier, append_only=self._options.append_only)
        try:
            found = recognition.find()
        except AmbiguousInput:
            if not again:
                raise
            found = Found(None, Fingerprint(), Sample())
        if found.known is None and recognition.is_replaced and not again:
            self._report.note(f"{self._input.name} is another file than at the last run: it is read from its beginning")
        self._id = (found.known.id if found.known else "") or new_id(self._contents.prefix)
        return found

    def _take_from(self, found: Found, reader: Reader) -> None:
        known = found.known
        self._reached = known.position if known else Position()
        self._stored = known.position if known and known.id else None
        if not self._reached.rejects_name:
            unique = self._path_id[:8] if known else self._unique()
            name = short_name(self._input.name)
            self._reached = msgspec.structs.replace(self._reached, name=name, rejects_name=rejects_name(self._input.name, unique))
        if known is None or self._options.again:
            reader.go_to(Fingerprint(), Sample())
            self._take_all(reader, committed=None)
            return
        before = known.position.seen
        if before is not None and self._seen is not None and before.path != self._seen.path:
            line = known.position.line + 1
            self._report.note(f"{self._input.name} holds what was read as {known.position.name}: it is read from line {line:,}")
        self._report.resumed()
        self._remember_rejects(known.position)
        reader.go_to(found.fingerprint, found.sample)
        self._take_all(reader, committed=known.position.rejects)

    def _take_all(self, reader: Reader, *, committed: int | None) -> None:
        path = rejects_path(self._rejects, self._reached.rejects_name)
        with closing(Rejects(path, committed)) as rejects:
            self._reached = self._position(reader, rejects)
            for part in reader.parts():
                if isinstance(part, LongLine):
                    self._put_aside(part, reader, rejects)
                else:
                    self._take(part, reader, rejects)
            if not self._stop.is_set():
                self._finish(reader, rejects)

    def _finish(self, reader: Reader, rejects: Rejects) -> None:
        """At the end, note the file's present state, by which to recognize it."""
        now = reader.seen()
        reader.check()
        if now is None or self._id is None:
            return
        is_still = now == self._opened and not self._unfinished and time.time_ns() - now.changed > _TICK
        self._seen = now if is_still else msgspec.structs.replace(now, changed=0)
        # An unfinished line is not passed.
        end = msgspec.structs.replace(self._reached, seen=self._seen) if self._unfinished else self._position(reader, rejects)
        if end != self._stored:
            self._keep([], reader, end)

    def _remember_rejects(self, position: Position) -> None:
        """Count earlier rejects in the exit code until their file is removed."""
        if position.rejects:
            self._report.rejected_before(rejects_path(self._rejects, position.rejects_name))

    def _take(self, block: Block, reader: Reader, rejects: Rejects) -> None:
        parse = self._handler.parser()
        found: list[T | None] = []
        for number, line in enumerate(block.lines, block.first):
            one: T | None = None
            if line and not line.isspace():
                try:
                    if block.continued and number == block.first:
                        raise InvalidEvent("not a complete line: the last run read its beginning")
                    if block.unfinished and line.rstrip()[-1] not in _ENDS_OF_VALUES and self._may_go_on(line):
                        self._leave(number, block.hole + len(line))  # a number
                        return
                    one = _parsed(parse, line)
                except (InvalidEvent, UnknownJob) as error:
                    if block.unfinished and (block.continued or self._may_go_on(line)):
                        self._leave(number, block.hole + len(line))
                        return
                    rejects.add(line, b"\n")
                    self._reject(f"{self._input.name}:{number}: {error.one_line()}")
            found.append(one)
        block.lines.clear()  # they may be large, and the block lives until the next one is read
        if block.unfinished and found == [None]:
            self._unfinished = True  # blank so far, or rejected with more to come
            self._sync(rejects)
        else:
            self._keep(found, reader, self._position(reader, rejects))

    def _may_go_on(self, line: bytes) -> bool:
        return may_go_on(line, self._handler.begins)

    def _leave(self, number: int, size: int) -> None:
        self._unfinished = True
        self._report.left(self._input.name, number, size)

    def _put_aside(self, line: LongLine, reader: Reader, rejects: Rejects) -> None:
        for piece in line.pieces:
            rejects.add(piece)
        rejects.add(b"\n")
        self._reject(f"{self._input.name}:{line.number}: longer than {MAX_LINE >> 20} MiB")
        self._sync(rejects)
        if not self._stop.is_set():  # otherwise its end may not have been read
            self._keep([None], reader, self._position(reader, rejects))

    def _position(self, reader: Reader, rejects: Rejects) -> Position:
        return msgspec.structs.replace(
            reader.position(),
            rejects=self._sync(rejects),
            name=self._reached.name,
            rejects_name=self._reached.rejects_name,
            seen=self._seen,
        )

    def _keep(self, found: Sequence[T | None], reader: Reader, reached: Position) -> None:
        """Keep the results together with the position reached. The rejects before it are on disk."""
        reader.check()
        position: InputPosition | None = None
        if self._id is not None:
            position = InputPosition(self._id, self._contents.next_at(), msgspec.json.encode(reached))
        waits = True
        while True:
            try:
                self._handler.keep(found, position)
                break
            except SpoolFull:
                if self._stop.is_set() or not waits:
                    raise
                self._stop.wait(_ROOM_SECONDS)
                # While uploads continue, there will be room.
                waits = self._session.archiver is not None and not self._session.archiver.drain(0)
        if position is not None:
            self._contents.note(Known(position.input, position.at, reached))
        self._reached = self._stored = reached
        self._report.taken(sum(one is not None for one in found), reader.read)
        self._handler.announce()

    def _reject(self, why: str) -> None:
        self._unkept += 1
        self._report.rejected(why)

    def _sync(self, rejects: Rejects) -> int:
        """Count rejected lines once the disk holds them. Returns the size of their file."""
        size = rejects.sync()
        if self._unkept:
            self._spool.recorded.rejected += self._unkept
            self._report.rejects_kept(self._unkept, rejects.path)
            self._unkept = 0
        return size

    def _check_granted(self, *, granted: bool) -> None:
        if not granted:
            raise ConfigurationError(f"{self._input.name}: another process is reading it", hint="wait until it ends")

    def _unique(self) -> str:
        if self._id is not None:
            return self._id[-8:]
        return f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}" if self._input.size is None else self._path_id[:8]


def may_go_on(line: bytes, begins: bytes) -> bool:
    """Whether the end of an input may be the beginning of a JSON value that begins with one of these bytes."""
    text = _bare(line).lstrip(_BLANKS)
    if not text or BOM.startswith(text):
        return True
    if text[:1] not in begins:
        return False
    for end in (b"", b"0"):  # a number may so far end with a sign, a point or an exponent
        try:
            _is_json(text + end)
        except msgspec.DecodeError as error:
            if str(error) == _TRUNCATED:
                return True
        except RecursionError:
            return False
        else:
            return text.rstrip(_BLANKS)[-1] not in _ENDS_OF_VALUES
    return False


def _bare(line: bytes) -> bytes:
    """Strip a byte order mark, and the hole in a file that was truncated while its writer kept its offset."""
    return line.lstrip(b"\0").removeprefix(BOM)


def _parsed(parse: Callable[[bytes], T | None], line: bytes) -> T | None:
    try:
        return parse(line)
    except (InvalidEvent, UnknownJob):
        bare = _bare(line)
        if len(bare) == len(line):
            raise
        if line.startswith(BOM) and not bare.strip():
            return None
        return parse(bare)
