"""The variables of S3, MinIO and Spaces: their meaning, their invalid values, and the policy that follows from them."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from jobs_backup.errors import ConfigurationError
from jobs_backup.settings import Settings
from jobs_backup_s3.provider import MinioProvider, S3Provider, SpacesProvider
from jobs_backup_s3.settings import Connection, MinioSettings, S3Settings, SpacesSettings, endpoint_url

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA1", "AWS_SECRET_ACCESS_KEY": "secret-1"}
MINIO = {"JOBS_BACKUP_BUCKET": "events", "MINIO_ACCESS_KEY_ID": "a", "MINIO_SECRET_ACCESS_KEY": "s"}
SPACES = {"JOBS_BACKUP_BUCKET": "events", "DO_SPACES_ACCESS_KEY_ID": "a", "DO_SPACES_SECRET_ACCESS_KEY": "s"}

KEY = "1234abcd-12ab-34cd-56ef-1234567890ab"


def s3(**variables: str) -> Connection:
    return S3Settings.from_environment({"JOBS_BACKUP_BUCKET": "events", **variables}).connection()


def minio(**variables: str) -> Connection:
    return MinioSettings.from_environment({**MINIO, **variables}).connection()


def spaces(endpoint: str) -> Connection:
    return SpacesSettings.from_environment({**SPACES, "DO_SPACES_ENDPOINT": endpoint}).connection()


def test_aws_by_default() -> None:
    connection = s3(**KEYS)
    assert connection.location == "s3://events"
    assert (connection.endpoint, connection.region, connection.region_is_explicit) == (None, "us-east-1", False)
    assert (connection.checksum, connection.path_style, connection.acl, connection.sse) == ("crc32c", False, None, None)
    assert connection.keys is not None
    assert connection.keys.secret_key.reveal() == "secret-1"
    assert "secret-1" not in repr(connection)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:8333"}, "http://127.0.0.1:8333"),
        ({"AWS_ENDPOINT_URL": "https://store.internal/"}, "https://store.internal"),
        ({"AWS_ENDPOINT_URL": "https://other", "AWS_ENDPOINT_URL_S3": "store:9000"}, "https://store:9000"),
        ({"AWS_ENDPOINT_URL_S3": "https://project.supabase.co/storage/v1/s3"}, "https://project.supabase.co/storage/v1/s3"),
        ({"AWS_ENDPOINT_URL_S3": "http://[::1]:8333"}, "http://[::1]:8333"),
    ],
)
def test_other_stores(variables: dict[str, str], expected: str) -> None:
    connection = s3(**variables)
    assert connection.endpoint == expected
    assert connection.location == f"s3://events at {expected}"
    assert (connection.checksum, connection.path_style) == ("md5", True)


def test_endpoint_of_aws_is_no_other_store() -> None:
    connection = s3(AWS_ENDPOINT_URL_S3="https://bucket.vpce-1-2.s3.eu-west-1.vpce.amazonaws.com")
    assert (connection.checksum, connection.path_style) == ("crc32c", False)


@pytest.mark.parametrize(
    "text", ["http://", "ftp://host", "host:port", "host:99999", "user:pass@host", "http://a b", "https://host?x=1", ":9000"]
)
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"])
def test_nonsense_endpoint_names_its_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{variable} ") as caught:
        s3(**{variable: text})
    assert "pass@" not in caught.value.one_line()


@given(st.text(max_size=30))
def test_any_text_is_an_endpoint_or_an_error(text: str) -> None:
    try:
        url = endpoint_url("X", text)
    except ConfigurationError:
        return
    assert url.startswith(("http://", "https://"))
    assert endpoint_url("X", url) == url


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"AWS_ACCESS_KEY_ID": "a"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": "s"}, "AWS_ACCESS_KEY_ID"),
        ({"AWS_SESSION_TOKEN": "t"}, "AWS_ACCESS_KEY_ID"),
        ({"JOBS_BACKUP_BUCKET": "s3://events"}, "JOBS_BACKUP_BUCKET"),
        ({"JOBS_BACKUP_BUCKET": "events/prod"}, "JOBS_BACKUP_BUCKET"),
        ({"JOBS_BACKUP_BUCKET": ""}, "JOBS_BACKUP_BUCKET"),
        ({"AWS_REGION": "Europe (Ireland)"}, "AWS_REGION"),
        ({"AWS_DEFAULT_REGION": "eu/west"}, "AWS_DEFAULT_REGION"),
        ({"JOBS_BACKUP_S3_SSE": "aes"}, "JOBS_BACKUP_S3_SSE"),
        ({"JOBS_BACKUP_S3_SSE": "AES256", "JOBS_BACKUP_S3_KMS_KEY_ID": KEY}, "JOBS_BACKUP_S3_KMS_KEY_ID"),
        ({"JOBS_BACKUP_S3_CHECKSUM": "sha1"}, "JOBS_BACKUP_S3_CHECKSUM"),
        ({"JOBS_BACKUP_S3_CA_BUNDLE": "/no/such/file"}, "JOBS_BACKUP_S3_CA_BUNDLE"),
        ({"JOBS_BACKUP_S3_PROXY": "socks5://host"}, "JOBS_BACKUP_S3_PROXY"),
        ({"JOBS_BACKUP_S3_PROXY": "http://"}, "JOBS_BACKUP_S3_PROXY"),
        ({"JOBS_BACKUP_S3_VERIFY_TLS": "maybe"}, "JOBS_BACKUP_S3_VERIFY_TLS"),
    ],
)
def test_wrong_variables_are_named(variables: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        s3(**variables)
    assert caught.value.hint


def test_regions() -> None:
    assert s3(AWS_S3_REGION_HINT="eu-south-1").region == "eu-south-1"
    assert s3(AWS_S3_REGION_HINT="eu-south-1", AWS_DEFAULT_REGION="eu-west-1").region == "eu-west-1"
    explicit = s3(AWS_REGION="eu-north-1", AWS_DEFAULT_REGION="eu-west-1")
    assert (explicit.region, explicit.region_is_explicit) == ("eu-north-1", True)


def test_encryption() -> None:
    assert s3(AWS_ENABLE_SSE="true").sse == "AES256"
    assert s3(JOBS_BACKUP_S3_SSE="aws:kms").sse == "aws:kms"
    assert s3(JOBS_BACKUP_S3_KMS_KEY_ID=KEY, AWS_ENABLE_SSE="true").sse == "aws:kms"


def test_external_id() -> None:
    assert s3(JOBS_BACKUP_WORKSPACE_ID="w").external_id == "w"
    assert s3(JOBS_BACKUP_WORKSPACE_ID="w", JOBS_BACKUP_S3_EXTERNAL_ID="x").external_id == "x"


def test_minio(caplog: pytest.LogCaptureFixture) -> None:
    assert minio().endpoint == "http://localhost:9000"
    assert minio(MINIO_ENDPOINT="minio:9000", MINIO_SSL="true").endpoint == "https://minio:9000"
    assert minio(MINIO_ENDPOINT="https://minio:9000").endpoint == "https://minio:9000"
    assert not caplog.text
    assert minio(MINIO_END_POINT="old:9000").endpoint == "http://old:9000"
    assert "MINIO_END_POINT" in caplog.text
    with pytest.raises(ConfigurationError, match="MINIO_SSL"):
        minio(MINIO_ENDPOINT="http://minio:9000", MINIO_SSL="true")
    with pytest.raises(ConfigurationError, match=r"^MINIO_ENDPOINT "):
        minio(MINIO_ENDPOINT="minio:port")


def test_minio_has_no_default_credentials() -> None:
    with pytest.raises(ConfigurationError, match=r"MINIO_ACCESS_KEY_ID is not set.*MINIO_SECRET_ACCESS_KEY is not set"):
        MinioSettings.from_environment({"JOBS_BACKUP_BUCKET": "events", **KEYS})


def test_spaces() -> None:
    for endpoint in ("nyc3.digitaloceanspaces.com", "https://nyc3.digitaloceanspaces.com", "events.nyc3.digitaloceanspaces.com"):
        connection = spaces(endpoint)
        assert (connection.endpoint, connection.region) == ("https://nyc3.digitaloceanspaces.com", "nyc3")
    assert spaces("http://127.0.0.1:8333").region == "us-east-1"
    with pytest.raises(ConfigurationError, match="another bucket"):
        spaces("other.nyc3.digitaloceanspaces.com")
    with pytest.raises(ConfigurationError, match=r"^DO_SPACES_ENDPOINT "):
        spaces("https://")


@pytest.mark.parametrize("settings", [S3Settings, MinioSettings, SpacesSettings])
def test_every_setting_is_described(settings: type[Settings]) -> None:
    described = list(settings.describe())
    assert {setting.field for setting in described} == set(settings.__struct_fields__)
    assert all(setting.variable.help.endswith(".") for setting in described)
    names = [setting.variable.name for setting in described]
    assert len(names) == len(set(names))
    assert all(setting.secret for setting in described if "KEY_ID" in setting.variable.name and "KMS" not in setting.variable.name)


# Policies


def s3_policy(delete: bool = False, replay: bool = False, **variables: str) -> dict[str, dict[str, object]]:
    environment = {"JOBS_BACKUP_BUCKET": "events", **variables}
    policy = S3Provider.from_settings(environment).policy(environment, delete, replay, "")
    assert policy.format == "json"
    document = json.loads(policy.text)
    assert document["Version"] == "2012-10-17"
    return {statement["Sid"]: statement for statement in document["Statement"]}


def test_policy_of_writing() -> None:
    assert s3_policy() == {
        "Objects": {
            "Sid": "Objects",
            "Effect": "Allow",
            "Action": ["s3:PutObject", "s3:AbortMultipartUpload"],
            "Resource": "arn:aws:s3:::events/*",
        }
    }


def test_policy_of_everything() -> None:
    statements = s3_policy(delete=True, replay=True, JOBS_BACKUP_PREFIX="/prod/", AWS_REGION="cn-north-1")
    assert statements["Objects"]["Resource"] == "arn:aws-cn:s3:::events/prod/*"
    assert statements["Objects"]["Action"] == ["s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject"]
    assert statements["List"]["Action"] == ["s3:ListBucket"]
    assert statements["List"]["Resource"] == "arn:aws-cn:s3:::events"
    assert statements["List"]["Condition"] == {"StringLike": {"s3:prefix": "prod/*"}}
    assert len(statements) == 2


@pytest.mark.parametrize(
    ("key", "resource"),
    [
        (f"arn:aws:kms:eu-west-1:123456789012:key/{KEY}", f"arn:aws:kms:eu-west-1:123456789012:key/{KEY}"),
        (KEY, f"arn:aws:kms:*:*:key/{KEY}"),
        ("alias/events", "arn:aws:kms:*:*:key/*"),
    ],
)
def test_policy_with_a_key(key: str, resource: str) -> None:
    statement = s3_policy(JOBS_BACKUP_S3_KMS_KEY_ID=key)["Key"]
    assert statement["Action"] == ["kms:GenerateDataKey", "kms:Decrypt"]
    assert statement["Resource"] == resource
    assert ("Condition" in statement) is key.startswith("alias/")


def test_policy_with_an_acl() -> None:
    assert "s3:PutObjectAcl" in str(s3_policy(JOBS_BACKUP_S3_ACL="private")["Objects"]["Action"])


def test_policy_of_the_others() -> None:
    assert json.loads(MinioProvider.from_settings(MINIO).policy(MINIO, False, False, "").text)["Statement"]
    environment = {**SPACES, "DO_SPACES_ENDPOINT": "nyc3.digitaloceanspaces.com"}
    policy = SpacesProvider.from_settings(environment).policy(environment, False, False, "")
    assert policy.format == "commands"
    assert "bucket=events;permission=readwrite" in policy.text


def test_readme_names_every_variable() -> None:
    readme = (ROOT / "plugins/s3/README.md").read_text()
    for settings in (S3Settings, MinioSettings, SpacesSettings):
        for setting in settings.describe():
            assert f"`{setting.variable.name}`" in readme


def test_the_partitions_are_botocores() -> None:
    """One region of each partition, including those that the next SDK adds."""
    loader: Any = importlib.import_module("botocore.loaders").create_loader()
    for partition in loader.load_data("partitions")["partitions"]:
        for region in partition["regions"]:
            if not region.startswith("aws-"):
                assert s3(AWS_REGION=region).partition == partition["id"], region
        assert s3(AWS_ENDPOINT_URL_S3=f"https://s3.some-region-1.{partition['outputs']['dnsSuffix']}").is_aws


@pytest.mark.parametrize(
    "key",
    [
        KEY, KEY.upper(), "mrk-1234abcd12ab34cd56ef1234567890ab", "alias/my-key", "alias/a/b_c",
        f"arn:aws-eusc:kms:eusc-de-east-1:123456789012:key/{KEY}", "arn:aws:kms:eu-west-1:123456789012:alias/events",
    ],
)  # fmt: skip
def test_keys_of_aws(key: str) -> None:
    assert s3(JOBS_BACKUP_S3_KMS_KEY_ID=key).kms_key_id == key


@pytest.mark.parametrize(
    "key", ["my-key", "1234-abcd", f"key/{KEY}", f"arn:aws:kms:eu-west-1::key/{KEY}", "alias/", f"{KEY}/", "aws:kms"]
)
def test_what_is_no_key_of_aws(key: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^JOBS_BACKUP_S3_KMS_KEY_ID is ") as caught:
        s3(JOBS_BACKUP_S3_KMS_KEY_ID=key)
    assert "alias/NAME" in caught.value.hint


def test_other_stores_name_their_keys_as_they_like() -> None:
    assert minio(JOBS_BACKUP_S3_KMS_KEY_ID="my-key").kms_key_id == "my-key"
    assert s3(JOBS_BACKUP_S3_KMS_KEY_ID="my-key", AWS_ENDPOINT_URL_S3="https://store.example").kms_key_id == "my-key"


@pytest.mark.parametrize(
    ("arn", "said"),
    [
        ("arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap", "Multi-Region Access Point"),
        ("arn:aws:s3::123456789012:accesspoint:mfzwi23gnjvgw.mrap", "Multi-Region Access Point"),
        ("arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/ap1", "Outposts"),
        ("arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/bucket/b", "Outposts"),
        ("arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/ol", "Object Lambda"),
        ("arn:aws:s3express:us-east-1:123456789012:bucket/b--use1-az4--x-s3", "directory bucket"),
        ("events-o0000abcd--op-s3", "Outposts"),
        ("events-abc--ol-s3", "Object Lambda"),
        ("arn:aws:s3:::plain", "without arn:aws:s3:::"),
        ("arn:aws:sqs:eu-west-1:123456789012:queue", "an ARN, but not"),
    ],
)
def test_other_arns_are_refused_with_the_reason(arn: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^JOBS_BACKUP_BUCKET is ") as caught:
        s3(JOBS_BACKUP_BUCKET=arn)
    assert said in caught.value.one_line()
    assert "s3://" not in caught.value.hint
