"""The commands of docs/fleet.md, one after another, on a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from documents import blocks
from places import ROOT
from postgres import BIN, Postgres


def test_the_commands_of_the_guide_run(database_server: Postgres, tmp_path: Path) -> None:
    with database_server.database() as database:
        try:
            environment = {
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(BIN), os.environ["PATH"]]),
                "HOME": str(tmp_path),
                "ADMINISTRATOR_URL": database_server.url(database),
                "ARCHIVER_URL": database_server.url(database, user="my_archiver"),
            }
            outputs = []
            for _, text in blocks(ROOT / "docs/fleet.md", "sh"):
                result = subprocess.run(
                    ["bash", "-euc", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
                )
                assert result.returncode == 0, f"{text}\n{result.stdout}{result.stderr}"
                outputs.append(result.stdout)
            assert len(outputs) == 3
            assert '"n":1' in outputs[2], "it came back"
            assert not list((tmp_path / "bucket").rglob("*.json.gz")), "it was delivered"
        finally:
            database_server.drop(database)
            with database_server.admin() as connection:
                roles = (
                    "my_archiver",
                    "my_status",
                    *(f"jobs_backup_{role}" for role in ("recorder", "archiver", "status", "outbox", "owner")),
                )
                for role in roles:
                    connection.execute(f"DROP ROLE IF EXISTS {role}")
