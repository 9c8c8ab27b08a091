"""How much to test: the share that `make test` has time for, or a campaign of hours."""

from __future__ import annotations

import os
from typing import Final

CAMPAIGN: Final = os.environ.get("HYPOTHESIS_PROFILE") == "campaign"

ALL: Final = CAMPAIGN or bool(os.environ.get("JOBS_BACKUP_TEST_ALL"))
"""Whether to run every case: `make test-all`."""
