"""The spool alone: `record_many` (`variant` "bulk"), or batches of one event claimed and uploaded in N threads ("claim N")."""

from __future__ import annotations

import threading
from typing import Final

from benchmarks.contenders.common import Job, Measured, main
from benchmarks.contenders.ours import local_environment

from jobs_backup import Backup
from jobs_backup.model import Kind, Stream
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.engines import open_spool
from jobs_backup.spool.interface import Recording

_AT_ONCE: Final = 100


def _bulk(job: Job, measured: Measured) -> None:
    with Backup.from_env(local_environment(job), archive=False) as backup, measured.section():
        backup.record_many(job.raw_lines(), source_id="web")


def _claim(job: Job, threads: int, measured: Measured) -> None:
    settings = CoreSettings.from_environment(local_environment(job) | {"JOBS_BACKUP_UPLOAD_CONCURRENCY": str(threads)})
    spool = open_spool(settings, location="file:///bucket", wrappers=(), archives=True)
    for start in range(0, job.events, _AT_ONCE):
        streams = [Stream(Kind.RAW, "w", f"s{number}") for number in range(start, min(start + _AT_ONCE, job.events))]
        spool.append([Recording(stream, [b"{}\n"], first_at=1, last_at=1) for stream in streams])
    spool.seal()
    lock = threading.Lock()  # as the archiver claims

    def work() -> None:
        while True:
            with lock:
                claim = spool.claim()
            if claim is None:
                return
            spool.stored(claim.batch)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    with measured.section():
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    spool.close()


def work(job: Job, measured: Measured) -> None:
    what, _, threads = job.variant.partition(" ")
    if what == "bulk":
        _bulk(job, measured)
    else:
        _claim(job, int(threads), measured)


if __name__ == "__main__":
    main(work)
