"""Shared by the tests of jobs-backup-s3: a provider with its hooks, and a scripted store's responses."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

from buckets import FAST_RETRY

from jobs_backup.errors import JobsBackupError
from jobs_backup.store import providers
from jobs_backup.testing.driver import Hooks
from jobs_backup.testing.fault_proxy import Answer

KEY_ID = "AKIACANARYCANARY0001"
SECRET = "canary/secret+of=the-access-key"
TOKEN = "canary+token/of=temporary-keys=="
UPLOAD_ID = "canary/upload+id=="


def open_s3(environment: Mapping[str, str], **more: str) -> Hooks:
    """The provider for these variables."""
    environment = {**environment, **more}
    return Hooks(providers.load(environment.get("JOBS_BACKUP_STORAGE_PROVIDER", "S3"), environment))


def scripted(url: str, **more: str) -> Hooks:
    """The provider S3 on a scripted store, with canaries as credentials."""
    environment = {
        "JOBS_BACKUP_BUCKET": "events",
        "JOBS_BACKUP_PREFIX": "/prod/",
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
    }
    return open_s3(environment, **more)


def refusal(status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None, **fields: str) -> Answer:
    """An error in S3's format."""
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in {"Code": code, "Message": message, **fields}.items())
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inside}</Error>'.encode() if code else b""
    return Answer(status, body, {"Content-Type": "application/xml", **(headers or {})})


CREATED = Answer(
    200,
    f"<InitiateMultipartUploadResult><Bucket>events</Bucket><Key>key</Key><UploadId>{UPLOAD_ID}</UploadId>"
    "</InitiateMultipartUploadResult>".encode(),
)
STORED = Answer(200, headers={"ETag": '"1"'})


def everything_said(error: JobsBackupError) -> str:
    """All visible text of an error."""
    return "\n".join([str(error), repr(error), error.one_line(), *traceback.format_exception(error)])


def store_environment(directory: Path, url: str, **more: str) -> dict[str, str]:
    """Variables for a scripted store, with canaries as credentials. Every object is uploaded in parts."""
    return {
        "JOBS_BACKUP_STORAGE_PROVIDER": "S3",
        "JOBS_BACKUP_BUCKET": "events",
        "JOBS_BACKUP_SPOOL_DIR": str(directory / "spool"),
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
        "JOBS_BACKUP_MULTIPART_THRESHOLD": "1",
        **FAST_RETRY,
        "JOBS_BACKUP_RETRY_ATTEMPTS": "2",
        **more,
    }
