"""dlt: a pipeline into its filesystem destination, one resource per source, as gzip JSON lines. Dicts only."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import dlt
from benchmarks.contenders.common import REGION, Job, Measured, main


def work(job: Job, measured: Measured) -> None:
    os.environ |= {
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "RUNTIME__LOG_LEVEL": "ERROR",
        "DESTINATION__FILESYSTEM__BUCKET_URL": f"s3://{job.bucket}",
        "DESTINATION__FILESYSTEM__CREDENTIALS__AWS_ACCESS_KEY_ID": job.access_key,
        "DESTINATION__FILESYSTEM__CREDENTIALS__AWS_SECRET_ACCESS_KEY": job.secret_key,
        "DESTINATION__FILESYSTEM__CREDENTIALS__ENDPOINT_URL": job.endpoint,
        "DESTINATION__FILESYSTEM__CREDENTIALS__REGION_NAME": REGION,
        "DATA_WRITER__FILE_MAX_ITEMS": str(job.events_per_object),
        # Otherwise each object in the payload becomes a separate table.
        "SCHEMA__NAMING": "direct",
    }
    events = job.dicts()
    each = job.events // job.sources

    def resource(source: str) -> Any:
        def some() -> Iterator[dict[str, Any]]:
            yield from itertools.islice(events, each)

        return dlt.resource(some, name=source, max_table_nesting=0, write_disposition="append")

    with measured.section():
        pipeline = dlt.pipeline("benchmark", pipelines_dir=job.directory, destination="filesystem", dataset_name="events")
        pipeline.run([resource(source) for source in job.source_ids], loader_file_format="jsonl")


if __name__ == "__main__":
    main(work)
