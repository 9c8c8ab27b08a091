"""The error taxonomy: the text of each error for programs and for people."""

from __future__ import annotations

import copy
import inspect
import pickle
import traceback
from collections.abc import Callable

import pytest

from jobs_backup import errors
from jobs_backup.errors import (
    ConfigurationError,
    InvalidEvent,
    JobsBackupError,
    PermissionDenied,
    StorageError,
    StorePaused,
    Throttled,
    Unavailable,
    parse_date,
    parse_retry_after,
)
from jobs_backup_s3.errors import NothingThere

EVERY = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, JobsBackupError)]

# Waiting helps with these alone; all others need somebody to change something, or can't succeed at all.
RETRYABLE = {
    "StorageError",
    "CredentialsExpired",
    "Throttled",
    "Unavailable",
    "Unreachable",
    "IntegrityError",
    "SpoolFull",
    "SpoolUncertain",
}


def make(kind: type[JobsBackupError]) -> JobsBackupError:
    if issubclass(kind, PermissionDenied):
        return kind("denied", action="s3:PutObject", resource="arn:aws:s3:::b/*")
    if issubclass(kind, StorePaused):
        return kind("paused", cause=Unavailable("down", hint="look at the network"))
    return kind("it failed")


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copied", "pickled"])
@pytest.mark.parametrize("kind", EVERY)
def test_it_gets_out_of_another_process(kind: type[JobsBackupError], copied: Callable[[JobsBackupError], JobsBackupError]) -> None:
    """An error that cannot be pickled makes a `multiprocessing.Pool` wait forever."""
    error = make(kind)
    error.attempts = 3
    found = copied(error)
    assert type(found) is kind
    assert (str(found), found.hint, found.attempts, found.args) == (str(error), error.hint, 3, error.args)
    assert vars(found).keys() == vars(error).keys()


@pytest.mark.parametrize("kind", EVERY)
def test_each_has_one_base_a_code_and_a_say_on_retrying(kind: type[JobsBackupError]) -> None:
    error = make(kind)
    assert error.code == kind.__name__
    assert error.retryable is (kind.__name__ in RETRYABLE)
    assert (error.attempts, error.elapsed) == (0, 0.0)
    assert (kind.__doc__ or "").strip()


def test_the_text_reports_attempts_and_time_once_there_were_several() -> None:
    error = Unavailable("no answer from s3.example")
    assert str(error) == "no answer from s3.example"
    error.attempts, error.elapsed = 1, 0.2
    assert str(error) == "no answer from s3.example"
    error.attempts, error.elapsed = 2, 41.26
    assert str(error) == "no answer from s3.example (2 attempts in 41.3 s)"


def test_one_line_is_one_line_with_the_hint() -> None:
    error = StorageError("it failed:\n  <Error>\r\n\tno</Error>", hint="look at\nthe store")
    assert error.one_line() == "it failed: <Error> no</Error>: look at the store"
    assert StorageError("it failed").one_line() == "it failed"


def test_permission_denied_says_what_to_grant() -> None:
    error = PermissionDenied("put refused", action="s3:PutObject", resource="arn:aws:s3:::events/*")
    assert error.hint == "grant s3:PutObject on arn:aws:s3:::events/*"
    assert (error.action, error.resource) == ("s3:PutObject", "arn:aws:s3:::events/*")
    assert PermissionDenied("no", action="a", resource="r", hint="ask the owner").hint == "ask the owner"


def test_a_paused_store_gives_the_hint_of_its_cause() -> None:
    cause = ConfigurationError("no such region", hint="correct AWS_REGION")
    paused = StorePaused("paused", cause=cause)
    assert paused.hint == "correct AWS_REGION"
    assert paused.cause is cause


def test_the_store_may_say_how_long_to_wait() -> None:
    assert Throttled("slow down", retry_after=7).retry_after == 7
    assert Unavailable("busy", retry_after=0.5).retry_after == 0.5
    assert Throttled("slow down").retry_after is None


def test_an_invalid_event_is_a_value_error_that_reports_which_one() -> None:
    error = InvalidEvent("no JSON object", index=17)
    assert isinstance(error, ValueError)
    assert error.index == 17


@pytest.mark.parametrize("text", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "tomorrow", "", "-5", "1e3"])
def test_a_date_that_is_none_raises_nothing(text: str) -> None:
    assert parse_date(text) is None
    assert parse_retry_after(text) is None


def test_a_plugins_own_error_has_a_code_that_help_explains() -> None:
    class BucketFrozen(PermissionDenied):
        """A provider's own kind."""

    assert BucketFrozen("no", action="a", resource="b").code == "PermissionDenied"
    assert NothingThere("no").code == "StorageError"


def test_a_traceback_ends_with_the_hint_and_the_code_that_help_explains() -> None:
    class Odd(errors.Unavailable):
        """A plugin's error, whose code is not set yet at its creation."""

        @property
        def code(self) -> str:
            return self.odd  # type: ignore[attr-defined,no-any-return]

    found = errors.ProviderNotFound("no", hint="install it")
    for error, code in ((found, "ProviderNotFound"), (Odd("no", hint="install it"), "Unavailable")):
        printed = "".join(traceback.format_exception(error)).splitlines()
        assert printed[-2:] == ["install it", f"[{code}] `jobs-backup help {code}` explains it"]
    assert traceback.format_exception(pickle.loads(pickle.dumps(found))) == traceback.format_exception(found)
    assert "".join(traceback.format_exception(errors.SpoolError("no"))).splitlines()[-2].endswith("SpoolError: no")
