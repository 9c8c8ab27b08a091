"""`jobs-backup serve`: an HTTP server for applications in any language."""

from __future__ import annotations

import os

import click
import msgspec

from jobs_backup.cli.options import echo_message, one_option, with_environment
from jobs_backup.cli.process import bound_memory, exit_process, monitored_session, read_settings, stopping
from jobs_backup.cli.progress import progress
from jobs_backup.cli.summary import Summary
from jobs_backup.errors import ConfigurationError
from jobs_backup.model import Kind
from jobs_backup.settings.server import ServerSettings
from jobs_backup.util.installing import how_to_install


@click.command()
@one_option("--host", help="Address to listen on.  [default: JOBS_BACKUP_SERVER_HOST, or localhost]")
@one_option("--port", type=click.IntRange(0, 65_535), help="Port to listen on.  [default: JOBS_BACKUP_SERVER_PORT, or 8080]")
@one_option(
    "--metrics-port",
    type=click.IntRange(0, 65_535),
    help="Port for /metrics, /healthz and /readyz, without authentication.  [default: JOBS_BACKUP_METRICS_PORT]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on exit.")
@with_environment
def serve(host: str | None, port: int | None, metrics_port: int | None, as_json: bool) -> None:
    """Record events sent over HTTP, and upload them to the bucket.

    POST JSON or NDJSON to /v1/events, job ids to /v1/delivered, failures to /v1/failures. RudderStack's SDKs use /v1/batch and its
    siblings. A 200 response means that the data is durable. /openapi.json describes the API.

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
        from jobs_backup.inputs.http.serving import Server  # an extra
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
