"""Jobs over files, with progress on a terminal: feeding a topic, training from a history."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from streammaml import initialization as initializations
from streammaml.backends.codec import EventDecoder
from streammaml.backends.files import Columns, read_events
from streammaml.backends.kafka import KafkaFeed
from streammaml.backends.memory import MemoryRecord
from streammaml.config import Config
from streammaml.errors import ConfigError, InputError, RejectedError
from streammaml.events import Event
from streammaml.feed import Fed, FeedPlan, feed
from streammaml.meta.outer_loop import Rule
from streammaml.meta_trainer import Trained, past_of, train

CHUNK = 5_000


def feed_file(
    config: Config, file: Path, columns: Columns, plan: FeedPlan, stop: threading.Event
) -> Fed:
    """Replay a file into the events topic; returns once the broker has all of it."""
    events = read_events(file, columns)
    outlet = KafkaFeed(config)
    try:
        with _bar(TextColumn("{task.fields[rate]:,.0f} events/s")) as bar:
            task = bar.add_task(f"feeding {config.topics.events}", total=plan.limit, rate=0.0)
            fed = feed(
                events,
                outlet,
                config,
                plan,
                stop=stop,
                clock=time.monotonic,
                progress=lambda fed: bar.update(task, completed=fed.sent, rate=fed.rate),
            )
        outlet.flush()
    finally:
        outlet.close()
    return fed


def train_from_file(
    config: Config, file: Path, columns: Columns, out: Path, steps: int, rule: str
) -> tuple[Trained, int]:
    """Meta-train from a history and write the initialization; also returns the rows left out."""
    try:
        chosen = Rule(rule)
    except ValueError as error:
        names = ", ".join(r.value for r in Rule)
        raise ConfigError(f"--rule {rule!r} is none of {names}") from error
    past = past_of(config, _history(config, file, columns))
    if past.rejected > len(past.y):
        raise InputError(
            f"{past.rejected} of {past.rejected + len(past.y)} rows of {file} are not events of "
            "this configuration: check its features and label"
        )
    with _bar(TextColumn("loss {task.fields[loss]:.3f}")) as bar:
        task = bar.add_task(f"{chosen.value}, outer steps", total=steps, loss=float("nan"))
        trained = train(
            config,
            past,
            steps=steps,
            rule=chosen,
            on_progress=lambda done, _, loss: bar.update(task, completed=done, loss=loss),
        )
    out.write_bytes(initializations.encode(trained.initialization))
    return trained, past.rejected


def _history(config: Config, file: Path, columns: Columns) -> Iterator[list[Event]]:
    """The file's events as a worker would decode them, without those it would reject."""
    decode = EventDecoder(config.features, "json", config.worker.max_record_bytes)
    rows = read_events(file, columns)
    while chunk := list(islice(rows, CHUNK)):
        events = []
        for row in chunk:
            value = row if isinstance(row, bytes) else msgspec.json.encode(row)
            try:
                events.append(decode(MemoryRecord(str(file), 0, 0, 0, None, value, [])))
            except RejectedError:
                events.append(Event())  # counted as rejected when it is collated
        yield events


def _bar(last: TextColumn) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        last,
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
