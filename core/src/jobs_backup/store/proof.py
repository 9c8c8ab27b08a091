"""When "exists already" counts as uploaded: it needs more proof than a receipt.

A receipt means that the store has taken the bytes. "Exists already" only means that something is there, yet core then deletes the
events' bytes. So it counts under three conditions: the request asked for it (`if_absent`), the answer is the store's own (the
provider checks that), and nothing known contradicts it. Otherwise the batch waits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from jobs_backup.errors import AlreadyExists, IntegrityError, Unproven
from jobs_backup.model import Upload

_CONDITIONAL: Final = frozenset({"write", "complete_multipart"})
"""The hooks that make an object appear, and so ask the store to refuse if it exists."""
_SEQUENTIAL: Final = frozenset({"create_multipart", "write_part"})
"""With sequential parts, the condition is sent when an upload begins, and the last part may make the object appear."""
_STORING: Final = _CONDITIONAL | _SEQUENTIAL

_UNASKED: Final = "check what answers at the endpoint: a proxy or gateway may answer in the store's place"
_MISMATCH: Final = "the object may hold other bytes: delete it from the bucket, and it is uploaded again"


class Doubts(Protocol):
    """Remembers, also for later processes, which objects may have other bytes in the bucket than those uploaded."""

    def doubt(self, key: str) -> None:
        """Note a doubt, durably."""

    def is_doubted(self, key: str) -> bool:
        """Whether any process has noted a doubt."""
        ...


class Proof:
    """Check the answers of one store's provider against these conditions. Safe to use from many threads."""

    def __init__(self, *, if_absent: bool, sequential_parts: bool) -> None:
        self._if_absent = if_absent
        self._conditional = _CONDITIONAL | _SEQUENTIAL if sequential_parts else _CONDITIONAL
        self._doubted: set[str] = set()
        self._doubts: Doubts | None = None

    def remember_in(self, doubts: Doubts) -> None:
        """Keep doubts beyond the process, which is otherwise how long they last."""
        self._doubts = doubts

    @contextmanager
    def demanded(self, hook: str, arguments: Mapping[str, Any]) -> Generator[None]:
        """Let `AlreadyExists` pass only if proven, within the block. Checksum mismatches are remembered.

        Raises:
            Unproven: instead of an `AlreadyExists` without proof.
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
        """Check that "exists already", in the answer to this call, proves that the object was uploaded.

        Raises:
            Unproven: it does not.
        """
        if not self._is_asked(hook, arguments):
            raise Unproven(f"'exists already' in answer to a request without that condition: {said}", hint=_UNASKED)
        if self._is_doubted(key := key_of(arguments)):
            raise Unproven(
                f"'exists already', but an earlier attempt to upload {key} ended with a checksum mismatch: {said}", hint=_MISMATCH
            )

    def stored(self, key: str) -> None:
        """Note that the object was uploaded with the right bytes."""
        self._doubted.discard(key)

    def _is_asked(self, hook: str, arguments: Mapping[str, Any]) -> bool:
        return self._if_absent and hook in self._conditional and bool(arguments.get("last", True))

    def _is_doubted(self, key: str) -> bool:
        return key in self._doubted or (self._doubts is not None and self._doubts.is_doubted(key))


def key_of(arguments: Mapping[str, Any]) -> str:
    """The key of the object that a call is about; empty if there is none."""
    upload = arguments.get("upload")
    return upload.key if isinstance(upload, Upload) else str(arguments.get("key", ""))
