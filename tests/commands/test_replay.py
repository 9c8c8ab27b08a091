"""`jobs-backup replay`: events come back unchanged from any bucket, and the missing ones are named."""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from buckets import file_environment, objects, realistic
from click.testing import CliRunner
from commands import COMMAND, run, start
from gcs import LEAST, GcsServer
from hypothesis import given
from hypothesis import strategies as st
from memory import peak_memory
from profiles import ALL
from servers import Moto, Store, policy

from jobs_backup import Backup, Event
from jobs_backup.cli import cli
from jobs_backup.cli.replay_output import OutputFile
from jobs_backup.errors import ConfigurationError, InvalidEvent
from jobs_backup.replay import Query, read_cursor, write_cursor
from jobs_backup.testing.events import events as generated

PAYLOADS = [
    b'{"messageId":"m1","price":1.10,"big":12345678901234567890}',
    '{"messageId": "ü",  "text": "日本語 \\u00e9 🪣"}'.encode(),
    b'{ "nested" : { "a" : [ 1 , 2.50 , null ] } }',
]


MEASURED = """
import atexit, resource, sys
from jobs_backup.cli import main
atexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr))
"""


def record(env: dict[str, str], payloads: list[bytes], source: str = "web", **more: str) -> None:
    with Backup.from_env(env) as backup:
        backup.record_many(payloads, source_id=source, **more)
        backup.flush(120)


def replay(env: dict[str, str], *options: str, code: int = 0) -> list[bytes]:
    found, out, err = run("replay", *options, env=env)
    assert found == code, err
    return out.encode().splitlines()


def test_every_byte_of_a_payload(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, PAYLOADS)
    assert replay(env, "--payload-only") == PAYLOADS
    assert replay(env, "--payload-only", "--list") == PAYLOADS
    whole = [json.loads(line) for line in replay(env)]
    assert [sorted(line) for line in whole] == [["createdAt", "messageId", "payload", "userId"]] * 3


def test_a_store_needs_the_right_to_read_alone(store: Store, bucket: str, tmp_path: Path) -> None:
    env = {**store.environment(bucket), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"), "JOBS_BACKUP_RETRY_ATTEMPTS": "1"}
    record(env, PAYLOADS)
    code, out, err = run("replay", env=env)
    assert (code, out) == (2, "")
    assert "grant s3:GetObject" in err
    assert "[PermissionDenied]" in err
    code, out, err = run("replay", "--list", env=env)
    assert (code, out) == (2, "")
    assert "grant s3:ListBucket" in err
    everything = env | store.environment(bucket, "all")
    assert replay(everything, "--payload-only") == PAYLOADS
    assert replay(everything, "--payload-only", "--list") == PAYLOADS


def test_a_file_is_not_finished_without_the_right_to_read(store: Store, bucket: str, tmp_path: Path) -> None:
    env = {**store.environment(bucket), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"), "JOBS_BACKUP_RETRY_ATTEMPTS": "1"}
    record(env | {"JOBS_BACKUP_BATCH_EVENTS": "1"}, PAYLOADS)
    assert run("replay", "--output", tmp_path / "back", env=env)[0] == 2
    assert not (tmp_path / "back").exists()
    assert run("replay", "--payload-only", "--output", tmp_path / "back2", env=env | store.environment(bucket, "all"))[0] == 0
    assert (tmp_path / "back2").read_bytes().splitlines() == PAYLOADS


def test_with_the_catalog_nothing_is_listed(aws: Moto, tmp_path: Path) -> None:
    bucket = aws.bucket()
    aws.add_identity("reads", policy("s3:PutObject", "s3:AbortMultipartUpload", "s3:GetObject"))
    env = {**aws.environment(bucket, "reads"), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"), "JOBS_BACKUP_RETRY_ATTEMPTS": "1"}
    with aws.enforce():
        record(env, PAYLOADS)
        assert replay(env, "--payload-only") == PAYLOADS
        assert "s3:ListBucket" in run("replay", "--list", env=env)[2]


def test_a_missing_object_is_no_missing_right(aws: Moto, tmp_path: Path) -> None:
    """Without permission to list, S3 denies access to missing objects."""
    bucket = aws.bucket()
    aws.add_identity("only-reads", policy("s3:PutObject", "s3:AbortMultipartUpload", "s3:GetObject"))
    env = {**aws.environment(bucket, "only-reads"), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
    env |= {"JOBS_BACKUP_RETRY_ATTEMPTS": "1", "JOBS_BACKUP_BATCH_EVENTS": "1"}
    record(env, PAYLOADS)
    first, *_ = aws.keys(bucket)
    aws.admin.delete_object(Bucket=bucket, Key=first)
    with aws.enforce():
        code, out, err = run("replay", "--payload-only", env=env)
    assert code == 1
    assert len(out.splitlines()) == 2
    assert first in err


def test_google_lets_read_with_the_least_rights(gcs: GcsServer, tmp_path: Path) -> None:
    env = {**gcs.environment(gcs.bucket()), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
    gcs.granted = LEAST
    record(env, PAYLOADS)
    assert replay(env, "--payload-only") == PAYLOADS
    assert gcs.operations["objects.list"] == 0


def test_what_is_asked_for(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, [b'{"n":1}'], "web", workspace_id="w1")
    record(env, [b'{"n":2}'], "ios/x", workspace_id="w1")
    with Backup.from_env(env) as backup:
        job = backup.record(b'{"n":3}', source_id="web", workspace_id="w2")
        backup.failed(job, payload=b'{"final":3}', error="no", destination_id="crm")
        backup.failed(job, payload=b'{"final":4}', error="no", destination_id="crm")
        backup.flush(120)
    for lists in ([], ["--list"]):
        found = replay(env, "--payload-only", *lists)
        assert (sorted(found) if lists else found) == [b'{"n":1}', b'{"n":2}', b'{"n":3}'], "keys tell whole seconds"
        found = replay(env, "--payload-only", "--source-id", "web", *lists)
        assert (sorted(found) if lists else found) == [b'{"n":1}', b'{"n":3}']
        assert replay(env, "--payload-only", "--source-id", "ios/x", *lists) == [b'{"n":2}']
        assert replay(env, "--payload-only", "--workspace-id", "w2", *lists) == [b'{"n":3}']
        assert replay(env, "--payload-only", "--source-id", "none", *lists, code=1) == []
        failed = ("--kind", "failed", "--payload-only")
        assert replay(env, *failed, "--source-id", "web", *lists) == [b'{"final":3}', b'{"final":4}']
        assert replay(env, *failed, "--source-id", "ios/x", *lists) == []
        assert replay(env, *failed, "--since", "1h", *lists) == [b'{"final":3}', b'{"final":4}']
        assert replay(env, *failed, "--until", "1h", *lists) == []


def test_times_cut_within_an_object(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    with Backup.from_env(env) as backup:
        for number in range(4):
            backup.record({"n": number}, source_id="web")
            time.sleep(0.01)
        backup.flush(120)
    times = [json.loads(line)["createdAt"] for line in replay(env)]
    for lists in ([], ["--list"]):
        found = replay(env, "--payload-only", "--since", times[1], "--until", times[3], *lists)
        assert found == [b'{"n":1}', b'{"n":2}']
        assert replay(env, "--until", "2001-02-03", *lists) == []
        assert len(replay(env, "--source-id", "web", "--since", "1d", *lists)) == 4
    code, _, err = run("replay", "--since", "yesterday", env=env)
    assert code == 2
    assert "--since: invalid time 'yesterday'" in err


@pytest.mark.parametrize("together", [True, False])
def test_events_that_are_recorded_out_of_their_order_are_found_by_time(together: bool, tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    hours = [datetime(2026, 1, 2, hour, tzinfo=UTC) for hour in (3, 1, 5, 4)]
    with Backup.from_env(env) as backup:
        if together:
            backup.record_many(Event(payload={"n": at.hour}, source_id="web", created_at=at) for at in hours)
        else:
            for at in hours:
                backup.record({"n": at.hour}, source_id="web", created_at=at)
        backup.flush(120)
    for lists in ([], ["--list"]):
        assert replay(env, "--payload-only", "--since", "2026-01-02T05:00:00Z", *lists) == [b'{"n":5}']
        assert replay(env, "--payload-only", "--until", "2026-01-02T02:00:00Z", *lists) == [b'{"n":1}']
    assert "/gw/2026-01-02/1/" in next(iter(objects(tmp_path))), "its key tells the earliest"


def test_every_time_that_can_be_recorded_comes_back(tmp_path: Path) -> None:
    """With Go's zero time, alone and in one object with today's; and ids that look like parts of a key."""
    env = file_environment(tmp_path, JOBS_BACKUP_PREFIX="a/gw", INSTANCE_ID="pod-1.x")
    days = [datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
    sources = ["web", "rudder-proc-err-logs", "1-2.0b1f6a0e-6e0e-4c58-9d3a-2f0c8f2f7b11/\n"]
    with Backup.from_env(env) as backup:
        for source in sources:
            backup.record_many(
                Event(payload={"n": number}, source_id=source, workspace_id=source, created_at=at)
                for number, at in enumerate([None, *days])
            )
        backup.record_many(Event(payload={"n": number}, source_id="old", created_at=days[0]) for number in range(3))
        backup.flush(120)
    for lists in ([], ["--list"]):
        assert len(replay(env, *lists)) == 4 * len(sources) + 3
        for source in sources:
            one = ["--payload-only", "--source-id", source, "--workspace-id", source, *lists]
            assert sorted(replay(env, *one)) == [b'{"n":0}', b'{"n":1}', b'{"n":2}', b'{"n":3}']
            assert replay(env, *one, "--since", "1h", "--until", "9999-01-01") == [b'{"n":0}']
            assert sorted(replay(env, *one, "--until", "1970-01-01")) == [b'{"n":1}', b'{"n":2}']
            assert replay(env, *one, "--since", "9999-01-01") == [b'{"n":3}']


@pytest.mark.slow
def test_many_objects_of_one_second_stay_in_order_and_can_be_continued(tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="3")
    payloads = [b'{"n":%d}' % number for number in range(100)]
    record(env, payloads)
    assert len(objects(tmp_path)) == 34
    assert replay(env, "--payload-only") == payloads
    found: list[bytes] = []
    after: list[str] = []
    while True:
        code, out, err = run("replay", "--payload-only", "--limit", "7", *after, env=env)
        assert code == 0
        found += out.encode().splitlines()
        if "--after '" not in err:
            break
        after = ["--after", err.split("--after '")[1].split("'")[0]]
    assert found == payloads
    code, _, err = run("replay", "--after", "nowhere:1", env=env)
    assert code == 2
    assert "is not a complete cursor" in err


def test_gzip_and_zstd_together(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, PAYLOADS)
    record({**env, "JOBS_BACKUP_COMPRESSION": "zstd"}, PAYLOADS)
    assert sorted(key.rpartition(".")[2] for key in objects(tmp_path)) == ["gz", "zst"]
    assert replay(env, "--payload-only") == PAYLOADS * 2
    assert replay(env, "--payload-only", "--list") == PAYLOADS * 2


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["flip", "cut", "other", "gone"])
def test_what_is_damaged_is_named_and_the_rest_goes_on(damage: str, compression: str, tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_COMPRESSION=compression, JOBS_BACKUP_RETRY_ATTEMPTS="1")
    for number in range(3):
        record(env, [b'{"n":%d,"text":"%s"}' % (number, b"some text" * 50)], f"s{number}")
    file = next((tmp_path / "bucket").rglob("s1/gw/*/*/*/*"))
    data = file.read_bytes()
    match damage:
        case "flip":
            file.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        case "cut":
            file.write_bytes(data[:-5])
        case "other":
            file.write_bytes(b"something else")
        case _:
            file.unlink()
    for lists in ([], ["--list"]):
        if damage == "gone" and lists:
            continue
        code, out, err = run("replay", "--payload-only", *lists, env=env)
        assert code == 1
        assert [json.loads(line)["n"] for line in out.splitlines()] == [0, 2]
        assert file.name in err
        assert "[DamagedObject]" in err


@pytest.mark.slow
def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    """Anyone with write access to the bucket can make an object of a few MB that decompresses to any size."""
    env = file_environment(tmp_path)
    record(env, PAYLOADS)
    (key,) = objects(tmp_path)
    bomb = tmp_path / "bucket" / Path(key).with_name("1_2__0b1f6a0e-6e0e-4c58-9d3a-2f0c8f2f7b11.json.gz")
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(600):
            file.write(bytes(1 << 20))
    code, out, err = run("replay", "--list", "--payload-only", env=env)
    assert (code, out.encode().splitlines()) == (1, PAYLOADS)
    assert f"{bomb.name} has a line of more than 512 MiB" in err
    assert peak_memory(["sh", "-c", '"$@" || true', "sh", *COMMAND, "replay", "--list"], env) < 150 * 1024


def test_what_is_damaged_in_the_store_is_read_twice(tmp_path: Path) -> None:
    """The first time it may have been damaged in transit; a third read would be the same as the second."""
    env = file_environment(tmp_path)
    record(env, PAYLOADS)
    (key,) = objects(tmp_path)
    (tmp_path / "bucket" / key).write_bytes(b"something else")
    _, _, err = run("replay", env=env)
    assert "(2 attempts in " in err


def test_dry_run_and_json(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, PAYLOADS)
    size = sum(map(len, objects(tmp_path).values()))
    assert json.loads(run("replay", "--dry-run", "--json", env=env)[1]) == {
        "objects": 1,
        "bytes": size,
        "events": 3,
        "unseen": [],
        "missing": "",
    }
    assert json.loads(run("replay", "--dry-run", "--json", "--list", env=env)[1]) == {
        "objects": 1,
        "bytes": size,
        "events": None,
        "unseen": [],
        "missing": "",
    }
    assert run("replay", "--json", env=env)[0] == 2
    code, out, _ = run("replay", "--json", "--output", tmp_path / "out", env=env)
    assert code == 0
    assert json.loads(out).items() >= {"complete": True, "events": 3, "objects": 1, "damaged": []}.items()
    assert len((tmp_path / "out").read_bytes().splitlines()) == 3
    code, _, err = run("replay", "--output", tmp_path / "out", env=env)
    assert code == 2
    assert "exists" in err


def test_killed_again_and_again_the_same_command_goes_on(tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="200", JOBS_BACKUP_UPLOAD_CONCURRENCY="1")
    payloads = realistic(20_000)
    record(env, payloads)
    output, position = tmp_path / "back", tmp_path / "back.position"
    kills, rng = 0, random.Random(7)
    for _ in range(101):  # each run makes progress by at least one object
        with start("replay", "--payload-only", "--since", "1h", "--output", output, env=env) as process:
            before = position.read_bytes() if position.exists() else b""
            while process.poll() is None and not (position.exists() and position.read_bytes() != before):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.2))
            if process.poll() is None:
                process.kill()
                kills += 1
        if output.exists():
            break
    assert kills
    assert output.read_bytes().splitlines() == payloads
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "bucket", "spool"]


def test_a_begun_file_is_for_what_it_was_begun_for(tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="1")
    record(env, PAYLOADS)
    assert run("replay", "--limit", "2", "--payload-only", "--output", tmp_path / "two", env=env)[0] == 0
    assert (tmp_path / "two").read_bytes().splitlines() == PAYLOADS[:2]
    (tmp_path / "out.part").write_bytes(b"line\n")
    (tmp_path / "out.position").write_text('{"asked":"something else","query":{},"after":"key","size":5}')
    code, _, err = run("replay", "--output", tmp_path / "out", env=env)
    assert code == 2
    assert "was started for other events" in err


def test_nobody_reads_any_more(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, realistic(20_000))
    with start("replay", env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, "whoever reads has what it wants"
    assert "Traceback" not in said
    assert "output closed early" in said
    written = int(re.search(r"([0-9,]+) events? of", said)[1].replace(",", ""))  # type: ignore[index]
    assert 0 < written < 20_000
    after = re.search(r"--after '(.*)'", said)[1]  # type: ignore[index]
    assert len(replay(env, "--after", after)) == 20_000 - written, "the rest comes where this one ended"


def test_archives_that_rudderstack_wrote(tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_PREFIX="rudder")
    del env["JOBS_BACKUP_SPOOL_DIR"]
    env["XDG_STATE_HOME"] = str(tmp_path / "state")
    raw = (
        b'{"userId":"u","payload":{"a":1.10},"createdAt":"2024-05-01T09:00:00.123456789Z","messageId":"m1"}\n'
        b'{"userId":"u","payload":{"a":2},"createdAt":"2024-05-01T11:30:00.5+02:00","messageId":"m2"}\n'
    )
    key = "rudder/src1/gw/2024-05-01/9/1/1714554000_1714555800_ws_1_0b5a.json.gz"
    job = {
        "UUID": "x", "JobID": 7, "UserID": "u", "CreatedAt": "2024-05-01T09:00:00Z", "CustomVal": "GA",
        "EventPayload": [{"event": "final"}], "Parameters": {"source_id": "src1", "error": "bad", "stage": "dest_transformer"},
        "WorkspaceId": "ws_1",
    }  # fmt: skip
    failed = "rudder/rudder-proc-err-logs/05-01-2024/1714554100.1.7-9.4a2f5c1e-7c3f-4b57-9d3a-3f0e6f5b1c11.json.gz"
    for name, data in ((key, raw), (failed, json.dumps(job, separators=(",", ":")).encode())):
        path = tmp_path / "bucket" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(data))
    assert replay(env, "--list", "--payload-only") == [b'{"a":1.10}', b'{"a":2}']
    assert replay(env, "--list", "--payload-only", "--source-id", "src1", "--since", "2024-05-01T09:10:00Z") == [b'{"a":2}']
    assert replay(env, "--list", "--workspace-id", "ws_1", "--until", "2024-05-01T09:10:00Z") == [raw.splitlines()[0]]
    assert replay(env, "--list", "--workspace-id", "other", code=1) == []
    older = tmp_path / "bucket/rudder/src0/gw/2023-05-01/9/pod-1.x/1682931600_1682931600_ws_1_0b5c.gz"
    older.parent.mkdir(parents=True)
    older.write_bytes(gzip.compress(raw.splitlines()[0]))
    assert replay(env, "--list", "--payload-only", "--source-id", "src0", "--workspace-id", "ws_1") == [b'{"a":1.10}']
    assert replay(env, "--list", "--kind", "failed", "--payload-only") == [b'[{"event":"final"}]']
    assert replay(env, "--list", "--kind", "failed", "--source-id", "src1", "--workspace-id", "ws_1") == [
        json.dumps(job, separators=(",", ":")).encode()
    ]
    assert replay(env, "--list", "--kind", "failed", "--source-id", "src2", code=1) == []
    code, _, err = run("replay", env=env)
    assert code == 2
    assert "--list" in err


def test_an_unreachable_store_may_pass(tmp_path: Path) -> None:
    env = file_environment(tmp_path) | {
        "JOBS_BACKUP_STORAGE_PROVIDER": "S3", "JOBS_BACKUP_BUCKET": "events", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "JOBS_BACKUP_RETRY_ATTEMPTS": "1",
    }  # fmt: skip
    code, _, err = run("replay", "--list", env=env)
    assert code == 1
    assert "[Unreachable]" in err


def cursor(err: str) -> str:
    return err.split("--after '")[1].split("'", maxsplit=1)[0]


def test_two_do_not_write_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "out.ndjson"
    first = OutputFile(file, "asked", Query())
    first.write(b"1\n")
    with pytest.raises(ConfigurationError, match="another process is writing it"):
        OutputFile(file, "asked", Query())
    first.write(b"2\n")
    first.finish()
    assert file.read_bytes() == b"1\n2\n"
    with pytest.raises(ConfigurationError, match="exists"):
        OutputFile(file, "asked", Query())
    assert [path.name for path in tmp_path.iterdir()] == ["out.ndjson"]


@pytest.mark.parametrize("lists", [[], ["--list"]])
def test_the_object_of_the_cursor_may_have_been_deleted(lists: list[str], tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="2")
    first = datetime(2026, 1, 1, tzinfo=UTC)
    with Backup.from_env(env) as backup:
        jobs = [
            backup.record({"n": n}, source_id="web", created_at=first + timedelta(minutes=n), workspace_id="a_b.c")
            for n in range(8)
        ]
        backup.flush(120)
        code, out, err = run("replay", "--payload-only", "--limit", "4", *lists, env=env)
        assert code == 0
        assert [json.loads(line)["n"] for line in out.splitlines()] == [0, 1, 2, 3]
        backup.delivered(jobs[:4])
        deadline = time.monotonic() + 120
        while len(objects(tmp_path)) > 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(objects(tmp_path)) == 2
    assert [json.loads(line)["n"] for line in replay(env, "--payload-only", "--after", cursor(err), *lists)] == [4, 5, 6, 7]


@pytest.fixture
def stored_at(tmp_path: Path) -> Callable[..., None]:
    """Record events of these minutes, two in each object, and wait until they are in the bucket."""
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="2")

    def record(*minutes: float) -> None:
        first = datetime(2026, 1, 1, tzinfo=UTC)
        with Backup.from_env(env) as backup:
            for minute in minutes:
                backup.record({"n": minute}, source_id="web", created_at=first + timedelta(minutes=minute))
            backup.flush(60)

    return record


def given_by(out: str) -> list[float]:
    return [json.loads(line)["n"] for line in out.splitlines()]


@pytest.mark.parametrize("limit", [1, 4, 5])
def test_what_was_stored_since_a_cursor_with_earlier_events_is_reported(
    tmp_path: Path, limit: int, stored_at: Callable[..., None]
) -> None:
    """An event may wait for a day. Everything after the cursor is returned, whenever it was uploaded."""
    stored_at(0, 1, 10, 11, 20, 21)
    code, out, err = run("replay", "--payload-only", "--limit", str(limit), env=file_environment(tmp_path))
    after = ("--after", cursor(err))
    assert (code, given_by(out)) == (0, [0, 1, 10, 11, 20, 21][:limit])
    stored_at(12, 13, 30, 31)
    stored_at(22, 23)
    is_late = limit == 5
    code, out, err = run("replay", "--payload-only", *after, env=file_environment(tmp_path))
    rest = [n for n in (0, 1, 10, 11, 12, 13, 20, 21, 22, 23, 30, 31) if not (is_late and n in (12, 13))][limit:]
    assert (code, given_by(out)) == (1 if is_late else 0, rest)
    assert ("1 object uploaded since the cursor was written" in err) == is_late
    assert ("(2026-01-01T00:12:00Z to 2026-01-01T00:13:00Z)" in err) == is_late


def test_what_was_stored_since_is_reported_once_for_each_cursor(tmp_path: Path, stored_at: Callable[..., None]) -> None:
    stored_at(10, 11, 20, 21, 30, 31)
    after: list[str] = []
    codes: list[int] = []
    found: list[float] = []
    for late in ((), (0, 1), (), (2, 3, 4, 5)):
        stored_at(*late)
        code, out, err = run("replay", "--payload-only", "--limit", "1", *after, env=file_environment(tmp_path))
        after = ["--after", cursor(err)]
        codes.append(code)
        found += given_by(out)
    assert codes == [0, 1, 0, 1]
    assert found == [10, 11, 20, 21]


def test_a_listing_says_that_it_cannot_tell_what_was_stored_since(tmp_path: Path, stored_at: Callable[..., None]) -> None:
    stored_at(10, 11, 20, 21)
    code, _, err = run("replay", "--list", "--payload-only", "--limit", "2", env=file_environment(tmp_path))
    stored_at(0, 1)
    code, out, err = run("replay", "--list", "--payload-only", "--after", cursor(err), env=file_environment(tmp_path))
    assert (code, given_by(out)) == (0, [20, 21])
    assert "--list cannot detect" in err


def test_a_file_is_written_anew_where_something_earlier_was_stored_since(tmp_path: Path, stored_at: Callable[..., None]) -> None:
    """An interrupted run with --output has a cursor, too. The file may be rewritten, so it must miss nothing."""
    stored_at(10, 11, 20, 21, 30, 31)
    (path,) = [path for path in (tmp_path / "bucket").rglob("*.gz") if path.name.startswith("1767227400_")]
    content = path.read_bytes()
    path.unlink()
    output = tmp_path / "back"
    code, _, _ = run("replay", "--payload-only", "--output", output, env=file_environment(tmp_path))
    assert (code, given_by((tmp_path / "back.part").read_text())) == (1, [10, 11, 20, 21])
    path.write_bytes(content)
    stored_at(0, 1, 40, 41)
    code, _, err = run("replay", "--payload-only", "--output", output, env=file_environment(tmp_path))
    assert (code, "is rewritten from the start" in err) == (0, True)
    assert given_by(output.read_text()) == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]


def test_a_cursor_of_an_earlier_version_is_read() -> None:
    query = Query(since=1, until=2)
    assert read_cursor(write_cursor("a/b:3", b"selection", query), b"selection", Query()) == ("a/b:3", query)
    later = Query(since=1, until=2, looked_at=1_700_000_000_000_000)
    assert read_cursor(write_cursor("a/b:3", b"selection", later), b"selection", Query()) == ("a/b:3", later)


def test_a_cursor_keeps_the_time_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--since 2h` is a different time an hour later: events between the two would be in neither run."""
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="1")
    with Backup.from_env(env) as backup:
        for minutes in (119, 118, 1):
            backup.record({"n": minutes}, source_id="web", created_at=datetime.now(UTC) - timedelta(minutes=minutes))
        backup.flush(120)
    err = run("replay", "--since", "2h", "--limit", "1", env=env)[2]
    for name, text in env.items():
        monkeypatch.setenv(name, text)
    later = time.time() + 3600
    monkeypatch.setattr("jobs_backup.cli.commands.replay.time.time", lambda: later)
    output = tmp_path / "rest"
    result = CliRunner().invoke(cli, ["replay", "--payload-only", "--since", "2h", "--after", cursor(err), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert output.read_bytes().splitlines() == [b'{"n":118}', b'{"n":1}']
    result = CliRunner().invoke(cli, ["replay", "--since", "2h", "--dry-run"])
    assert "1 object " in result.output, "without the cursor it is another time"


def selections(directory: Path) -> list[list[str]]:
    """Options that select other objects, or another order of them."""
    return [
        [],
        ["--source-id", "s1"],
        ["--source-id", "s2"],
        ["--workspace-id", "w"],
        ["--kind", "failed"],
        ["--since", "2h"],
        ["--since", "3h"],
        ["--since", "2020-01-01"],
        ["--until", "2999-01-01"],
        ["--until", "2999-01-01T00:00:00Z"],
        ["--list"],
        ["--list", "--source-id", "s1"],
        ["--list", "--kind", "failed"],
        ["--list", "--until", "2999-01-01"],
        ["--wrapped-only"],
        ["--env-file", str(directory / "other.env")],
    ]


def test_a_cursor_belongs_to_its_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own selection, the two runs return everything once; with any other it is refused, and nothing is returned."""
    key = "JOBS_BACKUP_ENCRYPTION_KEY"
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="1", JOBS_BACKUP_WRAPPERS="ENCRYPTION")
    env |= {key: base64.b64encode(bytes(range(32))).decode()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other.env").write_text(f"JOBS_BACKUP_BUCKET={tmp_path / 'other'}\n")
    for bucket in (env, env | {"JOBS_BACKUP_BUCKET": str(tmp_path / "other")}):
        with Backup.from_env(bucket) as backup:
            for number in range(6):
                job = backup.record({"n": number}, source_id=f"s{number % 2 + 1}", workspace_id="w")
                backup.failed(job, payload={"n": number}, error="no", destination_id="crm")
            backup.flush(120)
    for name, text in env.items():
        monkeypatch.setenv(name, text)

    def give(*options: str) -> tuple[int, list[bytes], str]:
        output = tmp_path / "out"
        with pytest.MonkeyPatch.context() as patch:
            for name, text in env.items():
                patch.setenv(name, text)  # --env-file's settings end with this run
            result = CliRunner().invoke(cli, ["replay", "--json", "--output", str(output), *options])
        found = output.read_bytes().splitlines() if output.exists() else []
        for left in tmp_path.glob("out*"):
            left.unlink()
        return result.exit_code, found, result.output

    chosen = selections(tmp_path)
    cursors: list[str] = []
    for options in chosen:
        code, everything, _ = give(*options)
        assert (code, len(everything) >= 3) == (0, True), options
        code, first, errors = give("--limit", "2", *options)
        summary = next(line for line in errors.splitlines() if line.startswith("{"))
        cursors.append(json.loads(summary)["after"])
        code, rest, _ = give("--after", cursors[-1], *options)
        assert (code, first + rest) == (0, everything), options
    for own, after in enumerate(cursors):
        for number, options in enumerate(chosen):
            if number != own and (ALL or (number - own) % len(chosen) <= 3):
                code, found, errors = give("--after", after, *options)
                assert (code, found) == (2, []), (chosen[own], options, errors)
                assert "belongs to another selection" in errors
    assert after.isascii()


@given(st.data())
def test_a_damaged_cursor_is_refused(data: st.DataObject) -> None:
    query = Query(since=data.draw(st.none() | st.integers(-(1 << 60), 1 << 60)))
    place = data.draw(st.text() | st.sampled_from(["a:1", "web/gw/x.json.gz:120", "it's", "a:b:c"]))
    written = write_cursor(place, b"selection", query)
    assert read_cursor(written, b"selection", Query()) == (place, query)
    assert written.isascii()
    assert written.isprintable()
    assert not set(written) & set("'\" $\\`")
    at = data.draw(st.integers(0, len(written) - 1))
    damages = (written[:at], written[at + 1 :], written[:at] + data.draw(st.characters(codec="utf-8")) + written[at + 1 :])
    for damaged in damages:
        if damaged != written:
            with pytest.raises(ConfigurationError, match="is not a complete cursor"):
                read_cursor(damaged, b"selection", Query())
    with pytest.raises(ConfigurationError, match="another selection"):
        read_cursor(written, b"other", Query())


def test_events_a_little_outside_of_an_objects_times_are_found(tmp_path: Path) -> None:
    """Threads record at the same time, and clocks are set back."""
    env = file_environment(tmp_path)
    times = [datetime(2026, 1, 1, 12, minute, tzinfo=UTC) for minute in (2, 5, 1, 3)]
    with Backup.from_env(env) as backup:
        for at in times:
            backup.record({"minute": at.minute}, source_id="web", created_at=at)
        backup.flush(120)
    for lists in ([], ["--list"]):
        assert replay(env, "--payload-only", "--since", "2026-01-01T12:04:00Z", *lists) == [b'{"minute":5}']
        assert replay(env, "--payload-only", "--until", "2026-01-01T12:02:00Z", *lists) == [b'{"minute":1}']
        assert len(replay(env, "--source-id", "web", "--since", "0001-01-01", "--until", "9999-12-31T23:59:59Z", *lists)) == 4


def test_what_stands_in_another_bucket_is_reported(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, PAYLOADS)
    (tmp_path / "other").mkdir()
    other = {**env, "JOBS_BACKUP_BUCKET": str(tmp_path / "other")}
    record(other, PAYLOADS[:1])
    code, out, err = run("replay", "--payload-only", env=other)
    assert (code, out.encode().splitlines()) == (0, PAYLOADS[:1])
    assert "1 object in other buckets skipped" in err
    assert "left out" not in run("replay", "--source-id", "ios", env=other)[2]


@pytest.mark.parametrize("since", ["20991124", "4102444800", "2099-11-24", "10"])
def test_a_time_is_a_date_or_has_a_unit(since: str, tmp_path: Path) -> None:
    """Without a unit it would be this many seconds ago, though a date or seconds since 1970 were meant."""
    env = file_environment(tmp_path)
    record(env, PAYLOADS)
    assert replay(env, "--payload-only", "--since", "10s") == PAYLOADS
    code, out, err = run("replay", "--payload-only", "--since", since, env=env)
    assert out == ""
    assert (code, "invalid time" in err) in ((0, False), (2, True)), err
    assert code == (0 if since.startswith("2099") else 2)


def test_a_pipe_that_somebody_else_fills(tmp_path: Path) -> None:
    """It may be non-blocking, and another process may write to it."""
    env = file_environment(tmp_path)
    payloads = realistic(5_000)
    record(env, payloads)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # In a separate process, which is fast enough to write between a check of the pipe and the write that follows.
    fills = "import os\nwhile True:\n try: os.write(1, bytes(4096))\n except BlockingIOError: pass\n except BrokenPipeError: break"
    with (
        subprocess.Popen([sys.executable, "-c", fills], stdout=writer) as other,
        subprocess.Popen([*COMMAND, "replay", "--payload-only"], env=env, stdout=writer, stderr=subprocess.PIPE) as process,
        os.fdopen(reader, "rb", buffering=0) as pipe,
    ):
        os.close(writer)
        found = bytearray()
        while process.poll() is None:
            found += pipe.read(1 << 16).replace(b"\0", b"")
        other.kill()
        found += pipe.read().replace(b"\0", b"")
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read()
    assert bytes(found).splitlines() == payloads


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_nobody_reads_it_reports_where_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="4000")
    payloads = realistic(20_000)
    record(env, payloads)
    with start("replay", "--payload-only", env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        found = [process.stdout.readline() for _ in range(9000)]
        time.sleep(0.5)
        process.send_signal(number)
        err = process.stderr.read()
        found += process.stdout.readlines()
    assert process.returncode == 1
    assert "[Incomplete]" in err
    rest = replay(env, "--payload-only", "--after", cursor(err))
    given = "".join(found).encode().splitlines()
    # A block that was written in part is returned again as a whole.
    assert 0 < len(rest) < len(payloads)
    assert given[: len(payloads) - len(rest)] + rest == payloads


def test_an_interrupted_file_keeps_its_limit(tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="2000", JOBS_BACKUP_UPLOAD_CONCURRENCY="1")
    payloads = realistic(20_000)
    record(env, payloads)
    output, position = tmp_path / "back", tmp_path / "back.position"
    arguments = ("replay", "--payload-only", "--limit", "15000", "--output", output)
    with start(*arguments, env=env) as process:
        while not position.exists():
            assert process.poll() is None, "it has ended before it was killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not output.exists()
    assert run(*arguments, env=env)[0] == 0
    assert output.read_bytes().splitlines() == payloads[:15_000]


@pytest.mark.parametrize("options", [[], ["--list"], ["--limit", "5"]], ids=" ".join)
@pytest.mark.parametrize("bad", [[0], [2], [5], [1, 3], [0, 1, 2, 3, 4, 5]], ids=str)
@pytest.mark.sample(8)
def test_a_file_that_lacks_objects_does_not_get_its_name(bad: list[int], options: list[str], tmp_path: Path) -> None:
    """The same command retries them, and renames the file once nothing is missing: everything in order, once."""
    env = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="1", JOBS_BACKUP_RETRY_ATTEMPTS="1")
    first = datetime(2026, 1, 1, tzinfo=UTC)
    with Backup.from_env(env) as backup:
        for number in range(6):
            backup.record({"n": number}, source_id="web", created_at=first + timedelta(minutes=number))
        backup.flush(120)
    limit = 5 if options == ["--limit", "5"] else 6
    healthy = objects(tmp_path)
    keys = list(healthy)
    output, part = tmp_path / "back", tmp_path / "back.part"
    arguments: list[str | Path] = ["replay", "--payload-only", "--output", output, *options]
    if limit == 5 and bad == [5]:
        return  # it is beyond the limit
    for number in bad:
        (tmp_path / "bucket" / keys[number]).write_bytes(b"something else")
    rest = [b'{"n":%d}' % number for number in range(6) if number not in bad][:limit]
    for _ in range(2):
        code, _, err = run(*arguments, env=env)
        assert (code, output.exists()) == (1, False), err
        assert f"back.part lacks {len(bad)} object" in err
        assert all(keys[number] in err for number in bad)
        assert part.read_bytes().splitlines() == rest
    for number in bad[:-1]:
        (tmp_path / "bucket" / keys[number]).write_bytes(healthy[keys[number]])
        assert run(*arguments, env=env)[0] == 1
        assert not output.exists()
    (tmp_path / "bucket" / keys[bad[-1]]).write_bytes(healthy[keys[bad[-1]]])
    assert run(*arguments, env=env)[0] == 0
    assert output.read_bytes().splitlines() == [b'{"n":%d}' % number for number in range(limit)]
    assert sorted(path.name for path in tmp_path.glob("back*")) == ["back"]


def test_standard_output_is_closed(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, PAYLOADS)
    result = subprocess.run(["sh", "-c", '"$0" replay >&-', *COMMAND], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "standard output, which is closed" in result.stderr
    assert run("replay", env=env)[0] == 0


def test_no_room_for_temporary_files(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, PAYLOADS)
    limited = "import resource; from jobs_backup.cli import main; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)); main()"
    # Python ignores SIGXFSZ, so that the limit causes an error like that of a full disk.
    result = subprocess.run(
        [sys.executable, "-c", limited, "replay", "--list"], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "set TMPDIR to a directory with free space" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_many_events_come_back_in_order_in_constant_memory(tmp_path: Path) -> None:
    env = file_environment(tmp_path, JOBS_BACKUP_SPOOL_DURABILITY="process")
    small, large = tmp_path / "small", tmp_path / "large"
    with small.open("wb") as first, large.open("wb") as second:
        for number, payload in enumerate(generated(300_000, seed=3, size=500)):
            second.write(payload + b"\n")
            if number < 30_000:
                first.write(payload + b"\n")
    used = []
    for file, source in ((small, "small"), (large, "large")):
        assert run("run", file, "--source-id", source, env=env)[0] == 0
        with (tmp_path / f"{source}.back").open("wb") as back:
            program = f"{MEASURED}main()"
            result = subprocess.run(
                [sys.executable, "-c", program, "replay", "--payload-only", "--source-id", source],
                env=env, stdout=back, stderr=subprocess.PIPE, check=True,
            )  # fmt: skip
        used.append(int(result.stderr.split()[-1]))
        assert subprocess.run(["cmp", file, tmp_path / f"{source}.back"], check=False).returncode == 0
    assert used[1] < used[0] * 1.3, used


@pytest.mark.parametrize("options", [(), ("--payload-only",), ("--list", "--payload-only"), ("--since", "2h")])
def test_what_was_taken_comes_back_however_deep_it_is_nested(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Parsers have limits, which depend on the caller's stack."""
    taken = 0
    with Backup.from_env(file_environment(tmp_path)) as backup:
        for depth in (1, 400, 498, 499, 500, 501, 700, 990, 2000):
            for text in (b'{"a":' + b"[" * depth + b"]" * depth + b"}", b'{"]":"\\"]]",' + b'"a":{' * depth + b"}" * depth + b"}"):
                try:
                    backup.record(text, source_id="web")
                    taken += 1
                except InvalidEvent as error:
                    assert depth >= 500, error
                    assert "nested more than 500 levels deep" in str(error)
                else:
                    assert depth < 500
    code, out, err = run("replay", *options, env=file_environment(tmp_path))
    assert (code, len(out.splitlines()), taken) == (0, 8, 8), err


def test_a_foreign_line_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    environment = file_environment(tmp_path)
    with Backup.from_env(environment) as backup:
        backup.record({"n": 1}, source_id="web")
    (key,) = objects(tmp_path)
    deep = b'{"payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"  # deeper than any Python reads: 3.13 reads 5,000
    (tmp_path / "bucket" / key).write_bytes(gzip.compress(deep))
    code, out, err = run("replay", "--list", "--payload-only", env=environment)
    assert (code, out) == (1, "")
    assert "line 1 is not an event" in err
    assert "Traceback" not in err


def test_names_in_a_directory_that_are_no_keys_are_passed_over(tmp_path: Path) -> None:
    environment = file_environment(tmp_path)
    with Backup.from_env(environment) as backup:
        backup.record({"n": 1}, source_id="web")
    ((key, content),) = objects(tmp_path).items()
    strange = tmp_path / "bucket" / key.replace("web/", os.fsdecode(b"we\xff/"))
    strange.parent.mkdir(parents=True)
    strange.write_bytes(content)
    code, out, err = run("replay", "--list", env=environment)
    assert (code, len(out.splitlines())) == (0, 1), err


@pytest.mark.parametrize("note", [b'{"asked":"\xff"}', b"", b"[" * 9000, b'{"asked":1}', b"\x00"])
def test_a_damaged_position_counts_as_none(tmp_path: Path, note: bytes) -> None:
    environment = file_environment(tmp_path)
    with Backup.from_env(environment) as backup:
        backup.record({"n": 1}, source_id="web")
    (tmp_path / "out.position").write_bytes(note)
    code, _, err = run("replay", "--output", str(tmp_path / "out"), env=environment)
    assert (code, len((tmp_path / "out").read_text().splitlines())) == (0, 1), err


@pytest.mark.parametrize(("since", "until"), [("1h", "2h"), ("2026-11-25", "2026-11-24"), ("2026-11-24", "2026-11-24")])
def test_times_that_no_event_can_have_are_refused(tmp_path: Path, since: str, until: str) -> None:
    code, out, err = run("replay", "--since", since, "--until", until, env=file_environment(tmp_path))
    assert (code, out) == (2, "")
    assert f"--since {since} is not before --until {until}" in err
