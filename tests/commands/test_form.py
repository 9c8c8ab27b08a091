"""`jobs-backup providers NAME --check` finds faults in a provider's form without a bucket, and gives the place of each."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from commands import run
from distributions import Install
from settings_reference import plugins_of_this_repository

from jobs_backup.checks.provider import Result, check_provider
from jobs_backup.cli import cli
from jobs_backup.errors import ProviderNotFound
from jobs_backup.store import providers

REQUIRES = "jobs-backup>=0.1,<0.2"
HEAD = """
from typing import Annotated

from jobs_backup.errors import ConfigurationError, NotSupported
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, DeleteReceipt, Outcome, Policy, WriteReceipt
from jobs_backup.settings import Secret, Settings, Variable


class AcmeSettings(Settings, frozen=True, kw_only=True):
    bucket: Annotated[str, Variable("JOBS_BACKUP_BUCKET", "The bucket.")]
    token: Annotated[Secret | None, Variable("ACME_TOKEN", "Who you are.")] = None


class Provider:
    API_VERSION = 1
    settings = AcmeSettings

    def __init__(self, settings):
        self._settings = settings
        self.location = f"acme://{settings.bucket}"

    @classmethod
    def from_settings(cls, environment):
        return cls(AcmeSettings.from_environment(environment))

    @hookimpl
    def write(self, key, body):
        return WriteReceipt()

    @hookimpl
    def abort_multipart(self, upload):
        return AbortReceipt(Outcome.GONE)

    @hookimpl
    def delete(self, keys):
        return DeleteReceipt(deleted=frozenset(keys))

    @hookimpl
    def policy(self, settings, format):
        if format not in ("", "json"):
            raise NotSupported("no")
        return Policy(format="json", text="{}", grants={"write": "put"})
"""
CONFIGURED = {"JOBS_BACKUP_BUCKET": "events", "ACME_TOKEN": "canary-7f3a"}


def look(environment: dict[str, str] | None = None) -> dict[str, tuple[Result, str]]:
    return {one.name: (one.result, one.text) for one in check_provider("acme", CONFIGURED if environment is None else environment)}


def test_a_good_one(install: Install) -> None:
    module = install(HEAD, requires=REQUIRES)
    found = look()
    assert {result for result, _ in found.values()} == {Result.OK}
    assert found["entry point"][1] == f"ACME (acme-backup 2.1, entry point {module}:Provider)"
    assert found["hooks"][1] == "write, abort_multipart, delete, policy"
    assert found["settings"][1] == "JOBS_BACKUP_BUCKET*, ACME_TOKEN"
    assert found["without settings"][1].startswith("JOBS_BACKUP_BUCKET is not set")
    assert found["configured"][1] == "acme://events"
    assert found["policy"][1] == "json"


def test_without_its_settings_it_is_not_configured(install: Install) -> None:
    install(HEAD, requires=REQUIRES)
    found = look(environment={})
    assert found.pop("configured") == (Result.NOT_TRIED, "JOBS_BACKUP_BUCKET is not set")
    assert {result for result, _ in found.values()} == {Result.OK}
    assert "policy" not in found


@pytest.mark.parametrize(("name", "settings"), list(plugins_of_this_repository(providers.KIND)))
def test_those_of_this_repository_are_good(name: str, settings: object) -> None:
    found = list(check_provider(name, {}))
    assert [one for one in found if one.result is Result.WRONG] == []
    assert len(found) == 8


def another_setting(variable: str) -> str:
    return (
        "class More(AcmeSettings, frozen=True, kw_only=True):\n"
        f"    more: Annotated[str, Variable({variable})] = ''\n"
        "Provider.settings = More"
    )


# Code appended to the class, the line of the report, and the words of its finding.
WRONG = {
    "missing hook": ("del Provider.delete", "hooks", "it does not implement delete"),
    "unknown argument": (
        "@hookimpl\ndef write(self, key, colour): ...\nProvider.write = write",
        "hooks",
        "colour",
    ),
    "default": (
        "@hookimpl\ndef write(self, key, if_absent=True): ...\nProvider.write = write",
        "hooks",
        "write has if_absent with a default or as keyword-only",
    ),
    "no marker": ("def read(self, key): ...\nProvider.read = read", "hooks", "read without jobs_backup's @hookimpl"),
    "unknown hook": ("@hookimpl\ndef wirte(self): ...\nProvider.wirte = wirte", "hooks", "unknown hook 'wirte'"),
    "one of three": ("@hookimpl\ndef write_part(self): ...\nProvider.write_part = write_part", "hooks", "all three or none"),
    "another version": ("Provider.API_VERSION = 7", "without settings", "written for API version 7"),
    "no version": ("del Provider.API_VERSION", "without settings", "written for API version None"),
    "number that is none": ("Provider.max_parts = '10'", "attributes", "max_parts is '10'"),
    "number that is too small": ("Provider.part_multiple = 0", "attributes", "part_multiple is 0"),
    "truth that is none": ("Provider.sequential_parts = 1", "attributes", "sequential_parts is neither"),
    "no settings": ("del Provider.settings", "settings", "its class has no attribute `settings`"),
    "no help": (
        another_setting("'ACME_A', ''"),
        "settings",
        "ACME_A has no help",
    ),
    "open secret": (
        another_setting("'ACME_TOKEN', 'It.'"),
        "settings",
        "ACME_TOKEN looks like a secret but is not a `Secret`",
    ),
    "name of a variable": (
        another_setting("'acme', 'It.'"),
        "settings",
        "'acme' is not a valid variable name",
    ),
    "required in name only": (
        "Provider.from_settings = classmethod(lambda cls, environment: cls(AcmeSettings(bucket='x')))",
        "without settings",
        "it can be configured without JOBS_BACKUP_BUCKET",
    ),
    "error that does not name it": (
        "def f(cls, environment): raise ConfigurationError('no')\nProvider.from_settings = classmethod(f)",
        "without settings",
        "does not name JOBS_BACKUP_BUCKET",
    ),
    "error without a hint": (
        "def f(cls, environment): raise ConfigurationError('JOBS_BACKUP_BUCKET?')\nProvider.from_settings = classmethod(f)",
        "without settings",
        "has no hint",
    ),
    "another error": (
        "def f(cls, environment): environment['JOBS_BACKUP_BUCKET']\nProvider.from_settings = classmethod(f)",
        "without settings",
        "from_settings() failed: KeyError",
    ),
    "no location": ("Provider.__init__ = lambda self, settings: None", "configured", "it has no `location`"),
    "empty location": (
        "def f(self, settings): self.location = ''\nProvider.__init__ = f",
        "configured",
        "its location is empty",
    ),
    "secret in the location": (
        "def f(self, settings): self.location = f'acme://{settings.token.reveal()}'\nProvider.__init__ = f",
        "configured",
        "its location shows a secret",
    ),
    "secret in what it holds": (
        "def f(self, settings): self.location, self.t = 'acme://x', settings.token.reveal()\nProvider.__init__ = f",
        "configured",
        "its attributes shows a secret",
    ),
    "no policy": (
        "@hookimpl\ndef policy(self): raise NotSupported('no')\nProvider.policy = policy",
        "policy",
        "it has none in its default format",
    ),
    "policy of another type": ("@hookimpl\ndef policy(self): return {}\nProvider.policy = policy", "policy", "returned dict"),
    "policy that fails": ("@hookimpl\ndef policy(self): 1 / 0\nProvider.policy = policy", "policy", "ZeroDivisionError"),
    "grants of no hook": (
        "@hookimpl\ndef policy(self): return Policy(format='json', text='', grants={'read': 'r'})\nProvider.policy = policy",
        "policy",
        "its grants name read",
    ),
}


@pytest.mark.parametrize(("change", "line", "why"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_found_and_nothing_else(install: Install, change: str, line: str, why: str) -> None:
    install(f"{HEAD}\n\n{change}\n", requires=REQUIRES)
    found = look()
    wrong = {name: text for name, (result, text) in found.items() if result is Result.WRONG}
    assert why in wrong[line]
    assert "canary" not in str(found)
    # Loading the provider reports unusable ones, too.
    assert wrong.keys() <= {line, "configured"}


@pytest.mark.parametrize(
    ("requires", "why"),
    [
        ("", "does not declare which jobs-backup it needs"),
        ("requests>=2", "does not declare which jobs-backup it needs"),
        ("jobs-backup-s3>=0.1,<0.2", "does not declare which jobs-backup it needs"),
        ("jobs-backup>=0.1", "has no upper bound"),
    ],
)
def test_what_it_requires(install: Install, requires: str, why: str) -> None:
    install(HEAD, requires=requires)
    result, text = look()["requirement"]
    assert result is Result.WRONG
    assert why in text


@pytest.mark.parametrize("requires", ["jobs-backup<0.2,>=0.1", "jobs_backup~=0.1", "Jobs-Backup ==0.1.*"])
def test_how_it_may_be_required(install: Install, requires: str) -> None:
    install(HEAD, requires=requires)
    assert look()["requirement"] == (Result.OK, requires)


def test_an_sdk_that_is_imported_at_once(install: Install) -> None:
    install(f"import fastcrc, yaml\n{HEAD}", requires=f"{REQUIRES}\nRequires-Dist: PyYAML>=6\nRequires-Dist: fastcrc")
    assert look()["imports"] == (
        Result.WRONG,
        "it imports yaml when it is imported: import them when a hook is first called",
    )  # fastcrc is core's own


def test_one_that_can_not_be_imported_is_an_error_of_its_own(install: Install) -> None:
    install("import no_such_sdk_here")
    with pytest.raises(ProviderNotFound, match="cannot import"):
        look()


def test_the_command(install: Install) -> None:
    install(f"{HEAD}\n\ndel Provider.delete\n", requires=REQUIRES)
    result = CliRunner().invoke(cli, ["providers", "acme", "--check", "--json"], env=CONFIGURED)
    assert result.exit_code == 2
    results = {one["name"]: one["result"] for one in json.loads(result.stdout)}
    assert results["hooks"] == "wrong"
    assert results["settings"] == "ok"
    assert "canary" not in result.output


def test_the_command_with_core_s_own(tmp_path: object) -> None:
    code, stdout, stderr = run("providers", "file", "--check", env={"JOBS_BACKUP_BUCKET": str(tmp_path)})
    assert (code, stderr) == (0, "")
    assert [line[2:4] for line in stdout.splitlines()] == ["ok"] * 9
    code, stdout, stderr = run("providers", "--check", env={})
    assert (code, stdout) == (2, "")
    assert "--check needs the name of a provider: name one: " in stderr
    code, _, stderr = run("providers", "nobody", "--check", env={})
    assert code == 2
    assert stderr.endswith("[ProviderNotFound]\n")
