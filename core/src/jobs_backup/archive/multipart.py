"""Objects in parts: begin, upload, complete, resume after a crash, abort. The journal comes before the first part."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Final, NamedTuple

from jobs_backup.errors import (
    AlreadyExists,
    ConfigurationError,
    IntegrityError,
    JobsBackupError,
    NotSupported,
    ObjectNotFound,
    SpoolError,
    StorageError,
    Unproven,
    UploadGone,
)
from jobs_backup.model import Batch, Body, Outcome, Part, WriteReceipt
from jobs_backup.spool.interface import JournaledUpload, Spool
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.util.backoff import backoff
from jobs_backup.util.logs import logger_of

log: Final = logger_of(__name__)

_BEGINNINGS: Final = 3
"""How often to begin an upload, when it is lost, before the batch has to wait."""
_GIVEN_UP_AFTER: Final = 2
"""How often an upload may fail, with all its attempts, without another part arriving."""
_ABORT_FIRST_WAIT: Final = 60.0
_ABORT_MAX_WAIT: Final = 3600.0


class _Range(NamedTuple):
    """The place of a part in its object."""

    number: int
    offset: int
    size: int
    last: bool


class Multipart:
    """Upload objects in parts to one store, all from one pool of threads."""

    def __init__(self, spool: Spool, store: ObjectStore, *, part_size: int, concurrency: int, stop: threading.Event) -> None:
        self._spool = spool
        self._store = store
        self._part_size = part_size
        self._window = 1 if store.sequential_parts else concurrency
        self._pool = _Pool(concurrency)
        self._stop = stop
        self._aborting = threading.Lock()

    def send(self, batch: Batch, body: Body, failures: int = 0) -> WriteReceipt:
        """Upload the batch's object: resume the upload in the journal, or begin one.

        After an error the upload stays in the journal and the next call resumes it, with two exceptions. An upload that keeps
        failing is replaced. After the errors below it is abandoned, and the next call begins another one.

        Args:
            failures: how often uploading the batch has failed before.

        Raises:
            AlreadyExists: the object exists. The upload is left to `abort_abandoned`.
            NotSupported, ConfigurationError: settings must be changed.
        """
        journaled, parts = self._spool.uploads.of(batch) or (self._begin(batch), [])
        for beginning in range(1, _BEGINNINGS + 1):
            try:
                return self._finish(journaled, parts, batch, body)
            except (AlreadyExists, NotSupported, ConfigurationError):
                # Its parts, and what it began with, depend on the settings that may have to be changed.
                self._spool.uploads.abandon(journaled)
                raise
            except UploadGone as error:
                self._spool.uploads.abandon(journaled)
                if beginning == _BEGINNINGS:
                    raise
                self._report_begun_again("the upload is lost", batch, error)
                journaled, parts = self._begin(batch), []
            except StorageError as error:
                if not self._is_stuck(journaled, error, failures):
                    raise
                # Begun first: if the store cannot even do that, the upload is not at fault, and its parts are worth keeping.
                blocked_by, journaled, parts = journaled, self._begin(batch), []
                self._spool.uploads.abandon(blocked_by)
                self._report_begun_again("the upload keeps failing", batch, error)
        raise AssertionError("unreachable")  # a new upload is not given up

    def _is_stuck(self, journaled: JournaledUpload, error: StorageError, failures: int) -> bool:
        """Whether to give up an upload, because another one may do better: a store may report an internal error forever.

        Each upload is given up later than the one before it, so that a fault of the store costs few uploads, however long it lasts.
        """
        if error.refused or isinstance(error, Unproven) or self._stop.is_set():
            return False
        failed = self._spool.uploads.failed(journaled)
        return failed >= _GIVEN_UP_AFTER and failed > failures // 2

    def _report_begun_again(self, why: str, batch: Batch, error: StorageError) -> None:
        fields = {"key": batch.key, "code": error.code, "store": self._store.location}
        log.warning("%s: %s, starting another one: %s", batch.key, why, error, extra=fields)

    def abort_abandoned(self) -> list[JobsBackupError]:
        """Abort uploads that will not be resumed. Refused ones stay in the journal and are retried. Returns the failures."""
        with self._aborting:
            errors = (self._abort(journaled) for journaled in self._spool.uploads.abandoned())
            return [error for error in errors if error is not None]

    def _abort(self, journaled: JournaledUpload) -> JobsBackupError | None:
        fields = {"key": journaled.upload.key, "hook": "abort_multipart", "store": self._store.location}
        try:
            outcome = self._store.abort_multipart(journaled.upload).outcome
        except (UploadGone, ObjectNotFound):
            outcome = Outcome.GONE
        except JobsBackupError as error:
            delay = backoff(journaled.failures, _ABORT_FIRST_WAIT, _ABORT_MAX_WAIT)
            self._spool.uploads.postpone(journaled, error, delay=delay)
            log.warning(
                "cannot abort an upload of %s, retrying later: %s",
                journaled.upload.key,
                error.one_line(),
                extra={**fields, "code": error.code, "wait_seconds": delay},
            )
            return error
        self._spool.uploads.forget(journaled)
        if outcome is Outcome.ABORTED:
            log.info("aborted an upload of %s", journaled.upload.key, extra=fields)
        return None

    def close(self) -> None:
        """End the threads, once they have finished their parts."""
        self._pool.close()

    def _begin(self, batch: Batch) -> JournaledUpload:
        store = self._store
        smallest = max(self._part_size, store.min_part_size, -(-batch.size // store.max_parts))
        part_size = -(-smallest // store.part_multiple) * store.part_multiple
        upload = store.create_multipart(batch)
        try:
            return self._spool.uploads.begin(batch, upload, part_size)
        except SpoolError:
            # Nothing else records this upload.
            with suppress(JobsBackupError):
                store.abort_multipart(upload)
            raise

    def _finish(self, journaled: JournaledUpload, sent: list[Part], batch: Batch, body: Body) -> WriteReceipt:
        parts = {part.number: part for part in sent}
        ranges = _ranges(batch.size, journaled.part_size)
        completes = self._store.sequential_parts  # with sequential parts, the last one may complete the object
        try:
            self._send_parts(journaled, [one for one in ranges if one.number not in parts], body, parts)
            if len(parts) < len(ranges):
                raise Stopped(f"{batch.key}: stopped after {len(parts)} of {len(ranges)} parts; the next start resumes")
            completes = True
            receipt = self._store.complete_multipart(journaled.upload, [parts[one.number] for one in ranges], batch)
        except IntegrityError as error:
            if not completes:
                raise
            # A part was uploaded with other bytes than intended: completing the same parts again cannot help.
            raise UploadGone(f"{batch.key}: the uploaded parts differ from those that were sent") from error
        self._spool.uploads.forget(journaled)
        return receipt

    def _send_parts(self, journaled: JournaledUpload, missing: list[_Range], body: Body, parts: dict[int, Part]) -> None:
        """Upload what is missing, a window of parts at a time. No part is still running when this returns or raises."""
        running: set[Future[Part]] = set()
        failed: BaseException | None = None
        try:
            for one in missing:
                if failed is not None or self._stop.is_set():
                    break
                running.add(self._pool.submit(partial(self._send_part, journaled, one, body)))
                if len(running) >= self._window:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    failed = _collect(done, parts)
        finally:
            done, _ = wait(running)
        failed = failed or _collect(done, parts)
        if failed is not None:
            raise failed

    def _send_part(self, journaled: JournaledUpload, one: _Range, body: Body) -> Part:
        if self._stop.is_set():
            raise Stopped(f"{journaled.upload.key}: stopped before part {one.number}; the next start resumes")
        part = self._store.write_part(journaled.upload, one.number, one.offset, body.slice(one.offset, one.size), one.last)
        self._spool.uploads.add_part(journaled, part)
        return part


class _Pool:
    """Daemon threads, because a hanging request must not keep the process from ending. Started when needed."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._threads: list[threading.Thread] = []
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._starting = threading.Lock()

    def submit(self, function: Callable[[], Part]) -> Future[Part]:
        """Call a function in one of the threads.

        Raises:
            RuntimeError: there is none, and none can be started.
        """
        future: Future[Part] = Future()

        def task() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  # raised where the result is taken
                future.set_exception(error)

        with self._starting:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) < self._size:
                thread = threading.Thread(target=self._work, name=f"jobs-backup-part-{len(self._threads)}", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # a limit of threads
                    if not self._threads:
                        raise
                else:
                    self._threads.append(thread)
        self._tasks.put(task)
        return future

    def close(self) -> None:
        """End the threads, once they are idle."""
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


class Stopped(JobsBackupError):
    """Shutdown came before the object was complete."""


def _ranges(size: int, part_size: int) -> list[_Range]:
    return [
        _Range(number, offset, min(part_size, size - offset), last=offset + part_size >= size)
        for number, offset in enumerate(range(0, size, part_size), 1)
    ]


def _collect(done: set[Future[Part]], parts: dict[int, Part]) -> BaseException | None:
    failed: BaseException | None = None
    for future in done:
        if (error := future.exception()) is not None:
            failed = failed or error
        else:
            part = future.result()
            parts[part.number] = part
    return failed
