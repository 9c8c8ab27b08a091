"""Authentication and permissions: bearer tokens allow everything, a write key allows recording its source's events."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from jobs_backup.errors import ConfigurationError
from jobs_backup.inputs.http.origins import Origins
from jobs_backup.inputs.http.responses import HttpError
from jobs_backup.settings.server import ServerSettings
from jobs_backup.settings.values import Secret
from jobs_backup.util.listening import is_loopback

_MIN_TOKEN: Final = 16


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """The sender of a request.

    Attributes:
        name: distinguishes callers, for rate limits; useless as a credential.
        source_id: the source of a write key; None if the caller may do everything.
    """

    name: str
    source_id: str | None = None


class Access:
    """Compares a request's credentials with the allowed ones, in constant time."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises ConfigurationError: a token, write key or origin is invalid, or anybody could record from elsewhere."""
        self._tokens = [_digest(token) for token in _tokens(settings.tokens)]
        self._sources = {_digest(key): source for key, source in _write_keys(settings.write_keys)}
        self.is_open = not self._tokens and not self._sources
        """Anybody who reaches the server may do everything, without credentials."""
        if self.is_open and not is_loopback(settings.host):
            raise ConfigurationError(
                f"JOBS_BACKUP_SERVER_HOST={settings.host} lets anyone who can reach it record events",
                hint="set JOBS_BACKUP_SERVER_TOKEN or JOBS_BACKUP_SERVER_WRITE_KEYS, or listen on localhost",
            )
        self.origins = Origins(settings.cors_origins)
        """The web pages that may call."""
        if self.is_open and self.origins.is_everybody:
            raise ConfigurationError(
                "JOBS_BACKUP_SERVER_CORS_ORIGINS=* lets every web page opened on this machine record events",
                hint="set JOBS_BACKUP_SERVER_WRITE_KEYS or JOBS_BACKUP_SERVER_TOKEN, or list the origins",
            )

    def everything(self, headers: Mapping[str, str]) -> Principal:
        """The principal of a request that needs all permissions.

        Raises:
            Refused: 401 for missing or invalid credentials, 403 for a write key.
        """
        caller = self.recording(headers)
        if caller.source_id is not None and not self.is_open:
            raise HttpError(403, "Forbidden", "a write key may only record events", hint="authenticate with a bearer token")
        return caller

    def recording(self, headers: Mapping[str, str]) -> Principal:
        """The principal of a request to record, for all sources or one. Raises Refused (401) for missing or invalid credentials."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._token(given.strip())
        if scheme.lower() == "basic":
            return self._write_key(_user(given.strip()))
        if self.is_open:
            return Principal(name="anybody")
        raise _unknown("no credentials were given")

    def source(self, headers: Mapping[str, str], key: str = "") -> Principal:
        """The principal of a request to record the events of its write key's source.

        Args:
            headers: of the request.
            key: the write key, if it came in another way: a browser's `sendBeacon` has no headers.

        Raises:
            Refused: 401 for missing or invalid credentials.
        """
        caller = self._write_key(key) if key else self.recording(headers)
        if caller.source_id is None:
            raise _unknown("no write key was given", scheme="Basic")
        return caller

    def _token(self, token: str) -> Principal:
        digest = _digest(token)
        matches = [hmac.compare_digest(digest, one) for one in self._tokens]  # all of them, so that the time reveals nothing
        if self.is_open or any(matches):
            return Principal(name=f"token {digest.hex()[:12]}")
        raise _unknown("the token is invalid")

    def _write_key(self, key: str) -> Principal:
        digest = _digest(key)
        found = [source for one, source in self._sources.items() if hmac.compare_digest(digest, one)]
        if self.is_open and key:
            found = [key]
        if not found:
            raise _unknown("the write key is invalid", scheme="Basic")
        return Principal(name=f"write key {digest.hex()[:12]}", source_id=found[0])


def _unknown(message: str, scheme: str = "Bearer") -> HttpError:
    headers = {"WWW-Authenticate": f'{scheme} realm="jobs-backup"'}
    hint = "send `Authorization: Bearer TOKEN`, or the write key as the user name of HTTP Basic"
    return HttpError(401, "Unauthorized", message, hint=hint, headers=headers)


def _digest(text: str) -> bytes:
    """Hash a text to a fixed length, so that comparison time reveals neither it nor its length."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _user(encoded: str) -> str:
    """The user of HTTP Basic (RFC 7617). Raises Refused."""
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise _unknown("the HTTP Basic credentials are invalid", scheme="Basic") from None
    return text.partition(":")[0]


def _listed(secret: Secret | None) -> Iterator[str]:
    for one in (secret.reveal() if secret is not None else "").split(","):
        if stripped := one.strip():
            yield stripped


def _tokens(secret: Secret | None) -> Iterator[str]:
    for number, token in enumerate(_listed(secret), 1):
        if len(token) < _MIN_TOKEN or not token.isascii():  # clients disagree about other characters in a header
            raise ConfigurationError(
                f"token {number} of JOBS_BACKUP_SERVER_TOKEN has fewer than {_MIN_TOKEN} characters, or non-ASCII ones",
                hint="create one with `openssl rand -hex 32`",
            )
        yield token


def _write_keys(secret: Secret | None) -> Iterator[tuple[str, str]]:
    for number, one in enumerate(_listed(secret), 1):
        key, equals, source = one.partition("=")
        if not key or (equals and not source) or ":" in key:
            raise ConfigurationError(
                f"entry {number} of JOBS_BACKUP_SERVER_WRITE_KEYS is invalid", hint="write WRITE_KEY or WRITE_KEY=SOURCE_ID"
            )
        yield key, source or key
