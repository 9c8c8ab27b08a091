"""Servers that the tests share. Each starts once, when the first test needs it."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "support"))  # for `servers`: pytest does not do this in importlib mode

import proxies  # noqa: F401 - first: it removes them
from azurite import BINARY, Azurite, azurite
from distributions import install
from gcs import Emulator, GcsServer, scripted_gcs
from profiles import ALL
from reaper import watch
from servers import Moto, Store, fake_gcs, moto, weed

from jobs_backup.testing.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from engines import Engine  # not there when a part of the tests runs without psycopg: see .ci/versions
    from postgres import Postgres

watch()

settings.register_profile("usual", deadline=None)  # a busy machine must not fail a test
settings.register_profile("campaign", max_examples=1500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))  # `campaign`: for hours instead of seconds


__all__ = ["install"]  # re-export a fixture

_FIRST = ("test_wheels", "test_memory", "test_end_to_end")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no worker ends up alone with one. `make test` takes samples of the largest."""
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if not ALL:
        _take_samples(items)


def _take_samples(items: list[pytest.Item]) -> None:
    """Keep only `count` cases of each test marked `sample(count)`, always the same ones."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample") is not None:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left: set[pytest.Item] = set()
    for some in cases.values():
        marker = some[0].get_closest_marker("sample")
        assert marker is not None
        some.sort(key=lambda item: zlib.crc32(item.name.encode("utf-8", "surrogateescape")))
        left.update(some[marker.args[0] :])
    if left:
        some[0].config.hook.pytest_deselected(items=[*left])
        items[:] = [item for item in items if item not in left]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `make conformance`."""
    parser.addoption("--conformance-table", action="store_true", help="show which provider has passed which test")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report which provider passed which tests of the conformance suite: counts, or the whole table."""
    found: dict[str, dict[str, list[str]]] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.getreports(outcome):
            path, *names = report.nodeid.split("::")
            if path.endswith("test_conformance.py") and len(names) == 2 and (report.when == "call" or outcome != "passed"):
                found.setdefault(names[1].partition("[")[0], {}).setdefault(names[0], []).append(outcome)
    providers = sorted({class_ for row in found.values() for class_ in row})
    if not providers:
        return
    terminalreporter.section("conformance")
    if terminalreporter.config.getoption("--conformance-table"):
        terminalreporter.write_line(f"{'':<54}" + "".join(f"{class_.removeprefix('Test'):>13}" for class_ in providers))
        for test, row in sorted(found.items()):
            cells = ("+".join(sorted(set(row.get(class_, ["-"])))) for class_ in providers)
            terminalreporter.write_line(f"{test:<54}" + "".join(f"{cell:>13}" for cell in cells))
    for class_ in providers:
        outcomes = [outcome for row in found.values() for outcome in row.get(class_, [])]
        counts = ", ".join(f"{outcomes.count(one)} {one}" for one in ("passed", "failed", "skipped"))
        terminalreporter.write_line(f"{class_.removeprefix('Test')}: {counts}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in a test's output: workers send it to the main process as UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Reset the levels of our loggers, which the command sets in this process."""
    yield
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("jobs_backup"):
            logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """SeaweedFS, which enforces policies, conditional writes and checksums."""
    with weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """moto, for what SeaweedFS lacks: a missing abort permission, roles."""
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """fake-gcs-server."""
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azurite."""
    if not BINARY.exists() or shutil.which("node") is None:
        pytest.skip("Azurite is not here: `make azurite` brings it, with Node.js")
    with azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def database_server() -> Iterator[Postgres]:
    """PostgreSQL."""
    from postgres import postgres

    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Each engine of the spool."""
    from engines import PostgresqlEngine, SqliteEngine

    if request.param == "sqlite":
        yield SqliteEngine(tmp_path / "spool")
        return
    server: Postgres = request.getfixturevalue("database_server")
    with server.database() as database:
        yield PostgresqlEngine(server, database)


@pytest.fixture
def gcs() -> Iterator[GcsServer]:
    """Google Cloud Storage as documented, for what the emulator lacks."""
    with scripted_gcs() as server:
        yield server


@pytest.fixture
def server() -> Iterator[FaultProxy]:
    """A store with scripted answers; every unscripted request gets a 404."""
    with FaultProxy() as server:
        yield server


@pytest.fixture
def bucket(store: Store) -> str:
    """A new bucket on `store`."""
    return store.bucket()


@pytest.fixture(autouse=True)
def _no_credentials_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the credentials of the developer and of the instance from tests.

    A test's own `monkeypatch` is not used: it would outlive `tmp_path`, whose files are then removed with what the test replaced.
    """
    nowhere = str(tmp_path_factory.getbasetemp() / "no-such-file")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR")):
                patch.delenv(name)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", nowhere)
        patch.setenv("AWS_CONFIG_FILE", nowhere)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield
