"""`jobs-backup run`: NDJSON from files or standard input into the bucket."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from jobs_backup.backup.session import Session
from jobs_backup.cli.inputs import inputs_of, take_in
from jobs_backup.cli.options import check_text, one_option, with_environment, with_input_options
from jobs_backup.cli.output import Output
from jobs_backup.cli.process import read_settings, summarize_failures
from jobs_backup.cli.streams import can_output
from jobs_backup.errors import ConfigurationError, JobsBackupError
from jobs_backup.format import lines as encoding
from jobs_backup.inputs.intake import InputOptions
from jobs_backup.model import Kind, Stream
from jobs_backup.spool.interface import InputPosition, Recording


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[FILES]...")
@one_option("--source-id", required=True, help="Source of the events; the first part of their keys.")
@one_option("--workspace-id", help="Workspace of the source.  [default: JOBS_BACKUP_WORKSPACE_ID]")
@with_input_options
@click.option("--emit-ids", is_flag=True, help="Print the job id of each line once it is durable, or null if the line has none.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@with_environment
def run(
    files: tuple[Path, ...],
    source_id: str,
    workspace_id: str | None,
    emit_ids: bool,
    as_json: bool,
    again: bool,
    append_only: bool,
    allow_rejects: bool,
) -> None:
    """Back up FILES (or standard input): NDJSON, one event's payload per line, plain or compressed with gzip or zstd.

    Run it again on the same files, and it resumes where the last run ended, even if they were renamed, copied or compressed
    meanwhile. A line that is not a JSON object, or exceeds 256 MiB, is rejected (exit code 3). A last line that is still being
    written is left for the next run.

    \b
    Example:
      jobs-backup run events.ndjson --source-id web --env-file docker.env
    """
    for option, text in (("--source-id", source_id), ("--workspace-id", workspace_id or "")):
        check_text(option, text)
    if not source_id:
        raise ConfigurationError("--source-id is empty", hint="name the source that the events come from")
    if emit_ids and as_json:
        raise ConfigurationError("--emit-ids and --json both print to standard output", hint="use one of them")
    if emit_ids and not can_output():
        raise ConfigurationError("--emit-ids prints to standard output, which is closed", hint="open it")
    inputs = inputs_of(files)
    summarize_failures()
    settings = read_settings()
    if not settings.raw:
        raise ConfigurationError("JOBS_BACKUP_RAW is off, so there is nothing to do", hint="turn it on, or do not use `run`")
    stream = Stream(Kind.RAW, settings.workspace_id if workspace_id is None else workspace_id, source_id)
    take_in(
        inputs,
        settings,
        "events",
        lambda session, _, stop: EventHandler(
            session, stream, ids=Output(stop, session.settings.shutdown_grace, _unprinted) if emit_ids else None
        ),
        options=InputOptions(again=again, append_only=append_only, allow_rejects=allow_rejects),
        as_json=as_json,
        is_measured=True,
    )


class EventHandler:
    """See `Handler`: one event's payload per line."""

    def __init__(self, session: Session, stream: Stream, *, ids: Output | None) -> None:
        self._session = session
        self._stream = stream
        self._ids = ids
        self._printed = b""
        self._at = 0
        # The same file under another source is another job. The bucket is not part of the job: it may be corrected while the events
        # stay the same.
        self.job: str | None = f"{stream.workspace_id}\0{stream.source_id}"

    begins = b"{"

    def parser(self) -> Callable[[bytes], bytes]:
        self._at = encoding.now()
        return functools.partial(encoding.raw_line, created_at=encoding.timestamp(self._at))

    def keep(self, found: Sequence[bytes | None], position: InputPosition | None) -> None:
        lines = [line for line in found if line is not None]
        recording = Recording(self._stream, lines, first_at=self._at, last_at=self._at, position=position)
        self._session.keep([recording])
        if self._ids is not None:
            ids = recording.ids()
            # As JSON strings, since a job's id exceeds 2^53.
            self._printed = b"".join(b"null\n" if line is None else b'"%d"\n' % next(ids) for line in found)

    def announce(self) -> None:
        if self._ids is not None:
            self._ids.write(self._printed)


def _unprinted(why: str, _written: int) -> JobsBackupError:
    hint = "what was recorded until then is safe, and its object stays"
    return JobsBackupError(f"not all job ids were printed: {why}", hint=hint)
