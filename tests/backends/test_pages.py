"""The live pages as they are served: their files, and what is pushed to them."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import pytest

from streammaml.backends.live import MOST_CLIENTS
from streammaml.backends.outer_board import OuterBoard
from streammaml.backends.web import WebServer
from streammaml.config import WebConfig
from tests.kafka_broker import wait_until
from tests.site import TIMEOUT_S, Site


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    with running.server:
        yield running


@pytest.fixture(params=["worker", "outer"])
def shown(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Each of the two pages."""
    running = Site()
    running.server = WebServer(WebConfig(port=0), replace(running.sources, page=request.param))
    with running.server:
        yield running


OWN_CODE = ("/theme.js", "/live.js", "/chart.js", "/parts.js")
LIBRARY = ("/uplot/uPlot.iife.min.js", "/uplot/uPlot.min.css")
LINKS = {"metrics", "api/summary", "healthz", "readyz", "#main"}


def test_the_page_comes_with_its_scripts_and_styles(shown: Site) -> None:
    page = shown.ask("/")
    named = set(re.findall(r'<(?:link|script)[^>]*(?:src|href)="([^"]+)"', page[2].decode()))

    assert page[1]["Content-Type"] == "text/html; charset=utf-8"
    for path in {f"/{name}" for name in named} | set(OWN_CODE):
        status, headers, body = shown.ask(path)
        kind = "css" if path.endswith(".css") else "javascript"
        assert (status, headers["Content-Type"]) == (200, f"text/{kind}; charset=utf-8"), path
        assert len(body) > 100


def scripts_of(site: Site) -> dict[str, str]:
    """Our own, by path: what the page names, and what that imports."""
    found: dict[str, str] = {}
    todo = re.findall(r'src="([^"/]+\.js)"', site.ask("/")[2].decode())
    while todo:
        name = todo.pop()
        if name not in found:
            status, _, body = site.ask(f"/{name}")
            assert status == 200, name
            found[name] = body.decode()
            todo += re.findall(r'from "\./([^"]+)"', found[name])
    return found


def test_the_page_loads_nothing_from_elsewhere_and_needs_no_inline_code(shown: Site) -> None:
    page, style = (shown.ask(path)[2].decode() for path in ("/", "/page.css"))
    code = "".join(scripts_of(shown).values())

    named = set(re.findall(r'(?:src|href)="([^"]+)"', page)) - LINKS
    assert all(shown.ask(f"/{name}")[0] == 200 for name in named)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", page)
    assert "url(" not in style
    assert not re.findall(r"https?://", page + style + code)
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", code)


def test_the_page_has_all_that_its_scripts_fill(shown: Site) -> None:
    page, scripts = shown.ask("/")[2].decode(), "".join(scripts_of(shown).values())

    ids = re.findall(r'id="([^"]+)"', page)
    used = set(re.findall(r'\$\("([^"]+)"\)', scripts))
    used |= {f"{name}-value" for name in re.findall(r'tile\("([^"]+)"', scripts)}
    assert used <= set(ids)
    assert len(ids) == len(set(ids))
    assert "state" in used


def test_a_script_is_short_enough_to_be_read(shown: Site) -> None:
    assert all(text.count("\n") < 400 for text in scripts_of(shown).values())


def test_the_page_can_be_read_without_eyes(shown: Site) -> None:
    page = shown.ask("/")[2].decode()

    assert '<html lang="en">' in page
    assert page.count("<main") == page.count("<h1") == 1
    assert 'class="status" role="status"' in page
    for plot in re.findall(r'<div class="plot"[^>]*>', page):
        assert 'role="img"' in plot
        named = re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', plot)
        assert len(named) == 2
        assert all(f'id="{name}"' in page for name in named)
    assert page.count('<div class="plot"') == page.count("<summary>As a table</summary>") > 0
    assert page.count("<caption") == page.count("<table>")


def contrast(one: str, other: str) -> float:
    """As WCAG 2 counts it."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_what_is_written_stands_out_in_every_theme(site: Site) -> None:
    style = site.ask("/page.css")[2].decode()
    light, dark, auto = (
        dict(re.findall(r"--(\w+): (#\w{6});", block))
        for block in re.findall(r":root[^{]*\{([^}]*)\}", style)
    )

    assert auto == dark
    for theme in (light, dark):
        for ground in ("card", "grid", "tint"):  # of a row: as it is, pointed at, chosen
            for ink in ("ink", "quiet", "drift", "published"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        for ground in ("card", "paper"):
            assert contrast(theme["edge"], theme[ground]) >= 3, ground
    assert re.search(r"button, input, select \{[^}]*border: 1px solid var\(--edge\)", style)


def test_the_licence_of_the_library_lies_beside_it() -> None:
    folder = files("streammaml.backends") / "static" / "uplot"

    assert "MIT" in (folder / "LICENSE").read_text()
    assert "v1.6.32" in (folder / "uPlot.iife.min.js").read_text()[:200]


def events_of(site: Site) -> http.client.HTTPResponse:
    target = urlsplit(site.server.address)
    connection = http.client.HTTPConnection(target.netloc, timeout=TIMEOUT_S)
    connection.request("GET", "/events")
    return connection.getresponse()


def next_summary(events: http.client.HTTPResponse) -> Any:
    while not (line := events.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    return json.loads(line.removeprefix(b"data: "))


def test_summaries_are_pushed(site: Site) -> None:
    events = events_of(site)
    first = next_summary(events)
    site.board.update(events=7)
    second = next_summary(events)
    events.close()

    assert events.headers["Content-Type"] == "text/event-stream"
    assert events.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert (first["events"], second["events"]) == (0, 7)


def test_pages_beyond_the_limit_are_told_to_ask_instead_and_get_the_place_of_one_that_left(
    site: Site,
) -> None:
    open_ones = [events_of(site) for _ in range(MOST_CLIENTS)]
    for events in open_ones:
        next_summary(events)

    refused = events_of(site)
    asked = site.ask("/api/summary")[0]
    open_ones.pop().close()
    wait_until(lambda: events_of(site).status == 200, TIMEOUT_S, "a place")
    for events in open_ones:
        events.close()

    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert b"/api/summary" in refused.read()
    assert asked == 200


def test_closing_ends_the_streams_at_once() -> None:
    before = set(threading.enumerate())
    site = Site()
    site.server.start()
    streams = [events_of(site) for _ in range(3)]
    for events in streams:
        next_summary(events)

    site.server.close()

    assert set(threading.enumerate()) == before
    for events in streams:
        assert events.read().count(b"data: ") <= 1
        events.close()


def test_head_of_the_events_has_their_type_and_ends(site: Site) -> None:
    status, headers, body = site.ask("/events", "HEAD")

    assert (status, headers["Content-Type"], body) == (200, "text/event-stream", b"")
    assert "Content-Length" not in headers


def test_the_outer_loop_has_a_page_of_its_own_and_no_contexts() -> None:
    site = Site()
    board = OuterBoard(10, 60.0)
    sources = replace(site.sources, board=board, page="outer")
    site.server = WebServer(WebConfig(port=0), sources)

    with site.server:
        page = site.ask("/")[2].decode()
        summary = json.loads(site.ask("/api/summary")[2])
        paths = ("worker.js", "api/contexts", "api/contexts/x", "api/context?name=x")
        missing = {site.ask(f"/{path}")[0] for path in paths}

    assert "outer.js" in page
    assert summary == board.summary()
    assert missing == {404}
