"""Draw docs/pictures/monitoring.svg: the metrics while the store refuses requests for a minute.

    PYTHONPATH=tests/support python tests/support/benchmarks/plot_outage.py docs/pictures/monitoring.svg

Needs `jobs-backup[metrics]` and matplotlib. Takes two and a half minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

import matplotlib as mpl
import matplotlib.pyplot as plt
from buckets import file_environment, realistic
from scrapes import Samples, get, parse

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.monitoring.health import monitored

mpl.use("svg")
SECONDS: Final = 150
OUTAGE: Final = (30, 90)
EVENTS_A_SECOND: Final = 2000
SETTINGS: Final = {
    "JOBS_BACKUP_UPLOAD_FREQUENCY": "5s",
    "JOBS_BACKUP_RETRY_ATTEMPTS": "3",
    "JOBS_BACKUP_RETRY_MAX_WAIT": "1s",
    "JOBS_BACKUP_METRICS_PORT": "0",
}


def record(backup: Backup, end: threading.Event) -> None:
    """Record about `EVENTS_A_SECOND` events per second, in commits of 100."""
    payloads = realistic(1000)
    begun, done = time.monotonic(), 0
    while not end.is_set():
        if done < (time.monotonic() - begun) * EVENTS_A_SECOND:
            backup.record_many(payloads[done % 1000 : done % 1000 + 100], source_id="web")
            done += 100
        else:
            time.sleep(0.005)


def watch(directory: Path) -> list[tuple[float, Samples]]:
    """(seconds, metrics scraped then), each second. The store is a directory that is missing for a minute."""
    found: list[tuple[float, Samples]] = []
    bucket, away, end = directory / "bucket", directory / "away", threading.Event()
    with Backup.from_env(file_environment(directory, **SETTINGS)) as backup, monitored(backup, session_of(backup).settings) as url:
        recorder = threading.Thread(target=record, args=(backup, end))
        recorder.start()
        begun = time.monotonic()
        for second in range(SECONDS):
            if second == OUTAGE[0]:
                bucket.rename(away)
            elif second == OUTAGE[1]:
                away.rename(bucket)
            time.sleep(max(0.0, begun + second - time.monotonic()))
            found.append((time.monotonic() - begun, parse(get(f"{url}/metrics")[2])))
        end.set()
        recorder.join()
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all labels that are not given."""
    return sum(one for (its_name, its), one in samples.items() if its_name == name and its >= set(labels.items()))


def draw(found: list[tuple[float, Samples]], path: Path) -> None:
    """Draw four plots, one below the other."""
    times = [at for at, _ in found]

    def gauge(name: str, **labels: str) -> list[float]:
        return [value(samples, name, **labels) for _, samples in found]

    def rate(name: str, **labels: str) -> list[float]:
        counts = gauge(name, **labels)
        spans = [(max(0, n - 5), n) for n in range(len(found))]
        return [(counts[b] - counts[a]) / (times[b] - times[a]) if b > a else 0.0 for a, b in spans]

    plt.rcParams.update({"font.size": 8, "svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "monitoring"})
    figure, axes = plt.subplots(4, 1, figsize=(7.5, 7), sharex=True, layout="constrained")
    axes[0].plot(times, rate("recorded_events_total"), label="recorded")
    axes[0].plot(times, rate("stored_events_total"), label="stored")
    axes[0].set_title("events a second (rate over 5 s)", loc="left")
    axes[1].plot(times, gauge("spool_events", state="sealed"), label="sealed")
    axes[1].plot(times, gauge("spool_events", state="open"), label="open")
    axes[1].set_title("jobs_backup_spool_events", loc="left")
    axes[2].plot(times, gauge("spool_oldest_seconds"), color="tab:red")
    axes[2].set_title("jobs_backup_spool_oldest_seconds", loc="left")
    axes[3].step(times, gauge("behind"), label="behind", where="post")
    axes[3].step(times, [one * 0.9 for one in gauge("store_paused")], label="store_paused (x 0.9)", where="post")
    axes[3].set_yticks([0, 1])
    axes[3].set_xlabel("seconds")
    for axis in axes:
        axis.axvspan(*OUTAGE, color="0.9", label="the store refuses")
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper right", frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw what the metrics show of an outage.")
    parser.add_argument("path", type=Path)
    with tempfile.TemporaryDirectory() as directory:
        draw(watch(Path(directory)), parser.parse_args().path)
