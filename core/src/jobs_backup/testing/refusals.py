"""The part of the conformance suite about failures: what the store refuses, how it is reported, and what stays hidden."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

import pytest

from jobs_backup.checksum import crc32c
from jobs_backup.errors import (
    AlreadyExists,
    IntegrityError,
    JobsBackupError,
    PermissionDenied,
    StorageError,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from jobs_backup.hookspecs import MULTIPART
from jobs_backup.model import Body
from jobs_backup.testing.driver import CountingBody, FailingBody, Hooks, Inspector, random_bytes
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, FaultProxy, Request
from jobs_backup.util.disclosure import redacted

_PATIENCE: Final = 4.0
"""Seconds that a busy machine may add to a timeout of 0.5; less than an author's own timeout."""
EnvironmentAt = Callable[[str], Mapping[str, str]]


class RefusalConformance(ABC):
    """Some of these tests need another fixture, and are skipped without it. Included in `ProviderConformance`."""

    @abstractmethod
    def open(self, environment: Mapping[str, str]) -> Hooks:
        """Load the provider as core does."""

    @abstractmethod
    def secrets(self, hooks: Hooks, environment: Mapping[str, str]) -> list[str]:
        """The values of the secret settings that are set."""

    @pytest.fixture
    def environment_without_rights(self) -> Callable[[], Mapping[str, str]] | None:
        """A function that returns the variables of the same bucket with credentials without permissions; None if unavailable.

        It is called when the bucket has an object.
        """
        return None

    @pytest.fixture
    def environment_at(self) -> EnvironmentAt | None:
        """A function from a URL (`http://127.0.0.1:1234`) to the variables of a store there; None if it is not an HTTP store."""
        return None

    @pytest.fixture
    def scripted(self, environment_at: EnvironmentAt | None) -> Iterator[tuple[FaultProxy, Hooks]]:
        """A server with scripted answers, and the provider that talks to it."""
        if environment_at is None:
            pytest.skip("no store at another URL was provided (fixture environment_at)")
        with FaultProxy() as server:
            yield server, self.open(environment_at(server.url))

    def test_without_rights(
        self,
        hooks: Hooks,
        inspector: Inspector,
        environment_without_rights: Callable[[], Mapping[str, str]] | None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A refusal is reported with the missing permission; an existing object is not reported as deleted.

        "403 Forbidden" sends people searching for hours; an action and a resource can be pasted. Core also pauses instead of
        retrying because of it.
        """
        if environment_without_rights is None:
            pytest.skip("no credentials without permissions were provided (fixture environment_without_rights)")
        hooks.write("written", b"data")
        environment = environment_without_rights()
        denied = self.open(environment)
        granted = denied.policy(environment, delete=True, replay=True).grants.values() if "policy" in denied.loaded.hooks else ()
        errors: list[JobsBackupError] = []
        for call in _calls(denied, "written", CountingBody(b"data"), reading=False):
            with pytest.raises((PermissionDenied, Unauthenticated)) as caught:
                call()
            error = caught.value
            assert error.hint
            assert not error.retryable
            if isinstance(error, PermissionDenied):
                assert error.action
                assert error.resource
                assert error.action in granted or not granted, "it is not in the words of the policy"
            errors.append(error)
        assert list(inspector.keys()) == ["written"]
        check_no_secret(self.secrets(denied, environment), errors, caplog.text)

    def test_store_that_is_not_there(self, environment_at: EnvironmentAt | None) -> None:
        """An unreachable store may come back.

        An error that counts as permanent stops the backup for minutes, when a retry after a second would have sufficed.
        """
        if environment_at is None:
            pytest.skip("no store at another URL was provided (fixture environment_at)")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            environment = environment_at(f"http://127.0.0.1:{listener.getsockname()[1]}")
        hooks = self.open(environment)
        body = CountingBody(b"data")
        for call in _calls(hooks, "key", body):
            with pytest.raises(Unavailable) as caught:
                call()
            assert caught.value.hint
            assert caught.value.retryable
            check_no_secret(self.secrets(hooks, environment), [caught.value])
        assert body.unclosed == 0

    def test_store_that_says_nothing(self, environment_at: EnvironmentAt | None) -> None:
        """A call without an answer gives up after about `timeout` seconds.

        A thread that waits forever uploads nothing, and nothing shows why.
        """
        if environment_at is None:
            pytest.skip("no store at another URL was provided (fixture environment_at)")
        with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:  # accepts connections, but never answers
            environment = environment_at(f"http://127.0.0.1:{listener.getsockname()[1]}")
            hooks = Hooks(self.open(environment).loaded, timeout=0.5)
            body = CountingBody(b"data")
            write, *others = _calls(hooks, "key", body)
            for number, call in enumerate((write, write, *others)):
                end = threading.Timer(12, lambda: listener.shutdown(socket.SHUT_RDWR))  # for a provider that would wait forever
                end.start()
                begun = time.monotonic()
                with pytest.raises(Unavailable) as caught:
                    call()
                end.cancel()
                took = time.monotonic() - begun
                # The first call also makes the client, which may take long on a busy machine.
                patience = _PATIENCE if number else 10.0
                assert took < patience, f"{caught.value.message}: gave up after {took:.1f} s, with a timeout of 0.5 s"
            assert body.unclosed == 0

    def test_secrets_that_the_store_repeats(self, environment_at: EnvironmentAt | None, caplog: pytest.LogCaptureFixture) -> None:
        """Errors repeat no secret from an answer that quotes the request's headers and URL.

        Stores quote requests in their errors, and proxies print them.
        """
        if environment_at is None:
            pytest.skip("no store at another URL was provided (fixture environment_at)")
        with FaultProxy() as server:
            environment = environment_at(server.url)
            hooks = self.open(environment)
            secrets = self.secrets(hooks, environment)
            for status in (400, 401, 403, 404, 500):
                server.clear()
                server.fail(_repeating(status), times=ALWAYS)
                for call in _calls(hooks, "key", CountingBody(b"data")):
                    if (error := _caught(call)) is not None:  # other tests check that it is an error
                        check_no_secret(secrets, [error], caplog.text)

    def test_credentials_that_the_store_does_not_accept(self, scripted: tuple[FaultProxy, Hooks]) -> None:
        """401 Unauthorized (RFC 9110, 15.5.2) is an error of the credentials, whatever else is in the answer.

        Reported as a fault of the store, it is retried forever, and the credentials are never checked.
        """
        server, hooks = scripted
        server.fail(Answer(401), times=ALWAYS)
        for call in _calls(hooks, "key", CountingBody(b"data")):
            with pytest.raises(Unauthenticated) as caught:
                call()
            assert caught.value.hint

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_fault_of_the_store_is_one_request(self, scripted: tuple[FaultProxy, Hooks], status: int) -> None:
        """The provider does not retry by itself; it reports that a retry may help, and how long the store asks to wait.

        Retries within retries multiply: six of core's times four of an SDK's are 24 requests to a store that asks for fewer.
        """
        server, hooks = scripted
        server.fail(Answer(status, headers={"Retry-After": "7"}), times=ALWAYS)
        body = CountingBody(random_bytes(100_000, 6))
        for call in _calls(hooks, "key", body):
            before = len(server.requests)
            with pytest.raises(StorageError) as caught:
                call()
            error = caught.value
            assert isinstance(error, Throttled | Unavailable)
            assert error.hint
            assert error.retryable
            assert error.retry_after == 7
            assert len(server.requests) == before + 1
        assert body.unclosed == 0

    def test_answer_that_does_not_say_so_is_no_success(self, scripted: tuple[FaultProxy, Hooks]) -> None:
        """A bare 200 may come from anybody: a proxy, or the login page of a network.

        Core deletes the events' bytes on this answer.
        """
        server, hooks = scripted
        server.fail(Answer(200, b"<html>Welcome!</html>", {"Content-Type": "text/html"}), times=ALWAYS)
        for call in _calls(hooks, "key", CountingBody(b"data"), reading=False):
            with pytest.raises(StorageError):
                call()
        if "list" in hooks.loaded.hooks:
            with pytest.raises(StorageError):
                hooks.list("")

    def test_a_call_is_one_attempt(self, hooks: Hooks) -> None:
        """A failure is not retried within the call: that is core's decision.

        As above, observed from the body.
        """
        failing = FailingBody(random_bytes(300_000, 3))
        with pytest.raises(JobsBackupError):
            hooks.write("other", failing, checksum=0)
        assert (failing.failures, failing.unclosed) == (1, 0)
        data = random_bytes(100_000, 2)
        checksum = crc32c(data)
        body = CountingBody(data)
        hooks.write("key", body, checksum=checksum)
        refused = CountingBody(data)
        with contextlib.suppress(AlreadyExists):
            hooks.write("key", refused, checksum=checksum)
        damaged = CountingBody(data[::-1])
        with contextlib.suppress(IntegrityError):
            hooks.write("third", damaged, checksum=checksum)
        assert max(refused.opened, damaged.opened) <= body.opened

    def test_secrets_are_in_no_error_and_no_log(
        self, hooks: Hooks, environment: Mapping[str, str], caplog: pytest.LogCaptureFixture
    ) -> None:
        """No secret and no upload id is in an error, its causes, or a log line.

        Errors reach terminals, logs and trackers. Anybody with an upload's id may write to the bucket.
        """
        caplog.set_level(logging.INFO)
        data = random_bytes(1000, 1)
        hooks.write("key", data)
        secrets = self.secrets(hooks, environment)
        calls: list[Callable[[], object]] = [lambda: hooks.write("key", data), lambda: hooks.write("other", data, checksum=1)]
        if "read" in hooks.loaded.hooks:
            calls.append(lambda: hooks.read("absent"))
        if set(MULTIPART) <= hooks.loaded.hooks:
            upload = hooks.create("parts", data)
            secrets.append(upload.id)
            part = hooks.part(upload, [data], 1)
            hooks.abort(upload)
            calls += [lambda: hooks.part(upload, [data], 1), lambda: hooks.complete(upload, [part], data)]
        errors = [error for call in calls if (error := _caught(call)) is not None]
        assert errors
        check_no_secret(secrets, errors, caplog.text)


def _repeating(status: int) -> Callable[[Request], Answer]:
    """Answers that quote the request."""
    return lambda request: Answer(status, f"{request.target} {request.headers}".encode())


def _calls(hooks: Hooks, key: str, body: Body, *, reading: bool = True) -> list[Callable[[], object]]:
    """A call of each hook that needs only a key; it raises if the hook fails."""

    def delete() -> None:
        if (error := hooks.delete([key]).failed.get(key)) is not None:
            raise error

    calls: dict[str, Callable[[], object]] = {
        "write": lambda: hooks.write("another", body),
        "delete": delete,
        # If creating an upload needs no request, its first part is the first to be refused.
        "create_multipart": lambda: hooks.part(hooks.create("another", b"data"), [b"data"], 1),
    }
    if reading:
        calls |= {"read": lambda: hooks.read(key), "list": lambda: hooks.list("")}
    return [call for name, call in calls.items() if name in hooks.loaded.hooks]


def _caught(call: Callable[[], object]) -> JobsBackupError | None:
    """The call's error, if any: other tests check whether it must fail."""
    try:
        call()
    except JobsBackupError as error:
        return error
    return None


def check_no_secret(secrets: list[str], errors: Iterable[JobsBackupError], *texts: str) -> None:
    """Fail if any of them contains a secret, even escaped, or in base64 as in HTTP Basic.

    For an error, checks everything that a traceback prints. The failure says where a secret is, and shows none.
    """
    outputs = {f"text {number}": text for number, text in enumerate(texts, 1)}
    for number, error in enumerate(errors, 1):
        name = f"error {number}, {error.code}"
        outputs |= {f"{name}: what a traceback prints": "".join(traceback.format_exception(error))}
        outputs |= {f"{name}: message or hint": error.one_line(), f"{name}: repr": repr(error)}
        outputs |= {f"{name}: attribute {one}": str(value) for one, value in vars(error).items()}
    if leaks := [where for where, text in outputs.items() if redacted(text, secrets) != text or _in_base64(text, secrets)]:
        pytest.fail(f"a secret, or an upload's id, is in: {'; '.join(leaks)}", pytrace=False)


def _in_base64(text: str, secrets: list[str]) -> bool:
    words = re.findall(r"[A-Za-z0-9+/_-]{8,}", text)
    decoded = [
        base64.urlsafe_b64decode(word[: len(word) - (len(word) % 4 == 1)].replace("+", "-").replace("/", "_") + "==")
        for word in words
    ]
    return any(secret.encode() in one for secret in filter(None, secrets) for one in decoded)
