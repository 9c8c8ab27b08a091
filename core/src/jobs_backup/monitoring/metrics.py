"""Prometheus metrics of a Backup and of its whole spool. Needs `pip install 'jobs-backup[metrics]'`.

An application with its own registry registers a collector there: `REGISTRY.register(Metrics(backup))`.
"""

from __future__ import annotations

import itertools
import math
import platform
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from jobs_backup import __version__
from jobs_backup.backup.backup import Backup, session_of
from jobs_backup.backup.session import Session
from jobs_backup.errors import ConfigurationError, JobsBackupError
from jobs_backup.model import Kind
from jobs_backup.spool.interface import Total
from jobs_backup.spool.status import Limits, Status
from jobs_backup.util.histogram import Histogram
from jobs_backup.util.installing import how_to_install
from jobs_backup.util.logs import logger_of, printable

try:
    from prometheus_client import CollectorRegistry, Metric, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ConfigurationError("metrics need prometheus-client", hint=how_to_install("jobs-backup", extra="metrics")) from error

log: Final = logger_of(__name__)

_FRESH_SECONDS: Final = 1.0
_SHARE: Final = 0.1
"""Maximum share of the time spent reading the spool, however often it is scraped."""

HELP: Final = {
    "build": "Version, Python and provider of this process.",
    "recorded_events": "Events and failures recorded, except in your own transactions (of this process).",
    "recorded_bytes": "Bytes of their lines, before compression (of this process).",
    "rejected_lines": "Input lines rejected (of this process).",
    "acknowledged_events": "Deliveries acknowledged (of this process).",
    "commit_seconds": "Seconds of a group commit: compression, and the wait for the disk (of this process).",
    "attempts": "Attempts to call a hook of the provider: 'ok' or the code of the error (of this process).",
    "attempt_seconds": "Seconds of an attempt, successful or not (of this process).",
    "http_requests": "Requests to 'serve', by path ('other' for unknown ones) and status (of this process).",
    "http_request_seconds": "Seconds until a request was answered, including the time to receive its body (of this process).",
    "fleet_lease_seconds": "Seconds until other processes may replace this one, unless it renews its lease (of this process).",
    "fleet_takeovers": "Dead processes that it has replaced (of this process).",
    "fleet_lost_sessions": "Times another process replaced it, because its lease was over (of this process).",
    "fleet_connections": "Connections to PostgreSQL in its pool, by state: 'idle' or 'used' (of this process).",
    "fleet_max_connections": "Maximum connections in its pool (of this process).",
    "fleet_waiting_threads": "Threads that wait for a connection (of this process).",
    "scrape_errors": "Scrapes without the metrics of the spool, because it could not be read (of this process).",
    "behind": "1 if the backup is behind: see 'jobs-backup status' (of the spool).",
    "spool_events": "Waiting events, in open and in sealed batches (of the spool).",
    "spool_objects": "Objects waiting to be uploaded (of the spool).",
    "spool_bytes": "Bytes of waiting events, as stored in the spool (of the spool).",
    "spool_max_bytes": "JOBS_BACKUP_SPOOL_MAX_BYTES, if set: recording stops there (of the spool).",
    "spool_oldest_seconds": "Seconds since the oldest waiting event was recorded, 0 if none waits (of the spool).",
    "spool_free_bytes": "Free bytes on the disk (of the spool).",
    "spool_min_free_bytes": "JOBS_BACKUP_SPOOL_MIN_FREE: recording stops there (of the spool).",
    "spool_processes": "Running processes that have it open, by whether they upload or only record (of the spool).",
    "fleet_expired_leases": "Processes whose lease is over, and that no other process has replaced yet (of the spool).",
    "fleet_segments": "Tables of waiting bytes in PostgreSQL (of the spool).",
    "fleet_segment_bytes": "Bytes of these tables on the disk of the server (of the spool).",
    "fleet_oldest_segment_seconds": "Age of the oldest table that takes no new batches, 0 if there is none (of the spool).",
    "fleet_xmin_age_transactions": "Transactions since the oldest snapshot in use, which vacuum respects (of the spool).",
    "sealed_events": "Events of sealed batches, since the spool was created (of the spool).",
    "sealed_bytes": "Bytes of their objects (of the spool).",
    "sealed_raw_bytes": "Bytes of their lines, before compression (of the spool).",
    "stored_objects": "Objects uploaded (of the spool).",
    "stored_events": "Events in uploaded objects (of the spool).",
    "stored_bytes": "Bytes of uploaded objects (of the spool).",
    "skipped_objects": "Objects not uploaded, because all of their events were already delivered (of the spool).",
    "deleted_objects": "Objects deleted after all of their events were delivered (of the spool).",
    "set_aside_objects": "Batches quarantined, whole or in part, because they were damaged on the disk (of the spool).",
    "last_stored_timestamp_seconds": "Time of the last upload of an object, in seconds since 1970, 0 if none (of the spool).",
    "store_paused": "1 while uploads to it are paused, because it refuses or fails (of the spool).",
    "store_failing": "1 if an upload to it failed and none has succeeded since (of the spool).",
    "waiting_deletes": "Objects still to be deleted (of the spool).",
    "open_uploads": "Multipart uploads: those in progress, and those still to be aborted (of the spool).",
    "unreadable_files": "Files of dead processes whose events cannot be uploaded yet (of the spool).",
    "quarantined_files": "Files with damaged events in 'quarantine/', until you remove them (of the spool).",
    "rejected_files": "Files with rejected lines in 'rejects/', until you remove them (of the spool).",
    "rejected_bytes": "Bytes of these files (of the spool).",
}
"""Every metric, without its prefix and its type's suffix."""

_TOTALS: Final = (
    ("sealed_events", "sealed", "events"),
    ("sealed_bytes", "sealed", "size"),
    ("sealed_raw_bytes", "sealed", "raw_bytes"),
    ("stored_objects", "stored", "batches"),
    ("stored_events", "stored", "events"),
    ("stored_bytes", "stored", "size"),
    ("skipped_objects", "skipped", "batches"),
    ("deleted_objects", "deleted", "batches"),
    ("set_aside_objects", "set aside", "batches"),
)
"""(metric, state of batches, column of the table `totals`)."""


class Metrics(Collector):
    """Collects the process's counters, and the state of the spool. Any number of threads may collect.

    Spool metrics are the same from every process on the spool, so do not sum them over processes. The spool is read at most once a
    second, and less often if that is slow. While it cannot be read, its metrics are omitted.
    """

    def __init__(self, backup: Backup | Session) -> None:
        """Collect for a Backup, which may be closed before the last scrape."""
        self._session = session_of(backup)
        self._looking = threading.Lock()
        self._looked_until = 0.0
        self._found: tuple[Status, list[Total]] | None = None
        self._errors = 0

    def describe(self) -> Iterator[Metric]:
        """One name only, so that registering collects nothing."""
        yield _gauge("behind", 0)

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        found = self._look()
        yield from self._of_process()
        if found is not None:
            yield from self._of_spool(*found)

    def expire(self) -> None:
        """Make the next scrape read the spool, however recently it was read."""
        with self._looking:
            self._looked_until = 0.0

    def _look(self) -> tuple[Status, list[Total]] | None:
        settings = self._session.settings
        with self._looking:
            begun = time.monotonic()
            if begun >= self._looked_until:
                try:
                    self._found = self._session.spool.watch(Limits.of(settings), settings.rejects_path)
                except (JobsBackupError, OSError) as failure:
                    self._found = None
                    self._errors += 1
                    log.warning("cannot read the spool for a scrape: %s", failure)
                took = time.monotonic() - begun
                self._looked_until = begun + max(_FRESH_SECONDS, took / _SHARE)
            return self._found

    def _of_process(self) -> Iterator[Metric]:
        session, recorded, store = self._session, self._session.spool.recorded, self._session.store
        build = {"version": __version__, "python": platform.python_version(), "provider": session.settings.storage_provider.upper()}
        yield InfoMetricFamily("jobs_backup_build", HELP["build"], value=build)
        yield _by_kind("recorded_events", recorded.events)
        yield _by_kind("recorded_bytes", recorded.bytes)
        yield _counter("rejected_lines", recorded.rejected)
        yield _counter("acknowledged_events", session.spool.acknowledged)
        commits = HistogramMetricFamily("jobs_backup_commit_seconds", HELP["commit_seconds"])
        commits.add_metric([], *_buckets(recorded.commit_seconds))
        yield commits
        attempts = CounterMetricFamily("jobs_backup_attempts", HELP["attempts"], labels=["hook", "outcome"])
        for (hook, outcome), count in sorted(store.attempts.copy().items()):
            attempts.add_metric([hook, outcome], count)
        yield attempts
        seconds = HistogramMetricFamily("jobs_backup_attempt_seconds", HELP["attempt_seconds"], labels=["hook"])
        for hook, histogram in sorted(store.attempt_seconds.copy().items()):
            seconds.add_metric([hook], *_buckets(histogram))
        yield seconds
        if (member := session.spool.member) is not None:
            yield _gauge("fleet_lease_seconds", member.lease)
            yield _counter("fleet_takeovers", member.takeovers)
            yield _counter("fleet_lost_sessions", member.lost_sessions)
            connections = {"idle": member.idle, "used": member.connections - member.idle}
            yield _gauges("fleet_connections", "state", connections)
            yield _gauge("fleet_max_connections", member.max_connections)
            yield _gauge("fleet_waiting_threads", member.waiting)
        yield _counter("scrape_errors", self._errors)

    def _of_spool(self, status: Status, totals: list[Total]) -> Iterator[Metric]:
        settings = self._session.settings
        streams = [stream for one in status.stores for stream in one.streams]
        open_events = sum(stream.open_events for stream in streams)
        yield _gauge("behind", bool(status.behind))
        yield _gauges("spool_events", "state", {"open": open_events, "sealed": status.events - open_events})
        yield _gauge("spool_objects", sum(stream.objects for stream in streams))
        yield _gauge("spool_bytes", status.bytes)
        if settings.spool_max_bytes is not None:
            yield _gauge("spool_max_bytes", settings.spool_max_bytes)
        yield _gauge("spool_oldest_seconds", status.oldest)
        if status.free is not None:
            yield _gauge("spool_free_bytes", status.free)
            yield _gauge("spool_min_free_bytes", settings.spool_min_free)
        alive = [one.sends for one in status.processes if one.alive]
        yield _gauges("spool_processes", "role", {"sends": alive.count(True), "records": alive.count(False)})
        if (database := status.database) is not None:
            yield _gauge("fleet_expired_leases", sum(not one.alive for one in status.processes))
            yield _gauge("fleet_segments", database.segments)
            yield _gauge("fleet_segment_bytes", database.segment_bytes)
            yield _gauge("fleet_oldest_segment_seconds", database.oldest_segment)
            yield _gauge("fleet_xmin_age_transactions", database.xmin_age)
        for metric, state, column in _TOTALS:
            yield _by_kind(metric, {one.kind: getattr(one, column) for one in totals if one.state == state})
        yield _gauge("last_stored_timestamp_seconds", max(one.stored_at for one in totals if one.state == "stored"))
        # The process's own store is always included, even without a status.
        stores = dict.fromkeys([self._session.location]) | {one.location: one for one in status.stores}
        paused = {location: one is not None and one.paused > 0 for location, one in stores.items()}
        failing = {location: one is not None and bool(one.error) for location, one in stores.items()}
        deletes = {location: 0 if one is None else one.deletes for location, one in stores.items()}
        yield _gauges("store_paused", "store", paused)
        yield _gauges("store_failing", "store", failing)
        yield _gauges("waiting_deletes", "store", deletes)
        uploads = {
            "sending": sum(one.uploads for one in status.stores),
            "to_abort": sum(one.aborts for one in status.stores),
        }
        yield _gauges("open_uploads", "state", uploads)
        yield _gauge("unreadable_files", len(status.unreadable))
        yield _gauge("quarantined_files", len({one.file for one in status.quarantine}))
        yield _gauge("rejected_files", len(status.rejected))
        yield _gauge("rejected_bytes", sum(one.bytes for one in status.rejected))


class RequestMetrics(Collector):
    """Collects the requests to `serve`."""

    def __init__(self, answered: Counter[tuple[str, int]], seconds: dict[str, Histogram]) -> None:
        """Collect from `answered`, (path, status) -> count, and `seconds`, path -> time until the answer was sent."""
        self._answered = answered
        self._seconds = seconds

    def describe(self) -> Iterator[Metric]:
        """One name only, so that registering collects nothing."""
        yield _counter("http_requests", 0)

    def collect(self) -> Iterator[Metric]:
        """Both metrics."""
        requests = CounterMetricFamily("jobs_backup_http_requests", HELP["http_requests"], labels=["path", "status"])
        for (path, status), count in sorted(self._answered.copy().items()):
            requests.add_metric([path, str(status)], count)
        yield requests
        family = HistogramMetricFamily("jobs_backup_http_request_seconds", HELP["http_request_seconds"], labels=["path"])
        for path, seconds in sorted(self._seconds.copy().items()):
            family.add_metric([path], *_buckets(seconds))
        yield family


def registry(backup: Backup | Session, collector: Metrics | None = None) -> CollectorRegistry:
    """A registry with the metrics of this Backup, and with `process_*`: memory, CPU time, files, and start time.

    `collector` reuses an existing collector.
    """
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    made.register(collector or Metrics(backup))
    return made


def _gauge(name: str, value: float) -> Metric:
    return GaugeMetricFamily(f"jobs_backup_{name}", HELP[name], value=value)


def _gauges(name: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"jobs_backup_{name}", HELP[name], labels=[label])
    for text, value in values.items():
        family.add_metric([printable(text)], value)
    return family


def _counter(name: str, value: float) -> Metric:
    return CounterMetricFamily(f"jobs_backup_{name}", HELP[name], value=value)


def _by_kind(name: str, values: Mapping[str, float]) -> Metric:
    """A counter with both kinds always present: otherwise its first increase would go unseen."""
    family = CounterMetricFamily(f"jobs_backup_{name}", HELP[name], labels=["kind"])
    for kind in Kind:
        family.add_metric([kind.value], values.get(kind, 0))
    return family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Cumulative (bound, count) pairs and the sum, as prometheus_client takes them."""
    bounds = [*histogram.bounds, math.inf]
    counts = itertools.accumulate(histogram.counts.copy())
    below: list[tuple[str, float]] = [
        ("+Inf" if bound == math.inf else str(bound), count) for bound, count in zip(bounds, counts, strict=True)
    ]
    return below, histogram.sum
