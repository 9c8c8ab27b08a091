"""Directories as buckets, and reading events back from any bucket."""

from __future__ import annotations

import functools
import gzip
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs_backup.testing.events import events as generated

FAST_RETRY = {"JOBS_BACKUP_RETRY_ATTEMPTS": "3", "JOBS_BACKUP_RETRY_MAX_WAIT": "50ms", "JOBS_BACKUP_RETRY_DEADLINE": "10s"}


def file_environment(directory: Path, **variables: str) -> dict[str, str]:
    """Variables for a new directory as the bucket, with a spool beside it."""
    bucket = directory / "bucket"
    bucket.mkdir(exist_ok=True)
    return {
        "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
        "JOBS_BACKUP_BUCKET": str(bucket),
        "JOBS_BACKUP_SPOOL_DIR": str(directory / "spool"),
        **variables,
    }


@functools.lru_cache(maxsize=2)
def realistic(count: int, seed: int = 1) -> list[bytes]:
    """Realistic payloads. They take longer to make than to back up, so tests share them."""
    return list(generated(count, seed=seed))


def objects(directory: Path) -> dict[str, bytes]:
    """Key -> bytes of every object in a directory bucket. Objects deleted during the listing are left out."""
    bucket = directory / "bucket"
    found: dict[str, bytes] = {}
    for place, _, names in os.walk(bucket):
        for path in (Path(place, name) for name in names if ".jobs-backup" not in Path(place).parts):
            with suppress(FileNotFoundError):
                found[path.relative_to(bucket).as_posix()] = path.read_bytes()
    return dict(sorted(found.items()))


def lines(contents: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of these objects."""
    for content in contents:
        yield from gzip.decompress(content).splitlines()


def events(directory: Path) -> list[dict[str, Any]]:
    """Every line in a directory bucket, decoded."""
    return [json.loads(line) for line in lines(objects(directory).values())]


def left_over(directory: Path) -> list[str]:
    """Files in the spool besides those of an idle spool."""
    spool = directory / "spool"
    idle = {"catalog.db", "catalog.db-wal", "catalog.db-shm", "ballast", "made"}
    return sorted(path.relative_to(spool).as_posix() for path in spool.rglob("*") if path.is_file() and path.name not in idle)
