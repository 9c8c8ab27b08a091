"""Upload existing, incompressible files to a bucket: `variant` names the uploader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, Final

from benchmarks.contenders.common import Job, Measured, main

from jobs_backup.model import Batch, Body, Kind, Stream

_AT_ONCE: Final = 4
"""Parallel uploads: jobs-backup's default. A contender with its own default keeps it."""
_PART: Final = 16 << 20
_THRESHOLD: Final = 64 << 20


class _FileBody(Body):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    def open(self) -> BinaryIO:
        return self.path.open("rb")


def _ours(job: Job, path: Path) -> Callable[[], None]:
    """Upload through the store and the provider as the archiver does, without the journal. The checksum is known in advance."""
    import boto3.session
    from benchmarks.contenders.ours import environment

    from jobs_backup.settings.core import CoreSettings
    from jobs_backup.store.object_store import ObjectStore

    _ = boto3.session
    body = _FileBody(path)
    crc = body.crc32c()

    def batch(number: int) -> Batch:
        return Batch(
            id=number, stream=Stream(Kind.RAW, "", "web"), events=1, raw_bytes=body.size, size=body.size, crc32c=crc,
            key=f"{number}", uuid="", wrappers=(), blobs="",
            content_type="application/gzip",
        )  # fmt: skip

    def send() -> None:
        variables = environment(job)
        to = ObjectStore.from_settings(CoreSettings.from_environment(variables), variables)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            if body.size <= _THRESHOLD:
                list(pool.map(lambda number: to.write(batch(number), body), range(job.events)))
                return
            for number in range(job.events):
                upload = to.create_multipart(batch(number))
                offsets = range(0, body.size, _PART)
                slices = [body.slice(offset, min(_PART, body.size - offset)) for offset in offsets]

                def part(index: int, upload: Any = upload, slices: list[Body] = slices) -> Any:
                    return to.write_part(upload, index + 1, index * _PART, slices[index], index + 1 == len(slices))

                to.complete_multipart(upload, list(pool.map(part, range(len(slices)))), batch(number))

    return send


def _boto3(job: Job, path: Path) -> Callable[[], None]:
    import boto3.session

    def send() -> None:
        with closing(boto3.session.Session().client("s3", **job.client)) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda number: client.upload_file(str(path), job.bucket, f"{number}"), range(job.events)))

    return send


def _obstore(job: Job, path: Path) -> Callable[[], None]:
    import obstore
    from benchmarks.contenders.obstore import store

    async def send_all() -> None:
        to = store(job)
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(number: int) -> None:
            async with room:
                await obstore.put_async(to, f"{number}", path)

        await asyncio.gather(*map(one, range(job.events)))

    return lambda: asyncio.run(send_all())


def _s3fs(job: Job, path: Path) -> Callable[[], None]:
    from benchmarks.contenders.s3fs import filesystem

    def send() -> None:
        targets = [f"{job.bucket}/{number}" for number in range(job.events)]
        filesystem(job).put([str(path)] * job.events, targets, batch_size=_AT_ONCE)

    return send


_WAYS: Final[Mapping[str, Callable[[Job, Path], Callable[[], None]]]] = {
    "jobs-backup": _ours,
    "boto3": _boto3,
    "obstore": _obstore,
    "s3fs": _s3fs,
}


def work(job: Job, measured: Measured) -> None:
    send = _WAYS[job.variant](job, Path(job.corpus))
    with measured.section():
        send()


if __name__ == "__main__":
    main(work)
