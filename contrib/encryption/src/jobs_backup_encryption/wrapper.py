"""The wrapper: encrypts the bytes of a batch on their way out, decrypts those of an object on their way back."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import ClassVar, Final, Self

from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import Batch, Body
from jobs_backup_encryption.format import DecryptedBody, EncryptedBody
from jobs_backup_encryption.keys import EncryptionSettings, Keys

FORMAT: Final = "enc"


class EncryptionWrapper:
    """Keys of objects end in `.enc`; the key's id stands with the batch, in the object's metadata, and at its beginning."""

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
        """The batch's bytes, encrypted with the key that was the current one when it was opened."""
        content = yield
        id_ = batch.parameter_of(FORMAT)
        return EncryptedBody(content, self._keys.find(id_, "it"), id_, batch.uuid)

    @hookimpl(wrapper=True)
    def read(self, key: str) -> Generator[None, Body, Body]:
        """The object's content. Which key it needs stands at its beginning, and whose object it is."""
        encrypted = yield
        return DecryptedBody(encrypted, self._keys, key, has_its_key=True)
