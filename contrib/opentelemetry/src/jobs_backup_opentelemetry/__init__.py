"""A span around every call to the store: a wrapper for jobs-backup, on the API of OpenTelemetry.

The program's SDK decides where spans go; without one they cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final, Self, TypeVar

from jobs_backup.errors import JobsBackupError
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, Batch, Body, DeleteReceipt, Page, Part, Policy, Upload, WriteReceipt

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

T = TypeVar("T")
_NAME: Final = "jobs_backup"
Wrapped = Generator[None, T, T]


class OpenTelemetryWrapper:
    """Records each attempt as a span `jobs_backup HOOK`. With `read` and `open_body`, it ends when the body can be read."""

    API_VERSION: ClassVar[int] = 1

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:  # noqa: ARG003 - the SDK has its own, OTEL_*
        """See `Wrapper.from_settings`."""
        return cls()

    @functools.cached_property
    def _tracer(self) -> Tracer:
        from opentelemetry import trace  # imported on first use

        return trace.get_tracer("jobs_backup")

    @hookimpl(wrapper=True)
    def write(self, key: str, size: int) -> Wrapped[WriteReceipt]:
        """Trace with the key and the size."""
        with self._span("write", key=key, size=size):
            return (yield)

    @hookimpl(wrapper=True)
    def create_multipart(self, key: str, size: int) -> Wrapped[Upload]:
        """Trace with the key and the size of the object."""
        with self._span("create_multipart", key=key, size=size):
            return (yield)

    @hookimpl(wrapper=True)
    def write_part(self, upload: Upload, number: int, size: int) -> Wrapped[Part]:
        """Trace with the key, and the number and size of the part."""
        with self._span("write_part", key=upload.key, part=number, size=size):
            return (yield)

    @hookimpl(wrapper=True)
    def complete_multipart(self, upload: Upload, parts: Sequence[Part], size: int) -> Wrapped[WriteReceipt]:
        """Trace with the key, the number of parts and the size of the object."""
        with self._span("complete_multipart", key=upload.key, parts=len(parts), size=size):
            return (yield)

    @hookimpl(wrapper=True)
    def abort_multipart(self, upload: Upload) -> Wrapped[AbortReceipt]:
        """Trace with the key."""
        with self._span("abort_multipart", key=upload.key):
            return (yield)

    @hookimpl(wrapper=True)
    def delete(self, keys: Sequence[str]) -> Wrapped[DeleteReceipt]:
        """Trace with the number of keys."""
        with self._span("delete", keys=len(keys)):
            return (yield)

    @hookimpl(wrapper=True)
    def read(self, key: str) -> Wrapped[Body]:
        """Trace with the key."""
        with self._span("read", key=key):
            return (yield)

    @hookimpl(wrapper=True)
    def list(self, prefix: str) -> Wrapped[Page]:
        """Trace with the prefix."""
        with self._span("list", prefix=prefix):
            return (yield)

    @hookimpl(wrapper=True)
    def policy(self, format: str) -> Wrapped[Policy]:
        """Trace with the format."""
        with self._span("policy", format=format):
            return (yield)

    @hookimpl(wrapper=True)
    def open_body(self, batch: Batch) -> Wrapped[Body]:
        """Trace with the key, and the batch's id and number of events."""
        with self._span("open_body", key=batch.key, batch=str(batch.id), events=batch.events):
            return (yield)

    @contextmanager
    def _span(self, hook: str, **attributes: str | int) -> Generator[None]:
        from opentelemetry.trace import SpanKind, StatusCode

        named = {f"{_NAME}.{name}": value for name, value in attributes.items()}
        # The SDK's own record of an exception includes its traceback, and with it any text of a foreign error.
        with self._tracer.start_as_current_span(
            f"{_NAME} {hook}", kind=SpanKind.CLIENT, attributes=named, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR, error.one_line() if isinstance(error, JobsBackupError) else type(error).__name__)
                raise
