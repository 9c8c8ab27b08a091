"""Startup time of commands that do little, in units of `python -c pass`; and the SDKs that they import (they must not)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.contenders.common import REGION
from benchmarks.runner import Bench, Failed, Values

NAME: Final = "startup"
CASE: Final = "start and end of a process"
SDKS: Final = "modules of SDKs that are imported"
PYTHON: Final = "python -c pass"
COMMANDS: Final = ("--version", "--help", "status", "providers")
IMPORT: Final = "import jobs_backup"
_MORE_ROUNDS: Final = 5
"""Factor for the number of starts: each takes so little time that it is measured more often than the rest."""
_SDKS: Final = ("boto3", "botocore", "s3transfer", "google.cloud", "google.auth", "requests", "urllib3")
_RECORD: Final = (
    "from jobs_backup import Backup\nwith Backup.from_env(archive=False) as backup: backup.record(b'{}', source_id='web')"
)
"""Creates a spool for `status`."""
_IMPORTED: Final = f"print(sum(name.startswith({_SDKS!r}) for name in sys.modules))"


def command(arguments: str) -> str:
    return f"jobs-backup {arguments}"


def run(bench: Bench) -> None:
    with bench.work() as directory:
        environment = {
            **os.environ,
            "JOBS_BACKUP_STORAGE_PROVIDER": "S3",
            "JOBS_BACKUP_BUCKET": "bucket",
            "JOBS_BACKUP_SPOOL_DIR": str(directory / "spool"),
            "AWS_REGION": REGION,
        }
        subprocess.run([sys.executable, "-c", _RECORD], env=environment, check=True)
        script = str(Path(sys.executable).with_name("jobs-backup"))
        contenders = {PYTHON: partial(_measure, [sys.executable, "-c", "pass"], environment)}
        contenders[IMPORT] = partial(_measure, [sys.executable, "-c", IMPORT], environment)
        bench.once(NAME, SDKS, IMPORT, 1, partial(_imported, IMPORT, environment))
        for one in COMMANDS:
            code = f"sys.argv = ['jobs-backup', {one!r}]\nfrom jobs_backup.cli import main\ntry: main()\nexcept SystemExit: pass"
            contenders[command(one)] = partial(_measure, [script, one], environment)
            bench.once(NAME, SDKS, command(one), 1, partial(_imported, code, environment))
        for number in range(1, bench.rounds * _MORE_ROUNDS + 1):
            for name, measure in contenders.items():
                bench.once(NAME, CASE, name, number, measure)


def _measure(arguments: list[str], environment: dict[str, str]) -> Values:
    began = time.perf_counter()
    done = subprocess.run(arguments, env=environment, capture_output=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 1):
        raise Failed(done.stderr.decode().strip()[-300:])
    return {"seconds": seconds}


def _imported(code: str, environment: dict[str, str]) -> Values:
    look = [sys.executable, "-c", f"import sys\n{code}\n{_IMPORTED}"]
    return {"sdk_modules": int(subprocess.run(look, env=environment, capture_output=True, check=True).stdout.split()[-1])}
