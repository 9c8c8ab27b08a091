"""MemoryProvider over HTTP, and faulty ones that trust a status alone, from any server. `EXPECTED` as in `wrong_providers`."""

# mypy: disable-error-code="override"
# (hooks may take fewer arguments)

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import quote, urlsplit

from jobs_backup.errors import (
    AlreadyExists,
    JobsBackupError,
    ObjectNotFound,
    PermissionDenied,
    StorageError,
    Throttled,
    Unauthenticated,
    Unavailable,
    Unreachable,
    UploadGone,
    parse_retry_after,
)
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import AbortReceipt, Body, DeleteReceipt, Outcome, Page, Part, Upload, WriteReceipt
from jobs_backup.settings import Variable
from jobs_backup.testing.memory import MemoryProvider, MemorySettings


class WebSettings(MemorySettings, frozen=True, kw_only=True):
    """MEMORY_URL is asked before each operation and has to agree; empty: no requests."""

    url: Annotated[str, Variable("MEMORY_URL", "Who is asked.")] = ""


class WebMemory(MemoryProvider):
    """The correct one: accepts an answer only in the store's own words, `{"store": "memory"}`."""

    settings: ClassVar = WebSettings

    def __init__(self, settings: WebSettings) -> None:
        super().__init__(settings)
        self._url = settings.url

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Any:
        return cls(WebSettings.from_environment(environment))

    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool, timeout: float) -> WriteReceipt:
        self.ask("write", key, timeout)
        return super().write(key, body, size, checksum, if_absent)

    @hookimpl
    def create_multipart(self, key: str, timeout: float) -> Upload:
        self.ask("create_multipart", key, timeout)
        return super().create_multipart(key)

    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body, size: int, timeout: float) -> Part:
        self.ask("write_part", upload.key, timeout)
        return super().write_part(upload, number, body, size)

    @hookimpl
    def complete_multipart(
        self, upload: Upload, parts: Sequence[Part], checksum: int, if_absent: bool, timeout: float
    ) -> WriteReceipt:
        self.ask("complete_multipart", upload.key, timeout)
        return super().complete_multipart(upload, parts, checksum, if_absent)

    @hookimpl
    def abort_multipart(self, upload: Upload, timeout: float) -> AbortReceipt:
        self.ask("abort_multipart", upload.key, timeout)
        return super().abort_multipart(upload)

    @hookimpl
    def delete(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        self.ask("delete", "", timeout)
        return super().delete(keys)

    @hookimpl
    def read(self, key: str, timeout: float) -> Body:
        self.ask("read", key, timeout)
        return super().read(key)

    @hookimpl
    def list(self, prefix: str, after: str, timeout: float) -> Page:
        self.ask("list", "", timeout)
        return super().list(prefix, after)

    def ask(self, hook: str, key: str, timeout: float) -> None:
        """Raise the error of the answer."""
        if not self._url:
            return
        with contextlib.closing(http.client.HTTPConnection(urlsplit(self._url).netloc, timeout=timeout)) as connection:
            try:
                connection.request("POST", f"/{hook}/{quote(key)}")
                answer = connection.getresponse()
                body = answer.read()
            except ConnectionRefusedError:
                raise Unreachable("nobody there", hint="check MEMORY_URL") from None
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(type(error).__name__, hint="check the network") from None
        wait = parse_retry_after(answer.headers.get("Retry-After", ""))
        match answer.status:
            case 401:
                raise Unauthenticated("401", hint="check MEMORY_TOKEN")
            case 403:
                raise PermissionDenied("403", action=hook, resource=self.location)
            case 429:
                raise Throttled("429", retry_after=wait, hint="wait")
            case status if status >= 500:
                raise Unavailable(str(status), retry_after=wait, hint="wait")
        if (said := self.said(hook, answer.status, body)) is not None:
            raise said

    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        """Return the error for an answer, None for success."""
        with contextlib.suppress(ValueError):
            if json.loads(body).get("store") == "memory":
                return None if status < 300 else StorageError(f"{hook}: {status}")
        return StorageError(f"{hook}: {status} is not the store's", hint="look at what answers at MEMORY_URL")


class BelievesA412(WebMemory):
    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        return AlreadyExists("exists") if status == 412 else super().said(hook, status, body)


class BelievesA409OfACompletion(WebMemory):
    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        is_exists = (hook, status) == ("complete_multipart", 409)
        return AlreadyExists("exists") if is_exists else super().said(hook, status, body)


class BelievesA304(WebMemory):
    """Treats "not modified" as proof that the object exists."""

    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool, timeout: float) -> WriteReceipt:
        try:
            return super().write(key, body, size, checksum, if_absent, timeout)
        except StorageError as error:
            if ": 304" in error.message:
                return WriteReceipt(existed=True)
            raise


class BelievesAnyEmptyConflict(WebMemory):
    """Rejects a page, but accepts an empty answer."""

    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        return AlreadyExists("exists") if status == 412 and not body else super().said(hook, status, body)


class BelievesA404OfAnUpload(WebMemory):
    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        return UploadGone("gone") if status == 404 and hook == "write_part" else super().said(hook, status, body)


class BelievesA404OfAnAbort(WebMemory):
    @hookimpl
    def abort_multipart(self, upload: Upload, timeout: float) -> AbortReceipt:
        try:
            return super().abort_multipart(upload, timeout)
        except StorageError as error:
            if ": 404" in error.message:
                return AbortReceipt(Outcome.GONE)
            raise


class BelievesA410OfADelete(WebMemory):
    @hookimpl
    def delete(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        try:
            return super().delete(keys, timeout)
        except StorageError as error:
            if ": 410" in error.message:
                return DeleteReceipt(deleted=frozenset(keys))
            raise


class FindsNoObjectByA404(WebMemory):
    @hookimpl
    def delete(self, keys: Sequence[str], timeout: float) -> DeleteReceipt:
        try:
            return super().delete(keys, timeout)
        except StorageError as error:
            if ": 404" in error.message:
                raise ObjectNotFound("gone") from None
            raise


class TakesAPageForAPart(WebMemory):
    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        return None if status == 200 and hook == "write_part" else super().said(hook, status, body)


class TakesAPageForACompletion(WebMemory):
    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        return None if status == 201 and hook == "complete_multipart" else super().said(hook, status, body)


class TakesAPageForAnAbort(WebMemory):
    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        return None if status < 300 and hook == "abort_multipart" else super().said(hook, status, body)


class TakesAPageForADelete(WebMemory):
    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        return None if status == 202 and hook == "delete" else super().said(hook, status, body)


class SaysNothingOfAStranger(WebMemory):
    def said(self, hook: str, status: int, body: bytes) -> JobsBackupError | None:
        error = super().said(hook, status, body)
        return None if error is None else StorageError(error.message)


class TakesAFaultForARefusal(WebMemory):
    """For completions only: an upload that can never be completed would be retried forever."""

    def ask(self, hook: str, key: str, timeout: float) -> None:
        try:
            super().ask(hook, key, timeout)
        except Unavailable as error:
            raise Unreachable(error.message, hint=error.hint) if hook == "complete_multipart" else error from None


_EXISTS, _GONE, _DONE = (f"test_{what}_is_the_stores_to_say" for what in ("exists", "gone", "done"))
EXPECTED: Final[dict[type[WebMemory], set[str]]] = {
    BelievesA412: {_EXISTS},
    BelievesA409OfACompletion: {_EXISTS},
    BelievesA304: {_EXISTS},
    BelievesAnyEmptyConflict: {_EXISTS},
    BelievesA404OfAnUpload: {_GONE},
    BelievesA404OfAnAbort: {_GONE},
    BelievesA410OfADelete: {_GONE},
    FindsNoObjectByA404: {_GONE},
    TakesAPageForAPart: {_DONE},
    TakesAPageForACompletion: {_DONE},
    TakesAPageForAnAbort: {_DONE},
    TakesAPageForADelete: {_DONE},
    TakesAFaultForARefusal: {"test_fault_is_no_refusal"},
    SaysNothingOfAStranger: {_EXISTS, _GONE, _DONE},
}
