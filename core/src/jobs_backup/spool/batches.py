"""The rows of the catalog, for its readers and writers."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from jobs_backup.format.compression import GZIP, Compression
from jobs_backup.model import Kind, Stream


class BatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch is bound to when it is opened: the store's number, compression, wrappers, and the parts of its key."""

    store: int
    prefix: str
    instance_id: str
    compression: Compression = GZIP
    wrappers: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """The suffix of its key."""
        return self.compression.suffix + "".join(f".{one.partition('=')[0]}" for one in self.wrappers)


class BatchHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch is bound to when it is opened, as kept in its blob file, which can thus do without the catalog.

    Attributes:
        origin: the epoch and number it was opened with, if another batch has taken the number. They name its object.
    """

    epoch: int
    kind: Kind
    workspace_id: str
    source_id: str
    location: str
    prefix: str
    instance_id: str
    compression: str
    wrappers: tuple[str, ...]
    origin: tuple[int, int] | None = None


class BatchRow(NamedTuple):
    """A batch without the fields that sealing fixes."""

    id: int
    epoch: int
    opened_at: float
    stream: Stream
    placement: BatchOptions


class Seal(NamedTuple):
    """The fields of a batch that sealing fixes; see the table `batches`."""

    jobs: int
    events: int
    raw_bytes: int
    first_at: int
    last_at: int
    size: int
    crc32c: int
    uuid: str
    key: str
    id: int
