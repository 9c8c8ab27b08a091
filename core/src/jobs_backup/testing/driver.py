"""Tools of the conformance suite: a driver for hooks, failing bodies, difficult keys, and a view from outside."""

from __future__ import annotations

import io
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import BinaryIO, Final, Protocol, Self, TypeVar

from jobs_backup.checksum import crc32c
from jobs_backup.errors import SpoolCorrupt
from jobs_backup.model import AbortReceipt, Body, BytesBody, DeleteReceipt, Outcome, Page, Part, Policy, Upload, WriteReceipt
from jobs_backup.store.providers import LoadedProvider, load

T = TypeVar("T")
TIMEOUT: Final = 30.0
_METADATA: Final = {"jobs-backup-batch": "1", "jobs-backup-events": "2"}

ODD_KEYS: Final = (
    "with space/and  two",
    "plus+and%20percent/100%",
    "dots/.hidden/v1.2.json.gz",
    "ünïcødé/日本語/🪣",
    "quote'and\"&<>;:@=,$!*()",
    "tilde~/question?/hash#/semi;colon",
    "web/gw/2026-01-02/3/pod-1/" + "1" * 97 + "ä" * 79,
    "/".join([*("ä" * 63 + str(number) for number in range(7)), "x" * 128]),
)
"""Keys that are legal everywhere but need care in URLs, XML and on disks.

The last but one has the longest name that core makes, of 255 bytes; the last one is as long as a key may be.
"""


class Inspector(Protocol):
    """Looks into the bucket from outside, not through the provider."""

    def keys(self) -> Collection[str]:
        """All keys in the bucket."""
        ...

    def get(self, key: str) -> bytes:
        """The bytes of an existing object."""
        ...

    def open_uploads(self) -> Collection[str] | None:
        """Keys of uploads that were created, but neither completed nor aborted; None if the store cannot tell."""
        ...


class Hooks:
    """A provider's hooks, called as core calls them. Checks the types of receipts."""

    def __init__(self, loaded: LoadedProvider, *, timeout: float = TIMEOUT) -> None:
        """`timeout` is that of each call, in seconds."""
        self._hook = loaded.manager.hook
        self._timeout = timeout
        self.loaded = loaded

    @classmethod
    def of(cls, provider: str, environment: Mapping[str, str], *, timeout: float = TIMEOUT) -> Self:
        """The hooks of the provider with this name, loaded as core loads it."""
        return cls(load(provider, environment), timeout=timeout)

    def write(self, key: str, body: Body | bytes, *, checksum: int | None = None, if_absent: bool = True) -> WriteReceipt:
        body = BytesBody(body) if isinstance(body, bytes) else body
        receipt = self._hook.write(
            key=key,
            body=body,
            size=body.size,
            checksum=body.crc32c() if checksum is None else checksum,
            content_type="application/gzip",
            metadata=_METADATA,
            if_absent=if_absent,
            timeout=self._timeout,
        )
        return _typed(receipt, WriteReceipt)

    def write_many(self, keys: Iterable[str]) -> None:
        """Write objects that contain their own keys."""
        with ThreadPoolExecutor(8) as pool:
            for one in [pool.submit(self.write, key, key.encode()) for key in keys]:
                one.result()

    def create(self, key: str, whole: bytes, *, checksum: int | None = None, if_absent: bool = True) -> Upload:
        upload = self._hook.create_multipart(
            key=key,
            size=len(whole),
            checksum=crc32c(whole) if checksum is None else checksum,
            content_type="application/gzip",
            metadata=_METADATA,
            if_absent=if_absent,
            timeout=self._timeout,
        )
        return _typed(upload, Upload)

    def part(self, upload: Upload, parts: Sequence[bytes], number: int, *, body: Body | None = None) -> Part:
        offset = sum(map(len, parts[: number - 1]))
        body = body or BytesBody(b"".join(parts)).slice(offset, len(parts[number - 1]))
        part = self._hook.write_part(
            upload=upload,
            number=number,
            offset=offset,
            body=body,
            size=body.size,
            last=number == len(parts),
            timeout=self._timeout,
        )
        assert _typed(part, Part).number == number
        return _typed(part, Part)

    def complete(
        self, upload: Upload, parts: Iterable[Part], whole: bytes, *, checksum: int | None = None, if_absent: bool = True
    ) -> WriteReceipt:
        receipt = self._hook.complete_multipart(
            upload=upload,
            parts=sorted(parts, key=lambda part: part.number),
            size=len(whole),
            checksum=crc32c(whole) if checksum is None else checksum,
            if_absent=if_absent,
            timeout=self._timeout,
        )
        return _typed(receipt, WriteReceipt)

    def abort(self, upload: Upload) -> Outcome:
        return _typed(self._hook.abort_multipart(upload=upload, timeout=self._timeout), AbortReceipt).outcome

    def delete(self, keys: Sequence[str]) -> DeleteReceipt:
        receipt = _typed(self._hook.delete(keys=keys, timeout=self._timeout), DeleteReceipt)
        assert receipt.deleted | receipt.failed.keys() == set(keys), "an outcome for each key"
        assert not receipt.deleted & receipt.failed.keys()
        return receipt

    def read(self, key: str) -> Body:
        return _typed(self._hook.read(key=key, timeout=self._timeout), Body)

    def policy(self, settings: Mapping[str, str], *, delete: bool, replay: bool, format_: str = "") -> Policy:
        return _typed(self._hook.policy(settings=settings, delete=delete, replay=replay, format=format_), Policy)

    def list(self, prefix: str, after: str = "") -> Page:
        return _typed(self._hook.list(prefix=prefix, after=after, timeout=self._timeout), Page)


class CountingBody(BytesBody):
    """Counts how often it was opened, and how many of its readers are still open."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._readers: list[BinaryIO] = []

    def open(self) -> BinaryIO:
        self._readers.append(self._reader())
        return self._readers[-1]

    @property
    def opened(self) -> int:
        return len(self._readers)

    @property
    def unclosed(self) -> int:
        return sum(not reader.closed for reader in self._readers)

    def _reader(self) -> BinaryIO:
        return super().open()


class _MiddleBody(CountingBody, ABC):
    """Notices reads beyond its middle."""

    @abstractmethod
    def beyond_middle(self) -> None:
        """Called before each read that goes beyond the middle."""

    def _reader(self) -> BinaryIO:
        with super()._reader() as whole:
            return _MiddleReader(self, whole.read())


class _MiddleReader(io.BytesIO):
    def __init__(self, body: _MiddleBody, data: bytes) -> None:
        super().__init__(data)
        self._body = body

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._body.size if size is None or size < 0 else size
        if self.tell() + wanted > self._body.size // 2:
            self._body.beyond_middle()
        return super().read(size)


class FailingBody(_MiddleBody):
    """Fails in its middle for every reader, like a damaged disk. `failures` counts the failures."""

    failures = 0

    def __init__(self, data: bytes, error: type[Exception] = SpoolCorrupt) -> None:
        super().__init__(data)
        self.error = error

    def beyond_middle(self) -> None:
        self.failures += 1
        raise self.error("bad sector")


class WatchedBody(_MiddleBody):
    """Calls `look` once, at the first read beyond its middle."""

    def __init__(self, data: bytes, look: Callable[[], None]) -> None:
        super().__init__(data)
        self._look: Callable[[], None] | None = look

    def beyond_middle(self) -> None:
        look, self._look = self._look, None
        if look is not None:
            look()


class SlowBody(CountingBody):
    """Its reader returns less than requested, like that of a pipe or a socket."""

    def _reader(self) -> BinaryIO:
        with super()._reader() as whole:
            return _SlowReader(whole.read())


class _SlowReader(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, 1000))


class ShortBody(BytesBody):
    """Has fewer bytes than its size says."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = len(data) + 1


def _typed(receipt: object, type_: type[T]) -> T:
    assert isinstance(receipt, type_), f"returned {type(receipt).__name__} instead of {type_.__name__}"
    return receipt


@cache
def random_bytes(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)
