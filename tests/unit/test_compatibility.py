"""The promises to plugin authors: see docs/compatibility.md."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

import pytest
from commands import run
from distributions import Install
from places import ROOT
from spools import archiver_of

from jobs_backup import Backup, hookspecs
from jobs_backup.backup.backup import session_of
from jobs_backup.hookspecs import API_VERSION, OLDEST_API_VERSION, ObjectHooks, StorageProvider
from jobs_backup.store import providers
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.testing.conformance import Inspector, ProviderConformance

FROZEN: Final = ROOT / "tests/frozen"
HASHES: Final = {
    "provider_v1.py": "5341610cedb0d169c2bcdf64440eeb23cf3388fc59fcbfbfc7beef014014f061",
    "wrapper_v1.py": "e99e7700b9af1e54c06a2f4dbdf58dab9f2498727c00c8e4b351d486bf571156",
}


def load(name: str) -> ModuleType:
    """A module of tests/frozen."""
    spec = importlib.util.spec_from_file_location(name, FROZEN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES: Final[str] = load("provider_v1").TABLES


@pytest.fixture
def _installed(install: Install) -> None:
    provider, wrapper = ((FROZEN / f"{name}_v1.py").read_text() for name in ("provider", "wrapper"))
    install(provider, name="FROZEN", target="FrozenProvider", distribution="frozen-backup")
    install(wrapper, name="XOR", target="FrozenWrapper", group="jobs_backup.wrappers", distribution="frozen-wrapper")


class _Bucket:
    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(sqlite3.connect(path)) as db:
            db.executescript(TABLES)

    def query(self, statement: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as db:
            return db.execute(statement, values).fetchall()

    def keys(self) -> list[str]:
        return [key for (key,) in self.query("SELECT key FROM objects ORDER BY key")]

    def get(self, key: str) -> bytes:
        ((data,),) = self.query("SELECT data FROM objects WHERE key=?", key)
        return bytes(data)

    def open_uploads(self) -> list[str]:
        return [key for (key,) in self.query("SELECT key FROM uploads")]


@pytest.fixture
def bucket_of_v1(tmp_path: Path) -> _Bucket:
    return _Bucket(tmp_path / "bucket.db")


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
class TestFrozenProvider(ProviderConformance):
    """Today's whole suite on the old provider."""

    provider = "FROZEN"

    @pytest.fixture
    def environment(self, bucket_of_v1: _Bucket) -> Mapping[str, str]:
        return {"JOBS_BACKUP_BUCKET": str(bucket_of_v1.path), "FROZEN_TOKEN": "canary-7f3a"}

    @pytest.fixture
    def inspector(self, bucket_of_v1: _Bucket) -> Inspector:
        return bucket_of_v1

    @pytest.fixture
    def environment_without_bucket(self, tmp_path: Path) -> Mapping[str, str]:
        return {"JOBS_BACKUP_BUCKET": str(tmp_path / "nothing.db")}


@pytest.mark.parametrize("name", HASHES)
def test_what_is_frozen_was_not_changed(name: str) -> None:
    assert hashlib.sha256((FROZEN / name).read_bytes()).hexdigest() == HASHES[name], "it is never changed; see its first lines"


def variables(tmp_path: Path, bucket: _Bucket) -> dict[str, str]:
    return {
        "JOBS_BACKUP_STORAGE_PROVIDER": "FROZEN",
        "JOBS_BACKUP_BUCKET": str(bucket.path),
        "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        "JOBS_BACKUP_WRAPPERS": "xor",
        "JOBS_BACKUP_MULTIPART_THRESHOLD": "100kB",
        "JOBS_BACKUP_PART_SIZE": "50kB",
    }


@pytest.mark.usefixtures("_installed")
def test_both_back_up_and_read_back(tmp_path: Path, bucket_of_v1: _Bucket) -> None:
    """Run by the command, in separate processes."""
    bucket = bucket_of_v1
    environment = variables(tmp_path, bucket) | {"PYTHONPATH": os.environ["PYTHONPATH"]}
    events = tmp_path / "events.ndjson"
    events.write_text("".join(json.dumps({"messageId": f"m{n}", "text": "x" * 50, "n": n}) + "\n" for n in range(20_000)))
    code, _, stderr = run("run", events, "--source-id", "web", env=environment)
    assert code == 0, stderr
    code, stdout, stderr = run("replay", "--payload-only", env=environment)
    assert code == 0, stderr
    assert stdout == events.read_text()
    (key,) = bucket.keys()
    assert key.endswith(".json.gz.xor")
    assert not bucket.get(key).startswith(b"\x1f\x8b")
    assert bucket.open_uploads() == []
    code, stdout, stderr = run("check", env=environment)
    assert (code, "ready" in stdout) == (0, True), stderr


@pytest.mark.usefixtures("_installed")
def test_both_go_on_when_every_hook_has_gained_an_argument(
    tmp_path: Path, bucket_of_v1: _Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spec in (StorageProvider, ObjectHooks):
        for name, function in inspect.getmembers(spec, lambda one: hasattr(one, "jobs_backup_spec")):
            monkeypatch.setattr(spec, name, _grown(function))
    signature = inspect.signature(StorageProvider.write)
    assert list(signature.parameters)[-1] == "priority"
    loaded = providers.load("FROZEN", variables(tmp_path, bucket_of_v1))
    assert "write" in loaded.hooks
    monkeypatch.setattr("jobs_backup.store.object_store.ObjectStore._attempt", _with_priority())
    with Backup.from_env(variables(tmp_path, bucket_of_v1)) as backup:
        jobs = backup.record_many(({"n": n, "id": hashlib.sha256(b"%d" % n).hexdigest()} for n in range(20_000)), source_id="web")
        backup.flush(timeout=120)
        assert {hook for hook, outcome in session_of(backup).store.attempts if outcome == "ok"} == {
            "create_multipart", "write_part", "complete_multipart",
        }  # fmt: skip
        (key,) = bucket_of_v1.keys()
        with (tmp_path / "back").open("w+b") as file:
            session_of(backup).store.fetch(key, file)
            assert file.read(2) == b"\x1f\x8b"
        backup.delivered(jobs)
        archiver_of(backup).drain(120)
    assert bucket_of_v1.keys() == []


def _grown(function: FunctionType) -> Any:
    """The specification with one more argument, at the end."""
    parameters = [*inspect.signature(function).parameters, "priority"]
    scope: dict[str, Any] = {}
    exec(f"def {function.__name__}({', '.join(parameters)}): ...", scope)
    grown = scope[function.__name__]
    grown.__qualname__ = function.__qualname__  # pluggy identifies a method by it, and does not count `self`
    return hookspecs.hookspec(firstresult=True)(grown)


def _with_priority() -> Any:
    attempt = ObjectStore._attempt

    def attempted(self: ObjectStore, hook: str, call: Any, arguments: Mapping[str, Any], expected: type[Any]) -> Any:
        return attempt(self, hook, call, {**arguments, "priority": 7}, expected)

    return attempted


def test_the_versions_that_are_known() -> None:
    assert (OLDEST_API_VERSION, API_VERSION) == (1, 1)


# No public name is removed


def _now() -> dict[str, Any]:
    found: dict[str, Any] = load("public").public()
    return found


def _then() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FROZEN / "public_v1.json").read_text())
    return found


def problems(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which parts of `then` no longer hold."""
    found: list[str] = []
    for name, was in then.items():
        if name not in now:
            found.append(f"{name} is gone")
            continue
        found += _changes(name, was, now[name])
    return found


def _changes(name: str, was: Mapping[str, Any], is_: Mapping[str, Any]) -> list[str]:
    found = [f"{name} was a {was['kind']}"] if was["kind"] != is_["kind"] else []
    if was.get("flags") != is_.get("flags"):
        found.append(f"{name}: flags was {was['flags']}")
    if missing := [base for base in was.get("bases", ()) if base not in is_.get("bases", ())]:
        found.append(f"{name} is no {', '.join(missing)} any more")
    for what in ("init", "parameters"):
        if what in was:
            found += _parameters(name, was[what], is_.get(what), is_hook=False)
    for member, its in was.get("members", {}).items():
        if member not in is_["members"]:
            found.append(f"{name}.{member} is gone")
        elif its != "attribute":
            found += _parameters(f"{name}.{member}", its, is_["members"][member], is_hook="jobs_backup.hookspecs." in name)
    return found


def _parameters(name: str, was: Any, is_: Any, *, is_hook: bool) -> list[str]:
    if not isinstance(was, dict) or not isinstance(is_, dict):
        return [] if was == is_ else [f"{name} was {was}"]
    before, after = was["required"], is_["required"]
    found = [f"{name}: {one} is gone" for one in before if one not in after]
    found += [f"{name}: {one} has to be given now" for one, required in before.items() if after.get(one) and not required]
    if not is_hook:  # an implementation may take fewer arguments; a caller has to pass all
        found += [f"{name}: {one} is new and has to be given" for one, required in after.items() if one not in before and required]
        if is_["order"][: len(was["order"])] != was["order"]:
            found.append(f"{name}: in another order")
    return found


def test_nothing_that_is_public_has_gone_or_changed() -> None:
    assert problems(_then(), _now()) == []


def test_what_is_new_is_in_the_list() -> None:
    """Otherwise it could be removed unnoticed."""
    assert problems(_now(), _then()) == [], "run: python tests/frozen/public.py > tests/frozen/public_v1.json"


def _without(now: dict[str, Any], *path: str) -> None:
    *way, last = path
    for step in way:
        now = now[step]
    del now[last]


def _swapped(now: dict[str, Any]) -> None:
    now["jobs_backup.model.Stream"]["init"]["order"].reverse()


def _required(now: dict[str, Any], name: str, member: str, **required: bool) -> None:
    now[name]["members"][member]["required"].update(required)


BREAKS: Final[dict[str, tuple[str, Any]]] = {
    "name": ("jobs_backup.Backup is gone", lambda now: _without(now, "jobs_backup.Backup")),
    "method": ("Backup.flush is gone", lambda now: _without(now, "jobs_backup.Backup", "members", "flush")),
    "argument of a hook": (
        "StorageProvider.write: if_absent is gone",
        lambda now: _without(now, "jobs_backup.hookspecs.StorageProvider", "members", "write", "required", "if_absent"),
    ),
    "field": ("model.Part: etag is gone", lambda now: _without(now, "jobs_backup.model.Part", "init", "required", "etag")),
    "new argument that is required": (
        "Backup.flush: how is new and has to be given",
        lambda now: _required(now, "jobs_backup.Backup", "flush", how=True),
    ),
    "argument that is required now": (
        "Backup.record: user_id has to be given now",
        lambda now: _required(now, "jobs_backup.Backup", "record", user_id=True),
    ),
    "retryable": ("Unavailable: flags was", lambda now: now["jobs_backup.errors.Unavailable"]["flags"].update(retryable=False)),
    "base": ("Throttled is no StorageError", lambda now: now["jobs_backup.errors.Throttled"]["bases"].remove("StorageError")),
    "order": ("model.Stream: in another order", _swapped),
}


@pytest.mark.parametrize(("problem", "break_it"), BREAKS.values(), ids=BREAKS.keys())
def test_what_breaks_somebodys_program_is_found(problem: str, break_it: Any) -> None:
    now = _now()
    break_it(now)
    (found,) = [one for one in problems(_then(), now) if problem in one]
    assert found


def test_a_hook_may_gain_an_argument_and_a_struct_a_field_with_a_default() -> None:
    now = _now()
    now["jobs_backup.hookspecs.StorageProvider"]["members"]["write"]["required"]["priority"] = True
    now["jobs_backup.model.WriteReceipt"]["init"]["required"]["region"] = False
    now["jobs_backup.model.Cost"] = {"kind": "class", "members": {}}
    assert problems(_then(), now) == []


def test_the_list_is_of_all_that_the_page_names() -> None:
    page = (ROOT / "docs/compatibility.md").read_text()
    assert [path for path in load("public").MODULES if path not in page and path.rpartition(".")[2] not in page] == []
