"""`jobs-backup serve`: an HTTP server for applications in any language."""

from __future__ import annotations

import os

import click
import msgspec

from jobs_backup.cli.options import echo_message, with_environment
from jobs_backup.cli.process import bound_memory, exit_process, monitored_session, read_settings, stopping
from jobs_backup.cli.progress import progress
from jobs_backup.cli.summary import Summary
from jobs_backup.errors import ConfigurationError
from jobs_backup.model import Kind
from jobs_backup.settings.server import ServerSettings
from jobs_backup.util.installing import how_to_install


@click.command()
@click.option("--host", help="The address to listen on.  [default: JOBS_BACKUP_SERVER_HOST, or localhost]")
@click.option("--port", type=click.IntRange(0, 65_535), help="The port to listen on.  [default: JOBS_BACKUP_SERVER_PORT, or 8080]")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    help="Answer /metrics, /healthz and /readyz there, to everybody.  [default: JOBS_BACKUP_METRICS_PORT]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON at the end.")
@with_environment
def serve(host: str | None, port: int | None, metrics_port: int | None, as_json: bool) -> None:
    """Record what is sent by HTTP, and send it into the bucket.

    POST JSON or NDJSON to /v1/events, job ids to /v1/delivered, failures to /v1/failures; RudderStack's SDKs find /v1/batch and
    the others. What is answered with 200 is durable. /openapi.json tells all.

    \b
    Example:
      jobs-backup serve --env-file docker.env
    """
    bound_memory()
    settings = read_settings()
    own = ServerSettings.from_environment(os.environ)
    if host is not None:
        own = msgspec.structs.replace(own, host=host)
    if port is not None:
        own = msgspec.structs.replace(own, port=port)
    if metrics_port is not None:
        settings = msgspec.structs.replace(settings, metrics_port=metrics_port)
    # A client asked to retry (503) waits better than one without an answer.
    settings = msgspec.structs.replace(settings, spool_full_timeout=0.0)
    try:
        from jobs_backup.inputs.http.serving import Server  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(f"serve needs {error.name}", hint=how_to_install("jobs-backup", extra="server")) from error
    server = Server(own)
    with stopping() as stop:
        with monitored_session(settings, stop) as session:
            summary = Summary(session, "events")
            echo_message(f"listening on {server.url}")
            server.serve(session, stop)
            summary.count = session.spool.recorded.events[Kind.RAW]
            with progress(session, [], "events") as shown:
                summary.finish(stop, shown)
        code = summary.show(as_json=as_json, interrupted=False)
    exit_process(code, session)
