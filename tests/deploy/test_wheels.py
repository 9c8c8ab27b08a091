"""The wheels: their contents, that each installs alone, and that core stays light."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from gcs import GcsServer
from places import ROOT
from projects import CORE, GCS, NAMES, PROJECTS, S3, Environment, build, clean_environment, project, run


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    directory = tmp_path_factory.mktemp("wheels")
    return {path: build(path, directory) for path in PROJECTS}


@pytest.fixture(scope="module")
def core_alone(wheels: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("core") / "venv")
    environment.install(wheels[CORE])
    return environment


@pytest.fixture(scope="module")
def core_and_s3(wheels: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("both") / "venv")
    environment.install(wheels[CORE], wheels[S3])
    return environment


@pytest.fixture(scope="module")
def core_and_gcs(wheels: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("gcs") / "venv")
    environment.install(wheels[CORE], wheels[GCS])
    return environment


# Metadata of the projects


def test_all_distributions_have_one_version() -> None:
    assert len({project(path)["version"] for path in PROJECTS}) == 1


@pytest.mark.parametrize("path", [path for path in PROJECTS if path != CORE], ids=lambda path: str(path.name))
def test_a_plugin_asks_for_a_range_of_core_that_holds_this_one(path: Path) -> None:
    (requirement,) = (one for one in project(path)["dependencies"] if re.match(r"jobs-backup\b(?!-)", one))
    match = re.fullmatch(r"jobs-backup>=([\d.]+),<([\d.]+)", requirement)
    assert match, requirement
    lowest, beyond, version = (tuple(map(int, text.split("."))) for text in (*match.groups(), project(CORE)["version"]))
    assert lowest <= version < beyond


@pytest.mark.parametrize("path", PROJECTS, ids=NAMES)
def test_every_dependency_is_pinned_in_the_constraints(path: Path) -> None:
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    own = {project(one)["name"] for one in PROJECTS}
    names = {re.split(r"[^\w.-]", one)[0].lower() for one in project(path)["dependencies"]}
    assert names <= pinned | own


def test_constraints_are_names_and_versions_alone() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert lines == sorted(lines, key=str.lower)


# Contents of the wheels


@pytest.mark.parametrize("path", PROJECTS, ids=NAMES)
def test_a_wheel_has_its_package_the_marker_for_types_and_the_license(path: Path, wheels: dict[Path, Path]) -> None:
    names = zipfile.ZipFile(wheels[path]).namelist()
    (package,) = (one.name for one in (path / "src").iterdir() if one.is_dir())
    info = f"{package}-{project(path)['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {package, info}
    assert f"{package}/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names
    sources = {str(file.relative_to(path / "src")) for file in (path / "src").rglob("*.py")}
    assert sources <= set(names)


@pytest.mark.parametrize("path", PROJECTS, ids=NAMES)
def test_a_wheels_page_on_the_registry_says_how_to_install_it(path: Path, wheels: dict[Path, Path]) -> None:
    with zipfile.ZipFile(wheels[path]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        text = wheel.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert "pip install" in text.partition("\n\n")[2]


# Core alone


@pytest.mark.slow
def test_core_installs_alone_and_backs_up_into_a_directory(core_alone: Environment, tmp_path: Path) -> None:
    assert not {name for name in core_alone.packages() if name.startswith(("boto", "google", "jobs-backup-", "pytest"))}
    (tmp_path / "bucket").mkdir()
    variables = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
        "JOBS_BACKUP_BUCKET": str(tmp_path / "bucket"),
        "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
    }
    payloads = [f'{{"messageId": "m{number}", "price": 1.10}}' for number in range(50)]
    run(
        core_alone.bin / "jobs-backup", "run", "--source-id", "web",
        env=clean_environment(**variables), input="\n".join(payloads), cwd=tmp_path,
    )  # fmt: skip
    (stored,) = (tmp_path / "bucket").rglob("*.json.gz")
    lines = gzip.decompress(stored.read_bytes()).decode().splitlines()
    assert len(lines) == 50
    assert all(payload in line for payload, line in zip(payloads, lines, strict=True))


@pytest.mark.slow
def test_the_command_reports_its_version(core_alone: Environment) -> None:
    assert run(core_alone.bin / "jobs-backup", "--version") == f"jobs-backup {project(CORE)['version']}\n"


@pytest.mark.slow
def test_help_explains_a_code_where_there_is_no_clone(core_alone: Environment, tmp_path: Path) -> None:
    output = run(core_alone.bin / "jobs-backup", "help", "Waiting", cwd=tmp_path)
    assert output.startswith("Waiting\n\n")
    assert "jobs-backup archive --once" in output


@pytest.mark.slow
def test_the_chosen_provider_that_is_not_installed_is_asked_for(core_alone: Environment) -> None:
    command = [str(core_alone.bin / "jobs-backup"), "run", "--source-id", "web"]
    variables = clean_environment(JOBS_BACKUP_STORAGE_PROVIDER="S3", JOBS_BACKUP_BUCKET="b")
    result = subprocess.run(command, env=variables, input="", capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pip install ./plugins/s3, in a clone" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_examples_generator_needs_nothing_else(core_alone: Environment) -> None:
    assert core_alone.python("from jobs_backup.testing.events import events; print(len(list(events(5))))") == "5\n"


# Core and S3


@pytest.mark.slow
def test_with_s3_there_is_no_package_of_another_cloud(core_and_s3: Environment) -> None:
    packages = core_and_s3.packages()
    assert packages >= {"jobs-backup", "jobs-backup-s3", "boto3"}
    assert not {name for name in packages if name.startswith(("google", "azure"))}


@pytest.mark.slow
def test_with_gcs_there_is_no_package_of_another_cloud(core_and_gcs: Environment, gcs: GcsServer, tmp_path: Path) -> None:
    packages = core_and_gcs.packages()
    assert packages >= {"jobs-backup", "jobs-backup-gcs", "google-cloud-storage"}
    assert not {name for name in packages if name.startswith(("boto", "azure"))}
    code = "import sys\nfrom jobs_backup.store import providers\nproviders.load('GCS', {'JOBS_BACKUP_BUCKET': 'events'})\n"
    assert core_and_gcs.python(code + "print({'google.auth', 'google.cloud', 'requests'} & sys.modules.keys())") == "set()\n"
    bucket = gcs.bucket()
    variables = {**gcs.environment(bucket), "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool")}
    command = core_and_gcs.bin / "jobs-backup"
    run(command, "run", "--source-id", "web", env=clean_environment(**variables), input='{"a":1}\n')
    (stored,) = gcs.buckets[bucket].values()
    assert b'"payload":{"a":1}' in gzip.decompress(stored.data)


# All of them, in this environment


NOWHERE = "http://127.0.0.1:9"
SDKS = {
    "S3": ("jobs_backup_s3", "boto3", "botocore"),
    "GCS": ("jobs_backup_gcs", "google.auth", "google.cloud"),
    "AZURE_BLOB": ("jobs_backup_azure_blob", "azure"),
    "FILE": ("jobs_backup.store.file_provider",),
}
VARIABLES = {
    "S3": {"AWS_ENDPOINT_URL_S3": NOWHERE, "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "a"},
    "GCS": {"STORAGE_EMULATOR_HOST": NOWHERE},
    "AZURE_BLOB": {
        "AZURE_STORAGE_ACCOUNT": "account1", "AZURE_STORAGE_ACCESS_KEY": "YQ==", "AZURE_STORAGE_BLOB_ENDPOINT": NOWHERE,
    },
    "FILE": {},
}  # fmt: skip


@pytest.mark.parametrize("name", SDKS)
def test_the_chosen_provider_imports_none_of_the_others(name: str) -> None:
    """Up to its first request, it imports its own SDK and none of the others, which are installed."""
    code = (
        "import json, sys\n"
        "from jobs_backup import errors\nfrom jobs_backup.store import providers\n"
        "from jobs_backup.testing.driver import Hooks\n"
        "name, variables = json.loads(sys.argv[1])\n"
        "hooks = Hooks(providers.load(name, {'JOBS_BACKUP_BUCKET': '/nonexistent' if name == 'FILE' else 'events', **variables}))\n"
        "try:\n"
        "    hooks.write('key', b'data')\n"
        "except errors.StorageError as error:\n"
        "    print(json.dumps([error.code, list(sys.modules)]))\n"
    )
    out = run(sys.executable, "-I", "-c", code, json.dumps([name, VARIABLES[name]]), env=clean_environment())
    refusal, imported = json.loads(out)
    assert refusal in ("Unreachable", "BucketNotFound")
    assert {one for one, modules in SDKS.items() if not set(modules).isdisjoint(imported)} == {name}


@pytest.mark.slow
def test_the_wrappers_install_beside_core_alone(wheels: dict[Path, Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(wheels[CORE], wheels[ROOT / "contrib/encryption"], wheels[ROOT / "contrib/opentelemetry"])
    packages = environment.packages()
    assert packages >= {"jobs-backup", "jobs-backup-encryption", "jobs-backup-opentelemetry", "cryptography", "opentelemetry-api"}
    assert not {name for name in packages if name.startswith(("boto", "google", "azure", "opentelemetry-sdk"))}
    key, bucket = "A" * 43 + "=", tmp_path / "bucket"
    bucket.mkdir()
    variables = {
        "JOBS_BACKUP_STORAGE_PROVIDER": "FILE",
        "JOBS_BACKUP_BUCKET": str(bucket),
        "JOBS_BACKUP_SPOOL_DIR": str(tmp_path / "spool"),
        "JOBS_BACKUP_WRAPPERS": "opentelemetry,encryption",
        "JOBS_BACKUP_ENCRYPTION_KEY": key,
    }
    command = environment.bin / "jobs-backup"
    run(command, "run", "--source-id", "web", env=clean_environment(**variables), input='{"a":1}\n')
    assert run(command, "replay", "--payload-only", env=clean_environment(**variables)) == '{"a":1}\n'
    (path,) = bucket.rglob("*.json.gz.enc")
    decrypt = [str(environment.bin / "jobs-backup-decrypt"), str(path)]
    only_the_key = clean_environment(JOBS_BACKUP_ENCRYPTION_KEY=key)
    content = subprocess.run(decrypt, env=only_the_key, capture_output=True, check=True).stdout
    assert b'"payload":{"a":1}' in gzip.decompress(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    ["import jobs_backup", "from jobs_backup import *", "from jobs_backup.store import providers; providers.load_class('S3')"],
)
def test_importing_core_and_loading_the_provider_imports_no_sdk(core_and_s3: Environment, statement: str) -> None:
    code = f"import sys\n{statement}\nprint('jobs_backup' in sys.modules, {{'boto3', 'botocore', 'urllib3'}} & sys.modules.keys())"
    assert core_and_s3.python(code) == "True set()\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import jobs_backup",
            {"asyncio", "click", "jobs_backup.backup.backup", "msgspec", "pluggy", "rich", "sqlite3", "tenacity"},
        ),
        ("from jobs_backup import Backup", {"asyncio", "backports.zstd", "click", "http.server", "rich", "ssl", "urllib.request"}),
    ],
)
def test_importing_brings_in_no_more_than_it_needs(core_and_s3: Environment, statement: str, absent: set[str]) -> None:
    """The benchmark `startup` measures the time."""
    code = f"import sys\n{statement}\nprint(sorted({absent!r} & sys.modules.keys()))"
    assert core_and_s3.python(code) == "[]\n"
