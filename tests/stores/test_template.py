"""The template for providers: its output works, passes the linters, and has tests that find faults."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import copier
import pytest
import yaml
from commands import ndjson
from commands import run as jobs_backup_command
from places import ROOT

import jobs_backup
from jobs_backup.store.providers import KIND
from jobs_backup.testing.conformance import ProviderConformance
from jobs_backup.testing.fault_proxy import FaultProxy
from jobs_backup.testing.multipart import MultipartConformance
from jobs_backup.testing.refusals import RefusalConformance
from jobs_backup.testing.strangers import StrangerConformance

TEMPLATE = ROOT / "contrib/provider-template"
KINDS = {
    "usual": {"name": "ACME"},
    "short": {"name": "X", "distribution": "z-z", "store": "é", "author": "O'Brien & Ünï"},
    "long": {
        "name": "A_B_C_ABCDEFGHIJKLMNOPQR",
        "distribution": "long-" + "x" * 35,
        "store": "Forty characters are the longest of name",
    },
}

SHAPES = {"parts": {"multipart": True}, "whole": {"multipart": False}, "file": {"http": False}}
"""Over HTTP with and without parts, and without HTTP."""
both = pytest.mark.parametrize("project", ["parts", "whole"], indirect=True)
all_three = pytest.mark.parametrize("project", [*SHAPES], indirect=True)
# Short and long names, which change the length of code lines.
every_kind = pytest.mark.parametrize(
    "answers",
    [{**answers, **shape} for answers in KINDS.values() for shape in SHAPES.values()],
    ids=[f"{kind}-{shape}" for kind in KINDS for shape in SHAPES],
)


class Project(NamedTuple):
    """A project made from the template, built and installed in `site`."""

    parts: bool
    http: bool
    path: Path
    site: Path


def generate(path: Path, **answers: Any) -> Path:
    """Accept all defaults, as a new user would; nothing that copier calls unsafe is allowed."""
    copier.run_copy(str(TEMPLATE), path, data=answers, defaults=True, quiet=True, unsafe=False)
    return path


def python(*arguments: str | Path, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run this Python with core, its test tools and, of the project, only the contents of `site`."""
    ours = ("JOBS_BACKUP_", "PYTEST", "PYTHON", "MYPY")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other authors lack our pytest plugins
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    directory = tmp_path_factory.mktemp(request.param)
    path = generate(directory / "project", name="ACME", **SHAPES[request.param])
    pip = ("pip", "--quiet", "--disable-pip-version-check")
    for arguments in (
        (*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, path),
        (*pip, "install", "--no-deps", "--no-index", "--find-links", directory, "--target", directory / "site", "jobs-backup-acme"),
    ):
        done = python(*arguments, cwd=directory)
        assert done.returncode == 0, done.stderr
    return Project(request.param == "parts", request.param != "file", path, directory / "site")


@pytest.fixture
def toy(project: Project) -> Iterator[Any]:
    """The project's toy store, running."""
    spec = importlib.util.spec_from_file_location("toy_store_of_the_project", project.path / "tests/toy_store.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.ToyStore() as store:
        yield store
    del sys.modules[spec.name]


def outcomes(project: Project, site: Path, *arguments: str) -> dict[str, dict[str, str]]:
    """Run the project's tests with the packages in `site`: outcome -> test -> its message."""
    report = site / "report.xml"
    done = python("pytest", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments, cwd=project.path, site=site)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, dict[str, str]] = {"passed": {}, "failed": {}, "skipped": {}}
    for case in ET.parse(report).iter("testcase"):
        (outcome_of,) = [*case, None] if len(case) == 0 else [case[0]]
        outcome = "passed" if outcome_of is None else {"skipped": "skipped"}.get(outcome_of.tag, "failed")
        found[outcome][case.attrib["name"]] = "" if outcome_of is None else outcome_of.attrib.get("message", "")
    return found


# The questions


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        *[("name", answer) for answer in ("acme", "1ACME", "_ACME", "AC ME", "ACMÉ", "ACME\n", "", "A" * 25, "JOBS_BACKUP")],
        *[("name", name) for name in sorted({*KIND.distributions, *KIND.names()})],
        *[("distribution", answer) for answer in ("Acme-Backup", "acme", "acme_backup", "acme--backup", "-acme", "1-acme", "")],
        *[("distribution", answer) for answer in ("jobs-backup", "toy-store", "a-" + "b" * 40)],
        *[("store", answer) for answer in ('The "Store"', "back\\slash", "two\nlines", " Acme", "", "A" * 41)],
        *[("author", answer) for answer in ('J. "Joe" Doe', "J\\D", "J\nD", "", "A" * 61)],
    ],
)
def test_a_bad_answer_is_refused(question: str, answer: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"question '{question}'"):
        generate(tmp_path / "project", **{"name": "ACME", question: answer})
    assert not (tmp_path / "project").exists()


def test_without_the_providers_name_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='"name" is required'):
        generate(tmp_path / "project")
    assert not (tmp_path / "project").exists()


def test_few_questions_are_asked_and_nothing_is_run() -> None:
    template = yaml.safe_load((TEMPLATE / "copier.yml").read_text())
    questions = {name: one for name, one in template.items() if not name.startswith("_")}
    assert [name for name, one in questions.items() if one.get("when", True)] == [
        "name", "distribution", "store", "author", "http", "multipart",
    ]  # fmt: skip
    assert template.keys() & {"_tasks", "_migrations", "_jinja_extensions"} == set()


def test_the_range_of_core_stands_in_one_place_and_is_that_of_the_plugins() -> None:
    core = yaml.safe_load((TEMPLATE / "copier.yml").read_text())["core"]["default"]
    for plugin in ROOT.glob("plugins/*/pyproject.toml"):
        assert core in tomllib.loads(plugin.read_text())["project"]["dependencies"]
    lowest, beyond, version = (tuple(map(int, text.split("."))) for text in (*re.findall(r"[\d.]+", core), jobs_backup.__version__))
    assert lowest <= version < beyond
    files = [path for path in (TEMPLATE / "template").rglob("*") if path.is_file()]
    assert [path.name for path in files if re.search(r"jobs-backup(\[\w+\])?[<>=]", path.read_text())] == []


# The generated project


@every_kind
def test_every_file_is_whole(answers: dict[str, Any], tmp_path: Path) -> None:
    path = generate(tmp_path / "project", **answers)
    files = {str(one.relative_to(path)): one.read_text() for one in path.rglob("*") if one.is_file()}
    assert [name for name, text in files.items() if re.search(r"\{%|%\}|(?<!\$)\{\{", text) or "{{" in name] == []
    assert [name for name, text in files.items() if text and (text[-1] != "\n" or text.endswith("\n\n"))] == []
    assert [name for name, text in files.items() if not answers.get("multipart") and "UploadGone" in text] == []
    assert [
        name for name, text in files.items() if not answers.get("http", True) and re.search(r"urllib3|toy_store|_URL", text)
    ] == []
    table = tomllib.loads(files["pyproject.toml"])
    assert list(table["project"]["entry-points"]["jobs_backup.providers"]) == [answers["name"]]
    (job,) = yaml.safe_load(files[".github/workflows/ci.yml"])["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert "${{ matrix.python }}" in [step.get("with", {}).get("python-version") for step in job["steps"]]
    assert {"ruff check .", "ruff format --check .", "mypy", "pytest"} <= {step.get("run") for step in job["steps"]}
    recorded = yaml.safe_load(files[".copier-answers.yml"])
    assert recorded["name"] == answers["name"]
    assert recorded.items() >= answers.items()
    assert files["LICENSE"] == (ROOT / "LICENSE").read_text()


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is of the dependency group dev")
@every_kind
def test_its_style_is_clean(answers: dict[str, Any], tmp_path: Path) -> None:
    path = generate(tmp_path / "project", **answers)
    for arguments in (("check", "."), ("format", "--check", ".")):
        done = python("ruff", *arguments, cwd=path)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is of the dependency group dev")
@all_three
def test_its_types_are_strict(project: Project) -> None:
    assert tomllib.loads((project.path / "pyproject.toml").read_text())["tool"]["mypy"]["strict"]
    done = python("mypy", cwd=project.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project.site / "jobs_backup_acme/py.typed").exists()


@pytest.mark.slow
@all_three
def test_its_own_tests_pass_and_nothing_is_skipped_that_could_run(project: Project) -> None:
    found = outcomes(project, project.site)
    print(f"{'in parts' if project.parts else 'whole'}: " + ", ".join(f"{len(one)} {what}" for what, one in found.items()))
    assert found["failed"] == {}
    suite = {name for name in dir(ProviderConformance) if name.startswith("test_")}
    without = {"test_abort_without_multipart": "the provider has parts"}
    if not project.parts:
        of_parts = {name for name in dir(MultipartConformance) if name.startswith("test_")} - without.keys()
        without = dict.fromkeys(of_parts, "ACME has no hooks for uploads in parts")
        without["test_write_of_the_largest"] = "the provider states no max_write_size"
    if not project.http:
        of_http = {name for name in dir(StrangerConformance) if name.startswith("test_")}
        of_http |= {name for name, one in vars(RefusalConformance).items() if name.startswith("test_") and _needs_http(one)}
        without |= dict.fromkeys(of_http, "no store at another URL was provided (fixture environment_at)")
        without["test_without_rights"] = "no credentials without permissions were provided (fixture environment_without_rights)"
    assert {name.partition("[")[0]: outcome_of for name, outcome_of in found["skipped"].items()} == without
    passed = Counter(name.partition("[")[0] for name in found["passed"])
    assert suite - without.keys() <= passed.keys()
    assert passed.keys() - suite, "those of its own"


def _needs_http(test: Any) -> bool:
    return not {"environment_at", "scripted"}.isdisjoint(inspect.signature(test).parameters)


@pytest.mark.slow
@pytest.mark.parametrize("project", ["file"], indirect=True)
def test_without_http_the_command_backs_up_and_reads_back(project: Project, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket.db"
    with closing(sqlite3.connect(bucket)) as db:
        db.execute("CREATE TABLE objects (key TEXT PRIMARY KEY, data BLOB NOT NULL)")
    environment = {
        "JOBS_BACKUP_BUCKET": str(bucket),
        "JOBS_BACKUP_STORAGE_PROVIDER": "ACME",
        "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        "PYTHONPATH": str(project.site),
    }
    for command in (["providers", "ACME", "--check"], ["check"]):
        code, shown, stderr = jobs_backup_command(*command, env=environment)
        assert (code, "NO " in shown) == (0, False), shown + stderr
    file = ndjson(tmp_path / "events.ndjson", 500)
    code, _, stderr = jobs_backup_command("run", str(file), "--source-id", "web", env=environment)
    assert code == 0, stderr
    for arguments in (["--payload-only"], ["--payload-only", "--list"]):
        code, back, stderr = jobs_backup_command("replay", *arguments, env=environment)
        assert (code, back) == (0, file.read_text()), stderr


@pytest.mark.slow
@both
def test_the_command_finds_it_and_backs_up_and_reads_back(project: Project, toy: Any, tmp_path: Path) -> None:
    bucket = toy.bucket()
    port = int(toy.url.rpartition(":")[2])
    with FaultProxy("127.0.0.1", port) as proxy:
        environment = {
            **toy.variables(bucket, {"objects.write", "objects.read", "objects.list"}),
            "ACME_URL": proxy.url,
            "JOBS_BACKUP_STORAGE_PROVIDER": "ACME",
            "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
            "JOBS_BACKUP_MULTIPART_THRESHOLD": "1",
            "PYTHONPATH": str(project.site),
        }
        code, shown, stderr = jobs_backup_command("providers", "ACME", env=environment)
        assert (code, stderr) == (0, "")
        assert "jobs-backup-acme 0.1.0" in shown
        code, shown, stderr = jobs_backup_command("providers", "ACME", "--check", env=environment)
        assert (code, "NO " in shown) == (0, False), shown + stderr
        assert proxy.requests == [], "up to here nothing is asked of the store"
        code, shown, stderr = jobs_backup_command("check", env=environment)
        assert code == 0, shown + stderr
        file = ndjson(tmp_path / "events.ndjson", 500)
        code, _, stderr = jobs_backup_command("run", str(file), "--source-id", "web", env=environment)
        assert code == 0, stderr
        assert [key for key in toy.buckets[bucket] if key.endswith(".json.gz")]
        assert ("POST" in {request.method for request in proxy.requests}) == project.parts, "an upload in parts"
        for arguments in (["--payload-only"], ["--payload-only", "--list"]):
            code, back, stderr = jobs_backup_command("replay", *arguments, env=environment)
            assert code == 0, stderr
            assert back == file.read_text()


@pytest.mark.slow
@both
def test_its_readme_names_every_variable_and_every_permission(project: Project) -> None:
    code, shown, stderr = jobs_backup_command("providers", "ACME", "--json", env={"PYTHONPATH": str(project.site)})
    assert code == 0, stderr
    (one,) = json.loads(shown)
    readme = (project.path / "README.md").read_text()
    variables = {setting["variable"] for setting in one["settings"]}
    assert variables == {"JOBS_BACKUP_BUCKET", "ACME_URL", "ACME_TOKEN"}
    assert [setting["variable"] for setting in one["settings"] if setting["secret"]] == ["ACME_TOKEN"]
    assert [name for name in variables if f"`{name}`" not in readme] == []
    permissions = set(re.findall(r'"(objects\.\w+)"', (project.path / "src/jobs_backup_acme/errors.py").read_text()))
    assert len(permissions) == 4
    assert [name for name in permissions if f"`{name}`" not in readme] == []


# Deliberate faults: file, original text, replacement

IGNORES_IF_ABSENT = [("provider.py", 'return {"If-None-Match": "*"} if if_absent else {}', "return {}")]
PUBLISHES_WHAT_IT_GETS = [
    ("provider.py", "with Source(body, size) as source:", "with body.open() as reader:"),
    ("provider.py", 'sized = {**headers, "Content-Length": str(size)}', "source = reader.read(); sized = {**headers}"),
    ("provider.py", 'return {_CHECKSUM: f"{value:08x}"}', "return {}"),
]
TRIES_AGAIN = [
    ("client.py", "retries=False)", "retries=urllib3.Retry(2, status_forcelist=[503], respect_retry_after_header=False))"),
]
IMPORTS_THE_SDK = [("client.py", "if TYPE_CHECKING:\n    from", "if True:\n    from")]

WAITS_FOR_EVER = [("provider.py", "timeout=timeout,\n                redirect", "timeout=None,\n                redirect")]
REPEATS_SECRETS = [("errors.py", "cleaned(text, secrets)", "text[:300]")]
USES_OTHER_WORDS = [("errors.py", "action=PERMISSIONS[call.hook]", 'action="write access"')]
SAYS_DELETED = [
    (
        "provider.py",
        "return delete_each(keys, delete)",
        "delete_each(keys, delete)\n        return DeleteReceipt(deleted=frozenset(keys))",
    )
]
IS_ONE_FOR_ALL = [("provider.py", "return self._settings.location", 'return "acme://store"')]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "caught"),
    [
        (IGNORES_IF_ABSENT, "test_write_to_an_existing_key"),
        (PUBLISHES_WHAT_IT_GETS, "test_short_body_publishes_nothing"),
        (PUBLISHES_WHAT_IT_GETS, "test_wrong_checksum_publishes_nothing"),
        (TRIES_AGAIN, "test_fault_of_the_store_is_one_request[503]"),
        (IMPORTS_THE_SDK, "test_configuring_imports_no_sdk"),
        (WAITS_FOR_EVER, "test_store_that_says_nothing"),
        (REPEATS_SECRETS, "test_secrets_that_the_store_repeats"),
        (USES_OTHER_WORDS, "test_without_rights"),
        (SAYS_DELETED, "test_without_rights"),
        (IS_ONE_FOR_ALL, "test_bucket_that_does_not_exist"),
    ],
    ids=[
        "ignores if_absent",
        "publishes short bodies",
        "sends no checksum",
        "tries again",
        "imports the SDK",
        "waits for ever",
        "repeats secrets",
        "uses other words",
        "says deleted",
        "is one for all",
    ],
)
@pytest.mark.parametrize("project", ["parts"], indirect=True)
def test_its_tests_find_what_is_wrong(project: Project, changes: list[tuple[str, str, str]], caught: str, tmp_path: Path) -> None:
    site = Path(shutil.copytree(project.site, tmp_path / "site"))
    for name, old, new in changes:
        file = site / "jobs_backup_acme" / name
        assert file.read_text().count(old) == 1, f"{old} is not in {name} any more"
        file.write_text(file.read_text().replace(old, new))
    assert caught in outcomes(project, site, "tests/test_conformance.py", "-k", caught.partition("[")[0])["failed"]
