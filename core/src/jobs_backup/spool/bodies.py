"""The members of a batch as one file, whatever keeps them."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

from jobs_backup.model import SeekableReader


class MembersReader(SeekableReader):
    """Read members as one file. Holds one of them in memory."""

    def __init__(self, ends: Sequence[int], read: Callable[[int], bytes], close: Callable[[], None]) -> None:
        """`ends` is where each member ends in the file; `read` returns one by its index; `close` is called once, at the end."""
        super().__init__(ends[-1] if ends else 0)
        self._ends = ends
        self._read_member = read
        self._close = close

    def piece(self, position: int, size: int) -> tuple[int, bytes]:  # noqa: ARG002 - as large as the member is
        index = bisect.bisect_right(self._ends, position)
        member = self._read_member(index)
        return self._ends[index] - len(member), member

    def release(self) -> None:
        self._close()
