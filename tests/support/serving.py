"""The sidecar as a process, and requests to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import resource
import ssl
import subprocess
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from commands import start

TOKEN = "canary-token-0123456789"


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.json["error"]["code"])


class Sidecar(NamedTuple):
    process: subprocess.Popen[str]
    url: str
    said: str
    """Standard error up to the moment it listened."""

    def connect(self, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=120, context=context)
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = TOKEN,
        write_key: str | None = None,
        context: ssl.SSLContext | None = None,
        **headers: str,
    ) -> Answer:
        """Send a request; a body that is not bytes is sent as JSON."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if write_key is not None:
            sent["Authorization"] = "Basic " + base64.b64encode(f"{write_key}:".encode()).decode()
        elif token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(self.connect(context)) as connection:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def post(self, path: str, body: Any, **options: Any) -> Answer:
        return self.ask("POST", path, body, **options)

    def get(self, path: str, **options: Any) -> Answer:
        return self.ask("GET", path, **options)

    def end(self) -> tuple[int, str]:
        """Send SIGTERM. Returns the exit code and its standard error."""
        self.process.terminate()
        _, stderr = self.process.communicate(timeout=120)
        assert "Traceback" not in stderr, stderr
        return self.process.returncode, stderr


@contextlib.contextmanager
def serve(env: Mapping[str, str], *arguments: str, **variables: str) -> Generator[Sidecar]:
    """Run the sidecar; it listens once the block is entered."""
    with _started({**env, **variables}, *arguments) as sidecar:
        yield sidecar


@contextlib.contextmanager
def serve_with_few_files(env: Mapping[str, str], files: int) -> Generator[Sidecar]:
    """Run the sidecar with a limit on open file descriptors."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with _started(env, preexec_fn=limit) as sidecar:
        yield sidecar


@contextlib.contextmanager
def _started(env: Mapping[str, str], *arguments: str, **options: Any) -> Generator[Sidecar]:
    environment = {"JOBS_BACKUP_SERVER_TOKEN": TOKEN, **env}
    port = () if "--port" in arguments else ("--port", "0")
    with start("serve", *port, *arguments, env=environment, **options) as process:
        try:
            yield Sidecar(process, *_address(process))
        finally:
            if process.poll() is None:
                process.kill()


def _address(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if found := re.search(r"listening on (\S+?)[\"\s]", line):
            return found[1], said
    raise AssertionError(f"it ended: {said}")
