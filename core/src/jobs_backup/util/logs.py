"""Log lines, as text or as JSON objects with stable field names.

External text is escaped in both, in JSON by its own rules.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final
from unicodedata import category

FIELDS: Final = {
    "time": "time in UTC, as RFC 3339 with milliseconds",
    "level": "`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`",
    "logger": "module, for example `jobs_backup.archive.archiver`; `jobs_backup.cli` for the command's own messages",
    "message": "what happened, as text",
    "code": "code of the error, explained in [messages](messages.md)",
    "key": "key of the object",
    "events": "events in the object",
    "bytes": "size of the object",
    "hook": "hook of the provider that was called",
    "attempt": "attempts so far, including this one",
    "wait_seconds": "seconds until the next attempt",
    "store": "the bucket",
    "request_id": "id of a request to `serve`, as in its response",
    "method": "method of the request",
    "path": "path of the request, `other` for an unknown one",
    "status": "status of the response",
    "seconds": "seconds until the response",
    "exception": "traceback of an unexpected error",
}
"""Every field, in order. The first four are always present; the others if the line has them."""

_ALWAYS: Final = ("time", "level", "logger", "message")
_ADDED: Final = tuple(name for name in FIELDS if name not in (*_ALWAYS, "exception"))
_TEXT: Final = "%(asctime)s %(levelname)s %(message)s"


class BestEffortLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose handlers, filters and formatters may fail: a failing diagnostic never stops the work."""

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        """Pass everything on unchanged: a LoggerAdapter would replace `extra`."""
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, or else print the failure to standard error, if `logging` prints its own errors there."""
        try:
            super().log(level, msg, *args, **{**kwargs, "stacklevel": kwargs.get("stacklevel", 1) + 1})
        except Exception:  # noqa: BLE001 - from an application's code, whatever it raises
            if logging.raiseExceptions:
                with suppress(Exception):
                    traceback.print_exc()


def logger_of(module: str) -> BestEffortLogger:
    """A module's logger."""
    return BestEffortLogger(logging.getLogger(module), None)


def plural(count: int, noun: str) -> str:
    """A count with its noun: `1 event`, `2,000 events`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('ch') else 's'}"


def printable(text: str) -> str:
    """Make text of any origin printable as one line of a terminal or a log.

    Escapes everything that ends a line, moves a cursor, changes the direction of text, or is invisible: all that `str.isprintable`
    excludes, except for spaces of other widths. So external text cannot forge a line, or hide one.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or category(one) == "Zs" else ascii(one)[1:-1] for one in text)


class TextFormatter(logging.Formatter):
    """Format records as text. Each line of a traceback is indented, so that it cannot pass for a record."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, and its traceback."""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        code = getattr(record, "code", "")
        lines = [printable(self.formatMessage(record)) + (f" [{code}]" if code else "")]
        exception = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        for more in (exception, record.stack_info):
            lines += [f"    {printable(line)}" for line in (more or "").split("\n") if line]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """Format records of any logger; in addition to the message, those fields of `extra=` that are in `FIELDS`."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        exception = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        added = {name: getattr(record, name, None) for name in _ADDED}
        return json_line(record.created, record.levelname, record.name, record.getMessage(), {**added, "exception": exception})


def json_line(at: float, level: str, logger: str, message: str, added: Mapping[str, object]) -> str:
    """Format one line, without its newline. `at` is in seconds since 1970; None and empty values in `added` are left out."""
    line: dict[str, object] = {"time": _time(at), "level": level, "logger": logger, "message": message}
    line |= {name: value for name, value in added.items() if value is not None and value != ""}
    # In ASCII: a file's name may not be UTF-8, which readers of JSON need not accept.
    line = {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in line.items()
    }
    return json.dumps(line, default=str)


def is_json(environment: Mapping[str, str]) -> bool:
    """Whether JOBS_BACKUP_LOG_FORMAT selects JSON. An invalid value is reported when settings are read."""
    return environment.get("JOBS_BACKUP_LOG_FORMAT", "").strip() == "json"


def configure(*, as_json: bool) -> None:
    """Make this process log to standard error, unless an application or a test has set up logging itself.

    Loggers without a level of their own show only critical messages.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.CRITICAL)
    formatter = JsonFormatter() if as_json else TextFormatter()
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:  # not subclasses
            handler.setFormatter(formatter)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
