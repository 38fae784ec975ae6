"""What the outer loop earns while a stream runs, on real Kafka.

``python -m tests.benchmarks.live [--limit N] [--rate 400] [--every 20s]`` feeds chest_har to two
workers at once, one that follows its outer loop and one that keeps the random initialization, and
prints their losses over the second half. Then a NaN initialization, a scaled one and one with its
classes exchanged are published; none may be served. With ``--prometheus`` a real one scrapes them
meanwhile, and is asked for all that dashboard, alerts and rules show (``panels.py``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks.panels import examine
from tests.integration.job import DATA
from tests.integration.live import MODELS, Found, Live
from tests.kafka_broker import Broker, free_port

VERSIONS = 2
RULES = Path(__file__).parents[2] / "docker" / "prometheus" / "rules" / "streammaml.rules.yml"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--file", type=Path, default=DATA / "chest_har.parquet")
    parser.add_argument("--limit", type=int, default=36_000)
    parser.add_argument("--rate", type=float, default=400)
    parser.add_argument("--every", default="20s")
    parser.add_argument("--prometheus", action="store_true")
    arguments = parser.parse_args()
    unknown: list[int] = []
    with tempfile.TemporaryDirectory(prefix="streammaml-live-") as name:
        folder = Path(name)
        broker = Broker(folder / "kafka")
        broker.start()
        try:
            live = Live(broker.bootstrap, folder)
            with ExitStack() as stack:
                look: Callable[[], None] = lambda: None  # noqa: E731  # nothing to look at
                if arguments.prometheus:
                    ports = (live.job.port, live.outer_port)
                    url = stack.enter_context(prometheus(folder / "prometheus", *ports))
                    look = lambda: unknown.append(examine(url, "30s", "10m"))  # noqa: E731
                found = live.play(
                    arguments.file, arguments.limit, arguments.rate, arguments.every, look
                )
        finally:
            broker.kill()
    return max(show(found), *unknown, 0)


@contextmanager
def prometheus(folder: Path, worker: int, outer: int) -> Iterator[str]:
    """A real one with our rules that scrapes these ports every second; its address."""
    folder.mkdir()
    targets = {"streammaml-worker": worker, "streammaml-outer": outer}
    scrapes = [
        {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        for name, port in targets.items()
    ]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": scrapes,
    }
    (folder / "prometheus.yml").write_text(json.dumps(settings))  # which is YAML, too
    port = free_port()
    command = [
        *("prometheus", f"--config.file={folder / 'prometheus.yml'}"),
        *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
        *("--enable-feature=exemplar-storage", "--log.level=warn"),
    ]
    process = subprocess.Popen(command)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


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
