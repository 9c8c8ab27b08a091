"""The programs and commands of docs/outbox.md: an application whose events exist if and only if its orders do."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from buckets import events
from documents import blocks
from places import ROOT
from postgres import BIN, Postgres
from servers import free_ports

from jobs_backup import Backup

DOCUMENT = ROOT / "docs/outbox.md"
USERS = ("my_application", "my_archiver")
ROLES = [f"jobs_backup_{name}" for name in ("outbox", "recorder", "archiver", "status", "owner")]


def order(port: int, **fields: object) -> tuple[int, dict[str, str]]:
    """Place an order. Returns the status and the answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/orders", data=json.dumps(fields).encode(), method="POST")
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except urllib.error.URLError:
            assert time.monotonic() < until, "it does not start"
            time.sleep(0.1)


def test_the_application(database_server: Postgres, tmp_path: Path) -> None:
    for _, text in blocks(DOCUMENT, "python"):
        name = re.match(r"# (\w+\.py)\n", text)
        assert name is not None
        (tmp_path / name[1]).write_text(text)
    setup, start = (text for _, text in blocks(DOCUMENT, "sh"))
    (port,) = free_ports(1)
    database = database_server.create()
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(BIN), os.environ["PATH"]]),
        "HOME": str(tmp_path),
        "ADMINISTRATOR_URL": database_server.url(database),
        "ARCHIVER_URL": database_server.url(database, user="my_archiver"),
        "APPLICATION_URL": database_server.url(database, user="my_application"),
        "PORT": str(port),
    }
    try:
        subprocess.run(["bash", "-euc", setup], cwd=tmp_path, env=environment, check=True, timeout=120)
        with subprocess.Popen(["bash", "-euc", start.replace("uvicorn", "exec uvicorn")], cwd=tmp_path, env=environment) as server:
            try:
                assert order(port, item="lamp", quantity=0) == (422, {"error": "quantity must be positive"})
                placed = [order(port, item="lamp", quantity=quantity) for quantity in (1, 2)]
                assert [status for status, _ in placed] == [201, 201]
            finally:
                server.terminate()
                server.wait(60)
        assert sorted(event["payload"]["quantity"] for event in events(tmp_path)) == [1, 2], "closing uploads them"
        with database_server.admin(database) as admin:
            assert admin.execute("SELECT job::text FROM orders ORDER BY quantity").fetchall() == [
                (one["job"],) for _, one in placed
            ]
        settings = {
            "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
            "JOBS_BACKUP_BUCKET": str(tmp_path / "bucket"),
            "JOBS_BACKUP_SPOOL": environment["ARCHIVER_URL"],
        }
        place_order = runpy.run_path(str(tmp_path / "orders.py"))["place_order"]
        with Backup.from_env(settings) as backup:
            backup.delivered(one["job"] for _, one in placed)
            with pytest.raises(Exception, match="permission denied"):
                place_order(backup, database_server.url(database, user="my_archiver"), "chair")
            backup.flush(60)
        assert not [event for event in events(tmp_path) if event["payload"]["item"] == "chair"]
    finally:
        database_server.drop(database)
        with database_server.admin() as admin:
            for role in (*USERS, *ROLES):
                admin.execute(f"DROP ROLE IF EXISTS {role}".encode())
