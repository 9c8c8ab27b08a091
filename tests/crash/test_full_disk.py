"""Backpressure: quota, free-disk floor, and a disk that is full to the last byte."""

from __future__ import annotations

import base64
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import events, file_environment
from mounts import small_file_system
from spools import APP, archiver_of, claim, open_spool, record

from jobs_backup import Backup
from jobs_backup.errors import BackupClosed, SpoolError, SpoolFull
from jobs_backup.spool.interface import QuotaLimits
from jobs_backup.spool.sqlite.disk import Ballast, free_bytes, refuse_network
from jobs_backup.spool.sqlite.spool import SqliteSpool


def noise() -> str:
    """Text that hardly compresses."""
    return base64.b64encode(os.urandom(30_000)).decode()


LINE = b'{"noise":"%s"}\n' % noise().encode()


def record_often(spool: SqliteSpool, times: int) -> None:
    for _ in range(times):
        record(spool, [LINE])


def fill(backup: Backup) -> int:
    """Record until there is no room. Returns the number of events."""
    for number in range(100_000):
        try:
            backup.record({"noise": noise()}, source_id="web")
        except SpoolFull:
            return number
    raise AssertionError("never full")


def test_the_quota_is_for_all_processes_together_and_sending_makes_room(tmp_path: Path) -> None:
    room = QuotaLimits(max_bytes=10 << 20)
    one, other = open_spool(tmp_path, room=room), open_spool(tmp_path, room=room)
    with pytest.raises(SpoolFull, match="and may hold 10,485,760") as caught:
        record_often(one, 2000)
    assert "JOBS_BACKUP_SPOOL_MAX_BYTES" in caught.value.hint
    with pytest.raises(SpoolFull):
        record(other, [LINE], stream=APP)
    # The process that hit the quota has sealed its open batches, so that they can be uploaded.
    while (found := other.claim()) is not None:
        other.stored(found.batch)
    assert record(other, [LINE], stream=APP)
    assert record(one, [LINE])
    one.close()
    other.close()


def test_the_quota_counts_what_others_have_not_sealed(tmp_path: Path) -> None:
    room = QuotaLimits(max_bytes=10 << 20)
    one, other = open_spool(tmp_path, room=room), open_spool(tmp_path, room=room)
    record_often(one, 6 << 20 >> 15)  # about 6 MiB
    record(one, [LINE])
    with pytest.raises(SpoolFull):
        record_often(other, 8 << 20 >> 15)
    assert one.claim() is not None or other.claim() is not None
    one.close()
    other.close()


def test_a_full_spool_makes_record_wait_for_room(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, room=QuotaLimits(max_bytes=2 << 20, timeout=120))
    record(spool, [LINE] * 100)
    done = threading.Event()

    def work() -> None:
        record(spool, [LINE])
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert not done.wait(0.5)
    spool.stored(claim(spool))
    assert done.wait(120)
    thread.join()
    spool.close()


def test_who_waits_for_room_is_reported_when_the_spool_is_closed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, room=QuotaLimits(max_bytes=1 << 20, timeout=120))
    record(spool, [LINE] * 60)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            record(spool, [LINE])
        except BackupClosed as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    spool.close()
    thread.join(120)
    assert len(raised) == 1


def test_free_space_is_left_on_the_disk(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, room=QuotaLimits(min_free=1 << 60))
    with pytest.raises(SpoolFull, match="bytes left") as caught:
        record(spool, [LINE])
    assert "free space" in caught.value.hint
    spool.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB."""
    with small_file_system(tmp_path / "disk", "size=96m") as directory:
        yield directory


def to_the_last_byte(directory: Path) -> Path:
    """Fill a disk with foreign data."""
    path = directory / "others"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    assert free_bytes(directory) == 0
    return path


def test_a_disk_that_is_full_to_the_last_byte_loses_nothing_and_can_be_drained(tmp_path: Path, small_disk: Path) -> None:
    environment = file_environment(
        tmp_path,
        JOBS_BACKUP_SPOOL_DIR=str(small_disk / "spool"),
        JOBS_BACKUP_SPOOL_MIN_FREE="16MiB",
        JOBS_BACKUP_SPOOL_FULL_TIMEOUT="0",
        JOBS_BACKUP_BATCH_EVENTS="200",
    )
    ballast = small_disk / "spool" / "ballast"
    Backup.from_env(environment).close()
    with Backup.from_env(environment, archive=False) as recorder:
        assert ballast.stat().st_blocks * 512 >= Ballast.SIZE
        recorded = fill(recorder)
        assert recorded > 200
        others = to_the_last_byte(small_disk)
        assert fill(recorder) == 0
        copy = shutil.copytree(small_disk / "spool", tmp_path / "copy")  # opening a database may take some space
        for path in copy.rglob("*.db"):
            connection = sqlite3.connect(path)
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            connection.close()
        assert ballast.exists(), "only who sends needs it"
        with Backup.from_env(environment) as sender:  # it starts on the full disk
            assert not ballast.exists()
            recorder.flush(120)
            assert archiver_of(sender)
            more = 300
            for _ in range(more):
                recorder.record({"noise": noise()}, source_id="web")
    assert free_bytes(small_disk) > 40 << 20, "sending has freed it"
    assert others.exists()
    with Backup.from_env(environment):
        assert ballast.exists(), "made again, now that there is space"
    found = [event["payload"]["noise"] for event in events(tmp_path)]
    assert len(found) == len(set(found)) == recorded + more


def test_ballast_needs_no_more_space_than_there_is(small_disk: Path) -> None:
    (small_disk / "most").write_bytes(bytes(72 << 20))
    ballast = Ballast(small_disk, min_free=0)
    ballast.balance()
    assert not (small_disk / "ballast").exists()
    (small_disk / "most").unlink()
    (small_disk / "ballast").touch()  # left by a kill during its creation
    assert ballast.min_free == Ballast.SIZE
    ballast.balance()
    assert ballast.min_free == 0
    ballast.balance()
    assert (small_disk / "ballast").stat().st_blocks * 512 >= Ballast.SIZE


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:30 / /mnt/my\\040share rw,relatime - nfs4 server:/export rw,vers=4.2
31 30 0:31 / /mnt/my\\040share/local rw - xfs /dev/vdb rw
32 22 0:32 / /data rw - fuse.s3fs s3fs rw
33 22 0:33 / /data rw - tmpfs tmpfs rw
34 22 0:34 / /database rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("directory", "type_"),
    [
        ("/var/lib", ""),
        ("/mnt/my share", "nfs4"),
        ("/mnt/my share/spool", "nfs4"),
        ("/mnt/my share/local/spool", ""),
        ("/mnt/my share2", ""),
        ("/data/spool", ""),
        ("/database/spool", "fuse.sshfs"),
    ],
)
def test_a_network_file_system_is_refused(tmp_path: Path, directory: str, type_: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    if not type_:
        refuse_network(Path(directory), mounts)
        return
    with pytest.raises(SpoolError, match=type_) as caught:
        refuse_network(Path(directory), mounts)
    assert "JOBS_BACKUP_SPOOL_DIR" in caught.value.hint


def test_where_mounts_are_not_known_nothing_is_refused(tmp_path: Path) -> None:
    refuse_network(tmp_path, tmp_path / "no such file")
