"""Differences of S3-compatible stores, and of a Google emulator: see "Stores that were tried" in docs/stores.md."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import BinaryIO

import pytest
from gcs import GcsServer, Object
from s3_client import UPLOAD_ID, refusal, scripted

from jobs_backup.checksum import crc32c
from jobs_backup.errors import AlreadyExists, IntegrityError, JobsBackupError, NotSupported, StorageError, Unavailable, UploadGone
from jobs_backup.model import Outcome, Part, Upload
from jobs_backup.store import providers
from jobs_backup.testing.driver import Hooks, random_bytes
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, FaultProxy, Request

UPLOAD = Upload(key="key", id=UPLOAD_ID)
PARTS = [Part(number=1, etag='"1"')]
XML = {"Content-Type": "application/xml"}


def gcs_hooks(environment: Mapping[str, str]) -> Hooks:
    return Hooks(providers.load("GCS", environment))


# Completions


@pytest.mark.parametrize(
    ("fields", "etag"),
    [
        ({"Bucket": "events", "Key": "key", "ETag": ""}, ""),
        ({"Bucket": "events", "Key": "key"}, ""),
        ({"Bucket": "events", "Key": "key", "ETag": '"9"'}, '"9"'),
        ({"ETag": '"9"'}, '"9"'),
        ({"Bucket": "events", "ETag": ""}, None),
        ({"Key": "key", "ETag": ""}, None),
        ({"Location": "http://store/events/key", "ETag": ""}, None),
        ({}, None),
    ],
)
def test_a_completion_is_proven_by_its_etag_or_by_bucket_and_key(
    server: FaultProxy, fields: Mapping[str, str], etag: str | None
) -> None:
    """Ceph RGW's first response to a completion has an empty ETag."""
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    server.fail(Answer(200, f"<CompleteMultipartUploadResult>{inside}</CompleteMultipartUploadResult>".encode(), XML))
    if etag is None:
        with pytest.raises(StorageError, match="no ETag"):
            scripted(server.url).complete(UPLOAD, PARTS, b"data")
    else:
        assert scripted(server.url).complete(UPLOAD, PARTS, b"data").etag == etag


@pytest.mark.parametrize("hook", ["write", "part"])
def test_elsewhere_an_etag_is_the_only_proof(server: FaultProxy, hook: str) -> None:
    server.fail(Answer(200, headers={"ETag": ""}), times=ALWAYS)
    hooks = scripted(server.url)
    with pytest.raises(StorageError, match="no ETag"):
        hooks.write("key", b"data") if hook == "write" else hooks.part(UPLOAD, [b"data"], 1)


# Missing uploads and objects


@pytest.mark.parametrize("code", ["NoSuchUpload", "NoSuchKey"])
def test_an_upload_is_gone_by_either_word(server: FaultProxy, code: str) -> None:
    """Swift reports a missing key where others report a missing upload."""
    server.fail(refusal(404, code), times=ALWAYS)
    hooks = scripted(server.url)
    assert hooks.abort(UPLOAD) is Outcome.GONE
    with pytest.raises(UploadGone):
        hooks.part(UPLOAD, [b"data"], 1)
    with pytest.raises(UploadGone):
        hooks.complete(UPLOAD, PARTS, b"data")


# Unsupported features


@pytest.mark.parametrize("answer", [refusal(405, "MethodNotAllowed"), refusal(501, "NotImplemented"), Answer(405), Answer(501)])
@pytest.mark.parametrize(
    ("hook", "setting"),
    [
        ("create", "JOBS_BACKUP_MULTIPART_THRESHOLD"),
        ("part", "JOBS_BACKUP_MULTIPART_THRESHOLD"),
        ("complete", "JOBS_BACKUP_MULTIPART_THRESHOLD"),
        ("abort", "JOBS_BACKUP_MULTIPART_THRESHOLD"),
        ("delete", "JOBS_BACKUP_DELETE_AFTER=never"),
        ("list", "without --list"),
    ],
)
def test_the_hint_names_what_to_do_without(server: FaultProxy, answer: Answer, hook: str, setting: str) -> None:
    server.fail(answer, times=ALWAYS)
    hooks = scripted(server.url)

    def delete() -> None:
        raise hooks.delete(["key"]).failed["key"]

    calls: dict[str, Callable[[], object]] = {
        "create": lambda: hooks.create("key", b"data"),
        "part": lambda: hooks.part(UPLOAD, [b"data"], 1),
        "complete": lambda: hooks.complete(UPLOAD, PARTS, b"data"),
        "abort": lambda: hooks.abort(UPLOAD),
        "delete": delete,
        "list": lambda: hooks.list(""),
    }
    with pytest.raises(NotSupported) as caught:
        calls[hook]()
    assert setting in caught.value.hint


# Refusals before the body


class EarlyRefuser:
    """Answer before the body has arrived, keep the connection, and take the next bytes for that body, as uvicorn does."""

    REFUSED = b"<Error><Code>PreconditionFailed</Code></Error>"

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.mixed_up: list[bytes] = []
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection, connection.makefile("rb") as stream:
            while head := self._head(stream):
                size = int(head.get("content-length", "0"))
                if "refused" in head[""]:
                    connection.sendall(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: %d\r\n\r\n" % len(self.REFUSED))
                    connection.sendall(self.REFUSED)
                    if body := stream.read(size):
                        self.mixed_up.append(body[:40])
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    continue
                if "expect" in head:
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                stream.read(size)
                connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 0\r\n\r\n')

    @staticmethod
    def _head(stream: BinaryIO) -> dict[str, str]:
        first = stream.readline().decode()
        found = {"": first} if first else {}
        while (line := stream.readline().decode().strip()) and first:
            name, _, value = line.partition(":")
            found[name.lower()] = value.strip()
        return found


def test_a_connection_that_was_refused_early_is_not_used_again() -> None:
    with closing(EarlyRefuser()) as server:
        hooks = scripted(server.url)
        data = random_bytes(300_000, 1)

        def one(number: int) -> None:
            with pytest.raises(AlreadyExists):
                hooks.write(f"refused-{number}", data)
            hooks.write(f"taken-{number}", data)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(24)))
        assert server.mixed_up == []
        before = server.connections
        for number in range(5):
            hooks.write(f"taken-{number}", data)
        assert server.connections <= before + 1, "connections on which all went well are used again"


# Lists


def test_one_odd_entry_does_not_fail_a_list(server: FaultProxy) -> None:
    inside = (
        "<Contents><Key>a</Key></Contents>"
        "<Contents><Key>b</Key><LastModified>yesterday</LastModified><Size>7</Size></Contents>"
        "<Contents><Size>7</Size></Contents>"
        "<Contents><Key>c</Key><Size>0</Size><Owner/><ETag/></Contents>"
    )
    text = f"<ListBucketResult><Name>events</Name><IsTruncated>false</IsTruncated>{inside}</ListBucketResult>"
    server.fail(Answer(200, text.encode(), XML))
    assert [(one.key, one.size) for one in scripted(server.url).list("").objects] == [("a", 0), ("b", 7), ("c", 0)]


def test_an_empty_object_in_googles_list_may_have_no_size(gcs: GcsServer) -> None:
    """As in storage-testbench: protobuf omits 0 from JSON."""
    hooks = gcs_hooks(environment := gcs.environment(gcs.bucket()))
    hooks.write("empty", b"")
    hooks.write("full", b"data")

    def sizeless(request: Request) -> Answer:
        items = [{"name": "empty", "bucket": "b"}, {"bucket": "b"}, {"name": "full", "size": "4"}]
        body = '{"items": ' + str(items).replace("'", '"') + "}"
        return Answer(200, body.encode(), {"Content-Type": "application/json"})

    with FaultProxy("127.0.0.1", gcs.server_port) as proxy:
        proxy.fail(sizeless, method="GET", target="/o[?]")
        there = gcs_hooks({**environment, "STORAGE_EMULATOR_HOST": proxy.url})
        assert [(one.key, one.size) for one in there.list("").objects] == [("empty", 0), ("full", 4)]


# Checksums


@pytest.mark.parametrize("status", [400, 412])
@pytest.mark.parametrize("said", ["crc32c validation failed", "Provided MD5 hash does not match", "object checksum mismatch"])
def test_googles_refusal_of_a_checksum(gcs: GcsServer, status: int, said: str) -> None:
    """storage-testbench answers 412, which elsewhere means that the object exists."""
    with FaultProxy("127.0.0.1", gcs.server_port) as proxy:
        error = json.dumps({"error": {"code": status, "message": said, "errors": []}}).encode()
        proxy.fail(Answer(status, error, {"Content-Type": "application/json"}), times=ALWAYS)
        hooks = gcs_hooks(gcs.environment(gcs.bucket(), url=proxy.url))
        for call in (lambda: hooks.write("key", b"data"), lambda: hooks.create("key", b"data")):
            with pytest.raises(IntegrityError, match=said):
                call()


def test_a_refusal_that_nothing_explains_is_quoted(gcs: GcsServer) -> None:
    error = '{"error": {"code": 412, "message": "the moon is full", "errors": []}}'
    with FaultProxy("127.0.0.1", gcs.server_port) as proxy:
        proxy.fail(Answer(412, error.encode(), {"Content-Type": "application/json"}), method="POST")
        hooks = gcs_hooks(gcs.environment(gcs.bucket(), url=proxy.url))
        with pytest.raises(Unavailable, match=r"the moon is full.*does not exist now") as caught:
            hooks.write("key", b"data")
        assert caught.value.hint


@pytest.mark.parametrize(
    "code", ["ChecksumMismatch", "InvalidChecksum", "BadChecksum", "XAmzContentChecksumMismatch", "DigestMismatch"]
)
def test_a_checksum_of_s3_by_any_name(server: FaultProxy, code: str) -> None:
    server.fail(refusal(400, code), times=ALWAYS)
    with pytest.raises(IntegrityError, match=code) as caught:
        scripted(server.url).write("key", b"data")
    assert "JOBS_BACKUP_S3_CHECKSUM" in caught.value.hint


# Content-Encoding


@pytest.mark.parametrize("encoding", ["gzip", "", "identity", "aws-chunked"])
def test_googles_service_is_asked_for_the_bytes_as_they_are(gcs: GcsServer, encoding: str) -> None:
    """It decompresses objects marked as gzip unless the request accepts gzip, even if the mark was set later."""
    data = gzip.compress(random_bytes(200_000, 7), mtime=0)
    bucket = gcs.bucket()
    gcs.buckets[bucket]["key"] = Object(data, gcs.next_generation(), {"contentEncoding": encoding} if encoding else {})
    body = gcs_hooks(gcs.environment(bucket)).read("key")
    with body.open() as reader:
        assert reader.read() == data
    with body.open() as reader:
        reader.seek(1000)
        assert reader.read() == data[1000:]
    assert body.crc32c() == crc32c(data)


def _packed(data: bytes) -> Answer:
    return Answer(200, gzip.compress(data), {"Content-Encoding": "gzip"})


def test_a_proxy_that_packs_googles_answers_is_named(gcs: GcsServer) -> None:
    bucket = gcs.bucket()
    gcs_hooks(gcs.environment(bucket)).write("key", b"data" * 1000)
    with FaultProxy("127.0.0.1", gcs.server_port) as proxy:
        proxy.fail(_packed(b"data" * 1000), target="alt=media", times=ALWAYS)
        body = gcs_hooks(gcs.environment(bucket, url=proxy.url)).read("key")
        with pytest.raises(JobsBackupError, match="own bytes") as caught, body.open() as reader:
            reader.read()
        assert "Content-Encoding" in caught.value.hint


@pytest.mark.parametrize("what", ["packs", "ignores ranges"])
def test_what_changes_s3s_answers_is_named(server: FaultProxy, what: str) -> None:
    data = b"data" * 1000

    def get(request: Request) -> Answer:
        if request.headers["range"] == "bytes=0-0":
            return Answer(206, data[:1], {"ETag": '"1"', "Content-Range": f"bytes 0-0/{len(data)}"})
        return Answer(200, data, {"ETag": '"1"', **({"Content-Encoding": "gzip"} if what == "packs" else {})})

    server.fail(get, times=ALWAYS)
    with scripted(server.url).read("key").open() as reader:
        reader.seek(0 if what == "packs" else 100)
        with pytest.raises(IntegrityError, match="own bytes") as caught:
            reader.read()
    assert caught.value.hint


@pytest.mark.parametrize("encoding", ["gzip", "aws-chunked", ""])
def test_s3_gives_the_bytes_as_they_are(server: FaultProxy, encoding: str) -> None:
    data = gzip.compress(random_bytes(50_000, 8), mtime=0)

    def get(request: Request) -> Answer:
        start = int(request.headers["range"].removeprefix("bytes=").split("-")[0])
        part = data[start : start + 1] if request.headers["range"] == "bytes=0-0" else data[start:]
        mark = {"Content-Encoding": encoding} if encoding else {}
        end = start + len(part) - 1
        return Answer(206, part, {"ETag": '"1"', "Content-Range": f"bytes {start}-{end}/{len(data)}", **mark})

    server.fail(get, times=ALWAYS)
    with scripted(server.url).read("key").open() as reader:
        assert reader.read() == data
    assert {request.headers.get("accept-encoding") for request in server.requests} == {"identity"}
