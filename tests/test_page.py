"""The live pages in a real Chromium: while the demo plays, over a restart, of the outer loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from streammaml.backends.board import Board
from streammaml.backends.outer_board import OuterBoard
from streammaml.backends.outer_metrics import OuterMetrics
from streammaml.backends.web import Sources, Summarized, WebServer
from streammaml.config import WebConfig
from streammaml.outer import OuterJob
from streammaml.outer_serving import OuterWatch
from tests.browser import Tab, browsing, chromium
from tests.outer_rig import PERIOD_S, Rig
from tests.test_demo import Showing

pytestmark = pytest.mark.skipif(
    chromium() is None and not os.environ.get("STREAMMAML_REQUIRE_CHROMIUM"),
    reason="there is no Chromium here; STREAMMAML_REQUIRE_CHROMIUM=1 makes that a failure",
)
WAIT_S = 60.0
START_S = 200.0
"""The demo may have to compile its kernels first, and meta-trains."""
POINTS = "[...document.querySelectorAll('#loss canvas')].map(c => c.toDataURL()).join()"
EVENTS = "Number(document.querySelector('#rate-below').textContent.replace(/\\D/g, ''))"
DRIFTS = "Number(document.querySelector('#drifts-value').textContent.replace(/\\D/g, ''))"
TEENS = ",".join(f"sensor-1{i}" for i in range(5))
ENTER, ESCAPE, ARROW_LEFT = 13, 27, 37


def artifacts(tmp_path: Path) -> Path:
    return Path(os.environ.get("STREAMMAML_ARTIFACTS", tmp_path))


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with browsing(tmp_path / "profile") as opened:
        opened.size(1280, 900)
        yield opened


def site(board: Summarized, port: int = 0, **more: Any) -> WebServer:
    """A server for a board alone."""
    sources = Sources(
        registry=CollectorRegistry(),
        board=board,
        loop_age_s=lambda: 0.0,
        ready=lambda: True,
        **more,
    )
    return WebServer(WebConfig(port=port), sources)


def test_a_visitor_sees_the_curve_move_a_drift_and_one_context(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tab: Tab
) -> None:
    showing = Showing(capsys, events=20_000, rate=4_000.0, outer_steps=300)
    with showing.running() as address:
        tab.open(address)

        tab.wait_for(f"{EVENTS} > 200 && document.querySelector('#loss canvas')", START_S)
        events, curve = tab.value(EVENTS), tab.value(POINTS)
        tab.wait_for(f"{EVENTS} > {events} && {POINTS} !== {curve!r}", WAIT_S)
        tab.wait_for(f"{DRIFTS} > 0", WAIT_S)
        tab.wait_for("document.querySelector('#recovery canvas')", WAIT_S)

        tab.wait_for("document.querySelectorAll('#contexts-body a').length > 5", WAIT_S)
        matching = "[...document.querySelectorAll('#contexts-body a')].map(a => a.textContent)"
        tab.value(
            "(() => { const f = document.querySelector('#filter'); f.value = 'sensor-1[0-4]';"
            " f.dispatchEvent(new Event('input')); })()"
        )
        tab.wait_for(f"{matching}.toSorted().join() === '{TEENS}'", WAIT_S)
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
        for scheme, picture in (("light", "live-page-light"), ("dark", "live-page")):
            tab.scheme(scheme)
            tab.screenshot(artifacts(tmp_path) / f"{picture}.png")

        tab.press("Escape", ESCAPE)
        tab.wait_for("document.querySelector('#context').hidden", WAIT_S)
        assert tab.value("document.activeElement.closest('#contexts-body, #filter') !== null")

        assert tab.problems == []
        assert {urlsplit(url).netloc for url in tab.requests} == {urlsplit(address).netloc}


def test_the_page_goes_on_over_a_restart_of_the_worker_and_keeps_the_curve(tab: Tab) -> None:
    def board(events: int, loss: float) -> Board:
        made = Board(width=10)
        made.state("starting")  # no contexts are asked for
        for _ in range(events // 10):
            made.update(events=10, losses={"init": (10.0, 10), "adapted": (10 * loss, 10)})
        return made

    first = site(board(600, 0.5)).start()
    port = urlsplit(first.address).port or 0
    tab.open(first.address)
    tab.wait_for(f"{EVENTS} === 600", WAIT_S)

    first.close()
    tab.wait_for("document.querySelector('#state').textContent.startsWith('no answer')", WAIT_S)
    kept = tab.value(EVENTS)
    with site(board(200, 0.25), port):
        tab.wait_for("document.querySelector('#state').textContent.includes('restarted')", WAIT_S)
        tab.value("document.querySelector('#loss summary').click()")
        rows = "[...document.querySelectorAll('#loss tbody tr')].map(r => r.textContent)"
        tab.wait_for(f"{rows}.length > 5", WAIT_S)
        shown = tab.value(rows)

        tab.value("document.querySelector('#loss .plot').focus()")
        tab.press("ArrowLeft", ARROW_LEFT)
        tab.wait_for("document.querySelector('#loss .read').textContent", WAIT_S)
        read = tab.value("document.querySelector('#loss .read').textContent")

    assert kept == 600
    assert read == "790 events: init 1.000, adapted 0.250"
    assert "restarted after 600 events" in tab.value("document.querySelector('#state').textContent")
    assert shown[0].endswith("0.500")
    assert shown[-1] == "8001.0000.250"


def test_where_no_place_is_left_the_page_asks_instead(tab: Tab) -> None:
    board = Board()
    with site(board) as server:
        live = server.live
        while live.enter():
            pass
        tab.open(server.address)
        tab.wait_for("document.querySelector('#state').textContent === 'starting'", WAIT_S)
        board.update(events=5)
        tab.wait_for(f"{EVENTS} === 5", WAIT_S)


def test_the_theme_is_the_systems_until_someone_chooses(tab: Tab) -> None:
    def background() -> str:
        found: str = tab.value("getComputedStyle(document.body).backgroundColor")
        return found

    with site(Board()) as server:
        shown = []
        for scheme in ("dark", "light"):
            tab.scheme(scheme)
            tab.open(server.address)
            shown.append(background())
        for _ in range(2):  # auto, light, dark
            tab.value("document.querySelector('#theme').click()")
        chosen = background()
        tab.open(server.address)
        kept = background()

    dark, light = shown
    assert dark != light
    assert chosen == kept == dark


def test_the_outer_loop_shows_its_runs_and_the_gate_of_what_it_published(
    tmp_path: Path, tab: Tab
) -> None:
    rig = Rig(tmp_path / "state")
    board, stop = OuterBoard(rig.config.outer.reservoir_total, PERIOD_S), threading.Event()
    watch = OuterWatch(OuterMetrics(PERIOD_S), board)
    seen = rig.seen
    seen.on_run = lambda run: stop.set() if len(seen.runs) == 4 else None
    with site(board, page="outer") as server:
        tab.open(server.address)
        tab.wait_for("document.querySelector('#state').textContent === 'starting'", WAIT_S)
        rig.produce()
        job = OuterJob(
            rig.config, rig.outside, [watch, seen], clock=lambda: PERIOD_S * len(seen.runs)
        )
        job.run(stop, PERIOD_S)
        tab.wait_for("document.querySelectorAll('#runs tbody tr').length === 4", WAIT_S)
        tab.wait_for("document.querySelector('#meta canvas')", WAIT_S)
        results = tab.value(
            "[...document.querySelectorAll('#runs .result')].map(r => r.textContent)"
        )
        gates = tab.value("document.querySelectorAll('#gates tbody tr').length")
        version = tab.value("document.querySelector('#version-value').textContent")
        tab.screenshot(artifacts(tmp_path) / "outer-page.png")

    assert results == [run.result for run in reversed(seen.runs)]
    assert gates == results.count("published") > 0
    assert version == f"v{seen.runs[-1].version}"
    assert tab.problems == []
