"""Events back from the bucket: `selection` finds the objects, `lines` knows what is in them, `replay` gives it."""

from jobs_backup.replay.cursor import read_cursor, write_cursor
from jobs_backup.replay.replay import Damaged, Replay
from jobs_backup.replay.selection import Found, Query, Selection, elsewhere, known, listed, split_cursor

__all__ = [
    "Damaged",
    "Found",
    "Query",
    "Replay",
    "Selection",
    "elsewhere",
    "known",
    "listed",
    "read_cursor",
    "split_cursor",
    "write_cursor",
]
