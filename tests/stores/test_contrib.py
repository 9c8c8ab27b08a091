"""The files in contrib/ match the code, and real servers accept them."""

from __future__ import annotations

import json
from pathlib import Path

from gcs import LEAST
from generated import command
from places import ROOT
from servers import POLICIES, Moto
from spools import archiver_of

from jobs_backup import Backup
from jobs_backup.settings.base import report_unknown
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.env_file import read_env_file
from jobs_backup.store.providers import load
from jobs_backup_s3.settings import S3Settings

CONTRIB = ROOT / "contrib"


def test_the_policies_are_those_that_the_tests_use() -> None:
    for file, identity in (("s3-policy", "put-only"), ("s3-policy-with-delete", "put-delete")):
        (statement,) = json.loads((CONTRIB / f"iam/{file}.json").read_text())["Statement"]
        assert POLICIES[identity]["Statement"][0]["Action"] == statement["Action"]
    assert set(json.loads((CONTRIB / "iam/gcs-role.json").read_text())["includedPermissions"]) == LEAST


def test_the_rule_for_unfinished_uploads_is_that_of_the_commands() -> None:
    (rule,) = json.loads((CONTRIB / "iam/s3-lifecycle.json").read_text())["Rules"]
    assert json.dumps({"Rules": [rule]}) in command(
        "policy", "--provider", "S3", "--format", "commands", JOBS_BACKUP_BUCKET="my-events"
    )


def test_the_env_file_has_only_settings_that_exist() -> None:
    variables = read_env_file(CONTRIB / "docker/docker.env", {})
    assert report_unknown(variables, CoreSettings, S3Settings) == []
    settings = CoreSettings.from_environment(variables)
    assert (settings.storage_provider, settings.prefix) == ("S3", "")
    provider = load(settings.storage_provider, {**variables, "JOBS_BACKUP_BUCKET": "my-events"}).provider
    assert (variables["JOBS_BACKUP_BUCKET"], provider.location) == ("", "s3://my-events")


def test_a_store_takes_the_lifecycle_rule(aws: Moto) -> None:
    rules = json.loads((CONTRIB / "iam/s3-lifecycle.json").read_text())
    bucket = aws.bucket()
    aws.admin.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    (rule,) = aws.admin.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}


def test_on_a_versioned_bucket_a_delete_leaves_the_data_and_a_rule_ends_that(aws: Moto, tmp_path: Path) -> None:
    bucket = aws.bucket()
    aws.admin.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    rules = json.loads((CONTRIB / "iam/s3-lifecycle-versioned.json").read_text())
    aws.admin.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    abort, remove = aws.admin.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert [abort] == json.loads((CONTRIB / "iam/s3-lifecycle.json").read_text())["Rules"]
    assert remove["NoncurrentVersionExpiration"] == {"NoncurrentDays": 1}
    assert remove["Expiration"] == {"ExpiredObjectDeleteMarker": True}
    with Backup.from_env({**aws.environment(bucket, "admin"), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}) as backup:
        backup.delivered(backup.record({}, source_id="web"))
        backup.flush(120)
        assert archiver_of(backup).drain(120)
    assert aws.keys(bucket) == []
    versions = aws.admin.list_object_versions(Bucket=bucket)
    assert (len(versions["Versions"]), len(versions["DeleteMarkers"])) == (1, 1), "what the documents tell"
