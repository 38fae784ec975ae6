"""The demo: the real worker on a generated drifting stream, with memory backends.

The stream has a past and a present. On the past an initialization is meta-trained, and the rate of
plain online gradient descent is chosen, the best of five. The present is played event by event
through the worker and scored, each prediction before its label was used.
"""

from __future__ import annotations

import math
import threading
import time
import webbrowser
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from streammaml.backends.codec import encoder
from streammaml.backends.memory import MemoryBroker, MemorySink, MemorySource, MemoryStateLog
from streammaml.backends.ports import Clients, Message, OnRebalance, Partition, Rebalance
from streammaml.config import Config, spec_of
from streammaml.evaluation.streams import WIDTH, Stream, hyper
from streammaml.events import Batch, DriftLevel, Floats, Trigger
from streammaml.initialization import Initialization, draw
from streammaml.learner import Labels, Learner, warm_up
from streammaml.learner.kernels.compiler import is_cached
from streammaml.meta_trainer import Past, train
from streammaml.observers import Watch, watched
from streammaml.partition import Played
from streammaml.reporting import Kept, LoadResult, Observer, TransactionResult
from streammaml.worker import Worker

CONTEXTS = 100
PAST_EACH = 300
OUTER_STEPS = 2000
BASELINE_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
POST_DRIFT = 50
MODELS = ("adapted", "init", "online")
IDLE_S = 0.1
"""When all is played, a page that asks waits no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    events: int
    rate: float | None
    """Events a second; None: as fast as it goes."""
    port: int | None
    """Of the page; None: no page."""
    browser: bool = False
    seed: int = 0
    outer_steps: int = OUTER_STEPS


class Score:
    """Collects the losses of the worker's predictions, by the event's place in the stream."""

    def __init__(self, events: int) -> None:
        self.losses = {model: np.full(events, np.nan) for model in MODELS}
        self.drifts = self.adaptations = self.rejected = self.events = 0

    def played(self, played: Played, now_s: float) -> None:
        decisions = played.decisions
        places = [int(event.id) for event in played.events if event.id is not None]
        self.losses["adapted"][places] = decisions.loss
        self.losses["init"][places] = decisions.loss_init
        self.losses["online"][places] = decisions.loss_baseline
        self.drifts += int((decisions.levels == DriftLevel.DRIFT).sum())
        self.adaptations += int((decisions.triggers != Trigger.NONE).sum())
        self.rejected += len(played.rejected)
        self.events += played.records

    def state(self, name: str) -> None: ...
    def rebalanced(self, change: Rebalance, left: int) -> None: ...
    def committed(self, result: TransactionResult, now_s: float) -> None: ...
    def lag(self, lag: dict[Partition, int]) -> None: ...
    def barrier(self, result: TransactionResult, seconds: float, size: int) -> None: ...
    def kept(self, kept: Kept) -> None: ...
    def misplaced(self, contexts: int) -> None: ...
    def initialization(self, result: LoadResult, version: int) -> None: ...

    def summary(self, stream: Stream) -> dict[str, Any]:
        """Mean losses over what was played, and over the 50 events from each drift on.

        None where nothing was, after an early stop: JSON has no NaN.
        """
        since = stream.since_drift()
        after = (since >= 0) & (since < POST_DRIFT)
        return {
            "events": self.events,
            "loss": {
                model: {"overall": _scored(losses), "post_drift50": _scored(losses[after])}
                for model, losses in self.losses.items()
            },
            "drifts": self.drifts,
            "adaptations": self.adaptations,
            "rejected": self.rejected,
        }


def run_demo(options: DemoOptions, stop: threading.Event) -> dict[str, Any]:
    """Train on the past, play the present, print the comparison; return it."""
    console = Console(stderr=True)
    config = demo_config(options)
    with ExitStack() as stack:
        watch = None
        if options.port is not None:
            watch = _open_page(config, options, stack, console)
        return _compare(config, options, watch, stop, console)


def _open_page(config: Config, options: DemoOptions, stack: ExitStack, console: Console) -> Watch:
    watch, server = watched(config, "demo")
    stack.enter_context(server)
    console.print(f"[bold]live page: {server.address}[/bold]")
    if options.browser:
        webbrowser.open(server.address)
    return watch


def _compare(
    config: Config,
    options: DemoOptions,
    watch: Watch | None,
    stop: threading.Event,
    console: Console,
) -> dict[str, Any]:
    events_each = -(-options.events // CONTEXTS)
    whole = hyper(CONTEXTS, PAST_EACH + events_each, options.seed)
    past, present = whole.split(CONTEXTS * PAST_EACH)
    present = present.split(options.events)[0]
    if watch is not None:
        watch.note("Meta-training on the stream’s past; its present begins in a moment.")
    _compile(config, console)
    initialization = _meta_train(config, past, options.outer_steps, console)
    rate = best_baseline_rate(config, initialization, past)
    config = Config.build(config.model_dump(), {"learner": {"baseline_rate": rate}})
    score = Score(len(present))
    with TemporaryDirectory(prefix="streammaml-demo-") as folder:
        config = Config.build(config.model_dump(), {"state": {"directory": folder}})
        worker = _play(config, initialization, present, options, score, watch, stop, console)
        summary = score.summary(present)
        Console().print(_table(summary))
        if watch is not None:
            _stay(worker, watch, summary, stop, console)
        worker.close()
        if watch is not None:
            watch.follow(None)
    return summary


def demo_config(options: DemoOptions) -> Config:
    return Config.build(
        {
            "features": [{"name": f"x{i}"} for i in range(WIDTH)],
            "label": {"classes": [0, 1]},
            # Any rate, so that the baseline is shown; the best one follows from the past.
            "learner": {"seed": options.seed, "baseline_rate": BASELINE_RATES[0]},
            "outer": {"feature_nets": False},  # the worker of this profile has no use for them
            "topics": {"partitions": 1},
            "kafka": {"group": "demo", "instance": "demo"},
            "web": {"port": options.port or 0},
        }
    )


def best_baseline_rate(config: Config, initialization: Initialization, past: Stream) -> float:
    """The rate with which online gradient descent does best on the past."""
    losses = {}
    for rate in BASELINE_RATES:
        tried = Config.build(config.model_dump(), {"learner": {"baseline_rate": rate}})
        decisions = Learner(tried, initialization).step(batch_of(past))
        losses[rate] = _mean(decisions.loss_baseline)
    return min(losses, key=losses.__getitem__)


def batch_of(stream: Stream) -> Batch:
    names = [f"sensor-{c:02d}" for c in range(CONTEXTS)]
    return Batch(
        contexts=[names[c] for c in stream.contexts.tolist()],
        x=np.ascontiguousarray(stream.x),
        y=stream.y,
    )


def messages_of(stream: Stream, topic: str) -> list[Message]:
    """The stream as it would come over the wire; an event's id is its place."""
    encode = encoder("json")
    batch = batch_of(stream)
    names = [f"x{i}" for i in range(WIDTH)]
    return [
        Message(
            topic,
            context.encode(),
            encode(
                {
                    "id": i,
                    "context": context,
                    "features": dict(zip(names, x, strict=True)),
                    "label": int(y),
                }
            ),
        )
        for i, (context, x, y) in enumerate(
            zip(batch.contexts, batch.x.tolist(), batch.y.tolist(), strict=True)
        )
    ]


def _compile(config: Config, console: Console) -> None:
    if is_cached():
        warm_up(config, draw(spec_of(config), 0))
        return
    console.print("first start: compiling the kernels, about half a minute, once")
    started = time.monotonic()
    with console.status("compiling"):
        warm_up(config, draw(spec_of(config), 0))
    console.print(
        f"compiled the kernels in {time.monotonic() - started:.0f} s; the next start has them"
    )


def _meta_train(config: Config, past: Stream, steps: int, console: Console) -> Initialization:
    with Progress(console=console) as progress:
        bar = progress.add_task("meta-training on the past", total=steps)
        trained = train(
            config,
            Past(contexts=past.contexts, x=past.x, y=past.y, labels=Labels(config.label)),
            steps=steps,
            on_progress=lambda done, total, loss: progress.update(bar, completed=done),
        )
    console.print(
        f"loss after adaptation, on held-out episodes of the past: "
        f"{trained.loss_before:.3f} at the random start, {trained.loss_after:.3f} now"
    )
    return trained.initialization


def _play(
    config: Config,
    initialization: Initialization,
    present: Stream,
    options: DemoOptions,
    score: Score,
    watch: Watch | None,
    stop: threading.Event,
    console: Console,
) -> Worker:
    """Feed the broker at the rate and turn the worker's loop until all is played; it is open."""
    broker = MemoryBroker.of(config)

    def connect(on_rebalance: OnRebalance) -> Clients:
        instance = config.kafka.instance
        sink = MemorySink(broker, config, instance)
        source = MemorySource(broker, config, instance, on_rebalance)
        return Clients(source, sink, MemoryStateLog(broker, config))

    observers: list[Observer] = [score] if watch is None else [score, watch]
    worker = Worker(config, initialization, connect, observers)
    if watch is not None:
        watch.follow(worker)
        watch.note("")
        watch.serves(initialization.version)
    messages = messages_of(present, config.topics.events)
    started = time.monotonic()
    sent = played = 0
    with Progress(console=console) as progress:
        bar = progress.add_task("adapting to the present", total=len(messages))
        worker.open()
        while played < len(messages) and not stop.is_set():
            due = len(messages)
            if options.rate is not None:
                due = min(due, int((time.monotonic() - started) * options.rate) + 1)
            broker.append(messages[sent:due])
            sent = due
            played += worker.run_once(timeout_s=0.05)
            progress.update(bar, completed=played)
    return worker


def _stay(
    worker: Worker,
    watch: Watch,
    summary: dict[str, Any],
    stop: threading.Event,
    console: Console,
) -> None:
    """Let the page ask the worker for its contexts until ``stop``."""
    if stop.is_set():
        return
    watch.note(f"All {summary['events']:,} events are played. Ctrl-C in the terminal ends it.")
    console.print("the page stays until Ctrl-C")
    while not stop.is_set():
        worker.run_once(timeout_s=IDLE_S)


def _mean(losses: Floats) -> float:
    played = losses[~np.isnan(losses)]
    return float(played.mean()) if len(played) else float("nan")


def _scored(losses: Floats) -> float | None:
    mean = _mean(losses)
    return None if math.isnan(mean) else mean


def _shown(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"


def _table(summary: dict[str, Any]) -> Table:
    table = Table(
        title=f"{summary['events']:,} events of {CONTEXTS} contexts: mean log-loss, "
        "each prediction before its label",
        caption=f"{summary['drifts']:,} drifts detected, {summary['adaptations']:,} adaptations, "
        f"{summary['rejected']:,} events rejected",
    )
    table.add_column("model")
    table.add_column("overall", justify="right")
    table.add_column(f"{POST_DRIFT} events after a drift", justify="right")
    names = {
        "adapted": "streammaml: adapted by MAML",
        "init": "its initialization, not adapted",
        "online": "online gradient descent, best of 5 rates",
    }
    for model, name in names.items():
        loss = summary["loss"][model]
        table.add_row(name, _shown(loss["overall"]), _shown(loss["post_drift50"]))
    return table
