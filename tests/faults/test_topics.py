"""Faults of topics and offsets: made anew, cut, expired, more partitions, unreadable offsets."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

import streammaml.worker
from streammaml.backends.memory import MemoryBroker, MemorySink
from streammaml.backends.ports import Partition
from streammaml.config import Config
from streammaml.errors import GapError
from streammaml.worker import Worker
from tests import wire
from tests.faults.test_records import GROUP, make, play, predictions
from tests.wire import drain

ONE = {"partitions": 1}
PLACE = Partition("events", 0)


def accepting(settings: Config, **kafka: str) -> Config:
    return Config.build(settings.model_dump(), {"kafka": kafka or {"on_gap": "accept"}})


def test_a_topic_made_anew_stops_the_worker_until_that_is_accepted() -> None:
    settings = wire.config(topics=ONE)
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(50))
    play(broker, settings)
    broker.delete_topic("events")
    broker.create_topic("events", 1)
    broker.append(wire.stream(20))

    with pytest.raises(GapError, match=r"deleted and made again.*on_gap=accept"):
        drain(make(broker, settings))

    assert len(predictions(broker)) == 50
    play(broker, accepting(settings))
    assert len(predictions(broker)) == 70


def test_a_worker_notices_that_its_topic_is_made_anew_under_it() -> None:
    settings = wire.config(topics=ONE)
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(50))
    worker = make(broker, settings)
    drain(worker)
    broker.delete_topic("events")
    broker.create_topic("events", 1)

    with pytest.raises(GapError, match="deleted and made again"):
        worker.run(threading.Event())


def test_records_deleted_below_the_position_stop_the_worker_until_that_is_accepted() -> None:
    settings = wire.config(topics=ONE)
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(50))
    play(broker, settings)
    broker.append(wire.stream(30))
    broker.delete_records(PLACE, 60)

    with pytest.raises(GapError, match=r"10 records are lost.*on_gap=accept"):
        drain(make(broker, settings))

    assert len(predictions(broker)) == 50
    play(broker, accepting(settings))
    assert [p["offset"] for p in predictions(broker)] == [*range(50), *range(60, 80)]


def test_without_the_groups_offsets_it_goes_on_at_the_barrier() -> None:
    settings = wire.config(topics=ONE)
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(50))
    play(broker, settings)
    del broker._groups[GROUP]  # what retention does to an empty group
    broker.append(wire.stream(30))

    play(broker, settings)

    assert [p["offset"] for p in predictions(broker)] == list(range(80))


def test_more_partitions_stop_the_worker_until_that_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streammaml.worker, "LAG_EVERY_S", -1.0)
    settings = wire.config(topics=ONE)
    broker = MemoryBroker.of(settings)
    broker.append(wire.stream(30))
    worker = make(broker, settings)
    drain(worker)
    broker.add_partitions("events", 1)
    broker.add_partitions("state", 1)

    with pytest.raises(GapError, match=r"2 partitions.*on_partition_change=accept"):
        worker.run(threading.Event())
    with pytest.raises(GapError, match=r"2 partitions.*on_partition_change=accept"):
        drain(make(broker, settings))

    broker.append(wire.stream(30))
    play(broker, accepting(settings, on_partition_change="accept"))
    assert len(predictions(broker)) == 60


class Unhurried(Worker):
    """Does not wait out its back-offs; stops once all is committed."""

    def __init__(self, broker: MemoryBroker, settings: Config, stop: threading.Event) -> None:
        connect = wire.Connector(broker, settings)
        super().__init__(settings, wire.initialization(settings), connect)
        self._broker = broker
        self._ending = stop

    def run_once(self, timeout_s: float = 0) -> int:
        count = super().run_once(timeout_s)
        self.commit()
        at = self._broker.committed(GROUP, PLACE)
        if at == self._broker.span(PLACE)[1] and not any(
            tenure.is_restoring for tenure in self.tenures.values()
        ):
            self._ending.set()
        return count

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        assert seconds > 0


@pytest.mark.parametrize("hole", [False, True])
def test_an_unreadable_offset_is_one_dead_letter_and_a_replay_tells_it_no_more(hole: bool) -> None:
    settings = wire.config(topics=ONE, state={"barrier_events": 10_000})
    broker = MemoryBroker.of(settings)
    messages = wire.stream(30)
    broker.append(messages[:10])
    if hole:
        spoiled = MemorySink(broker, settings, "producer")
        spoiled.send(messages[:1])
        spoiled.abort()
    at = broker.span(PLACE)[1]
    broker.append(messages[10:])
    broker.damage(PLACE, at, at + 2)

    for _ in range(2):
        stop = threading.Event()
        worker = Unhurried(broker, settings, stop)
        worker.run(stop)

    (letter,) = broker.read("dead-letters")
    headers = dict(letter.headers)
    assert 10 <= int(headers["offset"]) <= at, "a reader goes on before the hole or behind it"
    assert int(headers["last_offset"]) == at + 1
    counted = Counter(p["event"] for p in predictions(broker))
    assert counted == Counter(f"e-{i}" for i in range(30) if i not in (10, 11))
