"""Quix Streams: the sink's own object and batches, called as the framework does, but without Kafka. Dicts only."""

from __future__ import annotations

import itertools
import time

from benchmarks.contenders.common import REGION, Job, Measured, main
from quixstreams.sinks import SinkBatch
from quixstreams.sinks.community.file.formats import JSONFormat
from quixstreams.sinks.community.file.s3 import S3FileSink


def work(job: Job, measured: Measured) -> None:
    events = job.dicts()
    verify = {"verify": job.certificate} if job.certificate else {}
    with measured.section():
        sink = S3FileSink(
            bucket=job.bucket,
            aws_access_key_id=job.access_key,
            aws_secret_access_key=job.secret_key,
            region_name=REGION,
            endpoint_url=job.endpoint,
            format=JSONFormat(compress=True),
            **verify,
        )
        sink.setup()
        offset = 0
        while offset < job.events:
            batches = [SinkBatch(topic=source, partition=0) for source in job.source_ids]
            some = itertools.islice(events, job.sources * job.events_per_object)
            for event, batch in zip(some, itertools.cycle(batches), strict=False):
                batch.append(value=event, key=b"", timestamp=time.time_ns() // 1_000_000, headers=[], offset=offset)
                offset += 1
            for batch in batches:
                if not batch.empty():
                    sink.write(batch)


if __name__ == "__main__":
    main(work)
