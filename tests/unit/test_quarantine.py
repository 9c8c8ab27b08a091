"""Damage: unreadable data is quarantined with a report; everything else is uploaded, and nothing twice."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest
from buckets import events, file_environment, left_over
from spools import APP, WEB, claim, claimed, content, die, engine, open_spool, record, tampering

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import SpoolCorrupt, SpoolFull, Unavailable
from jobs_backup.model import Upload
from jobs_backup.spool.ids import local, origin_of
from jobs_backup.spool.interface import InputPosition, Recording
from jobs_backup.spool.sqlite.spool import SqliteSpool


def rot(spool: SqliteSpool, job: int) -> None:
    """Damage the bytes of one chunk as a disk would."""
    with tampering(spool._writer._blobs._database) as connection:
        changed = connection.execute("UPDATE chunks SET data=zeroblob(length(data)) WHERE job=?", (local(job),))
        assert changed.rowcount == 1


def rot_all(path: Path) -> None:
    """Damage a whole file as a disk would."""
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes(len(data) - 100))


def test_of_what_a_dead_process_recorded_only_the_damaged_rows_are_missing(tmp_path: Path) -> None:
    dead = open_spool(tmp_path)
    jobs = [record(dead, [b'{"n":%d}\n' % number])[0][0] for number in range(5)]
    rot(dead, jobs[2])
    die(dead)
    alive = open_spool(tmp_path)
    assert alive.recover() == 1
    batch = claim(alive)
    assert gzip.decompress(content(alive, batch)).split() == [b'{"n":0}', b'{"n":1}', b'{"n":3}', b'{"n":4}']
    assert batch.events == 4
    (damage,) = alive.quarantined()
    assert (damage.stream, damage.job, damage.events) == (WEB, local(jobs[2]), 1)
    assert (tmp_path / damage.file).read_bytes() == bytes(len(b'{"n":2}\n'))
    alive.stored(batch)
    alive.close()
    assert not list((tmp_path / "blobs").iterdir())


def test_a_living_process_goes_on_after_damage_and_uses_no_id_again(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    jobs = [record(spool, [b'{"n":%d}\n' % number])[0][0] for number in range(3)]
    rot(spool, jobs[2])
    jobs += [record(spool, [b"{%s}\n" % (b" " * (1 << 20))])[0][0]]  # the lines before it have to be read for its member
    assert len(set(jobs)) == 4
    spool.seal()
    batches = [claim(spool), claim(spool)]
    assert [batch.events for batch in batches] == [2, 1]
    assert gzip.decompress(content(spool, batches[0])) == b'{"n":0}\n{"n":1}\n'
    assert [(damage.job, damage.events) for damage in spool.quarantined()] == [(local(jobs[2]), 1)]
    spool.close()


def sealed(spool: SqliteSpool) -> list[int]:
    """A sealed batch of three members. Returns their first jobs."""
    lines = [b"{%s}\n" % (b" " * (1 << 20))] * 3
    jobs = [record(spool, [line])[0][0] for line in lines]
    spool.seal()
    return jobs


def test_a_sealed_batch_that_nobody_tried_to_send_goes_on_without_what_is_damaged(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    jobs = sealed(spool)
    rot(spool, jobs[1])
    first = claimed(spool)
    with pytest.raises(SpoolCorrupt) as caught:
        content(spool, first.batch)
    spool.uploads.begin(first.batch, Upload(key=first.batch.key, id="secret"), 5 << 20)
    spool.quarantine_batch(first, caught.value)
    second = claim(spool)
    assert (second.id, second.events) == (first.batch.id, 2)
    assert second.key != first.batch.key, "other bytes, so another key"
    assert second.uuid != first.batch.uuid
    assert spool.open_body(second).crc32c() == second.crc32c
    assert [upload.upload.key for upload in spool.uploads.abandoned()] == [first.batch.key]
    assert [damage.job for damage in spool.quarantined()] == [local(jobs[1])]
    spool.close()


def test_what_may_be_in_the_bucket_already_is_not_sent_under_another_key(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    jobs = sealed(spool)
    record(spool, [b"{}\n"], stream=APP)
    spool.seal()
    spool.release(claim(spool), Unavailable("the answer was lost"), delay=0)
    rot(spool, jobs[1])
    again = claimed(spool)
    if again.batch.stream == APP:
        again = claimed(spool)
    spool.quarantine_batch(again, SpoolCorrupt("rotten"))
    damages = spool.quarantined()
    assert [(damage.job, "in the bucket already" in damage.error) for damage in damages] == [
        (local(jobs[0]), True),
        (local(jobs[1]), False),
        (local(jobs[2]), True),
    ]
    good = gzip.decompress((tmp_path / damages[0].file).read_bytes())
    assert len(good) == (1 << 20) + 3, "what is good of it can be read"
    others = [found.batch.stream for found in iter(spool.claim, None)]
    assert WEB not in others
    spool.close()


def test_events_that_are_not_there_any_more_are_never_missed_in_silence(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    jobs = sealed(spool)
    with tampering(spool._writer._blobs._database) as connection:
        connection.execute("DELETE FROM chunks WHERE job=?", (local(jobs[1]),))
    first = claimed(spool)
    with pytest.raises(SpoolCorrupt, match="instead of") as caught:
        spool.open_body(first.batch)
    spool.quarantine_batch(first, caught.value)
    (damage,) = spool.quarantined()
    assert (damage.stream, damage.batch, damage.events) == (WEB, first.batch.id, 1)
    assert damage.error == f"1 events of batch {first.batch.id} are missing"
    second = claim(spool)
    assert (second.id, second.events, second.key != first.batch.key) == (first.batch.id, 2, True)
    assert spool.open_body(second).crc32c() == second.crc32c
    spool.stored(second)
    spool.close()
    assert (tmp_path / "quarantine" / f"{spool.session}.db").exists(), "what is left of it can be looked at"


def test_what_could_not_be_taken_over_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dead = open_spool(tmp_path)
    record(dead, [b"{}\n"])
    die(dead)
    alive = open_spool(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(alive._catalog, "end_session", lambda *_: (_ for _ in ()).throw(SpoolFull("the disk is full")))
        alive.recover()
        alive.recover()
    assert [error.message for error in alive.unreadable] == ["the disk is full"]
    assert caplog.text.count("cannot take over yet") == 1
    assert alive.recover() == 1
    assert alive.unreadable == []
    assert claim(alive).events == 1
    alive.close()


def test_a_process_that_dies_while_it_sets_aside_loses_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)
    jobs = sealed(spool)
    rot(spool, jobs[1])
    first = claimed(spool)
    monkeypatch.setattr(spool._catalog, "reseal", lambda *_: pytest.fail("killed here"))
    with pytest.raises(pytest.fail.Exception):
        spool.quarantine_batch(first, SpoolCorrupt("rotten"))
    die(spool)
    alive = open_spool(tmp_path)
    alive.recover()
    again = claimed(alive)
    with pytest.raises(SpoolCorrupt, match="instead of"):
        alive.open_body(again.batch)
    alive.quarantine_batch(again, SpoolCorrupt("rotten"))
    assert [damage.job for damage in alive.quarantined()] == list(map(local, jobs))
    assert alive.claim() is None
    alive.close()
    assert not list((tmp_path / "blobs").iterdir())


def test_a_file_that_is_damaged_as_a_whole_is_kept_and_stops_nothing(tmp_path: Path) -> None:
    dead = open_spool(tmp_path)
    dead.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("file", 1, b"10"))])
    record(dead, [b"{}\n"], stream=APP)
    dead.seal()
    record(dead, [b"{}\n"], stream=APP)
    die(dead)
    rot_all(tmp_path / "blobs" / f"{dead.session}.db")
    alive = open_spool(tmp_path)
    record(alive, [b"{}\n"])
    alive.seal()
    alive.recover()
    stored = 0
    while (found := alive.claim()) is not None:
        try:
            content(alive, found.batch)
        except SpoolCorrupt as error:
            alive.quarantine_batch(found, error)
        else:
            alive.stored(found.batch)
            stored += 1
    assert stored == 1
    assert not alive.unreadable
    (file,) = {damage.file for damage in alive.quarantined()}
    assert len(alive.quarantined()) == 3, "two batches were sealed, one was open"
    alive.begin_sending()
    (file,) = {damage.file for damage in alive.quarantined()}
    assert file == f"quarantine/{dead.session}.db"
    assert (tmp_path / file).exists()
    (tmp_path / file).unlink()
    assert alive.quarantined() == [], "who removes the file ends the report"
    alive.close()


def test_what_is_set_aside_outlives_the_catalog_and_is_never_overwritten(tmp_path: Path) -> None:
    """A new catalog counts from one again, and so do the names of quarantined files."""
    for round_ in (1, 2, 3):
        dead = open_spool(tmp_path)
        ((job, _),) = record(dead, [b"%d\n" % round_])
        record(dead, [b"good\n"])
        rot(dead, job)
        die(dead)
        alive = open_spool(tmp_path)
        alive.recover()
        files = {Path(damage.file).name for damage in alive.quarantined()}
        assert files == {path.name for path in (tmp_path / "quarantine").iterdir()}
        assert len(files) == round_
        die(alive)
        for path in tmp_path.glob("catalog.db*"):
            path.unlink()
    alive = open_spool(tmp_path)
    assert {damage.events for damage in alive.quarantined()} == {0}, "the catalog knows nothing of them"
    assert len(alive.quarantined()) == 3
    next((tmp_path / "quarantine").iterdir()).unlink()
    assert len(alive.quarantined()) == 2


def test_the_rest_reaches_the_bucket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    environment = file_environment(tmp_path, JOBS_BACKUP_BATCH_EVENTS="100")
    with Backup.from_env(environment, archive=False) as backup:
        payloads = [{"n": number, "space": " " * (1 << 18)} for number in range(100)]
        jobs = backup.record_many(payloads, source_id="web")
        chunks = engine(session_of(backup).spool)._writer._blobs.chunks(origin_of(jobs[0])[1])
        session_of(backup).spool.seal()
        rot(engine(session_of(backup).spool), chunks[1].job)
        lost = range(chunks[1].start, chunks[1].start + chunks[1].events)
        with (
            caplog.at_level(logging.ERROR),
            Backup.from_env(environment),
            pytest.raises(SpoolCorrupt, match=f"{len(lost)} events that this process recorded were damaged"),
        ):
            backup.flush(timeout=120)
    assert [event["payload"]["n"] for event in events(tmp_path)] == [number for number in range(100) if number not in lost]
    assert "are quarantined in quarantine/" in caplog.text
    assert [name.partition("/")[0] for name in left_over(tmp_path)] == ["quarantine"]
