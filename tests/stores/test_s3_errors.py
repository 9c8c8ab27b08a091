"""Responses that real servers cannot be made to send, from a scripted store: each is an error with a hint and without secrets."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from s3_client import CREATED, SECRET, STORED, TOKEN, UPLOAD_ID, everything_said, refusal, scripted
from servers import operations

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
    UploadGone,
)
from jobs_backup.model import Part, Upload
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, Cut, FaultProxy

UPLOAD = Upload(key="key", id=UPLOAD_ID)
PARTS = [Part(number=1, etag='"1"')]


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
    """Each refusal is an error of the taxonomy, one line, with a hint; there is exactly one request."""
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
    with pytest.raises(StorageError, match=r"(?m)^PutObject s3://events/key: Teapot: short and stout$") as caught:
        scripted(server.url).write("key", b"data")
    assert caught.value.retryable


@pytest.mark.parametrize("code", ["SlowDown", "ServiceUnavailable"])
def test_retry_after(server: FaultProxy, code: str) -> None:
    """In seconds, or as an HTTP date."""
    then = format_datetime(datetime.now(UTC) + timedelta(minutes=50), usegmt=True)
    for value, expected in (("7", 7.0), (then, 3000.0), ("soon", None), ("", None)):
        server.fail(refusal(503, code, headers={"Retry-After": value}))
        with pytest.raises((Throttled, Unavailable)) as caught:
            scripted(server.url).write("key", b"data")
        assert caught.value.retry_after == (expected if expected is None else pytest.approx(expected, abs=300))


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
    """A 200 may contain an error, or nothing; without an ETag it is not a success."""
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
    """Support is asked for once; single deletes are checked one by one."""
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


# Secrets


def test_nobody_sees_a_secret(server: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    """In no failure: not in an error, its traceback, a repr, or a log line."""
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
