"""When "exists already" counts as stored: a negative answer needs more proof than a positive one.

On a receipt the store has taken the bytes. "Exists already" says only that something is there, and core drops the events' bytes on
this word. So it counts under three conditions: the request asked for it (`if_absent`), the answer is the store's own (that is the
provider's part), and nothing known contradicts it. Otherwise the batch waits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from jobs_backup.errors import AlreadyExists, IntegrityError, Unproven
from jobs_backup.model import Upload

_CONDITIONAL: Final = frozenset({"write", "complete_multipart"})
"""The hooks that make an object appear, and so ask the store to refuse if one is there."""
_SEQUENTIAL: Final = frozenset({"create_multipart", "write_part"})
"""Where parts are sequential, the condition goes with the beginning of an upload, and the last part may make the object appear."""
_STORING: Final = _CONDITIONAL | _SEQUENTIAL

_UNASKED: Final = "look at what answers at the endpoint: a proxy or gateway may answer in the store's place"
_MISMATCH: Final = "the object may hold other bytes: delete it from the bucket, and it is uploaded again"


class Doubts(Protocol):
    """Remembers, also for later processes, of which objects the bucket may hold other bytes than those that were sent."""

    def doubt(self, key: str) -> None:
        """Note it, durably."""

    def is_doubted(self, key: str) -> bool:
        """Whether it was noted, by whichever process."""
        ...


class Proof:
    """Holds what one store's provider says to these conditions. Safe to use from many threads."""

    def __init__(self, *, if_absent: bool, sequential_parts: bool) -> None:
        self._if_absent = if_absent
        self._conditional = _CONDITIONAL | _SEQUENTIAL if sequential_parts else _CONDITIONAL
        self._doubted: set[str] = set()
        self._doubts: Doubts | None = None

    def remember_in(self, doubts: Doubts) -> None:
        """Without this, what is known ends with the process."""
        self._doubts = doubts

    @contextmanager
    def demanded(self, hook: str, arguments: Mapping[str, Any]) -> Generator[None]:
        """Within, `AlreadyExists` passes only if it is proven. A mismatch of checksums is remembered.

        Raises:
            Unproven: instead of an `AlreadyExists` that can't be believed.
        """
        if hook not in _STORING:
            yield
            return
        key = key_of(arguments)
        try:
            yield
        except IntegrityError:
            self._doubted.add(key)
            if self._doubts is not None:
                self._doubts.doubt(key)
            raise
        except AlreadyExists as error:
            self.check(hook, arguments, str(error))
            raise

    def check(self, hook: str, arguments: Mapping[str, Any], said: str) -> None:
        """Whether "exists already", in the answer to this call, proves that the object is stored.

        Raises:
            Unproven: it does not.
        """
        if not self._is_asked(hook, arguments):
            raise Unproven(f"'exists already' in answer to a request without that condition: {said}", hint=_UNASKED)
        if self._is_doubted(key := key_of(arguments)):
            raise Unproven(
                f"'exists already', but an earlier attempt to store {key} ended with a checksum mismatch: {said}", hint=_MISMATCH
            )

    def stored(self, key: str) -> None:
        """The object is stored, with the right bytes."""
        self._doubted.discard(key)

    def _is_asked(self, hook: str, arguments: Mapping[str, Any]) -> bool:
        return self._if_absent and hook in self._conditional and bool(arguments.get("last", True))

    def _is_doubted(self, key: str) -> bool:
        return key in self._doubted or (self._doubts is not None and self._doubts.is_doubted(key))


def key_of(arguments: Mapping[str, Any]) -> str:
    """The object that a call is about, if it is one."""
    upload = arguments.get("upload")
    return upload.key if isinstance(upload, Upload) else str(arguments.get("key", ""))
