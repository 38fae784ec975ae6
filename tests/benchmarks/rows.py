"""How a benchmark gives its figures: name -> {value, target, unit}, and more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Rows = dict[str, Row]
Part = Callable[[str, Path, int], Rows]
"""Measures on a broker of its own, with a folder, in so many rounds."""


def row(value: float, unit: str, target: float | None = None, **more: Any) -> Row:
    """``least=True`` where the value must not be below its target."""
    return {"value": round(value, 3), "target": target, "unit": unit, **more}


def rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 2) for value in values]


def text_of(name: str, found: Row) -> str:
    value, target = found["value"], found["target"]
    verdict = ""
    if target is not None:
        reached = value >= target if found.get("least") else value <= target
        verdict = f"  target {target}: {'reached' if reached else 'NOT reached'}"
    more = {k: v for k, v in found.items() if k not in ("value", "unit", "target", "least")}
    return f"{name:28} {value:>12} {found['unit']}{verdict}  {more or ''}"
