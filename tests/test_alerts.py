"""Recording rules and alerts: promtool tries them, and each has its cases and its runbook."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from streammaml.backends.metrics import Metrics
from streammaml.backends.outer_metrics import OuterMetrics
from streammaml.config import Config
from tests.observed import (
    DOCKER,
    PROMETHEUS,
    RULES,
    TARGET_LABELS,
    by_series,
    name_of,
    recorded,
    rules,
    uses,
)

PROMTOOL_S = 120.0
RATES = {"rate", "increase"}
CASES = sorted((DOCKER / "prometheus" / "tests").glob("*.test.yml"))
README = (DOCKER.parent / "README.md").read_text(encoding="utf-8")
ALERTS = [rule for rule in rules() if "alert" in rule]

every_rule = pytest.mark.parametrize("rule", rules(), ids=name_of)
every_alert = pytest.mark.parametrize("alert", ALERTS, ids=name_of)


@pytest.fixture
def promtool() -> str:
    """A machine that must run these tests says so: a skip there would be a hole in the net."""
    found = shutil.which("promtool")
    if found is None:
        reason = "promtool is not installed (Debian: apt-get install prometheus)"
        if os.environ.get("STREAMMAML_REQUIRE_PROMTOOL") == "1":
            pytest.fail(f"STREAMMAML_REQUIRE_PROMTOOL=1, but {reason}")
        pytest.skip(reason)
    return found


def run(*command: str, text: bytes = b"") -> None:
    done = subprocess.run(command, input=text, capture_output=True, timeout=PROMTOOL_S)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def test_promtool_finds_no_fault_in_the_rules(promtool: str) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(RULES))


def test_promtool_finds_no_fault_in_the_configuration(promtool: str) -> None:
    run(promtool, "check", "config", "--lint=all", "--lint-fatal", str(PROMETHEUS))


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.name)
def test_the_rules_pass_their_cases(promtool: str, cases: Path) -> None:
    run(promtool, "test", "rules", str(cases))


@pytest.mark.parametrize(
    "registry",
    [Metrics(Config()).registry, OuterMetrics(60.0).registry],
    ids=["worker", "outer"],
)
def test_promtool_finds_no_fault_in_what_is_exported(
    promtool: str, registry: CollectorRegistry
) -> None:
    run(promtool, "check", "metrics", text=generate_latest(registry))


@every_rule
def test_a_rule_has_a_quiet_and_a_firing_case(rule: dict[str, Any]) -> None:
    names = [case["name"] for path in CASES for case in load(path)["tests"]]

    for kind in ("quiet", "fires"):
        assert any(name.startswith(f"{name_of(rule)}: {kind} ") for name in names), kind


@every_rule
def test_a_rule_asks_for_what_is_there(rule: dict[str, Any]) -> None:
    of_prometheus = {"up", "scrape_samples_post_metric_relabeling"}

    for use in uses(rule["expr"]):
        family = by_series().get(use.metric)
        if family is None:
            assert use.metric in of_prometheus | recorded(), use.selector
        else:
            assert use.labels <= family.labels | TARGET_LABELS, use.selector
            counts = family.kind in ("counter", "histogram")
            assert (use.function in RATES) == counts, use.selector


def test_the_alerts_are_those_of_the_house() -> None:
    severities = {name_of(alert): alert["labels"]["severity"] for alert in ALERTS}

    critical = ["Down", "CrashLooping", "Stalled", "NonFinite"]
    warning = ["LagGrowing", "Rejecting", "AdaptationNotHelping", "LossRegression"]
    warning += ["OuterLoopStale", "InitVersionSkew", "SeriesGuard"]
    assert severities == {f"Streammaml{name}": "critical" for name in critical} | {
        f"Streammaml{name}": "warning" for name in warning
    }


@every_alert
def test_an_alert_says_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    texts = alert["annotations"]

    assert set(texts) == {"summary", "description", "runbook_url"}
    assert len(texts["summary"]) < 100
    assert len(re.findall(r"[.:;] ", texts["description"])) >= 2, "cause, then action"
    assert texts["description"].endswith(".")


def test_every_alert_has_its_section_in_the_runbook_and_the_other_way_round() -> None:
    runbook = README.split("\n## Runbook\n")[1].split("\n## ")[0]
    headings = re.findall(r"^### (.+)$", runbook, re.MULTILINE)
    links = [alert["annotations"]["runbook_url"] for alert in ALERTS]

    assert headings == [name_of(alert) for alert in ALERTS]
    assert links == [f"README.md#{heading.lower()}" for heading in headings]
    for section in runbook.split("\n### ")[1:]:
        assert re.search(r"^- Look at: .+\n(.*\n)*- Do: .+", section, re.MULTILINE), section


def test_a_panel_or_section_that_the_runbook_names_is_there() -> None:
    runbook = README.split("\n## Runbook\n")[1].split("\n## ")[0]
    dashboard = (DOCKER / "grafana/dashboards/streammaml.json").read_text(encoding="utf-8")
    looks = re.findall(r"^- Look at: (.*?)^- Do:", runbook, re.MULTILINE | re.DOTALL)

    for title in re.findall(r'"([^"]+)"', " ".join(looks)):
        assert f'"title": "{title}"' in dashboard or f"# {title}\n" in README, title


def test_the_jobs_of_the_rules_are_scraped_on_the_ports_of_the_configuration() -> None:
    jobs = {job["job_name"]: job for job in load(PROMETHEUS)["scrape_configs"]}
    config = Config()

    assert all(job.startswith("streammaml-") for job in jobs)
    for name, port in (("worker", config.web.port), ("outer", config.outer.port)):
        (static,) = jobs[f"streammaml-{name}"]["static_configs"]
        assert {int(target.partition(":")[2]) for target in static["targets"]} == {port}


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded
