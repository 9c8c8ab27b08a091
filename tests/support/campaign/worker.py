"""A process of the crash campaign: `python -m campaign.worker TASK`. It records, uploads, or both, until SIGTERM or its end.

Once `record` acknowledges events, the worker first writes them to a file: the campaign looks for them in the bucket. The events of
some batches are delivered, which is written down before and after the acknowledgment; some deliveries fail. Meanwhile the process
forks children that do the same, and its clock jumps.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NoReturn

import msgspec
from campaign import clocks, points

from jobs_backup import Backup, Event
from jobs_backup.errors import BackupClosed, NoArchiver, SpoolCorrupt, SpoolError, SpoolFull, SpoolUncertain, StorePaused
from jobs_backup.spool.ids import origin_of

SOURCES: Final = ("web", "ios", "android")
LANDING_MARGIN: Final = "jobs_backup.store.object_store:_LANDING_MARGIN"
LANDING_SECONDS: Final = 0.5
FAILURE: Final = -1
"""Written instead of a job id for an acknowledged failure record."""
Engine = Literal["sqlite", "postgresql"]
_DELIVERED_AT_ONCE: Final = 50
_LOOK_SECONDS: Final = 0.05
_HURRY: Final = {
    "jobs_backup.archive.archiver:_FIRST_PAUSE": 0.2,
    "jobs_backup.archive.archiver:_MAX_PAUSE": 1.0,
    "jobs_backup.archive.archiver:TICK": 0.25,
    "jobs_backup.backup.session:TICK": 0.25,
    "jobs_backup.archive.multipart:_ABORT_FIRST_WAIT": 0.5,
    "jobs_backup.archive.deleter:_TICK": 0.25,
    "jobs_backup.archive.deleter:_FIRST_PAUSE": 0.2,
    "jobs_backup.archive.deleter:_MAX_PAUSE": 1.0,
    "jobs_backup.archive.deleter:_FIRST_PROBE": 0.2,
    "jobs_backup.archive.deleter:_MAX_PROBE": 1.0,
    LANDING_MARGIN: LANDING_SECONDS,
}
"""Waits and sizes that suit months of service, but are too large for a worker that lives for seconds."""
_HURRY_OF: Final[Mapping[Engine, Mapping[str, float]]] = {
    "sqlite": {"jobs_backup.spool.sqlite.writer:_IDLE_FILE_BYTES": 600_000},
    "postgresql": {
        "jobs_backup.spool.postgresql.segments:SEGMENT_BYTES": 16 << 20,
        "jobs_backup.spool.postgresql.segments:SEGMENT_SECONDS": 20.0,
        "jobs_backup.spool.postgresql.segments:OLD_SECONDS": 10.0,
        "jobs_backup.spool.postgresql.spool:_SEGMENT_SECONDS": 1.0,
    },
}
_OPEN_SECONDS: Final = 60.0
"""How long a process is restarted, as a pod would be, while it cannot reach the database. Seconds."""


_GENERATIONS: Final = 2
"""Children and grandchildren."""

Fate = Literal["asked", "killed", "closes", "leaves", "stranger"]
"""How a process ends: when asked to; killed at any moment; with its Backup closed; without that, as the children of
multiprocessing do; or without ever having had its own Backup.
"""


class Moment(msgspec.Struct, frozen=True):
    """A point of the tables in `points`, its first passage and the number of passages; `code` is the error of a failure."""

    point: str
    passage: int = 1
    times: int = 1
    code: int = 0


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker does. In `directory` it appends to `acks/<name>`, `delivering`, `delivered`, `refused`, `uncertain`, `kills`,
    `failures`, `journaled`, `leaps`, `forks` and `ends` (of children), and to `mail/<host>` of other hosts.

    Attributes:
        bulk: share (0 to 1) of the calls that record an object of several parts.
        many: events of one call of `record_many`, at most.
        engine: of the spool.
        host, hosts: this host, and those that acknowledge what it records; without any, it does so itself.
        forks: mean seconds between two forks; 0 for none.
        leaps: mean seconds between two jumps of its clock; 0 for none.
        life: seconds until its fate; None for a worker.
        is_main: below it on the stack is the interpreter's own code, through which it may end.
        generation: 0 for a worker, 1 for its children.
    """

    name: str
    directory: str
    seed: int
    threads: int
    archive: bool
    pace: float
    bulk_bytes: int
    bulk: float = 0.005
    many: int = 30
    engine: Engine = "sqlite"
    host: str = ""
    hosts: tuple[str, ...] = ()
    kill: Moment | None = None
    failures: tuple[Moment, ...] = ()
    forks: float = 0.0
    leaps: float = 0.0
    life: float | None = None
    fate: Fate = "asked"
    generation: int = 0
    is_main: bool = True


def is_delivered(batch: int) -> bool:
    """Whether the events of a batch are delivered, if a process lives long enough to deliver them."""
    return batch % 3 != 0


class EventId(msgspec.Struct, frozen=True, array_like=True):
    """A message id, as JSON. `whole`: the events of this call were recorded in one commit, all of them or none."""

    worker: str
    thread: int
    call: int
    index: int
    count: int
    whole: bool


class _Recorder:
    """A thread that records."""

    def __init__(self, task: Task, number: int, backup: Backup, stop: threading.Event, forks: _Forks) -> None:
        self._task = task
        self._number = number
        self._backup = backup
        self._acks = _append_to(task, f"acks/{task.name}")
        self._refused = _append_to(task, "refused")
        self._uncertain = _append_to(task, "uncertain")
        self._mail = {host: _append_to(task, f"mail/{host}") for host in task.hosts}
        self._inbox = _Inbox(task, number) if task.hosts else None
        self._at_once = 8 * _DELIVERED_AT_ONCE if task.hosts else _DELIVERED_AT_ONCE
        # A database that cannot be reached fails the call, not the process.
        self._expected = SpoolFull if task.engine == "sqlite" else SpoolError
        self._delivering = _append_to(task, "delivering")
        self._delivered = _append_to(task, "delivered")
        self._undelivered: list[int] = []
        self._stop = stop
        self._forks = forks
        self._rng = random.Random(f"{task.seed} {task.name} {number}")
        self._calls = 0

    def run(self) -> None:
        while not self._stop.wait(self._rng.expovariate(1 / self._task.pace)):
            self._calls += 1
            if self._forks.is_due():
                self._forks.fork()
            kind = self._rng.random()
            if kind < 0.1:
                self._deliver()
            elif kind < 0.13:
                self._fail()
            elif kind < 0.75:
                self._one()
            elif kind < 0.999 - self._task.bulk:
                self._many()
            elif kind < 0.999:
                self._bulk()
            else:
                self._flush()

    def _one(self) -> None:
        (id_,) = self._ids(1, whole=True)
        payload = self._payload(id_, self._rng.choice((10, 100, 1000, 10_000)))
        source = self._rng.choice(SOURCES)
        self._record([id_], lambda: [self._backup.record(payload, source_id=source, message_id=id_)])

    def _many(self) -> None:
        ids = self._ids(self._rng.randint(2, self._task.many), whole=True)
        events = [Event(payload=self._payload(id_, 200), source_id=self._rng.choice(SOURCES), message_id=id_) for id_ in ids]
        self._record(ids, lambda: self._backup.record_many(events))

    def _bulk(self) -> None:
        """Record an object that is uploaded in parts: this many incompressible bytes, in several commits."""
        ids = self._ids(self._rng.randint(9, 16), whole=False)
        size = self._task.bulk_bytes // 10
        events = (Event(payload=self._payload(id_, size), source_id="bulk", message_id=id_) for id_ in ids)
        self._record(ids, lambda: self._backup.record_many(events))

    def _record(self, ids: Sequence[str], record: Callable[[], Sequence[int]]) -> None:
        """Write down which events were acknowledged, refused, or perhaps recorded."""
        jobs: Sequence[int]
        try:
            jobs = record()
        except self._expected as error:
            if isinstance(error, SpoolCorrupt):
                raise
            jobs = error.recorded
            note = self._uncertain if isinstance(error, SpoolUncertain) else self._refused
            os.write(note, "".join(f"{id_}\n" for id_ in ids[len(jobs) :]).encode())
            ids = ids[: len(jobs)]
        os.write(self._acks, "".join(f"{int(job)} {id_}\n" for id_, job in zip(ids, jobs, strict=True)).encode())
        delivered = [int(job) for job in jobs if is_delivered(origin_of(job)[1])]
        if self._mail:
            os.write(self._mail[self._rng.choice(self._task.hosts)], "".join(f"{job}\n" for job in delivered).encode())
        else:
            self._undelivered += delivered

    def _deliver(self) -> None:
        """Acknowledge some of the events of this thread, in any order, some of them repeatedly."""
        if self._inbox is not None:
            self._undelivered += self._inbox.read()
        self._rng.shuffle(self._undelivered)
        jobs = self._undelivered[: self._at_once]
        os.write(self._delivering, "".join(f"{job}\n" for job in jobs).encode())
        try:
            self._backup.delivered(jobs)
        except self._expected as error:
            if isinstance(error, SpoolCorrupt):
                raise
            return
        os.write(self._delivered, "".join(f"{job}\n" for job in jobs).encode())
        del self._undelivered[5 : self._at_once]

    def _fail(self) -> None:
        (id_,) = self._ids(1, whole=True)
        payload = self._payload(id_, 100)
        with contextlib.suppress(self._expected):
            job = self._rng.choice(self._undelivered) if self._undelivered else Event(payload=b"{}", source_id="web")
            self._backup.failed(job, error=OSError("no"), payload=payload, message_id=id_)
            os.write(self._acks, f"{FAILURE} {id_}\n".encode())

    def _flush(self) -> None:
        with contextlib.suppress(StorePaused, NoArchiver, TimeoutError):
            self._backup.flush(timeout=1.0)

    def _ids(self, count: int, *, whole: bool) -> list[str]:
        made = (EventId(self._task.name, self._number, self._calls, index, count, whole) for index in range(count))
        return [msgspec.json.encode(one).decode() for one in made]

    def _payload(self, id_: str, size: int) -> bytes:
        text = base64.b64encode(self._rng.randbytes(size))
        return msgspec.json.encode({"messageId": id_, "userId": id_, "text": text.decode(), "crc32": zlib.crc32(text)})


def main(task: Task) -> int:
    """Work until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(threadName)s %(levelname)s %(message)s")
    for module in ("boto", "urllib3"):
        logging.getLogger(module).setLevel(logging.WARNING)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    sizes = {"jobs_backup.spool.sqlite.writer:_FILE_BYTES": 2 * task.bulk_bytes} if task.engine == "sqlite" else {}
    _set({**_HURRY, **_HURRY_OF[task.engine], **sizes})
    _note_uploads(task, _append_to(task, "journaled"))
    _arm(task)
    _live(task)
    return 0


def _live(task: Task) -> None:
    """Work with an own Backup until asked to end or until the lifetime is over."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if task.leaps:
        clocks.leap_now_and_then(random.Random(f"{task.seed} {task.name} clock"), task.leaps, _append_to(task, "leaps"))
    life = float("inf") if task.life is None else task.life
    if task.fate == "killed":
        _die_in(life)
    until = time.monotonic() + life
    backup = _opened(task, stop)
    if backup is None:
        return
    with _closing(task, backup):
        forks = _Forks(task, backup)
        recorders = [_Recorder(task, number, backup, stop, forks) for number in range(task.threads)]
        threads = [threading.Thread(target=recorder.run, name=f"record-{n}") for n, recorder in enumerate(recorders)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until and not stop.wait(_LOOK_SECONDS):
            if forks.is_due():
                forks.fork()
        if task.fate == "leaves":
            _end(task)
        stop.set()
        for thread in threads:
            thread.join()


def _opened(task: Task, stop: threading.Event) -> Backup | None:
    """Open the Backup, and again while the database cannot be reached. Returns None once it is asked to end."""
    until = time.monotonic() + _OPEN_SECONDS
    while not stop.is_set():
        try:
            return Backup.from_env(archive=task.archive)
        except SpoolError:
            if task.engine == "sqlite" or time.monotonic() > until:
                raise
            stop.wait(_LOOK_SECONDS)
    return None


@contextlib.contextmanager
def _closing(task: Task, backup: Backup) -> Iterator[None]:
    """Close it at the end of the block. Without the database, others take over once the lease is over."""
    try:
        yield
    finally:
        try:
            backup.close()
        except SpoolError as error:
            if task.engine == "sqlite" or isinstance(error, SpoolCorrupt):
                raise
            logging.warning("not closed: %s", error.one_line())


class _Inbox:
    """The ids for one thread of this host to acknowledge, from the start of its process on."""

    def __init__(self, task: Task, number: int) -> None:
        self._file = os.open(os.path.join(task.directory, "mail", task.host), os.O_RDONLY | os.O_CREAT, 0o600)  # noqa: PTH118
        os.lseek(self._file, 0, os.SEEK_END)
        self._threads = task.threads
        self._number = number
        self._rest = b""

    def read(self) -> list[int]:
        """Return what came since the last call."""
        *lines, self._rest = (self._rest + os.read(self._file, 1 << 16)).split(b"\n")
        return [job for job in map(int, lines) if job % self._threads == self._number]


class _Forks:
    """Forks children now and then, from any thread that asks, while all others keep working."""

    def __init__(self, task: Task, backup: Backup) -> None:
        self._task = task
        self._backup = backup
        self._note = _append_to(task, "forks")
        self._numbers = itertools.count(1)
        self._rng = random.Random(f"{task.seed} {task.name} forks")
        self._next = time.monotonic() + self._pause()

    def is_due(self) -> bool:
        """Whether the next fork is due: True for one thread only, as long as they ask one after another."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._pause()
        return True

    def fork(self) -> None:
        """Run a child, with or without its own Backup. Never returns."""
        rng = random.Random(self._rng.random())
        name = f"{self._task.name}.{next(self._numbers)}"
        is_main = self._task.is_main and threading.current_thread() is threading.main_thread()
        os.write(self._note, f"{self._task.generation + 1}\n".encode())
        if os.fork() == 0:
            task = msgspec.structs.replace(
                self._task,
                name=name,
                threads=rng.choice((1, 2)),
                archive=rng.random() < 0.5,
                forks=2 * self._task.forks if self._task.generation + 1 < _GENERATIONS else 0.0,
                life=rng.uniform(0.0, 3.0),
                fate=rng.choice(("killed", "closes", "leaves", "stranger")),
                generation=self._task.generation + 1,
                is_main=is_main,
            )
            self._be(task, ends_at_once=not is_main or rng.random() < 0.5)

    def _pause(self) -> float:
        return self._rng.expovariate(1 / self._task.forks) if self._task.forks else float("inf")

    def _be(self, task: Task, *, ends_at_once: bool) -> NoReturn:
        try:
            if task.fate == "stranger":
                self._try_the_parents()
                time.sleep(task.life or 0.0)
            else:
                _live(task)
        except SystemExit:  # raised by one of its own children
            raise
        except BaseException:  # noqa: BLE001 - the log of a campaign has no traceback
            traceback.print_exc()
            os._exit(1)
        if ends_at_once:
            _end(task)
        os.write(_append_to(task, "ends"), f"{task.fate}\n".encode())
        sys.exit(0)  # end as an interpreter does, through all that the parent has begun

    def _try_the_parents(self) -> None:
        """Check that a child cannot use what it inherited, and that closing it does nothing."""
        try:
            self._backup.record(b"{}", source_id="web")
        except BackupClosed:
            self._backup.close()
        else:
            raise AssertionError("a child has recorded with the Backup of its parent")


def _end(task: Task) -> NoReturn:
    """End as the children of multiprocessing do: nothing is closed."""
    os.write(_append_to(task, "ends"), f"{task.fate}\n".encode())
    os._exit(0)


def _die_in(seconds: float) -> None:
    """kill -9 after this many seconds, whatever this process is doing."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def _append_to(task: Task, name: str) -> int:
    return os.open(os.path.join(task.directory, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)  # noqa: PTH118


def _set(constants: Mapping[str, float]) -> None:
    for target, value in constants.items():
        owner, name = points.resolve(target)
        setattr(owner, name, value)


def _note_uploads(task: Task, note: int) -> None:
    """Write down the upload ids in the journal: none of them may be open in the end."""
    owner, name = points.resolve(f"jobs_backup.spool.{task.engine}.uploads:UploadJournal.begin")
    begin = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        journaled = begin(*args, **kwargs)
        os.write(note, f"{journaled.upload.id}\n".encode())
        return journaled

    setattr(owner, name, noted)


def _arm(task: Task) -> None:
    points.check_all()
    for moment in task.failures:
        failure = points.fail_with(moment.code, _append_to(task, "failures"), moment.point)
        points.find(points.FAILURES, moment.point).arm(failure, moment.passage, moment.times)
    if task.kill is not None:
        action = points.kill_self(_append_to(task, "kills"), task.kill.point)
        points.find(points.KILLS[task.engine], task.kill.point).arm(action, task.kill.passage)


if __name__ == "__main__":
    sys.exit(main(msgspec.json.decode(sys.argv[1], type=Task)))
