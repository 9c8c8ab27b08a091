"""Keys: what RudderStack's tools expect, and that no id leaves its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs_backup import ConfigurationError
from jobs_backup.layout import MAX_KEY_BYTES, clean_prefix, object_key, safe_id
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
