"""`jobs-backup check` on real servers: what it reports about permissions, what it leaves behind, and its exit codes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from buckets import file_environment
from commands import run
from gcs import ALL, LEAST, Emulator, GcsServer
from s3_client import STORED, open_s3, refusal
from servers import Moto, Store, operations, policy, weed

from jobs_backup.checks.permissions import Report, check
from jobs_backup.errors import ConfigurationError
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.sqlite import disk
from jobs_backup.spool.sqlite import status as engine
from jobs_backup.store import providers
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, Delay, FaultProxy, Swallow
from jobs_backup.testing.memory import MemoryProvider, loaded

Checked = tuple[int, dict[str, Any], dict[str, str]]


@pytest.fixture
def spool(tmp_path: Path) -> dict[str, str]:
    """The spool's path: it is not created."""
    return {"JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "not" / "yet" / "spool")}


def checked(environment: Mapping[str, str], **more: str) -> Checked:
    """The exit code, the report, and the outcome of each row by its name."""
    code, stdout, stderr = run("check", "--json", env={**environment, **more})
    assert stderr == ""
    report: dict[str, Any] = json.loads(stdout)
    assert report["ready"] is (code == 0)
    return code, report, {right["name"]: right["outcome"] for right in report["rights"]}


def row(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(right for right in report["rights"] if right["name"] == name)
    return found


def table(environment: Mapping[str, str], **more: str) -> str:
    _, stdout, _ = run("check", env={**environment, **more})
    return stdout


def scripted(url: str, spool: Mapping[str, str], **more: str) -> dict[str, str]:
    return {
        "JOBS_BACKUP_STORAGE_PROVIDER": "S3",
        "JOBS_BACKUP_BUCKET": "events",
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "AKIACANARYCANARY0001",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        **spool,
        **more,
    }


# S3: permissions


def test_put_only_is_ready(store: Store, bucket: str, spool: dict[str, str]) -> None:
    code, report, outcomes = checked(store.environment(bucket), JOBS_BACKUP_PREFIX="/prod/", **spool)
    assert (code, report["warnings"]) == (0, [])
    assert outcomes == {
        "write": "granted",
        "conditional write": "supported",
        "multipart": "granted",
        "abort": "granted",
        "read": "refused",
        "list": "refused",
        "delete": "refused",
    }
    assert [right["needed"] for right in report["rights"]] == [True] * 4 + [False] * 3
    assert report["provider"] == "S3"
    assert (report["prefix"], report["region"]) == ("prod", "us-east-1")
    assert abs(report["clock_skew"]) < 120
    assert row(report, "delete")["permission"] == "s3:DeleteObject"
    assert row(report, "read")["hint"] == f"grant s3:GetObject on arn:aws:s3:::{bucket}/prod/*"
    assert row(report, "list")["hint"] == f"grant s3:ListBucket on arn:aws:s3:::{bucket}"
    # This identity may write to the whole bucket.
    assert report["notes"] == ["may also write outside of JOBS_BACKUP_PREFIX, which is more than backups need"]
    assert not Path(spool["JOBS_BACKUP_SPOOL_DIR"]).parent.exists()
    # The probes stay, and describe themselves.
    assert [one["what"] for one in report["left"]] == ["object", "object"]
    assert sorted(one["key"] for one in report["left"]) == store.keys(bucket)
    assert all(key.startswith("prod/jobs-backup-check/") for key in store.keys(bucket))
    assert b"may be deleted" in store.get(bucket, store.keys(bucket)[0])
    assert store.open_uploads(bucket) == []


def test_table(store: Store, bucket: str, spool: dict[str, str]) -> None:
    shown = table(store.environment(bucket), **spool)
    assert "\x1b" not in shown
    heading, *_, verdict = shown.splitlines()
    assert heading.startswith(f"s3://{bucket} at {store.url}, no prefix, region us-east-1, clocks agree")
    assert verdict == "ready: events can be backed up"
    assert "  ok  abort              granted        s3:AbortMultipartUpload" in shown
    assert f"       to use it: grant s3:DeleteObject on arn:aws:s3:::{bucket}/*" in shown
    assert shown.count("left in the bucket: jobs-backup-check/") == 2
    assert shown.index("needed") < shown.index("optional") < shown.index("left in")


def test_everything_is_granted(store: Store, bucket: str, spool: dict[str, str]) -> None:
    """No probe stays, and unneeded permissions are pointed out."""
    code, report, outcomes = checked(store.environment(bucket, "all"), **spool)
    assert code == 0
    assert set(outcomes.values()) == {"granted", "supported"}
    assert report["notes"] == [
        "read is granted, which is more than backups need: it is for jobs-backup replay",
        "list is granted, which is more than backups need: it is for jobs-backup replay --list",
        "delete is granted, which is more than backups need: it is for deleting delivered events",
    ]
    assert report["left"] == []
    assert store.keys(bucket) == []
    assert store.open_uploads(bucket) == []


def test_nothing_is_granted(store: Store, bucket: str, spool: dict[str, str]) -> None:
    code, report, outcomes = checked(store.environment(bucket, "nothing"), JOBS_BACKUP_PREFIX="prod", **spool)
    assert code == 2
    assert outcomes == {
        "write": "refused",
        "conditional write": "not tried",
        "multipart": "refused",
        "abort": "not tried",
        "read": "not tried",
        "list": "refused",
        "delete": "refused",
    }
    assert row(report, "write")["hint"] == f"grant s3:PutObject on arn:aws:s3:::{bucket}/prod/*"
    assert report["left"] == []
    shown = table(store.environment(bucket, "nothing"), **spool)
    assert f"       grant s3:PutObject on arn:aws:s3:::{bucket}/*" in shown
    assert shown.splitlines()[-1] == "not ready: write refused, multipart refused [NotReady]"


def test_abort_is_missing(aws: Moto, spool: dict[str, str]) -> None:
    bucket = aws.bucket()
    aws.add_identity("check-no-abort", policy("s3:PutObject"))
    with aws.enforce():
        code, report, outcomes = checked(aws.environment(bucket, "check-no-abort"), JOBS_BACKUP_PREFIX="prod", **spool)
    assert code == 2
    assert (outcomes["write"], outcomes["multipart"], outcomes["abort"]) == ("granted", "granted", "refused")
    assert row(report, "abort")["hint"] == f"grant s3:AbortMultipartUpload on arn:aws:s3:::{bucket}/prod/*"
    assert report["notes"] == []
    # Probes that could not be aborted are reported; none was started outside of the prefix.
    assert aws.open_uploads(bucket) == [one["key"] for one in report["left"] if one["what"] == "upload"]
    assert len(aws.open_uploads(bucket)) == 1


def test_printed_policies_suffice(tmp_path: Path, spool: dict[str, str]) -> None:
    """With the provider's own policies: nothing outside of the prefix, and nothing is missing."""
    variables = {"JOBS_BACKUP_BUCKET": "events", "JOBS_BACKUP_PREFIX": "prod"}
    provider = open_s3(variables)
    policies = {
        "writes": json.loads(provider.policy(variables, delete=False, replay=False).text),
        "everything": json.loads(provider.policy(variables, delete=True, replay=True).text),
    }
    with weed(tmp_path / "weed", policies) as store:
        store.bucket("events")
        code, report, outcomes = checked(store.environment("events", "everything"), **variables, **spool)
        assert (code, len(report["notes"]), report["left"]) == (0, 3, [])
        assert set(outcomes.values()) == {"granted", "supported"}
        code, report, outcomes = checked(store.environment("events", "writes"), **variables, **spool)
        assert (code, report["notes"]) == (0, [])
        assert outcomes["delete"] == outcomes["read"] == outcomes["list"] == "refused"
        assert store.open_uploads("events") == []


def test_minio(store: Store, bucket: str, spool: dict[str, str]) -> None:
    code, report, outcomes = checked(store.environment(bucket, provider="MINIO"), MINIO_SSL="false", **spool)
    assert (code, report["provider"]) == (0, "MINIO")
    assert outcomes["abort"] == "granted"
    assert row(report, "write")["permission"] == "s3:PutObject"


def test_spaces_grants_all_or_nothing(store: Store, bucket: str, spool: dict[str, str]) -> None:
    """Its least permission covers the whole bucket, so that nothing counts as too wide."""
    environment = store.environment(bucket, "all", provider="DIGITAL_OCEAN_SPACES")
    code, report, _ = checked(environment, JOBS_BACKUP_PREFIX="prod", **spool)
    assert (code, report["notes"], report["left"]) == (0, [], [])
    assert all(right["needed"] for right in report["rights"])


def test_only_these_operations(store: Store, bucket: str, spool: dict[str, str]) -> None:
    with FaultProxy("127.0.0.1", store.port) as proxy:
        code, _, _ = checked(store.environment(bucket, "all", url=proxy.url), **spool)
        assert code == 0
        found = operations(proxy.requests)
        assert found.pop("GetObject") in (2, 3)
        assert found == {
            "PutObject": 2,
            "CreateMultipartUpload": 2,
            "UploadPart": 1,
            "CompleteMultipartUpload": 1,
            "AbortMultipartUpload": 1,
            "ListObjectsV2": 1,
            "DeleteObjects": 1,
        }
        proxy.clear()
        checked(store.environment(bucket, "put-only", url=proxy.url), JOBS_BACKUP_PREFIX="prod", **spool)
        beside = [request.target for request in proxy.requests if f"/{bucket}/prod/" not in request.target]
        assert [target.startswith(f"/{bucket}/jobs-backup-check/") for target in beside if "list-type" not in target] == [
            True,
            True,
            False,
        ]


# S3: errors


def test_wrong_key(store: Store, bucket: str, spool: dict[str, str]) -> None:
    code, report, outcomes = checked({**store.environment(bucket), "AWS_SECRET_ACCESS_KEY": "canary-wrong"}, **spool)
    assert code == 2
    assert outcomes.pop("write") == "failed"
    assert set(outcomes.values()) == {"not tried"}
    assert "access key" in row(report, "write")["hint"]
    assert "canary" not in json.dumps(report)
    assert report["left"] == []


def test_no_such_bucket(store: Store, spool: dict[str, str]) -> None:
    code, report, outcomes = checked(store.environment("no-such-bucket"), **spool)
    assert (code, outcomes["write"], outcomes["delete"]) == (2, "failed", "not tried")
    assert "no-such-bucket" in row(report, "write")["error"]


def test_nobody_answers(spool: dict[str, str]) -> None:
    with FaultProxy() as proxy:
        url = proxy.url
    code, report, outcomes = checked(scripted(url, spool))
    assert code == 1
    assert (outcomes["write"], outcomes["delete"], report["left"]) == ("failed", "not tried", [])
    assert "2 attempts" in row(report, "write")["error"]
    assert table(scripted(url, spool)).splitlines()[-1] == "not ready: write failed; try again [NotReady]"


def test_answers_too_late(store: Store, bucket: str, spool: dict[str, str]) -> None:
    """Whether the object exists then is unknown."""
    with FaultProxy("127.0.0.1", store.port) as proxy:
        proxy.fail(Delay(30), times=ALWAYS)
        code, report, _ = checked(store.environment(bucket, url=proxy.url), JOBS_BACKUP_REQUEST_TIMEOUT="300ms", **spool)
    assert code == 1
    assert [one["what"] for one in report["left"]] == ["unsure"]


def test_throttled_is_no_fault_of_the_settings(server: FaultProxy, spool: dict[str, str]) -> None:
    server.fail(refusal(503, "SlowDown"), times=ALWAYS)
    code, report, _ = checked(scripted(server.url, spool))
    assert code == 1
    assert operations(server.requests) == {"PutObject": 2}
    assert "SlowDown" in row(report, "write")["error"]


def test_wrong_region(server: FaultProxy, spool: dict[str, str]) -> None:
    server.fail(refusal(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}), times=ALWAYS)
    code, report, _ = checked(scripted(server.url, spool, AWS_REGION="ap-south-1"))
    assert (code, row(report, "write")["hint"]) == (2, "set AWS_REGION=eu-west-1")
    assert len(server.requests) == 1


def test_region_is_found(server: FaultProxy, spool: dict[str, str]) -> None:
    server.fail(refusal(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}))
    server.fail(STORED, method="PUT", times=ALWAYS)
    _, report, outcomes = checked(scripted(server.url, spool))
    assert (report["region"], outcomes["write"]) == ("eu-west-1", "granted")


@pytest.mark.parametrize(("ahead", "words"), [(3600, "behind"), (-3600, "ahead of")])
def test_clock_is_wrong(server: FaultProxy, spool: dict[str, str], ahead: float, words: str) -> None:
    def stored(_: object) -> Answer:
        return Answer(200, headers={"ETag": '"1"', "Date": formatdate(time.time() + ahead, usegmt=True)})

    server.fail(stored, method="PUT", times=ALWAYS)
    _, report, _ = checked(scripted(server.url, spool))
    assert report["clock_skew"] == pytest.approx(-ahead, abs=300)
    (warning,) = [one for one in report["warnings"] if "clock" in one]
    assert f"{words} the store's" in warning


def test_conditional_writes_are_ignored(store: Store, bucket: str, spool: dict[str, str]) -> None:
    with FaultProxy("127.0.0.1", store.port) as proxy:
        proxy.fail(STORED, method="PUT", target="jobs-backup-check", skip=1)  # the second write
        code, report, outcomes = checked(store.environment(bucket, url=proxy.url), **spool)
    assert (code, outcomes["conditional write"]) == (0, "not supported")
    assert "JOBS_BACKUP_CONDITIONAL_WRITES=false" in report["warnings"][0]


def test_conditional_writes_are_off(store: Store, bucket: str, spool: dict[str, str]) -> None:
    with FaultProxy("127.0.0.1", store.port) as proxy:
        environment = store.environment(bucket, url=proxy.url)
        code, report, outcomes = checked(environment, JOBS_BACKUP_CONDITIONAL_WRITES="false", **spool)
        assert operations(proxy.requests)["PutObject"] == 1
    assert (code, outcomes["conditional write"], report["warnings"]) == (0, "off", [])


def test_part_is_refused(store: Store, bucket: str, spool: dict[str, str]) -> None:
    """The upload is aborted, and the error is that of the part."""
    with FaultProxy("127.0.0.1", store.port) as proxy:
        proxy.fail(refusal(403, "AccessDenied", "no \x1b[31mparts"), target="partNumber", times=ALWAYS)
        code, report, outcomes = checked(store.environment(bucket, url=proxy.url), **spool)
        assert "\x1b" not in table(store.environment(bucket, url=proxy.url), **spool)
    assert (code, outcomes["multipart"], outcomes["abort"]) == (2, "refused", "granted")
    assert "UploadPart" in row(report, "multipart")["error"]
    assert store.open_uploads(bucket) == []


def test_lost_answer_is_stored(store: Store, bucket: str, spool: dict[str, str]) -> None:
    """The second attempt finds the first one's object: the write permission is proven."""
    with FaultProxy("127.0.0.1", store.port) as proxy:
        proxy.fail(Swallow(), method="PUT")
        code, report, outcomes = checked(store.environment(bucket, "all", url=proxy.url), **spool)
    assert (code, outcomes["write"], report["clock_skew"]) == (0, "granted", None)
    assert store.keys(bucket) == []


# Google Cloud Storage


def test_gcs_emulator(emulator: Emulator, spool: dict[str, str]) -> None:
    bucket = emulator.bucket()
    code, report, outcomes = checked(emulator.environment(bucket), JOBS_BACKUP_PREFIX="prod", **spool)
    assert code == 0
    assert set(outcomes.values()) == {"granted", "supported"}
    assert row(report, "read")["needed"]
    assert [note.split()[0] for note in report["notes"]] == ["may", "list", "delete"]
    assert emulator.keys(bucket) == []


def test_gcs_least(gcs: GcsServer, spool: dict[str, str]) -> None:
    gcs.granted = LEAST
    bucket = gcs.bucket()
    code, report, outcomes = checked(gcs.environment(bucket), **spool)
    assert (code, report["notes"]) == (0, [])
    assert (outcomes["read"], outcomes["list"], outcomes["delete"]) == ("granted", "refused", "refused")
    assert row(report, "list")["hint"] == f"grant storage.objects.list on gs://{bucket}"
    assert sorted(gcs.buckets[bucket]) == sorted(one["key"] for one in report["left"])
    assert len(gcs.buckets[bucket]) == 2
    assert gcs.open_uploads(bucket) == []


def test_gcs_create_alone(gcs: GcsServer, spool: dict[str, str]) -> None:
    gcs.granted = frozenset({"storage.objects.create"})
    code, report, outcomes = checked(gcs.environment(bucket := gcs.bucket()), **spool)
    assert (code, outcomes["write"], outcomes["read"]) == (2, "granted", "refused")
    assert row(report, "read")["hint"] == f"grant storage.objects.get on gs://{bucket}"


def test_gcs_get_alone(gcs: GcsServer, spool: dict[str, str]) -> None:
    """There is no object to read: a 404 is enough."""
    gcs.granted = frozenset({"storage.objects.get"})
    code, _, outcomes = checked(gcs.environment(gcs.bucket()), **spool)
    assert (code, outcomes["write"], outcomes["read"]) == (2, "refused", "granted")


def test_gcs_all(gcs: GcsServer, spool: dict[str, str]) -> None:
    gcs.granted = ALL
    bucket = gcs.bucket()
    code, report, _ = checked(gcs.environment(bucket), **spool)
    assert (code, len(report["notes"]), report["left"]) == (0, 2, [])
    assert gcs.buckets[bucket] == {}
    assert gcs.open_uploads(bucket) == []
    assert set(gcs.operations) == {
        "objects.insert", "resumable.begin", "resumable.chunk", "resumable.cancel", "objects.get", "objects.list",
        "objects.delete",
    }  # fmt: skip


# FILE, and third-party providers


def test_file(tmp_path: Path) -> None:
    code, report, outcomes = checked(file_environment(tmp_path), JOBS_BACKUP_PREFIX="prod")
    assert (code, report["notes"], report["clock_skew"], report["region"]) == (0, [], None, "")
    assert set(outcomes.values()) == {"granted", "supported"}
    assert [path for path in (tmp_path / "bucket").rglob("*") if path.is_file()] == []


def test_file_without_bucket(tmp_path: Path) -> None:
    environment = file_environment(tmp_path)
    (tmp_path / "bucket").rmdir()
    code, report, outcomes = checked(environment)
    assert (code, outcomes["write"], outcomes["list"]) == (2, "failed", "not tried")
    assert "mkdir" in row(report, "write")["hint"]


def _memory(monkeypatch: pytest.MonkeyPatch, class_: type[MemoryProvider], spool: Mapping[str, str]) -> Report:
    def load(_: str, environment: Mapping[str, str]) -> providers.LoadedProvider:
        return loaded(class_, environment)

    monkeypatch.setattr(providers, "load", load)
    MemoryProvider.buckets["check"] = {}
    environment = {"JOBS_BACKUP_STORAGE_PROVIDER": "MEMORY", "JOBS_BACKUP_BUCKET": "check", **spool}
    return check(CoreSettings.from_environment(environment), environment)


def test_memory(monkeypatch: pytest.MonkeyPatch, spool: dict[str, str]) -> None:
    report = _memory(monkeypatch, MemoryProvider, spool)
    assert (report.ready, report.left) == (True, [])
    assert MemoryProvider.buckets["check"] == {}


def test_neither_parts_nor_policy(monkeypatch: pytest.MonkeyPatch, spool: dict[str, str]) -> None:
    class Plain(MemoryProvider):
        create_multipart = write_part = complete_multipart = policy = read = list = None  # type: ignore[assignment]

    report = _memory(monkeypatch, Plain, spool)
    outcomes = {right.name: str(right.outcome) for right in report.rights}
    assert outcomes == {
        "write": "granted",
        "conditional write": "supported",
        "multipart": "not supported",
        "abort": "not supported",
        "read": "not supported",
        "list": "not supported",
        "delete": "granted",
    }
    assert report.ready
    assert {right.permission for right in report.rights} == {""}
    assert [right.name for right in report.rights if right.needed] == ["write", "conditional write", "multipart", "abort"]


# Settings and spool


def test_wrong_settings(store: Store, bucket: str, tmp_path: Path) -> None:
    code, stdout, stderr = run("check", env={**store.environment(bucket), "JOBS_BACKUP_PREFIX": "a//b"})
    assert (code, stdout) == (2, "")
    assert "JOBS_BACKUP_PREFIX" in stderr
    file = tmp_path / "docker.env"
    file.write_text("JOBS_BACKUP_STORAGE_PROVIDER=S3\n")
    code, stdout, stderr = run("check", "--env-file", file, env={})
    assert (code, stdout) == (2, "")
    assert "JOBS_BACKUP_BUCKET is not set" in stderr


def test_unknown_setting_is_warned_of(tmp_path: Path) -> None:
    code, _, stderr = run("check", env=file_environment(tmp_path, JOBS_BACKUP_PREFX="x"))
    assert code == 0
    assert "did you mean JOBS_BACKUP_PREFIX?" in stderr


@pytest.mark.parametrize(
    ("place", "more", "why"),
    [
        ("file/spool", {"JOBS_BACKUP_SPOOL_MIN_FREE": "1MiB"}, "is not a directory"),
        ("spool", {"JOBS_BACKUP_SPOOL_MIN_FREE": "900TiB"}, "JOBS_BACKUP_SPOOL_MIN_FREE"),
    ],
)
def test_spool_has_no_place(tmp_path: Path, place: str, more: dict[str, str], why: str) -> None:
    (tmp_path / "file").touch()
    environment = file_environment(tmp_path, JOBS_BACKUP_SPOOL_DIR=str(tmp_path / place), **more)
    code, report, outcomes = checked(environment)
    assert (code, outcomes["spool"], outcomes["write"]) == (2, "failed", "granted")
    assert why in row(report, "spool")["error"]
    assert table(environment).splitlines()[-1] == "not ready: spool failed [NotReady]"


def test_spool_on_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"36 35 98:0 / {tmp_path} rw,noatime shared:1 - nfs4 server:/export rw\n")

    def refuse(directory: Path) -> None:
        disk.refuse_network(directory, mounts)

    monkeypatch.setattr(engine, "refuse_network", refuse)
    environment = file_environment(tmp_path)
    report = check(CoreSettings.from_environment(environment), environment)
    assert not report.ready
    assert "network file system (nfs4)" in report.rights[-1].error


def test_spool_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, _: int) -> bool:
        return path != tmp_path  # root, which may run the tests, can write everywhere

    monkeypatch.setattr(os, "access", denied)
    environment = file_environment(tmp_path, JOBS_BACKUP_SPOOL_DIR=str(tmp_path / "not" / "spool"))
    report = check(CoreSettings.from_environment(environment), environment)
    assert report.rights[-1].error == f"{tmp_path} is not writable by this user"
    assert not report.may_pass


def test_nothing_is_sent_with_wrong_settings(store: Store, bucket: str, spool: dict[str, str]) -> None:
    environment = {**store.environment(bucket), "JOBS_BACKUP_PREFIX": "../x", **spool}
    with pytest.raises(ConfigurationError):
        check(CoreSettings.from_environment(environment), environment)
    assert store.keys(bucket) == []
