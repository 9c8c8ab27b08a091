"""smart_open, as its documentation shows: a file object per object, gzip by file name. `isal`: that compressor instead."""

from __future__ import annotations

from typing import Any

import boto3.session
import smart_open
import smart_open.s3
from benchmarks.contenders.common import Job, Measured, encoded_lines, main, write_objects
from isal import igzip


def work(job: Job, measured: Measured) -> None:
    encoded = encoded_lines(job)
    if job.variant == "isal":
        open_isal: Any = igzip.IGzipFile
        smart_open.register_compressor(".gz", lambda file, mode: open_isal(fileobj=file, mode=mode, compresslevel=1))
    with measured.section():
        client = boto3.session.Session().client("s3", **job.client)

        def open_object(key: str) -> Any:
            return smart_open.open(f"s3://{job.bucket}/{key}", "wb", transport_params={"client": client})

        write_objects(job, encoded, open_object)


if __name__ == "__main__":
    main(work)
