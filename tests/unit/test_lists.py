"""Faulty lists of stores: a wrong size, a page that never advances, keys out of order. Served by a scripted HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import pytest
from unreachable import variables

from jobs_backup.errors import ContractViolation, JobsBackupError, StorageError
from jobs_backup.sdk import size_listed
from jobs_backup.settings.core import CoreSettings
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, FaultProxy


class Entry(NamedTuple):
    """One object of a list. `size` is in the store's own form; None omits it."""

    key: str
    size: str | None = "5"


def s3(entries: Sequence[Entry], more: str) -> Answer:
    """ListObjectsV2."""
    sizes = [("" if one.size is None else f"<Size>{one.size}</Size>") for one in entries]
    contents = "".join(
        f"<Contents><Key>{one.key}</Key>{size}<ETag>x</ETag></Contents>" for one, size in zip(entries, sizes, strict=True)
    )
    truncated = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated><KeyCount/><MaxKeys>many</MaxKeys>"
    text = f"<?xml version='1.0'?><ListBucketResult><Name>b</Name>{truncated}{contents}</ListBucketResult>"
    return Answer(200, text.encode(), {"Content-Type": "application/xml", "x-amz-request-id": "1"})


def gcs(entries: Sequence[Entry], more: str) -> Answer:
    """objects.list."""
    items = [{"name": one.key} | ({} if one.size is None else {"size": one.size}) for one in entries]
    document = {"kind": "storage#objects", "items": [*items, "odd", {"name": 5}]} | ({"nextPageToken": more} if more else {})
    return Answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


def azure(entries: Sequence[Entry], more: str) -> Answer:
    """List Blobs."""
    sizes = [("" if one.size is None else f"<Content-Length>{one.size}</Content-Length>") for one in entries]
    blobs = "".join(
        f"<Blob><Name>{one.key}</Name><Properties>{size}<BlobType>BlockBlob</BlobType></Properties></Blob>"
        for one, size in zip(entries, sizes, strict=True)
    )
    text = f'<?xml version="1.0"?><EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{more}</NextMarker></EnumerationResults>'
    return Answer(200, text.encode(), {"Content-Type": "application/xml", "x-ms-request-id": "1"})


LISTS: Final[dict[str, Callable[[Sequence[Entry], str], Answer]]] = {
    "S3": s3, "MINIO": s3, "DIGITAL_OCEAN_SPACES": s3, "GCS": gcs, "AZURE_BLOB": azure,
}  # fmt: skip
every_store = pytest.mark.parametrize("name", LISTS)


def store(name: str, url: str) -> ObjectStore:
    environment = {**variables(name, url), "JOBS_BACKUP_STORAGE_PROVIDER": name, "JOBS_BACKUP_RETRY_ATTEMPTS": "1"}
    return ObjectStore.from_settings(CoreSettings.from_environment(environment), environment, stop=threading.Event())


def listed(to: ObjectStore) -> list[str]:
    """All keys, as replay requests them."""
    keys: list[str] = []
    token: str | None = ""
    while token is not None:
        page = to.list("", token)
        keys += [one.key for one in page.objects]
        token = page.after
    return keys


@every_store
@pytest.mark.parametrize("size", [None, "", " ", "abc", "1e3", "-1", "1.5", "0x10", "9" * 30])
def test_an_odd_size_does_not_fail_the_list(name: str, size: str | None) -> None:
    with FaultProxy() as server:
        server.fail(LISTS[name]([Entry("a"), Entry("b", size), Entry("c", "7")], ""))
        page = store(name, server.url).list("", "")
    assert [(one.key, one.size) for one in page.objects] == [("a", 5), ("b", 0), ("c", 7)]


@every_store
def test_a_store_that_ignores_where_to_begin_gives_each_object_once(name: str) -> None:
    with FaultProxy() as server:
        server.fail(LISTS[name]([Entry("a"), Entry("b"), Entry("c")], ""), times=ALWAYS)
        assert [one.key for one in store(name, server.url).list("", "b").objects] == ["c"]


@every_store
def test_a_list_without_an_end_is_an_error(name: str) -> None:
    with FaultProxy() as server:
        server.fail(LISTS[name]([Entry("a"), Entry("b")], "same"), times=ALWAYS)
        with pytest.raises(JobsBackupError) as caught:
            listed(store(name, server.url))
        assert isinstance(caught.value, StorageError)
        assert len(server.requests) < 5
        assert caught.value.hint


@every_store
def test_pages_that_end_where_they_began_are_an_error(name: str) -> None:
    """One key over and over, with a different marker each time."""
    with FaultProxy() as server:
        server.fail(lambda _: LISTS[name]([Entry("a")], f"marker{len(server.requests)}"), times=ALWAYS)
        with pytest.raises(StorageError):
            listed(store(name, server.url))
        assert len(server.requests) < 5


@pytest.mark.parametrize("name", [name for name in LISTS if name != "AZURE_BLOB"])
def test_a_page_in_another_order_is_an_error_and_no_gap(name: str) -> None:
    with FaultProxy() as server:
        server.fail(LISTS[name]([Entry("c"), Entry("a"), Entry("b")], "more"), times=ALWAYS)
        with pytest.raises(ContractViolation, match="does not continue"):
            listed(store(name, server.url))


@pytest.mark.parametrize("size", [None, "", "abc", b"5", True, 1.5, [], "-1", "٣", "1_000"])
def test_what_is_no_size_is_0(size: object) -> None:
    assert size_listed(size) == 0


@pytest.mark.parametrize("size", [5, "5", " 5\n", "005"])
def test_a_size_in_any_form(size: object) -> None:
    assert size_listed(size) == 5
