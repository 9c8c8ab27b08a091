"""The commands of docs/fleet.md, one after another, on a server; and the settings of docs/fleet-cloud.md."""

from __future__ import annotations

import base64
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

import pytest
from buckets import file_environment
from commands import ndjson, numbers, run
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from documents import blocks
from places import ROOT
from postgres import BIN, Postgres
from servers import free_ports

from jobs_backup.settings.core import CoreSettings, DatabaseSpool
from jobs_backup.spool.postgresql.connection import password_of

CLOUD: Final = ROOT / "docs/fleet-cloud.md"
SETTINGS: Final = [text for _, text in blocks(CLOUD, "ini") if "JOBS_BACKUP" in text]
PGBOUNCER: Final = shutil.which("pgbouncer")


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
            assert len(outputs) == 7
            assert '"n":1' in outputs[2], "it came back"
            assert "1 object with 1 event in the bucket" in outputs[4]
            assert outputs[4].count("moved ") == 1
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


def place_of(text: str) -> DatabaseSpool:
    place, _ = CoreSettings.find_spool(dict(line.split("=", 1) for line in text.splitlines()))
    assert isinstance(place, DatabaseSpool)
    return place


@pytest.fixture
def path_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("path_of_python")
def test_amazons_token_is_one_for_the_user_and_the_host_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    (settings,) = (text for text in SETTINGS if "boto3" in text)
    place = place_of(settings)
    user, host, port = re.fullmatch(r"postgresql://(\w+)@([\w.-]+):(\d+)/.*", place.url.reveal()).groups()  # type: ignore[union-attr]
    token = password_of(place.password_command)
    assert token.startswith(f"{host}:{port}/?")
    parameters = parse_qs(token.partition("?")[2])
    assert (parameters["Action"], parameters["DBUser"], parameters["X-Amz-Expires"]) == (["connect"], [user], ["900"])


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Google's token endpoint, and the key of a service account. Yields the scopes that were asked for."""
    scopes: list[str] = []

    class Endpoint(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            claims = form["assertion"][0].split(".")[1]
            scopes.append(json.loads(base64.urlsafe_b64decode(claims + "=="))["scope"])
            answer = json.dumps({"access_token": "token-1", "expires_in": 3600, "token_type": "Bearer"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        account = {
            "type": "service_account",
            "client_email": "jobs-backup@my-project.iam.gserviceaccount.com",
            "token_uri": f"http://127.0.0.1:{server.server_port}/token",
            "private_key": key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        }
        (tmp_path / "key.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        yield scopes
        server.shutdown()


@pytest.mark.usefixtures("path_of_python")
def test_googles_tokens_are_for_the_database_alone(google: list[str]) -> None:
    commands = [place_of(text).password_command for text in SETTINGS if "google" in text]
    assert [password_of(command) for command in commands] == ["token-1", "token-1"]
    assert google == [f"https://www.googleapis.com/auth/{name}.login" for name in ("sqlservice", "alloydb")]


def test_each_url_verifies_the_server() -> None:
    assert len(SETTINGS) == 3
    for text in SETTINGS:
        url = place_of(text).url
        assert url.says("sslrootcert")
        assert "sslmode=verify-ca" in url.reveal() or not url.says("sslmode"), "else verify-full, by default"


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")
def test_the_settings_of_pgbouncer_work(database_server: Postgres, tmp_path: Path) -> None:
    assert PGBOUNCER is not None
    (text,) = (one for _, one in blocks(CLOUD, "ini") if "[pgbouncer]" in one)
    (port,) = free_ports(1)
    with database_server.database() as database:
        changes = {
            r"^jobs_backup = .*": f"{database} = host=127.0.0.1 port={database_server.port} dbname={database}",
            r"^listen_addr = .*": "listen_addr = 127.0.0.1",
            r"^listen_port = .*": f"listen_port = {port}",
            r"^auth_type = .*": "auth_type = any",
            r"^auth_file = .*\n": "",
            r"^(client|server)_tls_.*\n": "",
        }
        for pattern, replacement in changes.items():
            text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
            assert count, pattern
        # Any user is let in, as one that the server knows.
        text = text.replace(f"dbname={database}", f"dbname={database} user=postgres") + "unix_socket_dir =\n"
        directory = tmp_path / "pgbouncer"
        directory.mkdir(mode=0o755)
        (directory / "pgbouncer.ini").write_text(text)
        for parent in (directory, *directory.parents):
            if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                parent.chmod(0o755)
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with subprocess.Popen([PGBOUNCER, "-q", *user, str(directory / "pgbouncer.ini")]) as bouncer:
            try:
                time.sleep(0.5)
                assert bouncer.poll() is None
                environment = file_environment(
                    tmp_path, JOBS_BACKUP_SPOOL=database_server.url(database, port=port), INSTANCE_ID="host-1"
                )
                del environment["JOBS_BACKUP_SPOOL_DIR"]
                file = ndjson(tmp_path / "in", 3000)
                code, _, stderr = run("run", file, "--source-id", "web", env=environment)
                assert code == 0, stderr
                assert numbers(tmp_path) == list(range(3000))
            finally:
                bouncer.terminate()
