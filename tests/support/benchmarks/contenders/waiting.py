"""Fill a spool with pending events, then get killed: the last events recorded are in batches that are still open."""

from __future__ import annotations

import os
import signal
from typing import Final

from benchmarks.contenders.common import Job, Measured, main
from benchmarks.contenders.ours import environment

from jobs_backup import Backup

_OPEN: Final = 5
_LAST: Final = 1000


def work(job: Job, measured: Measured) -> None:
    backup = Backup.from_env(environment(job), archive=False)
    backup.record_many(job.raw_lines(), source_id="web")
    for number in range(_OPEN):
        backup.record_many((f'{{"messageId":"{one}"}}' for one in range(_LAST)), source_id=f"open{number}")
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(work)
