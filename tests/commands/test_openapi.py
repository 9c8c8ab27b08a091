"""The sidecar keeps to its OpenAPI document: no 5xx, no undocumented response, invalid data rejected, valid data accepted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from buckets import file_environment
from serving import TOKEN, serve

RUDDER = "/v1/(identify|track|page|screen|group|alias|batch)$"
CONFIG = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 413, 415]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("selected", "arguments"),
    [
        ("ours", ["--exclude-path-regex", RUDDER, "--header", f"Authorization: Bearer {TOKEN}"]),
        ("RudderStack's", ["--include-path-regex", RUDDER, "--header", "Authorization: Basic a2V5Og=="]),
    ],
)
def test_schemathesis_finds_nothing(tmp_path: Path, selected: str, arguments: list[str]) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    limits = {"JOBS_BACKUP_SERVER_MAX_EVENTS": "20", "JOBS_BACKUP_SERVER_WRITE_KEYS": "key"}
    with serve(file_environment(tmp_path), **limits) as sidecar:
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{sidecar.url}/openapi.json", "--max-examples=60"]
        options = ["--seed=1", "--no-color", "--generation-database=none", "--output-truncate=true", *arguments]
        found = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout[-6000:]
        assert " passed" in found.stdout
        assert sidecar.get("/healthz").status == 200
        code, stderr = sidecar.end()
        assert code == 0, stderr
