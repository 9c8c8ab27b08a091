"""All settings that mean something to a process: core's, the server's, and those of the chosen provider and wrappers."""

from __future__ import annotations

from collections.abc import Mapping

from jobs_backup import providers, wrappers
from jobs_backup.core_settings import CoreSettings
from jobs_backup.plugins import settings_of
from jobs_backup.server.settings import ServerSettings
from jobs_backup.settings import Settings, report_unknown


def plugins_of(settings: CoreSettings) -> list[type[object]]:
    """The classes of the provider and of the wrappers.

    Raises:
        ConfigurationError: one of them is not installed, or cannot be imported.
    """
    provider = providers.KIND.load_class(settings.storage_provider)[1]
    return [provider, *(wrappers.KIND.load_class(name)[1] for name in wrappers.names_in(settings.wrappers))]


def unknown_settings(settings: CoreSettings, environment: Mapping[str, str]) -> list[str]:
    """A line for every variable that looks like a setting and is none. Raises as `plugins_of` does."""
    known: list[type[Settings]] = [CoreSettings, ServerSettings, *filter(None, map(settings_of, plugins_of(settings)))]
    return report_unknown(environment, *known)
