"""Memory does not grow with the input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import COMMAND
from memory import peak_memory
from servers import Store


@pytest.mark.slow
def test_a_million_events_take_as_much_memory_as_100_000(store: Store, tmp_path: Path) -> None:
    """Short events, and several objects in progress in both cases: only growth with the number of events shows."""
    events = b"".join(b'{"messageId":"%032x","event":"Product Viewed"}\n' % (number << 64) for number in range(100_000))
    peaks = {}
    for times in (1, 10):
        bucket, file = store.bucket(), tmp_path / f"{times}"
        with file.open("wb") as output:
            for _ in range(times):
                output.write(events)
        env = {
            **store.environment(bucket),
            "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / f"spool-{times}"),
            "JOBS_BACKUP_BATCH_EVENTS": "20000",
        }
        command = [*COMMAND, "run", str(file), "--source-id", "web"]
        peaks[times] = peak_memory(command, {"PATH": os.environ["PATH"], **env})
        assert len(store.keys(bucket)) == 5 * times
    print(f"peak memory, KiB: {peaks}")
    # Some MiB of warm-up until all threads have run; an integer kept for each event would be 35 MiB.
    assert peaks[10] < peaks[1] + 24 * 1024
