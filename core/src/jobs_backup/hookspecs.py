"""The contract between core and storage providers, and between core and wrappers, as pluggy hook specifications.

A provider is a class named by an entry point of the group `jobs_backup.providers`. The entry point's name is the value of
`JOBS_BACKUP_STORAGE_PROVIDER`. Core calls `Provider.from_settings(environment)`, registers the instance on a plugin manager of its
own, and calls its hooks from many threads at once.

Rules for every hook:

- It makes one attempt and MUST NOT retry; core wraps every call in the retry policy. An SDK's own retries MUST be off.
- It MUST return a receipt or raise. It MUST NOT return None, and MUST NOT log a failure and continue. Foreseeable errors MUST be
  those of `jobs_backup.errors`, with a `hint` if an operator can act; any other error counts as a `StorageError`.
- It MUST give up after about `timeout` seconds without progress, with `Unavailable`.
- It MUST reopen the body for each attempt, and close what it opened. An error raised by the body passes through unchanged, or as
  a `SpoolError` (`jobs_backup.bodies.Source` makes one). A body that ends before `size` bytes is an `IntegrityError`. In both cases
  no object may appear.
- Its claims MUST rest on the store's own answer. A success, "exists already" (`AlreadyExists`) and "gone" (`UploadGone`,
  `ObjectNotFound`, `Outcome.GONE`, a deleted key) each need proof: the store's own code in its own XML or JSON, an ETag or a
  checksum, or a header that it always sends. A bare status, a page or an empty body may come from a proxy: raise a `StorageError`
  or `Unavailable`, with a hint to check what answers.
- Credentials rotate. After the store refuses them (`Unauthenticated`, `CredentialsExpired`), the next call MUST read again whatever
  can change under a running process: files, tokens, roles. `jobs_backup.sdk.PerProcess.renew` discards the client.
- It MUST NOT call any store operation other than the one it is named after: no bucket lookup, no list, no head.
- It may omit arguments of the specification, which are passed by name; new arguments may be added to the specification later.
- An error message, a log line or a `repr` MUST NOT contain a secret or an upload's id.
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
"""Version of this contract. A provider or wrapper states the version it was written for as its own `API_VERSION`."""
OLDEST_API_VERSION: Final = 1
"""Oldest version that works with this one. A new hook argument needs no new version, since a hook may omit arguments."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

MANDATORY: Final = ("write", "abort_multipart", "delete")
MULTIPART: Final = ("create_multipart", "write_part", "complete_multipart")
OPTIONAL: Final = ("read", "list", "policy")


class Provider(Protocol):
    """What core needs from a provider besides its hooks. Not a base class: just define these members.

    Optional class attributes for providers with the multipart hooks, with their defaults: `sequential_parts: bool = False` (parts
    must be uploaded one after another, in order), `max_parts: int = 10_000`, `part_multiple: int = 1` (size in bytes of which every
    part but the last is a multiple), `min_part_size: int = 1` (bytes, every part but the last), `max_write_size: int` (bytes;
    larger objects are uploaded in parts, whatever JOBS_BACKUP_MULTIPART_THRESHOLD says).

    Also optional, for operators: `region: str` (of the bucket, if known; may change with the first answer), and `warnings:
    Sequence[str]` (problems that do not prevent uploads; `jobs-backup check` shows them).

    With `sequential_parts`, the object may appear with its last part instead of at completion. `write_part` for that part then
    raises what `complete_multipart` would.
    """

    API_VERSION: ClassVar[int]

    @property
    def location(self) -> str:
        """The bucket's identity, for people and for the spool: scheme, bucket, and any endpoint other than the service's own.

        For example `s3://events at https://minio.internal:9000`. No prefix, no credentials.
        """
        ...

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """Create an instance configured by these environment variables.

        MUST be quick and MUST NOT import the SDK or open a connection: both wait until the first hook call.

        Raises:
            ConfigurationError: a variable is missing or invalid. The message names it.
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
        """Upload `body` as one object, in one request. The object MUST appear whole or not at all.

        Args:
            key: below the bucket; at most 1,024 bytes of UTF-8.
            body: `size` bytes.
            checksum: CRC-32C of the body. MUST be sent along where the store can check it, and compared with the store's answer.
            metadata: lower-case names and ASCII values, stored with the object if the store supports it.
            if_absent: fail if the key exists. A store without conditional writes ignores it if overwriting does no harm there.
            timeout: seconds for this attempt.

        Raises:
            AlreadyExists: `if_absent` was set, this very request carried the condition, and the store refused it in its own words.
                Core treats the object as uploaded, unless an earlier attempt for this key ended with an `IntegrityError`: then the
                batch waits. The same holds for a receipt with `existed`.
        """
        ...

    @hookspec(firstresult=True)
    def abort_multipart(self, upload: Upload, timeout: float) -> AbortReceipt:
        """End an upload so that it holds no bytes and costs nothing.

        MUST be idempotent, and MUST work in a process other than the one that created the upload. An upload that the store itself
        reports as unknown is GONE. One that was already aborted or completed is GONE, or ABORTED where the store cannot tell: this
        is not an error, and a completed object MUST stay. A provider without multipart uploads returns GONE.
        """
        ...

    @hookspec(firstresult=True)
    def delete(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        """Delete up to 1,000 objects.

        A key that does not exist, according to the store itself, counts as deleted. The receipt MUST have an outcome for every key.
        Raise only if no key could be tried; refusals of single keys belong in `failed`.
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
        """Create a multipart upload of `size` bytes. Core journals the returned upload before the first part.

        `checksum` is the CRC-32C of the whole object.

        Raises:
            AlreadyExists: only with `sequential_parts`, where this request carries the condition; otherwise core does not trust it.
        """
        ...

    @hookspec(firstresult=True)
    def write_part(self, upload: Upload, number: int, offset: int, body: Body, size: int, last: bool, timeout: float) -> Part:
        """Upload one part. MUST be idempotent per number: uploading a part again replaces the earlier one.

        Args:
            number: 1 for the first.
            offset: of this part in the object, in bytes.
            body: only this part, `size` bytes.
            last: whether it is the last part of the object.

        Raises:
            UploadGone: the upload does not exist, or no longer does.
        """
        ...

    @hookspec(firstresult=True)
    def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], size: int, checksum: int, if_absent: bool, timeout: float
    ) -> WriteReceipt:
        """Make the object from all parts, in order. MUST NOT treat an answer as success unless it says so.

        Raises:
            AlreadyExists: as with `write`. Core aborts the upload and treats the object as uploaded.
            UploadGone, IntegrityError: this upload cannot be completed, or no longer can. Core aborts it and creates another one.
        """
        ...

    @hookspec(firstresult=True)
    def read(self, key: str, timeout: float) -> Body:
        """Read an object. Needs a permission that backups do not need.

        Raises:
            ObjectNotFound: there is no such object.
        """
        ...

    @hookspec(firstresult=True)
    def list(self, prefix: str, after: str, timeout: float) -> Page:
        """List objects whose keys begin with `prefix`, in key order, after the key `after` (empty: from the beginning).

        Needs a permission that backups do not need.
        """
        ...

    @hookspec(firstresult=True)
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool, format: str) -> Policy:
        """Least-privilege permissions for these environment variables, optionally to delete and to read back. Calls no store.

        Args:
            format: `json`, `terraform` or `commands`; empty for the one that fits the store best.

        Raises:
            NotSupported: the provider has no policy in this format.
        """
        ...


class ObjectHooks(Protocol):
    """The hook that core implements, for wrappers to wrap."""

    @hookspec(firstresult=True)
    def open_body(self, batch: Batch) -> Body:
        """Bytes that will be the batch's object.

        A wrapper's result MUST be the same at every call: a retry after a crash uploads the bytes again, and a part of a resumed
        upload must match the parts before it.
        """
        ...


class Wrapper(Protocol):
    """A layer between core and the store. Not a base class: just define these members.

    It is named by an entry point of the group `jobs_backup.wrappers`, and active if JOBS_BACKUP_WRAPPERS names it. A class
    attribute `settings` names the Struct of its settings, as for a provider. Its variables MUST begin with `JOBS_BACKUP_` and its
    name, as in JOBS_BACKUP_ENCRYPTION_KEY. A variable of an inactive wrapper is an error.

    It implements any of the hooks as a wrapper: `@hookimpl(wrapper=True)`, without `tryfirst` or `trylast`, on a generator that
    yields once. The `yield` returns the hook's result or raises its error, and the generator returns what core receives. It takes
    the arguments that it needs, by name, and cannot replace them. It is called from many threads at once, and MUST be hashable.

    JOBS_BACKUP_WRAPPERS is ordered from core to the store. The first wrapper is the outermost of every call to the provider. Bytes
    pass forwards through the list on the way out (`open_body`, where the first wrapper gets core's result), and backwards on the
    way back (`read`).

    Its errors count as the hook's errors, whether raised before the `yield` (the provider is then not called) or after it. In the
    latter case the provider may have done its work: core calls again, and aborts an upload that was lost this way. A wrapper MUST
    NOT turn an error into a receipt, and MUST be quick. An unforeseen error becomes a StorageError that names the wrapper.

    A wrapper that changes bytes wraps both `open_body` and `read`, and has two more attributes. `format: str` is what it makes, as
    the key's suffix: lower-case letters and digits, for example `enc`. `parameter: str` is needed only if the bytes depend on
    something that may change, such as a key; it is the present value of that, in letters, digits, `-`, `_` and `.`. Both are kept
    with each batch when it is opened, as `FORMAT=PARAMETER` in `batch.wrappers`.

    `open_body` passes through it for batches that were opened with it. It must use `batch.parameter_of(format)`, whatever its
    present parameter is. `read` passes through it for objects whose keys end in the format, and returns exactly the bytes that came
    to `open_body`. If it lacks what that takes, such as an older key, it raises `WrapperMissing`: only that batch waits.
    """

    API_VERSION: ClassVar[int]

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        """Create an instance configured by these environment variables. Rules and errors are those of `Provider.from_settings`."""
        ...
