"""What a sink without transactions promises: nothing is lost, and offsets are fenced."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streammaml.backends.ports import Message, Partition
from streammaml.errors import BackendError, FencedError
from tests.backends.conformance.worlds import Reader, World, drive, numbered
from tests.kafka_broker import wait_until


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world(delivery="at_least_once")


def values(world: World, topic: str) -> list[int]:
    return sorted(int(record.value or b"") for record in world.visible(topic))


def committed(world: World) -> int:
    topic = world.config.topics.events
    return sum(world.committed(Partition(topic, i)) or 0 for i in range(2))


def barrier(world: World, partition: int, count: int) -> list[Message]:
    topic = world.config.topics.state
    return [Message(topic, b"c/%d" % i, b"%d" % i, (), partition) for i in range(count)]


def test_what_is_sent_is_there_before_the_commit_and_after_an_abort(world: World) -> None:
    topic = world.config.topics.predictions
    with Reader(world, "a") as reader:
        reader.sink.send(numbered(topic, 10))
        wait_until(lambda: len(values(world, topic)) == 10, 10.0, "10 predictions")
        reader.sink.abort()
        reader.commit(numbered(topic, 5, start=10))

    assert values(world, topic) == list(range(15))


def test_a_commit_makes_sure_of_all(world: World) -> None:
    topics = world.config.topics
    world.produce(numbered(topics.events, 40))
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.values) == 40, what="40 records")
        before = committed(world)

        first = reader.commit(numbered(topics.predictions, 40), barrier(world, 1, 3))
        found = values(world, topics.predictions), values(world, topics.state), committed(world)
        second = reader.commit(barrier=barrier(world, 0, 1))
        third = reader.commit()

    assert before == 0
    assert found == (list(range(40)), [0, 1, 2], 40)
    assert first == {Partition(topics.state, 1): 3}
    assert second == {Partition(topics.state, 0): 1}
    assert third == {}


def test_a_restart_goes_on_at_the_committed_offsets(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 100))
    with Reader(world, "a") as first:
        drive(first, until=lambda: len(first.values) == 100, what="100 records")
        first.commit()
    world.produce(numbered(topic, 20, start=100))

    with Reader(world, "a") as second:
        drive(second, until=lambda: len(second.values) == 20, what="20 records")


def test_the_commit_of_an_evicted_member_fails(world: World) -> None:
    topics = world.config.topics
    world.produce(numbered(topics.events, 20))
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.values) == 20, what="20 records")
        world.evict("a")

        with pytest.raises(BackendError) as caught:
            reader.sink.commit(reader.next, reader.source.member())
        with pytest.raises(BackendError):
            reader.sink.commit({}, reader.source.member(), barrier(world, 0, 1))

    assert not isinstance(caught.value, FencedError)
    assert committed(world) == 0
    assert values(world, topics.state) == []


def test_a_second_source_of_the_same_instance_fences_the_first(world: World) -> None:
    topics = world.config.topics
    world.produce(numbered(topics.events, 20))
    one = Reader(world, "a")
    drive(one, until=lambda: len(one.values) == 20, what="20 records")
    two = Reader(world, "a")
    drive(two, until=lambda: len(two.values) == 20, what="20 records for the second")

    with pytest.raises(FencedError, match="--instance"):
        one.sink.commit(one.next, one.source.member())
    with pytest.raises(FencedError, match="--instance"):
        one.sink.commit({}, one.source.member(), barrier(world, 0, 1))
    before = committed(world)
    two.commit()

    one.close()
    two.close()
    assert before == 0
    assert committed(world) == 20
    assert values(world, topics.state) == []


def test_a_commit_in_the_revocation_counts_and_the_other_goes_on_there(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 100))
    with Reader(world, "a", commit_on_revoke=True) as one:
        drive(one, until=lambda: len(one.values) == 100, what="100 records")
        with Reader(world, "b", commit_on_revoke=True) as two:
            drive(
                one,
                two,
                until=lambda: len(one.assigned) == len(two.assigned) == 1,
                what="one partition each",
            )
            (moved,) = two.assigned
            world.produce(numbered(topic, 50, start=100))
            drive(one, two, until=lambda: len(one.values) + len(two.values) >= 150, what="the rest")

            assert two.records[moved][0].offset == one.records[moved][-1].offset + 1

    assert committed(world) == 150  # the rest by the revocations of close


def test_a_commit_goes_through_while_a_rebalance_waits_for_another(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 100))
    with Reader(world, "a") as one, Reader(world, "b") as two:
        drive(
            one,
            two,
            until=lambda: len(one.assigned) == len(two.assigned) == 1 and bool(one.values),
            what="one partition each, and records",
        )
        with Reader(world, "c") as three:
            for _ in range(40):  # the second member does not join, so the others wait for it
                three.poll()
                one.poll()
                offsets = {p: records[-1].offset + 1 for p, records in one.records.items()}
                one.sink.commit(offsets, one.source.member())

            assert {p: world.committed(p) for p in offsets} == offsets

            drive(
                one,
                two,
                three,
                until=lambda: len(one.assigned | two.assigned | three.assigned) == 2,
                what="an assignment again",
            )
