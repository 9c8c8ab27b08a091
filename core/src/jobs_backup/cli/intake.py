"""Reads inputs line by line into the spool, for the commands that do: what can't be used is put aside, and the rest goes on."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar

import msgspec

from jobs_backup import encoding
from jobs_backup.backup import Backup
from jobs_backup.cli.ndjson import MAX_LINE, Block, Input, LongLine, Position, Reader
from jobs_backup.cli.options import say
from jobs_backup.cli.process import bound_memory, leave, monitored_backup, stopping
from jobs_backup.cli.progress import Progress, progress
from jobs_backup.cli.rejects import Rejects
from jobs_backup.cli.summary import Counted, Summary
from jobs_backup.core_settings import CoreSettings
from jobs_backup.errors import ConfigurationError, InvalidEvent, JobsBackupError, SpoolCorrupt, SpoolFull, UnknownJob
from jobs_backup.spool.blobs import InputPosition
from jobs_backup.values import Duration

T = TypeVar("T")
_REPORTED: Final = 20
_ROOM_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = Duration(1)
"""So often it looks whether waiting for room in a full spool makes sense."""


class Handler(Protocol[T]):
    """What a command makes of lines."""

    job: str | None
    """Tells this use of a file from others, so that the next run goes on where this one was; None to read files from their
    beginning, always."""

    def parser(self) -> Callable[[bytes], T | None]:
        """What makes something of each line of the next block; None of a line that means nothing.

        It raises InvalidEvent or UnknownJob where it can't.
        """
        ...

    def keep(self, found: Sequence[T | None], position: InputPosition | None) -> None:
        """Make it durable, together with the position. There is one for each line: None where there was nothing to be used.

        Where it raises SpoolFull it has kept nothing, and may be called again.
        """
        ...


def inputs_of(files: Sequence[Path]) -> list[Input]:
    """The inputs that were named; standard input, if none was.

    Raises:
        ConfigurationError: one of them can't be read.
    """
    return [Input(None if str(file) == "-" else file) for file in files or (Path("-"),)]


def take_in(
    inputs: Sequence[Input],
    settings: CoreSettings,
    counted: Counted,
    make_handler: Callable[[Backup, Summary, threading.Event], Handler[Any]],
    *,
    again: bool = False,
    as_json: bool = False,
    is_measured: bool = False,
) -> NoReturn:
    """Read the inputs, send what can be sent, print the summary, and leave.

    `is_measured`: it writes JOBS_BACKUP_METRICS_FILE, which only one of the processes on a spool should.
    """
    bound_memory()
    with stopping() as stop:
        # No port: two of them at once shall not need two.
        own = msgspec.structs.replace(
            settings,
            spool_full_timeout=_LOOK_SECONDS,
            metrics_port=None,
            metrics_file=settings.metrics_file if is_measured else None,
        )
        with monitored_backup(own, stop) as backup:
            summary = Summary(backup, counted, go_on=_how_to_go_on(inputs, again=again))
            handler = make_handler(backup, summary, stop)
            with progress(backup, inputs, counted) as shown:
                for one in inputs:
                    try:
                        Intake(backup, one, handler, summary, shown, stop).take(again=again)
                    except ConfigurationError as error:
                        summary.problem(error)
                    except JobsBackupError as error:
                        summary.problem(error)
                        break  # the others would meet it, too
                summary.finish(stop, shown)
        code = summary.show(as_json=as_json, interrupted=stop.is_set())
    leave(code, backup)


def _how_to_go_on(inputs: Sequence[Input], *, again: bool) -> str:
    if any(one.size is None for one in inputs):
        return ""  # what was read from a stream can't be read again
    return "run the same command without --again" if again else "run the same command again"


class Intake(Generic[T]):
    """Reads one input."""

    def __init__(
        self, backup: Backup, source: Input, handler: Handler[T], summary: Summary, shown: Progress, stop: threading.Event
    ) -> None:
        self._backup = backup
        self._input = source
        self._handler = handler
        self._summary = summary
        self._shown = shown
        self._stop = stop
        name = f"{os.path.realpath(source.name)}\0{handler.job}"
        self._id = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        self._keeps_position = source.size is not None and handler.job is not None
        self._position_at = 0

    def take(self, *, again: bool) -> None:
        """Take in what was not taken in yet.

        Raises:
            ConfigurationError: the input can't be read, or another process reads it.
            SpoolError: what was read can't be kept.
        """
        if self._input.path is None:  # standard input is nobody else's
            self._read(again=again)
            return
        with self._backup.spool.reading(self._id) as granted:
            if not granted:
                raise ConfigurationError(f"{self._input.name}: another process is reading it", hint="wait for its end")
            self._read(again=again)

    def _read(self, *, again: bool) -> None:
        with self._input.open() as reader:
            known = self._backup.spool.position(self._id) if self._keeps_position else None
            self._position_at = known.at if known else 0
            position = None if again or known is None else self._go_on(reader, known.position)
            path = self._backup.spool.directory / "rejects" / _rejects_name(self._input, self._id)
            with closing(Rejects(path, position.rejects if position else None)) as rejects:
                for part in reader.parts(self._stop):
                    if isinstance(part, LongLine):
                        self._put_aside(part, reader, rejects)
                    else:
                        self._take(part, reader, rejects)

    def _go_on(self, reader: Reader, known: bytes) -> Position | None:
        try:
            position = msgspec.json.decode(known, type=Position)
        except msgspec.DecodeError as error:
            raise SpoolCorrupt(
                f"{self._input.name}: how far it was read is not what was written: {error}",
                hint="look at the disk; --again reads it from its beginning",
            ) from error
        if not reader.go_to(position):
            say(f"{self._input.name} is not the file that it was at the last run: it is read from its beginning")
            return None
        self._summary.resumed = True
        return position

    def _take(self, block: Block, reader: Reader, rejects: Rejects) -> None:
        parse = self._handler.parser()
        found: list[T | None] = []
        for number, line in enumerate(block.lines, block.first):
            one: T | None = None
            if line and not line.isspace():
                try:
                    if block.continued and number == block.first:
                        raise InvalidEvent("not a line of its own: what stands before it was read by the last run")
                    one = parse(line)
                except (InvalidEvent, UnknownJob) as error:
                    if block.unfinished:
                        say(f"{self._input.name}:{number}: an unfinished line is left for the next run")
                        return
                    self._reject(f"{self._input.name}:{number}: {error.one_line()}", rejects)
                    rejects.add(line, b"\n")
            found.append(one)
        block.lines.clear()  # they may be large, and the block lives until the next one is read
        if not block.unfinished or found != [None]:
            self._keep(found, reader, rejects)

    def _put_aside(self, line: LongLine, reader: Reader, rejects: Rejects) -> None:
        self._reject(f"{self._input.name}:{line.number}: longer than {MAX_LINE >> 20} MiB", rejects)
        for piece in line.pieces:
            rejects.add(piece)
        rejects.add(b"\n")
        if not self._stop.is_set():  # else its end may not have been read
            self._keep([None], reader, rejects)

    def _keep(self, found: Sequence[T | None], reader: Reader, rejects: Rejects) -> None:
        """Keep what was found together with the position that was reached, and the rejects before both."""
        reached = reader.position(rejects.sync())
        # The latest is the one that counts, also where the clock was set back.
        self._position_at = max(encoding.now(), self._position_at + 1)
        position = InputPosition(self._id, self._position_at, msgspec.json.encode(reached)) if self._keeps_position else None
        waits = True
        while True:
            try:
                self._handler.keep(found, position)
                break
            except SpoolFull:
                if self._stop.is_set() or not waits:
                    raise
                self._stop.wait(_ROOM_SECONDS)
                # As long as something is being sent, there will be room.
                waits = self._backup.archiver is not None and not self._backup.archiver.drain(0)
        kept = sum(one is not None for one in found)
        self._summary.count += kept
        self._shown.taken(kept, reader.read)

    def _reject(self, why: str, rejects: Rejects) -> None:
        self._summary.rejected += 1
        if self._summary.rejected <= _REPORTED:
            say(why, "Rejected")
        elif self._summary.rejected == _REPORTED + 1:
            say("more lines can't be used; they are in the rejects file, too", "Rejected")
        if rejects.path not in self._summary.rejects:
            self._summary.rejects.append(rejects.path)


def _rejects_name(source: Input, id_: str) -> str:
    unique = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}" if source.size is None else id_[:8]
    # Cut by bytes, since that is what file systems limit; bytes that are no whole characters of UTF-8 are left out.
    name = os.fsencode(Path(source.name).name.replace(" ", "-"))[:160].decode("utf-8", "ignore")
    return f"{os.fsdecode(name.encode())}-{unique}.ndjson"  # the system's encoding may be another one
