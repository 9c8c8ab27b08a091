"""The Helm chart: Kubernetes accepts its output, `jobs-backup` reads it, and wrong values are rejected.

Helm comes with `make helm`, kubernetes-validate with `make lint`'s environment; without them these tests are skipped.
"""

from __future__ import annotations

import base64
import functools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from places import ROOT

from jobs_backup.settings import Duration, Settings
from jobs_backup.settings.core import CoreSettings, DatabaseSpool
from jobs_backup.settings.server import ServerSettings
from jobs_backup_gcs.settings import GcsSettings
from jobs_backup_s3.settings import MinioSettings, S3Settings, SpacesSettings

KUBERNETES: Final = ROOT / "contrib/kubernetes"
CHART: Final = KUBERNETES / "jobs-backup"
HELM: Final = ROOT / "build/helm/helm"
OLDEST: Final = "1.30"
"""The chart's kubeVersion."""

if not HELM.exists():
    pytest.skip("there is no build/helm/helm: make helm", allow_module_level=True)
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: make lint")

FLEETS: Final = ("fleet", "fleet-archive")
"""Configurations with a spool in PostgreSQL."""
CONFIGURATIONS: Final = sorted(path.stem for path in (KUBERNETES / "ci").glob("*.yaml"))
PROVIDERS: Final[dict[str, type[Settings]]] = {
    "S3": S3Settings, "GCS": GcsSettings, "MINIO": MinioSettings, "DIGITAL_OCEAN_SPACES": SpacesSettings,
}  # fmt: skip
SECRETS: Final = (
    "secret-of-the-access-key", "AKIAIOSFODNN7EXAMPLE", "secret-of-minio", "secret-of-the-service-account",
    "token-0123456789abcdef", "write-key-1",
)  # fmt: skip
"""Secrets that the configurations contain as plain values."""
Document = dict[str, Any]
every_fleet = pytest.mark.parametrize("name", FLEETS)
everything = pytest.mark.parametrize("name", [*CONFIGURATIONS, "sidecar-chart"])


def helm(*arguments: str | Path) -> tuple[int, str]:
    result = subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False, timeout=120)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An example of another chart that depends on ours, in a separate directory."""
    directory = tmp_path_factory.mktemp("kubernetes")
    shutil.copytree(KUBERNETES, directory, dirs_exist_ok=True)
    code, output = helm("dependency", "build", directory / "examples/sidecar-chart")
    assert code == 0, output
    return directory / "examples/sidecar-chart"


@functools.cache
def rendered(chart: Path, *arguments: str) -> tuple[Document, ...]:
    code, output = helm("template", "events", chart, "--namespace", "pipeline", *arguments)
    assert code == 0, output
    return tuple(document for document in yaml.safe_load_all(output) if document)


@pytest.fixture
def documents(name: str, application: Path) -> tuple[Document, ...]:
    return rendered(application) if name == "sidecar-chart" else configured(name)


def configured(name: str, *more: str) -> tuple[Document, ...]:
    return rendered(CHART, "--values", str(KUBERNETES / f"ci/{name}.yaml"), *more)


def of_kind(documents: tuple[Document, ...], kind: str) -> Document:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def workload_of(documents: tuple[Document, ...]) -> Document:
    (found,) = (document for document in documents if document["kind"] in ("StatefulSet", "Deployment"))
    spec: Document = found["spec"]
    return spec


def pod_of(documents: tuple[Document, ...]) -> Document:
    spec: Document = workload_of(documents)["template"]["spec"]
    return spec


def container_of(documents: tuple[Document, ...], name: str = "jobs-backup") -> Document:
    pod = pod_of(documents)
    (found,) = (one for one in (*pod.get("initContainers", ()), *pod["containers"]) if one["name"] == name)
    return dict(found)


def environment(container: Document) -> dict[str, str]:
    """Name -> value, or its source as JSON."""
    return {one["name"]: one["value"] if "value" in one else json.dumps(one["valueFrom"]) for one in container["env"]}


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from (key, *strings(one))
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)
    else:
        yield str(value)


@everything
def test_lint(name: str, application: Path) -> None:
    ours = (CHART, "--values", KUBERNETES / f"ci/{name}.yaml")
    code, output = helm("lint", "--strict", *((application,) if name == "sidecar-chart" else ours))
    assert code == 0, output


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
@everything
def test_kubernetes_takes_every_document(documents: tuple[Document, ...], version: str) -> None:
    assert documents
    for document in documents:
        if document["kind"] != "ServiceMonitor":  # Prometheus's operator defines it: Kubernetes has no schema for it
            kubernetes_validate.validate(document, version, strict=True)


def test_the_validation_can_fail() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "imagee": "b"}]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, OLDEST, strict=True)


def test_the_chart_wants_the_oldest_version_that_is_tested() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"] == f">={OLDEST}.0-0"


@everything
def test_each_variable_is_a_setting_and_the_settings_can_be_read(name: str, documents: tuple[Document, ...]) -> None:
    container = container_of(documents)
    variables = environment(container)
    provider = PROVIDERS[variables["JOBS_BACKUP_STORAGE_PROVIDER"]]
    known = {one.variable.name for kind in (CoreSettings, ServerSettings, provider) for one in kind.describe()}
    assert sorted(variables.keys() - known) == []
    assert len(variables) == len(container["env"]), "one stands there twice"
    # As the cluster fills them in: from the pod, or from a Secret.
    filled = {one["name"]: "pod-0" for one in container["env"] if "value" not in one}
    if "JOBS_BACKUP_SPOOL" in filled:
        filled["JOBS_BACKUP_SPOOL"] = "postgresql://user@host/database"
    settings = CoreSettings.from_environment(variables | filled)
    assert settings.metrics_host == "::"
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert (settings.spool_dir is None) == (name in FLEETS)
    assert isinstance(settings.spool_place, DatabaseSpool) if name in FLEETS else str(settings.spool_dir) in mounts
    ServerSettings.from_environment(variables)
    assert "JOBS_BACKUP_PREFIX" in variables
    assert settings.prefix == ("" if name in ("s3-irsa", "gcs-key-inline", "minio", "spaces") else "backups")
    if provider is not GcsSettings or "GOOGLE_APPLICATION_CREDENTIALS" not in variables:  # its file does not exist here
        provider.from_environment(variables)


@everything
def test_keys_tell_the_pods_apart(documents: tuple[Document, ...]) -> None:
    assert json.loads(environment(container_of(documents))["INSTANCE_ID"]) == {"fieldRef": {"fieldPath": "metadata.name"}}


@everything
def test_pods_may_do_no_more_than_they_need(documents: tuple[Document, ...]) -> None:
    pod, own = pod_of(documents), container_of(documents)["securityContext"]
    assert own["runAsNonRoot"]
    assert own["runAsUser"] == 10001
    assert pod["securityContext"]["fsGroup"] == 10001
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "Kubernetes would set JOBS_BACKUP_PORT"
    mounts = container_of(documents)["volumeMounts"]
    assert "/tmp" in {one["mountPath"] for one in mounts}
    claims = {one["metadata"]["name"] for one in workload_of(documents).get("volumeClaimTemplates", ())}
    assert {one["name"] for one in mounts} <= {one["name"] for one in pod["volumes"]} | claims


@everything
def test_a_pod_is_given_the_time_that_it_needs_to_end(documents: tuple[Document, ...]) -> None:
    container = container_of(documents)
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace = Duration.parse(environment(container)["JOBS_BACKUP_SHUTDOWN_GRACE"])
    assert pod_of(documents)["terminationGracePeriodSeconds"] >= grace + sleep + 5
    assert (sleep > 0) == any(one["metadata"]["name"] == "events-jobs-backup" for one in documents if one["kind"] == "Service")


@everything
def test_probes_ask_where_it_answers_without_a_token(documents: tuple[Document, ...]) -> None:
    container = container_of(documents)
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert str(ports["jb-metrics"]) == environment(container)["JOBS_BACKUP_METRICS_PORT"]
    assert ports.get("jb-events", 8080) == int(environment(container).get("JOBS_BACKUP_SERVER_PORT", "8080"))
    asked = {probe: container[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {probe: one["path"] for probe, one in asked.items()} == {
        "startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz",
    }  # fmt: skip
    assert {one["port"] for one in asked.values()} == {"jb-metrics"}
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 300


@pytest.mark.parametrize("name", [*(one for one in CONFIGURATIONS if one not in FLEETS), "sidecar-chart"])
def test_what_waits_outlives_the_pod(documents: tuple[Document, ...]) -> None:
    spec = of_kind(documents, "StatefulSet")["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


@everything
def test_secrets_are_in_secrets_alone_and_nothing_is_a_placeholder(documents: tuple[Document, ...]) -> None:
    for document in documents:
        if document["kind"] != "Secret":
            found = "\n".join(strings(document))
            assert [one for one in SECRETS if one in found or base64.b64encode(one.encode()).decode() in found] == []
    variables = environment(container_of(documents))
    for name, value in variables.items():
        if name.endswith(("_KEY", "_KEY_ID", "_TOKEN", "_WRITE_KEYS")) and "KMS" not in name and "TLS" not in name:
            assert "secretKeyRef" in value, name


def test_there_are_keys_only_where_some_are_given() -> None:
    with_keys = {name for name in CONFIGURATIONS if "AWS_ACCESS_KEY_ID" in environment(container_of(configured(name)))}
    assert with_keys == {"s3-static-keys", "existing-secret", "archive"}


@every_fleet
def test_a_fleet_needs_no_volume_and_is_replaced_without_a_gap(documents: tuple[Document, ...]) -> None:
    spec = of_kind(documents, "Deployment")["spec"]
    assert [one["kind"] for one in documents if one["kind"] in ("StatefulSet", "PersistentVolumeClaim")] == []
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}}
    labels = spec["template"]["metadata"]["labels"].items()
    assert spec["selector"]["matchLabels"].items() <= labels
    assert of_kind(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels
    pod = pod_of(documents)
    used = {one["name"] for one in container_of(documents)["volumeMounts"]}
    assert used == {one["name"] for one in pod["volumes"]}
    assert [one for one in pod["volumes"] if "persistentVolumeClaim" in one] == []


def test_the_strategy_can_be_changed() -> None:
    surge = configured("fleet", "--set", "updateStrategy.rollingUpdate.maxSurge=1")
    assert workload_of(surge)["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    recreate = configured("fleet", "--set", "updateStrategy.type=Recreate")
    assert workload_of(recreate)["strategy"] == {"type": "Recreate"}
    for document in (*surge, *recreate):
        if document["kind"] == "Deployment":
            kubernetes_validate.validate(document, OLDEST, strict=True)


def test_the_autoscaler_alone_decides_how_many_pods_there_are() -> None:
    documents = configured("fleet")
    scaler = of_kind(documents, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "events-jobs-backup"}
    assert of_kind(documents, "Deployment")["metadata"]["name"] == "events-jobs-backup"
    assert "replicas" not in workload_of(documents), "each upgrade would undo what it decided"
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 20)
    (metric,) = scaler["metrics"]
    assert metric["containerResource"]["container"] in {one["name"] for one in pod_of(documents)["containers"]}
    assert "cpu" in container_of(documents)["resources"]["requests"], "a share of nothing is not known"
    assert workload_of(configured("fleet-archive"))["replicas"] == 2


def test_a_password_is_read_from_the_secret_for_each_connection() -> None:
    documents = configured("fleet")
    container = container_of(documents)
    variables = environment(container)
    place = CoreSettings.from_environment(variables | {"INSTANCE_ID": "pod-0"}).spool_place
    assert isinstance(place, DatabaseSpool)
    command, file = place.password_command.split()
    assert command == "cat"
    (mount,) = (one for one in container["volumeMounts"] if one["mountPath"] == str(Path(file).parent))
    (volume,) = (one["secret"] for one in pod_of(documents)["volumes"] if one["name"] == mount["name"])
    assert volume["secretName"] == "jobs-backup-database"
    assert volume["items"] == [{"key": "db-password", "path": Path(file).name}]
    assert mount["readOnly"]


def test_without_a_url_the_secret_holds_it() -> None:
    container = container_of(configured("fleet-archive"))
    reference = {"secretKeyRef": {"name": "jobs-backup-database", "key": "JOBS_BACKUP_SPOOL"}}
    assert json.loads(environment(container)["JOBS_BACKUP_SPOOL"]) == reference
    assert environment(container)["JOBS_BACKUP_SPOOL_PASSWORD_COMMAND"] == "python /etc/jobs-backup/token/token.py"
    assert "/etc/jobs-backup/postgresql" not in {one["mountPath"] for one in container["volumeMounts"]}


def test_a_sidecar_of_a_fleet_asks_for_no_claim(application: Path) -> None:
    code, output = helm("template", "events", application, "--set", "jobs-backup.spool.postgresql.url=postgresql://u@host/d")
    assert code != 0
    assert "with spool.postgresql there is no claim; remove the call" in output


@everything
def test_what_is_in_our_secret_is_what_is_taken_from_it(documents: tuple[Document, ...]) -> None:
    used: dict[str, set[str]] = {}
    for entry in container_of(documents)["env"]:
        if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
            used.setdefault(reference["name"], set()).add(reference["key"])
    for volume in pod_of(documents)["volumes"]:
        if secret := volume.get("secret"):
            used.setdefault(secret["secretName"], set()).update(item["key"] for item in secret.get("items", ()))
    for document in documents:
        if document["kind"] == "Secret":
            assert used[document["metadata"]["name"]] == set(document["data"])


GOOGLE: Final = {
    "gcs-key-file": ("gcs-key", "/etc/gcs/key.json"),
    "gcs-key-inline": ("events-jobs-backup", "/etc/jobs-backup/gcs/credentials.json"),
}


@pytest.mark.parametrize("name", GOOGLE)
def test_googles_credentials_are_looked_for_where_they_are_mounted(name: str, documents: tuple[Document, ...]) -> None:
    secret, file = GOOGLE[name]
    container = container_of(documents)
    assert environment(container)["GOOGLE_APPLICATION_CREDENTIALS"] == file
    (mount,) = (one for one in container["volumeMounts"] if one["mountPath"] == str(Path(file).parent))
    (volume,) = (one["secret"] for one in pod_of(documents)["volumes"] if one["name"] == mount["name"])
    assert (volume["secretName"], volume["defaultMode"]) == (secret, 0o440)
    assert [item["path"] for item in volume["items"]] == [Path(file).name]


def test_bound_roles_are_at_the_service_account() -> None:
    for name, annotation in (
        ("s3-irsa", "eks.amazonaws.com/role-arn"),
        ("gcs-workload-identity", "iam.gke.io/gcp-service-account"),
    ):
        account = of_kind(configured(name), "ServiceAccount")
        assert annotation in account["metadata"]["annotations"]
        assert pod_of(configured(name))["serviceAccountName"] == account["metadata"]["name"]
        assert "GOOGLE_APPLICATION_CREDENTIALS" not in environment(container_of(configured(name)))
    assert pod_of(configured("existing-secret"))["serviceAccountName"] == "pipeline"


def test_an_application_that_records_has_the_same_settings_spool_and_user() -> None:
    documents = configured("archive")
    application, archive = container_of(documents, "application"), container_of(documents)
    assert archive["args"] == ["archive"]
    shared = environment(application)
    assert shared.pop("PIPELINE") == "orders"
    assert shared.items() <= environment(archive).items()
    assert {name.split("_")[2] for name in environment(archive).keys() - shared} == {"LOG", "METRICS"}
    assert "/var/lib/jobs-backup" in {one["mountPath"] for one in application["volumeMounts"]}
    assert pod_of(documents)["securityContext"]["runAsUser"] == archive["securityContext"]["runAsUser"]


def test_a_sidecar_listens_on_loopback_starts_first_and_ends_last(application: Path) -> None:
    documents = rendered(application)
    (sidecar,) = pod_of(documents)["initContainers"]
    assert (sidecar["restartPolicy"], sidecar["args"]) == ("Always", ["serve"])
    assert environment(sidecar)["JOBS_BACKUP_SERVER_HOST"] == "localhost"
    assert [one["kind"] for one in documents].count("StatefulSet") == 1, "the application's own"
    plain = rendered(application, "--set", "jobs-backup.sidecar.native=false,jobs-backup.sidecar.command=archive")
    (ordinary,) = pod_of(plain)["initContainers"]
    assert ("restartPolicy" in ordinary, ordinary["args"]) == (False, ["archive"])


def test_services_monitors_budgets_and_policies_find_the_pods() -> None:
    documents = configured("s3-irsa")
    spec = of_kind(documents, "StatefulSet")["spec"]
    labels = spec["template"]["metadata"]["labels"].items()
    services = {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "Service"}
    assert set(services) == {"events-jobs-backup", "events-jobs-backup-headless"}
    assert spec["serviceName"] == "events-jobs-backup-headless"
    for service in services.values():
        assert service["selector"].items() <= labels
    assert of_kind(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels
    policy = of_kind(documents, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels
    assert [one["ports"][0]["port"] for one in policy["ingress"]] == ["jb-events", "jb-metrics"]
    assert sorted({port["port"] for one in policy["egress"] for port in one["ports"]}) == [53, 443]
    (endpoint,) = of_kind(documents, "ServiceMonitor")["spec"]["endpoints"]
    having = [name for name, one in services.items() if endpoint["port"] in {port["name"] for port in one["ports"]}]
    assert having == ["events-jobs-backup-headless"], "else each pod would be asked twice"


def test_a_changed_secret_starts_the_pods_anew() -> None:
    annotations = [
        of_kind(configured("minio", *more), "StatefulSet")["spec"]["template"]["metadata"]["annotations"]
        for more in ((), ("--set", "minio.secretAccessKey=another"))
    ]
    assert annotations[0] != annotations[1]


WRONG: Final = [
    ("s3-static-keys", "storage.provider=S4", "/storage/provider"),
    ("s3-static-keys", "storage.provider=", "/storage/provider"),
    ("s3-static-keys", "storage.customProvider=ACME", "/storage/customProvider"),
    ("s3-static-keys", "storage.bucket=", "/storage/bucket"),
    ("s3-static-keys", "storage.bucket=s3://events", "/storage/bucket"),
    ("s3-static-keys", "storage.bukket=events", "'bukket' not allowed"),
    ("s3-static-keys", "backend.extraEnvVars=x", "'backend' not allowed"),
    ("s3-static-keys", "replicas=-1", "/replicas"),
    ("s3-static-keys", "replicas=two", "/replicas"),
    ("s3-static-keys", "terminationGracePeriodSeconds=30", "more than shutdownGrace and preStopSleep together, 30"),
    ("s3-static-keys", "shutdownGrace=25s", "/shutdownGrace"),
    ("s3-static-keys", "server.existingSecret=tokens", "/server/token"),
    ("s3-static-keys", "server.token=short", "/server/token"),
    ("s3-static-keys", "server.token=,server.writeKeys=", "/server/existingSecret"),
    ("s3-static-keys", "s3.secretAccessKey=", "/s3/secretAccessKey"),
    ("s3-static-keys", "s3.existingSecret=keys", "/s3/accessKeyId"),
    ("s3-static-keys", "s3.sse=AES256", "/s3/sse"),
    ("s3-irsa", "s3.existingSecret=keys", "/s3/existingSecret"),
    ("s3-irsa", "extraEnv[0].name=AWS_REGION", "AWS_REGION is set by the chart"),
    ("s3-irsa", "extraEnv[0].value=3", "/extraEnv/0/value"),
    ("gcs-key-file", "gcs.credentials=x", "/gcs/credentials"),
    ("gcs-workload-identity", "gcs.existingSecret=key", "/gcs/existingSecret"),
    ("minio", "minio.accessKeyId=,minio.secretAccessKey=", "/minio/existingSecret"),
    ("minio", "minio.endpoint=", "/minio/endpoint"),
    ("spaces", "spaces.endpoint=", "/spaces/endpoint"),
    ("minio", "mode=archive", "/extraContainers"),
    ("s3-irsa", "mode=sidecar", "/networkPolicy/enabled"),
    ("minio", "mode=deployment", "/mode"),
    ("minio", "autoscaling.enabled=true", "/spool/postgresql"),
    ("fleet", "autoscaling.minReplicas=21", "autoscaling.minReplicas is 21: it has to be at most autoscaling.maxReplicas, 20"),
    ("fleet", "spool.postgresql.url=postgresql://u:secret@host/d", "/spool/postgresql/url"),
    ("fleet", "spool.postgresql.url=postgresql://u@host/d?password=secret", "/spool/postgresql/url"),
    ("fleet", "spool.postgresql.url=mysql://u@host/d", "/spool/postgresql/url"),
    ("fleet", "spool.postgresql.passwordCommand=token", "/spool/postgresql"),
    ("fleet-archive", "spool.postgresql.existingSecret=", "/spool/postgresql"),
    ("fleet-archive", "spool.postgresql.pool=3", "'pool' not allowed"),
    ("fleet-archive", "extraEnv[0].name=JOBS_BACKUP_SPOOL_DIR,extraEnv[0].value=/x", "JOBS_BACKUP_SPOOL_DIR is set by the chart"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), WRONG, ids=[f"{name}-{change}" for name, change, _ in WRONG])
def test_wrong_values_are_refused_with_the_place(name: str, change: str, message: str) -> None:
    code, output = helm("template", "events", CHART, "--values", KUBERNETES / f"ci/{name}.yaml", "--set", change)
    assert code != 0
    assert message in output


def test_nothing_is_installed_with_the_defaults_alone() -> None:
    code, output = helm("template", "events", CHART)
    assert code != 0
    assert all(one in output for one in ("/storage/provider", "/storage/bucket", "/server/token"))


def test_a_provider_of_ones_own_can_be_named() -> None:
    change = "storage.provider=,storage.customProvider=ACME"
    variables = environment(container_of(configured("minio", "--set", change)))
    assert variables["JOBS_BACKUP_STORAGE_PROVIDER"] == "ACME"
    assert not any(name.startswith("MINIO") for name in variables)


@pytest.mark.parametrize("more", [(), ("--set", "listen=0.0.0.0,service.ipFamilyPolicy=,service.ipFamilies={IPv6}")])
def test_pods_listen_and_services_are_reached_by_both_families(more: tuple[str, ...]) -> None:
    documents = configured("s3-irsa", *more)
    container = container_of(documents)
    hosts = {environment(container)[name] for name in ("JOBS_BACKUP_SERVER_HOST", "JOBS_BACKUP_METRICS_HOST")}
    services = [one["spec"] for one in documents if one["kind"] == "Service"]
    assert len(services) == 2
    families = [(one.get("ipFamilyPolicy"), one.get("ipFamilies")) for one in services]
    assert (hosts, families[0]) == (({"0.0.0.0"}, (None, ["IPv6"])) if more else ({"::"}, ("PreferDualStack", None)))
    assert families[0] == families[1]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert all("host" not in probe for probe in probes), "the pod's own address, of whichever family"
    for document in documents:
        if document["kind"] == "Service":
            kubernetes_validate.validate(document, OLDEST, strict=True)
