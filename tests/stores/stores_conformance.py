"""The conformance suite, and a small backup, on other S3-compatible stores: run by `make stores`, not collected by itself.

Missing features of a store are in docs/stores.md, and in `not_applicable` here.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from buckets import FAST_RETRY, realistic
from commands import run, summary
from more_stores import STORES
from servers import Identity, Store, StoreInspector

from jobs_backup.testing.conformance import Inspector, ProviderConformance

_NO_CONDITIONS: Mapping[str, str] = dict.fromkeys(
    (
        "test_write_to_an_existing_key",
        "test_body_is_opened_anew_and_closed",
        "test_multipart_of_bytes_that_stand_already",
        "test_multipart_complete_onto_an_existing_key",
    ),
    "it ignores If-None-Match",
)
_NONE_AT_COMPLETION: Mapping[str, str] = dict.fromkeys(
    ("test_multipart_of_bytes_that_stand_already", "test_multipart_complete_onto_an_existing_key"),
    "it ignores If-None-Match of completions",
)
_MD5: Mapping[str, str] = {
    "test_multipart_wrong_checksum_publishes_nothing": "with Content-MD5 the store is told no checksum of the whole"
}


class _Inspector(StoreInspector):
    def open_uploads(self) -> list[str] | None:  # type: ignore[override]
        return super().open_uploads() if self.tells_uploads else None

    tells_uploads = True


class _OnStore(ProviderConformance):
    provider = "S3"
    forbidden_modules = ("boto3", "botocore", "urllib3", "s3transfer")
    more: ClassVar[Mapping[str, str]] = {}
    tells_uploads: ClassVar = True

    store: ClassVar[str]

    @pytest.fixture
    def server(self, started: Callable[[str], Store]) -> Store:
        return started(self.store)

    @pytest.fixture
    def bucket(self, server: Store) -> str:
        return server.bucket()

    @pytest.fixture
    def environment(self, server: Store, bucket: str) -> Mapping[str, str]:
        return {**server.environment(bucket, "all"), **self.more}

    @pytest.fixture
    def inspector(self, server: Store, bucket: str) -> Inspector:
        inspector = _Inspector(server, bucket)
        inspector.tells_uploads = self.tells_uploads
        return inspector

    @pytest.fixture
    def environment_without_bucket(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        return {**environment, "JOBS_BACKUP_BUCKET": "no-such-bucket"}

    @pytest.fixture
    def environment_without_rights(self, server: Store, bucket: str) -> Callable[[], Mapping[str, str]]:
        """Unknown access keys."""
        server.identities["unknown"] = Identity("unknown", "AKIAUNKNOWN000000001", "canary-of-nobody")
        return lambda: {**server.environment(bucket, "unknown"), **self.more}

    @pytest.fixture
    def environment_at(self, server: Store, bucket: str) -> Callable[[str], Mapping[str, str]]:
        return lambda url: {**server.environment(bucket, "all", url=url), **self.more}

    def test_backup(self, server: Store, bucket: str, environment: Mapping[str, str], tmp_path: Path) -> None:
        """2,000 events in 40 objects, and one object in parts: every payload is there once, byte for byte, and comes back."""
        events = realistic(2000)
        small, large = tmp_path / "small", tmp_path / "large"
        small.write_bytes(b"\n".join(events) + b"\n")
        rest = [
            json.dumps({"n": number, "noise": f"{number * 2_654_435_761 % (1 << 64):016x}" * 4}).encode()
            for number in range(60_000)
        ]
        large.write_bytes(b"\n".join(rest) + b"\n")
        env = {**environment, **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
        found = summary("run", small, "--source-id", "small", env={**env, "JOBS_BACKUP_BATCH_EVENTS": "50"})
        assert (found["complete"], found["stored_events"], found["objects"]) == (True, 2000, 40)
        parts = {"JOBS_BACKUP_MULTIPART_THRESHOLD": "1MiB", "JOBS_BACKUP_PART_SIZE": "5MiB", "JOBS_BACKUP_COMPRESSION": "gzip:1"}
        found = summary("run", large, "--source-id", "large", env={**env, **parts})
        assert (found["complete"], found["objects"], found["open_uploads"]) == (True, 1, [])
        stored = Counter(
            line.split(b'"payload":', 1)[1].rsplit(b',"createdAt":', 1)[0]
            for key in server.keys(bucket)
            for line in gzip.decompress(server.get(bucket, key)).splitlines()
        )
        assert stored == Counter([*events, *rest])
        for source, lines in (("small", events), ("large", rest)):
            output = tmp_path / f"{source}.back"
            back = ("replay", "--list", "--source-id", source, "--payload-only", "--output", output)
            code, _, stderr = run(*back, env=env)
            assert code == 0, stderr
            assert Counter(output.read_bytes().splitlines()) == Counter(lines)


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Store]]:
    """Starts a store at its first use."""
    stores: dict[str, Store] = {}
    with contextlib.ExitStack() as stack:

        def get(name: str) -> Store:
            if name not in stores:
                stores[name] = stack.enter_context(STORES[name](tmp_path_factory.mktemp("store") / name))
            return stores[name]

        yield get


class TestRclone(_OnStore):
    store = "rclone"
    tells_uploads = False
    not_applicable: ClassVar = {**_NO_CONDITIONS, **_MD5}


class TestSwift(_OnStore):
    store = "Swift"
    not_applicable: ClassVar = {
        **_MD5,
        "test_delete_thousands": "it deletes the 1,000 objects of one request one by one, which takes longer than the suite waits",
    }


class TestLocalStack(_OnStore):
    store = "LocalStack"
    not_applicable: ClassVar = {
        **_MD5,
        "test_without_rights": "it takes any credentials",
        "test_list_in_pages": "a list that begins behind a key (StartAfter) lacks keys that are not ASCII",
    }


class TestCeph(_OnStore):
    store = "Ceph"
    not_applicable: ClassVar = {
        **_NONE_AT_COMPLETION,
        **_MD5,
        "test_multipart_completed_twice": "a second completion answers 500, 'already in progress': core begins another upload",
        "test_multipart_odd_keys": "completing an upload of the longest key answers 500; all other keys pass",
    }
