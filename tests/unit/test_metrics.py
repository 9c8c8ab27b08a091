"""Metrics: counts of this process, the contents of the spool, and what any process did to it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from buckets import FAST_RETRY, file_environment, realistic
from commands import run, start
from places import TESTS
from prometheus_client import CollectorRegistry, generate_latest
from scrapes import Samples, parse, scrape, scrape_file, value
from spools import APP, LIMITS, WEB, claim, claimed, die, engine, open_spool, record, rows, tampering

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.backup.events import Event
from jobs_backup.errors import BucketNotFound, SpoolCorrupt, SpoolError, SpoolFull, StorePaused
from jobs_backup.model import Kind, Stream, Upload
from jobs_backup.monitoring import metrics
from jobs_backup.monitoring.metrics import HELP, Metrics, registry
from jobs_backup.settings.core import CoreSettings
from jobs_backup.spool.batches import Seal
from jobs_backup.spool.ids import JobSet
from jobs_backup.spool.interface import BatchLimits, Total
from jobs_backup.spool.sqlite.database import Database
from jobs_backup.spool.sqlite.schema import SCHEMA, VERSION
from jobs_backup.util.histogram import Histogram


@pytest.fixture(autouse=True)
def _always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(metrics, "_SHARE", 1e9)


def totals(directory: Path) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    """(kind, state) -> batches, events, bytes of lines, size; only nonzero ones."""
    with sqlite3.connect(directory / "catalog.db") as connection:
        rows = [
            Total(*row) for row in connection.execute("SELECT kind, state, batches, events, raw_bytes, size, stored_at FROM totals")
        ]
    connection.close()
    assert len(rows) == 10, "every state of every kind"
    return {(row.kind, row.state): (row.batches, row.events, row.raw_bytes, row.size) for row in rows if row.batches}


class TestHistogram:
    def test_a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed(self) -> None:
        histogram = Histogram((1.0, 2.0))
        for seconds in (0.5, 1.0, 1.5, 2.0, 99.0):
            histogram.observe(seconds)
        assert (histogram.counts, histogram.sum) == ([2, 2, 1], 104.0)


class TestOfTheProcess:
    def test_what_was_recorded_acknowledged_and_tried_is_counted(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            jobs = backup.record_many(({"n": n} for n in range(5)), source_id="web")
            line = backup.record({"n": 5}, source_id="web")
            backup.failed(line, error="no", payload={})
            backup.delivered(jobs[:3])
            backup.delivered([jobs[0]])
            backup.flush(120)
            found = scrape(backup)
            assert value(found, "recorded_events_total", kind="raw") == 6
            assert value(found, "recorded_events_total", kind="failed") == 1
            assert value(found, "recorded_bytes_total", kind="raw") == value(found, "sealed_raw_bytes_total", kind="raw") > 6 * 50
            assert value(found, "acknowledged_events_total") == 4, "one of them twice"
            assert value(found, "commit_seconds_count") == value(found, "commit_seconds_bucket", le="+Inf") == 3
            assert value(found, "commit_seconds_sum") > 0
            assert value(found, "attempts_total", hook="write", outcome="ok") == 2
            assert value(found, "attempt_seconds_count", hook="write") == 2
            assert value(found, "attempt_seconds_bucket", hook="write", le="+Inf") == 2

    def test_unknown_ids_are_not_counted(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            job = backup.record({}, source_id="web")
            with pytest.raises(LookupError):
                backup.delivered([job, 12345])
            assert value(scrape(backup), "acknowledged_events_total") == 1

    def test_what_was_not_recorded_is_not_counted(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_SPOOL_MIN_FREE="1000TB", JOBS_BACKUP_SPOOL_FULL_TIMEOUT="0s")
        with Backup.from_env(environment) as backup:
            with pytest.raises(SpoolFull):
                backup.record({}, source_id="web")
            found = scrape(backup)
            assert value(found, "recorded_events_total", kind="raw") == value(found, "commit_seconds_count") == 0

    def test_attempts_are_reported_by_the_codes_of_their_errors(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, **FAST_RETRY)
        (tmp_path / "bucket").rmdir()
        with Backup.from_env(environment) as backup:
            backup.record({}, source_id="web")
            with pytest.raises(StorePaused):
                backup.flush(120)
            found = scrape(backup)
            assert value(found, "attempts_total", hook="write", outcome="BucketNotFound") >= 1
            assert value(found, "attempt_seconds_count", hook="write") >= 1
            location = f"file://{tmp_path}/bucket"
            assert value(found, "store_paused", store=location) == 1
            assert value(found, "store_failing", store=location) == 1
            assert value(found, "behind") == 1
            (tmp_path / "bucket").mkdir()
            backup.close(grace=0)

    def test_threads_that_share_commits_are_all_counted(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            threads = [threading.Thread(target=lambda: [backup.record({}, source_id="web") for _ in range(200)]) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found = scrape(backup)
            assert value(found, "recorded_events_total", kind="raw") == 1600
            assert value(found, "commit_seconds_count") < 1600


class TestOfTheSpool:
    def test_what_waits_open_and_sealed(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_SPOOL_MAX_BYTES="1GB"), archive=False) as backup:
            backup.record_many(realistic(50), source_id="web")
            session_of(backup).seal()
            backup.record_many(realistic(7), source_id="app")
            found = scrape(backup)
            assert value(found, "spool_events", state="sealed") == 50
            assert value(found, "spool_events", state="open") == 7
            assert value(found, "spool_objects") == 1
            assert value(found, "spool_bytes") > value(found, "sealed_bytes_total", kind="raw") > 0
            assert value(found, "spool_max_bytes") == 1e9
            assert value(found, "spool_min_free_bytes") == 128 << 20
            assert value(found, "spool_oldest_seconds") > 0
            assert value(found, "spool_free_bytes") > 0
            assert value(found, "spool_processes", role="records") == 1
            assert value(found, "spool_processes", role="sends") == 0
            assert value(found, "last_stored_timestamp_seconds") == 0
            assert value(found, "behind") == 0

    def test_every_process_reports_the_same(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path)
        with Backup.from_env(environment, archive=False) as one, Backup.from_env(environment) as other:
            one.record_many(realistic(20), source_id="web")
            one.flush(120)
            one.record({}, source_id="web")
            ours, theirs = scrape(one), scrape(other)
            names = {name for name in HELP if HELP[name].endswith("(of the spool).")}
            moving = {"spool_oldest_seconds", "spool_free_bytes"}

            def of_spool(samples: Samples) -> Samples:
                return {key: one for key, one in samples.items() if key[0].removesuffix("_total") in names - moving}

            assert of_spool(ours) == of_spool(theirs)
            assert value(theirs, "stored_events_total", kind="raw") == 20
            assert value(theirs, "spool_events", state="open") == 1
            assert value(ours, "recorded_events_total", kind="raw") == 21
            assert value(theirs, "recorded_events_total", kind="raw") == 0

    def test_pauses_uploads_deletes_and_damage(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path)
        with Backup.from_env(environment, archive=False) as backup:
            spool = session_of(backup).spool
            jobs: list[int] = []
            for _ in range(2):
                jobs.append(record(spool, [b"{}\n"])[0][0])
                spool.seal()
            one, other = claim(spool), claim(spool)
            spool.uploads.begin(one, Upload(key=one.key, id="a secret"), 5 << 20)
            spool.uploads.abandon(spool.uploads.begin(other, Upload(key=other.key, id="a secret"), 5 << 20))
            spool.pause(BucketNotFound("no bucket"), seconds=90)
            found, location = scrape(backup), session_of(backup).location
            assert value(found, "open_uploads", state="sending") == value(found, "open_uploads", state="to_abort") == 1
            assert value(found, "store_paused", store=location) == 1
            spool.stored(one)
            backup.delivered(jobs[0])
            found = scrape(backup)
            assert value(found, "waiting_deletes", store=location) == 1
            assert value(found, "store_paused", store=location) == 0
            path = tmp_path / "spool/quarantine/rotten"
            path.write_bytes(b"")
            with tampering(engine(spool)._catalog._database) as db:
                db.execute("INSERT INTO damages VALUES ('quarantine/rotten', 1, 'raw', 'w', 'web', 0, 0, 'rotten')")
            found = scrape(backup)
            assert (value(found, "quarantined_files"), value(found, "behind")) == (1, 1)
            path.unlink()
            assert value(scrape(backup), "quarantined_files") == 0

    def test_labels_have_no_source_key_or_message(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_WORKSPACE_ID="our-workspace", **FAST_RETRY)
        (tmp_path / "bucket").rmdir()
        with Backup.from_env(environment) as backup:
            for number in range(20):
                backup.record({"secret": "our-payload"}, source_id=f"our-source-{number}", workspace_id="our-workspace")
            with pytest.raises(StorePaused):
                backup.flush(120)
            text = generate_latest(registry(backup)).decode()
            assert not [word for word in ("our-", "/gw/", "there is no") if word in text]
            assert len(parse(text)) < 150
            backup.close(grace=0)

    def test_a_spool_that_somebody_writes_for_long_is_read_all_the_same(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
            backup.record({}, source_id="web")
            with sqlite3.connect(tmp_path / "spool/catalog.db", isolation_level=None) as writer:
                writer.execute("BEGIN IMMEDIATE")
                writer.execute("UPDATE counters SET value=value+1")
                (blobs,) = (tmp_path / "spool/blobs").glob("*.db")
                with sqlite3.connect(blobs, isolation_level=None) as other:
                    other.execute("BEGIN IMMEDIATE")
                    found = scrape(backup)  # if it held a lock, it would be counted as an error
                    other.execute("ROLLBACK")
                other.close()
                writer.execute("ROLLBACK")
            writer.close()
            assert value(found, "spool_events", state="open") == 1
            assert value(found, "scrape_errors_total") == 0

    def test_without_the_spool_the_process_is_reported_and_the_error_counted(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
            backup.record({}, source_id="web")
            made = registry(backup)
            (tmp_path / "spool/catalog.db").rename(tmp_path / "away")
            found = parse(generate_latest(made).decode())
            assert value(found, "scrape_errors_total") == 1
            assert value(found, "recorded_events_total", kind="raw") == 1
            assert "spool_free_bytes" not in {name for name, _ in found}
            (tmp_path / "away").rename(tmp_path / "spool/catalog.db")
            found = parse(generate_latest(made).decode())
            assert (value(found, "scrape_errors_total"), value(found, "spool_events", state="open")) == (1, 1)

    def test_after_the_end_the_spool_is_still_reported(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            made = registry(backup)
            backup.record({}, source_id="web")
        found = parse(generate_latest(made).decode())
        assert value(found, "stored_events_total", kind="raw") == 1
        assert value(found, "spool_processes", role="sends") == 0

    def test_scrapes_share_what_was_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metrics, "_FRESH_SECONDS", 60.0)
        with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
            made = registry(backup)
            generate_latest(made)
            backup.record({}, source_id="web")
            found = parse(generate_latest(made).decode())
            assert value(found, "spool_events", state="open") == 0, "read a moment ago"
            assert value(found, "recorded_events_total", kind="raw") == 1
            assert value(scrape(backup), "spool_events", state="open") == 1

    @pytest.mark.slow
    def test_ten_thousand_open_batches_are_scraped(self, tmp_path: Path) -> None:
        """Measured: 0.12 s. The spool is read at most often enough to use a tenth of the time."""
        with Backup.from_env(file_environment(tmp_path), archive=False) as backup:
            backup.record_many(Event(payload=b"{}", source_id=f"s{number}") for number in range(10_000))
            found = scrape(backup)
            assert value(found, "spool_events", state="open") == 10_000

    def test_the_help_reports_what_each_is_and_every_metric_is_there(self, tmp_path: Path) -> None:
        assert [
            name for name, text in HELP.items() if not text.endswith(("(of this process).", "(of the spool).", "this process."))
        ] == []
        with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_SPOOL_MAX_BYTES="1GB")) as backup:
            names = {family.name.removeprefix("jobs_backup_") for family in Metrics(backup).collect()}
        elsewhere = {"http_requests", "http_request_seconds"} | {name for name in HELP if name.startswith("fleet_")}
        assert names == set(HELP) - elsewhere, "those are of `serve`, and of a spool in PostgreSQL"

    def test_an_application_adds_them_to_its_own_registry(self, tmp_path: Path) -> None:
        own = CollectorRegistry()
        with Backup.from_env(file_environment(tmp_path)) as backup:
            own.register(Metrics(backup))
            assert b"jobs_backup_build_info{" in generate_latest(own)


class TestTotals:
    def test_each_change_of_state_is_counted_once(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        ((first, count),) = record(spool, [b"{}\n"] * 3)
        record(spool, [b"{}\n"] * 2, stream=APP)
        record(spool, [b"{}\n"], stream=Stream(Kind.FAILED, "w", "web"))
        assert totals(tmp_path) == {}
        spool.seal()
        one, other, failure = claim(spool), claim(spool), claim(spool)
        assert totals(tmp_path) == {
            ("raw", "sealed"): (2, 5, 15, one.size + other.size),
            ("failed", "sealed"): (1, 1, 3, failure.size),
        }
        spool.stored(one)
        spool.stored(one)
        spool.stored(failure)
        assert totals(tmp_path)["raw", "stored"] == (1, 3, 9, one.size)
        spool.skip(other)
        assert totals(tmp_path)["raw", "skipped"] == (1, 2, 6, other.size)
        spool.deleted([*spool.claim_deletes(10)])
        assert ("raw", "deleted") not in totals(tmp_path)
        jobs = JobSet()
        jobs.add_run(first, count)
        spool.delivered(jobs)
        spool.deleted(spool.claim_deletes(10))
        assert totals(tmp_path)["raw", "deleted"] == (1, 3, 9, one.size)
        spool.close()

    def test_they_outlive_those_who_did_it_and_what_is_forgotten(self, tmp_path: Path) -> None:
        for count in (3, 4):
            spool = open_spool(tmp_path)
            record(spool, [b"{}\n"] * count)
            spool.seal()
            spool.stored(claim(spool))
            die(spool)
            spool = open_spool(tmp_path)
            spool.recover()
            assert spool.forget(-100, 0) is None
            assert rows(spool._catalog._database, "SELECT id FROM batches") == []
            die(spool)
        assert totals(tmp_path)["raw", "stored"][:2] == (2, 7)

    def test_events_that_are_only_numbered_are_no_objects(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        spool.number(WEB, 10)
        spool.close()
        assert totals(tmp_path) == {}

    def test_damage_is_counted_and_the_rest_not_twice(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path, limits=BatchLimits(events=1000, bytes=1 << 30, age=300))
        record(spool, [b"{}\n"] * 3)
        spool.seal()
        claimed_once = claimed(spool)
        with sqlite3.connect(tmp_path / "blobs" / f"{spool.session}.db") as connection:
            connection.execute("UPDATE chunks SET data=zeroblob(length(data))")
        connection.close()
        spool.quarantine_batch(claimed_once, SpoolCorrupt("rotten"))
        assert totals(tmp_path)["raw", "set aside"][0] == 1
        assert totals(tmp_path)["raw", "sealed"][0] == 1
        spool.close()

    def test_a_rest_that_is_sealed_anew_was_sealed_before(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        record(spool, [b"{}\n"] * 3)
        spool.seal()
        batch = claim(spool)
        columns = "jobs, events-1, raw_bytes-3, first_at, last_at, size, crc32c, uuid, key, id"
        spool._catalog.reseal(batch.id, Seal(*rows(spool._catalog._database, f"SELECT {columns} FROM batches")[0]))
        assert {key: found[:2] for key, found in totals(tmp_path).items()} == {
            ("raw", "sealed"): (1, 3),
            ("raw", "set aside"): (1, 3),
        }
        spool.stored(claim(spool))
        assert totals(tmp_path)["raw", "stored"][:2] == (1, 2)
        spool.close()

    def test_what_is_rolled_back_is_not_counted(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        record(spool, [b"{}\n"])

        class Killed(Exception):
            pass

        def seal() -> None:
            with tampering(engine(spool)._catalog._database) as db:
                db.execute("UPDATE batches SET state='sealed' WHERE state='open'")
                raise Killed

        with pytest.raises(Killed):
            seal()
        assert totals(tmp_path) == {}
        spool.close()

    def test_a_spool_of_version_4_counts_from_its_upgrade_on(self, tmp_path: Path) -> None:
        earlier = TESTS / "data" / "spool-v4"
        (tmp_path / "blobs").mkdir()
        for script in earlier.rglob("*.sql"):
            with sqlite3.connect((tmp_path / script.relative_to(earlier)).with_suffix(".db")) as connection:
                connection.executescript(script.read_text())
            connection.close()
        spool = open_spool(tmp_path, location="file:///srv/bucket")
        assert totals(tmp_path) == {}
        spool.recover()
        while (found := spool.claim()) is not None:
            spool.stored(found.batch)
        assert {key: count[:2] for key, count in totals(tmp_path).items()} == {("raw", "sealed"): (1, 2), ("raw", "stored"): (2, 7)}
        spool.close()

    def test_a_later_version_keeps_them(self, tmp_path: Path) -> None:
        """Like the next upgrade: tables, indexes and triggers are created again, and the counts stay."""
        spool = open_spool(tmp_path)
        record(spool, [b"{}\n"])
        spool.seal()
        spool.close()
        before = totals(tmp_path)
        later = Database(tmp_path / "catalog.db", SCHEMA, version=VERSION + 1, durability="full", upgrades={VERSION: ()})
        with tampering(later) as db:
            db.execute("UPDATE batches SET state='stored', stored_at=7")
            assert db.execute("SELECT count(*) FROM sqlite_schema WHERE type='trigger'").fetchone() == (1,)
        later.close()
        assert totals(tmp_path) == {**before, ("raw", "stored"): before["raw", "sealed"]}


class TestWithoutTheExtra:
    HIDE = "import sys; sys.modules['prometheus_client'] = None; "

    def run(self, program: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def test_recording_neither_needs_nor_imports_it(self, tmp_path: Path) -> None:
        program = (
            "import sys, jobs_backup.backup.backup, jobs_backup.cli.commands.archive, jobs_backup.monitoring.health;"
            "assert 'prometheus_client' not in sys.modules;"
            "b = jobs_backup.backup.backup.Backup.from_env(); b.record({}, source_id='web'); b.close()"
        )
        assert self.run(program, **file_environment(tmp_path)).stderr == ""

    def test_asking_for_them_reports_what_to_install(self, tmp_path: Path) -> None:
        found = self.run(self.HIDE + "import jobs_backup.monitoring.metrics")
        assert "ConfigurationError: metrics need prometheus-client" in found.stderr
        variables = file_environment(tmp_path, JOBS_BACKUP_METRICS_FILE=str(tmp_path / "metrics.prom"))
        command = self.HIDE + "sys.argv = ['jobs-backup', 'archive', '--once']; from jobs_backup.cli import main; main()"
        found = self.run(command, **variables)
        assert (found.returncode, "pip install './core[metrics]', in a clone" in found.stderr) == (2, True)
        spool = open_spool(tmp_path / "spool", limits=LIMITS)
        assert len(spool._catalog.sessions()) == 1, "it left nothing behind"
        spool.close()


class TestFile:
    def test_run_and_archive_write_it_at_their_end(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.prom"
        environment = file_environment(tmp_path, JOBS_BACKUP_METRICS_FILE=str(path))
        (tmp_path / "events.ndjson").write_text('{"a":1}\n' * 12)
        with start("run", tmp_path / "events.ndjson", "--source-id", "web", env=environment) as process:
            assert process.communicate(timeout=120)[1].count("\n") == 1
        found = scrape_file(path)
        assert value(found, "recorded_events_total", kind="raw") == value(found, "stored_events_total", kind="raw") == 12
        path.unlink()
        with start("archive", env=environment) as process:
            until = time.monotonic() + 120
            while not path.exists() and time.monotonic() < until:
                time.sleep(0.05)
            assert value(scrape_file(path), "spool_processes", role="sends") == 1
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
        assert process.returncode == 0
        assert value(scrape_file(path), "stored_events_total", kind="raw") == 12, "of an earlier process"
        assert value(scrape_file(path), "recorded_events_total", kind="raw") == 0
        assert list(tmp_path.glob("metrics.prom?*")) == [], "nothing half-written is left"

    @pytest.mark.parametrize(("name", "why"), [("nowhere/metrics.prom", "No such file"), ("metrics.txt", "must end in .prom")])
    def test_one_that_can_not_be_written_is_reported_at_the_start(self, name: str, why: str, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_METRICS_FILE=str(tmp_path / name))
        with start("archive", env=environment) as process:
            _, stderr = process.communicate(timeout=120)
        assert process.returncode == 2
        assert why in stderr
        assert stderr.endswith("[ConfigurationError]\n")

    def test_one_that_can_not_be_written_later_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        from jobs_backup.monitoring import health as monitoring

        monkeypatch.setattr(monitoring, "FILE_SECONDS", 0.05)
        directory = tmp_path / "textfiles"
        directory.mkdir()
        with Backup.from_env(file_environment(tmp_path)) as backup:
            with monitoring.metrics_file(backup, directory / "m.prom"):
                before = (directory / "m.prom").stat().st_mtime_ns
                assert soon(lambda: (directory / "m.prom").stat().st_mtime_ns > before), "again and again"
                directory.rename(tmp_path / "away")
                assert soon(lambda: "cannot write the metrics" in caplog.text)
                (tmp_path / "away").rename(directory)
                backup.record({}, source_id="web")
            assert value(scrape_file(directory / "m.prom"), "recorded_events_total", kind="raw") == 1

    def test_a_setting_is_read_with_the_others(self, tmp_path: Path) -> None:
        settings = CoreSettings.from_environment(file_environment(tmp_path, JOBS_BACKUP_METRICS_FILE="/x/y.prom"))
        assert settings.metrics_file == Path("/x/y.prom")


def soon(is_so: Callable[[], bool]) -> bool:
    """Wait for it as long as a busy machine may need."""
    deadline = time.monotonic() + 120
    while not (found := is_so()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_reading_changes_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"{}\n"])
    database = Database(tmp_path / "catalog.db", SCHEMA, version=VERSION, durability="full", only_reads=True)
    with pytest.raises(SpoolError):
        database.write(lambda db: db.execute("UPDATE counters SET value=0"))
    database.close()
    with pytest.raises(SpoolError):
        Database(tmp_path / "none.db", SCHEMA, version=VERSION, durability="full", only_reads=True)
    assert not (tmp_path / "none.db").exists()
    spool.close()


def test_rejected_lines_are_counted_and_their_files_reported(tmp_path: Path) -> None:
    """By the process that reads them, and by every process on the spool until the file is removed."""
    env = file_environment(tmp_path, JOBS_BACKUP_METRICS_FILE=str(tmp_path / "run.prom"))
    assert run("run", "--source-id", "web", env=env, stdin="no\n{}\nno\n")[0] == 3
    assert "\njobs_backup_rejected_lines_total 2.0\n" in (tmp_path / "run.prom").read_text()
    with Backup.from_env(file_environment(tmp_path)) as backup:
        text = generate_latest(registry(backup)).decode()
    assert "\njobs_backup_rejected_lines_total 0.0\n" in text
    assert "\njobs_backup_rejected_files 1.0\n" in text
    assert "\njobs_backup_rejected_bytes 6.0\n" in text
