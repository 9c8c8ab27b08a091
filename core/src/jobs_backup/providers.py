"""Find the one provider that was chosen, load it alone, and check that it keeps the contract's form."""

from __future__ import annotations

import importlib.metadata
import logging
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import pluggy

from jobs_backup.errors import JobsBackupError, ProviderNotFound
from jobs_backup.hookspecs import API_VERSION, MANDATORY, MULTIPART, OPTIONAL, PROJECT, ObjectHooks, Provider, StorageProvider
from jobs_backup.settings import Secret, Settings

log: Final = logging.getLogger(__name__)
GROUP: Final = "jobs_backup.providers"
_HOOKS: Final = (*MANDATORY, *MULTIPART, *OPTIONAL)

# Where to get the well-known ones, for the error of who has none of them.
_DISTRIBUTIONS: Final = {
    "S3": "jobs-backup-s3",
    "MINIO": "jobs-backup-s3",
    "DIGITAL_OCEAN_SPACES": "jobs-backup-s3",
    "GCS": "jobs-backup-gcs",
}


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """An installed provider, not imported yet. `target` is `module:Class`."""

    name: str
    distribution: str
    version: str
    target: str

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version}, entry point {self.target})"


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's instance, checked, on a plugin manager of its own. `secrets` are those of its settings."""

    installed: Installed
    provider: Provider
    manager: pluggy.PluginManager
    hooks: frozenset[str]
    secrets: tuple[Secret, ...] = ()


def installed() -> list[Installed]:
    """All providers that are installed, by name. Imports none of them."""
    found = {
        Installed(name=point.name.upper(), distribution=_name(point.dist), version=_version(point.dist), target=point.value)
        for point in _entry_points()
    }
    return sorted(found, key=lambda one: (one.name, one.distribution))


def names() -> list[str]:
    """The names of all that are installed."""
    return sorted({one.name for one in installed()})


def load_class(name: str) -> tuple[Installed, type[Provider]]:
    """Import the provider that is called `name` (in any case), and no other one.

    Raises:
        ProviderNotFound: nobody offers it, two distributions do, or it can't be imported.
    """
    wanted = name.upper()
    everything = installed()
    matches = [one for one in everything if one.name == wanted]
    if not matches:
        names = ", ".join(sorted({one.name for one in everything})) or "none"
        package = _DISTRIBUTIONS.get(wanted)
        hint = f"pip install {package}" if package else "choose an installed one, or pip install the distribution that offers it"
        raise ProviderNotFound(f"no provider {name!r} is installed (installed: {names})", hint=hint)
    if len(matches) > 1:
        claims = " and ".join(f"{one.distribution} {one.version}" for one in matches)
        raise ProviderNotFound(f"two distributions offer a provider {wanted}: {claims}", hint="pip uninstall one of them")
    one = matches[0]
    try:
        class_ = importlib.metadata.EntryPoint(name=one.name, value=one.target, group=GROUP).load()
    except Exception as error:
        raise ProviderNotFound(
            f"provider {one} can't be imported: {type(error).__name__}: {error}",
            hint=f"pip install --force-reinstall {one.distribution}",
        ) from error
    if not isinstance(class_, type):
        raise _broken(one, f"{one.target} is no class")
    return one, class_


def load(name: str, environment: Mapping[str, str]) -> Loaded:
    """Import, configure and check the provider `name`.

    Raises:
        ProviderNotFound: it is not installed, or breaks the contract's form; the message names the distribution.
        ConfigurationError: its settings are wrong.
    """
    one, class_ = load_class(name)
    version = getattr(class_, "API_VERSION", None)
    if version != API_VERSION:
        newer = isinstance(version, int) and version > API_VERSION
        raise ProviderNotFound(
            f"provider {one} is written for API version {version}, this jobs-backup has {API_VERSION}",
            hint=f"pip install --upgrade {'jobs-backup' if newer else one.distribution}",
        )
    if not callable(getattr(class_, "from_settings", None)):
        raise _broken(one, "it has no from_settings()")
    try:
        provider = class_.from_settings(environment)
    except JobsBackupError:
        raise
    except Exception as error:  # noqa: BLE001 - it is raised again, as one of ours
        # Its text may have the value of any variable in it, so only its place is told.
        *_, place = traceback.extract_tb(error.__traceback__)
        where = f"{place.filename}:{place.lineno}"
        raise _broken(one, f"from_settings() failed: {type(error).__name__} at {where}") from None
    manager, hooks = register(provider, one)
    return Loaded(installed=one, provider=provider, manager=manager, hooks=hooks, secrets=_secrets(class_, environment))


def register(provider: Provider, one: Installed) -> tuple[pluggy.PluginManager, frozenset[str]]:
    """Put the provider, alone, on a plugin manager. Returns it with the names of the hooks that the provider implements.

    With two providers on one manager, pluggy would ask the last one registered and fall through to the next at a None.

    Raises:
        ProviderNotFound: it breaks the contract's form.
    """
    if isinstance(provider, type):
        raise _broken(one, "from_settings() returned a class instead of an instance")
    if not isinstance(getattr(provider, "location", None), str):
        raise _broken(one, "it has no `location`")
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(StorageProvider)
    manager.add_hookspecs(ObjectHooks)
    try:
        manager.register(provider, name=one.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise _broken(one, str(error).strip().splitlines()[-1]) from error
    hooks = frozenset(name for name in _HOOKS if _hook(manager, name).get_hookimpls())
    # pluggy takes a method without the marker, or with another project's, for none of its business.
    if unmarked := [name for name in _HOOKS if name not in hooks and callable(getattr(provider, name, None))]:
        raise _broken(one, f"{', '.join(unmarked)} without jobs_backup's @hookimpl")
    if missing := [name for name in MANDATORY if name not in hooks]:
        raise _broken(one, f"it does not implement {', '.join(missing)}")
    if (some := hooks & set(MULTIPART)) and len(some) != len(MULTIPART):
        raise _broken(one, f"of the multipart hooks it has only {', '.join(sorted(some))}: all three or none")
    return manager, hooks


def settings_of(class_: type[Provider]) -> type[Settings] | None:
    """The Struct of settings that a provider's class names in its attribute `settings`, None if it does not."""
    settings: Any = getattr(class_, "settings", None)
    return settings if isinstance(settings, type) and issubclass(settings, Settings) else None


def without_credentials(class_: type[Provider], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment as it is before there are credentials: for what calls no store, such as printing the policy for them.

    Those that have to be set get a text that is none.
    """
    changed = dict(environment)
    settings = settings_of(class_)
    for setting in settings.describe() if settings else ():
        if setting.secret or setting.variable.credential:
            for name in (setting.variable.name, *setting.variable.aliases):
                changed.pop(name, None)
            if setting.default is None:
                changed[setting.variable.name] = "to-be-made"
    return changed


def _secrets(class_: type[Provider], environment: Mapping[str, str]) -> tuple[Secret, ...]:
    settings = settings_of(class_)
    variables = [setting.variable for setting in settings.describe() if setting.secret] if settings else []
    texts = [environment.get(name, "").strip() for variable in variables for name in (variable.name, *variable.aliases)]
    return tuple(Secret(text) for text in texts if text)


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    try:
        return importlib.metadata.entry_points(group=GROUP)
    except Exception:
        log.warning("the metadata of an installed distribution is broken: looking at each of them", exc_info=True)
        return [point for distribution in importlib.metadata.distributions() for point in _readable(distribution)]


def _readable(distribution: importlib.metadata.Distribution) -> Iterable[importlib.metadata.EntryPoint]:
    try:
        return distribution.entry_points.select(group=GROUP)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others can be used
        log.warning("%s has broken entry points: %s", _name(distribution), error)
        return ()


def _hook(manager: pluggy.PluginManager, name: str) -> pluggy.HookCaller:
    caller: pluggy.HookCaller = getattr(manager.hook, name)
    return caller


def _broken(one: Installed, why: str) -> ProviderNotFound:
    return ProviderNotFound(
        f"provider {one} breaks the contract: {why}", hint=f"report it to the maintainers of {one.distribution}"
    )


def _name(distribution: importlib.metadata.Distribution | None) -> str:
    return (distribution and distribution.metadata["Name"]) or "an unknown distribution"


def _version(distribution: importlib.metadata.Distribution | None) -> str:
    return (distribution and distribution.version) or "?"
