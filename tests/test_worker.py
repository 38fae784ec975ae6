"""The worker on the memory backend: nothing lost, nothing twice, clear ends."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from streammaml.backends.memory import MemoryBroker
from streammaml.backends.ports import Clients, Message, OnRebalance, Partition
from streammaml.config import Config
from streammaml.errors import (
    BackendError,
    FencedError,
    TooManyRejectedError,
    UnavailableError,
)
from streammaml.events import Reason
from streammaml.worker import Worker
from tests import wire
from tests.wire import drain

DEADLINE_S = 60.0


def make(broker: MemoryBroker, settings: Config) -> Worker:
    return Worker(settings, wire.initialization(settings), wire.Connector(broker, settings))


def predicted(broker: MemoryBroker) -> Counter[str]:
    return Counter(json.loads(r.value or b"")["event"] for r in broker.read("predictions"))


def exactly_once(count: int) -> Counter[str]:
    return Counter(f"e-{i}" for i in range(count))


def test_every_event_has_one_prediction_and_its_offset_is_committed() -> None:
    settings = wire.config()
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(300))

    drain(make(broker, settings))

    assert predicted(broker) == exactly_once(300)
    for index in range(2):
        partition = Partition("events", index)
        assert broker.committed("streammaml", partition) == broker.span(partition)[1]
    assert broker.read("dead-letters") == []


def test_nothing_is_visible_before_the_commit() -> None:
    settings = wire.config(worker={"commit_interval_ms": 3_600_000})
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(10))
    worker = make(broker, settings)
    worker.open()
    while worker.run_once(timeout_s=0) or worker.is_restoring:
        pass

    before = predicted(broker)
    worker.close()

    assert before == Counter()
    assert predicted(broker) == exactly_once(10)


def test_a_restart_goes_on_at_the_committed_offset() -> None:
    settings = wire.config()
    broker = MemoryBroker.of(settings)
    messages = wire.stream(100)
    broker.append(messages[:60])
    first = make(broker, settings)
    drain(first)
    first.close()
    broker.append(messages[60:])

    drain(make(broker, settings))

    assert predicted(broker) == exactly_once(100)


BAD = {
    Reason.DECODE: b"{",
    Reason.SCHEMA: wire.event(0, features={"a": "warm"}),
    Reason.NONFINITE: wire.event(0, features={"a": 1e13}),
    Reason.CONTEXT: wire.event(0, context=""),
    Reason.LABEL: wire.event(0, label="perhaps"),
    Reason.OVERSIZE: wire.event(0, note="x" * 3000),
    Reason.LATE: b'{"context": "shop", "id": "e-1", "label": "yes"}',
}


def test_each_kind_of_bad_record_is_a_dead_letter_and_the_worker_goes_on() -> None:
    settings = wire.config(worker={"max_record_bytes": 2000}, topics={"partitions": 1})
    broker = MemoryBroker.of(settings)
    good = wire.stream(len(BAD) + 1)
    for message, value in zip(good, BAD.values(), strict=False):
        broker.append([message, Message("events", None, value)])
    broker.append(good[-1:])

    drain(make(broker, settings))

    letters = broker.read("dead-letters")
    assert [dict(r.headers)["error"].decode() for r in letters] == list(BAD)
    assert [int(dict(r.headers)["offset"]) for r in letters] == list(range(1, 2 * len(BAD), 2))
    assert [r.value for r in letters if dict(r.headers)["error"] != b"oversize"] == [
        v for k, v in BAD.items() if k is not Reason.OVERSIZE
    ]
    assert predicted(broker) == exactly_once(len(BAD) + 1)


def test_a_topic_of_bad_records_stops_the_worker_instead_of_being_drained() -> None:
    settings = wire.config(topics={"partitions": 1})
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(30))
    broker.append([Message("events", b"k", b"{")] * 5000)
    worker = make(broker, settings)

    with pytest.raises(TooManyRejectedError, match=r"dead-letters.*offset 100 of partition 0"):
        drain(worker)

    assert predicted(broker) == exactly_once(30)
    assert len(broker.read("dead-letters")) == 70
    assert broker.committed("streammaml", Partition("events", 0)) == 100


def test_a_few_bad_records_early_on_do_not_stop_the_worker() -> None:
    settings = wire.config(topics={"partitions": 1})
    broker = MemoryBroker.of(settings)
    broker.append([Message("events", b"k", b"{")] * 99)
    broker.append(wire.stream(200))

    drain(make(broker, settings))

    assert predicted(broker) == exactly_once(200)


def test_one_fault_of_the_broker_costs_one_connection() -> None:
    settings = wire.config()
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(40))
    stop = threading.Event()
    connector = wire.Connector(broker, settings)
    worker = PatientWorker(broker, settings, stop, connector)
    faults = iter([BackendError("once")])

    def fail_once(name: str) -> None:
        if name == "commit" and (fault := next(faults, None)):
            raise fault

    broker.step = fail_once
    worker.run(stop)

    assert connector.connections == 2
    assert predicted(broker) == exactly_once(40)


class Crash(BaseException):
    """The end of a process: nothing of the worker's runs after it."""


def failing(rng: random.Random, share: float, kind: type[BaseException]) -> Callable[[str], None]:
    def step(name: str) -> None:
        if rng.random() < share:
            raise kind(f"injected at {name}")

    return step


@pytest.mark.parametrize("seed", range(8))
def test_a_broker_that_fails_anywhere_loses_and_repeats_nothing(seed: int) -> None:
    settings = wire.config(worker={"max_poll_records": 7, "commit_interval_ms": 1})
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(120))
    stop = threading.Event()
    worker = PatientWorker(broker, settings, stop)
    broker.step = failing(random.Random(seed), 0.05, BackendError)

    worker.run(stop)

    broker.step = lambda name: None
    assert predicted(broker) == exactly_once(120)


class PatientWorker(Worker):
    """Runs until all is committed, without waiting out its back-offs."""

    def __init__(
        self,
        broker: MemoryBroker,
        settings: Config,
        stop: threading.Event,
        connector: wire.Connector | None = None,
    ) -> None:
        connect = connector or wire.Connector(broker, settings)
        super().__init__(settings, wire.initialization(settings), connect)
        self._broker = broker
        self._stop = stop

    def run_once(self, timeout_s: float = 0) -> int:
        count = super().run_once(timeout_s)
        if not count:
            self.commit()
        ends = [Partition("events", i) for i in range(2)]
        if all(self._broker.committed("streammaml", p) == self._broker.span(p)[1] for p in ends):
            self._stop.set()
        return count

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        assert seconds > 0


@pytest.mark.parametrize("seed", range(8))
def test_a_process_that_dies_anywhere_loses_and_repeats_nothing(seed: int) -> None:
    settings = wire.config(worker={"max_poll_records": 7, "commit_interval_ms": 1})
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(120))
    rng = random.Random(seed)
    deaths = 0
    finished = False

    while not finished:
        broker.step = failing(rng, 0.1, Crash)
        try:
            drain(make(broker, settings))
            finished = True
        except Crash:
            deaths += 1
            assert deaths < 500

    broker.step = lambda name: None
    assert predicted(broker) == exactly_once(120)


def test_two_workers_share_the_partitions_and_hand_over_cleanly() -> None:
    settings = wire.config(worker={"max_poll_records": 10, "commit_interval_ms": 3_600_000})
    other = wire.config(
        worker={"max_poll_records": 10, "commit_interval_ms": 3_600_000},
        kafka={"instance": "two"},
    )
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(200, contexts=20))
    first, second = make(broker, settings), make(broker, other)
    first.open()
    first.run_once(timeout_s=0)
    second.open()

    while first.run_once(timeout_s=0) + second.run_once(timeout_s=0):
        pass
    first.commit()
    second.commit()

    assert len(first.learners) == len(second.learners) == 1
    assert predicted(broker) == exactly_once(200)


def test_a_stop_commits_what_was_played() -> None:
    settings = wire.config(worker={"commit_interval_ms": 3_600_000})
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(50))
    stop = threading.Event()
    worker = make(broker, settings)
    running = threading.Thread(target=worker.run, args=(stop,))
    running.start()
    with broker.changed:
        broker.changed.wait_for(lambda: len(list(worker.learners)) == 2, DEADLINE_S)

    stop.set()
    running.join(DEADLINE_S)

    assert not running.is_alive()
    played = predicted(broker)
    assert set(played.values()) <= {1}
    committed = [broker.committed("streammaml", Partition("events", i)) or 0 for i in range(2)]
    assert sum(committed) == sum(played.values())


def test_a_broker_that_stays_away_ends_the_worker_with_its_own_exit_code() -> None:
    settings = wire.config(kafka={"unavailable_limit_s": 0.2})

    def connect(on_rebalance: OnRebalance) -> Clients:
        raise UnavailableError("no broker answers at nowhere:9092")

    worker = Worker(settings, wire.initialization(settings), connect)

    with pytest.raises(UnavailableError, match=r"gave up after 0\.2 s.*nowhere:9092") as caught:
        worker.run(threading.Event())

    assert caught.value.exit_code == 69


def test_of_two_workers_with_one_name_one_ends() -> None:
    settings = wire.config()
    broker = MemoryBroker.of(settings)
    stop = threading.Event()
    ended: list[BaseException] = []

    def run(worker: Worker) -> None:
        try:
            worker.run(stop)
        except FencedError as error:
            ended.append(error)
            stop.set()

    twins = [threading.Thread(target=run, args=(make(broker, settings),)) for _ in range(2)]
    for twin in twins:
        twin.start()
    for twin in twins:
        twin.join(DEADLINE_S)

    assert len(ended) == 1
    assert "instance" in str(ended[0])
