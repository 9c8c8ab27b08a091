"""How to install what is missing. Nothing of ours is published yet: whoever takes one of the names first could offer anything."""

from __future__ import annotations

from typing import Final

_IN_A_CLONE: Final = {
    "jobs-backup": "core",
    "jobs-backup-s3": "plugins/s3",
    "jobs-backup-gcs": "plugins/gcs",
    "jobs-backup-azure-blob": "contrib/azure_blob",
    "jobs-backup-encryption": "contrib/encryption",
    "jobs-backup-opentelemetry": "contrib/opentelemetry",
}
"""Distribution -> its directory."""


def how_to_install(distribution: str, option: str = "", *, extra: str = "") -> str:
    """The hint: a command of pip, for ours in a clone."""
    command = f"pip install {option}".strip()
    name = f"{distribution}[{extra}]" if extra else distribution
    if (directory := _IN_A_CLONE.get(distribution)) is None:
        return f"{command} '{name}'" if extra else f"{command} {name}"
    path = f"'./{directory}[{extra}]'" if extra else f"./{directory}"
    return f"{command} {path}, in a clone of jobs-backup (until {distribution} is published)"
