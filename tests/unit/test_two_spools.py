"""An id identifies its spool: no other spool accepts it, however alike they are and whatever their clocks do."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from buckets import file_environment
from commands import run
from serving import serve

from jobs_backup import Backup, Event, UnknownJob

SOURCES = [f"source-{number}" for number in range(60)]
EVENTS = [Event(payload=b"{}", source_id=source) for source in SOURCES]


def environment(directory: Path) -> dict[str, str]:
    directory.mkdir(exist_ok=True)
    return file_environment(directory)


def ids_of(directory: Path, events: list[Event] = EVENTS) -> list[int]:
    with Backup.from_env(environment(directory), archive=False) as backup:
        return list(backup.record_many(events))


def assert_unknown(backup: Backup, ids: list[int]) -> None:
    with pytest.raises(UnknownJob) as caught:
        backup.delivered(ids)
    assert caught.value.count == len(ids)
    for job in ids[:3]:
        with pytest.raises(UnknownJob):
            backup.failed(job, payload={}, error="no")


@pytest.mark.parametrize("clock", ["frozen", "years ahead", "1970"])
def test_two_spools_under_the_same_clock_give_no_id_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str) -> None:
    at = {"frozen": time.time(), "years ahead": time.time() + 90 * 365 * 86_400, "1970": 0.0}[clock]
    monkeypatch.setattr(time, "time", lambda: at)
    monkeypatch.setattr(time, "time_ns", lambda: int(at * 1e9))
    one, other = ids_of(tmp_path / "one"), ids_of(tmp_path / "other")
    assert not set(one) & set(other)
    with Backup.from_env(environment(tmp_path / "one"), archive=False) as backup:
        assert_unknown(backup, other)
        backup.delivered(one)


def test_a_spool_that_is_made_anew_knows_none_of_the_ids_before(tmp_path: Path) -> None:
    before = ids_of(tmp_path)
    shutil.rmtree(tmp_path / "spool")
    after = ids_of(tmp_path)
    assert not set(before) & set(after)
    with Backup.from_env(environment(tmp_path), archive=False) as backup:
        assert_unknown(backup, before)


def test_a_copy_and_its_original_give_no_id_twice(tmp_path: Path) -> None:
    """Both spools hold the events recorded before the copy."""
    common = ids_of(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    one, copy = ids_of(tmp_path / "one"), ids_of(tmp_path / "copy")
    assert len({*common, *one, *copy}) == 3 * len(SOURCES)
    with Backup.from_env(environment(tmp_path / "copy"), archive=False) as backup:
        assert_unknown(backup, one)
        backup.delivered(common)


def test_two_sidecars_accept_none_of_each_others_ids(tmp_path: Path) -> None:
    posted = "\n".join(json.dumps({"messageId": f"{number}"}) for number in range(3))
    with serve(environment(tmp_path / "one")) as one, serve(environment(tmp_path / "other")) as other:
        ids: list[list[str]] = []
        for sidecar in (one, other):
            answers = [
                sidecar.post(f"/v1/events?source_id={source}", posted.encode(), Content_Type="application/x-ndjson")
                for source in SOURCES
            ]
            assert {answer.status for answer in answers} == {200}
            ids.append([job for answer in answers for job in answer.json["jobs"]])
        assert all(isinstance(job, str) for job in ids[0])
        assert not set(ids[0]) & set(ids[1])
        for sidecar, foreign in ((one, ids[1]), (other, ids[0])):
            answer = sidecar.post("/v1/delivered", foreign)
            assert (answer.status, answer.json["acknowledged"], answer.json["unknown_count"]) == (200, 0, len(foreign)), answer.body
            for job in foreign[::60]:
                failure = sidecar.post("/v1/failures", {"jobId": job, "error": "no", "payload": {}})
                assert (failure.status, failure.code) == (404, "UnknownJob"), failure.body
        for sidecar, own in ((one, ids[0]), (other, ids[1])):
            assert sidecar.post("/v1/delivered", own).status == 200
        one.end()
        other.end()


def test_the_command_names_ids_of_another_spool(tmp_path: Path) -> None:
    foreign = ids_of(tmp_path / "other")
    ids_of(tmp_path / "one")
    lines = "".join(f'"{job}"\n' for job in foreign)
    code, stdout, _ = run("delivered", "--json", env=environment(tmp_path / "one"), stdin=lines)
    assert (code, json.loads(stdout)["unknown"]) == (1, len(foreign))
