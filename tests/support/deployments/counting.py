"""Which events were acknowledged, and where each of them ended up."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from buckets import left_over, lines, objects
from commands import run

RECEIPTS = "receipts"


class Receipts:
    """A file of the ids of events whose `record()` has returned. Any number of processes append to it; it survives a kill."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory / RECEIPTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, id_: str) -> None:
        os.write(self._descriptor, f"{id_}\n".encode())


class Outcome(NamedTuple):
    """The result of a run. The defaults are the required result.

    Attributes:
        lost: acknowledged and not in the bucket.
        twice: in the bucket more than once, acknowledged or not.
        damaged: databases that fail their integrity check, before or after the spool was drained.
        code: the exit code of `archive --once`.
        left: files in the drained spool that an idle one does not have.
    """

    lost: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    code: int = 0
    left: tuple[str, ...] = ()


def acknowledged(directory: Path) -> list[str]:
    return (directory / RECEIPTS).read_text().splitlines()


def ids_in(contents: Iterable[bytes]) -> Counter[str]:
    """Count each event in these objects."""
    return Counter(json.loads(line)["payload"]["messageId"] for line in lines(contents))


def outcome(directory: Path, environment: Mapping[str, str], read: Callable[[], Iterable[bytes]] | None = None) -> Outcome:
    """Drain the spool after its last process has left, and count.

    Args:
        read: the objects in the bucket; those of the directory, if None.
    """
    damaged = _damaged(directory / "spool")
    code, _, _ = run("archive", "--once", "--json", env=dict(environment))
    damaged += _damaged(directory / "spool")
    found = ids_in(objects(directory).values() if read is None else read())
    return Outcome(
        lost=tuple(id_ for id_ in acknowledged(directory) if id_ not in found),
        twice=tuple(id_ for id_, times in found.items() if times > 1),
        damaged=tuple(damaged),
        code=code,
        left=tuple(left_over(directory)),
    )


def _damaged(spool: Path) -> list[str]:
    """Check copies: opening a database may change it."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(spool, Path(scratch) / "spool"))
        found: list[str] = []
        for path in (copy / "catalog.db", *(copy / "blobs").glob("*.db")):
            with closing(sqlite3.connect(path)) as connection:
                try:
                    said = connection.execute("PRAGMA integrity_check").fetchone()[0]
                except sqlite3.DatabaseError as error:
                    said = str(error)
            if said != "ok":
                found.append(f"{path.name}: {said}")
        return found
