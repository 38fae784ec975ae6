"""The live pages in a real Chromium: while the demo plays, over a restart, of the outer loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from fnmatch import fnmatchcase
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
from streammaml.query import Query
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
ENTER, ESCAPE, HOME, ARROW_LEFT = 13, 27, 36, 37


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
        state = tab.value("document.querySelector('#state').textContent")
        tab.value("document.querySelector('#loss summary').click()")
        rows = "[...document.querySelectorAll('#loss tbody tr')].map(r => r.textContent)"
        tab.wait_for(f"{rows}.length > 5", WAIT_S)
        shown = tab.value(rows)

        tab.value("document.querySelector('#loss .plot').focus()")
        tab.press("ArrowLeft", ARROW_LEFT)
        tab.wait_for("document.querySelector('#loss .read').textContent", WAIT_S)
        read = tab.value("document.querySelector('#loss .read').textContent")

        legend = "document.querySelector('#loss .legend').textContent"
        at_present = f"{legend}.includes('adapted 0.250')"
        for leave in ("Escape", "focus"):
            tab.value("document.querySelector('#loss .plot').focus()")
            tab.press("Home", HOME)
            tab.wait_for(f"{legend}.includes('adapted 0.500')", WAIT_S)
            if leave == "Escape":
                tab.press("Escape", ESCAPE)
            else:
                tab.value("document.querySelector('#theme').focus()")
            tab.wait_for(at_present, WAIT_S)

    assert kept == 600
    assert read == "790 events: init 1.000, adapted 0.250"
    assert "restarted after 600 events" in state
    assert shown[0].endswith("0.500")
    assert shown[-1] == "8001.0000.250"


class Shelf:
    """Contexts as a worker lists them; whoever looks at one gives it five more labels."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.labels = 100

    def list(self, query: Query) -> dict[str, Any]:
        found = [name for name in self.names if fnmatchcase(name, query.pattern)]
        more = {"level": "stable", "labels": 100, "labels_in_segment": 50, "initialization": 1}
        rows = [{"context": name, "loss": 1 - i / 40, **more} for i, name in enumerate(found)]
        counts = {"matched": len(found), "in_memory": len(self.names)}
        return {**counts, "contexts": rows[: query.limit]}

    def one(self, name: str) -> dict[str, Any] | None:
        if name not in self.names:
            return None
        self.labels += 5
        state = {
            "labels": self.labels,
            "labels_in_segment": self.labels % 20,  # a drift at every fourth look
            "support": [{"label": 1, "features": {"x": 1}}],
            "initialization": 1,
            "adapted": True,
            "detector": {"name": "page-hinkley"},
        }
        return {"tier": "memory", "partition": 0, "offset": 3, "state": state}


def test_contexts_are_found_and_followed_while_someone_points_at_them(tab: Tab) -> None:
    shelf = Shelf("..", "lone \ud800", *(f"sensor-{i:02}" for i in range(30)))
    board = Board(width=10)
    board.state("ready")
    board.update(events=30, losses={"init": (21.0, 30), "adapted": (15.0, 30)})
    rows = "[...document.querySelectorAll('#contexts-body a')].map(a => a.textContent).join()"
    points = "[...document.querySelectorAll('#context .numbers tbody th')]"
    points += ".map(t => Number(t.textContent))"

    def look_for(text: str, found: str) -> None:
        tab.value(
            f"(() => {{ const f = document.querySelector('#filter'); f.value = {text!r};"
            " f.dispatchEvent(new Event('input')); })()"
        )
        tab.wait_for(f"{rows} === {found!r}", WAIT_S)

    with site(board, contexts=shelf.list, context=shelf.one) as server:
        tab.open(server.address)
        tab.wait_for("document.querySelectorAll('#contexts-body a').length === 18", WAIT_S)

        tab.point("#contexts-body tr")
        tab.wait_for(
            "document.querySelector('#contexts-sub').textContent.includes('rests')", WAIT_S
        )
        look_for("sensor-29", "sensor-29")
        look_for("nosuch", "")
        look_for("[.]*", "..")

        tab.value("document.querySelector('#contexts-body a').click()")
        tab.wait_for("document.querySelector('#context canvas')", WAIT_S)
        tab.value("document.querySelector('#context summary').click()")
        tab.value(
            "void (window.kept = [...document.querySelectorAll("
            "'#models td, #context-facts div, #support td, #contexts-body a')])"
        )
        tab.wait_for(f"{points}.length > 2", WAIT_S)
        shelf.labels = 0
        tab.wait_for(f"{points}.length > 1 && {points}.at(-1) < 100", WAIT_S)

        assert tab.value(f"{points}.every((x, i, all) => !i || x > all[i - 1])")
        assert tab.value("kept.length > 20 && kept.every(node => node.isConnected)")
        assert tab.problems == []


ALPHAS = """void import(new URL('chart.js', location)).then(({ Chart }) => {
  const drawing = CanvasRenderingContext2D.prototype;
  const alpha = Object.getOwnPropertyDescriptor(drawing, 'globalAlpha');
  window.alphas = [];
  const set = function (value) { alphas.push(value); alpha.set.call(this, value); };
  Object.defineProperty(drawing, 'globalAlpha', { ...alpha, set });
  const marks = [2, ...Array(1000).fill(-5)].map((at) => ({ at, kind: 'drift' }));
  new Chart(document.querySelector('#recovery'), { keys: ['init'], unit: 'labels', caption: '' })
    .update({ x: [1, 2, 3], ys: { init: [1, 2, 3] }, marks, text: '' });
})"""


def test_marks_out_of_sight_do_not_fade_the_others(tab: Tab) -> None:
    with site(Board()) as server:
        tab.open(server.address)
        tab.value(ALPHAS)
        tab.wait_for("window.alphas && alphas.length > 0", WAIT_S)

        assert tab.value("alphas[0]") == 0.24


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
