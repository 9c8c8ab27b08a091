"""`jobs-backup wrappers`: installed wrappers, which act between core and the store, and their settings."""

from __future__ import annotations

import click

from jobs_backup.cli.commands.plugins import show
from jobs_backup.cli.options import with_environment
from jobs_backup.store.wrappers import KIND


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_environment
def wrappers(name: str | None, as_json: bool) -> None:
    """List the installed wrappers, such as encryption; with NAME, show one and its settings.

    JOBS_BACKUP_WRAPPERS sets which of them are active, and their order.

    \b
    Example:
      jobs-backup wrappers --json
    """
    show(KIND, name, as_json=as_json)
