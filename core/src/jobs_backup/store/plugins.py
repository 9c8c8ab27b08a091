"""Plugins: find the selected one, load only that, configure it. Errors name its distribution."""

from __future__ import annotations

import importlib.metadata
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec
import pluggy

from jobs_backup.errors import ConfigurationError, JobsBackupError
from jobs_backup.hookspecs import API_VERSION, OLDEST_API_VERSION
from jobs_backup.settings import Settings
from jobs_backup.settings.values import Secret
from jobs_backup.util.disclosure import shown, without_credentials
from jobs_backup.util.installing import how_to_install
from jobs_backup.util.logs import logger_of

log: Final = logger_of(__name__)
_SHORTEST: Final = 16


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """An installed plugin, not yet imported. `target` is `module:Class`."""

    name: str
    distribution: str
    version: str
    target: str

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version}, entry point {self.target})"


class PluginKind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of plugin.

    Attributes:
        noun: its name in messages.
        variable: setting that chooses among its plugins.
        group: of its entry points.
        not_found: raised if a plugin is not installed or cannot be used.
        distributions: of well-known plugins, for the error if one is not installed.
    """

    noun: str
    variable: str
    group: str
    not_found: type[ConfigurationError]
    distributions: Mapping[str, str]

    def installed(self) -> list[Installed]:
        """All installed plugins, by name, without importing them."""
        found = {
            Installed(name=point.name.upper(), distribution=_name(point.dist), version=_version(point.dist), target=point.value)
            for point in _entry_points(self.group)
        }
        return sorted(found, key=lambda one: (one.name, one.distribution))

    def names(self) -> list[str]:
        """The names of all installed plugins."""
        return sorted({one.name for one in self.installed()})

    def load_class(self, name: str) -> tuple[Installed, type[Any]]:
        """Import only the plugin called `name` (in any case).

        Raises:
            ConfigurationError: (its kind's `not_found`) it is not installed, two distributions offer it, or it cannot be imported.
        """
        wanted = name.upper()
        everything = self.installed()
        matches = [one for one in everything if one.name == wanted]
        if not matches:
            names = ", ".join(sorted({one.name for one in everything})) or "none"
            package = self.distributions.get(wanted)
            hint = how_to_install(package) if package else f"correct {self.variable}, or install the distribution that provides it"
            raise self.not_found(f"{self.noun} {shown(name)} is not installed (installed: {names})", hint=hint)
        if len(matches) > 1:
            claims = " and ".join(f"{one.distribution} {one.version}" for one in matches)
            raise self.not_found(f"two distributions provide the {self.noun} {wanted}: {claims}", hint="pip uninstall one of them")
        one = matches[0]
        try:
            class_ = importlib.metadata.EntryPoint(name=one.name, value=one.target, group=self.group).load()
        except Exception as error:
            raise self.not_found(
                f"cannot import {self.noun} {one}: {type(error).__name__}: {error}",
                hint=how_to_install(one.distribution, "--force-reinstall"),
            ) from error
        if not isinstance(class_, type):
            raise self.broken(one, f"{one.target} is not a class")
        return one, class_

    def configure(self, one: Installed, class_: type[Any], environment: Mapping[str, str]) -> Any:
        """Create an instance of the class from these environment variables.

        Raises:
            ConfigurationError: its settings are invalid; (`not_found`) it is written for another API version, or breaks the form of
                the contract.
        """
        version = getattr(class_, "API_VERSION", None)
        if not isinstance(version, int) or not OLDEST_API_VERSION <= version <= API_VERSION:
            newer = isinstance(version, int) and version > API_VERSION
            raise self.not_found(
                f"{self.noun} {one} is written for API version {version}, this jobs-backup has {API_VERSION}",
                hint=how_to_install("jobs-backup" if newer else one.distribution, "--upgrade"),
            )
        if not callable(getattr(class_, "from_settings", None)):
            raise self.broken(one, "it has no from_settings()")
        try:
            made = class_.from_settings(environment)
        except JobsBackupError as error:
            _hide(error, environment.values())
            raise
        except Exception as error:  # noqa: BLE001 - raised again as one of ours
            # Its text may contain the value of any variable, so only its location is shown.
            *_, place = traceback.extract_tb(error.__traceback__)
            where = f"{place.filename}:{place.lineno}"
            raise self.broken(one, f"from_settings() failed: {type(error).__name__} at {where}") from None
        if isinstance(made, type):
            raise self.broken(one, "from_settings() returned a class instead of an instance")
        return made

    def register(self, manager: pluggy.PluginManager, plugin: object, one: Installed) -> None:
        """Register a plugin on a plugin manager.

        Raises:
            ConfigurationError: (`not_found`) it has an unknown hook or argument, or one that would not be passed.
        """
        try:
            manager.register(plugin, name=one.name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise self.broken(one, str(error).strip().splitlines()[-1]) from error
        for caller in manager.get_hookcallers(plugin) or ():
            for impl in caller.get_hookimpls():
                if impl.plugin is plugin and (odd := _never_passed(impl.function)):
                    raise self.broken(
                        one, f"{caller.name} has {', '.join(odd)} with a default or as keyword-only, which would not be passed"
                    )

    def broken(self, one: Installed, why: str) -> ConfigurationError:
        """The error for a plugin that breaks the form of the contract."""
        hint = f"report it to the maintainers of {one.distribution}"
        return self.not_found(f"{self.noun} {one} breaks the contract: {why}", hint=hint)


def _hide(error: JobsBackupError, values: Iterable[str]) -> None:
    """Remove possible credentials from a plugin's error about settings, which may quote values."""
    values = list(values)
    error.message, error.hint = (without_credentials(text, values) for text in (error.message, error.hint))
    error.args = (error.message,)
    error.__notes__ = [without_credentials(note, values) for note in error.__notes__]
    behind = "".join(traceback.format_exception(error.__cause__ or error.__context__))
    if without_credentials(behind, values) != behind:
        error.__cause__ = error.__context__ = None


def settings_of(class_: type[Any]) -> type[Settings] | None:
    """The Struct of settings in a plugin class's attribute `settings`, None if there is none."""
    settings: Any = getattr(class_, "settings", None)
    return settings if isinstance(settings, type) and issubclass(settings, Settings) else None


def secrets_of(class_: type[Any], environment: Mapping[str, str]) -> tuple[Secret, ...]:
    """The values of a plugin's secret settings, and each item of those with commas."""
    settings = settings_of(class_)
    variables = [setting.variable for setting in settings.describe() if setting.secret] if settings else []
    texts = [environment.get(name, "").strip() for variable in variables for name in (variable.name, *variable.aliases)]
    # Each item of a list, such as one of keys, is a secret of its own. A short item is not a key, and would hide half of a message.
    listed = [one.strip() for text in texts for one in text.split(",") if len(one.strip()) >= _SHORTEST]
    return tuple(Secret(one) for one in dict.fromkeys((*texts, *listed)) if one)


def _entry_points(group: str) -> Iterable[importlib.metadata.EntryPoint]:
    try:
        return importlib.metadata.entry_points(group=group)
    except Exception:
        log.warning("the metadata of an installed distribution is broken: checking each of them", exc_info=True)
        return [point for distribution in importlib.metadata.distributions() for point in _readable(distribution, group)]


def _readable(distribution: importlib.metadata.Distribution, group: str) -> Iterable[importlib.metadata.EntryPoint]:
    try:
        return distribution.entry_points.select(group=group)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the others are usable
        log.warning("%s has broken entry points: %s", _name(distribution), error)
        return ()


def _never_passed(function: Callable[..., object]) -> list[str]:
    """Arguments that pluggy does not pass: those with a default, and those that are not plain."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind is not one.POSITIONAL_OR_KEYWORD or one.default is not one.empty]


def _name(distribution: importlib.metadata.Distribution | None) -> str:
    return (distribution and distribution.metadata["Name"]) or "an unknown distribution"


def _version(distribution: importlib.metadata.Distribution | None) -> str:
    return (distribution and distribution.version) or "?"
