"""What a panel is, whoever draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["stat", "lines", "bars", "heatmap", "table"]

GREEN, ORANGE, RED, BLUE = "green", "orange", "red", "blue"
MODEL_COLOURS: Mapping[str, str] = {
    "init": "#8c97a4",
    "adapted": "#2fd3a2",
    "baseline": "#b794f6",
}
"""By the label ``model``: the same on every panel, and on the live page where it is dark."""


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and how its series are called."""

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """``limits``: from which value on which colour holds; green below the first.

    ``interval``: at least this from point to point, for what happens more rarely than scrapes do.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: Kind = "lines"
    width: int = 8
    limits: Sequence[tuple[float, str]] = ()
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]
    collapsed: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line on all panels, where ``expr`` gives a sample."""

    title: str
    expr: str
    text: str
    colour: str
