"""Parse scraped metrics."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from jobs_backup import Backup
from jobs_backup.monitoring.metrics import registry

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """(name without prefix, labels) -> value."""
    return {
        (sample.name.removeprefix("jobs_backup_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def scrape(backup: Backup) -> Samples:
    return parse(generate_latest(registry(backup)).decode())


def scrape_file(path: Path) -> Samples:
    return parse(path.read_text())


def get(url: str, accept: str = "*/*") -> tuple[int, str, str]:
    """Status, content type, body."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()
