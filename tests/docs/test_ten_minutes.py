"""From nothing to a verified backup and back to the events: the README's own commands, in an environment of wheels."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from documents import blocks
from places import ROOT
from projects import CORE, S3, Environment, build, clean_environment
from servers import REGION, weed

pytestmark = pytest.mark.slow


def test_the_readme_leads_to_a_verified_backup(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    environment = Environment(tmp_path / "venv")
    environment.install(build(CORE, wheels), build(S3, wheels))
    here = tmp_path / "here"
    here.mkdir()

    def shell(text: str) -> str:
        path = f"{environment.bin}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", "-euc", text], cwd=here, env=clean_environment(PATH=path), capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    (_, first), (_, second), *_ = blocks(ROOT / "README.md", "shell")
    heredoc, rest = first.split("\nEND\n")
    assert heredoc.startswith("cat > docker.env")
    variables = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "S3", "JOBS_BACKUP_BUCKET": "my-events", "JOBS_BACKUP_PREFIX": "prod",
        "JOBS_BACKUP_SPOOL_DIR": "spool", "AWS_REGION": REGION,
    }  # fmt: skip

    def fill_in(**more: str) -> None:
        (here / "docker.env").write_text("".join(f"{name}={value}\n" for name, value in {**variables, **more}.items()))

    fill_in()
    policies = {
        "printed": json.loads(shell(rest)),
        "with-replay": json.loads(shell("jobs-backup policy --with-replay --env-file docker.env")),
    }
    with weed(tmp_path / "weed", policies) as store:
        store.bucket("my-events")
        keys = {
            name: {
                "AWS_ENDPOINT_URL_S3": store.url,
                "AWS_ACCESS_KEY_ID": store.identities[name].access_key,
                "AWS_SECRET_ACCESS_KEY": store.identities[name].secret_key,
            }
            for name in policies
        }
        fill_in(**keys["printed"])
        before, replay, after = second.partition("jobs-backup replay")
        assert "ready" in shell(before)
        fill_in(**keys["with-replay"])
        shell(replay + after)
    assert (here / "back.ndjson").read_bytes() == (here / "events.ndjson").read_bytes()
    assert (here / "back.ndjson").read_bytes().count(b"\n") == 1000
