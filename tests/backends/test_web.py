"""The worker's HTTP side, by real requests."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import pytest

from streammaml.backends.board import Board
from streammaml.backends.live import MOST_CLIENTS
from streammaml.backends.metrics import Metrics
from streammaml.backends.outer_board import OuterBoard
from streammaml.backends.web import Sources, WebServer
from streammaml.config import Config, WebConfig
from streammaml.errors import ConfigError, StoreError
from streammaml.query import Query
from tests.kafka_broker import wait_until

TIMEOUT_S = 20.0


class Site:
    """A running server, what it reads, and a client for it."""

    def __init__(self) -> None:
        self.age_s = 0.5
        self.is_ready = False
        self.problem: Exception | None = None
        self.board = Board(width=1)
        self.metrics = Metrics(Config())
        self.sources = Sources(
            registry=self.metrics.registry,
            board=self.board,
            loop_age_s=self.age,
            ready=lambda: self.is_ready,
            loop_limit_s=30.0,
            contexts=self.contexts,
            context=self.context,
        )
        self.server = WebServer(WebConfig(port=0), self.sources)

    def contexts(self, query: Query) -> dict[str, Any]:
        if self.problem is not None:
            raise self.problem
        return {"asked": list(query)}

    def context(self, name: str) -> dict[str, Any] | None:
        if self.problem is not None:
            raise self.problem
        return {"asked": name} if name else None

    def age(self) -> float:
        if self.age_s < -1e6:
            raise RuntimeError("a planted fault")
        return self.age_s

    def ask(
        self, path: str, method: str = "GET", accept: str = "*/*"
    ) -> tuple[int, dict[str, str], bytes]:
        target = urlsplit(self.server.address)
        connection = http.client.HTTPConnection(target.netloc, timeout=TIMEOUT_S)
        connection.request(method, path, headers={"Accept": accept})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, dict(answer.headers), body


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    with running.server:
        yield running


def test_metrics_come_as_text_by_default(site: Site) -> None:
    site.metrics.consumed(3)

    status, headers, body = site.ask("/metrics")

    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert b'streammaml_events_consumed_total{topic="events"} 3.0\n' in body
    assert b"# EOF" not in body


def test_metrics_come_as_openmetrics_where_that_is_accepted(site: Site) -> None:
    accept = "application/openmetrics-text; version=1.0.0"

    status, headers, body = site.ask("/metrics", accept=accept)

    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_the_worker_is_healthy_while_its_loop_turns(site: Site) -> None:
    site.age_s = 29.0
    alive = site.ask("/healthz")
    site.age_s = 30.0
    stuck = site.ask("/healthz")
    site.age_s = -5.0
    backing_off = site.ask("/healthz")

    assert alive[0] == 200
    assert json.loads(alive[2]) == {"status": "ok", "loop_age_s": 29.0, "limit_s": 30.0}
    assert stuck[0] == 503
    assert json.loads(stuck[2])["status"] == "stuck"
    assert backing_off[0] == 200


def test_the_worker_is_ready_once_it_says_so(site: Site) -> None:
    before = site.ask("/readyz")
    site.is_ready = True
    after = site.ask("/readyz")

    assert (before[0], json.loads(before[2])) == (503, {"ready": False})
    assert (after[0], json.loads(after[2])) == (200, {"ready": True})


def test_the_summary_is_what_the_board_says(site: Site) -> None:
    site.board.update(events=1, losses={"adapted": (0.5, 1)}, drifts=1)

    status, headers, body = site.ask("/api/summary?at=1")

    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    assert json.loads(body) == site.board.summary()
    assert json.loads(body)["drifts"] == 1


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/api/contexts", ["loss", 50, "*"]),
        ("/api/contexts?", ["loss", 50, "*"]),
        ("/api/contexts?sort=last-offset&limit=1000", ["last-offset", 1000, "*"]),
        ("/api/contexts?filter=a%26b%3F+c*&sort=name", ["name", 50, "a&b? c*"]),
        ("/api/contexts/shop", "shop"),
        ("/api/contexts/a%2Fb%3Fc%00?x=1", "a/b?c\0"),
        ("/api/contexts/..%2F..%2Fetc", "../../etc"),
        ("/api/contexts/%C3%BC+%25", "ü+%"),
    ],
)
def test_contexts_are_asked_for_as_the_path_says(site: Site, path: str, asked: Any) -> None:
    status, headers, body = site.ask(path)

    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {"asked": asked}


@pytest.mark.parametrize("path", ["/api/contexts", "/api/contexts/shop"])
@pytest.mark.parametrize("problem", [TimeoutError("it is busy"), StoreError("no room")])
def test_contexts_that_cannot_be_had_now_are_unavailable(
    site: Site, path: str, problem: Exception
) -> None:
    site.problem = problem

    status, _, body = site.ask(path)

    assert (status, json.loads(body)) == (503, {"error": f"{problem}; try again"})


@pytest.mark.parametrize("path", ["/api/contexts", "/api/contexts/shop"])
def test_without_a_worker_there_are_no_contexts(path: str) -> None:
    site = Site()
    bare = Sources(
        registry=site.metrics.registry, board=site.board, loop_age_s=site.age, ready=lambda: False
    )
    site.server = WebServer(WebConfig(port=0), bare)

    with site.server:
        assert site.ask(path)[0] == 503


def test_a_name_that_is_no_utf8_is_no_name(site: Site) -> None:
    assert site.ask("/api/contexts/%ff")[0] == 404


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


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/nowhere"])
def test_head_gives_the_headers_of_get_and_no_body(site: Site, path: str) -> None:
    got, head = site.ask(path), site.ask(path, "HEAD")

    assert head[0] == got[0]
    assert head[2] == b""
    assert head[1]["Content-Type"] == got[1]["Content-Type"]
    assert int(head[1]["Content-Length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NONE"])
def test_no_other_method_is_allowed(site: Site, method: str) -> None:
    status, headers, _ = site.ask("/healthz", method)

    assert status == 405
    assert headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    ["/worker.html", "/static/page.css", "/uplot/LICENSE", "/../config.py", "/%2e%2e/x"],
)
def test_what_is_no_route_is_not_found(site: Site, path: str) -> None:
    assert site.ask(path)[0] == 404


def test_every_answer_forbids_what_the_page_does_not_need(site: Site) -> None:
    for path in ("/", "/metrics", "/nowhere", "/favicon.ico"):
        headers = site.ask(path)[1]

        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert headers["Server"] == "streammaml"


def test_a_route_that_fails_answers_500_and_the_server_goes_on(site: Site) -> None:
    site.age_s = -1e9
    failed = site.ask("/healthz")
    site.age_s = 0.0
    well = site.ask("/healthz")

    assert failed[0] == 500
    assert b"planted" not in failed[2]
    assert well[0] == 200


def test_many_ask_at_once(site: Site) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(site.ask("/metrics")[0])) for _ in range(16)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == [200] * 16


def test_closing_ends_every_thread_even_that_of_a_silent_client() -> None:
    before = set(threading.enumerate())
    site = Site()
    site.server.start()
    target = urlsplit(site.server.address)
    assert target.hostname is not None
    silent = socket.create_connection((target.hostname, target.port or 0), timeout=TIMEOUT_S)
    site.ask("/healthz")  # by now the silent one has been accepted too

    site.server.close()

    assert set(threading.enumerate()) == before
    assert silent.recv(1) == b""
    silent.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((target.hostname, target.port or 0), timeout=TIMEOUT_S)


def test_closing_twice_or_before_the_start_does_nothing() -> None:
    site = Site()

    site.server.close()
    with site.server:
        pass
    site.server.close()


def test_a_port_that_is_taken_is_an_error_that_names_the_cure(site: Site) -> None:
    port = urlsplit(site.server.address).port
    second = WebServer(WebConfig(port=port or 0), Site().sources)

    with pytest.raises(ConfigError, match=rf"127.0.0.1:{port}.*web.port=0 takes any free port"):
        second.start()


def test_the_address_of_all_interfaces_is_one_a_browser_takes() -> None:
    site = Site()
    site.server = WebServer(WebConfig(host="0.0.0.0", port=0), site.sources)

    with site.server:
        assert site.server.address.startswith("http://127.0.0.1:")
        assert site.ask("/healthz")[0] == 200


def test_the_health_path_imports_no_model_and_no_broker() -> None:
    code = (
        "import sys, streammaml.backends.web, streammaml.backends.metrics;"
        "heavy = {'torch', 'numba', 'river', 'kafka', 'pyarrow', 'pandas'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_outer_loop_has_a_page_of_its_own_and_no_contexts() -> None:
    site = Site()
    board = OuterBoard(10, 60.0)
    sources = replace(site.sources, board=board, page="outer")
    site.server = WebServer(WebConfig(port=0), sources)

    with site.server:
        page = site.ask("/")[2].decode()
        summary = json.loads(site.ask("/api/summary")[2])
        missing = {site.ask(f"/{p}")[0] for p in ("worker.js", "api/contexts", "api/contexts/x")}

    assert "outer.js" in page
    assert summary == board.summary()
    assert missing == {404}
