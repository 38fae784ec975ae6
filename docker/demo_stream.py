"""Feed a drifting stream like the demo's into the events topic: each event with the time now.

It has no end. After 25 minutes at the default rate it begins anew, and all contexts drift at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from streammaml.backends.files import WireEvent
from streammaml.backends.kafka import KafkaFeed
from streammaml.config import Config, from_environment
from streammaml.evaluation.streams import Stream, hyper
from streammaml.feed import FeedPlan, feed
from streammaml.process import configure_logging, stop_on_signals

CONTEXTS = 100
EVENTS_EACH = 3000
RATE = 200.0


def events(stream: Stream, clock: Callable[[], float]) -> Iterator[WireEvent]:
    """The stream's events as they would come over the wire, without end."""
    names = [f"x{i}" for i in range(stream.x.shape[1])]
    for i in itertools.cycle(range(len(stream))):
        yield {
            "context": f"sensor-{stream.contexts[i]:02d}",
            "timestamp": clock(),
            "features": dict(zip(names, stream.x[i].tolist(), strict=True)),
            "label": int(stream.y[i]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--config", type=Path, default=Path("streammaml.toml"))
    parser.add_argument("--rate", type=float, default=RATE, help="events a second")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    configure_logging()
    config = Config.build(
        tomllib.loads(arguments.config.read_text(encoding="utf-8")), from_environment(os.environ)
    )
    stream = hyper(CONTEXTS, EVENTS_EACH, arguments.seed)
    outlet = KafkaFeed(config)
    try:
        with stop_on_signals() as stop:
            feed(
                events(stream, time.time),
                outlet,
                config,
                FeedPlan(name="demo", rate=arguments.rate),
                stop=stop,
                clock=time.monotonic,
            )
        outlet.flush()
    finally:
        outlet.close()


if __name__ == "__main__":
    main()
