"""Settings of each provider with a store at a given URL, or with an unreachable store."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from buckets import file_environment


def variables(provider: str, url: str) -> dict[str, str]:
    """Variables of a provider with its store at this URL."""
    of_provider: dict[str, dict[str, str]] = {
        "FILE": {},
        "S3": {
            "AWS_ENDPOINT_URL_S3": url, "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "a-secret-key",
            "AWS_REGION": "us-east-1",
        },
        "MINIO": {"MINIO_ENDPOINT": url, "MINIO_ACCESS_KEY_ID": "minio", "MINIO_SECRET_ACCESS_KEY": "a-secret-key"},
        "DIGITAL_OCEAN_SPACES": {
            "DO_SPACES_ENDPOINT": url, "DO_SPACES_ACCESS_KEY_ID": "spaces", "DO_SPACES_SECRET_ACCESS_KEY": "a-secret-key",
        },
        "GCS": {"STORAGE_EMULATOR_HOST": url},
        "AZURE_BLOB": {
            "AZURE_STORAGE_ACCOUNT": "account1", "AZURE_STORAGE_BLOB_ENDPOINT": url,
            "AZURE_STORAGE_SAS_TOKEN": "sv=2026-02-06&sr=c&sp=w&se=2030-01-01T00%3A00Z&sig=c2ln",
        },
    }  # fmt: skip
    return {"JOBS_BACKUP_BUCKET": "my-events", **of_provider[provider]}


PROVIDERS: Final = ("FILE", "S3", "MINIO", "DIGITAL_OCEAN_SPACES", "GCS", "AZURE_BLOB")


def environment(directory: Path, provider: str, **more: str) -> dict[str, str]:
    """Valid variables for an unreachable store."""
    base = file_environment(directory)
    if provider != "FILE":
        base |= {"JOBS_BACKUP_STORAGE_PROVIDER": provider, **variables(provider, "http://127.0.0.1:9")}
    return {
        **base,
        "JOBS_BACKUP_RETRY_ATTEMPTS": "1",
        "JOBS_BACKUP_SHUTDOWN_GRACE": "100ms",
        "JOBS_BACKUP_REQUEST_TIMEOUT": "1s",
        "HOME": str(directory),
        **more,
    }
