"""Which status an error gets. A client that retries on 503 must not record anything twice by it."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")

from jobs_backup.errors import BackupClosed, JobsBackupError, SpoolCorrupt, SpoolError, SpoolFull, SpoolUncertain
from jobs_backup.inputs.http.responses import of_error


@pytest.mark.parametrize("error", [SpoolFull("no room"), SpoolError("no disk"), SpoolCorrupt("damaged"), BackupClosed("closed")])
def test_nothing_was_recorded(error: JobsBackupError) -> None:
    answer = of_error(error, "an id")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_nobody_knows_whether_it_was_recorded() -> None:
    answer = of_error(SpoolUncertain("the answer was lost"), "an id")
    assert answer.status_code == 504
    assert "retry-after" not in answer.headers
