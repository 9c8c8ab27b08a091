"""What is in a body: the parts of a JSON or NDJSON document, each as the bytes that were sent."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from jobs_backup import encoding
from jobs_backup.errors import InvalidEvent
from jobs_backup.model import Stream
from jobs_backup.server.answers import Refused
from jobs_backup.spool.writer import Recording

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
_TYPES: Final = {JSON: JSON, NDJSON: NDJSON, "application/ndjson": NDJSON, "application/jsonl": NDJSON}
_SPACE: Final = b" \t\r\n"
_SURPLUS: Final = 64
"""Commas (or lines) for each event that is allowed; a body with more is counted before it is taken apart."""
_TOKENS: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]', re.DOTALL)

_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Batch(msgspec.Struct):
    """RudderStack's `/v1/batch`; what stands beside the events (`sentAt`) tells of the request, not of them."""

    batch: list[msgspec.Raw]


class _Typed(msgspec.Struct):
    type: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_batch: Final = msgspec.json.Decoder(_Batch).decode
_typed: Final = msgspec.json.Decoder(_Typed).decode


def media_type(header: str) -> str:
    """JSON or NDJSON, by the header Content-Type. Raises Refused (415): it is another, or not UTF-8."""
    name, *parameters = (part.strip().lower() for part in header.split(";"))
    charset = next((one.partition("=")[2].strip('"') for one in parameters if one.startswith("charset=")), "utf-8")
    if name not in _TYPES or charset not in ("utf-8", "utf8", "us-ascii"):
        raise Refused(415, "UnsupportedType", f"the body is {header[:80]!a}", hint=f"send {JSON} or {NDJSON}, in UTF-8")
    return _TYPES[name]


def parts(body: bytes, type_: str, most: int) -> list[bytes]:
    """The members of an array, or the only object; of NDJSON, its lines but those that are empty.

    Raises:
        InvalidEvent: it is neither.
        Refused: 413: there are so many more than `most` that taking them apart would take a multiple of the body's memory.
    """
    if type_ == NDJSON:
        if body.count(b"\n") > _SURPLUS * most:
            raise _too_many(most)
        return [line for line in body.split(b"\n") if line.strip(_SPACE)]
    if body.lstrip(_SPACE)[:1] == b"[":
        _check_members(body, most, depth=1)
        return [bytes(one) for one in _decoded(_array, body)]
    return [body]


def batch(body: bytes, most: int) -> list[bytes]:
    """The events of RudderStack's `/v1/batch`. Raises as `parts`."""
    _check_members(body, most, depth=2)
    return [bytes(one) for one in _decoded(_batch, body).batch]


def _check_members(body: bytes, most: int, *, depth: int) -> None:
    """Count the members of an array so many brackets deep, in a body whose commas make it look as if there were far too many."""
    if body.count(b",") <= _SURPLUS * most:
        return
    members, level = 1, 0
    for token in _TOKENS.finditer(body):
        if token[0] in (b"[", b"{"):
            level += 1
        elif token[0] in (b"]", b"}"):
            level -= 1
        elif token[0] == b"," and level == depth:
            members += 1
            if members > most:
                raise _too_many(most)


def _too_many(most: int) -> Refused:
    hint = "send fewer at once; the server's JOBS_BACKUP_SERVER_MAX_EVENTS"
    return Refused(413, "TooLarge", f"a request may have {most:,} events, and this one has more", hint=hint)


def typed(event: bytes, type_: str) -> bytes:
    """An event with its type, where it has none: a call of `/v1/track` need not repeat it. Raises InvalidEvent."""
    event = event.strip(_SPACE)
    if _decoded(_typed, event).type is not msgspec.UNSET:
        return event
    rest = event[1:].lstrip(_SPACE)
    return b'{"type":"%b"%b%b' % (type_.encode(), b"" if rest[:1] == b"}" else b",", rest)


def recording(stream: Stream, payloads: list[bytes]) -> Recording:
    """The payloads as lines. Raises InvalidEvent, whose `index` is the place of the one that is wrong."""
    at = encoding.now()
    text = encoding.timestamp(at)
    lines: list[bytes] = []
    for index, payload in enumerate(payloads):
        try:
            lines.append(encoding.raw_line(payload, text))
        except InvalidEvent as error:
            error.index = index
            raise
    return Recording(stream, lines, first_at=at, last_at=at)


def _decoded(decode: Any, body: bytes) -> Any:
    try:
        return decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent(f"the body can't be used: {error}", hint="see /openapi.json") from None
    except RecursionError:
        raise InvalidEvent("the body can't be used: nested too deeply") from None
