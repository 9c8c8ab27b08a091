"""The public API, with a directory as the bucket."""

from __future__ import annotations

import asyncio
import ctypes
import gzip
import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from buckets import FAST_RETRY, events, file_environment, left_over, lines, objects
from spools import archiver_of, engine

import jobs_backup
from jobs_backup import (
    AsyncBackup,
    Backup,
    BackupClosed,
    ConfigurationError,
    CoreSettings,
    Event,
    InvalidEvent,
    Job,
    NoArchiver,
    StorePaused,
)
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import SpoolError
from jobs_backup.model import Kind


def test_a_recorded_event_is_in_the_bucket_after_flush(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_PREFIX="/backups/", INSTANCE_ID="7")) as backup:
        job = backup.record(
            b'{"messageId": "m1", "userId": "u1", "n": 12345678901234567890, "f": 1.10}',
            source_id="web",
            workspace_id="ws",
            created_at=datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC),
        )
        backup.flush(timeout=120)
        ((key, content),) = objects(tmp_path).items()
    at = int(datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC).timestamp())
    uuid = "[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert re.fullmatch(rf"backups/web/gw/2026-03-04/5/7/{at}_{at}_ws_{uuid}\.json\.gz", key)
    assert gzip.decompress(content) == (
        b'{"userId":"u1","payload":{"messageId": "m1", "userId": "u1", "n": 12345678901234567890, "f": 1.10},'
        b'"createdAt":"2026-03-04T05:06:07.000089Z","messageId":"m1"}\n'
    )
    assert isinstance(job, Job)
    assert (job.batch, job.index) == (1, 0)
    assert 1 << 63 <= job < 1 << 126, "it names the process that gave it"


def test_close_sends_what_was_recorded_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        backup.record({"a": 1}, source_id="web")
    assert [event["payload"] for event in events(tmp_path)] == [{"a": 1}]
    assert left_over(tmp_path) == []


def test_given_ids_win_over_those_in_the_payload(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        backup.record({"userId": "payload", "messageId": "payload"}, source_id="web", user_id="given", message_id="given too")
    (event,) = events(tmp_path)
    assert (event["userId"], event["messageId"]) == ("given", "given too")
    assert event["payload"] == {"userId": "payload", "messageId": "payload"}


def test_record_many_gives_the_jobs_in_the_order_of_the_payloads(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="1000")) as backup:
        jobs = backup.record_many(({"messageId": str(number)} for number in range(25_500)), source_id="web")
        assert len(jobs) == 25_500
        assert all(one < other for one, other in pairwise(jobs))
        assert list(jobs) == [jobs[index] for index in range(len(jobs))]
        assert jobs[-1] == jobs[25_499]
        assert jobs[10:12] == [jobs[10], jobs[11]]
        with pytest.raises(IndexError):
            jobs[25_500]
    contents = objects(tmp_path)
    assert sorted(len(gzip.decompress(content).splitlines()) for content in contents.values()) == [500] + [1000] * 25
    assert {event["messageId"] for event in events(tmp_path)} == {str(number) for number in range(25_500)}


def test_events_that_carry_their_source_get_the_ids_of_their_own_batches(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="70")) as backup:
        jobs = backup.record_many(
            Event(payload={"n": number}, source_id=f"source-{number % 7}", workspace_id="w") for number in range(1000)
        )
        assert len(set(jobs)) == len(jobs) == 1000
        for source in range(7):
            own = [job for number, job in enumerate(jobs) if number % 7 == source]
            assert own == sorted(own)
            assert [job.index for job in own] == [index % 70 for index in range(len(own))]
    for key, content in objects(tmp_path).items():
        source = int(key.split("/")[0].removeprefix("source-"))
        assert all(json.loads(line)["payload"]["n"] % 7 == source for line in gzip.decompress(content).splitlines())


def test_an_invalid_payload_is_named_and_harms_no_other(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        with pytest.raises(InvalidEvent) as caught:
            backup.record_many([b'{"a":1}', b'{"a":2}', b"[3]", b'{"a":4}'], source_id="web")
        assert caught.value.index == 2
        assert len(caught.value.recorded) == 2
        backup.record(b'{"a":5}', source_id="web")
    assert [event["payload"]["a"] for event in events(tmp_path)] == [1, 2, 5]


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b'"x"', b'{"a":}', b'{"a":1}{"b":2}', b'{"a":"\xff"}', "{", {"a": object()}]
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, payload: bytes) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup, pytest.raises(InvalidEvent):
        backup.record(payload, source_id="web")
    assert objects(tmp_path) == {}


def test_arguments_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        with pytest.raises(InvalidEvent, match="source_id"):
            backup.record({}, source_id="")
        with pytest.raises(InvalidEvent, match="source_id"):
            backup.record_many([{}], source_id="")
        with pytest.raises(InvalidEvent, match="time zone"):
            backup.record({}, source_id="web", created_at=datetime.fromisoformat("2026-01-01"))


def test_threads_share_one_backup(tmp_path: Path) -> None:
    jobs: list[list[Job]] = [[] for _ in range(8)]
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="100")) as backup:

        def work(number: int) -> None:
            jobs[number] += [backup.record({"thread": number, "n": n}, source_id="web") for n in range(200)]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [(event["payload"]["thread"], event["payload"]["n"]) for event in events(tmp_path)]
    assert sorted(found) == [(thread, n) for thread in range(8) for n in range(200)]
    assert len({job for some in jobs for job in some}) == 1600


def test_concurrent_records_share_commits(tmp_path: Path) -> None:
    """16 threads need fewer transactions than they record events."""
    with Backup.from_env(file_environment(tmp_path)) as backup:
        writer = engine(session_of(backup).spool)._writer
        commits = 0
        commit = writer._commit

        def counting(group: object) -> None:
            nonlocal commits
            commits += 1
            time.sleep(0.005)  # a slow disk
            commit(group)  # type: ignore[arg-type]

        writer._commit = counting  # type: ignore[method-assign]
        threads = [
            threading.Thread(target=lambda: [backup.record({"a": 1}, source_id="web") for _ in range(20)]) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(events(tmp_path)) == 320
    assert commits < 320


def test_a_batch_is_sent_when_it_is_old_enough(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_UPLOAD_FREQUENCY="200ms")) as backup:
        backup.record({"a": 1}, source_id="web")
        deadline = time.monotonic() + 120
        while not objects(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(events(tmp_path)) == 1


def test_a_batch_is_sealed_by_bytes(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_BATCH_BYTES="10kB")) as backup:
        for _ in range(25):
            backup.record({"text": "x" * 1000}, source_id="web")
    assert sorted(len(list(lines([content]))) for content in objects(tmp_path).values()) == [5, 10, 10]


def test_another_process_archives(tmp_path: Path) -> None:
    environment = file_environment(tmp_path)
    with Backup.from_env(environment, archive=False) as recorder:
        recorder.record({"a": 1}, source_id="web")
        with pytest.raises(NoArchiver):
            recorder.flush(timeout=120)
        with Backup.from_env(environment) as archiver:
            recorder.record({"a": 2}, source_id="web")
            recorder.flush(timeout=120)
            assert len(events(tmp_path)) == 2
            assert archiver_of(archiver)
    assert left_over(tmp_path) == []


def test_flush_reports_that_the_store_is_paused_and_nothing_is_lost(tmp_path: Path) -> None:
    environment = file_environment(tmp_path, **FAST_RETRY)
    bucket = tmp_path / "bucket"
    bucket.rmdir()
    with Backup.from_env(environment) as backup:
        backup.record({"a": 1}, source_id="web")
        with pytest.raises(StorePaused, match="does not exist") as caught:
            backup.flush(timeout=120)
        assert f"mkdir -p {bucket}" in caught.value.hint
    bucket.mkdir()
    with Backup.from_env(environment) as backup:
        assert archiver_of(backup).drain(120)
    assert len(events(tmp_path)) == 1


def test_flush_gives_up_after_its_timeout(tmp_path: Path) -> None:
    environment = file_environment(tmp_path)
    with Backup.from_env(environment, archive=False) as recorder, Backup.from_env(environment) as other:
        archiver_of(other).stop(5)  # alive, but uploads nothing
        recorder.record({"a": 1}, source_id="web")
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            recorder.flush(timeout=0.3)
        assert time.monotonic() - began > 0.2


def test_a_closed_backup_says_so(tmp_path: Path) -> None:
    backup = Backup.from_env(file_environment(tmp_path))
    backup.close()
    backup.close()
    with pytest.raises(BackupClosed):
        backup.record({}, source_id="web")
    with pytest.raises(BackupClosed):
        backup.record_many([], source_id="web")


def test_a_forked_child_has_to_open_its_own(tmp_path: Path) -> None:
    environment = file_environment(tmp_path)

    def child(backup: Backup, results: multiprocessing.Queue[str]) -> None:
        try:
            backup.record({"from": "child"}, source_id="web")
        except BackupClosed as error:
            backup.close()
            with Backup.from_env(environment, archive=False) as own:
                own.record({"from": "child's own"}, source_id="web")
            results.put(error.hint)

    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[str] = context.Queue()
    with Backup.from_env(environment, archive=False) as backup:
        backup.record({"from": "parent"}, source_id="web")
        process = context.Process(target=child, args=(backup, results))
        process.start()
        assert "after the fork" in results.get(timeout=120)
        process.join()
        backup.record({"from": "parent again"}, source_id="web")
    with Backup.from_env(environment) as archiver:
        assert archiver_of(archiver).drain(120)
    assert sorted(event["payload"]["from"] for event in events(tmp_path)) == ["child's own", "parent", "parent again"]


def test_a_forked_child_inherits_no_open_connection(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
        connections = [
            engine(session_of(backup).spool)._catalog._database._connection,
            engine(session_of(backup).spool)._writer._blobs._database._connection,
        ]
        assert all(connection.is_open for connection in connections)
        if (child := os.fork()) == 0:
            os._exit(int(any(connection.is_open for connection in connections)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        backup.record({"a": 1}, source_id="web")


def test_what_was_open_at_a_fork_that_python_did_not_make_is_not_opened_again(tmp_path: Path) -> None:
    """As in a C server: nothing was closed before."""
    environment = file_environment(tmp_path)
    with Backup.from_env(environment, archive=False) as backup:
        backup.record({"a": 1}, source_id="web")
        child = ctypes.CDLL(None).fork()
        if child == 0:
            try:
                Backup.from_env(environment, archive=False)
            except SpoolError as error:
                os._exit(3 if "when this process was forked" in str(error) else 4)
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        backup.record({"a": 2}, source_id="web")


ORPHAN = """
import json, os, sys
from jobs_backup import Backup
backup = Backup.from_env(json.loads(sys.argv[1]), archive=False)
backup.record({"a": 1}, source_id="web")
if os.fork() == 0:
    sys.stdin.read()  # the child lives until the test closes the pipe
    os._exit(0)
print("recorded", flush=True)
os._exit(9)  # dies without closing anything
"""


def test_the_lock_of_a_dead_parent_is_not_held_by_its_child(tmp_path: Path) -> None:
    """A child that outlives its parent must not keep others from taking the parent's place."""
    environment = file_environment(tmp_path)
    arguments = [sys.executable, "-c", ORPHAN, json.dumps(environment)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"recorded\n"
        assert parent.wait(timeout=120) == 9
        with Backup.from_env(environment) as backup:
            assert archiver_of(backup).drain(120)
        assert len(events(tmp_path)) == 1


def test_wrong_settings_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    for variables in (
        {"JOBS_BACKUP_STORAGE_PROVIDER": "NOSUCH"},
        {"JOBS_BACKUP_PREFIX": "a/../b"},
        {"JOBS_BACKUP_BATCH_EVENTS": "0"},
    ):
        with pytest.raises(ConfigurationError):
            Backup.from_env({**file_environment(tmp_path), **variables})
    assert not (tmp_path / "spool").exists()


def test_what_is_public_is_sorted_and_importable() -> None:
    assert sorted(jobs_backup.__all__) == jobs_backup.__all__
    for name in jobs_backup.__all__:
        assert getattr(jobs_backup, name).__module__.startswith("jobs_backup.")
    with pytest.raises(AttributeError):
        jobs_backup.nothing  # noqa: B018


def test_a_source_that_is_no_text_is_reported_and_what_came_before_is_recorded(tmp_path: Path) -> None:
    wrong: Any = ["web"]
    with Backup.from_env(file_environment(tmp_path)) as backup:
        with pytest.raises(InvalidEvent) as caught:
            backup.record_many([Event(payload=b"{}", source_id="web"), Event(payload=b"{}", source_id=wrong)])
        assert (caught.value.index, len(caught.value.recorded)) == (1, 1)


LATE = """
import json, sys
from jobs_backup import Backup

def suspended():
    with Backup.from_env(json.loads(sys.argv[1]), archive=sys.argv[3] == "archive") as backup:
        backup.record({"n": 1}, source_id="web")
        yield backup

class Holder:
    def __init__(self):
        self.how = sys.argv[2]
        self.generator = suspended()
        self.backup = next(self.generator)
    def __del__(self):
        if self.how == "record":
            self.backup.record({"n": 2}, source_id="web")
        self.backup.close()

if sys.argv[2] == "generator":
    kept = suspended()
    next(kept)
else:
    kept = [Holder()]
    kept.append(kept)
"""


@pytest.mark.parametrize("archive", ["archive", "record only"])
@pytest.mark.parametrize("how", ["generator", "close", "record"])
def test_a_backup_that_is_collected_while_the_interpreter_shuts_down(tmp_path: Path, how: str, archive: str) -> None:
    """The archiver ends silently; later calls report the reason. Events recorded before are safe."""
    environment = file_environment(tmp_path)
    arguments = [sys.executable, "-c", LATE, json.dumps(environment), how, archive]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    if how == "record":
        assert "BackupClosed: the interpreter is shutting down" in done.stderr
        assert "ImportError" not in done.stderr
    else:
        assert done.stderr == ""
    with Backup.from_env(environment) as backup:
        assert archiver_of(backup).drain(120)
    assert [event["payload"] for event in events(tmp_path)] == [{"n": 1}]


def test_misspelt_settings_are_reported_to_who_opens_a_backup(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environment = {
        **file_environment(tmp_path),
        "JOBS_BACKUP_SPOL_DIR": "x",
        "JOBS_BACKUP_UPLOAD_FREQENCY": "5m",
        "INSTANCE_ID": "2",
    }
    settings = CoreSettings.from_environment(environment)
    for given in (None, settings):
        caplog.clear()
        (Backup.from_env(environment) if given is None else Backup(given, environment=environment)).close()
        logged = [(record.getMessage(), getattr(record, "code", "")) for record in caplog.records if record.levelname == "WARNING"]
        assert logged == [
            ("JOBS_BACKUP_SPOL_DIR is not a setting: did you mean JOBS_BACKUP_SPOOL_DIR?", "UnknownSetting"),
            ("JOBS_BACKUP_UPLOAD_FREQENCY is not a setting: did you mean JOBS_BACKUP_UPLOAD_FREQUENCY?", "UnknownSetting"),
        ]


# Conversion of a dict's values, and invalid lists of payloads


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (Decimal("1.10"), "1.10"),
        (datetime(2026, 11, 24, 9, 30, tzinfo=UTC), "2026-11-24T09:30:00Z"),
        (date(2026, 11, 24), "2026-11-24"),
        (timedelta(days=1), "P1D"),
        (UUID(int=1), str(UUID(int=1))),
        (b"x", "eA=="),
        ((1, 2), [1, 2]),
        ({1}, [1]),
        (float("nan"), None),
        (float("-inf"), None),
        (10**30, 10**30),
        ({1: 2, 1.5: 3}, {"1": 2, "1.5": 3}),
        (Kind.RAW, "raw"),
        ("\ud83d", "\ud83d"),
    ],
)
def test_what_json_does_not_have_is_stored_as_documented(value: Any, stored: object, tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        backup.record({"d": value}, source_id="web")
        backup.flush(30)
    assert [event["payload"] for event in events(tmp_path)] == [{"d": stored}]
    if isinstance(value, Decimal):
        assert '`Decimal("1.10")` as `"1.10"`' in str(Backup.record.__doc__)


@pytest.mark.parametrize("value", [object(), Path("x"), {None: 1}, {(1,): 1}, pytest.param(10**5000, id="huge"), 1j, lambda: 1])
def test_what_cannot_be_json_is_refused(value: Any, tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
        with pytest.raises(InvalidEvent, match="cannot be written as JSON"):
            backup.record({"d": value}, source_id="web")
        with pytest.raises(InvalidEvent) as caught:
            backup.record_many([{}, {"d": value}], source_id="web")
        assert (caught.value.index, len(caught.value.recorded)) == (1, 1)


@pytest.mark.parametrize(
    "payloads",
    [{"a": 1}, {}, '{"a":1}', b"{}", bytearray(b"{}"), memoryview(b"{}"), 5, None, 1.5, object(), Event(payload={}, source_id="s")],
)
def test_one_payload_is_no_list_of_payloads(payloads: Any, tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
        with pytest.raises(InvalidEvent, match=r"takes a list of payloads, not one .*: pass a list") as caught:
            backup.record_many(payloads, source_id="web")
        assert caught.value.recorded == ()

    async def asynchronously() -> None:
        async with AsyncBackup.from_env(file_environment(tmp_path), archive=False) as backup:
            with pytest.raises(InvalidEvent, match="pass a list"):
                await backup.record_many(payloads, source_id="web")

    asyncio.run(asynchronously())


def test_a_list_of_payloads_may_be_any_iterable(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
        each: tuple[Iterable[Any], ...] = ([{}], ({},), iter([{}]), {"k": {}}.values(), {"{}"}, deque([{}]))
        for payloads in each:
            assert len(backup.record_many(payloads, source_id="web")) == 1
