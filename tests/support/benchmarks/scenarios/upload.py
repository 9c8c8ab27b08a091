"""Uploading alone: a large object, and many of the usual size, from files."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.runner import Bench, Target, Values, target

NAME: Final = "upload"
_WAYS: Final = ("jobs-backup", "boto3", "obstore", "s3fs")
_CASES: Final = {"1 object of 512 MiB": (1, 512), "100 objects of 8 MiB": (100, 8)}
_BLOCK: Final = 1 << 20


def run(bench: Bench) -> None:
    for store in ("http", "TLS"):
        with target(store, bench) as to, bench.work() as directory:
            for case, (objects, size) in _CASES.items():
                mebibytes = bench.count(size)
                path = directory / f"{size}"
                with path.open("wb") as file:
                    file.writelines(os.urandom(_BLOCK) for _ in range(mebibytes))
                contenders = {way: partial(_measure, bench, to, path, bench.count(objects), way) for way in _WAYS}
                bench.interleaved(NAME, f"{store}, {case}", contenders)


def _measure(bench: Bench, to: Target, path: Path, objects: int, way: str) -> Values:
    values = to.measured(bench, "uploading", corpus=str(path), events=objects, variant=way)
    return values | {"bytes": objects * path.stat().st_size}
