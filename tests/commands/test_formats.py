"""The content of an input decides its format, not its name; anything but NDJSON is named, and never counts as a success."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from buckets import file_environment
from commands import invoke, numbers, run, start

from jobs_backup.inputs.intake import may_go_on

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LINES = b"".join(b'{"n":%d}\n' % number for number in range(100))

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda data: data,
    "gzip": gzip.compress,
    "gzip in members": lambda data: gzip.compress(data[:400]) + gzip.compress(data[400:]),
    "zstd": zstd.compress,
    "zstd in frames": lambda data: zstd.compress(data[:400]) + zstd.compress(data[400:]),
    "zstd after a skippable frame": lambda data: b"\x53\x2a\x4d\x18\x04\0\0\0skip" + zstd.compress(data),
}


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class Call:
    """Run the command in this process, which is faster than a separate one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], env: dict[str, str]) -> None:
        self.env = env
        self._capsys = capsys
        for name, value in env.items():
            monkeypatch.setenv(name, value)

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        source = ["--source-id", "web"] if arguments[0] == "run" else []
        return invoke(self._capsys, *arguments, *source)

    def summary(self, *arguments: str | Path) -> dict[str, Any]:
        _, stdout, _ = self(*arguments, "--json")
        found: dict[str, Any] = json.loads(stdout)
        return found


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(monkeypatch, capsys, file_environment(tmp_path, JOBS_BACKUP_SPOOL_DURABILITY="process"))


@pytest.mark.parametrize("name", ["in", "in.GZ", "in.gz", "in.zst", "in.ndjson"])
@pytest.mark.parametrize("packed", PACKED)
def test_packed_or_not_whatever_the_name(call: Call, tmp_path: Path, packed: str, name: str) -> None:
    file = put(tmp_path / name, PACKED[packed](LINES))
    assert call.summary("run", file)["events"] == 100
    assert call.summary("run", file)["events"] == 0
    assert numbers(tmp_path) == list(range(100))


@pytest.mark.parametrize("packed", PACKED)
def test_a_stream_may_be_packed_as_well(call: Call, tmp_path: Path, packed: str) -> None:
    """Its beginning arrives byte by byte, the rest in pieces."""
    data = PACKED[packed](LINES)
    with subprocess.Popen(
        [str(Path(sys.executable).with_name("jobs-backup")), "run", "--source-id", "web"], env=call.env, stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        for piece in [*(data[at : at + 1] for at in range(8)), data[8:300], data[300:]]:
            process.stdin.write(piece)
            process.stdin.flush()
            time.sleep(0.01)
        process.stdin.close()
        assert process.wait(120) == 0
    assert numbers(tmp_path) == list(range(100))


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
def test_what_is_cut_is_named_and_all_before_is_recorded(call: Call, tmp_path: Path, packed: str) -> None:
    file = put(tmp_path / "in", PACKED[packed](LINES) + PACKED[packed](LINES)[:-3])
    code, stdout, _ = call("run", file, "--json")
    assert code == 1
    assert "Compressed file ended before the end-of-stream marker" in json.loads(stdout)["problems"][0]
    assert set(numbers(tmp_path)) == set(range(100))


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
def test_text_behind_what_is_packed_is_named(call: Call, tmp_path: Path, packed: str) -> None:
    file = put(tmp_path / "in", PACKED[packed](LINES) + b'{"n":100}\n')
    code, stdout, _ = call("run", file, "--json")
    assert code == 1
    assert "Not a" in json.loads(stdout)["problems"][0]
    assert numbers(tmp_path) == list(range(100))


def tar(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("in")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def in_zip(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("in", data)
    return file.getvalue()


EVENTS = [json.loads(line) for line in LINES.splitlines()]
FOREIGN: dict[str, tuple[bytes, str]] = {
    "UTF-16": (LINES.decode().encode("utf-16"), "UTF-16"),
    "UTF-16-LE": (LINES.decode().encode("utf-16-le"), "UTF-16"),
    "UTF-16-BE": (LINES.decode().encode("utf-16-be"), "UTF-16"),
    "UTF-16-BE with a mark": (b"\xfe\xff" + LINES.decode().encode("utf-16-be"), "UTF-16"),
    "UTF-32": (LINES.decode().encode("utf-32"), "UTF-32"),
    "UTF-32-BE": (LINES.decode().encode("utf-32-be"), "UTF-32"),
    "an array": (json.dumps(EVENTS).encode(), "JSON array"),
    "an array over lines": (json.dumps(EVENTS, indent=1).encode(), "JSON array"),
    "an array, as some databases write it": (b"[\r\n" + LINES.replace(b"\n", b",\r\n") + b"]", "JSON array"),
    "an array behind a mark": (b"\xef\xbb\xbf\n [ {}]", "JSON array"),
    "objects over lines": (b"".join(json.dumps(one, indent=2).encode() + b"\n" for one in EVENTS), "over several lines"),
    "CSV": (b"messageId,event,time\r\nm1,click,1\r\nm2,click,2\r\n", "CSV"),
    "CSV with semicolons": (b"messageId;event\nm1;click\nm2;click\n", "CSV"),
    "TSV": (b"messageId\tevent\nm1\tclick\nm2\tclick\n", "CSV"),
    "HTML": (b"\n<!DOCTYPE html><html><body>502 Bad Gateway</body></html>", "HTML"),
    "bzip2": (bz2.compress(LINES), "bzip2"),
    "xz": (lzma.compress(LINES), "xz"),
    "ZIP": (in_zip(LINES), "ZIP"),
    "tar": (tar(LINES), "tar"),
    "Parquet": (b"PAR1" + bytes(100) + b"PAR1", "Parquet"),
    "zlib": (zlib.compress(LINES), "zlib"),
    "zlib, as fast as can be": (zlib.compress(LINES, 1), "zlib"),
    "Snappy": (b"\xff\x06\x00\x00sNaPpY" + bytes(100), "Snappy"),
    "CR": (LINES.replace(b"\n", b"\r"), "CR only"),
    "a text sequence": (b"".join(b"\x1e" + line + b"\n" for line in LINES.splitlines()), "RFC 7464"),
}
TWICE = {"gzip in gzip": gzip.compress(gzip.compress(LINES)), "gzip behind a mark": b"\xef\xbb\xbf" + gzip.compress(LINES)}


@pytest.mark.parametrize("kind", TWICE)
def test_what_stands_around_packed_bytes_is_named(call: Call, tmp_path: Path, kind: str) -> None:
    code, stdout, _ = call("run", put(tmp_path / "in", TWICE[kind]), "--json")
    found = json.loads(stdout)
    assert (code, found["events"], found["rejected"]) == (1, 0, 0)
    assert "twice" in found["problems"][0] or "byte order mark" in found["problems"][0]


def test_a_hint_for_standard_input_is_no_command_on_a_file(tmp_path: Path) -> None:
    content = FOREIGN["an array"][0].decode()
    code, _, stderr = run("run", "--source-id", "web", env=file_environment(tmp_path), stdin=content)
    assert (code, "standard input is a JSON array" in stderr, '"standard input"' in stderr) == (1, True, False), stderr


@pytest.mark.parametrize("packed", ["text", "gzip"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ndjson_is_named(call: Call, tmp_path: Path, kind: str, packed: str) -> None:
    """Nothing of it is recorded or rejected, the other inputs are read, and the exit code is not 0."""
    content, name = FOREIGN[kind]
    file = put(tmp_path / "in.ndjson", PACKED[packed](content))
    other = put(tmp_path / "other", LINES)
    code, stdout, _ = call("run", file, other, "--json")
    found = json.loads(stdout)
    assert (code, found["complete"], found["events"], found["rejected"]) == (1, False, 100, 0)
    (problem,) = found["problems"]
    assert problem.startswith(f"{file} ")
    assert name in problem
    assert "convert it" in problem


@pytest.mark.parametrize("kind", ["UTF-16", "an array", "an array over lines", "objects over lines", "CSV"])
@pytest.mark.parametrize("command", ["run", "failed", "delivered"])
def test_of_streams_and_by_other_commands_too(call: Call, tmp_path: Path, kind: str, command: str) -> None:
    with (tmp_path / "in").open("wb+") as stdin:
        stdin.write(FOREIGN[kind][0])
        stdin.seek(0)
        with start(command, *(["--source-id", "web"] if command == "run" else []), env=call.env, stdin=stdin) as process:
            _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert FOREIGN[kind][1] in stderr


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + LINES,
        b"\xef\xbb\xbf" + LINES + b"\xef\xbb\xbf" + b'{"n":100}\n',  # two concatenated files
        LINES.replace(b"\n", b"\r\n"),
        b"\n \r\n" + LINES,
        b"\0" * 5000 + LINES,  # left by a program that does not notice that its file was truncated
        LINES[:80] + b"\0" * 5000 + LINES[80:],
        LINES[:-1],
    ],
    ids=["mark", "two marks", "crlf", "blank", "hole", "hole within", "no newline"],
)
def test_what_editors_and_systems_leave_is_skipped(call: Call, tmp_path: Path, content: bytes) -> None:
    file = put(tmp_path / "in", content)
    found = call.summary("run", file)
    assert (found["rejected"], found["unfinished"]) == (0, [])
    assert set(numbers(tmp_path)) - {100} == set(range(100))
    assert call.summary("run", file)["events"] == 0


def test_a_mark_alone_is_an_empty_file(call: Call, tmp_path: Path) -> None:
    found = call.summary("run", put(tmp_path / "in", b"\xef\xbb\xbf"))
    assert (found["events"], found["rejected"]) == (0, 0)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"bad, line\nbad, too\n" + LINES, b"[2]\n" + LINES, b"[]\n" + LINES, b"\0\n" + LINES]
)
def test_lines_among_others_are_not_taken_for_a_format(call: Call, tmp_path: Path, content: bytes) -> None:
    code, stdout, _ = call("run", put(tmp_path / "in", content), "--json")
    found = json.loads(stdout)
    assert found["problems"] == []
    assert found["events"] == content.count(b"{")
    assert code == (3 if found["rejected"] else 0)
    assert found["rejected"] == sum(not line.startswith(b"{") for line in content.split()) - content.count(b"bad, ")


WHOLE = [
    rb'{"a":-1.5e+10,"b":[true,false,null],"c":"x\u00e9\ud83d\ude00\"\\","d":{"e":{}}, "f" : ""}',
    '{"ü":"日本"}'.encode(), b' \t{"a":{"b":[{}]}}', b'\0\0{"a":1}', b'\xef\xbb\xbf{"a":1}',
]  # fmt: skip


@pytest.mark.parametrize("whole", WHOLE, ids=range(len(WHOLE)))
def test_every_beginning_of_an_event_may_go_on(whole: bytes) -> None:
    assert [whole[:end] for end in range(len(whole)) if not may_go_on(whole[:end], b"{")] == []
    assert not may_go_on(whole, b"{")


NO_BEGINNING = [
    b'{"a":1}\r{"a":2}\r', b"{} {}", b"{}{}", b'{"a":1}}', b"garbage", b"null", b"tru", b"[1", b'[{"a":1}]', b"'{", b'{"a":01',
    b"{'a",
    b'{"a" 1', b'{"a":1,}', b'{"a":"\\x', b"\x0b{}", b"1", b'"a', b"x\x9c\x01", b"\xef\xbb\xbf\x1f\x8b",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_BEGINNING, ids=range(len(NO_BEGINNING)))
@pytest.mark.parametrize("command", ["run", "failed"])
@pytest.mark.sample(20)
def test_an_end_that_can_become_nothing_is_rejected(call: Call, tmp_path: Path, command: str, text: bytes) -> None:
    """Not left for the next run, which would repeat forever. Each run reports it."""
    for _ in range(2):
        code, stdout, stderr = call(command, put(tmp_path / "in", text), "--json")
        found = json.loads(stdout)
        assert found["unfinished"] == [], stderr
        assert (code, found["rejected"]) == ((1, 0) if found["problems"] else (3, 1)), stderr


@pytest.mark.parametrize("text", [b'["1","2"]', b'{"jobs":["1"]}', b"1\r2\r3", b"abc", b'"1"}', b"nul"], ids=range(6))
def test_an_end_that_can_become_no_id_is_rejected(call: Call, tmp_path: Path, text: bytes) -> None:
    code, stdout, stderr = call("delivered", put(tmp_path / "in", text), "--json")
    assert json.loads(stdout)["unfinished"] == [], stderr
    assert code in (1, 3), stderr


@pytest.mark.parametrize("text", [b"12", b'"12', b'"', b"1 "], ids=range(4))
def test_an_id_that_may_go_on_is_left(call: Call, tmp_path: Path, text: bytes) -> None:
    code, stdout, stderr = call("delivered", put(tmp_path / "in", text), "--json")
    assert (len(json.loads(stdout)["unfinished"]), code) == (1, 0), stderr


@pytest.mark.parametrize("blank", [b" ", b"\t", b"  \t"])
@pytest.mark.parametrize("line", [b'{"a":1,"b":2}', b'{"a":"x;y"}', b'{"a":"\\t\\t"}'])
def test_lines_that_begin_with_blanks_are_events(call: Call, tmp_path: Path, blank: bytes, line: bytes) -> None:
    code, stdout, stderr = call("run", put(tmp_path / "in", 3 * (blank + line + b"\n")), "--json")
    assert (code, json.loads(stdout)["events"]) == (0, 3), stderr


@pytest.mark.parametrize(
    "first",
    [b'[{"bad":1}]', b"[{}]", b"[1]", b"a" * 257 + b"ustar", b"# a,b", b"a,b", b"id;name", b'"text"', b"<none>", b"BZ", b"PAR"],
    ids=lambda line: line[:12].decode(),
)
def test_a_first_line_that_is_no_event_keeps_no_other_from_being_one(call: Call, tmp_path: Path, first: bytes) -> None:
    code, stdout, stderr = call("run", put(tmp_path / "in", first + b"\n" + LINES), "--json")
    found = json.loads(stdout)
    assert (code, found["events"], found["rejected"]) == (3, 100, 1), stderr


# Rejected and unfinished lines


def test_rejected_lines_have_an_exit_code_of_their_own(call: Call, tmp_path: Path) -> None:
    file = put(tmp_path / "in", LINES + b"bad\n")
    code, stdout, stderr = call("run", file, "--json")
    found = json.loads(stdout)
    assert (code, found["complete"], found["rejected"], found["events"]) == (3, True, 1, 100)
    assert "[Rejected]" in stderr
    code, stdout, _ = call("run", file, "--again", "--allow-rejects", "--json")
    assert (code, json.loads(stdout)["rejected"]) == (0, 1)
    code, stdout, _ = call("run", file, "--json")
    found = json.loads(stdout)
    assert (code, found["rejected"], found["rejected_before"]) == (3, 0, 2), "as long as their file is there; --again has added one"


def test_what_is_not_in_the_bucket_counts_more_than_what_was_rejected(call: Call, tmp_path: Path) -> None:
    (tmp_path / "bucket").rename(tmp_path / "away")
    code, _, _ = call("run", put(tmp_path / "in", LINES + b"bad\n"), "--allow-rejects")
    assert code == 1


@pytest.mark.parametrize(("command", "line"), [("failed", b"{}\n"), ("delivered", b"bad\n")])
def test_the_other_commands_have_it_too(call: Call, tmp_path: Path, command: str, line: bytes) -> None:
    file = put(tmp_path / "in", line)
    assert call(command, file)[0] == 3
    assert call(command, put(tmp_path / "other", b"[1]\n"), "--allow-rejects")[0] == 0


@pytest.mark.parametrize("packed", ["text", "gzip", "zstd"])
def test_an_unfinished_line_is_in_the_bucket_the_rejects_or_the_report(call: Call, tmp_path: Path, packed: str) -> None:
    """It is left where it may still grow; in a compressed file, it cannot."""
    file = put(tmp_path / "in", PACKED[packed](LINES + b'{"n":'))
    for number in range(2):
        code, stdout, _ = call("run", file, "--json")
        found = json.loads(stdout)
        if packed == "text":
            assert (code, found["unfinished"]) == (0, [{"input": str(file), "line": 101, "bytes": 5}])
        else:
            assert (code, found["rejected"], found["unfinished"]) == (3, 1 - number, [])
    if packed == "text":
        moved = put(tmp_path / "in.gz", gzip.compress(file.read_bytes()))
        file.unlink()
        found = call.summary("run", moved)
        assert (found["events"], found["rejected"]) == (0, 1)
    (rejects,) = (tmp_path / "spool/rejects").iterdir()
    assert rejects.read_bytes() == b'{"n":\n'
    assert numbers(tmp_path) == list(range(100))


def test_a_number_that_may_go_on_acknowledges_nothing(call: Call, tmp_path: Path) -> None:
    """An unfinished id may be a prefix of another job's id."""
    _, stdout, _ = run("run", put(tmp_path / "in", LINES), "--source-id", "web", "--emit-ids", env=call.env)
    ids = stdout.replace('"', "").encode()
    found = call.summary("delivered", put(tmp_path / "ids", ids[:-1]))
    assert (found["ids"], [one["line"] for one in found["unfinished"]]) == (99, [100])
    found = call.summary("delivered", put(tmp_path / "ids", ids))
    assert (found["ids"], found["unfinished"], found["deleted"]) == (100, [], 1)


def test_a_quoted_id_at_the_end_is_whole(call: Call, tmp_path: Path) -> None:
    _, stdout, _ = run("run", put(tmp_path / "in", LINES), "--source-id", "web", "--emit-ids", env=call.env)
    found = call.summary("delivered", put(tmp_path / "ids", stdout.encode()[:-1]))
    assert (found["ids"], found["deleted"]) == (100, 1)


def test_lines_of_zeros_are_rejected_as_they_are(call: Call, tmp_path: Path) -> None:
    assert call.summary("run", put(tmp_path / "in", LINES + b"\0\0\0\n"))["rejected"] == 1
    (rejects,) = (tmp_path / "spool/rejects").iterdir()
    assert rejects.read_bytes() == b"\0\0\0\n"
