"""The live page in a real Chromium, while the demo plays."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.browser import browsing, chromium
from tests.test_demo import Showing

needs_chromium = pytest.mark.skipif(chromium() is None, reason="there is no Chromium here")
WAIT_S = 60.0
POINTS = "[...document.querySelectorAll('#loss canvas')].map(c => c.toDataURL()).join()"
EVENTS = "Number(document.querySelector('#rate-below').textContent.replace(/\\D/g, ''))"
DRIFTS = "Number(document.querySelector('#drifts-value').textContent.replace(/\\D/g, ''))"
ENTER, ESCAPE = 13, 27


def artifacts(tmp_path: Path) -> Path:
    return Path(os.environ.get("STREAMMAML_ARTIFACTS", tmp_path))


@needs_chromium
def test_a_visitor_sees_the_curve_move_a_drift_and_one_context(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    showing = Showing(capsys, events=20_000, rate=4_000.0, outer_steps=300)
    with showing.running() as address, browsing(tmp_path / "profile") as tab:
        tab.size(1280, 900)
        tab.open(address)

        tab.wait_for(f"{EVENTS} > 200 && document.querySelector('#loss canvas')", WAIT_S)
        events, curve = tab.value(EVENTS), tab.value(POINTS)
        tab.wait_for(f"{EVENTS} > {events} && {POINTS} !== {curve!r}", WAIT_S)
        tab.wait_for(f"{DRIFTS} > 0", WAIT_S)
        tab.wait_for("document.querySelector('#recovery canvas')", WAIT_S)

        tab.wait_for("document.querySelectorAll('#contexts-body a').length > 5", WAIT_S)
        name = tab.value(
            "(() => { const a = document.querySelector('#contexts-body a');"
            " a.focus(); return a.textContent; })()"
        )
        tab.press("Enter", ENTER, "\r")
        tab.wait_for(f"document.querySelector('#context-name').textContent === {name!r}", WAIT_S)
        tab.wait_for("document.querySelectorAll('#context-facts dd').length >= 12", WAIT_S)
        tab.wait_for("document.querySelectorAll('#support tbody tr').length === 8", WAIT_S)
        assert tab.value("location.hash") == f"#context={name}"
        assert tab.value("document.activeElement.id") == "context-name"

        tab.wait_for("document.querySelector('#note').textContent.startsWith('All 20,000')", WAIT_S)
        for scheme in ("light", "dark"):
            tab.scheme(scheme)
            tab.screenshot(artifacts(tmp_path) / f"live-page-{scheme}.png")

        tab.press("Escape", ESCAPE)
        tab.wait_for("document.querySelector('#context').hidden", WAIT_S)

        assert tab.problems == []
        assert {urlsplit(url).netloc for url in tab.requests} == {urlsplit(address).netloc}
