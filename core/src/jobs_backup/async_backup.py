"""`Backup` for asyncio: the same promises, and nothing of it blocks the event loop."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, cast, overload

from jobs_backup.backup import Backup
from jobs_backup.encoding import Payload
from jobs_backup.errors import BackupClosed, InvalidEvent, JobsBackupError
from jobs_backup.jobs import Event, Jobs
from jobs_backup.settings import CoreSettings

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 16
"""Calls under way at once; what they record and acknowledge meanwhile shares a wait for the disk."""
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

    Each call runs in one of a few threads. One that is cancelled is not undone: what it was to record or acknowledge may be. Any
    number of tasks of one event loop may share it.
    """

    def __init__(self, settings: CoreSettings, *, environment: Mapping[str, str] | None = None, archive: bool = True) -> None:
        """The arguments of `Backup`. It is opened by `async with`, which raises what `Backup` raises."""
        self._open = functools.partial(Backup, settings, environment=environment, archive=archive)
        self._backup: Backup | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._closing: Future[None] | None = None

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, *, archive: bool = True) -> Self:
        """As the environment variables say: see `Backup.from_env`."""
        environment = os.environ if environment is None else environment
        return cls(CoreSettings.from_environment(environment), environment=environment, archive=archive)

    record = _in_thread(Backup.record)
    delivered = _in_thread(Backup.delivered)
    failed = _in_thread(Backup.failed)

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
            payload = one.payload if isinstance(one, Event) else one
            size += 0 if isinstance(payload, dict) else len(payload)
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
            closing = self._closing = closer.submit(self._backup.close, grace)
            closer.shutdown(wait=False)
        try:
            await asyncio.shield(asyncio.wrap_future(closing))
        finally:
            if closing.done():
                threads.shutdown(wait=False)
                self._backup = self._threads = self._closing = None

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
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Callable[Concatenate[Backup, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._backup is None:
            raise BackupClosed("the AsyncBackup is not open", hint="use it as `async with AsyncBackup.from_env() as backup:`")
        call = functools.partial(method, self._backup, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _discard(opening: Future[Backup]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close(grace=0)
