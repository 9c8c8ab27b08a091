"""Replay events from the bucket: `selection` finds the objects, `lines` reads their lines, `replay` writes them."""

from jobs_backup.replay.cursor import read_cursor, write_cursor
from jobs_backup.replay.replay import Damaged, Replay, Unwritten
from jobs_backup.replay.selection import (
    Knowledge,
    ObjectRef,
    Query,
    Selection,
    from_catalog,
    from_listing,
    knowledge,
    sources_in,
    split_cursor,
)

__all__ = [
    "Damaged",
    "Knowledge",
    "ObjectRef",
    "Query",
    "Replay",
    "Selection",
    "Unwritten",
    "from_catalog",
    "from_listing",
    "knowledge",
    "read_cursor",
    "sources_in",
    "split_cursor",
    "write_cursor",
]
