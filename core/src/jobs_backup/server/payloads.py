"""What is in a body: the parts of a JSON or NDJSON document, each as the bytes that were sent."""

from __future__ import annotations

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

_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Batch(msgspec.Struct):
    """RudderStack's `/v1/batch`; what stands beside the events (`sentAt`) tells of the request, not of them."""

    batch: list[msgspec.Raw]


class _Typed(msgspec.Struct):
    type: Any = msgspec.UNSET


_batch: Final = msgspec.json.Decoder(_Batch).decode
_typed: Final = msgspec.json.Decoder(_Typed).decode


def media_type(header: str) -> str:
    """JSON or NDJSON, by the header Content-Type. Raises Refused (415): it is another, or not UTF-8."""
    name, *parameters = (part.strip().lower() for part in header.split(";"))
    charset = next((one.partition("=")[2].strip('"') for one in parameters if one.startswith("charset=")), "utf-8")
    if name not in _TYPES or charset not in ("utf-8", "utf8", "us-ascii"):
        raise Refused(415, "UnsupportedType", f"the body is {header[:80]!a}", hint=f"send {JSON} or {NDJSON}, in UTF-8")
    return _TYPES[name]


def parts(body: bytes, type_: str) -> list[bytes]:
    """The members of an array, or the only object; of NDJSON, its lines but those that are empty. Raises InvalidEvent."""
    if type_ == NDJSON:
        return [line for line in body.split(b"\n") if line.strip(_SPACE)]
    if body.lstrip(_SPACE)[:1] == b"[":
        return [bytes(one) for one in _decoded(_array, body)]
    return [body]


def batch(body: bytes) -> list[bytes]:
    """The events of RudderStack's `/v1/batch`. Raises InvalidEvent."""
    return [bytes(one) for one in _decoded(_batch, body).batch]


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
