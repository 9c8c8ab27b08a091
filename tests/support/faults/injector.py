"""Build the library that makes calls fail, and control it in the process that preloads it."""

from __future__ import annotations

import ctypes
import dis
import faulthandler
import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import msgspec

import jobs_backup

_SOURCE: Final = Path(__file__).with_name("inject.c")
_PACKAGE: Final = str(Path(jobs_backup.__file__).parent)
_PR_SET_PDEATHSIG: Final = 1
_EVERY: Final = 101
"""A survey reports one in this many of Python's allocations: a stack for each would take minutes."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls fail: `count` of them, from number `first` on, counted from 0. Without `first` it is a survey, which reports all.

    Attributes:
        kind: `calls` for system calls, `sqlite` and `python` for their allocations, `lines` for a MemoryError at a line of ours.
        error: errno of system calls.
        name, path: count only calls of this name, on paths that contain this. With several threads, the order of such calls
            varies less than the order of all.
        network: also count calls on sockets.
    """

    kind: str
    first: int | None = None
    count: int = 1
    error: int = 0
    name: str = ""
    path: str = ""
    network: bool = False


def why_not() -> str:
    """Why faults cannot be injected here; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "injecting faults needs Linux"
    if not os.confstr("CS_GNU_LIBC_VERSION"):
        return "the C library is not glibc"
    return "" if shutil.which("cc") else "there is no C compiler (cc)"


def build(directory: Path) -> Path:
    """Compile the library into a directory. Returns its path."""
    library = directory / "inject.so"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(library),
        str(_SOURCE),
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True)
    return library


@contextmanager
def temporary_directory(parent: Path | None) -> Generator[Path]:
    """Create a directory, in memory if possible: each run syncs several hundred times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="faults-", dir=parent or (memory if memory.is_dir() else None)) as name:
        yield Path(name)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends for any reason."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def arm(fault: Fault, root: str, report: int) -> None:
    """Start counting, in a process that preloads the library. `report` is the descriptor that the calls are reported to."""
    is_survey = fault.first is None
    if fault.kind == "lines":
        _Lines(fault, report).install()
        return
    library = ctypes.PyDLL(None)
    faulthandler.register(signal.SIGUSR2, file=report, all_threads=False)
    if fault.kind == "calls":
        library.faults_network(int(fault.network))
        library.faults_root(root.encode())
        library.faults_only(fault.name.encode(), fault.path.encode())
        for standard in (1, 2):
            library.faults_watch(standard)
    elif fault.kind == "sqlite":
        if not any(library.faults_library(name) for name in (b"libsqlite3", b"_sqlite3")):
            raise LookupError("SQLite is not a shared library here")
    elif not library.faults_python():
        raise LookupError("cannot replace Python's allocators")
    library.faults_report_to(report, (_EVERY if fault.kind == "python" else 1) if is_survey else 0)
    if fault.first is None:
        return
    if fault.kind == "calls":
        library.faults_fail_calls(ctypes.c_long(fault.first), ctypes.c_long(fault.count), fault.error)
    else:
        library.faults_fail_allocations(ctypes.c_long(fault.first), ctypes.c_long(fault.count))


class _Lines:
    """Counts executed lines of our package in all threads, and raises MemoryError at one of them."""

    def __init__(self, fault: Fault, report: int) -> None:
        self._wanted = fault.first
        self._report = report
        self._numbers = itertools.count()

    def install(self) -> None:
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._on_line if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event != "line" or frame.f_lasti in _quiet(frame.f_code):
            return self._on_line
        number = next(self._numbers)
        if self._wanted is None:
            os.write(self._report, f"@{number} line {frame.f_code.co_filename}:{frame.f_lineno}\n".encode())
        elif number == self._wanted:
            stack = [f'  File "{one.filename}", line {one.lineno} in {one.name}\n' for one in traceback.extract_stack(frame)]
            os.write(
                self._report, f"@{number} line {frame.f_code.co_filename}:{frame.f_lineno}\n{''.join(reversed(stack))}".encode()
            )
            raise MemoryError
        return self._on_line


@functools.cache
def _quiet(code: CodeType) -> frozenset[int]:
    """Whether a line begins with code that cannot raise: `try:`, or the end of a `with`, which may call a lock's `__exit__`.

    Nothing is allocated there, and no signal is handled before that call.
    """
    found = list(dis.get_instructions(code))

    def is_quiet(at: int) -> bool:
        at += found[at].opname == "SWAP"
        names = [one.opname for one in found[at : at + 3]]
        ends_with = names == ["LOAD_CONST"] * 3 and all(one.argval is None for one in found[at : at + 3])
        return names[0] == "NOP" or ends_with or names[:2] == ["PUSH_EXC_INFO", "WITH_EXCEPT_START"]

    return frozenset(one.offset for at, one in enumerate(found[:-1]) if is_quiet(at))
