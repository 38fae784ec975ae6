"""Workers under faults, one seed at a time: real workers, stores and learners on the memory broker.

One thread and one generator drive everything, so a seed repeats its schedule. A worker is killed by
an exception out of one of its durable steps, after which nothing of it runs: its transaction stays
open and its place in the group taken until they time out, and its next life begins with the files
as they were at that moment. The judgement on what it wrote is in ``ledger.py``.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import streammaml.following
import streammaml.tenure
import streammaml.worker
from streammaml.backends.memory import (
    MemoryBroker,
    MemoryPlainSink,
    MemorySink,
    MemorySource,
    MemoryStateLog,
    MemoryTail,
)
from streammaml.backends.ports import (
    Clients,
    Member,
    Message,
    Offsets,
    OnRebalance,
    Partition,
    Rebalance,
)
from streammaml.backends.state import Store
from streammaml.backends.wire_initializations import initialization_messages
from streammaml.config import Config, spec_of
from streammaml.errors import BackendError, FencedError, StoreError, UnreadableError
from streammaml.initialization import Initialization, draw
from streammaml.partition import Played
from streammaml.recovery import BARRIER_KEY, read_barrier
from streammaml.reporting import Kept, LoadResult, TransactionResult
from streammaml.worker import Worker

NEVER = 1e9
MAX_TURNS = 600
"""Of the last drain: beyond, the workers make no progress."""
BAD = (b"{", b"", b'{"context": "x"', b'{"features": {"a": "warm"}, "context": "c-1"}')


class Crash(BaseException):
    """The end of a process: nothing of the worker's runs after it."""


class ViolationError(Exception):
    """A promise is broken."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a seed draws once."""

    delivery: str
    partitions: int
    workers: int
    contexts: int
    events: int
    turns: int
    kills: float
    """Share of the durable steps at which the process dies."""
    errors: float
    """Share of them that fail."""
    bad: float
    unlabelled: float
    unreadable: float
    swaps: str
    """Where other initializations come from: "" nowhere, each "start" of a worker, the "topic"."""
    flips: bool
    zombies: bool
    ttl_s: float
    sections: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, rng: random.Random) -> Shape:
        exact = rng.random() < 0.85
        kind = rng.choice(["closed", "closed", "open", "regression"])
        learner: dict[str, Any] = {
            "hidden": [4],
            "inner_steps": 2,
            "support_size": 8,
            "warmup": [2, 4, 8],
            "refresh_every": 8,
            "after_drift": 2,
            "baseline_rate": rng.choice([0.0, 0.05]),
            "held_out_test": rng.random() < 0.3,
            "detector": {"parameters": {"min_instances": 3, "threshold": 1.0}},
        }
        if kind == "closed" and rng.random() < 0.25:
            learner["detector"] = {"name": "DDM", "parameters": {"warm_start": 5}}
        label: dict[str, Any] = {"task": "regression"} if kind == "regression" else {}
        if kind == "closed":
            label = {"classes": ["no", "yes", "perhaps"]}
        elif kind == "open":
            label = {"max_classes": 4}
        ttl_s = rng.choice([0.0, 0.0, 20.0]) if exact else 0.0
        sections = {
            "label": label,
            "learner": learner,
            "state": {"ttl_s": ttl_s, "clock_horizon_s": 60.0},
        }
        return cls(
            delivery="exactly_once" if exact else "at_least_once",
            partitions=rng.randint(1, 4),
            workers=rng.randint(1, 3),
            contexts=rng.choice([1, 4, 12, 30]),
            events=rng.randint(60, 260),
            turns=rng.randint(60, 160),
            kills=rng.choice([0.0, 0.005, 0.02, 0.06]),
            errors=rng.choice([0.0, 0.0, 0.01, 0.04]),
            bad=rng.choice([0.0, 0.05, 0.2]),
            unlabelled=rng.choice([0.0, 0.3]),
            unreadable=rng.choice([0.0, 0.0, 0.01]),
            swaps=rng.choice(["", "", "start" if exact else "topic", "topic"]),
            flips=rng.random() < 0.25,
            zombies=exact and rng.random() < 0.25,
            ttl_s=ttl_s,
            sections=sections,
        )


@dataclass(eq=False, slots=True)
class Life:
    """One process of an instance."""

    name: str
    worker: Worker
    sinks: list[MemorySink] = field(default_factory=list)
    stores: list[SteppedStore] = field(default_factory=list)


class SteppedStore(Store):
    """The real store; the simulation is told before and after what it does."""

    simulation: Simulation

    def __init__(self, path: Path, topic_id: str) -> None:
        self._is_closed = False
        self.simulation.step("store_open")
        super().__init__(path, topic_id)
        self.simulation.opened(self)
        if self.simulation.shape.flips and self._verification is not None:
            self._verification.wait()  # what it finds, and when, must not depend on a thread

    def take(self, keys: Any) -> Any:
        self.simulation.step("store_take")
        return super().take(keys)

    def spill(self, items: Any) -> None:
        listed = list(items)
        self.simulation.step("store_spill")
        super().spill(listed)
        self.simulation.counts["spilled"] += len(listed)
        self.simulation.step("store_spilled")

    def apply(self, records: Any, position: int) -> None:
        self.simulation.step("store_apply")
        super().apply(records, position)
        self.simulation.step("store_applied")

    def barrier(self, records: Any, position: int) -> None:
        self.simulation.step("store_barrier")
        super().barrier(records, position)
        self.simulation.step("store_barriered")

    def close(self) -> None:
        self.simulation.step("store_close", errors=False)
        self.bury()
        self.simulation.step("store_closed", errors=False)

    def bury(self) -> None:
        """Let go of the files, once, as the end of a process does."""
        if not self._is_closed:
            self._is_closed = True
            super().close()


class WatchedSink(MemorySink):
    """Tells the simulation which barriers a transaction holds."""

    def __init__(self, simulation: Simulation, config: Config) -> None:
        super().__init__(simulation.broker, config, config.kafka.instance)
        self._simulation = simulation

    def commit(
        self, offsets: Offsets, member: Member, barrier: Any = (), stop: Any = None
    ) -> dict[Partition, int]:
        self._simulation.committing = list(barrier)
        return dict(super().commit(offsets, member, barrier, stop))


class Simulation:
    """One seed. ``run`` plays it to its end, with everything committed and all workers gone."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.shape = Shape.of(self.rng)
        self.folder = folder
        self.schedule: list[str] = [f"seed {seed}: {self.shape}"]
        self.counts: Counter[str] = Counter()
        self.clock_ms = 1_700_000_000_000
        self.config = self._config("reference", {"learner": {"max_contexts": 10_000}})
        self.broker = MemoryBroker(
            {
                **dict.fromkeys(
                    ("events", "predictions", "adaptations", "dead-letters", "episodes", "state"),
                    self.shape.partitions,
                ),
                "initializations": 1,
            },
            now_ms=lambda: self.clock_ms,
        )
        self.broker.step = self.step
        self.names = ["one", "two", "three"][: self.shape.workers]
        self.up: dict[str, Life] = {}
        self.zombies: list[Life] = []
        self.dead: list[Life] = []
        self.homes = dict.fromkeys(self.names, 0)
        self.sent = 0
        self.calm = False
        self.committing: list[Message] = []
        self.history: dict[Partition, list[int]] = {}
        """Committed offsets, in their order."""
        self.swaps: dict[Partition, list[tuple[int, int]]] = {}
        """From which committed offset on which version is in use."""
        self._driven: Life | None = None
        self._swaps = 0

    # --- what the workers are made of ----------------------------------------------------------

    def _config(self, name: str, changes: dict[str, dict[str, Any]]) -> Config:
        base: dict[str, Any] = {
            "features": [
                {"name": "a"},
                {"name": "b", "range": [-50.0, 50.0]},
                {"name": "c", "type": "category", "categories": ["x", "y"]},
            ],
            "topics": {"partitions": self.shape.partitions},
            "kafka": {"instance": name},
            "episodes": {"per_second": NEVER},
            "worker": {
                "delivery": self.shape.delivery,
                "commit_interval_ms": 3_600_000,
                "rejected_share": 1.0,
            },
            "state": {
                "barrier_interval_s": NEVER,
                "barrier_mb": NEVER,
                "min_free_mb": 0,
                "directory": str(self._home(name)) if name in getattr(self, "homes", {}) else "",
            },
        }
        return Config.build(base, self.shape.sections, changes)

    def _home(self, name: str) -> Path:
        return self.folder / name / f"{self.homes[name]}"

    def initialization(self, version: int) -> Initialization:
        return replace(draw(spec_of(self.config), seed=version), version=version)

    def _start(self, name: str) -> None:
        rng = self.rng
        self._prepare_disk(name)
        changes = {
            "learner": {"max_contexts": rng.choice([1, 2, 5, 40, 1000])},
            "worker": {
                "max_poll_records": rng.choice([1, 3, 10, 50]),
                "commit_events": rng.choice([1, 7, 40, 10_000]),
            },
            "state": {"barrier_events": rng.choice([0, 0, 20, 100_000])},
        }
        if self.calm:
            changes["worker"] = {"max_poll_records": 50}
        swaps = self.shape.swaps == "start"
        version = self._swaps if swaps else 0
        if swaps and rng.random() < 0.5:
            version = self._swaps = self._swaps + 1
        elif swaps and rng.random() < 0.3:
            version = rng.randint(0, self._swaps)
        self.note(f"start {name} v{version} {changes}")
        config = self._config(name, changes)
        connector = _Connector(self, config)
        worker = Worker(config, self.initialization(version), connector, (_Counter(self.counts),))
        life = Life(name, worker)
        connector.life = life
        self.up[name] = life

    def _prepare_disk(self, name: str) -> None:
        rng, home = self.rng, self._home(name)
        haunted = any(zombie.name == name for zombie in self.zombies)
        if home.exists() and not haunted and rng.random() < 0.15:
            self.note(f"empty disk of {name}")
            shutil.rmtree(home)
            self.counts["empty disks"] += 1
        files = sorted(p for p in home.rglob("*") if p.suffix == ".db" or p.name.endswith("-wal"))
        if files and self.shape.flips and not haunted and rng.random() < 0.5:
            path = rng.choice(files)
            data = bytearray(path.read_bytes())
            if data and rng.random() < 0.8:
                place = rng.randrange(8 * len(data))
                data[place // 8] ^= 1 << place % 8
            elif data:
                del data[rng.randrange(len(data)) :]
            path.write_bytes(data)
            self.note(f"damage {path.relative_to(self.folder)}")
            self.counts["damaged files"] += 1

    def opened(self, store: SteppedStore) -> None:
        assert self._driven is not None
        self._driven.stores.append(store)

    # --- failpoints ----------------------------------------------------------------------------

    def step(self, name: str, errors: bool = True) -> None:
        """Before and after everything durable; dies or fails there as the seed wants."""
        if name == "committed":
            self._note_committed()
        if self.calm or self._driven is None:
            return
        draw = self.rng.random()
        if draw < self.shape.kills:
            self.note(f"kill {self._driven.name} at {name}")
            raise Crash(name)
        if draw < self.shape.kills + self.shape.errors and errors:
            self.note(f"fail {self._driven.name} at {name}")
            raise (StoreError if name.startswith("store") else BackendError)(f"injected at {name}")

    def _note_committed(self) -> None:
        before = {}
        for partition in self.partitions:
            offset = self.broker.committed("streammaml", partition)
            known = self.history.setdefault(partition, [])
            before[partition] = known[-1] if known else 0
            if offset is not None and (not known or known[-1] != offset):
                if known and known[-1] > offset:
                    raise ViolationError(f"{partition}: committed {offset} after {known[-1]}")
                known.append(offset)
        for message in self.committing:
            if message.key == BARRIER_KEY and message.value is not None:
                barrier = read_barrier(message.value)
                partition = Partition("events", message.partition or 0)
                seen = self.swaps.setdefault(partition, [])
                if not seen or seen[-1][1] != barrier.version:
                    seen.append((before[partition], barrier.version))
                    self.counts["swaps"] += len(seen) > 1
                    self.note(f"barrier {message.partition} {barrier.offset} v{barrier.version}")
        self.committing = []

    def note(self, text: str) -> None:
        self.schedule.append(text)

    # --- one turn ------------------------------------------------------------------------------

    def run(self) -> None:
        with seams(self):
            for _ in range(self.shape.turns):
                self._turn()
            self._drain()

    def _turn(self) -> None:
        rng = self.rng
        what = rng.random()
        if what < 0.2 and self.sent < self.shape.events:
            self._produce(rng.randint(1, 30))
        elif what < 0.62 and self.up:
            name = rng.choice(sorted(self.up))
            for _ in range(rng.randint(1, 6)):
                if name in self.up:
                    self._drive(self.up[name], _turn_once)
        elif what < 0.72 and self.up:
            name = rng.choice(sorted(self.up))
            self.note(f"commit {name}")
            self._drive(self.up[name], _commit)
        elif what < 0.80:
            down = [name for name in self.names if name not in self.up]
            if down:
                self._start(rng.choice(down))
        elif what < 0.83 and self.up:
            name = rng.choice(sorted(self.up))
            self.note(f"close {name}")
            life = self.up[name]
            self._drive(life, lambda worker: worker.close())
            if self.up.get(name) is life:  # it was not killed
                del self.up[name]
                self._end(life)
        elif what < 0.86 and self.up and self.shape.kills:
            name = rng.choice(sorted(self.up))
            self.note(f"kill {name}")
            self._kill(self.up[name])
        elif what < 0.88 and self.up and self.shape.zombies:
            name = rng.choice(sorted(self.up))
            self.note(f"freeze {name}")
            self.zombies.append(self.up.pop(name))
            self._start(name)
        elif what < 0.90 and self.zombies:
            zombie = rng.choice(self.zombies)
            self.note(f"thaw {zombie.name}")
            for _ in range(3):
                if zombie in self.zombies:
                    self._drive(zombie, rng.choice([_turn_once, _commit]))
        elif what < 0.93:
            self._evict(rng.choice(self.names))
        elif what < 0.96:
            self._time_out()
        elif what < 0.98 and self.shape.swaps == "topic":
            self._publish()
        else:
            self.note("compact")
            self.broker.compact("state")
            self.broker.compact("initializations")

    def _publish(self) -> None:
        """Another version as the current one, now and then one that was there or is no good."""
        rng = self.rng
        version = self._swaps = self._swaps + 1
        if rng.random() < 0.2:
            version = rng.randint(1, self._swaps)
        self.note(f"publish v{version}")
        messages = initialization_messages(self.initialization(version), {})
        if rng.random() < 0.1:
            messages = [m._replace(value=(m.value or b"")[:-3]) for m in messages]
        self.broker.append([m._replace(topic="initializations") for m in messages])

    def _produce(self, count: int) -> None:
        rng = self.rng
        self.note(f"produce {count}")
        for _ in range(count):
            self.clock_ms += rng.choice([10, 1000, 1000, 30_000])
            partition = rng.randrange(self.shape.partitions)
            message = Message("events", *self._event(), (), partition)
            if rng.random() < 0.05:
                spoiled = MemorySink(self.broker, self.config, "producer")
                spoiled.send([message])
                spoiled.drop()  # holes in the log
            ((place, offset),) = self.broker.append([message])
            self.sent += 1
            if rng.random() < self.shape.unreadable:
                self.broker.damage(place, offset, offset + 1)
                self.broker.append([message])  # so that two stretches never touch
                self.note(f"unreadable {place.index} {offset}")

    def _event(self) -> tuple[bytes, bytes]:
        rng = self.rng
        context = f"c-{min(int(rng.expovariate(3 / self.shape.contexts)), self.shape.contexts - 1)}"
        if rng.random() < self.shape.bad:
            return context.encode(), rng.choice(BAD)
        a, b = round(rng.gauss(0, 1), 3), round(rng.gauss(0, 1), 3)
        good = a + (b if self.sent % 100 < 50 else -b)  # the concept drifts
        label: Any = None
        if rng.random() >= self.shape.unlabelled:
            if self.config.label.task == "regression":
                label = round(good, 3)
            else:
                label = ["no", "yes", "perhaps"][(good > 0) + (good > 1)]
        seconds = self.clock_ms / 1000 + rng.choice([0, 0, -5, 1e6 if rng.random() < 0.1 else 0])
        fields = {
            "id": self.sent,
            "context": context,
            "timestamp": rng.choice([seconds, None]),
            "features": {"a": a, "b": rng.choice([b, None]), "c": rng.choice(["x", "y", "z"])},
            "label": label,
        }
        return context.encode(), json.dumps(fields).encode()

    def _drive(self, life: Life, action: Callable[[Worker], object]) -> None:
        """Let a worker do something; repair it as ``Worker.run`` does."""
        self._driven = life
        try:
            try:
                action(life.worker)
            except BackendError as error:
                self.note(f"{life.name}: {type(error).__name__}: {error}")
                if isinstance(error, UnreadableError):
                    life.worker._note_unreadable(error)
                life.worker._drop()
                if isinstance(error, FencedError) and life in self.zombies:
                    self._kill(life)
        except Crash:
            self._driven = None
            self._kill(life)
        finally:
            self._driven = None
            self.committing = []

    def _kill(self, life: Life) -> None:
        """The process ends at once. Its files stay as they are now."""
        self.counts["kills"] += 1
        self.dead.append(life)
        if life in self.zombies:
            self.zombies.remove(life)
        else:
            del self.up[life.name]
            before = self._home(life.name)
            self.homes[life.name] += 1
            if before.exists():
                shutil.copytree(before, self._home(life.name))
        self._end(life)

    def _end(self, life: Life) -> None:
        for store in life.stores:
            store.bury()
        life.stores.clear()

    def bury_all(self) -> None:
        """Let go of all files, whatever has happened."""
        for life in [*self.up.values(), *self.zombies, *self.dead]:
            self._end(life)

    def _evict(self, name: str) -> None:
        self.note(f"evict {name}")
        if name in self.broker._groups.get("streammaml", _NoGroup).members:
            self.broker.evict("streammaml", name)
            self.counts["evictions"] += 1

    def _time_out(self) -> None:
        """What the broker does to transactions whose producer is gone."""
        self.note("time out")
        for life in self.dead:
            for sink in life.sinks:
                sink.drop()
        self.dead.clear()

    # --- the end -------------------------------------------------------------------------------

    def _drain(self) -> None:
        self.note("drain")
        self.calm = True
        streammaml.worker.BUSY_S = NEVER  # until the seams are gone
        for zombie in list(self.zombies):
            self.dead.append(zombie)
            self.zombies.remove(zombie)
            self._end(zombie)
        self._time_out()
        for name in self.names:
            if name not in self.up:
                self._evict(name)
                self._start(name)
        if self.sent == 0:
            self._produce(1)
        for _ in range(MAX_TURNS):
            for life in list(self.up.values()):
                self._drive(life, _turn_once)
                self._drive(life, _commit)
            if self._is_done():
                break
        else:
            raise ViolationError(f"no progress: {self.history}")
        for life in list(self.up.values()):
            self._drive(life, lambda worker: worker.close())
            self._end(life)
        self.up.clear()

    def _is_done(self) -> bool:
        """Everything is committed, and every partition is with a worker that has caught up.

        With at_least_once the state may be ahead of the group's offset, until the next event.
        """
        lives = [life.worker for life in self.up.values()]
        caught_up = {p: t for w in lives for p, t in w.tenures.items() if t.learner is not None}
        return (
            len(caught_up) == self.shape.partitions
            and not any(worker._offsets for worker in lives)
            and all(
                not tenure.is_restoring and tenure.commit_offset >= self._last(partition)
                for partition, tenure in caught_up.items()
            )
        )

    def _last(self, partition: Partition) -> int:
        """The offset after the last record: behind it stand only markers and what was aborted."""
        entries = self.broker._logs[partition].entries
        places = [i for i, e in enumerate(entries) if e.record and e.transaction is None]
        return places[-1] + 1 if places else 0

    @property
    def partitions(self) -> list[Partition]:
        return [Partition("events", i) for i in range(self.shape.partitions)]


class _NoGroup:
    members: dict[str, Any] = {}  # noqa: RUF012  # never written


def _turn_once(worker: Worker) -> None:
    worker.open()
    worker.run_once(timeout_s=0)


def _commit(worker: Worker) -> None:
    worker.open()
    worker.commit()


class _Connector:
    def __init__(self, simulation: Simulation, config: Config) -> None:
        self._simulation = simulation
        self._config = config
        self.life: Life | None = None

    def __call__(self, on_rebalance: OnRebalance) -> Clients:
        broker, config = self._simulation.broker, self._config
        sink: MemorySink | MemoryPlainSink
        if config.worker.delivery == "exactly_once":
            sink = WatchedSink(self._simulation, config)
            assert self.life is not None
            self.life.sinks.append(sink)
        else:
            sink = MemoryPlainSink(broker, config, config.kafka.instance)
        source = MemorySource(broker, config, config.kafka.instance, on_rebalance)
        tail = partial(MemoryTail, broker, config.topics.initializations)
        return Clients(source, sink, MemoryStateLog(broker, config), tail)


class _Counter:
    """An observer that counts."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    def state(self, name: str) -> None: ...
    def played(self, played: Played, now_s: float) -> None:
        if not played.live:
            self._counts["replayed events"] += played.records

    def rebalanced(self, change: Rebalance, left: int) -> None:
        self._counts["rebalances"] += 1

    def committed(self, result: TransactionResult, now_s: float) -> None:
        self._counts[f"transactions {result}"] += 1

    def barrier(self, result: TransactionResult, seconds: float, size: int) -> None:
        self._counts["barriers"] += result == "committed"

    def lag(self, lag: dict[Partition, int]) -> None: ...
    def kept(self, kept: Kept) -> None: ...
    def misplaced(self, contexts: int) -> None: ...
    def initialization(self, result: LoadResult, version: int) -> None: ...


@contextmanager
def seams(simulation: Simulation) -> Iterator[None]:
    """Stores that tell of their steps, and limits of time that are all or nothing."""
    rng = simulation.rng
    store = type("Stepped", (SteppedStore,), {"simulation": simulation})
    with ExitStack() as stack:
        stack.enter_context(replaced(streammaml.tenure, "Store", store))
        for name, values in {
            "RESTORE_S": (0.0,),
            "BUSY_S": (0.0, NEVER, NEVER),
            "FIRST_SLICE": (1, 64),
            "LAG_EVERY_S": (-1.0, NEVER),
            "DISK_CHECK_S": (-1.0,),
            "CHECK_EVERY_S": (-1.0, NEVER),
            "FOLLOW_EVERY_S": (-1.0,),
        }.items():
            stack.enter_context(replaced(streammaml.worker, name, rng.choice(values)))
        try_within_s = rng.choice([-1.0, NEVER])
        stack.enter_context(replaced(streammaml.following, "TRY_WITHIN_S", try_within_s))
        stack.enter_context(replaced(streammaml.following, "EVENTS_ENOUGH", rng.choice([0, 50])))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
