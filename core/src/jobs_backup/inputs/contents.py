"""What any process has read of inputs: looked up once per run, and kept up to date during it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from jobs_backup.errors import SpoolCorrupt
from jobs_backup.inputs.identity import Position, SeenFile
from jobs_backup.spool.interface import InputPosition, Spool

_NO_LINE: Final = "no line"


class Known(NamedTuple):
    """A content that was read before.

    Attributes:
        id: of its position, in the spool.
        at: of its position.
    """

    id: str
    at: int
    position: Position

    @classmethod
    def of(cls, position: InputPosition) -> Known:
        """Parse a position. Raises SpoolCorrupt if it is damaged."""
        try:
            return cls(position.input, position.at, msgspec.json.decode(position.position, type=Position))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SpoolCorrupt(
                f"the noted position of an input is not what was written: {error}",
                hint="check the disk; move the spool away to start over",
            ) from error


class Contents:
    """The contents that were read for one purpose.

    Other processes may read on in the meantime: `look` finds new contents, and `is_current` detects progress on a known one.
    """

    def __init__(self, spool: Spool, job: str) -> None:
        """`job` is their purpose. Looks up nothing yet."""
        self.prefix = prefix_of(spool, job)
        self._spool = spool
        self._seen: dict[str, dict[str, int]] = {one: {} for one in (self.prefix, *moved(spool, _prefix(job)))}
        self._known: dict[str, Known] = {}
        self._index: defaultdict[object, dict[str, Known]] = defaultdict(dict)
        self._at = 0
        self._is_loaded = False

    def load(self) -> None:
        """Look up the contents on first use."""
        if not self._is_loaded:
            self.look()

    def look(self) -> None:
        """Look up new contents. Raises SpoolError."""
        for prefix, seen in self._seen.items():
            for position in self._spool.new_positions(prefix, seen):
                self._note_newer(Known.of(position))
        self._is_loaded = True

    def is_current(self, known: Known) -> bool:
        """Whether no other process has read on in the meantime; its progress is noted. Raises SpoolError."""
        position = self._spool.position(known.id)
        if position is None or position.at == known.at:
            return True
        self.note(Known.of(position))
        return False

    def note(self, known: Known) -> None:
        """Note how far a content has been read."""
        if (before := self._known.get(known.id)) is not None:
            for key in _keys(before):
                del self._index[key][known.id]
        self._known[known.id] = known
        for key in _keys(known):
            self._index[key][known.id] = known
        self._at = max(self._at, known.at)

    def next_at(self) -> int:
        """Number for the next position: above all others. A counter, since a clock may jump."""
        self._at += 1
        return self._at

    def in_file(self, seen: SeenFile) -> Known | None:
        """What was last read of a file."""
        return _latest(
            one for one in self._index["inode", seen.inode].values() if one.position.seen and one.position.seen.is_file(seen)
        )

    def at_path(self, seen: SeenFile) -> Known | None:
        """What was last read at the path of a file."""
        return _latest(self._index["path", seen.path].values())

    def beginning_with(self, first: str) -> list[Known]:
        """Contents with this first line, and those of which only part of the first line is known."""
        return [*{**self._index["first", first], **self._index[_NO_LINE]}.values()]

    def is_unchanged(self, seen: SeenFile) -> Known | None:
        """The content of a file that was completely read and not written since. Needs no reading to see that."""
        known = self.in_file(seen)
        return known if known and known.position.seen and known.position.seen.is_unchanged(seen) else None

    def _note_newer(self, known: Known) -> None:
        before = self._known.get(known.id)
        if before is None or before.at < known.at:
            self.note(known)


def _keys(known: Known) -> list[object]:
    position = known.position
    keys: list[object] = [("first", position.first)]
    if position.seen is not None:
        keys += [("inode", position.seen.inode), ("path", position.seen.path)]
    return keys if position.line else [*keys, _NO_LINE]


def _latest(some: Iterable[Known]) -> Known | None:
    return max(some, key=lambda one: one.at, default=None)


def prefix_of(spool: Spool, job: str) -> str:
    """The prefix of the ids of positions for one purpose: the same path on another machine is another input."""
    return _prefix(f"{spool.host}\0{job}" if spool.host else job)


def moved(spool: Spool, id_: str) -> tuple[str, ...]:
    """What an id, or the beginning of one, became when this machine's own spool was moved into a shared one."""
    return (f"{spool.host}/{id_}",) if spool.host else ()


def _prefix(job: str) -> str:
    return digest(job)[:16] + "-"


def digest(text: str) -> str:
    """Hash of a text, in letters and digits, for names."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
