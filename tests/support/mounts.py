"""Small file systems, if this user may mount them."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_file_system(directory: Path, options: str) -> Generator[Path]:
    """Mount a tmpfs with these options for the block; skip the test if not permitted."""
    directory.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no permission to mount a file system: {made.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
