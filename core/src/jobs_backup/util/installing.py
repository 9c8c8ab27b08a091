"""How to install what is missing. Nothing of ours is published yet, so anybody could take one of its names and offer anything."""

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
    """A hint with a pip command; for our own distributions, from a clone."""
    command = f"pip install {option}".strip()
    name = f"{distribution}[{extra}]" if extra else distribution
    if (directory := _IN_A_CLONE.get(distribution)) is None:
        return f"{command} '{name}'" if extra else f"{command} {name}"
    path = f"'./{directory}[{extra}]'" if extra else f"./{directory}"
    return f"{command} {path}, in a clone of jobs-backup (until {distribution} is published)"
