"""Compress lines into members, as the spool does. `variant`: a value of JOBS_BACKUP_COMPRESSION."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from benchmarks.contenders.common import Job, Measured, main

from jobs_backup.format import lines as encoding
from jobs_backup.format.compression import Compression

_MEMBER = 1 << 20


def _members(job: Job) -> Iterator[bytes]:
    at = encoding.timestamp(encoding.now())
    lines: list[bytes] = []
    size = 0
    for payload in job.raw_lines():
        lines.append(encoding.raw_line(payload, at))
        size += len(lines[-1])
        if size >= _MEMBER:
            yield b"".join(lines)
            lines, size = [], 0
    yield b"".join(lines)


def work(job: Job, measured: Measured) -> None:
    compression = Compression.parse(job.variant)
    members = list(_members(job))
    compression.compress(members[0])  # imports what it needs
    with measured.section():
        stored = sum(len(compression.compress(member)) for member in members)
    whole = zlib.compressobj(6, zlib.DEFLATED, 31)
    gzip_6 = sum(len(whole.compress(member)) for member in members) + len(whole.flush())
    measured.values |= {"bytes": sum(map(len, members)), "stored": stored, "gzip_6": gzip_6}


if __name__ == "__main__":
    main(work)
