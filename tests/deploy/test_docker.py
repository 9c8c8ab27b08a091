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
import time
import urllib.request
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from buckets import events, file_environment
from commands import run, start
from generated import command
from places import ROOT
from postgres import Postgres
from projects import PROJECTS, Environment, clean_environment
from projects import run as run_command
from servers import free_ports

from jobs_backup.settings import Duration
from jobs_backup.settings.base import report_unknown
from jobs_backup.settings.core import CoreSettings, DatabaseSpool
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


FLEET: Final = "compose.fleet.yaml"
RECORDERS: Final = ("recorder-1", "recorder-2", "recorder-3")
SERVICES: Final = [(file, name) for file in ("compose.yaml", "compose.archive.yaml", FLEET) for name in composed(file)]
OURS: Final = {
    ("compose.yaml", "jobs-backup"): "serve",
    ("compose.archive.yaml", "archive"): "archive",
    **dict.fromkeys([(FLEET, name) for name in RECORDERS], "serve"),
}
HAPROXY: Final = shutil.which("haproxy")
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
    code = "import azure.identity, google.cloud.storage, cryptography, psycopg_pool, uvicorn, prometheus_client; print('all')"
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
    assert (file == FLEET) == ("volumes" not in service) == isinstance(settings.spool_place, DatabaseSpool)
    if file != FLEET:
        assert f"spool:{settings.spool_dir}" in service["volumes"]
    assert service["user"] == last("USER")
    (build,) = (one["build"] for one in composed(file).values() if "build" in one)
    assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"


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


def fleets_environment(name: str) -> dict[str, str]:
    variables: dict[str, str] = composed(FLEET)[name]["environment"]
    return variables


@pytest.fixture
def fleet(tmp_path: Path, database_server: Postgres) -> Iterator[list[dict[str, str]]]:
    """The environments of the recorders, with a server and a bucket of the tests. The database is made as the trial's is."""
    script = (DOCKER / "fleet/user.sql").read_text().replace("CREATE USER recorder", "CREATE ROLE recorder LOGIN")
    changed = ("JOBS_BACKUP_STORAGE_PROVIDER", "JOBS_BACKUP_BUCKET")
    bucket = file_environment(tmp_path)
    with database_server.database() as database:
        with database_server.admin() as connection:
            connection.execute(script.replace("DATABASE events", f"DATABASE {database}"))
        own = {
            **{name: bucket[name] for name in changed},
            "JOBS_BACKUP_SPOOL": database_server.url(database, user="recorder"),
            "JOBS_BACKUP_LOG_FORMAT": "text",
            "JOBS_BACKUP_UPLOAD_FREQUENCY": "1s",
        }
        try:
            yield [{**fleets_environment(name), **own} for name in RECORDERS]
        finally:
            database_server.drop(database)
            with database_server.admin() as connection:
                connection.execute("DROP ROLE recorder")


def test_the_recorders_of_the_fleet_differ_in_their_names_alone() -> None:
    environments = [fleets_environment(name) for name in RECORDERS]
    names = [one.pop("INSTANCE_ID") for one in environments]
    assert len(set(names)) == 3
    assert environments[0] == environments[1] == environments[2]
    url = CoreSettings.from_environment({**environments[0], "INSTANCE_ID": "x"}).spool_place
    services = composed(FLEET)
    database = services["postgresql"]
    assert str(url) == f"postgresql://postgresql/{database['environment']['POSTGRES_DB']}"
    user, password = re.fullmatch(r".*//(\w+):([\w-]+)@.*", environments[0]["JOBS_BACKUP_SPOOL"]).groups()  # type: ignore[union-attr]
    assert f"CREATE USER {user} PASSWORD '{password}';" in (DOCKER / "fleet/user.sql").read_text()


def test_the_balancer_knows_each_recorder_and_asks_whether_it_is_ready() -> None:
    settings = fleets_environment(RECORDERS[0])
    text = (DOCKER / "fleet/haproxy.cfg").read_text()
    servers = re.findall(r"^    server (\S+) (\S+)$", text, re.MULTILINE)
    assert servers == [(name, f"{name}:{settings['JOBS_BACKUP_SERVER_PORT']}") for name in RECORDERS]
    assert f"check port {settings['JOBS_BACKUP_METRICS_PORT']} " in text
    assert "option httpchk GET /readyz" in text
    balancer = composed(FLEET)["balancer"]
    assert set(balancer["depends_on"]) == set(RECORDERS)
    (port,) = re.findall(r"bind :::(\d+) v4v6", text)
    assert balancer["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert composed(FLEET)["application"]["environment"]["BACKUP_URL"] == f"http://balancer:{port}"


def posted(port: str, token: str, path: str, body: object) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))


def test_each_recorder_of_the_fleet_takes_the_others_acknowledgements(fleet: list[dict[str, str]], tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(serving(one))[0] for one in fleet]
        token = fleet[0]["JOBS_BACKUP_SERVER_TOKEN"]
        jobs = [posted(port, token, "/v1/events?source_id=web", [{"n": n}])["jobs"] for n, port in enumerate(ports)]
        for port, of_another in zip(ports, jobs[1:] + jobs[:1], strict=True):
            assert posted(port, token, "/v1/delivered", of_another) == {"acknowledged": 1}
    assert list(events(tmp_path)) == [], "all were delivered, and deleted or never uploaded"


def uploaded(directory: Path, count: int) -> None:
    """Wait until the bucket holds this number of events: a recorder that ends earlier reports that others have events waiting."""
    until = time.monotonic() + 60
    while len(list(events(directory))) < count:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
def test_the_application_posts_through_the_balancer_also_to_two_recorders(fleet: list[dict[str, str]], tmp_path: Path) -> None:
    assert HAPROXY is not None
    (free,) = free_ports(1)
    text = (DOCKER / "fleet/haproxy.cfg").read_text().replace(":::8080 v4v6", f"127.0.0.1:{free}")
    text = text.replace("/tmp/haproxy.sock", str(tmp_path / "haproxy.sock"))
    application = composed(FLEET)["application"]
    script = DOCKER / application["volumes"][0].split(":")[0]
    with contextlib.ExitStack() as stack:
        with serving(fleet[0]) as (first, first_metrics):
            running = [(first, first_metrics), *(stack.enter_context(serving(one)) for one in fleet[1:])]
            for name, (port, metrics) in zip(RECORDERS, running, strict=True):
                text = text.replace(f"{name}:8080", f"127.0.0.1:{port} port {metrics}")
            (tmp_path / "haproxy.cfg").write_text(text.replace("check port 9464", "check"))
            balancer = stack.enter_context(subprocess.Popen([HAPROXY, "-db", "-f", str(tmp_path / "haproxy.cfg")]))
            stack.callback(balancer.terminate)
            posting = {**application["environment"], "BACKUP_URL": f"http://127.0.0.1:{free}", "EVENTS": "100"}
            subprocess.run([sys.executable, script], env=posting, check=True, timeout=120, capture_output=True)
            uploaded(tmp_path, 100)
        subprocess.run([sys.executable, script], env=posting, check=True, timeout=120, capture_output=True)
        uploaded(tmp_path, 200)
    assert sorted(event["payload"]["n"] for event in events(tmp_path)) == sorted([*range(100)] * 2)
