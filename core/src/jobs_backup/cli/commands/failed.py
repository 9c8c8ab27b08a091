"""`jobs-backup failed`: back up delivery failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from jobs_backup.backup.failures import FailureRecord, parse_failure
from jobs_backup.backup.session import Session
from jobs_backup.cli.inputs import inputs_of, take_in
from jobs_backup.cli.options import with_environment, with_input_options
from jobs_backup.cli.process import read_settings, summarize_failures
from jobs_backup.errors import ConfigurationError
from jobs_backup.inputs.intake import InputOptions
from jobs_backup.spool.interface import InputPosition


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[FILES]...")
@with_input_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@with_environment
def failed(files: tuple[Path, ...], as_json: bool, again: bool, append_only: bool, allow_rejects: bool) -> None:
    """Back up delivery failures. FILES (or standard input) hold one JSON object per line.

    Required: `error` (text or object), `payload` (what was finally sent), and `jobId`, or for an event that was not recorded
    `sourceId` and `workspaceId`. Optional: `destinationId`, `attempts`, `stage`, `code`, `userId`, `messageId`, `createdAt`,
    `failedAt`. An invalid line is rejected (exit code 3).

    \b
    Example:
      jobs-backup failed failures.ndjson --env-file docker.env
    """
    inputs = inputs_of(files)
    summarize_failures()
    settings = read_settings()
    if not settings.failed:
        raise ConfigurationError("JOBS_BACKUP_FAILED is off, so there is nothing to do", hint="turn it on")
    options = InputOptions(again=again, append_only=append_only, allow_rejects=allow_rejects)
    take_in(inputs, settings, "failures", lambda session, _summary, _stop: _Failures(session), options=options, as_json=as_json)


class _Failures:
    """See `Handler`: one failure per line."""

    def __init__(self, session: Session) -> None:
        self.job: str | None = "failed"
        self._session = session

    begins = b"{"

    def parser(self) -> Callable[[bytes], FailureRecord]:
        return self._record

    def keep(self, found: Sequence[FailureRecord | None], position: InputPosition | None) -> None:
        self._session.record_failures((record for record in found if record is not None), position=position)

    def announce(self) -> None:
        pass

    def _record(self, line: bytes) -> FailureRecord:
        return self._session.failure_record(parse_failure(line))
