"""One worker of a sweep: runs a command with a fault, then without one, and judges the result."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import msgspec
from faults.injector import Fault
from faults.scenarios import Running, Scenario, World
from faults.zygote import Task
from places import SUPPORT

_STACK_SECONDS: Final = 2.0
_FRAME: Final = re.compile(r'File "[^"]*/(?:jobs_backup|jobs_backup_\w+)/([^"]+)", line (\d+) in (\S+)')
_SHOWN: Final = 1500


@dataclass(frozen=True)
class Call:
    """A counted call.

    Attributes:
        number: its index among all calls.
        path: relative to the world's directory, without what differs from run to run.
        site: its stack in our package, innermost first.
        index: its index among the calls of its name and part of the world.
    """

    number: int
    name: str
    path: str
    site: tuple[str, ...]
    index: int = 0

    @property
    def part(self) -> str:
        """The part of the world that the path belongs to: one source's objects, the blobs, the catalog, ..."""
        parts = [part for part in self.path.split("/")[:2] if "*" not in part]
        return "/".join(parts).removesuffix("-wal").removesuffix("-shm")

    def fault(self, kind: str) -> Fault:
        """The fault that fails this call."""
        if kind != "calls":
            return Fault(kind=kind, first=self.number)
        return Fault(kind=kind, first=self.index, name=self.name, path=self.part)

    @property
    def where(self) -> tuple[str, ...]:
        """Its place in the code."""
        return (self.name, *(self.site or (self.path,)))


@dataclass
class Ended:
    """How a command ended. `code` is None if it hung and was killed."""

    code: int | None
    stdout: str
    stderr: str
    calls: list[Call]
    stacks: str = ""


@dataclass
class Violation:
    """A broken promise, and the fault that broke it."""

    scenario: str
    fault: Fault
    kind: str
    text: str
    calls: list[Call] = field(default_factory=list)
    stderr: str = ""

    def line(self) -> str:
        error = errno.errorcode.get(self.fault.error, "") if self.fault.kind == "calls" else "MemoryError"
        what = (
            "; ".join(f"{one.name} {one.path} at {' < '.join(one.site[:4]) or '?'}" for one in self.calls[:2]) or "no fault was hit"
        )
        return f"{self.scenario} {self.kind}: {self.fault.kind} {self.fault.first} {self.fault.name} {error}: {what}: {self.text}"


@dataclass
class Verdict:
    """`cautious`: the command's reason for exit code 1 although everything was done. That is allowed."""

    reached: bool
    violations: list[Violation]
    cautious: str = ""


class Crash(Exception):
    """The zygote has ended."""


class Worker:
    """Runs one scenario in its own directory, which is restored before each run."""

    def __init__(self, directory: Path, library: Path, scenario: Scenario, *, limit: float, sabotage: str = "") -> None:
        """`limit` is the time limit of a command, in seconds; `sabotage` names a guard to remove in all of its commands."""
        self.scenario = scenario
        self._limit = limit
        self._world = World(directory / "world")
        self._kept = directory / "kept"
        self._report = directory / "report"
        self._log = directory / "log"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "PYTHONPATH": str(SUPPORT),
            "LD_PRELOAD": str(library),
        }
        (self._world.directory / "tmp").mkdir(parents=True)
        with self._log.open("ab") as log:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", "faults.zygote", *([sabotage] if sabotage else [])],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )

    def __enter__(self) -> Self:
        self.scenario.prepare(self._world, self._prepare)
        self._world.directory.rename(self._kept)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        with suppress(BrokenPipeError):
            self._zygote.stdin.close()
        self._zygote.stdout.close()
        self._zygote.wait()

    def survey(self, kind: str) -> list[Call]:
        """The calls of a healthy run. Raises RuntimeError if that run breaks a promise."""
        ended, verdict = self._judge(Fault(kind=kind, network=self.scenario.network))
        if ended.code != 0 or verdict.violations or verdict.cautious:
            texts = [one.line() for one in verdict.violations]
            raise RuntimeError(f"{self.scenario.name}, without a fault: {ended.code} {texts} {ended.stderr}")
        return ended.calls

    def look(self, kind: str) -> tuple[list[Call], list[Violation]]:
        """The calls of a run without a fault, and the promises that it breaks nevertheless."""
        ended, verdict = self._judge(Fault(kind=kind, network=self.scenario.network))
        return ended.calls, verdict.violations

    def run(self, fault: Fault) -> Verdict:
        """Run with this fault, then without it."""
        return self._judge(msgspec.structs.replace(fault, network=self.scenario.network))[1]

    def _judge(self, fault: Fault) -> tuple[Ended, Verdict]:
        world = self._new_world()
        ended = self._execute(world, self.scenario.arguments(world), fault)
        failures: list[tuple[str, str]] = list(_of_end(ended))
        if ended.code is not None and not _tells(ended):
            failures.append(("contradiction", f"exit code {ended.code}, and says {ended.stdout.strip()}"))

        def heal(arguments: Sequence[str]) -> None:
            healthy = self._execute(world, arguments, None)
            if healthy.code != 0 or list(_of_end(healthy)):
                failures.append(
                    ("not healed", f"{arguments[0]} ended with {healthy.code}: {healthy.stdout}{healthy.stderr}"[:_SHOWN])
                )

        cautious = ""
        if ended.code == 0:
            failures += _unsynced(ended, world) if fault.first is not None else _unsynced_logs(ended)
            if untrue := self.scenario.untrue(world, heal):
                failures.append(("false success", untrue))
        elif ended.code is not None and not _has_said_why(ended):
            failures.append(("silent failure", f"exit code {ended.code}, and no reason is given: {ended.stdout}"))
        elif self.scenario.is_done(world):
            where = "; ".join(f"{one.name} {one.path} at {' < '.join(one.site[:4])}" for one in ended.calls[:1])
            cautious = f"{where}: exit code {ended.code}: {(ended.stderr.strip() or ended.stdout.strip())[-300:]}"
        self.scenario.heal(world, heal, ended.code)
        failures += self.scenario.wrong(world)
        calls = ended.calls if fault.first is not None else []
        violations = [Violation(self.scenario.name, fault, kind, text, calls, ended.stderr[-_SHOWN:]) for kind, text in failures]
        return ended, Verdict(bool(ended.calls), violations, cautious)

    def _new_world(self) -> World:
        world = self._world
        shutil.rmtree(world.directory, ignore_errors=True)
        shutil.copytree(self._kept, world.directory)
        return World(world.directory, set(world.must), set(world.may))

    def _prepare(self, arguments: Sequence[str]) -> None:
        ended = self._execute(self._world, arguments, None)
        if ended.code != 0:
            raise RuntimeError(f"{arguments[0]} ended with {ended.code}: {ended.stderr}")

    def _execute(self, world: World, arguments: Sequence[str], fault: Fault | None) -> Ended:
        stdout, stderr = world.directory / "stdout", world.directory / "stderr"
        for path in (stdout, stderr, self._report):
            path.write_bytes(b"")
        task = Task(
            arguments=tuple(arguments),
            environment={**self._environment, **world.environment},
            root=str(world.directory),
            stdout=str(stdout),
            stderr=str(stderr),
            report=str(self._report),
            fault=fault,
        )
        running = _Process(self._zygote, task, world, stderr)
        if fault is not None:
            self.scenario.drive(running)
        code, stacks = running.wait(self._limit), ""
        if code is None:
            stacks = running.stacks(self._report)
            running.signal(signal.SIGKILL)
            running.wait(self._limit)
        calls = parse(self._report.read_text(errors="replace"), world.directory)
        return Ended(code, stdout.read_text(errors="replace"), stderr.read_text(errors="replace"), calls, stacks)


class _Process(Running):
    """A command that the zygote forked."""

    def __init__(self, zygote: subprocess.Popen[bytes], task: Task, world: World, stderr: Path) -> None:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        self.world = world
        self._stderr = stderr
        self._answers = zygote.stdout
        zygote.stdin.write(msgspec.json.encode(task) + b"\n")
        self._pid = self._answer()
        self._code: int | None = None

    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def has_ended(self) -> bool:
        return self.wait(0) is not None

    def signal(self, number: int) -> None:
        if not self.has_ended():
            os.kill(self._pid, number)

    def wait(self, seconds: float) -> int | None:
        if self._code is None and select.select([self._answers], [], [], seconds)[0]:
            self._code = self._answer()
        return self._code

    def stacks(self, report: Path) -> str:
        """The stacks of its threads."""
        before = report.stat().st_size
        self.signal(signal.SIGUSR1)
        until = time.monotonic() + _STACK_SECONDS
        while report.stat().st_size == before and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.1)
        return report.read_bytes()[before:].decode(errors="replace")

    def _answer(self) -> int:
        line = self._answers.readline()
        if not line:
            raise Crash("the zygote has ended: see its log")
        return int(line)


def _tells(ended: Ended) -> bool:
    """Whether the summary agrees with the exit code, if it could be written."""
    with suppress(ValueError, KeyError, TypeError):
        return json.loads(ended.stdout)["complete"] == (ended.code == 0) or _is_mute(ended)
    return True


def _is_mute(ended: Ended) -> bool:
    return any(call.path in {"stdout", "stderr"} for call in ended.calls)


def _has_said_why(ended: Ended) -> bool:
    """Whether standard error or the summary gives a reason for the exit code, if they could be written."""
    with suppress(ValueError, KeyError, TypeError):
        summary = json.loads(ended.stdout)
        if summary["problems"] or any(one["error"] for one in summary["waiting"]):
            return True
    return bool(ended.stderr.strip()) or _is_mute(ended)


def _unsynced(ended: Ended, world: World) -> list[tuple[str, str]]:
    """An object, or its directory, whose sync failed and was not repeated before exit code 0."""
    names = {call.name for call in ended.calls}
    path = next((call.path for call in ended.calls if call.name in {"fsync", "fdatasync"}), "")
    is_of_object = path.startswith("bucket") and not path.startswith("bucket/.jobs-backup")
    if not is_of_object or "synced" in names or not (world.directory / path).exists():
        return []
    return [("unsynced", f"{path} may not outlive a power loss")]


def _unsynced_logs(ended: Ended) -> list[tuple[str, str]]:
    """Logs of blob files that were written after their last sync. `ended` has all calls of a run without a fault."""
    is_synced: dict[str, bool] = {}
    for call in ended.calls:
        if call.path.startswith("spool/blobs") and call.path.endswith("-wal") and call.name in {"pwrite64", "fdatasync", "fsync"}:
            is_synced[call.path] = call.name != "pwrite64"
    return [("unsynced", f"{path} may not outlive a power loss") for path, synced in is_synced.items() if not synced]


def _of_end(ended: Ended) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if ended.code is None:
        found.append(("hang", f"it did not end: {' | '.join(_sites(ended.stacks)[:12])}"))
    elif ended.code < 0 and ended.code != -signal.SIGTERM:  # SIGTERM comes from the scenario, while the command was ending
        found.append(("crash", f"{signal.Signals(-ended.code).name}"))
    for mark in ("Traceback (most recent call last)", "Exception ignored in", "Fatal Python error"):
        if mark in ended.stderr:
            found.append(("traceback", _in_short(ended.stderr[ended.stderr.index(mark) :])))
            break
    return found


def _in_short(traceback: str) -> str:
    """The error, and its stack in our package, innermost first."""
    error = next((line for line in traceback.splitlines()[1:] if line and not line.startswith(" ")), "")
    return f"{error[:200]}: {' < '.join(reversed(_sites(traceback)[-6:]))}"


def parse(report: str, root: Path) -> list[Call]:
    """The calls of a report: for each, a line that begins with @, then a Python stack."""
    calls: list[Call] = []
    seen: Counter[tuple[str, str]] = Counter()
    for part in re.split(r"^@", report, flags=re.MULTILINE)[1:]:
        head, _, stack = part.partition("\n")
        fields = [*head.split(" ", 2), "", ""]
        if fields[0].isdigit():
            path = fields[2].removeprefix(str(root)).lstrip("/")
            call = Call(int(fields[0]), fields[1], _general(path), tuple(_sites(stack)))
            calls.append(replace(call, index=seen[call.name, call.part]))
            seen.update({(call.name, part) for part in (call.part, call.part.partition("/")[0], "")})
    return calls


def _sites(stack: str) -> list[str]:
    return [f"{file}:{line} {function}" for file, line, function in _FRAME.findall(stack)]


def _general(path: str) -> str:
    """The path without ids and numbers that differ from run to run."""
    return re.sub(r"[0-9a-f]{16,}|\d{6,}[\w-]*|#\d+", "*", path)
