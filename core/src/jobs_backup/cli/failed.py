"""`jobs-backup failed`: back up delivery failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from jobs_backup.backup import Backup
from jobs_backup.cli.intake import inputs_of, take_in
from jobs_backup.cli.options import with_environment
from jobs_backup.cli.process import read_settings, summarize_failures
from jobs_backup.errors import ConfigurationError, InvalidEvent
from jobs_backup.failures import Failure, FailureRecord
from jobs_backup.jobs import Event
from jobs_backup.spool.blobs import InputPosition


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[FILES]...")
@click.option("--again", is_flag=True, help="Read files from their beginning, also where an earlier run has read them.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@with_environment
def failed(files: tuple[Path, ...], again: bool, as_json: bool) -> None:
    """Back up delivery failures: FILES (or standard input) have one a line, a JSON object.

    `error` (text or object), `payload` (what was sent in the end), and `jobId`, or for an event that was not recorded
    `sourceId` and `workspaceId`; if you like `destinationId`, `attempts`, `stage`, `code`, `userId`, `messageId`,
    `createdAt`, `failedAt`. A line that can't be used is put aside.

    \b
    Example:
      jobs-backup failed failures.ndjson --env-file docker.env
    """
    inputs = inputs_of(files)
    summarize_failures()
    settings = read_settings()
    if not settings.failed:
        raise ConfigurationError("JOBS_BACKUP_FAILED is off, so that there is nothing to do", hint="turn it on")
    take_in(inputs, settings, "failures", lambda backup, _summary, _stop: _Failures(backup), again=again, as_json=as_json)


class _Failures:
    """See `Handler`: a failure a line."""

    def __init__(self, backup: Backup) -> None:
        self.job: str | None = "failed"
        self._backup = backup

    def parser(self) -> Callable[[bytes], FailureRecord]:
        return self._record

    def keep(self, found: Sequence[FailureRecord | None], position: InputPosition | None) -> None:
        self._backup.record_failures((record for record in found if record is not None), position=position)

    def _record(self, line: bytes) -> FailureRecord:
        try:
            told = _decode(line)
        except msgspec.DecodeError as error:
            raise InvalidEvent(f"no failure: {error}", hint="see `jobs-backup failed --help`") from error
        except RecursionError as error:
            raise InvalidEvent("no failure: nested too deeply") from error
        payload = bytes(told.payload)
        job: int | str | Event
        if told.job_id is not None:
            job = told.job_id
        elif told.source_id is not None:
            job = Event(payload=payload, source_id=told.source_id, workspace_id=told.workspace_id)
        else:
            raise InvalidEvent("neither jobId nor sourceId", hint="say which event it is, or where it comes from")
        return self._backup.failure_record(
            Failure(
                job=job,
                error=told.error,
                payload=payload,
                destination_id=told.destination_id,
                attempts=told.attempts,
                stage=told.stage,
                code=told.code,
                user_id=told.user_id,
                message_id=told.message_id,
                created_at=told.created_at,
                failed_at=told.failed_at,
            )
        )


class _Told(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A line. The names are those of the lines in the bucket."""

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


_decode: Final = msgspec.json.Decoder(_Told).decode
