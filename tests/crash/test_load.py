"""Events that the sidecar acknowledged survive kill -9, and only retried events may be in the bucket twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from load.__main__ import load
from places import SUPPORT


@pytest.mark.slow
@pytest.mark.parametrize("events", [1, 20])
def test_killed_under_load_nothing_acknowledged_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: int) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))  # the client is a separate process
    found = load(tmp_path, seconds=4, kills=2, connections=8, events=events, seed=7)
    assert (found.lost, found.twice) == (0, 0)
    assert found.acknowledged > 0
    assert found.retried > 0, "no request was under way when it was killed"
