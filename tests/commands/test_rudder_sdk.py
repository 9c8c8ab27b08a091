"""RudderStack's and Segment's own Python SDKs send their events to the sidecar, which uploads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from buckets import events, file_environment
from serving import serve

PROGRAM = """
import importlib, sys
rudder = importlib.import_module(sys.argv[3] + ".analytics")
rudder.write_key, rudder.gzip = "2abcKEY", sys.argv[2] == "gzip"
rudder.dataPlaneUrl = rudder.host = sys.argv[1] + "/"
failed = []
rudder.on_error = lambda error, items: failed.append(str(error))
for number in range(250):
    rudder.track(f"user-{number}", "Order completed", {"number": number, "price": 1.5})
rudder.identify("user-0", {"name": "Z\u00e9"})
rudder.page("user-0", "docs", "Home")
rudder.screen("user-0", "docs", "Start")
rudder.group("user-0", "group-1", {"seats": 3})
rudder.alias("anonymous-0", "user-0")
rudder.shutdown()
assert not failed, failed
"""


@pytest.mark.parametrize("packed", ["gzip", "plain"])
@pytest.mark.parametrize("sdk", ["rudderstack", "segment"])
def test_all_events_of_the_sdk_are_in_the_bucket_once(tmp_path: Path, sdk: str, packed: str) -> None:
    with serve(file_environment(tmp_path), JOBS_BACKUP_SERVER_WRITE_KEYS="2abcKEY=web") as sidecar:
        sent = subprocess.run(
            [sys.executable, "-c", PROGRAM, sidecar.url, packed, sdk], capture_output=True, text=True, check=False
        )
        assert sent.returncode == 0, sent.stderr
        code, stderr = sidecar.end()
        assert code == 0, stderr
    found = events(tmp_path)
    kinds = [event["payload"]["type"] for event in found]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "track": 250, "identify": 1, "page": 1, "screen": 1, "group": 1, "alias": 1,
    }  # fmt: skip
    assert len({event["messageId"] for event in found}) == 255
    tracked = {event["userId"]: event["payload"]["properties"]["number"] for event in found if event["payload"]["type"] == "track"}
    assert tracked == {f"user-{number}": number for number in range(250)}
    assert [path.relative_to(tmp_path / "bucket").parts[0] for path in tmp_path.rglob("*.json.gz")] == ["web"]
    assert json.dumps(found).count("Z\\u00e9") == 1
