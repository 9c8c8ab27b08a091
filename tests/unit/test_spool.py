"""The spool: sealed batches are frozen, dead processes are replaced, and damage is found."""

from __future__ import annotations

import base64
import fcntl
import gzip
import os
import random
import sqlite3
import stat
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from places import TESTS
from spools import APP, WEB, claim, content, die, open_spool, position, record, rows, tampering

from jobs_backup.errors import SpoolCorrupt, SpoolError, Unavailable
from jobs_backup.inputs.rejects import Rejects
from jobs_backup.model import Kind, Stream, Upload
from jobs_backup.spool import planning
from jobs_backup.spool.chunks import Chunk, ChunkKind
from jobs_backup.spool.ids import INDEX_BITS, JobSet, job_id, origin_of
from jobs_backup.spool.interface import BatchLimits, Claim, InputPosition, Recording
from jobs_backup.spool.open_batch import MEMBER_BYTES
from jobs_backup.spool.sqlite import writer
from jobs_backup.spool.sqlite.blobs import Changes
from jobs_backup.spool.sqlite.locks import ProcessLock


def test_large_recordings_become_members_of_about_a_mebibyte(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, limits=BatchLimits(events=100_000, bytes=1 << 30, age=300))
    lines = [b'{"n":%060d}\n' % number for number in range(60_000)]
    for start in range(0, len(lines), 500):
        record(spool, lines[start : start + 500])
    chunks = spool._writer._blobs.chunks(spool._writer._open[WEB].id)
    members = [chunk for chunk in chunks if chunk.form is ChunkKind.MEMBER]
    assert len(members) == len(lines) * len(lines[0]) // MEMBER_BYTES
    assert all(MEMBER_BYTES <= chunk.raw_bytes < MEMBER_BYTES + 500 * len(lines[0]) for chunk in members)
    spool.seal()
    assert gzip.decompress(content(spool, claim(spool))) == b"".join(lines)
    spool.close()


def test_a_body_can_be_read_in_slices_and_from_anywhere(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, limits=BatchLimits(events=100_000, bytes=1 << 30, age=300))
    for start in range(0, 50_000, 5_000):
        record(spool, [b'{"n":%0100d}\n' % (number * 7919) for number in range(start, start + 5_000)])
    spool.seal()
    batch = claim(spool)
    body, whole = spool.open_body(batch), content(spool, batch)
    assert len(spool._writer._blobs.chunks(batch.id)) > 3
    for offset in range(0, batch.size, 12_345):
        size = min(12_345, batch.size - offset)
        part = body.slice(offset, size)
        with part.open() as reader:
            assert reader.read() == whole[offset : offset + size]
            reader.seek(size // 2)
            assert reader.read(10) == whole[offset + size // 2 : offset + size][:10]
    with pytest.raises(ValueError, match="outside"):
        body.slice(1, batch.size)
    spool.close()


def test_what_a_dead_process_recorded_is_sealed_by_another(tmp_path: Path) -> None:
    dead = open_spool(tmp_path)
    record(dead, [b'{"a":%d}\n' % number for number in range(10)])
    alive = open_spool(tmp_path)
    assert alive.recover() == 0, "it is still alive"
    die(dead)
    assert alive.recover() == 1
    assert alive.recover() == 0
    batch = claim(alive)
    assert gzip.decompress(content(alive, batch)).count(b"\n") == 10
    alive.stored(batch)
    assert not list((tmp_path / "blobs").glob(f"{dead.session}*")), "drained, its file goes"
    alive.close()


def test_adopting_again_after_a_crash_between_the_files_changes_nothing(tmp_path: Path) -> None:
    """The adopter dies after it has fixed the bytes, and before it updates the catalog."""
    dead = open_spool(tmp_path)
    record(dead, [b'{"a":%d}\n' % number for number in range(10)])
    die(dead)
    first = open_spool(tmp_path)
    first._catalog.seal = lambda seals: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.recover()
    die(first)
    second = open_spool(tmp_path)
    assert second.recover() == 2
    batch = claim(second)
    assert (batch.events, gzip.decompress(content(second, batch)).count(b"\n")) == (10, 10)
    assert second.claim() is None
    second.close()


@pytest.mark.parametrize("streams", [(WEB,), (WEB, APP)], ids=["one statement", "a transaction"])
def test_a_failed_commit_leaves_no_trace_and_the_next_one_works(tmp_path: Path, streams: tuple[Stream, ...]) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b'{"a":0}\n'], stream=APP)
    first = record(spool, [b'{"a":1}\n'])
    fail = spool._writer._blobs._database._connection
    connection, fail._connection = fail._connection, _Broken(fail._connection)  # type: ignore[assignment, arg-type]
    with pytest.raises(SpoolError):
        spool.append([Recording(stream, [b'{"a":2}\n'], first_at=1, last_at=1) for stream in streams])
    fail._connection = connection
    again = record(spool, [b'{"a":3}\n'])
    assert again[0][0] == first[0][0] + 1
    spool.seal()
    batches = [claim(spool), claim(spool)]
    assert {batch.stream: gzip.decompress(content(spool, batch)) for batch in batches} == {
        WEB: b'{"a":1}\n{"a":3}\n',
        APP: b'{"a":0}\n',
    }
    spool.close()


class _Broken:
    """A connection whose disk fails at the commit."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, *arguments: object) -> object:
        if statement == "COMMIT" or statement.startswith("INSERT INTO chunks"):
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(statement, *arguments)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


def test_a_busy_recorder_does_not_keep_sealing_waiting(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, limits=BatchLimits(events=1 << 20, bytes=1 << 30, age=300))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            record(spool, [b"{}\n"])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not spool.recorded.events:
        time.sleep(0.01)
    sealed = [spool.seal() for _ in range(5)]  # without fairness, it would never return
    stop.set()
    for thread in threads:
        thread.join()
    assert sealed[0] == 1
    spool.close()


def test_after_a_failed_commit_no_empty_object_is_made(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, limits=BatchLimits(events=10, bytes=1 << 30, age=300))
    database = spool._writer._blobs._database._connection
    connection, database._connection = database._connection, _Broken(database._connection)  # type: ignore[assignment, arg-type]
    with pytest.raises(SpoolError):
        record(spool, [b"{}\n"] * 45)
    database._connection = connection
    record(spool, [b"{}\n"])
    spool.seal()
    assert claim(spool).events == 1
    assert spool.claim() is None
    spool.close()


def test_what_cannot_be_read_of_a_dead_process_keeps_no_other_back(tmp_path: Path) -> None:
    dead = open_spool(tmp_path)
    dead.append([Recording(WEB, [b"{}\n"], first_at=1, last_at=1, position=InputPosition("file", 1, b"10"))])
    record(dead, [b"{}\n"], stream=APP)
    with tampering(dead._writer._blobs._database) as connection:
        connection.execute("UPDATE chunks SET data=zeroblob(length(data)) WHERE job=(SELECT min(job) FROM chunks)")
    die(dead)
    gone = open_spool(tmp_path)
    record(gone, [b"{}\n"])
    die(gone)
    (tmp_path / "blobs" / f"{gone.session}.db").unlink()
    closed = open_spool(tmp_path)
    record(closed, [b"{}\n"])
    die(closed)
    file = tmp_path / "blobs" / f"{closed.session}.db"
    file.rename(file.with_suffix(".aside"))
    file.mkdir()
    alive = open_spool(tmp_path)
    alive.recover()
    assert claim(alive).stream == APP
    assert alive.claim() is None
    missing = f"quarantine/{gone.session}.missing"
    damages = [(damage.stream, damage.events, damage.file) for damage in alive.quarantined()]
    assert [(stream, events) for stream, events, file in damages if file != missing] == [(WEB, 1)]
    assert (WEB, 0) in [(stream, events) for stream, events, file in damages if file == missing]
    assert sum(events for _, events, file in damages if file == missing) == 1
    assert [error.message for error in alive.unreadable] == [f"{file}: it is a directory"]
    file.rmdir()
    file.with_suffix(".aside").rename(file)
    alive.recover()
    assert claim(alive).events == 1
    assert alive.unreadable == []
    assert position(alive, "file") == b"10"
    alive.close()


@pytest.mark.parametrize("name", ["{}-backup", "{}-1.old", "{}-", "{}-\u00b2", "{} (copy)", "-1"])
def test_a_copy_of_a_file_under_any_name_is_uploaded_under_the_same_key(tmp_path: Path, name: str) -> None:
    dead = open_spool(tmp_path)
    record(dead, [b"{}\n"])
    dead._writer._blobs.copy_to(tmp_path / "blobs" / f"{name.format(dead.session)}.db")
    die(dead)
    alive = open_spool(tmp_path)
    alive.begin_sending()
    alive.recover()
    batches = [claim(alive), claim(alive)]
    assert len({batch.uuid for batch in batches}) == 1
    for batch in batches:
        alive.stored(batch)
    assert alive.account().problems == []
    assert {path.stem for path in (tmp_path / "blobs").glob("*.db")} == {alive.session}
    alive.close()


def test_a_drained_file_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    (tmp_path / "blobs" / "0123456789abcdef.db").touch()
    spool.recover()
    spool.begin_sending()
    assert [path.stem for path in (tmp_path / "blobs").glob("*.db")] == [spool.session]
    spool.close()


def test_no_statement_looks_at_all_batches_there_ever_were(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    database = spool._catalog._database
    asked: list[str] = []
    database._connection.use(lambda connection: connection.set_trace_callback(asked.append))
    record(spool, [b"{}\n"])
    spool.seal()
    spool.has_claimable()
    batch = claim(spool)
    spool.release(batch, Unavailable("no"), delay=0, standing="refused")
    spool.begin_sending()
    spool.is_unsent(spool.last_batch())
    spool.waiting()
    spool.recover()
    spool.stored(claim(spool))
    database._connection.use(lambda connection: connection.set_trace_callback(None))
    for statement in asked:
        if "batches" in statement and not statement.startswith("INSERT"):
            plan = [row[3] for row in rows(database, f"EXPLAIN QUERY PLAN {statement}")]
            # Partial indexes hold only pending rows; a full scan of them is fine.
            assert not [step for step in plan if step in ("SCAN batches", "SCAN b")], (statement, plan)
    spool.close()


def test_damaged_bytes_are_found(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b'{"a":1}\n'])
    spool.seal()
    batch = claim(spool)
    with tampering(spool._writer._blobs._database) as connection:
        connection.execute("UPDATE chunks SET data=zeroblob(length(data))")
    with pytest.raises(SpoolCorrupt, match="not those that were written"):
        content(spool, batch)
    with tampering(spool._writer._blobs._database) as connection:
        connection.execute("DELETE FROM chunks")
    with pytest.raises(SpoolCorrupt, match="instead of"):
        spool.open_body(batch)
    spool.close()


def test_a_spool_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    open_spool(tmp_path).close()
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(SpoolError, match="newer jobs-backup") as caught:
        open_spool(tmp_path)
    assert "--upgrade" in caught.value.hint


def test_a_file_that_is_no_spool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(SpoolCorrupt):
        open_spool(tmp_path)


def test_the_spool_is_private(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool")
    record(spool, [b"{}\n"])
    for path in (tmp_path / "spool").rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    spool.close()


@pytest.mark.parametrize("umask", [0o777, 0o700, 0o377, 0o000])
def test_a_spool_is_its_owners_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        spool = open_spool(tmp_path / "parent" / "spool")
        record(spool, [b"{}\n"])
        rejects = Rejects(tmp_path / "elsewhere" / "rejects" / "in.ndjson", None)
        rejects.add(b"bad\n")
        rejects.close()
        modes = {path: (stat.S_IMODE(path.stat().st_mode), path.is_dir()) for path in tmp_path.rglob("*")}
        spool.close()
    finally:
        os.umask(before)
    assert {path: mode for path, (mode, is_directory) in modes.items() if mode != (0o700 if is_directory else 0o600)} == {}
    assert len(modes) > 10


def test_a_spool_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "mine").mkdir(mode=0o777)
        (tmp_path / "mine" / "blobs").mkdir(mode=0o777)
        open_spool(tmp_path / "mine").close()
        open_spool(tmp_path / "new" / "parent" / "spool").close()
    finally:
        os.umask(before)
    directories = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}


def test_parts_of_the_spool_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpoolError, match="is a symbolic link"):
        open_spool(tmp_path / "spool")


def test_a_damaged_journal_of_uploads_is_a_clear_error(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record(spool, [b"{}\n"])
    spool.seal()
    batch = claim(spool)
    spool.uploads.abandon(spool.uploads.begin(batch, Upload(key=batch.key, id="secret"), 5 << 20))
    with tampering(spool._catalog._database) as connection:
        connection.execute("UPDATE uploads SET upload=x'7b7b'")
    with pytest.raises(SpoolCorrupt, match="the journal of uploads"):
        spool.uploads.abandoned()
    spool.close()


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError) as caught:
        open_spool(tmp_path / "file" / "spool")
    assert "JOBS_BACKUP_SPOOL_DIR" in caught.value.hint


def test_batch_numbers_are_never_used_again(tmp_path: Path) -> None:
    jobs: list[int] = []
    for name in ("one", "two", "one"):
        spool = open_spool(tmp_path / name)
        for _ in range(3):
            ((job, _),) = record(spool, [b"{}\n"])
            jobs.append(job)
            spool.seal()
        spool.close()
    assert len(jobs) == len(set(jobs)), "whatever their batches' numbers, no two spools give the same id"
    numbers = [origin_of(job)[1] for job in jobs]
    assert numbers[:3] + numbers[6:] == sorted(set(numbers[:3] + numbers[6:])), "within one they are not used again"


def spool_of_version(version: int, directory: Path) -> Path:
    """Create a spool as a killed process of that format version left it. Returns its blob file."""
    earlier = TESTS / "data" / f"spool-v{version}"
    (directory / "blobs").mkdir()
    for script in earlier.rglob("*.sql"):
        with closing(sqlite3.connect((directory / script.relative_to(earlier)).with_suffix(".db"))) as connection:
            connection.executescript(script.read_text())
    (blobs,) = (directory / "blobs").iterdir()
    return blobs


def job_set(*ids: int) -> JobSet:
    jobs = JobSet()
    for id_ in ids:
        jobs.add(id_)
    return jobs


def test_a_spool_of_an_earlier_version_is_upgraded_and_sent(tmp_path: Path) -> None:
    blobs = spool_of_version(1, tmp_path)
    spool = open_spool(tmp_path, location="file:///srv/bucket")
    spool.recover()
    batches = [claim(spool), claim(spool)]
    assert spool.claim() is None, "the third one was stored"
    found = [gzip.decompress(content(spool, batch)) for batch in batches]
    assert [line.count(b"\n") for line in found] == [5, 3]
    assert b'"messageId":"w0"' in found[0]
    assert b'"messageId":"o0"' in found[1]
    journaled = spool.uploads.of(batches[0])
    assert journaled is not None
    assert (journaled[0].upload.id, [part.etag for part in journaled[1]]) == ("an-upload", ["one"])
    assert position(spool, "input") == b"{}"
    with closing(sqlite3.connect(blobs)) as connection, connection:
        connection.execute("UPDATE chunks SET data=zeroblob(length(data)) WHERE job=?", (batches[0].id << INDEX_BITS,))
    spool.quarantine_batch(Claim(batches[0], 0, 2, is_delivered=False), SpoolCorrupt("rotten"))
    assert {damage.batch for damage in spool.quarantined()} == {batches[0].id}
    spool.close()
    fresh = open_spool(tmp_path / "fresh")
    upgraded = open_spool(tmp_path)
    tables = "SELECT m.name, c.name, c.type, c.dflt_value FROM sqlite_schema m, pragma_table_info(m.name) c ORDER BY 1, c.cid"
    indexes = "SELECT sql FROM sqlite_schema WHERE type='index' AND sql NOT NULL ORDER BY name"
    for statement in (tables, indexes):
        of_both = [rows(one._catalog._database, statement) for one in (fresh, upgraded)]
        assert of_both[0] == of_both[1]
    fresh.close()
    upgraded.close()


# The events of the process that left tests/data/spool-v7: the first id of each batch. Ids had no epoch then.
V7_STORED, V7_SEALED, V7_OPEN, V7_NUMBERED = 3766488752344530944, 3766488752476651520, 3766488752558440448, 3766488752575217664


@pytest.mark.parametrize("when", ["before the dead process is replaced", "after that", "once all is stored"])
def test_ids_of_the_version_before_are_still_acknowledged(tmp_path: Path, when: str) -> None:
    """One event of each object was acknowledged before the upgrade."""
    blobs = spool_of_version(7, tmp_path)
    spool = open_spool(tmp_path, location="file:///srv/bucket")
    rest = [V7_STORED + 1, V7_STORED + 2, V7_SEALED, *range(V7_SEALED + 2, V7_SEALED + 5), V7_OPEN + 1]
    wrong = [V7_STORED + 3, V7_SEALED + 5, V7_OPEN + 2, job_id(spool._writer.session.epoch, *divmod(V7_STORED, 1 << INDEX_BITS))]

    def acknowledge(at: str) -> None:
        if at == when:
            assert list(spool.delivered(job_set(*rest, *wrong))) == sorted(wrong)

    assert spool.claim_deletes(10) == []
    acknowledge("before the dead process is replaced")
    assert spool.recover() == 1
    acknowledge("after that")
    found: dict[Stream, list[bytes]] = {}
    for claimed in iter(spool.claim, None):
        found[claimed.batch.stream] = gzip.decompress(content(spool, claimed.batch)).splitlines()
        spool.stored(claimed.batch)
    assert {stream: [line[14:-2] for line in lines] for stream, lines in found.items()} == {
        WEB: [b"b0", b"b1", b"b2", b"b3", b"b4"],
        APP: [b"c0", b"c1"],
        Stream(Kind.FAILED, "w", "web"): [b"f0"],
    }
    acknowledge("once all is stored")
    assert not blobs.exists(), "it is drained"
    assert {one.batch for one in spool.claim_deletes(10)} == {id_ >> INDEX_BITS for id_ in (V7_STORED, V7_SEALED, V7_OPEN)}
    assert spool.quarantined() == []
    spool.close()


def test_a_spool_of_the_version_before_goes_on_as_it_was(tmp_path: Path) -> None:
    spool_of_version(7, tmp_path)
    spool = open_spool(tmp_path, location="file:///srv/bucket")
    spool.recover()
    opened = rows(spool._catalog._database, "SELECT id, opened_at, epoch FROM batches WHERE kind='raw' ORDER BY id")
    assert opened == [(id_ >> INDEX_BITS, (id_ >> INDEX_BITS) / 1000, 0) for id_ in (V7_STORED, V7_SEALED, V7_OPEN, V7_NUMBERED)]
    assert spool.stream_of(V7_NUMBERED + 3) == WEB, "of an event that was only numbered"
    assert position(spool, "input") == b"{}"
    first = claim(spool)
    journaled = spool.uploads.of(first)
    assert journaled is not None
    assert (journaled[0].upload.id, [part.etag for part in journaled[1]]) == ("an-upload", ["one"])
    spool.stored(first)
    assert [one.upload.id for one in spool.uploads.abandoned()] == ["an-upload"]
    ((job, _),) = record(spool, [b"{}\n"])
    epoch, batch = origin_of(job)
    assert (epoch > 0, batch) == (True, (V7_NUMBERED >> INDEX_BITS) + 1), "numbers go on"
    settled = "SELECT settled FROM batches WHERE id=?"
    assert rows(spool._catalog._database, settled, (V7_STORED >> INDEX_BITS,)) == [(0,)]
    for claimed in iter(spool.claim, None):
        spool.stored(claimed.batch)
    assert rows(spool._catalog._database, settled, (V7_STORED >> INDEX_BITS,)) == [(1,)], "the failure record is stored"
    spool.close()


def test_a_spool_of_an_earlier_version_is_not_upgraded_while_it_is_used(tmp_path: Path) -> None:
    other = open_spool(tmp_path)
    with sqlite3.connect(tmp_path / "catalog.db") as connection:
        connection.execute("PRAGMA user_version=1")
    connection.close()
    with pytest.raises(SpoolError, match="is used by a process with an earlier version"):
        open_spool(tmp_path)
    other.close()


def test_a_file_that_has_grown_large_is_left_and_removed_once_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_FILE_BYTES", 1 << 20)
    spool = open_spool(tmp_path)
    jobs: list[int] = []
    for number in range(20):
        at = InputPosition("input", number + 1, b"%d" % number)
        noise = base64.b64encode(random.Random(number).randbytes(200_000))
        recording = Recording(WEB if number % 2 else APP, [b'"%s"\n' % noise], first_at=1, last_at=1, position=at)
        spool.append([recording])
        jobs.append(recording.jobs[0][0])
    assert len(set(jobs)) == 20
    names = {path.stem for path in (tmp_path / "blobs").glob("*.db")}
    assert len(names) > 2
    assert all(name.partition("-")[0] == spool.session for name in names)
    assert position(spool, "input") == b"19"
    spool.seal()
    last = spool.last_batch()
    events = 0
    while (claimed := spool.claim()) is not None:
        assert spool.is_unsent(last)
        events += gzip.decompress(content(spool, claimed.batch)).count(b"\n")
        spool.stored(claimed.batch)
    assert events == 20
    assert not spool.is_unsent(last)
    assert len(list((tmp_path / "blobs").glob("*.db"))) == 1
    record(spool, [b"{}\n"])
    die(spool)
    alive = open_spool(tmp_path)
    alive.recover()
    assert position(alive, "input") == b"19"
    assert claim(alive).events == 1
    alive.close()


def test_where_the_new_file_cannot_be_entered_the_old_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_FILE_BYTES", 1 << 16)
    spool = open_spool(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(spool._catalog, "change_file", lambda *_: (_ for _ in ()).throw(SpoolError("no")))
        for _ in range(3):
            record(spool, [b'"%s"\n' % (b"x" * 2000)])
    assert [path.stem for path in (tmp_path / "blobs").glob("*.db")] == [spool.session]
    record(spool, [b'"%s"\n' % (b"x" * 2000)])
    assert sum(batch.batch.events for batch in iter(spool.claim, None)) == 4
    spool.close()


def test_what_a_kill_has_left_over_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    living = open_spool(tmp_path)
    monkeypatch.setattr(writer, "_FILE_BYTES", 1 << 16)
    record(living, [b"{}\n"])
    record(living, [b"{}\n"])
    first = tmp_path / "blobs" / f"{living.session}.db"
    killed = open_spool(tmp_path)
    monkeypatch.setattr(killed, "_clean_up", lambda name: None)  # killed right before
    for claimed in iter(killed.claim, None):
        killed.stored(claimed.batch)
    die(killed)
    assert first.exists()
    (tmp_path / "locks" / "0123456789abcdef.lock").touch()
    for suffix in ("", "-journal", "-wal", "-shm"):
        (tmp_path / "blobs" / f"0123456789abcdef.db{suffix}").touch()
    alive = open_spool(tmp_path)
    alive.recover()
    alive.begin_sending()
    written = set(alive._catalog.blob_files().values())
    assert {path.stem for path in (tmp_path / "blobs").glob("*.db")} == written
    assert {path.stem for path in (tmp_path / "locks").iterdir()} == {living.session, alive.session}
    assert not list((tmp_path / "blobs").glob("0123456789abcdef*"))
    alive.close()
    living.close()


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise two processes could hold locks of one name: the removed one, and its replacement."""
    flock = fcntl.flock
    removed: list[int] = []

    def remove_first(descriptor: int, operation: int) -> None:
        if not removed:
            (tmp_path / "name.lock").unlink()
            removed.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    lock = ProcessLock.try_to_take(tmp_path, "name")
    assert lock is not None
    assert ProcessLock.is_held(tmp_path, "name")
    assert ProcessLock.try_to_take(tmp_path, "name") is None
    lock.release(remove=True)
    assert not ProcessLock.is_held(tmp_path, "name")


def test_threads_that_share_a_failed_commit_have_errors_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)
    recording = threading.Event()

    def fail(self: object, chunk: Chunk, data: bytes) -> None:
        recording.set()
        time.sleep(0.3)  # meanwhile the others queue up and share the next commit
        raise SpoolError("no")

    monkeypatch.setattr(Changes, "append", fail)
    errors: list[SpoolError] = []

    def work() -> None:
        try:
            record(spool, [b"{}\n"])
        except SpoolError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    threads[0].start()
    recording.wait()
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(error) for error in errors}) == 4
    assert {error.message for error in errors} == {"no"}
    monkeypatch.undo()
    spool.close()


def test_what_many_threads_add_at_once_does_not_become_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite limits rows to 1 GB."""
    monkeypatch.setattr(planning, "_ADDITION_BYTES", MEMBER_BYTES)
    spool = open_spool(tmp_path)
    record(spool, [b'"waits"\n'])
    lines = [b'"%d%s"\n' % (number, b"x" * (MEMBER_BYTES // 3)) for number in range(10)]
    recordings = [Recording(WEB, [line], first_at=1, last_at=1) for line in lines]
    spool.append(recordings)
    assert [recording.jobs[0][0] - recordings[0].jobs[0][0] for recording in recordings] == list(range(10))
    batch = spool._writer._open[WEB]
    sizes = [chunk.raw_bytes for chunk in spool._writer._blobs.chunks(batch.id)]
    assert len(sizes) > 2
    assert max(sizes) < 2 * MEMBER_BYTES
    spool.seal()
    assert gzip.decompress(content(spool, claim(spool))) == b'"waits"\n' + b"".join(lines)
    spool.close()
