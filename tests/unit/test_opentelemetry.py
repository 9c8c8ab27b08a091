"""jobs-backup-opentelemetry: a span for each attempt at each hook, with its details and without secrets."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import pluggy
import pytest
from buckets import events, file_environment
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from jobs_backup import Backup
from jobs_backup.errors import BucketNotFound, Throttled, Unavailable
from jobs_backup.hookspecs import PROJECT, ObjectHooks, StorageProvider, hookimpl
from jobs_backup.model import (
    AbortReceipt,
    Batch,
    Body,
    BytesBody,
    DeleteReceipt,
    Kind,
    Listed,
    Outcome,
    Page,
    Part,
    Policy,
    Stream,
    Upload,
    WriteReceipt,
)
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.store.plugins import Installed
from jobs_backup.store.providers import LoadedProvider, register
from jobs_backup.store.retry import Retry, RetryPolicy
from jobs_backup.store.wrappers import Wrappers
from jobs_backup_opentelemetry import OpenTelemetryWrapper

BODY = BytesBody(b"bytes")
BATCH = Batch(
    id=7, stream=Stream(Kind.RAW, "", "web"), events=3, raw_bytes=5, size=5, crc32c=BODY.crc32c(), key="k.json.gz", uuid="u",
    content_type="application/gzip", wrappers=(), blobs="b",
)  # fmt: skip
UPLOAD = Upload(key="k.json.gz", id="canary-upload-id")
RECEIPTS: dict[str, object] = {
    "write": WriteReceipt(etag="e"),
    "create_multipart": UPLOAD,
    "write_part": Part(number=2, etag="p"),
    "complete_multipart": WriteReceipt(etag="c"),
    "abort_multipart": AbortReceipt(Outcome.ABORTED),
    "delete": DeleteReceipt(deleted=frozenset({"a", "b"})),
    "read": BODY,
    "list": Page(objects=[Listed(key="k", size=1)]),
    "policy": Policy(format="json", text="{}"),
    "open_body": BODY,
}


class Scripted:
    """A provider and core's side. Each hook raises the scripted errors first, then returns its receipt."""

    API_VERSION: ClassVar = 1
    location = "scripted://bucket"

    def __init__(self, *errors: BaseException) -> None:
        self._errors = iter(errors)
        self.parent: Any = None

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        return cls()

    def _do(self, hook: str) -> Any:
        self.parent = trace.get_current_span().get_span_context()
        if (error := next(self._errors, None)) is not None:
            raise error
        return RECEIPTS[hook]

    @hookimpl
    def write(self, key: str) -> WriteReceipt:
        return cast(WriteReceipt, self._do("write"))

    @hookimpl
    def abort_multipart(self, upload: Upload) -> AbortReceipt:
        return cast(AbortReceipt, self._do("abort_multipart"))

    @hookimpl
    def delete(self, keys: Any) -> DeleteReceipt:
        return cast(DeleteReceipt, self._do("delete"))

    @hookimpl
    def create_multipart(self, key: str) -> Upload:
        return cast(Upload, self._do("create_multipart"))

    @hookimpl
    def write_part(self, upload: Upload) -> Part:
        return cast(Part, self._do("write_part"))

    @hookimpl
    def complete_multipart(self, upload: Upload) -> WriteReceipt:
        return cast(WriteReceipt, self._do("complete_multipart"))

    @hookimpl
    def read(self, key: str) -> Body:
        return cast(Body, self._do("read"))

    @hookimpl
    def list(self, prefix: str) -> Page:
        return cast(Page, self._do("list"))

    @hookimpl
    def policy(self, format: str) -> Policy:
        return cast(Policy, self._do("policy"))


class Bodies:
    """Core's side."""

    def __init__(self, scripted: Scripted) -> None:
        self._scripted = scripted

    @hookimpl
    def open_body(self, batch: Batch) -> Body:
        return cast(Body, self._scripted._do("open_body"))


def fetched(to: ObjectStore, tmp_path: Path) -> bytes:
    with (tmp_path / "fetched").open("w+b") as file:
        to.fetch("k.json.gz", file)
        return file.read()


CALLS: dict[str, tuple[Callable[[ObjectStore, Path], object], object, dict[str, object]]] = {
    "write": (lambda to, _: to.write(BATCH, BODY), RECEIPTS["write"], {"key": "k.json.gz", "size": 5}),
    "create_multipart": (lambda to, _: to.create_multipart(BATCH), UPLOAD, {"key": "k.json.gz", "size": 5}),
    "write_part": (
        lambda to, _: to.write_part(UPLOAD, 2, 5, BODY, True),
        RECEIPTS["write_part"],
        {"key": "k.json.gz", "part": 2, "size": 5},
    ),
    "complete_multipart": (
        lambda to, _: to.complete_multipart(UPLOAD, [Part(number=1), Part(number=2)], BATCH),
        RECEIPTS["complete_multipart"],
        {"key": "k.json.gz", "parts": 2, "size": 5},
    ),
    "abort_multipart": (lambda to, _: to.abort_multipart(UPLOAD), RECEIPTS["abort_multipart"], {"key": "k.json.gz"}),
    "delete": (lambda to, _: to.delete(["a", "b"]), RECEIPTS["delete"], {"keys": 2}),
    "read": (fetched, b"bytes", {"key": "k.json.gz"}),
    "list": (lambda to, _: to.list("p/", ""), RECEIPTS["list"], {"prefix": "p/"}),
    "policy": (lambda to, _: to.policy({}, format_="json"), RECEIPTS["policy"], {"format": "json"}),
    "open_body": (lambda to, _: to.prepare(BATCH)[1], BODY, {"key": "k.json.gz", "batch": "7", "events": 3}),
}
every_hook = pytest.mark.parametrize("hook", CALLS)
RETRIED = [hook for hook in CALLS if hook not in ("policy", "open_body")]


def store(*errors: BaseException) -> tuple[ObjectStore, Scripted]:
    provider = Scripted(*errors)
    one = Installed(name="SCRIPTED", distribution="scripted", version="1", target="m:C")
    manager, hooks = register(provider, one)
    loaded = LoadedProvider(installed=one, provider=provider, manager=manager, hooks=hooks)
    wrappers = Wrappers.from_settings("OPENTELEMETRY", {})
    made = ObjectStore(loaded, retry=Retry(RetryPolicy(attempts=3), sleep=lambda _: None), wrappers=wrappers)
    made.use_bodies(Bodies(provider))
    return made, provider


def sdk(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Collect spans; other tests of this process do not see them."""
    made = InMemorySpanExporter()
    provider = sdk(made)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield made
    provider.shutdown()


def spans(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return list(exporter.get_finished_spans())


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_every_hook_of_the_contract_is_wrapped_and_tried_here() -> None:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(StorageProvider)
    manager.add_hookspecs(ObjectHooks)
    specified = {name for name in vars(manager.hook) if not name.startswith("_")}
    assert {"write", "read", "open_body"} <= specified
    wrapped = {name for name in specified if hasattr(getattr(OpenTelemetryWrapper, name, None), f"{PROJECT}_impl")}
    assert (specified, specified) == (wrapped, set(CALLS))


@every_hook
def test_a_call_is_a_span_and_nothing_else_changes(exporter: InMemorySpanExporter, tmp_path: Path, hook: str) -> None:
    call, wanted, reported = CALLS[hook]
    to, _ = store()
    found = call(to, tmp_path)
    assert found is wanted or found == wanted
    (span,) = spans(exporter)
    assert (span.name, span.kind, span.status.status_code) == (f"jobs_backup {hook}", SpanKind.CLIENT, StatusCode.UNSET)
    assert attributes(span) == {f"jobs_backup.{name}": value for name, value in reported.items()}
    assert (span.instrumentation_scope and span.instrumentation_scope.name, list(span.events)) == ("jobs_backup", [])


@every_hook
def test_it_has_the_callers_span_as_its_parent_and_is_the_providers(
    exporter: InMemorySpanExporter, tmp_path: Path, hook: str
) -> None:
    to, scripted = store()
    with trace.get_tracer("test").start_as_current_span("caller") as caller:
        CALLS[hook][0](to, tmp_path)
        assert trace.get_current_span() is caller
    span, _ = spans(exporter)
    assert span.parent is not None
    assert span.parent.span_id == caller.get_span_context().span_id
    assert span.context is not None
    assert scripted.parent.span_id == span.context.span_id, "spans of an instrumented SDK become its children"
    exporter.clear()
    CALLS[hook][0](to, tmp_path)
    assert [span.parent for span in spans(exporter)] == [None]


@pytest.mark.parametrize("hook", RETRIED)
def test_each_attempt_is_a_span(exporter: InMemorySpanExporter, tmp_path: Path, hook: str) -> None:
    call, wanted, _ = CALLS[hook]
    to, _ = store(Throttled("slow down"), Unavailable("no answer", hint="look at the network"))
    assert call(to, tmp_path) == wanted
    first, second, third = spans(exporter)
    assert [span.status.status_code for span in (first, second, third)] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    assert [attributes(span).get("error.type") for span in (first, second, third)] == ["Throttled", "Unavailable", None]
    assert [span.status.description for span in (first, second)] == ["slow down", "no answer: look at the network"]
    assert to.attempts == {(hook, "Throttled"): 1, (hook, "Unavailable"): 1, (hook, "ok"): 1}


@pytest.mark.parametrize("hook", RETRIED)
def test_the_error_is_the_providers_own(exporter: InMemorySpanExporter, tmp_path: Path, hook: str) -> None:
    error = BucketNotFound("it is not there")
    to, _ = store(error)
    with pytest.raises(BucketNotFound) as raised:
        CALLS[hook][0](to, tmp_path)
    assert raised.value is error
    (span,) = spans(exporter)
    assert attributes(span)["error.type"] == "BucketNotFound"


@every_hook
def test_what_was_not_foreseen_shows_its_type_alone(exporter: InMemorySpanExporter, tmp_path: Path, hook: str) -> None:
    to, _ = store(*[RuntimeError(f"at https://store/?uploadId={UPLOAD.id}&key=canary-secret")] * 3)
    with pytest.raises(Exception, match="RuntimeError"):
        CALLS[hook][0](to, tmp_path)
    assert len(spans(exporter)) == (3 if hook in RETRIED else 1)
    for span in spans(exporter):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "RuntimeError")
        assert attributes(span)["error.type"] == "RuntimeError"
        assert list(span.events) == []
        assert "canary" not in span.to_json()


@every_hook
def test_the_id_of_an_upload_is_in_no_span(exporter: InMemorySpanExporter, tmp_path: Path, hook: str) -> None:
    to, _ = store(Unavailable("once"))
    try:
        CALLS[hook][0](to, tmp_path)
    except Unavailable:
        assert hook in ("policy", "open_body"), "those are not retried"
    assert spans(exporter)
    assert not [span for span in spans(exporter) if UPLOAD.id in span.to_json()]


def test_an_interrupt_passes(exporter: InMemorySpanExporter) -> None:
    to, _ = store(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        to.write(BATCH, BODY)
    assert [attributes(span)["error.type"] for span in spans(exporter)] == ["KeyboardInterrupt"]


def test_threads_do_not_mix_their_spans_up(exporter: InMemorySpanExporter) -> None:
    to, _ = store()
    tracer = trace.get_tracer("test")
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        with tracer.start_as_current_span(f"caller {number}"):
            barrier.wait(120)
            for _ in range(20):
                to.delete(["a", "b"])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    callers = {span.context.span_id for span in spans(exporter) if span.name.startswith("caller") and span.context}
    parents = [span.parent.span_id for span in spans(exporter) if span.name == "jobs_backup delete" and span.parent]
    assert (len(parents), set(parents)) == (160, callers)


def test_an_sdk_that_is_set_up_later_gets_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    to, _ = store()
    to.write(BATCH, BODY)
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", sdk(exporter))
    to.write(BATCH, BODY)
    assert [span.name for span in spans(exporter)] == ["jobs_backup write"]


@pytest.mark.parametrize("wrappers", ["OPENTELEMETRY,ENCRYPTION", "ENCRYPTION,OPENTELEMETRY"])
def test_in_a_backup_beside_encryption(exporter: InMemorySpanExporter, tmp_path: Path, wrappers: str) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_WRAPPERS=wrappers, JOBS_BACKUP_ENCRYPTION_KEY="A" * 43 + "=")
    with Backup.from_env(env) as backup:
        backup.record(b'{"messageId":"m1","secret":"canary"}', source_id="web")
        backup.flush(120)
    (path,) = (path for path in (tmp_path / "bucket").rglob("*.enc") if path.is_file())
    opened, wrote = spans(exporter)
    assert [opened.name, wrote.name] == ["jobs_backup open_body", "jobs_backup write"]
    assert attributes(opened)["jobs_backup.key"] == attributes(wrote)["jobs_backup.key"]
    assert attributes(wrote)["jobs_backup.size"] == path.stat().st_size
    assert "canary" not in opened.to_json() + wrote.to_json()


def test_that_a_key_is_missing_is_seen_by_what_stands_behind_encryption(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_WRAPPERS="ENCRYPTION,OPENTELEMETRY", JOBS_BACKUP_ENCRYPTION_KEY="A" * 43 + "=")
    with Backup.from_env(env, archive=False) as backup:
        backup.record(b'{"messageId":"m1"}', source_id="web")
    with Backup.from_env(env | {"JOBS_BACKUP_ENCRYPTION_KEY": "B" * 43 + "="}):
        deadline = time.monotonic() + 120
        while not spans(exporter) and time.monotonic() < deadline:
            time.sleep(0.01)
    span, *_ = spans(exporter)
    assert (span.name, attributes(span)["error.type"]) == ("jobs_backup open_body", "WrapperMissing")
    assert "which is missing" in str(span.status.description)
    assert "BBBB" not in span.to_json()


WITHOUT_AN_SDK = """
import sys
from jobs_backup import Backup
with Backup.from_env({environment!r}) as backup:
    backup.record(b'{{"messageId":"m1"}}', source_id="web")
    backup.flush(120)
print("opentelemetry.sdk" in sys.modules, "opentelemetry.trace" in sys.modules)
"""


def test_without_an_sdk_it_backs_up(tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_WRAPPERS="OPENTELEMETRY")
    command = [sys.executable, "-c", WITHOUT_AN_SDK.format(environment=env)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False True\n"
    assert [event["messageId"] for event in events(tmp_path)] == ["m1"]
