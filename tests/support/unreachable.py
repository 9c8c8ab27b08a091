"""Settings of each provider with a store where nobody answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from buckets import file_environment

_NOBODY: Final = "http://127.0.0.1:9"
BASES: Final[Mapping[str, Mapping[str, str]]] = {
    "FILE": {},
    "S3": {
        "AWS_ENDPOINT_URL_S3": _NOBODY,
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    },
    "MINIO": {"MINIO_ENDPOINT": "127.0.0.1:9", "MINIO_ACCESS_KEY_ID": "minio", "MINIO_SECRET_ACCESS_KEY": "secret"},
    "DIGITAL_OCEAN_SPACES": {
        "DO_SPACES_ENDPOINT": _NOBODY,
        "DO_SPACES_ACCESS_KEY_ID": "spaces",
        "DO_SPACES_SECRET_ACCESS_KEY": "secret",
    },
    "GCS": {"STORAGE_EMULATOR_HOST": _NOBODY},
    "AZURE_BLOB": {
        "AZURE_STORAGE_ACCOUNT": "account1",
        "AZURE_STORAGE_BLOB_ENDPOINT": _NOBODY,
        "AZURE_STORAGE_SAS_TOKEN": "sv=2026-02-06&sr=c&sp=w&se=2030-01-01T00%3A00Z&sig=c2ln",
    },
}


def environment(directory: Path, provider: str, **more: str) -> dict[str, str]:
    """Variables that work, as far as nobody answers at the store."""
    base = file_environment(directory)
    if provider != "FILE":
        base |= {"JOBS_BACKUP_STORAGE_PROVIDER": provider, "JOBS_BACKUP_BUCKET": "my-events", **BASES[provider]}
    return {
        **base,
        "JOBS_BACKUP_RETRY_ATTEMPTS": "1",
        "JOBS_BACKUP_SHUTDOWN_GRACE": "100ms",
        "JOBS_BACKUP_REQUEST_TIMEOUT": "1s",
        "HOME": str(directory),
        **more,
    }
