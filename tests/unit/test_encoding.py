"""Lines: payloads pass unchanged, and anything that is not an event is rejected."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs_backup import InvalidEvent
from jobs_backup.format.lines import raw_line, timestamp
from jobs_backup.testing.events import events

AT = timestamp(1_772_600_767_000_089)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(st.text(), values, max_size=6)


def test_a_timestamp_is_rfc_3339_in_utc() -> None:
    assert AT == b'"2026-03-04T05:06:07.000089Z"'
    assert timestamp(0) == b'"1970-01-01T00:00:00.000000Z"'


def test_the_fields_are_exactly_those_of_rudderstack() -> None:
    line = raw_line(b'{"messageId":"m","userId":"u"}', AT)
    assert list(json.loads(line)) == ["userId", "payload", "createdAt", "messageId"]
    assert line.endswith(b"}\n")


@given(objects, st.booleans(), st.sampled_from([None, 1]))
def test_json_text_comes_through_byte_for_byte(value: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    try:
        payload = text.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate has no UTF-8
    line = raw_line(payload, AT)
    assert line.count(b"\n") == 1
    assert b'"payload":' + payload.replace(b"\n", b" ") + b',"createdAt"' in line
    assert json.loads(line)["payload"] == value
    assert raw_line(text, AT) == line


@given(objects)
def test_a_dict_comes_through(value: dict[str, Any]) -> None:
    assert json.loads(raw_line(value, AT))["payload"] == value


def test_numbers_are_not_rendered_anew() -> None:
    payload = b'{"big":12345678901234567890,"price":1.10,"exp":1E400,"sum":0.30000000000000004,"neg":-0.0}'
    assert payload in raw_line(payload, AT)


def test_line_breaks_between_tokens_become_spaces() -> None:
    assert b'"payload":{  "a": "x\\ny" },' in raw_line(b'\r\n{\r\n"a":\n"x\\ny"\n}\n', AT)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (b'"u"', "u"),
        (b'"\\u00e9\\n"', "é\n"),
        (b"null", ""),
        (b"123", "123"),
        (b"1.10", "1.10"),
        (b"true", "true"),
        (b'{"a":1}', '{"a":1}'),
    ],
)
def test_ids_in_the_payload_become_strings(token: bytes, expected: str) -> None:
    line = json.loads(raw_line(b'{"userId":' + token + b',"messageId":' + token + b"}", AT))
    assert (line["userId"], line["messageId"]) == (expected, expected)


def test_missing_ids_are_empty() -> None:
    line = json.loads(raw_line(b"{}", AT))
    assert (line["userId"], line["messageId"]) == ("", "")


def test_of_a_key_that_stands_twice_the_last_counts_and_both_are_kept() -> None:
    line = raw_line(b'{"messageId":"1","messageId":"2"}', AT)
    assert b'{"messageId":"1","messageId":"2"}' in line
    assert line.endswith(b'"messageId":"2"}\n')


@pytest.mark.parametrize(
    "payload",
    [
        b"", b" ", b"null", b"1", b'"a"', b"[]", b"{", b"}", b'{"a"}', b'{"a":1,}', b"{'a':1}", b'{"a":01}', b'{"a":1.}',
        b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1}{"b":2}', b'{"a":1} x', b'{"a":"\x01"}', b'{"a":"x\ny"}', b'{"a":"\\x"}',
        b'{"a":"\xff"}', b'{"\xc0\xaf":1}', b'\xef\xbb\xbf{"a":1}', b'{"a":1}\x00', b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "{\ud800}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(payload: bytes | str) -> None:
    with pytest.raises(InvalidEvent):
        raw_line(payload, AT)


@pytest.mark.parametrize("payload", [None, 3, 1.5, True, ["a"], [123, 125], (123, 125), {123, 125}])
def test_what_is_neither_a_dict_nor_json_text_is_refused(payload: Any) -> None:
    """`bytes(3)` is three NULs, `bytes([123, 125])` is an object."""
    with pytest.raises(InvalidEvent, match="a payload must be a dict, or JSON as bytes or str, not "):
        raw_line(payload, AT)


@pytest.mark.parametrize("type_", [bytes, bytearray, memoryview])
def test_json_text_may_be_any_kind_of_bytes(type_: Any) -> None:
    assert b'"payload":{"a":1},' in raw_line(type_(b'{"a":1}'), AT)


@pytest.mark.parametrize("before", range(3))
def test_text_that_is_checked_in_pieces_comes_through(before: int) -> None:
    """Pieces may end within a character. An input that ends within one is rejected."""
    text = b'{"a":"' + b"x" * before + "€".encode() * 700_000
    assert text in raw_line(text + b'"}', AT)
    with pytest.raises(InvalidEvent, match="not UTF-8"):
        raw_line(text[:-1], AT)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_stored_as_one_line(payload: bytes) -> None:
    try:
        line = raw_line(payload, AT)
    except InvalidEvent:
        return
    assert line.count(b"\n") == 1
    assert isinstance(json.loads(line)["payload"], dict)


def test_a_huge_payload_comes_through() -> None:
    payload = b'{"text":"' + b"x" * 20_000_000 + b'"}'
    assert payload in raw_line(payload, AT)


def test_realistic_events_come_through() -> None:
    for payload in events(500, seed=3):
        assert b'"payload":' + payload + b',"createdAt":' in raw_line(payload, AT)


@pytest.mark.parametrize("raw", [b"", b"nope", b'1}\n{"y":2', b'"a\nb"'])
@pytest.mark.parametrize("name", ["x", "userId"])
def test_raw_json_in_a_dict_is_checked(name: str, raw: bytes) -> None:
    with pytest.raises(InvalidEvent, match="not a JSON object"):
        raw_line({name: msgspec.Raw(raw)}, AT)
