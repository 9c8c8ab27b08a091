"""S3, MinIO and Spaces on real servers: requests, permissions, uploaded bytes, and network failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import SUPPORT
from s3_client import open_s3
from servers import Moto, Store, operations, policy, weed

from jobs_backup.errors import (
    AlreadyExists,
    BucketNotFound,
    ConfigurationError,
    IntegrityError,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from jobs_backup.model import BytesBody, Outcome
from jobs_backup.testing.driver import Hooks, random_bytes
from jobs_backup.testing.fault_proxy import Cut, Delay, FaultProxy, Swallow

MIB = 1 << 20
PARTS = [random_bytes(5 * MIB, 1), b"the rest"]
WHOLE = b"".join(PARTS)


@pytest.fixture
def proxy(store: Store) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", store.port) as proxy:
        yield proxy


@pytest.fixture
def put_only(store: Store, bucket: str, proxy: FaultProxy) -> Hooks:
    """The owner's permissions: s3:PutObject and s3:AbortMultipartUpload, nothing else."""
    return open_s3(store.environment(bucket, "put-only", url=proxy.url))


# Least privilege


def test_put_only_identity_suffices(put_only: Hooks, proxy: FaultProxy, store: Store, bucket: str) -> None:
    put_only.write("one", b"data")
    with pytest.raises(AlreadyExists):
        put_only.write("one", b"other")
    upload = put_only.create("two", WHOLE)
    parts = [put_only.part(upload, PARTS, number) for number in (1, 2)]
    put_only.complete(upload, parts, WHOLE)
    aborted = put_only.create("three", WHOLE)
    assert put_only.abort(aborted) is Outcome.ABORTED
    assert store.keys(bucket) == ["one", "two"]
    assert store.get(bucket, "two") == WHOLE
    assert store.open_uploads(bucket) == []
    assert operations(proxy.requests) == {
        "PutObject": 2,
        "CreateMultipartUpload": 2,
        "UploadPart": 2,
        "CompleteMultipartUpload": 1,
        "AbortMultipartUpload": 1,
    }


def test_refused_delete_is_reported_for_each_key(put_only: Hooks, proxy: FaultProxy, store: Store, bucket: str) -> None:
    put_only.write("one", b"data")
    receipt = put_only.delete(["one", "two"])
    assert receipt.deleted == frozenset()
    for key in ("one", "two"):
        error = receipt.failed[key]
        assert isinstance(error, PermissionDenied)
        assert (error.action, error.resource) == ("s3:DeleteObject", f"arn:aws:s3:::{bucket}/*")
        assert f"s3://{bucket}/{key}" in str(error)
    assert operations(proxy.requests) == {"PutObject": 1, "DeleteObjects": 1}
    assert store.keys(bucket) == ["one"]


def test_delete_needs_s3_delete_object_alone(store: Store, bucket: str) -> None:
    hooks = open_s3(store.environment(bucket, "put-delete"))
    hooks.write("one", b"data")
    assert hooks.delete(["one"]).failed == {}
    assert store.keys(bucket) == []


def test_denied_write_names_permission_and_resource(store: Store, bucket: str) -> None:
    hooks = open_s3(store.environment(bucket, "nothing"), JOBS_BACKUP_PREFIX="prod/web")
    with pytest.raises(PermissionDenied) as caught:
        hooks.write("prod/web/key", b"data")
    assert caught.value.action == "s3:PutObject"
    assert caught.value.resource == f"arn:aws:s3:::{bucket}/prod/web/*"
    assert str(caught.value) == f"PutObject s3://{bucket}/prod/web/key: AccessDenied: Access Denied"
    assert caught.value.hint == f"grant s3:PutObject on arn:aws:s3:::{bucket}/prod/web/*"
    assert not caught.value.retryable


def test_missing_abort_permission_is_named(aws: Moto) -> None:
    bucket = aws.bucket()
    aws.add_identity("no-abort", policy("s3:PutObject"))
    aws.add_identity("with-abort", policy("s3:PutObject", "s3:AbortMultipartUpload"))
    hooks = open_s3(aws.environment(bucket, "no-abort"))
    with aws.enforce():
        upload = hooks.create("key", b"data")
        hooks.part(upload, [b"data"], 1)
        with pytest.raises(PermissionDenied) as caught:
            hooks.abort(upload)
    assert (caught.value.action, caught.value.resource) == ("s3:AbortMultipartUpload", f"arn:aws:s3:::{bucket}/*")
    assert aws.open_uploads(bucket) == ["key"]
    with aws.enforce():
        assert open_s3(aws.environment(bucket, "with-abort")).abort(upload) is Outcome.ABORTED
    assert aws.open_uploads(bucket) == []


def test_printed_policy_is_what_suffices(tmp_path: Path) -> None:
    """The store's identities have the policies that the provider prints, and the purposes of these policies work."""
    variables = {"JOBS_BACKUP_BUCKET": "events", "JOBS_BACKUP_PREFIX": "prod"}
    provider = open_s3(variables)
    policies = {
        "writes": json.loads(provider.policy(variables, delete=False, replay=False).text),
        "everything": json.loads(provider.policy(variables, delete=True, replay=True).text),
    }
    with weed(tmp_path / "weed", policies) as store:
        store.bucket("events")
        writes = open_s3(store.environment("events", "writes"), **variables)
        everything = open_s3(store.environment("events", "everything"), **variables)
        writes.write("prod/one", b"data")
        with pytest.raises(PermissionDenied):
            writes.write("elsewhere/one", b"data")
        with pytest.raises(PermissionDenied, match="s3://events/prod/one"):
            writes.read("prod/one")
        assert not writes.delete(["prod/one"]).deleted
        with everything.read("prod/one").open() as reader:
            assert reader.read() == b"data"
        assert [one.key for one in everything.list("prod/").objects] == ["prod/one"]
        assert everything.delete(["prod/one"]).failed == {}
        assert store.keys("events") == []


# Wrong settings


def test_wrong_credentials(store: Store, bucket: str) -> None:
    good = store.environment(bucket)
    with pytest.raises(Unauthenticated, match="SignatureDoesNotMatch") as caught:
        open_s3(good, AWS_SECRET_ACCESS_KEY="wrong").write("key", b"data")
    assert "access key" in caught.value.hint
    with pytest.raises(Unauthenticated, match="InvalidAccessKeyId"):
        open_s3(good, AWS_ACCESS_KEY_ID="AKIANOBODY").write("key", b"data")


def test_no_credentials_at_all(store: Store, bucket: str) -> None:
    environment = {name: value for name, value in store.environment(bucket).items() if "KEY" not in name}
    hooks = open_s3(environment)
    for _ in range(2):
        with pytest.raises(Unauthenticated) as caught:
            hooks.write("key", b"data")
        assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_default_chain_is_asked_again(store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that appear later (an instance's, a mounted file) are found without a restart."""
    environment = {name: value for name, value in store.environment(bucket).items() if "KEY" not in name}
    hooks = open_s3(environment)
    with pytest.raises(Unauthenticated):
        hooks.write("key", b"data")
    who = store.identities["put-only"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", who.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", who.secret_key)
    hooks.write("key", b"data")
    assert store.keys(bucket) == ["key"]


def test_no_such_bucket(store: Store) -> None:
    with pytest.raises(BucketNotFound, match="PutObject s3://no-such-bucket/key: NoSuchBucket") as caught:
        open_s3(store.environment("no-such-bucket")).write("key", b"data")
    assert "JOBS_BACKUP_BUCKET" in caught.value.hint


def test_nobody_listens(store: Store, bucket: str) -> None:
    with FaultProxy() as closed:
        pass
    hooks = open_s3(store.environment(bucket, url=closed.url))
    with pytest.raises(Unreachable, match=f"PutObject s3://{bucket}/key: {closed.url}: Connection refused") as caught:
        hooks.write("key", b"data")
    assert caught.value.retryable
    with pytest.raises(Unreachable, match=r"http://no-such-host\.invalid"):
        open_s3(store.environment(bucket, url="http://no-such-host.invalid")).write("key", b"data")


def test_tls_to_a_store_without_it(store: Store, bucket: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_s3(store.environment(bucket, url=store.url.replace("http:", "https:"))).write("key", b"data")
    assert "http://" in caught.value.hint


# The network


def test_cut_request_is_one_attempt(put_only: Hooks, proxy: FaultProxy, store: Store, bucket: str) -> None:
    proxy.fail(Cut(after=100_000), method="PUT")
    with pytest.raises(Unavailable, match=r"Connection reset by peer|Broken pipe|closed") as caught:
        put_only.write("key", random_bytes(MIB, 2))
    assert caught.value.retryable
    assert not isinstance(caught.value, Unreachable), "something may have arrived"
    assert len(proxy.requests) == 1
    assert store.keys(bucket) == []


def test_cut_part_is_sent_again_alone(put_only: Hooks, proxy: FaultProxy, store: Store, bucket: str) -> None:
    upload = put_only.create("key", WHOLE)
    last = put_only.part(upload, PARTS, 2)
    proxy.fail(Cut(after=MIB), target="partNumber=1")
    with pytest.raises(Unavailable) as caught:
        put_only.part(upload, PARTS, 1)
    assert upload.id not in caught.value.one_line()
    put_only.complete(upload, [put_only.part(upload, PARTS, 1), last], WHOLE)
    assert store.get(bucket, "key") == WHOLE
    assert operations(proxy.requests)["UploadPart"] == 3


def test_swallowed_answer(put_only: Hooks, proxy: FaultProxy, store: Store, bucket: str) -> None:
    """The object exists, but the response was lost: the next attempt learns that it exists."""
    proxy.fail(Swallow(), method="PUT")
    with pytest.raises(Unavailable):
        put_only.write("key", b"data")
    assert store.keys(bucket) == ["key"]
    with pytest.raises(AlreadyExists):
        put_only.write("key", b"data")
    assert len(proxy.requests) == 2


def test_silent_store_is_given_up(put_only: Hooks, proxy: FaultProxy) -> None:
    proxy.fail(Delay(30), method="PUT")
    began = time.monotonic()
    with pytest.raises(Unavailable, match="timed out"):
        put_only.loaded.manager.hook.write(
            key="key",
            body=BytesBody(b"data"),
            size=4,
            checksum=BytesBody(b"data").crc32c(),
            content_type="application/gzip",
            metadata={},
            if_absent=True,
            timeout=0.5,
        )
    assert time.monotonic() - began > 0.4
    assert len(proxy.requests) == 1


def test_forked_process_has_its_own_connections(store: Store, bucket: str) -> None:
    """Parent and child keep writing at the same time; on a shared connection they would read each other's responses."""
    script = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
from s3_client import open_s3
hooks = open_s3(json.load(sys.stdin))
hooks.write("before", b"data")
child = os.fork()
name = "parent" if child else "child"
for number in range(20):
    hooks.write(f"{name}-{number}", b"data")
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(store.environment(bucket)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    assert len(store.keys(bucket)) == 41


# Checksums


@pytest.mark.parametrize(
    ("kind", "sent", "not_sent"),
    [
        ("auto", {"content-md5"}, {"x-amz-checksum-crc32c", "x-amz-checksum-crc32"}),
        ("crc32c", {"x-amz-checksum-crc32c"}, {"content-md5", "x-amz-checksum-crc32"}),
        ("none", set(), {"content-md5", "x-amz-checksum-crc32c", "x-amz-checksum-crc32"}),
    ],
)
def test_checksums_that_are_sent(
    store: Store, bucket: str, proxy: FaultProxy, kind: str, sent: set[str], not_sent: set[str]
) -> None:
    hooks = open_s3(store.environment(bucket, url=proxy.url), JOBS_BACKUP_S3_CHECKSUM=kind)
    hooks.write("key", b"data")
    upload = hooks.create("parts", b"data")
    part = hooks.part(upload, [b"data"], 1)
    hooks.complete(upload, [part], b"data")
    for request in [request for request in proxy.requests if request.method == "PUT"]:
        assert sent <= request.headers.keys()
        assert not not_sent & request.headers.keys()
        assert "aws-chunked" not in request.headers.get("content-encoding", "")
    assert (part.crc32c is not None) is (kind == "crc32c")
    assert store.keys(bucket) == ["key", "parts"]


class _ChangingBody(BytesBody):
    """Returns other bytes from its `good`-th opening on: bytes that change between the checksum and the upload."""

    def __init__(self, data: bytes, good: int) -> None:
        super().__init__(data)
        self._good = good

    def open(self):  # type: ignore[no-untyped-def]
        self._good -= 1
        return super().open() if self._good >= 0 else BytesBody(b"x" * self.size).open()


@pytest.mark.parametrize(("kind", "opened_before"), [("md5", 2), ("crc32c", 0)])
def test_store_refuses_other_bytes(store: Store, bucket: str, proxy: FaultProxy, kind: str, opened_before: int) -> None:
    """The store, not our own check of the body, finds it: the request is sent and refused."""
    hooks = open_s3(store.environment(bucket, url=proxy.url), JOBS_BACKUP_S3_CHECKSUM=kind)
    body = _ChangingBody(b"data", opened_before)
    with pytest.raises(IntegrityError, match="BadDigest"):
        hooks.write("key", body, checksum=BytesBody(b"data").crc32c())
    assert [request.status for request in proxy.requests] == [400]
    assert store.keys(bucket) == []


def test_upload_keeps_its_kind_of_checksum(store: Store, bucket: str) -> None:
    """An upload started before the setting changed continues with its old setting."""
    environment = store.environment(bucket)
    upload = open_s3(environment, JOBS_BACKUP_S3_CHECKSUM="crc32c").create("key", WHOLE)
    first = open_s3(environment, JOBS_BACKUP_S3_CHECKSUM="crc32c").part(upload, PARTS, 1)
    later = open_s3(environment, JOBS_BACKUP_S3_CHECKSUM="md5")
    later.complete(upload, [first, later.part(upload, PARTS, 2)], WHOLE)
    assert store.get(bucket, "key") == WHOLE


def test_options_arrive(store: Store, bucket: str, proxy: FaultProxy) -> None:
    hooks = open_s3(store.environment(bucket, url=proxy.url), AWS_ENABLE_SSE="true", JOBS_BACKUP_S3_STORAGE_CLASS="STANDARD_IA")
    hooks.write("key", b"data")
    hooks.create("parts", b"data")
    for request in proxy.requests:
        assert request.headers["x-amz-server-side-encryption"] == "AES256"
        assert request.headers["x-amz-storage-class"] == "STANDARD_IA"
        assert request.headers["x-amz-meta-jobs-backup-batch"] == "1"
        assert request.headers["content-type"] == "application/gzip"
        assert "x-amz-acl" not in request.headers
    stored = store.admin.head_object(Bucket=bucket, Key="key")
    assert stored["ServerSideEncryption"] == "AES256"
    assert stored["Metadata"] == {"jobs-backup-batch": "1", "jobs-backup-events": "2"}


# Roles


def test_role_with_external_id(aws: Moto) -> None:
    bucket = aws.bucket()
    arn = aws.add_role("backup", policy("s3:PutObject"))
    aws.add_identity("assumes", policy("sts:AssumeRole", resources=["*"]))
    with FaultProxy("127.0.0.1", aws.port) as proxy:
        environment = aws.environment(bucket, "assumes", url=proxy.url)
        environment |= {"BACKUP_IAM_ROLE_ARN": arn, "JOBS_BACKUP_WORKSPACE_ID": "workspace-1", "AWS_ENDPOINT_URL_STS": proxy.url}
        hooks = open_s3(environment)
        with aws.enforce():
            hooks.write("one", b"data", if_absent=False)
            hooks.write("two", b"data", if_absent=False)
        sts, *puts = proxy.requests
    assert b"Action=AssumeRole" in sts.body
    assert b"ExternalId=workspace-1" in sts.body
    assert [request.method for request in puts] == ["PUT", "PUT"]
    assert all("x-amz-security-token" in request.headers for request in puts)
    assert aws.keys(bucket) == ["one", "two"]


def test_role_that_may_not_be_taken(aws: Moto) -> None:
    bucket = aws.bucket()
    arn = aws.add_role("forbidden", policy("s3:PutObject"))
    aws.add_identity("may-nothing", policy("s3:PutObject"))
    environment = aws.environment(bucket, "may-nothing")
    hooks = open_s3(environment, BACKUP_IAM_ROLE_ARN=arn, AWS_ENDPOINT_URL_STS=aws.url)
    with aws.enforce(), pytest.raises(PermissionDenied) as caught:
        hooks.write("key", b"data")
    assert (caught.value.action, caught.value.resource) == ("sts:AssumeRole", arn)
    assert str(caught.value).startswith("AssumeRole ")
