"""What the contenders share: their job, its events and how it is measured. Each contender runs in its own process.

`python -m benchmarks.contenders.MODULE JOB` runs the job (JSON) and prints one line of JSON: wall seconds, CPU seconds (of the
process and its children) and peak RSS in bytes. The times run from opening the client to the last byte stored, without imports
and preparation.
"""

from __future__ import annotations

import gzip
import itertools
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from benchmarks.data import lines
from isal import igzip

REGION: Final = "us-east-1"
_POOL: Final = 5000
"""Dicts that are reused: creating them is not part of the measurement."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Upload events to a bucket.

    Attributes:
        certificate: file of the certificate that the client trusts; empty for http.
        corpus: file of the events; after its last event, it starts over.
        sources: number of sources, which receive the events in turn; an object holds a fixed number of one source's events.
        directory: for files on disk.
        variant: which variant of the contender.
        same_lines: contenders without an envelope write the same lines as jobs-backup, made by the same function.
        settings: environment variables for jobs-backup.
    """

    endpoint: str = ""
    bucket: str = "bucket"
    access_key: str = "key"
    secret_key: str = "secret"
    certificate: str = ""
    corpus: str = ""
    events: int = 0
    kind: Literal["bytes", "dicts"] = "bytes"
    sources: int = 1
    events_per_object: int = 100_000
    directory: str = ""
    variant: str = ""
    same_lines: bool = False
    settings: dict[str, str] = {}

    @property
    def source_ids(self) -> list[str]:
        return [f"source{number:04}" for number in range(self.sources)]

    def raw_lines(self) -> Iterator[bytes]:
        """The events as in the file, with their line ends."""
        return lines(Path(self.corpus), self.events)

    def dicts(self) -> Iterator[dict[str, Any]]:
        """The decoded events. The first ones are decoded on this call."""
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        pool = [decode(line) for line in lines(Path(self.corpus), _POOL)]
        return itertools.islice(itertools.cycle(pool), self.events)

    @property
    def client(self) -> dict[str, Any]:
        """Arguments for boto3's `client`."""
        return {
            "region_name": REGION,
            "endpoint_url": self.endpoint,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            **({"verify": self.certificate} if self.certificate else {}),
        }


class Measured:
    """Times the section between `begin` and `end`."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    @contextmanager
    def section(self) -> Generator[None, None, None]:
        cpu, began = _cpu(), time.perf_counter()
        yield
        self.values |= {"seconds": time.perf_counter() - began, "cpu": _cpu() - cpu}


def main(work: Callable[[Job, Measured], None]) -> None:
    """Run the job from the command line and print the measurements."""
    job = msgspec.json.decode(sys.argv[1], type=Job)
    measured = Measured()
    work(job, measured)
    values = {"events": float(job.events), "peak_rss": float(_peak_rss())} | measured.values
    sys.stdout.write("\n" + msgspec.json.encode(values).decode() + "\n")
    sys.stdout.flush()
    # Skip interpreter shutdown: library threads may abort in it, and it is not measured.
    os._exit(0)


def write_objects(job: Job, encoded: Iterable[bytes], open_object: Callable[[str], Any]) -> None:
    """Write as the documentation of the file-object libraries shows: one event at a time into its source's file.

    `encoded` are whole lines. After one object's number of events, the file is closed and another one opened.
    """
    each = iter(encoded)
    for number in range(-(-job.events // (job.sources * job.events_per_object))):
        files = [open_object(f"{source}/{number}.json.gz") for source in job.source_ids]
        some = itertools.islice(each, job.sources * job.events_per_object)
        if job.sources == 1:
            write = files[0].write
            for line in some:
                write(line)
        else:
            for line, file in zip(some, itertools.cycle(files), strict=False):
                file.write(line)
        for file in files:
            file.close()


class Zipped:
    """Put a compressor in front of a file object: `isal` (level 1), or a level of gzip. Closing it closes both."""

    def __init__(self, raw: Any, compression: str) -> None:
        self._raw = raw
        if compression == "isal":
            open_isal: Any = igzip.IGzipFile
            self._zipped = open_isal(fileobj=raw, mode="wb", compresslevel=1)
        else:
            self._zipped = gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=int(compression))
        self.write = self._zipped.write

    def close(self) -> None:
        self._zipped.close()
        self._raw.close()


def encoded_lines(job: Job) -> Iterable[bytes]:
    """The line for contenders without an envelope: the line itself, or the dict as orjson writes it. That favors them."""
    if job.same_lines:
        from jobs_backup.format import lines as encoding

        at = encoding.timestamp(encoding.now())
        return (encoding.raw_line(event, at) for event in job.raw_lines())
    if job.kind == "bytes":
        return job.raw_lines()
    import orjson

    dumps, newline = orjson.dumps, orjson.OPT_APPEND_NEWLINE
    return (dumps(event, option=newline) for event in job.dicts())


def _cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_rss() -> int:
    # Not getrusage: its peak includes the parent's.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10
