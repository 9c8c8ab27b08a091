"""Recognize what was read of a file before: by its content, whatever its name. Reports where that is ambiguous."""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

import msgspec

from jobs_backup.errors import AmbiguousInput
from jobs_backup.inputs.contents import Contents, Known
from jobs_backup.inputs.identity import Fingerprint, Sample, SeenFile
from jobs_backup.inputs.ndjson import Reader

_SECOND: Final = 1_000_000_000
_LOOKED_BEHIND: Final = 1 << 20

_AGAIN: Final = "--again, with this file alone, reads it from its beginning (what was recorded before is recorded twice)"


class Found(NamedTuple):
    """Where to read a file from.

    Attributes:
        known: the content that it holds; None if it is new.
        fingerprint: of the part that is not read again.
        sample: of the same part.
    """

    known: Known | None
    fingerprint: Fingerprint
    sample: Sample


class Recognition:
    """Compares one file with everything that was read before."""

    def __init__(self, reader: Reader, seen: SeenFile, contents: Contents, earlier: Known | None, *, append_only: bool) -> None:
        """Compare nothing yet.

        Args:
            contents: what was read for the same purpose.
            earlier: what an earlier version noted for the file's path.
            append_only: files only grow, and are never emptied.
        """
        self._reader = reader
        self._seen = seen
        self._contents = contents
        self._earlier = earlier
        self._append_only = append_only
        self._at_path = contents.at_path(seen)
        self._in_file = contents.in_file(seen)

    @property
    def is_replaced(self) -> bool:
        """Whether something else was read at its path before."""
        return self._earlier is not None or (self._at_path is not None and self._at_path.position.offset > 0)

    def find(self) -> Found:
        """Find where to resume. Reads the known part once more, to see that it is unchanged.

        Raises:
            AmbiguousInput: it cannot be determined.
            ConfigurationError: the file cannot be read.
            Stopped: the command is to end.
        """
        first = self._first()
        matches = self._matches(first)
        for known, prefix in reversed(matches):
            if Sample(known.position.sample).proves and self._counted(known, self._following(prefix)).proves:
                return self._resumed(known, prefix)
        for known, prefix in matches:
            if known == self._in_file:
                return self._in_same_file(known, prefix)
        if matches and matches[-1][1].offset:
            return self._in_other_file(*matches[-1])
        if self._at_path is None and self._in_file is None and self._earlier is not None:
            return self._as_earlier(self._earlier)
        self._refuse_rewritten(first)
        return self._new()

    def _first(self) -> str:
        start = Fingerprint()
        start.add(self._following(start))
        return start.first

    def _matches(self, first: str) -> list[tuple[Known, Fingerprint]]:
        """The contents that the file begins with, and its fingerprint up to there, the longest last."""
        # Of an unfinished first line, only the beginning is known.
        known = self._contents.beginning_with(first)
        known.sort(key=lambda one: one.position.offset)
        offsets = sorted({one.position.offset for one in known})
        prefixes = {prefix.offset: prefix for prefix in self._reader.fingerprints(offsets)}
        return [
            (one, prefix)
            for one in known
            if (prefix := prefixes.get(one.position.offset)) is not None and prefix.content == one.position.content
        ]

    def _in_same_file(self, known: Known, prefix: Fingerprint) -> Found:
        """Handle the same file: it may have grown, or was emptied and refilled with the same lines."""
        following = self._following(prefix)
        is_as_it_was = not following and self._has_time_of(known)
        repeats = Sample(known.position.sample).repeats or self._counted(known, following).recurs
        if repeats and not is_as_it_was and not self._append_only:
            raise AmbiguousInput(
                f"{self._reader.name}: its lines repeat, so it may have grown, or been emptied and refilled; none of it was read",
                hint=f"--append-only reads what was added, for files that are never emptied; {_AGAIN}",
            )
        return self._resumed(known, prefix)

    def _in_other_file(self, known: Known, prefix: Fingerprint) -> Found:
        """Handle another file that begins with the content: it was copied or compressed, or just has the same lines."""
        if not self._following(prefix) and self._has_time_of(known):
            return self._resumed(known, prefix)
        if self._append_only and Sample(known.position.sample).repeats:
            return self._new()
        raise AmbiguousInput(
            f"{self._reader.name} begins with the {max(1, prefix.line):,} lines that were read as {known.position.name}, which"
            " other files may have as well, so it may be a copy; none of it was read",
            hint=f"leave it out if it is a copy; {_AGAIN}",
        )

    def _as_earlier(self, earlier: Known) -> Found:
        """Compare only the first and last bytes, which is all that earlier versions noted."""
        size = earlier.position.offset
        if not self._reader.has_ends(size, earlier.position.digest):
            return self._new()
        sample = self._reader.sample_of(size)
        (prefix,) = self._reader.fingerprints([size])
        return self._in_same_file(
            earlier._replace(position=msgspec.structs.replace(earlier.position, sample=sample.kept())), prefix
        )

    def _refuse_rewritten(self, first: str) -> None:
        """Refuse the file if lines of its path, of the file, or of a file with the same first line were read before."""
        related = [one for one in self._contents.beginning_with(first) if one.position.first == first]
        related += [one for one in (self._at_path, self._in_file) if one is not None and one not in related]
        if self._append_only:  # another file is unrelated to one whose lines repeat
            related = [one for one in related if one == self._in_file or not Sample(one.position.sample).repeats]
        if not related:
            return
        now = self._reader.sample_of(max(one.position.offset for one in related) + _LOOKED_BEHIND)
        for known in related:
            if Sample(known.position.sample).overlaps(now):
                raise AmbiguousInput(
                    f"{self._reader.name} has lines that were read as {known.position.name}, among others that may be new; none"
                    " of it was read",
                    hint=f"put the new lines into a file of their own; or {_AGAIN}",
                )

    def _counted(self, known: Known, following: bytes) -> Sample:
        """Lines of a content, counted in what follows as well: lines that recur there prove nothing either."""
        return Sample(known.position.sample).among(following.split(b"\n"))

    def _following(self, prefix: Fingerprint) -> bytes:
        self._reader.go_to(prefix, Sample())
        return self._reader.look_ahead()

    def _has_time_of(self, known: Known) -> bool:
        # gzip, zstd, `mv` and `cp -p` keep the time, some of them only whole seconds. Written in the same second is not the same
        # time.
        seen, now = known.position.seen, self._seen.modified
        return seen is not None and now in (seen.modified, seen.modified // _SECOND * _SECOND)

    def _resumed(self, known: Known, prefix: Fingerprint) -> Found:
        return Found(known, prefix, Sample(known.position.sample))

    def _new(self) -> Found:
        return Found(None, Fingerprint(), Sample())


def new_id(prefix: str) -> str:
    """Id for a new content."""
    return prefix + secrets.token_hex(8)
