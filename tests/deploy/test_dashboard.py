"""The alerts and the dashboard in contrib/: their metrics exist, their links work, and Prometheus accepts them."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from buckets import file_environment
from places import ROOT
from postgres import Postgres

from jobs_backup import Backup
from jobs_backup.monitoring.health import metrics_page
from jobs_backup.monitoring.health import registry as shown
from jobs_backup.monitoring.metrics import HELP, RequestMetrics, registry
from jobs_backup.util.histogram import Histogram

PROMETHEUS = ROOT / "contrib/prometheus"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "contrib/grafana/dashboard.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
TARGETS = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus adds to all samples of a target."""


def dashboard_expressions() -> list[str]:
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    queries = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    return found + [re.sub(r"label_values\((.*), (\w+)\)", r"sum by (\2) (\1)", query) for query in queries]


EXPRESSIONS = [rule["expr"] for rule in RULES] + dashboard_expressions()


def walk(node: Any) -> Iterator[Any]:
    """All nodes of an expression."""
    yield node
    for name in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
        found = getattr(node, name, None)
        for one in found if isinstance(found, list) else [] if found is None else [found]:
            yield from walk(one)


def parse(expression: str) -> Any:
    return promql_parser.parse(expression.replace("$__rate_interval", "5m"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, database_server: Postgres) -> Iterator[dict[str, str]]:
    """The environment of a process with a spool in PostgreSQL."""
    with database_server.database() as database:
        variables = file_environment(tmp_path_factory.mktemp("fleet"), JOBS_BACKUP_SPOOL=database_server.url(database))
        del variables["JOBS_BACKUP_SPOOL_DIR"]
        yield variables


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory, fleet: dict[str, str]) -> dict[str, set[str]]:
    """Name of a sample -> its labels, scraped from Backups that have done everything, on both kinds of spool."""
    directory = tmp_path_factory.mktemp("exposed")
    with Backup.from_env(file_environment(directory, JOBS_BACKUP_SPOOL_MAX_BYTES="1GB")) as backup:
        backup.record({}, source_id="web")
        backup.flush(120)
        seconds = Histogram((1.0,))
        shown(backup).register(RequestMetrics(Counter({("/v1/events", 200): 1}), {"/v1/events": seconds}))
        text = metrics_page(backup, "")[0].decode()
    with Backup.from_env(fleet) as backup:
        text += metrics_page(backup, "")[0].decode()
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_is_exposed(expression: str, exposed: dict[str, set[str]]) -> None:
    labels: set[str] = set()
    for node in walk(parse(expression)):
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name in exposed
            matched = {matcher.name for matcher in node.matchers.matchers}
            assert matched <= exposed[node.name] | TARGETS, node.name
            labels |= exposed[node.name]
    for node in walk(parse(expression)):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= labels | TARGETS
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            assert set(node.modifier.matching.labels) <= labels | TARGETS


def test_the_check_finds_what_is_wrong(exposed: dict[str, set[str]]) -> None:
    """Proof that it can fail."""
    for wrong in (
        "jobs_backup_behindd",
        "rate(jobs_backup_recorded_events[5m])",
        'jobs_backup_behind{source="web"}',
        "sum by (source) (rate(jobs_backup_attempts_total[5m]))",
        "jobs_backup_behind and on (hook) jobs_backup_behind",
    ):
        with pytest.raises(AssertionError):
            test_every_metric_and_label_is_exposed(wrong, exposed)
    with pytest.raises(ValueError, match="parenthesis"):
        parse("rate(jobs_backup_behind[5m]")


def test_counters_are_only_looked_at_through_their_growth() -> None:
    """Their values mean nothing: they start at zero with each process."""
    for expression in EXPRESSIONS:
        tree = parse(expression)
        calls = [node for node in walk(tree) if isinstance(node, promql_parser.Call) and node.func.name in {"rate", "increase"}]
        within = [one.name for call in calls for one in walk(call) if isinstance(one, promql_parser.VectorSelector)]
        everywhere = [one.name or "" for one in walk(tree) if isinstance(one, promql_parser.VectorSelector)]
        counters = [name for name in everywhere if name.endswith(("_total", "_bucket", "_count", "_sum"))]
        assert Counter(counters) == Counter(within), expression


class TestAlerts:
    @pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
    def test_each_says_how_bad_it_is_what_to_do_and_where_that_is_explained(self, rule: dict[str, Any]) -> None:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook_url"}
        assert notes["description"].endswith(".")
        path, _, anchor = notes["runbook_url"].partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        by = set(re.findall(r"\$labels\.(\w+)", json.dumps(notes)))
        assert by <= {"instance", "job", "store"}

    def test_they_have_different_names_that_a_test_tries(self) -> None:
        names = [rule["alert"] for rule in RULES]
        assert len(set(names)) == len(names)
        tried = (PROMETHEUS / "alerts_test.yaml").read_text()
        assert [name for name in names if name not in tried] == []

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed; it comes with Prometheus")
    @pytest.mark.parametrize(
        "arguments",
        [("check", "config", "prometheus.yaml"), ("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")],
    )
    def test_prometheus_takes_them_and_they_fire_when_they_should(self, arguments: tuple[str, ...]) -> None:
        found = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False, timeout=120)
        assert found.returncode == 0, found.stdout + found.stderr

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed; it comes with Prometheus")
    def test_prometheus_takes_the_metrics(self, tmp_path: Path) -> None:
        with Backup.from_env(file_environment(tmp_path)) as backup:
            backup.record({}, source_id="web")
            backup.flush(120)
            page = metrics_page(backup, "")[0]
        found = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False, timeout=120)
        assert (found.returncode, found.stderr.decode()) == (0, "")


class TestTheDashboard:
    def test_every_panel_says_what_it_shows(self) -> None:
        panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
        assert [panel["title"] for panel in panels if not panel["description"].endswith(".")] == []
        assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
        assert len({panel["title"] for panel in panels}) == len(panels)

    def test_no_panel_lies_on_another(self) -> None:
        places = [tuple(panel["gridPos"][name] for name in "xywh") for panel in DASHBOARD["panels"]]
        assert all(x + w <= 24 for x, _, w, _ in places)
        for (x, y, w, h), (x2, y2, w2, h2) in itertools.combinations(places, 2):
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y

    def test_every_query_takes_the_chosen_source_of_data_and_the_chosen_processes(self) -> None:
        variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
        assert variables == {"datasource", *TARGETS}
        for panel in DASHBOARD["panels"]:
            for target in panel.get("targets", []):
                assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
                used = [
                    {matcher.name for matcher in node.matchers.matchers}
                    for node in walk(parse(target["expr"]))
                    if isinstance(node, promql_parser.VectorSelector)
                ]
                assert used[0] >= TARGETS, target["expr"]

    def test_everything_that_is_exposed_is_shown(self) -> None:
        shown_ = " ".join(EXPRESSIONS)
        assert [name for name in HELP if f"jobs_backup_{name}" not in shown_] == []


def test_the_document_has_every_metric() -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    table = page.partition("<!-- metrics -->")[2].partition("<!-- end -->")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", table, re.MULTILINE)
    assert [row[0] for row in rows] == list(HELP)
    assert {name: text for name, _, _, text in rows} == {
        name: text.replace("'", "`").removesuffix(".") for name, text in HELP.items()
    }


def test_the_document_has_their_types_and_labels(exposed: dict[str, set[str]], fleet: dict[str, str], tmp_path: Path) -> None:
    page = (ROOT / "docs/monitoring.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| .* \|$", page, re.MULTILINE)
    types: dict[str, str] = {}
    for environment in (file_environment(tmp_path, JOBS_BACKUP_SPOOL_MAX_BYTES="1GB"), fleet):
        with Backup.from_env(environment) as backup:
            made = registry(backup)
            made.register(RequestMetrics(Counter(), {}))
            types |= {family.name.removeprefix("jobs_backup_"): family.type for family in made.collect()}
    suffixes = {"counter": "_total", "histogram": "_count", "info": "_info", "gauge": ""}
    for name, type_, labels in rows:
        assert types[name] == type_
        assert set(re.findall(r"`(\w+)`", labels)) == exposed[f"jobs_backup_{name}{suffixes[type_]}"], name
