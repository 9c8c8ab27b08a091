"""Events on their way into the spool: encoded, ordered by stream, and numbered when they are there."""

from __future__ import annotations

from typing import Final

from jobs_backup import encoding
from jobs_backup.encoding import Payload
from jobs_backup.errors import InvalidEvent
from jobs_backup.jobs import Event, Jobs
from jobs_backup.model import Kind, Stream
from jobs_backup.spool.open_batch import MEMBER_BYTES
from jobs_backup.spool.writer import Recording

_CHUNK_EVENTS: Final = 10_000


def raw_stream(workspace_id: str, source_id: str) -> Stream:
    """The stream of a source's events. Raises InvalidEvent."""
    if not source_id:
        raise InvalidEvent("source_id is empty", hint="say which source the event comes from")
    for name, value in (("source_id", source_id), ("workspace_id", workspace_id)):
        try:
            value.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise InvalidEvent(f"{name} {value!a} is no text that can be written as UTF-8") from error
    return Stream(Kind.RAW, workspace_id, source_id)


class Chunk:
    """Encoded events on their way into one commit; several streams, at most about MEMBER_BYTES."""

    def __init__(self) -> None:
        self.recordings: dict[Stream, Recording] = {}
        self._order: list[tuple[Recording, int]] = []  # runs of events of one stream, in the order in which they came
        self._events = 0
        self._bytes = 0
        self._now = encoding.now()
        self._now_text = encoding.timestamp(self._now)

    @property
    def is_full(self) -> bool:
        return self._bytes >= MEMBER_BYTES or self._events >= _CHUNK_EVENTS

    def add(self, one: Payload | Event, source: Stream | None) -> None:
        at, text = self._now, self._now_text
        if isinstance(one, Event):
            source = raw_stream(one.workspace_id, one.source_id)
            if one.created_at is not None:
                at = encoding.microseconds(one.created_at)
                text = encoding.timestamp(at)
            line = encoding.raw_line(one.payload, text, one.user_id, one.message_id)
        elif source is None:
            raise InvalidEvent("source_id is missing", hint="pass source_id, or Event objects that carry their own")
        else:
            line = encoding.raw_line(one, text)
        recording = self.recordings.get(source)
        if recording is None:
            recording = self.recordings[source] = Recording(source, [], first_at=at, last_at=at)
        recording.lines.append(line)
        recording.last_at = at
        if self._order and self._order[-1][0] is recording:
            self._order[-1] = (recording, self._order[-1][1] + 1)
        else:
            self._order.append((recording, 1))
        self._events += 1
        self._bytes += len(line)

    def number(self, jobs: Jobs) -> None:
        """Add the ids that the events got."""
        runs = {id(recording): recording.jobs[::-1] for recording in self.recordings.values()}
        for recording, events in self._order:
            jobs.add(runs[id(recording)], events)
