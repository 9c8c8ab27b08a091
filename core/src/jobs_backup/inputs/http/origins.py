"""Web pages that may call: CORS, as the Fetch standard defines it. Off, unless origins are configured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from starlette.responses import Response

from jobs_backup.errors import ConfigurationError
from jobs_backup.inputs.http.responses import HttpError

_ORIGIN: Final = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_EVERY: Final = "*"
_METHODS: Final = "GET, POST"
_EXPOSED: Final = "Retry-After, X-Request-ID"
_MAX_AGE_SECONDS: Final = 900
"""How long a browser caches the permission to call."""


class Origins:
    """Which origins may call, and the headers for browsers."""

    def __init__(self, setting: str | None) -> None:
        """Parse origins separated by commas; `*` allows all. Raises ConfigurationError."""
        self._allowed = frozenset(_origins(setting or ""))

    @property
    def is_everybody(self) -> bool:
        """Whether pages of every site may call."""
        return _EVERY in self._allowed

    def allows(self, origin: str) -> bool:
        """Whether pages of this origin may call."""
        return self.is_everybody or origin.lower() in self._allowed

    def headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """Headers of each answer that let a page read it."""
        if not self._allowed:
            return []
        headers = [(b"vary", b"origin")]
        if origin is not None and self.allows(origin):
            headers += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", _EXPOSED.encode()),
            ]
            if not self.is_everybody:
                headers.append((b"access-control-allow-credentials", b"true"))
        return headers

    def preflight(self, method: str, headers: Mapping[str, str]) -> Response | None:
        """Answer a preflight. None: this request is not one, or CORS is off. Raises Refused (403): the origin may not call."""
        if not self._allowed or method != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        if not self.allows(headers.get("origin", "")):
            hint = "add the origin to the server's JOBS_BACKUP_SERVER_CORS_ORIGINS"
            raise HttpError(403, "Forbidden", "pages of this origin may not call this server", hint=hint)
        answer = Response(status_code=204)
        answer.headers["Access-Control-Allow-Methods"] = _METHODS
        answer.headers["Access-Control-Max-Age"] = str(_MAX_AGE_SECONDS)
        if asked := headers.get("access-control-request-headers"):
            answer.headers["Access-Control-Allow-Headers"] = asked
        return answer


def _origins(setting: str) -> Iterator[str]:
    for number, one in enumerate((part.strip() for part in setting.split(",") if part.strip()), 1):
        origin = one.lower().removesuffix("/")
        if origin != _EVERY and _ORIGIN.fullmatch(origin) is None:
            raise ConfigurationError(
                f"origin {number} of JOBS_BACKUP_SERVER_CORS_ORIGINS is invalid",
                hint="write scheme, host and port as the browser shows them, for example https://www.example.com",
            )
        scheme, _, _ = origin.partition(":")
        yield origin.removesuffix({"http": ":80", "https": ":443"}.get(scheme, ""))  # the default port, which browsers omit
