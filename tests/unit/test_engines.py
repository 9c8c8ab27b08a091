"""What every engine of the spool does: the same tests for each of them."""

from __future__ import annotations

import contextlib
import gzip
import secrets
import threading
import time

import pytest
from engines import Engine, PostgresqlEngine
from spools import APP, WEB, claim, content, position, record

from jobs_backup.errors import AlreadyExists, BackupClosed, BucketNotFound, ConfigurationError, SpoolError, SpoolFull, Unavailable
from jobs_backup.model import Kind, Part, Stream, Upload
from jobs_backup.spool.engines import open_reader
from jobs_backup.spool.ids import INDEX_BITS, JobSet
from jobs_backup.spool.interface import BatchLimits, InputPosition, QuotaLimits, Recording, Spool, StoredObject
from jobs_backup.spool.postgresql.spool import PostgresqlSpool


def test_lines_come_out_as_they_went_in(engine: Engine) -> None:
    spool = engine.open()
    lines = [b'{"n":%d}\n' % number for number in range(900)]
    for start in range(0, 900, 90):
        record(spool, lines[start : start + 90])
    assert spool.seal() == 1
    batch = claim(spool)
    data = content(spool, batch)
    assert gzip.decompress(data) == b"".join(lines)
    assert (batch.events, batch.raw_bytes, batch.size) == (900, sum(map(len, lines)), len(data))
    assert batch.crc32c == spool.open_body(batch).crc32c()
    assert batch.uuid in batch.key
    spool.close()


def test_a_batch_is_sealed_at_exactly_its_limit(engine: Engine) -> None:
    spool = engine.open()
    jobs = record(spool, [b"{}\n"] * 2500)
    assert [count for _, count in jobs] == [1000, 1000, 500]
    assert [first & ((1 << INDEX_BITS) - 1) for first, _ in jobs] == [0, 0, 0]
    assert [claim(spool).events for _ in range(2)] == [1000, 1000]
    assert spool.claim() is None
    spool.close()


def test_streams_of_one_commit_go_into_their_own_batches(engine: Engine) -> None:
    spool = engine.open()
    recordings = [Recording(stream, [b"{}\n"], first_at=1, last_at=1) for stream in (WEB, APP, WEB)]
    spool.append(recordings)
    assert recordings[0].jobs[0][0] + 1 == recordings[2].jobs[0][0]
    assert spool.seal() == 2
    assert {claim(spool).stream: None for _ in range(2)}.keys() == {WEB, APP}
    spool.close()


def test_what_a_dead_process_was_sending_is_sent_by_another_byte_for_byte(engine: Engine) -> None:
    dead = engine.open()
    record(dead, [b"{}\n"] * 5)
    dead.seal()
    before = claim(dead)
    data = content(dead, before)
    alive = engine.open()
    assert alive.claim() is None, "claimed by a process that is alive"
    engine.die(dead)
    alive.recover()
    after = claim(alive)
    assert after == before
    assert content(alive, after) == data
    alive.close()


def test_a_batch_that_failed_waits_for_its_time(engine: Engine) -> None:
    spool = engine.open()
    record(spool, [b"{}\n"])
    spool.seal()
    batch = claim(spool)
    spool.release(batch, Unavailable("down", hint="wait"), delay=60)
    assert not spool.has_claimable()
    (waiting,) = spool.waiting()
    assert (waiting.batches, waiting.events, waiting.error, waiting.hint) == (1, 1, "down", "wait")
    spool.release(batch, Unavailable("down"), delay=0)
    assert not spool.has_claimable(), "it was given back before"
    spool.begin_sending()
    claimed = spool.claim()
    assert claimed is not None
    assert claimed.failures == 1
    spool.release(claimed.batch, Unavailable("down"), delay=60)
    spool.begin_sending()
    assert spool.has_claimable(), "who starts to send need not wait"
    spool.close()


def test_batches_go_to_the_store_for_which_they_were_recorded(engine: Engine) -> None:
    old = engine.open(location="s3://old")
    record(old, [b"{}\n"])
    old.close()
    new = engine.open(location="s3://new")
    new.begin_sending()
    assert new.claim() is None
    assert [waiting.location for waiting in new.waiting()] == ["s3://old"]
    new.close()
    again = engine.open(location="s3://old")
    assert claim(again).events == 1
    again.close()


@pytest.mark.parametrize(
    ("standings", "moved"), [([], False), (["refused"], True), (["proven"], False), (["proven", "refused"], False)]
)
def test_only_what_waits_for_a_store_that_refused_everything_follows_the_settings(
    engine: Engine, standings: list[str], moved: bool
) -> None:
    """Never tried: it stays. Tried and refused: it was a mistake. May have got something: it stays for ever."""
    old = engine.open(location="s3://typing-error")
    record(old, [b"{}\n"])
    old.seal()
    for standing in standings:
        old.release(claim(old), Unavailable("no"), delay=0, standing=standing)
    old.close()
    new = engine.open(location="s3://right")
    new.begin_sending()
    assert (new.claim() is not None) is moved
    new.close()


def test_nothing_follows_that_was_on_its_way_when_its_process_died(engine: Engine) -> None:
    """It was refused before, and sent again: nobody knows whether it has arrived."""
    old = engine.open(location="s3://old")
    record(old, [b"{}\n"])
    old.seal()
    old.release(claim(old), Unavailable("no"), delay=0, standing="refused")
    claim(old)
    engine.die(old)
    new = engine.open(location="s3://new")
    new.recover()
    new.begin_sending()
    assert new.claim() is None
    new.close()


def test_nothing_follows_that_may_have_arrived_though_its_store_refuses_everything_since(engine: Engine) -> None:
    killed = engine.open(location="s3://old")
    record(killed, [b"{}\n"])
    killed.seal()
    claim(killed)  # the object arrives, and the process is killed before it hears of it
    engine.die(killed)
    refused = engine.open(location="s3://old")
    refused.recover()
    refused.release(claim(refused), Unavailable("the key was withdrawn"), delay=0, standing="refused")
    refused.close()
    new = engine.open(location="s3://new")
    new.begin_sending()
    assert new.claim() is None, "it may stand in s3://old already"
    new.close()


def test_nothing_follows_that_a_living_process_sends(engine: Engine) -> None:
    alive = engine.open(location="s3://alive")
    record(alive, [b"{}\n"])
    alive.seal()
    alive.release(claim(alive), Unavailable("no"), delay=0, standing="refused")
    other = engine.open(location="s3://other")
    other.begin_sending()
    assert other.claim() is None
    other.close()
    alive.close()


def test_a_batch_that_was_refused_does_not_keep_back_the_others(engine: Engine) -> None:
    spool = engine.open()
    for stream in (WEB, APP):
        record(spool, [b"{}\n"], stream=stream)
        spool.seal()
    first = claim(spool)
    spool.release(first, Unavailable("no"), delay=0)
    assert claim(spool).stream == APP
    spool.close()


def test_a_clock_that_is_set_back_keeps_nothing_waiting(engine: Engine) -> None:
    spool = engine.open()
    record(spool, [b"{}\n"])
    spool.seal()
    spool.release(claim(spool), Unavailable("no"), delay=365 * 86400)
    assert claim(spool).events == 1
    spool.close()


def test_an_upload_of_a_batch_that_was_stored_otherwise_is_aborted(engine: Engine) -> None:
    spool = engine.open()
    record(spool, [b"{}\n"])
    spool.seal()
    batch = claim(spool)
    spool.uploads.begin(batch, Upload(key=batch.key, id="secret"), 5 << 20)
    spool.stored(batch)
    assert [one.upload.id for one in spool.uploads.abandoned()] == ["secret"]
    spool.close()


def test_who_aborts_an_upload_late_does_not_forget_the_next_one(engine: Engine) -> None:
    """Two processes abort the same upload: one is quick, begins another upload, and then the slow one has ended, too."""
    spool, slow = engine.open(), engine.open()
    record(spool, [b"{}\n"])
    spool.seal()
    batch = claim(spool)
    spool.uploads.abandon(spool.uploads.begin(batch, Upload(key=batch.key, id="first"), 5 << 20))
    (seen,) = slow.uploads.abandoned()
    spool.uploads.forget(seen)
    following = spool.uploads.begin(batch, Upload(key=batch.key, id="next"), 5 << 20)
    slow.uploads.postpone(seen, Unavailable("too late"), delay=60)
    slow.uploads.forget(seen)
    spool.uploads.add_part(following, Part(number=1, etag="one"))
    found = spool.uploads.of(batch)
    assert found is not None
    assert (found[0].upload.id, found[0].failures, len(found[1])) == ("next", 0, 1)
    spool.close()
    slow.close()


def test_an_upload_and_its_parts_are_in_the_journal(engine: Engine) -> None:
    spool = engine.open()
    record(spool, [b"{}\n"])
    spool.seal()
    batch = claim(spool)
    assert spool.uploads.of(batch) is None
    journaled = spool.uploads.begin(batch, Upload(key=batch.key, id="secret", extra={"region": "x"}), 5 << 20)
    spool.uploads.add_part(journaled, Part(number=2, etag="two"))
    spool.uploads.add_part(journaled, Part(number=1, etag="one", crc32c=7))
    spool.uploads.add_part(journaled, Part(number=2, etag="two again"))
    engine.die(spool)
    other = engine.open()
    other.recover()
    found = other.uploads.of(claim(other))
    assert found is not None
    assert found[0].upload == Upload(key=batch.key, id="secret", extra={"region": "x"})
    assert found[0].part_size == 5 << 20
    assert found[1] == [Part(number=1, etag="one", crc32c=7), Part(number=2, etag="two again")]
    other.uploads.abandon(found[0])
    assert other.uploads.of(batch) is None
    assert [one.upload.id for one in other.uploads.abandoned()] == ["secret"]
    other.uploads.postpone(found[0], AlreadyExists("no"), delay=60)
    assert other.uploads.abandoned() == []
    assert [key for key, _, _ in other.uploads.waiting()] == [batch.key]
    other.uploads.forget(found[0])
    assert other.uploads.waiting() == []
    other.close()


def test_positions_survive_their_process(engine: Engine) -> None:
    dead = engine.open()
    dead.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("file", 1, b"10"))])
    dead.append([Recording(WEB, [], first_at=1, last_at=1, position=InputPosition("file", 2, b"20"))])
    assert position(dead, "file") == b"20"
    engine.die(dead)
    alive = engine.open()
    alive.recover()
    assert position(alive, "file") == b"20"
    assert position(alive, "other") is None
    alive.close()


def test_only_one_process_reads_an_input_and_the_next_one_sees_how_far(engine: Engine) -> None:
    one, other = engine.open(), engine.open()
    with one.reading("x") as granted:
        assert granted
        with other.reading("x") as granted_too:
            assert not granted_too
        one.append([Recording(WEB, [], first_at=1, last_at=1, position=InputPosition("x", 5, b"10"))])
    with other.reading("x") as granted:
        assert granted
        assert position(other, "x") == b"10", "though the process that read it is still alive"
    one.close()
    assert position(other, "x") == b"10"
    other.close()


def test_of_two_positions_the_later_one_counts_whoever_ends_first(engine: Engine) -> None:
    old, new = engine.open(), engine.open()
    for spool, at in ((old, 5), (new, 6)):
        spool.append([Recording(WEB, [], first_at=1, last_at=1, position=InputPosition("x", at, b"%d" % at))])
    new.close()
    old.close()
    after = engine.open()
    assert position(after, "x") == b"6"
    after.close()


def test_refusals_have_the_words_of_the_error(engine: Engine) -> None:
    spool = engine.open()
    record(spool, [b"{}\n"])
    spool.seal()
    spool.release(claim(spool), BucketNotFound("no bucket", hint="create it"), delay=0)
    assert [(waiting.error, waiting.hint) for waiting in spool.waiting()] == [("no bucket", "create it")]
    spool.close()


def test_a_refusal_is_reported_with_its_own_hint(engine: Engine) -> None:
    spool = engine.open()
    record(spool, [b"{}\n"])
    record(spool, [b"{}\n"], stream=APP)
    spool.seal()
    for one, error in ((claim(spool), Unavailable("b", hint="1")), (claim(spool), Unavailable("a", hint="2"))):
        spool.release(one, error, delay=0)
    assert [(waiting.error, waiting.hint) for waiting in spool.waiting()] == [("b", "1")]
    spool.close()


def test_a_body_is_read_from_anywhere(engine: Engine) -> None:
    spool = engine.open(limits=BatchLimits(events=100_000, bytes=1 << 30, age=300))
    for start in range(0, 50_000, 5_000):
        record(spool, [b'{"n":%0100d}\n' % (number * 7919) for number in range(start, start + 5_000)])
    spool.seal()
    batch = claim(spool)
    body, whole = spool.open_body(batch), content(spool, batch)
    assert gzip.decompress(whole).count(b"\n") == 50_000
    for offset in range(0, batch.size, 54_321):
        size = min(12_345, batch.size - offset)
        with body.slice(offset, size).open() as reader:
            assert reader.read() == whole[offset : offset + size]
    spool.close()


def test_many_lines_become_members(engine: Engine) -> None:
    """Tails are folded, with waiting lines of both forms, and a commit of more than a statement takes."""
    spool = engine.open(limits=BatchLimits(events=1 << 20, bytes=1 << 30, age=300))
    lines = [b'{"n":%d,"x":"%0500d"}\n' % (number, number * 7919) for number in range(12_000)]
    for start, end in ((0, 3), (3, 40), (40, 1000), (1000, 1001), (1001, 9000), (9000, 12_000)):
        record(spool, lines[start:end])
    spool.seal()
    assert gzip.decompress(content(spool, claim(spool))) == b"".join(lines)
    spool.close()


def test_what_a_dead_process_recorded_is_sealed_by_another(engine: Engine) -> None:
    dead = engine.open()
    record(dead, [b'{"a":%d}\n' % number for number in range(10)])
    alive = engine.open()
    assert alive.recover() == 0, "it is still alive"
    engine.die(dead)
    assert alive.recover() == 1
    assert alive.recover() == 0
    assert gzip.decompress(content(alive, claim(alive))).count(b"\n") == 10
    alive.close()


def test_ids_that_contain_anything_come_back(engine: Engine) -> None:
    stream = Stream(Kind.RAW, "w\0\x1b0\x1b", "quelle/\u00e4\n")
    spool = engine.open()
    record(spool, [b"{}\n"], stream=stream)
    spool.seal()
    assert claim(spool).stream == stream
    spool.close()


def test_ids_of_any_length_are_forgotten(engine: Engine) -> None:
    """An index of PostgreSQL takes no text of more than some thousand bytes."""
    spool = engine.open(delete_after="never")
    spool.begin_sending()
    streams = [Stream(Kind.RAW, "w", end + secrets.token_hex(10_000)) for end in "ab"]
    for stream in (*streams, streams[0]):
        record(spool, [b"{}\n"], stream=stream)
        spool.seal()
        spool.stored(claim(spool))
    spool.close()
    spool = engine.open(delete_after="never")  # so that no file in a directory has them any more
    assert spool.forget(-60, 0) is None
    with open_reader(engine.place) as reader:
        found = reader.forgotten("s3://bucket", Kind.RAW, 0, 1 << 62)
        assert sorted((one.source_id, one.objects) for one in found) == [(streams[0].source_id, 2), (streams[1].source_id, 1)]
    spool.close()


def test_nothing_that_is_acknowledged_slips_through_while_it_closes(engine: Engine) -> None:
    everything = list[int]()
    for _ in range(3):
        spool = engine.open()

        def work(spool: Spool = spool) -> None:
            with contextlib.suppress(BackupClosed):
                while True:
                    everything.append(record(spool, [b"{}\n"])[0][0])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        spool.close()
        for thread in threads:
            thread.join()
        after = engine.open()
        assert sum(waiting.events for waiting in after.waiting()) == len(everything) == len(set(everything)) > 0
        after.close()


def fill(spool: Spool) -> None:
    """Record until nothing more goes in, or some seconds are over."""
    for number in range(300):
        record(spool, [b'{"n":%d,"x":"%s"}\n' % (number, secrets.token_hex(40).encode())])
        time.sleep(0.01)


def test_a_full_spool_takes_more_once_something_is_sent(engine: Engine) -> None:
    spool = engine.open(room=QuotaLimits(max_bytes=2000, timeout=0.2))
    with pytest.raises(SpoolFull, match="may hold 2,000"):
        fill(spool)
    spool.seal()
    while spool.has_claimable():
        spool.stored(claim(spool))
    record(spool, [b"{}\n"])
    spool.close()


def test_the_bytes_of_other_processes_count(engine: Engine) -> None:
    one = engine.open(room=QuotaLimits(max_bytes=1500))
    other = engine.open(room=QuotaLimits(max_bytes=1500))
    with contextlib.suppress(SpoolFull):
        fill(one)
    one.seal()
    with pytest.raises(SpoolFull):
        fill(other)
    one.close()
    other.close()


def test_deliveries_are_taken_by_whichever_process(engine: Engine) -> None:
    recorder, other = engine.open(), engine.open()
    ((first, count),) = record(recorder, [b"{}\n"] * 900)
    early, late, unknown = JobSet(), JobSet(), JobSet()
    early.add_run(first, 300)
    late.add_run(first + 300, 600)
    unknown.add_run(first + count, 5)
    assert not other.delivered(early), "while its batch is open"
    recorder.seal()
    batch = claim(recorder)
    recorder.stored(batch)
    assert not other.has_deletes()
    assert len(other.delivered(unknown)) == 5
    assert not other.delivered(late)
    (due,) = other.claim_deletes(10)
    assert (due.batch, due.key) == (batch.id, batch.key)
    assert recorder.claim_deletes(10) == [], "another process deletes it"
    other.deleted([due])
    assert not recorder.has_deletes()
    assert not other.delivered(early), "they are known, though their object is gone"
    recorder.close()
    other.close()


def test_what_a_dead_process_was_deleting_is_deleted_by_another(engine: Engine) -> None:
    dead, alive = engine.open(), engine.open()
    ((first, count),) = record(dead, [b"{}\n"])
    dead.seal()
    dead.stored(claim(dead))
    jobs = JobSet()
    jobs.add_run(first, count)
    assert not dead.delivered(jobs)
    assert len(dead.claim_deletes(10)) == 1
    engine.die(dead)
    assert alive.claim_deletes(10) == []
    alive.recover()
    assert len(alive.claim_deletes(10)) == 1
    alive.close()


def test_a_failure_record_settles_its_job_once_it_is_stored(engine: Engine) -> None:
    spool = engine.open(delete_after="settled")
    ((job, _),) = record(spool, [b"{}\n"])
    spool.seal()
    spool.stored(claim(spool))
    ((failure, _),) = record(spool, [b"{}\n"], stream=Stream(Kind.FAILED, "w", "web"))
    spool.settle([(job, failure)])
    assert not spool.has_deletes(), "its failure is not in the bucket"
    spool.seal()
    spool.stored(claim(spool))
    assert [one.batch for one in spool.claim_deletes(10)]
    spool.close()


def test_a_job_reports_its_stream(engine: Engine) -> None:
    spool = engine.open()
    ((job, _),) = record(spool, [b"{}\n"], stream=APP)
    assert spool.stream_of(job) == APP
    assert spool.stream_of(job + 1) is None
    spool.seal()
    assert spool.stream_of(job) == APP
    assert spool.stream_of(1 << 130) is None
    spool.close()


def test_what_is_forgotten_is_unknown(engine: Engine) -> None:
    spool = engine.open()
    ((job, count),) = record(spool, [b"{}\n"])
    spool.seal()
    spool.stored(claim(spool))
    assert spool.forget(3600, 0) is None
    jobs = JobSet()
    jobs.add_run(job, count)
    assert not spool.delivered(jobs)
    spool.close()
    never = engine.open(delete_after="never")
    never.retry_deletes()
    never.forget(-1, 0)
    assert len(never.delivered(jobs)) == 1
    never.close()


def test_ids_of_events_that_are_not_kept(engine: Engine) -> None:
    spool = engine.open()
    runs = spool.number(WEB, 5) + spool.number(WEB, 3) + spool.number(APP, 2)
    ids = {first + index for first, count in runs for index in range(count)}
    assert len(ids) == 10
    assert {spool.stream_of(job) for job in ids} == {WEB, APP}
    assert not spool.has_claimable()
    spool.close()


def test_what_is_not_sealed_is_accounted_for(engine: Engine) -> None:
    one, other = engine.open(), engine.open()
    record(one, [b"{}\n"] * 3)
    assert other.account().open_elsewhere == 3
    assert len(one.account().problems) == 1, "its own"
    one.close()
    assert other.account().problems == []
    assert other.account().open_elsewhere == 0
    other.close()


def test_flush_waits_for_what_this_process_recorded_alone(engine: Engine) -> None:
    one, other = engine.open(), engine.open()
    record(one, [b"{}\n"])
    record(other, [b"{}\n"], stream=APP)
    one.seal()
    last = one.last_batch()
    assert one.is_unsent(last)
    assert not other.is_unsent(last), "it is not sealed"
    one.stored(claim(one))
    assert not one.is_unsent(last)
    one.close()
    other.close()


def test_claims_can_be_given_back(engine: Engine) -> None:
    spool = engine.open()
    record(spool, [b"{}\n"])
    spool.seal()
    claim(spool)
    assert not spool.has_claimable()
    assert spool.give_back_claims() == 1
    assert spool.give_back_claims() == 0
    assert spool.has_claimable()
    spool.close()


def test_a_position_is_committed_with_its_events_or_neither(engine: Engine) -> None:
    one, other = engine.open(), engine.open()
    one.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("x", 5, b"5"))])
    other.close()
    one.close()
    after = engine.open()
    with pytest.raises(ConfigurationError, match="meanwhile"):
        after.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("x", 4, b"4"))])
    assert position(after, "x") == b"5"
    after.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("x", 6, b"6"))])
    after.seal()
    assert sum(waiting.events for waiting in after.waiting()) == 2
    after.close()


def test_new_positions_are_reported_once(engine: Engine) -> None:
    one, other = engine.open(), engine.open()
    seen: dict[str, int] = {}
    assert other.new_positions("a-", seen) == []
    one.append([Recording(WEB, [], first_at=1, last_at=1, position=InputPosition("a-x", 1, b"1"))])
    one.append([Recording(WEB, [], first_at=1, last_at=1, position=InputPosition("b-x", 2, b"1"))])
    assert [found.input for found in other.new_positions("a-", seen)] == ["a-x"]
    one.append([Recording(WEB, [], first_at=1, last_at=1, position=InputPosition("a-y", 3, b"1"))])
    assert "a-y" in [found.input for found in other.new_positions("a-", seen)]
    assert other.new_positions("a-", seen) == [] or engine.name == "postgresql"
    one.close()
    other.close()


def test_threads_share_commits_and_lose_nothing(engine: Engine) -> None:
    spool = engine.open(limits=BatchLimits(events=64, bytes=1 << 30, age=300))
    lines = [b'{"n":%d}\n' % number for number in range(800)]
    jobs: list[tuple[int, bytes]] = []

    def work(some: list[bytes]) -> None:
        jobs.extend([(record(spool, [line])[0][0], line) for line in some])  # one commit each

    threads = [threading.Thread(target=work, args=(lines[start::16],)) for start in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job for job, _ in jobs}) == 800
    spool.seal()
    found = b""
    while spool.has_claimable():
        batch = claim(spool)
        found += gzip.decompress(content(spool, batch))
        spool.stored(batch)
    assert sorted(found.splitlines(keepends=True)) == sorted(lines)
    spool.close()


def test_a_wrong_call_after_the_end_is_an_error(engine: Engine) -> None:
    spool = engine.open()
    spool.close()
    with pytest.raises(BackupClosed):
        record(spool, [b"{}\n"])
    with pytest.raises((BackupClosed, SpoolError)):
        spool.check_room()


def test_what_another_process_has_sent_is_not_skipped_late(engine: Engine) -> None:
    if engine.name == "sqlite":
        pytest.skip("a process there holds its lock, or is dead")
    slow, other = engine.open(), engine.open()
    record(slow, [b"{}\n"])
    slow.seal()
    late = claim(slow)
    assert isinstance(engine, PostgresqlEngine)
    assert isinstance(slow, PostgresqlSpool)
    engine.expire(slow.session)
    other.recover()
    other.stored(claim(other))
    slow.skip(late)
    assert [one.key for one in stored_in(engine)] == [late.key]
    slow.close()
    other.close()


def stored_in(engine: Engine) -> list[StoredObject]:
    with open_reader(engine.place) as reader:
        return reader.stored("s3://bucket", Kind.RAW, 0, 100)
