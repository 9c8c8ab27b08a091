"""Select the requested lines of an object, whatever its compression and writer."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final, cast

import msgspec
from isal import igzip

from jobs_backup.errors import IntegrityError
from jobs_backup.format import surrogates
from jobs_backup.format.lines import microseconds
from jobs_backup.model import Kind
from jobs_backup.replay.selection import ObjectRef, Query

_BLOCK: Final = 1 << 20


def line_filter(query: Query, found: ObjectRef, seen: set[str], *, payload_only: bool) -> Callable[[bytes], bytes]:
    """Make a function that returns the requested part of a line; empty if none. Lines are parsed only where necessary.

    Sources and workspaces of the query that appear in lines, and nowhere else, are added to `seen`.
    """
    begin, end = found.bounds
    since = query.since if query.since is not None and begin < query.since else None
    until = query.until if query.until is not None and end >= query.until else None
    if query.kind is Kind.FAILED:
        since, until = query.since, query.until
    # With the catalog, objects are chosen by what it knows about them.
    by_line = query.kind is Kind.FAILED and found.crc32c is None
    sources = query.source_ids if by_line else ()
    workspaces = query.workspace_ids if by_line else ()
    if not payload_only and since is None and until is None and not sources and not workspaces:
        return lambda line: line if not line.isspace() else b""

    def pick(line: bytes) -> bytes:
        if line.isspace():
            return b""
        event, parsed = surrogates.decode(_decode, line)
        if sources:
            if event.source not in sources:
                return b""
            seen.add(event.source)
        if workspaces:
            if event.workspace not in workspaces:
                return b""
            seen.add(event.workspace)
        if since is not None or until is not None:
            at = event.at
            if (since is not None and at < since) or (until is not None and at >= until):
                return b""
        return surrogates.original(line, parsed, event.content) if payload_only else line

    return pick


class _Event(msgspec.Struct):
    """A line: one of ours, or a job as RudderStack wrote its failures."""

    payload: msgspec.Raw = msgspec.Raw()
    created_at: str | None = msgspec.field(default=None, name="createdAt")
    failed_at: str | None = msgspec.field(default=None, name="failedAt")
    source_id: str | None = msgspec.field(default=None, name="sourceId")
    workspace_id: str | None = msgspec.field(default=None, name="workspaceId")
    their_payload: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="EventPayload")
    their_created_at: str | None = msgspec.field(default=None, name="CreatedAt")
    their_workspace_id: str | None = msgspec.field(default=None, name="WorkspaceId")
    their_parameters: msgspec.Raw = msgspec.field(default=msgspec.Raw(b"null"), name="Parameters")

    @property
    def content(self) -> bytes:
        found = bytes(self.payload) or bytes(self.their_payload)
        if not found:
            raise ValueError("it has no payload")
        return found

    @property
    def at(self) -> int:
        text = self.failed_at or self.created_at or self.their_created_at
        if not text:
            raise ValueError("it has no time")
        when = datetime.fromisoformat(text)
        return microseconds(when if when.tzinfo else when.replace(tzinfo=UTC))

    @property
    def source(self) -> str:
        if self.source_id is not None:
            return self.source_id
        parameters: object = json.loads(bytes(self.their_parameters))
        return str(cast(dict[str, object], parameters).get("source_id", "")) if isinstance(parameters, dict) else ""

    @property
    def workspace(self) -> str:
        return self.workspace_id or self.their_workspace_id or ""


# isal is only partly typed.
_gzip_file: Final[Callable[..., object]] = igzip.IGzipFile  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
_decode: Final = msgspec.json.Decoder(_Event).decode


def opened(key: str, file: BinaryIO) -> closing[BinaryIO]:
    """An object's lines, decompressed."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    raw: BinaryIO
    errors: tuple[type[Exception], ...] = ()
    if magic.startswith(b"\x1f\x8b"):
        raw = cast(BinaryIO, _gzip_file(fileobj=file, mode="rb"))
    elif magic == b"\x28\xb5\x2f\xfd":
        from jobs_backup.util.zstd import zstd  # noqa: PLC0415 - only for those who need it

        raw, errors = cast(BinaryIO, zstd.ZstdFile(file, "rb")), (zstd.ZstdError,)
    else:
        raise IntegrityError(f"{key} is neither gzip nor zstd")
    return closing(cast(BinaryIO, io.BufferedReader(_Checked(key, raw, errors), _BLOCK)))


class _Checked(io.RawIOBase):
    """Decompressed bytes. Damage raises IntegrityError."""

    def __init__(self, key: str, raw: BinaryIO, errors: tuple[type[Exception], ...]) -> None:
        self._key = key
        self._raw = raw
        self._errors: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, zlib.error, *errors)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            block = self._raw.read(len(buffer))
        except self._errors as error:
            raise IntegrityError(f"{self._key} is damaged: {error}") from error
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._raw.close()
        super().close()
