"""Text from outside stays on one line and controls nothing, in every log format, status, message, summary and metric."""

from __future__ import annotations

import io
import logging
import sqlite3
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from buckets import FAST_RETRY, file_environment
from commands import start
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from s3_client import refusal, store_environment
from serving import serve

from jobs_backup import Backup
from jobs_backup.errors import Unavailable
from jobs_backup.testing.fault_proxy import ALWAYS, FaultProxy
from jobs_backup.util.logs import TextFormatter, printable

FORGED: Final = "2026-11-29 12:00:00,000 INFO 0 events lost"
CANARY: Final = f"c\n{FORGED}\r\x1b[2J\u2028\x85\x9b31m\u202e\u2066\u200fy\x00\x7f\ufeff"
"""Forged lines, by each character that some reader takes for a line end; colors; hidden and reversed text."""
IN_A_NAME: Final = CANARY.replace("\x00", "")
IN_XML: Final = "".join(one for one in CANARY if one >= " " or one in "\n\r")


def check(said: str) -> None:
    """It is reported, only on our own lines, in visible characters."""
    assert "INFO 0 events lost" in said
    for line in said.split("\n"):
        assert line.isprintable(), ascii(line)
        assert not line.startswith("2026-11-29"), line


def run_all(env: dict[str, str], *arguments: str | Path, stdin: str | None = None) -> tuple[str, str]:
    """Both outputs of a command, however it ends."""
    with start(*arguments, env=env, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL) as process:
        stdout, stderr = process.communicate(stdin, timeout=120)
    assert "Traceback" not in stderr, stderr
    return stdout, stderr


@pytest.mark.parametrize("log_format", ["text", "json"])
class TestCommand:
    @pytest.fixture
    def env(self, log_format: str, tmp_path: Path) -> dict[str, str]:
        return file_environment(tmp_path, **FAST_RETRY, JOBS_BACKUP_LOG_FORMAT=log_format)

    def test_ids_of_a_damaged_row(self, env: dict[str, str], tmp_path: Path) -> None:
        program = (
            "import os\nfrom jobs_backup import Backup\nbackup = Backup.from_env(archive=False)\n"
            f"id_ = {CANARY!r}\n"  # not an argument, which cannot contain NUL
            "for number in range(2):\n    backup.record({'n': number}, source_id=id_, workspace_id=id_)\nos._exit(9)"
        )
        assert subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode == 9
        (path,) = (tmp_path / "spool/blobs").glob("*.db")
        with sqlite3.connect(path) as database:
            database.execute("UPDATE chunks SET data=zeroblob(length(data)) WHERE job=(SELECT min(job) FROM chunks)")
        database.close()
        said = run_all(env, "archive", "--once", "-v", "--json")
        check("".join(said))
        check("".join(run_all(env, "status")))
        check("".join(run_all(env, "status", "--json")))

    def test_names_of_files_and_what_is_in_them(self, env: dict[str, str], tmp_path: Path) -> None:
        file = tmp_path / IN_A_NAME
        lines = f'{{"n":1}}\n{CANARY}\n["{CANARY}"]\n{{"{IN_A_NAME}":\n'
        commands: list[list[str | Path]] = [["run", file, "--source-id", IN_A_NAME], ["delivered", file], ["failed", file]]
        for arguments in commands:
            file.write_text(lines)
            stdout, stderr = run_all(env, *arguments, "-v")
            check(stderr)
            file.write_text(lines * 2)
            check("".join(run_all(env, *arguments, "--json")))
            assert stdout == ""
        check(run_all(env, "run", tmp_path / f"{IN_A_NAME}2", "--source-id", "web")[1])
        check(run_all(env, "status", "--env-file", tmp_path / f"{IN_A_NAME}2")[1])
        check(run_all(env, "replay", "--output", tmp_path / "none" / IN_A_NAME)[1])

    def test_the_command_line(self, env: dict[str, str]) -> None:
        for arguments in (
            [IN_A_NAME], [f"--{IN_A_NAME}"], ["status", IN_A_NAME], ["run", f"--{IN_A_NAME}"], ["replay", "--limit", IN_A_NAME],
            ["replay", "--since", IN_A_NAME], ["replay", "--after", IN_A_NAME], ["env", IN_A_NAME], ["providers", IN_A_NAME],
            ["policy", "--provider", IN_A_NAME], ["replay", "--kind", IN_A_NAME],
        ):  # fmt: skip
            check(run_all(env, *arguments)[1])

    def test_words_of_a_store(self, log_format: str, tmp_path: Path) -> None:
        header = "c\x1b[2J\x85\x9b31m INFO 0 events lost"
        with FaultProxy() as server:
            answer = refusal(403, "AccessDenied", escape(IN_XML), {"x-amz-request-id": header, "Server": header, "Date": header})
            server.fail(answer, times=ALWAYS)
            env = store_environment(tmp_path, server.url, JOBS_BACKUP_LOG_FORMAT=log_format)
            with Backup.from_env(env, archive=False) as backup:
                backup.record({"n": 1}, source_id=CANARY)
            for arguments in (
                ["archive", "--once", "-v"], ["archive", "--once", "--json"], ["status"], ["status", "--json"], ["check"],
                ["check", "--json"], ["replay", "--list"],
            ):  # fmt: skip
                check("".join(run_all(env, *arguments)))

    def test_keys_in_the_bucket(self, env: dict[str, str], tmp_path: Path) -> None:
        """Anyone with write access to a bucket chooses its keys; they may contain characters that ours cannot."""
        name = IN_A_NAME.replace("/", "")
        path = tmp_path / f"bucket/{name}/gw/2026-11-24/9/1/1_2_{name}_id.json.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"not gzip")
        check(run_all(env, "replay", "--list")[1])
        check("".join(run_all(env, "replay", "--list", "--json", "--output", tmp_path / "out")))

    def test_requests(self, env: dict[str, str]) -> None:
        query = quote(CANARY)
        said = ""
        with serve(env, "-v", JOBS_BACKUP_METRICS_PORT="0") as server:
            for path in (f"/v1/events?source_id={query}", f"/{query}"):
                server.post(path, {"n": CANARY}, User_Agent="c\x1b[2J", X_Request_ID="c\x1b[2J")
            metrics = server.get("/metrics").body.decode()
            said += server.end()[1]
        for line in (said + metrics).split("\n"):
            assert line.isprintable(), ascii(line)
        assert list(text_string_to_metric_families(metrics))


@given(st.text())
def test_every_text_is_one_line_that_can_be_seen(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(one) for one in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert shown == text or not text.isprintable()


def test_a_traceback_cannot_pass_for_a_record() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter())
    logger = logging.Logger("a")
    logger.addHandler(handler)
    try:
        raise ValueError(CANARY)
    except ValueError:
        logger.exception("of %s", CANARY)
    first, *rest = stream.getvalue().removesuffix("\n").split("\n")
    assert first.endswith(f" ERROR of {printable(CANARY)}")
    assert len(rest) >= 4
    for line in rest:
        assert line.startswith("    ")
        assert line.isprintable()


def test_an_error_on_one_line() -> None:
    """As an application logs it, with its own formatter."""
    assert Unavailable(CANARY, hint=CANARY).one_line().isprintable()


def test_labels_of_metrics(tmp_path: Path) -> None:
    from jobs_backup.monitoring import metrics

    family: Any = metrics._gauges("store_paused", "store", {CANARY: 1.0})
    assert [sample.labels["store"] for sample in family.samples] == [printable(CANARY)]
