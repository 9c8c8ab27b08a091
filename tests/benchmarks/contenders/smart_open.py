"""smart_open, as its documentation shows: a file object for each object. `isal`: the compressor put before it, instead of `.gz`."""

from __future__ import annotations

from typing import Any

import boto3.session
import smart_open
import smart_open.s3
from benchmarks.contenders.common import Job, Measured, Zipped, encoded_lines, main, write_objects


def work(job: Job, measured: Measured) -> None:
    encoded = encoded_lines(job)
    with measured.section():
        client = boto3.session.Session().client("s3", **job.client)

        def open_object(key: str) -> Any:
            url, parameters = f"s3://{job.bucket}/{key}", {"client": client}
            if job.variant == "isal":
                return Zipped(smart_open.open(url, "wb", compression="disable", transport_params=parameters), "isal")
            return smart_open.open(url, "wb", transport_params=parameters)

        write_objects(job, encoded, open_object)


if __name__ == "__main__":
    main(work)
