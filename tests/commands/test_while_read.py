"""Changes to inputs, and to their locks, while a command reads them: each line is in the bucket once, or the run reports why not.

The command runs in this process, and the change happens at a certain step of it: before a block is kept (it has been read by then),
or after. This process or another one makes the change to the real files.
"""

from __future__ import annotations

import gzip
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from buckets import file_environment
from commands import invoke, run, start
from rereading import Case, Lines, Outcome, name_of, named, numbered
from rereading import case as case  # noqa: PLC0414 - a fixture
from spools import WEB, open_spool

from jobs_backup.cli.commands.delivered import DeliveryHandler
from jobs_backup.cli.commands.run import EventHandler
from jobs_backup.errors import ConfigurationError
from jobs_backup.inputs import contents, formats, ndjson
from jobs_backup.inputs.recognition import Found, Recognition
from jobs_backup.spool.interface import InputPosition, Recording
from jobs_backup.spool.sqlite.blobs import BlobFiles

LINES = 2000
"""Lines of a file, which is read in about ten blocks."""


def problems(outcome: Outcome) -> str:
    return "\n".join(outcome.found["problems"])


At = Callable[[str, int, Callable[[], object]], None]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[At]:
    """Make a change before, or after, the n-th block from now on is kept."""
    happens: dict[tuple[str, int], Callable[[], object]] = {}
    kept = 0
    keep = EventHandler.keep

    def hooked(self: EventHandler, found: Any, position: InputPosition | None) -> None:
        keep(self, found, position)
        nonlocal kept
        kept += 1
        happens.pop(("after", kept), lambda: None)()

    parser = EventHandler.parser

    def hooked_parser(self: EventHandler) -> Callable[[bytes], bytes]:
        happens.pop(("before", kept + 1), lambda: None)()
        return parser(self)

    for module, name in ((ndjson, "_BLOCK"), (ndjson, "_LOOKED_AHEAD"), (formats, "_HEAD")):
        monkeypatch.setattr(module, name, 16 << 10)
    monkeypatch.setattr(EventHandler, "keep", hooked)
    monkeypatch.setattr(EventHandler, "parser", hooked_parser)

    def register(when: str, number: int, call: Callable[[], object]) -> None:
        happens[when, kept + number] = call

    yield register
    assert not happens, "that never happened"


# The file is truncated, or rewritten


def copytruncated(case: Case, file: Path, lines: Lines) -> None:
    shutil.copyfile(file, case.directory / "copy")
    with file.open("r+b") as open_file:
        open_file.truncate(0)
        open_file.write(packed(file, case.write(lines)))


def emptied(case: Case, file: Path) -> None:
    copytruncated(case, file, [])


def filled_with_less(case: Case, file: Path) -> None:
    copytruncated(case, file, named(10_000, 3))


def filled_beyond(case: Case, file: Path) -> None:
    copytruncated(case, file, named(10_000, 2 * LINES))


def filled_with_the_same_first_lines(case: Case, file: Path) -> None:
    """By a program that starts each file with its version and settings: more than the compared block."""
    copytruncated(case, file, [*named(0, 200), *named(10_000, 2 * LINES)])


def filled_with_the_same_first_blocks(case: Case, file: Path) -> None:
    """More than was compared to recognize it."""
    copytruncated(case, file, [*named(0, 900), *named(10_000, 2 * LINES)])


def filled_behind_a_hole(case: Case, file: Path) -> None:
    """By a program that does not append."""
    size = file.stat().st_size
    shutil.copyfile(file, case.directory / "copy")
    with file.open("r+b") as open_file:
        open_file.truncate(0)
        open_file.seek(size)
        open_file.write(packed(file, case.write(named(10_000, 10))))


def cut(case: Case, file: Path) -> None:
    """At a place that was not read yet."""
    shutil.copyfile(file, case.directory / "copy")
    os.truncate(file, file.stat().st_size - 1000)


def overwritten(case: Case, file: Path) -> None:
    """In place, as by `cp other file`, with the same number of bytes."""
    shutil.copyfile(file, case.directory / "copy")
    with file.open("r+b") as open_file:
        open_file.write(packed(file, case.write(named(20_000, LINES))))


def packed(file: Path, text: str) -> bytes:
    return gzip.compress(text.encode(), 1) if file.suffix == ".gz" and text else text.encode()


TRUNCATIONS = [emptied, filled_with_less, filled_beyond, filled_with_the_same_first_lines, filled_behind_a_hole, cut, overwritten]
MOMENTS = [("before", 1), ("after", 3)]


@pytest.mark.parametrize("resumes", [False, True], ids=["new", "resumed"])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: "-".join(map(str, moment)))
@pytest.mark.parametrize("happen", TRUNCATIONS, ids=name_of)
@pytest.mark.sample(12)
def test_a_file_that_is_truncated_while_it_is_read_is_reported(
    case: Case, at: At, happen: Callable[[Case, Path], None], moment: tuple[str, int], resumes: bool
) -> None:
    if resumes:
        case.file.write_text(case.write(named(0, 500)))
        assert case.run().code == 0
    with case.file.open("a") as more:
        more.write(case.write(named(500 if resumes else 0, LINES - 500 if resumes else LINES)))
    at(*moment, lambda: happen(case, case.file))
    outcome = case.run()
    assert (outcome.code, "was truncated or rewritten while it was read" in problems(outcome)) == (1, True)
    if happen is filled_with_the_same_first_lines:
        return  # later runs cannot know their origin
    for _ in range(2):
        outcome = case.run(case.file, case.directory / "copy")
        assert outcome.code == (3 if outcome.found["rejected"] or outcome.found["rejected_before"] else 0), outcome.stderr
        assert case.stored == case.written
        if happen is cut:
            return  # the copy has all of it: its former content is reported from now on
    assert outcome.found["events"] == 0


def test_a_file_with_the_same_first_blocks_is_reported_by_those_before(case: Case, at: At) -> None:
    case.file.write_text(case.write(named(0, LINES)))
    at("after", 5, lambda: filled_with_the_same_first_blocks(case, case.file))
    outcome = case.run()
    assert (outcome.code, "was truncated or rewritten while it was read" in problems(outcome)) == (1, True)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_of_ids_that_is_truncated_while_it_is_read_is_reported(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It has no position, since a repeated acknowledgment is harmless; unread ids must still be reported."""
    case.file.write_text("null\n" * 20_000)
    keep = DeliveryHandler.keep

    def keep_and_truncate(self: DeliveryHandler, found: Any, position: InputPosition | None) -> None:
        if when == "after":
            keep(self, found, position)
        os.truncate(case.file, 0)
        if when == "before":
            keep(self, found, position)

    for module, name in ((ndjson, "_BLOCK"), (formats, "_HEAD")):
        monkeypatch.setattr(module, name, 16 << 10)
    monkeypatch.setattr(DeliveryHandler, "keep", keep_and_truncate)
    code, stdout, _ = invoke(capsys, "delivered", case.file, "--json")
    assert (code, "was truncated or rewritten while it was read" in stdout) == (1, True)


def test_what_was_read_before_a_seek_is_compared_as_well(tmp_path: Path) -> None:
    """A file is read to recognize it, and then again from an earlier place, in one read beyond the compared part."""
    path = tmp_path / "file"
    path.write_bytes(b"first" * 2000 + b"old" * 2000)
    with path.open("rb", buffering=0) as file:
        source = formats.Source(file, threading.Event(), is_file=True)
        assert len(source.read(1 << 20)) == 16_000
        assert source.is_as_it_was_read()
        source.seek(0)
        source.read(5000)
        assert source.is_as_it_was_read()
        path.write_bytes(b"first" * 2000 + b"new" * 9000)
        source.read(1 << 20)
        assert not source.is_as_it_was_read()


def once_recognised(monkeypatch: pytest.MonkeyPatch, happen: Callable[[], None]) -> None:
    find = Recognition.find

    def find_and_happen(self: Recognition) -> Found:
        found = find(self)
        happen()
        return found

    monkeypatch.setattr(Recognition, "find", find_and_happen)


def test_a_new_file_that_is_truncated_once_it_was_recognised_is_reported(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it was read to see that it is new. Its new content has the same first lines, and is read at once."""
    case.file.write_text(case.write(named(0, 50)))
    assert case.run().code == 0
    case.file.write_text(case.write(named(1000, 500)))
    once_recognised(monkeypatch, lambda: copytruncated(case, case.file, [*named(1000, 200), *named(10_000, 2 * LINES)]))
    outcome = case.run()
    assert (outcome.code, "was truncated or rewritten while it was read" in problems(outcome)) == (1, True)


@pytest.mark.parametrize(
    "happen", [emptied, filled_with_less, filled_beyond, filled_with_the_same_first_lines, overwritten], ids=name_of
)
def test_a_file_that_is_truncated_once_it_was_recognised_is_reported(
    case: Case, monkeypatch: pytest.MonkeyPatch, happen: Callable[[Case, Path], None]
) -> None:
    """Before anything new was read."""
    case.file.write_text(case.write(named(0, 500)))
    assert case.run().code == 0
    with case.file.open("a") as more:
        more.write(case.write(named(500, 500)))
    once_recognised(monkeypatch, lambda: happen(case, case.file))
    outcome = case.run()
    assert (outcome.code, "was truncated or rewritten while it was read" in problems(outcome)) == (1, True)
    if happen is filled_with_the_same_first_lines:
        return
    monkeypatch.undo()
    for name, value in environment(case).items():
        monkeypatch.setenv(name, value)
    assert case.run(case.file, case.directory / "copy").code == 0
    assert case.stored == case.written


@pytest.mark.parametrize("happen", [emptied, filled_with_less, filled_beyond, overwritten], ids=name_of)
def test_a_file_that_is_truncated_at_its_end_is_reported(case: Case, at: At, happen: Callable[[Case, Path], None]) -> None:
    """After its last block was kept, and before its end was seen."""
    case.file.write_text(case.write(named(0, 100)))
    at("after", 1, lambda: happen(case, case.file))
    assert case.run().code == 1
    assert case.run(case.file, case.directory / "copy").code == 0
    assert case.stored == case.written


@pytest.mark.parametrize("happen", [emptied, filled_with_less, filled_beyond], ids=name_of)
def test_a_packed_file_that_is_written_anew_while_it_is_read_is_reported(
    case: Case, at: At, happen: Callable[[Case, Path], None]
) -> None:
    file = case.directory / "in.gz"
    file.write_bytes(packed(file, case.write(named(0, LINES))))
    at("after", 3, lambda: happen(case, file))
    assert case.run(file).code == 1
    shutil.move(case.directory / "copy", case.directory / "copy.gz")
    if not file.stat().st_size:
        file.unlink()
    outcome = case.run(case.directory / "copy.gz", *([file] if file.exists() else []))
    assert outcome.code == 0, outcome.stderr
    assert case.stored == case.written


@pytest.mark.parametrize("moment", [*MOMENTS, ("after", 5)], ids=lambda moment: "-".join(map(str, moment)))
def test_a_file_that_grows_or_is_renamed_while_it_is_read_is_no_question(case: Case, at: At, moment: tuple[str, int]) -> None:
    case.file.write_text(case.write(named(0, LINES)))

    def happen() -> None:
        with case.file.open("a") as more:
            more.write(case.write(named(LINES, LINES)))
        case.file.rename(case.directory / "old")

    at(*moment, happen)
    assert case.run().code == 0
    assert case.stored == case.written
    assert case.run(case.directory / "old").found["events"] == 0


# Its lock, or its position, is removed


def in_another_process(case: Case, *files: Path) -> tuple[int, str]:
    code, _, stderr = run("run", *files, "--source-id", "web", env=environment(case))
    return code, stderr


def environment(case: Case) -> dict[str, str]:
    return file_environment(case.directory, JOBS_BACKUP_SPOOL_DURABILITY="process")


def locks(case: Case, pattern: str = "input-*") -> list[Path]:
    return list((case.directory / "spool/locks").glob(pattern))


def inputs_removed(case: Case) -> None:
    for path in locks(case):
        path.unlink()


def first_removed(case: Case) -> None:
    min(locks(case)).unlink()


def second_removed(case: Case) -> None:
    max(locks(case)).unlink()


def all_removed(case: Case) -> None:
    """Those of the sessions, too."""
    for path in locks(case, "*"):
        path.unlink()


def replaced(case: Case) -> None:
    for path in locks(case):
        path.unlink()
        path.touch()


def directory_replaced(case: Case) -> None:
    (case.directory / "spool/locks").rename(case.directory / "moved")
    (case.directory / "spool/locks").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize("other_reads", [False, True], ids=["alone", "another reads"])
@pytest.mark.parametrize(
    "happen", [inputs_removed, first_removed, second_removed, all_removed, replaced, directory_replaced], ids=name_of
)
def test_an_input_whose_lock_was_removed_is_read_by_one_process(
    case: Case, at: At, happen: Callable[[Case], None], other_reads: bool
) -> None:
    case.file.write_text(case.write(named(0, LINES)))

    def without_lock() -> None:
        happen(case)
        if other_reads:
            code, stderr = in_another_process(case, case.file)
            assert code == 0 or "another process is reading it" in stderr

    at("after", 3, without_lock)
    outcome = case.run()
    assert (outcome.code, "lock of an input was removed" in problems(outcome)) == (1, True)
    assert case.run().code == 0
    assert case.stored == case.written


def test_a_position_is_committed_under_the_lock_alone(tmp_path: Path) -> None:
    one, other = open_spool(tmp_path), open_spool(tmp_path)
    with one.reading("x"):
        one.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("x", 1, b"1"))])
        (tmp_path / "locks/input-x.lock").unlink()
        with other.reading("x") as granted:
            assert granted
            assert other.position("x") == InputPosition("x", 1, b"1")
            for lines in ([], [b"{}\n"]):
                with pytest.raises(ConfigurationError, match="was removed while it was read"):
                    one.append([Recording(WEB, lines, first_at=1, last_at=1, position=InputPosition("x", 2, b"2"))])
            one.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1)])  # recording without an input still works
            other.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("x", 2, b"other"))])
    with other.reading("x") as granted:
        assert granted
        assert other.position("x") == InputPosition("x", 2, b"other")
    other.close()
    one.close()
    last = open_spool(tmp_path)
    assert last.position("x") == InputPosition("x", 2, b"other")
    last.close()


def test_who_gives_a_lock_up_does_not_remove_that_of_another(tmp_path: Path) -> None:
    one, other = open_spool(tmp_path), open_spool(tmp_path)
    with one.reading("x"):
        (tmp_path / "locks/input-x.lock").unlink()
        with other.reading("x"):
            pass
    with one.reading("x"):
        (tmp_path / "locks/input-x.lock").unlink()
        second = other.reading("x")
        assert second.__enter__()
    assert (tmp_path / "locks/input-x.lock").exists()
    second.__exit__(None, None, None)
    one.close()
    other.close()


@pytest.mark.parametrize(("number", "content"), [(7, b"another"), (6, b"mine"), (100, b"another")])
def test_a_position_that_another_process_has_passed_is_refused(tmp_path: Path, number: int, content: bytes) -> None:
    """Whatever happened to the locks: a position is committed only if it follows the one that was read."""
    one, other = open_spool(tmp_path), open_spool(tmp_path)
    one.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("x", 5, b"read"))])
    other.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("x", number, content))])
    other.close()
    mine = Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("x", 6, b"mine"))
    if number == 6:  # its own position, from an earlier commit with an unknown result
        one.append([mine])
    else:
        with pytest.raises(ConfigurationError, match="another process has read the same input"):
            one.append([mine])
    one.close()


# Other processes read meanwhile


@pytest.mark.slow
@pytest.mark.parametrize("lives", [False, True], ids=["ended", "alive"])
def test_what_another_process_reads_meanwhile_is_not_read_again(case: Case, at: At, lives: bool) -> None:
    """Positions are looked up once per run: for a new file, one that has grown, and one that was renamed."""
    grown, moved, new = (case.directory / name for name in ("grown", "moved", "new"))
    for number, file in enumerate((grown, moved)):
        file.write_text(case.write(named(10_000 * (number + 1), 100)))
    assert case.run(grown, moved).code == 0
    case.file.write_text(case.write(named(0, LINES)))
    for number, file in enumerate((grown, moved, new)):
        with file.open("a") as more:
            more.write(case.write(named(10_000 * (number + 1) + 100, 100)))
    later = moved.with_name("later")
    living = []

    def other() -> None:
        if not lives:
            assert in_another_process(case, grown, moved, new)[0] == 0
        else:
            process = start("run", grown, moved, new, "-", "--source-id", "web", "--emit-ids", env=environment(case), stdin=-1)
            assert process.stdout is not None
            for _ in range(300):
                process.stdout.readline()
            living.append(process)
        moved.rename(later)
        later.rename(moved)

    at("after", 1, other)
    outcome = case.run(case.file, grown, moved, new)
    for process in living:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert (outcome.code, outcome.found["events"]) == (0, LINES), outcome.stderr
    assert case.run(case.file, grown, moved, new).found["events"] == 0
    assert case.stored == case.written


@pytest.mark.parametrize("count", [20, 40])
def test_positions_are_read_once_for_each_run(case: Case, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Not once per file, which would take quadratic time."""
    files = [case.directory / f"in-{number}" for number in range(count)]
    for number, file in enumerate(files):
        file.write_text(case.write(named(number * 10, 3)))
        os.utime(file, ns=(10**18, 10**18))
    assert case.run(*files).code == 0
    decoded = opened = 0
    known_of, open_file = contents.Known.of, BlobFiles.open

    def counted_of(position: InputPosition) -> contents.Known:
        nonlocal decoded
        decoded += 1
        return known_of(position)

    def counted_open(self: BlobFiles, name: str, *, only_reads: bool = False) -> Any:
        nonlocal opened
        opened += 1
        return open_file(self, name, only_reads=only_reads)

    monkeypatch.setattr(contents.Known, "of", counted_of)
    monkeypatch.setattr(BlobFiles, "open", counted_open)
    with files[0].open("a") as more:
        more.write(case.write(named(90_000, 3)))
    monkeypatch.setattr("jobs_backup.inputs.intake._TICK", -(10**18))  # the files are not recent
    assert case.run(*files).found["events"] == 3
    decoded = opened = 0
    assert case.run(*files).found["events"] == 0
    assert decoded == count
    assert opened < 10
    assert case.stored == case.written


# A file is rotated before its turn comes


def rotated(case: Case, file: Path) -> list[Path]:
    """It is named, like all files that were in the directory when the command started."""
    file.rename(old := file.with_name(f"{file.name}.1"))
    file.write_text(case.write(named(50_000, 10)))
    return [old]


def copied_over(case: Case, file: Path) -> list[Path]:
    old = rotated(case, file)
    shutil.copyfile(file, case.directory / "new")
    (case.directory / "new").replace(file)
    return old


def link_switched(case: Case, file: Path) -> list[Path]:
    (case.directory / "other").write_text(case.write(named(50_000, 10)))
    file.unlink()
    file.symlink_to(case.directory / "other")
    return [case.directory / "target"]


@pytest.mark.parametrize("happen", [rotated, copied_over, link_switched], ids=name_of)
def test_a_file_that_is_rotated_before_its_turn_is_reported(case: Case, at: At, happen: Callable[[Case, Path], list[Path]]) -> None:
    second, target = case.directory / "second", case.directory / "target"
    case.file.write_text(case.write(named(0, LINES)))
    target.write_text(case.write(named(30_000, 10)))
    if happen is link_switched:
        second.symlink_to(target)
    else:
        target.rename(second)
    olds: list[Path] = []
    at("after", 1, lambda: olds.extend(happen(case, second)))
    outcome = case.run(case.file, second)
    assert (outcome.code, "second was replaced before it was read" in problems(outcome)) == (1, True)
    assert case.run(case.file, second, *olds).code == 0
    assert case.stored == case.written


@pytest.mark.parametrize("what", ["is named as well", "was read before"])
def test_a_rotated_file_that_is_read_all_the_same_is_no_problem(
    case: Case, at: At, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    second, older = case.directory / "second", case.directory / "second.1"
    case.file.write_text(case.write(named(0, LINES)))
    second.write_text(case.write(named(30_000, 10)))
    older.write_text(case.write(named(40_000, 10)))
    monkeypatch.setattr("jobs_backup.inputs.intake._TICK", -(10**18))
    assert case.run(older, *([second] if what == "was read before" else [])).code == 0

    def rotate() -> None:
        older.rename(case.directory / "second.2")
        rotated(case, second)

    at("after", 3, rotate)
    assert case.run(case.file, second, older).code == 0
    assert case.run(case.file, second, older, case.directory / "second.2").found["events"] == 0
    assert case.stored == case.written


# Rejects of earlier runs


@pytest.mark.parametrize("become", ["unchanged", "grown", "renamed", "packed"])
@pytest.mark.parametrize("command", ["run", "failed"])
def test_rejects_are_reported_until_their_file_is_removed(case: Case, command: str, become: str) -> None:
    lines = (
        named(0, 5) if command == "run" else [f'{{"sourceId":"s","error":"e","payload":{{"messageId":"{n}"}}}}' for n in range(5)]
    )
    case.file.write_text("\n".join([*lines[:4], "no event", "nor this", ""]))
    first = case.run(command=command)
    assert (first.code, first.found["rejected"], first.found["rejected_before"]) == (3, 2, 0)
    file = case.file
    if become == "grown":
        with file.open("a") as more:
            more.write(f"{lines[4]}\n")
    elif become == "renamed":
        file = file.rename(case.directory / "events.ndjson.1")
    elif become == "packed":
        file = case.directory / "events.gz"
        file.write_bytes(gzip.compress(case.file.read_bytes()))
        shutil.copystat(case.file, file)
    for _ in range(2):
        again = case.run(file, command=command)
        assert (again.code, again.found["rejected"], again.found["rejected_before"]) == (3, 0, 2), again.stderr
        assert again.found["rejects"] == first.found["rejects"]
    assert case.run(file, command=command, options=("--allow-rejects",)).code == 0
    Path(first.found["rejects"][0]).unlink()
    assert case.run(file, command=command).code == 0


def test_few_lines_are_recognised_after_a_clock_that_was_ahead(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """See test_clocks.py. A position is not a time."""

    real, real_ns = time.time, time.time_ns
    for number, years in enumerate((0, 1, 90, -1, -30, 0)):
        monkeypatch.setattr(time, "time", lambda years=years: real() + years * 31_557_600)
        monkeypatch.setattr(time, "time_ns", lambda years=years: real_ns() + years * 31_557_600 * 10**9)
        with case.file.open("r+" if case.file.exists() else "w") as file:
            file.truncate(0)
        assert number == 0 or case.run().code == 0
        for part in range(2):
            with case.file.open("a") as file:
                file.write(case.write(numbered(number * 10 + part * 2, 2)))
            assert case.run().found["events"] == 2
            assert case.run().found["events"] == 0
    assert case.stored == case.written
