"""Tails and publishers where only a real broker can show it: deaths, outages, what a poll costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import numpy as np
import pytest

from streammaml.backends.kafka import KafkaPublisher, KafkaTail, client_settings
from streammaml.backends.ports import Message, Record
from streammaml.backends.wire_initializations import initialization_messages, read_published
from streammaml.config import Config, spec_of
from streammaml.errors import BackendError, FencedError, UnavailableError
from streammaml.initialization import Initialization, draw
from tests.backends.conformance.worlds import KafkaWorld, numbered, unique_config
from tests.kafka_broker import Broker, free_port, wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture
def no_new_threads() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def version(number: int) -> list[Message]:
    value = b"%d" % number
    return [Message("", key, value) for key in (b"v%d" % number, b"current")]


def end_behind_open_transactions(world: KafkaWorld) -> int:
    consumer = kafka.KafkaConsumer(**client_settings(world.config.kafka, 10.0))
    try:
        tp = kafka.TopicPartition(world.config.topics.initializations, 0)
        end: int = consumer.end_offsets([tp])[tp]
        return end
    finally:
        consumer.close()


def die_in_a_transaction(publisher: KafkaPublisher, world: KafkaWorld, number: int) -> None:
    """All records are at the broker, and nothing commits them: as after a kill -9."""
    topic = world.config.topics.initializations
    before = end_behind_open_transactions(world)
    publisher._producer.send([m._replace(topic=topic) for m in version(number)])
    publisher._producer._outbox.producer.flush()
    assert end_behind_open_transactions(world) == before + 2


def read_until(tail: KafkaTail, is_enough: Callable[[list[Record]], bool]) -> list[Record]:
    found: list[Record] = []

    def is_there() -> bool:
        found.extend(tail.poll(0.1))
        return is_enough(found)

    wait_until(is_there, 40.0, "records")
    return found


@pytest.mark.usefixtures("no_new_threads")
def test_a_publisher_that_died_in_a_transaction_leaves_no_trace(kafka_servers: str) -> None:
    world = KafkaWorld(unique_config(kafka_servers))
    dead = KafkaPublisher(world.config)
    dead.publish(version(1))
    tail = KafkaTail(world.config, "a", world.config.topics.initializations)
    die_in_a_transaction(dead, world, 2)
    late = KafkaTail(world.config, "b", world.config.topics.initializations)
    while_open = read_until(late, lambda _: late.caught_up)

    successor = KafkaPublisher(world.config)
    successor.publish(version(3))
    found = read_until(tail, lambda found: len(found) >= 4)
    with pytest.raises(FencedError):
        dead.publish(version(2))
    successor.publish(version(4))
    found += read_until(tail, lambda found: len(found) >= 2)
    for each in (dead, successor, tail, late):
        each.close()

    assert [record.value for record in while_open] == [b"1", b"1"]
    assert [record.value for record in found] == [b"1", b"1", b"3", b"3", b"4", b"4"]


def test_without_a_successor_the_broker_ends_what_a_dead_one_left(kafka_servers: str) -> None:
    world = KafkaWorld(unique_config(kafka_servers, transaction_timeout_ms=1000))
    dead = KafkaPublisher(world.config)
    die_in_a_transaction(dead, world, 1)
    tail = KafkaTail(world.config, "a", world.config.topics.initializations)
    wait_until(lambda: end_behind_open_transactions(world) == 3, 30.0, "the broker's abort")
    world.produce([Message(world.config.topics.initializations, b"k", b"after")])

    found = read_until(tail, lambda found: bool(found))
    with pytest.raises(BackendError):
        dead.publish(version(2))
    for each in (dead, tail):
        each.close()

    assert [record.value for record in found] == [b"after"]


def test_the_largest_initialization_passes(kafka_servers: str) -> None:
    """A wide model with feature nets and a rate for each parameter, of numbers that do not pack."""
    features = [{"name": f"f{i}"} for i in range(200)]
    base = unique_config(kafka_servers).model_dump()
    learner = {"hidden": [1024, 1024]}
    config = Config.build(base, {"features": features, "learner": learner})
    KafkaWorld(config)
    spec = spec_of(config)
    rng = np.random.default_rng(0)
    tensors = dict(draw(spec, seed=0).tensors)
    for name, shape in spec.optional_shapes().items():
        tensors[name] = np.asarray(rng.standard_normal(shape), np.float32)
    made = Initialization(spec=spec, tensors=tensors, version=1)
    tail = KafkaTail(config, "a", config.topics.initializations)
    publisher = KafkaPublisher(config)

    publisher.publish(initialization_messages(made, {"loss": 0.5}))
    found = read_until(tail, lambda found: len(found) >= 2)
    for each in (publisher, tail):
        each.close()

    assert len(found[0].value or b"") > 8_000_000
    assert read_published(found[1]).initialization.theta().tobytes() == made.theta().tobytes()


def test_polls_that_do_not_wait_return_at_once_even_in_an_outage(own_broker: Broker) -> None:
    world = KafkaWorld(unique_config(own_broker.bootstrap))
    topic = world.config.topics.episodes
    tail = KafkaTail(world.config, "a", topic)
    own_broker.pause()
    slowest_s = 0.0
    until = time.monotonic() + 3.0

    def is_over() -> bool:
        nonlocal slowest_s
        started = time.monotonic()
        assert list(tail.poll(0.0)) == []
        slowest_s = max(slowest_s, time.monotonic() - started)
        return started > until

    wait_until(is_over, 30.0, "three seconds")
    own_broker.resume()
    world.produce(numbered(topic, 10))
    found = read_until(tail, lambda found: len(found) >= 10)
    tail.close()

    assert slowest_s < 5.0
    assert len(found) == 10


def test_a_tail_rides_out_a_broker_that_dies_and_comes_back(own_broker: Broker) -> None:
    world = KafkaWorld(unique_config(own_broker.bootstrap))
    topic = world.config.topics.episodes
    world.produce(numbered(topic, 10))
    tail = KafkaTail(world.config, "a", topic)
    first = read_until(tail, lambda _: tail.caught_up)
    own_broker.kill()
    assert list(tail.poll(0.5)) == []
    own_broker.start()
    world.produce(numbered(topic, 10, start=10))
    later = read_until(tail, lambda found: len(found) >= 10)
    tail.close()

    assert sorted(int(r.value or b"") for r in first + later) == list(range(20))


def test_a_publisher_without_an_answer_gives_up_in_its_time(own_broker: Broker) -> None:
    world = KafkaWorld(unique_config(own_broker.bootstrap, transaction_timeout_ms=2000))
    publisher = KafkaPublisher(world.config)
    publisher.publish(version(1))
    own_broker.pause()
    started = time.monotonic()
    with pytest.raises(BackendError) as caught:
        publisher.publish(version(2))
    took_s = time.monotonic() - started
    publisher.close()
    closed_s = time.monotonic() - started - took_s
    own_broker.resume()
    successor = KafkaPublisher(world.config, connect_timeout_s=20.0)
    successor.publish(version(3))
    successor.close()

    assert not isinstance(caught.value, FencedError)
    assert took_s < 15.0
    assert closed_s < 15.0
    found = [record.value for record in world.visible(world.config.topics.initializations)]
    assert found in ([b"1", b"1", b"3", b"3"], [b"1", b"1", b"2", b"2", b"3", b"3"])


@pytest.mark.usefixtures("no_new_threads")
def test_without_a_broker_making_one_fails_soon() -> None:
    address = f"127.0.0.1:{free_port()}"
    config = unique_config(address)
    started = time.monotonic()

    with pytest.raises(UnavailableError, match=address):
        KafkaTail(config, "a", "episodes", connect_timeout_s=1.0)
    with pytest.raises(UnavailableError, match=address):
        KafkaPublisher(config, connect_timeout_s=1.0)

    assert time.monotonic() - started < 8.0
