"""`jobs-backup run`: NDJSON from files or standard input into the bucket."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import msgspec

from jobs_backup import encoding
from jobs_backup.backup import Backup
from jobs_backup.cli.ndjson import Block, Input, Position
from jobs_backup.cli.options import bound_memory, leave, read_settings, say, stopping, summarize_failures, with_environment
from jobs_backup.cli.progress import Progress, progress
from jobs_backup.cli.summary import Summary
from jobs_backup.errors import ConfigurationError, InvalidEvent, SpoolError
from jobs_backup.model import Kind, Stream

_REPORTED_REJECTS: Final = 20


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[FILES]...")
@click.option("--source-id", required=True, help="The source that the events come from; the first part of their keys.")
@click.option("--workspace-id", help="The workspace that the source belongs to.  [default: JOBS_BACKUP_WORKSPACE_ID]")
@click.option("--again", is_flag=True, help="Read files from their beginning, also where an earlier run has read them.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@with_environment
def run(files: tuple[Path, ...], source_id: str, workspace_id: str | None, again: bool, as_json: bool) -> None:
    """Back up FILES (or standard input): NDJSON, one event's payload a line, `.gz` too.

    Run again on the same file, it goes on where it was, however the last run ended. A line that is no JSON object is put aside.

    \b
    Example:
      jobs-backup run events.ndjson --source-id web --env-file docker.env
    """
    if not source_id:
        raise ConfigurationError("--source-id is empty", hint="say which source the events come from")
    inputs = [Input(None if str(file) == "-" else file) for file in files or (Path("-"),)]
    bound_memory()
    summarize_failures()
    with stopping() as stop:
        settings = read_settings()
        stream = Stream(Kind.RAW, settings.workspace_id if workspace_id is None else workspace_id, source_id)
        backup = Backup(settings)
        summary = Summary(backup, go_on=_how_to_go_on(inputs, again=again))
        with progress(backup, inputs) as shown:
            for one in inputs:
                reader = _Reader(backup, one, stream, summary, shown)
                try:
                    reader.read(again=again, stop=stop)
                except (ConfigurationError, SpoolError) as error:
                    summary.problems.append(error.one_line())
                finally:
                    one.close()
            summary.finish(stop, shown)
        code = summary.show(as_json=as_json, interrupted=stop.is_set())
    leave(code, backup)


def _how_to_go_on(inputs: Sequence[Input], *, again: bool) -> str:
    if any(one.size is None for one in inputs):
        return ""  # what was read from a stream can't be read again
    return "run the same command without --again" if again else "run the same command again"


class _Reader:
    """Records one input, and the position in it with every commit."""

    def __init__(self, backup: Backup, source: Input, stream: Stream, summary: Summary, shown: Progress) -> None:
        self._backup = backup
        self._input = source
        self._stream = stream
        self._summary = summary
        self._shown = shown
        # The same file under another source is another job; the destination may be corrected, the events stay the same.
        name = "\0".join((os.path.realpath(source.name), stream.workspace_id, stream.source_id))
        self._id = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def read(self, *, again: bool, stop: threading.Event) -> None:
        """Record what was not recorded yet.

        Raises:
            ConfigurationError: the input can't be read, or another process reads it.
            SpoolError: what was read can't be recorded.
        """
        lock = self._backup.spool.lock_input(self._id)
        if lock is None:
            raise ConfigurationError(f"{self._input.name}: another process is backing it up", hint="wait for its end")
        try:
            position = self._start(again=again)
            with _rejects_file(self._backup.spool.directory, self._input, self._id, position.rejects) as rejects:
                line = position.line
                for block in self._input.blocks(position.offset, stop):
                    self._record(block, line, rejects)
                    line += len(block.lines)
        finally:
            lock.release(remove=False)

    def _start(self, *, again: bool) -> Position:
        known = None if again or self._input.size is None else self._backup.spool.position(self._id)
        if known is None:
            return Position()
        position = msgspec.json.decode(known, type=Position)
        if not self._input.is_at(position):
            say(f"{self._input.name} is not the file that it was at the last run: it is read from its beginning")
            return Position()
        self._summary.resumed = True
        return position

    def _record(self, block: Block, line: int, rejects: _Rejects) -> None:
        at = encoding.now()
        text = encoding.timestamp(at)
        lines: list[bytes] = []
        for number, payload in enumerate(block.lines, line + 1):
            try:
                lines.append(encoding.raw_line(payload, text))
            except InvalidEvent as error:
                if payload and not payload.isspace():
                    self._reject(payload, f"{self._input.name}:{number}: {error}", rejects)
        position = None
        if self._input.size is not None:
            reached = self._input.position(block.offset, line + len(block.lines), rejects.sync())
            position = (self._id, msgspec.json.encode(reached))
        self._backup.record_lines(self._stream, lines, at=at, position=position)
        self._summary.events += len(lines)
        self._shown.recorded(len(lines), block.read)

    def _reject(self, payload: bytes, why: str, rejects: _Rejects) -> None:
        rejects.add(payload)
        self._summary.rejected += 1
        if self._summary.rejected <= _REPORTED_REJECTS:
            say(why)
        elif self._summary.rejected == _REPORTED_REJECTS + 1:
            say("more lines are no JSON objects; they are in the rejects file, too")
        if rejects.path not in self._summary.rejects:
            self._summary.rejects.append(rejects.path)


class _Rejects:
    """The file of the lines that are no events, as they were. It is as long as the committed position says, also after a crash."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._size = size
        self._descriptor: int | None = None

    def add(self, line: bytes) -> None:
        """Put a line aside."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._descriptor, self._size)
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
        data = memoryview(line + b"\n")
        while data:
            data = data[os.write(self._descriptor, data) :]
        self._size += len(line) + 1

    def sync(self) -> int:
        """Its size, once all of it is on the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
        return self._size

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)


@contextmanager
def _rejects_file(spool: Path, source: Input, id_: str, size: int) -> Generator[_Rejects]:
    if source.size is None:
        name = f"{Path(source.name).name.replace(' ', '-')}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    else:
        name = f"{Path(source.name).name}-{id_[:8]}"
    rejects = _Rejects(spool / "rejects" / f"{name[-200:]}.ndjson", size)
    try:
        yield rejects
    finally:
        rejects.close()
