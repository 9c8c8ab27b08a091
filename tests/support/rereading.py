"""Inputs that are read more than once: what was written to them, and what is in the bucket."""

from __future__ import annotations

import collections
import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from buckets import file_environment, objects
from commands import invoke

if sys.version_info >= (3, 14):
    pass
else:
    pass

Lines = list[str]


class Outcome(NamedTuple):
    """The result of a run."""

    code: int
    found: dict[str, Any]
    stderr: str


class Case:
    """A directory with inputs, a spool and a bucket; and a record of what was written."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.file = directory / "events.ndjson"
        self.written: collections.Counter[str] = collections.Counter()
        self._capsys = capsys
        for name, value in file_environment(directory, JOBS_BACKUP_SPOOL_DURABILITY="process").items():
            monkeypatch.setenv(name, value)

    def run(self, *files: Path, source: str = "web", command: str = "run", options: tuple[str, ...] = ()) -> Outcome:
        named = ["--source-id", source] if command == "run" else []
        code, stdout, stderr = invoke(self._capsys, command, *(files or (self.file,)), *named, "--json", *options)
        return Outcome(code, json.loads(stdout), stderr)

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
        """Set its time back, so that the next write changes it."""
        os.utime(path, ns=(10**18, 10**18))


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(tmp_path, monkeypatch, capsys)


def named(first: int, count: int) -> Lines:
    return [f'{{"messageId":"m{number}","x":"{"a" * 40}"}}' for number in range(first, first + count)]


def numbered(first: int, count: int) -> Lines:
    return [f'{{"n":{number}}}' for number in range(first, first + count)]


def name_of(value: Any) -> str:
    return str(value.__name__)
