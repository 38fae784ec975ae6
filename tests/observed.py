"""What the dashboard and the rules ask of Prometheus, and what our processes tell it."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import yaml
from prometheus_client.core import Metric

from streammaml.backends.instruments import NAMES, OUTER_NAMES, PREFIX
from streammaml.backends.metrics import Metrics
from streammaml.backends.outer_metrics import OuterMetrics
from streammaml.config import Config

DOCKER = Path(__file__).parents[1] / "docker"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "streammaml.json"
RULES = DOCKER / "prometheus" / "rules" / "streammaml.rules.yml"
PROMETHEUS = DOCKER / "prometheus" / "prometheus.yml"

TARGET_LABELS = {"job", "instance"}
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "info": ("_info",),
    "histogram": ("_bucket", "_sum", "_count"),
}


class Use(NamedTuple):
    """One selector of an expression, and the function whose range it is; "" for none."""

    function: str
    metric: str
    selector: str
    labels: frozenset[str]


class Family(NamedTuple):
    """What one of our processes exports under a name; ``series`` are the names of its samples."""

    kind: str
    series: tuple[str, ...]
    labels: frozenset[str]


def filled(expression: str, window: str = "5m", reach: str = "3h", chosen: str = ".+") -> str:
    """The expression with Grafana's variables replaced."""
    for variable, value in (
        ("$__rate_interval", window),
        ("$__range", reach),
        ("$job", chosen),
        ("$instance", chosen),
    ):
        expression = expression.replace(variable, value)
    return expression


def uses(expression: str) -> list[Use]:
    """Everything that an expression selects."""
    found: list[Use] = []
    ranges: Counter[str] = Counter()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.Call):
            for argument in node.args:
                if isinstance(argument, promql_parser.MatrixSelector):
                    ranges[str(argument.vector_selector)] += 1
                    found.append(_use(argument.vector_selector, node.func.name))
        elif isinstance(node, promql_parser.VectorSelector):
            if ranges[str(node)]:  # met already, as the range of its function
                ranges[str(node)] -= 1
            else:
                found.append(_use(node, ""))

    promql_parser.walk(promql_parser.parse(filled(expression)), visit)
    return found


def _use(node: promql_parser.VectorSelector, function: str) -> Use:
    labels = frozenset(matcher.name for matcher in node.matchers.matchers)
    return Use(function, node.name or "", str(node), labels)


@cache
def exported() -> dict[str, Family]:
    """All that a worker and an outer loop export, by the names that their help texts have."""
    registries = (Metrics(Config()).registry, OuterMetrics(60.0).registry)
    families = [family for registry in registries for family in registry.collect()]
    return {family.name: _family(family) for family in families}


def _family(metric: Metric) -> Family:
    specs = [
        names.get(metric.name.removeprefix(PREFIX) + suffix)
        for names in (NAMES, OUTER_NAMES)
        for suffix in ("", "_total")
    ]
    labels = {label for spec in specs if spec for label in spec.labels}
    labels |= {label for sample in metric.samples for label in sample.labels}
    series = tuple(metric.name + suffix for suffix in SUFFIXES[metric.type])
    return Family(metric.type, series, frozenset(labels))


@cache
def by_series() -> dict[str, Family]:
    return {name: family for family in exported().values() for name in family.series}


@cache
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


@cache
def panels() -> list[dict[str, Any]]:
    """Those that show something, wherever they stand; no rows."""
    top = dashboard()["panels"]
    within = [panel for row in top for panel in row.get("panels") or []]
    return [panel for panel in [*top, *within] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """Of panels and annotations, each with the title it stands under."""
    shown = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    return shown + [(mark["name"], mark["expr"]) for mark in dashboard()["annotations"]["list"]]


@cache
def rules() -> list[dict[str, Any]]:
    """Recording rules and alerts."""
    loaded = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def name_of(rule: dict[str, Any]) -> str:
    name: str = rule.get("alert") or rule["record"]
    return name


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}
