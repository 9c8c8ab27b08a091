"""Delete objects whose events were all delivered: in bulk, retrying failures, and probing slowly without permission."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from jobs_backup.errors import JobsBackupError, PermissionDenied, SpoolError, StorageError, Throttled, Unavailable
from jobs_backup.spool.interface import DueObject, Spool
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.util.backoff import backoff
from jobs_backup.util.logs import logger_of

log: Final = logger_of(__name__)

DELETED_AT_ONCE: Final = 1000
"""Maximum of keys per call; no store takes more (S3's DeleteObjects)."""

_NOTE_SECONDS: Final = 10.0
_TICK: Final = 1.0
_FIRST_PAUSE: Final = 5.0
_MAX_PAUSE: Final = 300.0
_FIRST_PROBE: Final = 60.0
_MAX_PROBE: Final = 1800.0
"""Seconds between two probes without permission: an owner must grant it, or withholds it on purpose."""


class Deleter:
    """Delete in one thread, which nothing waits for: failed deletes stay in the bucket, and in the spool's list."""

    def __init__(self, spool: Spool, store: ObjectStore, *, stop: threading.Event, on_change: Callable[[], None]) -> None:
        """`on_change` is called whenever `is_idle` may have become true."""
        self._spool = spool
        self._store = store
        self._stop = stop
        self._on_change = on_change
        self._wake = threading.Event()
        self._is_busy = True  # until its first poll
        self._pauses = 0
        self._paused_until = 0.0
        self._is_denied = False  # why it is paused
        self._at_once = DELETED_AT_ONCE
        self._reported = ""  # code of the last reported error; cleared by a call without failures
        self.deleted = 0
        """Objects deleted since the start."""

    def wake(self) -> None:
        """Wake the thread: there may be something to delete, or it is time to stop."""
        self._wake.set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to delete now."""
        # In this order: it becomes busy before it claims anything, after which `has_deletes` no longer shows it.
        return (self._is_paused or not self._spool.has_deletes()) and not self._is_busy

    @property
    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def work(self) -> None:
        """Run the thread."""
        while not self._stop.is_set():
            self._wake.clear()
            if not self._look():
                if self._is_busy:
                    self._is_busy = False
                    self._on_change()
                self._wake.wait(_TICK)

    def _look(self) -> bool:
        """Delete some. False if there was nothing to delete now."""
        try:
            if self._is_paused or not self._spool.has_deletes():
                return False
            self._is_busy = True
            objects = self._spool.claim_deletes(self._at_once)
            if objects:
                self._delete(objects)
            return bool(objects)
        except SpoolError as error:
            log.error("%s", error.one_line(), extra={"code": error.code})
        except Exception:
            log.exception("deleting failed unexpectedly")
        return False

    def _delete(self, objects: Sequence[DueObject]) -> None:
        failed: Mapping[str, Exception]
        is_of_call = False
        try:
            failed = self._store.delete([one.key for one in objects]).failed
        except Exception as error:  # noqa: BLE001 - whatever it is, they must not stay claimed
            failed, is_of_call = dict.fromkeys((one.key for one in objects), error), True
        if self._stop.is_set() and is_of_call:
            return  # interrupted; the end of the session releases them
        gone = [one for one in objects if one.key not in failed]
        refused = [(one, _known(failed[one.key])) for one in objects if one.key in failed]
        if gone:
            self._note(lambda: self._spool.deleted(gone))
            self.deleted += len(gone)
            for one in gone:
                fields = {"key": one.key, "store": self._store.location}
                log.info("deleted %s: all of its events were delivered", one.key, extra=fields)
            if self._is_denied:
                self._note(self._spool.retry_deletes)  # permission was granted: other refused deletes may work now
            self._pauses, self._is_denied = 0, False
            self._at_once = min(2 * self._at_once, DELETED_AT_ONCE)
        if refused:
            self._give_back(refused, len(objects), is_of_call=is_of_call)
        else:
            self._reported = ""

    def _give_back(self, refused: Sequence[tuple[DueObject, JobsBackupError]], tried: int, *, is_of_call: bool) -> None:
        """Release objects that could not be deleted. If all failed, all pause; then one is tried, and more as long as that works.

        An object that may itself be at fault waits longer, including one that was alone in a refused call.
        """
        error = refused[0][1]
        first, longest = (_FIRST_PROBE, _MAX_PROBE) if isinstance(error, PermissionDenied) else (_FIRST_PAUSE, _MAX_PAUSE)
        pause = 0.0
        if len(refused) == tried:
            pause = max(min(error.retry_after or 0.0, longest), backoff(self._pauses, first, longest))
            self._pauses += 1
            self._is_denied = isinstance(error, PermissionDenied)
            self._at_once = 1
            self._paused_until = time.monotonic() + pause
        of_store = is_of_call and (tried > 1 or isinstance(error, Throttled | Unavailable))
        retries = [(one, None if of_store else backoff(one.failures, _FIRST_PROBE, _MAX_PROBE)) for one, _ in refused]
        self._note(lambda: self._spool.give_back_deletes(retries, error, pause=pause))
        # Logged once: the permission may be withheld on purpose. `status` shows it while it lasts.
        log.log(
            logging.DEBUG if self._reported == error.code else logging.ERROR,
            "%d of %d delivered objects cannot be deleted from %s, everything else continues; retrying from time to time: %s: %s",
            len(refused),
            tried,
            self._store.location,
            refused[0][0].key,
            error.one_line(),
            extra={"code": error.code, "hook": "delete", "key": refused[0][0].key, "store": self._store.location},
        )
        self._reported = error.code

    def _note(self, write: Callable[[], None]) -> None:
        """Note the outcome. A full disk must not keep objects claimed, so this is retried for some time."""
        until = time.monotonic() + _NOTE_SECONDS
        while True:
            try:
                write()
            except SpoolError as error:
                if self._stop.is_set() or time.monotonic() >= until:
                    return  # claims are released when the session ends
                log.error("%s", error.one_line(), extra={"code": error.code})
                self._stop.wait(_TICK)
            else:
                return


def _known(error: Exception) -> JobsBackupError:
    return error if isinstance(error, JobsBackupError) else StorageError(f"{type(error).__name__}: {error}")
