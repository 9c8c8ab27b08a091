"""The files in contrib/ are what the code asks for, and real servers take them."""

from __future__ import annotations

import json
from pathlib import Path

from gcs import LEAST
from servers import POLICIES, Moto

from jobs_backup import Backup
from jobs_backup.env_file import read_env_file
from jobs_backup.providers import load
from jobs_backup.settings import CoreSettings, report_unknown
from jobs_backup_s3.settings import S3Settings

CONTRIB = Path(__file__).parents[1] / "contrib"


def test_the_policy_is_the_one_that_the_provider_prints_and_that_the_tests_use() -> None:
    file = json.loads((CONTRIB / "iam/s3-policy.json").read_text())
    environment = {"JOBS_BACKUP_BUCKET": "my-events"}
    printed = load("S3", environment).manager.hook.policy(settings=environment, delete=False, replay=False)
    (statement,) = json.loads(printed.text)["Statement"]
    assert statement.items() >= file["Statement"][0].items()
    assert POLICIES["put-only"]["Statement"][0]["Action"] == file["Statement"][0]["Action"]


def test_the_policy_with_deleting_has_one_right_more() -> None:
    file = json.loads((CONTRIB / "iam/s3-policy-with-delete.json").read_text())
    printed = load("S3", {"JOBS_BACKUP_BUCKET": "my-events"}).manager.hook.policy(
        settings={"JOBS_BACKUP_BUCKET": "my-events"}, delete=True, replay=False
    )
    (statement,) = json.loads(printed.text)["Statement"]
    assert statement.items() >= file["Statement"][0].items()
    assert POLICIES["put-delete"]["Statement"][0]["Action"] == file["Statement"][0]["Action"]


def test_the_role_for_google_is_the_one_that_the_provider_prints() -> None:
    text = (CONTRIB / "iam/gcs-role.yaml").read_text()
    permissions = text.partition("includedPermissions:\n")[2].replace("- ", "").split()
    environment = {"JOBS_BACKUP_BUCKET": "my-events"}
    printed = load("GCS", environment).manager.hook.policy(settings=environment, delete=False, replay=False).text
    assert f"--permissions={','.join(permissions)}\n" in printed
    assert set(permissions) == LEAST


def test_the_env_file_has_only_settings_that_exist() -> None:
    variables = read_env_file(CONTRIB / "docker/docker.env", {})
    assert report_unknown(variables, CoreSettings, S3Settings) == []
    settings = CoreSettings.from_environment(variables)
    assert (settings.storage_provider, settings.prefix) == ("S3", "backups")
    assert load(settings.storage_provider, variables).provider.location == "s3://my-events"


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
        backup.flush(30)
        assert backup.archiver is not None
        assert backup.archiver.drain(30)
    assert aws.keys(bucket) == []
    versions = aws.admin.list_object_versions(Bucket=bucket)
    assert (len(versions["Versions"]), len(versions["DeleteMarkers"])) == (1, 1), "what the documents tell"
