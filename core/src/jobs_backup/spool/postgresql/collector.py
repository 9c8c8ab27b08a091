"""Collect the outbox: what transactions of applications have committed becomes sealed batches.

A collection is one transaction: it removes rows, and seals batches of their events. Any process may collect, and be killed while it
does: no session is needed. Rows appear when their transaction commits, however late, and go into the next collection. So no batch
waits for a transaction, and a batch has no gap where one was rolled back.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jobs_backup.format.compression import GZIP
from jobs_backup.model import Kind, Stream
from jobs_backup.spool.batches import BatchOptions
from jobs_backup.spool.chunks import Chunk, ChunkKind
from jobs_backup.spool.ids import INDEX_BITS, LOCAL_BITS
from jobs_backup.spool.interface import BatchLimits, Damage
from jobs_backup.spool.open_batch import MEMBER_BYTES, OpenBatch
from jobs_backup.spool.postgresql.aliases import Alias, aliases_of
from jobs_backup.spool.postgresql.catalog import open_in, report, restore_range, seal
from jobs_backup.spool.postgresql.chunks import Changes, is_good
from jobs_backup.spool.postgresql.connection import NOW, Database, one, sql
from jobs_backup.spool.postgresql.deliveries import move_marks
from jobs_backup.spool.postgresql.rows import ROW, row_of, stream_of
from jobs_backup.spool.postgresql.segments import last_segment
from jobs_backup.util.logs import logger_of

if TYPE_CHECKING:
    from jobs_backup.spool.postgresql.connection import Db

log: Final = logger_of(__name__)

COLLECTED_BYTES: Final = 32 << 20
"""So many bytes of rows are collected in one transaction, and are enough to be collected before their time."""
_COLLECTED_RAW_BYTES: Final = 1 << 30
"""Maximum of lines in one transaction, unless a row alone has more: the server ends one whose process compresses for a lease."""
_COLLECTED_ROWS: Final = 50_000
"""Maximum of rows in one transaction. So many are enough, too."""
_KEYS: Final = "unnest(%s::bigint[], %s::integer[]) k (batch, start) WHERE o.batch = k.batch AND o.start = k.start"


class _Row(NamedTuple):
    """A row of the outbox, with its bytes as the collector has read them."""

    batch: int
    start: int
    events: int
    raw_bytes: int
    first_at: int
    last_at: int
    form: int
    crc32c: int
    data: bytes
    workspace_id: str
    source_id: str
    epoch: int


class Collector:
    """Makes batches of what waits in the outbox. Any number of threads and processes may do it at once."""

    def __init__(
        self,
        database: Database,
        placement: BatchOptions,
        limits: BatchLimits,
        *,
        session: Callable[[], str],
        lease: float,
    ) -> None:
        """Open it.

        Args:
            placement: for events whose own was forgotten.
            session: names this process's.
            lease: seconds after which the server ends a transaction whose process hangs.
        """
        self._database = database
        self._placement = placement
        self._limits = limits
        self._session = session
        self._lease = lease

    def collect_due(self) -> int:
        """Collect if enough waits, or something has waited for long enough. Returns how many batches were sealed."""
        query = (
            "SELECT coalesce(sum(events) >= %s OR sum(size) >= %s OR count(*) >= %s, false)"
            # Later than now: the server's clock was set back.
            f" OR coalesce(min(recorded_at) <= {NOW} - %s OR max(recorded_at) > {NOW} + 60, false)"
            " FROM (SELECT events, size, recorded_at FROM jobs_backup.outbox LIMIT %s) w"
        )
        # Enough rows are due whatever their age, so it does not matter which of them these are.
        rows = min(self._limits.events, _COLLECTED_ROWS)
        limits = (self._limits.events, COLLECTED_BYTES, rows, self._limits.age, rows)
        is_due = bool(self._database.read(lambda db: one(db, query, limits)[0]))
        return self.collect() if is_due else 0

    def collect(self) -> int:
        """Collect everything whose transaction has committed by now. Returns how many batches were sealed."""
        sealed = 0
        while True:
            keys, is_all = self._waiting()
            if not keys:
                return sealed
            if rows := self._rows(keys):  # else others have collected all of them since
                sealed += self._database.write(lambda db, rows=rows: self._seal(db, rows), is_idempotent=True)  # type: ignore[misc]
            if is_all:
                return sealed

    def give_space_back(self) -> None:
        """Give the space of rows that were collected back to the disk."""
        self._database.write(lambda db: db.execute("SELECT jobs_backup.empty_outbox()"), is_idempotent=True)

    def _waiting(self) -> tuple[list[tuple[int, int]], bool]:
        """The keys of rows for one collection, the oldest first, and whether these are all."""
        query = "SELECT batch, start, size, raw_bytes FROM jobs_backup.outbox ORDER BY recorded_at LIMIT %s"
        found = self._database.read(lambda db: db.execute(query, (_COLLECTED_ROWS,)).fetchall())
        keys: list[tuple[int, int]] = []
        size = raw_bytes = 0
        for batch, start, *its in found:
            size, raw_bytes = size + its[0], raw_bytes + its[1]
            if keys and (size > COLLECTED_BYTES or raw_bytes > _COLLECTED_RAW_BYTES):
                return keys, False
            keys.append((batch, start))
        return keys, len(found) < _COLLECTED_ROWS

    def _rows(self, keys: Sequence[tuple[int, int]]) -> list[_Row]:
        """Read them before the transaction: a process that is frozen while it reads must hold no lock."""
        query = (
            "SELECT o.batch, o.start, events, raw_bytes, first_at, last_at, form, crc32c, data, workspace_id, source_id, epoch"
            f" FROM jobs_backup.outbox o, {_KEYS}"
        )
        return self._database.read(lambda db: [_Row(*row) for row in db.execute(query, _columns(keys), binary=True)])

    def _seal(self, db: Db, rows: Sequence[_Row]) -> int:
        """Remove these rows, and seal batches of them. What another process has collected meanwhile is left to it."""
        db.execute(sql(f"SET LOCAL idle_in_transaction_session_timeout = '{int(self._lease * 1000)}ms'"))
        restore_range(db, {(row.batch, row.epoch, row.workspace_id, row.source_id) for row in rows}, self._placement)
        locked = db.execute(f"{ROW} WHERE id = ANY(%s) ORDER BY id FOR UPDATE", (sorted({row.batch for row in rows}),))
        placements = {row.id: row.placement for row, _ in map(row_of, locked.fetchall())}
        deleted = db.execute(
            f"DELETE FROM jobs_backup.outbox o USING {_KEYS} RETURNING o.batch, o.start", _columns([row[:2] for row in rows])
        )
        mine = set(deleted.fetchall())
        batches: defaultdict[BatchOptions, list[tuple[Stream, list[_Row]]]] = defaultdict(list)
        for (placement, stream), its in self._by_place([row for row in rows if row[:2] in mine], placements).items():
            batches[placement] += [(stream, some) for some in self._split(db, stream, its)]
        sealed = 0
        segment = last_segment(db) if batches else 0
        for placement, planned in batches.items():
            sealed += self._seal_at(db, placement, planned, segment)
        return sealed

    def _by_place(self, rows: Sequence[_Row], placements: dict[int, BatchOptions]) -> dict[tuple[BatchOptions, Stream], list[_Row]]:
        found: defaultdict[tuple[BatchOptions, Stream], list[_Row]] = defaultdict(list)
        for row in sorted(rows, key=lambda one: one[:2]):  # in the order of their ids: see `Alias`
            found[placements[row.batch], stream_of(Kind.RAW, row.workspace_id, row.source_id)].append(row)
        return found

    def _split(self, db: Db, stream: Stream, rows: Sequence[_Row]) -> list[list[_Row]]:
        """The undamaged rows of a stream, by batches."""
        batches: list[list[_Row]] = []
        events = size = 0
        for row in rows:
            if not is_good(row[:9]):
                why = "these are not the bytes that an application recorded in its transaction"
                report(db, Damage(0, stream, row.batch << INDEX_BITS | row.start, row.events, "", why), row.data)
                log.error("%d events of the outbox are in quarantine: %s", row.events, why)
                continue
            if not batches or events + row.events > self._limits.events or size >= self._limits.bytes:
                batches.append([])
                events = size = 0
            batches[-1].append(row)
            events, size = events + row.events, size + row.raw_bytes
        return batches

    def _seal_at(self, db: Db, placement: BatchOptions, planned: Sequence[tuple[Stream, list[_Row]]], segment: int) -> int:
        epoch = secrets.randbits(LOCAL_BITS - 1) + 1  # of ids that nobody gets: those of the outbox stand for them
        numbers = open_in(db, [stream for stream, _ in planned], placement, self._session(), segment, epoch)
        changes = Changes(db, dict.fromkeys(numbers, segment), self._database.name)
        made: list[OpenBatch] = []
        aliases: list[Alias] = []
        for number, (stream, rows) in zip(numbers, planned, strict=True):
            batch = OpenBatch(number, epoch, stream, placement)
            _fill(batch, changes, rows)
            made.append(batch)
            aliases += aliases_of(number, [(row.batch, row.start, row.events) for row in rows])
        changes.write()
        seal(db, [batch.seal() for batch in made])
        move_marks(db, aliases)
        return len(made)


def _fill(batch: OpenBatch, changes: Changes, rows: Sequence[_Row]) -> None:
    member: list[_Row] = []
    size = 0
    for index, row in enumerate(rows, 1):
        member.append(row)
        size += row.raw_bytes
        if size >= MEMBER_BYTES or index == len(rows):
            data = b"".join(GZIP.decompress(one.data) if one.form == ChunkKind.COMPRESSED else one.data for one in member)
            first_at, last_at = min(one.first_at for one in member), max(one.last_at for one in member)
            events = sum(one.events for one in member)
            batch.add_member(changes, Chunk(0, events, 0, first_at, last_at, ChunkKind.RAW), data)
            member, size = [], 0


def _columns(keys: Sequence[Sequence[Any]]) -> tuple[list[Any], list[Any]]:
    return [key[0] for key in keys], [key[1] for key in keys]
