"""What watches Octavo: rules and alerts judged by the real promtool, dashboards by a scrape of all that runs."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from octavo_operator.desired.names import PRESSURE_METRIC as METRIC
from octavo_operator.desired.scaler import Scaler, render_scaler
from octavo_testing.control_plane import a_resource
from octavo_testing.live_scrape import Series, scrape_everything
from octavo_testing.promtool import Promtool, find_promtool, label_names, parse_series
from octavo_testing.server import write_tokenizer

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "charts" / "octavo" / "files" / "dashboards").glob("*.json"))
ALERT_TESTS = Path(__file__).parent / "alert_tests.yaml"
ALL_ON = {
    "monitoring": {
        "monitors": {"kind": "PodMonitor", "labels": {"release": "prom"}},
        "rules": {"enabled": True, "labels": {"release": "prom"}},
        "dashboards": {"enabled": True},
    }
}


@pytest.fixture(scope="session")
def promtool(tmp_path_factory) -> Promtool:
    program = find_promtool()
    if program is None:
        pytest.skip("no promtool: set OCTAVO_PROMTOOL, or run `python -m e2e.cluster tools`, which needs Go")
    return Promtool(program, tmp_path_factory.mktemp("promtool"))


@pytest.fixture(scope="session")
def live(server, tmp_path_factory) -> list[Series]:
    """Everything that a server, a gateway and an operator expose once they have worked."""
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return asyncio.run(scrape_everything(server, tokenizer, tmp_path_factory.mktemp("live")))


@pytest.fixture(scope="session")
def groups(render) -> list[dict]:
    """The groups as the chart renders them."""
    (rule,) = render(ALL_ON).of("PrometheusRule")
    return rule["spec"]["groups"]


def rules_of(groups: list[dict], kind: str) -> dict[str, dict]:
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def targets() -> Iterator[tuple[str, str, str, str]]:
    """(dashboard, panel, query, legend) with Grafana's variables as they stand when everything is chosen."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                query = target["expr"].replace("$__rate_interval", "5m")
                query = re.sub(r"\$(namespace|modeldeployment)\b", ".*", query)
                assert "$" not in query
                yield path.stem, panel["title"], query, target["legendFormat"]


# Rules


def test_promtool_takes_the_rules_as_they_are(promtool, groups):
    rendered = promtool.write("rendered.yaml", {"groups": groups})

    for path in (rendered, ROOT / "charts" / "octavo" / "files" / "rules.yaml"):
        result = promtool.run("check", "rules", "--lint=all", "--lint-fatal", str(path))
        assert result.returncode == 0, result.stdout + result.stderr


def test_alerts_fire_and_stay_silent_as_their_tests_say(promtool, groups):
    promtool.write("rules.yaml", {"groups": groups})
    (promtool.folder / "alert_tests.yaml").write_text(ALERT_TESTS.read_text())

    result = promtool.run("test", "rules", "alert_tests.yaml")

    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_seen_to_fire_and_to_stay_silent(groups):
    told: dict[str, set[bool]] = {}
    for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            told.setdefault(case["alertname"], set()).add(bool(case.get("exp_alerts")))

    assert told == {name: {True, False} for name in rules_of(groups, "alert")}


def test_alerts_are_tested_on_series_that_the_programs_really_expose(live):
    exposed: dict[str, list[set[str]]] = {}
    for series in live:
        exposed.setdefault(series.name, []).append(set(series.labels))

    for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]:
        for given in test["input_series"]:
            name, labels = parse_series(given["series"])
            assert any(set(labels) <= known for known in exposed.get(name, ())), given["series"]


def test_every_recording_rule_gives_series_on_a_live_scrape(promtool, groups, live):
    names = list(rules_of(groups, "record"))

    found = promtool.evaluate(names, live, {"groups": groups})

    assert [name for name in names if not found[name]] == []


def test_every_alert_says_what_happened_what_to_do_and_is_documented(groups):
    guide = (ROOT / "docs" / "monitoring.md").read_text()

    for name, alert in rules_of(groups, "alert").items():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert set(alert["annotations"]) == {"summary", "description"}
        assert f"`{name}`" in guide


def test_alerts_are_left_out_by_name_and_with_the_adapter_that_they_watch(render):
    values = {"rules": {"enabled": True, "disabledAlerts": ["OctavoPreemptions"]}}
    everything = rules_of(render(ALL_ON).of("PrometheusRule")[0]["spec"]["groups"], "alert")

    fewer = render({"monitoring": values, "metricsAdapter": {"enabled": False}})

    (rule,) = fewer.of("PrometheusRule")
    left_out = set(everything) - set(rules_of(rule["spec"]["groups"], "alert"))
    assert left_out == {"OctavoPreemptions", "OctavoMetricsAdapterDown"}


def test_an_alert_that_does_not_exist_cannot_be_left_out(helm):
    settings = "monitoring.rules.enabled=true,monitoring.rules.disabledAlerts={OctavoNothing}"

    result = helm("template", "octavo", str(ROOT / "charts" / "octavo"), "--set", settings, check=False)

    assert "OctavoNothing, which is no alert of this chart; it has OctavoModelUnavailable" in result.stderr


# Dashboards


@pytest.mark.timeout(120)
def test_every_query_of_every_dashboard_finds_series_on_a_live_scrape(promtool, live):
    """A query that names a metric or a label that nobody exposes finds nothing, or lacks what its legend shows."""
    found = promtool.evaluate([query for _, _, query, _ in targets()], live)

    labels: dict[str, set[str]] = {}
    for series in live:
        labels.setdefault(series.name, set()).update(series.labels)
    for dashboard, panel, query, legend in targets():
        assert found[query], f"{dashboard}, {panel}: nothing for {query}"
        shown = set(re.findall(r"{{(\w+)}}", legend))
        # A label without a value is none: requests that named no model have no `model`.
        assert any(shown <= label_names(result) for result in found[query]), f"{dashboard}, {panel}: {found[query]}"
        grouped = {name.strip() for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(",")}
        chosen = set(re.findall(r'(\w+)=~?"', query))
        for metric in re.findall(r"\b(?:vllm:|octavo_)\w+", query):
            assert grouped | chosen <= labels[metric], f"{dashboard}, {panel}: {metric} in {query}"


def test_the_dashboards_variables_ask_for_metrics_that_exist(live):
    exposed = {series.name: set(series.labels) for series in live}

    for path in DASHBOARDS:
        for variable in json.loads(path.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                metric, label = re.fullmatch(r"label_values\((\w+)(?:{.*})?, (\w+)\)", variable["definition"]).groups()
                assert label in exposed[metric]
                assert variable["query"]["query"] == variable["definition"]


def test_panels_lie_beside_each_other_and_explain_themselves():
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        cells: set[tuple[int, int]] = set()
        assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            covered = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert not covered & cells
            assert at["x"] + at["w"] <= 24
            cells |= covered
            assert panel["type"] == "row" or panel["description"].endswith(".")


def test_each_dashboard_becomes_a_config_map_that_grafanas_sidecar_finds(render):
    rendered = render(ALL_ON)

    maps = [each for each in rendered.of("ConfigMap") if "dashboard" in each["metadata"]["name"]]

    assert len(maps) == len(DASHBOARDS)
    for path, config_map in zip(DASHBOARDS, maps, strict=True):
        assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert json.loads(config_map["data"][f"octavo-{path.name}"]) == json.loads(path.read_text())


# Monitors


@pytest.mark.parametrize("kind", ["PodMonitor", "ServiceMonitor"])
def test_monitors_choose_the_pods_and_ports_that_there_are(render, kind):
    from octavo_operator.desired import names

    rendered = render({"monitoring": {"monitors": {"kind": kind}}})
    labels = {
        component: rendered.find("Deployment", f"octavo-{component}")["spec"]["template"]["metadata"]["labels"]
        for component in ("operator", "gateway")
    }
    labels["server"] = names.revision_labels("qwen", "r")
    ports = {
        component: {port["name"] for port in rendered.container(component)["ports"]}
        for component in ("operator", "gateway")
    }
    ports["server"] = {names.PORT_NAME}

    for component, expected in labels.items():
        spec = rendered.find(kind, f"octavo-{component}")["spec"]
        assert spec["selector"]["matchLabels"].items() <= expected.items()
        (endpoint,) = spec["podMetricsEndpoints" if kind == "PodMonitor" else "endpoints"]
        assert endpoint["port"] in ports[component]
        assert endpoint["path"] == "/metrics"


def test_servers_are_scraped_where_they_are_watched(render):
    everywhere = render(ALL_ON).find("PodMonitor", "octavo-server")["spec"]
    limited = render({**ALL_ON, "namespaces": ["a", "b"]}).find("PodMonitor", "octavo-server")["spec"]

    assert everywhere["namespaceSelector"] == {"any": True}
    assert limited["namespaceSelector"] == {"matchNames": ["a", "b"]}
    relabelled = {rule["targetLabel"] for rule in everywhere["podMetricsEndpoints"][0]["relabelings"]}
    assert relabelled == {"modeldeployment", "revision"}


def test_by_default_nothing_asks_for_the_prometheus_operator(render):
    assert {"PodMonitor", "ServiceMonitor", "PrometheusRule"}.isdisjoint(each["kind"] for each in render())


# Other scalers


def test_the_query_of_a_scaled_object_finds_the_pressure(promtool, live):
    resource = replace(a_resource("tiny", scaling={"maxReplicas": 2}), namespace="live")
    manifest = render_scaler(resource, Scaler(kind="KEDA", prometheus="http://prometheus:9090"))
    query = manifest["spec"]["triggers"][0]["metadata"]["query"]

    assert len(promtool.evaluate([query], live)[query]) == 1


def test_the_prometheus_adapters_rule_gives_each_pod_its_pressure(promtool, live):
    """The templates filled in as prometheus-adapter does it for the HPA's question."""
    values = yaml.safe_load((ROOT / "examples" / "autoscalers" / "prometheus-adapter-values.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    filled = {
        "<<.Series>>": METRIC,
        "<<.LabelMatchers>>": 'namespace="live",pod=~"tiny-1"',
        "<<.GroupBy>>": "pod",
    }
    query = rule["metricsQuery"]
    for template, value in filled.items():
        query = query.replace(template, value)

    found = promtool.evaluate([rule["seriesQuery"], query], live)

    assert rule["seriesQuery"].startswith(METRIC + "{")
    assert all("tiny-1" in result for results in found.values() for result in results)
    assert len(found[query]) == 1
