"""When "exists already" counts as stored: core's rule for every provider, and the state that it keeps."""

# mypy: disable-error-code="override"
# (hooks may take fewer arguments)

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from buckets import FAST_RETRY, events, file_environment
from s3_client import refusal
from s3_client import scripted as s3_hooks
from spools import archiver_of, assert_waits

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import (
    AlreadyExists,
    IntegrityError,
    StorageError,
    Unavailable,
    Unproven,
    UploadGone,
    WrapperMissing,
)
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import Batch, Body, BytesBody, Kind, Outcome, Part, Stream, Upload, WriteReceipt
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.store.retry import Retry, RetryPolicy
from jobs_backup.testing.driver import Hooks
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, FaultProxy
from jobs_backup.testing.memory import MemoryProvider, MemorySettings, loaded

# The rule itself, for every provider


class Says(MemoryProvider):
    """Raises the test's errors, one per call of a hook, and then works normally."""

    def __init__(self, settings: MemorySettings) -> None:
        super().__init__(settings)
        self.errors: dict[str, list[Exception]] = {}

    def say(self, hook: str) -> None:
        if self.errors.get(hook):
            raise self.errors[hook].pop(0)

    @hookimpl
    def write(self, key: str, body: Body, size: int, checksum: int, if_absent: bool) -> WriteReceipt:
        self.say("write")
        return super().write(key, body, size, checksum, if_absent)

    @hookimpl
    def create_multipart(self, key: str) -> Upload:
        self.say("create_multipart")
        return super().create_multipart(key)

    @hookimpl
    def write_part(self, upload: Upload, number: int, body: Body, size: int) -> Part:
        self.say("write_part")
        return super().write_part(upload, number, body, size)

    @hookimpl
    def complete_multipart(self, upload: Upload, parts: Sequence[Part], checksum: int, if_absent: bool) -> WriteReceipt:
        self.say("complete_multipart")
        return super().complete_multipart(upload, parts, checksum, if_absent)


class InOrder(Says):
    sequential_parts = True


class Existed(MemoryProvider):
    """Returns a receipt instead of raising AlreadyExists."""

    @hookimpl
    def write(self, key: str) -> WriteReceipt:
        return WriteReceipt(existed=True)


EXISTS = AlreadyExists("exists")
MISMATCH = IntegrityError("other bytes")
BODY = BytesBody(b"bytes")
BATCH = Batch(
    id=1, stream=Stream(Kind.RAW, "", "web"), events=1, raw_bytes=5, size=5, crc32c=BODY.crc32c(), key="k", uuid="u",
    content_type="application/gzip", wrappers=(), blobs="b",
)  # fmt: skip


def store(class_: type[MemoryProvider], *, if_absent: bool = True) -> tuple[ObjectStore, Any]:
    MemoryProvider.buckets["proof"] = {}
    one = loaded(class_, {"JOBS_BACKUP_BUCKET": "proof"})
    return ObjectStore(one, retry=Retry(RetryPolicy(attempts=3), sleep=lambda _: None), if_absent=if_absent), one.provider


def parts_of(to: ObjectStore, *, last: bool = True) -> WriteReceipt:
    upload = to.create_multipart(BATCH)
    part = to.write_part(upload, 1, 0, BODY, last)
    return to.complete_multipart(upload, [part], BATCH)


@pytest.mark.parametrize(
    ("class_", "hook", "if_absent", "last", "is_proven"),
    [
        (Says, "write", True, True, True),
        (Says, "write", False, True, False),
        (Says, "create_multipart", True, True, False),
        (Says, "write_part", True, True, False),
        (Says, "complete_multipart", True, True, True),
        (Says, "complete_multipart", False, True, False),
        (InOrder, "create_multipart", True, True, True),
        (InOrder, "create_multipart", False, True, False),
        (InOrder, "write_part", True, True, True),
        (InOrder, "write_part", True, False, False),
        (InOrder, "write_part", False, True, False),
        (InOrder, "complete_multipart", True, True, True),
    ],
)
def test_exists_counts_only_in_answer_to_the_condition(
    class_: type[Says], hook: str, if_absent: bool, last: bool, is_proven: bool
) -> None:
    to, provider = store(class_, if_absent=if_absent)
    provider.errors = {hook: [EXISTS]}
    with pytest.raises(AlreadyExists if is_proven else Unproven) as caught:
        to.write(BATCH, BODY) if hook == "write" else parts_of(to, last=last)
    assert caught.value.hint or is_proven
    assert caught.value.attempts == 1


def test_a_receipt_that_says_so_is_no_better_than_an_error() -> None:
    to, _ = store(Existed)
    assert to.write(BATCH, BODY).existed
    to, _ = store(Existed, if_absent=False)
    with pytest.raises(Unproven):
        to.write(BATCH, BODY)


@pytest.mark.parametrize(
    "before", [[MISMATCH], [MISMATCH, Unavailable("?")], [MISMATCH] * 3], ids=["at once", "later", "next call"]
)
@pytest.mark.parametrize("hook", ["write", "complete_multipart", "write_part"])
def test_a_mismatch_of_whichever_attempt_is_not_forgotten(hook: str, before: list[Exception]) -> None:
    """It says nothing about other batches."""
    to, provider = store(Says)

    def call() -> WriteReceipt:
        return to.write(BATCH, BODY) if hook == "write" else parts_of(to)

    publishing = "write" if hook == "write" else "complete_multipart"
    provider.errors = {hook: list(before)}
    provider.errors.setdefault(publishing, []).append(EXISTS)
    if len(before) == 3:  # the attempts are within one call
        with pytest.raises(IntegrityError):
            call()
    with pytest.raises(Unproven, match="mismatch"):
        call()
    provider.errors = {"write": [EXISTS]}
    with pytest.raises(AlreadyExists):
        to.write(msgspec.structs.replace(BATCH, key="other"), BODY)


def test_after_a_receipt_the_mismatch_before_it_does_not_count() -> None:
    to, provider = store(Says)
    provider.errors = {"write": [MISMATCH]}
    to.write(BATCH, BODY)
    with pytest.raises(AlreadyExists):
        to.write(BATCH, BODY)


# Remembered state, and the criteria of FILE and S3


def test_what_is_doubted_is_remembered_beside_what_wrappers_have_made(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
        backup.record({"n": 1}, source_id="web")
        session_of(backup).spool.seal()
        claim = session_of(backup).spool.claim()
        assert claim is not None
        batch, other = claim.batch, msgspec.structs.replace(claim.batch, size=claim.batch.size + 1)
        session_of(backup).spool.pin_content(batch)
        assert not session_of(backup).spool.is_doubted(batch.key)
        for _ in range(2):
            session_of(backup).spool.doubt(batch.key)
            assert session_of(backup).spool.is_doubted(batch.key)
            session_of(backup).spool.pin_content(batch)
            with pytest.raises(WrapperMissing):
                session_of(backup).spool.pin_content(other)
        assert not session_of(backup).spool.is_doubted("another/key")
        session_of(backup).spool.release(batch, Unavailable("?"), delay=0)
    with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
        assert session_of(backup).spool.is_doubted(batch.key)
        assert session_of(backup).spool.claim() is not None
        session_of(backup).spool.stored(batch, deletable_after=0)
        assert not session_of(backup).spool.is_doubted(batch.key)


@pytest.mark.parametrize("there", [b"", b"somebody else's", "same size", "a directory"])
def test_a_file_that_exists_is_ours_only_if_it_has_our_bytes(tmp_path: Path, there: bytes | str) -> None:
    """FILE can look without a request."""
    environment = file_environment(tmp_path)
    with Backup.from_env(environment, archive=False) as recorder:
        recorder.record({"n": 1}, source_id="web")
        session_of(recorder).spool.seal()
        claim = session_of(recorder).spool.claim()
        assert claim is not None
        session_of(recorder).spool.release(claim.batch, Unavailable("?"), delay=0)
    path = tmp_path / "bucket" / claim.batch.key
    path.parent.mkdir(parents=True)
    if there == "a directory":
        path.mkdir()
    else:
        path.write_bytes(there if isinstance(there, bytes) else bytes(claim.batch.size))
    with Backup.from_env({**environment, **FAST_RETRY}) as backup:
        error = assert_waits(backup)
        assert "exists" in error.message
    path.rmdir() if path.is_dir() else path.unlink()
    with Backup.from_env(environment) as backup:
        assert archiver_of(backup).drain(120)
    assert [event["payload"] for event in events(tmp_path)] == [{"n": 1}]


# The mark of S3's responses


UPLOAD = Upload(key="key", id="canary")


@pytest.fixture
def marked() -> Iterator[tuple[FaultProxy, Hooks]]:
    """A store whose first response has shown the mark."""
    with FaultProxy() as server:
        server.fail(Answer(200, b"", {"ETag": '"1"', "x-amz-request-id": "1"}))
        hooks = s3_hooks(server.url)
        hooks.write("first", b"data")
        server.clear()
        yield server, hooks


@pytest.mark.parametrize(
    ("call", "answer", "code"),
    [
        (lambda hooks: hooks.write("key", b"data"), refusal(412, "PreconditionFailed"), "PreconditionFailed"),
        (
            lambda hooks: hooks.complete(UPLOAD, [], b""),
            refusal(412, "PreconditionFailed"),
            "PreconditionFailed",
        ),
        (lambda hooks: hooks.part(UPLOAD, [b"x"], 1), refusal(404, "NoSuchUpload"), "NoSuchUpload"),
        (lambda hooks: hooks.abort(UPLOAD), refusal(404, "NoSuchUpload"), "GONE"),
        (lambda hooks: hooks.abort(UPLOAD), Answer(204), "ABORTED"),
    ],
)
def test_a_store_of_s3_that_marks_its_answers_is_held_to_it(
    marked: tuple[FaultProxy, Hooks], call: Callable[[Hooks], object], answer: Answer, code: str
) -> None:
    server, hooks = marked
    server.fail(answer)
    with pytest.raises(StorageError, match="has no x-amz-request-id") as caught:
        call(hooks)
    assert type(caught.value) is StorageError
    assert caught.value.hint
    server.fail(Answer(answer.status, answer.body, {**answer.headers, "x-amz-request-id": "2"}))
    try:
        assert call(hooks) == Outcome[code]
    except (AlreadyExists, UploadGone) as error:
        assert code in error.message


def test_aws_marks_each_answer() -> None:
    with FaultProxy() as proxy:
        proxy.fail(Answer(204), times=ALWAYS)
        aws = s3_hooks("http://s3.eu-west-1.amazonaws.com", JOBS_BACKUP_S3_PROXY=proxy.url)
        with pytest.raises(StorageError, match="has no x-amz-request-id"):
            aws.abort(UPLOAD)
