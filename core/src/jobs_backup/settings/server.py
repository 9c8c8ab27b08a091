"""The settings of `jobs-backup serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec

from jobs_backup.settings import Settings, Variable
from jobs_backup.settings.base import Count
from jobs_backup.settings.values import Duration, Secret, Size


class ServerSettings(Settings, frozen=True, kw_only=True):
    """Where `serve` listens, whom it admits, and the limits of requests."""

    host: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_SERVER_HOST",
            "Address to listen on. `localhost`: both loopbacks; `::`: all of IPv6 and IPv4; `0.0.0.0`: all of IPv4.",
        ),
    ] = "localhost"
    port: Annotated[
        int, msgspec.Meta(ge=0, le=65_535), Variable("JOBS_BACKUP_SERVER_PORT", "Port to listen on. 0: any free port.")
    ] = 8080
    tokens: Annotated[
        Secret | None,
        Variable(
            "JOBS_BACKUP_SERVER_TOKEN",
            "Bearer tokens (`Authorization: Bearer`), separated by commas; several allow rotation. Each may record,"
            " acknowledge, report failures and read the status. At least 16 characters each.",
        ),
    ] = None
    write_keys: Annotated[
        Secret | None,
        Variable(
            "JOBS_BACKUP_SERVER_WRITE_KEYS",
            "Write keys (HTTP Basic user name, as RudderStack's SDKs send them), each limited to recording events of its"
            " source. Separated by commas, each `WRITE_KEY=SOURCE_ID`, or `WRITE_KEY` if that is also the source id.",
        ),
    ] = None
    cors_origins: Annotated[
        str | None,
        Variable(
            "JOBS_BACKUP_SERVER_CORS_ORIGINS",
            "Origins whose web pages may call this server from a browser (CORS), separated by commas. `*`: every site. Default:"
            " none.",
            example="https://www.example.com",
        ),
    ] = None
    max_body: Annotated[
        Size,
        Variable(
            "JOBS_BACKUP_SERVER_MAX_BODY",
            "Maximum size of a request's body, both compressed and decompressed.",
            minimum=1,
            maximum=1 << 28,
        ),
    ] = Size.parse("16MiB")
    max_events: Annotated[Count, Variable("JOBS_BACKUP_SERVER_MAX_EVENTS", "Maximum events, job ids or failures in a request.")] = (
        10_000
    )
    max_pending: Annotated[
        Size,
        Variable(
            "JOBS_BACKUP_SERVER_MAX_PENDING",
            "Maximum memory for requests in flight: bodies, parsed data and responses. Requests beyond it get status 503 and"
            " should retry.",
            minimum=1,
        ),
    ] = Size.parse("128MiB")
    max_connections: Annotated[Count, Variable("JOBS_BACKUP_SERVER_MAX_CONNECTIONS", "Maximum open connections.")] = 1000
    rate: Annotated[
        Count | None,
        Variable(
            "JOBS_BACKUP_SERVER_RATE",
            "Maximum events per second, on average, for each token and each write key; bursts may be ten times as large."
            " Requests beyond it get status 429 and should retry. Default: no limit.",
            example="1000",
        ),
    ] = None
    read_timeout: Annotated[
        Duration,
        Variable("JOBS_BACKUP_SERVER_READ_TIMEOUT", "Maximum time for a request's head to arrive, and for its body.", minimum=0.1),
    ] = Duration(30)
    tls_certificate: Annotated[
        Path | None,
        Variable(
            "JOBS_BACKUP_SERVER_TLS_CERTIFICATE",
            "File with the server's certificate and its chain (PEM). Enables TLS.",
            example="/tls/tls.crt",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        Variable("JOBS_BACKUP_SERVER_TLS_KEY", "File with the certificate's private key (PEM).", example="/tls/tls.key"),
    ] = None
