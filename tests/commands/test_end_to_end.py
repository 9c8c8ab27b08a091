"""Full backups on real S3 servers, with only s3:PutObject and s3:AbortMultipartUpload, over failing networks."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from buckets import FAST_RETRY, realistic
from commands import run, start, summary
from servers import Moto, Store, operation, operations, policy

from jobs_backup.testing.fault_proxy import ALWAYS, Answer, Cut, FaultProxy, Request, Swallow

MiB = 1 << 20
IN_PARTS = {"JOBS_BACKUP_MULTIPART_THRESHOLD": "5MiB", "JOBS_BACKUP_PART_SIZE": "5MiB", "JOBS_BACKUP_UPLOAD_CONCURRENCY": "2"}
WRITING = {"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"}


def write_input(path: Path, count: int, seed: int = 1) -> Path:
    with path.open("wb") as output:
        output.writelines(payload + b"\n" for payload in realistic(count, seed))
    return path


def payloads_in(store: Store, bucket: str) -> dict[str, list[bytes]]:
    """Key -> the payloads in its object, cut out of their lines byte for byte."""
    cut = re.compile(rb'"payload":(.*),"createdAt":"[^"]*","messageId":"[^"]*"}')
    found = {}
    for key in store.keys(bucket):
        found[key] = [cut.search(line)[1] for line in gzip.decompress(store.get(bucket, key)).splitlines()]  # type: ignore[index]
    return found


def assert_stored_once(store: Store, bucket: str, *inputs: Path, killed_at_random: bool = False) -> None:
    """Every input line is in the bucket exactly once, byte for byte, and no multipart upload holds a part."""
    wanted = Counter(line for file in inputs for line in file.read_bytes().splitlines())
    found = Counter(payload for some in payloads_in(store, bucket).values() for payload in some)
    assert found == wanted
    for upload in store.admin.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        # Killed between creating an upload and journaling its id: the empty upload costs nothing.
        assert killed_at_random, f"an upload is open: {upload}"
        assert "Parts" not in store.admin.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


@pytest.fixture
def env(store: Store, bucket: str, tmp_path: Path) -> dict[str, str]:
    return {**store.environment(bucket), **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}


@pytest.mark.slow
def test_100_000_events_from_three_sources(store: Store, bucket: str, env: dict[str, str], tmp_path: Path) -> None:
    sources = {"web": 45_000, "ios": 30_000, "android": 25_000}
    inputs = [write_input(tmp_path / source, count, seed=number) for number, (source, count) in enumerate(sources.items())]
    uuid = "[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        env |= {"AWS_ENDPOINT_URL_S3": proxy.url, "JOBS_BACKUP_PREFIX": "backups", "INSTANCE_ID": "3", **IN_PARTS}
        for source, file in zip(sources, inputs, strict=True):
            found = summary("run", file, "--source-id", source, "--workspace-id", "ws1", env=env)
            assert (found["events"], found["stored_events"]) == (sources[source], sources[source])
        called = operations(proxy.requests)
    assert called.keys() == {"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}
    for key in store.keys(bucket):
        match = re.fullmatch(rf"backups/(\w+)/gw/(\d{{4}}-\d\d-\d\d)/(\d\d?)/3/(\d{{10}})_(\d{{10}})_ws1_{uuid}\.json\.gz", key)
        assert match is not None, key
        first = time.gmtime(int(match[4]))
        assert (match[2], match[3]) == (time.strftime("%Y-%m-%d", first), str(first.tm_hour))
    stored = payloads_in(store, bucket)
    assert {key.split("/")[1]: len(payloads) for key, payloads in stored.items()} == sources
    assert_stored_once(store, bucket, *inputs)


def test_small_objects_are_put_in_one_request(store: Store, bucket: str, env: dict[str, str], tmp_path: Path) -> None:
    file = write_input(tmp_path / "in", 3000)
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        env |= {"AWS_ENDPOINT_URL_S3": proxy.url, "JOBS_BACKUP_BATCH_EVENTS": "1000"}
        assert summary("run", file, "--source-id", "web", env=env)["objects"] == 3
        assert operations(proxy.requests) == {"PutObject": 3}
    assert_stored_once(store, bucket, file)


def test_a_cut_part_alone_is_sent_again(store: Store, bucket: str, env: dict[str, str], tmp_path: Path) -> None:
    file = write_input(tmp_path / "in", 60_000)
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        proxy.fail(Cut(after=MiB), method="PUT", target="partNumber=2&|partNumber=2$")
        found = summary("run", file, "--source-id", "web", env={**env, **IN_PARTS, "AWS_ENDPOINT_URL_S3": proxy.url})
        parts = Counter(part_number(request.target) for request in proxy.requests if operation(request) == "UploadPart")
        called = operations(proxy.requests)
    assert found["complete"]
    assert parts == {1: 1, 2: 2, 3: 1}
    assert called == {"CreateMultipartUpload": 1, "UploadPart": 4, "CompleteMultipartUpload": 1}
    assert_stored_once(store, bucket, file)


def part_number(target: str) -> int:
    return int(re.search(r"partNumber=(\d+)", target)[1])  # type: ignore[index]


@pytest.mark.slow
def test_with_the_retries_used_up_the_next_start_continues(store: Store, bucket: str, env: dict[str, str], tmp_path: Path) -> None:
    file = write_input(tmp_path / "in", 60_000)
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        env |= {**IN_PARTS, "AWS_ENDPOINT_URL_S3": proxy.url}
        proxy.fail(Cut(after=MiB), method="PUT", target="partNumber=2", times=ALWAYS)
        code, stdout, stderr = run("run", file, "--source-id", "web", "--json", env=env)
        found = json.loads(stdout)
        assert (code, found["complete"], found["waiting"][0]["events"]) == (1, False, 60_000), stderr
        assert "3 attempts" in found["waiting"][0]["error"]
        assert len(store.open_uploads(bucket)) == 1
        before = [part_number(one.target) for one in proxy.requests if operation(one) == "UploadPart" and one.status == 200]
        proxy.clear()
        assert summary("archive", "--once", env=env)["complete"]
        after = [part_number(one.target) for one in proxy.requests if operation(one) == "UploadPart"]
        assert operations(proxy.requests).keys() == {"UploadPart", "CompleteMultipartUpload"}
    assert sorted(before + after) == [1, 2, 3], "each part was stored once"
    assert_stored_once(store, bucket, file)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["partNumber=1", "partNumber=2", "partNumber=3", r"uploadId=[^&]*$"])
def test_killed_between_parts_the_next_start_continues(
    store: Store, bucket: str, env: dict[str, str], tmp_path: Path, moment: str
) -> None:
    """kill -9 while the store processes a part, or the completion, so that its response is lost."""
    file = write_input(tmp_path / "in", 60_000)
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        env |= {**IN_PARTS, "AWS_ENDPOINT_URL_S3": proxy.url, "JOBS_BACKUP_UPLOAD_CONCURRENCY": "1"}
        with start("run", file, "--source-id", "web", env=env) as process:

            def kill(_: Any) -> Answer:
                process.kill()
                return Answer(503)

            proxy.fail(Swallow() if moment.startswith("uploadId") else kill, method="", target=moment)
            if moment.startswith("uploadId"):
                while not any(request.fault for request in proxy.requests):
                    time.sleep(0.002)
                process.kill()
            process.communicate()
        assert process.returncode == -9
        found = summary("run", file, "--source-id", "web", env=env)
        assert (found["complete"], found["events"]) == (True, 0)
        assert operations(proxy.requests).keys() <= WRITING
    assert_stored_once(store, bucket, file)


@pytest.mark.slow
def test_killed_at_any_time_every_event_is_stored_once(store: Store, bucket: str, env: dict[str, str], tmp_path: Path) -> None:
    file = write_input(tmp_path / "in", 60_000)
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        env |= {**IN_PARTS, "AWS_ENDPOINT_URL_S3": proxy.url, "JOBS_BACKUP_BATCH_EVENTS": "25000"}
        kills = 0
        for wait in (0.5, 0.6, 0.7, 0.9, 1.2):
            with start("run", file, "--source-id", "web", env=env) as process:
                time.sleep(wait)
                kills += process.poll() is None
                process.kill()
                process.communicate()
        assert summary("run", file, "--source-id", "web", env=env)["complete"]
        assert operations(proxy.requests).keys() <= WRITING
    assert kills >= 3
    assert_stored_once(store, bucket, file, killed_at_random=True)


def test_the_answer_to_a_conditional_put_is_swallowed(store: Store, bucket: str, env: dict[str, str], tmp_path: Path) -> None:
    file = write_input(tmp_path / "in", 1000)
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        proxy.fail(Swallow(), method="PUT")
        found = summary("run", file, "--source-id", "web", env={**env, "AWS_ENDPOINT_URL_S3": proxy.url})
        assert [request.status for request in proxy.requests] == [0, 412]
    assert (found["complete"], found["objects"], found["stored_events"]) == (True, 1, 1000)
    assert_stored_once(store, bucket, file)


@pytest.mark.slow
def test_the_answer_to_a_completion_is_swallowed(store: Store, bucket: str, env: dict[str, str], tmp_path: Path) -> None:
    file = write_input(tmp_path / "in", 60_000)
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        proxy.fail(Swallow(), method="POST", target=r"uploadId=[^&]*$")
        found = summary("run", file, "--source-id", "web", env={**env, **IN_PARTS, "AWS_ENDPOINT_URL_S3": proxy.url})
        assert operations(proxy.requests).keys() <= WRITING
    assert (found["complete"], found["objects"], found["open_uploads"]) == (True, 1, [])
    assert_stored_once(store, bucket, file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, "<Error><Code>InternalError</Code><Message>try again</Message></Error>"),
        (503, "<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"),
        (409, "<Error><Code>ConditionalRequestConflict</Code><Message>conflict</Message></Error>"),
    ],
)
def test_faults_of_the_store_are_survived(
    store: Store, bucket: str, env: dict[str, str], tmp_path: Path, status: int, body: str
) -> None:
    file = write_input(tmp_path / "in", 60_000)
    xml = b'<?xml version="1.0" encoding="UTF-8"?>' + body.encode()
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        for target in ("uploads", "partNumber=1", "partNumber=2", r"uploadId=[^&]*$"):
            proxy.fail(Answer(status, xml, {"Content-Type": "application/xml"}), target=target)
        found = summary("run", file, "--source-id", "web", env={**env, **IN_PARTS, "AWS_ENDPOINT_URL_S3": proxy.url})
    assert found["complete"]
    assert found["open_uploads"] == []
    assert_stored_once(store, bucket, file)


@pytest.mark.slow
def test_a_completion_that_answers_200_with_an_error_is_no_success(
    store: Store, bucket: str, env: dict[str, str], tmp_path: Path
) -> None:
    file = write_input(tmp_path / "in", 60_000)
    error = b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>at the very end</Message></Error>'
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        proxy.fail(Answer(200, error, {"Content-Type": "application/xml"}), method="POST", target=r"uploadId=[^&]*$")
        found = summary("run", file, "--source-id", "web", env={**env, **IN_PARTS, "AWS_ENDPOINT_URL_S3": proxy.url})
        assert operations(proxy.requests)["CompleteMultipartUpload"] == 2
    assert found["complete"]
    assert_stored_once(store, bucket, file)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, "<Error><Code>InternalError</Code><Message>try again</Message></Error>"),
        (503, "<Error><Code>SlowDownWrite</Code><Message>unwritable</Message></Error>"),
        (404, "<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"),
        (200, "<Error><Code>InternalError</Code><Message>at the very end</Message></Error>"),
    ],
)
def test_an_upload_that_can_never_be_completed_is_replaced(
    store: Store, bucket: str, env: dict[str, str], tmp_path: Path, status: int, body: str
) -> None:
    file = write_input(tmp_path / "in", 40_000)

    def answer(request: Request) -> Answer:
        return Answer(status, body.encode(), {"Content-Type": "application/xml"})

    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        env |= {**IN_PARTS, "AWS_ENDPOINT_URL_S3": proxy.url}
        proxy.fail(answer, method="POST", target=r"uploadId=[^&]*$", times=3)
        found = json.loads(run("run", file, "--source-id", "web", "--json", env=env)[1])
        (first,) = {upload_id(one.target) for one in proxy.requests if operation(one) == "UploadPart"}
        proxy.clear()
        proxy.fail(answer, method="POST", target=f"uploadId={first}$", times=ALWAYS)
        runs = 0
        while not found["complete"]:
            found = json.loads(run("archive", "--once", "--json", env=env)[1])
            runs += 1
            assert runs <= 2, found
        assert found["open_uploads"] == []
    assert_stored_once(store, bucket, file)


def upload_id(target: str) -> str:
    return re.search(r"uploadId=([^&]+)", target)[1]  # type: ignore[index]


def test_an_upload_that_was_aborted_from_outside_is_replaced(aws: Moto, tmp_path: Path) -> None:
    """moto answers 500 to the completion of such an upload, and accepts its parts; others report that it is gone."""
    bucket = aws.bucket()
    file = write_input(tmp_path / "in", 40_000)
    with FaultProxy("127.0.0.1", aws.port, keep=0) as proxy:
        env = {
            **aws.environment(bucket, "admin", url=proxy.url),
            **FAST_RETRY,
            **IN_PARTS,
            "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        }
        proxy.fail(Answer(503), method="POST", target=r"uploadId=[^&]*$", times=ALWAYS)
        assert run("run", file, "--source-id", "web", env=env)[0] == 1
        proxy.clear()
        (upload,) = aws.admin.list_multipart_uploads(Bucket=bucket)["Uploads"]
        aws.admin.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        found: dict[str, Any] = {"complete": False}
        runs = 0
        while not found["complete"]:
            found = json.loads(run("archive", "--once", "--json", env=env)[1])
            runs += 1
            assert runs <= 2, found
    assert_stored_once(aws, bucket, file)


def test_without_the_abort_permission_a_cut_upload_is_continued(aws: Moto, tmp_path: Path) -> None:
    bucket = aws.bucket()
    aws.add_identity("put-without-abort", policy("s3:PutObject"))
    file = write_input(tmp_path / "in", 60_000)
    with FaultProxy("127.0.0.1", aws.port, keep=0) as proxy:
        env = {
            **aws.environment(bucket, "put-without-abort", url=proxy.url),
            **FAST_RETRY,
            **IN_PARTS,
            "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        }
        proxy.fail(Cut(after=MiB), method="PUT", target="partNumber=2", times=ALWAYS)
        with aws.enforce():
            assert run("run", file, "--source-id", "web", env=env)[0] == 1
            proxy.clear()
            found = summary("run", file, "--source-id", "web", env=env)
            assert (found["complete"], found["stored_events"], found["open_uploads"]) == (True, 60_000, [])
            assert "AbortMultipartUpload" not in operations(proxy.requests)
    assert_stored_once(aws, bucket, file)


def test_a_refused_abort_is_reported_and_nothing_waits_for_it(aws: Moto, tmp_path: Path) -> None:
    """The store loses the upload (409 at its completion): a new one is started, and aborting the old one fails."""
    bucket = aws.bucket()
    aws.add_identity("put-alone", policy("s3:PutObject"))
    aws.add_identity("put-and-abort", policy("s3:PutObject", "s3:AbortMultipartUpload"))
    file = write_input(tmp_path / "in", 60_000)
    conflict = b'<?xml version="1.0"?><Error><Code>ConditionalRequestConflict</Code><Message>conflict</Message></Error>'
    with FaultProxy("127.0.0.1", aws.port, keep=0) as proxy:
        env = {**FAST_RETRY, **IN_PARTS, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
        proxy.fail(Answer(409, conflict, {"Content-Type": "application/xml"}), method="POST", target=r"uploadId=[^&]*$")
        with aws.enforce():
            code, stdout, _ = run(
                "run", file, "--source-id", "web", "--json", env={**env, **aws.environment(bucket, "put-alone", url=proxy.url)}
            )
            found = json.loads(stdout)
            assert (code, found["complete"], found["stored_events"]) == (0, True, 60_000)
            (left,) = found["open_uploads"]
            assert "s3:AbortMultipartUpload" in left["hint"]
        assert len(aws.open_uploads(bucket)) == 1, "it is still open at the store, and in the journal"
        with aws.enforce():
            environment = {**env, **aws.environment(bucket, "put-and-abort", url=proxy.url)}
            assert summary("archive", "--once", env=environment)["open_uploads"] == []
    assert_stored_once(aws, bucket, file)


class TestWrongConfiguration:
    """Each is one line with a fix; the events wait; after the fix, the same command uploads each once."""

    def check(self, store: Store, tmp_path: Path, bucket: str, wrong: dict[str, str], *wanted: str) -> None:
        file = write_input(tmp_path / "in", 500)
        right = {**store.environment(bucket), **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
        env = {name: value for name, value in {**right, **wrong}.items() if value}
        code, stdout, stderr = run("run", file, "--source-id", "web", env=env)
        assert (code, stdout) == (1, "")
        counts, problem = stderr.splitlines()
        assert "500 events recorded; 0 events in 0 objects" in counts
        assert "500 events wait in" in problem
        assert "archive --once" in problem
        for text in wanted:
            assert text in problem
        for identity in (store.admin_identity, *store.identities.values()):
            assert identity.secret_key not in stderr
        assert store.keys(bucket) == []
        found = summary("run", file, "--source-id", "web", env=right)
        assert (found["complete"], found["events"], found["stored_events"]) == (True, 0, 500)
        assert_stored_once(store, bucket, file)

    def test_missing_credentials(self, store: Store, bucket: str, tmp_path: Path) -> None:
        wrong = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
        self.check(store, tmp_path, bucket, wrong, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")

    def test_a_wrong_secret(self, store: Store, bucket: str, tmp_path: Path) -> None:
        self.check(
            store, tmp_path, bucket, {"AWS_SECRET_ACCESS_KEY": "canary-wrong"}, "SignatureDoesNotMatch", "check the access key"
        )

    def test_a_wrong_key_id(self, store: Store, bucket: str, tmp_path: Path) -> None:
        self.check(store, tmp_path, bucket, {"AWS_ACCESS_KEY_ID": "AKIAWRONG"}, "InvalidAccessKeyId", "check the access key")

    def test_no_rights(self, store: Store, bucket: str, tmp_path: Path) -> None:
        who = store.identities["nothing"]
        wrong = {"AWS_ACCESS_KEY_ID": who.access_key, "AWS_SECRET_ACCESS_KEY": who.secret_key}
        self.check(store, tmp_path, bucket, wrong, "AccessDenied", f"grant s3:PutObject on arn:aws:s3:::{bucket}/*")

    def test_no_such_bucket(self, store: Store, bucket: str, tmp_path: Path) -> None:
        self.check(store, tmp_path, bucket, {"JOBS_BACKUP_BUCKET": "no-such-bucket"}, "NoSuchBucket", "check JOBS_BACKUP_BUCKET")

    def test_an_endpoint_where_nobody_listens(self, store: Store, bucket: str, tmp_path: Path) -> None:
        self.check(store, tmp_path, bucket, {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "127.0.0.1:9", "check the endpoint")

    def test_an_endpoint_that_has_no_address(self, store: Store, bucket: str, tmp_path: Path) -> None:
        wrong = {"AWS_ENDPOINT_URL_S3": "http://store.invalid:9000"}
        self.check(store, tmp_path, bucket, wrong, "store.invalid", "check the endpoint")
