"""From what the worker does to metrics, live page, health and the contexts' listing."""

from __future__ import annotations

import math
import time
from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from streammaml.backends.board import Board
from streammaml.backends.codec import timestamp_s
from streammaml.backends.metrics import Metrics
from streammaml.backends.ports import Partition, Rebalance
from streammaml.backends.web import Sources, WebServer
from streammaml.config import Config
from streammaml.errors import StreamMAMLError
from streammaml.events import Task
from streammaml.inspection.running import find_context, list_contexts
from streammaml.partition import Played
from streammaml.query import Query, Sort
from streammaml.reporting import Kept, LoadResult, TransactionResult
from streammaml.worker import Worker

LOSSES = {Task.CLASSIFICATION: "Log-loss", Task.REGRESSION: "Absolute error in deviations of y"}
ASK_LIMIT_S = 5.0
"""A busy loop turns every two seconds."""
SCRAPE_LIMIT_S = 3.0
"""Prometheus gives up after ten."""


class Watch:
    """Tells metrics and board what one worker does."""

    def __init__(self, metrics: Metrics, board: Board) -> None:
        self.metrics = metrics
        self._board = board
        self._worker: Worker | None = None

    def follow(self, worker: Worker | None) -> None:
        """Take loop age and readiness from this worker from now on; None: it has ended well."""
        self._worker = worker

    def loop_age_s(self) -> float:
        """Seconds since the worker's loop turned; 0 until there is one."""
        return 0.0 if self._worker is None else time.monotonic() - self._worker.loop_at

    def is_ready(self) -> bool:
        """Whether the worker owns partitions, and has the state of all of them."""
        worker = self._worker
        return worker is not None and worker.owns_partitions and not worker.is_restoring

    def contexts(self, query: Query) -> dict[str, Any]:
        return list_contexts(self._asked(), query, ASK_LIMIT_S)

    def context(self, name: str) -> dict[str, Any] | None:
        return find_context(self._asked(), name, ASK_LIMIT_S)

    def worst(self, count: int) -> list[tuple[str, float]]:
        """Contexts with the highest running losses; none where the worker does not answer."""
        try:
            query = Query(Sort.LOSS, count, "*")
            lines = list_contexts(self._asked(), query, SCRAPE_LIMIT_S)["contexts"]
        except (TimeoutError, StreamMAMLError):
            return []
        return [(line["context"], line["loss"]) for line in lines if line["loss"] is not None]

    def _asked(self) -> Worker:
        worker = self._worker
        if worker is None:
            raise TimeoutError("the worker does not run")
        return worker

    def state(self, name: str) -> None:
        self.metrics.state(name)
        self._board.state(name)

    def played(self, played: Played, now_s: float) -> None:
        metrics = self.metrics
        if not played.live:
            metrics.replayed(played.records)
            return
        metrics.consumed(played.records)
        for reason, count in Counter(r.reason for r in played.rejected).items():
            metrics.rejected(reason, count)
        if played.unknown_categories:
            metrics.unknown_categories(played.unknown_categories)
        for result, count in played.episodes.items():
            metrics.episodes(result, count)
        metrics.observe(played.batch, played.decisions, now_s)
        times = [timestamp_s(event) for event in played.events]
        metrics.event_times(np.array([math.nan if t is None else t for t in times]), now_s)
        self._board.observe(played.batch.contexts, played.decisions, len(played.rejected))

    def rebalanced(self, change: Rebalance, left: int) -> None:
        self.metrics.rebalanced(change)
        if left:
            self.metrics.evicted("revoked", left)

    def committed(self, result: TransactionResult, now_s: float) -> None:
        self.metrics.committed(result, now_s)

    def lag(self, lag: dict[Partition, int]) -> None:
        self.metrics.lag(lag)
        self._board.lag(sum(lag.values()) if lag else None)

    def barrier(self, result: TransactionResult, seconds: float, size: int) -> None:
        self.metrics.barrier(result, seconds, size)

    def kept(self, kept: Kept) -> None:
        self.metrics.contexts(kept.in_memory, kept.on_disk)
        self.metrics.state_bytes("parameters", kept.parameter_bytes)
        self.metrics.state_bytes("buffers", kept.buffer_bytes)
        self.metrics.state_bytes("disk", kept.disk_bytes)
        self._board.contexts(kept.in_memory)

    def misplaced(self, contexts: int) -> None:
        self.metrics.misplaced(contexts)

    def initialization(self, result: LoadResult, version: int) -> None:
        self.metrics.init_loaded(result)
        self.serves(version)

    def serves(self, version: int) -> None:
        """Say which version is served, where none was received."""
        self.metrics.init_version(version)
        self._board.initialization(version)

    def note(self, text: str) -> None:
        """Set what the page says beside the worker's state."""
        self._board.note(text)


def watched(config: Config, role: str = "worker") -> tuple[Watch, WebServer]:
    """A watch, and a server (not started) for what it sees."""
    metrics, board = Metrics(config), Board(role=role, loss=LOSSES[config.label.task])
    watch = Watch(metrics, board)
    if config.web.top_contexts:
        metrics.rank(partial(watch.worst, config.web.top_contexts))
    sources = Sources(
        registry=metrics.registry,
        board=board,
        loop_age_s=watch.loop_age_s,
        ready=watch.is_ready,
        contexts=watch.contexts,
        context=watch.context,
    )
    return watch, WebServer(config.web, sources)
