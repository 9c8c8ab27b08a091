"""Rotating credentials: a running process uses the file's current ones, at the latest in the attempt after a refusal."""

from __future__ import annotations

import base64
import json
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

import pytest
from buckets import FAST_RETRY
from gcs import private_key, service_account
from s3_client import CREATED, STORED, open_s3, refusal
from spools import archiver_of

from jobs_backup import Backup
from jobs_backup.errors import ConfigurationError, JobsBackupError, PermissionDenied, Unauthenticated
from jobs_backup.model import Part, Upload
from jobs_backup.store import providers
from jobs_backup.testing.driver import Hooks
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, FaultProxy, Request

OLD, NEW = "AKIAOLD", "AKIANEW"
EXPIRED: Final = {
    "ExpiredToken": refusal(400, "ExpiredToken"),
    "InvalidAccessKeyId": refusal(403, "InvalidAccessKeyId"),
    "SignatureDoesNotMatch": refusal(403, "SignatureDoesNotMatch"),
    "InvalidToken": refusal(400, "InvalidToken"),
    "401": refusal(401, ""),
    "AccessDenied": refusal(403, "AccessDenied"),
}


def signer(request: Request) -> str:
    """The access key that signed a request."""
    found = re.search(r"Credential=([^/]+)/", request.headers.get("authorization", ""))
    return found[1] if found else ""


class Rotating:
    """A scripted store that accepts one access key and refuses all others."""

    def __init__(self, server: FaultProxy) -> None:
        self.server = server
        self.good = OLD
        self.refusal = EXPIRED["ExpiredToken"]
        server.fail(self._answer, times=ALWAYS)

    def _answer(self, request: Request) -> Answer:
        if signer(request) != self.good:
            return self.refusal
        if request.method == "POST" and "uploads" in request.target:
            return CREATED
        if request.method == "POST" and "delete" in request.target:
            return Answer(200, b"<DeleteResult><Deleted><Key>key</Key></Deleted></DeleteResult>")
        if request.method == "POST":
            return Answer(200, b"<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>")
        if request.method == "GET":
            return Answer(200, b"<ListBucketResult><Name>events</Name></ListBucketResult>", {"ETag": '"1"'})
        return Answer(204) if request.method == "DELETE" else STORED

    def signers(self) -> list[str]:
        return [signer(request) for request in self.server.requests]


@pytest.fixture(scope="module")
def key() -> str:
    return private_key()


@pytest.fixture
def store_that_rotates() -> Iterator[Rotating]:
    with FaultProxy() as server:
        yield Rotating(server)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write the shared credentials file."""
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))

    def write(access_key: str) -> None:
        new = tmp_path / "credentials.new"
        new.write_text(f"[default]\naws_access_key_id={access_key}\naws_secret_access_key=s{access_key}\naws_session_token=t\n")
        new.replace(path)

    write(OLD)
    return write


def s3_at(store: Rotating, **more: str) -> Hooks:
    return open_s3({"JOBS_BACKUP_BUCKET": "events", "AWS_ENDPOINT_URL_S3": store.server.url, "AWS_REGION": "us-east-1"}, **more)


UPLOAD = Upload(key="key", id="id")
CALLS: Final[dict[str, Callable[[Hooks], object]]] = {
    "write": lambda hooks: hooks.write("key", b"data"),
    "create_multipart": lambda hooks: hooks.create("key", b"data"),
    "write_part": lambda hooks: hooks.part(UPLOAD, [b"data"], 1),
    "complete_multipart": lambda hooks: hooks.complete(UPLOAD, [Part(number=1, etag="1")], b"data"),
    "abort_multipart": lambda hooks: hooks.abort(UPLOAD),
    "delete": lambda hooks: hooks.delete(["key"]),
    "list": lambda hooks: hooks.list(""),
}


@pytest.mark.parametrize("hook", CALLS)
def test_each_hook_that_meets_an_expiry_has_the_file_read_again(
    store_that_rotates: Rotating, shared: Callable[[str], None], hook: str
) -> None:
    hooks = s3_at(store_that_rotates)
    hooks.write("key", b"data")
    store_that_rotates.good = NEW
    shared(NEW)
    with pytest.raises(Unauthenticated):
        CALLS[hook](hooks)
    CALLS[hook](hooks)
    assert store_that_rotates.signers() == [OLD, OLD, NEW]


@pytest.mark.parametrize("code", EXPIRED)
def test_each_refusal_has_the_file_read_again(store_that_rotates: Rotating, shared: Callable[[str], None], code: str) -> None:
    hooks = s3_at(store_that_rotates)
    hooks.write("key", b"data")
    store_that_rotates.good, store_that_rotates.refusal = NEW, EXPIRED[code]
    for _ in range(2):  # the new ones come late
        with pytest.raises((Unauthenticated, PermissionDenied)):
            hooks.write("key", b"data")
    shared(NEW)
    hooks.write("key", b"data")
    assert store_that_rotates.signers() == [OLD, OLD, OLD, NEW]


def test_many_threads_meet_an_expiry_at_once(store_that_rotates: Rotating, shared: Callable[[str], None]) -> None:
    """The first refusal makes a client read the file again; later refusals keep that new client."""
    hooks = s3_at(store_that_rotates)
    hooks.write("key", b"data")
    store_that_rotates.good = NEW
    shared(NEW)
    at_once = threading.Barrier(8)

    def write(number: int) -> None:
        at_once.wait(120)
        try:
            hooks.write(f"key{number}", b"data")
        except Unauthenticated:
            hooks.write(f"key{number}", b"data")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert store_that_rotates.signers().count(NEW) == 8


@pytest.mark.parametrize("content", [None, "", "[default]\naws_access_key_id=AKIA", "no file of credentials"])
def test_a_file_that_is_being_replaced_is_read_again(
    store_that_rotates: Rotating, shared: Callable[[str], None], tmp_path: Path, content: str | None
) -> None:
    """For a moment it is missing or half written: an error that passes."""
    hooks = s3_at(store_that_rotates)
    hooks.write("key", b"data")
    store_that_rotates.good = NEW
    path = tmp_path / "credentials"
    path.unlink() if content is None else path.write_text(content)
    for _ in range(2):
        with pytest.raises(JobsBackupError) as caught:
            hooks.write("key", b"data")
        assert caught.value.hint
    shared(NEW)
    hooks.write("key", b"data")
    assert store_that_rotates.signers() == [OLD, OLD, NEW]


def test_a_backup_that_lives_on_sends_with_the_new_keys(
    store_that_rotates: Rotating, shared: Callable[[str], None], tmp_path: Path
) -> None:
    environment = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "S3", "JOBS_BACKUP_BUCKET": "events", "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        "AWS_ENDPOINT_URL_S3": store_that_rotates.server.url, "AWS_REGION": "us-east-1", **FAST_RETRY,
    }  # fmt: skip
    with Backup.from_env(environment) as backup:
        backup.record({"n": 1}, source_id="web")
        backup.flush(120)
        store_that_rotates.good = NEW
        shared(NEW)
        backup.record({"n": 2}, source_id="web")
        backup.flush(120)
        assert archiver_of(backup).sent.objects == 2
    assert store_that_rotates.signers() == [OLD, OLD, NEW]


def test_keys_of_the_environment_stay(store_that_rotates: Rotating, shared: Callable[[str], None]) -> None:
    """They take precedence over the file, and cannot change."""
    hooks = s3_at(store_that_rotates, AWS_ACCESS_KEY_ID=OLD, AWS_SECRET_ACCESS_KEY="s")
    shared(NEW)
    store_that_rotates.good = NEW
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            hooks.write("key", b"data")
    assert store_that_rotates.signers() == [OLD, OLD]


def test_a_process_that_gives_keys_is_run_again(
    store_that_rotates: Rotating, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`credential_process` in the SDK's configuration; without an expiration, the SDK would run it once."""
    program, answer = tmp_path / "program", tmp_path / "answer"
    program.write_text(f"#!{sys.executable}\nprint(open({str(answer)!r}).read())\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "config").write_text(f"[profile rotating]\ncredential_process={program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "rotating")

    def tell(access_key: str) -> None:
        answer.write_text(json.dumps({"Version": 1, "AccessKeyId": access_key, "SecretAccessKey": "s"}))

    tell(OLD)
    hooks = s3_at(store_that_rotates)
    hooks.write("key", b"data")
    store_that_rotates.good = NEW
    tell(NEW)
    with pytest.raises(Unauthenticated):
        hooks.write("key", b"data")
    hooks.write("key", b"data")
    assert store_that_rotates.signers() == [OLD, OLD, NEW]


# Roles


class Sts:
    """Issue a role's credentials, `ASIA` and a number, for the one credential that it accepts."""

    def __init__(self, server: FaultProxy) -> None:
        self.server = server
        self.good = OLD
        self.code = "ExpiredToken"
        self.given = 0
        server.fail(self._answer, times=ALWAYS)

    def _answer(self, request: Request) -> Answer:
        token = re.search(rb"WebIdentityToken=([^&]+)", request.body)
        if (token[1].decode() if token else signer(request)) != self.good:
            text = f"<ErrorResponse><Error><Type>Sender</Type><Code>{self.code}</Code><Message>no</Message></Error></ErrorResponse>"
            return Answer(403, text.encode(), {"Content-Type": "text/xml"})
        self.given += 1
        expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        name = "AssumeRoleWithWebIdentityRes" if token else "AssumeRoleRes"
        inside = (
            f"<AccessKeyId>ASIA{self.given}</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
            f"<SessionToken>t</SessionToken><Expiration>{expires}</Expiration>"
        )
        text = f"<{name}ponse><{name}ult><Credentials>{inside}</Credentials></{name}ult></{name}ponse>"
        return Answer(200, text.encode(), {"Content-Type": "text/xml"})


@pytest.fixture
def sts() -> Iterator[Sts]:
    with FaultProxy() as server:
        yield Sts(server)


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidClientTokenId", "SignatureDoesNotMatch", "AccessDenied"])
def test_the_keys_that_take_on_a_role_are_read_again(
    store_that_rotates: Rotating, sts: Sts, shared: Callable[[str], None], code: str
) -> None:
    role = "arn:aws:iam::123456789012:role/backup"
    store_that_rotates.good = "ASIA1"
    hooks = s3_at(store_that_rotates, AWS_ENDPOINT_URL_STS=sts.server.url, BACKUP_IAM_ROLE_ARN=role)
    hooks.write("key", b"data")
    store_that_rotates.good = "ASIA2"  # the first ones are revoked before they expire
    sts.good, sts.code = NEW, code
    for _ in range(2):
        with pytest.raises((Unauthenticated, PermissionDenied)):
            hooks.write("key", b"data")
    shared(NEW)
    hooks.write("key", b"data")
    assert store_that_rotates.signers() == ["ASIA1", "ASIA1", "ASIA2"]


def test_a_web_identity_token_is_read_again(
    store_that_rotates: Rotating, sts: Sts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text(OLD)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backup")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.server.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    store_that_rotates.good = "ASIA1"
    hooks = s3_at(store_that_rotates)
    hooks.write("key", b"data")
    store_that_rotates.good = "ASIA2"
    sts.good = NEW
    token.write_text(NEW)
    with pytest.raises(Unauthenticated):
        hooks.write("key", b"data")
    hooks.write("key", b"data")
    assert store_that_rotates.signers() == ["ASIA1", "ASIA1", "ASIA2"]


def test_the_token_of_a_containers_credentials_is_read_again(
    store_that_rotates: Rotating, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in EKS Pod Identity."""
    token = tmp_path / "token"
    token.write_text(OLD)
    expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def give(request: Request) -> Answer:
        credentials = {"AccessKeyId": request.headers["authorization"], "SecretAccessKey": "s", "Token": "t", "Expiration": expires}
        return Answer(200, json.dumps(credentials).encode(), {"Content-Type": "application/json"})

    with FaultProxy() as agent:
        agent.fail(give, times=ALWAYS)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/v1/credentials")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
        hooks = s3_at(store_that_rotates)
        hooks.write("key", b"data")
        store_that_rotates.good = NEW
        token.write_text(NEW)
        with pytest.raises(Unauthenticated):
            hooks.write("key", b"data")
        hooks.write("key", b"data")
    assert store_that_rotates.signers() == [OLD, OLD, NEW]


# Google's


class Tokens:
    """Google's token server: issues tokens to requests with the key's signature, or the subject token, that it accepts."""

    def __init__(self, server: FaultProxy) -> None:
        self.server = server
        self.good = OLD
        server.fail(self._answer, times=ALWAYS)

    def _answer(self, request: Request) -> Answer:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        subject = (
            form.get("subject_token") or json.loads(base64.urlsafe_b64decode(form["assertion"].partition(".")[0] + "=="))["kid"]
        )
        if subject != self.good:
            return Answer(400, b'{"error":"invalid_grant","error_description":"Invalid JWT Signature."}')
        token = {"access_token": f"token-of-{subject}", "expires_in": 3600, "token_type": "Bearer"}
        return Answer(200, json.dumps(token).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    with FaultProxy() as server:
        yield Tokens(server)


def google_at(url: str, path: Path) -> Hooks:
    variables = {"GOOGLE_APPLICATION_CREDENTIALS": str(path), "JOBS_BACKUP_GCS_ENDPOINT": url}
    return Hooks(providers.load("GCS", {"JOBS_BACKUP_BUCKET": "events", **variables}))


@pytest.mark.parametrize("is_late", [False, True], ids=["before the refusal", "after the refusal"])
@pytest.mark.parametrize("kind", ["service account", "federation"])
def test_googles_files_are_read_again(tmp_path: Path, key: str, tokens: Tokens, kind: str, is_late: bool) -> None:
    """The store refuses a token whose key was revoked; then the token server does, too."""
    subject, good = tmp_path / "subject", [OLD]

    def rotate(which: str) -> Path:
        if kind == "service account":
            path = service_account(tmp_path, key, f"{tokens.server.url}/token")
            path.write_text(json.dumps(json.loads(path.read_text()) | {"private_key_id": which}))
            return path
        subject.write_text(which)
        path = tmp_path / "federation.json"
        federation = {
            "type": "external_account", "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": f"{tokens.server.url}/v1/token",
            "credential_source": {"file": str(subject)}, "universe_domain": "googleapis.com",
        }  # fmt: skip
        path.write_text(json.dumps(federation))
        return path

    def store(request: Request) -> Answer:
        if request.headers["authorization"] != f"Bearer token-of-{good[0]}":
            return Answer(401, b'{"error":{"code":401,"message":"Invalid Credentials"}}', {"Content-Type": "application/json"})
        return Answer(200, b'{"generation":"1"}', {"Content-Type": "application/json"})

    path = rotate(OLD)
    with FaultProxy() as server:
        server.fail(store, times=ALWAYS)
        hooks = google_at(server.url, path)
        hooks.write("key", b"data")
        good[0] = tokens.good = NEW
        if not is_late:
            rotate(NEW)
        for _ in range(2 if is_late else 1):
            with pytest.raises(Unauthenticated) as caught:
                hooks.write("key", b"data")
            assert caught.value.hint
        rotate(NEW)
        hooks.write("key", b"data")
        seen = [request.headers["authorization"].rpartition("-")[2] for request in server.requests]
        assert seen == [OLD, OLD, NEW]


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_a_file_of_googles_that_is_being_replaced_is_read_again(
    tmp_path: Path, key: str, tokens: Tokens, content: str | None
) -> None:
    path = service_account(tmp_path, key, f"{tokens.server.url}/token")
    whole = path.read_text().replace('"private_key_id": "1"', f'"private_key_id": "{OLD}"')
    with FaultProxy() as server:
        server.fail(Answer(401), method="POST")
        server.fail(Answer(200, b'{"generation":"1"}', {"Content-Type": "application/json"}), times=ALWAYS)
        path.write_text(whole)
        hooks = google_at(server.url, path)
        with pytest.raises(Unauthenticated):
            hooks.write("key", b"data")
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises((Unauthenticated, ConfigurationError), match="GOOGLE_APPLICATION_CREDENTIALS") as caught:
            hooks.write("key", b"data")
        assert caught.value.hint
        path.write_text(whole)
        hooks.write("key", b"data")


# Azure's


@pytest.mark.parametrize("kind", ["SAS", "key"])
@pytest.mark.parametrize("answer", ["403 AuthenticationFailed", "401 InvalidAuthenticationInfo", "403 AuthorizationFailure"])
def test_azures_files_are_read_again(tmp_path: Path, kind: str, answer: str) -> None:
    path = tmp_path / "secret"
    status, code = answer.split()

    def content(version: str) -> str:
        return f"sv=2026-02-06&sr=c&sp=w&sig=canary{version}\n" if kind == "SAS" else "a2V5" * (1 if version == OLD else 2)

    seen: list[str] = []

    def store(request: Request) -> Answer:
        signature = re.search(r"sig=canary(\w+)", request.target)
        seen.append(signature[1] if signature else request.headers["authorization"])
        if state["refuses"]:
            return Answer(int(status), b"", {"x-ms-request-id": "1", "x-ms-error-code": code})
        return Answer(201, b"", {"x-ms-request-id": "1", "ETag": '"1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})

    state = {"refuses": False}
    path.write_text(content(OLD))
    variable = "AZURE_STORAGE_SAS_TOKEN_FILE" if kind == "SAS" else "AZURE_STORAGE_ACCESS_KEY_FILE"
    with FaultProxy() as server:
        server.fail(store, times=ALWAYS)
        environment = {
            "JOBS_BACKUP_BUCKET": "events", "AZURE_STORAGE_ACCOUNT": "account1", "AZURE_STORAGE_BLOB_ENDPOINT": server.url,
            variable: str(path),
        }  # fmt: skip
        loaded = providers.load("AZURE_BLOB", environment)
        hooks = Hooks(loaded)
        hooks.write("key", b"data")
        state["refuses"] = True
        path.write_text(content(NEW))
        with pytest.raises((Unauthenticated, PermissionDenied)) as caught:
            hooks.write("key", b"data")
        assert "canary" not in caught.value.one_line() + repr(loaded.provider)
        state["refuses"] = False
        hooks.write("key", b"data")
    if kind == "SAS":
        assert seen == [OLD, OLD, NEW]
    assert len(set(seen)) == len(seen) - (kind == "SAS")
    path.unlink()
    with pytest.raises(ConfigurationError, match=f"{variable}: .*: No such file"):
        providers.load("AZURE_BLOB", environment)


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"AZURE_STORAGE_SAS_TOKEN_FILE": "FILE"}, "AZURE_STORAGE_SAS_TOKEN_FILE is not a SAS"),
        ({"AZURE_STORAGE_ACCESS_KEY_FILE": "FILE"}, "AZURE_STORAGE_ACCESS_KEY_FILE is not the key"),
        ({"AZURE_STORAGE_ACCESS_KEY_FILE": "FILE", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=1"}, "only one of them"),
        ({"AZURE_STORAGE_SAS_TOKEN_FILE": "sv=1&sig=canary"}, "not a path: save it in a file"),
    ],
)
def test_azures_files_that_hold_something_else(tmp_path: Path, variables: dict[str, str], why: str) -> None:
    (tmp_path / "file").write_text("canary, no secret")
    given = {name: str(tmp_path / "file") if value == "FILE" else value for name, value in variables.items()}
    with pytest.raises(ConfigurationError) as caught:
        providers.load("AZURE_BLOB", {"JOBS_BACKUP_BUCKET": "events", "AZURE_STORAGE_ACCOUNT": "account1", **given})
    assert why in caught.value.message
    assert "canary" not in caught.value.one_line()
