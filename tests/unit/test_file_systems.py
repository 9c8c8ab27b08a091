"""FILE on file systems that lack features, refuse or fill up: it names the cause and the fix, and `check` finds them beforehand."""

from __future__ import annotations

import errno
import os
import re
import stat
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from buckets import events, file_environment
from spools import archiver_of

from jobs_backup import Backup
from jobs_backup.checks.permissions import Report, check
from jobs_backup.checksum import crc32c
from jobs_backup.errors import AlreadyExists, JobsBackupError, NotSupported, PermissionDenied, StorageError, Unavailable
from jobs_backup.model import BytesBody
from jobs_backup.settings.core import CoreSettings
from jobs_backup.store import file_provider
from jobs_backup.store.file_provider import FileProvider
from jobs_backup.util.exhaustion import explain

DATA = b"data" * 1000
NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK]
LACKING = [errno.EOPNOTSUPP, errno.ENOSYS]


@contextmanager
def failing(call: str, number: int, when: Callable[..., bool] = lambda *_, **__: True) -> Iterator[None]:
    """Make the system call fail with this error where `when` accepts its arguments."""
    original = getattr(os, call)

    def refused(*arguments: Any, **options: Any) -> Any:
        if when(*arguments, **options):
            raise OSError(number, os.strerror(number))
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, refused)
        yield


def is_directory(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.fixture(params=[True, False], ids=["without a name", "with a name"])
def store(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Drafts have no name, or a name where the file system requires one."""
    if not request.param:
        monkeypatch.setattr(file_provider, "_NAMELESS", 0)
    (tmp_path / "bucket").mkdir()
    return FileProvider.from_settings({"JOBS_BACKUP_BUCKET": str(tmp_path / "bucket")})


def write(store: Any, key: str = "web/key", *, if_absent: bool = True) -> None:
    store.write(key, BytesBody(DATA), crc32c(DATA), if_absent)


def write_in_parts(store: Any, key: str = "web/key", *, if_absent: bool = True) -> None:
    upload = store.create_multipart(key)
    parts = [store.write_part(upload, number, BytesBody(DATA)) for number in (1, 2, 2)][1:]
    parts[0] = store.write_part(upload, 1, BytesBody(DATA))
    store.complete_multipart(upload, parts, 2 * len(DATA), crc32c(DATA * 2), if_absent)


def left_over(directory: Path) -> list[str]:
    work = directory / "bucket" / ".jobs-backup"
    return [str(path) for path in work.rglob("*") if path.is_file()]


# No hard links


@pytest.mark.parametrize("number", NO_LINKS, ids=errno.errorcode.get)
def test_without_hard_links_the_setting_is_named(store: Any, number: int) -> None:
    with failing("link", number), pytest.raises(NotSupported, match="no hard links") as caught:
        write(store)
    assert "JOBS_BACKUP_CONDITIONAL_WRITES=false" in caught.value.hint
    assert not caught.value.retryable


@pytest.mark.parametrize("number", NO_LINKS, ids=errno.errorcode.get)
@pytest.mark.parametrize("how", [write, write_in_parts])
def test_with_the_setting_none_are_needed(store: Any, tmp_path: Path, number: int, how: Callable[..., None]) -> None:
    with failing("link", number):
        how(store, if_absent=False)
        how(store, if_absent=False)
    expected = DATA if how is write else DATA * 2
    assert (tmp_path / "bucket" / "web" / "key").read_bytes() == expected
    assert left_over(tmp_path) == []


def test_a_directory_that_refuses_links_is_no_file_system_without_them(store: Any) -> None:
    """link(2) has one errno for two causes: an immutable directory, for example."""
    refuses = failing("link", errno.EPERM, lambda _, target, **__: ".jobs-backup" not in str(target))
    with refuses, pytest.raises(PermissionDenied) as caught:
        write(store)
    assert "let this user read and write" in caught.value.hint


def report_of(environment: dict[str, str]) -> Report:
    return check(CoreSettings.from_environment(environment), environment)


@pytest.mark.parametrize("number", NO_LINKS, ids=errno.errorcode.get)
def test_check_finds_it_and_the_setting_helps(tmp_path: Path, number: int) -> None:
    environment = file_environment(tmp_path, JOBS_BACKUP_MULTIPART_THRESHOLD="1KiB", JOBS_BACKUP_PART_SIZE="1KiB")
    with failing("link", number):
        report = report_of(environment)
        assert not report.ready
        assert not report.may_pass
        (right,) = (one for one in report.rights if one.name == "write")
        assert "JOBS_BACKUP_CONDITIONAL_WRITES=false" in right.hint
        assert report.left == []
        environment["JOBS_BACKUP_CONDITIONAL_WRITES"] = "false"
        assert report_of(environment).ready
        with Backup.from_env(environment) as backup:
            backup.record_many([{"n": os.urandom(3000).hex()} for _ in range(4)], source_id="web")
            backup.flush(timeout=20)
    assert len(events(tmp_path)) == 4


# No rename, no fsync


@pytest.mark.parametrize("number", LACKING, ids=errno.errorcode.get)
def test_without_rename(store: Any, number: int) -> None:
    with failing("replace", number), pytest.raises(NotSupported, match="cannot do this") as caught:
        write(store, if_absent=False)
    assert "another file system" in caught.value.hint


@pytest.mark.parametrize("number", [*LACKING, errno.EINVAL], ids=errno.errorcode.get)
@pytest.mark.parametrize("how", [write, write_in_parts])
def test_without_fsync_of_directories(store: Any, number: int, how: Callable[..., None]) -> None:
    with failing("fsync", number, is_directory), pytest.raises(NotSupported) as caught:
        how(store)
    assert "another file system" in caught.value.hint
    assert not caught.value.refused, "the object may be there, so core must not take it elsewhere"


def test_check_finds_a_directory_that_cannot_be_synced(tmp_path: Path) -> None:
    with failing("fsync", errno.EINVAL, is_directory):
        report = report_of(file_environment(tmp_path))
    assert not report.ready
    assert "power loss" in next(one.hint for one in report.rights if one.name == "write")
    assert [one.what for one in report.left] == ["unsure"], "it has its name"


# Read-only, full, damaged


def _opening(path: Any, flags: int, *_: Any, **__: Any) -> bool:
    return bool(flags & (os.O_RDWR | os.O_WRONLY)) and "bucket" in str(path)


@pytest.mark.parametrize(
    ("number", "expected", "hint"),
    [
        (errno.EROFS, PermissionDenied, "for writing.*kernel's log"),
        (errno.EACCES, PermissionDenied, "let this user read and write"),
        (errno.ENOSPC, Unavailable, "free space"),
        (errno.EDQUOT, Unavailable, "quota"),
        (errno.EMFILE, Unavailable, "ulimit -n"),
        (errno.ENFILE, Unavailable, "fs.file-max"),
        (errno.EIO, Unavailable, "kernel's log"),
        (errno.ESTALE, Unavailable, "mount .* again"),
        (errno.ENAMETOOLONG, NotSupported, "shorten .*JOBS_BACKUP_PREFIX"),
        (errno.EINVAL, NotSupported, "shorten or change"),
        (errno.EILSEQ, NotSupported, "shorten or change"),
        (errno.EFBIG, NotSupported, "JOBS_BACKUP_BATCH_BYTES"),
        (errno.ENOSYS, NotSupported, "another file system"),
        (errno.ELOOP, Unavailable, "check the file system"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else None,
)
def test_what_a_disk_says_has_a_hint(store: Any, number: int, expected: type[StorageError], hint: str) -> None:
    with failing("open", number, _opening), pytest.raises(StorageError) as caught:
        write(store)
    assert type(caught.value) is expected
    said = caught.value.message
    assert os.strerror(number).lower() in said.lower() or explain(OSError(number, ""), Path("/"), "").why in said
    assert re.search(hint, caught.value.hint), caught.value.hint


@pytest.mark.parametrize("call", ["open", "replace", "link", "fsync"])
def test_no_error_has_an_uploads_id(store: Any, call: str) -> None:
    """An OSError has a path, which contains the id."""
    upload = store.create_multipart("key")
    number = errno.EIO
    with failing(call, number, lambda *arguments, **_: call == "fsync" or upload.id in str(arguments)):
        try:
            store.write_part(upload, 1, BytesBody(DATA))
        except StorageError as error:
            assert upload.id not in "".join(traceback.format_exception(error)) + error.one_line() + repr(error)


def test_without_inodes(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs("/")
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*found[:5], 1000, 0, 0, *found[8:10])))
    with failing("open", errno.ENOSPC, _opening), pytest.raises(Unavailable, match="bucket: no inodes are left"):
        write(store)


def test_a_name_that_is_too_long_is_this_objects_alone(store: Any, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="too long") as caught:
        write(store, "web/" + "n" * 300)
    assert not caught.value.refused
    write(store)
    assert (tmp_path / "bucket" / "web" / "key").read_bytes() == DATA


def test_one_object_that_cannot_be_written_does_not_hold_up_the_others(tmp_path: Path) -> None:
    environment = file_environment(tmp_path, JOBS_BACKUP_RETRY_ATTEMPTS="1")
    too_long = failing("mkdir", errno.ENAMETOOLONG, lambda path, *_, **__: "a-long-name" in str(path))
    with too_long, Backup.from_env(environment) as backup:
        backup.record({"n": 1}, source_id="a-long-name")
        backup.record({"n": 2}, source_id="web")
        with pytest.raises(JobsBackupError):
            backup.flush(timeout=20)
        while not events(tmp_path):
            archiver_of(backup).wait(1)
    assert [event["payload"] for event in events(tmp_path)] == [{"n": 2}]


# Warnings only


def test_upper_and_lower_case(store: Any, tmp_path: Path) -> None:
    write(store)
    assert store.warnings == []
    (tmp_path / "bucket" / ".JOBS-BACKUP").mkdir()  # as on a case-insensitive file system
    (warning,) = store.warnings
    assert "ignores upper and lower case" in warning


def test_short_names(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pathconf", lambda *_: 143)  # eCryptfs
    (warning,) = store.warnings
    assert "at most 143 bytes" in warning


def test_check_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = file_environment(tmp_path)
    assert report_of(environment).warnings == []
    monkeypatch.setattr(os, "pathconf", lambda *_: 143)
    report = report_of(environment)
    assert report.ready
    assert "at most 143 bytes" in report.warnings[0]


def test_delete_is_not_tried_where_nothing_was_written(tmp_path: Path) -> None:
    """Deleting a missing object succeeds for every caller."""
    with failing("open", errno.EROFS, _opening):
        report = report_of(file_environment(tmp_path))
    outcomes = {one.name: str(one.outcome) for one in report.rights}
    assert (outcomes["write"], outcomes["delete"]) == ("refused", "not tried")
    assert not report.ready


def test_a_file_systems_own_directory_is_not_ours(store: Any, tmp_path: Path) -> None:
    """lost+found, which belongs to root, is in the top directory of each ext4."""
    write(store)
    (tmp_path / "bucket" / "lost+found").mkdir()
    refused = failing("scandir", errno.EACCES, lambda path, *_: str(path).endswith("lost+found"))
    with refused:
        assert [one.key for one in store.list("", "").objects] == ["web/key"]


def test_what_exists_is_still_found(store: Any) -> None:
    write(store)
    with pytest.raises(AlreadyExists):
        write(store)
