"""The selected provider: the only one loaded, and checked against the form of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import pluggy

from jobs_backup.errors import ProviderNotFound
from jobs_backup.hookspecs import MANDATORY, MULTIPART, OPTIONAL, PROJECT, Provider, StorageProvider
from jobs_backup.settings.values import Secret
from jobs_backup.store.plugins import Installed, PluginKind, secrets_of, settings_of

KIND: Final = PluginKind(
    noun="provider",
    variable="JOBS_BACKUP_STORAGE_PROVIDER",
    group="jobs_backup.providers",
    not_found=ProviderNotFound,
    distributions={
        "S3": "jobs-backup-s3",
        "MINIO": "jobs-backup-s3",
        "DIGITAL_OCEAN_SPACES": "jobs-backup-s3",
        "GCS": "jobs-backup-gcs",
        "AZURE_BLOB": "jobs-backup-azure-blob",
    },
)
HOOKS: Final = (*MANDATORY, *MULTIPART, *OPTIONAL)


class LoadedProvider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's instance, checked, on its own plugin manager. `secrets` are those of its settings."""

    installed: Installed
    provider: Provider
    manager: pluggy.PluginManager
    hooks: frozenset[str]
    secrets: tuple[Secret, ...] = ()


def load_class(name: str) -> tuple[Installed, type[Provider]]:
    """Import only the provider called `name` (in any case).

    Raises:
        ProviderNotFound: it is not installed, two distributions offer it, or it cannot be imported.
    """
    return KIND.load_class(name)


def load(name: str, environment: Mapping[str, str]) -> LoadedProvider:
    """Import, configure and check the provider `name`.

    Raises:
        ProviderNotFound: it is not installed, or breaks the form of the contract; the message names the distribution.
        ConfigurationError: its settings are invalid.
    """
    one, class_ = load_class(name)
    provider = KIND.configure(one, class_, environment)
    manager, hooks = register(provider, one)
    return LoadedProvider(installed=one, provider=provider, manager=manager, hooks=hooks, secrets=secrets_of(class_, environment))


def register(provider: Provider, one: Installed) -> tuple[pluggy.PluginManager, frozenset[str]]:
    """Register only this provider on a plugin manager. Returns the manager, and the names of the hooks that it implements.

    With two providers on one manager, pluggy would ask the last one registered and fall through to the next at a None.

    Raises:
        ProviderNotFound: it breaks the form of the contract.
    """
    if not isinstance(getattr(provider, "location", None), str):
        raise KIND.broken(one, "it has no `location`")
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(StorageProvider)
    KIND.register(manager, provider, one)
    hooks = frozenset(name for name in HOOKS if implementations(manager, name))
    # pluggy ignores a method without the marker, or with another project's.
    if unmarked := [name for name in HOOKS if name not in hooks and callable(getattr(provider, name, None))]:
        raise KIND.broken(one, f"{', '.join(unmarked)} without jobs_backup's @hookimpl")
    if missing := [name for name in MANDATORY if name not in hooks]:
        raise KIND.broken(one, f"it does not implement {', '.join(missing)}")
    if (some := hooks & set(MULTIPART)) and len(some) != len(MULTIPART):
        raise KIND.broken(one, f"of the multipart hooks it has only {', '.join(sorted(some))}: all three or none")
    if wrapping := [name for name in hooks if any(impl.wrapper or impl.hookwrapper for impl in implementations(manager, name))]:
        raise KIND.broken(one, f"{', '.join(sorted(wrapping))} as a wrapper: that is what wrappers are for")
    return manager, hooks


def implementations(manager: pluggy.PluginManager, name: str) -> list[pluggy.HookImpl]:
    """The implementations of a hook."""
    caller: pluggy.HookCaller = getattr(manager.hook, name)
    return caller.get_hookimpls()


def without_credentials(class_: type[Provider], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without credentials, for code that calls no store, such as printing the policy for new ones.

    Required variables that are secret or not set get a placeholder.
    """
    changed = dict(environment)
    settings = settings_of(class_)
    for setting in settings.describe() if settings else ():
        names = (setting.variable.name, *setting.variable.aliases)
        is_needed = setting.default is None
        if setting.secret or (setting.variable.credential and not (is_needed and any(map(changed.get, names)))):
            for name in names:
                changed.pop(name, None)
            if is_needed:
                changed[setting.variable.name] = "to-be-made"
    return changed
