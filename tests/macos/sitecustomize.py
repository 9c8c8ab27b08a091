"""Remove what macOS lacks from every Python that starts with this directory in PYTHONPATH.

The names are those that typeshed and Python's documentation list for Linux and not for macOS. `/proc` is hidden, and the limit of
open files cannot be raised above OPEN_MAX.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

_ABSENT: Final[dict[Any, tuple[str, ...]]] = {
    os: (
        "posix_fallocate", "posix_fadvise", "fdatasync", "copy_file_range", "splice", "memfd_create", "eventfd", "pidfd_open",
        "getrandom", "pipe2", "sched_getaffinity", "sched_setaffinity", "getxattr", "setxattr", "listxattr", "removexattr",
        "getresuid", "getresgid", "O_TMPFILE", "O_PATH", "O_DIRECT", "O_NOATIME", "O_LARGEFILE", "unshare", "setns",
    ),
    time: ("CLOCK_BOOTTIME",),
    socket: ("TCP_USER_TIMEOUT", "TCP_DEFER_ACCEPT", "TCP_QUICKACK", "SO_PEERCRED", "SO_DOMAIN", "SO_PROTOCOL", "AF_NETLINK"),
    select: ("epoll",),
    signal: ("sigtimedwait", "sigwaitinfo", "SIGRTMIN", "SIGRTMAX", "SIGPWR", "SIGPOLL"),
    resource: ("prlimit",),
}  # fmt: skip
_OPEN_MAX: Final = 10_240


def _without_proc(called: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
        return called(path, *arguments, **options)

    return call


def _refuse_proc(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes) and os.fsdecode(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(arguments[0]))


def _limited(set_limit: Callable[[int, tuple[int, int]], None]) -> Callable[[int, tuple[int, int]], None]:
    def call(which: int, limits: tuple[int, int]) -> None:
        if which == resource.RLIMIT_NOFILE and limits[0] > _OPEN_MAX:
            raise ValueError("current limit exceeds maximum limit")
        set_limit(which, limits)

    return call


def _library(_name: object) -> object:
    return object()  # macOS has no mallopt


if "jobs_backup" not in sys.modules:
    for _module, _names in _ABSENT.items():
        for _one in _names:
            if hasattr(_module, _one):
                delattr(_module, _one)
    os.stat, os.lstat, os.open = _without_proc(os.stat), _without_proc(os.lstat), _without_proc(os.open)
    sys.addaudithook(_refuse_proc)
    resource.setrlimit = _limited(resource.setrlimit)
    ctypes.CDLL = _library  # type: ignore[assignment, misc]
