"""`run --emit-ids`, `delivered` and `failed`: how a consumer in any language uses them through pipes."""

from __future__ import annotations

import gzip
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from buckets import FAST_RETRY, events, file_environment, objects
from commands import COMMAND, ndjson, run, start, summary


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return file_environment(tmp_path, **FAST_RETRY)


def failures(tmp_path: Path) -> list[dict[str, Any]]:
    return [event for event in events(tmp_path) if "failedAt" in event]


class TestEmitIds:
    def test_an_id_for_each_line_and_null_where_there_is_none(self, env: dict[str, str], tmp_path: Path) -> None:
        file = tmp_path / "in"
        file.write_text('{"n":1}\n\n[2]\n{"n":3}\n   \n{"n":4}\nnot json\n')
        code, stdout, stderr = run("run", file, "--source-id", "web", "--emit-ids", env=env)
        assert (code, "3 events recorded" in stderr) == (3, True)
        ids = [json.loads(line) for line in stdout.splitlines()]
        assert [type(id_) for id_ in ids] == [str, type(None), type(None), str, type(None), str, type(None)]
        first = int(ids[0])
        assert ids == [str(first), None, None, str(first + 1), None, str(first + 2), None]

    def test_what_is_printed_acknowledges_everything(self, env: dict[str, str], tmp_path: Path) -> None:
        file = ndjson(tmp_path / "in", 2500)
        _, stdout, _ = run("run", file, "--source-id", "web", "--emit-ids", env={**env, "JOBS_BACKUP_BATCH_EVENTS": "100"})
        assert len(objects(tmp_path)) == 25
        found = summary("delivered", env=env, stdin=stdout)
        assert (found["ids"], found["unknown"], found["deleted"], found["rejected"]) == (2500, 0, 25, 0)
        assert objects(tmp_path) == {}

    def test_only_what_is_new_when_it_goes_on(self, env: dict[str, str], tmp_path: Path) -> None:
        file = ndjson(tmp_path / "in", 10)
        _, before, _ = run("run", file, "--source-id", "web", "--emit-ids", env=env)
        with file.open("a") as more:
            more.write('{"n":11}\n{"n":12}\n')
        _, after, _ = run("run", file, "--source-id", "web", "--emit-ids", env=env)
        assert (before.count("\n"), after.count("\n")) == (10, 2)

    def test_as_soon_as_an_event_is_durable(self, env: dict[str, str]) -> None:
        with start("run", "--source-id", "web", "--emit-ids", env=env, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for number in range(3):
                process.stdin.write(f'{{"n":{number}}}\n')
                process.stdin.flush()
                assert json.loads(process.stdout.readline()).isdecimal()
            process.stdin.close()
            assert process.wait(120) == 0

    def test_a_reader_that_goes_away_ends_it_and_what_was_recorded_is_sent(self, env: dict[str, str], tmp_path: Path) -> None:
        with start("run", "--source-id", "web", "--emit-ids", env=env, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdin.write('{"n":1}\n')
            process.stdin.flush()
            process.stdout.readline()
            process.stdout.close()
            process.stdin.write('{"n":2}\n')
            process.stdin.flush()
            stderr = process.stderr.read()
            assert process.wait(120) == 1
        assert "not all job ids were printed: output closed early" in stderr
        assert "Traceback" not in stderr
        assert "BrokenPipe" not in stderr
        assert sorted(event["payload"]["n"] for event in events(tmp_path)) == [1, 2]

    @pytest.mark.slow
    @pytest.mark.parametrize("buffered", ["", "1"])
    def test_a_slow_reader_gets_all_that_was_recorded_also_at_the_end(
        self, env: dict[str, str], tmp_path: Path, buffered: str
    ) -> None:
        """SIGTERM while the pipe is full; without Python's buffers, too, as in most containers."""
        file = ndjson(tmp_path / "in", 200_000)
        with start("run", file, "--source-id", "web", "--emit-ids", env={**env, "PYTHONUNBUFFERED": buffered}) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert select.select([process.stdout], [], [], 60)[0], "it records, and so ends as it should at a signal"
            time.sleep(1)  # the pipe fills
            process.terminate()
            time.sleep(0.2)
            ids = process.stdout.readlines()
            recorded = int(process.stderr.read().split(" events recorded")[0].split()[-1].replace(",", ""))
        assert len(ids) == recorded > 0
        assert all(json.loads(id_).isdecimal() for id_ in ids)

    @pytest.mark.slow
    def test_a_reader_that_stands_still_does_not_keep_it_from_ending(self, env: dict[str, str], tmp_path: Path) -> None:
        file = ndjson(tmp_path / "in", 100_000)
        with start("run", file, "--source-id", "web", "--emit-ids", env={**env, "JOBS_BACKUP_SHUTDOWN_GRACE": "1s"}) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert select.select([process.stdout], [], [], 60)[0], "it records, and so ends as it should at a signal"
            time.sleep(1)  # the pipe fills
            process.terminate()
            stderr = process.stderr.read()
            assert process.wait(120) == 1
        assert "not all job ids were printed: the reader is too slow" in stderr

    @pytest.mark.parametrize(("output", "code", "why"), [("> /dev/full", 1, "No space left"), (">&-", 2, "which is closed")])
    def test_an_output_that_can_not_be_written_is_reported(
        self, env: dict[str, str], tmp_path: Path, output: str, code: int, why: str
    ) -> None:
        ndjson(tmp_path / "in", 5)
        command = f"{COMMAND[0]} run {tmp_path / 'in'} --source-id web --emit-ids {output}"
        done = subprocess.run(["bash", "-c", command], env={**os.environ, **env}, capture_output=True, text=True, check=False)
        assert (done.returncode, why in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr
        if code == 1:
            assert "5 events recorded" in done.stderr
            assert "5 events in 1 object" in done.stderr

    def test_with_json_it_is_refused(self, env: dict[str, str]) -> None:
        code, _, stderr = run("run", "--source-id", "web", "--emit-ids", "--json", env=env, stdin="")
        assert (code, "both print to standard output" in stderr) == (2, True)

    def test_without_raw_backups_there_is_nothing_to_do(self, env: dict[str, str]) -> None:
        code, _, stderr = run("run", "--source-id", "web", env={**env, "JOBS_BACKUP_RAW": "off"}, stdin="{}\n")
        assert (code, "JOBS_BACKUP_RAW is off" in stderr) == (2, True)


class TestDelivered:
    def test_ids_as_text_as_numbers_and_null(self, env: dict[str, str], tmp_path: Path) -> None:
        _, stdout, _ = run("run", ndjson(tmp_path / "in", 4), "--source-id", "web", "--emit-ids", env=env)
        one, two, three, four = stdout.split()
        ids = f"{one}\n{two.strip(chr(34))}\nnull\n\n {three} \n{four}\n{four}\n"
        found = summary("delivered", env=env, stdin=ids)
        assert (found["ids"], found["unknown"], found["deleted"]) == (5, 0, 1)
        assert objects(tmp_path) == {}

    def test_what_is_no_id_is_put_aside(self, env: dict[str, str], tmp_path: Path) -> None:
        run("run", ndjson(tmp_path / "in", 1), "--source-id", "web", env=env)
        wrong = ['{"jobId":1}', "1.5", '"x"', "-1", "true", "[1]", "9" * 39, "1 2"]
        code, stdout, stderr = run("delivered", "--json", env=env, stdin="\n".join([*wrong, ""]))
        found = json.loads(stdout)
        assert (code, found["ids"], found["rejected"]) == (3, 0, len(wrong))
        assert all(f"standard input:{number}: " in stderr for number in range(1, len(wrong) + 1))
        (rejects,) = found["rejects"]
        assert Path(rejects).read_text().splitlines() == wrong

    def test_unknown_ids_are_reported_and_the_others_taken(self, env: dict[str, str], tmp_path: Path) -> None:
        _, stdout, _ = run("run", ndjson(tmp_path / "in", 2), "--source-id", "web", "--emit-ids", env=env)
        code, _, stderr = run("delivered", env=env, stdin=f"12\n{stdout}13\n")
        assert code == 1
        assert "job 12 is unknown" in stderr
        assert "2 job ids unknown, all others were accepted" in stderr
        assert objects(tmp_path) == {}

    def test_of_many_unknown_ids_twenty_are_named(self, env: dict[str, str]) -> None:
        code, stdout, stderr = run("delivered", "--json", env=env, stdin="".join(f"{id_}\n" for id_ in range(1, 5001)))
        found = json.loads(stdout)
        assert (code, found["ids"], found["unknown"], stderr.count("is unknown")) == (1, 5000, 5000, 20)

    def test_a_file_may_be_given_again(self, env: dict[str, str], tmp_path: Path) -> None:
        _, stdout, _ = run("run", ndjson(tmp_path / "in", 20), "--source-id", "web", "--emit-ids", env=env)
        ids = tmp_path / "ids"
        ids.write_text(stdout)
        assert summary("delivered", ids, env=env)["deleted"] == 1
        assert summary("delivered", ids, ids, env=env)["ids"] == 40

    def test_each_id_of_a_pipe_is_taken_when_it_comes(self, env: dict[str, str], tmp_path: Path) -> None:
        _, stdout, _ = run("run", ndjson(tmp_path / "in", 1), "--source-id", "web", "--emit-ids", env=env)
        with start("delivered", env=env, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(stdout)
            process.stdin.flush()
            deadline = time.monotonic() + 120
            while objects(tmp_path) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert (objects(tmp_path), process.poll()) == ({}, None)
            process.stdin.close()
            assert process.wait(120) == 0

    def test_what_others_have_still_to_send_is_no_failure(self, env: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "bucket").rename(tmp_path / "away")
        _, stdout, _ = run("run", ndjson(tmp_path / "in", 5), "--source-id", "web", "--emit-ids", env=env)
        code, _, stderr = run("delivered", env=env, stdin=stdout)
        assert code == 0
        assert "5 events wait" in stderr
        (tmp_path / "away").rename(tmp_path / "bucket")
        found = summary("archive", "--once", env=env)
        assert (found["objects"], found["waiting_deletes"][0]["objects"]) == (1, 1), "the failed attempt might still arrive"

    def test_no_spool_no_settings(self, tmp_path: Path) -> None:
        code, _, stderr = run("delivered", env={"JOBS_BACKUP_SPOOL_DIR": str(tmp_path)}, stdin="1\n")
        assert (code, "JOBS_BACKUP_STORAGE_PROVIDER is not set" in stderr) == (2, True)


class TestFailed:
    def test_by_job_and_by_source(self, env: dict[str, str], tmp_path: Path) -> None:
        _, stdout, _ = run("run", ndjson(tmp_path / "in", 1), "--source-id", "web", "--emit-ids", env=env)
        full = {
            "jobId": json.loads(stdout), "error": {"message": "no", "status": 422}, "payload": {"final": True},
            "destinationId": "d1", "attempts": 3, "stage": "deliver", "code": "422", "userId": "u", "messageId": "m",
            "createdAt": "2026-01-02T03:04:05+01:00", "failedAt": "2026-01-02T03:04:06Z",
        }  # fmt: skip
        given = f'{json.dumps(full)}\n{{"sourceId":"ios","workspaceId":"ws","error":"no","payload": 1.10 }}\n'
        found = summary("failed", env=env, stdin=given)
        assert (found["failures"], found["rejected"], found["stored_events"]) == (2, 0, 2)
        one, other = sorted(failures(tmp_path), key=lambda event: str(event["sourceId"]), reverse=True)
        assert one == {
            "userId": "u", "payload": {"final": True}, "createdAt": "2026-01-02T02:04:05.000000Z", "messageId": "m",
            "workspaceId": "", "sourceId": "web", "destinationId": "d1", "jobId": full["jobId"],
            "error": {"message": "no", "code": "422", "stage": "deliver", "details": {"status": 422}},
            "attempts": 3, "failedAt": "2026-01-02T03:04:06.000000Z",
        }  # fmt: skip
        assert (other["sourceId"], other["workspaceId"], other["jobId"], other["payload"]) == ("ios", "ws", None, 1.1)
        assert any(b'"payload":1.10,' in data for data in map(gzip.decompress, objects(tmp_path).values()))

    def test_lines_that_can_not_be_used_are_put_aside(self, env: dict[str, str], tmp_path: Path) -> None:
        wrong = {
            '{"jobId":"7","error":"no","payload":{}}': "job 7 is unknown",
            '{"jobId":"x","error":"no","payload":{}}': "is not a job id",
            '{"error":"no","payload":{}}': "neither jobId nor sourceId",
            '{"sourceId":"s","payload":{}}': "missing required field `error`",
            '{"sourceId":"s","error":"no"}': "missing required field `payload`",
            '{"sourceId":"","error":"no","payload":{}}': "source_id is empty",
            '{"sourceId":"s","error":"no","payload":{},"destination_id":"d"}': "unknown field `destination_id`",
            '{"sourceId":"s","error":"no","payload":{},"failedAt":"2026-01-01T00:00:00"}': "has no time zone",
            '{"sourceId":"s","error":"no","payload":{},"attempts":"x"}': "$.attempts",
            "[]": "Expected `object`",
            "{": "truncated",
        }
        good = '{"sourceId":"s","error":"no","payload":{}}'
        code, stdout, stderr = run("failed", "--json", env=env, stdin="\n".join([*wrong, good, ""]))
        found = json.loads(stdout)
        assert (code, found["failures"], found["rejected"]) == (3, 1, len(wrong))
        for why in wrong.values():
            assert why in stderr
        assert Path(found["rejects"][0]).read_text().splitlines() == list(wrong)
        assert len(failures(tmp_path)) == 1

    def test_a_file_goes_on_where_it_was(self, env: dict[str, str], tmp_path: Path) -> None:
        file = tmp_path / "failures"
        file.write_text('{"sourceId":"s","error":"no","payload":1}\nwrong\n')
        assert summary("failed", file, env=env)["failures"] == 1
        with file.open("a") as more:
            more.write("wrong\n")
        assert summary("failed", file, env=env)["rejected"] == 1
        with file.open("a") as more:
            more.write('{"sourceId":"s","error":"no","payload":2}\n')
        assert summary("failed", file, env=env)["failures"] == 1
        assert sorted(event["payload"] for event in failures(tmp_path)) == [1, 2]
        assert summary("failed", file, "--again", env=env)["failures"] == 2

    def test_a_file_is_read_as_failures_whoever_has_read_it_as_events(self, env: dict[str, str], tmp_path: Path) -> None:
        file = tmp_path / "failures"
        file.write_text('{"sourceId":"s","error":"no","payload":1}\n')
        assert summary("run", file, "--source-id", "failed", env=env)["events"] == 1
        assert summary("failed", file, env=env)["failures"] == 1

    @pytest.mark.slow
    def test_killed_and_run_again_each_failure_is_there_once(self, env: dict[str, str], tmp_path: Path) -> None:
        file = tmp_path / "failures"
        padding = "x" * 400
        with file.open("w") as output:
            output.writelines(
                f'{{"sourceId":"s{number % 5}","error":"no","payload":{{"n":{number},"x":"{padding}"}}}}\n'
                for number in range(80_000)
            )
        kills = 0
        for wait in (0.25, 0.35, 0.45):
            with start("failed", file, env=env) as process:
                time.sleep(wait)
                kills += process.poll() is None
                process.kill()
                process.communicate()
        assert summary("failed", file, env=env)["complete"]
        assert sorted(event["payload"]["n"] for event in failures(tmp_path)) == list(range(80_000))
        assert kills

    def test_switched_off_there_is_nothing_to_do(self, env: dict[str, str]) -> None:
        code, _, stderr = run("failed", env={**env, "JOBS_BACKUP_FAILED": "false"}, stdin="")
        assert (code, "JOBS_BACKUP_FAILED is off" in stderr) == (2, True)
