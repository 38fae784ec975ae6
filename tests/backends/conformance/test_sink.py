"""What a sink promises: all or nothing, and only for the newest of its name."""

from __future__ import annotations

import pytest

from streammaml.backends.ports import Message, Partition
from streammaml.errors import BackendError, FencedError
from tests.backends.conformance.worlds import Reader, World, drive, numbered


def values(world: World, topic: str) -> list[int]:
    return sorted(int(record.value or b"") for record in world.visible(topic))


def test_nothing_is_visible_before_the_commit(world: World) -> None:
    topic = world.config.topics.predictions
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
        reader.sink.send(numbered(topic, 10))
        before = values(world, topic)

        reader.commit(numbered(topic, 10, start=10))

    assert before == []
    assert values(world, topic) == list(range(20))


def test_messages_and_offsets_take_effect_together(world: World) -> None:
    topics = world.config.topics
    world.produce(numbered(topics.events, 40))
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.values) == 40, what="40 records")
        reader.sink.send(numbered(topics.predictions, 40))
        before = [world.committed(Partition(topics.events, i)) for i in range(2)]

        reader.commit()

    after = [world.committed(Partition(topics.events, i)) or 0 for i in range(2)]
    assert before == [None, None]
    assert sum(after) == 40
    assert values(world, topics.predictions) == list(range(40))


def barrier(world: World, partition: int, count: int, start: int = 0) -> list[Message]:
    """State records, which name their partition."""
    topic = world.config.topics.state
    keys = range(start, start + count)
    return [Message(topic, b"c/%d" % i, b"%d" % i, [("n", b"1")], partition) for i in keys]


def test_a_barrier_takes_effect_with_the_rest_and_says_where_it_ends(world: World) -> None:
    topics = world.config.topics
    world.produce(numbered(topics.events, 40))
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.values) == 40, what="40 records")
        reader.sink.send(numbered(topics.predictions, 40))
        before = values(world, topics.state)

        first = reader.commit(barrier=[*barrier(world, 0, 3), *barrier(world, 1, 2, 10)])
        second = reader.commit(barrier=barrier(world, 1, 1, 20))
        third = reader.commit(numbered(topics.predictions, 1))

    one, two = (Partition(topics.state, i) for i in range(2))
    ends = {
        p: [r.offset for r in world.visible(topics.state) if r.partition == p.index][-1] + 1  # type: ignore[attr-defined]
        for p in (one, two)
    }
    assert before == []
    assert first == {one: 3, two: 2}
    assert second == {two: ends[two]}
    assert ends[one] == 3
    assert third == {}
    assert values(world, topics.state) == [0, 1, 2, 10, 11, 20]
    assert sum(world.committed(Partition(topics.events, i)) or 0 for i in (0, 1)) == 40


def test_a_barrier_alone_makes_a_commit(world: World) -> None:
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")

        placed = reader.commit(barrier=barrier(world, 1, 2))

    assert placed == {Partition(world.config.topics.state, 1): 2}
    assert [list(r.headers) for r in world.visible(world.config.topics.state)] == [
        [("n", b"1")]
    ] * 2


def test_an_abort_forgets_where_messages_went(world: World) -> None:
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
        reader.sink.send(barrier(world, 0, 5))
        reader.sink.abort()

        placed = reader.commit(barrier=barrier(world, 1, 1))

    assert placed == {Partition(world.config.topics.state, 1): 1}
    assert values(world, world.config.topics.state) == [0]


def test_offsets_alone_make_a_commit(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 40))
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.values) == 40, what="40 records")
        reader.commit()

    assert sum(world.committed(Partition(world.config.topics.events, i)) or 0 for i in (0, 1)) == 40


def test_an_empty_commit_is_none(world: World) -> None:
    with Reader(world, "a") as reader:
        reader.sink.commit({}, reader.source.member())
        reader.sink.abort()


def test_abort_drops_messages_and_the_sink_goes_on(world: World) -> None:
    topic = world.config.topics.predictions
    with Reader(world, "a") as reader:
        reader.sink.send(numbered(topic, 10))
        reader.sink.abort()

        reader.commit(numbered(topic, 5, start=100))

    assert values(world, topic) == list(range(100, 105))


def test_close_drops_what_is_open(world: World) -> None:
    topic = world.config.topics.predictions
    sink = world.sink("a")
    sink.send(numbered(topic, 10))
    sink.close()
    with Reader(world, "b") as other:
        other.commit(numbered(topic, 1, start=50))

    assert values(world, topic) == [50]


def test_a_message_keeps_its_bytes_and_headers(world: World) -> None:
    topic = world.config.topics.dead_letters
    headers = [("error", b"decode"), ("message", b"\xff")]
    with Reader(world, "a") as reader:
        reader.commit([Message(topic, b"\x00", b"\xff", headers), Message(topic, b"k", None)])

    found = sorted(world.visible(topic), key=lambda r: r.key or b"")
    assert [(r.key, r.value, list(r.headers)) for r in found] == [
        (b"\x00", b"\xff", headers),
        (b"k", None, []),
    ]


def test_the_largest_record_fits_as_a_dead_letter(world: World) -> None:
    topic = world.config.topics.dead_letters
    value = b"\xff" * world.config.worker.max_record_bytes
    with Reader(world, "a") as reader:
        reader.commit([Message(topic, b"key" * 100, value, [("message", b"x" * 1000)])])

    assert [record.value for record in world.visible(topic)] == [value]


def test_the_same_key_goes_to_the_same_partition_in_every_topic(world: World) -> None:
    topics = world.config.topics
    world.produce(numbered(topics.events, 20))
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.values) == 20, what="20 records")
        reader.commit(numbered(topics.predictions, 20))
        there = [[r.key for r in reader.records[p]] for p in sorted(reader.records)]

    found = [record.key for record in world.visible(topics.predictions)]
    assert found == [key for keys in there for key in keys]


def test_a_second_sink_of_the_same_instance_fences_the_first(world: World) -> None:
    topic = world.config.topics.predictions
    with Reader(world, "a") as reader:
        reader.sink.send(numbered(topic, 10))
        winner = world.sink("a")

        with pytest.raises(FencedError, match="instance 'a'"):
            reader.commit(numbered(topic, 10, start=10))

        winner.send(numbered(topic, 5, start=100))
        winner.commit({}, reader.source.member())
        winner.send(numbered(topic, 5, start=105))
        winner.commit({}, reader.source.member())
        winner.close()

    assert values(world, topic) == list(range(100, 110))


def test_a_fenced_sink_is_told_even_if_nothing_was_open(world: World) -> None:
    topic = world.config.topics.predictions
    with Reader(world, "a") as reader:
        reader.commit(numbered(topic, 1))
        winner = world.sink("a")

        with pytest.raises(FencedError):
            reader.commit(numbered(topic, 1, start=1))

        winner.close()
    assert values(world, topic) == [0]


def test_sinks_of_two_instances_do_not_disturb_each_other(world: World) -> None:
    topic = world.config.topics.predictions
    with Reader(world, "a") as one, Reader(world, "b") as two:
        one.sink.send(numbered(topic, 1))
        two.commit(numbered(topic, 1, start=1))
        one.commit()

    assert values(world, topic) == [0, 1]


def test_the_commit_of_an_evicted_member_fails_without_trace(world: World) -> None:
    topics = world.config.topics
    world.produce(numbered(topics.events, 20))
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.values) == 20, what="20 records")
        world.evict("a")

        with pytest.raises(BackendError) as caught:
            reader.commit(numbered(topics.predictions, 20))

        reader.sink.abort()
        committed = [world.committed(Partition(topics.events, i)) for i in range(2)]
    assert not isinstance(caught.value, FencedError)
    assert committed == [None, None]
    assert values(world, topics.predictions) == []
