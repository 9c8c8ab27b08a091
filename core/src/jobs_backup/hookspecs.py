"""The contract between core and storage providers, and between core and wrappers, as pluggy hook specifications.

A provider is a class that is named by an entry point of the group `jobs_backup.providers`. The entry point's name is the value
of `JOBS_BACKUP_STORAGE_PROVIDER`. Core calls `Provider.from_settings(environment)`, registers the instance on a plugin manager of
its own, and calls its hooks from many threads at once.

Rules that hold for every hook:

- It does one attempt and MUST NOT retry; core wraps every call in the retry policy. An SDK's own retries MUST be off.
- It MUST return a receipt or raise; it MUST NOT return None, and MUST NOT log a failure and go on. What can be foreseen MUST be one
  of `jobs_backup.errors`, with a `hint` where somebody can do something; anything else counts as a `StorageError`.
- It MUST give up after about `timeout` seconds without progress, with `Unavailable`.
- It MUST open the body anew for each attempt, and close what it opened. An error that the body raises passes through as it is (or
  as a `SpoolError`: `jobs_backup.bodies.Source` makes one); a body that ends before `size` bytes is an `IntegrityError`. In both
  cases nothing may appear.
- What it claims MUST be the store's own word. A success, "exists already" (`AlreadyExists`) and "gone" (`UploadGone`,
  `ObjectNotFound`, `Outcome.GONE`, a deleted key) each need proof: the store's own code in its own XML or JSON, an ETag or a
  checksum, or a header that it always sends. A status alone, a page or an empty body may come from a proxy: raise a
  `StorageError` or `Unavailable`, with a hint to look at what answers.
- Credentials rotate. After the store refuses them (`Unauthenticated`, `CredentialsExpired`), the next call MUST read again whatever
  can change under a running process: files, tokens, roles. `jobs_backup.sdk.PerProcess.renew` forgets the client.
- It MUST NOT call any other operation of the store than the one that its name says: no look at the bucket, no list, no head.
- It may take fewer arguments than the specification has, by name; new arguments may be added to the specification later.
- Neither a secret nor an upload's id may be in an error's message, a log line or a `repr`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Protocol, Self

import pluggy

from jobs_backup.model import (
    AbortReceipt,
    Batch,
    Body,
    DeleteReceipt,
    Page,
    Part,
    Policy,
    Upload,
    WriteReceipt,
)

PROJECT: Final = "jobs_backup"
API_VERSION: Final = 1
"""The version of this contract. A provider or wrapper states the one it was written for as its own `API_VERSION`."""
OLDEST_API_VERSION: Final = 1
"""The oldest version that works with this one. A hook that gains an argument makes no new version, since one may take fewer."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

MANDATORY: Final = ("write", "abort_multipart", "delete")
MULTIPART: Final = ("create_multipart", "write_part", "complete_multipart")
OPTIONAL: Final = ("read", "list", "policy")


class Provider(Protocol):
    """What core needs of a provider besides its hooks. It is not a base class: just have these.

    Optional class attributes, for providers with the multipart hooks, and what core takes where they are missing:
    `sequential_parts: bool = False` (parts have to be sent one after the other, in order), `max_parts: int = 10_000`,
    `part_multiple: int = 1` (every part but the last is a multiple of so many bytes), `min_part_size: int = 1` (bytes, every part
    but the last), `max_write_size: int` (bytes; larger objects are sent in parts, whatever JOBS_BACKUP_MULTIPART_THRESHOLD says).

    Also optional, for people: `region: str` (where the bucket is, as far as it is known; may change with the first answer), and
    `warnings: Sequence[str]` (what does not keep objects from being written, and is better known: `jobs-backup check` shows it).

    With `sequential_parts` the object may appear with its last part instead of at completion; then `write_part` of that one raises
    what `complete_multipart` would.
    """

    API_VERSION: ClassVar[int]

    @property
    def location(self) -> str:
        """Which bucket this is, for people, and as its identity in the spool: scheme, bucket, and the endpoint if it is not the
        service's own; for example `s3://events at https://minio.internal:9000`. No prefix, no credentials."""
        ...

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """An instance configured by these environment variables.

        MUST be quick and MUST NOT import the SDK or open a connection: both wait until the first hook call.

        Raises:
            ConfigurationError: a variable is missing or wrong. The message names it.
        """
        ...


class StorageProvider(Protocol):
    """The hooks of a provider."""

    @hookspec(firstresult=True)
    def write(
        self,
        key: str,
        body: Body,
        size: int,
        checksum: int,
        content_type: str,
        metadata: Mapping[str, str],
        if_absent: bool,
        timeout: float,
    ) -> WriteReceipt:
        """Store `body` as one object, in one request. The object MUST appear whole or not at all.

        Args:
            key: below the bucket; at most 1,024 bytes of UTF-8.
            body: `size` bytes.
            checksum: CRC-32C of the body. MUST be sent along where the store can check it, and compared with what it answers.
            metadata: lower-case names and ASCII values, to be stored with the object where the store can.
            if_absent: fail if the key exists. A store without conditional writes ignores it if overwriting is harmless there.
            timeout: seconds for this attempt.

        Raises:
            AlreadyExists: `if_absent`, this very request carried that condition, and the store refused it in its own words. Core
                takes the object as stored, unless an earlier attempt for this key ended with an `IntegrityError`: then the batch
                waits. The same holds for a receipt with `existed`.
        """
        ...

    @hookspec(firstresult=True)
    def abort_multipart(self, upload: Upload, timeout: float) -> AbortReceipt:
        """End an upload so that it holds no bytes and costs nothing.

        MUST be idempotent, and MUST work in another process than the one that began the upload. An upload that is unknown, by the
        store's own word, is GONE; one that was aborted before or was completed is GONE, or ABORTED where the store can't tell: no
        error, and a completed object MUST stay. A provider without parts returns GONE.
        """
        ...

    @hookspec(firstresult=True)
    def delete(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        """Delete up to 1,000 objects.

        A key that does not exist, by the store's own word, counts as deleted. The receipt MUST have an outcome for every key. Raise
        only when none of them could be tried; what is refused for single keys belongs into `failed`.
        """
        ...

    @hookspec(firstresult=True)
    def create_multipart(
        self,
        key: str,
        size: int,
        checksum: int,
        content_type: str,
        metadata: Mapping[str, str],
        if_absent: bool,
        timeout: float,
    ) -> Upload:
        """Begin an upload of `size` bytes in parts. Core journals what is returned before it sends the first part.

        `checksum` is the CRC-32C of the whole object.

        Raises:
            AlreadyExists: only with `sequential_parts`, where the condition goes with this request; else it is not believed.
        """
        ...

    @hookspec(firstresult=True)
    def write_part(self, upload: Upload, number: int, offset: int, body: Body, size: int, last: bool, timeout: float) -> Part:
        """Store one part. MUST be idempotent for a number: sent again, it replaces the earlier one.

        Args:
            number: 1 for the first.
            offset: of this part in the object, bytes.
            body: the part alone, `size` bytes.
            last: whether it is the last part of the object.

        Raises:
            UploadGone: the upload does not exist (any more).
        """
        ...

    @hookspec(firstresult=True)
    def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], size: int, checksum: int, if_absent: bool, timeout: float
    ) -> WriteReceipt:
        """Make the parts (all of them, in order) the object. MUST NOT take an answer for success that does not say so.

        Raises:
            AlreadyExists: as with `write`. Core aborts the upload and takes the object as stored.
            UploadGone, IntegrityError: this upload can't be completed (any more). Core aborts it and begins another one.
        """
        ...

    @hookspec(firstresult=True)
    def read(self, key: str, timeout: float) -> Body:
        """The object's bytes. Needs a right that backing up does not need.

        Raises:
            ObjectNotFound: there is no such object.
        """
        ...

    @hookspec(firstresult=True)
    def list(self, prefix: str, after: str, timeout: float) -> Page:
        """Objects whose keys begin with `prefix`, in the order of their keys, from the first one behind `after` (empty: from the
        beginning). Needs a right that backing up does not need."""
        ...

    @hookspec(firstresult=True)
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool, format: str) -> Policy:  # noqa: A002 - as the option
        """The narrowest rights that suffice with these environment variables; with deleting, with reading back. Calls no store.

        Args:
            format: `json`, `terraform` or `commands`; empty for the one that fits the store best.

        Raises:
            NotSupported: there is none in this format.
        """
        ...


class ObjectHooks(Protocol):
    """What core implements, for wrappers to wrap."""

    @hookspec(firstresult=True)
    def open_body(self, batch: Batch) -> Body:
        """The bytes that will be the batch's object. Whatever a wrapper makes of them MUST be the same at every call: a retry
        after a crash sends them again, and a part of an upload that is continued has to fit those that were sent before."""
        ...


class Wrapper(Protocol):
    """What stands between core and the store. It is not a base class: just have these.

    It is named by an entry point of the group `jobs_backup.wrappers`, and active if JOBS_BACKUP_WRAPPERS names it. A class
    attribute `settings` names the Struct of its settings, as a provider's does; its variables MUST begin with
    `JOBS_BACKUP_` and its name, as in JOBS_BACKUP_ENCRYPTION_KEY: if one is set and it is not active, that is an error.

    It implements any of the hooks as a wrapper: `@hookimpl(wrapper=True)`, without `tryfirst` or `trylast`, on a generator
    that yields once, gets there what the hook returned (or has its error raised there), and returns what core shall get. It
    takes the arguments that it needs, by name, and can't replace them. It is called from many threads at once, and MUST be
    hashable.

    JOBS_BACKUP_WRAPPERS goes from core to the store. Of every call to the provider the first one is the outermost; bytes pass
    through the list forwards on their way out (`open_body`, whose result the first one gets from core), backwards on their way
    back (`read`).

    What it raises counts as the hook's error, before the `yield` (the provider is not called then) or behind it (the
    provider may have done its work: core calls again, and aborts an upload that was lost so). It MUST NOT make a receipt of
    an error, and MUST NOT take long. What it does not foresee becomes a StorageError that names it.

    One that changes bytes wraps both `open_body` and `read`, and has two attributes more: `format: str` (what it makes, as
    the ending of a key: lower-case letters and digits, for example `enc`), and, if its bytes depend on something that may
    change, such as a key, `parameter: str` (what that is now: letters, digits, `-`, `_` and `.`). Both are kept with each
    batch when it is opened, as `FORMAT=PARAMETER` in `batch.wrappers`. `open_body` passes through it for batches that were
    opened with it, and it has to go by `batch.parameter_of(format)`, whatever its present one is; `read` passes through it
    for objects whose keys end in the format, and gives back exactly the bytes that came to `open_body`. Where it lacks what
    that takes, such as an older key, it raises `WrapperMissing`: only that batch waits.
    """

    API_VERSION: ClassVar[int]

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """An instance configured by these environment variables. Rules and errors are those of `Provider.from_settings`."""
        ...
