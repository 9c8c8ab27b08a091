"""Builds boto3 clients, one per process, region and timeout. They never retry, and send only the requests asked for."""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from jobs_backup.sdk import PerProcess, hide_in_logs, unreadable, unusable
from jobs_backup_s3.early import close_after_early_answers
from jobs_backup_s3.errors import region_named, response_of
from jobs_backup_s3.numbers import Parsers
from jobs_backup_s3.origin import Origin
from jobs_backup_s3.settings import Connection

if TYPE_CHECKING:
    import boto3.session
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials, DeferredRefreshableCredentials
    from mypy_boto3_s3 import S3Client


_POOL: Final = 64
"""Maximum connections kept open for reuse. Threads beyond this number open their own."""
_NAMES: Final = ("uploadId", "x-amz-security-token", "SecretAccessKey", "SessionToken", "Token", "Signature")
_BEFORE: Final = ("=", ":", ":\n", ">", "': '", "': b'", '":"', '": "', '" : "')
_IN_LOGS: Final = f"(?i:{'|'.join(f'(?<={name}{before})' for name in _NAMES for before in _BEFORE)})[^&\\s\"'<>,]+"
"""Secrets in URLs, headers, XML, JSON and Python's notation."""


class Clients:
    """The clients of one bucket. Thread-safe; a forked process gets its own.

    Attributes:
        region: the bucket's region, as far as it is known.
    """

    def __init__(self, connection: Connection) -> None:
        self.region = connection.region
        self._connection = connection
        self._origin = Origin(is_marked=connection.is_aws)
        self._sessions = PerProcess(functools.partial(_session, connection))
        self._clients = PerProcess(self._make)

    def get(self, region: str, timeout: float) -> S3Client:
        """Return a client for the region. `timeout` (seconds) limits connecting and each wait for the store."""
        return self._clients.get(region, timeout)

    def _make(self, region: str, timeout: float) -> S3Client:
        client = _client(self._sessions.get(timeout), self._connection, region, timeout)
        client.meta.events.register("after-call.s3", self._origin.check)
        return client

    def renew(self, refused: S3Client | None) -> None:
        """Make the next request read the credentials again if they can change. `refused` is the client whose credentials were
        refused; None if there was no client.

        The SDK looks for credentials when a client is made, and never rereads a file.
        """
        if (self._connection.keys is None or self._connection.role_arn) and self._clients.renew(refused):
            self._sessions.renew()

    def follow(self, error: Exception, region: str) -> bool:
        """Whether to resend the request because `error` says that the bucket is not in `region`."""
        response = response_of(error)
        named = region_named(response) if response else None
        if named is None or named == region or self._connection.region_is_explicit:
            return False
        self.region = named
        return True


def _client(session: Any, connection: Connection, region: str, timeout: float) -> S3Client:
    from botocore.config import Config  # the SDK is imported when it is first used
    from botocore.exceptions import NoCredentialsError

    if connection.keys is None and os.environ.get("AWS_ROLE_ARN"):
        # Check before the SDK does: its log repeats the variable, which may hold the token itself by mistake.
        token = {"AWS_WEB_IDENTITY_TOKEN_FILE": os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE", "")}
        if found := unreadable("no credentials found", files=token) or unusable("no credentials found", token):
            raise found
    keys = None if connection.role_arn else connection.keys
    if keys is None and session.get_credentials() is None:
        raise NoCredentialsError  # here, because a client made without credentials never gets any
    s3: Any = {"addressing_style": "path" if connection.path_style else "auto", "us_east_1_regional_endpoint": "regional"}
    if connection.checksum != "none" and (connection.endpoint or "https:").startswith("https:"):
        # TLS and the checksum protect the body. Signing the body too would read it once more.
        s3["payload_signing_enabled"] = False
    # Directory buckets use sessions with their own signatures. The SDK handles them if no signature version is set.
    signature = None if connection.is_directory else "s3v4"
    client: S3Client = session.client(
        "s3",
        region_name=region,
        endpoint_url=connection.endpoint,
        verify=_verify(connection),
        config=Config(**_options(connection, timeout), signature_version=signature, s3=s3),
        aws_access_key_id=keys.access_key.reveal() if keys else None,
        aws_secret_access_key=keys.secret_key.reveal() if keys else None,
        aws_session_token=keys.session_token.reveal() if keys and keys.session_token else None,
    )
    _hide_secrets()  # also in what the SDK has imported since
    client.meta.events.register("before-call.s3", _stay)
    close_after_early_answers(client)
    if connection.checksum != "crc32c":
        client.meta.events.register("before-sign.s3.DeleteObjects", _use_content_md5)
    return client


def _hide_secrets() -> None:
    """Keep upload ids, session tokens and the credentials of roles out of debug logs, where the SDK writes whole messages."""
    sdk = [name for name in logging.root.manager.loggerDict if name.startswith("botocore.")]
    hide_in_logs(_IN_LOGS, "urllib3.connection", "urllib3.connectionpool", *sdk)


def _options(connection: Connection, timeout: float) -> dict[str, Any]:
    proxy = connection.proxy.reveal() if connection.proxy else None
    return {
        "connect_timeout": timeout,
        "read_timeout": timeout,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": _POOL,
        "tcp_keepalive": True,
        "proxies": {"http": proxy, "https": proxy} if proxy else None,
        # The provider sets every checksum itself: stores other than AWS refuse those that the SDK adds by default.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        # Endpoints are our own settings, and part of the location that the spool records.
        "ignore_configured_endpoint_urls": True,
    }


def _verify(connection: Connection) -> bool | str | None:
    if not connection.verify_tls:
        return False
    return str(connection.ca_bundle) if connection.ca_bundle else None


def _session(connection: Connection, timeout: float) -> boto3.session.Session:
    import boto3.session
    import botocore.session

    _hide_secrets()
    session = botocore.session.Session()
    # Times are never used, and a time that the SDK cannot parse would fail the whole listing.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    session.register_component("response_parser_factory", Parsers(session.get_component("response_parser_factory")))
    if connection.role_arn:
        session.register_component("credential_provider", _RoleCredentials(connection, connection.role_arn, timeout))
    return boto3.session.Session(botocore_session=session)


class _RoleCredentials:
    """Replaces the SDK's chain with a role's credentials, fetched at the first request and renewed before they expire."""

    def __init__(self, connection: Connection, role_arn: str, timeout: float) -> None:
        self._connection = connection
        self._role_arn = role_arn
        self._timeout = timeout

    def load_credentials(self) -> DeferredRefreshableCredentials:
        """Called by the SDK's session."""
        import botocore.session
        from botocore.config import Config
        from botocore.credentials import (
            AssumeRoleCredentialFetcher,
            Credentials,
            DeferredRefreshableCredentials,
        )
        from botocore.exceptions import NoCredentialsError

        session = botocore.session.Session()
        if keys := self._connection.keys:
            token = keys.session_token.reveal() if keys.session_token else None
            own: Credentials | None = Credentials(keys.access_key.reveal(), keys.secret_key.reveal(), token)
        else:
            own = session.get_credentials()
        if own is None:
            raise NoCredentialsError
        create = functools.partial(
            session.create_client,
            region_name=self._connection.region,
            endpoint_url=self._connection.sts_endpoint,
            verify=_verify(self._connection),
            config=Config(**_options(self._connection, self._timeout)),
        )
        arguments = {"RoleSessionName": "jobs-backup"}
        if self._connection.external_id:
            arguments["ExternalId"] = self._connection.external_id
        fetcher = AssumeRoleCredentialFetcher(create, own, self._role_arn, extra_args=arguments)
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")


def _stay(params: dict[str, Any], **_: object) -> None:
    """Disable the SDK's redirector, which would look up the bucket's region with HeadBucket."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _use_content_md5(request: AWSRequest, **_: object) -> None:
    """Replace the SDK's checksum with Content-MD5: bulk deletes must have a checksum, and all stores know this one."""
    for name in [name for name in request.headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum-"))]:
        del request.headers[name]
    data = request.data if isinstance(request.data, bytes) else str(request.data).encode()
    request.headers["Content-MD5"] = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
