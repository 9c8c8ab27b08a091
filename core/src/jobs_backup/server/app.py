"""The application: what each request does."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs_backup import monitoring
from jobs_backup.async_backup import AsyncBackup
from jobs_backup.backup import Backup
from jobs_backup.errors import ConfigurationError, InvalidEvent, JobsBackupError, StorageError, UnknownJob
from jobs_backup.failures import FailureRecord, parse_failure
from jobs_backup.jobs import job_id
from jobs_backup.recordings import raw_stream
from jobs_backup.server import answers, openapi, payloads
from jobs_backup.server.access import Access, Caller
from jobs_backup.server.answers import Refused
from jobs_backup.server.limits import Bodies, Rate
from jobs_backup.server.openapi import RUDDER_TYPES, Acknowledged, Recorded, Reported
from jobs_backup.server.requests import Requests
from jobs_backup.server.settings import ServerSettings
from jobs_backup.spool.status import read_status

T = TypeVar("T")
log: Final = logging.getLogger(__name__)

_LARGE: Final = 64 << 10
"""Bytes. To go through more takes long enough to be left to a thread."""
_ANSWER_SECONDS: Final = 60.0
"""For committing, and for the answer to be taken; who does not read it must not keep a connection for ever."""
_REPORTING_THREADS: Final = 2
_PATHS: Final = frozenset(openapi.PATHS)
_AS_STRING: Final = "send ids as recording has answered them, as strings: many languages can't hold such numbers exactly"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_id: Final = msgspec.json.Decoder(str).decode


class App:
    """Answers requests with what a Backup says."""

    def __init__(self, backup: Backup, settings: ServerSettings, access: Access, *, is_stopping: Callable[[], bool]) -> None:
        self._backup = backup
        self._async = AsyncBackup.of(backup)
        self._access = access
        self._bodies = Bodies(settings)
        self._rate = Rate(settings.rate)
        self._max_events = settings.max_events
        self._is_stopping = is_stopping
        self._timeout = settings.read_timeout + _ANSWER_SECONDS
        self._document = openapi.document(settings)
        # Of their own: many failures take long, and probes share the other threads.
        self._reporting = ThreadPoolExecutor(_REPORTING_THREADS, thread_name_prefix="jobs-backup-failures")

    async def __aenter__(self) -> ASGIApp:
        """The ASGI application, for as long as the block runs. What it counts is among the metrics of the Backup."""
        requests = Requests()
        requests.show(self._backup)
        await self._async.__aenter__()
        routes = [
            Route("/v1/events", self._events, methods=["POST"]),
            Route("/v1/delivered", self._delivered, methods=["POST"]),
            Route("/v1/failures", self._failures, methods=["POST"]),
            *(
                Route(f"/v1/{one}", functools.partial(self._rudder, type_=one), methods=["POST"])
                for one in (*RUDDER_TYPES, "batch")
            ),
            Route("/status", self._status),
            Route("/metrics", self._metrics),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/openapi.json", self._openapi),
        ]
        handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
            JobsBackupError: _of_error,
            HTTPException: _of_http_exception,
            ClientDisconnect: _of_disconnect,
            Exception: _of_unexpected,
        }
        inner = Starlette(routes=routes, exception_handlers=handlers)
        return _Answering(inner, requests, timeout=self._timeout)

    async def __aexit__(self, *_: object) -> None:
        self._reporting.shutdown(wait=False)
        await self._async.close()

    async def _events(self, request: Request) -> Response:
        caller = self._access.recording(request.headers)
        given, workspace_id = _named(request, "source_id"), _named(request, "workspace_id")
        if caller.source_id is None:
            if not given:
                raise Refused(400, "BadRequest", "source_id is missing", hint="add ?source_id=... to the URL")
        elif given not in ("", caller.source_id):
            hint = "leave source_id out, or authenticate with a bearer token"
            raise Refused(403, "Forbidden", "the write key is that of another source", hint=hint)
        elif workspace_id:
            hint = "leave workspace_id out, or authenticate with a bearer token"
            raise Refused(403, "Forbidden", "a write key is of no workspace", hint=hint)
        type_ = payloads.media_type(request.headers.get("content-type", ""))
        async with self._bodies.read(request) as body:
            events = await self._work(body, lambda: payloads.parts(body, type_, self._max_events))
            return answers.json(await self._record(caller, caller.source_id or given, workspace_id, events, len(body)))

    async def _rudder(self, request: Request, type_: str) -> Response:
        caller = self._access.source(request.headers)
        payloads.media_type(request.headers.get("content-type", payloads.JSON))
        async with self._bodies.read(request) as body:
            events = await self._work(
                body,
                lambda: payloads.batch(body, self._max_events) if type_ == "batch" else [payloads.typed(body, type_)],
            )
            return answers.json(await self._record(caller, caller.source_id or "", "", events, len(body)))

    async def _record(self, caller: Caller, source_id: str, workspace_id: str, events: list[bytes], size: int) -> Recorded:
        self._check_count(caller, events, "events")
        stream = raw_stream(workspace_id, source_id)
        make = functools.partial(payloads.recording, stream, events)
        recording = make() if size <= _LARGE else await asyncio.to_thread(make)
        if not recording.lines:
            return Recorded(jobs=[])
        await self._async.keep(recording)
        return Recorded(jobs=list(map(str, recording.ids())))

    async def _delivered(self, request: Request) -> Response:
        caller = self._access.everything(request.headers)
        type_ = payloads.media_type(request.headers.get("content-type", ""))
        async with self._bodies.read(request) as body:
            ids = await self._work(body, lambda: _each(payloads.parts(body, type_, self._max_events), _job))
            self._check_count(caller, ids, "job ids")
            ids = list(dict.fromkeys(ids))  # one that is told twice counts once
        try:
            await self._async.delivered(ids)
        except UnknownJob as error:
            instance = self._backup.settings.instance_id
            why = (
                f"these ids are not of the spool of this instance, {instance}: they are another instance's, or older than"
                " JOBS_BACKUP_CATALOG_DAYS; all others were taken"
            )
            unknown = list(map(str, error.jobs))
            return answers.json(
                Acknowledged(acknowledged=len(ids) - error.count, unknown_count=error.count, unknown=unknown, message=why)
            )
        return answers.json(Acknowledged(acknowledged=len(ids)))

    async def _failures(self, request: Request) -> Response:
        caller = self._access.everything(request.headers)
        type_ = payloads.media_type(request.headers.get("content-type", ""))
        async with self._bodies.read(request) as body:
            told = await self._work(body, lambda: payloads.parts(body, type_, self._max_events))
            self._check_count(caller, told, "failures")
            await asyncio.get_running_loop().run_in_executor(self._reporting, self._report, told)
        return answers.json(Reported(failures=len(told)))

    def _report(self, told: Sequence[bytes]) -> None:
        """All of them, or none."""

        def record(one: bytes) -> FailureRecord:
            failure = parse_failure(one)
            if isinstance(failure.job, int):
                raise InvalidEvent("jobId is a number", hint=_AS_STRING)
            return self._backup.failure_record(failure)

        self._backup.record_failures(_each(told, record))

    async def _status(self, request: Request) -> Response:
        self._access.everything(request.headers)
        settings = self._backup.settings
        read = functools.partial(read_status, self._backup.spool.directory, upload_frequency=settings.upload_frequency)
        return answers.json(await asyncio.to_thread(read))

    async def _metrics(self, request: Request) -> Response:
        self._access.everything(request.headers)
        page = functools.partial(monitoring.metrics_page, self._backup, request.headers.get("accept", ""))
        try:
            body, type_ = await asyncio.to_thread(page)
        except ConfigurationError as error:
            raise Refused(404, "NotFound", error.message, hint=error.hint) from None
        return Response(body, headers={"Content-Type": type_})

    async def _healthz(self, _request: Request) -> Response:
        return _as_text(monitoring.health(self._backup))

    async def _readyz(self, _request: Request) -> Response:
        if self._is_stopping():
            return _as_text("stopping")
        return _as_text(await asyncio.to_thread(monitoring.readiness, self._backup))

    async def _openapi(self, _request: Request) -> Response:
        return answers.json(self._document)

    async def _work(self, body: bytes, work: Callable[[], T]) -> T:
        return work() if len(body) <= _LARGE else await asyncio.to_thread(work)

    def _check_count(self, caller: Caller, some: Sequence[object], what: str) -> None:
        if len(some) > self._max_events:
            hint = "send fewer at once; the server's JOBS_BACKUP_SERVER_MAX_EVENTS"
            raise Refused(413, "TooLarge", f"{len(some):,} {what}, and a request may have {self._max_events:,}", hint=hint)
        self._rate.take(caller.name, len(some))


class _Answering:
    """Around the application: a request's id, the time that it may take, a count, and a line in the log."""

    def __init__(self, app: ASGIApp, requests: Requests, *, timeout: float) -> None:
        self._app = app
        self._requests = requests
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, status = time.monotonic(), 0
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope["state"] = {"request_id": request_id}

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            async with asyncio.timeout(self._timeout):
                await self._app(scope, receive, answer)
        except TimeoutError:
            if status:
                raise  # somebody does not read the answer: the connection is cut
            hint = "send it again: it may have been recorded, or not"
            error = Refused(503, "Busy", f"this took longer than {self._timeout:g} s", hint=hint, retry_after=1.0)
            await answers.of_error(error, request_id)(scope, receive, answer)
        finally:
            seconds = time.monotonic() - begun
            path = scope["path"] if scope["path"] in _PATHS else "other"  # bounded, whatever is asked for
            status = 0 if "is_gone" in scope["state"] else status
            self._requests.add(path, status, seconds)
            fields = {"request_id": request_id, "method": scope["method"], "path": path, "status": status, "seconds": seconds}
            log.info("%(method)s %(path)s: %(status)d in %(seconds).4f s, request %(request_id)s", fields, extra=fields)


def _request_id(request: Request) -> str:
    return str(request.state.request_id)


async def _of_error(request: Request, error: JobsBackupError) -> Response:
    return answers.of_error(error, _request_id(request))


async def _of_unexpected(request: Request, error: Exception) -> Response:
    log.error("%s failed unexpectedly, request %s", request.url.path, _request_id(request), exc_info=error)
    return answers.of_error(StorageError("the server failed unexpectedly: see its log"), _request_id(request))


async def _of_http_exception(request: Request, error: HTTPException) -> Response:
    """What Starlette itself refuses: a path or a method that is none."""
    code = "NotFound" if error.status_code == 404 else "BadRequest"
    refused = Refused(error.status_code, code, error.detail, hint="see /openapi.json", headers=error.headers or {})
    return answers.of_error(refused, _request_id(request))


async def _of_disconnect(request: Request, _error: ClientDisconnect) -> Response:
    request.state.is_gone = True  # nobody reads what follows; nothing was taken
    return Response(status_code=400)


def _as_text(trouble: str) -> Response:
    return PlainTextResponse(f"{trouble}\n", 503) if trouble else PlainTextResponse("ok\n")


def _named(request: Request, name: str) -> str:
    """A parameter of the query that is a name. Raises Refused (400)."""
    text = request.query_params.get(name, "")
    if len(text) > openapi.MAX_NAME:
        raise Refused(400, "BadRequest", f"{name} is longer than {openapi.MAX_NAME} characters", hint="shorten it")
    return text


def _each(parts: Sequence[bytes], read: Callable[[bytes], T]) -> list[T]:
    """Raises what `read` raises, with the place of the one that is wrong."""
    found: list[T] = []
    for index, part in enumerate(parts):
        try:
            found.append(read(part))
        except (InvalidEvent, UnknownJob) as error:
            error.index = index
            raise
    return found


def _job(part: bytes) -> int:
    try:
        return job_id(_id(part))
    except msgspec.DecodeError as error:
        raise InvalidEvent(f"no job id: {error}", hint=_AS_STRING) from None
