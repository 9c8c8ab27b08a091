"""Output of `jobs-backup replay`: standard output, or a file that the same command resumes."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from jobs_backup.cli.output import Output
from jobs_backup.errors import ConfigurationError
from jobs_backup.replay import Query, Replay, Unwritten
from jobs_backup.util.exhaustion import explain
from jobs_backup.util.fsync import sync_directory, sync_file

_GRACE_SECONDS: Final = 1.0


def _unwritten(why: str, written: int) -> Unwritten:
    return Unwritten(f"not all events were written: {why}", hint="resume with --after", written=written)


class Stdout:
    """Standard output, which keeps nothing for another run."""

    begin = ""
    part = None

    def __init__(self, query: Query, stop: threading.Event) -> None:
        self.query = query
        self._output = Output(stop, _GRACE_SECONDS, _unwritten)
        self.write = self._output.write

    @property
    def is_closed(self) -> bool:
        """Whether the reader has closed it."""
        return self._output.is_closed

    def restore(self, replay: Replay) -> None:
        """Nothing was kept."""

    def restart(self) -> bool:
        """Return False: written output cannot be taken back."""
        return False

    def reached(self, replay: Replay) -> None:
        """Nothing to keep."""

    def finish(self) -> None:
        """Nothing to do."""

    def leave(self) -> None:
        """Nothing to do."""


class _Position(msgspec.Struct):
    """Progress of a file: its first `size` bytes are valid, for `asked` and `query`, up to the cursor `after`.

    Attributes:
        events: in these bytes.
        unwrapped: see `Replay`.
    """

    asked: str
    query: Query
    after: str
    size: int
    events: int = 0
    unwrapped: dict[str, int] = {}


class OutputFile:
    """A file that gets its name once complete. Until then it is named `.part`, with its progress in a file beside it.

    From a damaged or missing object on, the position does not advance: the same command tries that object again.
    """

    is_closed = False

    def __init__(self, path: Path, asked: str, query: Query) -> None:
        if not path.name or os.path.isdir(path):  # noqa: PTH112 - which takes every path
            raise ConfigurationError(f"--output {path} is a directory", hint="give the name of a file")
        self.query = query
        self._path = path
        self._asked = asked
        self.part = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".position")
        self.begin = ""
        try:
            self._refuse_to_replace()
            with ExitStack() as opened:
                descriptor = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                self._file: BinaryIO = opened.enter_context(os.fdopen(descriptor, "r+b"))
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._refuse_to_replace()  # again: another process may just have finished it
                position = self._position = self._known()
                self._file.truncate(position.size if position else 0)
                self._file.seek(0, os.SEEK_END)
                opened.pop_all()
            if position is not None:
                self.begin = position.after
                self.query = position.query  # "two hours ago" stays what it was at the first run
        except BlockingIOError:
            raise ConfigurationError(f"{self.part}: another process is writing it", hint="wait until it ends") from None
        except OSError as error:
            why, hint = explain(error, self.part, "give another --output")
            raise ConfigurationError(f"{self.part}: {why}", hint=hint) from error

    def _refuse_to_replace(self) -> None:
        if os.path.lexists(self._path):
            hint = (
                "remove it, or give another --output"
                if self._path.is_file() or self._path.is_symlink()
                else "give another --output"
            )
            raise ConfigurationError(f"{self._path} exists", hint=hint)

    def _known(self) -> _Position | None:
        if not self._note.exists():
            return None
        try:
            position = msgspec.json.decode(self._note.read_bytes(), type=_Position)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if position.asked != self._asked:
            raise ConfigurationError(
                f"{self.part} was started for other events", hint=f"remove it and {self._note}, or use the same options as before"
            )
        return position if self.part.stat().st_size >= position.size else None

    def restore(self, replay: Replay) -> None:
        """Include earlier runs in the limit and the summary."""
        if self._position is not None:
            replay.events = self._position.events
            replay.unwrapped.update(self._position.unwrapped)

    def restart(self) -> bool:
        """Discard what earlier runs have written."""
        self._position, self.begin = None, ""
        self._keep(lambda: self._file.truncate(0))
        self._keep(lambda: self._file.seek(0))
        return True

    def write(self, data: bytes) -> None:
        self._keep(lambda: self._file.write(data))

    def reached(self, replay: Replay) -> None:
        self._keep(lambda: self._reach(replay))

    def finish(self) -> None:
        self._keep(self._finish)

    def leave(self) -> None:
        """Keep what was written, under its present name."""
        self._keep(self._file.close)

    def _reach(self, replay: Replay) -> None:
        if replay.damaged:
            return
        self._file.flush()
        sync_file(self._file.fileno())
        new = self._note.with_name(self._note.name + ".new")
        position = _Position(self._asked, self.query, replay.cursor, self._file.tell(), replay.events, replay.unwrapped)
        new.write_bytes(msgspec.json.encode(position))
        new.replace(self._note)

    def _finish(self) -> None:
        self._file.flush()
        sync_file(self._file.fileno())
        self.part.replace(self._path)  # before others can get the lock
        self._file.close()
        self._note.unlink(missing_ok=True)
        sync_directory(self._path.absolute().parent)

    def _keep(self, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError as error:
            why, hint = explain(error, self.part, "fix the cause")
            raise Unwritten(f"{self.part}: {why}", hint=f"{hint}; the same command resumes") from error
