"""Speed, side by side with its peers in one run: ``python -m tests.benchmarks.speed --json FILE``.

Every figure is CPU time of this process for the same events, ours and the peer's in turn, round
after round; the ratio is the median of the rounds' ratios. Needs Kafka as the tests do.

    worker                 the worker, no output, against kafka-python consume + decode
    worker_no_drift        likewise with refresh_every = 0 on a stream without drift
    worker_transactions    one prediction out per event in transactions, against the same client
                           doing that without a learner
    learner_256, _1        decode + learner against a naive loop with the same policy, by batch size
    lean_256, _1           likewise against that loop with its torch written as lean as it goes
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from streammaml.backends.codec import EventDecoder, Prediction, encoder
from streammaml.backends.kafka import KafkaFeed, KafkaSink, KafkaSource, TopicAdmin
from streammaml.backends.memory import MemoryRecord
from streammaml.backends.ports import Message, Partition, Rebalance
from streammaml.config import Config, spec_of
from streammaml.evaluation.streams import WIDTH, Stream, hyper
from streammaml.initialization import Initialization, draw
from streammaml.learner import Learner, warm_up
from streammaml.serving import kafka_clients
from streammaml.worker import Worker
from tests.benchmarks.naive import IdiomaticLoop, LeanLoop, NaiveLoop
from tests.kafka_broker import Broker

CONTEXTS = 100
TARGETS = {
    "worker": 0.40,
    "worker_no_drift": 0.60,
    "worker_transactions": 0.65,
    "learner_256": 30.0,
    "learner_1": 10.0,
    "lean_256": None,
    "lean_1": None,
}


class Round(NamedTuple):
    """CPU microseconds an event."""

    ours: float
    peer: float


def config_of(servers: str, topic: str, **learner: Any) -> Config:
    return Config.build(
        {
            "features": [{"name": f"x{i}"} for i in range(WIDTH)],
            "label": {"classes": [0, 1]},
            "learner": learner,
            "kafka": {"bootstrap_servers": servers},
            "state": {"enabled": False},
            "topics": {
                "partitions": 1,
                "events": topic,
                **{t: f"{topic}-{t}" for t in ("predictions", "adaptations", "dead_letters")},
                **{t: f"{topic}-{t}" for t in ("episodes", "initializations", "state")},
            },
        }
    )


def values_of(stream: Stream) -> list[bytes]:
    """Wire events as a producer would write them."""
    encode = encoder("json")
    names = [f"x{i}" for i in range(WIDTH)]
    rows = zip(
        stream.contexts.tolist(),
        stream.x.astype(float).round(4).tolist(),
        stream.y.tolist(),
        strict=True,
    )
    return [
        encode(
            {
                "id": f"e-{i}",
                "context": f"sensor-{c:02d}",
                "timestamp": "2026-11-22T10:00:00Z",
                "features": dict(zip(names, x, strict=True)),
                "label": int(y),
            }
        )
        for i, (c, x, y) in enumerate(rows)
    ]


def cpu_us(work: Callable[[], object], events: int) -> float:
    started = time.process_time()
    work()
    return (time.process_time() - started) / events * 1e6


def in_a_new_group(config: Config) -> Config:
    name = f"bench-{secrets.token_hex(4)}"
    return Config.build(config.model_dump(), {"kafka": {"group": name, "instance": name}})


def run_worker(config: Config, initialization: Initialization, events: int, publish: bool) -> float:
    """CPU time of the real worker from its first record to the commit of its last."""
    config = in_a_new_group(config)

    worker = Worker(config, initialization, kafka_clients(config), publish=publish)
    worker.open()
    early = 0  # played by the call that got the partition
    while not worker.learners:
        early += worker.run_once()

    def work() -> None:
        played = early
        while played < events:
            played += worker.run_once()
        worker.commit()

    try:
        return cpu_us(work, events - early)
    finally:
        worker.close()


@contextmanager
def assigned_source(config: Config) -> Iterator[KafkaSource]:
    """A consumer that has its partition, as the worker above when its clock starts."""
    changes: list[Rebalance] = []
    source = KafkaSource(config, config.kafka.instance, changes.append)
    while not changes:
        source.poll(0.05)
    for partition in changes[0].assigned:
        source.start(partition, source.standing(partition).beginning)
    try:
        yield source
    finally:
        source.close()


def run_consumer(config: Config, events: int) -> float:
    """kafka-python's consume and msgspec's decode, nothing else."""
    config = in_a_new_group(config)
    decode = EventDecoder(config.features, "json", 1_000_000)

    with assigned_source(config) as source:

        def work() -> None:
            seen = 0
            while seen < events:
                for records in source.poll(0.1).values():
                    decode.many(records)
                    seen += len(records)

        return cpu_us(work, events)


def run_client(config: Config, events: int) -> float:
    """Consume, decode, send a prediction that needs no learner, commit in transactions."""
    config = in_a_new_group(config)
    decode = EventDecoder(config.features, "json", 1_000_000)
    encode, topic = encoder("json"), config.topics.events
    shares = {"0": 0.25, "1": 0.75}
    sink = KafkaSink(config, config.kafka.instance)

    def messages(records: Sequence[Any]) -> list[Message]:
        out = []
        for record, event in zip(records, decode.many(records)[0], strict=True):
            context = str(event.context)
            name = f"{topic}-0-{record.offset}"
            value = Prediction(name, event.id, context, topic, 0, record.offset, 0, 1, shares)
            out.append(Message(config.topics.predictions, context.encode(), encode(value)))
        return out

    with assigned_source(config) as source:

        def work() -> None:
            seen = since = 0
            committed = time.monotonic()
            interval_s = config.worker.commit_interval_ms / 1000
            offsets: dict[Partition, int] = {}
            while seen < events:
                for partition, records in source.poll(0.1).items():
                    sink.send(messages(records))
                    offsets[partition] = records[-1].offset + 1
                    seen += len(records)
                    since += len(records)
                now = time.monotonic()
                due = now - committed >= interval_s or since >= config.worker.commit_events
                if offsets and (due or seen >= events):
                    sink.commit(offsets, source.member())
                    offsets, since, committed = {}, 0, now

        try:
            return cpu_us(work, events)
        finally:
            sink.close()


def run_learner(
    config: Config, initialization: Initialization, values: Sequence[bytes], size: int
) -> float:
    """Decode and learn in batches of ``size``."""
    decode = EventDecoder(config.features, "json", 1_000_000)
    learner = Learner(config, initialization)
    records = [MemoryRecord("events", 0, i, 0, None, v, []) for i, v in enumerate(values)]

    def work() -> None:
        for first in range(0, len(records), size):
            events = decode.many(records[first : first + size])[0]
            learner.step(learner.collate(events).batch)

    return cpu_us(work, len(values))


def learner_rounds(
    kind: type[NaiveLoop[Any]], size: int, values: Sequence[bytes], rounds: int
) -> list[Round]:
    config = config_of("none", "events")
    initialization = draw(spec_of(config), 0)
    warm_up(config, initialization)
    found = []
    for _ in range(rounds):
        loop = kind(config, initialization)
        peer = cpu_us(partial(loop.play, values), len(values))
        found.append(Round(run_learner(config, initialization, values, size), peer))
    return found


def kafka_rounds(servers: str, events: int, rounds: int) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = {}
    for name, drifting in (("worker", True), ("worker_no_drift", False)):
        learner = {} if drifting else {"refresh_every": 0}
        config = config_of(servers, f"speed-{secrets.token_hex(4)}", **learner)
        fill(config, hyper(CONTEXTS, events // CONTEXTS, 1, drifting))
        initialization = draw(spec_of(config), 0)
        warm_up(config, initialization)
        run_consumer(config, events)
        found[name] = [
            Round(run_worker(config, initialization, events, False), run_consumer(config, events))
            for _ in range(rounds)
        ]
        if drifting:
            found["worker_transactions"] = [
                Round(run_worker(config, initialization, events, True), run_client(config, events))
                for _ in range(rounds)
            ]
    return found


def fill(config: Config, stream: Stream) -> None:
    with TopicAdmin(config) as admin:
        admin.ensure()
    feed = KafkaFeed(config)
    feed.send([Message(config.topics.events, b"", value) for value in values_of(stream)])
    feed.flush()
    feed.close()


def report(rounds: dict[str, list[Round]]) -> dict[str, dict[str, Any]]:
    """The issue's form; prints a line for each."""
    out = {}
    for name, found in rounds.items():
        share = name.startswith("worker")
        ratios = [peer / ours for ours, peer in found]
        ratio = statistics.median(ratios)
        target = TARGETS[name]
        out[name] = {
            "ours": round(statistics.median(r.ours for r in found), 2),
            "peer": round(statistics.median(r.peer for r in found), 2),
            "ratio": round(ratio, 3),
            "target": target,
            "rounds": [list(map(lambda v: round(v, 2), r)) for r in found],
        }
        verdict = "" if target is None else ("reached" if ratio >= target else "NOT reached")
        unit = "of the peer's speed" if share else "times the peer's speed"
        print(
            f"{name:20} ours {out[name]['ours']:8.2f}  peer {out[name]['peer']:8.2f} us/event  "
            f"{ratio:6.2f} {unit}  target {target}  {verdict}"
        )
    return out


@contextmanager
def servers_of_a_broker() -> Iterator[str]:
    if running := os.environ.get("STREAMMAML_TEST_KAFKA"):
        yield running
        return
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        try:
            yield broker.bootstrap
        finally:
            broker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--events", type=int, default=100_000, help="through Kafka, a round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # neither side pays for looking at the other's imports
    with servers_of_a_broker() as servers:
        rounds = kafka_rounds(servers, given.events, given.rounds)
    values = values_of(hyper(CONTEXTS, 60, 1))
    for size in (256, 1):
        rounds[f"learner_{size}"] = learner_rounds(IdiomaticLoop, size, values, given.rounds)
        rounds[f"lean_{size}"] = learner_rounds(LeanLoop, size, values, given.rounds)
    out = report(rounds)
    if given.json is not None:
        given.json.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
