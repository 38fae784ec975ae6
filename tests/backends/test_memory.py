"""What only the memory twin has: places to fail, time by hand, holes as on a real log."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streammaml.backends.memory import MemoryBroker
from streammaml.backends.ports import Message, Partition
from streammaml.errors import BackendError
from tests.backends.conformance.worlds import MemoryWorld, Reader, numbered, unique_config

STEPS = ("poll", "send", "commit", "barrier", "committed", "abort", "check")


def test_every_durable_step_is_announced() -> None:
    world = MemoryWorld(unique_config())
    told: list[str] = []
    world.broker.step = told.append
    with Reader(world, "a") as reader:
        reader.poll(0)
        reader.source.check()
        reader.commit(numbered(world.config.topics.predictions, 1))
        reader.sink.abort()

    assert set(told) == set(STEPS)


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
