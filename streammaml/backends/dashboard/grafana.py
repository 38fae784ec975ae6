"""The dashboard as Grafana 11 to 13 take it: classic JSON, through Grafana's own builders.

Rule: the only module that needs the extra ``dashboards``; no process of ours imports it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from string import ascii_uppercase
from typing import TypeVar

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as look
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from streammaml.backends.dashboard.panel import GREEN, MODEL_COLOURS, Mark, Panel, Query, Row
from streammaml.backends.dashboard.rows import MARKS, ROWS

UID = "streammaml"
REFRESH = "10s"
STEP = "60s"
"""Between two looks for a mark."""
STAT_ROWS, LINE_ROWS = 4, 8
SOURCE = look.DataSourceRef(type_val="prometheus", uid="${datasource}")

AnyPanel = TypeVar("AnyPanel", timeseries.Panel, stat.Panel, heatmap.Panel, table.Panel)


def as_json() -> str:
    """What stands in docker/grafana/dashboards."""
    return json.dumps(_dashboard().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _dashboard() -> build.Dashboard:
    board = (
        build.Dashboard("streammaml")
        .uid(UID)
        .description("Online adaptation for many contexts. Built by streammaml.backends.dashboard.")
        .tags(["streammaml"])
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .time("now-3h", "now")
        .refresh(REFRESH)
        .variables(_variables())
        .annotations([_annotation(mark) for mark in MARKS])
    )
    ids = count(1)
    for row in ROWS:
        _add(board, row, ids)
    return board


def _add(board: build.Dashboard, row: Row, ids: count[int]) -> None:
    """Grafana wants the panels of a collapsed row within it, and those of another after it."""
    heading = build.Row(row.title).id(next(ids)).collapsed(row.collapsed)
    panels = [_panel(panel, next(ids)) for panel in row.panels]
    if row.collapsed:
        for panel in panels:
            heading.with_panel(panel)
    board.with_row(heading)
    if not row.collapsed:
        for panel in panels:
            board.with_panel(panel)


def _variables() -> list[Builder[model.VariableModel]]:
    chosen = 'streammaml_build_info{job=~"$job"}'
    return [
        build.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _variable("job", "Job", "label_values(streammaml_build_info, job)"),
        _variable("instance", "Instance", f"label_values({chosen}, instance)"),
    ]


def _variable(name: str, label: str, query: str) -> build.QueryVariable:
    return (
        build.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": f"variable-{name}"})
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
    )


def _annotation(mark: Mark) -> build.AnnotationQuery:
    return (
        build.AnnotationQuery()
        .name(mark.title)
        .datasource(SOURCE)
        .enable(True)
        .icon_color(mark.colour)
        .expr(mark.expr)
        .step(STEP)
        .title_format(mark.title)
        .text_format(mark.text)
    )


def _panel(panel: Panel, number: int) -> Builder[model.Panel]:
    if panel.kind == "stat":
        return _filled(_stat(panel), panel, number)
    if panel.kind == "heatmap":
        axis = heatmap.YAxisConfig().unit(panel.unit)
        return _filled(heatmap.Panel().y_axis(axis), panel, number)
    if panel.kind == "table":
        clock = [model.DynamicConfigValue("custom.hidden", True)]
        return _filled(table.Panel().override_by_name("Time", clock), panel, number)
    return _filled(_lines(panel), panel, number)


def _stat(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .graph_mode(look.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def _lines(panel: Panel) -> timeseries.Panel:
    """Bars are stacked and stand for what happens now and then."""
    legend = common.VizLegendOptions().placement(look.LegendPlacement.BOTTOM).show_legend(True)
    made = (
        timeseries.Panel()
        .legend(legend.display_mode(look.LegendDisplayMode.LIST))
        .tooltip(common.VizTooltipOptions().mode(look.TooltipDisplayMode.MULTI))
        .min(0)
    )
    if any(query.legend == "{{model}}" for query in panel.queries):
        for name, colour in MODEL_COLOURS.items():
            fixed = {"mode": "fixed", "fixedColor": colour}
            made.override_by_name(name, [model.DynamicConfigValue("color", fixed)])
    if panel.kind == "bars":
        stacked = common.StackingConfig().mode(look.StackingMode.NORMAL)
        return made.draw_style(look.GraphDrawStyle.BARS).fill_opacity(80).stacking(stacked)
    return made.fill_opacity(5)


def _filled(made: AnyPanel, panel: Panel, number: int) -> AnyPanel:
    """``made`` with what all kinds of panels have."""
    made.id(number).title(panel.title).description(panel.description).unit(panel.unit)
    made.datasource(SOURCE).span(panel.width)
    made.height(STAT_ROWS if panel.kind == "stat" and panel.width == 6 else LINE_ROWS)
    if panel.interval:
        made.interval(panel.interval)
    for letter, query in zip(ascii_uppercase, panel.queries, strict=False):
        made.with_target(_target(query, letter, panel))
    made.thresholds(
        build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(_steps(panel.limits))
    )
    return made


def _steps(limits: Sequence[tuple[float, str]]) -> list[model.Threshold]:
    return [model.Threshold(value, colour) for value, colour in ((None, GREEN), *limits)]


def _target(query: Query, letter: str, panel: Panel) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(letter).datasource(SOURCE).expr(query.expr)
    if panel.kind == "table":
        return target.instant().format(PromQueryFormat.TABLE)
    if panel.kind == "heatmap":
        target.format(PromQueryFormat.HEATMAP)
    if query.exemplars:
        target.exemplar(True)
    return target.range().legend_format(query.legend or "__auto")
