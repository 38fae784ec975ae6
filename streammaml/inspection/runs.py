"""One run of the outer loop, as a person reads it and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from streammaml.catalogue import loss_of
from streammaml.inspection.pages import DASH, printable
from streammaml.outer_run import Run


def run_values(run: Run) -> dict[str, Any]:
    """In JSON values; of the gradients' norms, which are many, metrics tell."""
    values = asdict(run) | {"seconds": round(run.seconds, 3), "report": dict(run.report)}
    return {name: value for name, value in values.items() if name != "norms"}


def run_page(run: Run) -> RenderableType:
    """What became of it, then what each net's judge found."""
    lines = [Text(f"{run.result}{': ' + printable(run.why) if run.why else ''}")]
    if run.version != run.parent:
        lines.append(Text(f"v{run.version} is current, was v{run.parent}"))
    lines.append(
        Text(f"{run.steps:,} steps on {run.tasks:,} episodes in {run.seconds:.1f} s").append(
            f"; {run.nonfinite:,} not finite" if run.nonfinite else ""
        )
    )
    nets = run.report.get("nets")
    if not nets:
        return Group(*lines)
    table = Table(box=None, pad_edge=False)
    for name in ("net", "loss before", "loss", "passed"):
        table.add_column(name, justify="left" if name in ("net", "passed") else "right")
    for net, verdict in nets.items():
        losses = (loss_of(run.report, f"loss_{of}", net) for of in ("incumbent", "candidate"))
        cells = [DASH if loss is None else f"{loss:.4f}" for loss in losses]
        table.add_row(net, *cells, "yes" if verdict["passed"] else f"no: {verdict['why']}")
    return Group(*lines, table)
