"""Test the credentials' permissions by trying them, with small objects that say what they are.

The check needs as few permissions as backups: it writes to the bucket and never examines it. Other permissions are tried too, so
that unnecessary ones can be removed.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Final

import msgspec

from jobs_backup.errors import (
    AlreadyExists,
    JobsBackupError,
    NotSupported,
    ObjectNotFound,
    PermissionDenied,
    SpoolError,
    StorageError,
    Unavailable,
)
from jobs_backup.format.keys import clean_prefix
from jobs_backup.model import Batch, BytesBody, Kind, Policy, Stream, Upload
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool import engines
from jobs_backup.store import providers
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.store.retry import Retry, RetryPolicy
from jobs_backup.store.wrappers import Wrappers

_RETRY: Final = RetryPolicy(attempts=2, initial_backoff=0.5, max_wait=1.0, deadline=20.0)
_TIMEOUT: Final = 15.0
"""Seconds for an attempt, or the configured timeout if shorter: a person waits for the answer."""
_DIRECTORY: Final = "jobs-backup-check"
_CONTENT: Final = BytesBody(b"Written by `jobs-backup check` to see whether it may write here. It may be deleted.\n")
_BACKING_UP: Final = frozenset({"write", "create_multipart", "abort_multipart"})
"""Hooks that backups call, for a provider without a policy."""
_PURPOSES: Final = {"read": "jobs-backup replay", "list": "jobs-backup replay --list", "delete": "deleting delivered events"}
_MAX_SKEW: Final = 60.0


class State(StrEnum):
    """Outcome of a probe."""

    GRANTED = "granted"
    SUPPORTED = "supported"
    REFUSED = "refused"
    NOT_SUPPORTED = "not supported"
    FAILED = "failed"
    NOT_TRIED = "not tried"
    OFF = "off"


_BAD: Final = (State.REFUSED, State.FAILED, State.NOT_TRIED)


class Right(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the report: something that was tried.

    Attributes:
        needed: whether backups need it.
        permission: in the store's terms, empty if unknown.
        purpose: what it is for, if backups do not need it.
        error, hint: of a refusal or failure.
        retryable: whether it may succeed later with nothing changed.
    """

    name: str
    outcome: State
    needed: bool
    permission: str = ""
    purpose: str = ""
    error: str = ""
    hint: str = ""
    retryable: bool = False

    @property
    def missing(self) -> bool:
        """Whether it prevents backups."""
        return self.needed and self.outcome in _BAD


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """A probe that stays in the bucket. `what`: `object`, `upload` (an unfinished one), or `unsure` (perhaps an object)."""

    key: str
    what: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a check.

    Attributes:
        clock_skew: seconds by which this machine's clock is ahead of the store's; None if the store does not report its time.
        ready: whether events can be backed up.
        notes: permissions that are granted but not needed.
        warnings: problems that do not prevent backups, but need attention.
        left: what could not be removed.
    """

    store: str
    provider: str
    prefix: str
    region: str
    clock_skew: float | None
    ready: bool
    rights: list[Right]
    notes: list[str]
    warnings: list[str]
    left: list[Left]

    @property
    def may_pass(self) -> bool:
        """Whether it is not ready, but may be later with nothing changed."""
        tried = [right for right in self.rights if right.missing and right.outcome is not State.NOT_TRIED]
        return not self.ready and bool(tried) and all(right.retryable for right in tried)


def check(settings: CoreSettings, environment: Mapping[str, str]) -> Report:
    """Test what backups need, and what else is allowed. Takes about half a minute at most if nothing answers.

    Raises:
        ConfigurationError: the provider or a wrapper is not installed, or its settings are invalid. Nothing was sent.
    """
    prefix = clean_prefix(settings.prefix)
    spool, spool_warnings = _spool(settings)
    loaded = providers.load(settings.storage_provider, environment)
    store = ObjectStore(
        loaded,
        retry=Retry(_RETRY),
        wrappers=Wrappers.from_settings(settings.wrappers, environment),
        timeout=min(settings.request_timeout, _TIMEOUT),
        if_absent=settings.conditional_writes,
    )
    probes = _Probes(store, environment, prefix, conditional=settings.conditional_writes)
    probes.run()
    rights = [*probes.rights, *spool]
    return Report(
        store=store.location,
        provider=loaded.installed.name,
        prefix=prefix,
        region=store.region,
        clock_skew=probes.clock_skew,
        ready=not any(right.missing for right in rights),
        rights=rights,
        notes=probes.notes,
        warnings=[*probes.warnings, *store.warnings, *spool_warnings],
        left=[Left(key=key, what=what) for key, what in probes.left.items()],
    )


class _Probes:
    """Runs the probes one after another, each a row of `rights`."""

    def __init__(self, store: ObjectStore, environment: Mapping[str, str], prefix: str, *, conditional: bool) -> None:
        self._store = store
        self._environment = environment
        self._prefix = prefix
        self._conditional = conditional
        self._least = _policy(store, environment)
        self._most = _policy(store, environment, everything=True)
        self._needed = frozenset(self._least.grants) if self._least else _BACKING_UP
        self._directory = f"{prefix}/{_DIRECTORY}" if prefix else _DIRECTORY
        self._id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex}"
        self._over = False
        self._can_begin = False
        self.rights: list[Right] = []
        self.left: dict[str, str] = {}
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.clock_skew: float | None = None

    def run(self) -> None:
        """Run all probes: read once there is something to read, delete last."""
        self._try("write", "write", self._write)
        if self._conditional:
            self._try("conditional write", "write", self._write_again, sensible=self._is("write", State.GRANTED))
        else:
            self._add("conditional write", "write", State.OFF)
        if self._store.has_multipart:
            self._try("multipart", "create_multipart", self._write_in_parts)
            self._try("abort", "abort_multipart", lambda: self._abort(self._key("-aborted")), sensible=self._can_begin)
        else:
            self._add("multipart", "create_multipart", State.NOT_SUPPORTED)
            self._add("abort", "abort_multipart", State.NOT_SUPPORTED)
        if self._is("abort", State.GRANTED) and self._is_bound_to_prefix():
            self._look_beside_prefix()
        stored = [key for key, what in self.left.items() if what == "object"]
        # If nothing was uploaded, a store may refuse a missing object even to a principal that may read: try it only if it has to
        # be granted.
        self._try("read", "read", lambda: self._read(stored), sensible=bool(stored) or "read" in self._needed)
        self._try("list", "list", self._list)
        self._try("delete", "delete", self._delete)
        self.notes += [
            f"{right.name} is granted, which is more than backups need: it is for {right.purpose}"
            for right in self.rights
            if right.outcome is State.GRANTED and not right.needed
        ]

    def _write(self) -> State:
        key = self._key()
        before = time.time()
        with self._storing(key):
            try:
                at = self._store.write(_batch(key), _CONTENT).at
            except AlreadyExists:  # by an attempt whose answer was lost: the key is unique
                at = None
        if at is not None:
            self._compare_clocks((before + time.time()) / 2 - at)
        return State.GRANTED

    def _compare_clocks(self, skew: float) -> None:
        self.clock_skew = round(skew, 1)
        if abs(skew) > _MAX_SKEW:
            direction = "ahead of" if skew > 0 else "behind"
            self.warnings.append(
                f"this machine's clock is {abs(skew):,.0f} s {direction} the store's: correct it; stores refuse requests that"
                " are off by 15 minutes"
            )

    def _write_again(self) -> State:
        # If the store ignores the condition, it overwrites the object with the same bytes.
        try:
            self._store.write(_batch(self._key()), _CONTENT)
        except AlreadyExists:
            return State.SUPPORTED
        self.warnings.append(
            "the store overwrites objects despite the condition: harmless, as the bytes are the same;"
            " JOBS_BACKUP_CONDITIONAL_WRITES=false omits the condition"
        )
        return State.NOT_SUPPORTED

    def _write_in_parts(self) -> State:
        batch = _batch(self._key("-parts"))
        upload = self._begin(batch)
        try:
            with self._storing(batch.key):
                part = self._store.write_part(upload, 1, 0, _CONTENT, last=True)
                self._store.complete_multipart(upload, [part], batch)
        except AlreadyExists:
            self._end(upload)
            self.left[batch.key] = "object"
        except JobsBackupError:
            self._end(upload)
            raise
        return State.GRANTED

    def _abort(self, key: str) -> State:
        upload = self._begin(_batch(key))
        self.left[key] = "upload"
        self._store.abort_multipart(upload)
        del self.left[key]
        return State.GRANTED

    def _begin(self, batch: Batch) -> Upload:
        upload = self._store.create_multipart(batch)
        self._can_begin = True
        return upload

    def _end(self, upload: Upload) -> None:
        try:
            self._store.abort_multipart(upload)
        except JobsBackupError:
            self.left.setdefault(upload.key, "upload")  # the reported error is why it was created and not completed

    def _is_bound_to_prefix(self) -> bool:
        """Whether the policy is limited to the prefix: not every store can grant permissions on part of a bucket."""
        if not self._least or not self._prefix or f"{_DIRECTORY}/".startswith(f"{self._prefix}/"):
            return False
        anywhere = _policy(self._store, {**self._environment, "JOBS_BACKUP_PREFIX": ""})
        return anywhere is not None and anywhere.text != self._least.text

    def _look_beside_prefix(self) -> None:
        try:
            self._abort(f"{_DIRECTORY}/{self._id}.txt")
        except JobsBackupError:
            return  # as it should be
        self.notes.append("may also write outside of JOBS_BACKUP_PREFIX, which is more than backups need")

    def _read(self, stored: list[str]) -> State:
        if stored:
            self._store.fetch(stored[0], io.BytesIO(), size=_CONTENT.size, crc=_CONTENT.crc32c())
            return State.GRANTED
        with suppress(ObjectNotFound):  # only a principal that may read gets this answer
            self._store.fetch(self._key(), io.BytesIO())
        return State.GRANTED

    def _list(self) -> State:
        self._store.list(f"{self._directory}/", "")
        return State.GRANTED

    def _delete(self) -> State:
        # Include keys that seem absent: the store may know better about what was refused, or whose answer was lost.
        keys = [self._key(), self._key("-parts")] if self._store.has_multipart else [self._key()]
        was_there = [key for key, what in self.left.items() if what != "upload"]
        receipt = self._store.delete(keys)
        for key in receipt.deleted:
            if self.left.get(key) != "upload":
                self.left.pop(key, None)
        for error in receipt.failed.values():
            raise error if isinstance(error, JobsBackupError) else StorageError(f"delete failed: {type(error).__name__}")
        # Deleting a missing object may succeed without the permission.
        return State.GRANTED if was_there else State.NOT_TRIED

    def _try(self, name: str, hook: str, probe: Callable[[], State], *, sensible: bool = True) -> None:
        if self._over or not sensible:
            self._add(name, hook, State.NOT_TRIED)
            return
        try:
            self._add(name, hook, probe())
        except PermissionDenied as error:
            self._add(name, hook, State.REFUSED, error, error.action)
        except NotSupported as error:
            self._add(name, hook, State.FAILED if hook in self._needed else State.NOT_SUPPORTED, error)
            self._over = name == "write"
        except JobsBackupError as error:
            self._add(name, hook, State.FAILED, error)
            self._over = error.refused or name == "write"  # all others would fail the same way

    def _add(self, name: str, hook: str, outcome: State, error: JobsBackupError | None = None, action: str = "") -> None:
        needed = hook in self._needed
        known = self._most or self._least
        self.rights.append(
            Right(
                name=name,
                outcome=outcome,
                needed=needed,
                permission=action or (known.grants.get(hook, "") if known else ""),
                purpose="" if needed else _PURPOSES.get(name, ""),
                error=str(error) if error else "",
                hint=error.hint if error else "",
                retryable=error.retryable if error else False,
            )
        )

    @contextmanager
    def _storing(self, key: str) -> Generator[None]:
        """Note what the block writes as left: it is uploaded, or perhaps is, if the answer was lost."""
        try:
            yield
        except (NotSupported, Unavailable) as error:
            if not error.refused:
                self.left[key] = "unsure"
            raise
        self.left[key] = "object"

    def _is(self, name: str, outcome: State) -> bool:
        return any(right.name == name and right.outcome is outcome for right in self.rights)

    def _key(self, kind: str = "") -> str:
        return f"{self._directory}/{self._id}{kind}.txt"


def _batch(key: str) -> Batch:
    """A made-up batch, for what a store needs to know about an object."""
    return Batch(
        id=0,
        stream=Stream(Kind.RAW, "", ""),
        events=0,
        raw_bytes=_CONTENT.size,
        size=_CONTENT.size,
        crc32c=_CONTENT.crc32c(),
        key=key,
        uuid="",
        content_type="text/plain",
        wrappers=(),
        blobs="",
    )


def _policy(store: ObjectStore, environment: Mapping[str, str], *, everything: bool = False) -> Policy | None:
    try:
        return store.policy(environment, delete=everything, replay=everything)
    except StorageError:  # without a policy, no permissions are known in advance
        return None


def _spool(settings: CoreSettings) -> tuple[list[Right], list[str]]:
    """A row if the spool cannot be used at its location, and what would break its promises there. It is not made."""
    try:
        return [], engines.check(settings.spool_place, settings.spool_min_free)
    except SpoolError as error:
        return [Right(name="spool", outcome=State.FAILED, needed=True, error=str(error), hint=error.hint)], []
