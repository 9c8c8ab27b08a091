"""Named moments at which a worker kills itself, or a disk fails: methods of the code, wrapped at run time.

The code under test has no hooks for this. A worker refuses to start if a point's method is missing, so a rename cannot go
unnoticed.
"""

from __future__ import annotations

import errno
import functools
import importlib
import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

Action = Callable[[], None]


def _always(_: tuple[Any, ...]) -> bool:
    return True


@dataclass(frozen=True)
class Point:
    """A moment: before or after a call of `target`, written as `module:Class.method`.

    Attributes:
        role: which workers reach it: those that `record`, those that `send`, or `any`. Some points need one `provider`.
        often: the passage is drawn from 1 to this.
        only: which calls count, by their positional arguments.
    """

    name: str
    target: str
    when: Literal["before", "after"]
    role: Literal["record", "send", "any"]
    often: int = 1
    provider: str = ""
    only: Callable[[tuple[Any, ...]], bool] = _always

    def arm(self, action: Action, passage: int, times: int = 1) -> None:
        """Perform `action` at this many passages, starting with the `passage`-th."""
        owner, name = resolve(self.target)
        found = vars(owner)[name]
        passages = _Passages(passage, times, action)
        function = found.__func__ if isinstance(found, classmethod) else found

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            counts = self.only(args)
            if counts and self.when == "before":
                passages.come_by()
            result = function(*args, **kwargs)
            if counts and self.when == "after":
                passages.come_by()
            return result

        setattr(owner, name, classmethod(wrapper) if isinstance(found, classmethod) else wrapper)


class _Passages:
    """Counts the calls of all threads, without a lock: a forked child would inherit the lock in its current state."""

    def __init__(self, first: int, times: int, action: Action) -> None:
        self._chosen = range(first, first + times)
        self._action = action
        self._counts = itertools.count(1)

    def come_by(self) -> None:
        if next(self._counts) in self._chosen:
            self._action()


def resolve(target: str) -> tuple[Any, str]:
    """Resolve `target` to its owner and the attribute's name.

    Raises:
        LookupError: it does not exist (any more): correct the table that names it.
    """
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, None)
    if owner is None or name not in vars(owner):
        raise LookupError(f"the crash campaign knows {target}, which does not exist: correct tests/support/campaign")
    return owner, name


def kill_self(note: int, name: str) -> Action:
    """kill -9, after writing the point's name to the file `note`."""

    def action() -> None:
        os.write(note, f"{name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    return action


def fail_with(code: int, note: int, name: str) -> Action:
    """Raise an operating system error, after writing it to the file `note`."""

    def action() -> None:
        os.write(note, f"{name}: {errno.errorcode[code]}\n".encode())
        raise OSError(code, os.strerror(code))

    return action


def _in_blobs(args: tuple[Any, ...]) -> bool:
    return bool(args[0].parent.name == "blobs")


def _in_locks(args: tuple[Any, ...]) -> bool:
    return bool(args[0].parent.name == "locks")


def _has_folded(args: tuple[Any, ...]) -> bool:
    return bool(args[0]._compacted)


_SQLITE: Final = "jobs_backup.spool.sqlite"
_SPOOL: Final = f"{_SQLITE}.spool:SqliteSpool"
_CATALOG: Final = f"{_SQLITE}.catalog:Catalog"
_WRITER: Final = f"{_SQLITE}.writer:Writer"
_BLOBS: Final = f"{_SQLITE}.blobs"
_LOCK: Final = f"{_SQLITE}.locks:ProcessLock"
_FLEET: Final = "jobs_backup.spool.postgresql"
_STORE: Final = "jobs_backup.store.object_store:ObjectStore"
_FILE: Final = "jobs_backup.store.file_provider"


def _of_any(engine: str) -> tuple[Point, ...]:
    """The moments that each engine of the spool has."""
    catalog, uploads, deliveries = f"{engine}.catalog:Catalog", f"{engine}.uploads:UploadJournal", f"{engine}.deliveries:Deliveries"
    return (
        # Recording
        Point("batch opened, nothing in it", f"{catalog}.open_batches", "after", "record", 4),
        Point("before the acknowledgement", "jobs_backup.spool.base:BaseSpool.append", "after", "record", 100),
        # Uploading
        Point("claimed", f"{catalog}.claim", "after", "send", 5),
        Point("object written, receipt not stored", f"{_STORE}.write", "after", "send", 4),
        Point("before the receipt is stored", f"{catalog}.stored", "before", "send", 4),
        Point("receipt stored", f"{catalog}.stored", "after", "send", 4),
        Point("failed, not given back", f"{catalog}.release", "before", "send", 2),
        Point("given back", f"{catalog}.release", "after", "send", 2),
        # Uploading in parts
        Point("before the create", f"{_STORE}.create_multipart", "before", "send", 2),
        Point("between create and journal", f"{uploads}.begin", "before", "send", 2),
        Point("journaled, no part", f"{uploads}.begin", "after", "send", 2),
        Point("part sent, not journaled", f"{uploads}.add_part", "before", "send", 3),
        Point("between parts", f"{uploads}.add_part", "after", "send", 3),
        Point("all parts sent", f"{_STORE}.complete_multipart", "before", "send", 2),
        Point("completed, still in the journal", f"{uploads}.forget", "before", "send", 2),
        Point("completed, receipt not stored", f"{uploads}.forget", "after", "send", 2),
        Point("upload lost, not abandoned", f"{uploads}.abandon", "before", "send"),
        Point("upload abandoned", f"{uploads}.abandon", "after", "send"),
        Point("before the abort", f"{_STORE}.abort_multipart", "before", "send"),
        Point("aborted, still in the journal", f"{_STORE}.abort_multipart", "after", "send"),
        Point("paused", f"{catalog}.pause", "after", "send", 2),
        # Delivering and deleting
        Point("before what was delivered is noted", f"{deliveries}.add", "before", "record", 10),
        Point("noted as delivered, not told", f"{deliveries}.add", "after", "record", 10),
        Point("claimed to be deleted", f"{deliveries}.claim", "after", "send", 2),
        Point("before the delete", f"{_STORE}.delete", "before", "send", 2),
        Point("deleted, not noted", f"{_STORE}.delete", "after", "send", 2),
        Point("noted as deleted", f"{deliveries}.deleted", "after", "send", 2),
        # Adopting what a dead process left
        Point("open batch read for its adoption", "jobs_backup.spool.open_batch:OpenBatch.restored", "after", "send", 3),
        # FILE
        Point("draft written", f"{_FILE}:_append", "after", "send", 4, "FILE"),
        Point("object in its place, draft there", f"{_FILE}:FileProvider._publish", "after", "send", 4, "FILE"),
        Point("parts being removed", f"{_FILE}:FileProvider._remove", "before", "send", 2, "FILE"),
    )


_OF_SQLITE: Final = (
    # Process start
    Point("lock taken, session not entered", f"{_CATALOG}.begin_session", "before", "any"),
    Point("session entered, no blob file", f"{_CATALOG}.begin_session", "after", "any"),
    # Recording
    Point("in the commit", f"{_BLOBS}:Changes._write", "after", "record", 4),
    Point("after the commit", f"{_WRITER}._seal_full", "before", "record", 100),
    # Sealing
    Point("in a fold", f"{_BLOBS}:Changes._write", "after", "record", 4, only=_has_folded),
    Point("folded, not sealed", f"{_CATALOG}.seal", "before", "record", 3),
    Point("sealed", f"{_CATALOG}.seal", "after", "record", 3),
    # Continuing in another file
    Point("another file made, not entered", f"{_CATALOG}.change_file", "before", "record", 2),
    Point("another file entered", f"{_CATALOG}.change_file", "after", "record", 2),
    Point("before a drained file is removed", f"{_SPOOL}._clean_up", "before", "any", 3),
    # Adopting what a dead process left, and shutting down
    Point("at adoption", f"{_SPOOL}._adopt", "before", "send", 2),
    Point("before a session is forgotten", f"{_CATALOG}.end_session", "before", "any", 2),
    Point("session forgotten, files there", f"{_CATALOG}.end_session", "after", "any", 2),
    Point("adopted, lock file there", f"{_SPOOL}._adopt", "after", "send", 2),
    Point("blob file unlinked, its log is there", "pathlib:Path.unlink", "after", "send", 3, only=_in_blobs),
    Point("lock file unlinked, lock held", "pathlib:Path.unlink", "after", "any", 2, only=_in_locks),
    Point("sealed at the close, session not ended", f"{_WRITER}.close", "after", "any"),
)
_OF_POSTGRESQL: Final = (
    # Process start
    Point("session not entered", f"{_FLEET}.sessions:Sessions.begin", "before", "any"),
    Point("session entered, nothing in it", f"{_FLEET}.sessions:Sessions.begin", "after", "any"),
    # Recording
    Point("before the commit", f"{_FLEET}.chunks:Changes.statement", "after", "record", 100),
    Point("after the commit", f"{_FLEET}.writer:Writer._made", "before", "record", 100),
    # Sealing: all of it is one transaction
    Point("folded, not sealed", f"{_FLEET}.writer:seal", "before", "record", 3),
    Point("sealed, not committed", f"{_FLEET}.writer:seal", "after", "record", 3),
    Point("sealed", f"{_FLEET}.writer:Writer._seal", "after", "record", 3),
    # Segments
    Point("before a segment is added", f"{_FLEET}.segments:Segments.rotate", "before", "any", 3),
    Point("segments added", f"{_FLEET}.segments:Segments.rotate", "after", "any", 3),
    Point("segments dropped", f"{_FLEET}.segments:Segments.drop_sent", "after", "any", 3),
    # Taking over what a dead process left, and shutting down
    Point("before a takeover", f"{_FLEET}.spool:take_over", "before", "send", 2),
    Point("sealed in a takeover, session not ended", f"{_FLEET}.takeover:end", "before", "send", 2),
    Point("taken over, not committed", f"{_FLEET}.takeover:end", "after", "send", 2),
    Point("taken over", f"{_FLEET}.spool:take_over", "after", "send", 2),
    Point("sealed at the close, session not ended", f"{_FLEET}.writer:remove_empty", "before", "any"),
    Point("closed, not committed", f"{_FLEET}.writer:end", "after", "any"),
)
KILLS: Final[dict[str, tuple[Point, ...]]] = {
    "sqlite": (*_OF_SQLITE, *_of_any(_SQLITE)),
    "postgresql": (*_OF_POSTGRESQL, *_of_any(_FLEET)),
}
"""Of each engine of the spool."""

FAILURES: Final = (
    # What the proxy does to S3. "after" means a lost response: the request took effect, but the caller does not know.
    Point("draft not written", f"{_FILE}:_append", "before", "send", 20, "FILE"),
    Point("object not put in its place", f"{_FILE}:FileProvider._publish", "before", "send", 10, "FILE"),
    Point("object put in its place, error", f"{_FILE}:FileProvider._publish", "after", "send", 10, "FILE"),
    Point("directory not synced", f"{_FILE}:sync_directory", "before", "send", 20, "FILE"),
    Point("parts not found", f"{_FILE}:FileProvider._parts", "before", "send", 10, "FILE"),
    Point("parts not removed", f"{_FILE}:FileProvider._remove", "before", "send", 4, "FILE"),
    Point("object not deleted", f"{_FILE}:FileProvider.delete", "before", "send", 4, "FILE"),
    Point("object deleted, error", f"{_FILE}:FileProvider.delete", "after", "send", 4, "FILE"),
    Point("parts removed, error", f"{_FILE}:FileProvider._remove", "after", "send", 4, "FILE"),
)


def find(table: tuple[Point, ...], name: str) -> Point:
    """Return the point of this name."""
    return next(point for point in table if point.name == name)


def check_all() -> None:
    """Check that all points exist. Raises LookupError otherwise."""
    for point in (*KILLS["sqlite"], *KILLS["postgresql"], *FAILURES):
        resolve(point.target)
