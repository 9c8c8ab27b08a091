"""Fork a process for each command that a test runs: importing the package takes ten times as long as most commands.

The child is a separate process with the test's environment, directory and umask, and ends as any Python does. Whatever Python
reads before our first line (PYTHONPATH, the locale) cannot change, so commands that change it run in a new interpreter: see
`commands.run`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

_LARGEST: Final = 1 << 20
_EARLY: Final = ("PYTHON", "LANG", "LC_", "LD_", "MALLOC_", "GLIBC_")
_TIMEOUT: Final = 120


class Server:
    """The process that forks. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true"}
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._answers = self._socket.makefile("r")

    def run(self, arguments: list[str], environment: dict[str, str], stdin: str | None) -> tuple[int, str, str] | None:
        """Return exit code, standard output and standard error; None if it cannot run this command, or is busy."""
        if any(name.startswith(_EARLY) for name in environment) or not self._lock.acquire(blocking=False):
            return None
        try:
            return self._run(arguments, environment, stdin)
        finally:
            self._lock.release()

    def _run(self, arguments: list[str], environment: dict[str, str], stdin: str | None) -> tuple[int, str, str]:
        umask = os.umask(0o77)
        os.umask(umask)
        task = {"arguments": arguments, "environment": environment, "directory": str(Path.cwd()), "umask": umask}
        reading, writing = (os.open(os.devnull, os.O_RDONLY), -1) if stdin is None else os.pipe()
        outputs = os.pipe(), os.pipe()
        theirs = [reading, *(end for _, end in outputs)]
        message = json.dumps(task).encode("utf-8", "surrogateescape")
        socket.send_fds(self._socket, [len(message).to_bytes(4, "big")], theirs)
        self._socket.sendall(message)
        for descriptor in theirs:
            os.close(descriptor)
        found: dict[int, bytes] = {}
        readers = [threading.Thread(target=_read_all, args=(end, found), daemon=True) for end, _ in outputs]
        if stdin is not None:
            readers.append(
                threading.Thread(target=_write_all, args=(writing, stdin.encode("utf-8", "surrogateescape")), daemon=True)
            )
        for reader in readers:
            reader.start()
        pid = int(self._answers.readline())
        timer = threading.Timer(_TIMEOUT, os.kill, (pid, 9))
        timer.start()
        code = int(self._answers.readline())
        timer.cancel()
        until = time.monotonic() + _TIMEOUT
        for reader in readers:
            reader.join(max(0.0, until - time.monotonic()))
        assert code != -9, f"{arguments} did not end within {_TIMEOUT} s: {found}"
        stdout, stderr = (found[end].decode() for end, _ in outputs)
        return code, stdout, stderr


@functools.cache
def server() -> Server:
    """Return this process's server; the first call starts it."""
    return Server()


def _read_all(descriptor: int, found: dict[int, bytes]) -> None:
    with open(descriptor, "rb") as file:
        found[descriptor] = file.read()


def _write_all(descriptor: int, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb") as file:
        file.write(data)


def main() -> None:
    """Serve the socket whose descriptor is the first argument, until its other end is closed."""
    for name in ("boto3", "jobs_backup_s3.provider", "jobs_backup_gcs.provider"):  # what commands import, where it is installed
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

    import jobs_backup.cli
    from jobs_backup.cli.commands import archive, check, delivered, failed, providers, replay, run, serve, status  # noqa: F401

    with socket.socket(fileno=int(sys.argv[1])) as requests:
        gc.freeze()
        while True:
            head, descriptors, _, _ = socket.recv_fds(requests, 4, 3)
            if not head:
                return
            message = b""
            while len(message) < int.from_bytes(head, "big"):
                message += requests.recv(_LARGEST)
            if (pid := os.fork()) == 0:
                requests.close()
                _become(json.loads(message), descriptors)
                jobs_backup.cli.main()
                raise AssertionError("the command returned")
            for descriptor in descriptors:
                os.close(descriptor)
            requests.sendall(b"%d\n" % pid)
            requests.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _become(task: dict[str, Any], descriptors: list[int]) -> None:
    os.environ.clear()
    os.environ.update(task["environment"])
    time.tzset()
    os.chdir(task["directory"])
    os.umask(task["umask"])
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["jobs-backup", *task["arguments"]]


if __name__ == "__main__":
    main()
