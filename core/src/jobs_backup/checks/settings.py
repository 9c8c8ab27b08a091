"""All settings that apply to a process: core's, the server's, and those of the chosen provider and wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from jobs_backup.errors import ConfigurationError
from jobs_backup.settings.base import Settings, oddity_of, report_unknown, warn_of_oddity
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.server import ServerSettings
from jobs_backup.store import providers, wrappers
from jobs_backup.store.plugins import settings_of
from jobs_backup.util.disclosure import may_be_credential


def plugins_of(settings: CoreSettings) -> list[type[object]]:
    """The classes of the provider and of the wrappers.

    Raises:
        ConfigurationError: one of them is not installed, or cannot be imported.
    """
    provider = providers.KIND.load_class(settings.storage_provider)[1]
    return [provider, *(wrappers.KIND.load_class(name)[1] for name in wrappers.names_in(settings.wrappers))]


def _known_to(variables: Mapping[str, str]) -> tuple[list[type[Settings]], bool]:
    """The settings that these variables may be, and whether the list is complete: not without a chosen, installed provider."""
    known: list[type[Settings]] = [CoreSettings, ServerSettings]
    with suppress(ConfigurationError):  # the command itself reports a missing plugin
        if name := variables.get("JOBS_BACKUP_STORAGE_PROVIDER", "").strip():
            found = [providers.KIND.load_class(name)[1]]
            found += [wrappers.KIND.load_class(one)[1] for one in wrappers.names_in(variables.get("JOBS_BACKUP_WRAPPERS", ""))]
            return [*known, *filter(None, map(settings_of, found))], True
    return known, False


def misspelt_settings(environment: Mapping[str, str]) -> list[str]:
    """`unknown_settings` for commands that read no settings: possible provider settings are not reported."""
    known, is_all = _known_to(environment)
    return [line for line in report_unknown(environment, *known) if is_all or "did you mean" in line]


def warn_of_relative_paths(variables: Mapping[str, str]) -> None:
    """Warn about relative paths in an env file, which name another directory, and another spool, wherever the command starts."""
    known, _ = _known_to(variables)
    for setting in (setting for one in known for setting in one.describe() if setting.is_path):
        for name in (setting.variable.name, *setting.variable.aliases):
            text = variables.get(name, "").strip()
            if text and not text.startswith(("/", "~")) and not oddity_of(text) and not may_be_credential(text):
                try:
                    where = f"here {Path(text).absolute()}"
                except OSError:
                    continue  # the working directory is gone, which reading the setting reports
                warn_of_oddity(name, f"{text} is a relative path: the directory depends on the working directory, {where}")


def unknown_settings(settings: CoreSettings, environment: Mapping[str, str]) -> list[str]:
    """A line for every variable that looks like a setting but is not one. Raises as `plugins_of` does."""
    known: list[type[Settings]] = [CoreSettings, ServerSettings, *filter(None, map(settings_of, plugins_of(settings)))]
    return report_unknown(environment, *known)
