"""What a tail promises: a whole topic, committed, from where it was told to, without waiting."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streammaml.backends.ports import Message, Partition, Record, Tail
from streammaml.errors import BackendError, ConfigError
from tests.backends.conformance.worlds import Reader, World, drive, numbered
from tests.kafka_broker import wait_until

TIMEOUT_S = 40.0


def read(tail: Tail, count: int) -> list[Record]:
    """So many records; more would be a fault."""
    found: list[Record] = []

    def is_there() -> bool:
        found.extend(tail.poll(0.1))
        return len(found) >= count

    wait_until(is_there, TIMEOUT_S, f"{count} records")
    assert len(found) == count
    return found


def read_to_end(tail: Tail) -> list[Record]:
    """All that was there when the tail was made, and perhaps more."""
    found: list[Record] = []

    def is_done() -> bool:
        found.extend(tail.poll(0.1))
        return tail.caught_up

    wait_until(is_done, TIMEOUT_S, "the end")
    return found


def fails(tail: Tail) -> None:
    """Poll until it says that it has ended."""

    def has_failed() -> bool:
        try:
            tail.poll(0.1)
        except BackendError:
            return True
        return False

    wait_until(has_failed, TIMEOUT_S, "an error")
    with pytest.raises(BackendError):
        tail.poll(0.0)


def values(records: Sequence[Record]) -> list[int]:
    return sorted(int(record.value or b"") for record in records)


def in_partition(world: World, index: int, numbers: range, size: int = 0) -> list[Message]:
    topic = world.config.topics.episodes
    return [Message(topic, b"k%d" % i, b"%d" % i + b" " * size, (), index) for i in numbers]


def test_all_partitions_are_followed_from_the_beginning(world: World) -> None:
    topic = world.config.topics.episodes
    world.produce(numbered(topic, 40))
    tail = world.tail(topic)
    before = tail.caught_up
    found = read_to_end(tail)
    world.produce(numbered(topic, 10, start=40))
    later = read(tail, 10)
    tail.close()

    assert not before
    assert tail.caught_up
    assert values(found) == list(range(40))
    assert values(later) == list(range(40, 50))
    assert {r.partition for r in found} == {0, 1}  # type: ignore[attr-defined]


def test_a_partition_comes_in_the_order_of_its_offsets(world: World) -> None:
    world.produce(in_partition(world, 1, range(2500)))
    tail = world.tail(world.config.topics.episodes)
    found = read(tail, 2500)
    tail.close()

    assert [record.offset for record in found] == list(range(2500))


def test_an_empty_topic_is_caught_up_at_once(world: World) -> None:
    tail = world.tail(world.config.topics.episodes)

    assert tail.caught_up
    assert list(tail.poll(0.0)) == []
    tail.close()


def test_a_tail_keeps_bytes_headers_and_tombstones(world: World) -> None:
    topic = world.config.topics.initializations
    headers = [("version", b"1"), ("report", b"\xff")]
    world.produce([Message(topic, b"v1", b"\x00\xff", headers), Message(topic, b"v0", None)])
    tail = world.tail(topic)
    found = read(tail, 2)
    tail.close()

    assert [(r.key, r.value, list(r.headers)) for r in found] == [
        (b"v1", b"\x00\xff", headers),
        (b"v0", None, []),
    ]


def test_only_the_newest_of_each_partition_are_read(world: World) -> None:
    world.produce([*in_partition(world, 0, range(10)), *in_partition(world, 1, range(10, 13))])
    tail = world.tail(world.config.topics.episodes, newest=4)
    found = read_to_end(tail)
    world.produce(in_partition(world, 0, range(20, 30)))
    later = read(tail, 10)
    tail.close()

    assert values(found) == [6, 7, 8, 9, 10, 11, 12]
    assert values(later) == list(range(20, 30))


def test_none_of_the_old_ones_are_read_where_none_are_wanted(world: World) -> None:
    world.produce(in_partition(world, 0, range(10)))
    tail = world.tail(world.config.topics.episodes, newest=0)
    before = tail.caught_up
    world.produce(in_partition(world, 0, range(10, 12)))
    found = read(tail, 2)
    tail.close()

    assert before
    assert values(found) == [10, 11]


def test_what_is_open_or_was_aborted_is_never_seen(world: World) -> None:
    topic = world.config.topics.episodes
    world.produce(in_partition(world, 0, range(3)))
    with Reader(world, "a") as other:
        drive(other, until=lambda: len(other.assigned) == 2, what="an assignment")
        other.sink.send(in_partition(world, 0, range(100, 300), size=2000))
        tail = world.tail(topic)
        first = read_to_end(tail)
        other.sink.abort()
        other.sink.send(in_partition(world, 0, range(3, 6)))
        other.sink.commit({}, other.source.member())
        later = read(tail, 3)
    after = world.tail(topic)
    found = read_to_end(after)
    for each in (tail, after):
        each.close()

    assert values(first) == [0, 1, 2]
    assert values(later) == [3, 4, 5]
    assert values(found) == [0, 1, 2, 3, 4, 5]


def test_a_topic_that_ends_in_markers_is_caught_up(world: World) -> None:
    topic = world.config.topics.episodes
    with Reader(world, "a") as other:
        drive(other, until=lambda: len(other.assigned) == 2, what="an assignment")
        other.sink.send(in_partition(world, 0, range(3)))
        other.sink.commit({}, other.source.member())
        other.sink.send(in_partition(world, 0, range(3, 6)))
        other.sink.commit({}, other.source.member())
    tail, newest = world.tail(topic), world.tail(topic, newest=1)
    found, none = read_to_end(tail), read_to_end(newest)
    for each in (tail, newest):
        each.close()

    assert values(found) == [0, 1, 2, 3, 4, 5]
    assert none == []


def test_partitions_that_come_later_are_followed_from_their_beginning(world: World) -> None:
    topic = world.config.topics.episodes
    world.produce(in_partition(world, 0, range(3)))
    tail = world.tail(topic, newest=0)
    world.add_partitions(topic, 1)
    world.produce([*in_partition(world, 2, range(10, 15)), *in_partition(world, 0, range(3, 5))])
    found = read(tail, 7)
    tail.close()

    assert values(found) == [3, 4, 10, 11, 12, 13, 14]


def test_what_was_deleted_before_it_was_read_is_passed_over(world: World) -> None:
    topic = world.config.topics.episodes
    world.produce(in_partition(world, 0, range(5)))
    tail = world.tail(topic)
    world.delete_records(Partition(topic, 0), 3)
    found = read_to_end(tail)
    tail.close()

    assert values(found) == [3, 4]


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "made anew"])
def test_a_topic_that_is_gone_ends_the_tail(world: World, again: bool) -> None:
    topic = world.config.topics.episodes
    world.produce(in_partition(world, 0, range(5)))
    tail = world.tail(topic)
    read(tail, 5)
    if again:
        world.make_anew(topic)
    else:
        world.delete_topic(topic)

    fails(tail)
    tail.close()


def test_tails_do_not_disturb_each_other_nor_commit(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 10))
    one, two = world.tail(topic), world.tail(topic)
    first, second = read(one, 10), read(two, 10)
    for tail in (one, two):
        tail.close()

    assert values(first) == values(second) == list(range(10))
    assert [world.committed(Partition(topic, i)) for i in range(2)] == [None, None]


def test_a_missing_topic_is_named_with_the_cure(world: World) -> None:
    with pytest.raises(ConfigError, match=r"topic '?typo.*`streammaml topics`"):
        world.tail("typo")
