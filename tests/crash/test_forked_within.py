"""A fork at any call or return inside `record()`, as by a signal handler of a supervisor, or by a collected object.

The parent's call returns. The child either records on the same spool, or gets an error that says to fork at another time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from buckets import file_environment
from deployments.counting import Outcome, Receipts, outcome
from stepping import act_within

from jobs_backup import Backup, SpoolError

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


def forked(call: Callable[[], object], place: int, child: Callable[[], None]) -> bool:
    """Call, and fork at the n-th call or return inside. Returns whether there were as many."""
    return act_within(call, place, lambda: fork(child))


def fork(child: Callable[[], None]) -> None:
    """Run a child that is killed at its end, and wait for it."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            child()
            code = 0
        except SpoolError as error:
            code = 0 if "fork" in error.hint else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.slow
def test_a_fork_at_any_place_blocks_and_loses_nothing(tmp_path: Path) -> None:
    environment = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="7")
    receipts = Receipts(tmp_path)
    place = 0

    def record(backup: Backup, name: str) -> None:
        backup.record({"messageId": name}, source_id="web")
        receipts.add(name)

    def child() -> None:
        record(Backup.from_env(environment, archive=False), f"child-{place}")

    with Backup.from_env(environment, archive=False) as backup:
        fork(lambda: None)  # the first call opens what a fork has closed
        while forked(lambda: record(backup, f"parent-{place}"), place, child):  # noqa: B023 - called at once
            place += 7
            fork(lambda: None)
    assert place > 70
    assert outcome(tmp_path, environment) == Outcome()
