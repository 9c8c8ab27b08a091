"""`Backup` for asyncio: the same promises, and nothing of it blocks the event loop."""

from __future__ import annotations

import asyncio
import copy
import functools
import os
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, cast, overload

from jobs_backup.backup import Backup
from jobs_backup.core_settings import CoreSettings
from jobs_backup.encoding import Payload
from jobs_backup.errors import BackupClosed, InvalidEvent, JobsBackupError
from jobs_backup.jobs import Event, Job, Jobs
from jobs_backup.spool.writer import Recording

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 16
"""Calls under way at once, beside those of `record`; what they record and acknowledge meanwhile shares a wait for the disk."""
_LARGE: Final = 64 << 10
"""Bytes. To encode more takes long enough to be left to a thread."""
_CHUNK_EVENTS: Final = 1000
_CHUNK_BYTES: Final = 1 << 20
_FLUSH_SECONDS: Final = 0.5
"""So long a thread may wait for somebody who has given up."""


def _in_thread(method: Callable[Concatenate[Backup, P], T]) -> Callable[Concatenate[AsyncBackup, P], Coroutine[Any, Any, T]]:
    async def call(self: AsyncBackup, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._call(method, *args, **kwargs)  # pyright: ignore[reportPrivateUsage] - it becomes a method

    functools.update_wrapper(call, method)
    return call


class AsyncBackup:
    """Use it as an asynchronous context manager; the methods are those of `Backup`, to be awaited.

    Calls run in a few threads; events that tasks record at the same time share a commit. A call that is cancelled is not undone:
    what it was to record or acknowledge may be. Any number of tasks of one event loop may share it.
    """

    def __init__(self, settings: CoreSettings, *, environment: Mapping[str, str] | None = None, archive: bool = True) -> None:
        """The arguments of `Backup`. It is opened by `async with`, which raises what `Backup` raises."""
        self._prepare(functools.partial(Backup, settings, environment=environment, archive=archive), is_lent=False)

    @classmethod
    def of(cls, backup: Backup) -> Self:
        """One that uses a Backup which is open, and leaves it open."""
        made = cls.__new__(cls)
        made._prepare(lambda: backup, is_lent=True)  # noqa: SLF001 - its own
        return made

    def _prepare(self, open_: Callable[[], Backup], *, is_lent: bool) -> None:
        self._open = open_
        self._is_lent = is_lent
        self._backup: Backup | None = None
        self._commits: _Commits | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._closing: Future[None] | None = None

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, *, archive: bool = True) -> Self:
        """As the environment variables say: see `Backup.from_env`."""
        environment = os.environ if environment is None else environment
        return cls(CoreSettings.from_environment(environment), environment=environment, archive=archive)

    delivered = _in_thread(Backup.delivered)
    failed = _in_thread(Backup.failed)

    async def record(
        self,
        payload: Payload,
        *,
        source_id: str,
        user_id: str | None = None,
        workspace_id: str = "",
        message_id: str | None = None,
        created_at: datetime | None = None,
    ) -> Job:
        """Record one event: see `Backup.record`."""
        backup, commits = self._opened()
        event = Event(
            payload=payload,
            source_id=source_id,
            user_id=user_id,
            workspace_id=workspace_id,
            message_id=message_id,
            created_at=created_at,
        )
        is_small = not isinstance(payload, dict) and _length(payload) <= _LARGE
        recording = backup.recording(event) if is_small else await self._call(Backup.recording, event)
        await commits.add(recording)
        return Job(recording.jobs[0][0])

    async def keep(self, recording: Recording) -> None:
        """Record raw events that are encoded; fills in their jobs: see `Backup.keep`."""
        await self._opened()[1].add(recording)

    @overload
    async def record_many(
        self, payloads: Iterable[Payload] | AsyncIterable[Payload], *, source_id: str, workspace_id: str = ""
    ) -> Jobs: ...
    @overload
    async def record_many(self, payloads: Iterable[Event] | AsyncIterable[Event]) -> Jobs: ...
    async def record_many(
        self,
        payloads: Iterable[Payload | Event] | AsyncIterable[Payload | Event],
        *,
        source_id: str = "",
        workspace_id: str = "",
    ) -> Jobs:
        """Record any number of events: see `Backup.record_many`. A plain iterable is read in a thread."""
        record_many = cast(
            Callable[..., Jobs], functools.partial(Backup.record_many, source_id=source_id, workspace_id=workspace_id)
        )
        if not isinstance(payloads, AsyncIterable):
            return await self._call(record_many, payloads)
        jobs = Jobs()
        chunk: list[Payload | Event] = []
        size = 0

        async def record_chunk() -> None:
            try:
                jobs.extend(await self._call(record_many, chunk))
            except JobsBackupError as error:
                if isinstance(error, InvalidEvent):
                    error.index += len(jobs)
                if isinstance(error.recorded, Jobs):
                    jobs.extend(error.recorded)
                error.recorded = jobs
                raise

        async for one in payloads:
            chunk.append(one)
            size += _length(one.payload if isinstance(one, Event) else one)
            if len(chunk) >= _CHUNK_EVENTS or size >= _CHUNK_BYTES:
                await record_chunk()
                chunk, size = [], 0
        await record_chunk()
        return jobs

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until what this process recorded is in the bucket: see `Backup.flush`."""
        until = None if timeout is None else time.monotonic() + timeout
        last = await self._call(Backup.seal)
        while True:
            left = _FLUSH_SECONDS if until is None else min(_FLUSH_SECONDS, max(0.0, until - time.monotonic()))
            if await self._call(Backup.wait_until_stored, last, left):
                return
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"not all of it is in the bucket after {timeout:g} s")

    async def close(self, grace: float | None = None) -> None:
        """Seal, send what can be sent within `grace` seconds, and end: see `Backup.close`. It goes on if its caller is cancelled.

        Calls that have not begun by then raise BackupClosed.
        """
        threads, closing = self._threads, self._closing
        if self._backup is None or threads is None:
            return
        if closing is None:
            closer = ThreadPoolExecutor(1, thread_name_prefix="jobs-backup-close")  # the others may all be at work
            closing = self._closing = closer.submit(_nothing if self._is_lent else functools.partial(self._backup.close, grace))
            closer.shutdown(wait=False)
        try:
            await asyncio.shield(asyncio.wrap_future(closing))
        finally:
            if closing.done():
                threads.shutdown(wait=False)
                if self._commits is not None:
                    self._commits.close()
                self._backup = self._commits = self._threads = self._closing = None

    async def __aenter__(self) -> Self:
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="jobs-backup-async")
        opening = threads.submit(self._open)
        try:
            self._backup = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_discard)  # cancelled, it may still be opened
            threads.shutdown(wait=False)
            raise
        self._threads = threads
        self._commits = _Commits(self._backup)
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _opened(self) -> tuple[Backup, _Commits]:
        if self._backup is None or self._commits is None:
            raise BackupClosed("the AsyncBackup is not open", hint="use it as `async with AsyncBackup.from_env() as backup:`")
        return self._backup, self._commits

    async def _call(self, method: Callable[Concatenate[Backup, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = functools.partial(method, self._opened()[0], *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


class _Commits:
    """Group commit for the tasks of an event loop: what comes while one commit waits for the disk goes into the next one."""

    def __init__(self, backup: Backup) -> None:
        self._backup = backup
        self._waiting: list[tuple[Recording, asyncio.Future[None]]] = []
        self._is_committing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs-backup-commit")

    async def add(self, recording: Recording) -> None:
        """Returns when it is durable. Raises as `Backup.keep` does."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((recording, future))
        if not self._is_committing:
            self._commit()
        await future

    def close(self) -> None:
        """No further commit is begun. Who waits for one gets BackupClosed."""
        self._thread.shutdown(wait=False)

    def _commit(self) -> None:
        group, self._waiting = self._waiting, []
        self._is_committing = True
        recordings = [recording for recording, _ in group]
        futures = [future for _, future in group]
        try:
            commit = asyncio.get_running_loop().run_in_executor(self._thread, self._backup.keep, recordings)
        except RuntimeError:  # the thread is shut down
            self._end(futures, BackupClosed("the AsyncBackup is closed", hint="open a new one"))
        else:
            commit.add_done_callback(functools.partial(self._committed, futures))

    def _committed(self, futures: Sequence[asyncio.Future[None]], commit: asyncio.Future[None]) -> None:
        self._end(futures, asyncio.CancelledError() if commit.cancelled() else commit.exception())
        if self._waiting:
            self._commit()

    def _end(self, futures: Sequence[asyncio.Future[None]], error: BaseException | None) -> None:
        self._is_committing = False
        for future in futures:
            if future.done():  # it was cancelled
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(copy.copy(error))  # each task may add to its own


def _length(payload: object) -> int:
    """Of JSON text; 0 of a dict, and of what is no payload, which `Backup` tells."""
    return len(payload) if isinstance(payload, Sized) and not isinstance(payload, dict) else 0


def _nothing() -> None:
    """In place of closing a Backup that is not ours."""


def _discard(opening: Future[Backup]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close(grace=0)
