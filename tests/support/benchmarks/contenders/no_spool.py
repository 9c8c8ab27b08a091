"""The upper limit: jobs-backup's lines and members without durability, held in memory and uploaded by bare boto3.

One thread makes lines, one compresses (isal releases the GIL), four upload.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, Final

import boto3.session
from benchmarks.contenders.common import Job, Measured, main
from botocore.config import Config
from isal import igzip

from jobs_backup.format import lines as encoding
from jobs_backup.format.lines import Payload

_MEMBER: Final = 1 << 20
_SENDING: Final = 4
_WAITING: Final = 16
"""Members that wait for compression."""


class _Object:
    """The lines of a source that will become an object."""

    def __init__(self, pipeline: _Pipeline, source: str) -> None:
        self._pipeline = pipeline
        self._source = source
        self._number = 0
        self._start()

    def _start(self) -> None:
        self.lines: list[bytes] = []
        self.bytes = 0
        self._members: list[Future[bytes]] = []

    def cut(self) -> None:
        """Compress the lines so far into a member."""
        if self.lines:
            self._members.append(self._pipeline.compress(self.lines))
            self.lines, self.bytes = [], 0

    def close(self) -> None:
        self.cut()
        if self._members:
            self._pipeline.send(f"{self._source}/{self._number}.json.gz", self._members)
            self._number += 1
            self._start()


class _Pipeline:
    def __init__(self, job: Job) -> None:
        # Over TLS, boto3's own checksum costs least. Over http it signs the body anyway and needs no extra checksum.
        checksum: Any = "when_supported" if job.certificate else "when_required"
        self._client = boto3.session.Session().client("s3", config=Config(request_checksum_calculation=checksum), **job.client)
        self._bucket = job.bucket
        self._compressor = ThreadPoolExecutor(1)
        self._sender = ThreadPoolExecutor(_SENDING)
        self._room = BoundedSemaphore(_WAITING)
        self._sent: list[Future[None]] = []

    def compress(self, lines: list[bytes]) -> Future[bytes]:
        self._room.acquire()
        return self._compressor.submit(self._compress, lines)

    def send(self, key: str, members: list[Future[bytes]]) -> None:
        self._sent.append(self._sender.submit(self._send, key, members))

    def finish(self) -> None:
        for sent in self._sent:
            sent.result()
        self._compressor.shutdown()
        self._sender.shutdown()
        self._client.close()

    def _compress(self, lines: list[bytes]) -> bytes:
        try:
            return igzip.compress(b"".join(lines), 1)
        finally:
            self._room.release()

    def _send(self, key: str, members: list[Future[bytes]]) -> None:
        body = b"".join(member.result() for member in members)
        self._client.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType="application/gzip")


def _one_source(job: Job, pipeline: _Pipeline, events: Iterable[Payload]) -> None:
    each = iter(events)
    to = _Object(pipeline, job.source_ids[0])
    for _ in range(0, job.events, job.events_per_object):
        at = encoding.timestamp(encoding.now())
        for event in itertools.islice(each, job.events_per_object):
            line = encoding.raw_line(event, at)
            to.lines.append(line)
            to.bytes += len(line)
            if to.bytes >= _MEMBER:
                to.cut()
                at = encoding.timestamp(encoding.now())
        to.close()


def _more_sources(job: Job, pipeline: _Pipeline, events: Iterable[Payload]) -> None:
    each = iter(events)
    objects = [_Object(pipeline, source) for source in job.source_ids]
    for _ in range(0, job.events, job.sources * job.events_per_object):
        at = encoding.timestamp(encoding.now())
        some = itertools.islice(each, job.sources * job.events_per_object)
        for event, to in zip(some, itertools.cycle(objects), strict=False):
            line = encoding.raw_line(event, at)
            to.lines.append(line)
            to.bytes += len(line)
            if to.bytes >= _MEMBER:
                to.cut()
                at = encoding.timestamp(encoding.now())
        for one in objects:
            one.close()


def work(job: Job, measured: Measured) -> None:
    events: Iterable[Payload] = job.raw_lines() if job.kind == "bytes" else job.dicts()
    with measured.section():
        pipeline = _Pipeline(job)
        (_one_source if job.sources == 1 else _more_sources)(job, pipeline, events)
        pipeline.finish()


if __name__ == "__main__":
    main(work)
