"""What only a real broker can show: outages, time-outs, topics, and clients that leave nothing."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kafka  # type: ignore[import-untyped]  # kafka-python has no types
import pytest

from streammaml.backends.kafka import (
    KafkaFeed,
    KafkaPlainSink,
    KafkaSink,
    KafkaSource,
    KafkaStateLog,
    TopicAdmin,
    client_settings,
    group_watch,
)
from streammaml.backends.kafka.source import STALLED_CHECKS
from streammaml.backends.ports import Message, Partition, Rebalance
from streammaml.config import Config
from streammaml.errors import BackendError, ConfigError, FencedError, UnavailableError
from tests.backends.conformance.worlds import KafkaWorld, Reader, drive, numbered, unique_config
from tests.kafka_broker import Broker, free_port, wait_until

CLIENTS: dict[str, Callable[[Config], object]] = {
    "source": lambda c: KafkaSource(c, "a", lambda change: None, connect_timeout_s=1.0),
    "sink": lambda c: KafkaSink(c, "a", connect_timeout_s=1.0),
    "plain sink": lambda c: KafkaPlainSink(c, "a", connect_timeout_s=1.0),
    "state log": lambda c: KafkaStateLog(c, "a", connect_timeout_s=1.0),
    "feed": lambda c: KafkaFeed(c, connect_timeout_s=1.0),
    "admin": lambda c: TopicAdmin(c, connect_timeout_s=1.0),
}


@pytest.fixture
def no_new_threads() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def no_new_sockets() -> Iterator[None]:
    """Closed, not left to the garbage collector."""
    gc.collect()
    gc.disable()
    before = open_sockets()
    yield
    after = open_sockets()
    gc.enable()
    assert after == before


def open_sockets() -> int:
    folder = Path("/proc/self/fd")
    found = (os.readlink(file) for file in folder.iterdir() if file.is_symlink())
    return sum(target.startswith("socket:") for target in found)


@pytest.mark.parametrize("make", CLIENTS.values(), ids=CLIENTS)
@pytest.mark.usefixtures("no_new_threads")
def test_without_a_broker_making_a_client_fails_soon(make: Callable[[Config], object]) -> None:
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()

    with pytest.raises(UnavailableError, match=address):
        make(unique_config(address))

    assert time.monotonic() - started < 5.0


@pytest.mark.usefixtures("no_new_threads")
def test_a_port_that_never_answers_fails_within_the_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()

        with pytest.raises(UnavailableError, match=address):
            CLIENTS["admin"](unique_config(address))

        assert time.monotonic() - started < 8.0


def test_an_unresolvable_name_is_in_the_message() -> None:
    with pytest.raises(UnavailableError, match=r"broker\.invalid"):
        CLIENTS["admin"](unique_config("broker.invalid:9092"))


def test_an_address_without_a_port_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="not host:port"):
        CLIENTS["admin"](unique_config("localhost"))


@pytest.mark.kafka
def test_a_refused_login_shows_no_secret(kafka_servers: str) -> None:
    config = unique_config(
        kafka_servers,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username="me",
        sasl_password="hunter2",
    )

    with pytest.raises(UnavailableError, match=r"does not answer\. .*failed: ") as caught:
        CLIENTS["admin"](config)

    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_transaction_that_ends_before_its_commit_is_a_configuration_error() -> None:
    config = unique_config(transaction_timeout_ms=5000)
    config = Config.build(config.model_dump(), {"worker": {"commit_interval_ms": 5000}})

    with pytest.raises(ConfigError, match="commit_interval_ms, 5000, must be below"):
        CLIENTS["sink"](config)


@pytest.mark.parametrize("file", ["ssl_cafile", "ssl_certfile"])
def test_a_missing_certificate_is_a_configuration_error(file: str) -> None:
    files: dict[str, Any] = {file: "/nowhere/ca.pem"}
    config = unique_config(security_protocol="SASL_SSL", **files)

    with pytest.raises(ConfigError, match=r"/nowhere/ca\.pem"):
        CLIENTS["admin"](config)


@pytest.mark.kafka
@pytest.mark.usefixtures("no_new_threads")
def test_closed_clients_leave_no_thread(kafka_servers: str) -> None:
    world = KafkaWorld(unique_config(kafka_servers))
    world.produce([Message(world.config.topics.state, b"k", b"v", (), 0)])
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
        log = world.state_log()
        state = log.reader(0, 0)
        state.close()
        log.close()


@pytest.mark.kafka
def test_a_transaction_that_outlived_its_time_is_not_taken_for_a_twin(kafka_servers: str) -> None:
    world = KafkaWorld(unique_config(kafka_servers, partitions=1, transaction_timeout_ms=1000))
    topic = world.config.topics.predictions
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: bool(reader.assigned), what="an assignment")
        reader.sink.send(numbered(topic, 1))
        wait_until(lambda: stable_end(world, topic) == 2, 30.0, "the broker's abort")

        with pytest.raises(BackendError, match="open for") as caught:
            reader.commit(numbered(topic, 1))

    assert not isinstance(caught.value, FencedError)
    assert world.visible(topic) == []


@pytest.mark.kafka
def test_an_open_transaction_of_another_delays_the_new_owner_only(kafka_servers: str) -> None:
    """Reading the offset from before it, as read_uncommitted would, repeats its events."""
    world = KafkaWorld(unique_config(kafka_servers, partitions=1))
    topic, group = world.config.topics.events, world.config.kafka.group
    world.produce(numbered(topic, 20))
    producer = kafka.KafkaProducer(
        **client_settings(world.config.kafka, 10.0), transactional_id=f"{group}-dying"
    )
    producer.init_transactions()
    producer.begin_transaction()
    offsets = {kafka.TopicPartition(topic, 0): kafka.OffsetAndMetadata(15, "", -1)}
    producer.send_offsets_to_transaction(offsets, kafka.ConsumerGroupMetadata(group))
    with Reader(world, "a") as reader:
        started = time.monotonic()
        reader.poll(3.0)
        blocked_s, before = time.monotonic() - started, list(reader.changes)
        producer.commit_transaction()

        drive(reader, until=lambda: len(reader.values) == 5, what="the rest")

        assert before == []
        assert blocked_s < 9.0
        assert reader.records[Partition(topic, 0)][0].offset == 15
    producer.close()


@pytest.mark.kafka
def test_a_record_beyond_the_limit_of_the_client_fails_the_feed(kafka_servers: str) -> None:
    world = KafkaWorld(unique_config(kafka_servers))
    feed = KafkaFeed(world.config)

    with pytest.raises(BackendError, match="larger than"):
        feed.send([Message(world.config.topics.events, b"k", b"x" * 5_000_000)])

    feed.close()


@pytest.mark.kafka
def test_a_record_that_the_broker_refuses_fails_the_flush(kafka_servers: str) -> None:
    world = KafkaWorld(unique_config(kafka_servers, compression="none"))
    feed = KafkaFeed(world.config)
    feed.send([Message(world.config.topics.events, b"k", b"x" * 2_000_000)])

    with pytest.raises(BackendError, match="TooLarge"):
        feed.flush()

    feed.close()


@pytest.mark.kafka
def test_members_that_hardly_wait_in_their_polls_share_all_the_same(kafka_servers: str) -> None:
    """The client drops a join that ends between two polls, and the group never settles."""
    world = KafkaWorld(unique_config(kafka_servers))
    with Reader(world, "a") as one, Reader(world, "b") as two:

        def is_shared() -> bool:
            for reader in (one, two):
                reader.poll(0.0)
                source = reader.source
                assert isinstance(source, KafkaSource)
                task = source._consumer._coordinator._join_task
                if task is not None:  # what a worker does between polls: the join ends meanwhile
                    ended = threading.Event()
                    task.add_both(lambda _, ended=ended: ended.set())
                    ended.wait(0.2)
            return len(one.assigned) == len(two.assigned) == 1

        wait_until(is_shared, 30.0, "one partition each")


@pytest.mark.kafka
def test_a_slow_revocation_does_not_cost_the_membership(kafka_servers: str) -> None:
    """Heartbeats go on beside it; a commit in it may carry a large barrier."""
    world = KafkaWorld(unique_config(kafka_servers, session_timeout_ms=1000))
    world.produce(numbered(world.config.topics.events, 20))
    committed: list[int | None] = []

    with Reader(world, "a") as one, Reader(world, "b") as two:

        def slowly(change: Rebalance) -> None:
            told(change)
            for partition in change.revoked:
                wait_until(lambda: time.monotonic() > started + 2.5, 5.0, "twice the session")
                one.sink.commit({partition: 7}, one.source.member())
                committed.append(world.committed(partition))

        source = one.source
        assert isinstance(source, KafkaSource)
        told, source._on_rebalance = source._on_rebalance, slowly
        drive(one, until=lambda: len(one.values) == 20, what="20 records")
        started = time.monotonic()
        drive(
            one,
            two,
            until=lambda: len(one.assigned) == len(two.assigned) == 1,
            what="one partition each",
        )
        (moved,) = two.assigned

        assert committed == [7]
        assert two.source.standing(moved).committed == 7
        assert not any(change.lost for change in one.changes)
        source._on_rebalance = told


@pytest.mark.kafka
def test_a_broker_that_dies_in_a_transaction_leaves_nothing_twice(own_broker: Broker) -> None:
    world = KafkaWorld(unique_config(own_broker.bootstrap))
    topics = world.config.topics
    world.produce(numbered(topics.events, 50))
    first = Reader(world, "a")
    drive(first, until=lambda: len(first.values) == 50, what="50 records")
    first.sink.send([Message(topics.predictions, None, v) for v in first.values])
    own_broker.kill()
    own_broker.start()
    try:
        first.commit()
    except BackendError:
        pass
    else:
        assert sum(world.committed(Partition(topics.events, i)) or 0 for i in (0, 1)) == 50
    first.close()
    world.produce(numbered(topics.events, 10, start=50))

    with Reader(world, "a") as second:
        drive(second, until=lambda: b"59" in second.values, what="the last record")
        second.commit([Message(topics.predictions, None, v) for v in second.values])

    found = sorted(int(r.value or b"") for r in world.visible(topics.predictions))
    assert found == list(range(60))


@pytest.mark.kafka
def test_a_client_that_fetches_nothing_though_records_wait_is_noticed(kafka_servers: str) -> None:
    world = KafkaWorld(unique_config(kafka_servers, partitions=1))
    topic = world.config.topics.events
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: bool(reader.assigned), what="an assignment")
        assert isinstance(reader.source, KafkaSource)
        reader.source._consumer.pause(kafka.TopicPartition(topic, 0))
        for _ in range(STALLED_CHECKS):
            reader.source.check()
        world.produce(numbered(topic, 5))
        for _ in range(STALLED_CHECKS - 1):
            reader.source.check()

        with pytest.raises(BackendError, match=f"5 records wait at 0 of {topic}-0"):
            reader.source.check()


@pytest.mark.kafka
@pytest.mark.usefixtures("no_new_sockets")
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_with_the_broker_gone_every_call_ends_in_time(own_broker: Broker, delivery: str) -> None:
    world = KafkaWorld(
        unique_config(own_broker.bootstrap, delivery=delivery, transaction_timeout_ms=1000)
    )
    reader = Reader(world, "a")
    drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
    reader.sink.send(numbered(world.config.topics.predictions, 10))
    own_broker.kill()
    started = time.monotonic()

    with pytest.raises(UnavailableError):
        reader.source.check()
    checked = time.monotonic()
    with pytest.raises(BackendError):
        reader.commit(numbered(world.config.topics.predictions, 10))
    committed = time.monotonic()
    reader.close()
    closed = time.monotonic()

    assert checked - started < 12.0
    assert committed - checked < 8.0
    assert closed - committed < 18.0


@pytest.mark.kafka
def test_a_broker_that_hangs_is_noticed_and_its_return_too(own_broker: Broker) -> None:
    world = KafkaWorld(unique_config(own_broker.bootstrap, transaction_timeout_ms=1000))
    topic = world.config.topics.predictions
    reader = Reader(world, "a")
    drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
    own_broker.pause()
    with pytest.raises(BackendError):
        reader.commit(numbered(topic, 10))
    with pytest.raises(UnavailableError):
        reader.source.check()
    own_broker.resume()
    reader.close()

    with Reader(world, "a") as again:
        again.commit(numbered(topic, 5, start=100))

    assert sorted(int(r.value or b"") for r in world.visible(topic)) == list(range(100, 105))


def stable_end(world: KafkaWorld, topic: str) -> int:
    """Where read_committed ends now."""
    settings = client_settings(world.config.kafka, 10.0)
    consumer = kafka.KafkaConsumer(**settings, isolation_level="read_committed")
    try:
        tp = kafka.TopicPartition(topic, 0)
        end: int = consumer.end_offsets([tp])[tp]
        return end
    finally:
        consumer.close()


@pytest.mark.kafka
def test_a_partition_that_no_member_has_is_found_at_the_second_look(
    kafka_servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_watch, "LOOK_EVERY_S", 0.0)
    config = unique_config(kafka_servers)
    with TopicAdmin(config) as admin:
        admin.ensure()
    changes: list[Rebalance] = []
    source = KafkaSource(config, "one", changes.append)
    watch = group_watch.GroupWatch(config, 10.0)
    try:
        wait_until(lambda: bool(source.poll(0.1) or changes), 30, "an assignment")

        assert not watch.has_orphans(2)
        assert not watch.has_orphans(2)
        assert not watch.has_orphans(3)  # as if there were one more
        assert watch.has_orphans(3)
    finally:
        watch.close()
        source.close()
    assert not watch.has_orphans(2)  # a group that is not at rest has none
    watch.close()
