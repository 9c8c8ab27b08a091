"""`jobs-backup spool`: move a spool."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from jobs_backup.cli.options import echo_message, warn_of_misspelt_settings, with_environment
from jobs_backup.cli.streams import print_json
from jobs_backup.errors import ConfigurationError
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.values import DatabaseUrl
from jobs_backup.spool.engines import move_spool
from jobs_backup.spool.moving import Counts, Moved
from jobs_backup.util.logs import plural, printable


@click.group()
def spool() -> None:
    """Move the spool of this machine."""


@spool.command()
@click.option("--to", metavar="URL", help="PostgreSQL URL of the fleet's spool, without a password.  [default: JOBS_BACKUP_SPOOL]")
@click.option("--dry-run", is_flag=True, help="Only show what would be moved. Processes may use the spool meanwhile.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_environment
def move(to: str | None, dry_run: bool, as_json: bool) -> None:
    """Move the spool in JOBS_BACKUP_SPOOL_DIR into the fleet's in PostgreSQL.

    Moves what waits, the record of objects, acknowledgements, positions of inputs and the quarantine. Ids stay valid, on every
    host. Stop all processes that use the directory first. If the command is killed, run it again: it finishes the move. Afterwards
    no process can use the directory; delete it when you like.

    Exit codes: 0 moved, now or before; 1 not now, try again; 2 something must be changed first, and nothing was moved.

    \b
    Example:
      JOBS_BACKUP_SPOOL=postgresql://... jobs-backup spool move --env-file docker.env
    """
    warn_of_misspelt_settings()
    settings = CoreSettings.find_move(os.environ, None if to is None else _url(to))
    found = move_spool(
        settings.source, settings.target, instance_id=settings.instance_id, max_bytes=settings.max_bytes, dry_run=dry_run
    )
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        click.echo(printable(line))


def _url(text: str) -> DatabaseUrl:
    try:
        url = DatabaseUrl.parse(text)
    except ValueError as error:  # it shows nothing of the text
        raise ConfigurationError(f"--to: {error}", hint="correct it") from None
    if url.has_password:
        echo_message("warning: other users of this machine can see the password in --to: set JOBS_BACKUP_SPOOL instead", "Usage")
    return url


def _lines(found: Moved) -> Iterator[str]:
    if not found.moved:
        yield f"would move {found.source} to {found.target}:"
    elif found.before:
        yield f"{found.source} was already moved to {found.target}:"
    else:
        yield f"moved {found.source} to {found.target}:"
    yield from (f"  {line}" for line in _counts(found.counts))
    if found.processes:
        yield f"stop these processes first: {', '.join(map(str, found.processes))}"
    for path in found.left:
        yield f"not moved: {path}"
    if found.moved:
        yield f"set JOBS_BACKUP_SPOOL on this host instead of JOBS_BACKUP_SPOOL_DIR; delete {found.source} when you like"


def _counts(counts: Counts) -> Iterator[str]:
    yield (
        f"{plural(counts.waiting_batches, 'batch')} with {plural(counts.waiting_events, 'event')} to upload,"
        f" {counts.waiting_bytes:,} bytes"
    )
    yield f"{plural(counts.stored_objects, 'object')} with {plural(counts.stored_events, 'event')} in the bucket"
    yield f"{plural(counts.other_batches, 'batch')} deleted or quarantined, whose ids stay known"
    yield f"{plural(counts.inputs, 'input')}, {plural(counts.uploads, 'multipart upload')}"
    yield f"{plural(counts.quarantined, 'report')} of damage"
