"""`jobs-backup run`: NDJSON from files or standard input into the bucket."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import click
import msgspec

from jobs_backup import encoding
from jobs_backup.backup import Backup
from jobs_backup.cli.ndjson import MAX_LINE, Block, Input, LongLine, Position, Reader
from jobs_backup.cli.options import (
    bound_memory,
    check_text,
    leave,
    read_settings,
    say,
    stopping,
    summarize_failures,
    with_environment,
)
from jobs_backup.cli.progress import Progress, progress
from jobs_backup.cli.rejects import Rejects
from jobs_backup.cli.summary import Summary
from jobs_backup.errors import ConfigurationError, InvalidEvent, SpoolCorrupt, SpoolError, SpoolFull
from jobs_backup.model import Kind, Stream
from jobs_backup.settings import Duration

_REPORTED_REJECTS: Final = 20
_LOOK_SECONDS: Final = Duration(1)
"""So often it looks whether waiting for room in a full spool makes sense."""


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[FILES]...")
@click.option("--source-id", required=True, help="The source that the events come from; the first part of their keys.")
@click.option("--workspace-id", help="The workspace that the source belongs to.  [default: JOBS_BACKUP_WORKSPACE_ID]")
@click.option("--again", is_flag=True, help="Read files from their beginning, also where an earlier run has read them.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@with_environment
def run(files: tuple[Path, ...], source_id: str, workspace_id: str | None, again: bool, as_json: bool) -> None:
    """Back up FILES (or standard input): NDJSON, one event's payload a line, `.gz` too.

    Run again on the same file, it goes on where it was, however the last run ended. A line that is no JSON object,
    or longer than 256 MiB, is put aside; a last line that is still being written is left for the next run.

    \b
    Example:
      jobs-backup run events.ndjson --source-id web --env-file docker.env
    """
    for option, text in (("--source-id", source_id), ("--workspace-id", workspace_id or "")):
        check_text(option, text)
    if not source_id:
        raise ConfigurationError("--source-id is empty", hint="say which source the events come from")
    inputs = [Input(None if str(file) == "-" else file) for file in files or (Path("-"),)]
    bound_memory()
    summarize_failures()
    with stopping() as stop:
        settings = read_settings()
        stream = Stream(Kind.RAW, settings.workspace_id if workspace_id is None else workspace_id, source_id)
        backup = Backup(msgspec.structs.replace(settings, spool_full_timeout=_LOOK_SECONDS))
        summary = Summary(backup, go_on=_how_to_go_on(inputs, again=again))
        with progress(backup, inputs) as shown:
            for one in inputs:
                try:
                    _Recorder(backup, one, stream, summary, shown, stop).record(again=again)
                except ConfigurationError as error:
                    summary.problem(error)
                except SpoolError as error:
                    summary.problem(error)
                    break  # the others would meet it, too
            summary.finish(stop, shown)
        code = summary.show(as_json=as_json, interrupted=stop.is_set())
    leave(code, backup)


def _how_to_go_on(inputs: Sequence[Input], *, again: bool) -> str:
    if any(one.size is None for one in inputs):
        return ""  # what was read from a stream can't be read again
    return "run the same command without --again" if again else "run the same command again"


class _Recorder:
    """Records one input, and the position in it with every commit."""

    def __init__(
        self, backup: Backup, source: Input, stream: Stream, summary: Summary, shown: Progress, stop: threading.Event
    ) -> None:
        self._backup = backup
        self._input = source
        self._stream = stream
        self._summary = summary
        self._shown = shown
        self._stop = stop
        # The same file under another source is another job; the destination may be corrected, the events stay the same.
        name = "\0".join((os.path.realpath(source.name), stream.workspace_id, stream.source_id))
        self._id = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def record(self, *, again: bool) -> None:
        """Record what was not recorded yet.

        Raises:
            ConfigurationError: the input can't be read, or another process reads it.
            SpoolError: what was read can't be recorded.
        """
        if self._input.path is None:  # standard input is nobody else's
            self._read(again=again)
            return
        with self._backup.spool.reading(self._id) as granted:
            if not granted:
                raise ConfigurationError(f"{self._input.name}: another process is backing it up", hint="wait for its end")
            self._read(again=again)

    def _read(self, *, again: bool) -> None:
        with self._input.open() as reader:
            position = None if again else self._go_on(reader)
            path = self._backup.spool.directory / "rejects" / _rejects_name(self._input, self._id)
            with closing(Rejects(path, position.rejects if position else None)) as rejects:
                for part in reader.parts(self._stop):
                    if isinstance(part, LongLine):
                        self._put_aside(part, reader, rejects)
                    else:
                        self._record(part, reader, rejects)

    def _go_on(self, reader: Reader) -> Position | None:
        known = None if self._input.size is None else self._backup.spool.position(self._id)
        if known is None:
            return None
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

    def _record(self, block: Block, reader: Reader, rejects: Rejects) -> None:
        at = encoding.now()
        text = encoding.timestamp(at)
        lines: list[bytes] = []
        for number, payload in enumerate(block.lines, block.first):
            if not payload or payload.isspace():
                continue
            try:
                if block.continued and number == block.first:
                    raise InvalidEvent("not a line of its own: what stands before it was recorded by the last run")
                lines.append(encoding.raw_line(payload, text))
            except InvalidEvent as error:
                if block.unfinished:
                    say(f"{self._input.name}:{number}: an unfinished line is left for the next run")
                else:
                    self._reject(f"{self._input.name}:{number}: {error}", rejects)
                    rejects.add(payload, b"\n")
        block.lines.clear()  # they may be large, and the block lives until the next one is read
        if lines or not block.unfinished:
            self._commit(lines, at, reader, rejects)

    def _put_aside(self, line: LongLine, reader: Reader, rejects: Rejects) -> None:
        self._reject(f"{self._input.name}:{line.number}: longer than {MAX_LINE >> 20} MiB", rejects)
        for piece in line.pieces:
            rejects.add(piece)
        rejects.add(b"\n")
        if not self._stop.is_set():  # else its end may not have been read
            self._commit([], encoding.now(), reader, rejects)

    def _commit(self, lines: list[bytes], at: int, reader: Reader, rejects: Rejects) -> None:
        """Record lines together with the position that was reached, and the rejects before both."""
        reached = reader.position(rejects.sync())
        position = None if self._input.size is None else (self._id, msgspec.json.encode(reached))
        waits = True
        while True:
            try:
                self._backup.record_lines(self._stream, lines, at=at, position=position)
                break
            except SpoolFull:
                if self._stop.is_set() or not waits:
                    raise
                # As long as something is being sent, there will be room.
                waits = self._backup.archiver is not None and not self._backup.archiver.drain(0)
        self._summary.events += len(lines)
        self._shown.recorded(len(lines), reader.read)

    def _reject(self, why: str, rejects: Rejects) -> None:
        self._summary.rejected += 1
        if self._summary.rejected <= _REPORTED_REJECTS:
            say(why)
        elif self._summary.rejected == _REPORTED_REJECTS + 1:
            say("more lines are no events; they are in the rejects file, too")
        if rejects.path not in self._summary.rejects:
            self._summary.rejects.append(rejects.path)


def _rejects_name(source: Input, id_: str) -> str:
    unique = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}" if source.size is None else id_[:8]
    # Cut by bytes, since that is what file systems limit; bytes that are no whole characters of UTF-8 are left out.
    name = os.fsencode(Path(source.name).name.replace(" ", "-"))[:160].decode("utf-8", "ignore")
    return f"{name}-{unique}.ndjson"
