"""Half an emoji, as JavaScript's `slice` makes it, is valid JSON: it passes unchanged everywhere, and hides no other error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from buckets import events, file_environment
from commands import run
from hypothesis import example, given
from hypothesis import strategies as st
from serving import serve

from jobs_backup import Backup, Event
from jobs_backup.errors import InvalidEvent
from jobs_backup.format import surrogates
from jobs_backup.format.lines import raw_line

AT = b'"2026-11-24T10:00:00.000000Z"'
PAYLOADS = [
    rb'{"t":"\ud83d"}',
    rb'{"t":"cut \ud83d","n":1.10}',
    rb'{"t":"\uDE00 low first"}',
    rb'{"t":"\ud83d\u0041"}',
    rb'{"t":"\ud83d\ud83d\ude00"}',
    rb'{"t":"\ud83d\n"}',
    rb'{"\ud83d":1}',
    rb'{"t":["\udbff",{"\udc00":"\uE83D \ue83d"}]}',
    rb'{"t":"\\ud83d \\\ud83d \\\\ud83d"}',
    rb'{"messageId":"m\ud83d","userId":"\uE83d\uDC00","x":{"messageId":"other"}}',
    rb'{"x":"m\uE83d","messageId":"m\ud83d"}',
    rb'{"userId":{"a":"\ud83d"}}',
]
FALSE = [
    rb'{"t":"\ud83d"',
    rb'{"t":"\ud83d}',
    rb'{"t":"\ud8"}',
    rb'{"t":"\ud83d",}',
    rb'["\ud83d"]',
    rb'{"t":"\ud83d\x"}',
    b'{"t":"\xed\xa0\xbd"}',
]


def checked(payload: bytes, line: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line)
    assert b'"payload":' + payload + b"," in line, "not a byte changes"
    for name in ("messageId", "userId"):
        own = found["payload"].get(name, "")
        assert found[name] == (own if isinstance(own, str) else json.dumps(own, separators=(",", ":")))
    return found


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_line_has_the_bytes_as_they_were(payload: bytes) -> None:
    for one in (payload, payload.decode(), bytearray(payload)):
        checked(payload, raw_line(one, AT))


@pytest.mark.parametrize("payload", FALSE)
def test_what_is_not_json_stays_refused_for_what_is_wrong_with_it(payload: bytes) -> None:
    with pytest.raises(InvalidEvent) as caught:
        raw_line(payload, AT)
    if b"\\ud83d" in payload:
        # The same fault next to a whole emoji.
        whole = payload.replace(b"\\ud83d", b"\\u263a")
        with pytest.raises(InvalidEvent) as wanted:
            raw_line(whole, AT)
        assert str(caught.value) == str(wanted.value)


texts = st.text(st.sampled_from('\\"/u dDeEfF83c0\ud83d\ude00\udbff\ue83d\uf83d\U0001f600é\n'), max_size=12)


@given(st.dictionaries(texts, texts | st.lists(texts, max_size=3), max_size=4), texts, st.booleans())
@example({"x": "\\ud83d"}, "\\\ud83d", True)
def test_any_text_comes_back(payload: dict[str, Any], message_id: str, upper: bool) -> None:
    """As a dict, and as JSON with escapes in either case."""
    event = {**payload, "messageId": message_id}
    text = json.dumps(event)
    if upper:
        text = re.sub(r"(?<!\\)((?:\\\\)*\\u)([0-9a-f]{4})", lambda found: found[1] + found[2].upper(), text)
    for one in (event, text, text.encode()):
        found = json.loads(raw_line(one, AT))
        assert (found["payload"], found["messageId"]) == (json.loads(text), json.loads(text)["messageId"])
    assert text.encode() in raw_line(text, AT)


def test_text_with_half_a_character_in_it_is_escaped() -> None:
    assert b'"payload":{"t":"\\ud83d"},' in raw_line('{"t":"\ud83d"}', AT)
    with pytest.raises(InvalidEvent, match="backslash"):
        raw_line('{"t":"\\\ud83d"}', AT)
    assert json.loads(raw_line({"t": "\ud83d", "n": float("nan")}, AT))["payload"] == {"t": "\ud83d", "n": None}
    assert json.loads(raw_line({}, AT, user_id="\ud83d", message_id="\udc00"))["userId"] == "\ud83d"


def test_a_copy_is_made_only_where_it_is_needed() -> None:
    for text in (b"{}", rb'{"a":"\ud83d\ude00"}', rb'{"a":"\\ud83d"}', rb'{"a":"\uE000"}'):
        assert surrogates.stand_in(text) is None
    for text in PAYLOADS:
        copy = surrogates.stand_in(text)
        assert copy is not None
        assert len(copy) == len(text)
        msgspec.json.decode(copy)


def test_library_and_replay(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    with Backup.from_env(env) as backup:
        backup.record(PAYLOADS[0], source_id="web")
        backup.record({"t": "\ud83d"}, source_id="web")
        backup.record_many(PAYLOADS[:6], source_id="web")
        backup.record_many([Event(payload=one, source_id="web", user_id="\ud83d") for one in PAYLOADS[6:]])
        job = backup.record({}, source_id="web")
        backup.failed(job, error={"message": "cut \ud83d", "more": "\ud83d"}, payload=PAYLOADS[0], stage="\ud83d", user_id="\ud83d")
        backup.failed(job, error=ValueError("cut \ud83d"), payload="cut \ud83d")
        backup.flush(30)
    wanted = [PAYLOADS[0], PAYLOADS[0], *PAYLOADS, b"{}"]
    for options in ([], ["--since", "1h"], ["--list"]):
        code, out, err = run("replay", "--payload-only", *options, env=env)
        assert (code, sorted(out.encode().splitlines())) == (0, sorted(wanted)), err
    code, out, err = run("replay", "--kind", "failed", "--list", "--source-id", "web", env=env)
    first, second = map(json.loads, out.splitlines())
    assert (code, first["payload"], first["error"]["details"], first["error"]["stage"]) == (
        0,
        {"t": "\ud83d"},
        {"more": "\ud83d"},
        "\ud83d",
    )
    assert (first["error"]["message"], first["userId"]) == ("cut \ud83d", "\ud83d")
    assert (second["payload"], second["error"]["message"]) == ("cut \ud83d", "cut \ud83d")


def test_commands(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    code, out, err = run("run", "--source-id", "web", "--emit-ids", env=env, stdin="".join(f"{one.decode()}\n" for one in PAYLOADS))
    assert (code, out.count("\n"), "ejected" in err) == (0, len(PAYLOADS), False)
    failures = [
        rb'{"sourceId":"web","error":{"message":"cut \ud83d","code":5},"payload":{"x" :"\udc00\uE83d"},"userId":"\ud83d"}',
        rb'{"sourceId":"web","error":"\ud83d","payload":"\ud83d","failedAt":"2026-11-24T10:00:00Z"}',
    ]
    code, _, err = run("failed", env=env, stdin="".join(f"{one.decode()}\n" for one in failures))
    assert (code, "ejected" in err) == (0, False)
    found = [one for one in events(tmp_path) if "error" in one]
    assert [one["error"]["message"] for one in found] == ["cut \ud83d", "\ud83d"]
    assert [one["payload"] for one in found] == [{"x": "\udc00\ue83d"}, "\ud83d"]
    code, _, err = run("delivered", env=env, stdin='"\\ud83d"\n')
    assert (code, "is not a job id" in err) == (3, True)
    code, _, err = run("failed", env=env, stdin='{"sourceId":"web","error":"\\ud83d","payload":1,"wrong":1}\n')
    assert (code, "unknown field `wrong`" in err) == (3, True)


def batch(*members: bytes) -> bytes:
    return b'{"batch" : [' + b" , ".join(members) + b'],"sentAt":"\\ud83d"}'


def test_requests(tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_SERVER_WRITE_KEYS="0123456789abcdef0123456789abcdee=web")
    key = {"write_key": "0123456789abcdef0123456789abcdee"}
    good = [b'{"n":%d}' % number for number in range(22)]
    good[20] = PAYLOADS[7]
    with serve(env) as sidecar:
        assert len(sidecar.post("/v1/batch", batch(*good), **key).json["jobs"]) == 22
        assert sidecar.post("/v1/track", PAYLOADS[0], **key).status == 200
        assert len(sidecar.post("/v1/events?source_id=web", b"[" + b",".join(good) + b"]").json["jobs"]) == 22
        assert sidecar.post("/v1/events?source_id=web", b"\n".join(good), Content_Type="application/x-ndjson").status == 200
        assert sidecar.post("/v1/failures", rb'[{"sourceId":"web","error":"\ud83d","payload":{"x":"\udc00"}}]').status == 200
        error = sidecar.post("/v1/failures", b'{"sourceId":"web","payload":1,"error":"\\ud83d%b"}' % (b"x" * (256 << 10)))
        assert (error.status, error.code) == (413, "TooLarge")
        sidecar.end()
    found = events(tmp_path)
    assert sum(one["payload"] == json.loads(PAYLOADS[7]) for one in found) == 3
    assert len(found) == 22 * 3 + 2


@pytest.mark.parametrize("surrogate", [b"", rb"\ud83d"])
def test_a_batch_says_which_of_its_events_are_wrong(tmp_path: Path, surrogate: bytes) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_SERVER_WRITE_KEYS="0123456789abcdef0123456789abcdee=web")
    key = {"write_key": "0123456789abcdef0123456789abcdee"}
    good = [b'{"n":"%b"}' % surrogate] * 22
    several, one, broken = list(good), list(good), list(good)
    several[3], several[20], one[20], broken[19] = b"5", b"[]", b"null", b'{"a":tru}'
    with serve(env) as sidecar:
        for body, index, indexes in (
            (batch(*several), 3, [3, 20]),
            (batch(*one), 20, None),
            (batch(*broken), 19, None),
            (batch(), None, None),
            (b'{"batch":5}', None, None),
            (b'{"x":nope,"batch":[]}', None, None),
        ):
            answer = sidecar.post("/v1/batch", body, **key)
            if body == batch():
                assert answer.status == 200
                continue
            error = answer.json["error"]
            assert (answer.status, error["code"], error.get("index"), error.get("indexes")) == (400, "InvalidEvent", index, indexes)
        for type_, join in (("application/x-ndjson", b"\n".join(several)), ("application/json", b"[" + b",".join(several) + b"]")):
            error = sidecar.post("/v1/events?source_id=web", join, Content_Type=type_).json["error"]
            assert (error["index"], error["indexes"]) == (3, [3, 20])
            assert "2 of them are invalid: 3: " in error["message"]
        error = sidecar.post("/v1/delivered", ["1", "x", 3]).json["error"]
        assert (error["code"], error["indexes"]) == ("InvalidEvent", [1, 2])
        error = sidecar.post("/v1/failures", [{"sourceId": "web", "error": "no"}, {"jobId": "5", "error": "", "payload": 1}]).json[
            "error"
        ]
        assert (error["code"], error["indexes"]) == ("InvalidEvent", [0, 1])
        sidecar.end()
    assert events(tmp_path) == []
