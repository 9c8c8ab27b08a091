"""`jobs-backup archive`: upload what a spool holds."""

from __future__ import annotations

import click
import msgspec

from jobs_backup.cli.options import one_option, with_environment
from jobs_backup.cli.process import bound_memory, exit_process, monitored_session, read_settings, stopping, summarize_failures
from jobs_backup.cli.progress import progress
from jobs_backup.cli.summary import Summary


@click.command()
@click.option("--once", is_flag=True, help="Exit once nothing is left that can be uploaded now.")
@one_option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    help="Port for /metrics, /healthz and /readyz; not with --once.  [default: JOBS_BACKUP_METRICS_PORT]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@with_environment
def archive(once: bool, metrics_port: int | None, as_json: bool) -> None:
    """Upload what other processes record into the spool, and what earlier ones left in it.

    \b
    Example:
      jobs-backup archive --once --env-file docker.env
    """
    bound_memory()
    if once:
        summarize_failures()
    with stopping() as stop:
        settings = read_settings()
        # With --once, it may run in the same container as a service that has the port.
        port = None if once else settings.metrics_port if metrics_port is None else metrics_port
        settings = msgspec.structs.replace(settings, metrics_port=port)
        with monitored_session(settings, stop) as session:
            summary = Summary(session, "events", of_all=once, records=False)
            with progress(session, [], "events") as shown:
                if not once:
                    while not stop.wait(0.5):
                        shown.look()
                summary.finish(stop, shown)
        code = summary.show(as_json=as_json, interrupted=False)
    exit_process(code, session)
