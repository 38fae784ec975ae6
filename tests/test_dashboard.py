"""Grafana's dashboard is what the panels say, and all that it asks for is there to be had.

The rules of grafana/dashboard-linter are written out here: no package index has it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.models import units

import streammaml
from streammaml.backends.dashboard.grafana import as_json
from streammaml.backends.dashboard.panel import MODEL_COLOURS
from streammaml.backends.dashboard.rows import ROWS, UNSHOWN
from streammaml.backends.instruments import NAMES, RESULTS
from tests.observed import (
    DASHBOARD,
    DOCKER,
    PROMETHEUS,
    TARGET_LABELS,
    by_series,
    dashboard,
    exported,
    expressions,
    panels,
    recorded,
    rules,
    uses,
)

GRID = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF_PROMETHEUS = {"up", "ALERTS", "scrape_duration_seconds", "scrape_samples_post_metric_relabeling"}
RATES = {"rate", "increase"}
UNITS = {unit for name, unit in vars(units).items() if name[0].isupper()}

every_panel = pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
every_expression = pytest.mark.parametrize(
    ("title", "expression"),
    [pytest.param(t, e, id=f"{t}-{i}") for i, (t, e) in enumerate(expressions())],
)


def test_the_committed_dashboard_is_what_the_panels_say() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == as_json()


def test_the_command_finds_no_difference() -> None:
    command = [sys.executable, "-m", "streammaml.backends.dashboard", "--check"]

    subprocess.run(command, check=True, timeout=60)


def test_no_process_of_ours_imports_grafanas_builders() -> None:
    package = Path(streammaml.__file__).parent
    users = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"grafana_foundation_sdk|dashboard\.grafana", path.read_text("utf-8"))
    }

    assert users == {f"backends/dashboard/{name}.py" for name in ("grafana", "__main__")}


def test_rows_stand_from_the_most_urgent_to_the_least() -> None:
    rows = [(p["title"], p["collapsed"]) for p in dashboard()["panels"] if p["type"] == "row"]

    assert rows == [
        ("Is it all right?", False),
        ("Loss", False),
        ("Drift and adaptation", False),
        ("Kafka", False),
        ("Outer loop", False),
        ("Contexts and state", True),
        ("Process", True),
    ]
    assert rows == [(row.title, row.collapsed) for row in ROWS]


def test_it_is_a_classic_dashboard_that_nobody_edits() -> None:
    board = dashboard()

    assert (board["schemaVersion"], board["editable"]) == (42, False)
    assert (board["uid"], board.get("id")) == ("streammaml", None)


def test_jobs_and_instances_are_chosen_among_those_that_are_there() -> None:
    datasource, *chosen = dashboard()["templating"]["list"]

    assert (datasource["name"], datasource["query"]) == ("datasource", "prometheus")
    assert [variable["name"] for variable in chosen] == ["job", "instance"]
    for variable in chosen:
        assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (
            True,
            True,
            ".+",
        )
        assert variable["refresh"] == 2, "or a worker that came later is not in the list"
        assert "label_values(streammaml_build_info" in variable["query"]["query"]
        assert variable["datasource"] == SOURCE


def test_drifts_publications_and_restarts_are_marked() -> None:
    marks = dashboard()["annotations"]["list"]

    assert {mark["name"]: mark["iconColor"] for mark in marks} == {
        "Drift": "orange",
        "Published initialization": "blue",
        "Restart": "red",
    }
    assert all(mark["enable"] and mark["datasource"] == SOURCE for mark in marks)


@every_panel
def test_a_panel_says_what_it_shows_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS


@every_panel
def test_a_panel_asks_the_chosen_source(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    assert panel["datasource"] == SOURCE
    assert all(target["datasource"] == SOURCE for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_a_legend_tells_the_series_of_a_panel_apart() -> None:
    for panel in panels():
        legends = [target.get("legendFormat") for target in panel["targets"]]
        assert len(legends) == len(set(legends)), panel["title"]


@every_expression
def test_an_expression_is_of_the_chosen_job_and_instance(title: str, expression: str) -> None:
    for use in uses(expression):
        if use.metric != "ALERTS":  # a rule decides which labels an alert keeps
            assert use.labels >= TARGET_LABELS, f"{title}: {use.selector}"
            assert f'{use.metric}{{job=~"$job",instance=~"$instance"' in expression


@every_expression
def test_a_range_is_grafanas(title: str, expression: str) -> None:
    ranges = set(re.findall(r"\[(.*?)\]", expression))

    assert ranges <= {"$__rate_interval", "$__range"}, title
    if re.search(r"\brate\([^\[]*\[\$__range", expression):
        pytest.fail(f"{title}: a rate over the whole dashboard is no rate")


@every_expression
def test_a_counter_is_rated_and_a_gauge_is_not(title: str, expression: str) -> None:
    for use in uses(expression):
        family = by_series().get(use.metric)
        if family:
            counts = family.kind in ("counter", "histogram")
            assert (use.function in RATES) == counts, f"{title}: {use.selector}"


@every_expression
def test_a_label_is_one_that_the_metric_has(title: str, expression: str) -> None:
    for use in uses(expression):
        family = by_series().get(use.metric)
        if family:
            assert use.labels <= family.labels | TARGET_LABELS, f"{title}: {use.selector}"


def test_a_model_has_the_colour_that_it_has_on_the_page() -> None:
    css = Path(streammaml.__file__).parent / "backends/static/page.css"
    pages = set(re.findall(r"#[0-9a-f]{6}", css.read_text(encoding="utf-8")))

    assert set(MODEL_COLOURS) == set(NAMES["prequential_loss"].labels["model"])
    assert set(MODEL_COLOURS.values()) <= pages
    by_model = [p for p in panels() if any("{{model}}" in str(t) for t in p["targets"])]
    assert len(by_model) == 2
    for panel in by_model:
        fixed = {
            override["matcher"]["options"]: setting["value"]["fixedColor"]
            for override in panel["fieldConfig"]["overrides"]
            for setting in override["properties"]
        }
        assert fixed == MODEL_COLOURS, panel["title"]


def test_whether_adapting_helps_is_asked_of_predictions_before_their_labels() -> None:
    (gain,) = (panel for panel in panels() if panel["title"] == "Gain by adapting")
    (target,) = gain["targets"]

    assert {use.metric for use in uses(target["expr"])} == {
        "streammaml_prequential_loss_sum",
        "streammaml_prequential_loss_count",
    }


def test_what_is_undone_is_what_the_description_says() -> None:
    (panel,) = (panel for panel in panels() if panel["title"] == "Undone adaptations")
    chosen = re.search(r'result=~"(.+?)"', panel["targets"][0]["expr"])

    assert chosen is not None, "naming them, so that what is neither does not count"
    assert set(chosen[1].split("|")) < set(RESULTS)
    assert panel["description"] == f"Share of all that was {chosen[1].replace('|', ' or ')}."


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    everything = [*dashboard()["panels"], *panels()]
    places = {panel["id"]: panel["gridPos"] for panel in everything}
    shown = panels()

    assert len(places) == len(shown) + len(ROWS)
    assert len({panel["title"] for panel in shown}) == len(shown)
    taken: set[tuple[int, int]] = set()
    for title, at in ((panel["title"], panel["gridPos"]) for panel in shown):
        assert at["x"] + at["w"] <= GRID, title
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, title
        taken |= cells


def asked() -> set[str]:
    """By panels, annotations, alerts and recording rules."""
    everything = [expression for _, expression in expressions()]
    everything += [rule["expr"] for rule in rules()]
    return {use.metric for expression in everything for use in uses(expression)}


def test_every_metric_that_is_asked_for_is_exported() -> None:
    assert asked() <= set(by_series()) | OF_PROMETHEUS | recorded()


def test_every_metric_that_is_exported_is_shown_or_has_a_reason_not_to_be() -> None:
    unseen = {
        family.series[0] for family in exported().values() if not asked() & set(family.series)
    }

    assert unseen == set(UNSHOWN)
    assert all(UNSHOWN.values())


def test_grafana_finds_prometheus_and_the_dashboard_by_itself() -> None:
    (source,) = load(DOCKER / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    (provider,) = load(DOCKER / "grafana/provisioning/dashboards/streammaml.yaml")["providers"]
    scrapes = load(PROMETHEUS)["global"]["scrape_interval"]

    assert (source["type"], source["uid"], source["editable"]) == (
        "prometheus",
        "prometheus",
        False,
    )
    assert source["isDefault"]
    assert source["jsonData"]["timeInterval"] == scrapes, "or $__rate_interval is wrong"
    assert (provider["folder"], provider["allowUiUpdates"]) == ("streammaml", False)


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert loaded.get("apiVersion", 1) == 1
    return loaded
