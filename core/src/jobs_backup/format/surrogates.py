"""JSON with half an emoji, as JavaScript's `slice` makes it: `"\\ud83d"` is valid by RFC 8259, but msgspec refuses it.

What msgspec refuses is parsed again from a copy of the same length, with other characters in place of lone surrogates. Whatever is
kept is cut out of the original, at its place in the copy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import msgspec

from jobs_backup.errors import InvalidEvent

T = TypeVar("T")
Text = bytes | bytearray

# An escape: of a pair, a lone surrogate, or a character that can replace one. A backslash of a preceding escape is not taken for
# its own.
_ESCAPE: Final = re.compile(
    rb"(?<!\\)(?:\\\\)*+\\u"
    rb"(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<lone>[dD])[89a-fA-F][0-9a-fA-F]{2}|(?P<other>[EF]))"
)
# First digits of an escape -> their replacements. Existing uses of a replacement change case, which is the same character, so
# nothing else equals a replacement.
_STANDS_IN: Final = {ord("d"): ord("E"), ord("D"): ord("F"), ord("E"): ord("e"), ord("F"): ord("f")}
_ESCAPED: Final = re.compile("(?<!\\\\)(?:\\\\\\\\)*+\\\\[\ud800-\udfff]")
_encode: Final = msgspec.json.Encoder().encode


def may_have(text: Text) -> bool:
    """Whether it contains escapes of surrogates, including pairs."""
    return b"\\ud" in text or b"\\uD" in text


def stand_in(text: bytes) -> bytearray | None:
    """The copy for msgspec to parse; None if there are no lone surrogates."""
    if not may_have(text):
        return None
    copy = bytearray(text)
    is_needed = False
    for found in _ESCAPE.finditer(text):
        if found.lastgroup is not None:
            at = found.start(found.lastgroup)
            copy[at] = _STANDS_IN[text[at]]
            is_needed |= found.lastgroup == "lone"
    return copy if is_needed else None


def decode(decoder: Callable[[Text], T], text: bytes) -> tuple[T, Text]:
    """Decode, and also return the text that was decoded: `text` itself, or the copy. Raises as the decoder does."""
    try:
        return decoder(text), text
    except msgspec.DecodeError:
        copy = stand_in(text)
        if copy is None:
            raise
    return decoder(copy), copy


def original(text: bytes, parsed: Text, value: Text | msgspec.Raw) -> bytes:
    """The original bytes of a value (`msgspec.Raw`) found in `parsed`, which `decode` returned."""
    value = bytes(value)
    if parsed is text:
        return value
    at = parsed.find(value)  # another match of the same bytes means the same
    return text[at : at + len(value)] if at >= 0 else value  # it may be a default


def originals(text: bytes, parsed: Text, values: Iterable[msgspec.Raw]) -> Iterator[bytes]:
    """The original bytes of an array's members, in order."""
    at = 0
    for value in map(bytes, values):
        if parsed is text:
            yield value
        else:
            at = parsed.find(value, at)
            yield text[at : at + len(value)]
            at += len(value)


def encode(value: object) -> bytes:
    """Encode a value as JSON, with lone surrogates, which UTF-8 cannot represent, as escapes. Raises as msgspec does."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        builtins = msgspec.to_builtins(value, str_keys=True)
    # Python's encoder writes NaN, which is not JSON; msgspec writes null.
    finite = json.loads(json.dumps(builtins), parse_constant=lambda _: None)
    return json.dumps(finite, separators=(",", ":")).encode()


def encode_json(text: str) -> bytes:
    """Encode JSON text as UTF-8, with lone surrogates as escapes.

    Raises:
        InvalidEvent: one of them follows a backslash, which is not JSON.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        if _ESCAPED.search(text):
            raise InvalidEvent("not a JSON object: a backslash before half a character") from None
        return text.encode("utf-8", "backslashreplace")  # which produces JSON's escapes
