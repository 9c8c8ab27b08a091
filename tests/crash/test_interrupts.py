"""An interrupt at any call or return of a public method leaves no lock held and no transaction open.

Like Ctrl-C, or an alarm by which RQ and Celery limit a task's time: the exception is raised in the Python function that is
running at the moment, and its handler keeps it alive with all its frames.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from buckets import events, file_environment
from stepping import act_within

from jobs_backup import Backup

Call = Callable[[], object]


class Interrupt(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


def interrupt() -> None:
    raise Interrupt


def interrupted(call: Call, place: int) -> BaseException | None:
    """The result of a call that is interrupted at its n-th call or return; None if it has fewer."""
    try:
        act_within(call, place, interrupt)
    except BaseException as error:  # noqa: BLE001 - kept alive
        return error
    return None


def in_thread(call: Call) -> BaseException | None:
    """The error of a call in another thread, which must not wait forever."""
    raised: list[BaseException | None] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - returned
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(120)
    return raised[0] if raised else TimeoutError("it waits for ever")


CALLS: dict[str, tuple[int, Callable[[Backup, list[int]], Call]]] = {
    "record": (1, lambda backup, jobs: lambda: backup.record({"a": 1}, source_id="web")),
    "record_many": (3, lambda backup, jobs: lambda: backup.record_many([{"a": 1}] * 3, source_id="web")),
    "delivered": (3, lambda backup, jobs: lambda: backup.delivered(jobs)),
    "failed": (5, lambda backup, jobs: lambda: backup.failed(jobs[0], payload={}, error="no")),
    "flush": (61, lambda backup, jobs: lambda: backup.flush(120)),
}


def places(step: int) -> Iterator[int]:
    return iter(range(0, 1_000_000, step))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # an interrupt within a weak reference's callback
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_leaves_nothing_held(tmp_path: Path, name: str) -> None:
    step, make = CALLS[name]
    kept: list[BaseException] = []
    recorded: set[int] = set()
    with Backup.from_env(file_environment(tmp_path)) as backup:
        call = make(backup, [backup.record({"n": number}, source_id="web") for number in range(3)])
        for place in places(step):
            error = interrupted(call, place)
            assert in_thread(lambda: backup.record({"other": 1}, source_id="other")) is None, (place, error)
            recorded.add(backup.record({"n": "after", "place": place}, source_id="web"))
            if error is None:
                break
            kept.append(error)
    assert len(kept) > 5
    assert any(isinstance(error, Interrupt) for error in kept)
    found = [event["payload"]["place"] for event in events(tmp_path) if event["payload"].get("n") == "after"]
    assert sorted(found) == [place for place, _ in zip(places(step), recorded, strict=False)]
