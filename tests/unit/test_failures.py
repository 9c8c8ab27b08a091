"""Delivery failures: one line each with all known details, and keys that RudderStack's tools recognize."""

from __future__ import annotations

import gzip
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from buckets import FAST_RETRY, events, file_environment, objects
from hypothesis import given
from hypothesis import strategies as st
from servers import Store
from spools import archiver_of

from jobs_backup import Backup, Event, InvalidEvent, UnknownJob
from jobs_backup.backup.backup import session_of
from jobs_backup.format.lines import FailureContext, FinalPayload, error_json, failed_line, timestamp
from jobs_backup.spool.sqlite.spool import SqliteSpool

FIELDS = [
    "userId", "payload", "createdAt", "messageId", "workspaceId", "sourceId", "destinationId", "jobId", "error", "attempts",
    "failedAt",
]  # fmt: skip
AT = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)


class DeliveryError(Exception):
    """An error as a store's client raises it."""


def refused() -> DeliveryError:
    """A real exception, with a cause."""
    try:
        try:
            int("☃ is no number")
        except ValueError as error:
            raise DeliveryError('HTTP 422: "prïce" ist ungültig\n☃') from error
    except DeliveryError as error:
        return error
    raise AssertionError("not reached")


def test_a_real_exception_comes_back_from_the_bucket_as_one_line(store: Store, bucket: str, tmp_path: Path) -> None:
    """On S3, with a nested Unicode payload whose format must not change."""
    payload = '{"messageId":"m1", "userId":"ü1", "n": 12345678901234567890, "deep": [[{"日本語": {"🪣": [1.10, null]}}]]}'
    environment = {**store.environment(bucket), **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
    with Backup.from_env({**environment, "JOBS_BACKUP_PREFIX": "p", "INSTANCE_ID": "7"}) as backup:
        job = backup.record({"messageId": "raw"}, source_id="wéb", workspace_id="ws")
        backup.failed(
            job,
            error=refused(),
            payload=payload,
            destination_id="d1",
            attempts=3,
            stage="deliver",
            code="422",
            created_at=AT,
            failed_at=AT,
        )
        backup.flush(120)
    (key,) = [key for key in store.keys(bucket) if "rudder-proc-err-logs" in key]
    at, uuid = int(AT.timestamp()), "[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert re.fullmatch(rf"p/rudder-proc-err-logs/03-04-2026/{at}\.7\.(\d+)-\1\.{uuid}\.ws\.json\.gz", key)
    text = gzip.decompress(store.get(bucket, key)).decode()
    assert text.count("\n") == 1
    assert f'"payload":{payload},' in text
    line = json.loads(text)
    assert list(line) == FIELDS
    assert line == {
        "userId": "ü1",
        "payload": json.loads(payload),
        "createdAt": "2026-03-04T05:06:07.000089Z",
        "messageId": "m1",
        "workspaceId": "ws",
        "sourceId": "wéb",
        "destinationId": "d1",
        "jobId": str(job),
        "error": {
            "message": "HTTP 422: \"prïce\" ist ungültig\n☃: caused by: invalid literal for int() with base 10: '☃ is no number'",
            "code": "422",
            "stage": "deliver",
        },
        "attempts": 3,
        "failedAt": "2026-03-04T05:06:07.000089Z",
    }


def test_each_call_makes_one_record_and_little_need_be_known(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        job = backup.record({}, source_id="web")
        before = datetime.now(UTC)
        for job_or_id in (job, int(job), str(job)):
            backup.failed(job_or_id, error="no", payload=None or {})
        backup.flush(120)
    found = [event for event in events(tmp_path) if "failedAt" in event]
    assert len(found) == 3
    assert {event["jobId"] for event in found} == {str(job)}
    (event, *_) = found
    assert (event["createdAt"], event["attempts"], event["destinationId"], event["userId"], event["messageId"]) == (
        None,
        None,
        "",
        "",
        "",
    )
    assert event["error"] == {"message": "no", "code": "", "stage": ""}
    assert before.isoformat() <= event["failedAt"].replace("Z", "+00:00") <= datetime.now(UTC).isoformat()


def test_an_event_that_was_not_recorded(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        event = Event(payload={"messageId": "m", "userId": "u"}, source_id="web", workspace_id="ws", user_id="given", created_at=AT)
        backup.failed(event, error="no")
        backup.failed(event, error="no", payload="final, and no JSON", message_id="m2")
        backup.flush(120)
    one, other = events(tmp_path)
    assert (one["payload"], one["userId"], one["messageId"]) == ({"messageId": "m", "userId": "u"}, "given", "m")
    assert (other["payload"], other["userId"], other["messageId"]) == ("final, and no JSON", "given", "m2")
    for found in (one, other):
        assert (found["sourceId"], found["workspaceId"], found["jobId"]) == ("web", "ws", None)
        assert found["createdAt"] == "2026-03-04T05:06:07.000089Z"


def test_by_the_id_of_another_process_and_of_an_object_that_is_gone(tmp_path: Path) -> None:
    environment = file_environment(tmp_path)
    with Backup.from_env(environment) as backup:
        job = backup.record({}, source_id="web", workspace_id="ws")
        backup.flush(120)
        backup.delivered(job)
        assert archiver_of(backup).drain(120)
        assert objects(tmp_path) == {}
    with Backup.from_env(environment) as backup:
        backup.failed(job, error="all the same", payload={})
        backup.flush(120)
    (event,) = events(tmp_path)
    assert (event["sourceId"], event["workspaceId"]) == ("web", "ws")


def test_what_can_not_be_kept_is_refused(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        job = backup.record({}, source_id="web")
        with pytest.raises(UnknownJob, match="is unknown"):
            backup.failed(job + 1, error="no", payload={})
        with pytest.raises(InvalidEvent, match="is not a job id"):
            backup.failed("x", error="no", payload={})
        with pytest.raises(InvalidEvent, match="payload is missing"):
            backup.failed(job, error="no")
        with pytest.raises(InvalidEvent, match="time zone"):
            backup.failed(job, error="no", payload={}, failed_at=datetime.fromisoformat("2026-01-01"))
        with pytest.raises(InvalidEvent, match="source_id is empty"):
            backup.failed(Event(payload={}, source_id=""), error="no")
        with pytest.raises(InvalidEvent, match="cannot be written"):
            backup.failed(job, error="no", payload={"a": object()})
        backup.flush(120)
    assert [event for event in events(tmp_path) if "failedAt" in event] == []


def test_a_record_that_settles_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs_backup.errors import SpoolError, SpoolFull

    def full(*_: object) -> None:
        raise SpoolFull("the disk is full")

    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_DELETE_AFTER="settled")) as backup:
        job = backup.record({}, source_id="web")
        monkeypatch.setattr(SqliteSpool, "settle", full)
        with pytest.raises(SpoolError, match="are recorded, but their events' objects will stay") as caught:
            backup.failed(job, error="no", payload={})
        assert not isinstance(caught.value, SpoolFull), "calling again would record it twice"
    assert len([event for event in events(tmp_path) if "failedAt" in event]) == 1


# Errors


class Structure(msgspec.Struct):
    message: str
    status: int
    headers: dict[str, Any]


def raised(error: Exception, cause: Exception | None = None, *, hidden: bool = False) -> Exception:
    error.__cause__ = cause
    error.__suppress_context__ = hidden
    return error


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        ("text", {"message": "text", "code": "", "stage": ""}),
        ("", {"message": "", "code": "", "stage": ""}),
        ("cut \ud83d", {"message": "cut \ud83d", "code": "", "stage": ""}),
        (ValueError("why"), {"message": "why", "code": "ValueError", "stage": ""}),
        (ValueError(), {"message": "ValueError", "code": "ValueError", "stage": ""}),
        (
            raised(DeliveryError("a"), raised(KeyError("b"), OSError("c"))),
            {"message": "a: caused by: 'b': caused by: c", "code": "DeliveryError", "stage": ""},
        ),
        ({"message": "m", "code": 422, "stage": "s"}, {"message": "m", "code": "422", "stage": "s"}),
        ({"status": 500}, {"message": "", "code": "", "stage": "", "details": {"status": 500}}),
        ({"message": {"nested": 1}}, {"message": "", "code": "", "stage": "", "details": {"message": {"nested": 1}}}),
        (
            Structure("m", 500, {"Retry-After": "1"}),
            {"message": "m", "code": "", "stage": "", "details": {"status": 500, "headers": {"Retry-After": "1"}}},
        ),
        ([1, "two"], {"message": "", "code": "", "stage": "", "details": [1, "two"]}),
        (None, {"message": "", "code": "", "stage": ""}),
        ({"at": AT}, {"message": "", "code": "", "stage": "", "details": {"at": "2026-03-04T05:06:07.000089Z"}}),
    ],
)  # fmt: skip
def test_errors(error: object, wanted: dict[str, Any]) -> None:
    assert json.loads(error_json(error)) == wanted


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_without_a_text_is_kept_all_the_same() -> None:
    assert json.loads(error_json(Unprintable()))["message"] == "Unprintable"


def test_codes_may_be_numbers_and_attempts_have_to_be(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        event = Event(payload={}, source_id="web")
        backup.failed(event, error="no", code=429)
        with pytest.raises(InvalidEvent, match="attempts must be a whole number"):
            backup.failed(event, error="no", attempts="3")  # type: ignore[arg-type]
        with pytest.raises(InvalidEvent, match="destination_id must be a str"):
            backup.failed(event, error="no", destination_id=7)  # type: ignore[arg-type]
    assert [event["error"]["code"] for event in events(tmp_path)] == ["429"]


def test_what_is_given_beside_the_error_wins() -> None:
    found = json.loads(error_json({"message": "m", "code": "its own", "stage": "its own"}, "503", "deliver"))
    assert found == {"message": "m", "code": "503", "stage": "deliver"}


def test_an_endless_chain_of_causes_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert json.loads(error_json(one))["message"].count("caused by") == 7


@pytest.mark.parametrize("error", [object(), {"a": object()}, {1: {2}}, {"a": float("nan")}, {"a": "\ud83d"}, [[]] * 3])
def test_a_failure_is_kept_whatever_its_error_is(error: object) -> None:
    assert "details" in json.loads(error_json(error))


# Payloads


def line(payload: FinalPayload) -> dict[str, Any]:
    context = FailureContext(
        workspace_id="w", source_id="s", destination_id="d", job=7, attempts=1, created_at=b"null", failed_at=timestamp(0)
    )
    text = failed_line(payload, error_json("no"), context)
    assert text.count(b"\n") == 1
    assert text.endswith(b"}\n")
    found: dict[str, Any] = json.loads(text)
    assert list(found) == FIELDS
    return found


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        ({"a": 1}, {"a": 1}),
        (b'{"a": 1}', {"a": 1}),
        (memoryview(b"[1, 2]"), [1, 2]),
        ([1, {"b": 2}], [1, {"b": 2}]),
        ("[1,\n 2]", [1, 2]),
        ('"a string"', "a string"),
        ("null", None),
        ("12", 12),
        ("a=1&b=2", "a=1&b=2"),
        ("<xml/>", "<xml/>"),
        ("", ""),
        (b"\xff\x00", "\\xff\x00"),
        ("cut \ud83d", "cut \ud83d"),
        ('{"cut": ', '{"cut": '),
        ("[" * 5000, "[" * 5000),
        ("two\nlines", "two\nlines"),
    ],
)
def test_payloads_of_any_kind(payload: FinalPayload, wanted: object) -> None:
    assert line(payload)["payload"] == wanted


@given(st.text() | st.binary())
def test_no_text_is_refused_as_a_payload(payload: str | bytes) -> None:
    line(payload)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    )
)
def test_json_comes_back_as_it_was(payload: Any) -> None:
    assert line(json.dumps(payload))["payload"] == payload


def test_a_payload_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs_backup.format.lines.MAX_PAYLOAD", 10)
    with pytest.raises(InvalidEvent, match="longer than"):
        line("x" * 11)


def test_failures_of_many_streams_go_in_one_commit(tmp_path: Path) -> None:
    from jobs_backup.backup.failures import Failure

    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_DELETE_AFTER="settled")) as backup:
        jobs = backup.record_many(Event(payload={"n": n}, source_id=f"s{n % 3}") for n in range(30))
        failures = [Failure(job=job, error="no", payload={"n": n}) for n, job in enumerate(jobs)]
        session_of(backup).record_failures(session_of(backup).failure_record(failure) for failure in failures)
        backup.flush(120)
        deadline = time.monotonic() + 120
        while archiver_of(backup).deleter.deleted < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    found = events(tmp_path)
    assert sorted(event["payload"]["n"] for event in found) == list(range(30))
    assert all("failedAt" in event and event["sourceId"] == f"s{event['payload']['n'] % 3}" for event in found)
    assert {event["jobId"]: event["payload"]["n"] for event in found} == {str(job): n for n, job in enumerate(jobs)}
    assert len(objects(tmp_path)) == 3
