"""`Backup` for asyncio: the same promises; never blocks the event loop."""

from __future__ import annotations

import asyncio
import copy
import functools
import os
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import datetime
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeAlias, TypeVar, cast, overload

from jobs_backup.backup.backup import Backup, backup_of, session_of
from jobs_backup.backup.chunks import RecordChunk, each_of, raw_stream, recording
from jobs_backup.backup.events import Event, Job, Jobs
from jobs_backup.backup.session import Session
from jobs_backup.errors import BackupClosed, InvalidEvent, JobsBackupError
from jobs_backup.format.lines import Payload
from jobs_backup.model import Stream
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.interface import Entry, Recording

P = ParamSpec("P")
Waiting: TypeAlias = "tuple[Recording, asyncio.Future[None]] | None"
"""A task's recording and its future; None at the end."""
T = TypeVar("T")

_THREADS: Final = 16
"""Maximum concurrent calls, not counting `record`. What they record and acknowledge in the meantime shares a wait for the disk."""
_LARGE: Final = 64 << 10
"""Size in bytes above which a payload is encoded in a thread."""
_CHUNK_EVENTS: Final = 1000
_CHUNK_BYTES: Final = 1 << 20
_MEMORY_SECONDS: Final = 0.05
_FLUSH_SECONDS: Final = 0.5
"""How long a thread may outlive a cancelled caller's wait."""


def _in_thread(method: Callable[Concatenate[Backup, P], T]) -> Callable[Concatenate[AsyncBackup, P], Coroutine[Any, Any, T]]:
    async def call(self: AsyncBackup, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._call(method, *args, **kwargs)  # pyright: ignore[reportPrivateUsage] - it becomes a method

    functools.update_wrapper(call, method)
    return call


class AsyncBackup:
    """`Backup` for asyncio; never blocks the event loop. Use it as an asynchronous context manager.

    Await the methods of `Backup`. Calls run in a few threads; events that tasks record at the same time share a commit. Cancelling
    a call does not undo it: its events may be recorded, its jobs acknowledged.

    Tasks of any number of event loops may share it, one loop after another or in several threads. A forked process reopens it.
    """

    def __init__(self, settings: CoreSettings, *, environment: Mapping[str, str] | None = None, archive: bool = True) -> None:
        """Take the arguments of `Backup`. `async with` opens it, and raises what `Backup` raises."""
        self._prepare(functools.partial(Backup, settings, environment=environment, archive=archive), is_lent=False)

    def _prepare(self, open_: Callable[[], Backup], *, is_lent: bool) -> None:
        self._open = functools.partial(_Opening, open_, is_lent=is_lent)
        self._openings: dict[int, _Opening] = {}  # of this process, and of those it was forked from
        self._closing: dict[int, Future[None]] = {}

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None, *, archive: bool = True) -> Self:
        """Configure it from environment variables: see `Backup.from_env`."""
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
        connection: object | None = None,
    ) -> Job:
        """Record one event: see `Backup.record`.

        `connection` is a psycopg 3 `AsyncConnection`, or a SQLAlchemy 2 `AsyncSession` or `AsyncConnection` that uses psycopg 3. It
        is used in the running event loop.
        """
        opening = self._opened()
        event = Event(
            payload=payload,
            source_id=source_id,
            user_id=user_id,
            workspace_id=workspace_id,
            message_id=message_id,
            created_at=created_at,
        )
        is_small = not isinstance(payload, dict) and _length(payload) <= _LARGE
        made = recording(event) if is_small else await self._call(lambda _: recording(event))
        if connection is None:
            await opening.commits.add(made)
        else:
            await self._enter([made], connection)
        return Job(made.jobs[0][0])

    @overload
    async def record_many(
        self,
        payloads: Iterable[Payload] | AsyncIterable[Payload],
        *,
        source_id: str,
        workspace_id: str = "",
        connection: object | None = None,
    ) -> Jobs: ...
    @overload
    async def record_many(self, payloads: Iterable[Event] | AsyncIterable[Event], *, connection: object | None = None) -> Jobs: ...
    async def record_many(
        self,
        payloads: Iterable[Payload | Event] | AsyncIterable[Payload | Event],
        *,
        source_id: str = "",
        workspace_id: str = "",
        connection: object | None = None,
    ) -> Jobs:
        """Record any number of events: see `Backup.record_many`. A plain iterable is read in a thread.

        `connection` is as in `record`.
        """
        record_many = cast(
            Callable[..., Jobs], functools.partial(Backup.record_many, source_id=source_id, workspace_id=workspace_id)
        )
        jobs = Jobs()
        if not isinstance(payloads, AsyncIterable):
            if connection is None:
                return await self._call(record_many, payloads)
            source = raw_stream(workspace_id, source_id) if source_id else None
            await self._enter_many(each_of(payloads), source, jobs, connection)
            return jobs
        chunk: list[Payload | Event] = []
        size = 0

        async def record_chunk() -> None:
            try:
                if connection is None:
                    jobs.extend(await self._call(record_many, chunk))
                else:
                    source = raw_stream(workspace_id, source_id) if source_id else None
                    some = Jobs()
                    await self._enter_many(iter(chunk), source, some, connection)
                    jobs.extend(some)
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

    async def _enter(self, recordings: Sequence[Recording], connection: object) -> None:
        if (entry := await self._call(_entry, recordings)) is not None:
            await entry.write_async(connection)

    async def _enter_many(self, payloads: Iterator[Payload | Event], source: Stream | None, jobs: Jobs, connection: object) -> None:
        """As `Session.record_many`, in a transaction of the application: encoded in a thread, and inserted in the event loop."""
        is_full = True
        while is_full:
            chunk = RecordChunk()
            invalid: InvalidEvent | None = None
            try:
                is_full = await self._call(lambda _, chunk=chunk: chunk.fill(payloads, source))  # type: ignore[misc]
            except InvalidEvent as error:
                error.index, invalid = len(jobs) + len(chunk), error
            try:
                if chunk:
                    await self._enter(chunk.recordings, connection)
                    chunk.number(jobs)
                if invalid is not None:
                    raise invalid
            except JobsBackupError as error:
                error.recorded = jobs
                raise

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until what this process recorded is in the bucket: see `Backup.flush`."""
        until = None if timeout is None else time.monotonic() + timeout
        last = await self._call(_seal)
        while True:
            left = _FLUSH_SECONDS if until is None else min(_FLUSH_SECONDS, max(0.0, until - time.monotonic()))
            if await self._call(_wait_until_stored, last, left):
                return
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"not everything is in the bucket after {timeout:g} s")

    async def close(self, grace: float | None = None) -> None:
        """Seal, upload as much as possible within `grace` seconds, and end: see `Backup.close`. Cancelling it does not stop it.

        Calls that have not begun by then raise BackupClosed. Closing again waits until it is closed.
        """
        process = os.getpid()
        if (opening := self._openings.pop(process, None)) is not None:
            self._closing[process] = opening.close(grace)
        if (closing := self._closing.get(process)) is None:
            return
        try:
            await _result(closing)
        finally:
            if closing.done() and self._closing.get(process) is closing:
                del self._closing[process]

    async def __aenter__(self) -> Self:
        process, opening = os.getpid(), self._open()
        if self._openings.setdefault(process, opening) is not opening:
            raise JobsBackupError(
                "the AsyncBackup is already open", hint="enter it once and share it, or make an AsyncBackup for each event loop"
            )
        try:
            await _result(opening.begin())
        except BaseException:
            if self._openings.pop(process, None) is opening:
                opening.close(grace=0)  # cancelled, it may already be open, or will be soon
            raise
        return self

    async def __aexit__(
        self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _opened(self) -> _Opening:
        opening = self._openings.get(os.getpid())
        if opening is None and self._openings:
            raise BackupClosed(
                "the AsyncBackup was opened before this process was forked",
                hint="open it in each process, after the fork",
            )
        if opening is None or not opening.is_open:
            raise BackupClosed("the AsyncBackup is not open", hint="use it as `async with AsyncBackup.from_env() as backup:`")
        return opening

    async def _call(self, method: Callable[Concatenate[Backup, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        opening = self._opened()
        call = opening.call(functools.partial(method, opening.backup, *args, **kwargs))
        try:
            return await _result(call)
        finally:
            call.cancel()  # if no caller waits for it, and no thread has started it


class _Opening:
    """One opening of an AsyncBackup, from `async with` to `close`, with its threads. Independent of any event loop.

    Attributes:
        is_open: whether `backup` and `commits`, the group commit of its events, exist.
    """

    backup: Backup
    commits: _Commits

    def __init__(self, open_: Callable[[], Backup], *, is_lent: bool) -> None:
        self._open = open_
        self._is_lent = is_lent
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="jobs-backup-async")
        self._begun: Future[None] | None = None
        self.is_open = False

    def begin(self) -> Future[None]:
        """Open the Backup, in a thread."""

        def begin() -> None:
            self.backup = self._open()
            self.commits = _Commits(session_of(self.backup))
            self.is_open = True

        self._begun = self._threads.submit(begin)
        return self._begun

    def call(self, call: Callable[[], T]) -> Future[T]:
        """Run a call in a thread.

        Raises:
            BackupClosed: it was closed.
        """
        try:
            return self._threads.submit(call)
        except RuntimeError as error:  # the threads are shut down
            raise _closed() from error

    def close(self, grace: float | None) -> Future[None]:
        """Close the Backup, in a thread of its own, since the others may all be busy. Call it once."""

        def close() -> None:
            try:
                if self._begun is not None:
                    wait([self._begun])  # opening may still be under way
                if self.is_open and not self._is_lent:
                    self.backup.close(grace)
            finally:
                if self.is_open:
                    self.commits.close()
                self._threads.shutdown(wait=False)

        closer = ThreadPoolExecutor(1, thread_name_prefix="jobs-backup-close")
        closing = closer.submit(close)
        closer.shutdown(wait=False)
        return closing


class _Commits:
    """Group commit for the tasks of event loops: recordings that arrive during one commit go into the next one.

    A task puts its recording into a queue and waits for a future of its own loop. Loops and the committing thread share nothing
    else. So a loop may end, and a task may be cancelled or interrupted, at any point.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waiting = SimpleQueue[Waiting]()
        self._is_closed = False
        Thread(target=self._commit_until_closed, name="jobs-backup-commit", daemon=True).start()

    async def add(self, recording: Recording) -> None:
        """Return when the recording is durable. Raises as `Session.keep` does."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put((recording, future))
        if self._is_closed:
            self._refuse_rest()
        await future

    def close(self) -> None:
        """Start no further commit. Tasks that wait for one get BackupClosed."""
        self._is_closed = True
        self._waiting.put(None)

    def _commit_until_closed(self) -> None:
        while (first := self._waiting.get()) is not None:
            group = [first]
            error: BaseException | None = None
            try:
                self._take(group)
                self._session.keep([recording for recording, _ in group])
            except BaseException as caught:  # noqa: BLE001 - each task of the group raises it
                error = caught
            _notify([future for _, future in group], error)
        while True:
            try:
                self._refuse_rest()
            except MemoryError:  # every waiting task must get an error
                time.sleep(_MEMORY_SECONDS)
            else:
                return

    def _refuse_rest(self) -> None:
        """After `close`, refuse what waits; called by the thread and by tasks that come too late for it."""
        rest: list[tuple[Recording, asyncio.Future[None]]] = []
        self._take(rest)
        _notify([future for _, future in rest], _closed())

    def _take(self, taken: list[tuple[Recording, asyncio.Future[None]]]) -> None:
        """Move all waiting recordings to `taken`. The end marker stays in the queue."""
        with suppress(Empty):
            while (one := self._waiting.get_nowait()) is not None:
                taken.append(one)
            self._waiting.put(None)


def _entry(backup: Backup, recordings: Sequence[Recording]) -> Entry | None:
    return session_of(backup).entry(recordings)


def _seal(backup: Backup) -> int:
    return session_of(backup).seal()


def _wait_until_stored(backup: Backup, last: int, timeout: float) -> bool:
    return session_of(backup).wait_until_stored(last, timeout)


async def _result(future: Future[T]) -> T:
    """Wait for a thread's result, in the running event loop. The thread continues if this is cancelled or the loop ends."""
    done = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda _: _notify([done], None))
    await done
    return future.result()


def _notify(futures: Sequence[asyncio.Future[None]], error: BaseException | None) -> None:
    """Settle futures of any event loops, from any thread."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in futures:
        loops.setdefault(future.get_loop(), []).append(future)
    for loop, its in loops.items():
        with suppress(RuntimeError):  # nothing waits on a closed loop
            loop.call_soon_threadsafe(_settle, its, error)


def _settle(futures: Sequence[asyncio.Future[None]], error: BaseException | None) -> None:
    for future in futures:
        if future.done():  # by cancellation
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(copy.copy(error) if isinstance(error, JobsBackupError) else error)  # each task may add to its own


def _length(payload: object) -> int:
    """Length of JSON text; 0 for a dict, and for an invalid payload, which `Backup` rejects."""
    return len(payload) if isinstance(payload, Sized) and not isinstance(payload, dict) else 0


def _closed() -> BackupClosed:
    return BackupClosed("the AsyncBackup is closed", hint="open a new one")


class AsyncSession(AsyncBackup):
    """An AsyncBackup for `serve`, over a session that is open and stays open."""

    def __init__(self, session: Session) -> None:
        self._prepare(lambda: backup_of(session), is_lent=True)

    async def keep(self, recording: Recording) -> None:
        """Record encoded raw events, and fill in their jobs: see `Session.keep`."""
        await self._opened().commits.add(recording)
