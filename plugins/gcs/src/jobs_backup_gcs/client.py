"""Builds what talks to Google Cloud Storage: one for each process, without retries, without anything that was not asked for."""

from __future__ import annotations

import importlib
import logging
import os
import re
import threading
import warnings
from typing import Any, Final, NamedTuple

from jobs_backup_gcs.settings import GcsSettings

_SCOPES: Final = ("https://www.googleapis.com/auth/devstorage.read_write",)
_POOL: Final = 64
"""Connections that are kept open for further requests; more threads than these open their own."""


class _HideUploads(logging.Filter):
    """The HTTP library logs URLs, and in that of a session stands its id, a secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "upload_id=" in text:
            record.msg, record.args = re.sub(r"(?<=upload_id=)[^&\s\"]+", "****", text), None
        return True


_HIDE_UPLOADS: Final = _HideUploads()


class Gcs(NamedTuple):
    """The SDK's bucket, and the session that it uses: for the requests of resumable uploads, which the SDK has no methods for.

    Google's libraries have no types.
    """

    bucket: Any
    session: Any
    credentials: Any


class Clients:
    """Safe to use from many threads; a fork gets its own."""

    def __init__(self, settings: GcsSettings) -> None:
        self._settings = settings
        self._of_process = _OfProcess(settings)

    def get(self) -> Gcs:
        """What this process talks with."""
        if self._of_process.pid != os.getpid():
            # The parent's sockets are not ours to use or to close, and its lock may be held by a thread that is not here.
            self._of_process = _OfProcess(self._settings)
        return self._of_process.get()


class _OfProcess:
    def __init__(self, settings: GcsSettings) -> None:
        self.pid = os.getpid()
        self._settings = settings
        self._lock = threading.Lock()
        self._made: Gcs | None = None

    def get(self) -> Gcs:
        if self._made is not None:
            return self._made
        with self._lock:
            if self._made is None:
                self._made = _make(self._settings)
            return self._made


def _make(settings: GcsSettings) -> Gcs:
    # The SDK is imported when it is first used.
    requests: Any = importlib.import_module("google.auth.transport.requests")
    storage: Any = importlib.import_module("google.cloud.storage")
    adapters: Any = importlib.import_module("requests.adapters")
    for name in ("urllib3.connection", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_HIDE_UPLOADS)
    credentials = _credentials(settings)
    # A refused token must not be answered by sending the request again: its body is half read by then.
    session = requests.AuthorizedSession(credentials, refresh_status_codes=(), max_refresh_attempts=0)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapters.HTTPAdapter(pool_connections=_POOL, pool_maxsize=_POOL, max_retries=0))
    client = storage.Client(project="", credentials=credentials, _http=session, client_options={"api_endpoint": settings.base})
    # For tracing, the SDK looks up the bucket (storage.buckets.get) in the background: a right that nobody has granted.
    client._bucket_metadata_cache = None  # noqa: SLF001
    return Gcs(client.bucket(settings.bucket), session, credentials)


def _credentials(settings: GcsSettings) -> Any:
    auth: Any = importlib.import_module("google.auth")
    if settings.emulator is not None:
        return importlib.import_module("google.auth.credentials").AnonymousCredentials()
    if settings.credentials is not None:
        with warnings.catch_warnings():
            # It warns of files that somebody else has made; this one is the operator's own, of whatever kind.
            warnings.simplefilter("ignore", DeprecationWarning)
            return auth.load_credentials_from_file(str(settings.credentials), scopes=_SCOPES)[0]
    return auth.default(scopes=_SCOPES)[0]
