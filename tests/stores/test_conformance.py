"""The conformance suite on every provider of this repository."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from azurite import Azurite
from gcs import Emulator, GcsServer
from servers import Store, StoreInspector

from jobs_backup.model import Upload
from jobs_backup.testing.conformance import Inspector, ProviderConformance

_SDK = ("boto3", "botocore", "urllib3", "s3transfer")


class _OnStore(ProviderConformance):
    """On SeaweedFS, with an identity that has exactly the permissions of the hooks."""

    forbidden_modules = _SDK
    more: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture
    def environment(self, store: Store, bucket: str) -> Mapping[str, str]:
        return {**store.environment(bucket, "all", provider=self.provider), **self.more}

    @pytest.fixture
    def inspector(self, store: Store, bucket: str) -> Inspector:
        return StoreInspector(store, bucket)

    @pytest.fixture
    def environment_without_bucket(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        return {**environment, "JOBS_BACKUP_BUCKET": "no-such-bucket"}

    @pytest.fixture
    def environment_without_rights(self, store: Store, bucket: str) -> Callable[[], Mapping[str, str]]:
        return lambda: {**store.environment(bucket, "nothing", provider=self.provider), **self.more}

    @pytest.fixture
    def environment_at(self, store: Store, bucket: str) -> Callable[[str], Mapping[str, str]]:
        return lambda url: {**store.environment(bucket, "all", url=url, provider=self.provider), **self.more}


_LIKE_S3 = "the same code as S3's, with nothing of the settings in it; and it takes long"
_NOT_MINIO: Mapping[str, str] = {
    "test_multipart_wrong_checksum_publishes_nothing": "with Content-MD5 the store is told no checksum of the whole",
    "test_delete_thousands": _LIKE_S3,
    "test_list_in_pages": _LIKE_S3,
}


@pytest.mark.slow
class TestS3(_OnStore):
    provider = "S3"
    more: ClassVar = {"JOBS_BACKUP_S3_CHECKSUM": "crc32c", "AWS_ENABLE_SSE": "true"}


@pytest.mark.slow
class TestMinio(_OnStore):
    provider = "MINIO"
    not_applicable = _NOT_MINIO


@pytest.mark.slow
class TestSpaces(_OnStore):
    provider = "DIGITAL_OCEAN_SPACES"
    not_applicable = _NOT_MINIO


class _GcsInspector:
    def __init__(self, server: GcsServer, bucket: str) -> None:
        self._server = server
        self._bucket = bucket

    def keys(self) -> list[str]:
        return sorted(self._server.buckets[self._bucket])

    def get(self, key: str) -> bytes:
        return self._server.buckets[self._bucket][key].data

    def open_uploads(self) -> list[str]:
        return self._server.open_uploads(self._bucket)


class _OnGcs(ProviderConformance):
    provider = "GCS"
    forbidden_modules = ("google", "requests", "urllib3")

    @pytest.fixture
    def environment_without_bucket(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        return {**environment, "JOBS_BACKUP_BUCKET": "no-such-bucket"}

    def unknown(self, upload: Upload) -> Upload:
        return msgspec.structs.replace(upload, id=f"{upload.id}x")

    def upload_at(self, upload: Upload, url: str) -> Upload:
        return msgspec.structs.replace(upload, id=re.sub(r"^https?://[^/]+", url, upload.id))


@pytest.mark.slow
class TestGcs(_OnGcs):
    """On a scripted server that answers as Google's documentation says."""

    @pytest.fixture
    def environment(self, gcs: GcsServer) -> Mapping[str, str]:
        return gcs.environment(gcs.bucket())

    @pytest.fixture
    def inspector(self, gcs: GcsServer, environment: Mapping[str, str]) -> Inspector:
        return _GcsInspector(gcs, environment["JOBS_BACKUP_BUCKET"])

    @pytest.fixture
    def environment_without_rights(self, gcs: GcsServer, environment: Mapping[str, str]) -> Callable[[], Mapping[str, str]]:
        def withdraw() -> Mapping[str, str]:
            gcs.granted = frozenset()
            return environment

        return withdraw

    @pytest.fixture
    def environment_at(self, gcs: GcsServer, environment: Mapping[str, str]) -> Callable[[str], Mapping[str, str]]:
        return lambda url: gcs.environment(environment["JOBS_BACKUP_BUCKET"], url=url)


class _EmulatorInspector:
    def __init__(self, emulator: Emulator, bucket: str) -> None:
        self._emulator = emulator
        self._bucket = bucket

    def keys(self) -> list[str]:
        return sorted(self._emulator.keys(self._bucket))

    def get(self, key: str) -> bytes:
        return self._emulator.get(self._bucket, key)

    def open_uploads(self) -> None:
        return None


_ASKING = "the emulator makes a truncated object when it is asked how much of an upload it has; see TestGcs"


@pytest.mark.slow
class TestGcsEmulator(_OnGcs):
    """On fake-gcs-server."""

    not_applicable: ClassVar = {
        "test_multipart_continued_by_another_process": _ASKING,
        "test_multipart_failing_body": _ASKING,
        "test_multipart_of_bytes_that_stand_already": "the emulator knows no preconditions of resumable uploads; see TestGcs",
        "test_multipart_complete_onto_an_existing_key": "the emulator knows no preconditions of resumable uploads; see TestGcs",
        "test_multipart_wrong_checksum_publishes_nothing": "the emulator does not check checksums; see TestGcs",
        "test_wrong_checksum_publishes_nothing": "the emulator does not check checksums; see TestGcs",
        "test_multipart_late_part": "the emulator still takes parts of what was cancelled; see TestGcs",
        "test_abort": "the emulator still takes parts of what was cancelled; see TestGcs",
        "test_abort_of_an_unknown_upload": "the emulator cancels uploads that it does not know; see TestGcs",
    }

    @pytest.fixture
    def environment(self, emulator: Emulator) -> Mapping[str, str]:
        return emulator.environment(emulator.bucket())

    @pytest.fixture
    def inspector(self, emulator: Emulator, environment: Mapping[str, str]) -> Inspector:
        return _EmulatorInspector(emulator, environment["JOBS_BACKUP_BUCKET"])


class _AzureInspector:
    def __init__(self, server: Azurite, container: str) -> None:
        self._server = server
        self._container = container

    def keys(self) -> list[str]:
        return self._server.keys(self._container)

    def get(self, key: str) -> bytes:
        return self._server.get(self._container, key)

    def open_uploads(self) -> None:
        """Azure reports uncommitted blocks, but not whether anybody still intends to commit them."""
        return


@pytest.mark.slow
class TestAzureBlob(ProviderConformance):
    """On Azurite, with the account's key."""

    provider = "AZURE_BLOB"
    forbidden_modules = ("azure.core", "azure.storage", "azure.identity", "requests", "urllib3")
    not_applicable: ClassVar = {
        "test_abort": "Azure knows no uploads: it discards blocks when the key's object is stored, or after a week",
        "test_abort_of_an_unknown_upload": "Azure knows no uploads, so none is unknown to it",
    }

    @pytest.fixture
    def environment(self, azure: Azurite) -> Mapping[str, str]:
        return azure.environment(azure.container())

    @pytest.fixture
    def inspector(self, azure: Azurite, environment: Mapping[str, str]) -> Inspector:
        return _AzureInspector(azure, environment["JOBS_BACKUP_BUCKET"])

    @pytest.fixture
    def environment_without_bucket(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        return {**environment, "JOBS_BACKUP_BUCKET": "no-such-container"}

    @pytest.fixture
    def environment_without_rights(self, azure: Azurite, environment: Mapping[str, str]) -> Callable[[], Mapping[str, str]]:
        container = environment["JOBS_BACKUP_BUCKET"]
        return lambda: azure.environment(container, sas=azure.sas(container, "t"))

    @pytest.fixture
    def environment_at(self, azure: Azurite, environment: Mapping[str, str]) -> Callable[[str], Mapping[str, str]]:
        return lambda url: azure.environment(environment["JOBS_BACKUP_BUCKET"], url=url)


class _DirectoryInspector:
    def __init__(self, root: Path) -> None:
        self._root = root

    def keys(self) -> list[str]:
        files = (path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if path.is_file())
        return sorted(key for key in files if not key.startswith(".jobs-backup/"))

    def get(self, key: str) -> bytes:
        return (self._root / key).read_bytes()

    def open_uploads(self) -> None:
        return None


class TestFile(ProviderConformance):
    provider = "FILE"

    @pytest.fixture
    def environment(self, tmp_path: Path) -> Mapping[str, str]:
        return {"JOBS_BACKUP_BUCKET": str(tmp_path)}

    @pytest.fixture
    def inspector(self, tmp_path: Path) -> Inspector:
        return _DirectoryInspector(tmp_path)

    @pytest.fixture
    def environment_without_bucket(self, tmp_path: Path) -> Mapping[str, str]:
        return {"JOBS_BACKUP_BUCKET": str(tmp_path / "no-such-directory")}
