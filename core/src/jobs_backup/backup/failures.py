"""Delivery failures on their way into the spool: reports become lines, and lines become recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from json import loads
from typing import Any, Final, NamedTuple

import msgspec

from jobs_backup.backup.chunks import raw_stream
from jobs_backup.backup.events import Event, job_id
from jobs_backup.errors import InvalidEvent, UnknownJob
from jobs_backup.format import lines as encoding
from jobs_backup.format import surrogates
from jobs_backup.format.lines import FailureContext, FinalPayload
from jobs_backup.model import Kind, Stream
from jobs_backup.spool.interface import Recording

_OF_THE_EVENT: Final = ("payload", "user_id", "message_id", "created_at")


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An event that could not be delivered, and why. The fields are the arguments of `Backup.failed`."""

    job: int | str | Event
    error: object
    payload: FinalPayload | None = None
    destination_id: str = ""
    attempts: int | None = None
    stage: str = ""
    code: str | int = ""
    user_id: str | None = None
    message_id: str | None = None
    created_at: datetime | None = None
    failed_at: datetime | None = None

    def __repr__(self) -> str:
        return f"Failure(destination_id={self.destination_id!r}, payload=...)"  # keeps the payload out of logs


class FailureRecord(NamedTuple):
    """A failure as recorded. `job` is None for an event that was not recorded; `at` in microseconds since 1970."""

    job: int | None
    stream: Stream
    at: int
    line: bytes


class FailureRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A failure as JSON, as the command and the server receive it. Names are those of the lines in the bucket.

    Attributes:
        error: a text, or an object whose `message`, `code` and `stage` are used.
        payload: the final payload sent, any JSON.
        job_id: the event, if it was recorded; otherwise `source_id` and `workspace_id` say where it came from.
    """

    error: Any
    payload: msgspec.Raw
    job_id: int | str | None = None
    source_id: str | None = None
    workspace_id: str = ""
    destination_id: str = ""
    attempts: int | None = None
    stage: str = ""
    code: str | int = ""
    user_id: str | None = None
    message_id: str | None = None
    created_at: datetime | None = None
    failed_at: datetime | None = None


_decode: Final = msgspec.json.Decoder(FailureRequest).decode
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def parse_failure(json: bytes) -> Failure:
    """Parse a failure from JSON. Raises InvalidEvent."""
    try:
        request = _converted(json)
    except (msgspec.DecodeError, ValueError) as error:  # ValueError comes from Python's reader
        raise InvalidEvent(f"not a failure: {error}", hint="see `jobs-backup failed --help`") from error
    except RecursionError as error:
        raise InvalidEvent("not a failure: nested too deeply") from error
    payload = bytes(request.payload)
    job: int | str | Event
    if request.job_id is not None:
        job = request.job_id
    elif request.source_id is not None:
        job = Event(payload=payload, source_id=request.source_id, workspace_id=request.workspace_id)
    else:
        raise InvalidEvent("neither jobId nor sourceId", hint="give jobId if the event was recorded, otherwise sourceId")
    return Failure(
        job=job,
        error=request.error,
        payload=payload,
        destination_id=request.destination_id,
        attempts=request.attempts,
        stage=request.stage,
        code=request.code,
        user_id=request.user_id,
        message_id=request.message_id,
        created_at=request.created_at,
        failed_at=request.failed_at,
    )


def _converted(json: bytes) -> FailureRequest:
    try:
        return _decode(json)
    except msgspec.DecodeError:
        if (parsed := surrogates.stand_in(json)) is None:
            raise
    # Python's reader accepts lone surrogates. The payload may be large, and stays JSON.
    members = {name: surrogates.original(json, parsed, value) for name, value in _members(parsed).items()}
    converted = {name: msgspec.Raw(value) if name == "payload" else loads(value) for name, value in members.items()}
    return msgspec.convert(converted, FailureRequest)


def failure_record(failure: Failure, stream_of: Callable[[int], Stream | None]) -> FailureRecord:
    """Turn a failure into a failure record.

    Args:
        stream_of: a job's stream; None if the job is unknown.

    Raises:
        UnknownJob: the job is unknown.
        InvalidEvent: a field cannot be recorded.
    """
    if isinstance(failure.job, Event):
        job, stream = None, raw_stream(failure.job.workspace_id, failure.job.source_id)
        of_event = {name: getattr(failure.job, name) for name in _OF_THE_EVENT if getattr(failure, name) is None}
        failure = msgspec.structs.replace(failure, **of_event)
    else:
        job = job_id(failure.job)
        if (found := stream_of(job)) is None:
            raise UnknownJob(f"job {job} is unknown to this spool", jobs=[job], count=1, hint="name the event's source instead")
        stream = found
    if failure.payload is None:
        raise InvalidEvent("payload is missing", hint="pass what was sent to the destination")
    at = encoding.now() if failure.failed_at is None else encoding.microseconds(failure.failed_at)
    created_at = failure.created_at
    context = FailureContext(
        workspace_id=stream.workspace_id,
        source_id=stream.source_id,
        destination_id=failure.destination_id,
        job=job,
        attempts=failure.attempts,
        created_at=b"null" if created_at is None else encoding.timestamp(encoding.microseconds(created_at)),
        failed_at=encoding.timestamp(at),
    )
    error = encoding.error_json(failure.error, failure.code, failure.stage)
    line = encoding.failed_line(failure.payload, error, context, failure.user_id, failure.message_id)
    return FailureRecord(job, msgspec.structs.replace(stream, kind=Kind.FAILED), at, line)


def recordings(records: Iterable[FailureRecord]) -> list[tuple[Recording, list[int | None]]]:
    """One recording per stream, paired with the job of each of its lines."""
    made: dict[Stream, tuple[Recording, list[int | None]]] = {}
    for job, stream, at, line in records:
        if stream not in made:
            made[stream] = Recording(stream, [], first_at=at, last_at=at), []
        recording, jobs = made[stream]
        recording.lines.append(line)
        recording.first_at, recording.last_at = min(recording.first_at, at), max(recording.last_at, at)
        jobs.append(job)
    return list(made.values())


def settled(made: Iterable[tuple[Recording, list[int | None]]]) -> list[tuple[int, int]]:
    """(job, id of its failure record) for the recorded results of `recordings`, where there is a job."""
    found: list[tuple[int, int]] = []
    for recording, jobs in made:
        found += [(job, id_) for job, id_ in zip(jobs, recording.ids(), strict=True) if job is not None]
    return found
