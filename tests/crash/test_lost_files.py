"""Missing, empty, older, unreadable or garbage files of a spool: each event is in the bucket once, or its file is named."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from wrecks import SUFFIXES, Process, Wreck, sample


def removed(path: Path, older: Path) -> None:
    path.unlink()


def emptied(path: Path, older: Path) -> None:
    os.truncate(path, 0)


def replaced(path: Path, older: Path) -> None:
    path.unlink()
    if older.exists():
        shutil.copyfile(older, path)


def garbage(path: Path, older: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(max(path.stat().st_size, 100)))


def directory(path: Path, older: Path) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path, older: Path) -> None:
    path.chmod(0)


def pipe(path: Path, older: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(path: Path, older: Path) -> None:
    """To the same file, moved away."""
    moved = path.parent.parent.parent / f"moved-{path.name}"
    path.rename(moved)
    path.symlink_to(moved)


def looped(path: Path, older: Path) -> None:
    """To itself."""
    path.unlink()
    path.symlink_to(path.name)


HOWS: Final[dict[str, Callable[[Path, Path], None]]] = {
    one.__name__: one for one in (removed, emptied, replaced, garbage, directory, unreadable, pipe, linked, looped)
}
FILES: Final = [
    *(f"{name}{suffix}" for name in ("catalog", "open", "other") for suffix in SUFFIXES), "left", "lock", "other lock",
    "ballast", "made",
]  # fmt: skip
SINGLE: Final = [((file, how),) for file in FILES for how in HOWS if how not in ("pipe", "linked", "looped")]
SPECIAL: Final = [((file, how),) for file in FILES for how in ("pipe", "linked", "looped")]
PAIRS: Final = [
    (one, other)
    for one, other in itertools.combinations([(file, how) for file in FILES for how in ("removed", "emptied", "garbage")], 2)
    # Losing the `left` file leaves no trace if the catalog is removed, too: see docs/promises.md.
    if one[0] != other[0] and not (one[0].startswith("catalog") and other == ("left", "removed"))
]
CATALOG: Final = [
    *([("catalog", how)] for how in ("removed", "emptied", "replaced")),
    *([(f"catalog{suffix}", how) for suffix in SUFFIXES] for how in ("removed", "replaced")),
]


def name(losses: object) -> str:
    return ",".join(f"{file}:{how}" for file, how in losses) if isinstance(losses, list | tuple) else str(losses)


def lose(wreck: Wreck, losses: object) -> set[str]:
    """Damage the files. Returns the names that may report it: those of files, and of their sessions."""
    names = set[str]()
    for file, how in losses:  # type: ignore[attr-defined]
        HOWS[how](wreck.path(file), wreck.older(file))
        names |= {Path(wreck.files[file]).name, Path(wreck.files[file]).name.partition(".")[0]}
    return names


def prove(wreck: Wreck, losses: object) -> None:
    """After any damage: exit 0 only with everything in the bucket, nothing twice, and missing files are named."""
    names = lose(wreck, losses)
    is_mighty = "unreadable" not in name(losses)
    before = contents(wreck)
    for _ in range(2):
        outcome = wreck.archive(is_mighty=is_mighty)
    missing = wreck.missing()
    if outcome.is_refusal:
        assert contents(wreck) == before, "what it refuses it leaves as it is"
    if missing or outcome.code:
        reported = wreck.reported(is_mighty=is_mighty)
        assert any(one in reported for one in names), f"none of {names} is named, {len(missing)} are missing: {reported}"


def contents(wreck: Wreck) -> dict[str, bytes]:
    """The contents of the files in `blobs/`, as far as they are readable."""
    return {path.name: path.read_bytes() for path in (wreck.spool / "blobs").iterdir() if path.is_file() and path.suffix == ".db"}


def test_of_a_killed_process_nothing_is_lost(wreck: Wreck) -> None:
    assert wreck.archive().code == 0
    assert not list((wreck.spool / "blobs").iterdir())


@pytest.mark.parametrize("losses", sample(SINGLE, 14), ids=name)
def test_a_file_is_lost(wreck: Wreck, losses: object) -> None:
    prove(wreck, losses)


@pytest.mark.parametrize("losses", sample(SPECIAL, 8), ids=name)
def test_a_file_becomes_something_else(wreck: Wreck, losses: object) -> None:
    prove(wreck, losses)


@pytest.mark.parametrize("losses", sample(PAIRS, 8), ids=name)
def test_two_files_are_lost(wreck: Wreck, losses: object) -> None:
    prove(wreck, losses)


@pytest.mark.parametrize("losses", sample(CATALOG, 3), ids=name)
def test_without_its_catalog_everything_is_in_the_bucket_once(wreck: Wreck, losses: object) -> None:
    lose(wreck, losses)
    assert wreck.archive().code == 0
    assert wreck.archive().json["objects"] == 0


@pytest.mark.parametrize("how", ["emptied", "garbage", "directory"])
def test_a_damaged_catalog_is_made_anew_as_the_error_says(wreck: Wreck, how: str) -> None:
    for suffix in SUFFIXES:
        HOWS[how](wreck.path(f"catalog{suffix}"), wreck.older(f"catalog{suffix}"))
    outcome = wreck.archive()
    if outcome.code:
        assert "catalog.db" in outcome.stderr
        for suffix in SUFFIXES:
            if (path := wreck.path(f"catalog{suffix}")).exists():
                path.rename(wreck.directory / path.name)
        assert wreck.archive().code == 0
    assert not wreck.missing()


@pytest.mark.parametrize("name", ["blobs", "locks", "quarantine", "rejects"])
def test_a_directory_is_lost(wreck: Wreck, name: str) -> None:
    shutil.rmtree(wreck.spool / name)
    for _ in range(2):
        outcome = wreck.archive()
    assert outcome.code == (1 if name == "blobs" else 0)
    assert wreck.missing() <= set(wreck.acknowledged)
    if name == "blobs":
        reported = wreck.reported()
        assert all(Path(wreck.files[file]).stem in reported for file in ("left", "open", "other"))


def test_numbers_of_a_lost_catalog_are_not_given_again(wreck: Wreck) -> None:
    """The new catalog must not reuse the numbers of batches that may be in the bucket."""
    assert wreck.archive().code == 0
    bucket = wreck.directory.parent / "bucket"
    (wreck.directory / "bucket").rename(bucket)
    wreck.restore()
    shutil.rmtree(wreck.directory / "bucket")
    bucket.rename(wreck.directory / "bucket")
    for suffix in SUFFIXES:
        wreck.path(f"catalog{suffix}").unlink()
    first = Process(wreck.env)
    first.record("web", [f"n{number}" for number in range(5)])
    first.record("app", ["n5"])
    wreck.archive()
    first.ask("close")
    wreck.acknowledged += [f"n{number}" for number in range(6)]
    try:
        assert wreck.archive().code == 0
        assert not wreck.missing()
    finally:
        del wreck.acknowledged[-6:]
