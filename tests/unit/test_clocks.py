"""A clock that jumps forward or backward, and back again, loses nothing, forgets nothing and blocks nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from buckets import events, file_environment
from spools import archiver_of, claim, claimed, open_spool, record

from jobs_backup import Backup
from jobs_backup.errors import Unavailable
from jobs_backup.spool.engines import read_status
from jobs_backup.spool.sqlite import clock
from jobs_backup.spool.status import Limits

YEAR = 365.25 * 86_400
LEAPS = {"an hour ahead": 3600.0, "a year ahead": YEAR, "90 years ahead": 90 * YEAR, "a year back": -YEAR, "back to 1970": None}


@pytest.fixture
def leap(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None], None]:
    """Shift the system clock by seconds; None sets it to 1970, 0 restores it."""
    real, real_ns = time.time, time.time_ns

    def set_off(seconds: float | None) -> None:
        monkeypatch.setattr(time, "time", lambda: 60.0 if seconds is None else real() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda: 60 * 10**9 if seconds is None else real_ns() + int(seconds * 1e9))

    return set_off


@pytest.mark.parametrize("name", LEAPS)
def test_each_event_is_in_the_bucket_once(tmp_path: Path, name: str, leap: Callable[[float | None], None]) -> None:
    environment = file_environment(tmp_path)
    jobs: list[int] = []
    for number, seconds in enumerate((0.0, LEAPS[name], 0.0)):
        leap(seconds)
        with Backup.from_env(environment) as backup:  # a process that starts with this clock
            jobs.append(backup.record({"messageId": f"{number}a"}, source_id="web"))
            backup.flush(120)
        with Backup.from_env(environment) as backup:  # a process whose clock changes
            jobs.append(backup.record({"messageId": f"{number}b"}, source_id="web"))
            leap(LEAPS[name] if seconds == 0.0 else 0.0)
            jobs.append(backup.record({"messageId": f"{number}c"}, source_id="web"))
            backup.flush(120)
    assert len(set(jobs)) == 9
    found = sorted(event["payload"]["messageId"] for event in events(tmp_path))
    assert found == sorted(f"{number}{letter}" for number in range(3) for letter in "abc")
    with Backup.from_env(environment) as backup:
        backup.delivered(jobs)  # none was forgotten
        assert archiver_of(backup).drain(120)
    assert events(tmp_path) == []


@pytest.mark.parametrize("name", LEAPS)
def test_nothing_is_forgotten_and_nothing_waits_longer(tmp_path: Path, name: str, leap: Callable[[float | None], None]) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"{}\n"])
    spool.seal()
    batch = claim(spool)
    spool.stored(batch, deletable_after=1000)
    record(spool, [b"{}\n"])
    spool.seal()
    spool.release(claim(spool), Unavailable("down"), delay=1000)
    leap(LEAPS[name])
    assert spool.forget(86_400.0, 0) is None
    assert spool._catalog.batches_of(spool.session) >= {batch.id}
    assert spool.claim() is None, "it waits for as long as was said, whatever the clock says"
    assert not spool.has_deletes()
    spool.close()
    leap(0.0)
    later = open_spool(tmp_path)
    later.begin_sending()
    assert claimed(later).batch.events == 1
    later.close()


@pytest.mark.parametrize("name", LEAPS)
def test_the_age_of_what_waits_is_honest(tmp_path: Path, name: str, leap: Callable[[float | None], None]) -> None:
    spool = open_spool(tmp_path)
    leap(LEAPS[name])
    record(spool, [b"{}\n"])
    spool.seal()
    leap(0.0)
    until = time.monotonic() + 120
    while (found := read_status(tmp_path, Limits(upload_frequency=0.0))).oldest <= 0:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert found.oldest < 300
    spool.close()


def test_between_two_boots_the_clock_goes_on_by_a_day_at_most() -> None:
    before = clock.Reading("one", 1_000_000.0, 50.0, 1_000_000.0)
    now = clock.read_clocks(before._replace(wall=time.time() - 3600))
    assert now.spool == pytest.approx(before.spool + 3600, abs=60)
    assert clock.read_clocks(before).spool == before.spool + 86_400, "it was off for years, or its clock is wrong"
    assert clock.read_clocks(before._replace(wall=time.time() + 90 * YEAR)).spool == before.spool, "it never goes back"
