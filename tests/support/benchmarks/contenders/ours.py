"""jobs-backup, durable, with its default settings.

`variant` "one file": the spool's files may grow to any size. Otherwise a batch ends with its file, and an object of
incompressible events never exceeds 512 MiB, whatever the settings say.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import boto3.session
from benchmarks.contenders.common import REGION, Job, Measured, main

import jobs_backup_s3.provider
from jobs_backup import Backup, Event
from jobs_backup.format.lines import Payload
from jobs_backup.spool.sqlite import writer

# The others import their SDK before the measurement; this one would import it at its first upload.
_IMPORTED = (boto3.session, jobs_backup_s3.provider)


def environment(job: Job) -> dict[str, str]:
    """Variables for a Backup."""
    s3 = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "S3",
        "JOBS_BACKUP_BUCKET": job.bucket,
        "JOBS_BACKUP_SPOOL_DIR": f"{job.directory}/spool",
        "AWS_ENDPOINT_URL_S3": job.endpoint,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": job.access_key,
        "AWS_SECRET_ACCESS_KEY": job.secret_key,
    }
    return s3 | ({"JOBS_BACKUP_S3_CA_BUNDLE": job.certificate} if job.certificate else {}) | job.settings


def local_environment(job: Job) -> dict[str, str]:
    """Variables for a directory as the bucket, where no store is measured."""
    bucket = Path(job.directory) / "bucket"
    bucket.mkdir(parents=True, exist_ok=True)
    file = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
        "JOBS_BACKUP_BUCKET": str(bucket),
        **({} if "JOBS_BACKUP_SPOOL" in job.settings else {"JOBS_BACKUP_SPOOL_DIR": f"{job.directory}/spool"}),
    }
    return file | job.settings


def work(job: Job, measured: Measured) -> None:
    if job.variant == "one file":
        assert isinstance(writer._FILE_BYTES, int)
        setattr(writer, "_FILE_BYTES", 1 << 40)  # noqa: B010 - it is Final for everyone else
    events: Iterator[Payload] = job.raw_lines() if job.kind == "bytes" else job.dicts()
    with measured.section(), Backup.from_env(environment(job)) as backup:
        if job.sources == 1:
            backup.record_many(events, source_id=job.source_ids[0])
        else:
            sources = itertools.cycle(job.source_ids)
            backup.record_many(Event(payload=event, source_id=source) for event, source in zip(events, sources, strict=False))
        backup.flush()


if __name__ == "__main__":
    main(work)
