"""Variables that an SDK reads itself: invalid ones are rejected at startup, and no output shows their values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from unreachable import environment

import jobs_backup_azure_blob.settings
import jobs_backup_gcs.settings
import jobs_backup_s3.settings
from jobs_backup.cli import cli
from jobs_backup.errors import ConfigurationError, Unavailable
from jobs_backup.model import BytesBody
from jobs_backup.sdk import check_ambient, check_proxies, check_proxy, cleaned
from jobs_backup.store import providers
from jobs_backup.testing.driver import Hooks

CANARY: Final = "Zx9qwCanaryPw77"
MALFORMED: Final = {
    "a slash": f"http://joe:pass/{CANARY}@127.0.0.1:9",
    "a number and a slash": f"http://joe:77/{CANARY}@127.0.0.1:9",
    "a hash": f"http://joe:{CANARY}#1@127.0.0.1:9",
    "a question mark": f"http://joe:pass?{CANARY}@127.0.0.1:9",
    "a bracket": f"http://joe:{CANARY}[x]@127.0.0.1:9",
    "a space": f"http://joe:{CANARY} x@127.0.0.1:9",
    "a line break": f"http://joe:{CANARY}@127.0.0.1:9\n",
    "a backslash": f"http://joe:\\{CANARY}@127.0.0.1:9",
    "user and password at the end": f"127.0.0.1:9:joe:{CANARY}",
    "the same, as a URL": f"http://127.0.0.1:9:joe:{CANARY}",
    "a port above 65535": f"http://joe:{CANARY}@127.0.0.1:99999",
    "port 0": f"http://joe:{CANARY}@127.0.0.1:0",
    "a port in letters": f"http://joe:{CANARY}@127.0.0.1:http",
    "no host": f"http://joe:{CANARY}@",
    "no port": f"http://joe:{CANARY}@127.0.0.1:x",
    "one slash": f"http:/joe:{CANARY}@127.0.0.1:9",
    "another scheme": f"ftp://joe:{CANARY}@127.0.0.1:9",
    "a query": f"http://127.0.0.1:9/?password={CANARY}",
    "words": f"password {CANARY}",
}
"""Proxy URLs that an HTTP library fails to parse, and shows in part."""
NAMES: Final = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "Https_Proxy")
NETWORK: Final = ("S3", "MINIO", "DIGITAL_OCEAN_SPACES", "GCS", "AZURE_BLOB")


def ran(tmp_path: Path, provider: str, *arguments: str, **more: str) -> Result:
    """Run a command in an environment with only these proxies."""
    variables: dict[str, str | None] = {name: None for name in os.environ if name.lower().endswith("_proxy")}
    variables |= environment(tmp_path, provider, **more)
    return CliRunner().invoke(cli, arguments, env=variables, input='{"a": 1}\n')


def parts(text: str) -> Iterator[str]:
    """Forbidden parts of a canary: any six of its characters."""
    return (text[start : start + 6] for start in range(len(text) - 5))


@pytest.mark.parametrize("provider", NETWORK)
@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.sample(40)
def test_a_malformed_proxy_is_a_configuration_error(
    provider: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Set it in the settings' environment, or in the process's own, which the SDK reads."""
    for name in NAMES:
        given_settings = environment(tmp_path, provider)
        with pytest.raises(ConfigurationError) as caught:
            providers.load(provider, {**given_settings, name: text})
        assert str(caught.value).startswith(f"{name}: ")
        monkeypatch.setenv(name, text)
        with pytest.raises(ConfigurationError) as of_process:
            providers.load(provider, given_settings)
        monkeypatch.delenv(name)
        for error in (caught.value, of_process.value):
            assert not [one for one in parts(CANARY) if one.lower() in error.one_line().lower()]
            assert "http://user:password@host:port" in error.hint


@pytest.mark.parametrize("provider", NETWORK)
def test_no_command_and_no_catalog_has_the_password(provider: str, tmp_path: Path) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        for text in (MALFORMED["a slash"], MALFORMED["user and password at the end"]):
            for arguments in (("run", "--source-id", "web"), ("check",)):
                result = ran(tmp_path, provider, *arguments, **{name: text})
                assert result.exit_code == 2, result.output
                assert result.output.startswith(f"jobs-backup: {name}: "), result.output
                assert "attempt" not in result.output
                assert CANARY not in result.output
    status = ran(tmp_path, provider, "status")
    assert CANARY not in status.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


@pytest.mark.parametrize("provider", ["S3", "MINIO", "DIGITAL_OCEAN_SPACES"])
@pytest.mark.parametrize("text", [text for text in MALFORMED.values() if not text.endswith("\n")])
def test_the_setting_for_a_proxy_is_held_to_the_same_form(provider: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^JOBS_BACKUP_S3_PROXY: ") as caught:
        providers.load(provider, environment(tmp_path, provider, JOBS_BACKUP_S3_PROXY=text))
    assert CANARY not in caught.value.one_line()


WELL_FORMED: Final = [
    "http://proxy:3128", "http://proxy:3128/", "https://proxy.example:443", "proxy:3128", "proxy", "//proxy:3128", "HTTP://proxy:3128",
    "http://joe:pass@proxy:3128", "http://joe:p%2Fss%23%3F@proxy:3128", "joe:p@ss@10.0.0.1:3128", "http://joe@proxy:3128",
    "http://[::1]:3128", "http://[fe80::1%eth0]:3128", "http://my_proxy:3128", "http://proxy.example.:3128", "http://jöe:pä@proxy",
]  # fmt: skip


@pytest.mark.parametrize("text", WELL_FORMED)
def test_what_an_http_library_takes_is_taken(text: str) -> None:
    """urllib3 parses it, too: every value that worked is accepted."""
    from urllib3.util import parse_url

    check_proxies({"HTTPS_PROXY": text})
    assert parse_url(text if "//" in text else f"http://{text}").host


SCHEMELESS: Final = [
    "proxy:3128",
    "localhost:3128",
    "proxy-1:3128/",
    f"joe:{CANARY}@10.0.0.1:3128",
    "proxy.corp:3128",
    "10.0.0.1:3128",
]


@pytest.mark.parametrize("text", SCHEMELESS)
def test_a_proxy_without_a_scheme_is_taken_where_the_library_takes_it(text: str, tmp_path: Path) -> None:
    """requests reads what precedes the first colon as a scheme, unless it contains a dot; botocore does not."""
    from requests.utils import prepend_scheme_if_needed
    from urllib3.util import parse_url

    is_a_host = parse_url(prepend_scheme_if_needed(text, "http")).host is not None  # as requests asks
    for provider in NETWORK:
        is_refused = provider in ("GCS", "AZURE_BLOB") and not is_a_host
        result = ran(tmp_path, provider, "check", HTTPS_PROXY=text)
        assert ("HTTPS_PROXY: it lacks http://" in result.output) is is_refused, result.output
        assert CANARY not in result.output
        if is_refused:
            assert result.exit_code == 2
            assert "[ConfigurationError]" in result.output


def test_socks_is_for_whom_can_use_it() -> None:
    check_proxies({"ALL_PROXY": "socks5h://joe:pass@proxy:1080"})
    check_proxies({"HTTPS_PROXY": "socks5://proxy:1080"}, socks=True)
    with pytest.raises(ConfigurationError, match=r"^HTTPS_PROXY: it names a SOCKS proxy"):
        check_proxies({"HTTPS_PROXY": "socks5://proxy:1080"})


@given(st.text(min_size=1, max_size=60).filter(lambda text: "\0" not in text))
def test_whatever_is_taken_can_be_parsed(text: str) -> None:
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    for url in (text, f"http://joe:{text}@proxy:3128"):
        try:
            check_proxy("HTTPS_PROXY", url)
        except ConfigurationError:
            continue
        try:
            assert parse_url(url if "//" in url else f"http://{url}").host
        except LocationParseError as error:
            # IDNA rejects this label: only the host's name is shown.
            assert "label" in str(error) or not url.isascii()


AMBIENT: Final[Mapping[str, Mapping[str, str]]] = {
    "S3": {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://169.254.169.254/",
        "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv4",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials?id=1",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/1f2e3d4c-0000-4000-8000-000000000000",
        "AWS_METADATA_SERVICE_TIMEOUT": "2",
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "3",
        "AWS_MAX_ATTEMPTS": "5",
        "AWS_RETRY_MODE": "standard",
        "AWS_DEFAULTS_MODE": "in-region",
        "AWS_STS_REGIONAL_ENDPOINTS": "regional",
        "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": "legacy",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_supported",
        "AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES": "10240",
        "AWS_ACCOUNT_ID_ENDPOINT_MODE": "preferred",
    },
    "GCS": {
        "GCE_METADATA_HOST": "metadata.google.internal",
        "GCE_METADATA_ROOT": "169.254.169.254:80",
        "GCE_METADATA_IP": "169.254.169.254",
        "GCE_METADATA_TIMEOUT": "3",
        "GCE_METADATA_DETECT_RETRIES": "3",
        "GCE_METADATA_MTLS_MODE": "none",
        "GOOGLE_API_USE_MTLS_ENDPOINT": "auto",
        "GOOGLE_API_USE_CLIENT_CERTIFICATE": "false",
    },
    "AZURE_BLOB": {
        "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
        "AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://169.254.169.254",
        "AZURE_REGIONAL_AUTHORITY_NAME": "westeurope",
        "AZURE_TENANT_ID": "72f988bf-86f1-41af-91ab-2d7cd011db47",
        "AZURE_CLIENT_ID": "72f988bf-86f1-41af-91ab-2d7cd011db47",
        "AZURE_TOKEN_CREDENTIALS": "WorkloadIdentityCredential",
        "AZURE_KUBERNETES_TOKEN_PROXY": "https://proxy.example:443",
        "AZURE_LOG_LEVEL": "info",
        "AZURE_TRACING_ENABLED": "true",
        "AZURE_SDK_TRACING_IMPLEMENTATION": "opentelemetry",
        "AZURE_SDK_CLOUD_CONF": "AZURE_PUBLIC_CLOUD",
        "IDENTITY_ENDPOINT": "http://127.0.0.1:41741/msi/token/",
        "IMDS_ENDPOINT": "http://169.254.169.254",
        "MSI_ENDPOINT": "http://127.0.0.1:41741/MSI/token/",
    },
}
"""Variables that each SDK reads itself, with a valid value."""
AMBIENT_SECRETS: Final = {
    "a secret": f"NqVwYS81VP7Hb1/{CANARY}",
    "another": f"abc8Q~{CANARY}",
    "json": json.dumps({"private_key": CANARY}),
    "a user": f"http://joe:{CANARY}@127.0.0.1:9",
    "words": f"{CANARY} {CANARY}",
}


@pytest.mark.parametrize(("provider", "name"), [(one, name) for one, names in AMBIENT.items() for name in names])
def test_what_an_sdk_reads_by_itself(provider: str, name: str, tmp_path: Path) -> None:
    providers.load(provider, environment(tmp_path, provider, **{name: AMBIENT[provider][name]}))
    for text in AMBIENT_SECRETS.values():
        with pytest.raises(ConfigurationError) as caught:
            providers.load(provider, environment(tmp_path, provider, **{name: text}))
        assert str(caught.value).startswith(f"{name}: expected ")
        assert name in caught.value.hint
        assert CANARY not in caught.value.one_line()


def test_every_variable_that_a_provider_checks_is_here() -> None:
    found = {"S3": jobs_backup_s3.settings, "GCS": jobs_backup_gcs.settings, "AZURE_BLOB": jobs_backup_azure_blob.settings}
    assert {name: set(names) for name, names in AMBIENT.items()} == {name: set(module.AMBIENT) for name, module in found.items()}


def test_a_number_and_a_port_have_bounds() -> None:
    for form, text in (("url", "http://host:65536"), ("host", "host:0"), ("number", "-1"), ("number", "9" * 20)):
        with pytest.raises(ConfigurationError, match=r"^VARIABLE: expected "):
            check_ambient({"VARIABLE": text}, {"VARIABLE": form})


def test_errors_show_no_credentials_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://joe:p%40ssword77@proxy.example:3128")
    monkeypatch.setenv("AWS_ROLE_ARN", "NqVwYS81VP7Hb1DX8pP/d5khxE3pyIgKpaUnArl6")
    said = cleaned(
        "Failed to parse: joe:p%40ssword77@proxy.example:3128,\n p@ssword77, http://joe:p%40ssword77@proxy.example:3128,"
        " am9lOnBAc3N3b3JkNzc=, NqVwYS81VP7Hb1DX8pP/d5khxE3pyIgKpaUnArl6 at proxy.example. ",
        ambient=["AWS_ROLE_ARN"],
    )
    assert said == "Failed to parse: ****@proxy.example:3128, ****, ****, ****, **** at proxy.example"


@pytest.mark.parametrize("provider", NETWORK)
def test_a_proxy_that_answers_nothing_is_a_fault_of_the_network(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "" if "NO" in name.upper() else f"http://joe:{CANARY}@127.0.0.1:9")
    variables = environment(tmp_path, provider)
    loaded = providers.load(provider, {name: text.replace("127.0.0.1:9", "store.invalid:9") for name, text in variables.items()})
    with pytest.raises(Unavailable) as caught:
        Hooks(loaded).write("key", BytesBody(b"data"))
    assert CANARY not in caught.value.one_line()
