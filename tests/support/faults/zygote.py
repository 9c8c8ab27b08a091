"""`python -m faults.zygote`: imports the package once, then forks a process for each command it reads (JSON, one per line).

Importing takes many times as long as the command itself. At the fork there is one thread, and nothing of ours is open.
It answers with the child's process id, and with its exit status once it has ended.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import pkgutil
import signal
import sys
from typing import Final, NoReturn

import msgspec
from faults.injector import Fault, arm, die_with_parent

import jobs_backup
import jobs_backup.store.object_store

LANDING_SECONDS: Final = 0.2
"""How long a delete waits, beyond the timeout, for a write that may still arrive. A minute would slow the sweep down."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A command, the files for its output, and the file (`report`) for the calls that failed."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    root: str
    stdout: str
    stderr: str
    report: str
    fault: Fault | None = None


def main() -> None:
    from faults.sabotage import ALL, commit  # it imports the module that starts this process

    die_with_parent()
    for name in sys.argv[1:]:  # before decorators of modules imported later copy the function
        commit(ALL[name])
    for module in pkgutil.walk_packages(jobs_backup.__path__, "jobs_backup."):
        if not module.name.startswith("jobs_backup.testing"):
            importlib.import_module(module.name)
    vars(jobs_backup.store.object_store)["_LANDING_MARGIN"] = LANDING_SECONDS
    gc.freeze()  # or each child would copy and free every imported object
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in iter(sys.stdin.buffer.readline, b""):
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            _run(msgspec.json.decode(line, type=Task))
        os.write(answers, b"%d\n" % pid)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _run(task: Task) -> NoReturn:
    die_with_parent()
    os.environ.clear()
    os.environ.update(task.environment)
    report = os.open(task.report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for descriptor, path in ((0, os.devnull), (1, task.stdout), (2, task.stderr)):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    faulthandler.register(signal.SIGUSR1, file=report, all_threads=True)
    from jobs_backup.cli import main as command

    sys.argv = ["jobs-backup", *task.arguments]
    if task.fault is not None:
        arm(task.fault, task.root, report)
        command()
        sys.exit(0)
    try:
        command()
    except SystemExit as end:  # Python's shutdown takes as long as the rest, and is tested only where a call fails
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)
    os._exit(0)


if __name__ == "__main__":
    main()
