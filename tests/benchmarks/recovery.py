"""How soon a worker is back, on real Kafka: ``python -m tests.benchmarks.recovery --json FILE``.

Times in seconds, as a reader of committed predictions sees them, with the processor time that the
worker had used by then: on a machine that others use, that is the steadier figure. Parts, all
unless some are named:

    restart      the same worker killed and started again, 2,000 events/s: to the next prediction,
                 to the next one of every partition, and what was replayed
    full_rate    likewise while it works off a backlog as fast as it can (no bound)
    takeover     its partitions taken over by another worker; beyond the session timeout
    million      restart with 1,000,000 contexts of 0.9 KB (``linear``, 4 numbers) on the same disk
    moved        100,000 contexts of 3.9 KB restored from Kafka alone

For ``million`` and ``moved`` valid records are written straight into ``state``: those that a
learner made of a thousand contexts, sealed again under as many names as are needed.
More parts, on what it costs, are in ``tests.benchmarks.durability``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import numpy as np

from streammaml.backends.codec import encoder
from streammaml.backends.kafka import KafkaFeed
from streammaml.backends.ports import Message, Standing
from streammaml.config import Config, spec_of
from streammaml.evaluation.streams import hyper
from streammaml.events import Batch
from streammaml.initialization import draw
from streammaml.learner import Learner
from streammaml.learner.snapshot import context_of
from streammaml.recovery import BARRIER_KEY, write_barrier
from streammaml.sealed import seal, unseal_any
from tests.benchmarks import durability
from tests.benchmarks.events import make_rig, messages_of
from tests.benchmarks.rows import Part, Rows, rounded, row, text_of
from tests.faults.kafka_ledger import Fleet, Producer, lines_of
from tests.integration.rig import Rig, WorkerProcess, owned
from tests.kafka_broker import Broker, wait_until

PARTITIONS = 6
CONTEXTS = 1000
RATE = 2000
STEADY_S = 35.0
"""From a start to the kill: every partition has had a barrier by then."""
SESSION_MS = 10_000
BACKLOG = 600_000
PATTERNS = 1000
"""Contexts that a learner really had."""
DEADLINE_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    for name in PARTS:
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true")
    given = parser.parse_args()
    chosen = [name for name in PARTS if getattr(given, name)] or list(PARTS)
    rows: Rows = {}
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="streammaml-recovery-") as folder:
            broker = Broker(Path(folder) / "kafka")
            broker.start()
            try:
                for key, found in PARTS[name](broker.bootstrap, Path(folder), given.rounds).items():
                    rows[key] = found
                    print(text_of(key, found), flush=True)
            finally:
                broker.kill()
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


class Eye:
    """Sees predictions as a reader of committed ones does."""

    def __init__(self, rig: Rig) -> None:
        self._consumer = kafka.KafkaConsumer(
            bootstrap_servers=rig.servers,
            isolation_level="read_committed",
            enable_auto_commit=False,
            fetch_max_wait_ms=20,
        )
        topic = rig.topic("predictions")
        parts = self._consumer.partitions_for_topic(topic)
        self.cpu_s = 0.0
        """What the worker had used when the first prediction was seen."""
        self._parts = [kafka.TopicPartition(topic, p) for p in parts]
        self._consumer.assign(self._parts)
        self.look_away()

    def look_away(self) -> None:
        """See only what is committed from now on."""
        for tp, end in self._consumer.end_offsets(self._parts).items():
            self._consumer.seek(tp, end)

    def firsts(self, since: float, worker: WorkerProcess, partitions: set[int]) -> dict[int, float]:
        """Seconds from ``since`` to the first prediction of each of these partitions."""
        seen: dict[int, float] = {}

        def all_seen() -> bool:
            assert worker.is_running(), worker.log()[-4000:]
            for records in self._consumer.poll(timeout_ms=100).values():
                now = time.monotonic()
                self.cpu_s = worker.cpu_s() if not seen else self.cpu_s
                for record in records:
                    seen.setdefault(json.loads(record.value)["partition"], now - since)
            return partitions <= set(seen)

        wait_until(all_seen, DEADLINE_S, f"predictions of {partitions}")
        return {p: at for p, at in seen.items() if p in partitions}

    def close(self) -> None:
        self._consumer.close()


def events_of(worker: WorkerProcess, name: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(worker) if line.get("event") == name]


def moment(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


# --- parts --------------------------------------------------------------------------------------


def restart(servers: str, folder: Path, rounds: int) -> Rows:
    rig = make_rig(servers, folder, 8)
    stream = itertools.cycle(messages_of(hyper(CONTEXTS, 300, 1), 8))
    producer = Producer(rig, RATE, stream)
    try:
        return killed_and_started(rig, "restart", rounds, 5.0)
    finally:
        producer.stop()
        rig.end_all()


def full_rate(servers: str, folder: Path, rounds: int) -> Rows:
    rig = make_rig(servers, folder, 8)
    messages = messages_of(hyper(CONTEXTS, 300, 1), 8)
    for _ in range(BACKLOG // len(messages)):
        rig.produce(messages)
    stop_early = 10.0  # of a backlog of some 40 s
    try:
        return killed_and_started(rig, "full_rate", 1, None, stop_early)
    finally:
        rig.end_all()


def killed_and_started(
    rig: Rig, name: str, rounds: int, target: float | None, steady_s: float = STEADY_S
) -> Rows:
    fleet, eye = Fleet(rig, ["one"]), Eye(rig)
    every = set(range(PARTITIONS))
    first, last, cpu_s, events, replay_s, boot_s = [], [], [], [], [], []
    eye.firsts(time.monotonic(), fleet.current("one"), every)
    for _ in range(rounds):
        time.sleep(steady_s)  # so much is between two barriers: what is measured depends on it
        fleet.kill("one")
        since, at = time.monotonic(), time.time()
        eye.look_away()
        fleet.start("one")
        worker = fleet.current("one")
        seen = eye.firsts(since, worker, every)
        first.append(min(seen.values()))
        last.append(max(seen.values()))
        cpu_s.append(eye.cpu_s)
        replayed = events_of(worker, "replayed")
        events.append(sum(line["events"] for line in replayed))
        begun = [moment(line) for line in events_of(worker, "rebalanced")]
        boot_s.append(min(begun) - at)
        replay_s.append(max(map(moment, replayed)) - min(begun) if replayed else 0.0)
    eye.close()
    fleet.kill("one")
    middle = statistics.median
    return {
        f"{name}_first": row(
            middle(first),
            "s",
            target,
            rounds=rounded(first),
            cpu_s=rounded(cpu_s),
            started_in=rounded(boot_s),
        ),
        f"{name}_all": row(
            middle(last), "s", rounds=rounded(last), replayed=events, replay_s=rounded(replay_s)
        ),
    }


def takeover(servers: str, folder: Path, rounds: int) -> Rows:
    rig = make_rig(servers, folder, 8)
    stream = itertools.cycle(messages_of(hyper(CONTEXTS, 300, 1), 8))
    producer = Producer(rig, RATE, stream)
    found = []
    events = []
    try:
        fleet, eye = Fleet(rig, ["one", "two"]), Eye(rig)
        for _ in range(rounds):
            for name in fleet.instances:
                fleet.until_owner(name, PARTITIONS // 2)
            eye.look_away()
            eye.firsts(time.monotonic(), fleet.current("two"), set(range(PARTITIONS)))
            time.sleep(STEADY_S)  # so much is between two barriers
            theirs = held(fleet.current("one"))
            fleet.kill("one")
            since = time.monotonic()
            eye.look_away()
            before = len(events_of(fleet.current("two"), "replayed"))
            seen = eye.firsts(since, fleet.current("two"), theirs)
            found.append(max(seen.values()))
            replayed = events_of(fleet.current("two"), "replayed")[before:]
            events.append(sum(line["events"] for line in replayed))
            fleet.wipe("one")
            fleet.start("one")
        eye.close()
    finally:
        producer.stop()
        rig.end_all()
    worst = statistics.median(found)
    timeout_s = SESSION_MS / 1000
    return {
        "takeover_all": row(worst, "s", timeout_s + 5, rounds=rounded(found), replayed=events),
        "takeover_beyond_session": row(worst - timeout_s, "s", 5.0),
    }


def held(worker: WorkerProcess) -> set[int]:
    have: set[int] = set()
    for line in events_of(worker, "rebalanced"):
        have = (have | set(line["assigned"])) - set(line["revoked"]) - set(line["lost"])
    assert len(have) == owned(worker)
    return have


def million(servers: str, folder: Path, rounds: int) -> Rows:
    rig = make_rig(servers, folder, 4, learner={"network": "linear", "max_contexts": 20_000})
    size = fill_state(rig, 1_000_000, PARTITIONS)
    produce_for(rig, PARTITIONS)
    fleet, eye = Fleet(rig, ["one"]), Eye(rig)
    every = set(range(PARTITIONS))
    since = time.monotonic()
    worker = fleet.current("one")
    worker.until(lambda: rig.committed() >= rig.sent, "all are predicted", DEADLINE_S)
    built = time.monotonic() - since
    first, last, cpu_s = [], [], []
    try:
        for _ in range(rounds):
            fleet.kill("one")
            eye.look_away()
            produce_for(rig, PARTITIONS)
            since = time.monotonic()
            fleet.start("one")
            seen = eye.firsts(since, fleet.current("one"), every)
            first.append(min(seen.values()))
            last.append(max(seen.values()))
            cpu_s.append(eye.cpu_s)
    finally:
        eye.close()
        rig.end_all()
    return {
        "million_first": row(
            statistics.median(first), "s", 5.0, rounds=rounded(first), cpu_s=rounded(cpu_s)
        ),
        "million_all": row(statistics.median(last), "s", rounds=rounded(last)),
        "million_from_kafka": row(built, "s", mb=round(size / 1e6)),
    }


def moved(servers: str, folder: Path, rounds: int) -> Rows:
    rig = make_rig(servers, folder, 8, learner={"hidden": [32]}, topics={"partitions": 1})
    size = fill_state(rig, 100_000, 1)
    produce_for(rig, 1)
    fleet, eye = Fleet(rig, []), Eye(rig)
    whole, alone, cpu_s = [], [], []
    try:
        for i in range(rounds):
            since = time.monotonic()
            fleet.add(f"worker-{i}")  # another disk each time
            worker = fleet.current(f"worker-{i}")
            seen = eye.firsts(since, worker, {0})
            whole.append(seen[0])
            cpu_s.append(eye.cpu_s)
            (line,) = events_of(worker, "restored")
            alone.append(line["seconds"])
            worker.stop()
            eye.look_away()
            produce_for(rig, 1)
    finally:
        eye.close()
        rig.end_all()
    middle = statistics.median(alone)
    return {
        "moved_restored": row(middle, "s", 20.0, rounds=rounded(alone), mb=round(size / 1e6)),
        "moved_speed": row(size / 1e6 / middle, "MB/s"),
        "moved_first": row(
            statistics.median(whole), "s", rounds=rounded(whole), cpu_s=rounded(cpu_s)
        ),
    }


# --- state from nothing -------------------------------------------------------------------------


def fill_state(rig: Rig, contexts: int, partitions: int) -> int:
    """Write the barrier of so many contexts at offset 0 of each partition; bytes written."""
    items = patterns(rig.config)
    each = contexts // partitions
    size = 0
    feed = KafkaFeed(Config.build(rig.config.model_dump(), {}))
    for index in range(partitions):
        for message in barrier_of(rig, items, each, index, partitions):
            size += len(message.key or b"") + len(message.value or b"")
            feed.send([message])
        feed.flush()
    feed.close()
    print(f"{contexts:,} contexts of {size / contexts:.0f} bytes are in `state`", flush=True)
    return size


def patterns(config: Config) -> dict[bytes, bytes]:
    """The state of a learner that has seen 40 events of each of a thousand contexts."""
    width = len(config.features)
    learner = Learner(config, draw(spec_of(config), config.learner.seed))
    stream = hyper(PATTERNS, 40, 3)
    for first in range(0, len(stream), 1000):
        part = slice(first, first + 1000)
        learner.step(
            Batch(
                contexts=[f"{c}" for c in stream.contexts[part].tolist()],
                x=np.ascontiguousarray(stream.x[part, :width]),
                y=stream.y[part].astype(float),
                offsets=np.arange(first, first + 1000),
            )
        )
    return {key: value for key, value in learner.snapshot() if value is not None}


def barrier_of(
    rig: Rig, items: dict[bytes, bytes], contexts: int, index: int, partitions: int
) -> Iterator[Message]:
    topic = rig.config.topics.state
    bodies: dict[str, list[tuple[bytes, bytes, bytes]]] = {}
    for key, value in items.items():
        if key.startswith(b"@"):
            yield Message(topic, key, value, (), index)
        else:
            owner, body = unseal_any(key, value)
            bodies.setdefault(context_of(key), []).append((key[:2], owner, bytes(body)))
    sets = list(bodies.values())
    for i in range(contexts):
        name = name_of(index, i)
        for kind, owner, content in sets[i % len(sets)]:
            yield Message(topic, kind + name, seal(kind + name, owner, content), (), index)
    standing = Standing(None, 0, 0, rig.topic_id("events"), partitions)
    yield Message(topic, BARRIER_KEY, write_barrier(rig.config, 0, 0, standing), (), index)


def name_of(index: int, i: int) -> bytes:
    return b"sensor-%d-%06d" % (index, i)


def produce_for(rig: Rig, partitions: int) -> None:
    """A hundred events for contexts of each partition that the state knows."""
    encode = encoder("json")
    width = len(rig.config.features)
    rng = np.random.default_rng(rig.sent)
    messages = []
    for index in range(partitions):
        for i in rng.integers(0, 100_000, 100).tolist():
            name = name_of(index, i)
            features = {f"x{j}": float(v) for j, v in enumerate(rng.normal(size=width).round(3))}
            event = {"context": name.decode(), "features": features, "label": 1}
            messages.append(Message("events", name, encode(event), (), index))
    rig.produce(messages)


PARTS: dict[str, Part] = {
    "restart": restart,
    "full_rate": full_rate,
    "takeover": takeover,
    "million": million,
    "moved": moved,
    "written": durability.written,
    "pause": durability.pause,
    "pause_large": durability.pause_large,
    "throughput": durability.throughput,
    "memory": durability.memory,
}

if __name__ == "__main__":
    main()
