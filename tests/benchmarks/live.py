"""What the outer loop earns while a stream runs, on real Kafka.

``python -m tests.benchmarks.live [--limit N] [--rate 400] [--every 20s]`` feeds chest_har to two
workers at once, one that follows its outer loop and one that keeps the random initialization, and
prints their losses over the second half. Then a NaN initialization, a scaled one and one with its
classes exchanged are published; none may be served.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.integration.job import DATA
from tests.integration.live import MODELS, Found, Live
from tests.kafka_broker import Broker

VERSIONS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--file", type=Path, default=DATA / "chest_har.parquet")
    parser.add_argument("--limit", type=int, default=36_000)
    parser.add_argument("--rate", type=float, default=400)
    parser.add_argument("--every", default="20s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streammaml-live-") as name:
        folder = Path(name)
        broker = Broker(folder / "kafka")
        broker.start()
        try:
            live = Live(broker.bootstrap, folder)
            found = live.play(arguments.file, arguments.limit, arguments.rate, arguments.every)
        finally:
            broker.kill()
    return show(found)


def show(found: Found) -> int:
    for worker, losses in found.losses.items():
        means = ", ".join(f"{model} {losses[model]:.4f}" for model in MODELS)
        print(f"{worker:8} loss over the second half: {means}")
    print(f"runs: {found.results}; versions that the worker took: {found.versions}")
    for run in found.reports:
        print(f"    {run['result']}: {run['why']}")
    print(f"planted: {found.bad}, refused: {found.refused}, served: {sorted(found.served)}")
    print(f"events: {found.events}, predictions: {found.predictions}")
    problems = list(problems_of(found))
    print("\n".join(problems) or "as it should be")
    return 1 if problems else 0


def problems_of(found: Found) -> list[str]:
    follows, keeps = found.losses["follows"]["adapted"], found.losses["keeps"]["adapted"]
    problems = {
        f"fewer than {VERSIONS} versions were taken": len(found.versions) < VERSIONS,
        "the loss does not fall": not follows < keeps,
        "a planted initialization was served": bool(found.served & set(found.bad.values())),
        "an event has no prediction": set(found.predictions.values()) != {found.events},
    }
    return [text for text, holds in problems.items() if holds]


if __name__ == "__main__":
    sys.exit(main())
