"""Sizes of the objects, and of the same lines by `gzip -6`, object by object. `variant` "single": one commit per event."""

from __future__ import annotations

import gzip
import itertools
import zlib
from pathlib import Path

from benchmarks.contenders.common import Job, Measured, main
from benchmarks.contenders.ours import local_environment

from jobs_backup import Backup, Event


def _whole(path: Path) -> int:
    compressor, size = zlib.compressobj(6, zlib.DEFLATED, 31), 0
    with gzip.open(path) as file:
        while block := file.read(1 << 20):
            size += len(compressor.compress(block))
    return size + len(compressor.flush())


def work(job: Job, measured: Measured) -> None:
    with measured.section(), Backup.from_env(local_environment(job)) as backup:
        sources = itertools.cycle(job.source_ids)
        if job.variant == "single":
            for event in job.raw_lines():
                backup.record(event, source_id=next(sources))
        else:
            backup.record_many(Event(payload=event, source_id=next(sources)) for event in job.raw_lines())
        backup.flush()
    objects = list((Path(job.directory) / "bucket").rglob("*.json.gz"))
    measured.values |= {
        "objects": len(objects),
        "stored": sum(path.stat().st_size for path in objects),
        "gzip_6": sum(map(_whole, objects)),
    }


if __name__ == "__main__":
    main(work)
