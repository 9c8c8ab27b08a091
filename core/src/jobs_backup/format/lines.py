"""Lines: the form of an event and a failure in an object. A payload's bytes are passed through untouched."""

from __future__ import annotations

import codecs
import functools
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import msgspec

from jobs_backup.errors import InvalidEvent
from jobs_backup.format import surrogates

Payload = dict[str, Any] | bytes | bytearray | memoryview | str
FinalPayload = Payload | list[Any]
"""A payload as it was to be delivered, which often is no longer a JSON object."""

MAX_PAYLOAD: Final = 256 << 20
"""Maximum bytes of a payload. The database takes lines of up to 1 GB, and the ids in a payload are repeated in its line, escaped.
"""
MAX_DEPTH: Final = 500
"""Maximum levels of arrays and objects in a payload.

Parsers have limits (Python's is 1,000, including its callers), so whatever is accepted here can be read after a replay.
"""

_TOO_DEEP: Final = f"nested more than {MAX_DEPTH} levels deep"
_AS_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_EMPTY: Final = b'""'
_NULL: Final = b"null"
_QUOTE: Final = ord('"')
_SPACE: Final = b" \t\r\n"
_DECODED_AT_ONCE: Final = 1 << 20
_CAUSES: Final = 8
_utf8_decoder: Final = codecs.getincrementaldecoder("utf-8")
_encode: Final = surrogates.encode
_is_json: Final = msgspec.json.Decoder(msgspec.Raw).decode

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


class _Head(msgspec.Struct, gc=False, rename="camel"):
    """The fields a line takes from its payload, as raw JSON: they are only copied, so nothing is decoded."""

    message_id: msgspec.Raw = msgspec.Raw(b"null")
    user_id: msgspec.Raw = msgspec.Raw(b"null")


_read_head: Final = msgspec.json.Decoder(_Head).decode


def now() -> int:
    """The time now, in microseconds since 1970."""
    return time.time_ns() // 1000


def microseconds(at: datetime) -> int:
    """Convert a time to microseconds since 1970.

    Raises:
        InvalidEvent: it has no time zone, or is outside of the years 1 to 9999 in UTC, which have dates.
    """
    if at.utcoffset() is None:
        raise InvalidEvent(f"{at.isoformat()} has no time zone", hint="pass an aware datetime, for example datetime.now(UTC)")
    since = (at - _EPOCH) // _MICROSECOND
    if not _FIRST <= since <= _LAST:
        raise InvalidEvent(f"{at.isoformat()} is out of range in UTC")
    return since


def timestamp(at: int) -> bytes:
    """Format a time as RFC 3339 in UTC, in quotes; `at` in microseconds since 1970."""
    seconds, rest = divmod(at, 1_000_000)
    return b'"%b.%06dZ"' % (_second(seconds), rest)


@functools.lru_cache(maxsize=64)
def _second(seconds: int) -> bytes:
    date = time.gmtime(seconds)
    return f"{date.tm_year:04}{time.strftime('-%m-%dT%H:%M:%S', date)}".encode()


def raw_line(payload: Payload, created_at: bytes, user_id: str | None = None, message_id: str | None = None) -> bytes:
    """Make the line of an ingested event: userId, payload, createdAt, messageId, and a newline.

    userId and messageId default to the payload's. A JSON payload keeps every byte, with two exceptions: line breaks between tokens
    become spaces, as they would end the line; and surrounding white space is dropped.

    Args:
        created_at: from `timestamp`.

    Raises:
        InvalidEvent: the payload is not one JSON object in UTF-8, or is too large; or a given id is not text.
    """
    json = _to_json(payload)
    if len(json) > MAX_PAYLOAD:
        raise InvalidEvent(f"longer than {MAX_PAYLOAD >> 20} MiB")
    try:
        try:
            head = _read_head(json)  # a dict's, too: it may contain msgspec.Raw, which is written unchecked
            user, message = bytes(head.user_id), bytes(head.message_id)
        except msgspec.DecodeError:
            user, message = _ids_of(json)
    except msgspec.DecodeError as error:
        raise InvalidEvent(f"not a JSON object: {error}") from error
    except RecursionError as error:
        raise InvalidEvent(_TOO_DEEP) from error
    if _is_deep(json):
        raise InvalidEvent(_TOO_DEEP)
    if b"\n" in json or b"\r" in json:
        # In valid JSON these occur only between tokens: inside a string they would have been rejected.
        json = json.replace(b"\n", b" ").replace(b"\r", b" ")
    if user_id is not None:
        user = _given("user_id", user_id)
    elif user[0] != _QUOTE:
        user = _string(user)
    if message_id is not None:
        message = _given("message_id", message_id)
    elif message[0] != _QUOTE:
        message = _string(message)
    # Faster than formatting.
    return b"".join((b'{"userId":', user, b',"payload":', json, b',"createdAt":', created_at, b',"messageId":', message, b"}\n"))


class FailureContext(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a failure record in addition to payload and error; times are from `timestamp`, or `null`."""

    workspace_id: str
    source_id: str
    destination_id: str
    job: int | None
    attempts: int | None
    created_at: bytes
    failed_at: bytes


def failed_line(
    payload: FinalPayload, error: bytes, context: FailureContext, user_id: str | None = None, message_id: str | None = None
) -> bytes:
    """Make the line of a delivery failure, with all that is known of it, and a newline.

    JSON text of any kind is kept (see `raw_line`); other text becomes a JSON string, so that no payload is rejected because of its
    format.

    Args:
        error: from `error_json`.

    Raises:
        InvalidEvent: the payload cannot be written as JSON, or is too large; or a given id is not text.
    """
    json = _final_json(payload)
    if len(json) > MAX_PAYLOAD:
        raise InvalidEvent(f"longer than {MAX_PAYLOAD >> 20} MiB")
    user, message = _ids_of(json) if json[:1] == b"{" else (_NULL, _NULL)
    return (
        b'{"userId":%b,"payload":%b,"createdAt":%b,"messageId":%b,"workspaceId":%b,"sourceId":%b,"destinationId":%b,"jobId":%b,'
        b'"error":%b,"attempts":%b,"failedAt":%b}\n'
    ) % (
        _string(user) if user_id is None else _given("user_id", user_id),
        json.replace(b"\n", b" ").replace(b"\r", b" "),
        context.created_at,
        _string(message) if message_id is None else _given("message_id", message_id),
        _given("workspace_id", context.workspace_id),
        _given("source_id", context.source_id),
        _given("destination_id", context.destination_id),
        b"null" if context.job is None else b'"%d"' % context.job,
        error,
        b"null" if context.attempts is None else _whole("attempts", context.attempts),
        context.failed_at,
    )


def _ids_of(json: bytes) -> tuple[bytes, bytes]:
    """Parse userId and messageId, as JSON. Raises msgspec.DecodeError."""
    head, parsed = surrogates.decode(_read_head, json)
    return surrogates.original(json, parsed, head.user_id), surrogates.original(json, parsed, head.message_id)


def error_json(error: object, code: str | int = "", stage: str = "") -> bytes:
    """Describe why a delivery failed: message, code and stage, and any `details`.

    Args:
        error: an exception (its text and those of its causes; its class is the code), a text, or a structure that JSON can
            represent: `message`, `code` and `stage` are taken from it, the rest is `details`.
        code, stage: override those of `error`.
    """
    details: object = None
    described: dict[str, str]
    if isinstance(error, BaseException):
        described = {"message": _with_causes(error), "code": type(error).__name__}
    elif isinstance(error, str):
        described = {"message": error}
    else:
        details = _builtins(error)
        described = {}
        if isinstance(details, dict):
            fields = cast(dict[str, object], details)
            described = {
                name: str(fields[name]) for name in ("message", "code", "stage") if isinstance(fields.get(name), (str, int))
            }
            details = {name: value for name, value in fields.items() if name not in described} or None
    described |= {name: str(given) for name, given in (("code", code), ("stage", stage)) if given}
    shown: dict[str, object] = {name: described.get(name, "") for name in ("message", "code", "stage")}
    return _encode(shown if details is None else {**shown, "details": details})


def _given(name: str, text: str) -> bytes:
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidEvent(f"{name} must be a str, not {type(text).__name__}")
    return _encode(text)


def _whole(name: str, number: int) -> bytes:
    if not isinstance(number, int):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidEvent(f"{name} must be a whole number, not {type(number).__name__}")
    return b"%d" % number


def _to_json(payload: Payload) -> bytes:
    if type(payload) is bytes and payload.isascii():  # the common case, faster
        return payload.strip(_SPACE)
    if isinstance(payload, dict):
        try:
            return _encode(payload)
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise InvalidEvent(f"the payload cannot be written as JSON: {error}") from error
    try:
        if isinstance(payload, (bytes, bytearray, memoryview)):
            json = bytes(payload)
        elif isinstance(payload, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            json = surrogates.encode_json(payload)
        else:
            raise InvalidEvent(f"a payload must be a dict, or JSON as bytes or str, not {type(payload).__name__}")
        if not json.isascii():
            _check_utf8(json)  # the parser does not check what it skips
    except UnicodeError as error:
        raise InvalidEvent(f"not UTF-8: {error}") from None  # that error holds the whole text
    return json.strip(_SPACE)


def _final_json(payload: FinalPayload) -> bytes:
    if isinstance(payload, list):
        return _to_json({"payload": payload})[len(b'{"payload":') : -1]
    if not isinstance(payload, (bytes, bytearray, memoryview, str)):
        return _to_json(payload)
    try:
        json = _to_json(payload)
        surrogates.decode(_is_json, json)
        if _is_deep(json):
            raise InvalidEvent(_TOO_DEEP)
    except (InvalidEvent, msgspec.DecodeError, RecursionError):
        text = payload if isinstance(payload, str) else bytes(payload).decode("utf-8", "backslashreplace")
        return _encode(text)
    return json


def _with_causes(error: BaseException) -> str:
    """An error's text, and those of its causes."""
    texts: list[str] = []
    one: BaseException | None = error
    while one is not None and len(texts) < _CAUSES:
        texts.append(_text(one) or type(one).__name__)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return ": caused by: ".join(texts)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a class of the caller's: whatever is wrong with it, the failure is kept
        return ""


def _builtins(structure: object) -> object:
    """Convert to what JSON can represent, or else to a repr: the failure is kept in any case."""
    try:
        shown: object = msgspec.to_builtins(structure, enc_hook=repr, str_keys=True)
        if not _is_deep(_encode(shown)):
            return shown
    except (TypeError, ValueError, RecursionError, OverflowError):
        pass  # fall back to repr
    try:
        return repr(structure)
    except RecursionError:
        return f"{type(structure).__name__}, {_TOO_DEEP}"


def _is_deep(json: bytes) -> bool:
    """Whether valid JSON is nested more than MAX_DEPTH levels deep."""
    if len(json) <= 2 * MAX_DEPTH or json.count(b"[") + json.count(b"{") <= MAX_DEPTH:
        return False
    outside = json.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]  # of strings
    brackets = b"".join(outside).translate(_AS_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):  # each round removes the innermost level
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def _check_utf8(json: bytes) -> None:
    """Check UTF-8, in pieces, because the text of a large payload may take four times its memory. Raises UnicodeError."""
    if len(json) <= _DECODED_AT_ONCE:
        json.decode()
        return
    decoder = _utf8_decoder()
    for start in range(0, len(json), _DECODED_AT_ONCE):
        decoder.decode(json[start : start + _DECODED_AT_ONCE])
    decoder.decode(b"", final=True)


def _string(token: bytes) -> bytes:
    """A JSON token as a JSON string, which is what RudderStack's tools read there."""
    if token[0] == _QUOTE:
        return token
    return _EMPTY if token == _NULL else _encode(token.decode())
