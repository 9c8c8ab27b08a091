"""Forking servers, as the documentation shows them: every acknowledged event is in the bucket once.

The workers are killed at random, and replaced. JOBS_BACKUP_TEST_EVENTS=10000 is the full size: `make forks`.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import file_environment
from deployments.clients import clients, disturb
from deployments.counting import RECEIPTS, Outcome, Receipts, acknowledged, outcome
from deployments.programs import children, kill_one, program
from places import ROOT

EVENTS = int(os.environ.get("JOBS_BACKUP_TEST_EVENTS", "120"))
KILLS = 2 if EVENTS < 1000 else 20
SEED = int(os.environ.get("JOBS_BACKUP_TEST_SEED", "18"))
PAGE = (ROOT / "docs/forks.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()]

pytestmark = pytest.mark.slow


def write_programs(directory: Path, *names: str) -> None:
    """Save the programs in the documentation."""
    programs = dict(re.findall(r"^```python\n# ([\w.]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    for name in names:
        (directory / name).write_text(programs[name])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that successive servers can inherit: no connection is refused in between."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as made:
        yield made


def recording(directory: Path, words: list[str]) -> list[str]:
    """The command, run by a process whose own Backup records while it forks."""
    return [sys.executable, "-m", "deployments.recording", str(directory), *words]


def environment_of(directory: Path, **variables: str) -> dict[str, str]:
    """Small batches, so that the spool's files are rotated and removed during the run."""
    (directory / RECEIPTS).touch()
    return file_environment(directory, JOBS_BACKUP_BATCH_EVENTS="20", **variables)


def recorded_by_workers(directory: Path) -> int:
    return sum(not id_.startswith("parent-") for id_ in acknowledged(directory))


def check(directory: Path, environment: dict[str, str]) -> None:
    assert outcome(directory, environment) == Outcome()
    ids = acknowledged(directory)
    assert len(ids) - recorded_by_workers(directory) > 0, "the parent recorded nothing"
    assert recorded_by_workers(directory) >= EVENTS


def serve(directory: Path, listener: socket.socket, words: list[str], *, kills_master: bool) -> None:
    """Post events to a server whose workers are killed; halfway the master as well, if `kills_master`."""
    environment = environment_of(directory)
    randomly = random.Random(SEED)
    receipts = Receipts(directory)
    words = recording(directory, words)
    with (
        clients(listener.getsockname()[1], receipts) as posting,
        program(words, directory, environment, [listener.fileno()]) as first,
    ):
        disturb(lambda: posting.answered, EVENTS // 2, KILLS, lambda _: kill_one(children(first.process.pid), randomly))
        first.end(signal.SIGKILL if kills_master else signal.SIGTERM)
        with program(words, directory, environment, [listener.fileno()]) as second:
            disturb(lambda: posting.answered, EVENTS, KILLS, lambda _: kill_one(children(second.process.pid), randomly))
            posting.stop()
            second.end()
    check(directory, environment)


def commands(program: str, application: str) -> pytest.MarkDecorator:
    """Each documented command of this kind."""
    return pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith(program) and application in line])


@commands("gunicorn", "app:application")
def test_gunicorn(tmp_path: Path, listener: socket.socket, line: str) -> None:
    write_programs(tmp_path, "gunicorn.conf.py", "app.py")
    words = [*shlex.split(line), "--bind", f"fd://{listener.fileno()}"]
    serve(tmp_path, listener, words, kills_master=True)


@commands("gunicorn", "asgi:app")
def test_uvicorn_workers_of_gunicorn(tmp_path: Path, listener: socket.socket, line: str) -> None:
    """They would outlive a killed master, so it is not killed."""
    write_programs(tmp_path, "asgi.py")
    words = [*shlex.split(line), "--bind", f"fd://{listener.fileno()}"]
    serve(tmp_path, listener, words, kills_master=False)


@commands("uvicorn", "asgi:app")
def test_uvicorn(tmp_path: Path, listener: socket.socket, line: str) -> None:
    """Its workers are not forked, and would outlive a killed supervisor."""
    write_programs(tmp_path, "asgi.py")
    words = [*shlex.split(line), "--fd", str(listener.fileno())]
    serve(tmp_path, listener, words, kills_master=False)


CELERY = """
import os, random, signal, threading

from celery.signals import task_postrun, task_prerun
from tasks import app

app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={
        "data_folder_in": "broker", "data_folder_out": "broker", "control_folder": "control", "polling_interval": 0.01,
    },
    result_backend="file://results",
    worker_prefetch_multiplier=1,
)
killer = None


@task_prerun.connect
def begin(**_):
    global killer
    killer = threading.Timer(random.expovariate(30), os.kill, (os.getpid(), signal.SIGKILL)) if random.random() < 0.1 else None
    if killer:
        killer.start()


@task_postrun.connect
def end(**_):
    if killer:
        killer.cancel()
        killer.join()
"""


def recorded_in_time(directory: Path, events: int) -> bool:
    """Whether this many events are recorded before the pool counts as stuck."""
    last, at = -1, time.monotonic()
    while (recorded := recorded_by_workers(directory)) < events:
        if recorded > last:
            last, at = recorded, time.monotonic()
        elif time.monotonic() - at > 120:
            return False
        time.sleep(0.02)
    return True


def test_celery(tmp_path: Path) -> None:
    """A pool process is killed at random within a task, which then has no result, and is not run again.

    The processes share a queue. Killing one while it holds the queue's lock stops them all: then Celery is restarted.
    """
    environment = environment_of(tmp_path)
    write_programs(tmp_path, "tasks.py")
    (tmp_path / "deployment.py").write_text(CELERY)
    for name in ("broker", "control", "results"):
        (tmp_path / name).mkdir()
    (line,) = [line for line in COMMANDS if line.startswith("celery")]
    words = [*shlex.split(line.replace("tasks", "deployment")), "--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = recording(tmp_path, words)
    killed = 0
    with program([sys.executable, "-m", "deployments.tasks", str(tmp_path)], tmp_path, environment) as sending:
        for run in range(20):
            target = recorded_by_workers(tmp_path) + EVENTS // 3 + 1
            with program(worker, tmp_path, environment) as running:
                if recorded_in_time(tmp_path, target):
                    running.end(signal.SIGKILL if run == 1 else signal.SIGTERM)
                else:
                    running.end(signal.SIGKILL, kills_rest=True)
            killed += running.log.count("signal 9 (SIGKILL)")
            if run >= 2 and killed >= KILLS and recorded_by_workers(tmp_path) >= EVENTS:
                break
        sending.end()
    assert killed >= KILLS
    check(tmp_path, environment)


def test_multiprocessing(tmp_path: Path) -> None:
    """A pool whose processes are killed is replaced; its parent is killed once, too, before its processes."""
    environment = environment_of(tmp_path)
    write_programs(tmp_path, "pool.py")
    words = recording(tmp_path, ["deployments.pools", str(tmp_path)])
    randomly = random.Random(SEED)
    for signal_number in (signal.SIGKILL, signal.SIGTERM):
        target = min(EVENTS, recorded_by_workers(tmp_path) + EVENTS // 2 + 1)
        with program(words, tmp_path, environment) as running:
            disturb(
                lambda: recorded_by_workers(tmp_path), target, KILLS, lambda _: kill_one(children(running.process.pid), randomly)
            )
            running.end(signal_number, kills_rest=True)
    check(tmp_path, environment)
