"""The documents: their examples run, their tables match the code, and their links work."""

from __future__ import annotations

import ast
import contextlib
import gzip
import inspect
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from documents import blocks
from generated import FILES
from places import ROOT

from jobs_backup import errors
from jobs_backup.errors import JobsBackupError

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])


# The guide's commands make and install a distribution, so it has its own environment: see test_guide.py.
WITH_EXAMPLES = [path for path in DOCUMENTS if blocks(path, "shell", "python") and path.name != "provider-guide.md"]


def run(text: str, language: str, directory: Path) -> str:
    """Run an example in the directory, as a user would: without our variables, with this environment's commands."""
    command = ["bash", "-euc", text] if language == "shell" else [sys.executable, "-c", text]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JOBS_BACKUP_", "AWS_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, f"{text}\n{result.stdout}{result.stderr}"
    return result.stdout


def follow(document: Path, directory: Path) -> None:
    """Follow the document in this directory. A program that begins with its file's name is saved and run later."""
    for language, text in blocks(document, "shell", "python"):
        if name := re.match(r"# (\w+\.py)\n", text):
            (directory / name[1]).write_text(text)
        else:
            run(text, language, directory)


@pytest.mark.parametrize("document", WITH_EXAMPLES, ids=[path.name for path in WITH_EXAMPLES])
def test_examples_run_one_after_another_in_one_directory(document: Path, tmp_path: Path) -> None:
    follow(document, tmp_path)


WAITING = re.compile(r"^ *(?:until|while) ", re.MULTILINE)


@pytest.mark.parametrize(
    "document", [path for path in WITH_EXAMPLES if WAITING.search(path.read_text())], ids=lambda path: path.name
)
def test_an_example_that_waits_ends_when_its_process_cannot_start(document: Path, tmp_path: Path) -> None:
    """Without the files of the blocks before it, as in an environment that lacks an extra. It may fail, but must not hang."""
    made = re.compile(r"^cat > docker\.env.*?^END$|^export .*?$", re.MULTILINE | re.DOTALL)
    for _, text in blocks(document, "shell"):
        if WAITING.search(text):
            with contextlib.suppress(AssertionError):
                run(made.sub("", text), "shell", tmp_path)


def test_there_are_examples_in_what_people_read_first() -> None:
    assert {path.name for path in WITH_EXAMPLES} >= {"README.md", "operating.md", "deliveries.md"}


def test_the_readmes_commands_give_the_events_back(tmp_path: Path) -> None:
    for language, text in blocks(ROOT / "README.md", "shell"):
        run(text, language, tmp_path)
    assert (tmp_path / "back.ndjson").read_bytes().count(b"\n") == 1000


def test_the_readmes_python_example_leaves_every_event_in_the_bucket(tmp_path: Path) -> None:
    for language, text in blocks(ROOT / "README.md", "shell", "python"):
        run(text, language, tmp_path)
    stored = run("find bucket -name '*.json.gz' -exec gzip -dc {} +", "shell", tmp_path).removesuffix("\n").split("\n")
    assert len(stored) == 2002
    assert sum('"failedAt"' in line for line in stored) == 1
    assert sum('"price": 1.10' in line for line in stored) == 1


def stored_in(directory: Path) -> list[dict[str, Any]]:
    """Every line in the objects of a directory bucket."""
    return [json.loads(line) for path in directory.rglob("*.json.gz") for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_the_deliveries_examples_leave_what_failed(tmp_path: Path) -> None:
    follow(ROOT / "docs/deliveries.md", tmp_path)
    left = stored_in(tmp_path / "bucket")
    assert sorted(event["destinationId"] for event in left if "failedAt" in event) == ["crm", "crm"]
    assert len([event for event in left if "failedAt" not in event]) == 1000, "one of them was not delivered"
    failures = stored_in(tmp_path / "kept")
    assert sorted((event["payload"]["n"], event["error"]["code"], event["attempts"]) for event in failures) == [
        (1, "422", 1),
        (3, "422", 1),
        (5, "422", 1),
    ]
    assert all(event["error"]["stage"] == "deliver" and event["jobId"] for event in failures)


def test_the_consumer_tries_again_and_reports_what_came_of_it(tmp_path: Path) -> None:
    """A store that fails once for some events, always for others, and closes the connection for one."""
    seen: Counter[str] = Counter()

    class ObjectStore(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            id_ = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messageId"]
            seen[id_] += 1
            if id_ == "closed":
                self.close_connection = True
                return
            self.send_response({"good": 200, "later": 503 if seen[id_] == 1 else 200, "never": 503, "wrong": 400}[id_])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Suppress logging to the terminal."""

    for _, text in blocks(ROOT / "docs/deliveries.md", "python"):
        if text.startswith("# consumer.py\n"):
            (tmp_path / "consumer.py").write_text(text)
    (tmp_path / "bucket").mkdir()
    ids = ("good", "later", "never", "wrong", "closed")
    with ThreadingHTTPServer(("127.0.0.1", 0), ObjectStore) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = (
            f"export DESTINATION_URL=http://127.0.0.1:{server.server_port} JOBS_BACKUP_STORAGE_PROVIDER=FILE"
            " JOBS_BACKUP_BUCKET=bucket JOBS_BACKUP_SPOOL_DIR=spool JOBS_BACKUP_BATCH_EVENTS=1"
        )
        lines = "".join(f'{{"messageId": "{id_}"}}\n' for id_ in ids)
        run(f"{environment}\npython consumer.py <<'END'\n{lines}END\n", "shell", tmp_path)
        server.shutdown()
    assert seen == {"good": 1, "later": 2, "never": 3, "wrong": 1, "closed": 3}
    left = stored_in(tmp_path / "bucket")
    assert sorted(event["messageId"] for event in left if "failedAt" not in event) == ["closed", "never", "wrong"]
    failures = {event["messageId"]: event for event in left if "failedAt" in event}
    assert {id_: (event["attempts"], event["error"]["code"]) for id_, event in failures.items()} == {
        "never": (3, "503"),
        "wrong": (1, "400"),
        "closed": (3, "RemoteDisconnected"),
    }


@pytest.mark.parametrize("path", FILES)
def test_what_is_made_of_the_code_is_what_the_code_says(path: str) -> None:
    assert (ROOT / path).read_text() == FILES[path](), "run: make reference"


def test_every_error_is_in_the_operators_page() -> None:
    page = (ROOT / "docs/operating.md").read_text()
    classes = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, JobsBackupError)]
    assert [one.__name__ for one in classes if one is not JobsBackupError and f"`{one.__name__}`" not in page] == []


def test_every_message_leads_to_its_section() -> None:
    """The codes in brackets that end the command's messages: errors and others."""
    said = {"Usage"}
    for path in (ROOT / "core/src/jobs_backup/cli").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Name)
                and call.func.id == "echo_message"
                and len(call.args) > 1
            ):
                said |= {str(call.args[1].value)} if isinstance(call.args[1], ast.Constant) else set()
    for path in (ROOT / "core/src/jobs_backup/inputs/http").glob("*.py"):
        said |= set(re.findall(r'HttpError\([^"]*?"(\w+)"', path.read_text()))  # the codes of `serve`'s refusals
    said |= {one.__name__ for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, JobsBackupError)}
    sections = set(re.findall(r"^## (\w+)$", (ROOT / "docs/messages.md").read_text(), re.MULTILINE))
    assert {"Waiting", "Rejected", "Interrupted", "PermissionDenied", "Unauthorized", "TooLarge"} <= said
    assert sorted(said - sections - {"JobsBackupError"}) == []


def test_the_architecture_names_every_module_and_none_that_is_not_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    page = page[page.index("## Code layout") : page.index("## Dependencies")]
    package = ROOT / "core/src/jobs_backup"
    there = {
        path.name
        for path in package.rglob("*.py")
        if not {"commands", "testing", "cli"} & {*path.parent.relative_to(package).parts}
    }
    listed = set(re.findall(r"`(\w+\.py)`", page))
    assert sorted(there - listed - {"__init__.py", "_version.py"}) == []
    assert sorted(listed - there) == []
    folders = {f"{path.parent.relative_to(package)}/" for path in package.rglob("__init__.py")} - {"./"}
    assert [folder for folder in sorted(folders) if f"{Path(folder).name}/" not in page] == []


def test_the_promises_name_tests_that_exist() -> None:
    page = (ROOT / "docs/promises.md").read_text()
    files, functions = set(re.findall(r"tests/\w+/test_\w+\.py", page)), set(re.findall(r"`(test_\w+)`", page))
    assert files
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
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
