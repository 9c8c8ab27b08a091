"""A negative answer counts only if it is proven: every hook of every provider, with real stores behind a scripted network.

Whatever another server answers: nothing counts as stored, the bytes stay in the spool, and the error says what to check. Once the
store itself answers again, the object is uploaded once.
"""

# mypy: disable-error-code="override"
# (hooks may take fewer arguments)

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from azurite import Azurite
from buckets import FAST_RETRY
from gcs import GcsServer
from servers import Store
from spools import archiver_of, assert_waits

from jobs_backup import Backup, StorePaused
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import (
    JobsBackupError,
    Unproven,
)
from jobs_backup.model import BytesBody
from jobs_backup.testing.driver import random_bytes
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, FaultProxy

PAGE = b"<html><head><title>412</title></head><body><h1>squid/6.6</h1></body></html>"
XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
STRANGERS = {
    f"{status} {name}": Answer(status, body, headers)
    for status in (304, 409, 412)
    for name, body, headers in (
        ("page", PAGE, {"Content-Type": "text/html", "Server": "squid/6.6"}),
        ("nothing", b"", {}),
        ("json", b'{"error":"precondition failed"}', {"Content-Type": "application/json"}),
    )
    if status != 304 or name == "nothing"
}
PAGES = {f"{status} page": Answer(status, PAGE, {"Content-Type": "text/html", "ETag": '"5e8f-62a1"'}) for status in (200, 201, 404)}


@dataclass
class Bucket:
    """A bucket reached through a network.

    Attributes:
        requests: hook -> method, and what its target matches.
        exists: the store's own refusal.
        mismatch: the answer to `write` after which the store has other bytes, or has received some.
    """

    proxy: FaultProxy
    environment: Mapping[str, str]
    objects: Callable[[], dict[str, bytes]]
    requests: Mapping[str, tuple[str, str]]
    exists: Answer
    mismatch: Answer

    def fail(self, hook: str, answer: Answer, times: int = ALWAYS) -> None:
        method, target = self.requests[hook]
        self.proxy.fail(answer, method=method, target=target, times=times)

    def events(self) -> list[Any]:
        lines = [line for data in self.objects().values() for line in gzip.decompress(data).splitlines()]
        return [json.loads(line)["payload"]["n"] for line in lines]


@pytest.fixture
def s3(store: Store, bucket: str) -> Iterator[Bucket]:
    refused = Answer(
        412, f"{XML}<Error><Code>PreconditionFailed</Code><Message>no</Message></Error>".encode(), {"x-amz-request-id": "1"}
    )
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        yield Bucket(
            proxy,
            store.environment(bucket, "all", url=proxy.url),
            lambda: {key: store.get(bucket, key) for key in store.keys(bucket)},
            {
                "write": ("PUT", r"gz$"),
                "create_multipart": ("POST", r"\?uploads"),
                "write_part": ("PUT", "partNumber="),
                "complete_multipart": ("POST", "uploadId="),
                "abort_multipart": ("DELETE", "uploadId="),
                "delete": ("POST", r"\?delete"),
            },
            refused,
            Answer(200, b"", {"ETag": '"1"', "x-amz-checksum-crc32c": "AAAAAA==", "x-amz-request-id": "1"}),
        )


@pytest.fixture
def google(gcs: GcsServer) -> Iterator[Bucket]:
    def answer(status: int, document: Any) -> Answer:
        return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    bucket = gcs.bucket()
    with FaultProxy("127.0.0.1", gcs.server_port, keep=0) as proxy:
        yield Bucket(
            proxy,
            gcs.environment(bucket, url=proxy.url),
            lambda: {key: found.data for key, found in gcs.buckets[bucket].items()},
            {
                "write": ("POST", "uploadType=multipart"),
                "create_multipart": ("POST", "uploadType=resumable"),
                "write_part": ("PUT", "upload_id="),
                "abort_multipart": ("DELETE", "upload_id="),
                "delete": ("DELETE", "/storage/v1/b"),
            },
            answer(412, {"error": {"code": 412, "message": "no", "errors": [{"reason": "conditionNotMet"}]}}),
            answer(200, {"generation": "1", "crc32c": "AAAAAA=="}),
        )


@pytest.fixture
def azure_blob(azure: Azurite) -> Iterator[Bucket]:
    def refused(status: int, code: str) -> Answer:
        text = f"{XML}<Error><Code>{code}</Code><Message>no</Message></Error>"
        return Answer(status, text.encode(), {"Content-Type": "application/xml", "x-ms-request-id": "1", "x-ms-error-code": code})

    container = azure.container()
    with FaultProxy("127.0.0.1", azure.port, keep=0) as proxy:
        yield Bucket(
            proxy,
            azure.environment(container, url=proxy.url),
            lambda: {key: azure.get(container, key) for key in azure.keys(container)},
            {
                "write": ("PUT", r"gz$"),
                "write_part": ("PUT", "comp=block&"),
                "complete_multipart": ("PUT", "comp=blocklist"),
                "delete": ("DELETE", ""),
            },
            refused(409, "BlobAlreadyExists"),
            refused(400, "Md5Mismatch"),
        )


@pytest.fixture(params=["s3", "google", "azure_blob"])
def at(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


IN_PARTS = {"JOBS_BACKUP_MULTIPART_THRESHOLD": "1MiB", "JOBS_BACKUP_PART_SIZE": "5MiB"}
UNCONDITIONAL = {"JOBS_BACKUP_CONDITIONAL_WRITES": "false"}
LARGE = random_bytes(1 << 20, 1).hex()


def opened(at: Bucket, tmp_path: Path, **variables: str) -> Backup:
    spool = str(tmp_path / "spool")
    return Backup.from_env({**at.environment, **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": spool, **variables})


def record(backup: Backup) -> JobsBackupError:
    """Record an event that cannot be uploaded; `flush` reports it."""
    backup.record({"n": 1, "x": LARGE}, source_id="web")
    with pytest.raises(StorePaused) as caught:
        backup.flush(timeout=120)
    assert caught.value.hint
    return assert_waits(backup)


def arrives(at: Bucket, tmp_path: Path, variables: Mapping[str, str]) -> None:
    """Check that the event arrives once, after the store itself answers."""
    at.proxy.clear()
    with opened(at, tmp_path, **variables) as backup:
        assert archiver_of(backup).drain(120)
        assert not session_of(backup).spool.waiting()
    assert at.events() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["write", "create_multipart", "write_part", "complete_multipart"])
@pytest.mark.parametrize("stranger", [*STRANGERS, *PAGES])
@pytest.mark.sample(40)
def test_a_strangers_answer_stores_nothing(at: Bucket, tmp_path: Path, hook: str, stranger: str) -> None:
    if hook not in at.requests:
        pytest.skip("this store has no request for it")
    at.fail(hook, (STRANGERS | PAGES)[stranger])
    variables = {} if hook == "write" else IN_PARTS
    with opened(at, tmp_path, **variables) as backup:
        record(backup)
    assert at.objects() == {}
    arrives(at, tmp_path, variables)


@pytest.mark.parametrize("hook", ["write", "write_part"])
@pytest.mark.parametrize("status", [200, 201, 404, 412, 503])
@pytest.mark.parametrize(
    "body", [b"null", b'"text"', b'["list"]', b'{"generation":"x"}', b'{"error":"text"}', b'{"error":' * 20_000], ids=range(6)
)
@pytest.mark.sample(20)
def test_json_of_any_shape_is_an_answer_that_stores_nothing(
    google: Bucket, tmp_path: Path, hook: str, status: int, body: bytes
) -> None:
    google.fail(hook, Answer(status, body, {"Content-Type": "application/json"}))
    variables = {} if hook == "write" else IN_PARTS
    with opened(google, tmp_path, **variables) as backup:
        assert "failed: " not in record(backup).message  # as for an exception that the provider does not expect
    assert google.objects() == {}
    arrives(google, tmp_path, variables)


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["write", "create_multipart", "write_part", "complete_multipart"])
def test_exists_without_the_condition_stores_nothing(at: Bucket, tmp_path: Path, hook: str) -> None:
    """In the store's own words, to a request without the condition."""
    if hook not in at.requests:
        pytest.skip("this store has no request for it")
    at.fail(hook, at.exists)
    variables = UNCONDITIONAL if hook == "write" else IN_PARTS | UNCONDITIONAL
    with opened(at, tmp_path, **variables) as backup:
        record(backup)
    arrives(at, tmp_path, variables)


@pytest.mark.parametrize("hook", ["create_multipart", "write_part"])
def test_s3_gives_no_condition_to_an_upload_and_its_parts(s3: Bucket, tmp_path: Path, hook: str) -> None:
    s3.fail(hook, s3.exists)
    with opened(s3, tmp_path, **IN_PARTS) as backup:
        record(backup)


def test_exists_in_the_stores_own_words_is_stored(at: Bucket, tmp_path: Path) -> None:
    """The response to the first attempt is lost."""
    at.fail("write", Answer(503), times=1)  # the store may have it
    at.fail("write", at.exists)
    get = Answer(403, b'{"error":{"code":403,"message":"no right to look"}}', {"Content-Type": "application/json"})
    at.proxy.fail(get, method="GET", times=ALWAYS)
    with opened(at, tmp_path) as backup:
        backup.record({"n": 1}, source_id="web")
        backup.flush(120)
        assert archiver_of(backup).sent.objects == 1


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 405, 416, 429, 500, 503, 504])
def test_exists_with_a_status_that_contradicts_it_stores_nothing(at: Bucket, tmp_path: Path, status: int) -> None:
    """The store's own words and headers, as a gateway may repeat them."""
    at.fail("write", dataclasses.replace(at.exists, status=status))
    with opened(at, tmp_path) as backup:
        record(backup)
    assert at.objects() == {}
    arrives(at, tmp_path, {})


def test_a_mismatch_and_then_exists_stores_nothing_also_after_a_restart(at: Bucket, tmp_path: Path) -> None:
    at.fail("write", at.mismatch, times=1)
    at.fail("write", at.exists)
    get = Answer(403, b'{"error":{"code":403,"message":"no right to look"}}', {"Content-Type": "application/json"})
    at.proxy.fail(get, method="GET", times=ALWAYS)
    with opened(at, tmp_path) as backup:
        assert isinstance(record(backup), Unproven)
        key = next(iter(session_of(backup).store._proof._doubted))
    for _ in range(2):
        with opened(at, tmp_path) as backup:
            error = assert_waits(backup)
            assert isinstance(error, Unproven)
            assert key in error.message
            assert "delete it" in error.hint
    arrives(at, tmp_path, {})  # the object was deleted


@pytest.mark.slow
def test_the_same_in_parts(s3: Bucket, tmp_path: Path) -> None:
    """The completion returns another checksum; then another upload finds the object."""
    result = "CompleteMultipartUploadResult"
    document = f"{XML}<{result}><ETag>1</ETag><ChecksumCRC32C>AAAAAA==</ChecksumCRC32C></{result}>"
    s3.fail("complete_multipart", Answer(200, document.encode(), {"x-amz-request-id": "1"}), times=1)
    s3.fail("complete_multipart", s3.exists)
    with opened(s3, tmp_path, **IN_PARTS) as backup:
        assert isinstance(record(backup), Unproven)
    with opened(s3, tmp_path, **IN_PARTS) as backup:
        assert isinstance(assert_waits(backup), Unproven)
    arrives(s3, tmp_path, IN_PARTS)


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["delete", "abort_multipart"])
@pytest.mark.parametrize("stranger", [*STRANGERS, *PAGES, "302 page"])
@pytest.mark.sample(24)
def test_a_strangers_answer_ends_no_upload_and_deletes_nothing(at: Bucket, tmp_path: Path, hook: str, stranger: str) -> None:
    if hook not in at.requests:
        pytest.skip("this store has no request for it")
    answer = (STRANGERS | PAGES).get(stranger, Answer(302, PAGE, {"Content-Type": "text/html", "Location": at.proxy.url}))
    with opened(at, tmp_path) as backup:
        hooks = session_of(backup).store._manager.hook
        body = BytesBody(b"data")
        about = {"key": "key", "size": 4, "checksum": body.crc32c(), "content_type": "x/y", "metadata": {}, "if_absent": True}
        if hook == "delete":
            hooks.write(body=body, timeout=20, **about)
        else:
            upload = hooks.create_multipart(timeout=20, **about)
        at.fail(hook, answer)
        try:
            receipt = (
                hooks.delete(keys=["key"], timeout=20) if hook == "delete" else hooks.abort_multipart(upload=upload, timeout=20)
            )
        except JobsBackupError as error:
            assert error.hint
        else:
            assert hook == "delete", receipt
            assert receipt.deleted == frozenset()
            assert receipt.failed["key"].hint
        if hook == "delete":
            assert at.objects() == {"key": b"data"}
