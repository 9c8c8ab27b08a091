"""Unusable credentials on this machine: every file that an SDK reads, missing, unreadable, or a directory."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from jobs_backup.errors import ConfigurationError, JobsBackupError, Unauthenticated
from jobs_backup.model import BytesBody
from jobs_backup.store import providers
from jobs_backup.testing.driver import Hooks

_ROLE: Final = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/r"}
_AZURE: Final = {
    "AZURE_STORAGE_ACCOUNT": "account1", "AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t", "AZURE_AUTHORITY_HOST": "https://127.0.0.1:9/",
}  # fmt: skip
_CONTAINER: Final = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/credentials"}
# Provider, the variable with the file's name, and the other variables that make the SDK read it.
FILES: Final = [
    ("S3", "AWS_WEB_IDENTITY_TOKEN_FILE", _ROLE),
    ("S3", "AWS_WEB_IDENTITY_TOKEN_FILE", {**_ROLE, "BACKUP_IAM_ROLE_ARN": "arn:aws:iam::123456789012:role/backup"}),
    ("S3", "AWS_SHARED_CREDENTIALS_FILE", {}),
    ("S3", "AWS_SHARED_CREDENTIALS_FILE", {"AWS_PROFILE": "prod"}),
    ("S3", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", _CONTAINER),
    ("AZURE_BLOB", "AZURE_FEDERATED_TOKEN_FILE", _AZURE),
    ("AZURE_BLOB", "AZURE_CLIENT_CERTIFICATE_PATH", _AZURE),
]
TOKEN: Final = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.Y2FuYXJ5"
every_file = pytest.mark.parametrize(("provider", "variable", "more"), FILES, ids=[f"{one[1]}{len(one[2])}" for one in FILES])


def refusal(provider: str, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> JobsBackupError:
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(JobsBackupError) as caught:
        Hooks(providers.load(provider, {"JOBS_BACKUP_BUCKET": "my-events", **variables})).write("key", BytesBody(b"data"))
    return caught.value


@every_file
def test_a_file_that_is_missing_is_named(
    provider: str, variable: str, more: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "no" / "token")
    error = refusal(provider, {**more, variable: path}, monkeypatch)
    assert type(error) is Unauthenticated, error.one_line()
    assert f"{variable}: {path}: No such file or directory" in str(error)
    assert error.hint.startswith(
        f"mount the file there, or correct or unset {variable}; in Kubernetes, check the pod's service account"
    )


@every_file
def test_a_directory_in_its_place_is_named(
    provider: str, variable: str, more: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = refusal(provider, {**more, variable: str(tmp_path)}, monkeypatch)
    assert type(error) is Unauthenticated, error.one_line()
    assert f"{variable}: {tmp_path}: Is a directory" in str(error)
    assert variable in error.hint


@every_file
def test_the_token_itself_in_its_place_is_not_shown(
    provider: str, variable: str, more: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = refusal(provider, {**more, variable: TOKEN}, monkeypatch)
    assert type(error) is Unauthenticated, error.one_line()
    assert f"{variable} holds what looks like a key, not a path" in error.hint
    said = "".join(traceback.format_exception(error)) + error.one_line() + caplog.text
    assert not [one for one in TOKEN.split(".") if one in said]


def test_a_profile_that_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        (tmp_path / name).write_text("[default]\nregion = eu-west-1\n")
        monkeypatch.setenv(name, str(tmp_path / name))
    error = refusal("S3", {"AWS_PROFILE": "prod"}, monkeypatch)
    assert type(error) is Unauthenticated
    assert (
        f"profile 'prod' not found, neither in {tmp_path / 'AWS_SHARED_CREDENTIALS_FILE'} nor in {tmp_path / 'AWS_CONFIG_FILE'}"
        in (str(error))
    )
    assert "AWS_PROFILE" in error.hint
    error = refusal("S3", {"AWS_PROFILE": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYcanary1KEY"}, monkeypatch)
    assert "canary" not in error.one_line()


def federated(tmp_path: Path, token: Path) -> dict[str, str]:
    """Workload identity federation with its token in a file that the JSON names."""
    credentials = {
        "type": "external_account", "audience": "//iam.googleapis.com/x",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "http://127.0.0.1:9/token", "credential_source": {"file": str(token)},
    }  # fmt: skip
    (tmp_path / "federation.json").write_text(json.dumps(credentials))
    return {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "federation.json")}


def test_googles_token_of_a_federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal("GCS", federated(tmp_path, tmp_path / "token"), monkeypatch)
    assert type(error) is Unauthenticated
    assert f"credential_source of GOOGLE_APPLICATION_CREDENTIALS: {tmp_path / 'token'}: No such file or directory" in str(error)


def test_googles_key_is_missing_at_the_start_or_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key.json"
    variables = {"JOBS_BACKUP_BUCKET": "my-events", "GOOGLE_APPLICATION_CREDENTIALS": str(key)}
    with pytest.raises(ConfigurationError, match=f"^GOOGLE_APPLICATION_CREDENTIALS: {key}: No such file or directory") as at_start:
        providers.load("GCS", variables)
    assert "mount the file there" in at_start.value.hint
    key.write_text('{"type": "service_account"}')
    hooks = Hooks(providers.load("GCS", variables))
    key.unlink()
    with pytest.raises(Unauthenticated, match=f"GOOGLE_APPLICATION_CREDENTIALS: {key}: No such file or directory"):
        hooks.write("key", BytesBody(b"data"))


@pytest.mark.parametrize("name", ["AZURE_STORAGE_SAS_TOKEN_FILE", "AZURE_STORAGE_ACCESS_KEY_FILE"])
def test_azures_own_files_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "sas"
    variables = {"JOBS_BACKUP_BUCKET": "my-events", "AZURE_STORAGE_ACCOUNT": "account1", name: str(path)}
    with pytest.raises(ConfigurationError, match=f"^{name}: {path}: No such file or directory"):
        providers.load("AZURE_BLOB", variables)


# Readable but unusable files

PROFILES: Final = """
[profile junk]
credential_process = sh -c "echo SECRETJUNKSECRET"
[profile fails]
credential_process = sh -c "echo 'sso: password is SECRETJUNK: AKIASECRETJUNK123456' >&2; exit 1"
[profile silent]
credential_process = false
[profile missing]
credential_process = /opt/no/such --token SECRETJUNK
[profile locked]
credential_process = /etc/passwd
[profile nothing]
credential_process = true
[profile keyless]
credential_process = printf '{"Version": 1}'
[profile odd]
credential_process = printf '{"Version": 1, "AccessKeyId": null, "SecretAccessKey": "SECRETJUNK"}'
[profile quote]
credential_process = sh -c "SECRETJUNK
[profile gone]
role_arn = arn:aws:iam::123456789012:role/x
source_profile = zz
[profile nowhere]
role_arn = arn:aws:iam::123456789012:role/x
credential_source = Nowhere
[profile empty]
role_arn = arn:aws:iam::123456789012:role/x
web_identity_token_file = /dev/null
[profile loop]
role_arn = arn:aws:iam::123456789012:role/x
source_profile = back
[profile back]
role_arn = arn:aws:iam::123456789012:role/x
source_profile = loop
[profile sso]
sso_session = none
sso_account_id = 1
sso_role_name = r
"""
_ALONE: Final = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}


@pytest.mark.parametrize(("content", "why"), [(b"", "the file is empty"), (b" \n", "the file is empty"), (b"\xff\xfe\x00", "")])
@every_file
def test_a_file_that_cannot_be_used_is_named_and_not_retried(
    provider: str,
    variable: str,
    more: Mapping[str, str],
    content: bytes,
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    is_profile = variable == "AWS_SHARED_CREDENTIALS_FILE"
    if why and is_profile:
        return  # a valid file without profiles
    error = refusal(provider, {**(_ALONE if provider == "S3" else {}), **more, variable: str(path)}, monkeypatch)
    assert type(error) is Unauthenticated, error.one_line()
    assert f"{variable}: {path}: {why}" in str(error)
    assert variable in error.hint
    assert not error.retryable


@pytest.mark.parametrize("profile", re.findall(r"profile (\w+)\]", PROFILES))
def test_a_profile_that_cannot_be_used(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config"
    path.write_text(PROFILES)
    error = refusal("S3", {**_ALONE, "AWS_CONFIG_FILE": str(path), "AWS_PROFILE": profile}, monkeypatch)
    assert isinstance(error, Unauthenticated | ConfigurationError), error.one_line()
    assert "AWS_PROFILE" in error.hint
    assert "CA_BUNDLE" not in error.one_line()
    assert "SECRETJUNK" not in error.one_line()
    assert not error.retryable
    if "credential_process" in PROFILES.partition(f"[profile {profile}]")[2].partition("[")[0] and profile != "odd":
        assert f"credential_process of profile '{profile}': " in str(error)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("sh -c 'echo session ended: log in >&2; exit 1'", "it failed: session ended: log in"),
        ("false", "it failed"),
        ("/opt/no/such", "'/opt/no/such' cannot be run: No such file or directory"),
        ("/etc/passwd", "'/etc/passwd' cannot be run: Permission denied"),
        ("true", "it did not print credentials (JSON with Version 1, AccessKeyId and SecretAccessKey)"),
    ],
)
def test_why_a_process_gave_no_credentials(command: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config"
    path.write_text(f"[default]\ncredential_process = {command}\n")
    error = refusal("S3", {**_ALONE, "AWS_CONFIG_FILE": str(path)}, monkeypatch)
    assert str(error) == f"PutObject s3://my-events/key: credential_process of profile 'default': {why}"


def test_a_container_service_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal("S3", {**_ALONE, **_CONTAINER}, monkeypatch)
    assert type(error) is Unauthenticated
    assert "AWS_CONTAINER_CREDENTIALS_FULL_URI: the service there gave no credentials: Connection refused" in str(error)


@pytest.mark.parametrize("variable", ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"])
@pytest.mark.parametrize("content", [b"{bad", b"\xff\xfe\x00"])
def test_a_file_of_profiles_that_is_none(variable: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profiles"
    path.write_bytes(content)
    error = refusal("S3", {**_ALONE, variable: str(path)}, monkeypatch)
    assert f"{variable}: {path}: the SDK cannot read it as a file of profiles" in str(error)
    assert error.hint == f"correct it, or unset {variable}"
    assert not error.retryable


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/dev/null"}, "AWS_ROLE_ARN"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://store.example/c"}, "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": ""}, "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        ({**_CONTAINER, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": ""}, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
        ({**_CONTAINER, "AWS_CONTAINER_AUTHORIZATION_TOKEN": "a\nb"}, "AWS_CONTAINER_AUTHORIZATION_TOKEN"),
    ],
)
def test_variables_that_lead_to_no_credentials(variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal("S3", {**_ALONE, **variables}, monkeypatch)
    assert type(error) is Unauthenticated, error.one_line()
    assert named in error.hint
    assert "CA_BUNDLE" not in error.one_line()


_FEDERATED: Final = {"type": "external_account", "audience": "x", "token_url": "http://127.0.0.1:9/token"}


@pytest.mark.parametrize(
    "credentials",
    [
        {"type": "service_account"},
        {"type": "service_account", "client_email": "a@b", "token_uri": "http://x", "private_key": "canary, not a key"},
        {"type": "service_account", "client_email": 5, "token_uri": [], "private_key": 5},
        {"type": "authorized_user"},
        {"type": "authorized_user", "refresh_token": "canary"},
        {"type": "external_account"},
        {**_FEDERATED, "credential_source": "canary"},
        {"type": "impersonated_service_account"},
        {"type": "external_account_authorized_user"},
    ],
)
def test_googles_json_that_lacks_something(credentials: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps(credentials))
    error = refusal("GCS", {"GOOGLE_APPLICATION_CREDENTIALS": str(path)}, monkeypatch)
    assert type(error) is Unauthenticated, error.one_line()
    assert f"GOOGLE_APPLICATION_CREDENTIALS: {path}: " in str(error)
    assert "canary" not in error.one_line()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_googles_token_of_a_federation_that_is_none(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_bytes(content)
    error = refusal("GCS", federated(tmp_path, tmp_path / "token"), monkeypatch)
    assert type(error) is Unauthenticated, error.one_line()
    assert f"credential_source of GOOGLE_APPLICATION_CREDENTIALS: {tmp_path / 'token'}: the file is " in str(error)


# Unreadable files, for a process without root's permissions


def _without_rights(work: Callable[[Path], list[str]], directory: Path, results: multiprocessing.Queue[list[str]]) -> None:
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        assert ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) == 0
    results.put(work(directory))


def _unreadable(directory: Path) -> list[str]:
    token = directory / "token"
    token.write_text("x")
    token.chmod(0)
    said: list[str] = []
    cases = [(provider, {**more, variable: str(token)}) for provider, variable, more in FILES]
    for provider, variables in [
        *cases,
        ("GCS", federated(directory, token)),
        ("GCS", {"GOOGLE_APPLICATION_CREDENTIALS": str(token)}),
    ]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            try:
                said.append(refusal(provider, variables, monkeypatch).one_line())
            except ConfigurationError as error:
                said.append(error.one_line())
    return said


@pytest.mark.skipif(
    os.geteuid() == 0 and sys.platform != "linux", reason="root may read everything, and has to give up its capabilities"
)
def test_a_file_that_may_not_be_read_is_named_with_what_to_change(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[list[str]] = context.Queue()
    process = context.Process(target=_without_rights, args=(_unreadable, tmp_path, results))
    process.start()
    said = results.get(timeout=100)
    process.join()
    assert len(said) == len(FILES) + 2
    for line in said:
        assert f"{tmp_path / 'token'}: Permission denied" in line
        assert f"let the user of this process (uid {os.geteuid()}) read the file" in line
        assert "securityContext.fsGroup" in line
