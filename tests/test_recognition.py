"""Files that were read before, and what became of them since: all that was written is in the bucket once, or is reported.

Each case writes lines, runs, lets something happen to the file, and runs again. The lines that were written are counted, and those in
the bucket: either both are the same and the exit code is 0, or nothing was recorded and the exit code is 1.
"""

from __future__ import annotations

import collections
import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from buckets import file_environment, objects

from jobs_backup.cli import cli

Lines = list[str]


class Outcome(NamedTuple):
    """How a run ended."""

    code: int
    found: dict[str, Any]
    stderr: str


class Case:
    """A directory with inputs, a spool and a bucket; and what was written."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.file = directory / "events.ndjson"
        self.written: collections.Counter[str] = collections.Counter()
        self._capsys = capsys
        for name, value in file_environment(directory).items():
            monkeypatch.setenv(name, value)

    def run(self, *files: Path, source: str = "web", command: str = "run", options: tuple[str, ...] = ()) -> Outcome:
        self._capsys.readouterr()
        named = ["--source-id", source] if command == "run" else []
        with pytest.raises(SystemExit) as ended:
            cli.main([command, *map(str, files or (self.file,)), *named, "--json", *options])
        out, err = self._capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, json.loads(out), err)

    def write(self, lines: Lines, *, events: int | None = None) -> str:
        """The text of lines, of which the last `events` are new ones."""
        for line in lines[len(lines) - (len(lines) if events is None else events) :]:
            self.written[line] += 1
        return "".join(f"{line}\n" for line in lines)

    @property
    def stored(self) -> collections.Counter[str]:
        lines = b"".join(gzip.decompress(data) for data in objects(self.directory).values()).splitlines()
        return collections.Counter(json.dumps(json.loads(line)["payload"], separators=(",", ":")) for line in lines)

    def age(self, path: Path) -> None:
        """Set its time back, so that what is written next gets another one."""
        os.utime(path, ns=(10**18, 10**18))


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(tmp_path, monkeypatch, capsys)


def named(first: int, count: int) -> Lines:
    return [f'{{"messageId":"m{number}","x":"{"a" * 40}"}}' for number in range(first, first + count)]


def numbered(first: int, count: int) -> Lines:
    return [f'{{"n":{number}}}' for number in range(first, first + count)]


def heartbeats(_first: int, count: int) -> Lines:
    return ['{"event":"heartbeat"}'] * count


def cycle(_first: int, count: int) -> Lines:
    return [f'{{"step":{number % 7}}}' for number in range(count)]


def banner(first: int, count: int) -> Lines:
    """A line that says that the program has started, and heartbeats: after each rotation with copytruncate the same again."""
    return ['{"event":"started"}' if number == 0 and first == 0 else '{"event":"heartbeat"}' for number in range(count)]


def mixed(first: int, count: int) -> Lines:
    return [line for number in range(first, first + count) for line in (f'{{"messageId":"m{number}"}}', '{"event":"heartbeat"}')]


Make = Callable[[int, int], Lines]
PROVING: list[Make] = [named, numbered, mixed]
"""Contents that prove what they are."""
REPEATING: list[Make] = [heartbeats, cycle, banner]


# What may happen to a file of 100 lines. Each gives the files to be read.


def nothing(case: Case, _: Make) -> list[Path]:
    return [case.file]


def appended(case: Case, make: Make) -> list[Path]:
    with case.file.open("a") as file:
        file.write(case.write(make(100, 30)))
    return [case.file]


def renamed(case: Case, _: Make) -> list[Path]:
    return [case.file.rename(case.directory / "events.ndjson.1")]


def renamed_and_appended(case: Case, make: Make) -> list[Path]:
    appended(case, make)
    return renamed(case, make)


def rotated(case: Case, make: Make) -> list[Path]:
    """By rename, and the program has begun another file."""
    old = renamed_and_appended(case, make)
    case.file.write_text(case.write(make(200, 50)))
    return [case.file, *old]


def packed_with_gzip(case: Case, _: Make) -> list[Path]:
    subprocess.run(["gzip", case.file], check=True)
    return [case.file.with_name("events.ndjson.gz")]


def packed_with_zstd(case: Case, _: Make) -> list[Path]:
    subprocess.run(["zstd", "-q", "--rm", case.file], check=True)
    return [case.file.with_name("events.ndjson.zst")]


def packed_later(case: Case, make: Make) -> list[Path]:
    """By a tool that does not keep the time; and it has grown before."""
    appended(case, make)
    packed = case.directory / "packed"
    packed.write_bytes(gzip.compress(case.file.read_bytes()))
    case.file.unlink()
    return [packed]


def rotated_and_packed(case: Case, make: Make) -> list[Path]:
    (old,) = renamed_and_appended(case, make)
    case.file.write_text(case.write(make(200, 50)))
    subprocess.run(["gzip", old], check=True)
    return [case.file, old.with_name(old.name + ".gz")]


def linked(case: Case, _: Make) -> list[Path]:
    other = case.directory / "hard"
    other.hardlink_to(case.file)
    (case.directory / "soft").symlink_to(case.file)
    return [other, case.directory / "soft", case.file]


def copied(case: Case, _: Make) -> list[Path]:
    shutil.copyfile(case.file, case.directory / "copy")
    return [case.directory / "copy", case.file]


def copied_with_its_time(case: Case, _: Make) -> list[Path]:
    shutil.copy2(case.file, case.directory / "copy")
    return [case.directory / "copy"]


def copytruncated(lines: int) -> Callable[[Case, Make], list[Path]]:
    def happen(case: Case, make: Make) -> list[Path]:
        copy = case.directory / "events.ndjson.1"
        shutil.copyfile(case.file, copy)
        with case.file.open("r+") as file:
            file.truncate(0)
            file.write(case.write(make(200 if make is not banner else 0, lines)))
        return [case.file, copy]

    happen.__name__ = f"copytruncated and filled with {lines}"
    return happen


def truncated(lines: int) -> Callable[[Case, Make], list[Path]]:
    def happen(case: Case, make: Make) -> list[Path]:
        return copytruncated(lines)(case, make)[:1]

    happen.__name__ = f"truncated and filled with {lines}"
    return happen


def replaced(case: Case, make: Make) -> list[Path]:
    new = case.directory / "new"
    new.write_text(case.write(make(500 if make is not banner else 0, 100)))
    new.replace(case.file)
    return [case.file]


def cut(case: Case, _: Make) -> list[Path]:
    os.truncate(case.file, case.file.stat().st_size // 2)
    return [case.file]


def cut_at_the_start(case: Case, _: Make) -> list[Path]:
    case.file.write_text("".join(case.file.read_text().splitlines(keepends=True)[60:]))
    return [case.file]


def changed(at: int, *, grown: int = 0, in_place: bool = False, name: str = "") -> Callable[[Case, Make], list[Path]]:
    def happen(case: Case, make: Make) -> list[Path]:
        lines = case.file.read_text().splitlines()
        lines[at] = lines[at][:-1] + ',"changed":true}'
        case.written[lines[at]] += 1
        text = case.write([*lines, *make(100, grown)], events=grown)
        path = case.directory / (name or case.file.name)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
            case.file.unlink()
            return [path]
        if not in_place:
            case.file.unlink()
        path.write_text(text)
        return [path]

    happen.__name__ = f"line {at} changed{' in place' * in_place}, {grown} added, {name or 'same name'}"
    return happen


CHANGES = [
    changed(at, grown=grown, in_place=in_place, name=name)
    for at in (0, 50, 99)
    for grown in (0, 30)
    for in_place, name in ((True, ""), (False, ""), (False, "other.gz"))
    if not (at == 0 and name)
]
KEPT = [
    nothing, appended, renamed, renamed_and_appended, rotated, packed_with_gzip, packed_with_zstd, packed_later,
    rotated_and_packed, linked, copied, copied_with_its_time, copytruncated(0), copytruncated(30), copytruncated(100),
    copytruncated(300), truncated(30), truncated(300), replaced,
]  # fmt: skip
"""Things that are told apart where the lines prove what they are."""
CUT = [cut, cut_at_the_start]


def name_of(value: Any) -> str:
    return str(value.__name__)


@pytest.mark.parametrize("happen", [*KEPT, *CUT, *CHANGES], ids=name_of)
@pytest.mark.parametrize("make", [*PROVING, *REPEATING], ids=name_of)
def test_nothing_is_lost_or_twice_or_it_is_reported(
    case: Case, make: Make, happen: Callable[[Case, Make], list[Path]]
) -> None:
    case.file.write_text(case.write(make(0, 100)))
    case.age(case.file)
    assert case.run().code == 0
    files = happen(case, make)
    before = case.stored
    assert case.written >= before
    outcome = case.run(*files)
    if outcome.code == 0:
        assert case.stored == case.written
        assert case.run(*files).found["events"] == 0
        return
    assert outcome.code == 1
    assert any("[AmbiguousInput]" in problem for problem in outcome.found["problems"])
    assert case.stored <= case.written
    for file in files:
        case.run(file, options=("--again",))
    assert case.stored >= case.written
    if happen in KEPT:
        assert make not in PROVING, outcome.stderr
