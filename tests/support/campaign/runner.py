"""The crash campaign: processes that record and upload, killed at any moment, over a failing network or disk."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
from buckets import FAST_RETRY
from campaign import clocks
from campaign.checks import Figures, Records, SqliteRecords, check
from campaign.points import KILLS
from campaign.targets import MAX_DELAY, FileTarget, S3Target, Target
from campaign.worker import LANDING_MARGIN, LANDING_SECONDS, Engine, Moment, Task, is_delivered
from places import SUPPORT
from servers import Store

from jobs_backup.spool.ids import origin_of
from jobs_backup.testing.fault_proxy import FaultProxy

_COMMAND: Final = [
    sys.executable,
    "-c",
    "import sys; from campaign import clocks; clocks.leap(sys.argv.pop(1))\n"
    f"from jobs_backup.store import object_store; object_store.{LANDING_MARGIN.partition(':')[2]} = {LANDING_SECONDS}\n"
    "from jobs_backup.cli import main; main()",
]
"""`jobs-backup` with the workers' wait for late attempts; the first argument is the time on its clock."""
_END_SECONDS: Final = 30.0
"""Time within which a worker stops when asked to, whatever the network does."""
_POINT_SECONDS: Final = 8.0
_DRAINS: Final = 3
_DELETE_SECONDS: Final = 30.0
_COMMAND_SECONDS: Final = 60.0
_SETTINGS: Final = {
    **FAST_RETRY,
    "JOBS_BACKUP_BATCH_EVENTS": "500",
    "JOBS_BACKUP_BATCH_BYTES": "12MB",
    "JOBS_BACKUP_UPLOAD_FREQUENCY": "700ms",
    "JOBS_BACKUP_SHUTDOWN_GRACE": "1s",
    "JOBS_BACKUP_REQUEST_TIMEOUT": "5s",
}


@dataclass(frozen=True)
class Crew:
    """How many processes run at the same time: those that only record, those that only upload, and those that do both."""

    recorders: int = 4
    archivers: int = 2
    both: int = 1
    threads: int = 4

    def roles(self) -> list[str]:
        return ["recorder"] * self.recorders + ["archiver"] * self.archivers + ["both"] * self.both


@dataclass(frozen=True)
class Plan:
    """One round: a number of kills of this crew, then the check. `cycle` is the longest cycle, in seconds.

    Attributes:
        forks: mean seconds between two forks of a worker.
        leaps: mean seconds between two jumps of a process's clock.
        locks: probability (0 to 1) that a cycle removes the lock file of a live process.
        bulk: share (0 to 1) of the calls that record an object of several parts.
        many: maximum number of events in a call of `record_many`.
        events: a round continues until at least this many were acknowledged.
    """

    kills: int
    seed: int
    crew: Crew = Crew()
    cycle: float = 4.0
    pace: float = 0.04
    forks: float = 3.0
    leaps: float = 1.0
    locks: float = 0.2
    bulk: float = 0.005
    many: int = 30
    events: int = 0


@dataclass
class Worker:
    """A process of the crew."""

    name: str
    role: str
    process: subprocess.Popen[bytes]
    log: Path
    point: Moment | None
    began: float
    family: int
    """The end of a pipe that it and all its descendants hold: it is closed once they have ended."""
    host: str = ""
    asked_to_end: float | None = None

    def kill_family(self) -> None:
        """kill -9 the worker and all its descendants."""
        if self.process.poll() is None or not self.has_ended(0.0):
            os.killpg(self.process.pid, signal.SIGKILL)

    def has_ended(self, seconds: float) -> bool:
        """Return whether it and all its descendants ended within this many seconds."""
        return bool(select.select([self.family], [], [], seconds)[0])


class Round:
    """A new spool with workers that are killed and replaced, a drain, and the check."""

    engine: Engine = "sqlite"

    def __init__(self, directory: Path, target: Target, plan: Plan, points: Counter[str]) -> None:
        """`points`: how often each point has killed in earlier rounds. Rarer ones come first."""
        self._directory = directory
        self._target = target
        self._plan = plan
        self._rng = random.Random(f"{plan.seed} {target.provider}")
        self._settings = {
            "JOBS_BACKUP_CONDITIONAL_WRITES": self._rng.choice(("true", "true", "false")),
            "JOBS_BACKUP_SPOOL_DURABILITY": self._rng.choice(("full", "full", "process")),
            "JOBS_BACKUP_SPOOL_MAX_BYTES": self._rng.choice(("", "", str(2 * target.bulk_bytes))),
            "JOBS_BACKUP_SPOOL_FULL_TIMEOUT": "200ms",
            "JOBS_BACKUP_UPLOAD_CONCURRENCY": self._rng.choice(("1", "2", "4")),
        }
        self._points = points
        self._chosen: Counter[str] = Counter()
        self._workers: list[Worker] = []
        self._orphanages: list[Worker] = []
        """Workers that have ended, but have live descendants."""
        self._names = itertools.count(1)
        self.figures = Figures()
        for name in ("acks", "logs"):
            (directory / name).mkdir()

    def run(self) -> Figures:
        """Kill until the number is reached; then heal, drain and check."""
        with self._ending():
            while self.figures.kills < self._plan.kills or self._acknowledged() < self._plan.events:
                self._cycle()
            self._target.heal()
            self._end_all()
        self._deliver()
        self._drain()
        self._look_at_logs()
        self.figures.points.update(self._noted("kills"))
        self._count_forks_and_leaps()
        self.figures.kills_at_points = self.figures.points.total()
        check(self._directory, self._target, self.figures, self._records())
        self.figures.faults += self._target.faults + Counter(self._noted("failures"))
        return self.figures

    def _records(self) -> Records:
        """The spool, for the final checks."""
        return SqliteRecords(self._directory / "spool")

    def _cycle(self) -> None:
        """Fill the crew, let it work, and kill some of it, each at its own moment. The others keep running."""
        self.figures.cycles += 1
        self._target.fail(self._rng)
        missing = Counter(self._plan.crew.roles()) - Counter(one.role for one in self._workers if one.asked_to_end is None)
        for role in missing.elements():
            self._workers.append(self._start(role))
        until = time.monotonic() + self._rng.uniform(0.5, self._plan.cycle)
        # Give workers with their own point some time to reach it.
        now = time.monotonic()
        victims = [one for one in self._workers if one.point is None or now > one.began + _POINT_SECONDS]
        victims = self._rng.sample(victims, min(len(victims), self._rng.choice((1, 1, 2, 3, 5))))
        for moment in sorted(self._rng.uniform(now, until) for _ in victims):
            time.sleep(max(0.0, moment - time.monotonic()))
            self._hit(victims.pop())
        if self._rng.random() < self._plan.locks:
            self._remove_lock()
        time.sleep(max(0.0, until - time.monotonic()))
        self._reap()

    def _remove_lock(self) -> None:
        """Remove a lock file as a cleaner of old files would. A live owner must notice before its next acknowledgment."""
        locks = [path for path in (self._directory / "spool" / "locks").glob("*.lock") if not path.stem.startswith("input-")]
        if locks:
            self._rng.choice(sorted(locks)).unlink(missing_ok=True)
            self.figures.locks_removed += 1

    def _hit(self, victim: Worker) -> None:
        if self._rng.random() < 0.2 and victim.asked_to_end is None:
            victim.asked_to_end = time.monotonic()
            victim.process.terminate()
            self.figures.terms += 1
        elif self._rng.random() < 0.5:
            victim.kill_family()
        else:
            victim.process.kill()

    def _start(self, role: str) -> Worker:
        return self._launch(self._task(role), role, self._environment())

    def _task(self, role: str) -> Task:
        """What a new process of this role does."""
        records, sends = role != "archiver", role != "recorder"
        point = self._point(records=records, sends=sends) if self._rng.random() < 0.6 else None
        return Task(
            name=f"{role}{next(self._names)}",
            directory=str(self._directory),
            seed=self._plan.seed,
            threads=self._plan.crew.threads if records else 0,
            archive=sends,
            pace=self._plan.pace,
            bulk_bytes=self._target.bulk_bytes,
            bulk=self._plan.bulk,
            many=self._plan.many,
            engine=self.engine,
            kill=point,
            failures=self._target.failures(self._rng) if sends else (),
            forks=self._plan.forks,
            leaps=self._plan.leaps,
        )

    def _launch(self, task: Task, role: str, environment: Mapping[str, str], prefix: Sequence[str] = ()) -> Worker:
        """Start a process, by a command that begins with `prefix`."""
        log = self._directory / "logs" / task.name
        command = [*prefix, sys.executable, "-m", "campaign.worker", msgspec.json.encode(task).decode()]
        family, held = os.pipe()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[held],
                start_new_session=True,
            )
        os.close(held)
        return Worker(task.name, role, process, log, task.kill, time.monotonic(), family, task.host)

    def _point(self, *, records: bool, sends: bool) -> Moment:
        """Draw from the points that have killed, or were at least chosen, least often so far."""
        killed = self._points + Counter(self._noted("kills"))
        provider = self._target.provider
        roles = {"any"} | ({"record"} if records else set()) | ({"send"} if sends else set())
        passed = [point for point in KILLS[self.engine] if point.role in roles and point.provider in ("", provider)]
        rare = sorted(passed, key=lambda point: (killed[point.name], self._chosen[point.name]))[: len(passed) // 4]
        point = self._rng.choice(rare)
        self._chosen[point.name] += 1
        return Moment(point.name, self._rng.randint(1, point.often))

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONPATH": str(SUPPORT),
            **self._spool_environment(),
            **_SETTINGS,
            **self._settings,
            **self._target.environment(),
        }

    def _spool_environment(self) -> dict[str, str]:
        """Where the spool is, and where rejected lines go."""
        return {"JOBS_BACKUP_SPOOL_DIR": str(self._directory / "spool")}

    def _reap(self) -> None:
        alive = []
        for worker in self._workers:
            if worker.process.poll() is None:
                alive.append(worker)
                if worker.asked_to_end is not None and time.monotonic() > worker.asked_to_end + _END_SECONDS:
                    worker.process.kill()
                    self.figures.violation("other", [f"{worker.name} does not end"])
            else:
                self._ended(worker)
                self._orphanages.append(worker)
        self._workers = alive

    def _ended(self, worker: Worker) -> None:
        code = worker.process.returncode
        before_its_handler = code == -signal.SIGTERM and worker.asked_to_end is not None
        if code == -signal.SIGKILL:
            self.figures.kills += 1
        elif not before_its_handler and (code != 0 or worker.asked_to_end is None):
            self.figures.violation("other", [f"{worker.name} ended with {code}: {worker.log}"])

    def _end_all(self) -> None:
        """End the round: ask some workers to stop, kill the others."""
        for worker in self._workers:
            self._hit(worker) if self._rng.random() < 0.5 else worker.process.kill()
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(_END_SECONDS)
        until = time.monotonic() + _END_SECONDS
        for worker in (*self._workers, *self._orphanages):
            if not worker.has_ended(max(0.0, until - time.monotonic())):
                self.figures.violation("other", [f"a child of {worker.name} does not end: {worker.log}"])
                worker.kill_family()
        time.sleep(MAX_DELAY)  # requests of dead workers that the network still holds arrive now
        self._reap()

    def _deliver(self) -> None:
        """Acknowledge what the dead no longer can: all events recorded in batches whose events are delivered."""
        lines = [line for path in (self._directory / "acks").iterdir() for line in path.read_text().splitlines(keepends=True)]
        jobs = [int(line.split()[0]) for line in lines if line.endswith("\n")]
        ids = "".join(f"{job}\n" for job in jobs if job > 0 and is_delivered(origin_of(job)[1]))
        with (self._directory / "delivering").open("a") as note:
            note.write(ids)
        done = self._run("delivered", stdin=ids)
        (self._directory / "logs" / "deliver").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            self.figures.violation("other", [f"delivered ended with {done.returncode}: {done.stdout}{done.stderr}"])
        with (self._directory / "delivered").open("a") as note:
            note.write(ids)

    def _drain(self) -> None:
        """Run `archive --once`, as an operator would, until it reports that everything is in the bucket.

        Once should be enough. A deletion may have to wait until no attempt to write the object can arrive any more.
        """
        until = time.monotonic() + _DELETE_SECONDS
        failed = 0
        for attempt in itertools.count():
            done = self._run("archive", "--once")
            (self._directory / "logs" / f"drain{attempt}").write_text(done.stdout + done.stderr)
            summary: dict[str, Any] = json.loads(done.stdout or "{}")
            if done.returncode != 0 or not summary or not summary["complete"] or summary["open_uploads"]:
                self.figures.violation("other", [f"archive --once ended with {done.returncode}: {done.stdout}{done.stderr}"])
                failed += 1
            elif not summary["waiting_deletes"]:
                return
            if failed == _DRAINS or time.monotonic() > until:
                self.figures.violation("undeleted", [f"{summary.get('waiting_deletes')} after {_DELETE_SECONDS} s"])
                return
            time.sleep(1.0)

    def _run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `jobs-backup` with its own clock."""
        clock = self._rng.choice([*clocks.LEAPS]) if self._plan.leaps else "right again"
        self.figures.clocks[clock] += 1
        command = [*_COMMAND, clock, *arguments, "--json"]
        with subprocess.Popen(
            command,
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                stdout, stderr = process.communicate(stdin, _COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                self.figures.violation("other", [f"{arguments[0]} does not end within {_COMMAND_SECONDS:.0f} s: {self._state()}"])
                process.kill()
                stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def _state(self) -> str:
        """What the spool is waiting for, as far as it can tell."""
        return ""

    def _count_forks_and_leaps(self) -> None:
        generations = Counter(self._noted("forks"))
        figures, leaps = self.figures, Counter(self._noted("leaps"))
        figures.forks, figures.grandchildren = generations.total(), generations["2"]
        ends = Counter(self._noted("ends"))
        figures.children_ended, figures.children_killed = ends.total(), generations.total() - ends.total()
        figures.clocks += leaps
        figures.clock_leaps = figures.clocks.total()

    def _look_at_logs(self) -> None:
        logs = sorted((self._directory / "logs").iterdir())
        bad = (path for path in logs if "Traceback" in path.read_text())
        self.figures.violation("other", (f"a traceback in {path}" for path in bad))

    def _acknowledged(self) -> int:
        """Return how many events were acknowledged so far."""
        return sum(path.read_bytes().count(b"\n") for path in (self._directory / "acks").iterdir()) if self._plan.events else 0

    def _noted(self, name: str) -> list[str]:
        """The lines that workers have written into a shared file."""
        note = self._directory / name
        return note.read_text().splitlines() if note.exists() else []

    @contextlib.contextmanager
    def _ending(self) -> Generator[None]:
        """End all workers."""
        try:
            yield
        finally:
            for worker in (*self._workers, *self._orphanages):
                worker.kill_family()
                worker.process.wait()
                os.close(worker.family)


def campaign(
    directory: Path, make: Callable[[Path], Target], plan: Plan, round_kills: int = 50, say: Callable[[str], object] = str
) -> Figures:
    """Run rounds until `plan.kills` is reached. The files of a round with findings are kept."""

    def run(here: Path, some: Plan, points: Counter[str]) -> Figures:
        return Round(here, make(here), some, points).run()

    return rounds(directory, run, plan, round_kills, say)


def rounds(
    directory: Path,
    run: Callable[[Path, Plan, Counter[str]], Figures],
    plan: Plan,
    round_kills: int,
    say: Callable[[str], object],
) -> Figures:
    """`run` rounds, each in a directory of its own, until `plan.kills` is reached."""
    figures = Figures()
    for number in itertools.count(1):
        if figures.kills >= plan.kills:
            break
        here = directory / f"round{number}"
        here.mkdir(parents=True)
        kills = min(round_kills, plan.kills - figures.kills)
        found = run(here, replace(plan, kills=kills, seed=plan.seed + number), figures.points)
        say(f"round {number}: {found.kills} kills, {found.acknowledged:,} events {found.violations or ''}")
        figures.add(found)
        if not found.violations:
            shutil.rmtree(here)
    return figures


def on_file(directory: Path, plan: Plan, round_kills: int = 50, say: Callable[[str], object] = str) -> Figures:
    """Run a campaign with directories as buckets."""
    return campaign(directory, FileTarget, plan, round_kills, say)


def on_s3(directory: Path, store: Store, plan: Plan, round_kills: int = 50, say: Callable[[str], object] = str) -> Figures:
    """Run a campaign with buckets of a real server through a proxy."""
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        return campaign(directory, lambda _: S3Target(store, proxy), plan, round_kills, say)
