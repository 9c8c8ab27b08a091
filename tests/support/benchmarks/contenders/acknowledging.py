"""Acknowledge deliveries: many ids per call in any order (`variant` "many"), or each one after its `record()` ("one")."""

from __future__ import annotations

import random
from typing import Final

from benchmarks.contenders.common import Job, Measured, main
from benchmarks.contenders.ours import local_environment

from jobs_backup import Backup

_OBJECTS: Final = 100


def work(job: Job, measured: Measured) -> None:
    variables = local_environment(job)
    if job.variant == "many":
        variables["JOBS_BACKUP_BATCH_EVENTS"] = str(max(1, job.events // _OBJECTS))
    with Backup.from_env(variables, archive=False) as backup:
        if job.variant == "many":
            jobs = [int(one) for one in backup.record_many(job.raw_lines(), source_id="web")]
            random.Random(1).shuffle(jobs)
            with measured.section():
                backup.delivered(jobs)
        else:
            with measured.section():
                for event in job.raw_lines():
                    backup.delivered(backup.record(event, source_id="web"))


if __name__ == "__main__":
    main(work)
