"""The documents: their examples run, their tables are what the code says, their links lead somewhere."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from settings_reference import ROOT, render

from jobs_backup import errors
from jobs_backup.errors import JobsBackupError
from jobs_backup.hookspecs import MANDATORY, MULTIPART, OPTIONAL

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])


def blocks(document: Path, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of the document's examples."""
    return [(language, text) for language, text in BLOCK.findall(document.read_text()) if language in languages]


WITH_EXAMPLES = [path for path in DOCUMENTS if blocks(path, "shell", "python")]


def run(text: str, language: str, directory: Path) -> str:
    """Runs an example in the directory, as a user would: no variables of ours, the commands of this environment."""
    command = ["bash", "-euc", text] if language == "shell" else [sys.executable, "-c", text]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JOBS_BACKUP_", "AWS_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, f"{text}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.mark.parametrize("document", WITH_EXAMPLES, ids=[path.name for path in WITH_EXAMPLES])
def test_examples_run_one_after_another_in_one_directory(document: Path, tmp_path: Path) -> None:
    for language, text in blocks(document, "shell", "python"):
        run(text, language, tmp_path)


def test_there_are_examples_in_what_people_read_first() -> None:
    assert {path.name for path in WITH_EXAMPLES} >= {"README.md", "operating.md", "provider-guide.md"}


def test_the_readmes_shell_example_shows_its_events(tmp_path: Path) -> None:
    ((language, text),) = blocks(ROOT / "README.md", "shell")
    assert run(text, language, tmp_path).split() == ["1000"]


def test_the_readmes_python_example_leaves_every_event_in_the_bucket(tmp_path: Path) -> None:
    for language, text in blocks(ROOT / "README.md", "shell", "python"):
        run(text, language, tmp_path)
    stored = run("find bucket -name '*.json.gz' -exec zcat {} +", "shell", tmp_path).removesuffix("\n").split("\n")
    assert len(stored) == 2001
    assert sum('"price": 1.10' in line for line in stored) == 1


def test_the_guides_provider_stores_and_is_found(tmp_path: Path) -> None:
    """What the guide tells to write, installed as a distribution, backs up."""
    ((_, module),) = blocks(ROOT / "docs/provider-guide.md", "python")
    ((_, project),) = blocks(ROOT / "docs/provider-guide.md", "toml")
    points = tomllib.loads(project)["project"]["entry-points"]["jobs_backup.providers"]
    (tmp_path / "acme_backup.py").write_text(module)
    info = tmp_path / "acme_backup-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-backup\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jobs_backup.providers]\n" + "".join(f"{one} = {to}\n" for one, to in points.items()))
    program = """
import acme_backup, gzip
from jobs_backup import Backup
environment = {"JOBS_BACKUP_STORAGE_PROVIDER": "acme", "JOBS_BACKUP_BUCKET": "b", "JOBS_BACKUP_SPOOL_DIR": "spool"}
with Backup.from_env(environment) as backup:
    backup.record({"messageId": "m1"}, source_id="web")
    backup.flush(timeout=30)
((key, data),) = acme_backup.AcmeProvider.store.items()
assert key.startswith("web/gw/"), key
assert b'"messageId":"m1"' in gzip.decompress(data), data
"""
    run(f"import sys; sys.path.insert(0, '.')\n{program}", "python", tmp_path)
    shown = run("PYTHONPATH=. jobs-backup providers ACME", "shell", tmp_path)
    assert "acme-backup 1.0" in shown
    assert "ACME_TOKEN" in shown


def test_the_settings_page_is_what_the_settings_say() -> None:
    assert (ROOT / "docs/settings.md").read_text() == render(), "run: python tests/settings_reference.py > docs/settings.md"


def test_every_error_is_in_the_operators_page() -> None:
    page = (ROOT / "docs/operating.md").read_text()
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, JobsBackupError)]
    assert [one.__name__ for one in classes if one is not JobsBackupError and f"`{one.__name__}`" not in page] == []


def test_every_hook_is_in_the_guide() -> None:
    page = (ROOT / "docs/provider-guide.md").read_text()
    assert [hook for hook in (*MANDATORY, *MULTIPART, *OPTIONAL) if f"`{hook}`" not in page] == []


def test_every_module_is_in_the_architecture() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    package = ROOT / "core/src/jobs_backup"
    names = [
        path.name + "/" * path.is_dir() for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    assert [name for name in names if name != "__init__.py" and f"`{name}`" not in page] == []


def test_the_promises_name_tests_that_exist() -> None:
    page = (ROOT / "docs/promises.md").read_text()
    files, functions = set(re.findall(r"tests/test_\w+\.py", page)), set(re.findall(r"`(test_\w+)`", page))
    assert files
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
    written = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert [name for name in sorted(functions) if f"def {name}(" not in written] == []


@every_document
def test_examples_of_data_are_well_formed(document: Path) -> None:
    for language, text in blocks(document, "json", "toml"):
        assert json.loads(text) if language == "json" else tomllib.loads(text)


@every_document
def test_links_lead_to_files_that_exist(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    broken = [target for target in targets if "://" not in target and not (document.parent / target).exists()]
    assert broken == []
