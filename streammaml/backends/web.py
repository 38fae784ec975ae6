"""The HTTP side of the worker and of the outer loop: the live page, metrics and health.

Rules: read only, by GET and HEAD; a fixed set of routes and no file by name from a request; the
page needs nothing from elsewhere, and its policy forbids it. Nothing here imports a model.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import parse_qs, unquote

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streammaml.backends.connections import BoundedServer
from streammaml.backends.live import Live
from streammaml.backends.pages import Page, page_files
from streammaml.config import WebConfig
from streammaml.errors import ConfigError, StreamMAMLError
from streammaml.query import MOST_ROWS, Query, Sort

LOOP_LIMIT_S = 60.0
"""A loop that has not turned for so long is stuck; a commit may take 15 s, closing 6 s."""
CLIENT_TIMEOUT_S = 10.0
RETRY_AFTER_S = 5
METHODS = ("GET", "HEAD")
JSON = "application/json"
EVENT_STREAM = "text/event-stream"
EVENTS = "/events"
CONTEXTS = "/api/contexts"
CONTEXT = "/api/context"
"""By ``name`` in the query: a browser takes a path's "." and ".." for directories."""
TEXT = "text/plain; charset=utf-8"
WILDCARDS = {"", "0.0.0.0", "::"}

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

log = structlog.get_logger(__name__)


class Answer(NamedTuple):
    status: HTTPStatus
    kind: str
    body: bytes | None
    """None: its length is not known beforehand."""


def no_listing(query: Query) -> dict[str, Any]:
    raise TimeoutError("there is no worker yet")


def no_context(name: str) -> dict[str, Any] | None:
    raise TimeoutError("there is no worker yet")


class Summarized(Protocol):
    """What a page shows."""

    def summary(self) -> dict[str, Any]:
        """All of it, in JSON values; asked from other threads."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the routes read. The callables are asked from other threads, at each request."""

    registry: CollectorRegistry
    board: Summarized
    """What the live page shows."""
    page: Page = "worker"
    loop_age_s: Callable[[], float]
    """Seconds since the loop's latest turn; below zero while it waits out a back-off."""
    ready: Callable[[], bool]
    loop_limit_s: float = LOOP_LIMIT_S
    contexts: Callable[[Query], dict[str, Any]] = no_listing
    """Some contexts, in JSON values; TimeoutError where the worker does not answer."""
    context: Callable[[str], dict[str, Any] | None] = no_context
    """All about one; None where the worker has none of this name."""


class WebServer:
    """Serves from a thread of its own, between ``start`` and ``close``."""

    def __init__(self, config: WebConfig, sources: Sources) -> None:
        self._config = config
        self._sources = sources
        self._routes = _Routes(sources)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Bind and serve. ConfigError if the address cannot be had."""
        host, port = self._config.host, self._config.port
        try:
            server = _server_of(host)((host, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot serve on {host or '*'}:{port}: {error.strerror or error}. "
                "web.port=0 takes any free port, web.host names another address"
            ) from error
        server.answer = self._routes.answer
        server.live = Live(self._sources.board.summary)
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="web", daemon=True
        )
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving; every thread and connection has ended when this returns."""
        server, thread, self._server, self._thread = self._server, self._thread, None, None
        if server is not None and thread is not None:
            server.shutdown()
            thread.join()
            server.live.close()
            server.hang_up()
            server.server_close()

    @property
    def live(self) -> Live:
        """What is pushed to the pages."""
        assert self._server is not None, "start() first"
        return self._server.live

    @property
    def address(self) -> str:
        """Where a browser on this machine finds the page."""
        assert self._server is not None, "start() first"
        host = self._config.host
        host = "127.0.0.1" if host in WILDCARDS else host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


class _Routes:
    """From a path to an answer."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._page = {
            path: Answer(HTTPStatus.OK, kind, content)
            for path, (kind, content) in page_files(sources.page).items()
        }
        board = sources.board
        self._made: dict[str, Callable[[str, str], Answer]] = {
            "/metrics": self._metrics,
            "/healthz": lambda query, accept: self._health(),
            "/readyz": lambda query, accept: self._ready(),
            "/favicon.ico": lambda query, accept: Answer(HTTPStatus.NO_CONTENT, "", b""),
            "/api/summary": lambda query, accept: _json(HTTPStatus.OK, board.summary()),
            EVENTS: lambda query, accept: Answer(HTTPStatus.OK, EVENT_STREAM, None),
        }
        if sources.page == "worker":
            self._made[CONTEXTS] = lambda query, accept: self._contexts(query)
            self._made[CONTEXT] = lambda query, accept: self._named(query)

    def answer(self, path: str, query: str, accept: str) -> Answer:
        if path in self._page:
            return self._page[path]
        if self._sources.page == "worker" and path.startswith(f"{CONTEXTS}/"):
            return self._quoted(path.removeprefix(f"{CONTEXTS}/"))
        make = self._made.get(path)
        if make is None:
            return Answer(HTTPStatus.NOT_FOUND, TEXT, b"no such page\n")
        return make(query, accept)

    def _metrics(self, query: str, accept: str) -> Answer:
        encode, kind = choose_encoder(accept)
        return Answer(HTTPStatus.OK, kind, encode(self._sources.registry))

    def _health(self) -> Answer:
        age_s, limit_s = self._sources.loop_age_s(), self._sources.loop_limit_s
        alive = age_s < limit_s
        return _json(
            HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE,
            {
                "status": "ok" if alive else "stuck",
                "loop_age_s": round(age_s, 3),
                "limit_s": limit_s,
            },
        )

    def _ready(self) -> Answer:
        ready = self._sources.ready()
        return _json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, {"ready": ready})

    def _contexts(self, text: str) -> Answer:
        try:
            query = _query(text)
        except ValueError as error:
            return _json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        try:
            return _json(HTTPStatus.OK, self._sources.contexts(query))
        except (TimeoutError, StreamMAMLError) as error:
            return _later(error)

    def _quoted(self, quoted: str) -> Answer:
        try:
            name = unquote(quoted, errors="surrogatepass")
        except UnicodeDecodeError:
            return _no_name()
        return self._context(name)

    def _named(self, text: str) -> Answer:
        try:
            given = _parameters(text, ("name",))
        except UnicodeDecodeError:
            return _no_name()
        except ValueError as error:
            return _json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        if "name" not in given:
            return _json(HTTPStatus.BAD_REQUEST, {"error": f"which one? {CONTEXT}?name=..."})
        return self._context(given["name"])

    def _context(self, name: str) -> Answer:
        try:
            found = self._sources.context(name)
        except (TimeoutError, StreamMAMLError) as error:
            return _later(error)
        if found is None:
            why = {"error": "no context of this name in the partitions of this worker"}
            return _json(HTTPStatus.NOT_FOUND, why)
        return _json(HTTPStatus.OK, found)


def _parameters(text: str, known: tuple[str, ...]) -> dict[str, str]:
    """ValueError where there is another one."""
    given = parse_qs(text, keep_blank_values=True, errors="surrogatepass", max_num_fields=10)
    if unknown := given.keys() - set(known):
        raise ValueError(f"no parameter {min(unknown)!r}: known here: {', '.join(known)}")
    return {name: values[-1] for name, values in given.items()}


def _query(text: str) -> Query:
    """ValueError where it asks for what there is not."""
    last = _parameters(text, ("sort", "limit", "filter"))
    sorts = [sort.value for sort in Sort]
    if (sort := last.get("sort", Sort.LOSS)) not in sorts:
        raise ValueError(f"no sort {sort!r}: there are {', '.join(sorts)}")
    limit = last.get("limit", "50")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10):
        raise ValueError(f"limit must be a number from 1 to {MOST_ROWS}, not {limit!r}")
    query = Query(Sort(sort), int(limit), last.get("filter", "*"))
    query.check()
    return query


def _no_name() -> Answer:
    return _json(HTTPStatus.NOT_FOUND, {"error": "a name is UTF-8, and this is not"})


def _later(error: Exception) -> Answer:
    return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": f"{error}; try again"})


def _json(status: HTTPStatus, value: Any) -> Answer:
    return Answer(status, JSON, json.dumps(value, allow_nan=False).encode())


class _Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so a thread lives no longer than it. A page's events are one, too."""

    server: _Server
    timeout = CLIENT_TIMEOUT_S

    def parse_request(self) -> bool:
        """Refuse every other method here, as the base class would call it unknown."""
        if not super().parse_request():
            return False
        self.server.asked(self.connection)
        if self.command in METHODS:
            return True
        body = b"GET or HEAD only\n"
        self._send(Answer(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, body), with_body=True)
        return False

    def do_GET(self) -> None:
        answer = self._answer()
        if answer.kind == EVENT_STREAM:
            self._push(answer)
        else:
            self._send(answer, with_body=True)

    def do_HEAD(self) -> None:
        self._send(self._answer(), with_body=False)

    def _answer(self) -> Answer:
        try:
            path, _, query = self.path.partition("?")
            return self.server.answer(path, query, self.headers.get("Accept", ""))
        except Exception as error:  # a client must learn of it, whatever it is
            log.error("request_failed", path=self.path, error=repr(error))
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, b"failed; see the log\n")

    def _push(self, answer: Answer) -> None:
        """Send the summary again and again, until the client goes away or the server closes."""
        live = self.server.live
        if not live.enter():
            why = {"error": "too many pages are open here; ask /api/summary instead"}
            self._send(_json(HTTPStatus.SERVICE_UNAVAILABLE, why), with_body=True)
            return
        try:
            self._send(answer, with_body=False)
            for frame in live.frames():
                self.wfile.write(frame)
        finally:
            live.leave()

    def _send(self, answer: Answer, with_body: bool) -> None:
        self.send_response(answer.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", ", ".join(METHODS))
        if answer.status is HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        if answer.kind:
            self.send_header("Content-Type", answer.kind)
            if answer.body is not None:
                self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if with_body and answer.body is not None:
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        return "streammaml"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Say nothing: a probe each second is no news."""


class _Server(BoundedServer):
    answer: Callable[[str, str, str], Answer]
    live: Live


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server_of(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server
