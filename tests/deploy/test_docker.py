"""The image and the Compose examples: they name nothing that does not exist, and run against the real server."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from buckets import events, file_environment
from commands import run, start
from generated import command
from places import ROOT
from projects import PROJECTS, Environment, clean_environment
from projects import run as run_command

from jobs_backup.settings import Duration
from jobs_backup.settings.base import report_unknown
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.env_file import read_env_file
from jobs_backup.settings.server import ServerSettings
from jobs_backup_s3.settings import S3Settings

DOCKER: Final = ROOT / "contrib/docker"
HADOLINT: Final = Path(sys.executable).with_name("hadolint")
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """(name, the rest) of each instruction in the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def last(name: str) -> str:
    """The last such instruction: the image's own, not that of an earlier stage."""
    return [rest for one, rest in instructions() if one == name][-1]


def image_environment() -> dict[str, str]:
    return dict(one.split("=", 1) for one in shlex.split(last("ENV")))


def composed(file: str) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = yaml.safe_load((DOCKER / file).read_text())["services"]
    return {
        name: composed(one["extends"]["file"])[one["extends"]["service"]] if "extends" in one else one
        for name, one in services.items()
    }


SERVICES: Final = [(file, name) for file in ("compose.yaml", "compose.archive.yaml") for name in composed(file)]
OURS: Final = {("compose.yaml", "jobs-backup"): "serve", ("compose.archive.yaml", "archive"): "archive"}
every_service = pytest.mark.parametrize(("file", "name"), SERVICES, ids=[f"{file}-{name}" for file, name in SERVICES])


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is not installed: make lint")
def test_hadolint_finds_nothing() -> None:
    result = subprocess.run([HADOLINT, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout


def test_the_image_is_not_root_and_gets_signals_itself() -> None:
    user, group = last("USER").split(":")
    assert int(user) == int(group) == 10001
    assert json.loads(last("ENTRYPOINT")) == ["jobs-backup"], "no shell before it, which would keep SIGTERM to itself"
    assert json.loads(last("CMD")) == ["serve"]
    assert last("STOPSIGNAL") == "SIGTERM"
    (spool,) = json.loads(last("VOLUME"))
    assert f"--owner={user} --group={group} --mode=0700 {spool}" in last("RUN")
    assert image_environment()["JOBS_BACKUP_SPOOL_DIR"] == spool


def test_the_images_variables_are_settings() -> None:
    environment = {name: value for name, value in image_environment().items() if name.startswith("JOBS_BACKUP_")}
    assert report_unknown(environment, CoreSettings, ServerSettings) == []
    ports = {environment["JOBS_BACKUP_METRICS_PORT"], next(one.default for one in ServerSettings.describe() if one.field == "port")}
    assert set(last("EXPOSE").split()) == ports


def test_what_the_image_is_made_of_is_there_and_is_sent_to_the_builder() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = {source for name, rest in instructions() if name == "COPY" and "--from" not in rest for source in rest.split()[:-1]}
    assert {source for source in copied if not source.endswith("/pyproject.toml")} == kept, "those come with their directories"
    assert all((ROOT / source).exists() for source in copied)
    providers = next(rest for name, rest in instructions() if name == "ARG" and rest.startswith("PROVIDERS="))
    assert {path.name for path in (ROOT / "plugins").iterdir()} == set(shlex.split(providers)[0].partition("=")[2].split())
    for path in PROJECTS:
        source = path.relative_to(ROOT)
        assert f"{source}/pyproject.toml" in copied
        assert {str(source), str(source.parent)} & copied
    assert any(fnmatch.fnmatch("core/.venv", line) for line in lines if not line.startswith("!"))


def test_dependencies_are_installed_before_any_source_is_copied() -> None:
    """A change of our sources leaves the dependencies' layer in the builder's cache."""
    names = [(name, rest) for name, rest in instructions() if name in ("COPY", "RUN")]
    installs = next(place for place, (name, rest) in enumerate(names) if name == "RUN" and "--requirement" in rest)
    before = {source for name, rest in names[:installs] for source in rest.split()[:-1] if name == "COPY"}
    alone = {"LICENSE", "constraints.txt", "contrib/docker/requirements.py"}
    assert {source for source in before if not source.endswith("pyproject.toml")} == alone


def test_the_images_can_be_pinned_and_none_floats() -> None:
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert set(bases) == {"${PYTHON_IMAGE}"}
    for file, name in SERVICES:
        image = composed(file)[name]["image"]
        if image != "jobs-backup":
            match = re.fullmatch(r"\$\{(\w+)_IMAGE:-([\w/]+):([\w.-]+)\}", image)
            assert match, image
            assert match[3] != "latest"


@pytest.mark.slow
def test_the_image_s_build_works_without_docker(tmp_path: Path) -> None:
    """Run the instructions of its first stage in a separate directory: all extras, and nothing unneeded."""
    source = tmp_path / "source"
    builder = Environment(tmp_path / "builder", with_pip=True)
    environment = clean_environment(
        PROVIDERS="gcs", CONTRIB="azure_blob encryption", PATH=f"{builder.bin}:{os.environ['PATH']}", PIP_NO_CACHE_DIR="0"
    )
    builder.install("pip")
    stages = [place for place, (name, _) in enumerate(instructions()) if name == "FROM"]
    for name, rest in instructions()[slice(*stages)]:
        if name == "COPY":
            *sources, target = rest.split()
            for one in sources:
                into = source / target / Path(one).name if target.endswith("/") else source / target
                into.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / one).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
                    shutil.copytree(ROOT / one, into, dirs_exist_ok=True, ignore=ignored)
                else:
                    shutil.copy(ROOT / one, source / target / Path(one).name)
        elif name == "RUN":
            script = rest.replace("/opt/jobs-backup", str(tmp_path / "opt")).replace("/wheels", str(tmp_path / "wheels"))
            run_command("sh", "-euc", script, cwd=source, env=environment)
    python = tmp_path / "opt/bin/python"
    assert not (tmp_path / "opt/bin/pip").exists()
    code = "import azure.identity, google.cloud.storage, cryptography, uvicorn, prometheus_client; print('all')"
    assert run_command(python, "-I", "-c", code, env=clean_environment()) == "all\n"
    shown = run_command(tmp_path / "opt/bin/jobs-backup", "providers", env=clean_environment())
    assert {"AZURE_BLOB", "FILE", "GCS"} <= set(shown.split())
    assert "S3" not in shown.split()


@every_service
def test_a_service_may_do_no_more_than_it_needs(file: str, name: str) -> None:
    service = composed(file)[name]
    assert int(service["user"].split(":")[0]) > 0
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@every_service
def test_what_a_service_mounts_is_there(file: str, name: str) -> None:
    for volume in composed(file)[name].get("volumes", ()):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (DOCKER / source).is_file()
            assert volume.endswith(":ro")
        else:
            assert source in yaml.safe_load((DOCKER / file).read_text())["volumes"]


@every_service
def test_a_services_variables_are_settings(file: str, name: str) -> None:
    environment = composed(file)[name].get("environment", {})
    assert report_unknown(environment, CoreSettings, ServerSettings, S3Settings) == []
    assert all(isinstance(value, str) for value in environment.values()), "Compose would write it in its own way"


@pytest.mark.parametrize(("file", "name"), OURS)
def test_our_services_have_the_time_that_they_need_and_a_volume(file: str, name: str) -> None:
    service = composed(file)[name]
    settings = CoreSettings.from_environment(service["environment"])
    assert service["command"] == [OURS[file, name]]
    assert Duration.parse(service["stop_grace_period"]) >= settings.shutdown_grace + 5
    assert f"spool:{settings.spool_dir}" in service["volumes"]
    assert service["user"] == last("USER")
    assert (
        ROOT / "contrib/docker" / service["build"]["context"] / service["build"]["dockerfile"]
    ).resolve() == DOCKER / "Dockerfile"


def test_who_records_beside_archive_shares_its_settings_user_and_spool() -> None:
    services = composed("compose.archive.yaml")
    application, archive = services["application"], services["archive"]
    assert application["user"] == archive["user"]
    assert set(archive["volumes"]) <= set(application["volumes"])
    assert application["environment"].items() - {("EVENTS", "100")} <= archive["environment"].items()


@pytest.mark.parametrize(("file", "name"), OURS)
def test_the_trials_identity_has_the_rights_that_policy_prints(file: str, name: str) -> None:
    environment = composed(file)[name]["environment"]
    stored = json.loads((DOCKER / "seaweedfs/s3.json").read_text())
    (identity,) = (one for one in stored["identities"] if one["name"] == "put-only")
    keys = {"accessKey": environment["AWS_ACCESS_KEY_ID"], "secretKey": environment["AWS_SECRET_ACCESS_KEY"]}
    assert identity == {"name": "put-only", "credentials": [keys], "policyNames": ["put-only"]}
    (granted,) = json.loads(stored["policies"][0]["content"])["Statement"]
    (needed,) = json.loads(command("policy", **{key: value for key, value in environment.items() if "BACKUP_" in key}))["Statement"]
    assert set(granted["Action"]) == set(needed["Action"])
    resources = needed["Resource"] if isinstance(needed["Resource"], list) else [needed["Resource"]]
    assert granted["Resource"] == resources
    store = composed(file)["seaweedfs"]
    assert f"-bucket={environment['JOBS_BACKUP_BUCKET']}" in store["command"]
    assert "./seaweedfs/s3.json:/etc/seaweedfs/s3.json:ro" in store["volumes"]
    assert "-s3.config=/etc/seaweedfs/s3.json" in store["command"]


@contextlib.contextmanager
def serving(environment: dict[str, str]) -> Generator[tuple[str, str]]:
    """Run `jobs-backup serve` with these variables on free ports; return its address, and that of its metrics."""
    free = {"JOBS_BACKUP_SERVER_PORT": "0", "JOBS_BACKUP_METRICS_PORT": "0"}
    with start("serve", env={**environment, **free}) as process:
        assert process.stderr is not None
        found: dict[str, str] = {}
        try:
            while len(found) < 2:
                line = process.stderr.readline()
                assert line, "it has ended"
                if match := re.search(r"(listening on|are at) http://\S+:(\d+)", line):
                    found[match[1]] = match[2]
            yield found["listening on"], found["are at"]
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=120)
    assert process.returncode == 0, rest


def test_the_example_posts_its_events_and_the_image_is_healthy(tmp_path: Path) -> None:
    services = composed("compose.yaml")
    own, application = services["jobs-backup"]["environment"], services["application"]["environment"]
    assert application["BACKUP_URL"] == f"http://jobs-backup:{own['JOBS_BACKUP_SERVER_PORT']}"
    theirs = {name: value for name, value in own.items() if name.startswith(("JOBS_BACKUP_SERVER_", "JOBS_BACKUP_METRICS_HOST"))}
    script = DOCKER / services["application"]["volumes"][0].split(":")[0]
    check = json.loads(last("HEALTHCHECK").partition(" CMD ")[2])
    ready = services["jobs-backup"]["healthcheck"]["test"][1:]
    with serving({**file_environment(tmp_path), **theirs}) as (port, metrics):
        posting = {**application, "BACKUP_URL": f"http://127.0.0.1:{port}"}
        subprocess.run([sys.executable, script], env=posting, check=True, timeout=120, capture_output=True)
        probe = {"JOBS_BACKUP_METRICS_PORT": metrics, "PATH": os.environ["PATH"]}
        assert probed(check, probe) == probed([one.replace("9464", metrics) for one in ready], probe) == 0
        wrong = subprocess.run(
            [sys.executable, script],
            env={**posting, "BACKUP_TOKEN": "another-token-0123456789"},
            check=False,
            timeout=120,
            capture_output=True,
        )
        assert b"401" in wrong.stderr
    assert probed(check, probe) != 0, "nobody is there any more"
    assert sorted(event["payload"]["n"] for event in events(tmp_path)) == list(range(100))


def probed(test: list[str], environment: dict[str, str]) -> int:
    """The exit code of the container engine's health check."""
    assert test[0] == "python"
    return subprocess.run([sys.executable, *test[1:]], env=environment, check=False, timeout=120, capture_output=True).returncode


def test_the_example_that_records_needs_nobody_who_sends(tmp_path: Path) -> None:
    environment = file_environment(tmp_path)
    script = DOCKER / "example/record.py"
    subprocess.run([sys.executable, script], env={**environment, "EVENTS": "7"}, check=True, timeout=120)
    assert list(events(tmp_path)) == []
    assert run("archive", "--once", env=environment)[0] == 0
    assert sorted(event["payload"]["n"] for event in events(tmp_path)) == list(range(7))


def test_the_env_file_fits_the_image() -> None:
    assert read_env_file(DOCKER / "docker.env", {})["JOBS_BACKUP_SPOOL_DIR"] == image_environment()["JOBS_BACKUP_SPOOL_DIR"]
