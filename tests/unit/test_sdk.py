"""Helpers for providers' SDKs: one client per process, single deletes, and no secrets in logs."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs_backup.errors import (
    AlreadyExists,
    BucketNotFound,
    ConfigurationError,
    IntegrityError,
    JobsBackupError,
    ObjectNotFound,
    PermissionDenied,
    SpoolCorrupt,
    StorageError,
    Throttled,
    Unavailable,
    Unreachable,
)
from jobs_backup.sdk import (
    HTTP_ERRORS,
    ErrorRule,
    PerProcess,
    delete_each,
    forbidden,
    hide_in_logs,
    map_exception,
    map_status,
    mapped_errors,
    moved,
    system_message,
    tls_rules,
)

DENIED = PermissionDenied("denied", action="delete", resource="bucket")


class TestPerProcess:
    def test_many_threads_get_the_same_one(self) -> None:
        made: list[object] = []

        def make(_: str) -> object:
            time.sleep(0.05)
            made.append(object())
            return made[-1]

        clients = PerProcess(make)
        start = threading.Barrier(16)

        def get(number: int) -> object:
            start.wait(120)
            return clients.get("key" if number % 2 else "other key")

        with ThreadPoolExecutor(16) as pool:
            found = set(pool.map(get, range(16)))
        assert found == set(made)
        assert len(made) == 2

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_fork_makes_its_own_though_the_lock_is_held(self) -> None:
        entered, end = threading.Event(), threading.Event()

        def make(slow: bool) -> int:
            if slow:
                entered.set()
                end.wait(120)
            return os.getpid()

        clients = PerProcess(make)
        assert clients.get(False) == os.getpid()
        thread = threading.Thread(target=clients.get, args=(True,))
        thread.start()
        entered.wait(120)
        if not (child := os.fork()):
            end.set()
            os._exit(0 if {clients.get(False), clients.get(True)} == {os.getpid()} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        end.set()
        thread.join()
        assert clients.get(True) == os.getpid()

    def test_what_could_not_be_made_is_tried_again_and_what_was_made_may_be_forgotten(self) -> None:
        errors = [OSError("not now")]
        numbers = iter(range(10))

        def make() -> int:
            if errors:
                raise errors.pop()
            return next(numbers)

        clients = PerProcess(make)
        with pytest.raises(OSError, match="not now"):
            clients.get()
        assert (clients.get(), clients.get()) == (0, 0)
        clients.renew()
        assert clients.get() == 1

    def test_of_many_that_were_refused_the_first_one_renews(self) -> None:
        clients = PerProcess(lambda *key: [key])
        stale, other = clients.get("a"), clients.get("b")
        assert clients.renew(stale)
        fresh = clients.get("a")
        assert fresh is not stale
        assert not clients.renew(stale)
        assert not clients.renew(other)
        assert clients.get("a") is fresh
        assert clients.renew(fresh)


class TestDeleteEach:
    def test_each_key_has_its_outcome(self) -> None:
        errors: dict[str, JobsBackupError] = {"gone": ObjectNotFound("no"), "kept": DENIED, "odd": IntegrityError("?")}
        tried: list[str] = []

        def delete(key: str) -> None:
            tried.append(key)
            if key in errors:
                raise errors[key]

        keys = ["kept", "one", "gone", "odd", *map(str, range(50))]
        receipt = delete_each(keys, delete)
        assert receipt.failed == {"kept": DENIED, "odd": errors["odd"]}
        assert receipt.deleted == set(keys) - {"kept", "odd"}
        assert sorted(tried) == sorted(keys)
        assert delete_each([], delete).deleted == frozenset()

    @pytest.mark.parametrize("error", [Unavailable("down"), Throttled("slow down"), BucketNotFound("no")])
    def test_what_all_would_meet_is_tried_once(self, error: JobsBackupError) -> None:
        tried: list[str] = []

        def delete(key: str) -> None:
            tried.append(key)
            raise error

        with pytest.raises(type(error)):
            delete_each(["one", "two", "three"], delete)
        assert tried == ["one"]

    def test_a_bug_is_none_of_their_outcomes(self) -> None:
        def delete(key: str) -> None:
            if key == "two":
                raise TypeError("a bug")

        with pytest.raises(TypeError):
            delete_each(["one", "two"], delete)


class TestErrorTables:
    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (200, None),
            (404, None),
            (408, Unavailable),
            (429, Throttled),
            (500, AlreadyExists),
            (501, Unavailable),
            (599, Unavailable),
        ],
    )
    def test_a_status(self, status: int, expected: type[JobsBackupError] | None) -> None:
        rule = map_status(status, {500: ErrorRule(AlreadyExists)})
        assert (rule and rule.error) == expected
        if rule is not None:
            assert getattr(rule.to_error("no", retry_after=7), "retry_after", None) == (None if status == 500 else 7)

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (ConnectionRefusedError(111, "Connection refused"), Unreachable),
            (Exception(OSError(), TimeoutError("timed out")), Unavailable),
            (ssl.SSLCertVerificationError("old"), ConfigurationError),
            (ssl.SSLError("WRONG_VERSION_NUMBER"), ConfigurationError),
            (ssl.SSLEOFError("gone"), Unavailable),
            (TypeError("a bug"), StorageError),
        ],
    )
    def test_an_exception(self, error: Exception, expected: type[JobsBackupError]) -> None:
        with pytest.raises(JobsBackupError) as caught, mapped_errors(self.map):
            raise error
        assert type(caught.value) is expected
        assert caught.value.refused == (expected in (Unreachable, ConfigurationError) and "WRONG" not in str(error))
        assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)

    def map(self, error: Exception) -> JobsBackupError:
        return map_exception("write key", error, HTTP_ERRORS, text=system_message(error), tls=tls_rules("certificate", "bundle"))

    def test_an_error_of_ours_stays_what_it_is(self) -> None:
        ours = SpoolCorrupt("bad sector")
        with pytest.raises(SpoolCorrupt) as caught, mapped_errors(self.map):
            raise ours
        assert caught.value is ours


def test_secrets_in_urls_are_hidden(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        hide_in_logs(r"(?<=sig=)[^&\s]+", "some.sdk", "its.http")
        hide_in_logs(r"(?<=sig=)[^&\s]+", "some.sdk", "its.http", "imported.later")
    caplog.set_level(logging.DEBUG)
    logging.getLogger("some.sdk").info("GET %s", "https://host/?sig=canary&x=1")
    logging.getLogger("its.http").info("nothing %d of it", 1)
    assert caplog.messages == ["GET https://host/?sig=****&x=1", "nothing 1 of it"]
    assert len(logging.getLogger("some.sdk").filters) == 1


@pytest.mark.parametrize("letters", ["a", "a ", "no a", "arn:aws:", "no policy", "-", "@", "A"])
def test_a_refusal_of_any_length_is_looked_at_in_linear_time(letters: str) -> None:
    """Any server may answer, and backtracking patterns over a megabyte would hold the GIL for hours."""
    text = letters * (1 << 20)
    assert forbidden("refused", text, text, action="s3:PutObject", resource="bucket").hint
    assert isinstance(moved("moved", text, "ENDPOINT"), ConfigurationError)
