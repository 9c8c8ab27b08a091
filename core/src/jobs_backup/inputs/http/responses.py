"""Answers of the server: JSON, and errors as JSON, with the code that docs/messages.md explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.responses import Response

from jobs_backup.errors import BackupClosed, InvalidEvent, JobsBackupError, SpoolError, SpoolUncertain, UnknownJob

_COME_AGAIN: Final = 5.0
"""Seconds until there may be room."""
MAX_INDEXES: Final = 100
NOWHERE: Final = -1
"""Index of an error that concerns the body as a whole."""
_SHOWN: Final = 20
_encode: Final = msgspec.json.Encoder().encode


class HttpError(JobsBackupError):
    """A refused request; nothing in it was accepted."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str = "",
        retry_after: float | None = None,
        headers: Mapping[str, str] = {},
    ) -> None:
        """`retry_after` in seconds."""
        super().__init__(message, hint=hint)
        self.status = status
        self.named = code
        self.retry_after = retry_after
        self.headers = dict(headers)

    @property
    def code(self) -> str:
        return self.named


class Faulty(HttpError):
    """A request with invalid parts; nothing in it was accepted.

    Attributes:
        indexes: positions of the invalid parts, from 0; at most MAX_INDEXES.
    """

    def __init__(self, faults: Sequence[tuple[int, InvalidEvent | UnknownJob]], count: int) -> None:
        """`count` is their total number."""
        first = faults[0][1]
        message = first.message
        if count > 1:
            message = "; ".join(f"{index}: {error.message}" for index, error in faults[:_SHOWN])
            message = f"{count:,} of them are invalid: {message}" + ("; ..." if count > _SHOWN else "")
        super().__init__(404 if isinstance(first, UnknownJob) else 400, first.code, message, hint=first.hint)
        self.indexes = [index for index, _ in faults]


class Error(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Why a request was refused. Nothing in it was accepted, unless the message says otherwise.

    Attributes:
        code: names the section of docs/messages.md that says what to do.
        message: what is wrong, and where.
        hint: how to fix it.
        index: position of the first invalid event, id or failure, from 0.
        indexes: positions of all invalid ones, if there are several; at most 100.
        request_id: as in the header X-Request-ID, and in the log.
    """

    code: str
    message: str
    hint: str = ""
    index: int | None = None
    indexes: Sequence[int] = ()
    request_id: str = ""


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """The body of every answer that is not a success."""

    error: Error


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with a value as the JSON body."""
    return Response(_encode(value), status, headers, "application/json")


def of_error(error: JobsBackupError, request_id: str) -> Response:
    """Answer to a request that failed with this error."""
    retry_after = error.retry_after
    headers: dict[str, str] = {}
    index: int | None = None
    indexes: Sequence[int] = ()
    if isinstance(error, HttpError):
        status, headers = error.status, error.headers
        if isinstance(error, Faulty):
            index, indexes = error.indexes[0], error.indexes if len(error.indexes) > 1 else ()
    elif isinstance(error, InvalidEvent):
        status, index = 400, None if error.index == NOWHERE else error.index
    elif isinstance(error, UnknownJob):
        status, index = 404, getattr(error, "index", None)
    elif isinstance(error, SpoolUncertain):
        status = 504  # without Retry-After: a client that repeats it may record twice
    elif isinstance(error, (SpoolError, BackupClosed)):
        status, retry_after = 503, _COME_AGAIN
    else:
        status = 500
    if retry_after is not None:
        headers = {**headers, "Retry-After": str(math.ceil(retry_after))}
    described = Error(code=error.code, message=error.message, hint=error.hint, index=index, indexes=indexes, request_id=request_id)
    return json(ErrorAnswer(error=described), status, headers)
