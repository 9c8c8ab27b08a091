"""Who may do what: bearer tokens may do all, a write key may record its source's events."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from jobs_backup.errors import ConfigurationError
from jobs_backup.inputs.http.answers import Refused
from jobs_backup.inputs.http.origins import Origins
from jobs_backup.settings.server import ServerSettings
from jobs_backup.settings.values import Secret
from jobs_backup.util.listening import is_loopback

_MIN_TOKEN: Final = 16


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends a request.

    Attributes:
        name: tells callers apart, for rates; nothing that could be used to call.
        source_id: the source that a write key stands for; None of who may do all.
    """

    name: str
    source_id: str | None = None


class Access:
    """Compares what a request brings with what is allowed, in a time that does not depend on how much of it is right."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises ConfigurationError: a token, a write key or an origin can't be used, or everybody could record from elsewhere."""
        self._tokens = [_digest(token) for token in _tokens(settings.tokens)]
        self._sources = {_digest(key): source for key, source in _write_keys(settings.write_keys)}
        self.is_open = not self._tokens and not self._sources
        """Whoever reaches the server may do all, without credentials."""
        if self.is_open and not is_loopback(settings.host):
            raise ConfigurationError(
                f"JOBS_BACKUP_SERVER_HOST={settings.host} lets everybody who can reach it record events",
                hint="set JOBS_BACKUP_SERVER_TOKEN or JOBS_BACKUP_SERVER_WRITE_KEYS, or listen on localhost",
            )
        self.origins = Origins(settings.cors_origins)
        """The web pages that may call."""
        if self.is_open and self.origins.is_everybody:
            raise ConfigurationError(
                "JOBS_BACKUP_SERVER_CORS_ORIGINS=* lets every web page that is opened on this machine record events",
                hint="set JOBS_BACKUP_SERVER_WRITE_KEYS or JOBS_BACKUP_SERVER_TOKEN, or list the origins",
            )

    def everything(self, headers: Mapping[str, str]) -> Principal:
        """Who may do all.

        Raises:
            Refused: 401 if it is nobody who is known, 403 if it is a write key.
        """
        caller = self.recording(headers)
        if caller.source_id is not None and not self.is_open:
            raise Refused(403, "Forbidden", "a write key may only record events", hint="authenticate with a bearer token")
        return caller

    def recording(self, headers: Mapping[str, str]) -> Principal:
        """Who may record: all of the sources, or those of one. Raises Refused (401) if it is nobody who is known."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._token(given.strip())
        if scheme.lower() == "basic":
            return self._write_key(_user(given.strip()))
        if self.is_open:
            return Principal(name="anybody")
        raise _unknown("no credentials were given")

    def source(self, headers: Mapping[str, str], key: str = "") -> Principal:
        """Who may record the events of one source, which its write key tells. Raises Refused (401) if it is nobody who is known.

        Args:
            headers: of the request.
            key: the write key, if it came in another way: a browser's `sendBeacon` has no headers.
        """
        caller = self._write_key(key) if key else self.recording(headers)
        if caller.source_id is None:
            raise _unknown("no write key was given", scheme="Basic")
        return caller

    def _token(self, token: str) -> Principal:
        digest = _digest(token)
        # All of them are compared, whichever it is.
        if self.is_open or any([hmac.compare_digest(digest, one) for one in self._tokens]):  # noqa: C419
            return Principal(name=f"token {digest.hex()[:12]}")
        raise _unknown("the token is not one of those that are allowed")

    def _write_key(self, key: str) -> Principal:
        digest = _digest(key)
        found = [source for one, source in self._sources.items() if hmac.compare_digest(digest, one)]
        if self.is_open and key:
            found = [key]
        if not found:
            raise _unknown("the write key is not one of those that are allowed", scheme="Basic")
        return Principal(name=f"write key {digest.hex()[:12]}", source_id=found[0])


def _unknown(message: str, scheme: str = "Bearer") -> Refused:
    headers = {"WWW-Authenticate": f'{scheme} realm="jobs-backup"'}
    hint = "send `Authorization: Bearer TOKEN`, or the write key as the user of HTTP Basic"
    return Refused(401, "Unauthorized", message, hint=hint, headers=headers)


def _digest(text: str) -> bytes:
    """Of equal length whatever the text is, so that neither it nor its length shows in the time that comparing takes."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _user(encoded: str) -> str:
    """The user of HTTP Basic (RFC 7617). Raises Refused."""
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise _unknown("the credentials of HTTP Basic can't be read", scheme="Basic") from None
    return text.partition(":")[0]


def _listed(secret: Secret | None) -> Iterator[str]:
    for one in (secret.reveal() if secret is not None else "").split(","):
        if stripped := one.strip():
            yield stripped


def _tokens(secret: Secret | None) -> Iterator[str]:
    for number, token in enumerate(_listed(secret), 1):
        if len(token) < _MIN_TOKEN or not token.isascii():  # what a header has of others nobody agrees upon
            raise ConfigurationError(
                f"token {number} of JOBS_BACKUP_SERVER_TOKEN has fewer than {_MIN_TOKEN} characters, or others than those of ASCII",
                hint="make one with `openssl rand -hex 32`",
            )
        yield token


def _write_keys(secret: Secret | None) -> Iterator[tuple[str, str]]:
    for number, one in enumerate(_listed(secret), 1):
        key, equals, source = one.partition("=")
        if not key or (equals and not source) or ":" in key:
            raise ConfigurationError(
                f"entry {number} of JOBS_BACKUP_SERVER_WRITE_KEYS can't be used", hint="write WRITE_KEY or WRITE_KEY=SOURCE_ID"
            )
        yield key, source or key
