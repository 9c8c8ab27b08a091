"""Check a provider's form: everything in the contract that needs neither a bucket nor its settings."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from typing import Any, Final

import msgspec

from jobs_backup.errors import ConfigurationError, JobsBackupError, NotSupported, ProviderNotFound
from jobs_backup.hookspecs import PROJECT, Provider
from jobs_backup.model import Policy
from jobs_backup.settings import Setting, Variable
from jobs_backup.store.plugins import Installed, secrets_of, settings_of
from jobs_backup.store.providers import HOOKS, KIND, LoadedProvider, load, load_class, register
from jobs_backup.util.disclosure import redacted

_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]*")
_SECRET_NAME: Final = re.compile(
    r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSPHRASE|PRIVATE_KEY|SECRET_\w*KEY|ACCESS_KEY|API_KEY|SAS|CONNECTION_STRING)$"
)
_NUMBERS: Final = ("max_parts", "part_multiple", "min_part_size", "max_write_size")
_FORMATS: Final = ("", "json", "terraform", "commands")
_IMPORTED: Final = (
    "import json, sys\n"
    "from jobs_backup.store import providers\n"
    "providers.load_class(sys.argv[1])\n"
    "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))))\n"
)


class Result(StrEnum):
    """Result of one check. NOT_TRIED: the environment lacks what it needs."""

    OK = "ok"
    WRONG = "wrong"
    NOT_TRIED = "not tried"


class CheckResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was checked, and the result."""

    name: str
    result: Result
    text: str


def check_provider(name: str, environment: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check a provider. If the environment has its settings, it is also configured; nothing is sent.

    Raises:
        ProviderNotFound: it is not installed, or cannot be imported.
    """
    one, class_ = load_class(name)
    yield _looked("entry point", lambda: _entry_point(one))
    yield _looked("requirement", lambda: _requirement(one))
    yield _looked("imports", lambda: _imports(one))
    yield _looked("hooks", lambda: _hooks(one, class_))
    yield _looked("attributes", lambda: _attributes(class_))
    yield _looked("settings", lambda: _settings(class_))
    yield _looked("without settings", lambda: _unset(one, class_))
    try:
        loaded = load(name, environment)
    except ProviderNotFound as error:
        yield CheckResult(name="configured", result=Result.WRONG, text=error.message)
        return
    except ConfigurationError as error:
        yield CheckResult(name="configured", result=Result.NOT_TRIED, text=error.message)
        return
    yield _looked("configured", lambda: _configured(loaded, environment))
    if "policy" in loaded.hooks:
        yield _looked("policy", lambda: _policy(loaded, environment))


class _Wrong(Exception):
    """A violation of the contract."""


def _looked(name: str, look: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name=name, result=Result.OK, text=look())
    except _Wrong as error:
        return CheckResult(name=name, result=Result.WRONG, text=str(error))
    except ProviderNotFound as error:
        return CheckResult(name=name, result=Result.WRONG, text=error.message)


def _entry_point(one: Installed) -> str:
    if not _NAME.fullmatch(one.name):
        raise _Wrong(f"{one.name!r} is not a valid name: upper-case letters, digits and `_`, as in ACME_STORE")
    return str(one)


def _distribution(one: Installed) -> Distribution | None:
    try:
        return distribution(one.distribution)
    except PackageNotFoundError:
        return None


def _requirement(one: Installed) -> str:
    if one.distribution == "jobs-backup":
        return "a part of jobs-backup"
    found = _distribution(one)
    for text in (found.requires or []) if found else []:
        requirement = text.partition(";")[0].strip()
        if re.match(r"jobs[-_.]backup(?![\w.-])", requirement, re.IGNORECASE):
            if "<" not in requirement and "==" not in requirement and "~=" not in requirement:
                raise _Wrong(f"{requirement} has no upper bound: a new version of the contract would break it")
            return requirement
    raise _Wrong(f'{one.distribution} does not declare which jobs-backup it needs: dependencies = ["jobs-backup>=0.1,<0.2"]')


def _imports(one: Installed) -> str:
    """Check in a process of its own: in this one, other code may have imported what it needs."""
    command = [sys.executable, "-c", _IMPORTED, one.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - all of it is ours, or installed
    if done.returncode:
        raise _Wrong(f"a new process cannot import it: {(done.stderr.strip().splitlines() or ['it ended'])[-1]}")
    found, distributions = _distribution(one), packages_distributions()
    required = {_normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in (found.requires or [])} if found else set[str]()
    core = {_normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in distribution("jobs-backup").requires or []}
    modules: list[str] = json.loads(done.stdout)
    early = [
        module
        for module in modules
        if {_normal(name) for name in distributions.get(module, ())} & (required - core - {"jobs-backup"})
    ]
    if early:
        raise _Wrong(f"it imports {', '.join(early)} when it is imported: import them when a hook is first called")
    return "no SDK"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _hooks(one: Installed, class_: type[Any]) -> str:
    """Check the hooks as `load` does, on an object with only the hooks: without settings there is no instance."""
    functions = {
        name: function
        for name, function in inspect.getmembers(class_, inspect.isfunction)
        if hasattr(function, f"{PROJECT}_impl") or name in HOOKS
    }
    stand_in: Any = type(class_.__name__, (), {**functions, "location": ""})()
    _, hooks = register(stand_in, one)
    return ", ".join(hook for hook in HOOKS if hook in hooks)


def _attributes(class_: type[Any]) -> str:
    for name in _NUMBERS:
        value = getattr(class_, name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _Wrong(f"{name} is {value!r}: it must be a whole number of at least 1, or be left out")
    if not isinstance(getattr(class_, "sequential_parts", False), bool):
        raise _Wrong("sequential_parts is neither True nor False")
    has = [name for name in ("sequential_parts", *_NUMBERS) if hasattr(class_, name)]
    return ", ".join(f"{name}={getattr(class_, name)}" for name in has) or "none of its own"


def _settings(class_: type[Any]) -> str:
    settings = settings_of(class_)
    if settings is None:
        raise _Wrong("its class has no attribute `settings` with a Struct of jobs_backup.settings.Settings")
    described = list(settings.describe())
    if wrong := [text for setting in described if (text := _wrong_setting(setting))]:
        raise _Wrong("; ".join(wrong))
    return ", ".join(setting.variable.name + ("*" if setting.default is None else "") for setting in described)


def _wrong_setting(setting: Setting) -> str:
    variable = setting.variable
    if not _NAME.fullmatch(variable.name):
        return f"{variable.name!r} is not a valid variable name"
    if not variable.help.strip().endswith("."):
        return f"{variable.name} has no help that ends in a full stop"
    if _SECRET_NAME.search(variable.name) and not setting.secret:
        return f"{variable.name} looks like a secret but is not a `Secret`: its value would be shown"
    return ""


def _unset(one: Installed, class_: type[Any]) -> str:
    required = [variable.name for variable in required_settings(class_)]
    try:
        KIND.configure(one, class_, {})
    except ProviderNotFound:
        raise
    except ConfigurationError as error:
        if unnamed := [name for name in required if name not in error.message]:
            raise _Wrong(f"the error for missing settings does not name {', '.join(unnamed)}: {error.message}") from None
        if not error.hint:
            raise _Wrong(f"the error for missing settings has no hint: {error.message}") from None
        return error.one_line()
    if required:
        raise _Wrong(f"it can be configured without {', '.join(required)}")
    return "none is required"


def _configured(loaded: LoadedProvider, environment: Mapping[str, str]) -> str:
    if what := shows_secret(loaded.provider, environment):
        raise _Wrong(f"its {what} shows a secret")
    if not loaded.provider.location:
        raise _Wrong("its location is empty")
    return loaded.provider.location


def shows_secret(provider: Provider, environment: Mapping[str, str], **more: str) -> str:
    """Which text of a provider shows a secret of its settings: its location, its repr, or one of `more`. Empty if none does."""
    secrets = [secret.reveal() for secret in secrets_of(type(provider), environment)]
    texts = {"location": provider.location, "repr": repr(provider), "attributes": repr(vars(provider)), **more}
    return next((what for what, text in texts.items() if redacted(text, secrets) != text), "")


def required_settings(class_: type[Any]) -> list[Variable]:
    """The settings of a provider's class that have no default."""
    settings = settings_of(class_)
    return [setting.variable for setting in settings.describe() if setting.default is None] if settings else []


def _policy(loaded: LoadedProvider, environment: Mapping[str, str]) -> str:
    found: list[str] = []
    for format_ in _FORMATS:
        try:
            policy: object = loaded.manager.hook.policy(settings=environment, delete=True, replay=True, format=format_)
        except NotSupported:
            if not format_:
                raise _Wrong("it has none in its default format (`format` is empty)") from None
            continue
        except JobsBackupError as error:
            raise _Wrong(f"{error.code}: {error.message}") from None
        except Exception as error:  # noqa: BLE001 - reported, whatever it is; its text may contain anything
            raise _Wrong(f"policy failed: {type(error).__name__}") from None
        if not isinstance(policy, Policy):
            raise _Wrong(f"it returned {type(policy).__name__} instead of Policy")
        if unknown := policy.grants.keys() - loaded.hooks:
            raise _Wrong(f"its grants name {', '.join(sorted(unknown))}, which are not its hooks")
        found.append(policy.format)
    return ", ".join(dict.fromkeys(found))
