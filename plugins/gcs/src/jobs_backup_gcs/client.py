"""Builds the client for Google Cloud Storage, one per process. It never retries, and sends only the requests asked for."""

from __future__ import annotations

import importlib
import re
from typing import Any, Final, NamedTuple

from jobs_backup.errors import Unauthenticated
from jobs_backup.sdk import hide_in_logs, unreadable, unusable
from jobs_backup_gcs.settings import VARIABLE, GcsSettings, read_credentials, token_files

_SCOPES: Final = ("https://www.googleapis.com/auth/devstorage.read_write",)
_POOL: Final = 64
"""Maximum connections kept open for reuse. Threads beyond this number open their own."""


_KINDS: Final = {
    "service_account": ("google.oauth2.service_account", "from_service_account_info"),
    "external_account": ("google.auth.identity_pool", "from_info"),
    "aws": ("google.auth.aws", "from_info"),
    "pluggable": ("google.auth.pluggable", "from_info"),
    "impersonated_service_account": ("google.auth.impersonated_credentials", "from_impersonated_service_account_info"),
    "authorized_user": ("google.oauth2.credentials", "from_authorized_user_info"),
    "external_account_authorized_user": ("google.auth.external_account_authorized_user", "from_info"),
}
"""Kind of credentials -> module and function that create them from a file's content. google-auth's own loader also asks the
resource manager for the project, which is not needed and often not permitted."""


class Gcs(NamedTuple):
    """The SDK's bucket and its session, which sends requests that the SDK has no methods for, such as those of resumable uploads.

    Google's libraries have no types.
    """

    bucket: Any
    session: Any


def connect(settings: GcsSettings) -> Gcs:
    """Create a client. Each process needs its own."""
    # The SDK is imported when it is first used.
    requests: Any = importlib.import_module("google.auth.transport.requests")
    storage: Any = importlib.import_module("google.cloud.storage")
    adapters: Any = importlib.import_module("requests.adapters")
    hide_in_logs(r"(?<=upload_id=)[^&\s\"]+", "urllib3.connection", "urllib3.connectionpool")
    credentials = _credentials(settings)
    # Do not resend a request after a refused token: its body is half read by then.
    session = requests.AuthorizedSession(credentials, refresh_status_codes=(), max_refresh_attempts=0)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapters.HTTPAdapter(pool_connections=_POOL, pool_maxsize=_POOL, max_retries=0))
    session.max_redirects = 0  # such as to a network's login page
    client = storage.Client(project="", credentials=credentials, _http=session, client_options={"api_endpoint": settings.base})
    # For tracing, the SDK looks up the bucket in the background, which needs a permission that backups lack (storage.buckets.get).
    client._bucket_metadata_cache = None  # noqa: SLF001 - there is no option for it
    return Gcs(client.bucket(settings.bucket), session)


def _credentials(settings: GcsSettings) -> Any:
    if settings.emulator is not None:
        return importlib.import_module("google.auth.credentials").AnonymousCredentials()
    if settings.credentials is None:
        return importlib.import_module("google.auth").default(scopes=_SCOPES)[0]
    if found := unreadable("the credentials cannot be read", files=token_files(settings)) or unusable(
        "the credentials cannot be read", token_files(settings)
    ):
        raise found  # at startup this is a ConfigurationError: the file has changed since then
    credentials = read_credentials(settings.credentials)
    kind = credentials["type"]
    if kind == "external_account" and credentials.get("subject_token_type") == "urn:ietf:params:aws:token-type:aws4_request":
        kind = "aws"
    elif kind == "external_account" and "executable" in credentials.get("credential_source", {}):
        kind = "pluggable"
    module, constructor = _KINDS[kind]
    make = getattr(importlib.import_module(module).Credentials, constructor)
    try:
        # Credentials of a user who logged in by federation keep the scopes that they were created with.
        return make(credentials) if kind == "external_account_authorized_user" else make(credentials, scopes=_SCOPES)
    except Exception as error:  # noqa: BLE001 - any kind: its text may repeat the file's content
        missing = re.search(r"missing fields? [\w, ]+", str(error))
        why = missing[0].strip() if missing else "a field of it is missing or wrong"
        raise Unauthenticated(
            f"{VARIABLE}: {settings.credentials}: it is not usable as {credentials['type']}: {why}",
            hint=f"save the file again as Google's console or gcloud created it, or correct or unset {VARIABLE}",
        ) from None
