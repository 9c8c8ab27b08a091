"""Events on their way into the spool: encoded, ordered by stream, and numbered once recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, cast

from jobs_backup.backup.events import Event, Jobs
from jobs_backup.errors import InvalidEvent
from jobs_backup.format import lines as encoding
from jobs_backup.format.lines import Payload
from jobs_backup.model import Kind, Stream
from jobs_backup.spool.interface import Recording

_STREAM_BYTES: Final = 4 << 20
"""Bytes of lines in a chunk, per stream. Smaller commits wait for the disk more often, and smaller pieces compress worse."""
_MAX_STREAMS: Final = 8
"""More streams than this share the memory of this many."""


def raw_stream(workspace_id: str, source_id: str) -> Stream:
    """The stream of a source's events. Raises InvalidEvent."""
    if not source_id:
        raise InvalidEvent("source_id is empty", hint="pass the source that the event comes from")
    for name, value in (("source_id", source_id), ("workspace_id", workspace_id)):
        try:
            value.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise InvalidEvent(f"{name} {value!a} cannot be encoded as UTF-8") from error
    return Stream(Kind.RAW, workspace_id, source_id)


def recording(event: Event) -> Recording:
    """What is kept of an event. Raises InvalidEvent."""
    at = encoding.now() if event.created_at is None else encoding.microseconds(event.created_at)
    line = encoding.raw_line(event.payload, encoding.timestamp(at), event.user_id, event.message_id)
    return Recording(raw_stream(event.workspace_id, event.source_id), [line], first_at=at, last_at=at)


def each_of(payloads: object) -> Iterator[Payload | Event]:
    """Iterate over payloads. Raises InvalidEvent for a single payload, whose characters or keys would pass for payloads."""
    kind = type(payloads)
    if not isinstance(payloads, Iterable) or issubclass(kind, (Mapping, str, bytes, bytearray, memoryview)):
        one = kind.__name__
        raise InvalidEvent(f"record_many takes a list of payloads, not one {one}: pass a list", hint="`record` takes one payload")
    return iter(cast(Iterable[Payload | Event], payloads))


class RecordChunk:
    """Encoded events on their way into one commit."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], Recording] = {}  # by workspace and source
        self._order: list[Recording] = []  # each event's recording, in order of arrival
        self._bytes = 0
        self._now = encoding.now()
        self._now_text = encoding.timestamp(self._now)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def recordings(self) -> list[Recording]:
        return list(self._of.values())

    def fill(self, payloads: Iterator[Payload | Event], source: Stream | None) -> bool:
        """Encode events until the chunk is full, or no more are left. Returns False in the latter case.

        `source` is the stream of payloads that are not Events. Raises InvalidEvent; events before the invalid one are in the chunk.
        """
        of, order, now, now_text = self._of, self._order, self._now, self._now_text
        own = None if source is None else (source.workspace_id, source.source_id)
        for one in payloads:
            at, text = now, now_text
            if isinstance(one, Event):
                key = (one.workspace_id, one.source_id)
                if one.created_at is not None:
                    at = encoding.microseconds(one.created_at)
                    text = encoding.timestamp(at)
                line = encoding.raw_line(one.payload, text, one.user_id, one.message_id)
            elif own is not None:
                key = own
                line = encoding.raw_line(one, text)
            else:
                raise InvalidEvent("source_id is missing", hint="pass source_id, or Event objects that carry their own")
            try:
                recording = of.get(key)
            except TypeError:  # they are not text, which `raw_stream` reports
                recording = None
            if recording is None:
                recording = of[key] = Recording(raw_stream(*key), [], first_at=at, last_at=at)
            recording.lines.append(line)
            if at > recording.last_at:  # runs for each event: `min` and `max` would be calls
                recording.last_at = at
            elif at < recording.first_at:
                recording.first_at = at
            order.append(recording)
            self._bytes += len(line)
            if self._bytes >= _STREAM_BYTES and self._bytes >= _STREAM_BYTES * min(len(of), _MAX_STREAMS):
                return True
        return False

    def number(self, jobs: Jobs) -> None:
        """Add the ids that the events got, in order of arrival."""
        if len(self._of) == 1:
            for first, count in self.recordings[0].jobs:
                jobs.add_run(first, count)
            return
        ids = {id(recording): recording.ids() for recording in self._of.values()}
        jobs.add(next(ids[id(recording)]) for recording in self._order)
