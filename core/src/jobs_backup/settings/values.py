"""Types of settings besides Python's own: secrets, durations, sizes, endpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit


class Secret:
    """A text that stays hidden: `repr`, `str` and formatting give `****`. `reveal()` returns the text.

    Not a `str`, so that joining, encoding or serializing it by mistake fails instead of disclosing it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "****"

    def __format__(self, spec: str) -> str:
        return "****"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __bool__(self) -> bool:
        return bool(self._text)

    def reveal(self) -> str:
        """The text itself."""
        return self._text


class DatabaseUrl:
    """`postgresql://USER@HOST:PORT/DATABASE?PARAMETER=VALUE`, which may hold a password: it shows its hosts and its database alone.

    Several hosts are separated by commas; the parameter `host` names the directory of a socket.
    """

    __slots__ = ("_hosts", "_parameters", "_text", "shown")

    _WANTED: Final = "expected postgresql://USER@HOST/DATABASE, with special characters of a password percent-encoded"
    _HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]|%2[Ff][A-Za-z0-9._%-]+)(:\d+)?")
    _DATABASE: Final = re.compile(r"/[\w.%-]+")
    _PARAMETER: Final = re.compile(r"[a-z_]+=[^=&?@]*")

    def __init__(self, text: str) -> None:
        """Raises ValueError, which shows nothing of the text."""
        found = urlsplit(text)
        hosts = found.netloc.rpartition("@")[2]
        parameters = found.query.split("&") if found.query else []
        if found.scheme not in ("postgresql", "postgres") or "#" in text or not self._DATABASE.fullmatch(found.path):
            raise ValueError(self._WANTED)
        if not all(map(self._HOST.fullmatch, hosts.split(","))) and (hosts or "host=" not in found.query):
            raise ValueError(self._WANTED)
        if not all(map(self._PARAMETER.fullmatch, parameters)):
            raise ValueError(self._WANTED)
        self._text = text
        self._parameters = {name: unquote(value) for name, _, value in (one.partition("=") for one in parameters)}
        # libpq would take these instead of what is before the question mark, which is what messages show.
        if {"dbname", "service"} & self._parameters.keys() or (hosts and "host" in self._parameters):
            raise ValueError("the host and the database are named before the question mark of the URL, and only there")
        self._hosts = (unquote(hosts) or self._parameters["host"]).split(",")
        self.shown = f"postgresql://{','.join(self._hosts)}{found.path}"

    @classmethod
    def parse(cls, text: str) -> DatabaseUrl:
        """Raises ValueError."""
        return cls(text)

    def __repr__(self) -> str:
        return self.shown

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DatabaseUrl) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def is_local(self) -> bool:
        """Whether it names nothing but sockets on this machine."""
        return all(host.startswith("/") for host in self._hosts)

    @property
    def has_several_hosts(self) -> bool:
        """Whether the driver has to find out which of them takes writes."""
        return len(self._hosts) > 1

    def says(self, parameter: str) -> bool:
        """Whether it has a parameter."""
        return parameter in self._parameters

    @property
    def has_password(self) -> bool:
        """Whether it holds a password."""
        return urlsplit(self._text).password is not None or "password" in self._parameters

    def reveal(self) -> str:
        """The whole of it, with the password."""
        return self._text


class Duration(float):
    """Seconds, written as `500ms`, `30s`, `5m`, `2h` or a plain number of seconds."""

    _UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
    _LONGEST: Final = 36500 * 86400.0  # the system's timers overflow eventually

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Parse a duration. Raises ValueError."""
        value = cls(_quantity(text, cls._UNITS, "a duration such as 500ms, 30s or 5m"))
        if value > cls._LONGEST:
            raise ValueError(f"expected at most {cls(cls._LONGEST)}")
        return value

    def __str__(self) -> str:
        for unit in ("d", "h", "m", "s"):
            if self and self % self._UNITS[unit] == 0:
                return f"{self / self._UNITS[unit]:.0f}{unit}"
        return f"{self * 1000:.6f}".rstrip("0").rstrip(".") + "ms"


class Size(int):
    """Bytes, written as `64MiB` (powers of 1,024), `1GB` (powers of 1,000) or a plain number of bytes."""

    _UNITS: Final = {
        "": 1, "b": 1,
        "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
        "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    }  # fmt: skip
    _LARGEST: Final = 2**60

    @classmethod
    def parse(cls, text: str) -> Size:
        """Parse a size. Raises ValueError."""
        value = _quantity(text, cls._UNITS, "a size such as 64MiB or 1GB")
        if value > cls._LARGEST:
            raise ValueError(f"expected at most {cls(cls._LARGEST)}")
        return cls(value)

    def __str__(self) -> str:
        for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB"):
            if self and self % self._UNITS[unit.lower()] == 0:
                return f"{int(self) // self._UNITS[unit.lower()]}{unit}"
        return str(int(self))


class Endpoint(str):
    """URL of a server: `http` or `https`, host, port and path, without a trailing slash.

    An invalid value is never shown: people write credentials into URLs.
    """

    __slots__ = ()
    _LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
    _FORM: Final = re.compile(
        rf"(https?)://({_LABEL}(?:\.{_LABEL})*\.?|\[[0-9a-f:.]+\])(?::([0-9]{{1,5}}))?(/[a-z0-9._~!$&'()*+,;=:%/-]*)?",
        re.IGNORECASE | re.ASCII,
    )

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parse a URL. Raises ValueError."""
        if not {"@", "?", "#"}.isdisjoint(text):
            raise ValueError("expected a URL with nothing but host, port and path")
        match = cls._FORM.fullmatch(text)
        if match is None or not 0 < int(match[3] or 1) <= 65_535:
            raise ValueError("expected a URL such as https://host or http://host:port")
        port = f":{match[3]}" if match[3] else ""
        return cls(f"{match[1].lower()}://{match[2]}{port}{(match[4] or '').rstrip('/')}")


def _quantity(text: str, units: Mapping[str, float], expected: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].lower() not in units:
        raise ValueError(f"expected {expected}")
    return float(match[1]) * units[match[2].lower()]
