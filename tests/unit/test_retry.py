"""Retries: how often, how long, when not, and what they report."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs_backup.errors import (
    AlreadyExists,
    ContractViolation,
    JobsBackupError,
    PermissionDenied,
    Throttled,
    Unavailable,
)
from jobs_backup.store.retry import Retry, RetryPolicy

POLICY = RetryPolicy(attempts=4, initial_backoff=1.0, max_wait=8.0, deadline=1000.0)


def failing(*errors: Exception) -> Callable[[], str]:
    """A function that raises these errors, one per call, and then succeeds."""
    left = list(errors)

    def function() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return function


def always(error: Callable[[], Exception]) -> Callable[[], str]:
    def function() -> str:
        raise error()

    return function


class Calls:
    """A Retry that does not sleep. It records its delays, and the report of each attempt."""

    def __init__(self, policy: RetryPolicy = POLICY, *, stop: threading.Event | None = None, seed: int = 1) -> None:
        self.waits: list[float] = []
        self.reported: list[Exception | None] = []
        self.retry = Retry(policy, stop=stop, sleep=self.waits.append, rng=random.Random(seed))

    def __call__(self, function: Callable[[], Any]) -> Any:
        return self.retry.call("FILE write k", function, lambda error, _: self.reported.append(error))


class Largest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


# How often


def test_a_success_is_one_attempt_without_a_wait() -> None:
    calls = Calls()
    assert calls(failing()) == "done"
    assert (calls.waits, calls.reported) == ([], [None])


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_it_tries_again_until_it_succeeds_and_not_once_more(failures: int) -> None:
    errors = [Unavailable(str(number)) for number in range(failures)]
    calls = Calls()
    assert calls(failing(*errors)) == "done"
    assert len(calls.waits) == failures
    assert calls.reported == [*errors, None]


def test_after_the_last_attempt_its_error_is_raised() -> None:
    errors = [Unavailable(str(number)) for number in range(9)]
    calls = Calls()
    with pytest.raises(Unavailable) as caught:
        calls(failing(*errors))
    assert caught.value is errors[3]
    assert caught.value.attempts == 4
    assert calls.reported == errors[:4]
    assert len(calls.waits) == 3
    assert re.search(r"\(4 attempts in \d+\.\d s\)", str(caught.value))


def test_one_attempt_means_no_retry() -> None:
    calls = Calls(RetryPolicy(attempts=1))
    with pytest.raises(Unavailable):
        calls(always(lambda: Unavailable("no")))
    assert calls.waits == []


@pytest.mark.parametrize(
    "error", [PermissionDenied("no", action="a", resource="r"), AlreadyExists("there"), ContractViolation("None")]
)
def test_permanent_errors_are_not_tried_again(error: JobsBackupError) -> None:
    calls = Calls()
    with pytest.raises(type(error)) as caught:
        calls(failing(error))
    assert caught.value is error
    assert (caught.value.attempts, calls.waits, calls.reported) == (1, [], [error])


def test_a_permanent_error_ends_the_retries() -> None:
    denied = PermissionDenied("no", action="a", resource="r")
    calls = Calls()
    with pytest.raises(PermissionDenied):
        calls(failing(Unavailable("1"), denied))
    assert denied.attempts == 2


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_not_tried_again(interruption: type[BaseException]) -> None:
    began = iter([Unavailable("first"), interruption()])

    def function() -> None:
        raise next(began)

    calls = Calls()
    with pytest.raises(interruption):
        calls(function)
    assert len(calls.waits) == 1


def test_errors_that_are_none_of_ours_are_not_tried_again() -> None:
    calls = Calls()
    with pytest.raises(ZeroDivisionError):
        calls(failing(ZeroDivisionError()))
    assert calls.waits == []


# How long


def test_waits_are_full_jitter_below_a_bound_that_doubles() -> None:
    bounds = [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    seen: list[list[float]] = [[] for _ in bounds]
    for seed in range(300):
        calls = Calls(RetryPolicy(attempts=7, initial_backoff=1.0, max_wait=8.0, deadline=1000.0), seed=seed)
        with pytest.raises(Unavailable):
            calls(always(lambda: Unavailable("no")))
        for waits, wait in zip(seen, calls.waits, strict=True):
            waits.append(wait)
    for waits, bound in zip(seen, bounds, strict=True):
        # Full jitter: uses the whole range evenly, not a band around the bound.
        assert 0 <= min(waits) < bound * 0.05
        assert bound * 0.95 < max(waits) <= bound
        assert bound * 0.4 < sum(waits) / len(waits) < bound * 0.6


@given(st.lists(st.floats(0, 100) | st.none(), min_size=1, max_size=8), st.integers(0, 2**32))
def test_a_wait_is_never_shorter_than_the_store_asks_for(asked: list[float | None], seed: int) -> None:
    calls = Calls(RetryPolicy(attempts=9, initial_backoff=1.0, max_wait=8.0, deadline=10_000.0), seed=seed)
    assert calls(failing(*(Throttled("slow down", retry_after=seconds) for seconds in asked))) == "done"
    for wait, seconds in zip(calls.waits, asked, strict=True):
        assert (seconds or 0) <= wait <= max(8.0, seconds or 0)


def test_many_retries_do_not_overflow_the_wait() -> None:
    calls = Calls(RetryPolicy(attempts=2000, initial_backoff=1.0, max_wait=8.0, deadline=1e9))
    with pytest.raises(Unavailable) as caught:
        calls(always(lambda: Unavailable("no")))
    assert caught.value.attempts == 2000
    assert max(calls.waits) <= 8.0


def test_no_wait_begins_that_would_end_after_the_deadline() -> None:
    waits: list[float] = []
    retry = Retry(RetryPolicy(attempts=9, deadline=6.5), sleep=waits.append)
    patience = failing(Throttled("wait", retry_after=6.4), Throttled("wait longer", retry_after=6.6))
    with pytest.raises(Throttled, match="wait longer") as caught:
        retry.call("w", patience, lambda *_: None)
    assert waits == [6.4]
    assert caught.value.attempts == 2


def test_the_deadline_counts_the_time_that_attempts_take() -> None:
    def slow() -> None:
        time.sleep(0.06)
        raise Unavailable("no")

    retry = Retry(RetryPolicy(attempts=1000, initial_backoff=0.001, max_wait=0.001, deadline=0.3))
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        retry.call("w", slow, lambda *_: None)
    assert 1 <= caught.value.attempts <= 6
    assert 0.2 < caught.value.elapsed <= time.monotonic() - began


# Shutdown


def test_shutdown_ends_a_wait_at_once_with_the_last_error() -> None:
    stop = threading.Event()
    last = Unavailable("the last error", retry_after=60.0)
    attempts: list[Exception | None] = []

    def attempted(error: Exception | None, seconds: float) -> None:
        attempts.append(error)
        threading.Timer(0.1, stop.set).start()

    with pytest.raises(Unavailable) as caught:
        Retry(POLICY, stop=stop).call("w", failing(last), attempted)
    assert caught.value is last
    assert attempts == [last]
    assert caught.value.attempts == 1


def test_during_shutdown_a_call_is_tried_once() -> None:
    stop = threading.Event()
    stop.set()
    assert Calls(stop=stop)(failing()) == "done"
    calls = Calls(stop=stop)
    with pytest.raises(Unavailable) as caught:
        calls(always(lambda: Unavailable("no")))
    assert (calls.waits, caught.value.attempts) == ([], 1)


# Many calls at once


def test_calls_in_many_threads_do_not_disturb_each_other() -> None:
    retry = Retry(RetryPolicy(attempts=6, initial_backoff=0.001, max_wait=0.002, deadline=60))
    attempts: dict[int, int] = {}
    wrong: list[str] = []

    def work(number: int) -> None:
        own = str(number)
        try:
            retry.call(own, failing(*(Unavailable(own) for _ in range(number % 7))), lambda *_: None)
        except Unavailable as error:
            attempts[number] = error.attempts
            wrong.extend([error.message] if error.message != own else [])
        else:
            attempts[number] = 0

    threads = [threading.Thread(target=work, args=(number,)) for number in range(70)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert attempts == {number: 6 if number % 7 == 6 else 0 for number in range(70)}
    assert not wrong


def test_a_call_within_a_call_keeps_a_count_of_its_own() -> None:
    calls = Calls()
    inner: list[int] = []
    outer = iter([Unavailable("outer 1"), Unavailable("outer 2"), None])

    def function() -> str:
        with pytest.raises(Unavailable) as caught:
            calls(always(lambda: Unavailable("inner")))
        inner.append(caught.value.attempts)
        if error := next(outer):
            raise error
        return "done"

    assert calls(function) == "done"
    assert inner == [4, 4, 4]


# Reports


def test_each_failed_attempt_is_logged_with_what_when_and_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="jobs_backup"):
        Calls()(failing(Unavailable("no answer"), Throttled("slow down", retry_after=12.0)))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    first, second = caplog.messages
    assert first.startswith("FILE write k: attempt 1 failed, next in 0.")
    assert first.endswith(" s: no answer")
    assert second == "FILE write k: attempt 2 failed, next in 12.0 s: slow down"


def test_the_time_spent_is_in_the_final_error() -> None:
    retry = Retry(RetryPolicy(attempts=3, initial_backoff=0.1, max_wait=0.1, deadline=60), rng=Largest())
    with pytest.raises(Unavailable) as caught:
        retry.call("w", always(lambda: Unavailable("no")), lambda *_: None)
    assert caught.value.elapsed >= 0.2
    assert re.match(r"no \(3 attempts in \d+", str(caught.value))
