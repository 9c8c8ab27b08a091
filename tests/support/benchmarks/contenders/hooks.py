"""One hook call through `ObjectStore` (pluggy inside tenacity), with a provider that does nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, Self

from benchmarks.contenders.common import Job, Measured, main

from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, Batch, Body, BytesBody, DeleteReceipt, Kind, Outcome, Stream, Upload, WriteReceipt
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.store.plugins import Installed
from jobs_backup.store.providers import LoadedProvider, register
from jobs_backup.store.retry import Retry, RetryPolicy

_BATCH: Final = Batch(
    id=1, stream=Stream(Kind.RAW, "", "web"), events=1, raw_bytes=1, size=1, crc32c=0, key="key", uuid="uuid", wrappers=(),
    blobs="", content_type="application/gzip",
)  # fmt: skip


class _Idle:
    API_VERSION: ClassVar = 1
    location = "idle://bucket"

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        return cls()

    @hookimpl
    def write(self, key: str, body: Body) -> WriteReceipt:
        return WriteReceipt(etag="1")

    @hookimpl
    def abort_multipart(self, upload: Upload) -> AbortReceipt:
        return AbortReceipt(Outcome.GONE)

    @hookimpl
    def delete(self, keys: list[str]) -> DeleteReceipt:
        return DeleteReceipt(deleted=frozenset(keys))


def work(job: Job, measured: Measured) -> None:
    installed = Installed(name="IDLE", distribution="benchmarks", version="1", target="benchmarks:Idle")
    provider = _Idle()
    manager, hooks = register(provider, installed)
    loaded = LoadedProvider(installed=installed, provider=provider, manager=manager, hooks=hooks)
    store = ObjectStore(loaded, retry=Retry(RetryPolicy()))
    body = BytesBody(b"x")
    with measured.section():
        for _ in range(job.events):
            store.write(_BATCH, body)


if __name__ == "__main__":
    main(work)
