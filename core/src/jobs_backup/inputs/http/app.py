"""The application: how each request is handled."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from jobs_backup.backup.async_backup import AsyncSession
from jobs_backup.backup.chunks import raw_stream
from jobs_backup.backup.events import job_id
from jobs_backup.backup.failures import FailureRecord, parse_failure
from jobs_backup.backup.session import Session
from jobs_backup.errors import ConfigurationError, InvalidEvent, JobsBackupError, StorageError, UnknownJob
from jobs_backup.format import surrogates
from jobs_backup.inputs.http import bodies, openapi, payloads, responses
from jobs_backup.inputs.http.answering import Answering, request_id, share_of
from jobs_backup.inputs.http.auth import Access, Principal
from jobs_backup.inputs.http.bodies import Body
from jobs_backup.inputs.http.limits import Rate
from jobs_backup.inputs.http.memory import Memory, Share
from jobs_backup.inputs.http.openapi import RUDDER_BATCHES, RUDDER_TYPES, Acknowledged, Recorded, Reported
from jobs_backup.inputs.http.requests import Requests
from jobs_backup.inputs.http.responses import HttpError
from jobs_backup.monitoring import health as monitoring
from jobs_backup.settings.server import ServerSettings
from jobs_backup.spool.interface import Recording
from jobs_backup.spool.status import Limits
from jobs_backup.util.logs import logger_of

T = TypeVar("T")
log: Final = logger_of(__name__)

_ANSWER_SECONDS: Final = 60.0
"""Maximum time to commit and to deliver the answer: a client that does not read it must not keep a connection forever."""
_THREADS: Final = 2
_MAX_ERROR: Final = 256 << 10
"""Maximum bytes of a failure's error. Parsing takes up to twenty times as much memory."""
_AS_STRING: Final = "send ids as strings, as recording returned them: many languages cannot hold such numbers exactly"
_id: Final = msgspec.json.Decoder(str).decode


class _ErrorOf(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw(b"")


_error_of: Final = msgspec.json.Decoder(_ErrorOf).decode


class App:
    """Answers requests from a Session."""

    def __init__(self, session: Session, settings: ServerSettings, access: Access, *, is_stopping: Callable[[], bool]) -> None:
        self._session = session
        self._async = AsyncSession(session)
        self._access = access
        self._settings = settings
        self._memory = Memory(settings.max_pending)
        self._rate = Rate(settings.rate)
        self._max_events = settings.max_events
        self._is_stopping = is_stopping
        self._timeout = settings.read_timeout + _ANSWER_SECONDS
        self._document = openapi.document(settings)
        # Separate threads: large bodies and many failures take long, and probes share the other threads.
        self._parsing = ThreadPoolExecutor(_THREADS, thread_name_prefix="jobs-backup-bodies")
        self._reporting = ThreadPoolExecutor(_THREADS, thread_name_prefix="jobs-backup-failures")

    async def __aenter__(self) -> ASGIApp:
        """The ASGI application while the block runs. Its counts are among the Session's metrics."""
        requests = Requests()
        requests.show(self._session)
        await self._async.__aenter__()
        routes = [
            Route("/v1/events", self._events, methods=["POST"]),
            Route("/v1/delivered", self._delivered, methods=["POST"]),
            Route("/v1/failures", self._failures, methods=["POST"]),
            *(Route(f"/v1/{one}", functools.partial(self._rudder, type_=one), methods=["POST"]) for one in RUDDER_TYPES),
            *(Route(one, functools.partial(self._rudder, type_=""), methods=["POST"]) for one in RUDDER_BATCHES),
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
        inner.router.redirect_slashes = False  # both spellings are served: see path_of
        return Answering(inner, requests, self._memory, self._access.origins, timeout=self._timeout)

    async def __aexit__(self, *_: object) -> None:
        self._parsing.shutdown(wait=False)
        self._reporting.shutdown(wait=False)
        await self._async.close()

    async def _events(self, request: Request) -> Response:
        caller = self._access.recording(request.headers)
        given, workspace_id = _named(request, "source_id"), _named(request, "workspace_id")
        if caller.source_id is None:
            if not given:
                raise HttpError(400, "BadRequest", "source_id is missing", hint="add ?source_id=... to the URL")
        elif given not in ("", caller.source_id):
            hint = "leave source_id out, or authenticate with a bearer token"
            raise HttpError(403, "Forbidden", "the write key belongs to another source", hint=hint)
        elif workspace_id:
            hint = "leave workspace_id out, or authenticate with a bearer token"
            raise HttpError(403, "Forbidden", "a write key has no workspace", hint=hint)
        type_ = payloads.media_type(request.headers.get("content-type", ""))
        stream = raw_stream(workspace_id, caller.source_id or given)

        def read(body: Body, share: Share) -> Recording:
            return payloads.recording(stream, payloads.parts(body.read(), type_, self._max_events, share), share)

        return await self._record(caller, await self._read(request, read))

    async def _rudder(self, request: Request, type_: str) -> Response:
        """Record one event of a type, or a batch."""
        key = request.query_params.get("writeKey", "") if request.url.path.startswith("/beacon/") else ""
        caller = self._access.source(request.headers, key)
        if key:
            self._check_page(request)
        # Treat it as JSON, whatever its type: browsers send text/plain, and Node.js' SDK, for gzip, that of a form.
        payloads.check_charset(request.headers.get("content-type", ""))
        stream = raw_stream("", caller.source_id or "")

        def read(body: Body, share: Share) -> Recording:
            if not type_:
                return payloads.recording(stream, payloads.batch(body.read(), self._max_events, share), share)
            return payloads.recording(stream, [payloads.typed(body.read(), type_)], share)

        return await self._record(caller, await self._read(request, read))

    def _check_page(self, request: Request) -> None:
        """Raises Refused (403): the server has no credentials, and a page of a disallowed origin sends a beacon.

        Anybody who reaches such a server may record. But every page in a browser on this machine can make the browser reach it. A
        beacon, unlike all other requests, needs no preflight.
        """
        origin = request.headers.get("origin")
        if self._access.is_open and origin is not None and not self._access.origins.allows(origin):
            hint = "add the origin to the server's JOBS_BACKUP_SERVER_CORS_ORIGINS, or set write keys"
            raise HttpError(403, "Forbidden", "without credentials, web pages may not record here", hint=hint)

    async def _record(self, caller: Principal, recording: Recording) -> Response:
        self._rate.take(caller.name, len(recording.lines))
        if not recording.lines:
            return responses.json(Recorded(jobs=[]))
        await self._async.keep(recording)
        return responses.json(Recorded(jobs=list(map(str, recording.ids()))))

    async def _delivered(self, request: Request) -> Response:
        caller = self._access.everything(request.headers)
        type_ = payloads.media_type(request.headers.get("content-type", ""))

        def read(body: Body, share: Share) -> list[int]:
            return [job for _, job in payloads.each(payloads.ids(body.read(), type_, self._max_events, share), _job)]

        ids = await self._read(request, read)
        self._rate.take(caller.name, len(ids))
        ids = list(dict.fromkeys(ids))  # count duplicates once
        try:
            await self._async.delivered(ids)
        except UnknownJob as error:
            instance = self._session.settings.instance_id
            why = (
                f"these ids are unknown to the spool of this instance, {instance}: they belong to another instance, or are older"
                " than JOBS_BACKUP_CATALOG_DAYS; all others were accepted"
            )
            unknown = list(map(str, error.jobs))
            return responses.json(
                Acknowledged(acknowledged=len(ids) - error.count, unknown_count=error.count, unknown=unknown, message=why)
            )
        return responses.json(Acknowledged(acknowledged=len(ids)))

    async def _failures(self, request: Request) -> Response:
        caller = self._access.everything(request.headers)
        type_ = payloads.media_type(request.headers.get("content-type", ""))

        def read(body: Body, share: Share) -> list[bytes]:
            return list(payloads.parts(body.read(), type_, self._max_events, share))

        reports = await self._read(request, read)
        self._rate.take(caller.name, len(reports))
        await asyncio.get_running_loop().run_in_executor(self._reporting, self._report, reports)
        return responses.json(Reported(failures=len(reports)))

    def _report(self, reports: Sequence[bytes]) -> None:
        """Record all of them, or none."""

        def record(one: bytes) -> FailureRecord:
            _check_error(one)
            failure = parse_failure(one)
            if isinstance(failure.job, int):
                raise InvalidEvent("jobId is a number", hint=_AS_STRING)
            return self._session.failure_record(failure)

        self._session.record_failures([made for _, made in payloads.each(reports, record)])

    async def _status(self, request: Request) -> Response:
        self._access.everything(request.headers)
        settings = self._session.settings
        read = functools.partial(self._session.spool.status, Limits.of(settings), settings.rejects_path)
        return responses.json(await asyncio.to_thread(read))

    async def _metrics(self, request: Request) -> Response:
        self._access.everything(request.headers)
        page = functools.partial(monitoring.metrics_page, self._session, request.headers.get("accept", ""))
        try:
            body, type_ = await asyncio.to_thread(page)
        except ConfigurationError as error:
            raise HttpError(404, "NotFound", error.message, hint=error.hint) from None
        return Response(body, headers={"Content-Type": type_})

    async def _healthz(self, _request: Request) -> Response:
        return _as_text(monitoring.health(self._session))

    async def _readyz(self, _request: Request) -> Response:
        if self._is_stopping():
            return _as_text("stopping")
        return _as_text(await asyncio.to_thread(monitoring.readiness, self._session))

    async def _openapi(self, _request: Request) -> Response:
        return responses.json(self._document)

    async def _read(self, request: Request, read: Callable[[Body, Share], T]) -> T:
        """Parse the body of a request. Its memory counts until the request is answered."""
        share = share_of(request.scope)
        body = await bodies.receive(request, share, self._settings)
        if not body.is_large:
            return read(body, share)
        return await asyncio.get_running_loop().run_in_executor(self._parsing, read, body, share)


async def _of_error(request: Request, error: JobsBackupError) -> Response:
    return responses.of_error(error, request_id(request.scope))


async def _of_unexpected(request: Request, error: Exception) -> Response:
    log.error("%s failed unexpectedly, request %s", request.url.path, request_id(request.scope), exc_info=error)
    return responses.of_error(StorageError("the server failed unexpectedly: see its log"), request_id(request.scope))


async def _of_http_exception(request: Request, error: HTTPException) -> Response:
    """Answer what Starlette itself refuses: an unknown path or method."""
    code = "NotFound" if error.status_code == 404 else "BadRequest"
    refused = HttpError(error.status_code, code, error.detail, hint="see /openapi.json", headers=error.headers or {})
    return responses.of_error(refused, request_id(request.scope))


async def _of_disconnect(request: Request, _error: ClientDisconnect) -> Response:
    request.state.is_gone = True  # no client reads the answer; nothing was accepted
    return Response(status_code=400)


def _as_text(health_error: str) -> Response:
    return PlainTextResponse(f"{health_error}\n", 503) if health_error else PlainTextResponse("ok\n")


def _named(request: Request, name: str) -> str:
    """A query parameter that is a name. Raises Refused (400)."""
    text = request.query_params.get(name, "")
    if len(text) > openapi.MAX_NAME:
        raise HttpError(400, "BadRequest", f"{name} is longer than {openapi.MAX_NAME} characters", hint="shorten it")
    return text


def _check_error(failure: bytes) -> None:
    """Limit the size of a failure's error. Raises Refused (413)."""
    try:
        size = len(bytes(surrogates.decode(_error_of, failure)[0].error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # the parser reports it
    if size > _MAX_ERROR:
        raise HttpError(413, "TooLarge", f"the error of a failure has more than {_MAX_ERROR:,} bytes", hint="shorten it")


def _job(part: bytes) -> int:
    try:
        return job_id(_id(part))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent(f"not a job id: {error}", hint=_AS_STRING) from None
