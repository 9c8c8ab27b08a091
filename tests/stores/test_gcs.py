"""Google Cloud Storage: its requests, its errors, and the fate of broken uploads.

On fake-gcs-server where it can show this, otherwise on the scripted server of `gcs`, which follows Google's documentation.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from buckets import FAST_RETRY, realistic
from commands import run, start, summary
from gcs import ALL, CHUNK, LEAST, WRITING, Emulator, GcsServer, private_key, service_account
from spools import archiver_of

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
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
from jobs_backup.model import BytesBody, Outcome, Upload
from jobs_backup.store import providers
from jobs_backup.testing.driver import Hooks, random_bytes
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, Cut, FaultProxy, Swallow
from jobs_backup_gcs.settings import GcsSettings

MiB = 1 << 20
IN_PARTS = {"JOBS_BACKUP_MULTIPART_THRESHOLD": "1MiB", "JOBS_BACKUP_PART_SIZE": "512KiB"}


def hooks(environment: Mapping[str, str]) -> Hooks:
    return Hooks(providers.load("GCS", environment))


def parts(count: int = 3) -> list[bytes]:
    return [random_bytes(CHUNK, number) for number in range(count - 1)] + [random_bytes(1000, count)]


def refusal(status: int, message: str = "", reason: str = "", headers: Mapping[str, str] | None = None) -> Answer:
    error = {"error": {"code": status, "message": message, "errors": [{"reason": reason}]}}
    return Answer(status, json.dumps(error).encode(), {"Content-Type": "application/json", **(headers or {})})


@pytest.fixture
def bucket(gcs: GcsServer) -> str:
    return gcs.bucket()


@pytest.fixture
def proxy(gcs: GcsServer) -> Iterator[FaultProxy]:
    """A network in front of the scripted server."""
    with FaultProxy("127.0.0.1", gcs.server_port, keep=0) as proxy:
        yield proxy


@pytest.fixture
def broken(gcs: GcsServer, bucket: str, proxy: FaultProxy) -> Hooks:
    """The provider on that network."""
    return hooks(gcs.environment(bucket, url=proxy.url))


# Requests


@pytest.mark.slow
def test_100_000_events_are_in_the_emulators_bucket_once_and_nothing_else_is_called(emulator: Emulator, tmp_path: Path) -> None:
    bucket = emulator.bucket()
    before = len(emulator.log.read_text().splitlines())
    environment = {**emulator.environment(bucket), **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"), **IN_PARTS}
    payloads = realistic(100_000)
    file = tmp_path / "in.ndjson"
    file.write_bytes(b"\n".join(payloads) + b"\n")
    large = summary("run", file, "--source-id", "web", env={**environment, "JOBS_BACKUP_BATCH_EVENTS": "30000"})
    assert (large["events"], large["stored_events"], large["objects"]) == (100_000, 100_000, 4)
    small = summary("run", "--source-id", "web", env=environment, stdin='{"a":1}\n')
    assert small["objects"] == 1
    called = emulator.log.read_text().splitlines()[before:]
    requests = [match[1] for line in called if (match := re.search(r'\\"([A-Z]+ [^ ]+) HTTP', line)) is not None]
    kinds = Counter(re.sub(r"(name|upload_id)=[^&]*", r"\1", one) for one in requests)
    path = f"/upload/storage/v1/b/{bucket}/o"
    assert kinds.keys() == {
        f"POST {path}?uploadType=resumable&ifGenerationMatch=0",
        f"PUT {path}?uploadType=resumable&name&upload_id",
        f"POST {path}?uploadType=multipart&ifGenerationMatch=0",
    }
    assert kinds[f"POST {path}?uploadType=resumable&ifGenerationMatch=0"] == 4
    cut = re.compile(rb'"payload":(.*),"createdAt":"[^"]*","messageId":"[^"]*"}')
    lines = [line for key in emulator.keys(bucket) for line in gzip.decompress(emulator.get(bucket, key)).splitlines()]
    stored = Counter(found[1] for found in map(cut.search, lines) if found is not None)
    assert stored == Counter([*payloads, b'{"a":1}'])


def test_with_the_two_permissions_everything_but_deleting_works(gcs: GcsServer, bucket: str, tmp_path: Path) -> None:
    gcs.granted = LEAST
    environment = {**gcs.environment(bucket), **FAST_RETRY, **IN_PARTS, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
    with Backup.from_env(environment) as backup:
        jobs = backup.record_many(realistic(20_000), source_id="web")
        backup.failed(jobs[0], error="no", payload={})
        backup.flush(120)
        assert gcs.operations.keys() <= WRITING
        assert gcs.operations["resumable.begin"] == 1
        backup.delivered(jobs)
        assert archiver_of(backup).drain(120)
        (waiting,) = session_of(backup).spool.waiting_deletes()
        assert (waiting.objects, waiting.hint) == (1, f"grant storage.objects.delete on gs://{bucket}")
        assert gcs.operations.keys() <= WRITING | {"objects.delete"}
    gcs.granted = ALL
    assert summary("archive", "--once", env=environment)["deleted"] == 1
    assert [key.split("/")[0] for key in gcs.buckets[bucket]] == ["rudder-proc-err-logs"]


def test_objects_have_their_metadata_and_options(gcs: GcsServer, bucket: str) -> None:
    options = {"JOBS_BACKUP_GCS_STORAGE_CLASS": "NEARLINE"}
    provider = hooks({**gcs.environment(bucket), **options})
    provider.write("small", b"x")
    upload = provider.create("large", b"".join(parts()))
    receipts = [provider.part(upload, parts(), number) for number in (1, 2, 3)]
    receipt = provider.complete(upload, receipts, b"".join(parts()))
    assert receipt.version == str(gcs.buckets[bucket]["large"].generation)
    for found in gcs.buckets[bucket].values():
        assert found.metadata["metadata"] == {"jobs-backup-batch": "1", "jobs-backup-events": "2"}
        assert found.metadata["storageClass"] == "NEARLINE"
        assert found.metadata["crc32c"]


def test_more_than_8_mib_are_not_sent_in_one_request(gcs: GcsServer, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(NotSupported):
        hooks(gcs.environment(bucket)).write("key", bytes((8 << 20) + 1))
    environment = {**gcs.environment(bucket), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
    with Backup.from_env(environment) as backup:
        noise = random_bytes(9 << 20, 1).hex()
        backup.record({"x": noise}, source_id="web")
        backup.flush(120)
    assert gcs.operations["resumable.begin"] == 1, "whatever JOBS_BACKUP_MULTIPART_THRESHOLD is"


# Broken uploads


def test_of_a_chunk_that_was_kept_in_part_only_the_rest_is_sent(
    gcs: GcsServer, bucket: str, proxy: FaultProxy, broken: Hooks
) -> None:
    whole = [random_bytes(4 * CHUNK, 1), random_bytes(4 * CHUNK, 2), random_bytes(10, 3)]
    upload = broken.create("key", b"".join(whole))
    receipts = [broken.part(upload, whole, 1)]
    gcs.takes = [2 * CHUNK]
    with pytest.raises(Unavailable, match=f"has taken {2 * CHUNK} of {4 * CHUNK} bytes"):
        broken.part(upload, whole, 2)
    proxy.clear()
    receipts.append(broken.part(upload, whole, 2))
    (rest,) = proxy.requests
    assert rest.headers["content-range"] == f"bytes {6 * CHUNK}-{8 * CHUNK - 1}/{8 * CHUNK + 10}"
    receipts.append(broken.part(upload, whole, 3))
    broken.complete(upload, receipts, b"".join(whole))
    assert gcs.buckets[bucket]["key"].data == b"".join(whole)


def test_after_a_chunk_that_was_cut_the_store_is_asked(gcs: GcsServer, bucket: str, proxy: FaultProxy, broken: Hooks) -> None:
    upload = broken.create("key", b"".join(parts()))
    receipts = [broken.part(upload, parts(), 1)]
    proxy.fail(Cut(after=1000), method="PUT")
    with pytest.raises(Unavailable):
        broken.part(upload, parts(), 2)
    proxy.clear()
    receipts.append(broken.part(upload, parts(), 2))
    ask, again = proxy.requests
    assert (ask.headers["content-range"], ask.status) == (f"bytes */{2 * CHUNK + 1000}", 308)
    assert again.headers["content-range"] == f"bytes {CHUNK}-{2 * CHUNK - 1}/{2 * CHUNK + 1000}"
    receipts.append(broken.part(upload, parts(), 3))
    broken.complete(upload, receipts, b"".join(parts()))
    assert gcs.buckets[bucket]["key"].data == b"".join(parts())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_answer_to_a_chunk_is_lost(gcs: GcsServer, bucket: str, proxy: FaultProxy, broken: Hooks, number: int) -> None:
    upload = broken.create("key", b"".join(parts()))
    receipts = []
    for one in (1, 2, 3):
        if one == number:
            proxy.fail(Swallow(), method="PUT")
            with pytest.raises(Unavailable):
                broken.part(upload, parts(), one)
        receipts.append(broken.part(upload, parts(), one))
    broken.complete(upload, receipts, b"".join(parts()))
    assert gcs.buckets[bucket]["key"].data == b"".join(parts())
    assert gcs.operations["resumable.chunk"] == 3
    assert gcs.operations["resumable.ask"] == 1


def test_the_answer_to_a_write_is_lost(gcs: GcsServer, bucket: str, proxy: FaultProxy, tmp_path: Path) -> None:
    """The retry meets its own object: the same CRC-32C, so it is stored."""
    environment = {**gcs.environment(bucket, url=proxy.url), **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
    proxy.fail(Swallow(), method="POST")
    with Backup.from_env(environment) as backup:
        backup.record({}, source_id="web")
        backup.flush(120)
    assert gcs.operations == {"objects.insert": 2, "objects.get": 1}
    assert len(gcs.buckets[bucket]) == 1


@pytest.mark.parametrize("same", [True, False])
def test_a_precondition_that_fails_at_the_last_chunk(gcs: GcsServer, bucket: str, same: bool) -> None:
    """As the service answers it, and the emulator never does."""
    provider = hooks(gcs.environment(bucket))
    whole = b"".join(parts())
    upload = provider.create("key", whole)
    for number in (1, 2):
        provider.part(upload, parts(), number)
    gcs.put(bucket, "key", whole if same else b"somebody else's", {}, if_absent=True)
    with pytest.raises(AlreadyExists if same else IntegrityError):
        provider.part(upload, parts(), 3)
    assert gcs.buckets[bucket]["key"].data == (whole if same else b"somebody else's")


def test_a_precondition_that_fails_without_the_right_to_look(gcs: GcsServer, bucket: str) -> None:
    provider = hooks(gcs.environment(bucket))
    provider.write("key", b"x")
    gcs.granted = LEAST - {"storage.objects.get"}
    with pytest.raises(AlreadyExists):
        provider.write("key", b"x")


def test_a_session_that_has_ended_is_gone(gcs: GcsServer, bucket: str) -> None:
    provider = hooks(gcs.environment(bucket))
    upload = provider.create("key", b"".join(parts()))
    provider.part(upload, parts(), 1)
    gcs.sessions.clear()  # a week later
    with pytest.raises(UploadGone):
        provider.part(upload, parts(), 2)
    assert provider.abort(upload) is Outcome.GONE


def test_a_store_that_has_lost_bytes_gets_all_of_it_again(gcs: GcsServer, bucket: str) -> None:
    provider = hooks(gcs.environment(bucket))
    upload = provider.create("key", b"".join(parts()))
    provider.part(upload, parts(), 1)
    (session,) = gcs.sessions.values()
    session.data.clear()
    fresh = hooks(gcs.environment(bucket))
    with pytest.raises(UploadGone, match="has 0 bytes instead of"):
        fresh.part(upload, parts(), 2)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_killed_in_the_middle_of_an_upload_the_next_start_continues(
    gcs: GcsServer, bucket: str, proxy: FaultProxy, tmp_path: Path, chunk: int
) -> None:
    """kill -9 while the store works on a chunk."""
    file = tmp_path / "in"
    file.write_bytes(b"\n".join(realistic(10_000)) + b"\n")
    environment = {
        **gcs.environment(bucket, url=proxy.url), **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"), **IN_PARTS,
    }  # fmt: skip
    with start("run", file, "--source-id", "web", env=environment) as process:

        def kill(_: Any) -> Answer:
            process.kill()
            return Answer(503)

        proxy.fail(kill, method="PUT", skip=chunk - 1)
        process.communicate()
    assert process.returncode == -9
    begun = gcs.operations["resumable.begin"]
    assert summary("run", file, "--source-id", "web", env=environment)["complete"]
    assert (begun, gcs.operations["resumable.begin"]) == (1, 1), "the session is continued"
    assert gcs.operations["resumable.ask"] >= 1
    assert gcs.open_uploads(bucket) == []
    (stored,) = gcs.buckets[bucket].values()
    assert gzip.decompress(stored.data).count(b"\n") == 10_000


# Errors


@pytest.mark.parametrize(
    ("answer", "expected", "hint"),
    [
        (refusal(403, "sa@p does not have storage.objects.create access", "forbidden"), PermissionDenied, "storage.objects.create"),
        (refusal(403, "", "forbidden"), PermissionDenied, "grant storage.objects.create on gs://events"),
        (refusal(403, "Permission cloudkms.cryptoKeyVersions.useToEncrypt denied"), PermissionDenied, "grant cloudkms.crypto"),
        (refusal(403, "slow", "rateLimitExceeded"), Throttled, "UPLOAD_CONCURRENCY"),
        (refusal(429, "slow", "rateLimitExceeded", {"Retry-After": "7"}), Throttled, "UPLOAD_CONCURRENCY"),
        (refusal(401, "Invalid Credentials", "authError"), CredentialsExpired, "clock"),
        (refusal(404, "The specified bucket does not exist.", "notFound"), BucketNotFound, "JOBS_BACKUP_BUCKET"),
        (refusal(400, 'Provided CRC32C "x" doesn\'t match calculated CRC32C "y".'), IntegrityError, "changes bytes"),
        (refusal(408), Unavailable, "fault"),
        (refusal(500), Unavailable, "fault"),
        (refusal(502), Unavailable, "fault"),
        (refusal(503, headers={"Retry-After": "7"}), Unavailable, "fault"),
        (refusal(504), Unavailable, "fault"),
        (refusal(405), NotSupported, "ENDPOINT"),
        (refusal(418, "a teapot"), StorageError, ""),
        (Answer(200, b"<html>captive portal"), JobsBackupError, ""),
        (Answer(200, b"{}", {"Content-Type": "application/json"}), Unavailable, "may not come from the store"),
    ],
)
def test_answers_of_the_store(answer: Answer, expected: type[JobsBackupError], hint: str) -> None:
    with FaultProxy() as server:
        server.fail(answer, times=ALWAYS)
        provider = hooks({"JOBS_BACKUP_BUCKET": "events", "STORAGE_EMULATOR_HOST": server.url})
        with pytest.raises(expected) as caught:
            provider.write("key", b"data")
        assert len(server.requests) == 1, "one attempt, and nothing else"
    assert hint in caught.value.hint
    assert "gs://events/key" in str(caught.value) or isinstance(caught.value, StorageError)
    if "Retry-After" in answer.headers:
        assert getattr(caught.value, "retry_after", None) == 7


def test_nobody_answers() -> None:
    provider = hooks({"JOBS_BACKUP_BUCKET": "events", "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"})
    with pytest.raises(Unreachable) as caught:
        provider.write("key", b"data")
    assert caught.value.hint
    provider = hooks({"JOBS_BACKUP_BUCKET": "events", "STORAGE_EMULATOR_HOST": "http://no-such-host.invalid"})
    with pytest.raises(Unreachable):
        provider.write("key", b"data")


@pytest.mark.parametrize("form", ["{}", "{}/", "http://{}", "HTTP://{}/"])
def test_an_emulator_is_given_as_a_url_or_as_a_host(form: str) -> None:
    """Google's SDK for Go, which RudderStack uses, takes a host and a port."""
    found = GcsSettings.from_environment({"JOBS_BACKUP_BUCKET": "events", "STORAGE_EMULATOR_HOST": form.format("[::1]:4443")})
    assert found.location == "gs://events at http://[::1]:4443"


def test_a_connection_that_breaks() -> None:
    with FaultProxy() as server:
        server.fail(Cut(0))
        provider = hooks({"JOBS_BACKUP_BUCKET": "events", "STORAGE_EMULATOR_HOST": server.url})
        with pytest.raises(Unavailable) as caught:
            provider.write("key", b"data")
        assert not isinstance(caught.value, Unreachable), "it may have arrived"


def test_a_store_that_does_not_answer_is_given_up_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        provider = hooks({"JOBS_BACKUP_BUCKET": "events", "STORAGE_EMULATOR_HOST": url})
        upload = Upload(key="key", id=f"{url}/upload/storage/v1/b/events/o?upload_id=1", extra={"size": "4", "crc32c": "AAAAAA=="})
        body = BytesBody(b"data")
        hook = provider.loaded.manager.hook
        arguments: dict[str, Any] = {"body": body, "size": 4, "timeout": 0.3}
        calls: list[Callable[[], object]] = [
            lambda: hook.write(key="key", checksum=0, content_type="application/gzip", metadata={}, if_absent=True, **arguments),
            lambda: hook.write_part(upload=upload, number=1, offset=0, last=True, **arguments),
            lambda: hook.abort_multipart(upload=upload, timeout=0.3),
            lambda: hook.delete(keys=["key"], timeout=0.3),
        ]
        for call in calls:
            began = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                call()
            assert time.monotonic() - began > 0.2
            assert not isinstance(caught.value, Unreachable)


def test_no_message_and_no_log_shows_a_session(
    gcs: GcsServer, bucket: str, proxy: FaultProxy, broken: Hooks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    upload = broken.create("key", b"".join(parts()))
    (secret,) = gcs.sessions
    said = [repr(upload), str(upload), repr(broken.loaded.provider)]
    faults: list[Any] = [
        Cut(0),
        refusal(503),
        refusal(403),
        refusal(404, f"no session {upload.id}"),
    ]
    for fault in faults:
        proxy.fail(fault, method="PUT")
        with pytest.raises(JobsBackupError) as caught:
            broken.part(upload, parts(), 1)
        said += [caught.value.one_line(), repr(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)]
    proxy.fail(refusal(500), method="DELETE")
    with pytest.raises(Unavailable) as failed:
        broken.abort(upload)
    said.append(failed.value.one_line())
    assert not [text for text in said if secret in text]
    assert secret not in caplog.text


# Credentials


@pytest.fixture(scope="module")
def key() -> str:
    return private_key()


@pytest.fixture
def tokens() -> Iterator[FaultProxy]:
    """A server that issues tokens."""
    with FaultProxy() as server:
        numbers = iter(range(1, 1000))

        def give(_: object) -> Answer:
            token = {"access_token": f"canary-token-{next(numbers)}", "expires_in": 3600, "token_type": "Bearer"}
            return Answer(200, json.dumps(token).encode(), {"Content-Type": "application/json"})

        server.fail(give, times=ALWAYS)
        yield server


@pytest.fixture
def account(gcs: GcsServer, bucket: str, key: str, tokens: FaultProxy, tmp_path: Path) -> dict[str, str]:
    """Variables for a service account, on the scripted server."""
    path = service_account(tmp_path, key, f"{tokens.url}/token")
    return {"JOBS_BACKUP_BUCKET": bucket, "GOOGLE_APPLICATION_CREDENTIALS": str(path), "JOBS_BACKUP_GCS_ENDPOINT": gcs.url}


def test_a_service_account_gets_a_token_and_uses_it(account: dict[str, str], proxy: FaultProxy, tokens: FaultProxy) -> None:
    provider = hooks({**account, "JOBS_BACKUP_GCS_ENDPOINT": proxy.url})
    for number in range(3):
        provider.write(f"key{number}", b"data")
    assert {request.headers["authorization"] for request in proxy.requests} == {"Bearer canary-token-1"}
    assert len(tokens.requests) == 1


def test_a_token_that_is_refused_is_replaced(account: dict[str, str], proxy: FaultProxy, gcs: GcsServer, bucket: str) -> None:
    provider = hooks({**account, "JOBS_BACKUP_GCS_ENDPOINT": proxy.url})
    provider.write("one", b"data")
    proxy.clear()
    proxy.fail(refusal(401, "Invalid Credentials"))
    with pytest.raises(CredentialsExpired) as caught:
        provider.write("two", b"data")
    assert caught.value.retryable
    provider.write("two", b"data")
    assert [request.headers["authorization"][-1] for request in proxy.requests] == ["1", "2"]
    assert gcs.buckets[bucket]["two"].data == b"data"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (refusal(400, "invalid_grant"), Unauthenticated),
        (Answer(400, b'{"error":"invalid_grant","error_description":"Invalid JWT Signature."}'), Unauthenticated),
        (Cut(0), Unreachable),
    ],
)
def test_no_token_is_to_be_had(account: dict[str, str], tokens: FaultProxy, fault: Any, expected: type[JobsBackupError]) -> None:
    tokens.clear()
    with FaultProxy() as server:
        server.fail(fault, times=ALWAYS)
        path = Path(account["GOOGLE_APPLICATION_CREDENTIALS"])
        path.write_text(path.read_text().replace(tokens.url, server.url))
        with pytest.raises(expected) as caught:
            hooks(account).write("key", b"data")
    assert caught.value.hint
    assert caught.value.refused, "nothing was sent to the bucket"


def test_workload_identity_federation(gcs: GcsServer, bucket: str, proxy: FaultProxy, tokens: FaultProxy, tmp_path: Path) -> None:
    """Exchange another issuer's token, from a file, for one of Google's."""
    (tmp_path / "subject").write_text("a-subject-token")
    path = tmp_path / "federation.json"
    federation = {
        "type": "external_account", "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": f"{tokens.url}/v1/token",
        "credential_source": {"file": str(tmp_path / "subject")}, "universe_domain": "googleapis.com",
    }  # fmt: skip
    path.write_text(json.dumps(federation))
    environment = {"JOBS_BACKUP_BUCKET": bucket, "GOOGLE_APPLICATION_CREDENTIALS": str(path), "JOBS_BACKUP_GCS_ENDPOINT": proxy.url}
    hooks(environment).write("key", b"data")
    assert [request.headers["authorization"] for request in proxy.requests] == ["Bearer canary-token-1"]
    assert gcs.buckets[bucket]["key"].data == b"data"


def test_impersonation_begins_with_a_token_of_its_source(account: dict[str, str], tokens: FaultProxy, tmp_path: Path) -> None:
    """The other account's token always comes from Google's own IAM, which is unreachable here."""
    source = json.loads(Path(account["GOOGLE_APPLICATION_CREDENTIALS"]).read_text())
    url = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/other@p.iam.gserviceaccount.com:generateAccessToken"
    impersonation = {
        "type": "impersonated_service_account", "service_account_impersonation_url": url, "source_credentials": source,
        "delegates": [],
    }  # fmt: skip
    path = tmp_path / "impersonation.json"
    path.write_text(json.dumps(impersonation))
    with pytest.raises((Unreachable, Unauthenticated)) as caught:
        hooks({**account, "GOOGLE_APPLICATION_CREDENTIALS": str(path)}).write("key", b"data")
    assert len(tokens.requests) == 1
    assert "canary" not in caught.value.one_line()


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(Unauthenticated, match="DefaultCredentialsError") as caught:
        hooks({"JOBS_BACKUP_BUCKET": "events"}).write("key", b"data")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "has no known kind of credentials"),
        ('{"type":"dummy","private_key":"canary"}', "has no known kind of credentials"),
    ],
)
def test_a_file_of_credentials_that_can_not_be_used_is_reported_at_once(tmp_path: Path, content: str | None, why: str) -> None:
    path = tmp_path / "credentials.json"
    if content is not None:
        path.write_text(content)
    environment = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "GCS", "JOBS_BACKUP_BUCKET": "events", "GOOGLE_APPLICATION_CREDENTIALS": str(path),
        "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=why) as caught:
        providers.load("GCS", environment)
    assert "canary" not in caught.value.one_line()
    code, _, stderr = run("run", "--source-id", "web", env=environment, stdin="{}\n")
    assert (code, len(stderr.splitlines()), why in stderr) == (2, 1, True)
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"JOBS_BACKUP_BUCKET": "Upper"}, "is not a valid bucket name"),
        ({"JOBS_BACKUP_BUCKET": "a/b"}, "is not a valid bucket name"),
        ({"JOBS_BACKUP_GCS_ENDPOINT": "storage.example"}, "expected a URL"),
        ({"JOBS_BACKUP_GCS_ENDPOINT": "http://["}, "expected a URL"),
        ({"JOBS_BACKUP_GCS_ENDPOINT": "https://host:notaport"}, "expected a URL"),
        ({"JOBS_BACKUP_GCS_ENDPOINT": "https://me:canary-7f3a@storage.example"}, "expected a URL"),
        ({"STORAGE_EMULATOR_HOST": "localhost:port"}, "expected a URL"),
    ],
)
def test_settings_that_make_no_sense(variables: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        providers.load("GCS", {"JOBS_BACKUP_BUCKET": "events", **variables})


@pytest.mark.parametrize(
    ("delete", "replay", "wanted"),
    [
        (False, False, "storage.objects.create,storage.objects.get"),
        (True, False, "storage.objects.create,storage.objects.get,storage.objects.delete"),
        (False, True, "storage.objects.create,storage.objects.get"),
    ],
)
def test_the_policy_grants_what_is_needed(delete: bool, replay: bool, wanted: str) -> None:
    environment = {"JOBS_BACKUP_BUCKET": "events", "JOBS_BACKUP_PREFIX": "/prod/"}
    text = hooks(environment).policy(environment, delete=delete, replay=replay).text
    assert f"--permissions={wanted}\n" in text
    assert "--uniform-bucket-level-access" in text
    assert "startsWith('projects/_/buckets/events/objects/prod/')" in text
    # With a condition on object names, listing would never be permitted: it has its own role.
    assert ("jobsBackupList --condition=None" in text) == replay
