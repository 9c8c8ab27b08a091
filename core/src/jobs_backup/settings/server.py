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
        int, msgspec.Meta(ge=0, le=65_535), Variable("JOBS_BACKUP_SERVER_PORT", "The port that is listened on. 0: any free one.")
    ] = 8080
    tokens: Annotated[
        Secret | None,
        Variable(
            "JOBS_BACKUP_SERVER_TOKEN",
            "Who sends `Authorization: Bearer` with this token may record, acknowledge, report failures and ask for the status."
            " Several are separated by commas, so that one can be replaced by another. At least 16 characters each.",
        ),
    ] = None
    write_keys: Annotated[
        Secret | None,
        Variable(
            "JOBS_BACKUP_SERVER_WRITE_KEYS",
            "Who authenticates with one of these (HTTP Basic, as the user's name, as RudderStack's SDKs do) may record events of"
            " its source: separated by commas, each a `WRITE_KEY`, which is the source's id, too, or `WRITE_KEY=SOURCE_ID`.",
        ),
    ] = None
    cors_origins: Annotated[
        str | None,
        Variable(
            "JOBS_BACKUP_SERVER_CORS_ORIGINS",
            "Origins whose web pages may call this server from a browser (CORS), separated by commas; `*`: every site."
            " Default: none.",
            example="https://www.example.com",
        ),
    ] = None
    max_body: Annotated[
        Size,
        Variable(
            "JOBS_BACKUP_SERVER_MAX_BODY", "Bytes of a request's body, before and after it is unpacked.", minimum=1, maximum=1 << 28
        ),
    ] = Size.parse("16MiB")
    max_events: Annotated[
        Count, Variable("JOBS_BACKUP_SERVER_MAX_EVENTS", "So many events, job ids or failures may a request have.")
    ] = 10_000
    max_pending: Annotated[
        Size,
        Variable(
            "JOBS_BACKUP_SERVER_MAX_PENDING",
            "Memory for requests in flight: bodies, what is made of them, and answers. Requests beyond it are told to come again"
            " (503).",
            minimum=1,
        ),
    ] = Size.parse("128MiB")
    max_connections: Annotated[
        Count, Variable("JOBS_BACKUP_SERVER_MAX_CONNECTIONS", "So many connections may be open at once.")
    ] = 1000
    rate: Annotated[
        Count | None,
        Variable(
            "JOBS_BACKUP_SERVER_RATE",
            "So many events a second may each token and each write key record in the long run, and ten times as many at once."
            " Beyond it, they are told to come again (429). Default: no limit.",
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
            "File with the server's certificate and its chain, as PEM: then it speaks TLS.",
            example="/tls/tls.crt",
        ),
    ] = None
    tls_key: Annotated[
        Path | None, Variable("JOBS_BACKUP_SERVER_TLS_KEY", "File with the certificate's key, as PEM.", example="/tls/tls.key")
    ] = None
