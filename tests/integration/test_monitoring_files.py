"""Dashboards and alerts, against the metrics that exist. `make manifests`."""

import json
import re

import promql_parser
import pytest

from serve_app.metrics import METRICS
from tests.support.manifests import CLUSTER, load, name, need, run

pytestmark = pytest.mark.manifests


def queries() -> list[tuple[str, str]]:
    """(where, expression) of every panel and every rule, Grafana's own variables filled in."""
    dashboard = json.loads((CLUSTER / "monitoring" / "dashboard.json").read_text())
    found = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())]
    for group in load(CLUSTER / "monitoring" / "rules.yaml")["groups"]:
        found += [(rule.get("alert") or rule["record"], rule["expr"]) for rule in group["rules"]]
    return [(where, expr.replace("$__rate_interval", "5m")) for where, expr in found]


@pytest.mark.parametrize(("where", "expr"), queries(), ids=name)
def test_each_query_names_a_metric_that_exists(where: str, expr: str) -> None:
    """Each panel and rule is valid PromQL over metrics and tags that serve_app/metrics.py has."""
    promql_parser.parse(expr)
    known = {exported: metric for metric in METRICS for exported in metric.exported}
    named = set(re.findall(r"\bray_\w+", expr))
    assert named
    assert named <= known.keys()
    tags = {tag for each in named for tag in known[each].tags} | {"le", "instance", "replica"}
    grouped = {tag.strip() for group in re.findall(r"by \(([^)]*)\)", expr) for tag in group.split(",")}
    assert grouped | set(re.findall(r"[{,]\s*(\w+)\s*=", expr)) <= tags


def test_each_metric_is_looked_at_somewhere() -> None:
    """Every metric is used by an alert or a dashboard."""
    text = " ".join(expr for _, expr in queries())
    assert [metric.name for metric in METRICS if not any(exported in text for exported in metric.exported)] == []


def test_each_old_failure_raises_its_alert() -> None:
    """promtool accepts rules and configuration, and the rules' own tests pass."""
    need("promtool", "prometheus")
    run(["promtool", "check", "rules", CLUSTER / "monitoring" / "rules.yaml"])
    run(["promtool", "check", "config", CLUSTER / "monitoring" / "prometheus.yaml"])
    run(["promtool", "test", "rules", CLUSTER / "monitoring" / "rules_test.yaml"])
