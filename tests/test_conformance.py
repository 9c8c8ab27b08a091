"""The conformance suite on every provider of this repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from servers import Store

from jobs_backup.testing.conformance import Inspector, ProviderConformance

_SDK = ("boto3", "botocore", "urllib3", "s3transfer")


class _StoreInspector:
    def __init__(self, store: Store, bucket: str) -> None:
        self._store = store
        self._bucket = bucket

    def keys(self) -> list[str]:
        return self._store.keys(self._bucket)

    def get(self, key: str) -> bytes:
        return self._store.get(self._bucket, key)

    def open_uploads(self) -> list[str]:
        return self._store.open_uploads(self._bucket)


class _OnStore(ProviderConformance):
    """On SeaweedFS, with an identity that may do exactly what the hooks need."""

    forbidden_modules = _SDK
    more: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture
    def environment(self, store: Store, bucket: str) -> Mapping[str, str]:
        return {**store.environment(bucket, "all", provider=self.provider), **self.more}

    @pytest.fixture
    def inspector(self, store: Store, bucket: str) -> Inspector:
        return _StoreInspector(store, bucket)

    @pytest.fixture
    def environment_without_bucket(self, environment: Mapping[str, str]) -> Mapping[str, str]:
        return {**environment, "JOBS_BACKUP_BUCKET": "no-such-bucket"}


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
