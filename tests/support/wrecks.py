"""Spools left by killed processes, to be damaged; and the command as a process that starts quickly."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from buckets import events, file_environment
from profiles import ALL
from spools import engine

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.cli import main
from jobs_backup.model import Kind, Stream
from jobs_backup.spool.interface import InputPosition, Recording
from jobs_backup.spool.sqlite import writer

T = TypeVar("T")

COMMAND_SECONDS: Final = 50.0
"""Seconds after which a command counts as hung."""
SUFFIXES: Final = ("", "-wal", "-shm")

# Fork its processes from one that has imported everything: starting Python would take most of the time.
_processes: Final = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [f"jobs_backup.cli.commands.{name}" for name in ("archive", "delivered", "replay", "run", "status")]
    + ["jobs_backup.store.file_provider"]
)


def sample(cases: Sequence[T], count: int, seed: int = 1) -> list[T]:
    """A fixed sample of this many cases; or all of them."""
    if ALL or count >= len(cases):
        return list(cases)
    chosen = sorted(random.Random(seed).sample(range(len(cases)), count))
    return [cases[index] for index in chosen]


class Outcome(NamedTuple):
    """The result of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def is_refusal(self) -> bool:
        """Whether it failed to start because it cannot use the spool."""
        return self.code != 0 and not self.stdout


def command(*arguments: str | Path, env: Mapping[str, str], is_mighty: bool = True, stdin: str = "") -> Outcome:
    """Run the command as a separate process. It must end with a clear error and no traceback.

    Unless `is_mighty`, it may read only what a file's mode allows, even as root.
    """
    directory = Path(env["JOBS_BACKUP_SPOOL_DIR"]).parent
    streams = [directory / f".{name}" for name in ("stdin", "stdout", "stderr")]
    streams[0].write_text(stdin)
    process = _processes.Process(target=_command, args=([*map(str, arguments)], dict(env), streams, is_mighty))
    process.start()
    process.join(COMMAND_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{arguments} did not end: {streams[2].read_text()}")
    outcome = Outcome(process.exitcode, streams[1].read_text(), streams[2].read_text())
    assert "Traceback" not in outcome.stderr, outcome.stderr
    assert outcome.code in (0, 1, 2), outcome
    assert outcome.code == 0 or outcome.stderr or any(outcome.json[name] for name in ("problems", "waiting")), "it has to say why"
    return outcome


def _command(arguments: Sequence[str], env: Mapping[str, str], streams: Sequence[Path], is_mighty: bool) -> None:
    os.environ.clear()
    os.environ.update(env, HOME="/nonexistent")
    for number, path in enumerate(streams):
        descriptor = os.open(path, os.O_RDWR if number == 0 else os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the rest of its life
    if not is_mighty:
        _give_up_capabilities()
    sys.argv = ["jobs-backup", *arguments]
    main()


def _give_up_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


class Process:
    """A process that works on a spool step by step: `work` gets a Backup and this end's requests."""

    def __init__(self, env: Mapping[str, str], *, archive: bool = False) -> None:
        self._ours, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_work, args=(theirs, dict(env), archive), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    @property
    def session(self) -> str:
        return str(self.ask("session"))

    def record(self, source: str, names: Sequence[str], *, each: bool = False, size: int = 20) -> list[int]:
        """Record events of these message ids: one commit for each, or one for all."""
        found: list[int] = self.ask("record", source, list(names), each, size)
        return found

    def ask(self, what: str, *arguments: Any) -> Any:
        """Run a request in the process. Its errors are raised here as RuntimeError."""
        self._ours.send((what, arguments))
        return self._answer()

    def kill(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()

    def _answer(self) -> Any:
        if not self._ours.poll(COMMAND_SECONDS):
            self.kill()
            raise AssertionError("a process does not answer")
        kind, answer = self._ours.recv()
        if kind == "raised":
            raise Refused(answer)
        return answer


class Refused(Exception):
    """The text of an error that a process's Backup raised."""


def _work(pipe: Connection, env: Mapping[str, str], archive: bool) -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it logs the damage done to it
    backup = Backup.from_env(env, archive=archive)
    pipe.send(("returned", None))
    rng = random.Random(env["JOBS_BACKUP_SPOOL_DIR"])

    def record(source: str, names: Sequence[str], each: bool, size: int) -> list[int]:
        payloads = [{"messageId": name, "noise": rng.randbytes(size // 2).hex()} for name in names]
        if each:
            return [backup.record(payload, source_id=source) for payload in payloads]
        return [*map(int, backup.record_many(payloads, source_id=source))]

    def leave_file() -> None:
        limit = writer._IDLE_FILE_BYTES
        writer._IDLE_FILE_BYTES = 0  # type: ignore[misc]
        session_of(backup).spool.seal()
        writer._IDLE_FILE_BYTES = limit  # type: ignore[misc]

    steps: dict[str, Callable[..., Any]] = {
        "session": lambda: engine(session_of(backup).spool).session,
        "record": record,
        "seal": session_of(backup).spool.seal,
        "leave file": leave_file,
        "delivered": backup.delivered,
        "position": lambda name, at: session_of(backup).keep([_position(name, at)]),
        "check_room": session_of(backup).check_room,
        "health_error": lambda: session_of(backup).health_error,
        "flush": lambda: backup.flush(120),
        "close": backup.close,
    }
    while True:
        what, arguments = pipe.recv()
        try:
            answer: tuple[str, Any] = ("returned", steps[what](*arguments))
        except Exception as error:  # noqa: BLE001 - sent to the caller
            answer = ("raised", f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _position(name: str, at: int) -> Recording:
    return Recording(Stream(Kind.FAILED, "", ""), [], first_at=0, last_at=0, position=InputPosition(name, at, b"1"))


class Wreck:
    """A spool with all possible contents. Its path never changes, since batches are bound to their bucket's path.

    It holds two dead sessions, one of them with a file left over; uploaded, sealed and open batches; and delivered jobs.

    Attributes:
        acknowledged: the message ids of all events that were recorded.
        files: kind of each file -> its path in the spool.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "here"
        self._whole, self._older = directory / "whole", directory / "older"
        self.directory.mkdir()
        self.env = file_environment(
            self.directory, JOBS_BACKUP_SPOOL_MIN_FREE="1MiB", JOBS_BACKUP_CATALOG_DAYS="0", JOBS_BACKUP_SHUTDOWN_GRACE="5s"
        )
        self.spool = self.directory / "spool"
        self.acknowledged: list[str] = []
        self._make()

    def _make(self) -> None:
        one = Process(self.env)
        jobs = self._record(one, "web", 5, each=True) + self._record(one, "app", 4)
        one.ask("seal")
        assert command("archive", "--once", env=self.env).code == 0
        one.ask("delivered", jobs[1:3])
        first = one.session
        shutil.copytree(self.directory, self._older)
        jobs = self._record(one, "web", 12, size=4000) + self._record(one, "ios", 3)
        one.ask("delivered", jobs[:2])
        one.ask("leave file")
        self._record(one, "web", 20, each=True, size=2000)
        self._record(one, "app", 6)
        one.ask("position", "an input", 1)
        other = Process(self.env)
        second = other.session
        self._record(other, "web", 30, each=True)
        self._record(other, "tv", 9, size=2000)
        one.kill()
        other.kill()
        self.files = {
            **{f"catalog{suffix}": f"catalog.db{suffix}" for suffix in SUFFIXES},
            **{f"left{suffix}": f"blobs/{first}.db{suffix}" for suffix in SUFFIXES},
            **{f"open{suffix}": f"blobs/{first}-1.db{suffix}" for suffix in SUFFIXES},
            **{f"other{suffix}": f"blobs/{second}.db{suffix}" for suffix in SUFFIXES},
            "lock": f"locks/{first}.lock",
            "other lock": f"locks/{second}.lock",
            "ballast": "ballast",
            "made": "made",
        }
        (self.spool / "ballast").unlink()  # it would only be copied
        (self.spool / "ballast").touch()
        self.directory.rename(self._whole)
        found = {
            path.relative_to(self._whole / "spool").as_posix() for path in (self._whole / "spool").rglob("*") if path.is_file()
        }
        assert found == set(self.files.values()), found ^ set(self.files.values())

    def _record(self, process: Process, source: str, count: int, *, each: bool = False, size: int = 20) -> list[int]:
        names = [f"m{len(self.acknowledged) + number}" for number in range(count)]
        jobs = process.record(source, names, each=each, size=size)
        self.acknowledged += names
        return jobs

    def restore(self) -> None:
        """Restore everything as the processes left it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(self._whole, self.directory)

    def older(self, file: str) -> Path:
        """An earlier version of a file, which may not have existed."""
        return self._older / "spool" / self.files[file]

    def path(self, file: str) -> Path:
        return self.spool / self.files[file]

    def missing(self) -> set[str]:
        """Acknowledged events that are not in the bucket. Checks that no event is in it twice."""
        found = Counter(event["messageId"] for event in events(self.directory))
        assert not (twice := {name: count for name, count in found.items() if count > 1}), f"twice: {twice}"
        return set(self.acknowledged) - set(found)

    def archive(self, *, is_mighty: bool = True) -> Outcome:
        """Run `archive --once`: exit code 0 if, and only if, everything is in the bucket; otherwise it names what is missing."""
        outcome = command("archive", "--once", "--json", env=self.env, is_mighty=is_mighty)
        missing = self.missing()
        if outcome.code == 0:
            assert not missing, f"exit 0, and {len(missing)} events are not in the bucket: {outcome}"
        if not outcome.is_refusal:
            assert outcome.json["complete"] == (outcome.code == 0)
        return outcome

    def reported(self, *, is_mighty: bool = True) -> str:
        """Everything that a user learns about the spool."""
        archived, status = self.archive(is_mighty=is_mighty), command("status", "--json", env=self.env, is_mighty=is_mighty)
        return archived.stderr + archived.stdout + status.stdout + status.stderr
