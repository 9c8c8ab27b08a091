"""What servers can't be made to show: answers of a scripted store, regions, TLS, proxies, roles that run out, secrets."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from s3_client import CREATED, KEY_ID, SECRET, STORED, TOKEN, UPLOAD_ID, everything_said, refusal, scripted
from servers import certificate, operations

from jobs_backup.errors import (
    AlreadyExists,
    BucketNotFound,
    ConfigurationError,
    CredentialsExpired,
    IntegrityError,
    JobsBackupError,
    NotSupported,
    PermissionDenied,
    StorageError,
    Throttled,
    Unauthenticated,
    Unavailable,
    Unreachable,
    UploadGone,
)
from jobs_backup.model import Part, Upload
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, Cut, FaultProxy, Request

UPLOAD = Upload(key="key", id=UPLOAD_ID)
PARTS = [Part(number=1, etag='"1"')]


@pytest.fixture
def server() -> Iterator[FaultProxy]:
    """A store that answers as it is told; every request that it was not told about is a 404."""
    with FaultProxy() as server:
        yield server


KMS = "User: arn:aws:iam::1:user/u is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:eu-west-1:1:key/k"
DATE = {"Date": "Sun, 22 Nov 2026 20:00:00 GMT"}


@pytest.mark.parametrize(
    ("answer", "expected", "hint"),
    [
        (refusal(403, "AccessDenied", "Access Denied"), PermissionDenied, r"grant s3:PutObject on arn:aws:s3:::events/prod/\*"),
        (refusal(403, ""), PermissionDenied, "grant s3:PutObject"),
        (refusal(403, "AccessDenied", KMS), PermissionDenied, "grant kms:GenerateDataKey on arn:aws:kms:eu-west-1:1:key/k"),
        (refusal(403, "AccessDenied", "with an explicit deny in a policy"), PermissionDenied, "a policy denies s3:PutObject"),
        (refusal(403, "InvalidAccessKeyId"), Unauthenticated, "check the access key"),
        (refusal(403, "SignatureDoesNotMatch"), Unauthenticated, "check the access key"),
        (refusal(400, "InvalidToken"), Unauthenticated, "AWS_SESSION_TOKEN"),
        (refusal(400, "AuthorizationHeaderMalformed"), Unauthenticated, "access key"),
        (refusal(401, ""), Unauthenticated, "access key"),
        (refusal(400, "ExpiredToken"), CredentialsExpired, "use a role"),
        (refusal(400, "ExpiredTokenException"), CredentialsExpired, "use a role"),
        (
            refusal(403, "RequestTimeTooSkewed", headers=DATE),
            Unauthenticated,
            "clock.*20:00:00",
        ),
        (refusal(404, "NoSuchBucket"), BucketNotFound, "JOBS_BACKUP_BUCKET"),
        (refusal(412, "PreconditionFailed"), AlreadyExists, ""),
        (refusal(409, "ConditionalRequestConflict"), Unavailable, "another request"),
        (refusal(503, "SlowDown"), Throttled, "JOBS_BACKUP_UPLOAD_CONCURRENCY"),
        (refusal(400, "Throttling"), Throttled, "JOBS_BACKUP_UPLOAD_CONCURRENCY"),
        (refusal(429, ""), Throttled, "JOBS_BACKUP_UPLOAD_CONCURRENCY"),
        (refusal(503, "ServiceUnavailable"), Unavailable, "status page"),
        (refusal(500, "InternalError"), Unavailable, "status page"),
        (refusal(502, ""), Unavailable, "status page"),
        (refusal(400, "RequestTimeout"), Unavailable, "firewall"),
        (refusal(400, "BadDigest"), IntegrityError, "JOBS_BACKUP_S3_CHECKSUM"),
        (refusal(400, "InvalidDigest"), IntegrityError, "JOBS_BACKUP_S3_CHECKSUM"),
        (refusal(501, "NotImplemented", Header="If-None-Match"), NotSupported, "JOBS_BACKUP_CONDITIONAL_WRITES=false"),
        (refusal(501, "NotImplemented", Header="x-amz-server-side-encryption"), NotSupported, "JOBS_BACKUP_S3_SSE"),
        (refusal(501, "NotImplemented", Header="x-amz-checksum-crc32c"), NotSupported, "JOBS_BACKUP_S3_CHECKSUM"),
        (refusal(405, "MethodNotAllowed"), NotSupported, "README"),
        (refusal(400, "AccessControlListNotSupported"), NotSupported, "JOBS_BACKUP_S3_ACL"),
        (refusal(400, "KMS.DisabledException"), ConfigurationError, "JOBS_BACKUP_S3_KMS_KEY_ID"),
        (refusal(400, "InvalidStorageClass"), ConfigurationError, "JOBS_BACKUP_S3_STORAGE_CLASS"),
        (refusal(407, ""), Unauthenticated, "JOBS_BACKUP_S3_PROXY"),
        (refusal(418, "Teapot", "short and stout"), StorageError, ""),
        (Answer(200, b"<html>hello</html>"), StorageError, "proxy"),
    ],
)
def test_answers(server: FaultProxy, answer: Answer, expected: type[JobsBackupError], hint: str) -> None:
    """Each refusal is an error of the taxonomy, one line, with a hint; it is asked for exactly once."""
    server.fail(answer, times=ALWAYS)
    with pytest.raises(expected) as caught:
        scripted(server.url).write("prod/key", b"data")
    assert type(caught.value) is expected
    assert str(caught.value).startswith("PutObject s3://events/prod/key: ")
    assert "\n" not in str(caught.value)
    assert re.search(hint, caught.value.hint), caught.value.hint
    assert caught.value.hint or expected in (AlreadyExists, StorageError)
    assert operations(server.requests) == {"PutObject": 1}


def test_unknown_code_is_shown(server: FaultProxy) -> None:
    server.fail(refusal(418, "Teapot", "short\n  and stout"))
    with pytest.raises(StorageError, match=r"^PutObject s3://events/key: Teapot: short and stout$") as caught:
        scripted(server.url).write("key", b"data")
    assert caught.value.retryable


@pytest.mark.parametrize("code", ["SlowDown", "ServiceUnavailable"])
def test_retry_after(server: FaultProxy, code: str) -> None:
    """In seconds, or as the time of a calendar."""
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    for value, expected in (("7", 7.0), (then, 90.0), ("soon", None), ("", None)):
        server.fail(refusal(503, code, headers={"Retry-After": value}))
        with pytest.raises((Throttled, Unavailable)) as caught:
            scripted(server.url).write("key", b"data")
        assert caught.value.retry_after == (expected if expected is None else pytest.approx(expected, abs=3))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal(200, "InternalError", "try again"), Unavailable),
        (refusal(200, "SlowDown"), Throttled),
        (Answer(200), StorageError),
        (Answer(200, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>"), StorageError),
        (refusal(409, "ConditionalRequestConflict"), UploadGone),
        (refusal(412, "PreconditionFailed"), AlreadyExists),
        (refusal(404, "NoSuchUpload"), UploadGone),
        (refusal(400, "InvalidPart"), UploadGone),
        (refusal(400, "BadDigest"), IntegrityError),
    ],
)
def test_completion_is_not_taken_for_granted(server: FaultProxy, answer: Answer, expected: type[JobsBackupError]) -> None:
    """A 200 may carry an error, or nothing; no ETag, no success."""
    server.fail(answer, times=ALWAYS)
    with pytest.raises(expected) as caught:
        scripted(server.url).complete(UPLOAD, PARTS, b"data")
    assert type(caught.value) is expected
    assert UPLOAD_ID not in everything_said(caught.value)
    assert operations(server.requests) == {"CompleteMultipartUpload": 1}
    assert server.requests[0].headers["if-none-match"] == "*"


def test_answered_checksum_is_compared(server: FaultProxy) -> None:
    hooks = scripted(server.url, JOBS_BACKUP_S3_CHECKSUM="crc32c")
    server.fail(Answer(200, headers={"ETag": '"1"', "x-amz-checksum-crc32c": "AAAAAA=="}), times=2)
    with pytest.raises(IntegrityError, match="PutObject"):
        hooks.write("key", b"123456789")
    with pytest.raises(IntegrityError, match="UploadPart"):
        hooks.part(Upload(key="key", id="1", extra={"checksum": "crc32c"}), [b"123456789"], 1)
    server.fail(Answer(200, headers={"ETag": '"1"', "x-amz-checksum-crc32c": "4waSgw=="}))
    hooks.write("key", b"123456789")
    assert server.requests[0].headers["x-amz-checksum-crc32c"] == "4waSgw=="


def test_kms_headers(server: FaultProxy) -> None:
    server.fail(STORED)
    scripted(server.url, JOBS_BACKUP_S3_KMS_KEY_ID="alias/events", JOBS_BACKUP_S3_ACL="bucket-owner-full-control").write("k", b"")
    headers = server.requests[0].headers
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/events"
    assert headers["x-amz-acl"] == "bucket-owner-full-control"


# Deleting


def test_store_without_bulk_delete(server: FaultProxy) -> None:
    """It is asked once whether it has it; single deletes are checked one by one."""
    server.fail(refusal(501, "NotImplemented"), method="POST", times=ALWAYS)
    server.fail(refusal(403, "AccessDenied"), target="/refused")
    server.fail(Answer(204), method="DELETE", times=ALWAYS)
    hooks = scripted(server.url)
    receipt = hooks.delete(["one", "refused", "two"])
    assert receipt.deleted == {"one", "two"}
    assert isinstance(receipt.failed["refused"], PermissionDenied)
    assert hooks.delete(["three"]).deleted == {"three"}
    assert operations(server.requests) == {"DeleteObjects": 1, "DeleteObject": 4}


def test_broken_single_deletes_end_early(server: FaultProxy) -> None:
    server.fail(refusal(501, "NotImplemented"), method="POST")
    server.fail(Answer(204), target="/one")
    server.fail(refusal(500, "InternalError"), method="DELETE", times=ALWAYS)
    hooks = scripted(server.url)
    receipt = hooks.delete(["one", "two", "three"])
    assert receipt.deleted == {"one"}
    assert {type(error) for error in receipt.failed.values()} == {Unavailable}
    assert operations(server.requests)["DeleteObject"] == 2
    with pytest.raises(Unavailable):
        hooks.delete(["two", "three"])


def test_bulk_delete_believes_only_what_is_said(server: FaultProxy) -> None:
    said = (
        b"<DeleteResult><Deleted><Key>gone</Key></Deleted>"
        b"<Error><Key>absent</Key><Code>NoSuchKey</Code></Error>"
        b"<Error><Key>slow</Key><Code>SlowDown</Code></Error></DeleteResult>"
    )
    server.fail(Answer(200, said))
    receipt = scripted(server.url).delete(["gone", "absent", "slow", "not-mentioned"])
    assert receipt.deleted == {"gone", "absent"}
    assert {key: type(error) for key, error in receipt.failed.items()} == {"slow": Throttled, "not-mentioned": StorageError}


@pytest.mark.parametrize(("kind", "sent"), [("auto", "content-md5"), ("none", "content-md5"), ("crc32c", "x-amz-checksum-crc32")])
def test_bulk_delete_has_one_checksum(server: FaultProxy, kind: str, sent: str) -> None:
    server.fail(Answer(200, b"<DeleteResult><Deleted><Key>key</Key></Deleted></DeleteResult>"))
    scripted(server.url, JOBS_BACKUP_S3_CHECKSUM=kind).delete(["key"])
    checksums = {name for name in server.requests[0].headers if name == "content-md5" or name.startswith("x-amz-checksum-")}
    assert checksums == {sent}


# Regions


@pytest.mark.parametrize(
    "answer",
    [
        refusal(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}),
        refusal(307, "TemporaryRedirect", headers={"x-amz-bucket-region": "eu-west-1"}),
        refusal(301, "", headers={"x-amz-bucket-region": "eu-west-1"}),
        refusal(400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'", Region="eu-west-1"),
        refusal(400, "IllegalLocationConstraintException", headers={"x-amz-bucket-region": "eu-west-1"}),
    ],
)
def test_region_is_followed(server: FaultProxy, answer: Answer) -> None:
    """From the answer alone: no HeadBucket, no GetBucketLocation; and it is remembered."""
    server.fail(answer)
    server.fail(STORED, method="PUT", times=ALWAYS)
    hooks = scripted(server.url)
    hooks.write("key", b"data")
    hooks.write("key", b"data")
    assert operations(server.requests) == {"PutObject": 3}
    assert [_signed_for(request) for request in server.requests] == ["us-east-1", "eu-west-1", "eu-west-1"]


def test_region_is_followed_once(server: FaultProxy) -> None:
    for region in ("eu-west-1", "eu-west-2", "eu-west-3"):
        server.fail(refusal(301, "PermanentRedirect", headers={"x-amz-bucket-region": region}))
    with pytest.raises(ConfigurationError):
        scripted(server.url).write("key", b"data")
    assert len(server.requests) == 2


def test_redirect_that_does_not_say_where(server: FaultProxy) -> None:
    server.fail(refusal(301, "PermanentRedirect"), times=ALWAYS)
    with pytest.raises(ConfigurationError, match="PermanentRedirect") as caught:
        scripted(server.url).write("key", b"data")
    assert "AWS_REGION" in caught.value.hint
    assert operations(server.requests) == {"PutObject": 1}


def test_wrong_explicit_region(server: FaultProxy) -> None:
    server.fail(refusal(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}), times=ALWAYS)
    with pytest.raises(ConfigurationError, match="the bucket is in eu-west-1, not in ap-south-1") as caught:
        scripted(server.url, AWS_REGION="ap-south-1").write("key", b"data")
    assert caught.value.hint == "set AWS_REGION=eu-west-1"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({"AWS_DEFAULT_REGION": "eu-north-1"}, "eu-north-1"),
        ({"AWS_S3_REGION_HINT": "eu-south-1"}, "eu-south-1"),
        ({"AWS_REGION": "sa-east-1", "AWS_DEFAULT_REGION": "eu-north-1"}, "sa-east-1"),
    ],
)
def test_where_to_begin(server: FaultProxy, variables: dict[str, str], first: str) -> None:
    server.fail(STORED)
    scripted(server.url, **variables).write("key", b"data")
    assert [_signed_for(request) for request in server.requests] == [first]


def _signed_for(request: Request) -> str:
    return request.headers["authorization"].split("/")[2]


# TLS and proxies


def test_aws_itself_through_a_proxy(tmp_path: Path) -> None:
    """Without an endpoint: the bucket in the host's name, CRC-32C, unsigned payload; a redirect leads to the region's host."""
    tls, bundle = certificate(tmp_path, "*.s3.us-east-1.amazonaws.com", "*.s3.eu-west-1.amazonaws.com")
    with FaultProxy(tls=tls) as amazon, FaultProxy("127.0.0.1", amazon.port) as tunnel:
        amazon.fail(refusal(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}))
        amazon.fail(STORED)
        proxy = f"http://user:canary-password@127.0.0.1:{tunnel.port}"
        hooks = scripted("", JOBS_BACKUP_S3_PROXY=proxy, JOBS_BACKUP_S3_CA_BUNDLE=str(bundle))
        assert hooks.loaded.provider.location == "s3://events"
        hooks.write("key", b"123456789")
    hosts = [request.headers["host"] for request in amazon.requests]
    assert hosts == ["events.s3.us-east-1.amazonaws.com", "events.s3.eu-west-1.amazonaws.com"]
    assert {request.target for request in amazon.requests} == {"/key"}
    assert {request.headers["x-amz-checksum-crc32c"] for request in amazon.requests} == {"4waSgw=="}
    assert {request.body for request in amazon.requests} == {b"123456789"}


def test_plain_proxy(server: FaultProxy) -> None:
    server.fail(STORED)
    scripted("http://store.invalid:8333", JOBS_BACKUP_S3_PROXY=f"127.0.0.1:{server.port}").write("key", b"data")
    assert server.requests[0].target == "http://store.invalid:8333/events/key"


def test_proxy_that_is_not_there() -> None:
    with FaultProxy() as closed:
        pass
    hooks = scripted("http://store.invalid", JOBS_BACKUP_S3_PROXY=f"http://user:canary-password@127.0.0.1:{closed.port}")
    with pytest.raises(Unreachable, match="Connection refused") as caught:
        hooks.write("key", b"data")
    assert "JOBS_BACKUP_S3_PROXY" in caught.value.hint
    assert "canary" not in everything_said(caught.value)


def test_certificate_is_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tls, bundle = certificate(tmp_path)
    with FaultProxy(tls=tls) as server:
        server.fail(STORED, times=ALWAYS)
        with pytest.raises(ConfigurationError, match="certificate") as caught:
            scripted(server.url).write("key", b"data")
        assert "JOBS_BACKUP_S3_CA_BUNDLE" in caught.value.hint
        assert server.requests == []
        scripted(server.url, JOBS_BACKUP_S3_CA_BUNDLE=str(bundle)).write("key", b"data")
        with pytest.raises(ConfigurationError, match="hostname 'localhost' doesn't match"):
            scripted(server.url.replace("127.0.0.1", "localhost"), JOBS_BACKUP_S3_CA_BUNDLE=str(bundle)).write("key", b"data")
        assert len(server.requests) == 1


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_certificate_is_not_checked_if_so_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tls, _ = certificate(tmp_path)
    with FaultProxy(tls=tls) as server:
        server.fail(STORED)
        scripted(server.url, JOBS_BACKUP_S3_VERIFY_TLS="false").write("key", b"data")
    assert "JOBS_BACKUP_S3_VERIFY_TLS is off" in caplog.text


# Roles


def test_role_is_renewed_before_it_runs_out(server: FaultProxy) -> None:
    """Credentials with less than 15 minutes left are replaced; nobody has to start again for it."""
    handed_out = iter(range(1, 100))

    def assume(request: Request) -> Answer:
        number = next(handed_out)
        expires = (datetime.now(UTC) + timedelta(minutes=10 if number == 1 else 60)).strftime("%Y-%m-%dT%H:%M:%SZ")
        inside = (
            f"<AccessKeyId>ASIA{number:016}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            f"<SessionToken>t</SessionToken><Expiration>{expires}</Expiration>"
        )
        name = "AssumeRoleRes"
        text = f"<{name}ponse><{name}ult><Credentials>{inside}</Credentials></{name}ult></{name}ponse>"
        return Answer(200, text.encode(), {"Content-Type": "text/xml"})

    server.fail(assume, method="POST", target="^/$", times=ALWAYS)
    server.fail(STORED, times=ALWAYS)
    arn = "arn:aws:iam::123456789012:role/backup"
    hooks = scripted("", AWS_ENDPOINT_URL=server.url, BACKUP_IAM_ROLE_ARN=arn, JOBS_BACKUP_S3_EXTERNAL_ID="external")
    for _ in range(3):
        hooks.write("key", b"data")
    assumed = [request for request in server.requests if request.method == "POST"]
    assert len(assumed) == 2
    assert all(b"ExternalId=external" in request.body for request in assumed)
    assert [KEY_ID in request.headers["authorization"] for request in assumed] == [True, True]
    puts = [request.headers["authorization"].split("=")[1].split("/")[0] for request in server.requests if request.method == "PUT"]
    assert puts == [f"ASIA{1:016}", f"ASIA{2:016}", f"ASIA{2:016}"]


def test_sts_that_is_not_there(server: FaultProxy) -> None:
    with FaultProxy() as closed:
        pass
    hooks = scripted(server.url, AWS_ENDPOINT_URL_STS=closed.url, BACKUP_IAM_ROLE_ARN="arn:aws:iam::123456789012:role/backup")
    with pytest.raises(Unreachable, match=closed.url):
        hooks.write("key", b"data")
    assert server.requests == []


# Secrets


def test_nobody_sees_a_secret(server: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong: not in an error, its traceback, a repr, or a log line."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "jobs_backup")
    caplog.set_level(logging.DEBUG, "jobs_backup_s3")
    hooks = scripted(server.url)
    server.fail(CREATED, method="POST", target="uploads")
    upload = hooks.create("key", b"data")
    assert upload.id == UPLOAD_ID
    said = [repr(upload), repr(hooks.loaded.provider), repr(vars(hooks.loaded.provider))]
    echo = f"{UPLOAD_ID} {SECRET} {TOKEN} canary%2Fupload%2Bid%3D%3D"
    answers = (refusal(404, "NoSuchUpload", echo, UploadId=UPLOAD_ID), refusal(403, "AccessDenied", echo))
    for fault in (Cut(), Answer(200, b"<no xml"), *answers):
        for call in (
            lambda: hooks.part(upload, [b"data"], 1),
            lambda: hooks.complete(upload, PARTS, b"data"),
            lambda: hooks.abort(upload),
        ):
            server.fail(fault)
            try:
                said.append(repr(call()))
            except JobsBackupError as error:
                said.append(everything_said(error))
    said.append(caplog.text)
    assert len(said) == 16
    everything = "\n".join(said)
    for canary in (UPLOAD_ID, SECRET, TOKEN, "canary%2F", "canary/upload"):
        assert canary not in everything
