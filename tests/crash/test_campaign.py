"""A short crash campaign, and proof that it finds the violations it looks for. `make campaign` is the long one."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from buckets import FAST_RETRY
from campaign import points
from campaign.checks import Figures, check
from campaign.runner import Crew, Plan, on_file, on_s3
from campaign.targets import FileTarget
from servers import Store

from jobs_backup import Backup, Event

FOUND = (
    "lost", "duplicates", "damaged", "torn_calls", "misplaced", "refused_yet_stored", "deleted_early", "undeleted", "open_uploads",
    "left_over", "other",
)  # fmt: skip


def assert_nothing_found(figures: Figures, kills: int) -> None:
    assert figures.violations == []
    assert [getattr(figures, name) for name in FOUND] == [0] * len(FOUND)
    assert figures.kills >= kills
    assert figures.stored + figures.gone >= figures.acknowledged > 100
    assert 5 < figures.objects < figures.stored
    assert figures.delivered >= figures.gone >= figures.deleted > 0
    assert figures.failures > 0
    # This few kills may miss some of them: a long campaign prints how often each happened.
    assert figures.forks + figures.clock_leaps + figures.locks_removed > 0


@pytest.mark.slow
def test_four_recorders_and_two_archivers_are_killed_over_a_failing_network(store: Store, tmp_path: Path) -> None:
    plan = Plan(kills=12, seed=1, crew=Crew(recorders=4, archivers=2, both=0, threads=4), cycle=2.0, locks=0)
    assert_nothing_found(on_s3(tmp_path / "campaign", store, plan), 12)


@pytest.mark.slow
def test_killed_over_a_failing_disk(tmp_path: Path) -> None:
    plan = Plan(kills=12, seed=1, crew=Crew(recorders=2, archivers=1, both=2, threads=4), cycle=2.0, locks=0)
    assert_nothing_found(on_file(tmp_path / "campaign", plan), 12)


def test_all_points_are_places_in_the_code() -> None:
    points.check_all()


def test_a_point_that_does_not_exist_is_refused() -> None:
    with pytest.raises(LookupError, match="no_such_method"):
        points.resolve("jobs_backup.spool.sqlite.spool:SqliteSpool.no_such_method")


class TestTheCheck:
    """A correct spool and bucket with one fault in each test. An object of three events was deleted."""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """The files of a round: acknowledged events in the bucket, one call of five events and one of two."""
        directory = tmp_path / "round"
        (directory / "acks").mkdir(parents=True)
        settings = {**FileTarget(directory).environment(), **FAST_RETRY, "JOBS_BACKUP_SPOOL_DIR": str(directory / "spool")}
        acks = []
        with Backup.from_env(settings) as backup:
            for call, count in enumerate((5, 2, 3)):
                ids = [f'["w",0,{call},{index},{count},true]' for index in range(count)]
                events = [
                    Event(
                        payload={"messageId": id_, "userId": id_, "text": "123456789", "crc32": 0xCBF43926},
                        source_id=f"source{call}",
                        message_id=id_,
                    )
                    for id_ in ids
                ]
                jobs = backup.record_many(events)
                acks += [f"{int(job)} {id_}\n" for id_, job in zip(ids, jobs, strict=True)]
            backup.flush(120)
            (path,) = directory.glob("bucket/source2/**/*.json.gz")
            (directory / "deleted").write_bytes(path.read_bytes())
            backup.delivered(jobs)
            acknowledged = "".join(f"{int(job)}\n" for job in jobs)
        (directory / "acks" / "w").write_text("".join(acks))
        for name in ("delivering", "delivered"):
            (directory / name).write_text(acknowledged)
        (directory / "journaled").write_text("upload1\n")
        return directory

    @staticmethod
    def found(directory: Path) -> dict[str, int]:
        figures = Figures()
        check(directory, FileTarget(directory), figures)
        found = {name: value for name in FOUND if (value := getattr(figures, name))}
        assert bool(found) == bool(figures.violations)
        return found

    def test_nothing_is_wrong(self, directory: Path) -> None:
        assert self.found(directory) == {}

    @pytest.mark.parametrize(
        ("spoil", "wanted"),
        [
            (lambda here: change(here, lambda lines: lines[1:]), {"lost": 1, "torn_calls": 1, "misplaced": 4, "other": 1}),
            (lambda here: change(here, lambda lines: lines[::-1]), {"misplaced": 4}),
            (
                lambda here: change(here, lambda lines: [lines[0][:-9], *lines[1:]]),
                {"damaged": 1, "lost": 1, "torn_calls": 1},
            ),
            (
                lambda here: change(here, lambda lines: [lines[0].replace(b"123456789", b"123456780"), *lines[1:]]),
                {"damaged": 1, "lost": 1, "torn_calls": 1},
            ),
            (lambda here: change(here, lambda lines: [*lines, lines[4]]), {"duplicates": 1, "misplaced": 1, "other": 1}),
            (
                lambda here: object_of(here).with_name("again.json.gz").write_bytes(object_of(here).read_bytes()),
                {"duplicates": 5, "other": 1},
            ),
            (lambda here: object_of(here).unlink(), {"lost": 5}),
            (lambda here: drop_lines(here / "delivering", 1), {"deleted_early": 1}),
            (lambda here: restore(here, "deleted"), {"undeleted": 2}),
            (lambda here: deliver(here, 5), {"undeleted": 1}),
            (lambda here: deliver(here, 4), {}),
            (lambda here: (here / "spool/blobs/left.db-wal").touch(), {"left_over": 1}),
            (lambda here: (here / "spool/locks/left.lock").touch(), {"left_over": 1}),
            (lambda here: upload(here, "upload1"), {"open_uploads": 1}),
            (lambda here: upload(here, "upload2"), {}),
            (lambda here: (here / "refused").write_text('["w",0,0,3,5,true]\n["w",0,9,0,1,true]\n'), {"refused_yet_stored": 1}),
            (lambda here: (upload(here, "upload2") / "1").touch(), {"open_uploads": 1}),
        ],
    )
    def test_one_thing_is_wrong(self, directory: Path, spoil: Callable[[Path], None], wanted: dict[str, int]) -> None:
        spoil(directory)
        assert self.found(directory) == wanted

    def test_an_acknowledgement_that_a_kill_has_cut_counts_as_none(self, directory: Path) -> None:
        with (directory / "acks" / "w").open("a") as acks:
            acks.write(json.dumps("12345 never acknowledged"))
        assert self.found(directory) == {}


def object_of(directory: Path) -> Path:
    """The object with five events."""
    (path,) = directory.glob("bucket/source0/**/*.json.gz")
    return path


def change(directory: Path, how: Callable[[list[bytes]], list[bytes]]) -> None:
    path = object_of(directory)
    lines = how(gzip.decompress(path.read_bytes()).splitlines())
    path.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines)))


def upload(directory: Path, name: str) -> Path:
    """Add an open upload."""
    path = directory / "bucket/.jobs-backup" / name
    path.mkdir()
    return path


def drop_lines(path: Path, count: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[count:]))


def restore(directory: Path, kept: str) -> None:
    """Restore the deleted object."""
    with closing(sqlite3.connect(directory / "spool/catalog.db")) as catalog:
        ((key,),) = catalog.execute("SELECT key FROM batches WHERE state='deleted'").fetchall()
    (directory / "bucket" / key).parent.mkdir(parents=True, exist_ok=True)
    (directory / kept).rename(directory / "bucket" / key)


def deliver(directory: Path, count: int) -> None:
    """Note this many events of the object with five events as acknowledged."""
    with (directory / "acks/w").open() as acks, (directory / "delivered").open("a") as delivered:
        delivered.writelines(line.split()[0] + "\n" for line in acks.readlines()[:count])
