"""What only the memory twin has: places to fail, time by hand, holes as on a real log."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streammaml.backends.memory import MemoryBroker
from streammaml.backends.ports import Message, Partition
from streammaml.errors import BackendError
from tests.backends.conformance.worlds import MemoryWorld, Reader, numbered, unique_config

STEPS = {
    *("poll", "send", "commit", "barrier", "committed", "abort", "check", "read_state"),
    *("poll_tail", "publish", "published"),
}


def test_every_durable_step_is_announced() -> None:
    world = MemoryWorld(unique_config())
    told: list[str] = []
    world.broker.step = told.append
    with Reader(world, "a") as reader:
        reader.poll(0)
        reader.source.check()
        reader.commit(numbered(world.config.topics.predictions, 1))
        reader.sink.abort()
        world.state_log().reader(0, 0).read(0)
        world.tail(world.config.topics.episodes).poll(0)
        world.publisher().publish([])

    assert set(told) == STEPS


@pytest.mark.parametrize(("step", "visible"), [("commit", 0), ("committed", 1)])
def test_a_failure_around_the_commit_leaves_all_or_nothing(step: str, visible: int) -> None:
    world = MemoryWorld(unique_config(partitions=1))
    topics = world.config.topics
    world.produce(numbered(topics.events, 1))
    reader = Reader(world, "a")
    reader.poll(0)
    world.broker.step = failing_at(step)

    with pytest.raises(BackendError):
        reader.commit(numbered(topics.predictions, 1))

    world.broker.step = lambda name: None
    reader.close()
    assert len(world.visible(topics.predictions)) == visible
    assert (world.committed(Partition(topics.events, 0)) or 0) == visible


@pytest.mark.parametrize(("step", "visible"), [("publish", 0), ("published", 2)])
def test_a_publisher_that_dies_leaves_all_or_nothing(step: str, visible: int) -> None:
    world = MemoryWorld(unique_config())
    topic = world.config.topics.initializations
    dead = world.publisher()
    world.broker.step = failing_at(step)
    for _ in range(2):
        with pytest.raises(BackendError, match=f"failed at {step}"):
            dead.publish([Message("", b"v1", b"1"), Message("", b"current", b"1")])
    world.broker.step = lambda name: None
    tail = world.tail(topic)
    open_until = (world.broker.span(Partition(topic, 0))[1], world.broker.end(Partition(topic, 0)))

    successor = world.publisher()
    successor.publish([Message("", b"v2", b"2"), Message("", b"current", b"2")])
    found = tail.poll(0)

    assert open_until == ((0, 2) if step == "publish" else (3, 3))
    assert len(found) == len(world.visible(topic)) == visible + 2


@pytest.mark.parametrize(
    ("step", "sent", "state", "offset"),
    [("commit", 1, 0, 0), ("barrier", 1, 1, 0), ("committed", 1, 1, 1)],
)
def test_without_transactions_a_failure_leaves_what_was_reached(
    step: str, sent: int, state: int, offset: int
) -> None:
    world = MemoryWorld(unique_config(partitions=1, delivery="at_least_once"))
    topics = world.config.topics
    world.produce(numbered(topics.events, 1))
    reader = Reader(world, "a")
    reader.poll(0)
    world.broker.step = failing_at(step)

    with pytest.raises(BackendError):
        reader.commit(numbered(topics.predictions, 1), [Message(topics.state, b"k", b"", (), 0)])

    assert len(world.visible(topics.predictions)) == sent
    assert len(world.visible(topics.state)) == state
    assert (world.committed(Partition(topics.events, 0)) or 0) == offset


def test_compaction_keeps_the_last_record_of_a_key_and_all_offsets() -> None:
    world = MemoryWorld(unique_config(partitions=1))
    topic = world.config.topics.state
    world.produce([Message(topic, key, b"1") for key in (b"a", b"b", b"c")])
    with Reader(world, "a") as reader:
        reader.poll(0)
        reader.commit(
            barrier=[Message(topic, b"a", b"2", (), 0), Message(topic, b"b", None, (), 0)]
        )
        reader.sink.send([Message(topic, b"c", b"open", (), 0)])
        before = {r.key: r.value for r in world.visible(topic)}

        world.broker.compact(topic)
        state = world.state_log().reader(0, 0)
        found = state.read(0)

    assert [(r.offset, r.key, r.value) for r in found] == [
        (2, b"c", b"1"),
        (3, b"a", b"2"),
        (4, b"b", None),
    ]
    assert (state.position, state.end) == (6, 7), "it waits for the open transaction"
    assert before == {r.key: r.value for r in found}


def test_a_topic_made_anew_breaks_the_source_and_forgets_the_offsets() -> None:
    world = MemoryWorld(unique_config(partitions=1))
    topic = world.config.topics.events
    world.produce(numbered(topic, 3))
    reader = Reader(world, "a")
    reader.poll(0)
    reader.commit()
    world.make_anew(topic)

    with pytest.raises(BackendError, match="made anew"):
        reader.poll(0)
    reader.close()

    assert world.committed(Partition(topic, 0)) is None


def test_one_busy_partition_does_not_starve_another() -> None:
    world = MemoryWorld(unique_config(partitions=2))
    topic = world.config.topics.events
    room = world.config.worker.max_poll_records
    for partition in range(2):
        world.produce([Message(topic, None, b"", (), partition)] * 2 * room)
    with Reader(world, "a") as reader:
        reader.poll(0)
        reader.poll(0)

        assert {p.index: len(records) for p, records in reader.records.items()} == {
            0: room,
            1: room,
        }


def test_a_failed_poll_breaks_the_source_and_its_close_tells_the_loss() -> None:
    world = MemoryWorld(unique_config())
    reader = Reader(world, "a")
    reader.poll(0)
    world.broker.step = failing_at("poll")
    with pytest.raises(BackendError):
        reader.poll(0)
    world.broker.step = lambda name: None

    with pytest.raises(BackendError):
        reader.poll(0)
    reader.close()

    assert [len(c.lost) for c in reader.changes] == [0, 2]


def test_aborted_messages_and_markers_spend_offsets() -> None:
    world = MemoryWorld(unique_config(partitions=1))
    topic = world.config.topics.predictions
    with Reader(world, "a") as reader:
        reader.sink.send(numbered(topic, 2))
        reader.sink.abort()
        reader.commit(numbered(topic, 1))

    (record,) = world.visible(topic)
    assert record.offset == 3
    assert world.broker.span(Partition(topic, 0)) == (0, 5)


def test_records_carry_the_time_of_the_given_clock() -> None:
    broker = MemoryBroker({"events": 1}, now_ms=lambda: 42)

    broker.append([Message("events", b"k", b"v")])

    assert [r.timestamp for r in broker.read("events")] == [42]


def failing_at(step: str) -> Callable[[str], None]:
    def fail(name: str) -> None:
        if name == step:
            raise BackendError(f"failed at {name}")

    return fail
