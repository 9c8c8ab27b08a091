"""Arbitrary input: every event arrives once and unchanged, everything else is a clear error, and nothing harms another event.

`HYPOTHESIS_PROFILE=campaign pytest tests/unit/test_fuzz.py` tries some thousand examples of each instead of some dozen.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import os
import random
import re
import tempfile
import traceback
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any, Final
from unittest import mock
from uuid import UUID

import pytest
from buckets import events, file_environment, lines, objects
from click.testing import CliRunner, Result
from commands import COMMAND
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from memory import peak_memory
from profiles import CAMPAIGN

from jobs_backup import Backup, ConfigurationError, InvalidEvent
from jobs_backup.checksum import crc32c
from jobs_backup.cli import cli
from jobs_backup.format import lines as encoding
from jobs_backup.format.keys import MAX_KEY_BYTES, clean_prefix, object_key
from jobs_backup.inputs.intake import may_go_on
from jobs_backup.model import BytesBody, Kind, Stream
from jobs_backup.settings import Settings
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.env_file import read_env_file
from jobs_backup.store.file_provider import FileProvider
from jobs_backup.store.plugins import settings_of
from jobs_backup.store.providers import load_class

pytestmark = [
    pytest.mark.timeout(300 if not CAMPAIGN else 6 * 3600),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # a failing example must be shown in full
]


def examples(count: int) -> settings:
    """Run this many examples, or in a campaign as many as the profile says."""
    return settings(
        max_examples=settings.default.max_examples if CAMPAIGN and settings.default else count,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """Reset the levels of our loggers, which the command sets in this process."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("jobs_backup")]
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name in logging.root.manager.loggerDict:
        if name.startswith("jobs_backup"):
            logging.getLogger(name).setLevel(before.get(name, logging.NOTSET))


# Lines

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
dicts = st.dictionaries(st.text(max_size=9) | st.sampled_from(["userId", "messageId", "payload"]), values, max_size=5)


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return b'{"a":' + opening * depth + b"1" + closing * depth + b"}"


@st.composite
def as_json(draw: st.DrawFn) -> bytes:
    """An object in the style of various encoders, with lone surrogates."""
    text = json.dumps(
        draw(dicts), ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (" ,\r", "\t: ")]))
    )
    return text.encode("utf-8", "surrogatepass")


written: Final = st.sampled_from(
    [
        b"{}", b'{"a":1,"a":2}', b'{"userId":"u","userId":"v","messageId":"m"}', b'{"n":1E400,"m":-0.0,"k":1e-999}', b' {"a":1}\t',
        b'{"n":' + b"9" * 5000 + b"}", b'{"userId":' + b"7" * 3000 + b"}", b'{"a":"\\u0000\\ud83d\\ude00\x7f"}', b'{"":""}',
        b'{"a":"\\ud800"}', b'{"\\udc00":1}', b'{"userId":"\\udbff\\u0041"}', b'{"a":"\xed\xa0\x80"}', b'\xef\xbb\xbf{"a":1}',
        b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":01}', b'{"a":1.}', b'{"a":.5}', b'{"a":+1}', b'{"a":1e}', b"{'a':1}", b'{"a":1,}',
        b'{"a":1}{"b":2}', b'{"a":1} x', b'{"a":1}\0', b'{"a":"\0"}', b'{"a":"\t"}', b'{"a":"\\x41"}', b'{"a":"\xff"}', b"[1]",
        b"1", b'"a"', b"null", b"{", b"}", b'{"a":tru}', b"\0", b"\x0b", b"\x0c\x0b ", b" ", b"\t", b"\r", b"", b"\xa0",
        "\u2003".encode(), '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-32-be"), b'/*c*/{"a":1}', b'{"a":1}//c',
        b'{"userId":{"a":[1,"\\n"]}}',
        *(nested(depth, *kind) for depth in (10, 400, 20_000, 100_000) for kind in ((b"[", b"]"), (b'{"a":', b"}"))),
        b"[" * 100_000, b'{"a":' * 100_000,
    ]
)  # fmt: skip
"""Lines that JSON parsers disagree about, or that break them."""

garbage = st.binary(max_size=40).map(lambda data: data.replace(b"\n", b""))
line = as_json() | written | garbage


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """A whole input; the last line may lack its newline, and any byte may be changed."""
    some = draw(st.lists(line, max_size=12))
    content = b"".join(one + draw(st.sampled_from([b"\n", b"\n", b"\r\n"])) for one in some)
    if content and draw(st.booleans()):
        content = content[: draw(st.integers(0, len(content)))]
    if content and draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(content) - 1))
        content = content[:at] + draw(st.binary(min_size=1, max_size=1)) + content[at + 1 :]
    return content


def is_event(text: bytes) -> bool:
    """Whether it is one JSON object in UTF-8, according to Python's own reader."""
    try:
        value = json.loads(bare(text).decode(), parse_int=str, parse_float=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


@dataclass
class Expected:
    """The expected result and position of a run over an input; a model of the reader without blocks."""

    events: list[bytes] = field(default_factory=list)
    rejects: list[bytes] = field(default_factory=list)
    end: list[bytes] = field(default_factory=list)
    reached: int = 0
    continued: bool = False

    def read(self, content: bytes, *, is_gzip: bool = False, cut: bool = False) -> None:
        self.end = []
        *whole, last = content[self.reached :].split(b"\n")
        for one in whole:
            self._take(one)
            self.reached += len(one) + 1
            self.continued = False
        if cut or not last or last.isspace():
            return
        if not is_gzip and not self.continued and not is_event(last) and not may_go_on(last, b"{"):
            self.end = [last + b"\n"]  # rejected each time, until it is complete
        if is_gzip or (is_event(last) and not self.continued):
            self._take(last)
            self.reached += len(last)
            self.continued = True

    def _take(self, one: bytes) -> None:
        if is_event(one) and not self.continued:
            self.events.append(stored(one))
        elif one and not one.isspace() and not (one.startswith(b"\xef\xbb\xbf") and not bare(one).strip()):
            self.rejects.append(one + b"\n")


def bare(text: bytes) -> bytes:
    """A line without leading zeros and byte order mark."""
    return text.lstrip(b"\0").removeprefix(b"\xef\xbb\xbf")


def stored(payload: bytes) -> bytes:
    """A payload as written to its line: only line ends within it, and white space around it, change."""
    return bare(payload).strip(b" \t\r\n").replace(b"\r", b" ").replace(b"\n", b" ")


def payload_of(one: bytes) -> bytes:
    """The payload in a line, byte for byte. In a JSON string every quote has a backslash, so the ends are certain."""
    return one[one.index(b',"payload":') + len(b',"payload":') : one.rindex(b',"createdAt":"')]


RUN = ["run", "--append-only"]


def run_in_process(directory: Path, file: Path, *, code: int = 0) -> dict[str, Any]:
    """Run `jobs-backup run FILE --json`; return its summary. `code` is 0 even if lines were rejected.

    Inputs of the same few lines are ambiguous and need --append-only. Input that looks like UTF-16 or a JSON array is refused, and
    tested in tests/commands/test_formats.py.
    """
    environment = file_environment(directory, JOBS_BACKUP_SPOOL_DURABILITY="process")
    with mock.patch.dict(os.environ, environment):
        result: Result = CliRunner().invoke(cli, [*RUN, str(file), "--source-id", "web", "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    assume(not any("convert it" in problem for problem in found["problems"]))
    assert result.exit_code == (code or (3 if found["rejected"] or found["rejected_before"] else 0)), result.stdout + result.stderr
    return found


def check(directory: Path, expected: Expected) -> None:
    in_bucket = [payload_of(one) for key, content in sorted(objects(directory).items()) for one in _lines(content)]
    assert sorted(in_bucket) == sorted(expected.events)
    rejects = [path.read_bytes() for path in (directory / "spool" / "rejects").iterdir()]
    expected_rejects = b"".join([*expected.rejects, *expected.end])
    assert rejects == ([expected_rejects] if expected_rejects else [])


def _lines(content: bytes) -> list[bytes]:
    return gzip.decompress(content).removesuffix(b"\n").split(b"\n")


@given(inputs())
@example(b"\0\0\0{\0")  # a rejected line keeps its zero bytes
@examples(40)
def test_every_event_of_an_input_arrives_and_every_other_line_is_put_aside(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "in").write_bytes(content)
        expected = Expected()
        expected.read(content)
        found = run_in_process(directory, directory / "in")
        assert (found["events"], found["rejected"]) == (len(expected.events), len(expected.rejects + expected.end)), repr(content)[
            :300
        ]
        check(directory, expected)
        assert run_in_process(directory, directory / "in")["events"] == 0
        check(directory, expected)


@given(inputs(), st.lists(st.floats(0, 1), min_size=1, max_size=4))
@example(b'{"a":1}{"b":2}\n', [0.47])  # bytes after an event that ended its file are not an event
@examples(20)
def test_a_file_that_grows_by_arbitrary_bytes_is_read_once(content: bytes, cuts: list[float]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        expected = Expected()
        for size in [*sorted(int(cut * len(content)) for cut in cuts), len(content)]:
            (directory / "in").write_bytes(content[:size])
            expected.read(content[:size])
            run_in_process(directory, directory / "in")
        check(directory, expected)


@given(inputs(), st.none() | st.floats(0, 1), st.booleans())
@example(b"{}\n{}\n", 0.53, True)  # one byte of the second member
@examples(25)
def test_what_can_be_unpacked_of_a_gz_file_arrives(content: bytes, cut: float | None, members: bool) -> None:
    half = len(content) // 2
    packed = gzip.compress(content[:half]) + gzip.compress(content[half:]) if members else gzip.compress(content)
    whole = packed
    if cut is not None:
        packed = packed[: int(cut * len(packed))]
        assume(len(packed) != 1)  # too short to be known as gzip: a line that is rejected
    unpacked, is_cut = unpack(packed)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "in.gz").write_bytes(packed)
        expected = Expected()
        expected.read(unpacked, is_gzip=True, cut=is_cut)
        found = run_in_process(directory, directory / "in.gz", code=is_cut)
        assert bool(found["problems"]) is is_cut
        check(directory, expected)
        if is_cut:  # and then it is repaired
            (directory / "in.gz").write_bytes(whole)
            expected.read(content, is_gzip=True)
            run_in_process(directory, directory / "in.gz")
            check(directory, expected)


def unpack(packed: bytes) -> tuple[bytes, bool]:
    """The output of zlib, and whether the end is missing."""
    unpacked = b""
    while packed:
        member = zlib.decompressobj(wbits=31)
        unpacked += member.decompress(packed)
        if not member.eof:
            return unpacked, True
        packed = member.unused_data
    return unpacked, False


@given(st.binary(max_size=60), st.booleans(), st.data())
@examples(20)
def test_a_gz_file_of_arbitrary_bytes_is_a_problem_that_names_it(tail: bytes, begins_well: bool, data: st.DataObject) -> None:
    good = gzip.compress(b'{"n":1}\n' * 20)
    if begins_well:
        at = data.draw(st.integers(0, len(good) - 1))
        content = good[:at] + tail + good[at + 1 :]
    else:
        content = b"\x1f\x8b"[: data.draw(st.integers(0, 2))] + tail
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file = directory / "in.gz"
        file.write_bytes(content)
        environment = file_environment(directory, JOBS_BACKUP_SPOOL_DURABILITY="process")
        with mock.patch.dict(os.environ, environment):
            result = CliRunner().invoke(cli, ["run", str(file), "--source-id", "web"], catch_exceptions=False)
        assert result.exit_code in (0, 1, 3)
        # Without gzip's magic bytes it is text, whatever its name.
        assert (str(file) in result.stderr) is (result.exit_code in (1, 3)) or "unfinished" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_line_of_100_mb(tmp_path: Path) -> None:
    """It arrives unchanged, and so do its neighbors. Memory: a few copies of it."""
    file = tmp_path / "in"
    noise = random.Random(7).randbytes(1 << 20).hex().encode()
    large = b'{"n":2,"noise":"' + noise * 50 + b'"}'
    assert len(large) > 100_000_000
    file.write_bytes(b'{"n":1}\n' + large + b'\n{"n":3}\n')
    peak = peak_memory(
        [*COMMAND, "run", str(file), "--source-id", "web"], {"PATH": os.environ["PATH"], **file_environment(tmp_path)}
    )
    print(f"a line of 100 MB: {peak / 1024:.0f} MiB")
    assert sorted(payload_of(one) for one in lines(objects(tmp_path).values())) == sorted([b'{"n":1}', large, b'{"n":3}'])
    assert peak < 800 * 1024


# The public API

texts = st.text(max_size=30)


@dataclass
class Recorded:
    """The events recorded during one test, in order."""

    backup: Backup
    lines: list[bytes | dict[str, Any]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def mark(self) -> None:
        """An event that nothing may harm."""
        payload = b'{"mark":%d}' % next(self.numbers)
        self.backup.record(payload, source_id="web")
        self.lines.append(payload)


def test_recording_arbitrary_payloads_harms_no_other_event(tmp_path: Path) -> None:
    payloads: st.SearchStrategy[Any] = (
        dicts | as_json() | written | st.binary(max_size=60) | st.text(max_size=60) | written.map(lambda one: one.decode("latin-1"))
        | st.binary(max_size=9).map(bytearray) | st.none() | st.integers() | st.lists(values, max_size=2)
        | as_json().map(lambda data: memoryview(data))  # noqa: PLW0108 - mypy cannot infer the kind of memoryview
    )  # fmt: skip
    ids = st.none() | texts | st.sampled_from(["\ud800", "\0", "x" * 5000])
    environment = file_environment(tmp_path, JOBS_BACKUP_SPOOL_DURABILITY="process")
    with Backup.from_env(environment) as backup:
        recorded = Recorded(backup)

        @given(payloads, ids, ids, st.datetimes(timezones=st.timezones() | st.none()) | st.none())
        @examples(200)
        def record(payload: Any, user_id: str | None, message_id: str | None, created_at: Any) -> None:
            recorded.mark()
            try:
                backup.record(payload, source_id="web", user_id=user_id, message_id=message_id, created_at=created_at)
            except InvalidEvent as error:
                assert not error.retryable
                assert len(error.one_line()) < 1000
            else:
                if isinstance(payload, dict):
                    recorded.lines.append(payload)
                else:
                    recorded.lines.append(stored(payload.encode() if isinstance(payload, str) else bytes(payload)))
            recorded.mark()

        record()
    (content,) = objects(tmp_path).values()
    found = _lines(content)
    assert len(found) == len(recorded.lines) > 100
    for one, wanted in zip(found, recorded.lines, strict=True):
        # Python refuses ints of thousands of digits, and floats may change.
        event = json.loads(one, parse_int=lambda digits: int(digits) if len(digits) < 100 else float(digits))
        assert list(event) == ["userId", "payload", "createdAt", "messageId"]
        assert isinstance(event["userId"], str)
        assert isinstance(event["messageId"], str)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["createdAt"])
        assert (event["payload"] if isinstance(wanted, dict) else payload_of(one)) == wanted


def test_a_payload_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database would refuse it, and every event in the same commit."""
    monkeypatch.setattr(encoding, "MAX_PAYLOAD", 1 << 20)
    with Backup.from_env(file_environment(tmp_path)) as backup:
        backup.record(b'{"a":"' + b"x" * ((1 << 20) - 8) + b'"}', source_id="web")
        with pytest.raises(InvalidEvent, match="longer than 1 MiB"):
            backup.record(b'{"a":"' + b"x" * ((1 << 20) - 7) + b'"}', source_id="web")
    assert len(events(tmp_path)) == 1


def test_the_largest_line_fits_into_the_database() -> None:
    """In the worst case nearly all of a payload is an id, of characters that double in its string."""
    at = encoding.timestamp(0)
    payload = b'{"userId":[' + b'"",' * 300_000 + b'""]}'
    assert len(encoding.raw_line(payload, at)) / len(payload) * encoding.MAX_PAYLOAD < 999_000_000


@pytest.mark.parametrize("hour", [-14, 0, 14])
@pytest.mark.parametrize("at", [datetime.min, datetime.max, datetime.fromisoformat("0999-01-01")])  # noqa: DTZ901
def test_a_time_has_a_date_or_is_refused(at: datetime, hour: int) -> None:
    try:
        text = encoding.timestamp(encoding.microseconds(at.replace(tzinfo=timezone(timedelta(hours=hour)))))
    except InvalidEvent:
        assert (at.year, hour) in {(1, 14), (9999, -14)}
        return
    assert datetime.fromisoformat(text.decode().strip('"')) == at.replace(tzinfo=timezone(timedelta(hours=hour)))


# Keys

ids = st.one_of(
    st.text(min_size=1, max_size=40),
    st.text(alphabet="./%~\\ab\n\x00\x7f\u2028", min_size=1, max_size=12),
    st.text(alphabet="aé🪣\ud800", min_size=300, max_size=2000),
    st.sampled_from(
        [".", "..", "...", ".jobs-backup", "../..", "/", "/etc/passwd", "a/../../b", "🎉" * 2000, "x" * 2000, "CON", "~"]
    ),
)
prefixes = st.sampled_from(["", "backups", "/a/b/", "/".join(["p" * 250] * 2), "é" * 120])


@given(st.lists(st.tuples(ids, ids, ids, st.sampled_from(Kind)), min_size=1, max_size=4), prefixes)
@examples(80)
def test_any_id_makes_a_key_of_its_own_that_a_directory_takes(streams: list[tuple[str, str, str, Kind]], prefix: str) -> None:
    keys: dict[str, bytes] = {}
    for number, (source, workspace, instance, kind) in enumerate(streams):
        key = object_key(
            prefix=clean_prefix(prefix), instance_id=instance, stream=Stream(kind, workspace, source), first_at=10**15,
            last_at=10**15 + number, first_job=number << 21, last_job=(number << 21) + 7, uuid=str(UUID(int=number)),
            suffix=".json.zst",
        )  # fmt: skip
        assert len(key.encode()) <= MAX_KEY_BYTES
        assert not [part for part in key.split("/") if part in ("", ".", "..")]
        assert not [character for character in key if unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")]
        assert key not in keys
        keys[key] = f"{number}".encode()
    with tempfile.TemporaryDirectory() as name:
        bucket = Path(name) / "bucket"
        bucket.mkdir()
        provider = FileProvider.from_settings({"JOBS_BACKUP_BUCKET": str(bucket)})
        for key, data in keys.items():
            provider.write(key, BytesBody(data), crc32c(data), True)
        assert {key: data.decode() for key, data in objects(Path(name)).items()} == {
            key: data.decode() for key, data in keys.items()
        }
        assert [path.name for path in Path(name).iterdir()] == ["bucket"]
        assert provider.delete(list(keys)).deleted == set(keys)


@given(st.tuples(ids, ids), st.tuples(ids, ids), st.sampled_from(Kind))
@example(("x" * 2000 + "a", "w"), ("x" * 2000 + "b", "w"), Kind.RAW)
@example(("s", "x" * 2000 + "a"), ("s", "x" * 2000 + "b"), Kind.FAILED)
@examples(80)
def test_streams_that_differ_have_keys_that_differ(one: tuple[str, str], other: tuple[str, str], kind: Kind) -> None:
    """Even without the uuid, except for failures of two sources: their keys do not name the source."""

    def key(source: str, workspace: str) -> str:
        return object_key(
            prefix="",
            instance_id="1",
            stream=Stream(kind, workspace, source),
            first_at=0,
            last_at=0,
            first_job=1,
            last_job=1,
            uuid="u",
            suffix=".json.gz",
        )

    same = one == other if kind is Kind.RAW else one[1] == other[1]
    assert (key(*one) == key(*other)) is same


# Settings

odd_texts = st.one_of(
    st.text(max_size=30),
    st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape")),
    st.sampled_from(
        [
            "9" * 400, "9" * 5000, "1e400", "nan", "inf", "-1", "0", "٣", "²", "0x10", "1_000", "9" * 400 + "TB", "1" * 30 + "h",
            "\0", "a\nb", "a\r\nX-Evil: 1", "\udcff", "~", "~nobody-here", "~\0", "/", "..", "x" * 5000, "true", "TRUE ", "[", "{}",
            "http://", "http://[", "http://[::1", "//x", "http://a:b", "http://a:99999", "http://u:p@h", "https://h?q#f", "h:0",
            "\u2003",
            "aws:kms", "AES256", "crc32c", "auto", "fast", "S3", "file", "arn:aws:iam::1:role/r", "/dev/null/x", "\U0001f5d1",
        ]
    ),
)  # fmt: skip
GOOD: Final = {
    "CORE": {"JOBS_BACKUP_STORAGE_PROVIDER": "FILE"},
    "FILE": {"JOBS_BACKUP_BUCKET": "/bucket"},
    "S3": {"JOBS_BACKUP_BUCKET": "events", "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "secret"},
    "MINIO": {"JOBS_BACKUP_BUCKET": "events", "MINIO_ACCESS_KEY_ID": "minio", "MINIO_SECRET_ACCESS_KEY": "secret"},
    "DIGITAL_OCEAN_SPACES": {
        "JOBS_BACKUP_BUCKET": "events", "DO_SPACES_ENDPOINT": "nyc3.digitaloceanspaces.com",
        "DO_SPACES_ACCESS_KEY_ID": "spaces", "DO_SPACES_SECRET_ACCESS_KEY": "secret",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.filterwarnings("ignore:invalid escape")
def test_any_value_of_any_setting_is_taken_or_refused_in_words(name: str) -> None:
    class_: type[Settings] | None = CoreSettings if name == "CORE" else settings_of(load_class(name)[1])
    assert class_ is not None
    described = list(class_.describe())
    names = [variable for one in described for variable in (one.variable.name, *one.variable.aliases)]
    secrets = {one.variable.name for one in described if one.secret}

    @given(st.dictionaries(st.sampled_from(names), odd_texts, min_size=1, max_size=4))
    @examples(100)
    def read(variables: dict[str, str]) -> None:
        marked = {variable: f"canary{text}7f3a" if variable in secrets and text else text for variable, text in variables.items()}
        environment = {**GOOD[name], **marked}
        said = []
        try:
            if name == "CORE":
                core = CoreSettings.from_environment(environment)
                said += [repr(core), str(core.spool_place), clean_prefix(core.prefix)]
            else:
                provider: Any = load_class(name)[1].from_settings(environment)
                said += [repr(class_.from_environment(environment)), repr(provider), repr(vars(provider)), provider.location]
                if name != "FILE":
                    said.append(provider.policy(environment, True, True, "").text)
        except ConfigurationError as error:
            assert error.hint
            assert error.one_line().isprintable() or any(not text.isprintable() for text in variables.values())
            said += [error.one_line(), repr(error), *traceback.format_exception(error)]
        assert "canary" not in "".join(said)

    read()


@given(st.sampled_from(["5m", "1.5h", "64MiB", "2GB"]) | odd_texts)
@examples(100)
def test_a_duration_or_size_that_is_taken_can_be_used(text: str) -> None:
    """Limited by the system's timers and 64-bit numbers."""
    environment = {**GOOD["CORE"], "JOBS_BACKUP_RETRY_MAX_WAIT": text, "JOBS_BACKUP_PART_SIZE": text}
    for one, limit in (("JOBS_BACKUP_RETRY_MAX_WAIT", TIMEOUT_MAX), ("JOBS_BACKUP_PART_SIZE", 2**63 - 1)):
        try:
            core = CoreSettings.from_environment({**GOOD["CORE"], one: environment[one]})
        except ConfigurationError:
            continue
        assert 0 <= (core.retry_max_wait if "WAIT" in one else core.part_size) <= limit


env_bytes = st.lists(
    st.binary(max_size=12)
    | st.sampled_from([b"A=b", b"\n", b"\r\n", b"=", b" ", b"\0", b"\xff", b"\xef\xbb\xbf", b"# ", b"A", b"export "])
).map(b"".join)


@given(env_bytes)
@example(b"A=b\0")
@examples(200)
def test_an_env_file_of_any_bytes_has_variables_or_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.env"
    path.write_bytes(content)
    try:
        found = read_env_file(path, {"A": "outside"})
    except ConfigurationError as error:
        assert str(path) in error.message
        assert error.hint
        return
    with mock.patch.dict(os.environ, found):  # as the command does
        assert all(os.environ[name] == text for name, text in found.items())
