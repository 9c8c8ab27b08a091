"""The part of the conformance suite about answers that are not the store's, but a proxy's, a gateway's or a login page's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from jobs_backup.errors import AlreadyExists, ObjectNotFound, StorageError, UploadGone
from jobs_backup.hookspecs import MULTIPART
from jobs_backup.model import Part, Upload
from jobs_backup.testing.driver import Hooks
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, FaultProxy

_PAGE: Final = b"<html><head><title>Sorry</title></head><body><h1>squid/6.6</h1></body></html>"
_BODIES: Final[list[tuple[bytes, dict[str, str]]]] = [
    (_PAGE, {"Content-Type": "text/html"}),
    (b"", {}),
    (b"Precondition Failed\n", {"Content-Type": "text/plain"}),
    (b'{"message":"upstream said no"}', {"Content-Type": "application/json"}),
    (b'<?xml version="1.0"?><fault><reason>policy 17</reason></fault>', {"Content-Type": "application/xml"}),
]


class StrangerConformance:
    """Skipped without the fixture `environment_at`. Included in `ProviderConformance`."""

    def upload_at(self, upload: Upload, url: str) -> Upload:
        """The upload as it would be if the store were at this URL. Override it if an upload's id is itself a URL."""
        del url
        return upload

    def _calls(self, scripted: tuple[FaultProxy, Hooks], hooks: Hooks) -> dict[str, Callable[[], object]]:
        """Calls of the writing hooks at a server with scripted answers; uploads were created at the store itself."""
        server, there = scripted
        found: dict[str, Callable[[], object]] = {"write": lambda: there.write("key", b"data"), "delete": lambda: _delete(there)}
        if set(MULTIPART) <= hooks.loaded.hooks:
            here = hooks.create("key", b"data")
            part = Part(number=1)
            if not getattr(hooks.loaded.provider, "sequential_parts", False):
                part = hooks.part(here, [b"data"], 1)
            upload = self.upload_at(here, server.url)
            found |= {
                "create_multipart": lambda: there.create("key", b"data"),
                "write_part": lambda: there.part(upload, [b"data"], 1),
                "complete_multipart": lambda: there.complete(upload, [part], b"data"),
                "abort_multipart": lambda: there.abort(upload),
            }
        return found

    @pytest.mark.parametrize("status", [304, 409, 412])
    def test_exists_is_the_stores_to_say(self, scripted: tuple[FaultProxy, Hooks], hooks: Hooks, status: int) -> None:
        """Only the store's own refusal, with its own code, is `AlreadyExists`: a status can be anybody's.

        Core deletes the events' bytes on this answer. A proxy's 412 would cost the only copy.
        """
        server, calls = scripted[0], self._calls(scripted, hooks)
        for body in _BODIES:
            server.clear()
            server.fail(Answer(status, *body), times=ALWAYS)
            for name, call in calls.items():
                _refused(server, name, call, AlreadyExists)

    @pytest.mark.parametrize("status", [404, 410])
    def test_gone_is_the_stores_to_say(self, scripted: tuple[FaultProxy, Hooks], hooks: Hooks, status: int) -> None:
        """Only the store's own answer, with its own code, means that an upload or an object is gone, or never existed.

        What counts as gone is forgotten: an upload stays open and is paid for, an object stays in the bucket.
        """
        server, calls = scripted[0], self._calls(scripted, hooks)
        for body in _BODIES:
            server.clear()
            server.fail(Answer(status, *body), times=ALWAYS)
            for name, call in calls.items():
                _refused(server, name, call, UploadGone, ObjectNotFound)

    def test_done_is_the_stores_to_say(self, scripted: tuple[FaultProxy, Hooks], hooks: Hooks) -> None:
        """A page is not a success of any hook, whatever its status, even with an ETag, as pages have.

        As above; for parts, completions, aborts and deletes as well.
        """
        server, calls = scripted[0], self._calls(scripted, hooks)
        for status in (200, 201, 202):
            server.clear()
            server.fail(Answer(status, _PAGE, {"Content-Type": "text/html", "ETag": '"5e8f-62a1"'}), times=ALWAYS)
            for name, call in calls.items():
                _refused(server, name, call, AlreadyExists, UploadGone, ObjectNotFound)

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_fault_is_no_refusal(self, scripted: tuple[FaultProxy, Hooks], hooks: Hooks, status: int) -> None:
        """A 5xx may pass, and may have done its work: no hook's error is then `refused`, and each is retryable.

        An upload whose parts or completion keep failing like this is replaced by another one. After a refusal it would be retried
        forever.
        """
        server, calls = scripted[0], self._calls(scripted, hooks)
        server.fail(Answer(status), times=ALWAYS)
        for name, call in calls.items():
            before = len(server.requests)
            error = _caught(call)
            assert error is not None or len(server.requests) == before, f"{name}: {status} was taken for success"
            if error is not None:
                assert error.retryable, f"{name}: {error.code} is not retryable"
                assert not error.refused, f"{name}: {error.code} says that nothing has arrived"


def _delete(hooks: Hooks) -> None:
    if (error := hooks.delete(["key"]).failed.get("key")) is not None:
        raise error


def _refused(server: FaultProxy, name: str, call: Callable[[], object], *unproven: type[StorageError]) -> None:
    """Check that the call fails with a hint, and without an unproven claim. A call that sends no request may succeed."""
    before = len(server.requests)
    error = _caught(call)
    if error is None:
        assert len(server.requests) == before, f"{name}: a stranger's answer was taken for success"
        return
    assert not isinstance(error, unproven), f"{name}: a stranger's answer became {error.code}: {error}"
    assert error.hint, f"{name}: {error.code} has no hint: {error}"


def _caught(call: Callable[[], object]) -> StorageError | None:
    try:
        call()
    except StorageError as error:
        return error
    return None
