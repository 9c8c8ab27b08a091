"""Back up every event of a pipeline, and every delivery failure, into your own bucket.

Start with `Backup`. `jobs_backup.hookspecs` is the contract for storage providers.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs_backup.backup.async_backup import AsyncBackup
    from jobs_backup.backup.backup import Backup
    from jobs_backup.backup.events import Event, Job, Jobs
    from jobs_backup.errors import (
        BackupClosed,
        ConfigurationError,
        InvalidEvent,
        JobsBackupError,
        NoArchiver,
        ProviderNotFound,
        SpoolCorrupt,
        SpoolError,
        SpoolFull,
        SpoolUncertain,
        StorageError,
        StorePaused,
        UnknownJob,
    )
    from jobs_backup.settings.core import CoreSettings

__version__ = "0.1.0"  # not read from the distribution's metadata, which would take longer than all of `--version`

__all__ = [
    "AsyncBackup",
    "Backup",
    "BackupClosed",
    "ConfigurationError",
    "CoreSettings",
    "Event",
    "InvalidEvent",
    "Job",
    "Jobs",
    "JobsBackupError",
    "NoArchiver",
    "ProviderNotFound",
    "SpoolCorrupt",
    "SpoolError",
    "SpoolFull",
    "SpoolUncertain",
    "StorageError",
    "StorePaused",
    "UnknownJob",
]

_MODULES = {
    "AsyncBackup": "backup.async_backup",
    "Backup": "backup.backup",
    "CoreSettings": "settings.core",
    "Event": "backup.events",
    "Job": "backup.events",
    "Jobs": "backup.events",
}  # all other names are errors


def why_not_here() -> str:
    """Reason why jobs-backup cannot run on this platform; empty if it can."""
    if importlib.util.find_spec("fcntl") is not None:
        return ""
    return "only Linux and macOS are supported: on Windows, use WSL 2 or a container"


def __getattr__(name: str) -> object:
    # Import a name on first use: a provider needs only the contract, and `jobs-backup --version` needs nothing.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if reason := why_not_here():
        raise ImportError(f"jobs_backup cannot be used here: {reason}")
    module = _MODULES.get(name, "errors")
    value: object = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
