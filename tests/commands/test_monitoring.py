"""/metrics, /healthz and /readyz; and how `status` reports a backup that is behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from buckets import FAST_RETRY, file_environment, realistic
from commands import run, start
from scrapes import get, parse, value
from spools import archiver_of, claim, engine, open_spool, record, tampering

from jobs_backup import Backup
from jobs_backup.archive import archiver
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import BackupClosed, ConfigurationError, PermissionDenied, SpoolError, SpoolFull
from jobs_backup.monitoring import health as monitoring
from jobs_backup.monitoring.health import health, metrics_page, monitored, readiness
from jobs_backup.spool.engines import read_status
from jobs_backup.spool.sqlite.spool import SqliteSpool
from jobs_backup.util.installing import how_to_install


@contextmanager
def monitored_backup(directory: Path, *, archive: bool = True, **variables: str) -> Iterator[tuple[Backup, str]]:
    """The process and its address."""
    environment = file_environment(directory, JOBS_BACKUP_METRICS_PORT="0", **variables)
    with Backup.from_env(environment, archive=archive) as backup, monitored(backup, session_of(backup).settings) as url:
        yield backup, url


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise AssertionError(said)


class TestTheCommand:
    def test_archive_answers_and_stops(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path)
        with Backup.from_env(environment, archive=False) as backup:
            backup.record_many(realistic(30), source_id="web")
        with start("archive", "--metrics-port", "0", env=environment) as process:
            url = url_of(process)
            until = time.monotonic() + 120
            while value(parse(get(f"{url}/metrics")[2]), "stored_events_total", kind="raw") < 30 and time.monotonic() < until:
                time.sleep(0.1)
            status, content_type, body = get(f"{url}/metrics")
            assert (status, content_type.partition(";")[0]) == (200, "text/plain")
            assert value(parse(body), "stored_events_total", kind="raw") == 30
            assert value(parse(body), "build_info", provider="FILE", python=sys.version.split()[0], version="0.1.0") == 1
            assert "process_resident_memory_bytes" in body
            _, content_type, body = get(f"{url}/metrics", accept="application/openmetrics-text; version=1.0.0")
            assert content_type.startswith("application/openmetrics-text")
            assert body.endswith("# EOF\n")
            assert get(f"{url}/healthz") == get(f"{url}/readyz") == (200, "text/plain; charset=utf-8", "ok\n")
            assert get(f"{url}/")[0] == get(f"{url}/metrics/x")[0] == 404
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=120)
        assert (process.returncode, "30 events in 1 object " in stderr) == (0, True)

    def test_while_it_stops_it_is_not_ready_but_well(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, JOBS_BACKUP_METRICS_PORT="0", JOBS_BACKUP_SHUTDOWN_GRACE="10m")
        environment |= {"JOBS_BACKUP_RETRY_ATTEMPTS": "1000000", "JOBS_BACKUP_RETRY_MAX_WAIT": "100ms"}
        with Backup.from_env(environment, archive=False) as backup:
            backup.record({}, source_id="web")
        (tmp_path / "bucket/web").touch()  # where a directory must be: a failure that may pass and is retried
        with start("archive", env=environment) as process:
            url = url_of(process)
            process.send_signal(signal.SIGTERM)
            while (found := get(f"{url}/readyz"))[0] == 200:
                time.sleep(0.02)
            assert (found[0], found[2], get(f"{url}/healthz")[0]) == (503, "stopping\n", 200)
            (tmp_path / "bucket/web").unlink()
            process.communicate(timeout=120)
        assert process.returncode == 0

    @pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no-such-host.invalid", "a..b"])
    def test_what_can_not_be_listened_on_is_reported_before_anything_is_sent(self, host: str, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            environment = file_environment(tmp_path, JOBS_BACKUP_METRICS_HOST=host, JOBS_BACKUP_METRICS_PORT=port)
            code, _, stderr = run("archive", env=environment)
        assert (code, "cannot listen on" in stderr, stderr.count("\n")) == (2, True, 1)
        assert read_status(tmp_path / "spool").processes == [], "it left nothing behind"

    def test_a_wrong_port_is_refused(self, tmp_path: Path) -> None:
        assert run("archive", "--metrics-port", "65536", env=file_environment(tmp_path))[0] == 2
        assert run("archive", env=file_environment(tmp_path, JOBS_BACKUP_METRICS_PORT="web"))[0] == 2


class TestReadiness:
    def test_a_full_disk(self, tmp_path: Path) -> None:
        with monitored_backup(tmp_path, JOBS_BACKUP_SPOOL_MIN_FREE="1000TB") as (backup, url):
            with pytest.raises(SpoolFull):
                session_of(backup).check_room()
            status, _, body = get(f"{url}/readyz")
            assert status == 503
            assert re.fullmatch(r"the disk of .* recording keeps [\d,]+ free: .* \[SpoolFull\]\n", body)
            assert get(f"{url}/healthz")[0] == 200, "a new start would not help"

    def test_a_full_quota_until_it_is_sent(self, tmp_path: Path) -> None:
        variables = {"JOBS_BACKUP_SPOOL_MAX_BYTES": "1kB", "JOBS_BACKUP_SPOOL_FULL_TIMEOUT": "1h"}
        with monitored_backup(tmp_path, archive=False, **variables) as (backup, _):
            backup.record(b'{"a":"%s"}' % (b"x" * 2000), source_id="web")
            assert "may hold 1,000" in readiness(backup)
            assert readiness(backup), "a probe does not wait for room, which never comes"
            session_of(backup).seal()
            session_of(backup).spool.stored(claim(session_of(backup).spool))
            assert readiness(backup) == ""
            backup.record({}, source_id="web")

    def test_a_spool_that_is_gone_or_broken(self, tmp_path: Path) -> None:
        with ExitStack() as stack:
            backup = stack.enter_context(Backup.from_env(file_environment(tmp_path), archive=False))
            (tmp_path / "spool").rename(tmp_path / "away")
            assert readiness(backup).endswith("[SpoolError]")
            (tmp_path / "away").rename(tmp_path / "spool")
            assert readiness(backup) == ""

    @pytest.mark.parametrize("name", ["catalog.db", "catalog.db-wal", "catalog.db-shm"])
    def test_a_catalog_that_is_removed_while_it_is_used(self, tmp_path: Path, name: str) -> None:
        """Recording continues, but nothing is uploaded before a restart."""
        backup = Backup.from_env(file_environment(tmp_path), archive=False)
        assert readiness(backup) == ""
        (tmp_path / "spool" / name).unlink()
        assert "was removed or replaced while it was in use" in readiness(backup)
        with pytest.raises(SpoolError):
            backup.close()

    def test_a_closed_one(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            pass
        assert readiness(backup).endswith("[BackupClosed]")
        assert health(backup) == ""
        with pytest.raises(BackupClosed):
            session_of(backup).spool.check_room()

    def test_it_may_be_asked_while_others_record(self, tmp_path: Path) -> None:
        """Streams appear and disappear meanwhile."""
        with Backup.from_env(file_environment(tmp_path, JOBS_BACKUP_SPOOL_MAX_BYTES="1GB")) as backup:
            end = threading.Event()
            failures: list[Exception] = []

            def work(number: int) -> None:
                try:
                    for count in range(10**6):
                        backup.record({}, source_id=f"{number}-{count}")
                        if end.is_set():
                            return
                except Exception as error:  # noqa: BLE001 - reported below
                    failures.append(error)

            threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            until = time.monotonic() + 2
            while time.monotonic() < until:
                assert readiness(backup) == ""
            end.set()
            for thread in threads:
                thread.join()
            assert failures == []
            backup.close(grace=0)


class TestHealth:
    def test_a_thread_that_has_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threading, "excepthook", lambda _: None)
        with monitored_backup(tmp_path) as (backup, url):
            assert get(f"{url}/healthz")[0] == 200
            assert archiver_of(backup).drain(120)  # otherwise the shutdown would wait for that thread's next upload

            def end() -> None:
                raise SystemExit

            monkeypatch.setattr(archiver_of(backup).deleter, "_look", end)
            until = time.monotonic() + 120
            while get(f"{url}/healthz")[0] == 200 and time.monotonic() < until:
                time.sleep(0.05)
            assert get(f"{url}/healthz") == (503, "text/plain; charset=utf-8", "the thread jobs-backup-delete has ended\n")

    @pytest.mark.parametrize("archive", [True, False])
    def test_a_thread_that_hangs(self, archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archiver, "_STALLED_SECONDS", 5.0)
        go_on = threading.Event()
        with Backup.from_env(file_environment(tmp_path), archive=archive) as backup:
            time.sleep(5.5)
            assert health(backup) == "", "it looks each second"
            monkeypatch.setattr(session_of(backup).spool, "seal_due", go_on.wait)
            until = time.monotonic() + 120
            while not health(backup) and time.monotonic() < until:
                time.sleep(0.1)
            assert re.fullmatch(r"the thread jobs-backup-(look-after|seal) has made no progress for \d+ s", health(backup))
            go_on.set()

    def test_what_takes_long_at_the_start_is_no_hang(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archiver, "_STALLED_SECONDS", 0.1)
        go_on = threading.Event()
        recover = SqliteSpool.recover
        monkeypatch.setattr(SqliteSpool, "recover", lambda self: (go_on.wait(), recover(self))[1])
        with Backup.from_env(file_environment(tmp_path)) as backup:
            time.sleep(0.3)
            assert health(backup) == ""
            go_on.set()
            backup.close(grace=0)


class TestTheListener:
    def test_slow_clients_keep_nobody_out_for_long(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(monitoring, "_REQUEST_SECONDS", 1.0)
        with monitored_backup(tmp_path) as (_, url), ExitStack() as stack:
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            slow = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
            end = threading.Event()

            def dribble() -> None:
                """Send one byte at a time, so that no single wait is long."""
                while not end.wait(0.1):
                    for one in slow:
                        try:
                            one.send(b"G")
                        except OSError:
                            continue

            thread = threading.Thread(target=dribble)
            thread.start()
            try:
                time.sleep(0.2)
                assert get(f"{url}/healthz")[0] == 200
                threads = [one.name for one in threading.enumerate() if "process_request_thread" in one.name]
                assert len(threads) <= 4
            finally:
                end.set()
                thread.join()

    def test_what_is_no_request_ends_the_connection_alone(self, tmp_path: Path) -> None:
        with monitored_backup(tmp_path) as (_, url):
            address = ("127.0.0.1", int(url.rpartition(":")[2]))
            for sent in (b"", b"\0\xff\r\n\r\n", b"POST /metrics HTTP/1.1\r\n\r\n", b"GET " + b"x" * 100_000):
                with socket.create_connection(address, timeout=120) as connection:
                    try:
                        connection.sendall(sent)
                        connection.shutdown(socket.SHUT_WR)
                        answer = connection.recv(1 << 16)
                    except OSError:  # the server closed the connection before all was sent: reset, or no longer connected
                        answer = b""
                assert b" 200 " not in answer
            assert get(f"{url}/healthz")[0] == 200

    def test_head_has_no_body(self, tmp_path: Path) -> None:
        with monitored_backup(tmp_path) as (_, url), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as one:
            one.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            with one.makefile("rb") as reader:
                answer = reader.read()
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")

    def test_ipv6_and_a_port_of_its_own(self, tmp_path: Path) -> None:
        if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
            pytest.skip("this machine has no IPv6")
        with monitored_backup(tmp_path, JOBS_BACKUP_METRICS_HOST="::1") as (_, url):
            assert url.startswith("http://[::1]:")
            assert get(f"{url}/healthz")[0] == 200

    def test_after_the_block_nobody_listens(self, tmp_path: Path) -> None:
        with monitored_backup(tmp_path) as (_, url):
            pass
        with pytest.raises(OSError, match="refused"):
            get(f"{url}/healthz")

    def test_without_settings_nothing_is_opened(self, tmp_path: Path) -> None:
        before = threading.active_count()
        with (
            Backup.from_env(file_environment(tmp_path), archive=False) as backup,
            monitored(backup, session_of(backup).settings) as url,
        ):
            assert (url, threading.active_count()) == ("", before + 1)

    def test_without_the_extra_health_is_reported_and_metrics_say_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in list(sys.modules):
            if name.split(".")[0] == "prometheus_client" or name == "jobs_backup.monitoring.metrics":
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "prometheus_client", None)
        monkeypatch.delattr("jobs_backup.monitoring.metrics", raising=False)
        with monitored_backup(tmp_path) as (backup, url):
            status, _, body = get(f"{url}/metrics")
            assert (status, body) == (
                404,
                f"metrics need prometheus-client: {how_to_install('jobs-backup', extra='metrics')}\n",
            )
            assert get(f"{url}/healthz")[0] == get(f"{url}/readyz")[0] == 200
            with pytest.raises(ConfigurationError):
                metrics_page(backup, "")


class TestBehind:
    def behind(self, directory: Path, **variables: str) -> str:
        """Return the reason in `status --json`; the text form agrees with it, both with exit code 0."""
        environment = {"JOBS_BACKUP_SPOOL_DIR": str(directory), **variables}
        code, stdout, _ = run("status", "--json", env=environment)
        found: dict[str, Any] = json.loads(stdout)
        shown = run("status", env=environment)[1].splitlines()[0]
        end = f"; behind: {found['behind']}" if found["behind"] else "free on its disk"
        assert (code, re.sub(r"\d+ s", "", shown).endswith(re.sub(r"\d+ s", "", end))) == (0, True), "time goes on between the two"
        return str(found["behind"])

    def test_it_is_not(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        assert self.behind(tmp_path) == ""
        record(spool, [b"{}\n"])
        spool.seal()
        assert self.behind(tmp_path) == ""
        spool.close()

    def test_a_pause_and_a_failure_while_something_waits(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        error = PermissionDenied("no\nright", action="s3:PutObject", resource="r")
        spool.pause(error, seconds=60)
        assert self.behind(tmp_path) == "", "nothing waits"
        record(spool, [b"{}\n"])
        assert self.behind(tmp_path) == "uploads to s3://bucket are paused: no right"
        spool.pause(error, seconds=-60)
        assert self.behind(tmp_path) == "uploads to s3://bucket fail: no right"
        spool.seal()
        spool.stored(claim(spool))
        assert self.behind(tmp_path) == ""
        spool.close()

    def test_what_waits_for_too_long(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        record(spool, [b"{}\n"])
        with tampering(spool._catalog._database) as db:
            db.execute("UPDATE batches SET id=id+1, opened_at=opened_at-300")
        frequent = {"JOBS_BACKUP_UPLOAD_FREQUENCY": "10s"}
        assert self.behind(tmp_path, **frequent) == "", "its events are in the file under the other number"
        with tampering(spool._catalog._database) as db:
            db.execute("UPDATE batches SET id=id-1")
        assert re.fullmatch(r"the oldest event has waited for [3-6]\d\d s, more than 80 s", self.behind(tmp_path, **frequent))
        spool.close()
        sealed = tmp_path / "sealed"
        spool = open_spool(sealed)
        record(spool, [b"{}\n"])
        spool.seal()
        with tampering(spool._catalog._database) as db:
            db.execute("UPDATE batches SET opened_at=opened_at-300")
        assert self.behind(sealed) == ""
        assert self.behind(sealed, JOBS_BACKUP_UPLOAD_FREQUENCY="4m") == ""
        assert re.fullmatch(
            r"the oldest event has waited for [3-6]\d\d s, more than 80 s", self.behind(sealed, JOBS_BACKUP_UPLOAD_FREQUENCY="10s")
        )
        assert self.behind(sealed, JOBS_BACKUP_UPLOAD_FREQUENCY="nonsense") == "", "300 s then"
        spool.close()

    def test_damage(self, tmp_path: Path) -> None:
        spool = open_spool(tmp_path)
        (tmp_path / "quarantine/rotten").write_bytes(b"")
        with tampering(spool._catalog._database) as db:
            db.execute("INSERT INTO damages VALUES ('quarantine/rotten', 1, 'raw', 'w', 'web', 0, 0, 'rotten')")
        assert "quarantined" in self.behind(tmp_path)
        (tmp_path / "quarantine/rotten").unlink()
        assert self.behind(tmp_path) == ""
        spool.close()

    def test_metrics_take_the_frequency_that_is_set(self, tmp_path: Path) -> None:
        environment = file_environment(tmp_path, **FAST_RETRY)
        with Backup.from_env(environment, archive=False) as backup:
            backup.record({}, source_id="web")
            session_of(backup).seal()
            with tampering(engine(session_of(backup).spool)._catalog._database) as db:
                db.execute("UPDATE batches SET opened_at=opened_at-100")
            assert value(parse(metrics_page(backup, "")[0].decode()), "behind") == 0
        with Backup.from_env({**environment, "JOBS_BACKUP_UPLOAD_FREQUENCY": "10s"}, archive=False) as backup:
            assert value(parse(metrics_page(backup, "")[0].decode()), "behind") == 1


def test_settings_of_the_port_are_those_of_the_block(tmp_path: Path) -> None:
    """An application may monitor a Backup with other settings than those it was opened with."""
    with Backup.from_env(file_environment(tmp_path)) as backup:
        settings = msgspec.structs.replace(session_of(backup).settings, metrics_port=0, metrics_file=tmp_path / "m.prom")
        with monitored(backup, settings) as url:
            assert get(f"{url}/metrics")[0] == 200
            assert (tmp_path / "m.prom").exists()
    shutil.rmtree(tmp_path / "spool")
