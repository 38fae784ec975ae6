"""What a source promises: order, committed offsets, gaps, lag."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streammaml.backends.ports import Message, Partition, Rebalance
from streammaml.errors import ConfigError, GapError
from tests.backends.conformance.worlds import Reader, World, drive, numbered

MakeWorld = Callable[..., World]


def read(world: World, instance: str, count: int) -> Reader:
    """A reader that has seen ``count`` records."""
    reader = Reader(world, instance)
    drive(reader, until=lambda: len(reader.values) >= count, what=f"{count} records")
    return reader


def test_the_records_of_a_partition_come_in_offset_order(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 500))

    with read(world, "a", 500) as reader:
        offsets = {p: [r.offset for r in records] for p, records in reader.records.items()}

    assert len(offsets) == 2
    assert all(found == list(range(len(found))) for found in offsets.values())
    assert sorted(int(v or b"") for v in reader.values) == list(range(500))


def test_records_of_one_key_share_a_partition(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 100))

    with read(world, "a", 100) as reader:
        keys = [{r.key for r in records} for records in reader.records.values()]

    assert not set.intersection(*keys)


def test_a_record_comes_with_its_bytes_headers_and_time(world: World) -> None:
    headers = [("trace", b"\x00\xff"), ("trace", b"again"), ("empty", b"")]
    world.produce([Message(world.config.topics.events, b"\x00key", b"\xffvalue", headers)])

    with read(world, "a", 1) as reader:
        (record,) = next(iter(reader.records.values()))

    assert (record.key, record.value) == (b"\x00key", b"\xffvalue")
    assert list(record.headers) == headers
    assert record.timestamp > 1_600_000_000_000


def test_a_record_may_lack_key_or_value(world: World) -> None:
    topic = world.config.topics.events
    world.produce([Message(topic, None, b"value"), Message(topic, b"key", None)])

    with read(world, "a", 2) as reader:
        found = {(r.key, r.value) for rs in reader.records.values() for r in rs}

    assert found == {(None, b"value"), (b"key", None)}


def test_a_restart_goes_on_at_the_committed_offsets(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 100))
    with read(world, "a", 100) as first:
        first.commit()
    world.produce(numbered(topic, 20, start=100))

    with read(world, "a", 20) as second:
        seen = second.values

    assert sorted(int(v or b"") for v in seen) == list(range(100, 120))


def test_without_a_commit_a_restart_reads_again(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 50))
    read(world, "a", 50).close()

    with read(world, "a", 50) as second:
        assert len(second.values) == 50


def test_the_assignment_is_told_before_the_first_record(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 10))

    with read(world, "a", 10) as reader:  # the reader itself asserts the order
        changes = list(reader.changes)

    both = frozenset(Partition(world.config.topics.events, i) for i in range(2))
    assert changes == [Rebalance(assigned=both)]


def test_close_revokes_what_is_held(world: World) -> None:
    with read(world, "a", 0) as reader:
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")

    both = frozenset(Partition(world.config.topics.events, i) for i in range(2))
    assert reader.changes == [Rebalance(assigned=both), Rebalance(revoked=both)]


def test_a_commit_in_the_revocation_of_close_counts(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 30))
    reader = Reader(world, "a", commit_on_revoke=True)
    drive(reader, until=lambda: len(reader.values) == 30, what="30 records")

    reader.close()

    committed = [world.committed(Partition(world.config.topics.events, i)) or 0 for i in range(2)]
    assert sum(committed) == 30


def test_an_error_in_the_callback_of_close_is_raised_by_close(world: World) -> None:
    def refuse(change: Rebalance) -> None:
        if change.revoked:
            raise ValueError("not now")

    source = world.source("a", refuse)
    while not source.lag():
        source.poll(0.05)

    with pytest.raises(ValueError, match="not now"):
        source.close()


def test_lag_counts_what_is_still_to_read(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 100))
    with read(world, "a", 100) as reader:
        drive(reader, until=lambda: sum(reader.source.lag().values()) == 0, what="no lag")
        world.produce(numbered(topic, 7000))

        reader.poll(5.0)
        seen = len(reader.values) - 100

        assert 0 < seen <= world.config.worker.max_poll_records
        assert set(reader.source.lag()) == {Partition(topic, i) for i in range(2)}
        drive(
            reader,
            until=lambda: sum(reader.source.lag().values()) == 7100 - len(reader.values),
            what="lag of the rest",
        )


def test_the_marker_of_a_transaction_is_no_lag(world: World) -> None:
    producer = world.sink("upstream")
    producer.send(numbered(world.config.topics.events, 10))
    with read(world, "a", 0) as reader:
        producer.commit({}, reader.source.member())

        drive(reader, until=lambda: len(reader.values) == 10, what="10 records")
        drive(reader, until=lambda: sum(reader.source.lag().values()) == 0, what="no lag")
    producer.close()


def test_a_new_group_may_start_at_the_end(make_world: MakeWorld) -> None:
    world = make_world(start="latest")
    topic = world.config.topics.events
    world.produce(numbered(topic, 50))
    with Reader(world, "a") as reader:
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
        world.produce(numbered(topic, 5, start=50))

        drive(reader, until=lambda: len(reader.values) >= 5, what="5 records")

        assert sorted(int(v or b"") for v in reader.values) == list(range(50, 55))


def lose_records(world: World) -> Partition:
    """Commit, then lose 10 records behind the committed offset of partition 0."""
    topic = world.config.topics.events
    world.produce(numbered(topic, 100))
    with read(world, "a", 100) as reader:
        reader.commit()
    world.produce(numbered(topic, 200))
    partition = Partition(topic, 0)
    world.delete_records(partition, (world.committed(partition) or 0) + 10)
    return partition


def test_a_gap_stops_with_the_cure(world: World) -> None:
    lost = lose_records(world)
    reader = Reader(world, "a")

    with pytest.raises(
        GapError, match=rf"{lost.topic}-0.*10 records are lost.*--set kafka.on_gap=accept"
    ):
        drive(reader, until=lambda: False, what="a gap")

    reader.close()
    assert not any(reader.changes)


def test_a_gap_can_be_accepted(make_world: MakeWorld) -> None:
    world = make_world(on_gap="accept")
    lost = lose_records(world)

    with read(world, "a", 190) as reader:
        first = reader.records[lost][0].offset

    assert first == (world.committed(lost) or 0) + 10


def test_a_committed_offset_beyond_the_end_is_a_gap(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 10))
    with read(world, "a", 10) as reader:
        reader.next = {p: 1000 for p in reader.next}
        reader.commit()
    second = Reader(world, "a")

    with pytest.raises(GapError, match="made anew or cut"):
        drive(second, until=lambda: False, what="a gap")

    second.close()


def test_an_unknown_topic_is_named_with_the_cure(world: World) -> None:
    world.config = world.config.model_copy(
        update={"topics": world.config.topics.model_copy(update={"events": "typo"})}
    )

    with pytest.raises(ConfigError, match=r"topic '?typo.*`streammaml topics`"):
        world.source("a", lambda change: None)


def test_an_answering_broker_passes_the_check(world: World) -> None:
    source = world.source("a", lambda change: None)

    source.check()

    source.close()
