"""Wrappers: their order, their permitted changes, the fate of a batch after a change, and the effect of their failures."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any, BinaryIO

import example_wrappers
import pytest
from commands import run
from distributions import Install
from example_wrappers import SEEN, Failing
from places import SUPPORT
from spools import archiver_of

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.checksum import crc32c
from jobs_backup.errors import (
    ConfigurationError,
    ContractViolation,
    IntegrityError,
    PermissionDenied,
    StorageError,
    StorePaused,
    Unavailable,
    WrapperMissing,
    WrapperNotFound,
)
from jobs_backup.model import Body, BytesBody
from jobs_backup.settings.core import CoreSettings
from jobs_backup.store import plugins
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.store.wrappers import Wrappers, load
from jobs_backup.testing.memory import MemoryProvider

GROUP = "jobs_backup.wrappers"
NAMES = ("First", "Second", "Inner", "Outer", "Meddling", "Failing", "Forgetting")


@pytest.fixture(autouse=True)
def _installed(install: Install) -> Iterator[None]:
    install("from jobs_backup.testing.memory import MemoryProvider", name="MEMORY", target="MemoryProvider")
    for name in NAMES:
        install(f"from example_wrappers import {name}", name=name, target=name, group=GROUP, distribution=f"{name}-wrapper")
    SEEN.clear()
    MemoryProvider.buckets["events"] = {}
    yield
    Failing.before.clear()
    Failing.after.clear()
    Failing.opening.clear()


def environment(tmp_path: Path, wrappers: str, **more: str) -> dict[str, str]:
    return {
        "JOBS_BACKUP_STORAGE_PROVIDER": "MEMORY",
        "JOBS_BACKUP_BUCKET": "events",
        "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        "JOBS_BACKUP_WRAPPERS": wrappers,
        "JOBS_BACKUP_RETRY_MAX_WAIT": "1ms",
        **more,
    }


def objects() -> dict[str, bytes]:
    return MemoryProvider.buckets["events"]


def payloads(data: bytes) -> list[Any]:
    return [json.loads(line)["payload"] for line in gzip.decompress(data).splitlines()]


def record(variables: Mapping[str, str], payload: Mapping[str, object], *, archive: bool = True) -> None:
    with Backup.from_env(variables, archive=archive) as backup:
        backup.record(dict(payload), source_id="web")
        if archive:
            backup.flush(timeout=120)


def store(variables: Mapping[str, str]) -> ObjectStore:
    return ObjectStore.from_settings(CoreSettings.from_environment(variables), variables)


def read(variables: Mapping[str, str], key: str, tmp_path: Path) -> bytes:
    with (tmp_path / "fetched").open("w+b") as file:
        store(variables).fetch(key, file)
        return file.read()


# Order


def test_of_each_call_the_first_is_the_outermost(tmp_path: Path) -> None:
    variables = environment(tmp_path, "first,second")
    record(variables, {"n": 1})
    (key,) = objects()
    read(variables, key, tmp_path)
    assert [line for line in SEEN if " write " in line] == [
        "first write begin", "second write begin", "second write end", "first write end",
    ]  # fmt: skip
    assert [line for line in SEEN if " read " in line] == [
        "first read begin", "second read begin", "second read end", "first read end",
    ]  # fmt: skip


def test_bytes_pass_through_the_list_forwards_and_come_back_backwards(tmp_path: Path) -> None:
    variables = environment(tmp_path, "inner, OUTER", XA_PARAMETER="k1")
    record(variables, {"n": 1})
    ((key, data),) = objects().items()
    assert key.endswith(".json.gz.xa.xb")
    assert data.startswith(b"<xb ><xa k1>\x1f\x8b")
    assert data.endswith(b"</xa></xb>")
    assert payloads(read(variables, key, tmp_path)) == [{"n": 1}]


@pytest.mark.parametrize("wrappers", ["first,inner,second,outer", "inner,outer,first,second"])
def test_those_that_only_look_on_may_stand_anywhere(tmp_path: Path, wrappers: str) -> None:
    variables = environment(tmp_path, wrappers)
    record(variables, {"n": 1})
    ((key, data),) = objects().items()
    assert data.startswith(b"<xb ><xa >")
    assert payloads(read(variables, key, tmp_path)) == [{"n": 1}]
    assert {line.split()[0] for line in SEEN if "open_body" in line} == {"first", "second"}


# A batch keeps the wrappers it was opened with


def test_the_parameter_is_that_of_the_time_of_recording(tmp_path: Path) -> None:
    record(environment(tmp_path, "inner", XA_PARAMETER="k1"), {"n": 1}, archive=False)
    record(environment(tmp_path, "inner", XA_PARAMETER="k2"), {"n": 2})
    starts = {data[: data.index(b">") + 1]: payloads(data[data.index(b">") + 1 : -5]) for data in objects().values()}
    assert starts == {b"<xa k1>": [{"n": 1}], b"<xa k2>": [{"n": 2}]}


def test_what_was_recorded_before_is_sent_as_it_was_and_this_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        record(environment(tmp_path, ""), {"n": number}, archive=False)
    record(environment(tmp_path, "inner"), {"n": 3})
    suffixes = sorted(key.partition(".")[2] for key in objects())
    assert suffixes == ["json.gz", "json.gz", "json.gz", "json.gz.xa"]
    (line,) = [message for message in caplog.messages if "JOBS_BACKUP_WRAPPERS" in message]
    assert "is uploaded without .xa, like everything recorded without it" in line


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ("", "through the wrapper of .xa, .xb, which is not active"),
        ("outer", "through the wrapper of .xa, which is not active"),
        ("outer,inner", "through the wrappers of .xa, .xb in this order"),
    ],
)
def test_without_its_wrappers_a_batch_waits_and_keeps_no_other_back(tmp_path: Path, then: str, why: str) -> None:
    record(environment(tmp_path, "inner,outer"), {"n": 1}, archive=False)
    with Backup.from_env(environment(tmp_path, then)) as backup:
        backup.record({"n": 2}, source_id="web")
        backup.flush(timeout=120)  # the other one belongs to another process
        (waiting,) = session_of(backup).spool.waiting()
        assert why in waiting.error
        assert "JOBS_BACKUP_WRAPPERS" in waiting.hint
        assert archiver_of(backup).paused is None
    assert len(objects()) == 1
    with Backup.from_env(environment(tmp_path, "inner,outer")) as backup:
        archiver_of(backup).drain(120)
    assert sorted(key.partition(".")[2] for key in objects()) == sorted(
        ["json.gz.xa.xb", "json.gz" + {"": "", "outer": ".xb", "outer,inner": ".xb.xa"}[then]]
    )


def test_status_reports_why_a_batch_waits(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    variables = environment(tmp_path, "inner", JOBS_BACKUP_STORAGE_PROVIDER="FILE", JOBS_BACKUP_BUCKET=str(tmp_path / "bucket"))
    record(variables, {"n": 1}, archive=False)
    variables["JOBS_BACKUP_WRAPPERS"] = ""
    code, _, stderr = run("archive", "--once", env=variables)
    assert code == 1
    assert "which is not active: add it to JOBS_BACKUP_WRAPPERS" in stderr
    code, stdout, _ = run("status", env=variables)
    assert code == 0
    assert "which is not active" in stdout
    assert "add it to JOBS_BACKUP_WRAPPERS" in stdout


def test_reading_what_was_made_by_a_wrapper_that_is_not_there(tmp_path: Path) -> None:
    record(environment(tmp_path, "inner,outer"), {"n": 1})
    (key,) = objects()
    with pytest.raises(WrapperMissing, match=r"was uploaded through the wrapper of \.xa, which is not active") as caught:
        read(environment(tmp_path, "outer"), key, tmp_path)
    assert caught.value.hint == "add it to JOBS_BACKUP_WRAPPERS"
    with pytest.raises(WrapperMissing, match="in this order"):
        read(environment(tmp_path, "outer,inner"), key, tmp_path)


def test_an_object_that_no_wrapper_made_is_read_past_them(tmp_path: Path) -> None:
    record(environment(tmp_path, ""), {"n": 1})
    (key,) = objects()
    assert payloads(read(environment(tmp_path, "inner,outer"), key, tmp_path)) == [{"n": 1}]


def test_metadata_names_what_made_the_object(tmp_path: Path) -> None:
    record(environment(tmp_path, "inner,outer", XB_PARAMETER="2026-11"), {"n": 1}, archive=False)
    with Backup.from_env(environment(tmp_path, "first"), archive=False) as backup:
        claim = session_of(backup).spool.claim()
    assert claim is not None
    assert claim.batch.wrappers == ("xa=", "xb=2026-11")
    to = store(environment(tmp_path, "inner,outer"))
    assert to._object_arguments(claim.batch)["metadata"]["jobs-backup-wrappers"] == "xa=,xb=2026-11"


def test_what_is_damaged_in_the_spool_is_not_covered_up(tmp_path: Path) -> None:
    """A wrapper's output has its own checksum: its input must be the recorded bytes."""
    record(environment(tmp_path, "inner"), {"n": 1}, archive=False)
    (file,) = (tmp_path / "spool" / "blobs").glob("*.db")
    with sqlite3.connect(file) as db:
        db.execute("UPDATE chunks SET data=zeroblob(length(data))")
    db.close()
    with Backup.from_env(environment(tmp_path, "inner")) as backup:
        archiver_of(backup).drain(120)
        assert len(session_of(backup).spool.quarantined()) == 1
    assert objects() == {}


# Failures


def test_what_a_wrapper_raises_before_the_call_counts_as_the_hooks_error(tmp_path: Path) -> None:
    Failing.before[:] = [Unavailable("no answer"), StorageError("a fault")]
    with Backup.from_env(environment(tmp_path, "failing,first")) as backup:
        backup.record({"n": 1}, source_id="web")
        backup.flush(timeout=120)
        assert session_of(backup).store.attempts == {
            ("write", "Unavailable"): 1,
            ("write", "StorageError"): 1,
            ("write", "ok"): 1,
        }
    assert len(objects()) == 1
    assert [line for line in SEEN if "write" in line] == ["first write begin", "first write end"]  # the provider was called once


def test_what_a_wrapper_raises_behind_the_call_makes_core_call_again(tmp_path: Path) -> None:
    Failing.after[:] = [RuntimeError("lost my notes")]
    record(environment(tmp_path, "failing,first"), {"n": 1})
    assert len(objects()) == 1
    assert [line for line in SEEN if "write" in line] == [
        "first write begin", "first write end", "first write begin", "first write AlreadyExists",
    ]  # fmt: skip


def test_the_others_see_the_error_of_one(tmp_path: Path) -> None:
    Failing.before[:] = [Unavailable("no answer")]
    record(environment(tmp_path, "first,failing,second"), {"n": 1})
    assert [line for line in SEEN if "write" in line] == [
        "first write begin", "first write Unavailable",
        "first write begin", "second write begin", "second write end", "first write end",
    ]  # fmt: skip


def test_a_permanent_error_of_a_wrapper_pauses_the_store(tmp_path: Path) -> None:
    Failing.before[:] = [PermissionDenied("no", action="a", resource="r")]
    with Backup.from_env(environment(tmp_path, "failing")) as backup:
        backup.record({"n": 1}, source_id="web")
        with pytest.raises(StorePaused):
            backup.flush(timeout=120)


def test_an_error_that_is_none_of_ours_names_the_wrappers_and_hides_secrets(tmp_path: Path) -> None:
    variables = environment(tmp_path, "first,failing", MEMORY_TOKEN="canary-7f3a", JOBS_BACKUP_RETRY_ATTEMPTS="1")
    Failing.before[:] = [RuntimeError("with canary-7f3a")]
    record(variables, {"n": 1}, archive=False)
    with Backup.from_env(variables, archive=False) as backup:
        claim = session_of(backup).spool.claim()
        assert claim is not None
        with pytest.raises(StorageError) as caught:
            session_of(backup).store.write(*session_of(backup).store.prepare(claim.batch))
    assert caught.value.message == "MEMORY within FAILING within FIRST: write failed: RuntimeError: with ****"


def test_a_receipt_that_a_wrapper_loses_is_no_success(tmp_path: Path) -> None:
    record(environment(tmp_path, ""), {"n": 1}, archive=False)
    with Backup.from_env(environment(tmp_path, "forgetting"), archive=False) as backup:
        claim = session_of(backup).spool.claim()
        assert claim is not None
        with pytest.raises(ContractViolation, match="MEMORY within FORGETTING: write returned NoneType"):
            session_of(backup).store.write(*session_of(backup).store.prepare(claim.batch))


def test_an_upload_whose_receipt_a_wrapper_loses_is_aborted(tmp_path: Path) -> None:
    MemoryProvider.uploads.clear()
    record(environment(tmp_path, ""), {"n": 1}, archive=False)
    with Backup.from_env(environment(tmp_path, "forgetting"), archive=False) as backup:
        claim = session_of(backup).spool.claim()
        assert claim is not None
        with pytest.raises(ContractViolation, match="create_multipart returned NoneType"):
            session_of(backup).store.create_multipart(claim.batch)
    assert MemoryProvider.uploads == {}


def test_bytes_that_are_changed_without_a_format_are_not_stored(tmp_path: Path) -> None:
    record(environment(tmp_path, ""), {"n": 1}, archive=False)
    with Backup.from_env(environment(tmp_path, "meddling", JOBS_BACKUP_RETRY_ATTEMPTS="1"), archive=False) as backup:
        claim = session_of(backup).spool.claim()
        assert claim is not None
        with pytest.raises(IntegrityError):
            session_of(backup).store.write(*session_of(backup).store.prepare(claim.batch))
    assert objects() == {}


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ConfigurationError("no key", hint="set it"), WrapperMissing),
        (RuntimeError("oops"), StorageError),
        (IntegrityError("bad"), IntegrityError),
    ],
)
def test_a_body_that_can_not_be_opened(tmp_path: Path, raised: Exception, expected: type[Exception]) -> None:
    record(environment(tmp_path, "inner"), {"n": 1}, archive=False)
    with Backup.from_env(environment(tmp_path, "inner,failing"), archive=False) as backup:
        claim = session_of(backup).spool.claim()
        assert claim is not None
        Failing.opening[:] = [raised]
        with pytest.raises(expected) as caught:
            session_of(backup).store.prepare(claim.batch)
        assert type(caught.value) is expected
    Failing.opening[:] = [raised]  # and the next attempt passes
    with Backup.from_env(environment(tmp_path, "inner,failing")) as backup:
        session_of(backup).spool.release(claim.batch, StorageError("x"), delay=0)
        backup.flush(timeout=120)


# ChunkKind


HEAD = """
from jobs_backup.hookspecs import hookimpl

class Wrapper:
    API_VERSION = 1

    @classmethod
    def from_settings(cls, environment):
        return cls()
"""
WRITE = "@hookimpl(wrapper=True)\ndef write(self): return (yield)"
OPEN = "@hookimpl(wrapper=True)\ndef open_body(self): return (yield)"
READ = "@hookimpl(wrapper=True)\ndef read(self): return (yield)"
BROKEN = {
    "no hook": ((), "it wraps no hook"),
    "unknown hook": (("@hookimpl(wrapper=True)\ndef wirte(self): return (yield)",), "unknown hook 'wirte'"),
    "unknown argument": ((WRITE.replace("self", "self, colour"),), "colour"),
    "argument with a default": ((WRITE.replace("self", "self, key=''"),), "write has key with a default"),
    "no marker": (("def read(self, key): return (yield)", WRITE), "read without jobs_backup's @hookimpl(wrapper=True)"),
    "no wrapper": (("@hookimpl\ndef write(self): ...",), "write is not a wrapper: @hookimpl(wrapper=True)"),
    "pluggy's old wrapper": (("@hookimpl(hookwrapper=True)\ndef write(self): yield",), "write is not a wrapper"),
    "no generator": (("@hookimpl(wrapper=True)\ndef write(self): ...",), "function is not a generator"),
    "first": ((WRITE.replace("True", "True, tryfirst=True"),), "write sets its own order"),
    "last": ((WRITE.replace("True", "True, trylast=True"),), "write sets its own order"),
    "format that is none": ((OPEN, READ, "format = 'Enc'"), "its format 'Enc' is invalid"),
    "format of a compression": ((OPEN, READ, "format = 'gz'"), "its format 'gz' is invalid"),
    "parameter that is none": ((OPEN, READ, "format = 'enc'", "parameter = 'a,b'"), "its parameter is invalid"),
    "parameter that is no text": ((OPEN, READ, "format = 'enc'", "parameter = 7"), "its parameter is invalid"),
    "format without read": ((OPEN, "format = 'enc'"), "does not wrap both open_body and read"),
    "format without open_body": ((READ, "format = 'enc'"), "does not wrap both open_body and read"),
    "no hash": ((WRITE, "__hash__ = None"), "it cannot be hashed"),
    "class": ((WRITE, "@classmethod\ndef from_settings(cls, environment): return cls"), "returned a class"),
}


@pytest.mark.parametrize(("parts", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_a_wrapper_that_breaks_the_contract_is_named_with_the_reason(install: Install, parts: tuple[str, ...], why: str) -> None:
    text = HEAD + "".join("".join(f"    {line}\n" for line in dedent(part).splitlines()) for part in parts)
    install(text, name="ACME", target="Wrapper", group=GROUP)
    with pytest.raises(WrapperNotFound) as caught:
        load("ACME", {})
    assert caught.value.message.startswith("wrapper ACME (acme-backup 2.1, entry point ")
    assert why in caught.value.message
    assert "acme-backup" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "why", "hint"),
    [
        ("nobody", "wrapper 'NOBODY' is not installed (installed: ", "install the distribution"),
        ("first,second,First", "has FIRST twice", "once"),
    ],
)
def test_a_list_that_is_wrong(tmp_path: Path, text: str, why: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        store(environment(tmp_path, text))
    assert why in caught.value.message
    assert hint in caught.value.hint


def test_two_of_one_format_and_too_many_of_them(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("from example_wrappers import Inner", name="AGAIN", target="Inner", group=GROUP, distribution="again")
    with pytest.raises(ConfigurationError, match=r"two of .* have the same format"):
        Wrappers.from_settings("inner,again", {})
    monkeypatch.setattr(example_wrappers.Outer, "format", "x" * 13)
    with pytest.raises(ConfigurationError, match="which is too long"):
        Wrappers.from_settings("inner,outer", {})
    monkeypatch.setattr(example_wrappers.Outer, "format", "x" * 12)
    assert Wrappers.from_settings("inner,outer", {}).applied == ("xa=", f"{'x' * 12}=")


@pytest.mark.parametrize("wrappers", ["", " , "])
def test_none_is_the_default(tmp_path: Path, wrappers: str) -> None:
    assert store(environment(tmp_path, wrappers)).wrappers.applied == ()


def test_only_those_that_are_named_are_imported(install: Install, tmp_path: Path) -> None:
    install("raise RuntimeError('imported')", name="BOMB", group=GROUP, distribution="bomb-backup")
    assert store(environment(tmp_path, "first")).wrappers.applied == ()
    with pytest.raises(WrapperNotFound, match=r"cannot import wrapper BOMB \(bomb-backup .*: RuntimeError: imported"):
        store(environment(tmp_path, "bomb"))


def test_settings_of_a_wrapper_that_is_not_named_are_an_error(tmp_path: Path) -> None:
    """A user who has set a key believes that objects are encrypted."""
    with pytest.raises(ConfigurationError) as caught:
        store(environment(tmp_path, "first", JOBS_BACKUP_INNER_KEY="canary-7f3a"))
    assert (
        caught.value.message
        == "JOBS_BACKUP_INNER_KEY is set, but JOBS_BACKUP_WRAPPERS does not name inner: it would have no effect"
    )
    assert caught.value.hint == "add inner to JOBS_BACKUP_WRAPPERS, or unset JOBS_BACKUP_INNER_KEY"
    store(environment(tmp_path, "first,inner", JOBS_BACKUP_INNER_KEY="canary-7f3a"))
    store(environment(tmp_path, "first", JOBS_BACKUP_INNER_KEY=" ", JOBS_BACKUP_INNERMOST="x", JOBS_BACKUP_S3_SSE="AES256"))


def test_each_secret_of_a_list_is_hidden(tmp_path: Path) -> None:
    variables = environment(
        tmp_path, "failing", MEMORY_TOKEN="canary-one-0123456789, canary-two-0123456789", JOBS_BACKUP_RETRY_ATTEMPTS="1"
    )
    Failing.before[:] = [RuntimeError("with canary-two-0123456789")]
    record(variables, {"n": 1}, archive=False)
    with Backup.from_env(variables, archive=False) as backup:
        claim = session_of(backup).spool.claim()
        assert claim is not None
        with pytest.raises(StorageError, match=r"(?m)write failed: RuntimeError: with \*\*\*\*$"):
            session_of(backup).store.write(*session_of(backup).store.prepare(claim.batch))


def test_a_body_that_fails_while_its_checksum_is_made_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(environment(tmp_path, "inner", MEMORY_TOKEN="canary-7f3a"), {"n": 1}, archive=False)
    with Backup.from_env(environment(tmp_path, "inner", MEMORY_TOKEN="canary-7f3a"), archive=False) as backup:
        claim = session_of(backup).spool.claim()
        assert claim is not None

        def fail(self: Body) -> int:
            raise RuntimeError("with canary-7f3a")

        monkeypatch.setattr(Body, "crc32c", fail)
        with pytest.raises(StorageError, match=r"(?m)^MEMORY within INNER: open_body failed: RuntimeError: with \*\*\*\*$"):
            session_of(backup).store.prepare(claim.batch)


def test_a_chunk_that_was_changed_with_its_checksum_is_not_sent(tmp_path: Path) -> None:
    """After the wrappers such a change is undetectable; and a key must not be used for two contents."""
    record(environment(tmp_path, "inner"), {"n": 1}, archive=False)
    (file,) = (tmp_path / "spool" / "blobs").glob("*.db")
    with sqlite3.connect(file) as db:
        ((job, size),) = db.execute("SELECT job, length(data) FROM chunks").fetchall()
        db.execute("UPDATE chunks SET data=?, crc32c=? WHERE job=?", (bytes(size), crc32c(bytes(size)), job))
    db.close()
    with Backup.from_env(environment(tmp_path, "inner")) as backup:
        archiver_of(backup).drain(120)
        (waiting,) = session_of(backup).spool.waiting()
        assert "the wrappers' input is not what was sealed" in waiting.error
    assert objects() == {}


def test_a_wrapper_without_a_format_changes_nothing_before_one_that_has_one(tmp_path: Path) -> None:
    record(environment(tmp_path, "inner"), {"n": 1}, archive=False)
    with Backup.from_env(environment(tmp_path, "meddling,inner"), archive=False) as backup:
        claim = session_of(backup).spool.claim()
        assert claim is not None
        with pytest.raises(IntegrityError, match="not what was sealed") as caught:
            session_of(backup).store.prepare(claim.batch)
    assert "a wrapper without a format" in caught.value.hint


def test_a_refusal_behind_the_call_does_not_mean_that_nothing_arrived(tmp_path: Path) -> None:
    """Otherwise pending batches would follow a new setting and end up in both buckets."""
    error = PermissionDenied("no", action="a", resource="r")
    Failing.after[:] = [error]
    record(environment(tmp_path, "failing"), {"n": 1}, archive=False)
    with Backup.from_env(environment(tmp_path, "failing"), archive=False) as backup:
        claim = session_of(backup).spool.claim()
        assert claim is not None
        with pytest.raises(PermissionDenied):
            session_of(backup).store.write(*session_of(backup).store.prepare(claim.batch))
        assert session_of(backup).store.may_have_accepted
        assert session_of(backup).store.may_land_for(sent_before=False) > 0
    assert PermissionDenied.refused, "of others it still means that"
    assert len(objects()) == 1


def test_an_upload_that_a_wrapper_loses_is_aborted(tmp_path: Path) -> None:
    Failing.after[:] = [RuntimeError("lost my notes"), RuntimeError("again")]
    MemoryProvider.uploads.clear()
    with Backup.from_env(environment(tmp_path, "failing", JOBS_BACKUP_MULTIPART_THRESHOLD="1")) as backup:
        backup.record({"n": 1}, source_id="web")
        backup.flush(timeout=120)
    assert len(objects()) == 1
    assert MemoryProvider.uploads == {}


def test_a_provider_and_a_wrapper_may_have_the_same_name(install: Install, tmp_path: Path) -> None:
    install("from example_wrappers import First", name="MEMORY", target="First", group=GROUP, distribution="memory-wrapper")
    record(environment(tmp_path, "memory"), {"n": 1})
    assert len(objects()) == 1
    assert "first write end" in SEEN


@pytest.mark.parametrize("variable", ["JOBS_BACKUP_ENCRYPTION_KEY", "JOBS_BACKUP_ENCRYPTION_KEY_FILE"])
def test_a_key_of_encryption_that_is_not_installed_is_an_error(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = plugins._entry_points
    monkeypatch.setattr(plugins, "_entry_points", lambda group: [one for one in points(group) if one.name != "ENCRYPTION"])
    with pytest.raises(ConfigurationError, match=f"{variable} is set, but JOBS_BACKUP_WRAPPERS does not name encryption"):
        store(environment(tmp_path, "", **{variable: "x"}))
    with pytest.raises(WrapperNotFound) as caught:
        store(environment(tmp_path, "encryption", **{variable: "x"}))
    assert caught.value.hint.startswith("pip install ./contrib/encryption, in a clone")


def test_what_is_none_of_a_wrappers_variables_may_look_like_one(install: Install, tmp_path: Path) -> None:
    more = {"JOBS_BACKUP_INNER_SERVICE_HOST": "10.0.0.1", "JOBS_BACKUP_INNER_OTHER": "x"}
    assert store(environment(tmp_path, "", **more)).wrappers.applied == ()


def test_a_body_that_fails_while_it_is_read_back_shows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = environment(tmp_path, "inner", MEMORY_TOKEN="canary-7f3a", JOBS_BACKUP_RETRY_ATTEMPTS="1")
    record(variables, {"n": 1})
    (key,) = objects()

    class Bad(BytesBody):
        def open(self) -> BinaryIO:
            raise ValueError("with canary-7f3a")

    monkeypatch.setattr(example_wrappers, "BytesBody", Bad)
    with pytest.raises(StorageError, match=r"MEMORY within INNER: read failed: ValueError: with \*\*\*\*"):
        read(variables, key, tmp_path)


def for_the_command(tmp_path: Path, wrappers: str) -> dict[str, str]:
    (tmp_path / "bucket").mkdir()
    variables = environment(tmp_path, wrappers, JOBS_BACKUP_STORAGE_PROVIDER="FILE", JOBS_BACKUP_BUCKET=str(tmp_path / "bucket"))
    return variables | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{SUPPORT}"}


@pytest.mark.parametrize("lists", [[], ["--list"]])
def test_replay_reports_objects_that_were_made_without_a_wrapper(tmp_path: Path, lists: list[str]) -> None:
    variables = for_the_command(tmp_path, "")
    for number in range(3):
        record(variables, {"n": number})
    variables["JOBS_BACKUP_WRAPPERS"] = "inner"
    record(variables, {"n": 3})
    code, out, err = run("replay", "--json", "--output", str(tmp_path / "back"), *lists, env=variables)
    summary = json.loads(out)
    assert (code, summary["objects"], summary["unwrapped"]) == (0, 4, {"xa": 3})
    assert "3 objects without .xa: recorded without it, or written by something else" in err
    code, out, _ = run("replay", "--json", "--output", str(tmp_path / "again"), "--source-id", "other", *lists, env=variables)
    assert (code, json.loads(out)["unwrapped"]) == (1, {}), "nothing was ever seen of it"


def test_replay_goes_on_behind_many_objects_whose_wrapper_is_missing(tmp_path: Path) -> None:
    variables = for_the_command(tmp_path, "inner")
    for number in range(6):
        record(variables, {"n": number})
    variables["JOBS_BACKUP_WRAPPERS"] = ""
    code, stdout, stderr = run("replay", "--payload-only", env=variables)
    assert (code, stdout) == (2, "")
    assert stderr.count("[WrapperMissing]") == 1
    record(variables, {"n": 6})
    code, stdout, stderr = run("replay", "--payload-only", env=variables)
    assert (code, stdout) == (1, '{"n":6}\n')
    assert stderr.count("[DamagedObject]") == 6
