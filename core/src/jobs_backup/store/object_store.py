"""A configured provider behind its retry policy: the only place where core calls a hook."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final, TypeVar

import msgspec

from jobs_backup.checksum import crc32c
from jobs_backup.errors import (
    ConfigurationError,
    ContractViolation,
    IntegrityError,
    JobsBackupError,
    NotSupported,
    StorageError,
    WrapperMissing,
)
from jobs_backup.hookspecs import MULTIPART, hookimpl
from jobs_backup.model import AbortReceipt, Batch, Body, DeleteReceipt, Page, Part, Policy, Upload, WriteReceipt
from jobs_backup.settings.core import CoreSettings
from jobs_backup.store import providers
from jobs_backup.store.proof import Doubts, Proof, key_of
from jobs_backup.store.retry import Attempted, Retry, RetryPolicy
from jobs_backup.store.wrappers import Wrappers
from jobs_backup.util.disclosure import redacted
from jobs_backup.util.histogram import ATTEMPT_SECONDS, Histogram
from jobs_backup.util.logs import logger_of

T = TypeVar("T")
log: Final = logger_of(__name__)

_BLOCK: Final = 1 << 20
_PUBLISHING: Final = ("write", "complete_multipart")
"""The hooks that make an object appear; with sequential parts, `write_part` may, too, with the last part."""
_LANDING_MARGIN: Final = 60.0
"""Seconds. A request may wait on the network, or in the store, for longer than its sender does."""


class ObjectStore:
    """Call a provider: one method per hook, which applies the retry policy and checks the result.

    All errors are our own: anything else that a provider raises becomes a StorageError that names the provider and the hook.
    """

    def __init__(
        self,
        loaded: providers.LoadedProvider,
        *,
        retry: Retry,
        wrappers: Wrappers = Wrappers(),
        timeout: float = 60.0,
        if_absent: bool = True,
    ) -> None:
        """`timeout` is for one attempt, in seconds."""
        self._arrived = _Arrived()
        if wrappers.names:
            loaded.manager.register(self._arrived, name="arrived")  # the innermost
        wrappers.wrap(loaded.manager)
        self._manager = loaded.manager
        self.wrappers = wrappers
        self._left_out: set[str] = set()
        self._provider_name = loaded.installed.name
        self._name = " within ".join((loaded.installed.name, *reversed(wrappers.names)))
        self._secrets = (*loaded.secrets, *wrappers.secrets)
        self._retry = retry
        self._timeout = timeout
        self._if_absent = if_absent
        self._implemented = loaded.hooks
        self._provider = loaded.provider
        self._counting = threading.Lock()
        provider = loaded.provider
        self.location: str = provider.location
        self.has_multipart = set(MULTIPART) <= loaded.hooks
        self.sequential_parts: bool = getattr(provider, "sequential_parts", False)
        self.max_parts: int = getattr(provider, "max_parts", 10_000)
        self.part_multiple: int = getattr(provider, "part_multiple", 1)
        self.min_part_size: int = getattr(provider, "min_part_size", 1)
        self.max_write_size: int | None = getattr(provider, "max_write_size", None)
        self._proof = Proof(if_absent=if_absent, sequential_parts=self.sequential_parts)
        self.attempts: Counter[tuple[str, str]] = Counter()
        """(hook, "ok" or the error's code) -> number of attempts."""
        self.attempt_seconds: dict[str, Histogram] = {}
        """hook -> duration of its attempts, whatever their outcome."""
        self.may_have_accepted = False
        """Whether any attempt so far may have left something at the store: it succeeded, or its outcome is unknown."""
        self._in_doubt_at = -math.inf

    @classmethod
    def from_settings(
        cls,
        settings: CoreSettings,
        environment: Mapping[str, str],
        *,
        stop: threading.Event | None = None,
    ) -> ObjectStore:
        """Set up the store from the environment.

        Raises:
            ConfigurationError: the provider or a wrapper is not installed, or its settings are invalid.
        """
        policy = RetryPolicy(attempts=settings.retry_attempts, max_wait=settings.retry_max_wait, deadline=settings.retry_deadline)
        return cls(
            providers.load(settings.storage_provider, environment),
            retry=Retry(policy, stop=stop),
            wrappers=Wrappers.from_settings(settings.wrappers, environment),
            timeout=settings.request_timeout,
            if_absent=settings.conditional_writes,
        )

    def use_bodies(self, bodies: object) -> None:
        """Use `bodies` to implement the hook `open_body`, which finds the bytes of batches."""
        self._bodies = self.wrappers.around(bodies)

    def remember_doubts_in(self, doubts: Doubts) -> None:
        """Use `doubts` to remember checksum mismatches for later processes."""
        self._proof.remember_in(doubts)

    def prepare(self, batch: Batch) -> tuple[Batch, Body]:
        """Make the batch's object: returns the batch as the store will see it, after the wrappers, and its bytes.

        Raises:
            WrapperMissing: a wrapper that it was opened with, or one of its keys, is missing.
            SpoolCorrupt, IntegrityError: its bytes differ from what was sealed.
        """
        hook = self.wrappers.opening(self._bodies, batch)
        self._report_left_out(batch)
        try:
            body = self._attempt("open_body", hook, {"batch": batch}, Body)
            if not batch.wrappers:
                return batch, body
            with self._translated("open_body"):
                # The wrappers' output exists only here: it is made once for its checksum, and again to be uploaded.
                size, checksum = body.size, body.crc32c()
        except (ConfigurationError, WrapperMissing) as error:
            raise WrapperMissing(f"cannot make {batch.key}: {error}", hint=error.hint) from error
        return msgspec.structs.replace(batch, size=size, crc32c=checksum, content_type="application/octet-stream"), body

    def _report_left_out(self, batch: Batch) -> None:
        for one in self.wrappers.left_out(batch.formats):
            if one not in self._left_out:
                self._left_out.add(one)
                log.warning(
                    "%s is uploaded without .%s, like everything recorded without it: before JOBS_BACKUP_WRAPPERS had it, or by"
                    " a process that lacks it",
                    batch.key,
                    one,
                )

    def write(self, batch: Batch, body: Body) -> WriteReceipt:
        """Upload the batch's object in one request.

        Raises:
            AlreadyExists: the object was already uploaded: see `Proof`.
            Unproven: the store says so, but without proof.
        """
        arguments = self._object_arguments(batch)
        receipt = self._call("write", WriteReceipt, batch.key, body=body, **arguments)
        self._proof.stored(batch.key)
        return receipt

    def may_land_for(self, *, sent_before: bool) -> float:
        """Seconds for which a write attempt with unknown outcome may still put an object into the bucket.

        0 if there was none. `sent_before`: another process, or an earlier run, may have tried as late as now.
        """
        now = time.monotonic()
        in_doubt_at = now if sent_before else self._in_doubt_at
        return max(0.0, in_doubt_at + self._timeout + _LANDING_MARGIN - now)

    def create_multipart(self, batch: Batch) -> Upload:
        """Begin to upload the batch's object in parts."""
        return self._call("create_multipart", Upload, batch.key, **self._object_arguments(batch))

    def write_part(self, upload: Upload, number: int, offset: int, body: Body, last: bool) -> Part:
        """Upload one part; `body` is this part only."""
        what = f"{upload.key} part {number}"
        return self._call(
            "write_part", Part, what, upload=upload, number=number, offset=offset, body=body, size=body.size, last=last
        )

    def complete_multipart(self, upload: Upload, parts: Sequence[Part], batch: Batch) -> WriteReceipt:
        """Complete the batch's object from its parts. Raises the errors of `write`."""
        receipt = self._call(
            "complete_multipart",
            WriteReceipt,
            upload.key,
            upload=upload,
            parts=parts,
            size=batch.size,
            checksum=batch.crc32c,
            if_absent=self._if_absent,
        )
        self._proof.stored(batch.key)
        return receipt

    def abort_multipart(self, upload: Upload) -> AbortReceipt:
        """Abort an upload."""
        return self._call("abort_multipart", AbortReceipt, upload.key, upload=upload)

    def delete(self, keys: Sequence[str]) -> DeleteReceipt:
        """Delete up to 1,000 objects."""
        receipt = self._call("delete", DeleteReceipt, f"{len(keys)} objects", keys=keys)
        if missing := set(keys) - receipt.deleted - receipt.failed.keys():
            raise ContractViolation(f"{self._name}: delete gave no outcome for {len(missing)} of {len(keys)} keys")
        return receipt

    @property
    def region(self) -> str:
        """The bucket's region, if the provider knows it; else empty."""
        return str(getattr(self._provider, "region", ""))

    @property
    def warnings(self) -> list[str]:
        """The provider's warnings about the bucket, for people. It may access the bucket."""
        return list(getattr(self._provider, "warnings", ()))

    def fetch(self, key: str, target: BinaryIO, *, size: int | None = None, crc: int | None = None) -> int:
        """Read an object's bytes, as they were before the wrappers, into an empty file, and rewind it.

        Returns their number.

        Args:
            size, crc: their expected number and CRC-32C, if known.

        Raises:
            WrapperMissing: a wrapper that the object was made with, or one of its keys, is missing.
            ObjectNotFound: the object does not exist.
            IntegrityError: it has other bytes.
            NotSupported: the provider cannot read.
        """
        self._need("read")
        hook = self.wrappers.reading(self._manager, key)
        damages: list[IntegrityError] = []

        def get() -> int:
            try:
                return attempt()
            except IntegrityError as error:
                # Damaged twice, it is damaged in the store, not in transit.
                error.retryable = not damages
                damages.append(error)
                raise

        def attempt() -> int:
            body = self._attempt("read", hook, {"key": key, "timeout": self._timeout}, Body)
            target.seek(0)
            target.truncate()
            got = checksum = 0
            with self._translated("read"):
                reader = body.open()
            with reader:
                while block := self._block(reader):
                    target.write(block)
                    checksum = crc32c(block, checksum)
                    got += len(block)
            if (size is not None and got != size) or (crc is not None and checksum != crc):
                raise IntegrityError(f"{key} differs in the bucket from what was uploaded ({got:,} of {size or got:,} bytes)")
            target.seek(0)
            return got

        fields = {"hook": "read", "store": self.location, "key": key}
        return self._retry.call(f"{self._name} read {key}", get, self._counted("read"), fields=fields)

    def _block(self, reader: BinaryIO) -> bytes:
        with self._translated("read"):
            return reader.read(_BLOCK)

    def list(self, prefix: str, after: str) -> Page:
        """List objects whose keys begin with `prefix`, from the first one after `after`.

        Drops what a store that ignores `after` lists again.

        Raises:
            NotSupported: the provider cannot list.
            ContractViolation: the list does not continue after `after`, or is not in key order: it is endless, or has gaps.
        """
        self._need("list")
        page = self._call("list", Page, prefix, prefix=prefix, after=after)
        if page.after is not None and (page.after <= after or any(one.key > page.after for one in page.objects)):
            raise ContractViolation(
                f"{self._name}: the list of {prefix} does not continue after {after or 'its first page'}",
                hint="the store ignores the start or the order of a listing: replay without --list, where the spool is",
            )
        if page.objects and page.objects[0].key <= after:
            page = msgspec.structs.replace(page, objects=[one for one in page.objects if one.key > after])
        return page

    def policy(self, environment: Mapping[str, str], *, delete: bool = False, replay: bool = False, format_: str = "") -> Policy:
        """The least-privilege permissions needed. Makes no request.

        Raises:
            NotSupported: the provider has none, or not in this format.
        """
        self._need("policy")
        arguments = {"settings": environment, "delete": delete, "replay": replay, "format": format_}
        return self._attempt("policy", self._manager.hook.policy, arguments, Policy)

    def _need(self, hook: str) -> None:
        if hook not in self._implemented:
            raise NotSupported(f"the provider {self._provider_name} has no hook `{hook}`", hint="ask its maintainers for it")

    def _object_arguments(self, batch: Batch) -> dict[str, Any]:
        return {
            "key": batch.key,
            "size": batch.size,
            "checksum": batch.crc32c,
            "content_type": batch.content_type,
            "metadata": _metadata(batch),
            "if_absent": self._if_absent,
        }

    def _call(self, hook: str, expected: type[T], what: str, **arguments: Any) -> T:
        publishes = hook in _PUBLISHING or (self.sequential_parts and arguments.get("last", False))
        arguments["timeout"] = self._timeout
        fields = {"hook": hook, "store": self.location, "key": key_of(arguments)}
        attempted = self._counted(hook, publishes=publishes)
        what = f"{self._name} {hook} {what}"
        call: Callable[..., object] = getattr(self._manager.hook, hook)

        def attempt() -> T:
            with self._proof.demanded(hook, arguments):
                result = self._attempt(hook, call, arguments, expected)
            if isinstance(result, WriteReceipt) and result.existed:
                self._proof.check(hook, arguments, f"{self._name}: {key_of(arguments)}")
            return result

        return self._retry.call(what, attempt, attempted, fields=fields)

    def _counted(self, hook: str, *, publishes: bool = False) -> Attempted:
        """A callback that counts each attempt. `publishes`: the attempt may make an object appear."""

        def attempted(error: Exception | None, seconds: float) -> None:
            refused = getattr(error, "refused", False)
            self.may_have_accepted |= not refused
            if publishes and error is not None and not refused:
                self._in_doubt_at = time.monotonic()
            with self._counting:
                self.attempts[hook, "ok" if error is None else type(error).__name__] += 1
                if hook not in self.attempt_seconds:
                    self.attempt_seconds[hook] = Histogram(ATTEMPT_SECONDS)
                self.attempt_seconds[hook].observe(seconds)

        return attempted

    def _attempt(self, hook: str, call: Callable[..., object], arguments: Mapping[str, Any], expected: type[T]) -> T:
        upload = arguments.get("upload")
        self._arrived.begin()
        try:
            with self._translated(hook, *([upload.id] if isinstance(upload, Upload) else [])):
                result = call(**arguments)
        except JobsBackupError as error:
            if self._arrived.receipt is not None:
                # The provider succeeded, and a wrapper failed afterwards.
                error.refused = False
                self._abort_arrived()
            raise
        if not isinstance(result, expected):
            self._abort_arrived()
            raise ContractViolation(
                f"{self._name}: {hook} returned {type(result).__name__} instead of {expected.__name__}",
                hint="update the provider's distribution, or report it to its maintainers",
            )
        return result

    def _abort_arrived(self) -> None:
        """Abort an upload that the provider began and a wrapper lost: nothing else records it."""
        if isinstance(self._arrived.receipt, Upload):
            with suppress(Exception):
                self._manager.hook.abort_multipart(upload=self._arrived.receipt, timeout=self._timeout)

    @contextmanager
    def _translated(self, hook: str, *secrets: str) -> Generator[None]:
        """Ensure that errors within the block are our own, and show no secret."""
        try:
            yield
        except JobsBackupError:
            raise
        except Exception as error:  # noqa: BLE001 - raised again as one of ours
            # An unexpected error of a provider or a wrapper may contain anything, including secrets and the upload's id; then it is
            # not even shown as the cause.
            hidden = [*(secret.reveal() for secret in self._secrets), *secrets]
            whole = "".join(traceback.format_exception(error))
            cause = error if redacted(whole, hidden) == whole else None
            text = redacted(str(error), hidden)
            raise StorageError(f"{self._name}: {hook} failed: {type(error).__name__}: {text}") from cause


class _Arrived(threading.local):
    """Note what the provider has returned to this thread's call, inside all wrappers; None if nothing yet."""

    receipt: object = None

    def begin(self) -> None:
        """Reset for another call."""
        self.receipt = None

    @hookimpl(wrapper=True)
    def write(self) -> Generator[None, object, object]:
        self.receipt = yield
        return self.receipt

    create_multipart = write_part = complete_multipart = write


def _metadata(batch: Batch) -> dict[str, str]:
    metadata = {"jobs-backup-batch": str(batch.id), "jobs-backup-events": str(batch.events)}
    return metadata | ({"jobs-backup-wrappers": ",".join(batch.wrappers)} if batch.wrappers else {})
