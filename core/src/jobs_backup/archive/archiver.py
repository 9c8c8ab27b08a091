"""Upload sealed batches, several at once, until none is left or the store has to be paused."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from jobs_backup.archive.deleter import Deleter
from jobs_backup.archive.multipart import Multipart, Stopped
from jobs_backup.errors import (
    AlreadyExists,
    IntegrityError,
    JobsBackupError,
    SpoolCorrupt,
    SpoolError,
    Throttled,
    Unavailable,
    Unproven,
    UploadGone,
)
from jobs_backup.model import Batch, WriteReceipt
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.interface import Claim, Spool
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.util.backoff import backoff
from jobs_backup.util.logs import logger_of

T = TypeVar("T")
log: Final = logger_of(__name__)

TICK: Final = 1.0
"""Seconds between two polls of other processes' work, and of ages."""

_OF_THE_BATCH: Final = (IntegrityError, Unproven, UploadGone, SpoolError)
"""Errors specific to one batch."""
_OF_THE_STORE: Final = (Throttled, Unavailable)
"""Errors that every batch would meet, in addition to `refused` ones. Any error in neither of the two counts as both."""

_STALLED_SECONDS: Final = 300.0
"""Upkeep waits for a busy spool at most a minute at a time, a few times."""
_FORGET_SECONDS: Final = 3600.0
_FIRST_PAUSE: Final = 5.0
_MAX_PAUSE: Final = 300.0
_CLAIM_SECONDS: Final = 5.0
"""Seconds after which a spool that fails to return batches is no longer waited for."""
_MAX_ASKED: Final = 3600.0
"""Seconds; the longest pause that a store may ask for."""


class UploadStats:
    """Totals uploaded since the start, for a summary or a progress bar."""

    def __init__(self) -> None:
        self.objects = 0
        self.events = 0
        self.bytes = 0


class Archiver:
    """Threads that upload, and others for upkeep: ages, dead processes, aborting uploads, deletes."""

    def __init__(self, spool: Spool, store: ObjectStore, settings: CoreSettings, *, stop: threading.Event) -> None:
        """`stop` also ends the store's retries."""
        self._spool = spool
        self._store = store
        self._threshold = min(settings.multipart_threshold, store.max_write_size or settings.multipart_threshold)
        self._skip_delivered = settings.skip_delivered and settings.delete_after != "never"
        self._catalog_seconds = settings.catalog_days * 86_400.0
        self._forget_at = 0.0
        self._forgotten = 0
        self._stop = stop
        self._multipart = Multipart(spool, store, part_size=settings.part_size, concurrency=settings.upload_concurrency, stop=stop)
        # Always entered as a lock: an interrupt within the condition's own `__enter__`, written in Python, would leave it held.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._sending = 0
        self._pause: JobsBackupError | None = None
        self._pauses = 0
        self._paused_until = 0.0
        self._has_begun = False
        self._claim_error: SpoolError | None = None
        self._claims_fail_since = math.inf
        self._unreleased: list[Callable[[], None]] = []
        self.deleter = Deleter(spool, store, stop=stop, on_change=self.wake)
        self.sent = UploadStats()
        self.failure: JobsBackupError | None = None
        """The last error that delayed a batch; None again once another batch was uploaded."""
        # Daemons, because a hanging request must not keep the process from ending: the next start uploads its batch again.
        self._threads = [
            threading.Thread(target=self._work, name=f"jobs-backup-send-{number}", daemon=True)
            for number in range(settings.upload_concurrency)
        ]
        self._looked_at = math.inf  # at first there may be much to recover
        self._looker = threading.Thread(target=self._maintain, name="jobs-backup-look-after", daemon=True)
        self._threads.append(self._looker)
        self._threads.append(threading.Thread(target=self._abort, name="jobs-backup-abort", daemon=True))
        self._threads.append(threading.Thread(target=self._delete, name="jobs-backup-delete", daemon=True))

    def start(self) -> None:
        """Start the threads."""
        self._spool.on_sealed(self.wake)
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            raise SpoolError(f"cannot start a thread: {error}", hint="check the limits of processes and memory") from error

    def wake(self) -> None:
        """Wake the workers: something was sealed, or deleted."""
        with self._lock:
            self._changed.notify_all()

    @property
    def is_working(self) -> bool:
        """Whether a thread is alive, for example in a request that hangs."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def health_error(self) -> str:
        """Which thread has died or hung; empty if all work."""
        dead = next((thread.name for thread in self._threads if not thread.is_alive()), "")
        return f"the thread {dead} has ended" if dead else stalled(self._looker, self._looked_at)

    @property
    def paused(self) -> JobsBackupError | None:
        """Why uploads are paused, None if they are not."""
        with self._lock:
            return self._pause if time.monotonic() < self._paused_until else None

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to upload or delete now: it is done, or paused. False on timeout."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while not (self._stop.is_set() or (self._is_drained() and self.deleter.is_idle)):
                left = TICK if until is None else min(TICK, until - time.monotonic())
                if left <= 0:
                    return False
                self._changed.wait(left)  # not longer: another process may do it without notice
        return True

    @property
    def blocked_by(self) -> JobsBackupError | None:
        """Why nothing more can be uploaded for now; None if something can be, or nothing has failed."""
        with self._lock:
            if (failure := self.claim_failure) is not None:
                return failure
            return self.failure if self.failure is not None and self._is_drained() else None

    def abort_abandoned(self) -> list[JobsBackupError]:
        """Abort uploads that will not be resumed. Returns the failures."""
        return self._multipart.abort_abandoned()

    def wait(self, timeout: float) -> None:
        """Wait for a change: something uploaded, sealed, or failed."""
        with self._lock:
            self._changed.wait(timeout)

    def stop(self, timeout: float) -> None:
        """Stop: begin no further attempts, and wait up to `timeout` seconds for running ones."""
        self._stop.set()
        self.wake()
        self.deleter.wake()
        until = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        self._multipart.close()

    def _is_drained(self) -> bool:
        if not self._has_begun or self._sending:
            return False
        if time.monotonic() < self._paused_until or self.claim_failure is not None:
            return True
        return not self._spool.has_claimable() and not self._give_back_claims()

    def _give_back_claims(self) -> bool:
        """Release batches claimed without this process knowing: the claim failed after its commit.

        Returns whether there were any.
        """
        with self._lock:
            if self._sending or self._unreleased or not self._spool.give_back_claims():
                return False
            self._changed.notify_all()
            return True

    def _work(self) -> None:
        while not self._stop.is_set():
            if (claimed := _guarded(self._next)) is None:
                continue
            batch = claimed.batch
            try:
                if self._skip_delivered and claimed.is_delivered and claimed.attempts == 1:
                    self._spool.skip(batch)
                    fields = {"key": batch.key, "events": batch.events, "bytes": batch.size}
                    log.info("%s is not uploaded: all of its %d events were delivered", batch.key, batch.events, extra=fields)
                else:
                    self._upload(claimed)
            except SpoolCorrupt as error:
                self._damaged(claimed, error)
            except JobsBackupError as error:
                self._failed(batch, claimed.failures, error)
            except Exception as error:
                if not isinstance(error, OSError | MemoryError | RuntimeError):  # of the machine, not of the program
                    log.exception("uploading %s failed unexpectedly", batch.key, extra={"key": batch.key})
                self._failed(batch, claimed.failures, SpoolError(f"{batch.key}: {type(error).__name__}: {error}"))
            finally:
                with self._lock:
                    self._sending -= 1
                    self._changed.notify_all()

    def _next(self) -> Claim | None:
        """Wait for the next batch to upload. None when stopping."""
        with self._lock:
            while not self._stop.is_set():
                wait = self._paused_until - time.monotonic()
                # After a pause, a single batch is uploaded as a probe; the others follow if it succeeds.
                if wait <= 0 and not (self._pause and self._sending) and (claimed := self._claim()) is not None:
                    self._sending += 1
                    return claimed
                self._changed.wait(wait if wait > 0 else None)
        return None

    def _claim(self) -> Claim | None:
        try:
            claim = self._spool.claim()
        except SpoolError as error:
            if self._claim_error is None or error.message != self._claim_error.message:  # else each worker logs it every second
                log.error("%s", error.one_line(), extra={"code": error.code})
            self._claims_fail_since = min(self._claims_fail_since, time.monotonic())
            self._claim_error = error
            return None  # retried when the upkeep thread finds something to upload
        self._claim_error, self._claims_fail_since = None, math.inf
        return claim

    @property
    def claim_failure(self) -> SpoolError | None:
        """Why the spool has failed to return batches for some time; None if it has not."""
        return self._claim_error if time.monotonic() - self._claims_fail_since >= _CLAIM_SECONDS else None

    def _upload(self, claimed: Claim) -> None:
        batch, body = self._store.prepare(claimed.batch)
        if batch.wrappers:
            self._spool.pin_content(batch)
        try:
            if self._store.has_multipart and (batch.size > self._threshold or self._is_begun(claimed)):
                receipt = self._multipart.send(batch, body, claimed.failures)
            else:
                receipt = self._store.write(batch, body)
        except AlreadyExists:
            # It is proven (see proof.py): an earlier attempt, whose response was lost, has uploaded these bytes.
            receipt = WriteReceipt(existed=True)
        sent_before = claimed.attempts > 1 or receipt.existed
        self._spool.stored(batch, deletable_after=self._store.may_land_for(sent_before=sent_before))
        with self._lock:
            self._pause, self._pauses, self.failure = None, 0, None
            self.sent.objects += 1
            self.sent.events += batch.events
            self.sent.bytes += batch.size
        if claimed.is_delivered:
            self.deleter.wake()
        log.info(
            "uploaded %s: %d events, %d bytes%s",
            batch.key,
            batch.events,
            batch.size,
            ", existed already" if receipt.existed else "",
            extra={"key": batch.key, "events": batch.events, "bytes": batch.size, "store": self._store.location},
        )

    def _is_begun(self, claimed: Claim) -> bool:
        """Whether an earlier attempt began a multipart upload, which must be finished as one whatever the settings are now."""
        return claimed.attempts > 1 and self._spool.uploads.of(claimed.batch) is not None

    def _damaged(self, claim: Claim, error: SpoolCorrupt) -> None:
        """Quarantine what is damaged; the rest is uploaded as another object, if possible."""
        log.error("%s: %s", claim.batch.key, error.one_line(), extra={"key": claim.batch.key, "code": error.code})
        try:
            self._spool.quarantine_batch(claim, error)
        except SpoolError as failure:
            self._failed(claim.batch, claim.failures, failure)

    def _failed(self, batch: Batch, failures: int, error: JobsBackupError) -> None:
        if isinstance(error, Stopped) or self._stop.is_set():
            self._release(batch, error, 0.0)
            return
        self.failure = error
        of_store = error.refused or isinstance(error, _OF_THE_STORE)
        # The spool's disk may only have been busy: the first retry is immediate.
        is_first = isinstance(error, SpoolError) and not failures
        delay = 0.0 if of_store or is_first else backoff(failures, _FIRST_PAUSE, _MAX_PAUSE)
        if isinstance(error, _OF_THE_BATCH):
            fields = {"key": batch.key, "code": error.code, "wait_seconds": delay, "store": self._store.location}
            log.error("%s is retried in %.0f s: %s", batch.key, delay, error.one_line(), extra=fields)
        else:
            self._begin_pause(error)  # before the batch is released, or another worker would take it at once
        self._release(batch, error, delay)

    def _begin_pause(self, error: JobsBackupError) -> None:
        with self._lock:
            if time.monotonic() >= self._paused_until:  # else others have failed at the same moment
                self._pauses += 1
            pause = max(min(error.retry_after or 0.0, _MAX_ASKED), backoff(self._pauses - 1, _FIRST_PAUSE, _MAX_PAUSE))
            self._paused_until = time.monotonic() + pause
            self._pause = error
        try:
            self._spool.pause(error, seconds=pause)
        except SpoolError as failure:
            log.error("%s", failure.one_line(), extra={"code": failure.code})
        fields = {"code": error.code, "wait_seconds": pause, "store": self._store.location}
        log.error(
            "uploads to %s are paused for %.0f s, nothing is lost: %s", self._store.location, pause, error.one_line(), extra=fields
        )

    def _release(self, batch: Batch, error: JobsBackupError, delay: float) -> None:
        """Release a batch. On a full disk, this is retried at each poll until it works or the session ends.

        The batch then waits behind the others, because its error may be its own.
        """
        standing = "proven" if self._store.may_have_accepted else "refused" if error.refused else None

        def release() -> None:
            self._spool.release(batch, error, delay=delay, standing=standing)

        try:
            release()
        except SpoolError as failure:
            log.error("%s", failure.one_line(), extra={"code": failure.code})
            self._unreleased.append(release)

    def _release_again(self) -> None:
        while self._unreleased:
            self._unreleased[0]()
            del self._unreleased[0]

    def _maintain(self) -> None:
        """Recover dead processes, which may take a while; then seal by age and poll other processes."""
        begun = _guarded(self._begin) or _guarded(self._begin)  # twice: a disk may only have been busy
        with self._lock:
            self._has_begun = True
            self._changed.notify_all()
        while not self._stop.wait(TICK):
            self._looked_at = time.monotonic()
            begun = begun or _guarded(self._begin)
            _guarded(self._spool.maintain)
            _guarded(self._release_again)
            _guarded(self._give_back_claims)
            _guarded(self._spool.recover)
            _guarded(self._spool.seal_due)
            if _guarded(self._spool.has_claimable):
                self.wake()
            _guarded(self._forget)

    def _forget(self) -> None:
        """Forget some old batches at each poll, so that nothing has to wait for it."""
        if self._catalog_seconds and time.monotonic() >= self._forget_at:
            after = self._spool.forget(self._catalog_seconds, self._forgotten)
            self._forgotten = after or 0
            if after is None:
                self._forget_at = time.monotonic() + _FORGET_SECONDS

    def _begin(self) -> bool:
        self._spool.recover()
        self._spool.begin_sending()
        return True

    def _delete(self) -> None:
        """Delete, once earlier failures are due again: see `_begin`."""
        with self._lock:
            self._changed.wait_for(lambda: self._has_begun or self._stop.is_set())
        self.deleter.work()

    def _abort(self) -> None:
        """Abort uploads, in a thread of its own, because a store that does not respond must not block anything else."""
        while not self._stop.wait(TICK):
            if not self.paused:
                _guarded(self._multipart.abort_abandoned)


def stalled(thread: threading.Thread, looked_at: float) -> str:
    """What is wrong with a thread that should poll every second; empty if it has done so lately."""
    seconds = time.monotonic() - looked_at
    if thread.is_alive() and seconds < _STALLED_SECONDS:
        return ""
    return f"the thread {thread.name} " + (f"has made no progress for {seconds:.0f} s" if thread.is_alive() else "has ended")


def _guarded(job: Callable[[], T]) -> T | None:
    """Run one of several jobs that must continue whatever happens to the others."""
    try:
        return job()
    except JobsBackupError as error:
        log.error("%s", error.one_line(), extra={"code": error.code})
    except (OSError, MemoryError) as error:
        log.error("maintaining the spool failed, retrying: %s: %s", type(error).__name__, error)
    except Exception:
        log.exception("maintaining the spool failed unexpectedly")
    return None
