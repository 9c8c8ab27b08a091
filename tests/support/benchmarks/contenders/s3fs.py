"""s3fs, as its documentation shows: a file object per object, behind a compressor: gzip 6, gzip 1, or isal."""

from __future__ import annotations

from typing import Any

import s3fs
from benchmarks.contenders.common import REGION, Job, Measured, Zipped, encoded_lines, main, write_objects


def filesystem(job: Job) -> Any:
    client = {"endpoint_url": job.endpoint, "region_name": REGION} | ({"verify": job.certificate} if job.certificate else {})
    return s3fs.S3FileSystem(key=job.access_key, secret=job.secret_key, client_kwargs=client)


def work(job: Job, measured: Measured) -> None:
    encoded = encoded_lines(job)
    with measured.section():
        files = filesystem(job)
        write_objects(job, encoded, lambda key: Zipped(files.open(f"{job.bucket}/{key}", "wb"), job.variant))


if __name__ == "__main__":
    main(work)
