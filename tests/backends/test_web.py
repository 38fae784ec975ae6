"""The worker's HTTP side, by real requests."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from streammaml.backends.connections import MOST_CONNECTIONS
from streammaml.backends.live import MOST_CLIENTS
from streammaml.backends.web import Sources, WebServer
from streammaml.config import WebConfig
from streammaml.errors import ConfigError, StoreError
from tests.kafka_broker import wait_until
from tests.site import TIMEOUT_S, Site


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
        ("/api/context?name=shop", "shop"),
        ("/api/context?name=..", ".."),
        ("/api/context?name=a%2Fb%3Fc%00%26+%C3%BC", "a/b?c\0& ü"),
    ],
)
def test_contexts_are_asked_for_as_the_path_says(site: Site, path: str, asked: Any) -> None:
    status, headers, body = site.ask(path)

    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {"asked": asked}


@pytest.mark.parametrize("path", ["/api/contexts", "/api/contexts/shop", "/api/context?name=shop"])
@pytest.mark.parametrize("problem", [TimeoutError("it is busy"), StoreError("no room")])
def test_contexts_that_cannot_be_had_now_are_unavailable(
    site: Site, path: str, problem: Exception
) -> None:
    site.problem = problem

    status, headers, body = site.ask(path)

    assert (status, json.loads(body)) == (503, {"error": f"{problem}; try again"})
    assert int(headers["Retry-After"]) > 0


@pytest.mark.parametrize("path", ["/api/contexts", "/api/contexts/shop", "/api/context?name=shop"])
def test_without_a_worker_there_are_no_contexts(path: str) -> None:
    site = Site()
    bare = Sources(
        registry=site.metrics.registry, board=site.board, loop_age_s=site.age, ready=lambda: False
    )
    site.server = WebServer(WebConfig(port=0), bare)

    with site.server:
        assert site.ask(path)[0] == 503


@pytest.mark.parametrize("path", ["/api/contexts/%ff", "/api/context?name=%ff"])
def test_a_name_that_is_no_utf8_is_no_name(site: Site, path: str) -> None:
    assert site.ask(path)[0] == 404


@pytest.mark.parametrize(
    ("query", "status"), [("", 400), ("nam=shop", 400), ("name=a&limit=1", 400), ("name=", 404)]
)
def test_a_context_is_asked_for_by_its_name_alone(site: Site, query: str, status: int) -> None:
    assert site.ask(f"/api/context?{query}")[0] == status


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


def test_a_crowd_that_says_nothing_holds_few_threads_and_no_probe_up(site: Site) -> None:
    target = urlsplit(site.server.address)
    assert target.hostname is not None
    address, before = (target.hostname, target.port or 0), threading.active_count()
    crowd = [
        socket.create_connection(address, timeout=TIMEOUT_S) for _ in range(3 * MOST_CONNECTIONS)
    ]
    for silent in crowd:
        silent.send(b"GET /he")

    health = site.ask("/healthz")[0]
    pause = threading.Event()
    wait_until(
        lambda: threading.active_count() - before <= MOST_CONNECTIONS or pause.wait(0.05),
        TIMEOUT_S,
        "the threads of the others to end",
    )
    for silent in crowd:
        silent.close()

    assert health == 200
    assert MOST_CLIENTS <= MOST_CONNECTIONS // 2  # streams leave places to all else


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
