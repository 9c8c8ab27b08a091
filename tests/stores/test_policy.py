"""`jobs-backup policy` and `jobs-backup env`: stores and settings accept their output."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import hcl2
import pytest
from botocore import xform_name
from commands import run
from servers import Moto, client

from jobs_backup.errors import ConfigurationError
from jobs_backup.settings.base import report_unknown
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.env_file import read_env_file
from jobs_backup.settings.server import ServerSettings
from jobs_backup.store.plugins import settings_of
from jobs_backup.store.providers import KIND, load, load_class

BUCKET = {"JOBS_BACKUP_BUCKET": "my-events"}


def printed(*arguments: str, **variables: str) -> str:
    code, out, err = run("policy", *arguments, env={**BUCKET, **variables})
    assert (code, err) == (0, ""), err
    return out


def test_exactly_the_settings_in_force() -> None:
    text = printed(JOBS_BACKUP_STORAGE_PROVIDER="s3", JOBS_BACKUP_PREFIX="/a/b/", JOBS_BACKUP_S3_KMS_KEY_ID="alias/events")
    objects, key = json.loads(text)["Statement"]
    assert objects["Action"] == ["s3:PutObject", "s3:AbortMultipartUpload"]
    assert objects["Resource"] == "arn:aws:s3:::my-events/a/b/*"
    assert key["Action"] == ["kms:GenerateDataKey", "kms:Decrypt"]


@pytest.mark.parametrize(
    ("partition", "variable", "value"),
    [
        ("aws-us-gov", "AWS_REGION", "us-gov-west-1"),
        ("aws-us-gov", "JOBS_BACKUP_S3_KMS_KEY_ID", "arn:aws-us-gov:kms:us-gov-west-1:123456789012:alias/events"),
        ("aws-us-gov", "AWS_ENDPOINT_URL_S3", "https://s3-fips.us-gov-east-1.amazonaws.com"),
        ("aws-cn", "AWS_ENDPOINT_URL", "https://s3.cn-north-1.amazonaws.com.cn"),
        ("aws-cn", "BACKUP_IAM_ROLE_ARN", "arn:aws-cn:iam::123456789012:role/backups"),
        ("aws-eusc", "AWS_DEFAULT_REGION", "eusc-de-east-1"),
        ("aws", "AWS_ENDPOINT_URL_S3", "https://cn-events.s3.amazonaws.com"),
    ],
)
def test_the_partition_is_that_of_any_setting_that_names_one(partition: str, variable: str, value: str) -> None:
    """IAM refuses a policy with a resource of another partition."""
    statements = json.loads(printed("--provider", "S3", "--with-replay", **{variable: value}))["Statement"]
    assert {one["Resource"].split(":")[1] for one in statements} == {partition}


@pytest.mark.parametrize(
    ("provider", "variables"),
    [
        ("S3", {"JOBS_BACKUP_S3_KMS_KEY_ID": "alias/events"}),
        ("MINIO", {}),
        ("DIGITAL_OCEAN_SPACES", {"DO_SPACES_ENDPOINT": "nyc3.digitaloceanspaces.com"}),
        ("GCS", {"JOBS_BACKUP_GCS_KMS_KEY": "projects/p'$(id)/locations/l/keyRings/r/cryptoKeys/k"}),
        ("AZURE_BLOB", {"AZURE_STORAGE_ACCOUNT": "acme"}),
        ("FILE", {"JOBS_BACKUP_BUCKET": "it's"}),
    ],
)
@pytest.mark.parametrize("prefix", ["it's", "'; touch stolen; '", "$(touch stolen)`touch stolen`", "*?${aws:username}"])
def test_no_setting_breaks_out_of_the_commands(provider: str, variables: dict[str, str], prefix: str, tmp_path: Path) -> None:
    options = ("--provider", provider, "--with-replay", "--format", "commands")
    code, text, err = run("policy", *options, env={**BUCKET, "JOBS_BACKUP_PREFIX": prefix, **variables})  # with a warning
    assert code == 0, err
    tools = "".join(f"{tool}() {{ :; }}; " for tool in ("aws", "mc", "doctl", "gcloud", "az", "install"))
    done = subprocess.run(
        ["sh", "-eu", "-c", tools + "PRINCIPAL=; " + text], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "stolen").exists()


def test_replay_without_a_prefix_may_list_all() -> None:
    _, listing = json.loads(printed("--provider", "S3", "--with-replay"))["Statement"]
    assert listing["Action"] == ["s3:ListBucket"]
    assert "Condition" not in listing


@pytest.mark.parametrize("provider", ["S3", "MINIO", "DIGITAL_OCEAN_SPACES", "GCS", "FILE"])
def test_it_needs_no_credentials_and_shows_none(provider: str) -> None:
    secrets = {
        "AWS_ACCESS_KEY_ID": "canary1",
        "MINIO_SECRET_ACCESS_KEY": "canary2",
        "GOOGLE_APPLICATION_CREDENTIALS": "/no/canary3",
    }
    text = printed("--provider", provider, DO_SPACES_ENDPOINT="nyc3.digitaloceanspaces.com", **secrets)
    assert "my-events" in text
    assert "canary" not in text


@pytest.mark.parametrize("provider", ["S3", "GCS", "DIGITAL_OCEAN_SPACES"])
@pytest.mark.parametrize("prefix", ["", "odd ${x} %{y} \"'"])
def test_terraform_is_well_formed(provider: str, prefix: str) -> None:
    more = {
        "JOBS_BACKUP_S3_KMS_KEY_ID": "alias/events",
        "JOBS_BACKUP_GCS_KMS_KEY": "projects/p/locations/l/keyRings/r/cryptoKeys/k",
        "DO_SPACES_ENDPOINT": "nyc3.digitaloceanspaces.com",
    }
    text = printed("--provider", provider, "--with-replay", "--format", "terraform", JOBS_BACKUP_PREFIX=prefix, **more)
    assert hcl2.loads(text)["resource"]


def test_the_commands_for_aws_make_a_user_that_may_exactly_this(aws: Moto, tmp_path: Path) -> None:
    """Run through the SDK, with the same operation names as Amazon's command."""
    bucket = aws.bucket()
    text = printed("--provider", "S3", "--format", "commands", JOBS_BACKUP_BUCKET=bucket, JOBS_BACKUP_PREFIX="prod")
    (tmp_path / "policy.json").write_text(text.split("<<'END'\n")[1].split("\nEND\n")[0])
    answers: dict[str, Any] = {}
    for line in text.split("\nEND\n")[1].replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        _, service, operation, *options = words
        arguments: dict[str, Any] = {}
        for name, value in zip(options[::2], options[1::2], strict=True):
            argument = "".join(map(str.capitalize, name.strip("-").split("-")))
            text = (tmp_path / value.removeprefix("file://")).read_text() if value.startswith("file://") else value
            arguments[argument] = json.loads(text) if argument == "LifecycleConfiguration" else text
        with closing(client(aws.url, aws.admin_identity, service.removesuffix("api"))) as sdk:
            answers[operation] = getattr(sdk, xform_name("".join(map(str.capitalize, operation.split("-")))))(**arguments)
    key = answers["create-access-key"]["AccessKey"]
    (rule,) = aws.admin.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    env = {
        **aws.environment(bucket, "admin"),
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"), "JOBS_BACKUP_RETRY_ATTEMPTS": "1",
    }  # fmt: skip
    with aws.enforce():
        assert run("run", "--source-id", "web", env={**env, "JOBS_BACKUP_PREFIX": "prod"}, stdin='{"a":1}\n')[0] == 0
        code, _, err = run("run", "--source-id", "web", env={**env, "JOBS_BACKUP_PREFIX": "elsewhere"}, stdin='{"a":1}\n')
    assert code == 1
    assert "s3:PutObject" in err


@pytest.mark.parametrize(
    ("arguments", "variables", "why"),
    [
        ([], {}, "JOBS_BACKUP_STORAGE_PROVIDER is not set"),
        (["--provider", "NONE"], {}, "provider 'NONE' is not installed"),
        (["--provider", "MINIO", "--format", "terraform"], {}, "use --format json"),
        (["--provider", "DIGITAL_OCEAN_SPACES", "--format", "json"], {"DO_SPACES_ENDPOINT": "x.example"}, "use --format commands"),
        (["--provider", "FILE", "--format", "json"], {}, "use --format commands"),
        (["--provider", "S3"], {"JOBS_BACKUP_PREFIX": "a/../b"}, "JOBS_BACKUP_PREFIX="),
        (["--provider", "S3"], {"JOBS_BACKUP_BUCKET": ""}, "JOBS_BACKUP_BUCKET is not set"),
    ],
)
def test_what_can_not_be_printed(arguments: list[str], variables: dict[str, str], why: str) -> None:
    code, out, err = run("policy", *arguments, env={**BUCKET, **variables})
    assert (code, out) == (2, "")
    assert why in err


@pytest.mark.parametrize("provider", KIND.names())
def test_a_made_env_file_names_nobodys_bucket(provider: str, tmp_path: Path) -> None:
    """Unedited, it must not write to a stranger's bucket: required values are empty, and examples are in comments."""
    _, text, _ = run("env", provider, env={"JOBS_BACKUP_WRAPPERS": "encryption"})
    file = tmp_path / "docker.env"
    file.write_text(text)
    active = read_env_file(file, {})
    settings = settings_of(load_class(provider)[1])
    assert settings is not None
    described = list(settings.describe())
    assert {active[one.variable.name] for one in described if one.default is None} == {""}
    examples = {one.variable.example for one in described if one.variable.example}
    assert not examples & set(active.values())
    assert [one.variable.name for one in described if one.default is None and one.variable.example not in text] == []
    with pytest.raises(ConfigurationError, match="JOBS_BACKUP_BUCKET is not set"):
        load(provider, active)


# Values that cannot be a resource in IAM


def statements(*arguments: str, **variables: str) -> list[dict[str, Any]]:
    code, out, err = run("policy", "--provider", "S3", *arguments, env={**BUCKET, **variables})
    assert code == 0, err
    found: list[dict[str, Any]] = json.loads(out)["Statement"]
    return found


ID = "1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.mark.parametrize(
    ("key", "resource", "alias"),
    [
        ("alias/events", "arn:aws:kms:*:*:key/*", "alias/events"),
        ("arn:aws:kms:eu-west-1:123456789012:alias/events", "arn:aws:kms:eu-west-1:123456789012:key/*", "alias/events"),
        ("arn:aws-cn:kms:cn-north-1:123456789012:alias/a/b", "arn:aws-cn:kms:cn-north-1:123456789012:key/*", "alias/a/b"),
        (f"arn:aws:kms:eu-west-1:123456789012:key/{ID}", f"arn:aws:kms:eu-west-1:123456789012:key/{ID}", ""),
        ("1234abcd-12ab-34cd-56ef-1234567890ab", "arn:aws:kms:*:*:key/1234abcd-12ab-34cd-56ef-1234567890ab", ""),
        ("mrk-1234abcd12ab34cd56ef1234567890ab", "arn:aws:kms:*:*:key/mrk-1234abcd12ab34cd56ef1234567890ab", ""),
    ],
)
def test_a_key_is_granted_by_itself_and_an_alias_by_a_condition(key: str, resource: str, alias: str) -> None:
    found = statements(JOBS_BACKUP_S3_KMS_KEY_ID=key)[-1]
    assert found["Resource"] == resource
    assert found.get("Condition") == ({"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}} if alias else None)


POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/events"


def test_an_access_point_and_the_bucket_behind_it() -> None:
    found = {one["Sid"]: one for one in statements("--with-replay", JOBS_BACKUP_BUCKET=POINT, JOBS_BACKUP_PREFIX="prod")}
    through = {"s3:DataAccessPointArn": POINT}
    assert found["Objects"]["Resource"] == f"{POINT}/object/prod/*"
    assert "Condition" not in found["Objects"]
    assert found["ObjectsBehind"]["Resource"] == "arn:aws:s3:::*/prod/*"
    assert (
        found["ObjectsBehind"]["Action"]
        == found["Objects"]["Action"]
        == ["s3:PutObject", "s3:AbortMultipartUpload", "s3:GetObject"]
    )
    assert found["ObjectsBehind"]["Condition"] == {"StringEquals": through}
    assert found["List"]["Resource"] == POINT
    assert found["ListBehind"]["Condition"] == {"StringEquals": through, "StringLike": {"s3:prefix": "prod/*"}}
    for format_ in ("commands", "terraform"):
        code, out, _ = run("policy", "--provider", "S3", "--format", format_, env={**BUCKET, "JOBS_BACKUP_BUCKET": POINT})
        assert code == 0
        assert f"--bucket {POINT}" not in out
        assert f'bucket = "{POINT}"' not in out


@pytest.mark.parametrize(
    ("alias", "said"),
    [
        ("events-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias", "arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME"),
        ("events-abc--ol-s3", "Object Lambda"),
        ("events-o0000abcd--op-s3", "Outposts"),
    ],
)
def test_an_alias_of_an_access_point_is_refused_with_what_to_write(alias: str, said: str) -> None:
    code, out, err = run("policy", "--provider", "S3", env={**BUCKET, "JOBS_BACKUP_BUCKET": alias})
    assert (code, out) == (2, "")
    assert said in err
    other_store = {**BUCKET, "JOBS_BACKUP_BUCKET": alias, "AWS_ENDPOINT_URL_S3": "https://store.example"}
    code, out, _ = run("policy", "--provider", "S3", env=other_store)
    assert (code, f"arn:aws:s3:::{alias}/*" in out) == (0, True)


@pytest.mark.parametrize(("region", "expected"), [("", "*"), ("us-west-2", "us-west-2")])
def test_a_directory_bucket_is_opened_by_sessions(region: str, expected: str) -> None:
    name = "my-events--usw2-az1--x-s3"
    found = statements("--with-replay", "--with-delete", JOBS_BACKUP_BUCKET=name, JOBS_BACKUP_PREFIX="p", AWS_REGION=region)
    resource = f"arn:aws:s3express:{expected}:*:bucket/{name}"
    assert found == [{"Sid": "Session", "Effect": "Allow", "Action": ["s3express:CreateSession"], "Resource": resource}]


def test_an_access_point_of_a_directory_bucket_and_the_bucket_behind_it() -> None:
    name = "ap1--use1-az4--xa-s3"
    arn = f"arn:aws:s3express:us-east-1:*:accesspoint/{name}"
    through, behind = statements("--with-replay", JOBS_BACKUP_BUCKET=name, AWS_REGION="us-east-1")
    assert (through["Action"], through["Resource"]) == (["s3express:CreateSession"], arn)
    assert (behind["Action"], behind["Resource"]) == (
        ["s3express:CreateSession"],
        "arn:aws:s3express:us-east-1:*:bucket/*--use1-az4--x-s3",
    )
    assert behind["Condition"] == {"ArnLike": {"s3express:DataAccessPointArn": arn}}
    for format_ in ("commands", "terraform"):
        _, out, _ = run("policy", "--provider", "S3", "--format", format_, env={**BUCKET, "JOBS_BACKUP_BUCKET": name})
        assert f"--bucket {name}" not in out
        assert f'bucket = "{name}"' not in out


@pytest.mark.parametrize("region", ["eusc-de-east-1", "us-iso-east-1", "us-isob-east-1", "us-gov-west-1", "cn-north-1"])
@pytest.mark.parametrize("bucket", ["b12", "b--use1-az4--x-s3", "ap1--use1-az4--xa-s3"])
def test_every_arn_is_of_the_regions_partition(region: str, bucket: str) -> None:
    found = statements("--with-replay", "--with-delete", JOBS_BACKUP_BUCKET=bucket, AWS_REGION=region, JOBS_BACKUP_S3_KMS_KEY_ID=ID)
    partition = {"eusc": "aws-eusc", "us-iso": "aws-iso", "us-isob": "aws-iso-b", "us-gov": "aws-us-gov", "cn": "aws-cn"}
    expected = next(name for start, name in partition.items() if region.startswith(f"{start}-"))
    arns = re.findall(r'"(arn:[^"]*)"', json.dumps(found))
    assert len(arns) >= 2
    assert {arn.split(":")[1] for arn in arns} == {expected}


@pytest.mark.parametrize("prefix", ["a*b", "a?b", "a${x}", "a${aws:username}b", "$", "${*}"])
def test_a_prefix_is_no_pattern_in_a_policy(prefix: str) -> None:
    escaped = "".join({"*": "${*}", "?": "${?}", "$": "${$}"}.get(one, one) for one in prefix)
    found = {one["Sid"]: one for one in statements("--with-replay", JOBS_BACKUP_PREFIX=prefix)}
    assert found["Objects"]["Resource"] == f"arn:aws:s3:::{BUCKET['JOBS_BACKUP_BUCKET']}/{escaped}/*"
    assert found["List"]["Condition"] == {"StringLike": {"s3:prefix": f"{escaped}/*"}}
    found = {one["Sid"]: one for one in statements("--with-replay", JOBS_BACKUP_BUCKET=POINT, JOBS_BACKUP_PREFIX=prefix)}
    assert found["ObjectsBehind"]["Resource"] == f"arn:aws:s3:::*/{escaped}/*"
    assert found["ListBehind"]["Condition"]["StringLike"] == {"s3:prefix": f"{escaped}/*"}
    # Other stores lack this escape, and would grant nothing.
    assert f"/{prefix}/*" in printed("--provider", "MINIO", JOBS_BACKUP_PREFIX=prefix)


GOOGLES = "projects/p/locations/eu/keyRings/r/cryptoKeys/k"


@pytest.mark.parametrize("key", ["my-key", "projects/p", f"{GOOGLES}/cryptoKeyVersions/1", f"/{GOOGLES}", f"{GOOGLES}/"])
def test_what_is_no_key_of_googles_is_refused_with_what_to_write(key: str) -> None:
    code, out, err = run("policy", "--provider", "GCS", env={**BUCKET, "JOBS_BACKUP_GCS_KMS_KEY": key})
    assert (code, out) == (2, "")
    assert "projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY" in err


def test_a_key_of_googles() -> None:
    assert f"--authorize-cmek={GOOGLES}" in printed("--provider", "GCS", JOBS_BACKUP_GCS_KMS_KEY=GOOGLES)


@pytest.mark.parametrize("provider", KIND.names())
def test_a_made_env_file_has_every_setting_once_and_its_defaults_can_be_used(provider: str, tmp_path: Path) -> None:
    code, text, _ = run("env", provider.lower(), env={})
    assert code == 0
    settings = settings_of(load_class(provider)[1])
    assert settings is not None
    wanted = {one.variable.name for one in (*CoreSettings.describe(), *settings.describe(), *ServerSettings.describe())}
    file = tmp_path / "docker.env"
    file.write_text(text)
    active = read_env_file(file, {})
    assert active["JOBS_BACKUP_STORAGE_PROVIDER"] == provider
    file.write_text("".join(f"{line.removeprefix('#')}\n" if not line.startswith("# ") else "" for line in text.splitlines()))
    everything = read_env_file(file, {})
    assert set(everything) == wanted
    assert text.count("JOBS_BACKUP_BUCKET=") == 1
    assert report_unknown(everything, CoreSettings, settings, ServerSettings) == []
    for other in ("JOBS_BACKUP_SPOOL", "JOBS_BACKUP_SPOOL_DIR"):  # a spool is one or the other
        CoreSettings.from_environment({name: text for name, text in everything.items() if name != other})
    ServerSettings.from_environment(everything)
    CoreSettings.from_environment(active)


def test_the_env_file_of_the_provider_in_force() -> None:
    assert run("env", env={"JOBS_BACKUP_STORAGE_PROVIDER": "FILE"})[1] == run("env", "FILE", env={})[1]
    code, _, err = run("env", env={})
    assert code == 2
    assert "no provider is given" in err
    assert run("env", "NONE", env={})[0] == 2


def test_a_policy_of_somebody_elses_directory(tmp_path: Path) -> None:
    odd = tmp_path / "a b'c"
    text = printed("--provider", "FILE", JOBS_BACKUP_BUCKET=str(odd))
    subprocess.run(["sh", "-euc", text], check=True)
    assert odd.stat().st_mode & 0o777 == 0o700
