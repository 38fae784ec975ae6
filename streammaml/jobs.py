"""``streammaml feed``: a file into the events topic, with progress on a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from streammaml.backends.files import Columns, read_events
from streammaml.backends.kafka import KafkaFeed
from streammaml.config import Config
from streammaml.feed import Fed, FeedPlan, feed

LINE_EVERY_S = 10.0

Tell = Callable[[int, str], None]
"""How much is done, and what else there is to say."""


def feed_file(
    config: Config, file: Path, columns: Columns, plan: FeedPlan, stop: threading.Event
) -> Fed:
    """Replay a file into the events topic; returns once the broker has all of it."""
    events = read_events(file, columns)
    outlet = KafkaFeed(config)
    try:
        with progress(f"feeding {config.topics.events}", plan.limit) as tell:
            fed = feed(
                events,
                outlet,
                config,
                plan,
                stop=stop,
                clock=time.monotonic,
                progress=lambda fed: tell(fed.sent, f"{fed.rate:,.0f} events/s"),
            )
        outlet.flush()
    finally:
        outlet.close()
    return fed


@contextmanager
def progress(
    title: str, total: int | None, console: Console | None = None, every_s: float = LINE_EVERY_S
) -> Iterator[Tell]:
    """A bar on a terminal, a plain line every ``every_s`` elsewhere; both on standard error."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title, total, console, every_s)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn())
    note = TextColumn("{task.fields[note]}")
    with Progress(*columns, note, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)


def _lines(title: str, total: int | None, console: Console, every_s: float) -> Tell:
    of = "" if total is None else f" of {total:,}"
    told_at = time.monotonic()

    def tell(done: int, note: str) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= every_s:
            told_at = time.monotonic()
            console.print(f"{title}: {done:,}{of}, {note}", highlight=False, soft_wrap=True)

    return tell
