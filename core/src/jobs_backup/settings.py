"""Settings: environment variables -> frozen Structs. The one source of values, defaults, help texts and the reference."""

from __future__ import annotations

import difflib
import logging
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import quote, quote_plus

import msgspec

from jobs_backup.compression import GZIP, Compression
from jobs_backup.errors import ConfigurationError

log: Final = logging.getLogger(__name__)

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Secret:
    """A text that shows itself to nobody: `repr`, `str` and formatting give `****`. `reveal()` gives the text.

    It is no `str`, so that joining, encoding or serialising it by mistake fails instead of giving it away.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "****"

    def __format__(self, spec: str) -> str:
        return "****"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __bool__(self) -> bool:
        return bool(self._text)

    def reveal(self) -> str:
        """The text itself."""
        return self._text


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text with `****` for each of the secrets, also where some of their characters are escaped as in a URL or by Python."""
    for secret in filter(None, secrets):
        text = re.sub("".join(map(_written, secret)), "****", text)
    return text


def _written(character: str) -> str:
    """A regular expression for all ways to write a character."""
    if character.isascii() and character.isalnum():
        return character
    data = character.encode("utf-8", "surrogatepass")
    quoted, plus = quote(data, safe=""), quote_plus(data)
    forms = {character, quoted, quoted.lower(), plus, repr(character)[1:-1], ascii(character)[1:-1], repr(data)[2:-1]}
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"


class Duration(float):
    """Seconds, written as `500ms`, `30s`, `5m`, `2h` or a plain number of seconds."""

    _UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
    _LONGEST: Final = 36500 * 86400.0  # the system's timers overflow at some time

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Raises ValueError."""
        value = cls(_quantity(text, cls._UNITS, "a duration such as 500ms, 30s or 5m"))
        if value > cls._LONGEST:
            raise ValueError(f"expected at most {cls(cls._LONGEST)}")
        return value

    def __str__(self) -> str:
        for unit in ("d", "h", "m", "s"):
            if self and self % self._UNITS[unit] == 0:
                return f"{self / self._UNITS[unit]:.0f}{unit}"
        return f"{self * 1000:.6f}".rstrip("0").rstrip(".") + "ms"


class Size(int):
    """Bytes, written as `64MiB` (powers of 1,024), `1GB` (powers of 1,000) or a plain number of bytes."""

    _UNITS: Final = {
        "": 1, "b": 1,
        "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
        "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    }  # fmt: skip
    _LARGEST: Final = 2**60

    @classmethod
    def parse(cls, text: str) -> Size:
        """Raises ValueError."""
        value = _quantity(text, cls._UNITS, "a size such as 64MiB or 1GB")
        if value > cls._LARGEST:
            raise ValueError(f"expected at most {cls(cls._LARGEST)}")
        return cls(value)

    def __str__(self) -> str:
        for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB"):
            if self and self % self._UNITS[unit.lower()] == 0:
                return f"{int(self) // self._UNITS[unit.lower()]}{unit}"
        return str(int(self))


class Endpoint(str):
    """The URL of a server: `http` or `https`, host, port and path, without a slash at its end.

    What is none is shown nowhere: people write credentials into URLs.
    """

    __slots__ = ()
    _LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
    _FORM: Final = re.compile(
        rf"(https?)://({_LABEL}(?:\.{_LABEL})*\.?|\[[0-9a-f:.]+\])(?::([0-9]{{1,5}}))?(/[a-z0-9._~!$&'()*+,;=:%/-]*)?",
        re.IGNORECASE | re.ASCII,
    )

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Raises ValueError."""
        if not {"@", "?", "#"}.isdisjoint(text):
            raise ValueError("expected a URL with nothing but host, port and path")
        match = cls._FORM.fullmatch(text)
        if match is None or not 0 < int(match[3] or 1) <= 65_535:
            raise ValueError("expected a URL such as https://host or http://host:port")
        port = f":{match[3]}" if match[3] else ""
        return cls(f"{match[1].lower()}://{match[2]}{port}{(match[4] or '').rstrip('/')}")


def _quantity(text: str, units: Mapping[str, float], expected: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].lower() not in units:
        raise ValueError(f"expected {expected}")
    return float(match[1]) * units[match[2].lower()]


class Variable(msgspec.Struct, frozen=True):
    """The annotation that ties a Struct's field to an environment variable.

    Attributes:
        name: of the environment variable.
        help: one or more sentences, for the reference and for `docker.env`.
        aliases: other names that are accepted, with a warning.
        example: what to write into an example where there is no default.
        basic: whether nearly everybody sets it: it is not commented out in a `docker.env` that is made.
        credential: whether it leads to credentials (a Secret always does), which need not exist yet where a policy is made.
        minimum, maximum: of a Duration or a Size, whose bounds `msgspec.Meta` can't tell.
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
    """One setting as the reference shows it. `default` is None for a setting that has to be given."""

    field: str
    type: Any
    variable: Variable
    default: str | None

    @property
    def secret(self) -> bool:
        return self.type is Secret or Secret in typing.get_args(self.type)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Base of settings: a field `Annotated[type, Variable("NAME", "help")]` is read from the environment variable NAME.

    Types: str, int, float, bool, Duration, Size, Endpoint, Secret, Path, Literal, and these or None. `msgspec.Meta` adds bounds. An
    empty variable counts as not set.
    """

    @classmethod
    def describe(cls) -> Iterator[Setting]:
        """Every setting, in the order in which the fields stand."""
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
            ConfigurationError: variables are missing or wrong; the message names all of them.
        """
        return cls(**cls._read(environment, cls.describe()))

    @classmethod
    def _read(cls, environment: Mapping[str, str], settings: Iterable[Setting]) -> dict[str, Any]:
        """Field -> value, of those that are set. Raises as `from_environment` does."""
        hints = typing.get_type_hints(cls, include_extras=True)
        values: dict[str, Any] = {}
        wrong: list[str] = []
        for setting in settings:
            name, text = _look_up(setting.variable, environment)
            try:
                if text:
                    value = values[setting.field] = _from_text(text, hints[setting.field])
                    if isinstance(value, (Duration, Size)) and value < setting.variable.minimum:
                        raise ValueError(f"expected at least {type(value)(setting.variable.minimum)}")
                    if isinstance(value, (Duration, Size)) and value > setting.variable.maximum:
                        raise ValueError(f"expected at most {type(value)(setting.variable.maximum)}")
                    _check_characters(text, value)
                elif setting.default is None:
                    near = difflib.get_close_matches(setting.variable.name, environment, n=1, cutoff=0.85)
                    wrong.append(
                        f"{name} is not set" + (f" (but {near[0]} is: a typing error?)" if near and near[0] != name else "")
                    )
            except UnicodeEncodeError:
                wrong.append(f"{name} is not UTF-8")
            except ValueError as error:
                shown = "" if {Secret, Endpoint}.intersection(_alternatives(setting.type)) else f"={text!r}"
                wrong.append(f"{name}{shown}: {error}")
        if wrong:
            raise ConfigurationError("; ".join(wrong), hint="correct the environment or the --env-file")
        return values


def _look_up(variable: Variable, environment: Mapping[str, str]) -> tuple[str, str]:
    for name in (variable.name, *variable.aliases):
        if text := environment.get(name, "").strip():
            if name != variable.name:
                log.warning("%s is an old name: use %s", name, variable.name)
            return name, text
    return variable.name, ""


def _check_characters(text: str, value: Any) -> None:
    """Keys, lines and requests are UTF-8, and a control character would break a request's head. Paths may be nearly anything.

    Raises ValueError. It tells nothing of the text, which may be a secret.
    """
    is_path = isinstance(value, Path)
    if "\0" in text or (not is_path and _CONTROL.search(text)):
        raise ValueError("it has a control character")
    if not is_path:
        text.encode()


def _from_text(text: str, type_: Any) -> Any:
    alternatives = _alternatives(type_)
    if bool in alternatives:
        text = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(text.lower(), text)
    try:
        return msgspec.convert(text, type_, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        why = str(error)
        if "got `str`" in why:
            why = f"expected {next((words for one, words in _EXPECTED.items() if one in alternatives), 'something else')}"
        elif all(isinstance(one, str) for one in alternatives):
            why = f"expected one of {', '.join(alternatives)}"
        raise ValueError(why[:1].lower() + why[1:]) from None


_EXPECTED: Final = {bool: "true or false", int: "a whole number", float: "a number"}


def _alternatives(type_: Any) -> tuple[Any, ...]:
    type_ = _plain(type_)
    return tuple(map(_plain, typing.get_args(type_))) or (type_,)


def _plain(type_: Any) -> Any:
    while hasattr(type_, "__metadata__"):
        type_ = typing.get_args(type_)[0]
    return type_


def _decode(type_: type[Any], value: Any) -> Any:
    if type_ in (Compression, Duration, Endpoint, Size):
        return type_.parse(value)
    if type_ is Secret:
        return Secret(value)
    if issubclass(type_, Path):
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise ValueError("there is no home directory for `~`") from None
    raise TypeError(f"a setting can't be of type {type_}")


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


Count = Annotated[int, msgspec.Meta(ge=1)]


class CoreSettings(Settings, frozen=True, kw_only=True):
    """What core itself reads. The provider reads its own variables, see `jobs-backup providers NAME`."""

    storage_provider: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_STORAGE_PROVIDER", "Which provider stores the objects, for example S3, GCS, MINIO or FILE.", example="S3"
        ),
    ]
    prefix: Annotated[
        str, Variable("JOBS_BACKUP_PREFIX", "Stands before every key. Leading and trailing slashes are trimmed.", basic=True)
    ] = ""
    workspace_id: Annotated[
        str,
        Variable("JOBS_BACKUP_WORKSPACE_ID", "The workspace of what `jobs-backup run` records, where --workspace-id is not given."),
    ] = ""
    instance_id: Annotated[str, Variable("INSTANCE_ID", "Names this installation; part of every key.")] = "1"
    spool_dir: Annotated[
        Path | None,
        Variable(
            "JOBS_BACKUP_SPOOL_DIR",
            "Directory on a local, durable disk where events wait for their upload. Default: `jobs-backup` in RUDDER_TMPDIR if that"
            " is set, else in the user's state directory (XDG_STATE_HOME, ~/.local/state).",
            example="/var/lib/jobs-backup",
            basic=True,
        ),
    ] = None
    rudder_tmpdir: Annotated[
        Path | None,
        Variable("RUDDER_TMPDIR", "RudderStack's directory: the spool's parent where JOBS_BACKUP_SPOOL_DIR is not set."),
    ] = None
    state_home: Annotated[
        Path | None, Variable("XDG_STATE_HOME", "The user's state directory: the spool's parent where neither of the two is set.")
    ] = None
    spool_durability: Annotated[
        typing.Literal["full", "process"],
        Variable(
            "JOBS_BACKUP_SPOOL_DURABILITY",
            "What a recorded event survives: `full`: power loss (each commit waits for the disk); `process`: a killed process, not"
            " a power loss.",
        ),
    ] = "full"
    spool_max_bytes: Annotated[
        Size | None,
        Variable(
            "JOBS_BACKUP_SPOOL_MAX_BYTES",
            "Recording stops when the spool holds so many bytes of events (as they are stored, mostly compressed), and goes on when"
            " some are sent. Default: as many as the disk has room for.",
            example="20GB",
            minimum=1,
        ),
    ] = None
    spool_min_free: Annotated[
        Size, Variable("JOBS_BACKUP_SPOOL_MIN_FREE", "Recording stops when the spool's disk has less free space than this.")
    ] = Size.parse("128MiB")
    spool_full_timeout: Annotated[
        Duration,
        Variable("JOBS_BACKUP_SPOOL_FULL_TIMEOUT", "So long a full spool makes recording wait; then it fails with SpoolFull."),
    ] = Duration(30)
    batch_events: Annotated[
        int, msgspec.Meta(ge=1, le=2**21), Variable("JOBS_BACKUP_BATCH_EVENTS", "An object is closed when it has so many events.")
    ] = 100_000
    batch_bytes: Annotated[
        Size,
        Variable("JOBS_BACKUP_BATCH_BYTES", "An object is closed when its lines have so many bytes before compression.", minimum=1),
    ] = Size.parse("1GB")
    upload_frequency: Annotated[
        Duration, Variable("JOBS_BACKUP_UPLOAD_FREQUENCY", "An object is closed when its first event is so old.")
    ] = Duration(300)
    upload_concurrency: Annotated[
        int,
        msgspec.Meta(ge=1, le=256),
        Variable("JOBS_BACKUP_UPLOAD_CONCURRENCY", "So many objects are sent at once; and so many parts of large objects."),
    ] = 4
    multipart_threshold: Annotated[
        Size, Variable("JOBS_BACKUP_MULTIPART_THRESHOLD", "Objects larger than this are sent in parts, where the provider can.")
    ] = Size.parse("64MiB")
    part_size: Annotated[
        Size,
        Variable(
            "JOBS_BACKUP_PART_SIZE", "Bytes in a part; more where an object would have too many parts for the store.", minimum=1
        ),
    ] = Size.parse("16MiB")
    compression: Annotated[
        Compression,
        Variable(
            "JOBS_BACKUP_COMPRESSION",
            "`gzip`, which RudderStack's tools read, or `zstd`, which is smaller; also with a level, for example `zstd:3`. The"
            " higher it is, the smaller the objects, and the slower: 1 to 9 of gzip, 1 to 19 of zstd; 1 if none is given.",
        ),
    ] = GZIP
    wrappers: Annotated[
        str,
        Variable(
            "JOBS_BACKUP_WRAPPERS",
            "What stands between this and the store, in this order, separated by commas; see `jobs-backup wrappers`. Set it for all"
            " processes of a spool.",
            example="opentelemetry,encryption",
        ),
    ] = ""
    conditional_writes: Annotated[
        bool,
        Variable("JOBS_BACKUP_CONDITIONAL_WRITES", "Write only where no object stands yet. Turn it off for stores that can't."),
    ] = True
    shutdown_grace: Annotated[
        Duration,
        Variable("JOBS_BACKUP_SHUTDOWN_GRACE", "On SIGTERM so much time is left for sending; the rest waits in the spool."),
    ] = Duration(25)
    raw: Annotated[bool, Variable("JOBS_BACKUP_RAW", "Back up raw events. If not, `record` gives ids and keeps nothing.")] = True
    failed: Annotated[bool, Variable("JOBS_BACKUP_FAILED", "Back up delivery failures. If not, `failed` keeps nothing.")] = True
    delete_after: Annotated[
        typing.Literal["delivered", "settled", "never"],
        Variable(
            "JOBS_BACKUP_DELETE_AFTER",
            "When an object of raw events is deleted: `delivered`: all of its events were delivered; `settled`: each of them was"
            " delivered, or its failure is in the bucket; `never`. Set it for all processes of a spool.",
        ),
    ] = "delivered"
    skip_delivered: Annotated[
        bool,
        Variable(
            "JOBS_BACKUP_SKIP_DELIVERED",
            "Do not even write objects whose events were all delivered before. Without effect where nothing is ever deleted.",
        ),
    ] = False
    catalog_days: Annotated[
        int,
        msgspec.Meta(ge=0),
        Variable(
            "JOBS_BACKUP_CATALOG_DAYS",
            "So long the spool knows of an object that is not to be deleted; then its events' ids are unknown. 0: for ever.",
        ),
    ] = 90
    retry_attempts: Annotated[
        Count, Variable("JOBS_BACKUP_RETRY_ATTEMPTS", "How often a request is tried before the destination is paused.")
    ] = 6
    retry_max_wait: Annotated[Duration, Variable("JOBS_BACKUP_RETRY_MAX_WAIT", "The longest wait between two attempts.")] = (
        Duration(30)
    )
    retry_deadline: Annotated[Duration, Variable("JOBS_BACKUP_RETRY_DEADLINE", "No further attempt is begun after this time.")] = (
        Duration(120)
    )
    request_timeout: Annotated[
        Duration,
        Variable("JOBS_BACKUP_REQUEST_TIMEOUT", "A request without progress for so long has failed.", minimum=0.001, maximum=1800),
    ] = Duration(60)
    metrics_port: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=65_535)] | None,
        Variable(
            "JOBS_BACKUP_METRICS_PORT",
            "`archive` and `serve` answer /metrics (for Prometheus; needs `jobs-backup[metrics]`), /healthz and /readyz there, to"
            " everybody. 0: any free port. Default: none.",
            example="9464",
        ),
    ] = None
    metrics_host: Annotated[
        str, Variable("JOBS_BACKUP_METRICS_HOST", "The address that JOBS_BACKUP_METRICS_PORT is opened on; 0.0.0.0 for all.")
    ] = "127.0.0.1"
    metrics_file: Annotated[
        Path | None,
        Variable(
            "JOBS_BACKUP_METRICS_FILE",
            "`run`, `archive` and `serve` write their metrics into this file, every 15 s and at their end, for the textfile"
            " collector of Prometheus' node exporter. Needs `jobs-backup[metrics]`; the name ends in `.prom`.",
            example="/var/lib/node_exporter/jobs_backup.prom",
        ),
    ] = None
    log_format: Annotated[
        typing.Literal["text", "json"],
        Variable("JOBS_BACKUP_LOG_FORMAT", "How the command logs: lines of text, or a JSON object a line."),
    ] = "text"

    @property
    def spool_path(self) -> Path:
        """Where the spool is.

        Raises:
            ConfigurationError: it is not set, and the user has no home directory.
        """
        return _spool_path(self.spool_dir, self.rudder_tmpdir, self.state_home)

    @classmethod
    def find_spool(cls, environment: Mapping[str, str]) -> Path:
        """Where the spool is, for those who need nothing else. Raises as `from_environment` and `spool_path` do."""
        fields = ("spool_dir", "rudder_tmpdir", "state_home")
        values = cls._read(environment, (setting for setting in cls.describe() if setting.field in fields))
        return _spool_path(*map(values.get, fields))


def _spool_path(spool_dir: Path | None, rudder_tmpdir: Path | None, state_home: Path | None) -> Path:
    if spool_dir is not None:
        return spool_dir.absolute()
    try:
        parent = rudder_tmpdir or state_home or Path.home() / ".local/state"
    except RuntimeError as error:
        raise ConfigurationError("there is no place for the spool", hint="set JOBS_BACKUP_SPOOL_DIR to a directory") from error
    return parent.absolute() / "jobs-backup"


IGNORED: Final = frozenset({"JOBS_BACKUP_DEFAULT_PREFIX"})
"""Variables of RudderStack's that mean nothing here (it belongs to the buckets that they host)."""

_PREFIX: Final = "JOBS_BACKUP_"

# Kubernetes puts these into every container for a Service that is called jobs-backup.
_SERVICE_LINK: Final = re.compile(r"JOBS_BACKUP_(SERVICE_(HOST|PORT)\w*|PORT(_\d+_(TCP|UDP)\w*)?)")


def report_unknown(environment: Mapping[str, str], *known: type[Settings]) -> list[str]:
    """A line for every `JOBS_BACKUP_*` variable that no setting has, with the nearest name that one has.

    Names that only look like it (`JOBS_BACKP_BUCKET`, `jobs_backup_bucket`) are reported too.
    """
    variables = [setting.variable for settings in known for setting in settings.describe()]
    names = {name for variable in variables for name in (variable.name, *variable.aliases)}
    tails = [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]
    lines: list[str] = []
    for name in sorted(environment):
        if name in names | IGNORED or _SERVICE_LINK.fullmatch(name):
            continue
        if name.startswith(_PREFIX):
            near = difflib.get_close_matches(name.removeprefix(_PREFIX), tails, n=1)
            lines.append(f"{name} is no setting" + (f": did you mean {_PREFIX}{near[0]}?" if near else " and has no effect"))
        elif near := difflib.get_close_matches(name.upper(), [_PREFIX + tail for tail in tails], n=1, cutoff=0.9):
            lines.append(f"{name} is no setting: did you mean {near[0]}?")
    return lines
