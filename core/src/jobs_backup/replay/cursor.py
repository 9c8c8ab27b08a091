"""Cursors to resume `replay`. A cursor names its selection: in another one it would skip events."""

from __future__ import annotations

import hashlib
from typing import Final
from urllib.parse import quote, unquote

import msgspec

from jobs_backup.errors import ConfigurationError
from jobs_backup.replay.selection import Query

_DIGITS: Final = 8


def write_cursor(place: str, selection: bytes, query: Query) -> str:
    """Make the cursor for `--after`: `PLACE:SINCE:UNTIL:SELECTION[LOOKED_AT]CHECK`.

    In ASCII that every terminal and shell passes on unchanged.

    Args:
        place: see `Replay.cursor`.
        selection: everything that decides which objects are replayed, and in which order.
        query: its times are kept, because "2 hours ago" means another time when the replay resumes.
    """
    times = (str(at) if at is not None else "" for at in (query.since, query.until))
    body = ":".join((quote(place, safe="/:"), *times, f"{_digest(selection)}{query.looked_at or ''}"))
    return body + _digest(body.encode())


def read_cursor(cursor: str, selection: bytes, query: Query) -> tuple[str, Query]:
    """Parse a cursor: the place, and the query with the times of the run that wrote the cursor.

    Raises:
        ConfigurationError: the cursor is damaged, or belongs to another selection.
    """
    body, check = cursor[:-_DIGITS], cursor[-_DIGITS:]
    if _digest(body.encode()) != check or body.count(":") < 3:
        raise ConfigurationError(
            f"--after {cursor!r} is not a complete cursor", hint="copy what the earlier run printed, in quotes"
        )
    place, since, until, belongs_to = body.rsplit(":", 3)
    if belongs_to[:_DIGITS] != _digest(selection):
        raise ConfigurationError(
            "--after belongs to another selection, and would skip events of this one",
            hint="use the bucket and the options of the run that printed it: --since, --until, --source-id, --workspace-id, --kind,"
            " --list and --wrapped-only",
        )
    times = [int(text) if text else None for text in (since, until, belongs_to[_DIGITS:])]
    return unquote(place), msgspec.structs.replace(query, since=times[0], until=times[1], looked_at=times[2])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
