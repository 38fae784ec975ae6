"""The HTTP side of the worker, with its live page, and of the outer loop: metrics and health.

Rules: read only, by GET and HEAD; a fixed set of routes and no file by name from a request; the
page needs nothing from elsewhere, and its policy forbids it. Nothing here imports a model.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from socketserver import TCPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, unquote

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streammaml.backends.board import Board
from streammaml.config import WebConfig
from streammaml.errors import ConfigError, StreamMAMLError
from streammaml.query import MOST_ROWS, Query, Sort

LOOP_LIMIT_S = 60.0
"""A loop that has not turned for so long is stuck; a commit may take 15 s, closing 6 s."""
CLIENT_TIMEOUT_S = 10.0
METHODS = ("GET", "HEAD")
JSON = "application/json"
CONTEXT = "/api/contexts/"
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
PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}

log = structlog.get_logger(__name__)


class Answer(NamedTuple):
    status: HTTPStatus
    kind: str
    body: bytes


def no_listing(query: Query) -> dict[str, Any]:
    raise TimeoutError("there is no worker yet")


def no_status() -> str:
    return ""


def no_context(name: str) -> dict[str, Any] | None:
    raise TimeoutError("there is no worker yet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the routes read. The callables are asked from other threads, at each request."""

    registry: CollectorRegistry
    board: Board | None = None
    """What the live page shows; without one the page is ``status`` alone."""
    status: Callable[[], str] = no_status
    """What the process does, in a few lines of text."""
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
            server.hang_up()
            server.server_close()

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
        self._page: dict[str, Answer] = {}
        self._made: dict[str, Callable[[str, str], Answer]] = {
            "/metrics": self._metrics,
            "/healthz": lambda query, accept: self._health(),
            "/readyz": lambda query, accept: self._ready(),
            "/favicon.ico": lambda query, accept: Answer(HTTPStatus.NO_CONTENT, "", b""),
        }
        board = sources.board
        if board is None:
            self._made["/"] = lambda query, accept: self._status()
            return
        self._made["/api/summary"] = lambda query, accept: _json(HTTPStatus.OK, board.summary())
        self._made["/api/contexts"] = lambda query, accept: self._contexts(query)
        self._page = {
            path: Answer(HTTPStatus.OK, kind, (files("streammaml.backends") / name).read_bytes())
            for path, (name, kind) in PAGE.items()
        }

    def answer(self, path: str, query: str, accept: str) -> Answer:
        if path in self._page:
            return self._page[path]
        if self._page and path.startswith(CONTEXT):
            return self._context(path.removeprefix(CONTEXT))
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

    def _status(self) -> Answer:
        text = f"{self._sources.status()}\n/metrics /healthz /readyz\n"
        return Answer(HTTPStatus.OK, TEXT, text.encode())

    def _contexts(self, text: str) -> Answer:
        try:
            query = _query(text)
        except ValueError as error:
            return _json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        try:
            return _json(HTTPStatus.OK, self._sources.contexts(query))
        except (TimeoutError, StreamMAMLError) as error:
            return _later(error)

    def _context(self, quoted: str) -> Answer:
        try:
            found = self._sources.context(unquote(quoted, errors="surrogatepass"))
        except UnicodeDecodeError:
            return _json(HTTPStatus.NOT_FOUND, {"error": "a name is UTF-8, and this is not"})
        except (TimeoutError, StreamMAMLError) as error:
            return _later(error)
        if found is None:
            why = {"error": "no context of this name in the partitions of this worker"}
            return _json(HTTPStatus.NOT_FOUND, why)
        return _json(HTTPStatus.OK, found)


def _query(text: str) -> Query:
    """ValueError where it asks for what there is not."""
    given = parse_qs(text, keep_blank_values=True, errors="surrogatepass", max_num_fields=10)
    if unknown := given.keys() - {"sort", "limit", "filter"}:
        raise ValueError(f"no parameter {min(unknown)!r}: there are sort, limit and filter")
    last = {name: values[-1] for name, values in given.items()}
    sorts = [sort.value for sort in Sort]
    if (sort := last.get("sort", Sort.LOSS)) not in sorts:
        raise ValueError(f"no sort {sort!r}: there are {', '.join(sorts)}")
    limit = last.get("limit", "50")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10):
        raise ValueError(f"limit must be a number from 1 to {MOST_ROWS}, not {limit!r}")
    query = Query(Sort(sort), int(limit), last.get("filter", "*"))
    query.check()
    return query


def _later(error: Exception) -> Answer:
    return _json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": f"{error}; try again"})


def _json(status: HTTPStatus, value: Any) -> Answer:
    return Answer(status, JSON, json.dumps(value, allow_nan=False).encode())


class _Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so a thread lives no longer than it."""

    server: _Server
    timeout = CLIENT_TIMEOUT_S

    def parse_request(self) -> bool:
        """Refuse every other method here, as the base class would call it unknown."""
        if not super().parse_request():
            return False
        if self.command in METHODS:
            return True
        body = b"GET or HEAD only\n"
        self._send(Answer(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, body), with_body=True)
        return False

    def do_GET(self) -> None:
        self._send(self._answer(), with_body=True)

    def do_HEAD(self) -> None:
        self._send(self._answer(), with_body=False)

    def _answer(self) -> Answer:
        try:
            path, _, query = self.path.partition("?")
            return self.server.answer(path, query, self.headers.get("Accept", ""))
        except Exception as error:  # a client must learn of it, whatever it is
            log.error("request_failed", path=self.path, error=repr(error))
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, TEXT, b"failed; see the log\n")

    def _send(self, answer: Answer, with_body: bool) -> None:
        self.send_response(answer.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", ", ".join(METHODS))
        if answer.kind:
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        return "streammaml"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Say nothing: a probe each second is no news."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 64  # beyond it a client waits a second to try again
    answer: Callable[[str, str, str], Answer]

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._connections: set[socket.socket] = set()
        self._connecting = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind, without the name look-up of HTTPServer, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connecting:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._connecting:
            self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End connections on which a browser waits for nothing: their threads would too."""
        with self._connecting:
            for connection in self._connections:
                with suppress(OSError):  # it may be gone already
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is not worth a line."""
        log.debug("client_left", client=str(client_address))


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server_of(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server
