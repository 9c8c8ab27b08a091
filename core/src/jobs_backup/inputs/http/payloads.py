"""Split a body: the parts of a JSON or NDJSON document, each as the bytes sent."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from jobs_backup.errors import InvalidEvent, UnknownJob
from jobs_backup.format import lines as encoding
from jobs_backup.format import surrogates
from jobs_backup.format.surrogates import Text
from jobs_backup.inputs.http.memory import MEMBER_BYTES, Share
from jobs_backup.inputs.http.responses import MAX_INDEXES, NOWHERE, Faulty, HttpError
from jobs_backup.model import Stream
from jobs_backup.spool.interface import Recording

T = TypeVar("T")
Raws = list[msgspec.Raw]

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
_TYPES: Final = {JSON: JSON, NDJSON: NDJSON, "application/ndjson": NDJSON, "application/jsonl": NDJSON}
_SPACE: Final = b" \t\r\n"
_LINE: Final = re.compile(rb"[^ \t\r\n][^\n]*")
_ARRAY: Final = re.compile(rb"[ \t\r\n]*+\[")
_CHARGED_AT_ONCE: Final = 1 << 20
_counted: Final = threading.local()

_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Member(msgspec.Struct, frozen=True):
    """An object that is counted and dropped: all are equal, so a set keeps only one."""

    def __post_init__(self) -> None:
        _counted.members += 1
        if _counted.members > _counted.most:
            raise _too_many(_counted.most)


class _BatchOfMembers(msgspec.Struct):
    batch: frozenset[_Member]


class _Batch(msgspec.Struct):
    """RudderStack's `/v1/batch`. Fields next to the events (`sentAt`) describe the request."""

    batch: list[msgspec.Raw]


class _Typed(msgspec.Struct):
    type: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_count_array: Final = msgspec.json.Decoder(frozenset[_Member]).decode
_count_batch: Final = msgspec.json.Decoder(_BatchOfMembers).decode
_batch: Final = msgspec.json.Decoder(_Batch).decode
_typed: Final = msgspec.json.Decoder(_Typed).decode


def media_type(header: str) -> str:
    """JSON or NDJSON, by the header Content-Type. Raises Refused (415): another type, or not UTF-8."""
    name = header.partition(";")[0].strip().lower()
    if name not in _TYPES:
        raise HttpError(415, "UnsupportedType", f"the body's type is {header[:80]!a}", hint=f"send {JSON} or {NDJSON}, in UTF-8")
    check_charset(header)
    return _TYPES[name]


def check_charset(header: str) -> None:
    """Raises Refused (415): the header Content-Type declares a charset other than UTF-8."""
    parameters = (part.strip().lower() for part in header.split(";")[1:])
    charset = next((one.partition("=")[2].strip('"') for one in parameters if one.startswith("charset=")), "utf-8")
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise HttpError(415, "UnsupportedType", f"the body's type is {header[:80]!a}", hint="send UTF-8")


def parts(body: bytes, type_: str, most: int, share: Share) -> Iterator[bytes]:
    """The members of an array of objects, or the only object; for NDJSON, its non-empty lines.

    Raises:
        InvalidEvent: it is neither.
        Refused: 413: there are more than `most`, which are counted before they are parsed; 503: too much is in memory.
    """
    if type_ == NDJSON:
        yield from _lines(body, most, share)
    elif _ARRAY.match(body):
        _check_count(_count_array, body, most, share)
        yield from _members(_array, _count_array, body, lambda found: found)
    else:
        yield body


def ids(body: bytes, type_: str, most: int, share: Share) -> Iterator[bytes]:
    """The job ids of an array, or of the lines of NDJSON, as JSON. Raises as `parts`."""
    if type_ == NDJSON:
        yield from _lines(body, most, share)
    else:
        if (members := body.count(b",") + 1) > most:  # an id contains no commas
            raise _too_many(most)
        _charge(share, body, members)
        yield from map(bytes, _decoded(_array, body)[0])


def batch(body: bytes, most: int, share: Share) -> Iterator[bytes]:
    """The events of RudderStack's `/v1/batch`. Raises as `parts`."""
    _check_count(_count_batch, body, most, share)
    yield from _members(_batch, _count_batch, body, lambda found: found.batch)


def _lines(body: bytes, most: int, share: Share) -> Iterator[bytes]:
    _charge(share, body, min(body.count(b"\n") + 1, most))
    for index, line in enumerate(_LINE.finditer(body)):
        if index == most:
            raise _too_many(most)
        yield line[0]


def _check_count(count: Callable[[Text], Any], body: bytes, most: int, share: Share) -> None:
    """Raises Refused, or InvalidEvent, whose `index` is the position of the member that is not an object."""
    members = body.count(b",") + 1
    if members > most:  # unless the commas are within members
        members = _count(count, body, most)
    _charge(share, body, members)


def _count(count: Callable[[Text], Any], body: bytes, most: float) -> int:
    """Count the members that are objects. Raises Refused, or InvalidEvent with the index of one that is not."""

    def anew(text: Text) -> Any:
        _counted.members, _counted.most = 0, most
        return count(text)

    try:
        _decoded(anew, body)
    except InvalidEvent as error:
        if _counted.members or count is _count_array:  # otherwise the error may be before the events
            error.index = _counted.members
        raise
    return int(_counted.members)


def _members(decode: Callable[[Text], T], count: Callable[[Text], Any], body: bytes, of: Callable[[T], Raws]) -> Iterator[bytes]:
    try:
        found, parsed = _decoded(decode, body)
    except InvalidEvent:
        _count(count, body, math.inf)
        raise
    return surrogates.originals(body, parsed, of(found))


def _charge(share: Share, body: bytes, members: int) -> None:
    copies = 3 if surrogates.may_have(body) else 2
    share.need(copies * len(body) + members * MEMBER_BYTES)


def _too_many(most: int) -> HttpError:
    hint = "send fewer at once; the limit is the server's JOBS_BACKUP_SERVER_MAX_EVENTS"
    return HttpError(413, "TooLarge", f"the request has more than {most:,} events", hint=hint)


def typed(event: bytes, type_: str) -> bytes:
    """Add its type to an event without one: a call of `/v1/track` need not repeat it. Raises InvalidEvent."""
    event = event.strip(_SPACE)
    if _decoded(_typed, event)[0].type is not msgspec.UNSET:
        return event
    rest = event[1:].lstrip(_SPACE)
    return b'{"type":"%b"%b%b' % (type_.encode(), b"" if rest[:1] == b"}" else b",", rest)


def recording(stream: Stream, payloads: Iterable[bytes], share: Share) -> Recording:
    """Turn payloads into a recording of lines.

    Raises:
        Faulty: some of them are invalid.
        Refused: 503: too much is in memory.
    """
    at = encoding.now()
    text = encoding.timestamp(at)
    lines: list[bytes] = []
    size = charged = 0
    for payload, line in each(payloads, lambda payload: encoding.raw_line(payload, text)):
        lines.append(line)
        size += len(payload) + len(line) + MEMBER_BYTES
        if size >= charged:
            share.need(size)
            charged = size + _CHARGED_AT_ONCE
    share.need(size)
    return Recording(stream, lines, first_at=at, last_at=at)


def each(parts: Iterable[bytes], read: Callable[[bytes], T]) -> Iterator[tuple[bytes, T]]:
    """Yield each part with its result of `read`, up to the first invalid part; later ones are only checked.

    Raises:
        Faulty: at the end, if any were invalid.
    """
    faults, count = list[tuple[int, InvalidEvent | UnknownJob]](), 0
    for index, part in enumerate(parts):
        try:
            made = read(part)
        except (InvalidEvent, UnknownJob) as error:
            count += 1
            if count <= MAX_INDEXES:
                faults.append((index, error))
            continue
        if not faults:
            yield part, made
    if faults:
        raise Faulty(faults, count)


def _decoded(decode: Callable[[Text], T], body: bytes) -> tuple[T, Text]:
    """Decode a body, see `surrogates.decode`. Raises InvalidEvent."""
    try:
        return surrogates.decode(decode, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidEvent(f"the body is invalid: {error}", hint="see /openapi.json", index=NOWHERE) from None
    except RecursionError:
        raise InvalidEvent("the body is invalid: nested too deeply", index=NOWHERE) from None
