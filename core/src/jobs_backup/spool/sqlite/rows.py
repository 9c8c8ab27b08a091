"""What the rows of the catalog are, for those who read and write them."""

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
        """Of the key."""
        return self.compression.suffix + "".join(f".{one.partition('=')[0]}" for one in self.wrappers)


class BatchHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a batch is bound to when it is opened, as its blob file keeps it: so that the file can do without the catalog.

    Attributes:
        origin: epoch and number that it was opened with, if another batch has taken the number. They name its object.
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
    """A batch without what sealing fixes."""

    id: int
    epoch: int
    opened_at: float
    stream: Stream
    placement: BatchOptions


class Seal(NamedTuple):
    """What sealing fixes of a batch; see the columns."""

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
