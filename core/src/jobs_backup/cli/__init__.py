"""The command `jobs-backup`. Each subcommand has its own module, imported when called."""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from jobs_backup import __version__
from jobs_backup.cli import streams
from jobs_backup.cli.options import INCOMPLETE, echo_message, of_machine, show_usage
from jobs_backup.errors import JobsBackupError

# With their one-line help, so that --help need not import them all.
_COMMANDS: Final = {
    "run": "Back up events from NDJSON, one payload per line.",
    "serve": "Record events sent over HTTP, for applications in any language.",
    "archive": "Upload what other processes record, and what earlier ones left.",
    "delivered": "Acknowledge delivered events by their job ids.",
    "failed": "Back up delivery failures from NDJSON, one per line.",
    "policy": "Print least-privilege permissions for your settings.",
    "check": "Test your credentials using only the permissions backups need.",
    "env": "Print a commented docker.env for a provider.",
    "replay": "Read events back from the bucket, as NDJSON.",
    "status": "Show what waits in the spool, for which store, and why.",
    "spool": "Move this machine's spool into a fleet's.",
    "providers": "List the installed storage providers, or check one.",
    "wrappers": "List the installed wrappers, such as encryption.",
    "help": "Explain the code in brackets at the end of a message.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"jobs_backup.cli.commands.{cmd_name}"), cmd_name)
        if not isinstance(command, click.Command):
            return None
        command.short_help = _COMMANDS[cmd_name]  # also for shell completion
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jobs-backup", message="%(prog)s %(version)s")
def cli() -> None:
    """Back up every event of your pipeline into your own bucket, each exactly once.

    Settings come from environment variables, or from a docker.env given with --env-file. Exit codes: 0 done; 1 not everything is
    in the bucket yet, and nothing is lost; 2 wrong usage or configuration; 3 everything usable is in the bucket, and some lines of
    the input were rejected. A message ends with its code in brackets: `jobs-backup help CODE` explains it.
    """


def main() -> None:
    """Run the command, and exit."""
    try:
        sys.exit(_run())
    except (OSError, MemoryError, RuntimeError) as error:
        if (translated := of_machine(error)) is None:
            raise
        echo_message(translated.one_line(), translated.code)
        sys.exit(INCOMPLETE)


def _run() -> int:
    streams.prepare()
    try:
        code = int(cli.main(standalone_mode=False) or 0)
        sys.stdout.flush()
    except click.ClickException as error:
        show_usage(error)
        return error.exit_code
    except click.Abort:
        return 130  # as shells report SIGINT
    except JobsBackupError as error:
        echo_message(error.one_line(), error.code)
        return INCOMPLETE
    return code
