"""Recognize files that were read before, whatever happened to them: every line is in the bucket once, or is reported.

Each case writes lines, runs, changes the file, and runs again. The test counts the written lines, and those in the bucket:
either both are equal and the exit code is 0, or nothing was recorded and the exit code is 1.
"""

from __future__ import annotations

import collections
import gzip
import hashlib
import json
import os
import random
import select
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from buckets import events, file_environment
from commands import run, start, summary
from rereading import Case, Lines, name_of, named, numbered
from rereading import case as case  # noqa: PLC0414 - a fixture

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def heartbeats(_first: int, count: int) -> Lines:
    return ['{"event":"heartbeat"}'] * count


def cycle(_first: int, count: int) -> Lines:
    return [f'{{"step":{number % 7}}}' for number in range(count)]


def banner(first: int, count: int) -> Lines:
    """A line for the program's start, then heartbeats: the same again after each rotation with copytruncate."""
    return ['{"event":"started"}' if number == 0 and first == 0 else '{"event":"heartbeat"}' for number in range(count)]


def mixed(first: int, count: int) -> Lines:
    return [line for number in range(first, first + count) for line in (f'{{"messageId":"m{number}"}}', '{"event":"heartbeat"}')]


Make = Callable[[int, int], Lines]
PROVING: list[Make] = [named, numbered, mixed]
"""Contents that identify a file."""
REPEATING: list[Make] = [heartbeats, cycle, banner]


# What may happen to a file of 100 lines. Each function returns the files to read.


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
    """By rename, and the program has started another file."""
    old = renamed_and_appended(case, make)
    case.file.write_text(case.write(make(200, 50)))
    return [case.file, *old]


def packed_with_gzip(case: Case, _: Make) -> list[Path]:
    subprocess.run(["gzip", case.file], check=True)
    return [case.file.with_name("events.ndjson.gz")]


def zstd_of(file: Path) -> Path:
    """As `zstd --rm` does it: with the file's modification time."""
    packed, status = file.with_name(file.name + ".zst"), file.stat()
    packed.write_bytes(zstd.compress(file.read_bytes()))
    os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
    file.unlink()
    return packed


def packed_with_zstd(case: Case, _: Make) -> list[Path]:
    return [zstd_of(case.file)]


def packed_later(case: Case, make: Make) -> list[Path]:
    """By a tool that does not keep the modification time; and the file has grown before."""
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
"""Changes that are recognized if the lines identify the file."""
CUT = [cut, cut_at_the_start]


@pytest.mark.slow
@pytest.mark.parametrize("happen", [*KEPT, *CUT, *CHANGES], ids=name_of)
@pytest.mark.parametrize("make", [*PROVING, *REPEATING], ids=name_of)
@pytest.mark.sample(70)
def test_nothing_is_lost_or_twice_or_it_is_reported(case: Case, make: Make, happen: Callable[[Case, Make], list[Path]]) -> None:
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


def test_another_first_line_in_another_file_is_a_new_file(case: Case) -> None:
    """As documented: nothing is lost, and the lines that it shares with the first file are duplicated."""
    case.file.write_text(case.write(named(0, 100)))
    assert case.run().code == 0
    assert case.run(*changed(0, name="other.gz")(case, named)).code == 0
    assert case.stored >= case.written


# Repetitive content


@pytest.mark.parametrize("make", REPEATING, ids=name_of)
def test_append_only_says_that_a_file_that_repeats_itself_has_grown(case: Case, make: Make) -> None:
    case.file.write_text(case.write(make(0, 100)))
    assert case.run().code == 0
    appended(case, make)
    assert case.run().code == 1
    assert case.run(options=("--append-only",)).found["events"] == 30
    case.file.rename(case.directory / "old")
    case.file.write_text(case.write(make(0, 40)))
    assert case.run(case.file, case.directory / "old", options=("--append-only",)).code == 0
    assert case.stored == case.written


@pytest.mark.parametrize("make", REPEATING, ids=name_of)
def test_append_only_does_not_hide_that_a_file_was_cut(case: Case, make: Make) -> None:
    case.file.write_text(case.write(make(0, 100)))
    assert case.run().code == 0
    truncated(30)(case, make)
    assert case.run(options=("--append-only",)).code == 1


@pytest.mark.parametrize("make", REPEATING, ids=name_of)
def test_a_file_that_was_empty_at_the_last_run_is_read_without_a_question(case: Case, make: Make) -> None:
    case.file.write_text(case.write(make(0, 100)))
    assert case.run().code == 0
    os.truncate(case.file, 0)
    assert case.run().code == 0
    case.file.write_text(case.write(make(0, 300)))
    assert case.run().code == 0
    assert case.stored == case.written


def test_repeated_lines_are_no_question_where_others_are_not_repeated(case: Case) -> None:
    """A log of mostly equal lines, with an occasional timestamp."""
    lines = [line for hour in range(10) for line in [*heartbeats(0, 100), f'{{"at":"2026-11-30T{hour:02}:00:00Z"}}']]
    case.file.write_text(case.write(lines))
    assert case.run().code == 0
    for make in (heartbeats, heartbeats, numbered):
        appended(case, make)
        assert case.run().code == 0
    assert case.stored == case.written


@pytest.mark.parametrize("count", [1, 2, 3, 15])
def test_few_lines_without_names(case: Case, count: int) -> None:
    """They may grow, be renamed and compressed; another file with the same lines is ambiguous."""
    case.file.write_text(case.write(numbered(0, count)))
    assert case.run().code == 0
    with case.file.open("a") as file:
        file.write(case.write(numbered(count, count)))
    assert case.run().found["events"] == count
    old = case.file.rename(case.directory / "old")
    assert case.run(old).found["events"] == 0
    subprocess.run(["gzip", old], check=True)
    assert case.run(old.with_name("old.gz")).code == 0
    assert case.stored == case.written
    other = case.directory / "other"
    other.write_text(case.write(numbered(0, 2 * count)))
    outcome = case.run(other)
    assert (outcome.code, outcome.found["events"]) == ((1, 0) if count < 8 else (0, 0))


def test_many_small_files_with_the_same_line(case: Case) -> None:
    """They may be separate events, or copies of one."""
    files = [case.directory / f"in-{number}" for number in range(5)]
    for file in files:
        file.write_text(case.write(['{"event":"ping"}']))
        case.age(file) if file == files[0] else None
    outcome = case.run(*files)
    assert (outcome.code, outcome.found["events"], len(outcome.found["problems"])) == (1, 1, 4)
    for file in files[1:]:
        assert case.run(file, options=("--again",)).code == 0
    assert case.stored == case.written


def test_again_is_continued_by_a_run_without_it(case: Case) -> None:
    case.file.write_text(case.write(named(0, 100)))
    assert case.run().code == 0
    case.written.update(named(0, 100))
    assert case.run(options=("--again",)).found["events"] == 100
    appended(case, named)
    assert case.run().found["events"] == 30
    assert case.stored == case.written


# Readers and purposes


def test_two_sources_read_the_same_file_each_on_its_own(case: Case) -> None:
    case.file.write_text(case.write(named(0, 100)))
    for source in ("web", "ios"):
        assert case.run(source=source).found["events"] == 100
    case.written.update(named(0, 100))
    appended(case, named)
    case.written.update(named(100, 30))
    files = renamed(case, named)
    for source in ("ios", "web"):
        assert case.run(*files, source=source).found["events"] == 30
    assert case.stored == case.written


@pytest.mark.parametrize("happen", [renamed_and_appended, packed_with_gzip, packed_later, linked, rotated], ids=name_of)
def test_failures_are_recognised_as_well(case: Case, happen: Callable[[Case, Make], list[Path]]) -> None:
    def failure(first: int, count: int) -> Lines:
        return [f'{{"sourceId":"s","error":"no","payload":{{"n":{number}}}}}' for number in range(first, first + count)]

    case.file.write_text(case.write(failure(0, 100)))
    assert case.run(command="failed").code == 0
    assert case.run(*happen(case, failure), command="failed").code == 0
    assert case.stored == {json.dumps(json.loads(line)["payload"], separators=(",", ":")): 1 for line in case.written}
    assert case.stored.total() == case.written.total()


def test_a_position_of_an_earlier_version_goes_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id contains the path, and checksums of both ends."""
    case.file.write_text(case.write(named(0, 300)))
    data = case.file.read_bytes()
    digest = hashlib.sha256(data[:4096] + data[-4096:]).hexdigest()
    earlier = {"offset": len(data), "line": 300, "rejects": 0, "digest": digest}
    input_ = hashlib.sha256(f"{case.file}\0\0web".encode()).hexdigest()[:32]
    assert case.run(case.directory / "bucket/../events.ndjson", source="other").code == 0  # creates the spool
    with sqlite3.connect(case.directory / "spool/catalog.db") as catalog:
        catalog.execute("INSERT INTO positions VALUES (?, 1, ?)", (input_, json.dumps(earlier).encode()))
    catalog.close()
    for path in (case.directory / "bucket").rglob("*.gz"):
        path.unlink()
    case.written.clear()
    appended(case, named)
    assert case.run().found["events"] == 30
    assert case.run(*renamed_and_appended(case, named)).found["events"] == 30
    assert set(case.stored) == set(named(100, 30))


def test_a_position_of_an_earlier_version_that_is_not_of_this_file(case: Case) -> None:
    case.file.write_text(case.write(named(0, 10)))
    assert case.run(source="other").code == 0
    input_ = hashlib.sha256(f"{case.file}\0\0web".encode()).hexdigest()[:32]
    with sqlite3.connect(case.directory / "spool/catalog.db") as catalog:
        catalog.execute("INSERT INTO positions VALUES (?, 1, ?)", (input_, b'{"offset":5,"line":0,"digest":"x"}'))
    catalog.close()
    assert case.run().found["events"] == 10


# Changes while it is read


def ids_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return len(process.stdout.readlines())


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, dict[str, str]]]:
    """A run that has recorded the first of many lines, and blocks until its output is read."""
    env = file_environment(tmp_path)
    file = tmp_path / "events.ndjson"
    file.write_text("".join(f"{line}\n" for line in named(0, 50_000)))
    with start("run", file, "--source-id", "web", "--emit-ids", env=env) as process:
        assert process.stdout is not None
        select.select([process.stdout], [], [])  # the first id
        yield process, file, env
        process.kill()


def ids_in(tmp_path: Path) -> collections.Counter[str]:
    return collections.Counter(str(event["payload"]["messageId"]) for event in events(tmp_path))


Begun = tuple["subprocess.Popen[str]", Path, dict[str, str]]


@pytest.mark.slow
def test_it_grows_while_it_is_read(begun: Begun, tmp_path: Path) -> None:
    process, file, _ = begun
    with file.open("a") as more:
        more.writelines(f"{line}\n" for line in named(50_000, 100))
    assert (ids_of(process), process.wait(120)) == (50_100, 0)
    assert set(ids_in(tmp_path).values()) == {1}


@pytest.mark.slow
def test_it_is_replaced_while_it_is_read(begun: Begun, tmp_path: Path) -> None:
    process, file, env = begun
    (tmp_path / "new").write_text("".join(f"{line}\n" for line in named(60_000, 100)))
    (tmp_path / "new").replace(file)
    assert (ids_of(process), process.wait(120)) == (50_000, 0)
    assert summary("run", file, "--source-id", "web", env=env)["events"] == 100
    assert (len(ids_in(tmp_path)), set(ids_in(tmp_path).values())) == (50_100, {1})


@pytest.mark.slow
def test_it_is_truncated_while_it_is_read(begun: Begun, tmp_path: Path) -> None:
    process, file, env = begun
    shutil.copyfile(file, tmp_path / "copy")
    os.truncate(file, 0)
    recorded = ids_of(process)
    assert process.stderr is not None
    assert "was truncated or rewritten while it was read" in process.stderr.read()
    assert process.wait(120) == 1
    assert 0 < recorded < 50_000
    file.write_text("".join(f"{line}\n" for line in named(60_000, 100)))
    found = summary("run", file, tmp_path / "copy", "--source-id", "web", env=env)
    assert (found["complete"], found["events"]) == (True, 50_100 - recorded)
    assert (len(ids_in(tmp_path)), set(ids_in(tmp_path).values())) == (50_100, {1})


@pytest.mark.slow
def test_the_same_content_is_not_read_by_two_processes(begun: Begun, tmp_path: Path) -> None:
    """One of them under another name: a hard link, or compressed meanwhile."""
    process, file, env = begun
    (tmp_path / "hard").hardlink_to(file)
    (tmp_path / "packed").write_bytes(gzip.compress(file.read_bytes(), 1))
    code, _, stderr = run("run", tmp_path / "hard", tmp_path / "packed", "--source-id", "web", env=env)
    assert (code, stderr.count("another process is reading it")) == (1, 2)
    assert (ids_of(process), process.wait(120)) == (50_000, 0)
    assert summary("run", tmp_path / "hard", tmp_path / "packed", "--source-id", "web", env=env)["events"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_with_rotation_in_between(tmp_path: Path, seed: int) -> None:
    """A log is written, rotated in all ways, and read by processes that are killed."""
    chance = random.Random(seed)
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="2000", JOBS_BACKUP_SPOOL_DURABILITY="process")
    log, written, rotations = tmp_path / "app.ndjson", 0, 0
    log.touch()

    def files() -> list[Path]:
        return sorted(tmp_path.glob("app.ndjson*"))

    for _ in range(12):
        with log.open("a") as file:
            file.writelines(f"{line}\n" for line in named(written, 8000))
        written += 8000
        with start("run", *files(), "--source-id", "web", env=env) as process:
            time.sleep(chance.uniform(0.1, 0.8))
            process.kill()
            process.communicate()
        rotations += 1
        old = tmp_path / f"app.ndjson-{rotations:02}"
        match chance.choice(["nothing", "rename", "copytruncate", "gzip", "zstd"]):
            case "rename":
                log.rename(old)
            case "copytruncate":
                shutil.copyfile(log, old)
                os.truncate(log, 0)
            case "gzip":
                log.rename(old)
                subprocess.run(["gzip", "-1", old], check=True)
            case "zstd":
                log.rename(old)
                zstd_of(old)
            case _:
                continue
        log.touch()
    assert summary("run", *files(), "--source-id", "web", env=env)["complete"]
    found = ids_in(tmp_path)
    assert len(found) == written
    assert [one for one, count in found.items() if count > 1] == []
