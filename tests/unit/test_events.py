"""The event generator: the properties that tests and benchmarks rely on."""

from __future__ import annotations

import collections
import hashlib
import json
import statistics
import subprocess
import sys
import tracemalloc
import uuid
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobs_backup.testing.events import events, main

COUNT = 20_000

# The fields of each kind of event besides the common ones.
OWN_FIELDS = {
    "track": {"event", "properties"},
    "page": {"name", "properties"},
    "screen": {"name", "properties"},
    "identify": {"traits"},
    "group": {"groupId", "traits"},
    "alias": {"previousId"},
}
COMMON_FIELDS = {
    "messageId", "anonymousId", "userId", "type", "context", "integrations", "originalTimestamp", "sentAt", "receivedAt",
}  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    return list(events(COUNT, seed=3))


@pytest.fixture(scope="module")
def decoded(lines: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_each_is_one_json_object_on_one_line(lines: list[bytes]) -> None:
    assert len(lines) == COUNT
    for line in lines:
        assert b"\n" not in line
        assert isinstance(msgspec.json.decode(line), dict)


def test_message_ids_are_uuids_and_unique(decoded: list[dict[str, Any]]) -> None:
    ids = {event["messageId"] for event in decoded}
    assert len(ids) == COUNT
    assert {uuid.UUID(one).version for one in ids} == {4}


def test_message_ids_of_other_seeds_are_others() -> None:
    first, second = ({json.loads(line)["messageId"] for line in events(1000, seed=seed)} for seed in (1, 2))
    assert not first & second


def test_all_six_kinds_have_their_fields(decoded: list[dict[str, Any]]) -> None:
    kinds = collections.Counter(event["type"] for event in decoded)
    assert kinds.keys() == OWN_FIELDS.keys()
    for event in decoded:
        assert event.keys() >= COMMON_FIELDS | OWN_FIELDS[event["type"]]
        assert event["context"].keys() >= {"library", "locale", "ip"}


def test_contexts_have_the_usual_fields(decoded: list[dict[str, Any]]) -> None:
    seen = set().union(*(event["context"].keys() for event in decoded))
    assert seen >= {"app", "campaign", "device", "library", "locale", "os", "screen", "traits", "ip", "userAgent", "network"}


def test_times_are_in_order_and_cross_an_hour(decoded: list[dict[str, Any]]) -> None:
    times = [datetime.fromisoformat(event["originalTimestamp"]) for event in decoded]
    assert times == sorted(times)
    assert len({time.hour for time in times}) > 1
    for event in decoded:
        assert event["originalTimestamp"] <= event["sentAt"] < event["receivedAt"]


def test_sizes_are_spread_between_half_and_four_kilobytes(lines: list[bytes]) -> None:
    sizes = [len(line) for line in lines]
    assert min(sizes) >= 512
    assert max(sizes) <= 4096
    assert 1150 <= statistics.mean(sizes) <= 1350
    per_kilobyte = collections.Counter(size // 1024 for size in sizes)
    assert min(per_kilobyte[kilobyte] for kilobyte in range(4)) > COUNT * 0.03


@pytest.mark.parametrize(
    "text",
    [
        ":12345678901234567890", ":1.10", ":1e5", ":0.30000000000000004", ":-0.0", ":null", "[]", ":{}", "\\ud83d\\ude80", "🎧",
        "سماعات", "中文", "\\n", '\\"', "\u2028", "\\/",
    ],
)  # fmt: skip
def test_values_that_are_easy_to_spoil_are_in_it(lines: list[bytes], text: str) -> None:
    assert any(text.encode() in line for line in lines)


def test_bytes_depend_on_the_seed_alone() -> None:
    # The digest must be the same with other versions of Python, other machines and other hash seeds.
    digest = hashlib.sha256(b"\n".join(events(2000, seed=7))).hexdigest()
    assert digest == "5847e254ecc7c82458f62bb4b17ea9bed8feb3a6c45d40ca69a9337a13bd1c62"
    assert list(events(10, seed=7)) == list(islice(events(2000, seed=7), 10))
    assert list(events(10, seed=7)) != list(events(10, seed=8))


def test_memory_does_not_grow_with_the_count() -> None:
    collections.deque(events(10), maxlen=0)  # builds the pools
    tracemalloc.start()
    try:
        collections.deque(events(20_000), maxlen=0)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_command_writes_ndjson() -> None:
    command = [sys.executable, "-m", "jobs_backup.testing.events", "--count", "30", "--seed", "4"]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    assert output == b"".join(event + b"\n" for event in events(30, seed=4))


def test_command_writes_into_a_file(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    target = tmp_path / "events.ndjson"
    main(["--count", "3", "--output", str(target)])
    assert target.read_bytes() == b"".join(event + b"\n" for event in events(3, seed=1))
    assert capfdbinary.readouterr().out == b""
