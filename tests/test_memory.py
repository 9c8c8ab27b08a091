"""Memory does not grow with the input."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from commands import COMMAND
from memory import peak_memory
from servers import Store
from test_end_to_end import write_input


@pytest.mark.slow
def test_a_million_events_take_as_much_memory_as_100_000(store: Store, tmp_path: Path) -> None:
    small = write_input(tmp_path / "small", 100_000)
    large = tmp_path / "large"
    with large.open("wb") as output:
        for _ in range(10):
            with small.open("rb") as source:
                shutil.copyfileobj(source, output)
    peaks = {}
    for file in (small, large):
        bucket = store.bucket()
        env = {**store.environment(bucket), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / f"spool-{file.name}")}
        command = [*COMMAND, "run", str(file), "--source-id", "web"]
        peaks[file.name] = peak_memory(command, {"PATH": os.environ["PATH"], **env})
        assert len(store.keys(bucket)) == (1 if file == small else 10)
    print(f"peak memory, KiB: {peaks}")  # noqa: T201
    assert peaks["large"] < 1.2 * peaks["small"]
