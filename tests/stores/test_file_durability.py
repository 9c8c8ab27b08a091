"""FILE: once a call reports "stored", every name on the object's path is synced, whatever was killed or failed to sync before."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs_backup.checksum import crc32c
from jobs_backup.errors import AlreadyExists, IntegrityError, JobsBackupError, UploadGone
from jobs_backup.model import BytesBody
from jobs_backup.store.file_provider import FileProvider

KEY: Final = "web/gw/2026-11-24/9/object"
DATA: Final = b"data" * 1000
BEFORE, AFTER, EIO = "killed before", "killed after", "EIO"
FAULTS: Final = (BEFORE, AFTER, EIO)
STEPS: Final = ("mkdir", "link", "replace", "unlink", "rmdir", "fsync")
"""The system calls that change names, or make them durable."""


class KilledError(BaseException):
    """The process is gone: its further calls do nothing."""


class Disk:
    """What a power loss would take: records every new name, and forgets it once its directory was synced."""

    def __init__(self) -> None:
        self.real = {name: getattr(os, name) for name in (*STEPS, "open")}
        self.names: dict[int, set[str]] = {}
        """Directory (its inode) -> names in it that are not synced."""
        self.synced: set[int] = set()
        """Files whose bytes are on disk."""
        self.lost: set[int] = set()
        """Files with a failed fsync: the kernel may have dropped their bytes, and another fsync would succeed."""
        self.fault: tuple[int, str] | None = None
        self.steps = 0
        self.is_dead = False

    @contextmanager
    def process(self, fault: tuple[int, str] | None = None) -> Iterator[None]:
        """One process, with a fault at its n-th step."""
        self.fault, self.steps, self.is_dead = fault, 0, False
        with pytest.MonkeyPatch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, self._step(name))
            patch.setattr(os, "open", self._open)
            yield

    def check(self, path: Path) -> None:
        """Check that every name on the path, and the bytes, outlive a power loss."""
        found = path.stat()
        assert found.st_ino in self.synced - self.lost, "the bytes may not be on the disk"
        for one in (path, path.parent.resolve() / path.name):
            for place in (one, *one.parents):
                assert place.name not in self.names.get(place.parent.stat().st_ino, ()), f"{place} was not synced"
        assert path.read_bytes() == DATA

    def _step(self, name: str) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if self.is_dead:
                raise KilledError
            self.steps += 1
            is_here = self.fault is not None and self.fault[0] == self.steps
            what = self.fault[1] if self.fault is not None and is_here else ""
            if what == BEFORE:
                self.is_dead = True
                raise KilledError
            if what == EIO:
                if name == "fsync" and not _is_directory(arguments[0]):
                    self.lost.add(os.fstat(arguments[0]).st_ino)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            result = self._do(name, *arguments, **options)
            if what == AFTER:
                self.is_dead = True
                raise KilledError
            return result

        return step

    def _do(self, name: str, *arguments: Any, **options: Any) -> Any:
        if name == "fsync":
            inode = os.fstat(arguments[0]).st_ino
            if _is_directory(arguments[0]):
                self.names.pop(inode, None)
            else:
                self.synced.add(inode)
            return None
        result = self.real[name](*arguments, **options)
        if name in ("mkdir", "link", "replace"):
            made = Path(arguments[0] if name == "mkdir" else arguments[1])
            self.names.setdefault(made.parent.stat().st_ino, set()).add(made.name)
            if name == "mkdir":
                self.names.pop(made.stat().st_ino, None)  # an inode's number is reused
        return result

    def _open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if self.is_dead:
            raise KilledError
        descriptor: int = self.real["open"](path, flags, *arguments, **options)
        if flags & (os.O_RDWR | os.O_WRONLY):  # a new file, whatever had its number before
            inode = os.fstat(descriptor).st_ino
            self.synced.discard(inode)
            self.lost.discard(inode)
        return descriptor


def _is_directory(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def write(provider: Any) -> None:
    provider.write(KEY, BytesBody(DATA), crc32c(DATA), True)


def overwrite(provider: Any) -> None:
    provider.write(KEY, BytesBody(DATA), crc32c(DATA), False)


class InParts:
    """As core does it: complete the known upload; if it is gone, start another one."""

    def __init__(self) -> None:
        self._known: Any = None

    def __call__(self, provider: Any) -> None:
        try:
            self._complete(provider)
        except UploadGone:
            self._known = None
            self._complete(provider)

    def _complete(self, provider: Any) -> None:
        if self._known is None:
            upload = provider.create_multipart(KEY)
            halves = (DATA[: len(DATA) // 2], DATA[len(DATA) // 2 :])
            parts = [provider.write_part(upload, number, BytesBody(half)) for number, half in enumerate(halves, 1)]
            self._known = upload, parts
        upload, parts = self._known
        provider.complete_multipart(upload, parts, len(DATA), crc32c(DATA), True)


def attempt(disk: Disk, bucket: Path, store: Callable[[Any], None], fault: tuple[int, str] | None) -> bool:
    """One attempt in its own process. Returns whether it reports the object as stored; then it must be."""
    provider = FileProvider.from_settings({"JOBS_BACKUP_BUCKET": str(bucket)})
    with disk.process(fault), suppress(KilledError):
        try:
            store(provider)
        except AlreadyExists:
            pass
        except JobsBackupError:
            return False
        if not disk.is_dead:
            disk.check(bucket / KEY)
            return True
    return False


def prepared(directory: Path, disk: Disk, layout: str) -> Path:
    """A bucket that nobody has synced. A part of the path, or a symbolic link on it, may exist already and be unsynced, too."""
    bucket = directory / "bucket"
    with disk.process():
        bucket.mkdir(parents=True)
        if layout == "half a path":
            os.mkdir(bucket / "web")  # noqa: PTH102 - the test records this call
            os.mkdir(bucket / "web/gw")  # noqa: PTH102
        elif layout == "link":
            os.mkdir(bucket / "elsewhere")  # noqa: PTH102
            os.mkdir(bucket / "elsewhere/web")  # noqa: PTH102
            (bucket / "web").symlink_to(bucket / "elsewhere/web")
    return bucket


STORES: Final[dict[str, Callable[[], Callable[[Any], None]]]] = {
    "write": lambda: write,
    "overwrite": lambda: overwrite,
    "parts": InParts,
}


@pytest.mark.parametrize("nameless", [True, False], ids=["without a name", "with a name"])
@pytest.mark.parametrize("layout", ["empty", "half a path", "link"])
@pytest.mark.parametrize("name", STORES)
def test_a_fault_at_each_step(name: str, layout: str, nameless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not nameless:
        monkeypatch.setattr("jobs_backup.store.file_provider._NAMELESS", 0)
    disk = Disk()
    assert attempt(disk, prepared(tmp_path / "healthy", disk, layout), STORES[name](), None)
    steps = disk.steps
    assert steps > 6
    for step in range(1, steps + 1):
        for fault in FAULTS:
            disk = Disk()
            bucket = prepared(tmp_path / f"{step} {fault}", disk, layout)
            store = STORES[name]()
            attempt(disk, bucket, store, (step, fault))
            assert attempt(disk, bucket, store, None), "a retry on a healthy disk stores it"


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(sorted(STORES)),
    layout=st.sampled_from(["empty", "half a path"]),
    faults=st.lists(st.tuples(st.integers(1, 60), st.sampled_from(FAULTS)), max_size=5),
)
def test_faults_in_a_row(name: str, layout: str, faults: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    disk = Disk()
    bucket = prepared(tmp_path_factory.mktemp("row"), disk, layout)
    store = STORES[name]()
    for fault in faults:
        attempt(disk, bucket, store, fault)
    assert attempt(disk, bucket, store, None)


@pytest.mark.parametrize(
    "there", [b"other bytes", DATA[:-1], DATA + b"x", b"", None], ids=["other", "less", "more", "empty", "directory"]
)
def test_what_has_other_bytes_is_not_this_object(there: bytes | None, tmp_path: Path) -> None:
    """Nothing is overwritten, and no object counts as stored."""
    bucket = prepared(tmp_path, Disk(), "empty")
    target = bucket / KEY
    target.parent.mkdir(parents=True)
    if there is None:
        target.mkdir()
    else:
        target.write_bytes(there)
    provider: Any = FileProvider.from_settings({"JOBS_BACKUP_BUCKET": str(bucket)})
    for store in (write, InParts()):
        with pytest.raises(IntegrityError, match="exists with other bytes"):
            store(provider)
        assert there is None or target.read_bytes() == there
