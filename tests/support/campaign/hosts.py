"""The hosts of a fleet: network namespaces where the system allows them, otherwise only a proxy to the database for each."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from swallowing import Swallower, swallower

_PREFIX: Final = "jbc"


class Host:
    """A machine with a network of its own.

    Attributes:
        name: also its `INSTANCE_ID`.
        database: the proxy through which it reaches the database.
        prefix: the beginning of a command that runs on it.
        address: of the servers, as it sees them.
    """

    def __init__(self, name: str, database: Swallower, *, namespace: str = "", address: str = "127.0.0.1") -> None:
        self.name = name
        self.database = database
        self.address = address
        self.prefix = ["ip", "netns", "exec", namespace] if namespace else []
        self._namespace = namespace

    def cut(self, *, everything: bool) -> None:
        """Drop its packets: all of them, or only those to and from the database unless `everything`."""
        if everything and self._namespace:
            _ip("link", "set", self._namespace, "nomaster")
        else:
            self.database.cut()

    def heal(self) -> None:
        """Connect it again."""
        if self._namespace:
            _ip("link", "set", self._namespace, "master", _bridge())
        self.database.heal()


class Network:
    """Hosts, and the address at which they reach the servers."""

    def __init__(self, hosts: list[Host], address: str) -> None:
        self.hosts = hosts
        self.address = address


def why_no_namespaces() -> str:
    """Return why network namespaces cannot be used; empty if they can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "`ip` (package iproute2) is not installed"
    name = f"{_PREFIX}{os.getpid()}try"
    try:
        _ip("netns", "add", name)
        try:
            _ip("link", "add", name, "type", "bridge")
            _ip("link", "delete", name)
        finally:
            _ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return str(error.stderr.decode().strip() or error)
    return ""


@contextlib.contextmanager
def network(names: list[str], *, namespaces: bool) -> Iterator[Network]:
    """Make a host for each name. Set `server_port` of their databases before use."""
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(_bridged()) if namespaces else "127.0.0.1"
        hosts = []
        for number, name in enumerate(names, start=2):
            namespace = stack.enter_context(_namespace(address, number)) if namespaces else ""
            proxy = stack.enter_context(swallower(0, address))
            hosts.append(Host(name, proxy, namespace=namespace, address=address))
        yield Network(hosts, address)


def _bridge() -> str:
    return f"{_PREFIX}{os.getpid()}"


@contextlib.contextmanager
def _bridged() -> Iterator[str]:
    """Make a bridge. Yields this machine's address on it."""
    _remove_left_over()
    net = random.SystemRandom().randrange(256)
    address = f"10.213.{net}.1"
    _ip("link", "add", _bridge(), "type", "bridge")
    try:
        _ip("address", "add", f"{address}/24", "dev", _bridge())
        _ip("link", "set", _bridge(), "up")
        yield address
    finally:
        _ip("link", "delete", _bridge())


@contextlib.contextmanager
def _namespace(address: str, number: int) -> Iterator[str]:
    """Make a namespace, connected to the bridge by an interface of the same name."""
    name = f"{_bridge()}n{number}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", name, "master", _bridge())
        _ip("link", "set", name, "up")
        _ip("-n", name, "address", "add", f"{address.rpartition('.')[0]}.{number}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", name, "link", "set", link, "up")
        yield name
    finally:
        _ip("netns", "delete", name)  # and with it the link


def _remove_left_over() -> None:
    """Remove the namespaces and bridges of campaigns that were killed."""
    for kind, listed in (("netns", ("netns", "list")), ("link", ("-br", "link", "show", "type", "bridge"))):
        for name in re.findall(rf"^({_PREFIX}\d+\S*)", _ip(*listed), re.MULTILINE):
            pid = name.removeprefix(_PREFIX).partition("n")[0]
            if not Path("/proc", pid).exists():
                with contextlib.suppress(subprocess.CalledProcessError):  # another campaign does the same
                    _ip(kind, "delete", name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True).stdout.decode()
