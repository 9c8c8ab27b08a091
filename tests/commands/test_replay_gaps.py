"""`replay` reports what it cannot know: forgotten objects, those lost with a catalog, or those it never saw."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from buckets import file_environment
from click.testing import CliRunner
from commands import COMMAND, run

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.cli import cli
from jobs_backup.model import Kind
from jobs_backup.replay import Query, knowledge


def record(env: dict[str, str], *payloads: bytes, source: str = "web", workspace: str = "") -> None:
    with Backup.from_env(env) as backup:
        backup.record_many(payloads, source_id=source, workspace_id=workspace)
        backup.flush(30)


def forget(env: dict[str, str]) -> None:
    """As after JOBS_BACKUP_CATALOG_DAYS."""
    with Backup.from_env(env, archive=False) as backup:
        assert session_of(backup).spool.forget(-60, 0) is None


def dry_run(env: dict[str, str], *options: str) -> tuple[int, dict[str, Any], str]:
    code, out, err = run("replay", "--dry-run", "--json", *options, env=env)
    return code, json.loads(out), err


def test_what_was_forgotten_is_missed_where_it_was_asked_for(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, b'{"n":1}', b'{"n":2}')
    record(env, b'{"n":3}')
    record(env, b'{"n":4}', source="ios", workspace="w")
    assert dry_run(env)[:2] == (0, {"objects": 3, "bytes": dry_run(env)[1]["bytes"], "events": 4, "unseen": [], "missing": ""})
    forget(env)
    record(env, b'{"n":5}', source="new")
    code, out, err = run("replay", "--payload-only", env=env)
    assert (code, out) == (1, '{"n":5}\n')
    assert "3 objects with 4 events forgotten (JOBS_BACKUP_CATALOG_DAYS): --list finds the rest in the bucket [Forgotten]" in err
    code, out, _ = run("replay", "--payload-only", "--list", env=env)
    assert (code, sorted(out.split())) == (0, [f'{{"n":{n}}}' for n in range(1, 6)])
    assert "2 objects with 3 events" in dry_run(env, "--source-id", "web")[1]["missing"]
    assert "1 object with 1 event " in dry_run(env, "--workspace-id", "w", "--source-id", "ios")[1]["missing"]
    for options in (
        ["--source-id", "new"],
        ["--until", "2020-01-01"],
        ["--kind", "failed"],
        ["--source-id", "web", "--workspace-id", "w"],
    ):
        assert dry_run(env, *options)[1]["missing"] == "", options


def test_a_file_is_not_finished_where_something_was_forgotten(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, b'{"n":1}')
    forget(env)
    record(env, b'{"n":2}')
    target = tmp_path / "back"
    for _ in range(2):
        code, out, err = run("replay", "--payload-only", "--output", target, "--json", env=env)
        found = json.loads(out)
        assert (code, found["complete"], found["events"]) == (1, False, 1)
        assert "1 object " in found["missing"]
        assert f"{target}.part has what was found" in err
    assert not target.exists()


def test_a_cursor_goes_on_where_something_was_forgotten(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, b'{"n":1}', b'{"n":2}')
    forget(env)
    code, _, err = run("replay", "--limit", "1", env=env)
    assert (code, "[Forgotten]" in err) == (1, True)


CATALOG = ("catalog.db", "catalog.db-wal", "catalog.db-shm")


def without_catalog(spool: Path, _: Path) -> None:
    for name in CATALOG:
        (spool / name).unlink(missing_ok=True)


def emptied(spool: Path, copy: Path) -> None:
    without_catalog(spool, copy)
    (spool / "catalog.db").touch()


def replaced(spool: Path, copy: Path) -> None:
    without_catalog(spool, copy)
    shutil.copy(copy, spool / "catalog.db")


@pytest.mark.parametrize("lose", [without_catalog, emptied, replaced])
@pytest.mark.parametrize("idle", [True, False])
def test_a_catalog_that_is_not_the_one_that_was_there_is_noticed(tmp_path: Path, lose: Any, idle: bool) -> None:
    if idle and lose is replaced:
        pytest.skip("an older copy is noticed by what is in the files beside it; see docs/promises.md")
    env = file_environment(tmp_path)
    spool, copy = tmp_path / "spool", tmp_path / "copy"
    record(env, b'{"n":0}')
    with closing(sqlite3.connect(spool / "catalog.db")) as db, closing(sqlite3.connect(copy)) as target:
        db.backup(target)
    record(env, b'{"n":1}')
    if not idle:
        with Backup.from_env(env, archive=False) as backup:  # its file stays, with the pending events
            backup.record(b'{"n":2}', source_id="web")
    lose(spool, copy)
    record(env, b'{"n":3}')
    code, out, err = run("replay", "--payload-only", env=env)
    assert (code, '{"n":1}' in out) == (1, False)
    assert "was lost or replaced by an older copy before" in err
    assert run("replay", "--payload-only", "--since", "2099-01-01", env=env)[0] == 0
    assert '{"n":1}' in run("replay", "--payload-only", "--list", env=env)[1]


def test_processes_that_start_together_on_a_new_spool_do_not_mistake_it(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    arguments = [*COMMAND, "run", "--source-id", "web"]
    started = [
        subprocess.Popen(arguments, env={**os.environ, **env}, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(4)
    ]
    for process in started:
        process.communicate(b"{}\n", timeout=60)
    assert {process.returncode for process in started} == {0}
    assert dry_run(env)[1]["missing"] == ""


def test_a_fresh_spool_says_since_when_it_knows(tmp_path: Path) -> None:
    env = file_environment(tmp_path)
    record(env, b'{"n":1}')
    shutil.rmtree(tmp_path / "spool")
    record(env, b'{"n":2}')
    code, out, err = run("replay", "--output", tmp_path / "back", "--json", env=env)
    found = json.loads(out)
    assert (code, found["events"]) == (0, 1)
    assert f"as known to this spool since {found['known_since']}" in err


def test_an_earlier_version_that_forgot_something_is_not_believed(tmp_path: Path) -> None:
    """Version 8 did not record it; its counters show it."""
    env = file_environment(tmp_path)
    record(env, b'{"n":1}')
    record(env, b'{"n":2}')
    catalog = tmp_path / "spool" / "catalog.db"
    for forgets in (False, True):
        with closing(sqlite3.connect(catalog, isolation_level=None)) as db:
            if forgets:
                db.execute("DELETE FROM batches WHERE id=(SELECT min(id) FROM batches)")
            db.execute("DROP TABLE forgotten")
            db.execute("DELETE FROM counters WHERE name!='batch'")
            db.execute("PRAGMA user_version=8")
        record(env)
        found = knowledge(tmp_path / "spool", f"file://{tmp_path}/bucket", Query(kind=Kind.RAW))
        assert bool(found.missing) is forgets
        assert run("replay", env=env)[0] == int(forgets)


# Sources


@pytest.mark.parametrize("lists", [[], ["--list"]])
def test_several_sources_and_workspaces(tmp_path: Path, lists: list[str]) -> None:
    env = file_environment(tmp_path)
    for number, (source, workspace) in enumerate([("web", "a"), ("ios", "a"), ("web", "b"), ("tv", "c")]):
        record(env, b'{"n":%d}' % number, source=source, workspace=workspace)

    def found(*options: str) -> list[int]:
        code, out, err = run("replay", "--payload-only", *lists, *options, env=env)
        assert code == 0, err
        return sorted(json.loads(line)["n"] for line in out.splitlines())

    assert found("--source-id", "web", "--source-id", "ios") == [0, 1, 2]
    assert found("--source-id", "web", "--source-id", "web") == [0, 2]
    assert found("--workspace-id", "a", "--workspace-id", "c") == [0, 1, 3]
    assert found("--source-id", "web", "--source-id", "tv", "--workspace-id", "b", "--workspace-id", "c") == [2, 3]


@pytest.mark.parametrize("lists", [[], ["--list"]])
def test_a_source_that_was_never_seen_is_reported(tmp_path: Path, lists: list[str]) -> None:
    env = file_environment(tmp_path)
    record(env, b'{"n":1}', source="web", workspace="w1")
    with Backup.from_env(env) as backup:
        backup.failed(backup.record({}, source_id="web", workspace_id="w1"), error="no", payload={"final": 1})
        backup.flush(30)
    for kind in ("raw", "failed"):
        for option, right, wrong in (("--source-id", "web", "wbe"), ("--workspace-id", "w1", "w2")):
            options = ["--kind", kind, *lists]
            assert run("replay", *options, option, right, env=env)[0] == 0
            if lists and kind == "failed" and option == "--workspace-id":
                continue  # a workspace without failures looks like a missing one
            for one in ([option, wrong], [option, wrong, option, right]):
                code, out, err = run("replay", *options, *one, env=env)
                assert (code, bool(out)) == (1, right in one)
                assert f"{wrong!r} was never seen" in err
                assert "[UnknownSource]" in err
            if lists == [] or kind == "raw":
                code, _, err = run("replay", *options, option, wrong, "--dry-run", env=env)
                assert (code, f"{wrong!r} was never seen" in err) == (1, True)
    record(env, b"{}", source="without failures", workspace="w3")
    for option, name in (("--source-id", "without failures"), ("--workspace-id", "w3")):
        assert run("replay", "--kind", "failed", *lists, option, name, env=env)[0] == 0
    if not lists:
        assert "did you mean 'web'?" in run("replay", "--source-id", "wbe", env=env)[2]
    assert run("replay", *lists, "--source-id", "web", "--until", "2020-01-01", env=env)[0] == 0, "seen, but not then"


def options_with_a_value() -> list[tuple[str, str, str]]:
    """Command, option and value, for each option that has one and may not be repeated. `--watch` may have none."""
    found: list[tuple[str, str, str]] = []
    with click.Context(cli) as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            for one in command.params:
                if (
                    isinstance(one, click.Option)
                    and one.name != "watch"
                    and not one.is_flag
                    and "May be repeated" not in (one.help or "")
                ):
                    value = one.type.choices[0] if isinstance(one.type, click.Choice) else "1"
                    found.append((name, one.opts[0], str(value)))
    return found


@pytest.mark.parametrize(("command", "option", "value"), options_with_a_value())
def test_an_option_that_is_given_twice_is_refused(command: str, option: str, value: str, tmp_path: Path) -> None:
    """The last would silently win."""
    done = CliRunner().invoke(cli, [command, option, value, option, value], env=file_environment(tmp_path), standalone_mode=False)
    assert isinstance(done.exception, click.BadParameter)
    assert f"{option} is given 2 times" in str(done.exception)
