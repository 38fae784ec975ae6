"""A served page and its sources, for tests that ask by real requests."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

from streammaml.backends.board import Board
from streammaml.backends.metrics import Metrics
from streammaml.backends.web import Sources, WebServer
from streammaml.config import Config, WebConfig
from streammaml.query import Query

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
