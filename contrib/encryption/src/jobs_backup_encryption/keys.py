"""Load the keys, and find them by id."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Self

from jobs_backup.errors import ConfigurationError, WrapperMissing
from jobs_backup.sdk import unreadable
from jobs_backup.settings import Secret, Settings, Variable

KEY_BYTES: Final = 32
_FILE: Final = "JOBS_BACKUP_ENCRYPTION_KEY_FILE"
_MAKE: Final = "create one with `openssl rand -base64 32`"


class EncryptionSettings(Settings, frozen=True, kw_only=True):
    """The wrapper's settings: one of the two."""

    key: Annotated[
        Secret | None,
        Variable(
            "JOBS_BACKUP_ENCRYPTION_KEY",
            "Encryption keys, separated by commas, each 32 random bytes in base64 (`openssl rand -base64 32`). The first"
            " encrypts what is recorded from now on; all of them decrypt.",
        ),
    ] = None
    key_file: Annotated[
        Path | None,
        Variable(
            "JOBS_BACKUP_ENCRYPTION_KEY_FILE",
            "File with the keys, one per line, instead of JOBS_BACKUP_ENCRYPTION_KEY. Lines that begin with `#` are comments.",
            example="/run/secrets/jobs-backup-encryption",
        ),
    ] = None


class Keys:
    """All keys by id. A key's id is derived from it, reveals nothing about it, and is unique."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {key_id(key): Secret(key.hex()) for key in keys}
        self.current = key_id(keys[0])
        """Id of the key that encrypts what is recorded from now on."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The keys in the environment, or in the file that it names.

        Raises:
            ConfigurationError: a key is missing or invalid. The message contains no key.
        """
        settings = EncryptionSettings.from_environment(environment)
        if (settings.key is None) == (settings.key_file is None):
            state = "neither is" if settings.key is None else "both are"
            raise ConfigurationError(
                f"JOBS_BACKUP_ENCRYPTION_KEY or JOBS_BACKUP_ENCRYPTION_KEY_FILE: {state} set", hint=f"set one of them; {_MAKE}"
            )
        where, text = "JOBS_BACKUP_ENCRYPTION_KEY", settings.key.reveal() if settings.key else ""
        if settings.key_file is not None:
            where = str(settings.key_file)
            try:
                text = settings.key_file.read_text("ascii")
            except OSError as error:
                found = unreadable("", error, files={_FILE: where})
                raise ConfigurationError(found.message if found else _FILE, hint=found.hint if found else _MAKE) from None
            except UnicodeDecodeError:
                raise ConfigurationError(
                    f"{_FILE}: {where} is not text", hint=f"write the keys into it, one per line; {_MAKE}"
                ) from None
        words = re.split(r"[\s,]+", re.sub(r"(?m)^\s*#.*$", "", text).strip(" \t\r\n,"))
        return cls([_key(word, f"{where}: key {number}") for number, word in enumerate(words, 1)])

    def find(self, id_: str, what: str) -> bytes:
        """The key with this id.

        Raises:
            WrapperMissing: the key is missing. `what` names what needs it, for the message.
        """
        try:
            return bytes.fromhex(self._keys[id_].reveal())
        except KeyError:
            known = ", ".join(self._keys)
            raise WrapperMissing(
                f"{what} needs the encryption key {id_}, which is missing (present: {known})",
                hint="add it after the others in JOBS_BACKUP_ENCRYPTION_KEY, or in the file; an object whose first bytes"
                " were changed may name a key that never existed",
            ) from None


def key_id(key: bytes) -> str:
    """Id of a key: 16 hexadecimal digits."""
    return hmac.new(key, b"jobs-backup encryption: id of the key", hashlib.sha256).hexdigest()[:16]


def _key(text: str, what: str) -> bytes:
    try:
        padded = text + "=" * (-len(text) % 4)  # some encoders for URL-safe base64 omit it
        key = base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(f"{what} is not {KEY_BYTES} bytes in base64", hint=_MAKE)
    return key
