"""The files of the live pages, a fixed list, read once."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Literal

Page = Literal["worker", "outer"]

HTML, CSS, SCRIPT = (f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript"))
SCRIPTS: Mapping[Page, tuple[str, ...]] = {
    "worker": ("worker.js", "contexts.js", "context.js"),
    "outer": ("outer.js",),
}
SHARED = ("theme.js", "live.js", "chart.js", "parts.js", "uplot/uPlot.iife.min.js")
STYLES = ("page.css", "uplot/uPlot.min.css")


def page_files(page: Page) -> dict[str, tuple[str, bytes]]:
    """From each path to its content's type and bytes."""
    named = {"/": (f"{page}.html", HTML)}
    named |= {f"/{name}": (name, SCRIPT) for name in (*SCRIPTS[page], *SHARED)}
    named |= {f"/{name}": (name, CSS) for name in STYLES}
    folder = files("streammaml.backends") / "static"
    return {
        path: (kind, folder.joinpath(name).read_bytes()) for path, (name, kind) in named.items()
    }
