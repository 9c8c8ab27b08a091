"""The part of the conformance suite about multipart uploads."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from jobs_backup.errors import AlreadyExists, IntegrityError, SpoolCorrupt, UploadGone
from jobs_backup.hookspecs import MULTIPART
from jobs_backup.model import Outcome, Part, Upload
from jobs_backup.testing.driver import ODD_KEYS, CountingBody, FailingBody, Hooks, Inspector, random_bytes


class MultipartConformance(ABC):
    """Skipped as a whole for a provider without these hooks. Included in `ProviderConformance`."""

    @abstractmethod
    def open(self, environment: Mapping[str, str]) -> Hooks:
        """Load the provider as core does."""

    @abstractmethod
    def in_another_process(self, environment: Mapping[str, str], script: str, given: object = None) -> None:
        """Run a script in a new process."""

    @pytest.fixture
    def multipart(self, hooks: Hooks) -> Hooks:
        """The provider, if it has the multipart hooks."""
        if not set(MULTIPART) <= hooks.loaded.hooks:
            pytest.skip(f"{hooks.loaded.installed.name} has no hooks for uploads in parts")
        return hooks

    def parts(self, hooks: Hooks, count: int = 2, last: int = 1000) -> list[bytes]:
        """Make parts as small as the provider allows. The last has `last` bytes, or the size of the others if that is 0."""
        provider = hooks.loaded.provider
        multiple = getattr(provider, "part_multiple", 1)
        size = max(getattr(provider, "min_part_size", 1), 64 << 10)
        size += -size % multiple
        return [random_bytes(size, seed) for seed in range(count - 1)] + [random_bytes(last or size, count)]

    def unknown(self, upload: Upload) -> Upload:
        """An upload that does not exist, in the form of this one. Override it if the reversed id makes no sense."""
        return msgspec.structs.replace(upload, id=upload.id[::-1])

    def test_multipart(self, multipart: Hooks, inspector: Inspector) -> None:
        """The object appears at completion (or with the last part, if parts are sequential), with the parts in order.

        Readers must not see an unfinished object; and parts arrive in any order.
        """
        parts = self.parts(multipart, 3)
        upload = multipart.create("dir/key", b"".join(parts))
        receipts = [multipart.part(upload, parts, number) for number in (1, 2)]
        assert list(inspector.keys()) == []
        assert inspector.open_uploads() in (None, ["dir/key"])
        receipts.append(multipart.part(upload, parts, 3))
        if not getattr(multipart.loaded.provider, "sequential_parts", False):
            assert list(inspector.keys()) == []
        multipart.complete(upload, receipts, b"".join(parts))
        assert list(inspector.keys()) == ["dir/key"]
        assert inspector.get("dir/key") == b"".join(parts)
        assert not inspector.open_uploads()

    @pytest.mark.parametrize("last", [0, 1])
    def test_multipart_around_the_size_of_a_part(self, multipart: Hooks, inspector: Inspector, last: int) -> None:
        """The last part may be a whole one, or have a single byte.

        Off by one, the last part is empty, lost, or refused as too small.
        """
        parts = self.parts(multipart, 2, last)
        upload = multipart.create("key", b"".join(parts))
        receipts = [multipart.part(upload, parts, number) for number in (1, 2)]
        multipart.complete(upload, receipts, b"".join(parts))
        assert inspector.get("key") == b"".join(parts)

    @pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
    def test_multipart_odd_keys(self, multipart: Hooks, inspector: Inspector, key: str) -> None:
        """The object has exactly this key, and an upload with this key can be aborted.

        Each operation escapes keys in its own place.
        """
        assert multipart.abort(multipart.create(key, b"odd")) is Outcome.ABORTED
        upload = multipart.create(key, b"odd")
        multipart.complete(upload, [multipart.part(upload, [b"odd"], 1)], b"odd")
        assert list(inspector.keys()) == [key]
        assert inspector.get(key) == b"odd"

    def test_multipart_bodies_are_closed(self, multipart: Hooks, inspector: Inspector) -> None:
        """Each attempt to upload a part reopens its body and closes it.

        As with whole objects; there are many more parts.
        """
        parts = self.parts(multipart)
        bodies = [CountingBody(part) for part in parts]
        upload = multipart.create("key", b"".join(parts))
        receipts = [multipart.part(upload, parts, number, body=body) for number, body in enumerate(bodies, 1)]
        assert min(body.opened for body in bodies) > 0
        assert [body.unclosed for body in bodies] == [0, 0]
        multipart.complete(upload, receipts, b"".join(parts))
        assert inspector.get("key") == b"".join(parts)

    def test_multipart_of_bytes_that_stand_already(self, multipart: Hooks, inspector: Inspector) -> None:
        """An earlier attempt may have uploaded the object although its answer was lost: no failure, and no second object.

        Then the upload is aborted, and the object counts as uploaded.
        """
        upload = multipart.create("key", b"same")
        multipart.write("key", b"same")
        with pytest.raises(AlreadyExists):
            multipart.complete(upload, [multipart.part(upload, [b"same"], 1)], b"same")
        multipart.abort(upload)
        assert inspector.get("key") == b"same"
        assert not inspector.open_uploads()

    def test_multipart_completed_twice(self, multipart: Hooks, inspector: Inspector) -> None:
        """A second completion may report the object, or an upload that is gone; the object stays.

        Core cannot know whether the answer or the request was lost, so it asks again.
        """
        upload = multipart.create("key", b"data")
        part = multipart.part(upload, [b"data"], 1)
        multipart.complete(upload, [part], b"data")
        with contextlib.suppress(AlreadyExists, UploadGone):
            multipart.complete(upload, [part], b"data")
        assert list(inspector.keys()) == ["key"]
        assert inspector.get("key") == b"data"

    def test_multipart_parts_in_parallel(self, multipart: Hooks, inspector: Inspector) -> None:
        """Unless the provider sets `sequential_parts`, parts come in any order and concurrently.

        This makes large objects fast.
        """
        if getattr(multipart.loaded.provider, "sequential_parts", False):
            pytest.skip("the provider wants its parts in order")
        parts = self.parts(multipart, 3)
        upload = multipart.create("key", b"".join(parts))
        receipts = [multipart.part(upload, parts, 3)]
        with ThreadPoolExecutor(2) as pool:
            sent = [pool.submit(multipart.part, upload, parts, number) for number in (2, 1)]
            receipts += [one.result() for one in sent]
        multipart.complete(upload, receipts, b"".join(parts))
        assert inspector.get("key") == b"".join(parts)

    def test_multipart_part_sent_twice(self, multipart: Hooks, inspector: Inspector) -> None:
        """A part that is uploaded again counts once.

        A failed part is retried alone, even if it had arrived and only its answer was lost.
        """
        parts = self.parts(multipart)
        upload = multipart.create("key", b"".join(parts))
        first = multipart.part(upload, parts, 1)
        again = multipart.part(upload, parts, 1)
        assert first == again
        multipart.complete(upload, [again, multipart.part(upload, parts, 2)], b"".join(parts))
        assert inspector.get("key") == b"".join(parts)

    def test_multipart_begun_again(self, multipart: Hooks, inspector: Inspector) -> None:
        """A second upload of the same key can be created and completed during an open one. Aborting the first one affects neither.

        An upload that keeps failing is replaced by another one, and aborted later, when the object may have been uploaded.
        """
        parts = self.parts(multipart)
        blocked_by = multipart.create("key", b"".join(parts))
        multipart.part(blocked_by, parts, 1)
        upload = multipart.create("key", b"".join(parts))
        receipts = [multipart.part(upload, parts, 1)]
        multipart.abort(blocked_by)
        receipts.append(multipart.part(upload, parts, 2))
        multipart.complete(upload, receipts, b"".join(parts))
        assert multipart.abort(blocked_by) in Outcome
        assert inspector.get("key") == b"".join(parts)
        assert not inspector.open_uploads()

    def test_multipart_late_part(self, multipart: Hooks, inspector: Inspector) -> None:
        """A part that arrives after the abort or the completion brings back neither an upload nor an object.

        An abandoned request may still be on its way. Anything it brought back would cost money unnoticed.
        """
        parts = self.parts(multipart)
        aborted = multipart.create("aborted", b"".join(parts))
        multipart.part(aborted, parts, 1)
        multipart.abort(aborted)
        completed = multipart.create("completed", b"".join(parts))
        receipts = [multipart.part(completed, parts, number) for number in (1, 2)]
        multipart.complete(completed, receipts, b"".join(parts))
        for upload in (aborted, completed):
            with contextlib.suppress(AlreadyExists, UploadGone):
                multipart.part(upload, parts, 1)
        assert list(inspector.keys()) == ["completed"]
        assert inspector.get("completed") == b"".join(parts)
        assert not inspector.open_uploads()

    def test_multipart_continued_by_another_process(
        self, multipart: Hooks, environment: Mapping[str, str], inspector: Inspector
    ) -> None:
        """The JSON that core has journaled is all that another instance needs to resume.

        After a crash only the journal is left. Anything else that a provider keeps in memory is lost.
        """
        parts = self.parts(multipart)
        upload = multipart.create("key", b"".join(parts))
        first = multipart.part(upload, parts, 1)
        journaled = msgspec.json.encode((upload, [first]))
        upload, receipts = msgspec.json.decode(journaled, type=tuple[Upload, list[Part]])
        other = self.open(environment)
        receipts.append(other.part(upload, parts, 2))
        other.complete(upload, receipts, b"".join(parts))
        assert inspector.get("key") == b"".join(parts)

    def test_multipart_of_one_part(self, multipart: Hooks, inspector: Inspector) -> None:
        """A single part, which is the last one and may be small, is enough.

        An object just above the threshold may be one part.
        """
        upload = multipart.create("key", b"small")
        multipart.complete(upload, [multipart.part(upload, [b"small"], 1)], b"small")
        assert inspector.get("key") == b"small"

    def test_multipart_complete_onto_an_existing_key(self, multipart: Hooks, inspector: Inspector) -> None:
        """With `if_absent`, an existing object is not replaced; the upload can then be aborted.

        As with whole objects: nothing existing is overwritten.
        """
        upload = multipart.create("key", b"second")
        multipart.write("key", b"first")
        with pytest.raises((AlreadyExists, IntegrityError)):
            multipart.complete(upload, [multipart.part(upload, [b"second"], 1)], b"second")
        multipart.abort(upload)
        assert inspector.get("key") == b"first"
        assert not inspector.open_uploads()

    def test_multipart_wrong_checksum_publishes_nothing(self, multipart: Hooks, inspector: Inspector) -> None:
        """If the parts do not match the checksum of the whole, no object appears.

        Each part may be right, but the whole wrong: one part twice, or in the wrong place.
        """
        upload = multipart.create("key", b"123456789", checksum=0xE3069284)
        with pytest.raises((IntegrityError, UploadGone)):
            multipart.complete(upload, [multipart.part(upload, [b"123456789"], 1)], b"123456789", checksum=0xE3069284)
        assert list(inspector.keys()) == []
        multipart.abort(upload)

    def test_multipart_failing_body(self, multipart: Hooks, inspector: Inspector) -> None:
        """If a part's body cannot be read, the error is the body's; the part can be uploaded again.

        A damaged spool must not discard the parts already uploaded.
        """
        upload = multipart.create("key", b"whole")
        with pytest.raises(SpoolCorrupt, match="bad sector"):
            multipart.part(upload, [b"whole"], 1, body=FailingBody(b"whole"))
        multipart.complete(upload, [multipart.part(upload, [b"whole"], 1)], b"whole")
        assert inspector.get("key") == b"whole"

    def test_abort(self, multipart: Hooks, environment: Mapping[str, str], inspector: Inspector) -> None:
        """Another instance can abort; afterwards the upload is gone, with its parts.

        An incomplete upload takes up space, and costs money, until it is found.
        """
        parts = self.parts(multipart)
        upload = multipart.create("key", b"".join(parts))
        receipt = multipart.part(upload, parts, 1)
        assert self.open(environment).abort(upload) is Outcome.ABORTED
        assert not inspector.open_uploads()
        with pytest.raises(UploadGone) as caught:
            multipart.part(upload, parts, 2)
        assert upload.id not in caught.value.one_line()
        with pytest.raises(UploadGone):
            multipart.complete(upload, [receipt], parts[0])
        assert list(inspector.keys()) == []

    def test_abort_in_another_process(self, multipart: Hooks, environment: Mapping[str, str], inspector: Inspector) -> None:
        """What core has journaled is all that another process needs to end an upload, repeatedly.

        The process that aborts is usually a later one than the one that was killed.
        """
        parts = self.parts(multipart)
        upload = multipart.create("key", b"".join(parts))
        multipart.part(upload, parts, 1)
        script = (
            "import msgspec\n"
            "from jobs_backup.model import Upload\n"
            "for _ in range(2):\n"
            "    hooks.abort(msgspec.json.decode(given, type=Upload))\n"
        )
        self.in_another_process(environment, script, msgspec.json.encode(upload).decode())
        assert not inspector.open_uploads()
        assert multipart.abort(upload) in Outcome
        assert list(inspector.keys()) == []

    def test_abort_twice(self, multipart: Hooks, inspector: Inspector) -> None:
        """Aborting again is not an error.

        The answer to an abort can be lost, too.
        """
        upload = multipart.create("key", b"data")
        multipart.abort(upload)
        multipart.abort(upload)
        assert not inspector.open_uploads()

    def test_abort_after_completion(self, multipart: Hooks, inspector: Inspector) -> None:
        """Aborting a completed upload is not an error, and its object stays.

        Core aborts when it does not know whether the completion arrived.
        """
        upload = multipart.create("key", b"data")
        multipart.complete(upload, [multipart.part(upload, [b"data"], 1)], b"data")
        multipart.abort(upload)
        assert inspector.get("key") == b"data"

    def test_abort_of_an_unknown_upload(self, multipart: Hooks) -> None:
        """An upload that the store does not know is GONE.

        An upload that expired, or that a lifecycle rule removed, must leave the journal eventually.
        """
        upload = multipart.create("key", b"data")
        assert multipart.abort(self.unknown(upload)) is Outcome.GONE
        assert multipart.abort(upload) is Outcome.ABORTED

    def test_abort_without_multipart(self, hooks: Hooks) -> None:
        """A provider without multipart uploads has nothing to abort: GONE.

        Core may have journaled an upload of another version of this provider, which had them.
        """
        if hooks.loaded.hooks & set(MULTIPART):
            pytest.skip("the provider has parts")
        assert hooks.abort(Upload(key="key", id="1")) is Outcome.GONE
