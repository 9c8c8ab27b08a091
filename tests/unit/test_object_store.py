"""ObjectStore: every hook call is retried and counted in one place, and only a receipt counts as success."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self, TypeVar, cast

import pytest

from jobs_backup.errors import ContractViolation, PermissionDenied, StorageError, Throttled, Unavailable
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import (
    AbortReceipt,
    Batch,
    Body,
    BytesBody,
    DeleteReceipt,
    Kind,
    Outcome,
    Part,
    Stream,
    Upload,
    WriteReceipt,
)
from jobs_backup.settings.core import CoreSettings
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.store.plugins import Installed
from jobs_backup.store.providers import LoadedProvider, register
from jobs_backup.store.retry import Retry, RetryPolicy

T = TypeVar("T")
POLICY = RetryPolicy(attempts=4, deadline=1000.0)


class Scripted:
    """A provider whose hooks follow the test: they raise exceptions, and return anything else."""

    API_VERSION: ClassVar = 1
    location = "scripted://bucket"

    def __init__(self, *answers: object) -> None:
        self._answers: Iterator[object] = iter(answers)
        self.bodies: list[bytes] = []

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        return cls()

    def _answer(self, _: type[T]) -> T:
        answer = next(self._answers)
        if isinstance(answer, BaseException):
            raise answer
        return cast(T, answer)

    @hookimpl
    def write(self, key: str, body: Body) -> WriteReceipt:
        with body.open() as reader:
            self.bodies.append(reader.read())
        return self._answer(WriteReceipt)

    @hookimpl
    def abort_multipart(self, upload: Upload) -> AbortReceipt:
        return self._answer(AbortReceipt)

    @hookimpl
    def delete(self, keys: Sequence[str]) -> DeleteReceipt:
        return self._answer(DeleteReceipt)

    @hookimpl
    def create_multipart(self, key: str) -> Upload:
        return self._answer(Upload)

    @hookimpl
    def write_part(self, upload: Upload, number: int) -> Part:
        return self._answer(Part)

    @hookimpl
    def complete_multipart(self, upload: Upload) -> WriteReceipt:
        return self._answer(WriteReceipt)


BODY = BytesBody(b"bytes")
BATCH = Batch(
    id=1, stream=Stream(Kind.RAW, "", "web"), events=1, raw_bytes=5, size=5, crc32c=0, key="k.json.gz", uuid="u",
    content_type="application/gzip", wrappers=(), blobs="b",
)  # fmt: skip
UPLOAD = Upload(key="k.json.gz", id="canary/7f3a+==")

CALLS: dict[str, tuple[Callable[[ObjectStore], object], object]] = {
    "write": (lambda to: to.write(BATCH, BODY), WriteReceipt()),
    "create_multipart": (lambda to: to.create_multipart(BATCH), UPLOAD),
    "write_part": (lambda to: to.write_part(UPLOAD, 1, 0, BODY, True), Part(number=1)),
    "complete_multipart": (lambda to: to.complete_multipart(UPLOAD, [Part(number=1)], BATCH), WriteReceipt()),
    "abort_multipart": (lambda to: to.abort_multipart(UPLOAD), AbortReceipt(Outcome.GONE)),
    "delete": (lambda to: to.delete(["a"]), DeleteReceipt(deleted=frozenset({"a"}))),
}
every_hook = pytest.mark.parametrize("hook", CALLS)


def store(*answers: object) -> tuple[ObjectStore, Scripted]:
    provider = Scripted(*answers)
    one = Installed(name="SCRIPTED", distribution="scripted", version="1", target="m:C")
    manager, hooks = register(provider, one)
    loaded = LoadedProvider(installed=one, provider=provider, manager=manager, hooks=hooks)
    return ObjectStore(loaded, retry=Retry(POLICY, sleep=lambda _: None)), provider


@every_hook
def test_every_hook_is_retried_and_counted(hook: str) -> None:
    call, receipt = CALLS[hook]
    to, _ = store(Unavailable("1"), Throttled("2"), receipt)
    assert call(to) is receipt
    assert to.attempts == {(hook, "Unavailable"): 1, (hook, "Throttled"): 1, (hook, "ok"): 1}


def test_every_attempt_opens_the_body_anew() -> None:
    to, provider = store(Unavailable("1"), Unavailable("2"), WriteReceipt())
    to.write(BATCH, BODY)
    assert provider.bodies == [b"bytes"] * 3


@every_hook
def test_the_log_names_provider_hook_and_key(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    call, receipt = CALLS[hook]
    to, _ = store(Unavailable("no answer"), receipt)
    call(to)
    (line,) = caplog.messages
    assert line.startswith(f"SCRIPTED {hook} ")
    assert "1 objects" in line if hook == "delete" else "k.json.gz" in line


@every_hook
@pytest.mark.parametrize("wrong", [None, True, {}, "stored"])
def test_what_is_no_receipt_is_a_violation_of_the_contract(hook: str, wrong: object) -> None:
    to, _ = store(wrong, None)
    with pytest.raises(ContractViolation) as caught:
        CALLS[hook][0](to)
    assert f"SCRIPTED: {hook} returned {type(wrong).__name__} instead of " in str(caught.value)
    assert caught.value.attempts == 1
    assert to.attempts == {(hook, "ContractViolation"): 1}


@every_hook
def test_an_unknown_exception_becomes_a_storage_error_that_is_retried(hook: str) -> None:
    call, receipt = CALLS[hook]
    to, _ = store(RuntimeError("socket closed"), receipt)
    assert call(to) is receipt
    to, _ = store(*(RuntimeError("socket closed") for _ in range(4)))
    with pytest.raises(StorageError) as caught:
        call(to)
    assert type(caught.value) is StorageError
    assert caught.value.message == f"SCRIPTED: {hook} failed: RuntimeError: socket closed"
    assert caught.value.attempts == 4
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("hook", ["write_part", "complete_multipart", "abort_multipart"])
@pytest.mark.parametrize("written", ["canary/7f3a+==", "canary%2F7f3a%2B%3D%3D", "canary/7f3a%2B%3D%3D"])
def test_an_unknown_exception_does_not_give_the_uploads_id_away(hook: str, written: str, caplog: pytest.LogCaptureFixture) -> None:
    errors = (OSError(f"refused: http://s3.example/k.json.gz?uploadId={written}&partNumber=1") for _ in range(4))
    to, _ = store(*errors)
    with pytest.raises(StorageError) as caught:
        CALLS[hook][0](to)
    logged = [
        str(caught.value),
        repr(caught.value),
        caught.value.one_line(),
        *traceback.format_exception(caught.value),
        *caplog.messages,
    ]
    assert len(caplog.messages) == 3
    assert "uploadId=****&partNumber=1" in str(caught.value)
    assert not any("7f3a" in text for text in logged)


def test_an_upload_does_not_show_its_id() -> None:
    assert "7f3a" not in repr(UPLOAD) + str(UPLOAD) + f"{UPLOAD}"


def test_an_interrupted_hook_is_not_translated() -> None:
    to, _ = store(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        to.write(BATCH, BODY)


def test_delete_has_to_report_an_outcome_for_each_key() -> None:
    receipt = DeleteReceipt(deleted=frozenset({"a"}), failed={"b": PermissionDenied("no", action="a", resource="r")})
    to, _ = store(receipt)
    assert to.delete(["a", "b"]) is receipt
    to, _ = store(receipt)
    with pytest.raises(ContractViolation, match="no outcome for 1 of 3 keys"):
        to.delete(["a", "b", "c"])


def test_it_is_configured_by_the_environment(tmp_path: Path) -> None:
    environment = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "file",
        "JOBS_BACKUP_BUCKET": str(tmp_path / "missing"),
        "JOBS_BACKUP_RETRY_ATTEMPTS": "3",
        "JOBS_BACKUP_RETRY_MAX_WAIT": "1ms",
    }
    to = ObjectStore.from_settings(CoreSettings.from_environment(environment), environment, stop=threading.Event())
    assert to.location == (tmp_path / "missing").as_uri()
    with pytest.raises(StorageError, match="does not exist"):
        to.write(BATCH, BODY)
    assert to.attempts == {("write", "BucketNotFound"): 1}
