"""Registry, alert rules, dashboard and scrape configuration agree with each other and the code."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.common.metrics import RpcMetrics
from services.load_monitor.metrics import MonitorCounters
from services.local.triton.server.__main__ import TRACE_VARIABLE
from services.openai_door.metrics import DoorMetrics
from services.router_inference import health_notes
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.workers.pages import ParentMetrics
from services.trainer.metrics import TrainerMetrics
from tests.unit.deploy.doc_tables import OPERATOR_RULES, operator_rules
from tests.unit.deploy.manifests import (
    ALL_SERVICES,
    DEPLOY,
    OVERLAYS,
    ROOT,
    compose,
    load_yaml,
    port,
    rendered,
    resource,
    section,
    tool,
)

_PROMETHEUS = DEPLOY / "prometheus"
_SCRAPE_LABELS = {"job", "instance"}
_FOREIGN_METRICS = {"up": _SCRAPE_LABELS}
_TYPES = {"counter", "gauge", "histogram"}
_KINDS = {"server", "client", "internal", "producer", "consumer"}
_ATTRIBUTE_TYPES = {"string", "int", "double", "boolean", "string[]", "int[]", "double[]"}
_METRIC = re.compile(r"\b((?:tiercel|nv)_[a-z0-9_]+|up(?=[{ ]))(\{[^}]*\})?")
_CLASSES = {
    "router-inference": (RouterMetrics, RpcMetrics, ParentMetrics),
    "trainer": (TrainerMetrics, RpcMetrics),
    "load-monitor": (MonitorCounters, RpcMetrics),
    "openai-door": (DoorMetrics,),
}


@functools.cache
def _registry() -> dict[str, Any]:
    document: dict[str, Any] = load_yaml(DEPLOY / "telemetry" / "registry.yaml")
    return document


@functools.cache
def _metrics() -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in _registry()["metrics"]}


def _dashboard_queries() -> list[str]:
    found = []
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            found += [target["expr"] for target in panel.get("targets", [])]
    return found


@functools.cache
def _rules() -> list[dict[str, Any]]:
    groups = load_yaml(_PROMETHEUS / "rules.yaml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _rule_queries() -> list[str]:
    return [rule["expr"] for rule in _rules()]


def _uses(query: str) -> Iterator[tuple[str, set[str]]]:
    """Yields each metric of a query (base name for histograms) with the labels of its matchers."""
    for name, matchers in _METRIC.findall(query):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        found = base if _metrics().get(base, {}).get("type") == "histogram" else name
        yield found, set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers))


def _labels(metric: str) -> set[str]:
    if metric in _FOREIGN_METRICS:
        return _FOREIGN_METRICS[metric]
    entry = _metrics()[metric]
    extra = {"le"} if entry["type"] == "histogram" else set()
    return {*entry["labels"], *_SCRAPE_LABELS, *extra}


def test_registry_has_the_described_form() -> None:
    """Every row is complete, of known types, and the lists are sorted without duplicates."""
    registry = _registry()
    assert registry.keys() == {"metrics", "spans", "attributes"}
    for rows in registry.values():
        names = [row["name"] for row in rows]
        assert names == sorted(set(names))
        assert all(row["description"].strip() for row in rows)
    for row in registry["metrics"]:
        assert row.keys() == {"name", "type", "unit", "labels", "services", "description"}
        assert row["type"] in _TYPES
        assert row["name"].endswith("_total") == (row["type"] == "counter")
        assert row["services"]
        assert set(row["services"]) <= set(ALL_SERVICES)
    attributes = {row["name"] for row in registry["attributes"]}
    for row in registry["attributes"]:
        assert row.keys() == {"name", "type", "unit", "description"}
        assert row["type"] in _ATTRIBUTE_TYPES
    for row in registry["spans"]:
        assert row["kind"] in _KINDS
        assert set(row["attributes"]) <= attributes, row["name"]


@pytest.mark.parametrize("service", _CLASSES)
def test_every_metric_of_the_code_is_registered(service: str) -> None:
    """Name, type and labels of each metric a service makes are those of its row."""
    registry = CollectorRegistry(auto_describe=True)
    for metrics in _CLASSES[service]:
        metrics(registry)
    rows = _metrics()
    for name, kind, labels in _told(registry._collector_to_names):
        name += "_total" if kind == "counter" else ""
        assert name in rows, f"{name} is missing in registry.yaml"
        assert rows[name]["type"] == kind, name
        assert rows[name]["labels"] == labels, name
        assert service in rows[name]["services"], name


def _told(collectors: Iterable[Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Yields name, type and labels of the metrics of collectors: the library's, and our own."""
    for each in collectors:
        if hasattr(each, "_type"):
            yield each._name, each._type, list(each._labelnames)
        else:
            yield from ((m.name, m.type, list(m._labelnames)) for m in each.collect())


def test_every_registered_metric_occurs_in_the_code() -> None:
    """No row outlives its metric: its name is in the code of each service it lists."""
    common = _source("common")
    for name, row in _metrics().items():
        for service in row["services"]:
            text = _source(ALL_SERVICES[service]) + common
            stem = name.removesuffix("_total")
            short = stem.removeprefix("tiercel_trainer_")
            assert f'"{stem}"' in text or f'"{short}"' in text, f"{name}: {service}"


def test_every_attribute_and_span_of_the_code_is_registered() -> None:
    """Every quoted `tiercel.*` telemetry name in the router and the client has a row."""
    registry = _registry()
    known = {row["name"] for kind in ("spans", "attributes") for row in registry[kind]}
    text = (ROOT / "services" / "router_inference" / "records" / "tracing.py").read_text(
        encoding="utf-8"
    )
    text += _source("client/tiercel")
    used = set(re.findall(r'"(tiercel\.[a-z_.]+)"', text)) - {"tiercel.client"}
    assert used
    assert used <= known, used - known


def _source(package: str) -> str:
    files = sorted((ROOT / "services" / package).rglob("*.py"))
    return "".join(path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize("query", [*_dashboard_queries(), *_rule_queries()])
def test_queries_use_registered_metrics_and_labels(query: str) -> None:
    """A dashboard or rule names only metrics and labels that exist."""
    recorded = {rule.get("record") for rule in _rules()}
    uses = list(_uses(query))
    for name in re.findall(r"\btiercel:[a-z0-9_:]+", query):
        assert name in recorded
    assert uses or "tiercel:" in query
    allowed: set[str] = set()
    for metric, matched in uses:
        assert metric in _metrics() or metric in _FOREIGN_METRICS, metric
        assert matched <= _labels(metric), (metric, matched)
        allowed |= _labels(metric)
    for grouping in re.findall(r"\bby \(([^)]*)\)", query):
        assert {label.strip() for label in grouping.split(",")} <= allowed


def test_dashboard_covers_what_operators_look_at() -> None:
    """Rate, mix, performance, latency, queues, policy, rescues and degradation are there.

    So are deadlines for tokens, conversations, priority classes, workers and rollouts.
    """
    queries = " ".join(_dashboard_queries())
    for metric in (
        "tiercel_requests_total", "tiercel_delivered_reward_total",
        "tiercel_request_latency_seconds_bucket", "tiercel_candidate_in_flight",
        "tiercel_tier_queue_depth", "tiercel_policy_info", "tiercel_rescues_total",
        "tiercel_degraded", "tiercel_fallback_decisions_total",
        "tiercel_token_deadline_smooth_answers_total", "tiercel_conversation_decisions_total",
        "tiercel_priority_requests_total", "tiercel_workers", "tiercel_worker_restarts_total",
        "tiercel_trainer_rollout_stage", "tiercel_trial_requests_total",
    ):  # fmt: skip
        assert metric in queries


def test_dashboard_panels_do_not_overlap() -> None:
    """Every panel has a title, a unique id, and a place of its own within 24 columns."""
    (path,) = (DEPLOY / "grafana" / "dashboards").glob("*.json")
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_dashboard_and_provisioned_data_sources_agree() -> None:
    """Every data source a panel names is provisioned, and its address is a Compose service's."""
    sources = load_yaml(DEPLOY / "grafana/provisioning/datasources/datasources.yaml")["datasources"]
    text = (DEPLOY / "grafana" / "dashboards" / "tiercel.json").read_text(encoding="utf-8")
    assert set(re.findall(r'"uid": "(prometheus|jaeger)"', text)) <= {s["uid"] for s in sources}
    services = compose("compose.observability.yaml")["services"]
    for source in sources:
        host, _, number = source["url"].removeprefix("http://").partition(":")
        assert int(number) in {entry["target"] for entry in services[host]["ports"]}


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    """rules_test.yaml tests each alert both ways."""
    alerts = {rule["alert"] for rule in _rules() if "alert" in rule}
    cases = [
        case
        for test in load_yaml(_PROMETHEUS / "rules_test.yaml")["tests"]
        for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_every_reason_to_be_degraded_has_an_alert() -> None:
    """A router that says what it lacks is heard."""
    reasons = {value for name, value in vars(health_notes).items() if value == name}
    assert reasons
    heard = {
        reason
        for query in _rule_queries()
        for named in re.findall(r'tiercel_degraded\{reason=~?"([^"]*)"\}', query)
        for reason in named.split("|")
    }
    # Where no policy is there, the fallback decides, which has an alert of its own.
    assert heard == reasons - {health_notes.POLICY_UNAVAILABLE}


def _jobs_of_alerts() -> set[str]:
    (rule,) = (rule for rule in _rules() if rule.get("alert") == "TiercelServiceDown")
    (named,) = re.findall(r'job=~"([^"]*)"', rule["expr"])
    return set(named.split("|"))


def test_every_job_of_the_mesh_is_missed_when_it_is_gone() -> None:
    """The alert on services names all that is scraped but the collector, which serves nobody."""
    jobs = {job["job_name"] for job in load_yaml(_PROMETHEUS / "prometheus.yml")["scrape_configs"]}
    assert _jobs_of_alerts() == jobs - {"otel-collector"}


def _operators() -> list[dict[str, Any]]:
    return rendered("prometheus-operator")


def test_the_prometheus_operator_has_the_same_rules() -> None:
    """Its copy, which another tool reads, is that of the file with the tests."""
    text = OPERATOR_RULES.read_text(encoding="utf-8")
    assert text == operator_rules(), "run: python -m tests.unit.deploy.doc_tables"
    rule = resource(_operators(), "PrometheusRule", "tiercel")
    assert rule.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert rule["spec"] == load_yaml(_PROMETHEUS / "rules.yaml")
    # Of the keys that PrometheusRule knows.
    for group in rule["spec"]["groups"]:
        assert group.keys() <= {"name", "interval", "rules"}
        for each in group["rules"]:
            known = {"record", "alert", "expr", "for", "labels", "annotations"}
            assert each.keys() <= known, each


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_prometheus_operator_scrapes_every_pod_that_has_metrics(overlay: str) -> None:
    """As the annotations say, often enough, and by the names that the alerts go by."""
    monitor = resource(_operators(), "PodMonitor", "tiercel")
    assert monitor["metadata"]["namespace"] == "tiercel"
    spec = monitor["spec"]
    assert spec.keys() == {"jobLabel", "selector", "podMetricsEndpoints"}
    (scrape,) = spec["podMetricsEndpoints"]
    assert scrape.keys() == {"port", "interval", "honorLabels"}
    interval = load_yaml(_PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    assert scrape["interval"] == interval
    # The operator writes some labels of its own, which must not take the place of ours.
    assert "endpoint" in {label for row in _metrics().values() for label in row["labels"]}
    assert scrape["honorLabels"] is True
    scraped = set()
    for entry in rendered(overlay):
        if entry["kind"] not in {"Deployment", "StatefulSet"}:
            continue
        template = entry["spec"]["template"]
        labels = template["metadata"]["labels"]
        annotations = template["metadata"].get("annotations", {})
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        ports = {
            each["name"]: each["containerPort"]
            for container in template["spec"]["containers"]
            for each in container["ports"]
        }
        assert annotations.get("prometheus.io/port") == (
            str(ports[scrape["port"]]) if scrape["port"] in ports else None
        )
        if scrape["port"] in ports:
            scraped.add(labels[spec["jobLabel"]])
    assert scraped == _jobs_of_alerts()


def test_every_alert_is_in_the_runbook() -> None:
    """docs/operations.md says what to do about each alert."""
    runbook = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for rule in _rules():
        if "alert" in rule:
            assert f"### {rule['alert']}\n" in runbook


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = tool("promtool")
    if path is None:
        pytest.skip(
            "promtool is not installed (Debian package: prometheus): rules were not checked"
        )
    return subprocess.run(
        [path, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=_PROMETHEUS
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yaml"),
        ("test", "rules", "rules_test.yaml"),
        ("check", "config", "prometheus.yml"),
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_prometheus_accepts(arguments: tuple[str, ...]) -> None:
    """Promtool accepts the rules, their tests pass, and the scrape configuration is valid."""
    done = _promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_parses_every_dashboard_query(tmp_path: Path) -> None:
    """Every panel's PromQL is valid, Grafana's variables filled in."""
    rules = [
        {"record": f"panel:{index}", "expr": _filled(query)}
        for index, query in enumerate(_dashboard_queries())
    ]
    document = tmp_path / "queries.yaml"
    document.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = _promtool("check", "rules", str(document))
    assert done.returncode == 0, done.stdout + done.stderr


def _filled(query: str) -> str:
    return query.replace("$__rate_interval", "1m").replace("$task", ".*")


def test_scrapes_reach_the_ports_of_the_settings() -> None:
    """Every scraped port is the metrics port of its job's settings, or an endpoint's."""
    jobs = {
        job["job_name"]: job for job in load_yaml(_PROMETHEUS / "prometheus.yml")["scrape_configs"]
    }
    for service in ALL_SERVICES:
        wanted = port(section("reference", service)["metrics_listen"])
        (targets,) = jobs[service].get("static_configs") or jobs[service]["dns_sd_configs"]
        got = targets.get("port") or port(targets["targets"][0])
        assert got == wanted
    settings = tomllib.loads((DEPLOY / "config/reference/tiercel.toml").read_text(encoding="utf-8"))
    (triton,) = jobs["triton"]["static_configs"]
    assert port(triton["targets"][0]) == port(settings["mesh"]["endpoints"][0]["metrics_address"])


def test_collector_listens_where_services_send() -> None:
    """The collector's receivers are on the ports that the observability layer names."""
    collector = load_yaml(DEPLOY / "otel" / "collector.yaml")
    protocols = collector["receivers"]["otlp"]["protocols"]
    services = compose("compose.observability.yaml")["services"]
    endpoint = services["router-inference"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert port(endpoint) == port(protocols["grpc"]["endpoint"])
    spans = services["triton"]["environment"][TRACE_VARIABLE]
    assert spans.endswith(f":{port(protocols['http']['endpoint'])}/v1/traces")
    exported = collector["exporters"]["otlp/jaeger"]["endpoint"].partition(":")[0]
    assert exported in services
    pipeline = collector["service"]["pipelines"]["traces"]
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) <= set(collector[kind])
