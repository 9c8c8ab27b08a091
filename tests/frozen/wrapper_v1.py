"""A wrapper written for API version 1, as it was when that was published. It is NEVER CHANGED: it has to go on working.

It wraps every hook, with every argument that version 1 has, and changes bytes: each is XORed with the parameter.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping, Sequence
from typing import Any, BinaryIO, ClassVar

from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import Batch, Body, Part, Upload

CALLS: list[str] = []
Wrapped = Generator[None, Any, Any]


class XorBody(Body):
    def __init__(self, inner: Body, number: int) -> None:
        self._inner = inner
        self._table = bytes(byte ^ number for byte in range(256))
        self.size = inner.size

    def open(self) -> BinaryIO:
        with self._inner.open() as reader:
            return io.BytesIO(reader.read().translate(self._table))


class FrozenWrapper:
    API_VERSION: ClassVar[int] = 1
    format: ClassVar[str] = "xor"
    parameter: ClassVar[str] = "85"

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> FrozenWrapper:
        return cls()

    @hookimpl(wrapper=True)
    def open_body(self, batch: Batch) -> Wrapped:
        CALLS.append(f"open_body {batch.id} {batch.key} {batch.uuid}")
        body = yield
        return XorBody(body, int(batch.parameter_of(self.format)))

    @hookimpl(wrapper=True)
    def read(self, key: str, timeout: float) -> Wrapped:
        CALLS.append(f"read {key} {timeout}")
        body = yield
        return XorBody(body, 85)

    @hookimpl(wrapper=True)
    def write(
        self,
        key: str,
        body: Body,
        size: int,
        checksum: int,
        content_type: str,
        metadata: Mapping[str, str],
        if_absent: bool,
        timeout: float,
    ) -> Wrapped:
        made_by = metadata.get("jobs-backup-wrappers")
        CALLS.append(f"write {key} {body.size == size} {checksum} {content_type} {made_by} {if_absent}")
        return (yield)

    @hookimpl(wrapper=True)
    def create_multipart(
        self,
        key: str,
        size: int,
        checksum: int,
        content_type: str,
        metadata: Mapping[str, str],
        if_absent: bool,
        timeout: float,
    ) -> Wrapped:
        CALLS.append(f"create_multipart {key} {size}")
        return (yield)

    @hookimpl(wrapper=True)
    def write_part(self, upload: Upload, number: int, offset: int, body: Body, size: int, last: bool, timeout: float) -> Wrapped:
        CALLS.append(f"write_part {upload.key} {number} {offset} {size} {last}")
        return (yield)

    @hookimpl(wrapper=True)
    def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], size: int, checksum: int, if_absent: bool, timeout: float
    ) -> Wrapped:
        CALLS.append(f"complete_multipart {upload.key} {len(parts)} {size}")
        return (yield)

    @hookimpl(wrapper=True)
    def abort_multipart(self, upload: Upload, timeout: float) -> Wrapped:
        CALLS.append(f"abort_multipart {upload.key}")
        return (yield)

    @hookimpl(wrapper=True)
    def delete(self, keys: Sequence[str], timeout: float) -> Wrapped:
        CALLS.append(f"delete {len(keys)}")
        return (yield)

    @hookimpl(wrapper=True)
    def list(self, prefix: str, after: str, timeout: float) -> Wrapped:
        CALLS.append(f"list {prefix} {after}")
        return (yield)

    @hookimpl(wrapper=True)
    def policy(self, settings: Mapping[str, str], delete: bool, replay: bool, format: str) -> Wrapped:
        CALLS.append(f"policy {len(settings)} {delete} {replay} {format}")
        return (yield)
