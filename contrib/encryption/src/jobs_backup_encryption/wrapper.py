"""The wrapper: encrypts a batch's bytes on the way out, decrypts an object's on the way back."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import ClassVar, Final, Self

from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import Batch, Body
from jobs_backup_encryption.format import DecryptedBody, EncryptedBody
from jobs_backup_encryption.keys import EncryptionSettings, Keys

FORMAT: Final = "enc"


class EncryptionWrapper:
    """Encrypts objects, whose keys end in `.enc`. The encryption key's id is in the batch, the object's metadata and its header."""

    API_VERSION: ClassVar[int] = 1
    settings: ClassVar = EncryptionSettings
    format: ClassVar[str] = FORMAT

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.parameter = keys.current

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """See `Wrapper.from_settings`."""
        return cls(Keys.from_environment(environment))

    @hookimpl(wrapper=True)
    def open_body(self, batch: Batch) -> Generator[None, Body, Body]:
        """The batch's bytes, encrypted with the key that was current when the batch was opened."""
        content = yield
        id_ = batch.parameter_of(FORMAT)
        return EncryptedBody(content, self._keys.find(id_, "it"), id_, batch.uuid)

    @hookimpl(wrapper=True)
    def read(self, key: str) -> Generator[None, Body, Body]:
        """The object's content. Its header names the key that it needs, and its batch."""
        encrypted = yield
        return DecryptedBody(encrypted, self._keys, key, has_its_key=True)
