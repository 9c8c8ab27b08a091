"""Acknowledged deliveries: an object is deleted once all of its events are delivered, and never before."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from buckets import FAST_RETRY, events, file_environment, left_over, lines, objects
from places import TESTS
from spools import LIMITS, archiver_of, claim, claimed, content, die, engine, open_spool, record, rows

from jobs_backup import Backup, ConfigurationError, Event, Job, UnknownJob
from jobs_backup.archive import deleter
from jobs_backup.backup.backup import session_of
from jobs_backup.backup.events import job_sets
from jobs_backup.errors import IntegrityError, PermissionDenied, SpoolCorrupt, SpoolError, StorageError, Throttled, Unavailable
from jobs_backup.model import DeleteReceipt, Kind, Stream
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool import id_ranges as numbering
from jobs_backup.spool.acknowledger import Added
from jobs_backup.spool.engines import read_status
from jobs_backup.spool.ids import INDEX_BITS, job_id, local, origin_of
from jobs_backup.spool.interface import DueObject
from jobs_backup.spool.sqlite.spool import SqliteSpool
from jobs_backup.spool.status import StoreStatus
from jobs_backup.store.object_store import ObjectStore

SMALL = {"JOBS_BACKUP_BATCH_EVENTS": "10"}


def numbered(count: int) -> list[bytes]:
    return [b'{"messageId":"%d"}' % number for number in range(count)]


def settle(backup: Backup) -> None:
    """Wait until nothing is left to upload or delete now."""
    archiver_of(backup).wake()
    assert archiver_of(backup).drain(120)


def settled_objects(backup: Backup, directory: Path) -> set[str]:
    settle(backup)
    return set(objects(directory))


def object_of(directory: Path, message_id: str) -> str:
    """The key of the object with this event."""
    (key,) = [
        key
        for key, data in objects(directory).items()
        if any(json.loads(line)["messageId"] == message_id for line in lines([data]))
    ]
    return key


def catalog_rows(directory: Path, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(directory / "spool" / "catalog.db")) as connection:
        return connection.execute(statement).fetchall()


def store(directory: Path) -> StoreStatus:
    (found,) = read_status(directory / "spool").stores
    return found


class TestAcknowledging:
    def test_an_object_goes_with_its_last_event(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path, **SMALL)) as backup:
            jobs = list(backup.record_many(numbered(30), source_id="web"))
            backup.flush(120)
            first, second, third = (object_of(tmp_path, id_) for id_ in ("0", "10", "20"))
            backup.delivered(jobs[:9])
            backup.delivered(jobs[10:19])
            assert settled_objects(backup, tmp_path) == {first, second, third}
            backup.delivered(jobs[19])
            assert settled_objects(backup, tmp_path) == {first, third}
            backup.delivered([jobs[9], *jobs[21:]])
            assert settled_objects(backup, tmp_path) == {third}
            backup.delivered(jobs[20])
            assert settled_objects(backup, tmp_path) == set()
        assert left_over(tmp_path) == []
        assert catalog_rows(tmp_path, "SELECT count(*) FROM acknowledged") == [(0,)]
        assert catalog_rows(tmp_path, "SELECT DISTINCT state FROM batches") == [("deleted",)]

    @pytest.mark.parametrize(
        "given",
        [
            lambda jobs: jobs,
            list,
            lambda jobs: [str(job) for job in jobs],
            lambda jobs: (int(job) for job in reversed(jobs)),
            lambda jobs: [*jobs, *jobs, jobs[3]],
            set,
        ],
        ids=["jobs", "list", "text", "generator, backwards", "repeated", "set"],
    )
    def test_ids_come_in_any_form_and_order(self, tmp_path: Path, given: Callable[[Sequence[Job]], Sequence[Job]]) -> None:
        with Backup.from_env(file_environment(tmp_path, **SMALL)) as backup:
            jobs = backup.record_many(numbered(25), source_id="web")
            backup.flush(120)
            backup.delivered(given(jobs))
            assert settled_objects(backup, tmp_path) == set()

    def test_one_job_or_its_id(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            one, other, third = (backup.record({"n": number}, source_id=f"source-{number}") for number in range(3))
            backup.delivered(one)
            backup.delivered(int(other))
            backup.delivered(str(third))
            backup.flush(120)
            assert settled_objects(backup, tmp_path) == set()

    def test_again_and_again_does_no_harm(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path, **SMALL)) as backup:
            jobs = backup.record_many(numbered(20), source_id="web")
            for _ in range(3):
                backup.delivered(jobs[:10])
                backup.flush(120)
                assert len(settled_objects(backup, tmp_path)) == 1
            assert archiver_of(backup).deleter.deleted == 1

    def test_an_event_acknowledged_twice_does_not_stand_for_another(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path, **SMALL)) as backup:
            jobs = backup.record_many(numbered(10), source_id="web")
            backup.flush(120)
            for _ in range(10):
                backup.delivered(jobs[0])
            assert len(settled_objects(backup, tmp_path)) == 1

    def test_before_the_upload_the_object_is_written_all_the_same(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "jobs_backup")
        with Backup.from_env(file_environment(tmp_path)) as backup:
            backup.delivered(backup.record_many(numbered(5), source_id="web"))
            backup.flush(120)
            assert settled_objects(backup, tmp_path) == set()
        logged = [record.getMessage().split()[0] for record in caplog.records if "json.gz" in record.getMessage()]
        assert logged == ["uploaded", "deleted"]

    def test_before_the_upload_it_is_not_written_if_that_is_wanted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "jobs_backup")
        with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_SKIP_DELIVERED="true")) as backup:
            jobs = backup.record_many(numbered(5), source_id="web")
            other = backup.record({}, source_id="other")
            backup.delivered(jobs)
            backup.flush(120)
            assert [key.split("/")[0] for key in settled_objects(backup, tmp_path)] == ["other"]
            backup.delivered([*jobs, other])
            assert settled_objects(backup, tmp_path) == set()
        logged = [record.getMessage() for record in caplog.records if "web/gw" in record.getMessage()]
        assert [("is not uploaded" in line) for line in logged] == [True]
        assert left_over(tmp_path) == []

    def test_what_was_tried_before_is_not_left_out(self, tmp_path: Path) -> None:
        """An attempt with an unknown result may have stored it."""
        environment = file_environment(tmp_path, **FAST_RETRY, JOBS_BACKUP_SKIP_DELIVERED="true")
        (tmp_path / "bucket").rmdir()
        with Backup.from_env(environment) as backup:
            job = backup.record({}, source_id="web")
        (tmp_path / "bucket").mkdir()
        with Backup.from_env(environment, archive=False) as recorder:
            recorder.delivered(job)
        with Backup.from_env(environment) as backup:
            settle(backup)
            assert (archiver_of(backup).sent.objects, len(objects(tmp_path))) == (1, 1)
            assert store(tmp_path).deletes == 1, "it is deleted when that attempt can't arrive any more"

    def test_from_another_process_in_which_nothing_was_recorded(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, **SMALL)
        script = (
            "import json, sys\n"
            "from jobs_backup import Backup\n"
            "environment, ids = json.load(sys.stdin)\n"
            "with Backup.from_env(environment, archive=False) as backup:\n"
            "    backup.delivered(ids)\n"
        )
        with Backup.from_env(environment) as backup:
            jobs = backup.record_many(numbered(15), source_id="web")  # five events of the second object are not even sealed
            given = json.dumps([environment, [str(job) for job in jobs]])
            subprocess.run([sys.executable, "-c", script], input=given, text=True, check=True)
            backup.flush(120)
            assert settled_objects(backup, tmp_path) == set()

    def test_long_after_the_process_that_recorded_has_ended(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, **SMALL)
        with Backup.from_env(environment) as backup:
            jobs = list(backup.record_many(numbered(15), source_id="web"))
        assert len(objects(tmp_path)) == 2
        with Backup.from_env(environment) as backup:
            backup.delivered(jobs)
            assert settled_objects(backup, tmp_path) == set()

    def test_many_threads_share_commits(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="50"), archive=False) as backup:
            jobs = list(backup.record_many(numbered(320), source_id="web"))
            random.Random(1).shuffle(jobs)
            deliveries = engine(session_of(backup).spool)._catalog.deliveries
            add, commits = deliveries.add, itertools.count()

            def slow(*arguments: object) -> Added:
                next(commits)
                time.sleep(0.005)  # a slow disk
                return add(*arguments)  # type: ignore[arg-type]

            def one_by_one(some: list[Job]) -> None:
                for job in some:
                    backup.delivered(job)

            deliveries.add = slow  # type: ignore[method-assign, assignment]
            threads = [threading.Thread(target=one_by_one, args=(jobs[number::16],)) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert next(commits) <= 320 / 4
        assert catalog_rows(tmp_path, "SELECT sum(delivered), sum(jobs) FROM batches") == [(320, 320)]

    def test_the_unknown_of_one_thread_is_no_other_threads_error(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
            good = list(backup.record_many(numbered(200), source_id="web"))
            failures: list[UnknownJob] = []

            def acknowledge(ids: list[int]) -> None:
                for id_ in ids:
                    try:
                        backup.delivered(id_)
                    except UnknownJob as error:
                        failures.append(error)

            threads = [threading.Thread(target=acknowledge, args=(ids,)) for ids in (good[:100], good[100:], list(range(1, 101)))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(int(id_) for error in failures for id_ in error.jobs) == list(range(1, 101))

    def test_what_was_acknowledged_survives_a_kill(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path)
        script = (
            "import json, os, sys\n"
            "from jobs_backup import Backup\n"
            "backup = Backup.from_env(json.loads(sys.argv[1]), archive=False)\n"
            "jobs = backup.record_many(({'n': n} for n in range(100)), source_id='web')\n"
            "backup.delivered(jobs[:60])\n"
            "backup.delivered(jobs[60:])\n"
            "os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", script, json.dumps(environment)], check=False)
        assert done.returncode == -signal.SIGKILL
        with Backup.from_env(environment) as backup:
            settle(backup)
            assert (archiver_of(backup).sent.events, archiver_of(backup).deleter.deleted) == (100, 1)
        assert objects(tmp_path) == {}


class TestUnknown:
    def test_unknown_ids_are_reported_and_all_others_taken(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            jobs = backup.record_many(numbered(5), source_id="web")
            next_one = jobs[-1] + 1
            unknown = [0, 17, next_one, (1 << 63) - 1]
            with pytest.raises(UnknownJob, match="4 job ids are unknown") as caught:
                backup.delivered([*unknown, *jobs])
            assert (list(caught.value.jobs), caught.value.count) == (sorted(unknown), 4)
            assert caught.value.hint
            backup.record({}, source_id="web")  # gets the id that was unknown
            backup.flush(120)
            assert len(settled_objects(backup, tmp_path)) == 1, "it was not acknowledged before it was there"
            backup.delivered(next_one)
            assert settled_objects(backup, tmp_path) == set()

    def test_of_very_many_only_some_are_listed(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
            with pytest.raises(UnknownJob) as caught:
                backup.delivered(range(1, 50_001))
            assert (len(caught.value.jobs), caught.value.count) == (1000, 50_000)

    def test_of_a_failure_there_is_nothing_to_acknowledge(self, tmp_path: Path) -> None:
        """A failure's id is not that of a raw event, and neither is the part of it in its key."""
        with Backup.from_env(file_environment(tmp_path)) as backup:
            backup.failed(Event(payload={}, source_id="web"), error="no")
            backup.flush(120)
            (key,) = objects(tmp_path)
            in_key = int(key.split("/")[-1].split(".")[2].split("-")[0])
            for id_ in (in_key, job_id(engine(session_of(backup).spool)._writer.session.epoch, *divmod(in_key, 1 << INDEX_BITS))):
                with pytest.raises(UnknownJob):
                    backup.delivered(id_)
            assert settled_objects(backup, tmp_path) == {key}

    def test_those_of_another_spool(self, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        with Backup.from_env(file_environment(tmp_path / "other")) as other:
            foreign = other.record({}, source_id="web")
        with Backup.from_env(file_environment(tmp_path)) as backup:
            own = backup.record({}, source_id="web")
            assert (own.batch, own.index) == (foreign.batch, foreign.index), "they differ in nothing else"
            with pytest.raises(UnknownJob):
                backup.delivered(foreign)
            backup.flush(120)
            assert len(settled_objects(backup, tmp_path)) == 1


class TestUnreadable:
    def test_a_batch_whose_file_is_gone_keeps_no_other_from_being_acknowledged(self, tmp_path: Path) -> None:
        dead = open_spool(tmp_path)
        ((bad, _),) = record(dead, [b"{}\n"])
        die(dead)
        for path in (tmp_path / "blobs").glob(f"{dead.session}*"):
            path.unlink()
        spool = open_spool(tmp_path)
        ((good, _),) = record(spool, [b"{}\n"])
        with pytest.raises(SpoolError):
            spool.delivered(next(job_sets([bad, good, 17])))
        assert rows(spool._catalog._database, "SELECT sum(delivered) FROM batches")[0] == (1,)
        failed: list[Exception] = []

        def acknowledge(job: int) -> None:
            for _ in range(50):
                try:
                    spool.delivered(next(job_sets(job)))
                except SpoolError as error:
                    failed.append(error)

        threads = [threading.Thread(target=acknowledge, args=(job,)) for job in (good, good, bad)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failed) == 50, "only who has asked for it is told"
        spool.close()


class TestWhenObjectsAreDeleted:
    def test_never(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_DELETE_AFTER="never", JOBS_BACKUP_SKIP_DELIVERED="true")
        with Backup.from_env(environment) as backup:
            backup.delivered(backup.record({}, source_id="web"))
            backup.flush(120)
            assert len(settled_objects(backup, tmp_path)) == 1
        assert read_status(tmp_path / "spool").stores == []
        with Backup.from_env({**environment, "JOBS_BACKUP_DELETE_AFTER": "delivered"}) as backup:
            assert settled_objects(backup, tmp_path) == set(), "it was remembered all the same"

    def test_an_event_that_failed_keeps_its_object(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            one, other = backup.record_many(numbered(2), source_id="web")
            backup.delivered(one)
            backup.failed(other, error="no", payload={})
            backup.flush(120)
            assert sorted(key.split("/")[0] for key in settled_objects(backup, tmp_path)) == ["rudder-proc-err-logs", "web"]
            backup.delivered(other)  # the last of them
            assert [key.split("/")[0] for key in settled_objects(backup, tmp_path)] == ["rudder-proc-err-logs"]

    @pytest.mark.parametrize("order", list(itertools.permutations(["deliver", "fail", "flush"])), ids="-".join)
    def test_settled(self, tmp_path: Path, order: Sequence[str]) -> None:
        """The others were delivered and the failure is in the bucket, in either order."""
        environment = file_environment(tmp_path, JOBS_BACKUP_DELETE_AFTER="settled")
        with Backup.from_env(environment) as backup:
            one, other = backup.record_many(numbered(2), source_id="web")
            steps: dict[str, Callable[[], None]] = {
                "deliver": lambda: backup.delivered(one),
                "fail": lambda: backup.failed(other, error="no", payload={}),
                "flush": lambda: backup.flush(120),
            }
            for step in order:
                steps[step]()
            backup.flush(120)
            assert [key.split("/")[0] for key in settled_objects(backup, tmp_path)] == ["rudder-proc-err-logs"]
        assert catalog_rows(tmp_path, "SELECT count(*) FROM settling") == [(0,)]

    def test_settled_not_before_the_failure_is_in_the_bucket(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_DELETE_AFTER="settled")
        with Backup.from_env(environment) as backup:
            job = backup.record({}, source_id="web")
            backup.flush(120)
            backup.failed(job, error="no", payload={})
            assert [key.split("/")[0] for key in settled_objects(backup, tmp_path)] == ["web"]

    def test_failed_and_delivered_counts_once(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_DELETE_AFTER="settled")
        with Backup.from_env(environment) as backup:
            one, _ = backup.record_many(numbered(2), source_id="web")
            for _ in range(2):
                backup.failed(one, error="no", payload={})
                backup.flush(120)
                backup.delivered(one)
            backup.failed(one, error="no", payload={})
            backup.flush(120)
            assert "web" in {key.split("/")[0] for key in settled_objects(backup, tmp_path)}
        assert catalog_rows(tmp_path, "SELECT delivered, settled, jobs FROM batches WHERE kind='raw'") == [(1, 0, 2)]

    def test_damaged_failures_settle_nothing(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_DELETE_AFTER="settled")
        with Backup.from_env(environment, archive=False) as backup:
            job = backup.record({}, source_id="web")
            backup.failed(job, error="no", payload={})
            session_of(backup).spool.seal()
            with contextlib.closing(sqlite3.connect(next((tmp_path / "spool/blobs").glob("*.db")))) as blobs, blobs:
                (failure,) = catalog_rows(tmp_path, "SELECT id << 21 FROM batches WHERE kind='failed'")
                blobs.execute("UPDATE chunks SET data=x'00' WHERE job=?", failure)
        with Backup.from_env(environment) as backup:
            assert [key.split("/")[0] for key in settled_objects(backup, tmp_path)] == ["web"]

    def test_a_wrong_setting_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="expected one of delivered, settled, never"):
            Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_DELETE_AFTER="always"))


class TestSwitches:
    def test_without_raw_backups_failures_are_backed_up_by_job_id(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_RAW="false")
        with Backup.from_env(environment) as backup:
            job = backup.record({"messageId": "m"}, source_id="web", workspace_id="ws")
            jobs = backup.record_many(Event(payload={}, source_id=f"source-{n % 3}") for n in range(10))
            assert len({job, *jobs}) == 11
            backup.delivered(jobs)
            backup.failed(job, error="no", payload={"messageId": "m"})
            backup.flush(120)
            assert [key.split("/")[0] for key in settled_objects(backup, tmp_path)] == ["rudder-proc-err-logs"]
        (event,) = events(tmp_path)
        assert (event["sourceId"], event["workspaceId"], event["jobId"]) == ("web", "ws", str(job))
        with Backup.from_env(environment) as backup:
            backup.failed(job, error="again", payload={})
            assert backup.record({}, source_id="web") not in {job, *jobs}

    def test_without_failure_backups_nothing_is_kept_of_them(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_FAILED="false")
        with Backup.from_env(environment) as backup:
            job = backup.record({}, source_id="web")
            backup.failed(job, error="no", payload={})
            backup.flush(120)
            assert [key.split("/")[0] for key in settled_objects(backup, tmp_path)] == ["web"]

    def test_ids_without_events_cost_the_same_for_any_number_of_sources(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(numbering, "_MAX_STREAMS", 5)
        with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_RAW="false"), archive=False) as backup:
            jobs = [backup.record({}, source_id=f"source-{number % 20}") for number in range(100)]
            assert len(set(jobs)) == 100
            assert len(engine(session_of(backup).spool)._numbering._ranges) == 5


class TestForgetting:
    def test_what_nobody_acknowledges_costs_a_row_until_its_days_are_over(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        first: dict[str, int] = {}
        for name, delivered in (("kept", 0), ("part", 1), ("gone", 3), ("waits", 3)):
            ((first[name], _),) = record(spool, [b"{}\n"] * 3)
            spool.seal()
            spool.stored(claim(spool))
            for jobs in job_sets(range(first[name], first[name] + delivered)):
                spool.delivered(jobs)
            if name == "gone":
                spool.deleted(spool.claim_deletes(10))
        batches = {name: origin_of(job)[1] for name, job in first.items()}
        known = "SELECT id FROM batches"
        assert spool.forget(-60, 0) is None
        assert {row[0] for row in rows(spool._catalog._database, known)} == set(batches.values()), "their file is still there"
        spool.close()
        spool = open_spool(tmp_path)
        ((sealed, _),) = record(spool, [b"{}\n"] * 3)
        spool.seal()
        batches["sealed"] = origin_of(sealed)[1]
        assert spool.forget(60, 0) is None
        assert {row[0] for row in rows(spool._catalog._database, known)} == set(batches.values())
        assert spool.forget(-60, 0) is None
        assert {row[0] for row in rows(spool._catalog._database, known)} == {batches["waits"], batches["sealed"]}
        assert len(spool.delivered(next(job_sets(first["part"])))) == 1, "it is unknown now"
        assert [one.batch for one in spool.claim_deletes(10)] == [batches["waits"]]
        spool.close()

    def test_it_goes_on_where_it_was_and_looks_at_a_few_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jobs_backup.spool.sqlite.spool._LOOKED_AT_ONCE", 2)
        for is_stored in (True, True, True, False, False):
            spool = open_spool(tmp_path)
            record(spool, [b"{}\n"])
            spool.seal()
            if is_stored:
                spool.stored(claim(spool))
            spool.close()
        spool = open_spool(tmp_path)
        after: int | None = 0
        looks = 0
        while after is not None:
            after = spool.forget(-60, after)
            looks += 1
        assert looks == 3
        assert rows(spool._catalog._database, "SELECT state FROM batches") == [("sealed",)] * 2
        spool.close()

    def test_what_has_waited_for_long_is_not_forgotten_when_it_is_stored(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        ((job, _),) = record(spool, [b"{}\n"])
        spool.seal()
        time.sleep(0.05)
        between = spool._catalog.clock.now()
        time.sleep(0.05)
        spool.stored(claim(spool))
        spool.close()
        spool = open_spool(tmp_path)
        assert spool.forget(spool._catalog.clock.now() - between, 0) is None
        assert not spool.delivered(next(job_sets(job))), "it is known"
        spool.deleted(spool.claim_deletes(10))
        assert spool.forget(-60, 0) is None
        assert spool.delivered(next(job_sets(job))), "it is not, later on"
        spool.close()

    @pytest.mark.parametrize(("days", "wanted"), [("1", []), ("0", [("stored",)])])
    def test_the_archiver_does_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: str, wanted: list[tuple[str]]
    ) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_CATALOG_DAYS=days)
        with Backup.from_env(environment) as backup:
            backup.record({}, source_id="web")
        old = time.time() - 2 * 86_400
        with contextlib.closing(sqlite3.connect(tmp_path / "spool/catalog.db")) as catalog, catalog:
            catalog.execute("UPDATE batches SET opened_at=?, stored_at=?", (old, old))
        monkeypatch.setattr("jobs_backup.archive.archiver.TICK", 0.02)
        with Backup.from_env(environment):
            until = time.monotonic() + (10 if not wanted else 0.5)
            while catalog_rows(tmp_path, "SELECT state FROM batches") != [] and time.monotonic() < until:
                time.sleep(0.02)
        assert catalog_rows(tmp_path, "SELECT state FROM batches") == wanted


class TestDamage:
    """Damage on disk never makes an object look fully delivered."""

    def spoil(self, spool: SqliteSpool, job: int) -> None:
        path = spool.directory / "blobs" / f"{spool.session}.db"
        with contextlib.closing(sqlite3.connect(path)) as blobs, blobs:
            assert blobs.execute("UPDATE chunks SET data=x'00' WHERE job=?", (local(job),)).rowcount == 1

    @pytest.mark.parametrize("sealed", [False, True])
    def test_acknowledged_events_that_are_lost_do_not_stand_for_others(self, tmp_path: Path, sealed: bool) -> None:
        spool = open_spool(tmp_path)
        ((first, _),) = record(spool, [b"{}\n"] * 3)
        ((last, _),) = record(spool, [b"{}\n"] * 2)
        assert last == first + 3
        if sealed:
            spool.seal()
            claim_ = claimed(spool)
        spool.delivered(next(job_sets([first, first + 1, first + 3, first + 4])))
        self.spoil(spool, first if sealed else last)
        if sealed:
            with pytest.raises(SpoolCorrupt) as caught:
                content(spool, claim_.batch)
            spool.quarantine_batch(claim_, caught.value)
            assert spool.claim() is None  # both chunks were folded into one member
        else:
            die(spool)
            spool = open_spool(tmp_path)
            spool.recover()
            batch = claim(spool)
            assert batch.events == 3
            spool.stored(batch)
            assert spool.claim_deletes(10) == []
            spool.delivered(next(job_sets([first + 2])))
            assert [one.key for one in spool.claim_deletes(10)] == [batch.key]
        spool.close()


class TestDeleting:
    """The deleter's handling of a store's answers."""

    @pytest.fixture
    def spool(self, tmp_path: Path) -> Iterator[SqliteSpool]:
        """Five objects whose events were all delivered, and one with an undelivered event."""
        spool = open_spool(tmp_path / "spool")
        for number in range(6):
            ((first, _),) = record(spool, [b"{}\n"] * 2, stream=Stream(Kind.RAW, "w", f"source-{number}"))
            spool.seal()
            spool.stored(claim(spool))
            spool.delivered(next(job_sets(range(first, first + (2 if number else 1)))))
        yield spool
        spool.close()

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deleter, "_FIRST_PROBE", 0.05)
        monkeypatch.setattr(deleter, "_FIRST_PAUSE", 0.05)
        monkeypatch.setattr(deleter, "_TICK", 0.02)

    def work(self, spool: SqliteSpool, store: _Store, until: Callable[[], bool]) -> deleter.Deleter:
        stop = threading.Event()
        made = deleter.Deleter(spool, store, stop=stop, on_change=lambda: None)  # type: ignore[arg-type]
        thread = threading.Thread(target=made.work)
        thread.start()
        deadline = time.monotonic() + 120
        while not until() and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        made.wake()
        thread.join()
        assert until()
        return made

    def test_all_in_one_call(self, spool: SqliteSpool) -> None:
        store = _Store()
        made = self.work(spool, store, lambda: len(store.deleted) == 5)
        assert [len(call) for call in store.calls] == [5]
        assert made.deleted == 5
        assert spool.waiting_deletes() == []

    def test_so_many_in_a_call_as_a_store_takes(self, spool: SqliteSpool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(deleter, "DELETED_AT_ONCE", 2)
        store = _Store()
        self.work(spool, store, lambda: len(store.deleted) == 5)
        assert [len(call) for call in store.calls] == [2, 2, 1]

    def test_what_is_refused_for_single_keys_is_kept_and_tried_again(
        self, spool: SqliteSpool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A bulk delete that answers 200 with errors for some keys."""
        broken = [one.key for one in _peek(spool)][1:3]
        store = _Store(keys={key: [Unavailable("InternalError"), IntegrityError("?")] for key in broken})
        self.work(spool, store, lambda: len(store.deleted) == 5)
        assert [len(call) for call in store.calls] == [5, 2, 1, 1], "when all that are left were refused, one is tried"
        assert all(set(call) <= set(broken) for call in store.calls[1:])
        assert store.deleted.count(broken[0]) == 1
        assert "2 of 5 delivered objects cannot be deleted" in caplog.text

    def test_refused_keys_are_reported_by_the_status(self, spool: SqliteSpool) -> None:
        broken = [one.key for one in _peek(spool)][:2]
        store = _Store(keys=dict.fromkeys(broken, [Unavailable("InternalError", hint="wait")] * 1000))
        self.work(spool, store, lambda: len(store.deleted) == 3 and len(store.calls) > 3)
        (waiting,) = spool.waiting_deletes()
        assert (waiting.objects, waiting.error, waiting.hint) == (2, "InternalError", "wait")

    def test_without_the_permission_one_report_slow_probes_and_then_all_of_it(
        self, spool: SqliteSpool, caplog: pytest.LogCaptureFixture
    ) -> None:
        denied = PermissionDenied("AccessDenied", action="s3:DeleteObject", resource="arn:aws:s3:::b/*")
        store = _Store(calls=[denied] * 4)
        self.work(spool, store, lambda: len(store.deleted) == 5)
        assert [len(call) for call in store.calls] == [5, 1, 1, 1, 1, 2, 2], "probes are of one object"
        (logged,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "grant s3:DeleteObject on arn:aws:s3:::b/*" in logged.getMessage()
        assert spool.waiting_deletes() == []

    def test_each_key_denied_is_the_same_as_the_whole_call_denied(
        self, spool: SqliteSpool, caplog: pytest.LogCaptureFixture
    ) -> None:
        denied = PermissionDenied("AccessDenied", action="s3:DeleteObject", resource="arn:aws:s3:::b/*")
        store = _Store(each=[denied] * 4)
        self.work(spool, store, lambda: len(store.deleted) == 5)
        assert [len(call) for call in store.calls] == [5, 1, 1, 1, 1, 2, 2]
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1

    def test_a_key_that_may_not_be_deleted_keeps_no_other_from_it(self, spool: SqliteSpool) -> None:
        """Its refusal comes first, when all objects wait and one is tried."""
        denied = PermissionDenied("AccessDenied", action="s3:DeleteObject", resource="arn:aws:s3:::b/*")
        blocked_by = _peek(spool)[0].key
        store = _Store(calls=[Unavailable("SlowDown")], keys={blocked_by: [denied] * 1000})
        self.work(spool, store, lambda: len(store.deleted) == 4)
        assert blocked_by not in store.deleted

    @pytest.mark.parametrize("place", range(5))
    def test_a_key_for_which_the_call_is_refused_keeps_no_other_from_it(
        self, spool: SqliteSpool, place: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store may reject a whole call because of one key: S3's DeleteObjects is XML, which cannot hold every character."""

        class Choosy(_Store):
            def delete(self, keys: Sequence[str]) -> DeleteReceipt:
                if blocked_by in keys:
                    self.calls.append(list(keys))
                    raise StorageError("MalformedXML")
                return super().delete(keys)

        monkeypatch.setattr(deleter, "_FIRST_PROBE", 60)
        blocked_by = _peek(spool)[place].key
        store = Choosy()
        self.work(spool, store, lambda: len(store.deleted) == 4)
        assert len(store.calls) < 10

    def test_keys_that_are_all_throttled_are_a_store_that_is(self, spool: SqliteSpool, caplog: pytest.LogCaptureFixture) -> None:
        slow = Throttled("SlowDown", retry_after=0.4)
        store = _Store(each=[slow])
        self.work(spool, store, lambda: len(store.deleted) == 5)
        assert store.times[1] - store.times[0] >= 0.4
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1

    def test_an_error_that_nobody_foresaw_keeps_nothing_claimed(self, spool: SqliteSpool) -> None:
        store = _Store(calls=[MemoryError(), TypeError("a bug")])
        self.work(spool, store, lambda: len(store.deleted) == 5)

    def test_pauses_grow_and_a_store_is_believed_how_long_to_wait(self, spool: SqliteSpool) -> None:
        error = Unavailable("SlowDown", retry_after=0.4)
        store = _Store(calls=[error])
        self.work(spool, store, lambda: len(store.deleted) == 5)
        assert store.times[1] - store.times[0] >= 0.4

    def test_a_failing_spool_does_not_end_it(self, spool: SqliteSpool, monkeypatch: pytest.MonkeyPatch) -> None:
        """For example a full disk: the object is deleted a second time, which is harmless."""
        errors = [SpoolError("disk full")] * 3
        deleted, has = SqliteSpool.deleted, SqliteSpool.has_deletes

        def failing(self: SqliteSpool, objects: Sequence[DueObject]) -> None:
            if errors:
                raise errors.pop()
            deleted(self, objects)

        unexpected = [ValueError("a bug")]

        def buggy(self: SqliteSpool) -> bool:
            if unexpected:
                raise unexpected.pop()
            return has(self)

        monkeypatch.setattr(SqliteSpool, "deleted", failing)
        monkeypatch.setattr(SqliteSpool, "has_deletes", buggy)
        store = _Store()
        made = self.work(spool, store, lambda: spool.waiting_deletes() == [])
        assert made.deleted == 5
        assert made.is_idle

    @pytest.mark.parametrize("setting", ["delivered", "settled"])
    def test_looking_for_something_to_delete_reads_no_other_batch(self, spool: SqliteSpool, setting: str) -> None:
        from jobs_backup.spool.sqlite import deliveries

        for rest in (deliveries._DUE, ""):
            asked = f"EXPLAIN QUERY PLAN {deliveries._TO_DELETE[setting]} {rest}"
            plan = rows(spool._catalog._database, asked, (1, *((0, 0) if rest else ())))
            assert f"USING INDEX {setting}_batches (store=?" in str(plan)

    def test_another_process_takes_over_what_a_dead_one_was_deleting(self, spool: SqliteSpool, tmp_path: Path) -> None:
        dead = open_spool(tmp_path / "spool")
        assert len(dead.claim_deletes(3)) == 3
        assert len(spool.claim_deletes(10)) == 2
        assert not spool.has_deletes()
        die(dead)
        spool.recover()
        assert len(spool.claim_deletes(10)) == 3

    def test_a_new_start_need_not_wait(self, spool: SqliteSpool) -> None:
        objects = spool.claim_deletes(10)
        spool.give_back_deletes([(one, 1000) for one in objects], Unavailable("no"), pause=0)
        assert not spool.has_deletes()
        spool.begin_sending()
        assert spool.has_deletes()

    def test_an_object_that_is_gone_counts_as_deleted(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            job = backup.record({}, source_id="web")
            backup.flush(120)
            (key,) = objects(tmp_path)
            (tmp_path / "bucket" / key).unlink()
            backup.delivered(job)
            settle(backup)
            assert archiver_of(backup).deleter.deleted == 1


class TestDoubt:
    """An attempt with an unknown result may still arrive and bring back a deleted object."""

    def test_after_a_lost_answer_it_is_not_deleted_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jobs_backup.store.object_store._LANDING_MARGIN", 1.0)
        environment = file_environment(tmp_path, **FAST_RETRY, JOBS_BACKUP_REQUEST_TIMEOUT="1s")
        write = ObjectStore._attempt
        lost = [True]

        def attempt(self: ObjectStore, hook: str, *others: Any) -> object:
            result: object = write(self, hook, *others)
            if hook == "write" and lost and lost.pop():
                raise Unavailable("the answer is lost")
            return result

        monkeypatch.setattr(ObjectStore, "_attempt", attempt)
        with Backup.from_env(environment) as backup:
            backup.delivered(backup.record({}, source_id="web"))
            began = time.monotonic()
            backup.flush(120)
            assert len(settled_objects(backup, tmp_path)) == 1
            assert store(tmp_path).deletes == 1
            while objects(tmp_path):
                time.sleep(0.02)
            assert time.monotonic() - began >= 2.0

    def test_what_another_process_may_have_sent_is_not_deleted_at_once(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path)
        settings = CoreSettings.from_environment(environment)
        location = (tmp_path / "bucket").as_uri()
        dead = SqliteSpool(settings.spool_path, location=location, prefix="", instance_id="1", limits=LIMITS)
        ((job, _),) = record(dead, [b"{}\n"])
        dead.seal()
        before = time.time()
        assert dead.claim() is not None
        die(dead)
        with Backup.from_env(environment) as backup:
            backup.delivered(job)
            settle(backup)
            assert len(objects(tmp_path)) == 1
            ((retry_at,),) = catalog_rows(tmp_path, "SELECT retry_at FROM batches")
            assert isinstance(retry_at, float)
            assert before + 119 < retry_at < time.time() + 121, "its time-out of 60 s, and a minute"


def test_a_spool_of_version_2_reports_what_was_given(tmp_path: Path) -> None:
    """From before acknowledgments existed. Its sealed batches have an unknown number of ids: they are never deleted."""
    earlier = TESTS / "data" / "spool-v2"
    (tmp_path / "blobs").mkdir()
    for script in earlier.rglob("*.sql"):
        with contextlib.closing(sqlite3.connect((tmp_path / script.relative_to(earlier)).with_suffix(".db"))) as connection:
            connection.executescript(script.read_text())
    spool = open_spool(tmp_path, location="file:///srv/bucket")
    spool.recover()
    found = rows(spool._catalog._database, "SELECT id, jobs, events, state FROM batches ORDER BY id")
    assert [(count, state) for _, _, count, state in found] == [(3, "stored"), (5, "sealed"), (4, "sealed")]
    for batch, _, count, _ in found:
        assert not spool.delivered(next(job_sets(range(batch << 21, (batch << 21) + count))))
    last = found[2][0]
    assert len(spool.delivered(next(job_sets((last << 21) + 4)))) == 1
    while (claimed_ := spool.claim()) is not None:
        spool.stored(claimed_.batch)
    assert [one.batch for one in spool.claim_deletes(10)] == [last], "sealed by this version"
    spool.close()


class _Store:
    """A store that shows its deletions, and refuses as scripted."""

    location = "s3://bucket"

    def __init__(
        self,
        *,
        calls: Sequence[Exception] = (),
        each: Sequence[Exception] = (),
        keys: dict[str, list[Exception]] | None = None,
    ) -> None:
        """Errors of whole calls; the same error for each key of a call that answers; errors of single keys."""
        self._refused = list(calls)
        self._each = list(each)
        self._keys = {key: list(errors) for key, errors in (keys or {}).items()}
        self.calls: list[list[str]] = []
        self.times: list[float] = []
        self.deleted: list[str] = []

    def delete(self, keys: Sequence[str]) -> DeleteReceipt:
        self.calls.append(list(keys))
        self.times.append(time.monotonic())
        if self._refused:
            raise self._refused.pop(0)
        if self._each:
            return DeleteReceipt(deleted=frozenset(), failed=dict.fromkeys(keys, self._each.pop(0)))
        failed = {key: self._keys[key].pop(0) for key in keys if self._keys.get(key)}
        self.deleted += [key for key in keys if key not in failed]
        return DeleteReceipt(deleted=frozenset(keys) - failed.keys(), failed=failed)


def _peek(spool: SqliteSpool) -> list[DueObject]:
    """The objects to delete."""
    found = spool.claim_deletes(10)
    spool.give_back_deletes([(one, None) for one in found], Unavailable(""), pause=0)
    return found
