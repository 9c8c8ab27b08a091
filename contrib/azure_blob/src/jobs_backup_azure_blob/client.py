"""Builds the client for Azure Blob Storage, one per process. It never retries, and sends only the requests asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from jobs_backup.errors import ConfigurationError
from jobs_backup.sdk import hide_in_logs
from jobs_backup_azure_blob.errors import token_refused, unreadable_token, unusable_identity
from jobs_backup_azure_blob.settings import AzureBlobSettings

_API_VERSION: Final = "2026-02-06"
"""Version of the store's API: the first that can list from a key. Fixed, so that a newer SDK does not require more."""
_SCOPE: Final = "https://storage.azure.com/.default"
_POOL: Final = 64
"""Maximum connections kept open for reuse. Threads beyond this number open their own."""


class Azure(NamedTuple):
    """The SDK's container, and a function that adds a token to a request if one is needed."""

    container: Any
    authorize: Callable[[Any], None]


def connect(settings: AzureBlobSettings) -> Azure:
    """Create a client. Each process needs its own."""
    # The SDK is imported when it is first used.
    blob: Any = importlib.import_module("azure.storage.blob")
    transport: Any = importlib.import_module("azure.core.pipeline.transport")
    credentials: Any = importlib.import_module("azure.core.credentials")
    requests: Any = importlib.import_module("requests")
    adapters: Any = importlib.import_module("requests.adapters")
    loggers = ("urllib3.connection", "urllib3.connectionpool", "azure.storage.blob._shared.policies")
    hide_in_logs(r"(?<=sig=|kid=)[^&\s\"']+", *loggers)  # a SAS's signature; block ids, which contain the upload's id
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"  # otherwise a proxy may compress what is read
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapters.HTTPAdapter(pool_connections=_POOL, pool_maxsize=_POOL, max_retries=0))
    connection = settings.opened()
    credential: Any = None
    authorize: Callable[[Any], None] = _nothing
    if connection.key is not None:
        credential = credentials.AzureNamedKeyCredential(connection.account, connection.key.reveal())
    elif connection.sas is not None:
        credential = credentials.AzureSasCredential(connection.sas.reveal())
    else:
        authorize = _bearer(settings)
    container = blob.ContainerClient(
        connection.base,
        settings.bucket,
        credential=credential,
        api_version=_API_VERSION,
        transport=transport.RequestsTransport(session=session, session_owner=False),
        retry_total=0,
        permit_redirects=False,
        max_single_get_size=1 << 62,  # one request per read, whatever its size
    )
    return Azure(container, authorize)


def _nothing(_: Any) -> None:
    """Add nothing: the SDK signs the request."""


def _bearer(settings: AzureBlobSettings) -> Callable[[Any], None]:
    """Return a function that adds a token to each request. The SDK could too, but resends a request whose token was refused,
    with a body that is half read by then."""
    connection = settings.connection()
    if not connection.base.startswith("https:"):
        raise ConfigurationError(
            f"cannot send a token to {connection.base}, which is not https",
            hint="set AZURE_STORAGE_ACCESS_KEY or AZURE_STORAGE_SAS_TOKEN, or an https endpoint",
        )
    try:
        identity: Any = importlib.import_module("azure.identity")
    except ImportError:
        raise ConfigurationError(
            "no key, SAS or connection string is set, and azure-identity, which finds other credentials, is not installed",
            hint="pip install azure-identity, or set AZURE_STORAGE_SAS_TOKEN",
        ) from None
    if found := unreadable_token():
        raise found  # before the SDK's log repeats the variable, which may hold the token itself by mistake
    try:
        credential = identity.DefaultAzureCredential()
    except Exception as error:  # noqa: BLE001 - nothing is swallowed
        raise unusable_identity(error) from None

    def authorize(request: Any) -> None:
        try:
            token = credential.get_token(_SCOPE).token
        except Exception as error:  # noqa: BLE001 - nothing is swallowed
            raise token_refused(error) from None
        request.http_request.headers["Authorization"] = f"Bearer {token}"

    return authorize
