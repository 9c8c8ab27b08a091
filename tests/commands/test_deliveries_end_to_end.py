"""Deleting delivered objects on real S3 servers, with and without the permission, and across kills."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from buckets import FAST_RETRY, realistic
from commands import run, start, summary
from servers import Moto, Store, client, operations, policy
from spools import archiver_of

from jobs_backup import Backup
from jobs_backup.archive import deleter
from jobs_backup.backup.backup import session_of
from jobs_backup.spool.engines import read_status
from jobs_backup.spool.ids import origin_of
from jobs_backup.testing.fault_proxy import Delay, FaultProxy

EVENTS = 50_000
WORKER = """
import json, sys
from jobs_backup import Backup
environment, archive = json.loads(sys.argv[1])
with Backup.from_env(environment, archive=archive) as backup:
    for line in sys.stdin:
        backup.delivered(json.loads(line))
        print("acknowledged", flush=True)
"""


@pytest.fixture
def env(store: Store, bucket: str, tmp_path: Path) -> dict[str, str]:
    return environment(store, bucket, tmp_path)


def environment(store: Store, bucket: str, directory: Path, identity: str = "put-delete") -> dict[str, str]:
    return {**store.environment(bucket, identity), **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": str(directory / "spool")}


def record(env: Mapping[str, str], count: int, largest: int, rng: random.Random) -> list[int]:
    """Record events of three sources, in objects of any size up to `largest`."""
    payloads, jobs = realistic(count), list[int]()
    with Backup.from_env(env) as backup:
        while payloads[len(jobs) :]:
            some = payloads[len(jobs) :][: rng.randint(1, rng.choice((3, 100, largest)))]
            jobs += map(int, backup.record_many(some, source_id=rng.choice(("web", "ios", "android"))))
            session_of(backup).spool.seal()
        backup.flush(120)
    return jobs


def objects_of(directory: Path, keys: Sequence[str], jobs: Sequence[int]) -> dict[str, set[int]]:
    """Key -> its jobs, according to the catalog."""
    with contextlib.closing(sqlite3.connect(directory / "spool" / "catalog.db")) as catalog:
        batches = dict(catalog.execute("SELECT id, key FROM batches").fetchall())
    found: dict[str, set[int]] = {key: set() for key in keys}
    for job in jobs:
        found[batches[origin_of(job)[1]]].add(job)
    assert all(found.values())
    return found


class Acknowledger:
    """A process that acknowledges the ids it receives, and may be killed."""

    def __init__(self, env: Mapping[str, str], *, archive: bool = True) -> None:
        self._arguments = [sys.executable, "-c", WORKER, json.dumps([env, archive])]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self._arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def send(self, ids: Sequence[int]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(id_) for id_ in ids]) + "\n")
        self._process.stdin.flush()

    def answered(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "acknowledged\n"

    def kill(self) -> None:
        """kill -9, and start a replacement."""
        self._process.kill()
        self._process.communicate()
        assert self._process.returncode == -signal.SIGKILL
        self._process = self._start()

    def end(self) -> None:
        self._process.communicate(timeout=120)
        assert self._process.returncode == 0


@contextlib.contextmanager
def acknowledgers(env: Mapping[str, str], count: int = 2, *, archive: bool = True) -> Iterator[list[Acknowledger]]:
    made = [Acknowledger(env, archive=archive) for _ in range(count)]
    yield made
    for one in made:
        one.end()


def steps(jobs: Sequence[int], count: int, rng: random.Random) -> list[list[int]]:
    """All ids in random order, split into random batches; some are acknowledged again."""
    shuffled = rng.sample(jobs, len(jobs))
    cuts = sorted(rng.sample(range(1, len(jobs)), count - 1))
    batches = [shuffled[start:end] for start, end in zip([0, *cuts], [*cuts, len(jobs)], strict=True)]
    return [batch + rng.sample(shuffled[:100], 5) for batch in batches]


def wait_for(wanted: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not wanted() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert wanted()


@pytest.mark.slow
def test_the_bucket_holds_exactly_what_has_an_undelivered_event(
    store: Store, bucket: str, env: dict[str, str], tmp_path: Path
) -> None:
    """50,000 events, acknowledged in random order in random batches by two processes, which are killed at random."""
    rng = random.Random(4)
    jobs = record(env, EVENTS, 1500, rng)
    keys = store.keys(bucket)
    objects = objects_of(tmp_path, keys, jobs)
    assert (len(jobs), sum(map(len, objects.values()))) == (EVENTS, EVENTS)
    left, kills, seen = set(jobs), 0, []
    with acknowledgers(env) as both:
        for number, batch in enumerate(steps(jobs, 40, rng)):
            halves = batch[::2], batch[1::2]
            for one, ids in zip(both, halves, strict=True):
                one.send(ids)
            for one, ids in zip(both, halves, strict=True):
                if number % 5 == 4:
                    time.sleep(rng.uniform(0, 0.05))
                    one.kill()
                    kills += 1
                    one.send(ids)  # the outcome is unknown, so they are acknowledged again
            for one in both:
                one.answered()
            left -= set(batch)
            expected = {key for key, own in objects.items() if own & left}

            def is_so(expected: set[str] = expected) -> bool:
                found = set(store.keys(bucket))
                assert found >= expected, "an object with an undelivered event is gone"
                return found == expected

            wait_for(is_so)
            seen.append(len(expected))
    assert (left, seen[-1], kills) == (set(), 0, 16)
    assert len(set(seen)) > 5, f"objects went at different times: {seen}"
    assert store.keys(bucket) == []
    assert read_status(tmp_path / "spool").stores == []


@pytest.mark.slow
def test_without_the_right_to_delete_everything_else_works(store: Store, bucket: str, tmp_path: Path) -> None:
    """With only put and abort: one report, a status that counts, and once the permission is granted all objects are deleted."""
    rng = random.Random(5)
    put_only = environment(store, bucket, tmp_path, "put-only")
    with start("archive", env=put_only) as service:
        jobs = record(put_only, EVENTS, 1500, rng)
        keys = store.keys(bucket)
        with acknowledgers(put_only, archive=False) as both:
            for number, batch in enumerate(steps(jobs, 40, rng)):
                both[number % 2].send(batch)
                both[number % 2].answered()
        wait_for(lambda: read_status(tmp_path / "spool").stores[0].delete_error != "")
        code, stdout, _ = run("status", env=put_only)
        assert code == 0
        assert f"{len(keys)} objects still to be deleted, next try in" in stdout
        assert f"grant s3:DeleteObject on arn:aws:s3:::{bucket}/*" in stdout
        assert record(put_only, 10, 10, rng)
        service.terminate()
        _, stderr = service.communicate(timeout=120)
    reports = [line for line in stderr.splitlines() if "s3:DeleteObject" in line and "cannot be deleted" in line]
    assert len(reports) == 1, stderr
    assert service.returncode == 0, "what is not deleted is no failure of backing up"
    assert set(store.keys(bucket)) > set(keys)
    (waits,) = json.loads(run("status", "--json", env=put_only)[1])["stores"]
    assert (waits["deletes"], "s3:DeleteObject" in waits["delete_hint"]) == (len(keys), True)
    found = summary("archive", "--once", env=environment(store, bucket, tmp_path, "put-delete"))
    assert (found["deleted"], found["waiting_deletes"]) == (len(keys), [])
    assert not set(store.keys(bucket)) & set(keys)


def test_the_right_is_granted_while_it_runs(aws: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On moto, whose policies can change at any time: a probe finds the change."""
    monkeypatch.setattr(deleter, "_FIRST_PROBE", 0.2)
    monkeypatch.setattr(deleter, "_MAX_PROBE", 0.4)
    bucket = aws.bucket()
    operator = aws.add_identity("operator", policy("*", resources=("*",)))
    aws.add_identity("later", policy("s3:PutObject", "s3:AbortMultipartUpload"))
    env = environment(aws, bucket, tmp_path, "later")
    with (
        aws.enforce(),
        contextlib.closing(client(aws.url, operator)) as s3,
        Backup.from_env({**env, "JOBS_BACKUP_BATCH_EVENTS": "10"}) as backup,
    ):
        jobs = backup.record_many(realistic(100), source_id="web")
        backup.flush(120)
        backup.delivered(jobs)
        wait_for(lambda: read_status(tmp_path / "spool").stores[0].delete_error != "")
        assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 10
        aws.grant("later", policy("s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject"), by=operator)
        wait_for(lambda: s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0)
        wait_for(lambda: archiver_of(backup).deleter.deleted == 10)


def test_what_may_be_deleted_is_though_the_rest_may_not(store: Store, bucket: str, tmp_path: Path) -> None:
    """The server answers 200 and refuses some keys: each key has its own result."""
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        env = {**environment(store, bucket, tmp_path, "delete-web"), "AWS_ENDPOINT_URL_S3": proxy.url}
        with Backup.from_env({**env, "JOBS_BACKUP_BATCH_EVENTS": "10"}) as backup:
            jobs = [*backup.record_many(realistic(50), source_id="web"), *backup.record_many(realistic(30), source_id="ios")]
            backup.flush(120)
            backup.delivered(jobs)
            assert archiver_of(backup).drain(120)
            assert archiver_of(backup).deleter.deleted == 5
        assert {key.split("/")[0] for key in store.keys(bucket)} == {"ios"}
        called = operations(proxy.requests)
        assert called.keys() == {"PutObject", "DeleteObjects"}
        assert called["DeleteObjects"] <= 2
    (waits,) = read_status(tmp_path / "spool").stores
    assert (waits.deletes, "s3:DeleteObject" in waits.delete_hint) == (3, True)


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "comes_back"), [(10.0, False), (-5.0, True)])
def test_a_put_that_arrives_late_brings_nothing_back(
    store: Store, bucket: str, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, margin: float, comes_back: bool
) -> None:
    """The network delays a request for longer than its sender waits. Without the margin the object would come back."""
    monkeypatch.setattr("jobs_backup.store.object_store._LANDING_MARGIN", margin)
    with FaultProxy("127.0.0.1", store.port, keep=0) as proxy:
        proxy.fail(Delay(3.0), method="PUT")
        own = {"AWS_ENDPOINT_URL_S3": proxy.url, "JOBS_BACKUP_REQUEST_TIMEOUT": "1s"}
        with Backup.from_env({**env, **own}) as backup:
            backup.delivered(backup.record({}, source_id="web"))
            backup.flush(120)
            wait_for(lambda: archiver_of(backup).deleter.deleted == 1)
            if comes_back:
                wait_for(lambda: store.keys(bucket) != [])
        assert bool(store.keys(bucket)) == comes_back


def test_an_object_that_somebody_has_deleted_counts_as_deleted(store: Store, bucket: str, env: dict[str, str]) -> None:
    with Backup.from_env({**env, "JOBS_BACKUP_BATCH_EVENTS": "10"}) as backup:
        jobs = backup.record_many(realistic(20), source_id="web")
        backup.flush(120)
        gone, _ = store.keys(bucket)
        store.admin.delete_object(Bucket=bucket, Key=gone)
        backup.delivered(jobs)
        assert archiver_of(backup).drain(120)
        assert archiver_of(backup).deleter.deleted == 2
    assert store.keys(bucket) == []
