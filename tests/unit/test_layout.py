"""Keys: the layout that RudderStack's tools expect, and ids that cannot escape their part of the key."""

from __future__ import annotations

import re
import uuid as uuids
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs_backup import ConfigurationError
from jobs_backup.format.compression import Compression
from jobs_backup.format.keys import (
    FORMAT,
    MAX_FORMATS_BYTES,
    MAX_KEY_BYTES,
    clean_prefix,
    formats_of,
    object_key,
    parse_key,
    safe_id,
)
from jobs_backup.format.lines import microseconds
from jobs_backup.model import Kind, Stream

UUID = "0b1f6a0e-6e0e-4c58-9d3a-2f0c8f2f7b11"
AT = 1_772_600_767_000_089  # 2026-03-04T05:06:07.000089Z


def key(**changes: object) -> str:
    arguments: dict[str, object] = {
        "prefix": "backups",
        "instance_id": "1",
        "stream": Stream(Kind.RAW, "ws", "web"),
        "first_at": AT,
        "last_at": AT + 9_000_000,
        "first_job": 10,
        "last_job": 12,
        "uuid": UUID,
        "suffix": ".json.gz",
    }
    return object_key(**{**arguments, **changes})  # type: ignore[arg-type]


def test_raw_key() -> None:
    assert key() == f"backups/web/gw/2026-03-04/5/1/1772600767_1772600776_ws_{UUID}.json.gz"


def test_failed_key() -> None:
    stream = Stream(Kind.FAILED, "ws", "web")
    assert key(stream=stream) == f"backups/rudder-proc-err-logs/03-04-2026/1772600767.1.10-12.{UUID}.ws.json.gz"


def test_without_a_prefix_the_key_begins_with_the_source() -> None:
    assert key(prefix="").startswith("web/gw/")


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("web", "web"),
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        (".", "%2E"),
        ("...", "%2E.."),
        ("100%", "100%25"),
        ("a\nb\x00", "a%0Ab%00"),
        ("a\\b", "a%5Cb"),
        ("mañana 🎉", "mañana 🎉"),
        ("\ud800", "%ED%A0%80"),
        ("a\uffff", "a%EF%BF%BF"),
    ],
)
def test_ids_are_made_safe(text: str, safe: str) -> None:
    assert safe_id(text) == safe


ids = st.one_of(st.text(min_size=1), st.text(alphabet="./%~\\ab\n", min_size=1), st.text(min_size=80, max_size=2000))


@given(ids, ids, ids, st.sampled_from(Kind))
def test_no_id_leaves_its_place(source: str, workspace: str, instance: str, kind: Kind) -> None:
    made = key(stream=Stream(kind, workspace, source), instance_id=instance, prefix="x" * 500)
    parts = made.split("/")
    assert len(parts) == (7 if kind is Kind.RAW else 4)
    assert not {"", ".", ".."} & set(parts)
    assert len(made.encode()) <= MAX_KEY_BYTES
    assert all(len(part.encode()) <= 255 for part in parts[1:])
    assert not any(ord(character) < 32 for character in made)


@given(ids, ids)
def test_different_ids_have_different_places(one: str, other: str) -> None:
    assert (safe_id(one) == safe_id(other)) is (one == other)


def test_long_ids_that_differ_at_the_end_stay_different() -> None:
    assert safe_id("x" * 2000 + "a") != safe_id("x" * 2000 + "b")


@pytest.mark.parametrize(("prefix", "clean"), [("", ""), ("/", ""), ("a", "a"), ("/a/b/", "a/b"), ("///a", "a")])
def test_slashes_around_a_prefix_are_trimmed(prefix: str, clean: str) -> None:
    assert clean_prefix(prefix) == clean


@pytest.mark.parametrize("prefix", ["a//b", "..", "a/../b", "./a", "a\nb", "a\ufffe", "a\\b", "x" * 513])
def test_a_prefix_that_leaves_its_place_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="JOBS_BACKUP_PREFIX"):
        clean_prefix(prefix)


# Ids that look like other parts of a key.
PARTS: Final = [
    "1-2",
    UUID,
    UUID.replace("-", ""),
    "json",
    "json.gz",
    "gz",
    "zst",
    "enc",
    "gw",
    "rudder-proc-err-logs",
    "_",
    "-",
    ".",
]
odd_ids = st.one_of(
    st.text(),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(".".join),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("_".join),
    st.text(alphabet="0123456789abcdef.-_", max_size=130),
)
times = st.integers(microseconds(datetime.min.replace(tzinfo=UTC)), microseconds(datetime.max.replace(tzinfo=UTC)))
job_ids = st.integers(0, (1 << 63) - 1)
prefixes = st.one_of(
    st.sampled_from(["", "a/b", "rudder-proc-err-logs", "web/gw", "x" * 512]),
    st.text(alphabet="ab/.-_ü", max_size=20).filter(lambda text: not {"", ".", ".."} & set(text.strip("/").split("/"))),
).map(clean_prefix)
formats = st.lists(st.from_regex(FORMAT, fullmatch=True), max_size=3).map(lambda names: "".join(f".{name}" for name in names))
suffixes = st.tuples(
    st.sampled_from([Compression("gzip").suffix, Compression("zstd").suffix]),
    formats.filter(lambda text: len(text) <= MAX_FORMATS_BYTES),
).map("".join)


@given(
    prefix=prefixes,
    instance_id=odd_ids.filter(bool),
    kind=st.sampled_from(Kind),
    workspace=odd_ids,
    source=odd_ids.filter(bool),
    times=st.tuples(times, times),
    jobs=st.tuples(job_ids, job_ids),
    uuid=st.uuids(),
    suffix=suffixes,
)
@example("", "a.10-12." + UUID, Kind.FAILED, "b", "s", (0, 0), (1, 2), uuids.UUID(UUID), ".json.gz")
@example("", "a", Kind.FAILED, "1-2." + UUID + ".b", "s", (0, 0), (1, 2), uuids.UUID(UUID), ".json.gz")
@example(
    "",
    "x" * 50,
    Kind.FAILED,
    "x" * 99,
    "s",
    (-62135596800_000000, 0),
    (1 << 62, 1 << 62),
    uuids.UUID(UUID),
    ".json.zst.0123456789abcde",
)
def test_what_a_key_was_made_of_is_parsed_back(
    prefix: str,
    instance_id: str,
    kind: Kind,
    workspace: str,
    source: str,
    times: tuple[int, int],
    jobs: tuple[int, int],
    uuid: uuids.UUID,
    suffix: str,
) -> None:
    """For every valid time of `record()`, including before 1970, and every id: `replay --list` finds what was written."""
    made = object_key(
        prefix=prefix,
        instance_id=instance_id,
        stream=Stream(kind, workspace, source),
        first_at=min(times),
        last_at=max(times),
        first_job=min(jobs),
        last_job=max(jobs),
        uuid=str(uuid),
        suffix=suffix,
    )
    parsed = parse_key(made, prefix)
    assert parsed is not None
    assert parsed._replace(kind=kind) == parsed
    assert (parsed.workspace, parsed.instance) == (safe_id(workspace), safe_id(instance_id, 43))
    assert (parsed.first, parsed.uuid, parsed.suffix) == (min(times) // 1_000_000, str(uuid), suffix)
    if kind is Kind.RAW:
        assert (parsed.source, parsed.last) == (safe_id(source), max(times) // 1_000_000)
    else:
        assert (parsed.first_job, parsed.last_job) == (min(jobs), max(jobs))
    assert formats_of(made) == suffix.split(".")[3:]
    assert len(made.encode()) <= MAX_KEY_BYTES
    assert all(len(part.encode()) <= 255 for part in made.removeprefix(prefix).split("/"))
    assert not {"", ".", ".."} & {*made.split("/")}
    assert re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", made) is None


@given(st.lists(st.tuples(st.sampled_from([*Kind]), st.text(), st.text(), st.text()), min_size=2, max_size=4), prefixes)
def test_no_key_is_the_directory_of_another(batches: list[tuple[Kind, str, str, str]], prefix: str) -> None:
    """A store of files and directories can hold all keys of a prefix, whatever the names of sources, workspaces and instances."""
    made = [
        object_key(
            prefix=prefix, instance_id=instance, stream=Stream(kind, workspace, source), first_at=0, last_at=0, first_job=1,
            last_job=1, uuid=f"{number:032x}", suffix=".json.gz",
        )
        for number, (kind, workspace, source, instance) in enumerate(batches)
    ]  # fmt: skip
    assert not [(one, other) for one in made for other in made if other.startswith(f"{one}/")]


@given(st.one_of(st.text(), st.from_regex(r"[ab]/gw/\d{4}-\d\d-\d\d/\d/1/-?\d+_-?\d+_.*\.json\.gz")), prefixes)
@example(f"a/gw/2026-11-24/9/1/{'9' * 20}_1_ws_{UUID}.json.gz", "")
@example(f"rudder-proc-err-logs/11-24-2026/1.1.{'9' * 19}-1.{UUID}.json.gz", "")
def test_any_key_may_be_in_the_bucket(name: str, prefix: str) -> None:
    """Its numbers fit into the database in which `replay` sorts them; otherwise it is not an event's object."""
    parsed = parse_key(name, prefix)
    if parsed is not None:
        numbers = (parsed.first * 1_000_000, (parsed.last or 0) * 1_000_000, parsed.first_job or 0, parsed.last_job or 0)
        assert all(-(1 << 63) <= number < 1 << 63 for number in numbers)


def test_keys_that_rudderstack_wrote() -> None:
    raw = parse_key("rudder/src1/gw/2024-05-01/9/pod-1.x/1714554000_1714555800_ws_1_0b5a.gz", "rudder")
    assert raw is not None
    assert (raw.kind, raw.source, raw.workspace, raw.instance) == (Kind.RAW, "src1", "ws_1", "pod-1.x")
    assert (raw.first, raw.last, raw.uuid, raw.suffix) == (1714554000, 1714555800, "0b5a", ".gz")
    failed = parse_key(f"rudder-proc-err-logs/05-01-2024/1714554100.pod-1.x.7-9.{UUID}.json.gz")
    assert failed is not None
    assert (failed.kind, failed.source, failed.workspace, failed.instance) == (Kind.FAILED, None, None, "pod-1.x")
    assert (failed.first, failed.first_job, failed.last_job, failed.suffix) == (1714554100, 7, 9, ".json.gz")


@pytest.mark.parametrize(
    "name", ["", "web/gw", "jobs-backup-check/1", "backups/web/gw/2026-11-24/9/1/1_2_ws_id.json.gz", "x" * 1024]
)
def test_other_keys_are_not_parsed(name: str) -> None:
    assert parse_key(name) is None
    assert parse_key("web/gw/2026-11-24/9/1/1_2_ws_id.json.gz", "backups") is None
