"""`jobs-backup delivered`: acknowledge events by their job ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec

from jobs_backup.backup.events import job_id
from jobs_backup.backup.session import Session
from jobs_backup.cli.inputs import inputs_of, take_in
from jobs_backup.cli.options import with_environment
from jobs_backup.cli.process import read_settings, summarize_failures
from jobs_backup.cli.summary import Summary
from jobs_backup.errors import InvalidEvent, UnknownJob
from jobs_backup.format import surrogates
from jobs_backup.inputs.intake import InputOptions
from jobs_backup.spool.interface import InputPosition

_decode: Final = msgspec.json.Decoder(str | int | None).decode


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="[FILES]...")
@click.option("--allow-rejects", is_flag=True, help="Exit with 0 instead of 3 if lines were rejected.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@with_environment
def delivered(files: tuple[Path, ...], allow_rejects: bool, as_json: bool) -> None:
    """Acknowledge delivered events. FILES (or standard input) hold one job id per line, as `run --emit-ids` prints them.

    Once all events of an object are delivered, it is deleted from the bucket. Acknowledging an event again is harmless. Ids unknown
    to the spool are reported (exit code 1).

    \b
    Example:
      jobs-backup delivered ids.ndjson --env-file docker.env
    """
    inputs = inputs_of(files)
    summarize_failures()
    options = InputOptions(allow_rejects=allow_rejects)
    take_in(
        inputs,
        read_settings(),
        "ids",
        lambda session, summary, _: DeliveryHandler(session, summary),
        options=options,
        as_json=as_json,
    )


class DeliveryHandler:
    """See `Handler`: one job id per line."""

    def __init__(self, session: Session, summary: Summary) -> None:
        self.job: str | None = None  # acknowledging again does no harm
        self._session = session
        self._summary = summary

    begins = b'"0123456789'

    def parser(self) -> Callable[[bytes], int | None]:
        return _job

    def keep(self, found: Sequence[int | None], position: InputPosition | None) -> None:  # noqa: ARG002 - there is none
        try:
            self._session.delivered(job for job in found if job is not None)
        except UnknownJob as error:
            self._summary.unknown(error)

    def announce(self) -> None:
        pass


def _job(line: bytes) -> int | None:
    try:
        given = surrogates.decode(_decode, line)[0]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent(f"not a job id: {error}", hint="write one string or whole number per line") from error
    return None if given is None else job_id(given)
