"""The wrappers between core and the store: loaded, checked against the form of the contract, and put around hooks in order."""

from __future__ import annotations

import re
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from typing import Final, Self

import msgspec
import pluggy

from jobs_backup.errors import ConfigurationError, IntegrityError, WrapperMissing, WrapperNotFound
from jobs_backup.format.keys import FORMAT, MAX_FORMATS_BYTES, formats_of
from jobs_backup.hookspecs import PROJECT, ObjectHooks, StorageProvider, Wrapper, hookimpl
from jobs_backup.model import Batch, Body
from jobs_backup.settings.base import shown, shown_name
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.values import Secret
from jobs_backup.store.plugins import Installed, PluginKind, secrets_of, settings_of
from jobs_backup.store.providers import HOOKS, implementations

KIND: Final = PluginKind(
    noun="wrapper",
    variable="JOBS_BACKUP_WRAPPERS",
    group="jobs_backup.wrappers",
    not_found=WrapperNotFound,
    distributions={"ENCRYPTION": "jobs-backup-encryption", "OPENTELEMETRY": "jobs-backup-opentelemetry"},
)
_HOOKS: Final = (*HOOKS, "open_body")
_PARAMETER: Final = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_VARIABLE: Final = "JOBS_BACKUP_WRAPPERS"
_PREFIX: Final = "JOBS_BACKUP_"
_VARIABLES: Final = {"ENCRYPTION": re.compile(r"JOBS_BACKUP_ENCRYPT(?!ION_(?:SERVICE|PORT)).*", re.DOTALL)}
"""Variables that can only be meant for a wrapper, even if it is not installed or the name is misspelled.

For wrappers whose absence must be noticed. (Excludes what Kubernetes sets for a Service called jobs-backup-encryption.)
"""


class LoadedWrapper(msgspec.Struct, frozen=True, kw_only=True):
    """A wrapper's instance, checked. `secrets` are those of its settings; `format` is empty if it changes no bytes."""

    installed: Installed
    wrapper: Wrapper
    secrets: tuple[Secret, ...]
    format: str
    parameter: str


class Wrappers:
    """All active wrappers, in order from core to the store."""

    def __init__(self, loaded: Sequence[LoadedWrapper] = ()) -> None:
        self._loaded = loaded
        self._changing = {one.format: one.wrapper for one in loaded if one.format}
        self.names = tuple(one.installed.name for one in loaded)
        self.secrets = tuple(secret for one in loaded for secret in one.secrets)
        self.applied = tuple(f"{one.format}={one.parameter}" for one in loaded if one.format)
        """What the objects of newly opened batches will be made with; see `Batch.wrappers`."""

    @classmethod
    def from_settings(cls, text: str, environment: Mapping[str, str]) -> Self:
        """Load the wrappers in JOBS_BACKUP_WRAPPERS.

        Raises:
            WrapperNotFound: one is not installed, or breaks the form of the contract; the message names the distribution.
            ConfigurationError: the list, or the settings of one, are invalid; or one has settings but is not in the list.
        """
        loaded = [load(name, environment) for name in names_in(text)]
        _refuse_idle(environment, {one.installed.name for one in loaded})
        formats = [one.format for one in loaded if one.format]
        if len(set(formats)) < len(formats):
            raise ConfigurationError(f"two of {_VARIABLE}={shown(text)} have the same format", hint="leave one of them out")
        if sum(len(f".{one}") for one in formats) > MAX_FORMATS_BYTES:
            raise ConfigurationError(
                f"{_VARIABLE}={shown(text)} adds .{'.'.join(formats)} to keys, which is too long", hint="use fewer of them"
            )
        return cls(loaded)

    def wrap(self, manager: pluggy.PluginManager) -> None:
        """Put the wrappers around a provider's hooks: the first is the outermost of each call."""
        for one in reversed(self._loaded):  # pluggy calls the last one registered first
            _register(manager, one.wrapper, one.installed)

    def around(self, core: object) -> pluggy.PluginManager:
        """A manager with the wrappers around core's hooks: the first gets its bytes from core."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(ObjectHooks)
        manager.register(core)
        is_checked = False
        for one in self._loaded:
            if one.format and not is_checked:
                manager.register(_Check(), name="check")
                is_checked = True
            _register(manager, one.wrapper, one.installed)
        return manager

    def opening(self, manager: pluggy.PluginManager, batch: Batch) -> pluggy.HookCaller:
        """The hook `open_body` of a manager made by `around`, through the wrappers that the batch was opened with.

        Raises:
            WrapperMissing: one of them is not active, or they are in another order.
        """
        if (problem := self._problem(batch.formats)) is not None:
            raise WrapperMissing(f"{batch.key} was recorded to be uploaded {problem[0]}", hint=problem[1])
        return manager.subset_hook_caller("open_body", self._others(batch.formats))

    def reading(self, manager: pluggy.PluginManager, key: str) -> pluggy.HookCaller:
        """The hook `read` of a provider's manager, through the wrappers that made the object, according to its key.

        Raises:
            WrapperMissing: one of them is not active, or they are in another order.
        """
        formats = formats_of(key)
        if (problem := self._problem(formats)) is not None:
            raise WrapperMissing(f"{key} was uploaded {problem[0]}", hint=problem[1])
        return manager.subset_hook_caller("read", self._others(formats))

    def left_out(self, formats: Collection[str]) -> list[str]:
        """Active formats that are not among these."""
        return [one for one in self._changing if one not in formats]

    def _problem(self, formats: Sequence[str]) -> tuple[str, str] | None:
        if missing := [one for one in formats if one not in self._changing]:
            return f"through the wrapper of .{', .'.join(missing)}, which is not active", f"add it to {_VARIABLE}"
        if [one for one in self._changing if one in formats] != list(formats):
            return f"through the wrappers of .{', .'.join(formats)} in this order", f"put them in this order in {_VARIABLE}"
        return None

    def _others(self, formats: Iterable[str]) -> list[Wrapper]:
        return [wrapper for one, wrapper in self._changing.items() if one not in formats]


def names_in(text: str) -> list[str]:
    """Parse the names in JOBS_BACKUP_WRAPPERS.

    Raises:
        ConfigurationError: one is there twice.
    """
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigurationError(f"{_VARIABLE}={shown(text)} has {', '.join(sorted(twice))} twice", hint="name each of them once")
    return names


class _Check:
    """Check that the first wrapper that changes bytes gets what was sealed: after it, nothing can be compared."""

    @hookimpl(wrapper=True)
    def open_body(self, batch: Batch) -> Generator[None, Body, Body]:
        body = yield
        if batch.wrappers and (body.size != batch.size or body.crc32c() != batch.crc32c):
            raise IntegrityError(
                f"{batch.key}: the wrappers' input is not what was sealed",
                hint="check the disk; or a wrapper without a format changes bytes",
            )
        return body


def _refuse_idle(environment: Mapping[str, str], active: Collection[str]) -> None:
    """Refuse settings of an inactive wrapper, as their user expects objects to be encrypted. Raises ConfigurationError."""
    unknown = [name for name in environment if name.startswith(_PREFIX)]
    # With `:` instead of `=` the value is empty, although it was set.
    unknown = [name for name in unknown if environment[name].strip() or shown_name(name) != name]
    core = {setting.variable.name for setting in CoreSettings.describe()} if unknown else set[str]()
    unknown = [name for name in unknown if name not in core]
    for wrapper in {*KIND.names(), *_VARIABLES} - set(active) if unknown else ():
        idle = [name for name in unknown if wrapper in _VARIABLES and _VARIABLES[wrapper].fullmatch(name)]
        if not idle and wrapper in KIND.names() and any(name.startswith(f"{_PREFIX}{wrapper}_") for name in unknown):
            settings = settings_of(KIND.load_class(wrapper)[1])
            own = {one.variable.name for one in settings.describe()} if settings else set[str]()
            idle = [name for name in unknown if name in own]
        if idle:
            name = shown_name(min(idle))
            raise ConfigurationError(
                f"{name} is set, but {_VARIABLE} does not name {wrapper.lower()}: it would have no effect",
                hint=f"add {wrapper.lower()} to {_VARIABLE}, or unset {name}",
            )


def load(name: str, environment: Mapping[str, str]) -> LoadedWrapper:
    """Import, configure and check the wrapper `name`.

    Raises:
        WrapperNotFound: it is not installed, or breaks the form of the contract; the message names the distribution.
        ConfigurationError: its settings are invalid.
    """
    one, class_ = KIND.load_class(name)
    wrapper: Wrapper = KIND.configure(one, class_, environment)
    format_, parameter = getattr(wrapper, "format", ""), getattr(wrapper, "parameter", "")
    _check(one, wrapper, format_, parameter)
    return LoadedWrapper(
        installed=one, wrapper=wrapper, secrets=secrets_of(class_, environment), format=format_, parameter=parameter
    )


def _check(one: Installed, wrapper: Wrapper, format_: object, parameter: object) -> None:
    """Check the form of a wrapper. Raises WrapperNotFound."""
    try:
        hash(wrapper)
    except TypeError:
        raise KIND.broken(one, "it cannot be hashed: a dataclass needs eq=False") from None
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(StorageProvider)
    manager.add_hookspecs(ObjectHooks)
    KIND.register(manager, wrapper, one)
    found = {name: implementations(manager, name) for name in _HOOKS}
    wrapped = [name for name, impls in found.items() if impls]
    if unmarked := [name for name in _HOOKS if name not in wrapped and callable(getattr(wrapper, name, None))]:
        raise KIND.broken(one, f"{', '.join(unmarked)} without jobs_backup's @hookimpl(wrapper=True)")
    if not wrapped:
        raise KIND.broken(one, "it wraps no hook")
    for name, impls in found.items():
        if any(not impl.wrapper for impl in impls):
            raise KIND.broken(one, f"{name} is not a wrapper: @hookimpl(wrapper=True)")
        if any(impl.tryfirst or impl.trylast for impl in impls):
            raise KIND.broken(one, f"{name} sets its own order (tryfirst, trylast): the order is that of {_VARIABLE}")
    if not isinstance(format_, str) or not (format_ == "" or FORMAT.fullmatch(format_)):
        raise KIND.broken(one, f"its format {format_!r} is invalid: lower-case letters and digits, not json, gz or zst")
    if not isinstance(parameter, str) or not _PARAMETER.fullmatch(parameter):
        raise KIND.broken(one, "its parameter is invalid: up to 64 letters, digits, '-', '_' and '.'")
    if format_ and not {"open_body", "read"} <= set(wrapped):
        raise KIND.broken(one, f"it has a format ({format_}), and does not wrap both open_body and read")


def _register(manager: pluggy.PluginManager, wrapper: Wrapper, one: Installed) -> None:
    manager.register(wrapper, name=f"wrapper {one.name}")  # a provider may have the same name
