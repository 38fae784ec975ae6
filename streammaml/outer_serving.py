"""``streammaml outer``: the outer loop's job on Kafka, with its metrics, health and progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import structlog
from rich.console import Console

from streammaml.backends.kafka import KafkaPublisher, KafkaTail
from streammaml.backends.outer_board import OuterBoard
from streammaml.backends.outer_metrics import OuterMetrics
from streammaml.backends.ports import Publisher, Tail
from streammaml.backends.web import Sources, WebServer
from streammaml.config import Config
from streammaml.events import Episode
from streammaml.initialization import Initialization
from streammaml.inspection.runs import run_values
from streammaml.jobs import Tell, progress
from streammaml.outer import OuterJob
from streammaml.outer_run import Progress, Run
from streammaml.watchdog import Watchdog

log = structlog.get_logger(__name__)


class KafkaOutside:
    """Builds the clients of one life of the job."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def publisher(self) -> Publisher:
        return KafkaPublisher(self._config)

    def initializations(self) -> Tail:
        return self._tail(self._config.topics.initializations, None)

    def episodes(self) -> Tail:
        # The end of each transaction takes an offset, too: about as many as there are episodes.
        share = -(-2 * self._config.outer.reservoir_total // self._config.topics.partitions)
        return self._tail(self._config.topics.episodes, share)

    def _tail(self, topic: str, newest: int | None) -> Tail:
        return KafkaTail(self._config, self._config.kafka.instance, topic, newest=newest)


class OuterWatch:
    """Tells metrics and, where there is a page, its board what the job does."""

    def __init__(self, metrics: OuterMetrics, board: OuterBoard | None = None) -> None:
        self.metrics = metrics
        self._board = board
        self._job: OuterJob | None = None

    def follow(self, job: OuterJob) -> None:
        """Take loop age and readiness from this job from now on."""
        self._job = job

    def loop_age_s(self) -> float:
        return 0.0 if self._job is None else time.monotonic() - self._job.loop_at

    def is_ready(self) -> bool:
        return self._job is not None and self._job.is_ready

    def showing(self, progress: Progress) -> Progress:
        """The same, told to the board too."""
        board = self._board
        if board is None:
            return progress

        @contextmanager
        def both(steps: int) -> Iterator[Tell]:
            board.training(0, steps)
            with progress(steps) as tell:

                def tell_both(done: int, note: str) -> None:
                    board.training(done, steps)
                    tell(done, note)

                yield tell_both

        return both

    def episodes(self, accepted: int, rejected: int, duplicate: int) -> None:
        self.metrics.episodes(accepted, rejected, duplicate)
        if self._board is not None:
            self._board.episodes(accepted, rejected, duplicate)

    def reservoir(self, episodes: int, contexts: int) -> None:
        self.metrics.reservoir(episodes, contexts)
        if self._board is not None:
            self._board.reservoir(episodes, contexts)

    def serving(self, version: int) -> None:
        self.metrics.serving(version)
        if self._board is not None:
            self._board.serving(version)

    def ran(self, run: Run, now_s: float) -> None:
        self.metrics.ran(run.result, run.seconds, now_s)
        self.metrics.trained(run.steps, run.nonfinite, run.tasks, run.norms)
        for split, loss in (("train", run.train_loss), ("validation", run.validation_loss)):
            if loss is not None:
                self.metrics.losses(split, loss)
        if self._board is not None:
            self._board.ran(run_values(run) | {"at_s": round(now_s, 3)})


def serve_outer(
    config: Config,
    stop: threading.Event,
    period_s: float,
    *,
    begin: Initialization | None = None,
    past: Iterable[Episode] = (),
) -> None:
    """Train every ``period_s`` until ``stop``, with metrics and health beside it."""
    board = OuterBoard(config.outer.reservoir_total, period_s)
    watch = OuterWatch(OuterMetrics(period_s), board)
    sources = Sources(
        registry=watch.metrics.registry,
        board=board,
        page="outer",
        loop_age_s=watch.loop_age_s,
        ready=watch.is_ready,
    )
    place = config.web.model_copy(update={"port": config.outer.port})
    with WebServer(place, sources) as server, Watchdog(config.worker.watchdog_s) as watchdog:
        log.info("web_ready", address=server.address)
        shown = Console(stderr=True).is_terminal
        job = OuterJob(
            config,
            KafkaOutside(config),
            [watch],
            begin=begin,
            past=past,
            beat=watchdog.beat,
            progress=watch.showing(_bar if shown else _silence),
        )
        watch.follow(job)
        job.run(stop, period_s)
    log.info("stopped")


def run_outer(
    config: Config,
    stop: threading.Event,
    *,
    begin: Initialization | None = None,
    past: Iterable[Episode] = (),
    metrics_file: Path | None = None,
) -> Run:
    """One run on what the topics hold; its numbers go to a file, too, if one is named."""
    metrics = OuterMetrics(None)
    with ExitStack() as stack:
        if metrics_file is not None:
            stack.callback(metrics.write, metrics_file)
        watch = OuterWatch(metrics)
        job = OuterJob(config, KafkaOutside(config), [watch], begin=begin, past=past, progress=_bar)
        return job.once(stop)


def _bar(steps: int) -> AbstractContextManager[Tell]:
    return progress("outer steps", steps)


def _silence(steps: int) -> AbstractContextManager[Tell]:
    """For a daemon whose log is JSON: a line for each run is in it."""
    return nullcontext(lambda done, note: None)
