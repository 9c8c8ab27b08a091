"""Wrapper of the application: each request's resources and limits, its count, and its log line."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs_backup.inputs.http import openapi, responses
from jobs_backup.inputs.http.connections import Connection, connection_of
from jobs_backup.inputs.http.memory import Memory, Share
from jobs_backup.inputs.http.origins import Origins
from jobs_backup.inputs.http.requests import Requests
from jobs_backup.inputs.http.responses import HttpError
from jobs_backup.monitoring.health import path_of
from jobs_backup.util.logs import logger_of

log: Final = logger_of(__name__)

_PATHS: Final = frozenset(openapi.PATHS)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_CLOSE: Final = {"Connection": "close"}
_PIECE: Final = 64 << 10
"""Bytes of an answer written at once; for more, the client must read."""


class Answering:
    """Gives each request an id, a share of the memory, and a time limit."""

    def __init__(self, app: ASGIApp, requests: Requests, memory: Memory, origins: Origins, *, timeout: float) -> None:
        self._app = app
        self._requests = requests
        self._memory = memory
        self._origins = origins
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, connection = time.monotonic(), connection_of(scope)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        id_ = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        share = self._memory.share()
        scope["state"].update(request_id=id_, share=share)
        scope["path"] = path_of(scope["path"])
        added = [(b"x-request-id", id_.encode()), *self._origins.headers(headers.get("origin"))]
        answer = _Answer(send, connection, added, awaits_continue="expect" in headers)

        async def take() -> Message:
            connection.wants()
            message = await receive()
            connection.took(is_all=not message.get("more_body", False))
            answer.awaits_continue = False
            return message

        connection.begin()
        try:
            async with asyncio.timeout(self._timeout):
                await self._answer_to(scope, headers, connection)(scope, take, answer.send)
        except TimeoutError:
            if answer.status:  # the client no longer reads the answer
                await _cut(connection)
            else:
                hint = "it may or may not have been recorded: sending it again may duplicate it"
                error = HttpError(504, "Busy", f"the request took longer than {self._timeout:g} s", hint=hint)
                await responses.of_error(error, id_)(scope, receive, answer.send)
        except asyncio.CancelledError:  # from uvicorn, for requests that did not end in time
            await _cut(connection)
        finally:
            share.release()
            connection.end()
            self._log(scope, answer.status, time.monotonic() - begun)

    def _answer_to(self, scope: Scope, headers: Headers, connection: Connection) -> ASGIApp:
        """Choose the application, or an answer instead of it."""
        try:
            if connection.is_surplus:
                hint = "retry later; the limit is the server's JOBS_BACKUP_SERVER_MAX_CONNECTIONS"
                raise HttpError(503, "Busy", "too many open connections", hint=hint, retry_after=1.0, headers=_CLOSE)
            if headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
                raise HttpError(400, "BadRequest", "the body has a transfer coding other than chunked", headers=_CLOSE)
            return self._origins.preflight(scope["method"], headers) or self._app
        except HttpError as error:
            return responses.of_error(error, request_id(scope))

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in _PATHS else "other"  # bounded, whatever is requested
        status = 0 if "is_gone" in scope["state"] else status
        self._requests.add(path, status, seconds)
        fields = {"method": scope["method"], "path": path, "status": status, "seconds": seconds}
        fields["request_id"] = request_id(scope)
        log.info("%(method)s %(path)s: %(status)d in %(seconds).4f s, request %(request_id)s", fields, extra=fields)


class _Answer:
    """Sends an answer, in pieces if it is large: so it waits for a client that reads slowly."""

    def __init__(self, send: Send, connection: Connection, headers: list[tuple[bytes, bytes]], *, awaits_continue: bool) -> None:
        self._send = send
        self._connection = connection
        self._headers = headers
        self.awaits_continue = awaits_continue
        """Whether the client may be waiting for "100 Continue" before it sends the body. It may also be sending already."""
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._headers]
            if self.awaits_continue:
                message["headers"].append((b"connection", b"close"))
        elif len(body := message.get("body", b"")) > _PIECE:
            last = (len(body) - 1) // _PIECE * _PIECE
            for at in range(0, last, _PIECE):
                await self._send({"type": message["type"], "body": body[at : at + _PIECE], "more_body": True})
            message = {**message, "body": body[last:]}
        try:
            await self._send(message)
        except UnicodeDecodeError:  # from the path of the next request, which uvicorn begins at the end of this one
            self._connection.refuse()


async def _cut(connection: Connection) -> None:
    connection.abort()
    await asyncio.sleep(0)  # lets uvicorn notice, so that it reports no incomplete answer


def request_id(scope: Mapping[str, Any]) -> str:
    """Id of a request, as in the answer's header X-Request-ID."""
    return str(scope["state"]["request_id"])


def share_of(scope: Mapping[str, Any]) -> Share:
    """A request's share of the memory."""
    share: Share = scope["state"]["share"]
    return share
