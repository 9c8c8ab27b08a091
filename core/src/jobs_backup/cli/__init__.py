"""The command `jobs-backup`. Each subcommand has a module of its own, imported when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

_COMMANDS: Final = ("run", "archive", "delivered", "failed", "status", "providers")


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"jobs_backup.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jobs-backup", prog_name="jobs-backup", message="%(prog)s %(version)s")
def cli() -> None:
    """Every event of your pipeline, safe in your own bucket.

    Settings come from environment variables, or from a docker.env given with --env-file. Exit codes: 0 done; 1 not everything is
    in the bucket yet, and nothing is lost; 2 wrong usage or configuration.
    """


def main() -> None:
    """The entry point."""
    sys.exit(cli.main(standalone_mode=True))
