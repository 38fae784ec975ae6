"""The ledger on real Kafka: workers and broker are killed at random, and nothing shows.

``python -m tests.faults.kafka_ledger --kills 50 --broker-kills 5 --barriers every``

Two workers of one group play six partitions while a producer feeds them. Each kill -9 hits one at
a random moment; it starts again at once, or with an empty disk, or only after the other has taken
over. Contexts outnumber what a worker may keep in memory. In the end every output and the whole of
``state`` must be, bit for bit, what one undisturbed worker makes of the same log.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from streammaml.backends.kafka import KafkaFeed
from streammaml.backends.ports import Message
from streammaml.config import Config
from streammaml.errors import BackendError
from streammaml.learner import warm_up
from tests import wire
from tests.faults.undisturbed import log_of, violations
from tests.integration.rig import Rig, WorkerProcess, is_ready, owned
from tests.kafka_broker import Broker

PARTITIONS = 6
CONTEXTS = 200
IN_MEMORY = 20
"""Contexts of a partition: some 33 come to each."""
BARRIERS = {"every": 0.0, "10s": 10.0}
SESSION_MS = 6000
RATE = 300
"""Events a second."""
TICK_S = 0.1
LIFE_S = (0.1, 5.0)
"""From one kill to the next."""
DRAINED_S = 120.0
FATES = {"again": 0.75, "wiped": 0.15, "dead": 0.1}


def drifting(seed: int) -> Iterator[Message]:
    """Events without end: two classes whose meaning turns now and then, and a bad record in 500."""
    rng = random.Random(seed)
    signs = [1] * CONTEXTS
    for i in itertools.count():
        c = min(int(rng.expovariate(3 / CONTEXTS)), CONTEXTS - 1)
        context = f"shop-{c}"
        if rng.random() < 0.005:
            signs[c] = -signs[c]
        x = [round(rng.gauss(0, 1), 3) for _ in "abc"]
        value = wire.event(
            i,
            context,
            ("yes" if signs[c] * (x[0] + x[1]) > 0 else "no") if rng.random() < 0.9 else None,
            features=dict(zip("abc", x, strict=True)),
        )
        if rng.random() < 0.002:
            value = value[:-5]
        yield Message("events", context.encode(), value)


class Producer:
    """Feeds a rig until it is stopped; rides out what the broker suffers."""

    def __init__(self, rig: Rig, rate: float, events: Iterator[Message]) -> None:
        self._rig = rig
        self._events = events
        self._each = max(1, round(rate * TICK_S))
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="producer")
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        feed = KafkaFeed(self._rig.config)
        topic = self._rig.config.topics.events
        try:
            while not self._stopped.wait(TICK_S):
                batch = [
                    m._replace(topic=topic) for m in itertools.islice(self._events, self._each)
                ]
                feed.send(batch)
                feed.flush()
                self._rig.sent += len(batch)
        except BackendError as error:
            self._failure = error
        finally:
            feed.close()


class Fleet:
    """Workers by instance, each with a folder of its own; they may be killed and come back."""

    def __init__(self, rig: Rig, instances: Sequence[str]) -> None:
        self._rig = rig
        self._lives: dict[str, list[WorkerProcess]] = {}
        self.kills = 0
        for name in instances:
            self.add(name)

    @property
    def instances(self) -> list[str]:
        return list(self._lives)

    @property
    def lives(self) -> list[WorkerProcess]:
        return [life for lives in self._lives.values() for life in lives]

    def add(self, name: str) -> None:
        self._lives[name] = []
        self.start(name)

    def start(self, name: str) -> None:
        folder = self._rig.folder / f"state-{name}"
        self._lives[name].append(self._rig.run(name, state__directory=str(folder)))

    def current(self, name: str) -> WorkerProcess:
        return self._lives[name][-1]

    def kill(self, name: str) -> None:
        worker = self.current(name)
        assert worker.is_running(), f"{name} ended by itself\n{worker.log()[-6000:]}"
        worker.kill()
        self.kills += 1

    def wipe(self, name: str) -> None:
        shutil.rmtree(self._rig.folder / f"state-{name}", ignore_errors=True)

    def until_owner(self, name: str, partitions: int) -> None:
        """Until this one has so many partitions."""
        worker = self.current(name)
        worker.until(lambda: owned(worker) == partitions, f"{name} has {partitions}", 90.0)

    def stop(self) -> None:
        """Once all of them are ready: who stops while it restores writes no barrier."""
        for name in self._lives:
            worker = self.current(name)
            worker.until(partial(is_ready, worker), f"{name} is ready", 90.0)
        for name in self._lives:
            self.current(name).stop()


def storm(rig: Rig, broker: Broker | None, kills: int, broker_kills: int, seed: int) -> Fleet:
    """Kill, start again, and so on; then drain and stop."""
    rng = random.Random(seed)
    fleet = Fleet(rig, ["left", "right"])
    producer = Producer(rig, RATE, drifting(seed))
    broker_at = Counter(rng.randrange(kills) for _ in range(broker_kills))
    fates: Counter[str] = Counter()
    try:
        for kill in range(kills):
            until = time.monotonic() + rng.uniform(*LIFE_S)
            for _ in range(broker_at[kill]):
                assert broker is not None
                broker.kill()
                broker.start()
            name = rng.choice(fleet.instances)
            time.sleep(max(0.0, until - time.monotonic()))  # the moment is random, not a condition
            fleet.kill(name)
            (fate,) = rng.choices(list(FATES), list(FATES.values()))
            fates[fate] += 1
            if fate == "wiped":
                fleet.wipe(name)
            if fate == "dead":
                (other,) = set(fleet.instances) - {name}
                fleet.until_owner(other, PARTITIONS)
            fleet.start(name)
            say(f"kill {kill + 1}: {name}, {fate}; {rig.sent} events sent")
    finally:
        producer.stop()
    last = fleet.current(fleet.instances[0])
    last.until(lambda: rig.committed() >= rig.sent, f"{rig.sent} are committed", DRAINED_S)
    fleet.stop()
    say(f"{fleet.kills} kills ({dict(fates)}), {broker_kills} of the broker")
    return fleet


def replayed(fleet: Fleet) -> tuple[int, int]:
    """Restorations of a partition that had to replay, and the events of those replays."""
    spans = [
        line["live_from"] - line["start"]
        for life in fleet.lives
        for line in lines_of(life)
        if line.get("event") == "replaying"
    ]
    return len(spans), sum(spans)


def lines_of(worker: WorkerProcess) -> list[dict[str, Any]]:
    """Its log; a line that a kill cut off is left out."""
    lines = []
    for line in worker.log().splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            lines.append(found)
    return lines


def rig_of(servers: str, folder: Path, barriers: str) -> Rig:
    rig = Rig(
        servers,
        folder,
        partitions=PARTITIONS,
        session_timeout_ms=SESSION_MS,
        transaction_timeout_ms=SESSION_MS,
    )
    rig.configure_with(
        learner={"max_contexts": IN_MEMORY},
        state={"barrier_interval_s": BARRIERS[barriers]},
    )
    rig.create_topics()
    return rig


def play(broker: Broker, rig: Rig, kills: int, broker_kills: int, seed: int) -> list[str]:
    """One storm, and what it did to the ledger."""
    try:
        fleet = storm(rig, broker, kills, broker_kills, seed)
    finally:
        rig.end_all()
    log = log_of(rig)
    found = violations(rig, rig.config, log)
    runs, events = replayed(fleet)
    events_sent = sum(map(len, log.values()))
    say(
        f"seed {seed}: {events_sent} events, {len(fleet.lives)} starts, "
        f"{runs} replays of {events} events, {len(found)} lines of violations"
    )
    for line in found:
        say(line)
    return found


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def compile_first(config: Config) -> None:
    warm_up(config, wire.initialization(config))


def main(
    kills: int = 50, broker_kills: int = 5, barriers: str = "every", seed: int | None = None
) -> int:
    """0 if the ledger is exact, 1 if not."""
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    compile_first(wire.config())
    folder = Path(tempfile.mkdtemp(prefix="streammaml-ledger-"))
    broker = Broker(folder / "kafka")
    broker.start()
    started = time.monotonic()
    failed = True
    try:
        failed = bool(
            play(broker, rig_of(broker.bootstrap, folder, barriers), kills, broker_kills, seed)
        )
    finally:
        broker.kill()
        if failed:
            say(f"logs: {folder}")
        else:
            shutil.rmtree(folder)
    say(f"exact, in {time.monotonic() - started:.0f} s" if not failed else "VIOLATED")
    return int(failed)


def command() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--broker-kills", type=int, default=5)
    parser.add_argument("--barriers", choices=BARRIERS, default="every")
    parser.add_argument("--seed", type=int)
    return main(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(command())
