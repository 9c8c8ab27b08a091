"""Listening sockets for IPv4 and IPv6, shared by `serve` and the monitoring port."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import ExitStack
from typing import Final

_ALL: Final = ("::", "0.0.0.0")  # noqa: S104 - only on request
_BOTH: Final = {"::": _ALL, "*": _ALL, "localhost": ("::1", "127.0.0.1")}
"""Hosts that mean an address of each family. Each gets its own socket, so that the system's default for `::` does not matter."""
_MISSING: Final = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}
"""Errors of a machine without the family: IPv6 is disabled in the kernel, or on the interface."""
_FREE_PORT_ATTEMPTS: Final = 16


def listen(host: str, port: int, *, backlog: int = 128) -> list[socket.socket]:
    """Listen on a host: `::` on all addresses, `localhost` on both loopbacks, a name on each of its addresses.

    With port 0 all sockets share a free one. A family that the machine lacks is skipped, unless none is left.

    Raises:
        OSError: cannot listen on one of them.
        UnicodeError: the host is not a valid name.
    """
    for attempt in range(1, _FREE_PORT_ATTEMPTS + 1):
        try:
            return _listen(host, port, backlog)
        except OSError as error:  # the port that was free for the first address is in use on another
            if port or error.errno != errno.EADDRINUSE or attempt == _FREE_PORT_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def url(scheme: str, host: str, listener: socket.socket) -> str:
    """The URL of a listener, with the actual port."""
    host = unbracketed(host)
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{listener.getsockname()[1]}"


def unbracketed(host: str) -> str:
    """An address without its brackets in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it. A name other than `localhost` may lead anywhere."""
    host = unbracketed(host)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    host = unbracketed(host)
    found: list[socket.socket] = []
    missing: OSError | None = None
    with ExitStack() as stack:
        for name in _BOTH.get(host, (host,)):
            try:
                addresses = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            except socket.gaierror as error:
                missing = error  # of the literals above: the C library lacks the family
                if host not in _BOTH:
                    raise
                continue
            for family, _, _, _, address in dict.fromkeys(addresses):
                at = (address[0], found[0].getsockname()[1], *address[2:]) if found and not port else address
                try:
                    found.append(stack.enter_context(_listener(family, at, backlog)))
                except OSError as error:
                    if error.errno not in _MISSING:
                        raise
                    missing = error
        if not found:
            assert missing is not None
            raise missing
        stack.pop_all()
    return found


def _listener(family: int, address: tuple[str | int, ...], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
