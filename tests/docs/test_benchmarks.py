"""Short benchmarks: their servers count correctly, and their goals judge correctly. `make bench` is the long run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from benchmarks.data import corpus, lines
from benchmarks.report import Results
from benchmarks.runner import Reading
from benchmarks.sink import Sink, sink
from benchmarks.targets import GOALS, OURS, Goal, Measure, judged, value
from places import SUPPORT
from servers import REGION

from jobs_backup import Backup


@pytest.fixture(scope="module", params=["http", "TLS"])
def swallowing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sink]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT))
        with sink(tmp_path_factory.mktemp("sink"), tls=request.param == "TLS") as server:
            yield server


@pytest.mark.parametrize("in_parts", [False, True])
def test_the_sink_counts_what_our_provider_sends(swallowing: Sink, tmp_path: Path, in_parts: bool) -> None:
    swallowing.reset()
    environment = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "S3",
        "JOBS_BACKUP_BUCKET": "bucket",
        "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        "AWS_ENDPOINT_URL_S3": swallowing.url,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        **({"JOBS_BACKUP_S3_CA_BUNDLE": str(swallowing.certificate)} if swallowing.certificate else {}),
        **({"JOBS_BACKUP_MULTIPART_THRESHOLD": "5MiB", "JOBS_BACKUP_PART_SIZE": "5MiB"} if in_parts else {}),
    }
    payload = b'{"text":"%b"}' % os.urandom(4 << 20).hex().encode()
    with Backup.from_env(environment) as backup:
        backup.record_many([payload, payload], source_id="web")
        backup.flush(120)
    counts = swallowing.counts()
    if in_parts:
        assert counts["requests"] == {"CreateMultipartUpload": 1, "UploadPart": 2, "CompleteMultipartUpload": 1}
    else:
        assert counts["requests"] == {"PutObject": 1}
    sent = counts["bytes"]["UploadPart" if in_parts else "PutObject"]
    assert 8 << 20 < sent < 10 << 20  # a hexadecimal digit has four bits
    assert counts["first_upload"] > 0


ONLY_WHAT_THEIR_ENVIRONMENT_HAS = """
import importlib.metadata, re, sys
allowed = {re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in open(sys.argv[1])} | {"jobs-backup", "jobs-backup-s3"}
packages = importlib.metadata.packages_distributions()

class OnlyAllowed:
    def find_spec(self, name, path=None, target=None):
        if not allowed.intersection(re.sub("[-_.]+", "-", package).lower() for package in packages.get(name, allowed)):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, OnlyAllowed())
import benchmarks.__main__
"""


def test_the_benchmarks_start_in_an_environment_of_their_own() -> None:
    constraints = SUPPORT / "benchmarks" / "constraints.txt"
    command = [sys.executable, "-c", ONLY_WHAT_THEIR_ENVIRONMENT_HAS, str(constraints)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SUPPORT)}, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_smoke_run_gives_results_and_tables(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "benchmarks", "--quick", "--only", "end_to_end", "--contender", OURS, "--contender", "no spool",
        "--rounds", "1", "--scale", "0.001", "--directory", str(tmp_path), "--output", str(tmp_path / "output"),
    ]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SUPPORT)}, check=True, capture_output=True, text=True)
    results = msgspec.json.decode((tmp_path / "output" / "results.json").read_bytes(), type=Results)
    assert [(one.contender, one.error) for one in results.readings] == [(OURS, ""), ("no spool", "")] * 3 + [(OURS, "")]
    assert all(one.values["stored"] > 1000 and one.values["seconds"] > 0 for one in results.readings)
    table = (tmp_path / "output" / "results.md").read_text()
    assert "| events/s, bytes, mixed, 1 source: x no spool | >= 0.75 |" in table
    assert "Numbers to reach" in done.stdout


def test_who_fails_is_in_the_table(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "benchmarks", "--quick", "--only", "end_to_end", "--contender", "smart_open", "--rounds", "1",
        "--scale", "0.001", "--directory", str(tmp_path),
    ]  # fmt: skip
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SUPPORT)}, check=True, capture_output=True)
    assert "| smart_open | failed: " in (tmp_path / "results" / "results.md").read_text()


def reading(contender: str, number: int, **values: float) -> Reading:
    return Reading(scenario="some", case="case", contender=contender, round=number, values=values)


OURS_RATE = Measure("some", "case", "ours", "rate")
TWICE = Goal("twice as fast", OURS_RATE, 2.0, True, OURS_RATE._replace(contender="theirs"))


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    readings = [reading("ours", number, events=100, seconds=seconds) for number, seconds in enumerate((1, 2, 5))]
    readings += [reading("theirs", number, events=100, seconds=seconds) for number, seconds in enumerate((3, 5, 10))]
    (outcome,) = judged(readings, [TWICE])
    assert outcome.measured == pytest.approx(2.5)
    assert [outcome.low, outcome.high] == pytest.approx([2.0, 3.0])
    assert outcome.reached
    (missed,) = judged(readings, [TWICE._replace(limit=2.6)])
    assert missed.reached is False


def test_at_most() -> None:
    goal = Goal("small", Measure("some", "case", "ours", "peak_rss"), 10.0, False, unit=2.0)
    outcomes = judged([reading("ours", 1, peak_rss=20.0)], [goal, goal._replace(limit=9.9)])
    assert [(one.measured, one.reached) for one in outcomes] == [(10.0, True), (10.0, False)]


def test_what_was_not_measured_is_not_judged() -> None:
    failed = Reading(scenario="some", case="case", contender="theirs", round=1, error="no")
    (outcome,) = judged([reading("ours", 1, events=1, seconds=1), failed], [TWICE])
    assert (outcome.measured, outcome.reached) == (None, None)


def test_values_that_follow_from_others() -> None:
    one = reading("ours", 1, events=2_000_000, seconds=4.0, cpu=6.0, stored=30, gzip_6=20, requests=4, puts=2)
    names = ("rate", "each", "cpu_million", "size", "requests_object", "events", "byte_rate")
    assert [value(one, name) for name in names] == [500_000, 2e-6, pytest.approx(3.0), 1.5, 2.0, 2_000_000, None]


def test_goals_have_names_of_their_own() -> None:
    assert len({goal.name for goal in GOALS}) == len(GOALS)


def test_a_corpus_begins_anew_where_it_ends(tmp_path: Path) -> None:
    path = corpus("short", tmp_path)
    count = path.read_bytes().count(b"\n")
    found = list(lines(path, count + 2))
    assert found[-2:] == found[:2]
    assert {len(line) for line in found} == {61}
