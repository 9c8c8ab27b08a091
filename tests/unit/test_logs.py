"""JOBS_BACKUP_LOG_FORMAT=json: every line on standard error is a JSON object with stable field names."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from buckets import FAST_RETRY, events, file_environment
from commands import COMMAND, ndjson, run, start
from places import ROOT

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.errors import StorePaused
from jobs_backup.util.logs import FIELDS, JsonFormatter, logger_of

JSON = {"JOBS_BACKUP_LOG_FORMAT": "json"}
TYPES: dict[str, Any] = {"events": int, "bytes": int, "attempt": int, "wait_seconds": (int, float)}


def parsed(stderr: str) -> list[dict[str, Any]]:
    """Parse every line; check that each has all required fields, and only documented ones."""
    found: list[dict[str, Any]] = [json.loads(line) for line in stderr.splitlines()]
    for line in found:
        assert list(line)[:4] == ["time", "level", "logger", "message"]
        assert [name for name in FIELDS if name in line] == list(line), "in their order"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert abs(datetime.fromisoformat(line["time"]) - datetime.now().astimezone()) < timedelta(minutes=5)
        assert line["level"] in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}
        assert all(isinstance(value, TYPES.get(name, str)) for name, value in line.items()), line
    return found


def test_an_object_that_is_stored(tmp_path: Path) -> None:
    code, _, stderr = run("run", ndjson(tmp_path / "e", 5), "--source-id", "web", "-v", env=file_environment(tmp_path, **JSON))
    stored, summary = parsed(stderr)
    (key,) = [path.relative_to(tmp_path / "bucket").as_posix() for path in (tmp_path / "bucket").rglob("*.json.gz")]
    assert (code, stored["logger"], stored["level"]) == (0, "jobs_backup.archive.archiver", "INFO")
    assert (stored["key"], stored["events"]) == (key, 5)
    assert stored["bytes"] == (tmp_path / "bucket" / key).stat().st_size
    assert stored["store"] == f"file://{tmp_path}/bucket"
    assert (summary["logger"], "5 events recorded" in summary["message"], summary.get("code")) == ("jobs_backup.cli", True, None)


def test_a_store_that_fails_and_sigterm(tmp_path: Path) -> None:
    environment = file_environment(tmp_path, **JSON, **FAST_RETRY, JOBS_BACKUP_SHUTDOWN_GRACE="1s")
    with Backup.from_env(environment, archive=False) as backup:
        backup.record({"secret": "our-payload"}, source_id="web")
    bucket = tmp_path / "bucket"
    (bucket / "web").touch()  # where a directory must be: a failure that may pass and is retried
    with start("archive", "-v", env=environment) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "are paused" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=120)
    assert "our-payload" not in "".join(lines) + rest
    found = parsed("".join(lines) + rest)
    attempt = next(line for line in found if line["logger"] == "jobs_backup.store.retry")
    assert (attempt["hook"], attempt["attempt"], attempt["code"], attempt["level"]) == ("write", 1, "Unavailable", "WARNING")
    assert attempt["key"].startswith("web/gw/")
    assert 0 <= attempt["wait_seconds"] < 1, "what was drawn, not what it took"
    assert attempt["store"] == f"file://{bucket}"
    pause = next(line for line in found if "are paused" in line["message"])
    assert (pause["code"], pause["wait_seconds"], pause["level"]) == ("Unavailable", 5.0, "ERROR")
    said = [line for line in found if line["logger"] == "jobs_backup.cli"]
    assert [line.get("code") for line in said if "waits in" in line["message"]] == ["Waiting"]
    assert process.returncode == 1


def test_problems_have_their_codes(tmp_path: Path) -> None:
    environment = file_environment(tmp_path, **JSON)
    (tmp_path / "ids").write_text('"12345"\nnonsense\n')
    code, _, stderr = run("delivered", tmp_path / "ids", env=environment)
    codes = [line.get("code") for line in parsed(stderr)]
    assert code == 1
    assert {"UnknownJob", "UnknownIds", "Rejected"} <= set(codes)
    assert not [line for line in parsed(stderr) if line["message"].endswith("]")]


@pytest.mark.parametrize("where", ["environment", "file"])
def test_what_is_wrong_before_settings_are_read(where: str, tmp_path: Path) -> None:
    environment = {"JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
    arguments = ["archive", "--once"]
    if where == "environment":
        environment |= JSON
    else:
        (tmp_path / "docker.env").write_text("JOBS_BACKUP_LOG_FORMAT=json\n")
        arguments += ["--env-file", str(tmp_path / "docker.env")]
    code, _, stderr = run(*arguments, env=environment)
    (line,) = parsed(stderr)
    assert (code, line["code"], line["level"], line["logger"]) == (2, "ConfigurationError", "ERROR", "jobs_backup.cli")
    assert "JOBS_BACKUP_STORAGE_PROVIDER is not set" in line["message"]


def test_an_env_file_that_can_not_be_read_and_wrong_usage(tmp_path: Path) -> None:
    (line,) = parsed(run("status", "--env-file", tmp_path / "none", env=JSON)[2])
    assert line["code"] == "ConfigurationError"
    (line,) = parsed(run("archive", "--nonsense", env=JSON)[2])
    assert (line["code"], line["message"].startswith("No such option '--nonsense'.")) == ("Usage", True)


def test_a_format_that_is_none_is_reported_as_text(tmp_path: Path) -> None:
    code, _, stderr = run("archive", "--once", env=file_environment(tmp_path, JOBS_BACKUP_LOG_FORMAT="yaml"))
    assert (code, "expected one of" in stderr) == (2, True)
    assert stderr.startswith("jobs-backup: JOBS_BACKUP_LOG_FORMAT='yaml'")


@pytest.mark.parametrize("language", ["C.UTF-8", "C"])
def test_names_that_are_no_utf_8_or_have_newlines(language: str, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/a\nb\xff\xf0\x9f\x98\x80.ndjson"
    Path(os.fsdecode(name)).write_bytes(b"no JSON\n")
    environment = {"PATH": os.environ["PATH"], "LC_ALL": language, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    found = subprocess.run(
        [*COMMAND, "run", os.fsdecode(name), "--source-id", "web"],
        env={**environment, **file_environment(tmp_path, **JSON)},
        capture_output=True,
        check=False,
        timeout=120,
    )
    lines = parsed(found.stderr.decode("ascii"))
    rejected = next(line for line in lines if line.get("code") == "Rejected")
    assert "a\nb\\xff" in rejected["message"] or "a\nb\\udcff" in rejected["message"]
    "".join(map(json.dumps, lines)).encode()


def test_warnings_of_settings(tmp_path: Path) -> None:
    _, _, stderr = run("archive", "--once", env=file_environment(tmp_path, **JSON, JOBS_BACKUP_BUKET="x"))
    assert ("WARNING", "UnknownSetting") in {(line["level"], line.get("code")) for line in parsed(stderr)}


def test_an_application_formats_its_own_lines_too() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("an.application")
    logger.addHandler(handler)
    try:
        logger.error("%s\nsecond", "first", extra={"key": "k", "request_id": "r\udcff", "unknown": 1})
        try:
            raise ValueError("no")
        except ValueError:
            logger.exception("it failed")
    finally:
        logger.removeHandler(handler)
    one, other = parsed(stream.getvalue())
    assert {name: one[name] for name in one if name != "time"} == {
        "level": "ERROR",
        "logger": "an.application",
        "message": "first\nsecond",
        "key": "k",
        "request_id": "r\\udcff",
    }
    assert other["exception"].endswith("ValueError: no")


def test_text_stays_as_it_was(tmp_path: Path) -> None:
    _, _, stderr = run("run", ndjson(tmp_path / "e", 2), "--source-id", "web", "-v", env=file_environment(tmp_path))
    logged, said = stderr.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO uploaded .* 2 events, \d+ bytes", logged)
    assert said.startswith("jobs-backup: 2 events recorded; ")


def test_log_calls_of_the_library_have_only_known_fields(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever an application does with our log records."""
    caplog.set_level(logging.DEBUG, "jobs_backup")
    with Backup.from_env(file_environment(tmp_path, **FAST_RETRY)) as backup:
        backup.delivered(backup.record({}, source_id="web"))
        backup.flush(120)
        until = time.monotonic() + 120
        while "deleted " not in caplog.text and time.monotonic() < until:
            time.sleep(0.05)
        (tmp_path / "bucket").rename(tmp_path / "away")
        backup.record({}, source_id="web")
        with pytest.raises(StorePaused):
            backup.flush(120)
        backup.close(grace=0)
    usual = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
    added = {name for record in caplog.records for name in set(record.__dict__) - usual}
    assert {"key", "events", "bytes", "code", "wait_seconds", "store"} <= added <= set(FIELDS)


def test_the_document_has_every_field() -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    rows = dict(
        re.findall(r"^\| `(\w+)` \| (.+) \|$", page.partition("<!-- fields -->")[2].partition("<!-- end -->")[0], re.MULTILINE)
    )
    assert rows == FIELDS


class Fails(logging.Handler):
    """A handler, or its filter, that fails as on a full disk."""

    def __init__(self, *, as_filter: bool) -> None:
        super().__init__()
        self.seen = 0
        if as_filter:
            self.addFilter(self.fail)

    def fail(self, record: logging.LogRecord) -> bool:
        self.seen += 1
        raise OSError(28, f"no space for {record.name}")

    def emit(self, record: logging.LogRecord) -> None:
        self.fail(record)


@pytest.mark.parametrize("as_filter", [True, False])
def test_a_handler_that_fails_stops_nothing(as_filter: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An application's log handling must not hold up events."""
    logger, handler = logging.getLogger("jobs_backup"), Fails(as_filter=as_filter)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            for number in range(3):
                backup.record({"n": number}, source_id="web")
                backup.flush(30)
            assert session_of(backup).health_error == ""
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert handler.seen > 0
    assert len(events(tmp_path)) == 3
    assert "no space for jobs_backup.archive.archiver" in capsys.readouterr().err


def test_the_place_of_a_log_line_is_where_it_was_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "jobs_backup"):
        logger_of("jobs_backup.here").info("said %d", 1, extra={"key": "k"})
    (record,) = caplog.records
    assert (record.filename, record.getMessage(), record.__dict__["key"]) == (Path(__file__).name, "said 1", "k")
