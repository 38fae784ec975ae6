"""What durable state costs: parts of ``python -m tests.benchmarks.recovery``.

written      bytes that go to ``state`` for each event, with a barrier every 30 s and at every
             commit, as at 2,000 events/s in 6 partitions: barriers and commits are counted in
             events here, so that the run need not take as long
pause        the longest pause of a barrier with 100,000 changed contexts
pause_large  likewise with the demo's network, 24 KB each, where 64 MB are the limit
throughput   the worker with state against the same one without, in turn: CPU and wall time
memory       a worker that keeps 50,000 contexts while 2,000,000 pass, and 1,000 come back
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from streammaml.backends.codec import encoder
from streammaml.backends.files import Columns, propose_schema, read_events
from streammaml.backends.memory import MemoryRecord
from streammaml.backends.ports import Message, Partition, Rebalance
from streammaml.config import Config, spec_of
from streammaml.evaluation.streams import WIDTH, hyper
from streammaml.initialization import draw
from streammaml.learner import Learner, warm_up
from streammaml.partition import PartitionPlayer, Played, RejectionLimit
from streammaml.reporting import Kept, LoadResult, TransactionResult
from streammaml.serving import kafka_clients
from streammaml.worker import Worker
from tests.benchmarks.events import make_rig, messages_of
from tests.benchmarks.rows import Row, Rows, rounded, row
from tests.integration.job import DATA
from tests.integration.rig import Rig

PARTITIONS = 6
RATE = 2000
INTERVAL_S = 30
COMMIT_S = 0.5
THROUGHPUT_EVENTS = 150_000
MANY = 100_000
PASSING = 2_000_000
KEPT = 50_000
BACK = 1000
WARM = 0.2
"""Share of the contexts after which memory must not grow."""


class Costs:
    """An observer of barriers."""

    def __init__(self) -> None:
        self.bytes = 0
        self.barriers = 0
        self.longest_s = 0.0

    def barrier(self, result: TransactionResult, seconds: float, size: int) -> None:
        self.bytes += size
        self.barriers += 1
        self.longest_s = max(self.longest_s, seconds)

    def state(self, name: str) -> None: ...
    def played(self, played: Played, now_s: float) -> None: ...
    def rebalanced(self, change: Rebalance, left: int) -> None: ...
    def committed(self, result: TransactionResult, now_s: float) -> None: ...
    def lag(self, lag: dict[Partition, int]) -> None: ...
    def kept(self, kept: Kept) -> None: ...
    def misplaced(self, contexts: int) -> None: ...
    def initialization(self, result: LoadResult, version: int) -> None: ...


class Spent:
    """CPU and wall time of this process, microseconds an event, and what barriers did."""

    def __init__(self, cpu_us: float, wall_us: float, costs: Costs) -> None:
        self.cpu_us = cpu_us
        self.wall_us = wall_us
        self.costs = costs


def work_off(config: Config, events: int) -> Spent:
    """All of it by a worker in this process, with a last barrier of everything."""
    costs = Costs()
    initialization = draw(spec_of(config), config.learner.seed)
    warm_up(config, initialization)
    worker = Worker(config, initialization, kafka_clients(config), [costs])
    worker.open()
    played = 0
    while len(worker.learners) < config.topics.partitions:
        played += worker.run_once()  # perhaps some came with the partition
    cpu, wall = time.process_time(), time.monotonic()
    while played < events:
        played += worker.run_once()
    worker.commit(whole=list(worker.learners))
    spent = (time.process_time() - cpu) / events, (time.monotonic() - wall) / events
    worker.close()
    return Spent(spent[0] * 1e6, spent[1] * 1e6, costs)


def anew(rig: Rig, name: str, **sections: Any) -> Config:
    """The rig's configuration for another group, with a ``state`` of its own."""
    rig.configure_with(
        kafka={"group": f"{rig.name}-{name}", "instance": name},
        topics={"state": f"{rig.name}-state-{name}"},
        **{**sections, "state": {"directory": str(rig.folder / name), **sections.get("state", {})}},
    )
    assert set(rig.ensure_topics()) <= {"created", "exists"}
    return rig.config


# --- parts --------------------------------------------------------------------------------------


def written(servers: str, folder: Path, rounds: int) -> Rows:
    rows: Rows = {}
    for contexts in (100, 1000):
        rig = make_rig(servers, folder, WIDTH)
        messages = messages_of(hyper(contexts, 240_000 // contexts, 1), WIDTH)
        rows |= both_barriers(rig, f"written_demo_{contexts}", messages, folder)
    flights = DATA / "nycflights13.parquet"
    if not flights.exists():
        print(f"written_flights: left out, there is no {flights}")
        return rows
    rig = make_rig(servers, folder, 1)
    rows |= both_barriers(rig, "written_flights", flight_messages(rig, flights), folder)
    return rows


def both_barriers(rig: Rig, name: str, messages: Sequence[Message], folder: Path) -> Rows:
    rig.produce(messages)
    rows: Rows = {}
    pace = {
        "commit_events": int(RATE * COMMIT_S),
        "commit_interval_ms": 10_000,
        "max_poll_records": 250,
    }
    each = RATE * INTERVAL_S // PARTITIONS
    never = {"barrier_events": 10**9, "barrier_interval_s": 1e9}
    for kind, limits in (("30s", {"barrier_events": each}), ("commit", {"barrier_interval_s": 0})):
        config = anew(rig, f"{kind}", worker=pace, state={**never, **limits})
        costs = work_off(config, len(messages)).costs
        logs = (folder / "kafka" / "data").glob(f"{config.topics.state}-*/*.log")
        stored = sum(log.stat().st_size for log in logs)
        rows[f"{name}_{kind}"] = row(
            costs.bytes / len(messages),
            "bytes/event",
            on_disk_of_broker=round(stored / len(messages), 1),
            barriers=costs.barriers,
            longest_s=round(costs.longest_s, 3),
        )
    return rows


def flight_messages(rig: Rig, file: Path, limit: int = 240_000) -> list[Message]:
    features, label = propose_schema(file, "f_*", "label", "context", "ts")
    rig.configure_with(
        features=[f.model_dump(exclude_defaults=True) for f in features],
        label=label.model_dump(exclude_defaults=True),
    )
    encode = encoder("json")
    columns = Columns(features="f_*", label="label", context="context", time="ts")
    messages = []
    for event in read_events(file, columns):
        assert not isinstance(event, bytes)
        messages.append(Message("events", str(event["context"]).encode(), encode(event)))
        if len(messages) == limit:
            break
    return messages


def pause(servers: str, folder: Path, rounds: int) -> Rows:
    small = {"network": "linear", "max_contexts": MANY}
    rig = make_rig(servers, folder, 4, learner=small, topics={"partitions": 1})
    rig.produce(messages_of(hyper(MANY, 2, 1), 4))
    unbounded = {"barrier_mb": 1e6, "barrier_events": 10**9, "barrier_interval_s": 1e9}
    found = [
        work_off(anew(rig, f"all-{i}", state=unbounded), 2 * MANY).costs for i in range(rounds)
    ]
    limited = work_off(anew(rig, "limited", state={"barrier_interval_s": 1e9}), 2 * MANY).costs
    return {
        "pause_linear": row(
            statistics.median(costs.longest_s for costs in found),
            "s",
            rounds=rounded(costs.longest_s for costs in found),
            mb=round(found[0].bytes / 1e6),
        ),
        "pause_linear_limits": row(limited.longest_s, "s", barriers=limited.barriers),
    }


def pause_large(servers: str, folder: Path, rounds: int) -> Rows:
    large = make_rig(servers, folder, WIDTH, topics={"partitions": 1})
    large.produce(messages_of(hyper(MANY, 2, 1), WIDTH))
    costs = work_off(anew(large, "one"), 2 * MANY).costs
    mb = round(costs.bytes / 1e6)
    return {"pause_demo_limits": row(costs.longest_s, "s", barriers=costs.barriers, mb=mb)}


def throughput(servers: str, folder: Path, rounds: int) -> Rows:
    rig = make_rig(servers, folder, WIDTH)
    rig.produce(messages_of(hyper(1000, THROUGHPUT_EVENTS // 1000, 1), WIDTH))
    gc.freeze()
    pairs = []
    for i in range(rounds):
        off = work_off(anew(rig, f"off-{i}", state={"enabled": False}), THROUGHPUT_EVENTS)
        on = work_off(anew(rig, f"on-{i}", state={"enabled": True}), THROUGHPUT_EVENTS)
        pairs.append((on, off))
    mb = round(pairs[0][0].costs.bytes / 1e6, 1)
    return {
        "throughput_wall": ratio([(on.wall_us, off.wall_us) for on, off in pairs]),
        "throughput_cpu": ratio([(on.cpu_us, off.cpu_us) for on, off in pairs])
        | {"state_mb": mb, "barriers": pairs[0][0].costs.barriers},
    }


def ratio(pairs: Sequence[tuple[float, float]]) -> Row:
    """Of speeds, with state to without, from microseconds an event."""
    return row(
        statistics.median(off / on for on, off in pairs),
        "of the speed without",
        0.85,
        least=True,
        rounds=[rounded(pair) for pair in pairs],
    )


def memory(servers: str, folder: Path, rounds: int) -> Rows:
    learner = {"network": "linear", "max_contexts": KEPT}
    rig = make_rig(servers, folder, 4, learner=learner, topics={"partitions": 1})
    for batch in passing():
        rig.produce(batch)
    rng = np.random.default_rng(5)
    again = list(events(rng.integers(0, PASSING // 2, BACK).tolist(), 6))
    rig.produce(again)
    worker = rig.run(worker__commit_interval_ms=500)
    ends: list[tuple[int, float]] = []

    def all_committed() -> bool:
        ends.append((rig.committed(), worker.rss_mb()))
        return ends[-1][0] >= rig.sent

    worker.until(all_committed, "all are committed", 1800.0)
    worker.stop()
    warm = [mb for done, mb in ends if done >= WARM * PASSING]
    back = sorted(rig.predictions(), key=lambda p: int(p["offset"]))[-BACK:]
    rig.end_all()
    same = sum(one == other for one, other in zip(back, undisturbed_last(rig, again), strict=True))
    return {
        "memory_growth": row(warm[-1] / warm[0], "of the memory when warm", 1.05, mb=warm[-1]),
        "memory_peak": row(max(warm) / min(warm), "highest to lowest", contexts=PASSING),
        "memory_came_back_same": row(same, "of the contexts that came back", BACK, least=True),
    }


def passing() -> Iterator[list[Message]]:
    for first in range(0, PASSING, 100_000):
        yield list(events(range(first, first + 100_000), first))


def events(contexts: Sequence[int], seed: int) -> Iterator[Message]:
    encode = encoder("json")
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(len(contexts), 4)).round(3).tolist()
    for c, x in zip(contexts, numbers, strict=True):
        context = f"device-{c}"
        features = {f"x{i}": value for i, value in enumerate(x)}
        event = {"context": context, "features": features, "label": int(x[0] + x[1] > 0)}
        yield Message("events", context.encode(), encode(event))


def undisturbed_last(rig: Rig, again: Sequence[Message]) -> list[dict[str, Any]]:
    """The predictions for ``again`` by a learner that keeps all contexts in memory."""
    config = Config.build(rig.config.model_dump(), {"learner": {"max_contexts": PASSING}})
    learner = Learner(config, draw(spec_of(config), config.learner.seed))
    partition = Partition(config.topics.events, 0)
    limit = RejectionLimit(1000, 1000, 1.0)
    player = PartitionPlayer(partition, config, learner, limit)
    topic = config.topics.events
    offset = 0

    def records(batch: Sequence[Message]) -> list[MemoryRecord]:
        return [
            MemoryRecord(topic, 0, offset + i, 0, m.key, m.value, []) for i, m in enumerate(batch)
        ]

    for batch in passing():
        for first in range(0, len(batch), 1000):
            player.replay(records(batch[first : first + 1000]))
            offset += 1000
    played = player.play(records(again))
    wanted = [m for m in played.messages if m.topic == config.topics.predictions]
    return [msgspec.json.decode(m.value or b"") for m in wanted]
