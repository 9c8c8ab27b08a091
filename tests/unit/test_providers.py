"""Finding and loading the chosen provider, with real distributions on `sys.path`; errors name the faulty one."""

from __future__ import annotations

import importlib
import shutil
import sys
import warnings
from pathlib import Path
from textwrap import dedent, indent
from typing import Annotated, Any, cast

import pytest
from distributions import Install
from places import ROOT

from jobs_backup.errors import ConfigurationError, JobsBackupError, ProviderNotFound
from jobs_backup.hookspecs import API_VERSION
from jobs_backup.settings import Secret, Settings, Variable
from jobs_backup.settings.core import CoreSettings
from jobs_backup.store import plugins, providers

HEAD = """
from jobs_backup.errors import ConfigurationError
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, DeleteReceipt, Outcome, WriteReceipt
import pluggy

class Provider:
    API_VERSION = 1
    location = "acme://bucket"

    @classmethod
    def from_settings(cls, environment):
        return cls()
"""
WRITE = """
@hookimpl
def write(self, key, body):
    return WriteReceipt(etag=key)
"""
ABORT = """
@hookimpl
def abort_multipart(self, upload):
    return AbortReceipt(Outcome.GONE)
"""
DELETE = """
@hookimpl
def delete(self, keys):
    return DeleteReceipt(deleted=frozenset(keys))
"""
MULTIPART = [
    "@hookimpl\ndef create_multipart(self): ...",
    "@hookimpl\ndef write_part(self): ...",
    "@hookimpl\ndef complete_multipart(self): ...",
]


def source(*methods: str) -> str:
    """The source of a module with a provider that has these methods."""
    return HEAD + "".join(indent(dedent(method), "    ") + "\n" for method in methods)


GOOD = source(WRITE, ABORT, DELETE)


def refusal(name: str = "ACME", **environment: str) -> ProviderNotFound:
    with pytest.raises(ProviderNotFound) as caught:
        providers.load(name, environment)
    return caught.value


# Valid providers


@pytest.mark.parametrize("name", ["ACME", "acme", "Acme"])
@pytest.mark.parametrize("declared", ["ACME", "acme"])
def test_the_name_counts_in_any_case(install: Install, name: str, declared: str) -> None:
    install(GOOD, name=declared)
    loaded = providers.load(name, {})
    assert (loaded.installed.name, loaded.installed.distribution, loaded.installed.version) == ("ACME", "acme-backup", "2.1")
    assert loaded.provider.location == "acme://bucket"
    assert loaded.hooks == {"write", "abort_multipart", "delete"}


def test_a_hook_may_take_fewer_arguments_than_the_specification_has(install: Install) -> None:
    install(GOOD)
    hook = providers.load("ACME", {}).manager.hook
    receipt = hook.write(key="k", body=None, size=0, checksum=0, content_type="", metadata={}, if_absent=True, timeout=1.0)
    assert receipt.etag == "k"


def test_the_optional_hooks_are_reported(install: Install) -> None:
    install(source(WRITE, ABORT, DELETE, *MULTIPART, "@hookimpl\ndef read(self, key): ...", "@hookimpl\ndef policy(self): ..."))
    assert providers.load("ACME", {}).hooks == {
        "write", "abort_multipart", "delete", "create_multipart", "write_part", "complete_multipart", "read", "policy",
    }  # fmt: skip


def test_each_load_has_a_plugin_manager_with_this_provider_alone(install: Install) -> None:
    install(GOOD)
    install(GOOD, name="OTHER", distribution="other-backup")
    first, second, other = providers.load("ACME", {}), providers.load("ACME", {}), providers.load("OTHER", {})
    assert first.manager is not second.manager
    for loaded in (first, second, other):
        assert loaded.manager.get_plugins() == {loaded.provider}


def test_registering_a_provider_does_not_touch_its_properties(install: Install) -> None:
    install(source(WRITE, ABORT, DELETE, "@property\ndef client(self): raise RuntimeError('the SDK was imported')"))
    assert providers.load("ACME", {}).hooks == {"write", "abort_multipart", "delete"}


def test_the_environment_reaches_the_provider(install: Install) -> None:
    install(
        source(
            WRITE,
            ABORT,
            DELETE,
            "@classmethod\ndef from_settings(cls, environment): cls.location = environment['WHERE']; return cls()",
        )
    )
    assert providers.load("ACME", {"WHERE": "here"}).provider.location == "here"


def test_settings_that_are_wrong_are_reported_as_the_provider_says(install: Install) -> None:
    install(
        source(
            WRITE,
            ABORT,
            DELETE,
            "@classmethod\ndef from_settings(cls, environment): raise ConfigurationError('ACME_KEY is not set')",
        )
    )
    with pytest.raises(ConfigurationError, match=r"(?m)^ACME_KEY is not set$") as caught:
        providers.load("ACME", {})
    assert type(caught.value) is ConfigurationError


def test_only_the_chosen_provider_is_imported(install: Install) -> None:
    install(GOOD)
    bomb = install("raise RuntimeError('imported')", name="BOMB", distribution="bomb-backup")
    found = {one.name: one for one in providers.KIND.installed()}
    assert found.keys() >= {"ACME", "BOMB", "FILE"}
    assert str(found["BOMB"]) == f"BOMB (bomb-backup 2.1, entry point {bomb}:Provider)"
    providers.load("ACME", {})
    assert bomb not in sys.modules


def test_a_distribution_that_is_found_twice_is_one(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = install(GOOD)
    shutil.copytree(tmp_path / f"site-{module}", tmp_path / "again")
    monkeypatch.syspath_prepend(str(tmp_path / "again"))
    assert [one.distribution for one in providers.KIND.installed() if one.name == "ACME"] == ["acme-backup"]
    assert providers.load("ACME", {}).installed.distribution == "acme-backup"


def test_a_class_reports_its_settings(install: Install) -> None:
    class AcmeSettings(Settings, frozen=True, kw_only=True):
        pass

    module = install(GOOD)
    one, class_ = providers.load_class("ACME")
    assert one.target == f"{module}:Provider"
    assert plugins.settings_of(class_) is None
    for value, expected in ((AcmeSettings, AcmeSettings), (CoreSettings, CoreSettings), (dict, None), ("AcmeSettings", None)):
        class_.settings = value  # type: ignore[attr-defined]
        assert plugins.settings_of(class_) is expected


# Missing


def test_an_unknown_provider_reports_what_is_installed(install: Install) -> None:
    install(GOOD)
    error = refusal("AMCE")
    assert error.message.startswith("provider 'AMCE' is not installed (installed: ")
    names = error.message.split("installed: ")[1].rstrip(")").split(", ")
    assert names == sorted(names)
    assert set(names) >= {"ACME", "FILE"}
    assert "install the distribution" in error.hint


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("s3", "jobs-backup-s3"),
        ("GCS", "jobs-backup-gcs"),
        ("MINIO", "jobs-backup-s3"),
        ("DIGITAL_OCEAN_SPACES", "jobs-backup-s3"),
        ("AZURE_BLOB", "jobs-backup-azure-blob"),
    ],
)
def test_a_well_known_provider_reports_what_to_install(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs_backup.store.plugins._entry_points", lambda group: [])
    error = refusal(name)
    assert error.message == f"provider {name!r} is not installed (installed: none)"
    (directory,) = (path.parent for path in ROOT.glob("*/*/pyproject.toml") if f'name = "{package}"' in path.read_text())
    # Nothing is published: anybody could have registered the name.
    assert error.hint == f"pip install ./{directory.relative_to(ROOT)}, in a clone of jobs-backup (until {package} is published)"


def test_two_distributions_with_one_name_are_both_named(install: Install) -> None:
    first = install("raise RuntimeError('imported')")
    second = install("raise RuntimeError('imported')", name="acme", distribution="acme-rival", version="0.3")
    error = refusal()
    assert error.message == "two distributions provide the provider ACME: acme-backup 2.1 and acme-rival 0.3"
    assert error.hint == "pip uninstall one of them"
    assert not {first, second} & sys.modules.keys()


# Broken


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import no_such_sdk_here", "ModuleNotFoundError: No module named 'no_such_sdk_here'"),
        ("raise RuntimeError('too old a libc')", "RuntimeError: too old a libc"),
        ("class Provider(", "SyntaxError"),
        ("class Other: pass", "AttributeError"),
    ],
)
def test_an_import_that_fails_names_the_distribution(install: Install, text: str, why: str) -> None:
    module = install(text)
    error = refusal()
    assert f"cannot import provider ACME (acme-backup 2.1, entry point {module}:Provider): {why}" in error.message
    assert error.hint == "pip install --force-reinstall acme-backup"
    assert isinstance(error.__cause__, Exception)


def test_a_module_that_is_missing_names_the_distribution(install: Install, tmp_path: Path) -> None:
    module = install(GOOD)
    (tmp_path / f"site-{module}" / f"{module}.py").unlink()
    importlib.invalidate_caches()
    assert f"acme-backup 2.1, entry point {module}:Provider): ModuleNotFoundError" in refusal().message


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        (
            f"API_VERSION = {API_VERSION + 1}",
            "pip install --upgrade ./core, in a clone of jobs-backup (until jobs-backup is published)",
        ),
        (f"API_VERSION = {API_VERSION - 1}", "pip install --upgrade acme-backup"),
        ("API_VERSION = 'one'", "pip install --upgrade acme-backup"),
        ("del API_VERSION", "pip install --upgrade acme-backup"),
    ],
)
def test_another_api_version_reports_what_to_upgrade(install: Install, version: str, hint: str) -> None:
    install(source(version, WRITE, ABORT, DELETE))
    error = refusal()
    assert "acme-backup 2.1" in error.message
    assert f"this jobs-backup has {API_VERSION}" in error.message
    assert error.hint == hint


EXTRA_ARGUMENT = WRITE.replace("key, body", "key, body, colour")
MISSPELLED = "@hookimpl\ndef wirte(self, key, body): ..."

BROKEN = {
    "misspelled hook": ((WRITE, ABORT, DELETE, MISSPELLED), "unknown hook 'wirte'"),
    "argument that the specification lacks": ((EXTRA_ARGUMENT, ABORT, DELETE), "colour"),
    "no write": ((ABORT, DELETE), "it does not implement write"),
    "no hooks": ((), "it does not implement write, abort_multipart, delete"),
    "mandatory hook without the marker": ((WRITE.replace("@hookimpl", ""), ABORT, DELETE), "write without jobs_backup's @hookimpl"),
    "another project's marker": (
        (WRITE.replace("@hookimpl", "@pluggy.HookimplMarker('other')"), ABORT, DELETE),
        "write without jobs_backup's @hookimpl",
    ),
    "optional hook without the marker": (
        (WRITE, ABORT, DELETE, "def read(self, key): ...", "def list(self, prefix): ..."),
        "read, list without jobs_backup's @hookimpl",
    ),
    "one of the multipart hooks": ((WRITE, ABORT, DELETE, MULTIPART[1]), "has only write_part: all three or none"),
    "two of the multipart hooks": (
        (WRITE, ABORT, DELETE, *MULTIPART[:2]),
        "has only create_multipart, write_part: all three or none",
    ),
    "class instead of an instance": (
        (WRITE, ABORT, DELETE, "@classmethod\ndef from_settings(cls, environment): return cls"),
        "returned a class instead of an instance",
    ),
    "None instead of an instance": (
        (WRITE, ABORT, DELETE, "@classmethod\ndef from_settings(cls, environment): pass"),
        "it has no `location`",
    ),
    "argument with a default": (
        (WRITE.replace("key, body", "key, body, if_absent=True"), ABORT, DELETE),
        "write has if_absent with a default or as keyword-only, which would not be passed",
    ),
    "argument by keyword": (
        (WRITE.replace("key, body", "key, body, *, if_absent"), ABORT, DELETE),
        "write has if_absent with a default or as keyword-only, which would not be passed",
    ),
    "any arguments": (
        (WRITE, ABORT, DELETE.replace("keys", "keys, **others")),
        "delete has others with a default or as keyword-only",
    ),
    "hook as a wrapper": (
        (WRITE, ABORT, "@hookimpl(wrapper=True)\ndef delete(self, keys): return (yield)"),
        "delete as a wrapper: that is what wrappers are for",
    ),
    "no from_settings": ((WRITE, ABORT, DELETE, "del from_settings"), "it has no from_settings()"),
    "no location": ((WRITE, ABORT, DELETE, "del location"), "it has no `location`"),
    "location that is no text": ((WRITE, ABORT, DELETE, "location = b'acme'"), "it has no `location`"),
}


@pytest.mark.parametrize(("methods", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_a_provider_that_breaks_the_contract_is_named_with_the_reason(install: Install, methods: tuple[str, ...], why: str) -> None:
    module = install(source(*methods))
    error = refusal()
    assert error.message.startswith(f"provider ACME (acme-backup 2.1, entry point {module}:Provider) breaks the contract: ")
    assert why in error.message
    assert "\n" not in error.message
    assert error.hint == "report it to the maintainers of acme-backup"


@pytest.mark.parametrize("text", ["def Provider(): pass", "Provider = 7"])
def test_an_entry_point_that_is_no_class(install: Install, text: str) -> None:
    module = install(text)
    assert f"{module}:Provider is not a class" in refusal().message


def test_an_unforeseen_error_of_a_provider_shows_no_values(install: Install) -> None:
    install(source(WRITE, ABORT, DELETE, "@classmethod\ndef from_settings(cls, environment): int(environment['ACME_KEY'])"))
    error = refusal(ACME_KEY="canary-7f3a")
    assert "from_settings() failed: ValueError" in error.message
    assert "canary" not in error.one_line() + repr(error)


def test_another_distributions_broken_metadata_does_not_disturb(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = install(GOOD, distribution="broken-backup")
    install(GOOD)
    (info,) = (tmp_path / f"site-{module}").glob("*.dist-info")
    (info / "entry_points.txt").write_text("[console_scripts]\nno equals sign\n")
    importlib.invalidate_caches()
    assert providers.load("ACME", {}).installed.distribution == "acme-backup"
    assert {"ACME", "FILE"} <= {one.name for one in providers.KIND.installed()}
    assert any("broken-backup has broken entry points" in message for message in caplog.messages)


def test_a_distribution_without_metadata_has_no_name(install: Install, tmp_path: Path) -> None:
    module = install("import no_such_sdk_here")
    (info,) = (tmp_path / f"site-{module}").glob("*.dist-info")
    (info / "METADATA").write_text("Metadata-Version: 2.1\n")
    importlib.invalidate_caches()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it will be a KeyError one day
        assert "provider ACME (an unknown distribution ?" in refusal().message


def test_a_broken_provider_does_not_disturb_the_others(install: Install) -> None:
    install("raise RuntimeError('imported')", name="BOMB", distribution="bomb-backup")
    install(source(), name="EMPTY", distribution="empty-backup")
    install(GOOD)
    assert providers.load("ACME", {}).hooks
    for name in ("BOMB", "EMPTY"):
        with pytest.raises(JobsBackupError):
            providers.load(name, {})


class Named(Settings, frozen=True, kw_only=True):
    user: Annotated[str, Variable("ACME_USER", "Who.", credential=True)]
    key: Annotated[str | None, Variable("ACME_KEY_ID", "Which.", credential=True)] = None
    token: Annotated[Secret, Variable("ACME_TOKEN", "A secret.")]


def test_a_policy_is_made_for_the_user_that_is_named() -> None:
    class Provider:
        settings = Named

    given = {"ACME_USER": "alice", "ACME_KEY_ID": "id", "ACME_TOKEN": "secret", "OTHER": "stays"}
    filled_in = providers.without_credentials(cast(Any, Provider), given)
    assert filled_in == {"ACME_USER": "alice", "ACME_TOKEN": "to-be-made", "OTHER": "stays"}
    assert providers.without_credentials(cast(Any, Provider), {})["ACME_USER"] == "to-be-made"
