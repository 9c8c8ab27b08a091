"""Secrets in the wrong place: put into every setting of every provider and wrapper, one at a time, and never shown."""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from unreachable import PROVIDERS, environment

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.cli import cli
from jobs_backup.errors import ConfigurationError, JobsBackupError
from jobs_backup.inputs.http.serving import Server
from jobs_backup.settings import Duration, Endpoint, Secret, Setting, Settings, Size, Variable
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.server import ServerSettings
from jobs_backup.store import providers, wrappers
from jobs_backup.store.plugins import Installed, PluginKind, settings_of
from jobs_backup.util.disclosure import credential_in, may_be_credential, shown

_BASE64: Final = "Zm9vQ2FuYXJ5K1NlY3JldC83ZjNhOWIyYzRkNWU2ZjcwOE1qUXc5"
_HEX: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SECRETS: Final = {
    "json": json.dumps({"type": "service_account", "private_key_id": _HEX[:40], "private_key": f"-----BEGIN\n{_BASE64}"}),
    "indented json": json.dumps({"type": "service_account", "private_key": _BASE64}, indent=2),
    "json as text": json.dumps(json.dumps({"private_key": _BASE64})),
    "pem": f"-----BEGIN RSA PRIVATE KEY-----\n{_BASE64}\n{_HEX}\n-----END RSA PRIVATE KEY-----\n",
    "pem in a line": f"-----BEGIN EC PRIVATE KEY-----\\n{_BASE64}\\n-----END EC PRIVATE KEY-----",
    "aws secret": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYcanary1KEY",
    "credentials file": f"[default]\naws_access_key_id = AKIACANARYCANARY0001\naws_secret_access_key = {_BASE64[:40]}\n",
    "sas": f"?sv=2026-02-06&sp=rcw&se=2030-01-01T00%3A00Z&sig={_BASE64[:43]}%3D",
    "connection string": f"DefaultEndpointsProtocol=https;AccountName=account1;AccountKey={_BASE64}==",
    "token": f"eyJhbGciOiJSUzI1NiJ9.{_BASE64[:30]}.{_BASE64[10:40]}",
    "base64": f"{_BASE64}==",
    "of 30 characters": _BASE64[:30],
    "with its name": f"secret_key: {_BASE64[:20]}",
    "netrc": f"machine x login y password {_BASE64[:20]}",
    "hex": _HEX,
    "url": f"https://canary:{_BASE64[:20]}@storage.example/events",
}  # fmt: skip
_BODIES: Final = (_BASE64, _HEX, SECRETS["aws secret"], "CANARYCANARY0001")
"""Their secret parts."""
_KEY: Final = {"JOBS_BACKUP_WRAPPERS": "encryption", "JOBS_BACKUP_ENCRYPTION_KEY": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}


def described(provider: str) -> Iterator[Setting]:
    """Every setting of a provider, or of core, the server and the wrappers."""
    if provider == "FILE":  # with every setting that is not a provider's
        yield from (*CoreSettings.describe(), *ServerSettings.describe())
        for name in wrappers.KIND.names():
            of_wrapper = settings_of(wrappers.KIND.load_class(name)[1])
            yield from of_wrapper.describe() if of_wrapper else ()
    own = settings_of(providers.load_class(provider)[1])
    assert own is not None
    yield from own.describe()


PLACES: Final = sorted(
    {
        (provider, name)
        for provider in PROVIDERS
        for setting in described(provider)
        for name in (setting.variable.name, *setting.variable.aliases)
    }
)


_FIRST: Final = {name: (provider, name) for provider, name in reversed(PLACES)}.values()


def test_every_provider_and_wrapper_is_here() -> None:
    assert sorted(PROVIDERS) == providers.KIND.names()
    assert wrappers.KIND.names() == ["ENCRYPTION", "OPENTELEMETRY"]


def leaked(output: str) -> list[str]:
    """Pieces of the secrets in the output."""
    return [piece for body in _BODIES for start in range(len(body) - 7) if (piece := body[start : start + 8]) in output]


def configured(variables: Mapping[str, str]) -> Iterator[str]:
    """Objects made from the variables, and errors about them, without any upload."""
    try:
        core = CoreSettings.from_environment(variables)
        yield repr(core)
        yield repr(ServerSettings.from_environment(variables))
        loaded = providers.load(core.storage_provider, variables)
        yield loaded.provider.location + repr(loaded) + repr(vars(loaded.provider))
        yield repr(vars(wrappers.Wrappers.from_settings(core.wrappers, variables)))
    except JobsBackupError as error:
        yield everything_said(error)


def everything_said(error: JobsBackupError) -> str:
    """All visible text of an error."""
    return "\n".join([*traceback.format_exception(error), error.one_line(), repr(vars(error)), repr(error)])


def recorded(variables: Mapping[str, str]) -> Iterator[str]:
    """The output of a program that records an event, and of one that serves."""
    try:
        with Backup.from_env(variables) as backup:
            backup.record({"a": 1}, source_id="web")
            yield repr(vars(backup)) + repr(vars(session_of(backup).store)) + session_of(backup).location
            backup.flush(timeout=5)
    except JobsBackupError as error:
        yield everything_said(error)
    try:
        server = Server(ServerSettings.from_environment({"JOBS_BACKUP_SERVER_PORT": "0", **variables}))
        for listener in server._listeners:
            listener.close()
        yield server.url
    except JobsBackupError as error:
        yield everything_said(error)


def commands(variables: Mapping[str, str], provider: str, turn: int) -> Iterator[str]:
    """The output of commands: the common ones, and one of the others in turn."""
    others = ("archive --once -v", "policy", f"env {provider}", f"providers {provider} --check", "replay --list --dry-run")
    for line in ("run --source-id web --json -v", "check --json", "status --json", others[turn % len(others)]):
        runner = CliRunner(env={**dict.fromkeys(os.environ), "PATH": os.environ["PATH"], **variables})
        result = runner.invoke(cli, line.split(), '{"a":1}\n')
        assert result.exception is None or isinstance(result.exception, SystemExit), traceback.format_exception(result.exception)
        yield result.output


@pytest.mark.parametrize(("provider", "name"), PLACES, ids=[f"{provider}-{name}" for provider, name in PLACES])
@pytest.mark.sample(36)
def test_no_output_has_a_secret_that_is_in_the_wrong_place(
    provider: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    more = _KEY if name.startswith("JOBS_BACKUP_ENCRYPTION") else {}
    turn = PLACES.index((provider, name))
    planted = {form: {**environment(tmp_path, provider, **more), name: secret} for form, secret in SECRETS.items()}
    for form, variables in planted.items():
        said = list(configured(variables))
        assert said
        assert not leaked("".join(said)), f"{form}: {said}"
    if (provider, name) not in _FIRST:
        return  # a setting that another provider has as well
    # Uploads take longer: one form for each setting, a different one each time.
    form, variables = list(planted.items())[turn % len(planted)]
    said = [*recorded(variables), *commands(variables, provider, turn), caplog.text]
    assert not leaked("".join(said)), f"{form}: {said}"
    assert [path for path in tmp_path.rglob("*") if leaked(str(path.relative_to(tmp_path)))] == []


# A third party's


class Shape:
    """A third-party type whose error repeats the wrong value."""

    @classmethod
    def parse(cls, text: str) -> Self:
        raise ValueError(f"{text!r} is no shape, but {text}")


class Odd(Settings, frozen=True, kw_only=True):
    """Settings of every type."""

    text: Annotated[str, Variable("ODD_TEXT", "A text.")] = ""
    path: Annotated[Path | None, Variable("ODD_PATH", "A path.")] = None
    count: Annotated[int, Variable("ODD_COUNT", "A number.")] = 1
    ratio: Annotated[float, Variable("ODD_RATIO", "A ratio.")] = 1.0
    flag: Annotated[bool | None, Variable("ODD_FLAG", "On or off.")] = None
    wait: Annotated[Duration, Variable("ODD_WAIT", "A time.")] = Duration(1)
    size: Annotated[Size, Variable("ODD_SIZE", "A size.")] = Size(1)
    mode: Annotated[Literal["fast", "safe"], Variable("ODD_MODE", "Which way.")] = "fast"
    url: Annotated[Endpoint | None, Variable("ODD_URL", "A server.")] = None
    shape: Annotated[Shape | None, Variable("ODD_SHAPE", "A shape.")] = None
    secret: Annotated[Secret | None, Variable("ODD_SECRET", "A secret.")] = None


class OddProvider:
    """Quotes every value, and reads one of its variables without the settings mechanism."""

    API_VERSION = 1
    settings = Odd

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        try:
            settings = Odd.from_environment(environment)
            raise ValueError(f"{settings.text} and {environment.get('ODD_OWN')}")
        except ValueError as error:
            raise ConfigurationError(f"ODD does not like {error}", hint=f"not {environment.get('ODD_OWN')}") from error


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("name", [*(one.variable.name for one in Odd.describe()), "ODD_OWN"])
@pytest.mark.sample(48)
def test_third_parties_settings_are_guarded_by_the_mechanism(name: str, secret: str) -> None:
    kind = PluginKind(noun="provider", variable="ODD", group="odd", not_found=ConfigurationError, distributions={})
    one = Installed(name="ODD", distribution="odd", version="1", target="odd:Odd")
    with pytest.raises(ConfigurationError) as caught:
        kind.configure(one, OddProvider, {name: secret})
    error = caught.value
    said = "".join(traceback.format_exception(error)) + error.one_line() + repr(vars(error)) + repr(error)
    assert not leaked(said), said


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_the_message_says_what_is_there_instead_of_what_belongs_there(secret: str) -> None:
    for name, belongs in {
        "ODD_PATH": "not a path: save it in a file",
        "ODD_COUNT": "not a whole number",
        "ODD_MODE": "not one of",
    }.items():
        with pytest.raises(ConfigurationError, match=f"^{name} holds (a key|what looks like a key).*, {belongs}"):
            Odd.from_environment({name: secret})


@pytest.mark.parametrize("kind", [providers.KIND, wrappers.KIND])
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_plugins_name_that_is_a_secret(kind: Any, secret: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind.load_class(secret)
    assert not leaked(caught.value.one_line())


# Invalid ones

_GOOD: Final = (
    "my-events", "acme-prod-events-eu-west-1-123456789012", "1nvfg9Ul7nzFoYcrtoR4k8JvLGh", "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "projects/my-proj/locations/europe-west1/keyRings/my-ring/cryptoKeys/my-key", "alias/my-key", "STANDARD_IA", "{env}", "[::1]",
    "arn:aws:kms:eu-west-1:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab", "MyCompany/Production/Events/Region1/EuWest1",
    "https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com", "arn:aws:iam::123456789012:role/Jobs-Backup",
    "jobs-backup-7d9f8b6c5d-x2x4z", "i-0123456789abcdef0", "0123456789abcdef0123456789abcdef", "team=payments/password-resets",
    "ip-10-0-12-34.eu-west-1.compute.internal", "opentelemetry,encryption", "Acme2024Q3BackupsForTheDataPlatformTeamEU1", "C",
    "my-access-point-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias", "/etc/jobs-backup/credentials.json", "relative/path/to/key.json",
)  # fmt: skip


@pytest.mark.parametrize("text", _GOOD)
def test_names_ids_and_paths_are_no_credentials(text: str) -> None:
    assert credential_in(text) == ""


@given(st.lists(st.from_regex(r"[a-z]{2,9}[0-9]{0,4}", fullmatch=True), min_size=1, max_size=6), st.sampled_from("-_./"))
def test_words_and_numbers_are_no_credentials(words: list[str], sign: str) -> None:
    text = sign.join(words)
    assert credential_in(text) == ""
    assert shown(text) == repr(text)


@given(st.binary(min_size=32, max_size=64))
def test_random_bytes_in_hexadecimal_are_not_shown(key: bytes) -> None:
    assert may_be_credential(key.hex())
    assert key.hex() not in shown(key.hex())


def test_a_file_that_exists_is_a_path_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / SECRETS["hex"]
    path.write_text("x")
    assert Odd.from_environment({"ODD_PATH": str(path)}).path == path
