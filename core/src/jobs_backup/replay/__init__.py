"""Replay events from the bucket: `selection` finds the objects, `lines` reads their lines, `replay` writes them."""

from jobs_backup.replay.cursor import read_cursor, write_cursor
from jobs_backup.replay.replay import Damaged, Replay, Unwritten
from jobs_backup.replay.selection import (
    Found,
    Knowledge,
    Query,
    Selection,
    knowledge,
    known,
    listed,
    sources_in,
    split_cursor,
)

__all__ = [
    "Damaged",
    "Found",
    "Knowledge",
    "Query",
    "Replay",
    "Selection",
    "Unwritten",
    "knowledge",
    "known",
    "listed",
    "read_cursor",
    "sources_in",
    "split_cursor",
    "write_cursor",
]
