"""The only retry policy: every hook call goes through `Retry.call`. The only module that uses tenacity."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from tenacity import RetryCallState, Retrying

from jobs_backup.errors import JobsBackupError
from jobs_backup.util.backoff import backoff
from jobs_backup.util.logs import logger_of

T = TypeVar("T")
Attempted = Callable[[Exception | None, float], None]
"""Called after each attempt, with its error (None for success) and its duration in seconds."""
log: Final = logger_of(__name__)


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of retrying.

    Attributes:
        attempts: maximum number of calls, including the first.
        first_wait: seconds; upper bound of the first wait, doubled for each further one.
        max_wait: seconds; the longest wait, unless the store asks for a longer one (`Retry-After`).
        deadline: seconds; no wait begins that would end later.
    """

    attempts: int = 6
    initial_backoff: float = 0.5
    max_wait: float = 30.0
    deadline: float = 120.0


class Retry:
    """Call a function until it succeeds, fails permanently, or reaches the policy's limits.

    Waits are exponential with full jitter (a random part of a bound that doubles), so that many clients do not return at the same
    moment. Only `retryable` errors are retried. `stop` ends a wait, and with it the call: the last error is raised. Safe to use
    from many threads.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        stop: threading.Event | None = None,
        sleep: Callable[[float], None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._policy = policy
        self._stop = stop or threading.Event()
        self._rng = rng or random.Random()  # noqa: S311 - jitter is not a secret
        # Shared by all calls: tenacity keeps state per thread, and creating one costs more than using it.
        self._retrying = Retrying(
            retry=lambda state: getattr(_attempts(state).error, "retryable", False),
            stop=self._is_over,
            wait=self._wait,
            sleep=sleep or self._pause,
            before_sleep=_log_failure,
            reraise=True,
        )

    def call(
        self,
        what: str,
        function: Callable[[], T],
        attempted: Attempted,
        *,
        fields: Mapping[str, object] = MappingProxyType({}),
    ) -> T:
        """Call `function`. `what` names the call in log lines, which have these `fields`: see `logs.FIELDS`.

        Raises:
            JobsBackupError: the last attempt's error, with the number of attempts and the time they took.
        """
        attempts = _Attempts(what, function, attempted, self._stop, fields)
        try:
            return self._retrying(attempts)
        except JobsBackupError as error:
            error.attempts = attempts.count
            error.elapsed = time.monotonic() - attempts.began
            raise

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _wait(self, state: RetryCallState) -> float:
        bound = backoff(state.attempt_number - 1, self._policy.initial_backoff, self._policy.max_wait)
        asked: float | None = getattr(_attempts(state).error, "retry_after", None)
        return max(self._rng.uniform(0, bound), asked or 0.0)

    def _is_over(self, state: RetryCallState) -> bool:
        attempts = _attempts(state)
        return (
            self._stop.is_set()
            or attempts.count >= self._policy.attempts
            or time.monotonic() - attempts.began + state.upcoming_sleep > self._policy.deadline
        )


class _Attempts(Generic[T]):
    """What tenacity calls, once per attempt."""

    def __init__(
        self,
        what: str,
        function: Callable[[], T],
        attempted: Attempted,
        stop: threading.Event,
        fields: Mapping[str, object],
    ) -> None:
        self.what = what
        self.count = 0
        self.error: Exception | None = None
        self.began = time.monotonic()
        self._function = function
        self._attempted = attempted
        self._stop = stop
        self.fields = fields

    def __call__(self) -> T:
        if self.error is not None and self._stop.is_set():
            raise self.error  # shutdown ended the wait: no further attempt
        self.error = None
        self.count += 1
        began = time.monotonic()
        try:
            result = self._function()
        except Exception as error:
            self.error = error
            self._attempted(error, time.monotonic() - began)
            raise
        self._attempted(None, time.monotonic() - began)
        return result


def _attempts(state: RetryCallState) -> _Attempts[Any]:
    return cast(_Attempts[Any], state.fn)


def _log_failure(state: RetryCallState) -> None:
    attempts = _attempts(state)
    fields = {"code": getattr(attempts.error, "code", ""), "attempt": attempts.count, "wait_seconds": state.upcoming_sleep}
    log.warning(
        "%s: attempt %d failed, next in %.1f s: %s",
        attempts.what,
        attempts.count,
        state.upcoming_sleep,
        attempts.error,
        extra={**attempts.fields, **fields},
    )
