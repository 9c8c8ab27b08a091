"""FILE, beside what the conformance suite asks of every provider: a kill leaves nothing of what was being written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import crc32c
import pytest

from jobs_backup import file_provider
from jobs_backup.errors import AlreadyExists
from jobs_backup.file_provider import FileProvider
from jobs_backup.model import Body, BytesBody

DATA = b"data" * 100_000


class Watched(Body):
    """A body during whose reading somebody looks."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.size = len(DATA)
        self._look = look

    def open(self) -> BinaryIO:
        self._look()
        return BytesBody(DATA).open()


def provider(directory: Path) -> FileProvider:
    (directory / "bucket").mkdir()
    return FileProvider.from_settings({"JOBS_BACKUP_BUCKET": str(directory / "bucket")})


def files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory / "bucket").as_posix() for path in directory.rglob("*") if path.is_file())


def test_while_it_writes_there_is_nothing_that_could_be_left(tmp_path: Path) -> None:
    store = provider(tmp_path)
    found: list[list[str]] = []
    body = Watched(lambda: found.append(files(tmp_path)))
    store.write("a/key", body, crc32c.crc32c(DATA), True)
    upload = store.create_multipart("b/key")
    store.write_part(upload, 1, body)
    assert found == [[], ["a/key"]]
    assert files(tmp_path) == [f".jobs-backup/{upload.id}/1", "a/key"]


@pytest.mark.parametrize("nameless", [True, False], ids=["without a name", "with a name"])
def test_every_way_to_write_gives_whole_files_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    if not nameless:
        monkeypatch.setattr(file_provider, "_NAMELESS", 0)
    store: Any = provider(tmp_path)
    body, checksum = BytesBody(DATA), crc32c.crc32c(DATA)
    store.write("key", body, checksum, True)
    with pytest.raises(AlreadyExists):
        store.write("key", body, checksum, True)
    store.write("key", body, checksum, False)
    store.write("new", body, checksum, False)
    upload = store.create_multipart("parts")
    parts = [store.write_part(upload, number, body) for number in (1, 2, 1)][1:]
    store.complete_multipart(upload, sorted(parts, key=lambda part: part.number), 2 * len(DATA), crc32c.crc32c(DATA * 2), True)
    assert files(tmp_path) == ["key", "new", "parts"]
    assert (tmp_path / "bucket" / "parts").read_bytes() == DATA * 2
    assert (tmp_path / "bucket" / "new").read_bytes() == DATA
