"""Progress of long work: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from streammaml.jobs import progress


def shown(*, terminal: bool, total: int | None, every_s: float = 0.0) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80)
    with progress("feeding events", total, console, every_s) as tell:
        for done in (1_000, 2_000):
            tell(done, "500 events/s")
    return out.getvalue()


def test_elsewhere_than_on_a_terminal_progress_is_a_line_now_and_then() -> None:
    assert shown(terminal=False, total=4_000).splitlines() == [
        "feeding events: 1,000 of 4,000, 500 events/s",
        "feeding events: 2,000 of 4,000, 500 events/s",
    ]
    assert shown(terminal=False, total=None).startswith("feeding events: 1,000, ")
    assert shown(terminal=False, total=4_000, every_s=3600) == ""


def test_on_a_terminal_progress_is_one_bar() -> None:
    text = shown(terminal=True, total=4_000)

    assert "feeding events" in text
    assert "2000/4000" in text
    assert "500 events/s" in text
