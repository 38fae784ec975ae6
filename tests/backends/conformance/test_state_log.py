"""What the state log promises: one partition, committed, up to the end it had at first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streammaml.backends.ports import Message, Record, StateLog, StateReader
from streammaml.errors import ConfigError
from tests.backends.conformance.worlds import Reader, World, drive
from tests.kafka_broker import wait_until


@pytest.fixture
def log(world: World) -> Iterator[StateLog]:
    log = world.state_log()
    yield log
    log.close()


def state(world: World, numbers: range, partition: int = 0, size: int = 0) -> list[Message]:
    topic = world.config.topics.state
    return [Message(topic, b"c/%d" % i, b"%d" % i + b"." * size, (), partition) for i in numbers]


def read(reader: StateReader) -> list[Record]:
    """All of it, and close the reader."""
    found: list[Record] = []

    def is_done() -> bool:
        found.extend(reader.read(0.2))
        return reader.position == reader.end

    wait_until(is_done, 30.0, "the end of the state")
    assert reader.read(0.0) == []
    reader.close()
    return found


def reader_beyond(log: StateLog, end: int) -> StateReader:
    """A reader, once the broker holds more than ``end`` records: the producer takes its time."""
    found: list[StateReader] = []

    def is_there() -> bool:
        found.append(log.reader(0, 0))
        return found[-1].end > end

    wait_until(is_there, 30.0, "an open transaction at the broker")
    for reader in found[:-1]:
        reader.close()
    return found[-1]


def read_for_a_while(reader: StateReader) -> list[Record]:
    """Until it has waited in vain."""
    found: list[Record] = []

    def is_stuck() -> bool:
        more = reader.read(0.2)
        found.extend(more)
        return not more and bool(found)

    wait_until(is_stuck, 30.0, "nothing to come")
    return found


def offsets(records: list[Record]) -> list[int]:
    return [record.offset for record in records]


def test_a_partition_is_read_from_a_position_to_its_end(world: World, log: StateLog) -> None:
    world.produce([*state(world, range(10)), *state(world, range(10, 15), 1)])

    assert offsets(read(log.reader(0, 0))) == list(range(10))
    assert offsets(read(log.reader(0, 7))) == [7, 8, 9]
    assert [r.key for r in read(log.reader(1, 0))] == [b"c/%d" % i for i in range(10, 15)]


def test_a_tombstone_has_no_value(world: World, log: StateLog) -> None:
    world.produce([Message(world.config.topics.state, b"c/1", None, (), 0)])

    (record,) = read(log.reader(0, 0))

    assert (record.key, record.value) == (b"c/1", None)


def test_an_empty_partition_is_done_at_once(log: StateLog) -> None:
    reader = log.reader(0, 0)

    assert (reader.position, reader.end) == (0, 0)
    assert read(reader) == []


def test_a_start_at_or_beyond_the_end_reads_nothing(world: World, log: StateLog) -> None:
    world.produce(state(world, range(3)))
    at, beyond = log.reader(0, 3), log.reader(0, 1000)

    assert (at.position, at.end) == (beyond.position, beyond.end) == (3, 3)
    assert read(at) == read(beyond) == []


def test_what_is_written_later_is_not_read(world: World, log: StateLog) -> None:
    world.produce(state(world, range(3)))
    reader = log.reader(0, 0)
    world.produce(state(world, range(3, 6)))

    assert offsets(read(reader)) == [0, 1, 2]
    later = log.reader(0, 0)
    assert later.end == 6
    later.close()


def test_an_open_transaction_is_waited_for(world: World, log: StateLog) -> None:
    world.produce(state(world, range(3)))
    with Reader(world, "a") as other:
        drive(other, until=lambda: len(other.assigned) == 2, what="an assignment")
        sink = other.sink
        sink.send(state(world, range(3, 500), size=1000))  # more than the producer keeps back
        reader = reader_beyond(log, 3)
        before = read_for_a_while(reader)
        waiting = reader.position < reader.end
        sink.commit({}, other.source.member())
        found = before + read(reader)

    assert waiting
    assert offsets(before) == [0, 1, 2]
    assert offsets(found) == list(range(reader.end))


def test_an_aborted_transaction_is_waited_for_and_passed_over(world: World, log: StateLog) -> None:
    world.produce(state(world, range(3)))
    with Reader(world, "a") as other:
        drive(other, until=lambda: len(other.assigned) == 2, what="an assignment")
        other.sink.send(state(world, range(3, 500), size=1000))
        reader = reader_beyond(log, 3)
        before = read_for_a_while(reader)
        waiting = reader.position < reader.end
        other.sink.abort()

    assert waiting
    assert offsets(before + read(reader)) == [0, 1, 2]


def test_what_was_aborted_is_passed_over(world: World, log: StateLog) -> None:
    with Reader(world, "a") as other:
        drive(other, until=lambda: len(other.assigned) == 2, what="an assignment")
        other.sink.send(state(world, range(500), size=1000))
        other.sink.abort()
        placed = other.commit(barrier=state(world, range(3)))
        other.sink.send(state(world, range(500), size=1000))
        other.sink.abort()
    reader = log.reader(0, 0)
    (end,) = placed.values()

    found = read(reader)

    assert [r.value for r in found] == [b"0", b"1", b"2"]
    assert found[-1].offset + 1 == end
    assert reader.position == reader.end >= end


def test_readers_do_not_disturb_each_other(world: World, log: StateLog) -> None:
    world.produce([*state(world, range(10)), *state(world, range(10), 1)])
    one, two, three = log.reader(0, 0), log.reader(1, 5), log.reader(0, 2)

    assert offsets(read(three)) == list(range(2, 10))
    assert offsets(read(one)) == list(range(10))
    assert offsets(read(two)) == list(range(5, 10))


def test_a_missing_topic_is_named_with_the_cure(world: World) -> None:
    topics = world.config.topics.model_copy(update={"state": "typo"})
    world.config = world.config.model_copy(update={"topics": topics})

    with pytest.raises(ConfigError, match=r"topic '?typo.*`streammaml topics`"):
        world.state_log()
