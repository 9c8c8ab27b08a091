"""`jobs-backup archive`: send what a spool holds."""

from __future__ import annotations

import click

from jobs_backup.backup import Backup
from jobs_backup.cli.options import with_environment
from jobs_backup.cli.process import bound_memory, leave, read_settings, stopping, summarize_failures
from jobs_backup.cli.progress import progress
from jobs_backup.cli.summary import Summary


@click.command()
@click.option("--once", is_flag=True, help="End when nothing is left that could be sent now.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@with_environment
def archive(once: bool, as_json: bool) -> None:
    """Send what other processes record into the spool, and what earlier ones left in it.

    \b
    Example:
      jobs-backup archive --once --env-file docker.env
    """
    bound_memory()
    if once:
        summarize_failures()
    with stopping() as stop:
        backup = Backup(read_settings())
        summary = Summary(backup, "events")
        with progress(backup, [], "events") as shown:
            if not once:
                while not stop.wait(0.5):
                    shown.look()
            summary.finish(stop, shown)
        code = summary.show(as_json=as_json, interrupted=False)
    leave(code, backup)
