"""Google Cloud Storage for tests: a third-party emulator, and a small server that answers as Google's documentation says.

The server covers what the emulator lacks: preconditions, offsets and cancellation of resumable uploads, checksums, permissions.
It follows cloud.google.com/storage/docs/performing-resumable-uploads, /json_api/v1/status-codes and /json_api/v1/objects.
"""

from __future__ import annotations

import base64
import contextlib
import email
import gzip
import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c

CHUNK: Final = 256 << 10
WRITING: Final = {"objects.insert", "resumable.begin", "resumable.chunk", "resumable.ask", "resumable.cancel", "objects.get"}
"""The operations of a backup: creating objects, and looking at one after a refusal."""
ALL: Final = frozenset({"storage.objects.create", "storage.objects.get", "storage.objects.delete", "storage.objects.list"})
LEAST: Final = frozenset({"storage.objects.create", "storage.objects.get"})


@dataclass
class Object:
    """An object on the server."""

    data: bytes
    generation: int
    metadata: dict[str, Any]


@dataclass
class Session:
    """A resumable upload."""

    bucket: str
    key: str
    metadata: dict[str, Any]
    if_absent: bool
    data: bytearray = field(default_factory=bytearray)
    done: dict[str, Any] | None = None


class Refused(Exception):
    """A response other than success."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.reason = status, message, reason


class GcsServer(ThreadingHTTPServer):
    """`bucket()` creates buckets. `granted` are the caller's permissions; `operations` counts calls."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: dict[str, dict[str, Object]] = {}
        self.sessions: dict[str, Session] = {}
        self.operations: Counter[str] = Counter()
        self.granted: frozenset[str] = ALL
        self.takes: list[int] = []  # keep only this many bytes of each of the next chunks: a multiple of 256 KiB
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bucket(self) -> str:
        """Create a bucket."""
        name = f"events-{next(self._numbers)}"
        self.buckets[name] = {}
        return name

    def environment(self, bucket: str, *, url: str = "") -> dict[str, str]:
        return {"JOBS_BACKUP_STORAGE_PROVIDER": "GCS", "JOBS_BACKUP_BUCKET": bucket, "STORAGE_EMULATOR_HOST": url or self.url}

    def open_uploads(self, bucket: str) -> list[str]:
        """The keys of sessions that were neither completed nor cancelled."""
        return [one.key for one in self.sessions.values() if one.bucket == bucket and one.done is None]

    def next_generation(self) -> int:
        return 1_700_000_000_000_000 + next(self._numbers)

    def need(self, permission: str) -> None:
        if permission not in self.granted:
            raise Refused(
                403,
                f"sa@p.iam.gserviceaccount.com does not have {permission} access to the Google Cloud Storage object."
                f" Permission '{permission}' denied on resource (or it may not exist).",
                "forbidden",
            )

    def objects(self, bucket: str) -> dict[str, Object]:
        if bucket not in self.buckets:
            raise Refused(404, "The specified bucket does not exist.", "notFound")
        return self.buckets[bucket]

    def put(self, bucket: str, key: str, data: bytes, metadata: dict[str, Any], *, if_absent: bool) -> dict[str, Any]:
        """Create an object: objects.insert."""
        objects = self.objects(bucket)
        if if_absent and key in objects:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.", "conditionNotMet")
        if not if_absent and key in objects:
            self.need("storage.objects.delete")
        given = metadata.get("crc32c")
        if given is not None and given != _crc(data):
            raise Refused(400, f'Provided CRC32C "{given}" doesn\'t match calculated CRC32C "{_crc(data)}".', "invalid")
        objects[key] = Object(data, self.next_generation(), metadata)
        return self.resource(bucket, key)

    def resource(self, bucket: str, key: str) -> dict[str, Any]:
        """The object's metadata in responses."""
        found = self.objects(bucket).get(key)
        if found is None:
            raise Refused(404, f"No such object: {bucket}/{key}", "notFound")
        return {
            "kind": "storage#object", "name": key, "bucket": bucket, "size": str(len(found.data)), "crc32c": _crc(found.data),
            "generation": str(found.generation), "metadata": found.metadata.get("metadata", {}),
            **{name: found.metadata[name] for name in ("contentEncoding",) if name in found.metadata},
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GcsServer

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has gone
            super().handle_one_request()

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True
            return
        try:
            with self.server.lock:
                status, headers, answer = self._route(parts.path, query, body)
        except Refused as refused:
            error = {"code": refused.status, "message": refused.message, "errors": [{"reason": refused.reason}]}
            status, headers, answer = refused.status, {}, json.dumps({"error": error}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - names required by http.server

    def log_message(self, *_: object) -> None:
        """Suppress logging to the terminal."""

    def _route(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        server = self.server
        if (match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path)) is not None:
            if "upload_id" in query:
                return self._session(query["upload_id"], body)
            server.need("storage.objects.create")
            return self._insert(match[1], query, body)
        if (match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/(.+)", path)) is not None:
            return self._object(match[1], unquote(match[2]), query)
        if (match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path)) is not None:
            server.operations["objects.list"] += 1
            server.need("storage.objects.list")
            return _json(self._list(match[1], query))
        server.operations[f"{self.command} {path}"] += 1
        raise Refused(403, "does not have storage.buckets.get access to the Google Cloud Storage bucket.", "forbidden")

    def _insert(self, bucket: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        server, if_absent = self.server, query.get("ifGenerationMatch") == "0"
        if query["uploadType"] == "resumable":
            server.operations["resumable.begin"] += 1
            metadata = json.loads(body)
            server.objects(bucket)
            id_ = f"session{server.next_generation()}secret"
            server.sessions[id_] = Session(bucket, metadata["name"], metadata, if_absent)
            # The host of the request: there may be a proxy in between.
            location = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={id_}"
            return 200, {"Location": location}, b""
        server.operations["objects.insert"] += 1
        message = email.message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
        boundary = str(message.get_param("boundary")).encode()
        _, first, rest = body.split(b"--" + boundary, 2)
        metadata = json.loads(first.split(b"\r\n\r\n", 1)[1])
        data = rest.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--" + boundary, 1)[0]
        return _json(server.put(bucket, metadata["name"], data, metadata, if_absent=if_absent))

    def _session(self, id_: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        server = self.server
        session = server.sessions.get(id_)
        asked = self.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)", asked)
        kind = "cancel" if self.command == "DELETE" else "chunk" if match is not None and match[1] is not None else "ask"
        server.operations[f"resumable.{kind}"] += 1
        if session is None or (kind == "cancel" and session.done is not None):
            raise Refused(404, "Upload session not found.", "notFound")
        if kind == "cancel":
            del server.sessions[id_]
            return 499, {}, b""
        if match is None:
            raise Refused(400, f"Invalid Content-Range {asked}", "badRequest")
        if session.done is None and kind == "chunk":
            start, end, total = int(match[1]), int(match[2]) + 1, int(match[3])
            if len(body) != end - start or start > len(session.data) or (end < total and end % CHUNK):
                raise Refused(400, f"Invalid chunk {asked}", "badRequest")
            new = body[len(session.data) - start :]
            session.data += new[: server.takes.pop(0)] if server.takes else new
            if len(session.data) == total:
                try:
                    session.done = server.put(
                        session.bucket, session.key, bytes(session.data), session.metadata, if_absent=session.if_absent
                    )
                except Refused:
                    del server.sessions[id_]
                    raise
        if session.done is not None:
            return _json(session.done)
        return 308, ({"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}), b""

    def _object(self, bucket: str, key: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        server = self.server
        if self.command == "DELETE":
            server.operations["objects.delete"] += 1
            server.need("storage.objects.delete")
            server.resource(bucket, key)
            del server.objects(bucket)[key]
            return 204, {}, b""
        server.operations["objects.get"] += 1
        server.need("storage.objects.get")
        resource = server.resource(bucket, key)
        if query.get("alt") != "media":
            return _json(resource)
        data = server.objects(bucket)[key].data
        if (encoding := resource.get("contentEncoding", "")) == "gzip" and "gzip" not in self.headers.get("Accept-Encoding", ""):
            # cloud.google.com/storage/docs/transcoding: decompressed, and the range is ignored.
            return 200, {"Warning": "214 UploadServer gunzipped"}, gzip.decompress(data)
        marks = {"Content-Encoding": encoding} if encoding else {}
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["", "0"])[1])
        return 206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}", **marks}, data[start:]

    def _list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        keys = sorted(self.server.objects(bucket), key=str.encode)
        first = query.get("pageToken") or query.get("startOffset", "")
        found = [key for key in keys if key.startswith(query.get("prefix", "")) and key.encode() >= first.encode()]
        size = min(int(query.get("maxResults", "1000")), 1000)
        page: dict[str, Any] = {"kind": "storage#objects", "items": [self.server.resource(bucket, key) for key in found[:size]]}
        return page | ({"nextPageToken": found[size]} if len(found) > size else {})


def _json(document: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()


def _crc(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@contextlib.contextmanager
def scripted_gcs() -> Generator[GcsServer]:
    """Run the server that answers as the documentation says."""
    with GcsServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Emulator:
    """fake-gcs-server, seen from outside."""

    def __init__(self, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.log = log
        self._numbers = itertools.count(1)

    def bucket(self) -> str:
        """Create a bucket."""
        name = f"events-{next(self._numbers)}"
        self._call("POST", "/storage/v1/b?project=test", json.dumps({"name": name}).encode())
        return name

    def environment(self, bucket: str, *, url: str = "") -> dict[str, str]:
        return {"JOBS_BACKUP_STORAGE_PROVIDER": "GCS", "JOBS_BACKUP_BUCKET": bucket, "STORAGE_EMULATOR_HOST": url or self.url}

    def keys(self, bucket: str) -> list[str]:
        """All keys."""
        found: list[str] = []
        token = ""
        while True:
            page = json.loads(self._call("GET", f"/storage/v1/b/{bucket}/o?maxResults=1000&pageToken={quote(token)}"))
            found += [one["name"] for one in page.get("items") or []]
            if not (token := page.get("nextPageToken", "")):
                return found

    def get(self, bucket: str, key: str) -> bytes:
        """The bytes of an object."""
        return self._call("GET", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}?alt=media")

    def _call(self, method: str, target: str, body: bytes | None = None) -> bytes:
        import http.client

        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request(method, target, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        assert answer.status == 200, data
        return data


def private_key() -> str:
    """Generate an RSA key, as PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return made.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def service_account(directory: Path, key: str, token_uri: str) -> Path:
    path = directory / "credentials.json"
    account = {
        "type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": key, "token_uri": token_uri,
        "client_email": "sa@p.iam.gserviceaccount.com", "client_id": "1",
    }  # fmt: skip
    path.write_text(json.dumps(account))
    return path
