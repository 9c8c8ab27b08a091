"""Paths in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SUPPORT: Final = Path(__file__).parent
"""Shared by the tests: the only directory on their PYTHONPATH."""
TESTS: Final = SUPPORT.parent
ROOT: Final = TESTS.parent
