"""Settings: environment variables -> frozen Structs. Single source of values, defaults, help texts and the reference."""

from __future__ import annotations

import difflib
import functools
import math
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Self

import msgspec

from jobs_backup.errors import ConfigurationError
from jobs_backup.settings.values import DatabaseUrl, Duration, Endpoint, Secret, Size
from jobs_backup.util.disclosure import MAX_SHOWN, credential_in, is_plain, may_be_credential, redacted, shown, without_credentials
from jobs_backup.util.logs import logger_of

__all__ = ["Duration", "Endpoint", "Secret", "Setting", "Settings", "Size", "Variable", "redacted", "shown"]

log: Final = logger_of(__name__)

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


_QUOTED: Final = re.compile(r"([\"'`]).*\1|[\u201c\u201d\u201e\u2018\u2019].*[\u201c\u201d\u2018\u2019]", re.DOTALL)


class Variable(msgspec.Struct, frozen=True):
    """Annotation that ties a Struct's field to an environment variable.

    Attributes:
        name: of the environment variable.
        help: one or more sentences, for the reference and for `docker.env`.
        aliases: other accepted names, with a warning.
        example: value for an example where there is no default.
        basic: whether nearly everybody sets it; a generated `docker.env` does not comment it out.
        credential: whether it leads to credentials (a Secret always does), which need not exist yet when a policy is printed.
        minimum, maximum: of a Duration or a Size, whose limits `msgspec.Meta` cannot express.
    """

    name: str
    help: str
    aliases: tuple[str, ...] = ()
    example: str = ""
    basic: bool = False
    credential: bool = False
    minimum: float = 0
    maximum: float = math.inf


class Setting(msgspec.Struct, frozen=True):
    """One setting as the reference shows it. `default` is None for a required setting."""

    field: str
    type: Any
    variable: Variable
    default: str | None

    @property
    def secret(self) -> bool:
        return _has(self.type, Secret, DatabaseUrl)

    @property
    def is_path(self) -> bool:
        """Whether it names a file or a directory."""
        return _has(self.type, Path)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Base of settings: a field `Annotated[type, Variable("NAME", "help")]` is read from the environment variable NAME.

    Types: str, int, float, bool, Literal, Path, Secret, and any of these or None. Also classes whose class method `parse` takes a
    text and raises ValueError, such as Duration, Size and Endpoint. `msgspec.Meta` adds limits. An empty variable counts as not
    set.
    """

    @classmethod
    def describe(cls) -> Iterator[Setting]:
        """Every setting, in field order."""
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in msgspec.structs.fields(cls):
            for extra in getattr(hints[field.name], "__metadata__", ()):
                if isinstance(extra, Variable):
                    default = None if field.required else _to_text(field.default)
                    type_ = typing.get_args(hints[field.name])[0]
                    yield Setting(field=field.name, type=type_, variable=extra, default=default)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read every field from its variable.

        Raises:
            ConfigurationError: variables are missing or invalid; the message names all of them.
        """
        return cls(**cls._read(environment, cls.describe()))

    @classmethod
    def _read(cls, environment: Mapping[str, str], settings: Iterable[Setting]) -> dict[str, Any]:
        """Field -> value, for those that are set. Raises as `from_environment` does."""
        hints = typing.get_type_hints(cls, include_extras=True)
        known = {name for setting in cls.describe() for name in (setting.variable.name, *setting.variable.aliases)}
        values: dict[str, Any] = {}
        wrong: list[str] = []
        for setting in settings:
            name, text = _look_up(setting.variable, environment)
            if odd := oddity_of(text):
                warn_of_oddity(name, odd)
            try:
                if misplaced := _misplaced(setting.type, text):
                    wrong.append(f"{name} holds {misplaced}")
                elif text:
                    value = values[setting.field] = _from_text(text, hints[setting.field])
                    if isinstance(value, (Duration, Size)) and value < setting.variable.minimum:
                        raise ValueError(f"expected at least {type(value)(setting.variable.minimum)}")
                    if isinstance(value, (Duration, Size)) and value > setting.variable.maximum:
                        raise ValueError(f"expected at most {type(value)(setting.variable.maximum)}")
                    _check_characters(text, value)
                elif setting.default is None:
                    near = difflib.get_close_matches(setting.variable.name, environment.keys() - known, n=1, cutoff=0.85)
                    wrong.append(f"{name} is not set" + (f" (but {near[0]} is: a typo?)" if near else ""))
            except UnicodeEncodeError:
                wrong.append(f"{name} is not UTF-8")
            except ValueError as error:
                wrong.append(f"{name}{_equals(setting.type, text)}: {without_credentials(str(error), [text])}")
        if wrong:
            raise ConfigurationError("; ".join(wrong), hint="correct the environment or the --env-file")
        return values


def oddity_of(text: str) -> str:
    """The part of a value that is probably a mistake: quotes, a comment, a reference, all of which Docker keeps. Empty if none."""
    if _QUOTED.fullmatch(text):
        return "the quotes are part of the value: remove them"
    if re.search(r"\s#\s", text):
        return "what looks like a comment after the value is part of it: move it to its own line"
    if re.fullmatch(r"\$([A-Za-z_]\w*|\{\w+\}|\(.*\)).*", text, re.DOTALL):
        return "a reference such as ${NAME} is not replaced: write the value"
    return ""


@functools.cache
def warn_of_oddity(name: str, odd: str) -> None:
    """Warn only once: core and plugins may read the same variable."""
    log.warning("%s: %s", name, odd, extra={"code": "OddValue"})


def _look_up(variable: Variable, environment: Mapping[str, str]) -> tuple[str, str]:
    for name in (variable.name, *variable.aliases):
        if text := environment.get(name, "").strip():
            if name != variable.name:
                log.warning("%s is an old name: use %s", name, variable.name, extra={"code": "UnknownSetting"})
            return name, text
    return variable.name, ""


def _misplaced(type_: Any, text: str) -> str:
    """Kind of credential in a setting meant for something else, and what to do; empty if there is none.

    The value is not shown and not used: a key in place of a bucket or a prefix would be in every message from here on.
    """
    alternatives = _alternatives(type_)
    if _has(type_, Secret, Endpoint, DatabaseUrl):
        return ""  # an Endpoint is never shown, and says itself what it expects
    kind = credential_in(text)
    if _has(type_, Path):
        if os.path.lexists(text) or not may_be_credential(text):
            return ""
        return f"{kind or 'what looks like a key'}, not a path: save it in a file, and write the file's path here"
    if not kind:
        return ""
    return f"{kind}, not {_expected(alternatives) or 'what belongs there'}"


def _equals(type_: Any, text: str) -> str:
    """An invalid value for its message, unless it may be a credential."""
    if _has(type_, Secret, Endpoint, DatabaseUrl):
        return ""
    is_shown = not may_be_credential(text) if {str, Path}.intersection(_alternatives(type_)) else is_plain(text)
    return f"={text!r}" if is_shown and len(text) <= MAX_SHOWN else ""


def _check_characters(text: str, value: Any) -> None:
    """Reject a value that is not UTF-8 or has control characters. Paths may contain nearly anything.

    Keys, lines and requests are UTF-8, and a control character would break a request's head. Raises ValueError, which shows nothing
    of the text: it may be a secret.
    """
    is_path = isinstance(value, Path)
    if "\0" in text or (not is_path and _CONTROL.search(text)):
        raise ValueError("it contains a control character")
    _ = os.fsencode(text) if is_path else text.encode()


def _from_text(text: str, type_: Any) -> Any:
    alternatives = _alternatives(type_)
    if bool in alternatives:
        text = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower(), text)
    try:
        value = msgspec.convert(text, type_, strict=False, dec_hook=_decode)
        if value is None:  # msgspec reads `null` so, but a variable that is set is not unset
            others = tuple(one for one in typing.get_args(_plain(type_)) if one is not NoneType)
            value = msgspec.convert(text, typing.Union[others], strict=False, dec_hook=_decode)  # noqa: UP007 - of a tuple
    except msgspec.ValidationError as error:
        why = str(error)
        if "got `str`" in why or all(isinstance(one, str) for one in alternatives):
            why = f"expected {_expected(alternatives) or 'something else'}"
        raise ValueError(why[:1].lower() + why[1:]) from None
    return value


_EXPECTED: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Duration: "a duration",
    Size: "a size",
}


def _expected(alternatives: tuple[Any, ...]) -> str:
    """What a setting expects, in words; empty for a text."""
    choices = [one for one in alternatives if isinstance(one, str)]
    return f"one of {', '.join(choices)}" if choices else next((_EXPECTED[one] for one in alternatives if one in _EXPECTED), "")


def _alternatives(type_: Any) -> tuple[Any, ...]:
    type_ = _plain(type_)
    return tuple(map(_plain, typing.get_args(type_))) or (type_,)


def _has(type_: Any, *classes: type[Any]) -> bool:
    """Whether one of its alternatives is one of these classes, or derived from one by a plugin."""
    return any(isinstance(one, type) and issubclass(one, classes) for one in _alternatives(type_))


def _plain(type_: Any) -> Any:
    while hasattr(type_, "__metadata__"):
        type_ = typing.get_args(type_)[0]
    return type_


def _decode(type_: type[Any], value: Any) -> Any:
    if issubclass(type_, Secret):
        return type_(value)
    if issubclass(type_, Path):
        try:
            path = Path(value).expanduser()
            path.absolute()
        except RuntimeError:
            raise ValueError("cannot expand `~`: no home directory found") from None
        except OSError as error:
            raise ValueError(f"a relative path, and the working directory is gone: {error.strerror}") from None
        return path
    if parse := getattr(type_, "parse", None):
        return parse(value)
    raise TypeError(f"a setting cannot be of type {type_}")


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


Count = Annotated[int, msgspec.Meta(ge=1)]


IGNORED: Final = frozenset({"JOBS_BACKUP_DEFAULT_PREFIX"})
"""RudderStack's variables without meaning here (this one is for the buckets that they host)."""

_PREFIX: Final = "JOBS_BACKUP_"
_FAMILY: Final = "AWS_ENDPOINT_URL_"
"""AWS has one of these for each service."""

# Kubernetes adds these to every container if a Service is named jobs-backup.
_SERVICE_LINK: Final = re.compile(r"JOBS_BACKUP_(SERVICE_(HOST|PORT)\w*|PORT(_\d+_(TCP|UDP)\w*)?)")


def report_unknown(environment: Mapping[str, str], *known: type[Settings]) -> list[str]:
    """Report every `JOBS_BACKUP_*` variable that is not a setting, one line each, with the nearest setting.

    Names that only resemble one (`JOBS_BACKP_BUCKET`, `jobs_backup_bucket`), or resemble another setting (`AWS_REGON`), are
    reported too.
    """
    variables = [setting.variable for settings in known for setting in settings.describe()]
    names = {name for variable in variables for name in (variable.name, *variable.aliases)}
    tails = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
    lines: list[str] = []
    for name in sorted(environment):
        if name in names | IGNORED or _SERVICE_LINK.fullmatch(name):
            continue
        shown = shown_name(name)
        if name.startswith(_PREFIX):
            near = difflib.get_close_matches(shown.removeprefix(_PREFIX), tails, n=1)
            lines.append(f"{shown} is not a setting" + (f": did you mean {_PREFIX}{near[0]}?" if near else " and has no effect"))
            continue
        near = difflib.get_close_matches(name.upper(), [_PREFIX + tail for tail in tails], n=1, cutoff=0.9)
        if not near and not name.startswith(_FAMILY):
            near = difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.93)
        if near:
            lines.append(f"{shown} is not a setting: did you mean {near[0]}?")
    return lines


def shown_name(name: str) -> str:
    """A variable's name, cut at the first odd character: what follows a `:` in place of a `=` may be a secret."""
    end = re.search(r"[^A-Za-z0-9_]", name)
    return f"{name[: end.start()]}..." if end else name
