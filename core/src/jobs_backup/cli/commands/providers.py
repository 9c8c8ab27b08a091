"""`jobs-backup providers`: installed providers, their settings, and whether they follow the contract's form."""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from jobs_backup.checks.provider import Result, check_provider
from jobs_backup.cli.commands.plugins import show
from jobs_backup.cli.options import MISUSED, with_environment
from jobs_backup.cli.streams import print_json
from jobs_backup.errors import ConfigurationError
from jobs_backup.store.providers import KIND
from jobs_backup.util.logs import printable

_MARKS: Final = {
    Result.OK: click.style("ok ", fg="green"),
    Result.WRONG: click.style("NO ", fg="red", bold=True),
    Result.NOT_TRIED: " - ",
}


@click.command()
@click.argument("name", required=False)
@click.option("--check", is_flag=True, help="Check NAME against the contract, as far as possible without a bucket.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_environment
def providers(name: str | None, check: bool, as_json: bool) -> None:
    """List the installed storage providers; with NAME, show one and its settings.

    \b
    Example:
      jobs-backup providers FILE --check
    """
    if not check:
        show(KIND, name, as_json=as_json)
        return
    if name is None:
        raise ConfigurationError("--check needs the name of a provider", hint=f"name one: {', '.join(KIND.names())}")
    findings = list(check_provider(name, os.environ))
    if as_json:
        print_json(findings)
    else:
        for one in findings:
            click.echo(f"  {_MARKS[one.result]} {one.name:<18} {printable(one.text)}")
    if any(one.result is Result.WRONG for one in findings):
        sys.exit(MISUSED)
