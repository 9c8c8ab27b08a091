"""How the provider reaches the store: regions, TLS, proxies, and the credentials of roles."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from s3_client import CREATED, KEY_ID, SECRET, STORED, TOKEN, UPLOAD_ID, everything_said, refusal, scripted
from servers import certificate, operations

from jobs_backup.errors import ConfigurationError, IntegrityError, SpoolCorrupt, Unreachable
from jobs_backup.model import BytesBody, Upload
from jobs_backup.testing.driver import FailingBody, ShortBody
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, FaultProxy, Request


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
    """From the response alone: no HeadBucket, no GetBucketLocation; and it is remembered."""
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
    assert {request.headers["x-amz-content-sha256"] for request in amazon.requests} == {"UNSIGNED-PAYLOAD"}
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


@pytest.mark.parametrize(("body", "expected"), [(FailingBody, SpoolCorrupt), (ShortBody, IntegrityError)])
def test_error_of_the_body_is_not_the_networks(tmp_path: Path, body: type[BytesBody], expected: type[Exception]) -> None:
    """Over TLS the payload is not signed: it is read while it is sent, and the SDK takes any error for a broken connection."""
    tls, bundle = certificate(tmp_path)
    with FaultProxy(tls=tls) as server:
        server.fail(STORED, times=ALWAYS)
        hooks = scripted(server.url, JOBS_BACKUP_S3_CA_BUNDLE=str(bundle), JOBS_BACKUP_S3_CHECKSUM="crc32c")
        with pytest.raises(expected):
            hooks.write("key", body(b"x" * 1_000_000), checksum=0)
        assert [request.status for request in server.requests] == [0], "no answer, and no second attempt"
        hooks.write("key", b"data")


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_certificate_is_not_checked_if_so_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tls, _ = certificate(tmp_path)
    with FaultProxy(tls=tls) as server:
        server.fail(STORED)
        scripted(server.url, JOBS_BACKUP_S3_VERIFY_TLS="false").write("key", b"data")
    assert "JOBS_BACKUP_S3_VERIFY_TLS is off" in caplog.text


# Roles


def test_role_is_renewed_before_it_runs_out(server: FaultProxy) -> None:
    """Credentials with less than 15 minutes left are replaced without a restart."""
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


def test_debug_logs_of_the_sdk_hold_no_secret(server: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    inside = (
        "<AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>canary/of+role</SecretAccessKey>"
        "<SessionToken>canary/token==</SessionToken><Expiration>2100-01-01T00:00:00Z</Expiration>"
    )
    name = "AssumeRoleRes"
    text = f"<{name}ponse><{name}ult><Credentials>{inside}</Credentials></{name}ult></{name}ponse>"
    server.fail(Answer(200, text.encode(), {"Content-Type": "text/xml"}), method="POST", target="^/$", times=ALWAYS)
    server.fail(CREATED, method="POST")
    server.fail(STORED, method="PUT", times=ALWAYS)
    server.fail(refusal(404, "NoSuchUpload", UploadId=UPLOAD_ID), times=ALWAYS)
    for role in ({}, {"BACKUP_IAM_ROLE_ARN": "arn:aws:iam::123456789012:role/backup"}):
        hooks = scripted(server.url, AWS_ENDPOINT_URL=server.url, **role)
        upload = Upload(key="key", id=UPLOAD_ID)
        hooks.part(upload, [b"data"], 1)
        hooks.abort(upload)
    hooks.create("key", b"data")
    assert "botocore" in caplog.text
    assert [secret for secret in ("canary/", UPLOAD_ID, SECRET, TOKEN) if secret in caplog.text] == []


def test_sts_that_is_not_there(server: FaultProxy) -> None:
    with FaultProxy() as closed:
        pass
    hooks = scripted(server.url, AWS_ENDPOINT_URL_STS=closed.url, BACKUP_IAM_ROLE_ARN="arn:aws:iam::123456789012:role/backup")
    with pytest.raises(Unreachable, match=closed.url):
        hooks.write("key", b"data")
    assert server.requests == []
