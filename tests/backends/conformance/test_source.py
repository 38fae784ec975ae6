"""What a source promises: order, where partitions stand, pauses, lag."""

from __future__ import annotations

import pytest

from streammaml.backends.kafka.source import STALLED_CHECKS
from streammaml.backends.ports import Message, Partition, Rebalance, Source
from streammaml.errors import BackendError, ConfigError
from tests.backends.conformance.worlds import Reader, World, drive, numbered
from tests.kafka_broker import wait_until


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
    assigned: set[Partition] = set()

    def refuse(change: Rebalance) -> None:
        assigned.update(change.assigned)
        if change.revoked:
            raise ValueError("not now")

    def told(source: Source) -> bool:
        source.poll(0.05)
        return bool(assigned)

    source = world.source("a", refuse)
    wait_until(lambda: told(source), 30.0, "an assignment")

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


def test_a_partition_gives_nothing_until_it_is_started(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 100))
    with Reader(world, "a", start=False) as reader:
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
        reader.poll(1.0)
        before, lag = reader.values, dict(reader.source.lag())
        for _ in range(STALLED_CHECKS + 1):
            reader.source.check()

        one, two = sorted(reader.assigned)
        reader.source.start(one, 3)
        drive(reader, until=lambda: one in reader.records, what="records of the one")
        reader.source.start(two, 0)
        drive(reader, until=lambda: len(reader.values) == 97, what="the rest")

        assert before == []
        assert lag == {}
        assert reader.records[one][0].offset == 3
        assert reader.records[two][0].offset == 0
        assert sum(reader.source.lag().values()) == 0


def test_the_standing_says_what_the_broker_has(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 100))
    with read(world, "a", 100) as reader:
        fresh = {p: reader.source.standing(p) for p in reader.assigned}
        one, two = sorted(fresh)
        reader.next.pop(two)
        reader.commit()
    world.delete_records(one, 5)
    with read(world, "a", fresh[two].end) as reader:
        later = {p: reader.source.standing(p) for p in reader.assigned}

    assert sum(standing.end for standing in fresh.values()) == 100
    assert {(s.committed, s.beginning, s.partitions) for s in fresh.values()} == {(None, 0, 2)}
    assert len({s.topic_id for s in [*fresh.values(), *later.values()]}) == 1
    assert fresh[one].topic_id
    assert later == {
        one: fresh[one]._replace(committed=fresh[one].end, beginning=5),
        two: fresh[two],
    }


def test_a_committed_offset_beyond_the_end_stands_as_it_is(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 10))
    with read(world, "a", 10) as reader:
        reader.next = {p: 1000 for p in reader.next}
        reader.commit()
    with Reader(world, "a", start=False) as reader:
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
        standing = [reader.source.standing(p) for p in reader.assigned]

    assert {s.committed for s in standing} == {1000}
    assert sum(s.end for s in standing) == 10


@pytest.mark.parametrize("lost", [True, False], ids=["before the beginning", "after the end"])
def test_a_start_where_nothing_is_fails(world: World, lost: bool) -> None:
    world.produce(numbered(world.config.topics.events, 100))
    partition = Partition(world.config.topics.events, 0)
    world.delete_records(partition, 10)
    reader = Reader(world, "a", start=False)
    drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
    reader.source.start(partition, 9 if lost else 1000)

    with pytest.raises(BackendError):
        drive(reader, until=lambda: False, what="an error")

    reader.close()
    assert reader.values == []


def test_a_topic_made_anew_has_another_id(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 20))
    with read(world, "a", 20) as reader:
        before = reader.source.standing(Partition(topic, 0)).topic_id
        log = world.state_log()
        state = log.topic_id()
        log.close()
    world.make_anew(topic)
    world.make_anew(world.config.topics.state)
    with Reader(world, "b") as reader:
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
        after = reader.source.standing(Partition(topic, 0)).topic_id
        log = world.state_log()

        assert len({before, after, state, log.topic_id(), ""}) == 5

        log.close()


def test_the_partitions_are_counted(world: World) -> None:
    topic = world.config.topics.events
    with read(world, "a", 0) as reader:
        before = reader.source.partitions()
    world.add_partitions(topic, 1)
    with Reader(world, "b") as reader:
        drive(reader, until=lambda: len(reader.assigned) == 3, what="an assignment")

        assert before == 2
        assert reader.source.partitions() == 3
        assert reader.source.standing(Partition(topic, 2)).partitions == 3


def test_the_position_passes_what_is_never_returned(world: World) -> None:
    producer = world.sink("upstream")
    topic = world.config.topics.events
    producer.send([Message(topic, None, b"%d" % i, (), 0) for i in range(5)])
    with Reader(world, "a", start=False) as reader:
        producer.commit({}, reader.source.member())
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
        reader.source.start(Partition(topic, 0), 2)
        first = reader.source.position(Partition(topic, 0))

        drive(
            reader,
            until=lambda: reader.source.position(Partition(topic, 0)) == 6,
            what="the position behind the marker",
        )

        assert first == 2
        assert reader.values == [b"2", b"3", b"4"]
    producer.close()


def test_a_pause_loses_and_repeats_nothing(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 10_000))
    with Reader(world, "a") as reader:
        for count in (1, 3000, 6000, 9000):
            drive(reader, until=lambda c=count: len(reader.values) >= c, what="records")  # type: ignore[misc]
            reader.source.pause()
            before = len(reader.values)
            for _ in range(STALLED_CHECKS + 1):
                reader.poll(0.05)
                reader.source.check()

            assert len(reader.values) == before

            reader.source.resume()
        drive(reader, until=lambda: len(reader.values) == 10_000, what="all records")

        assert all(
            [r.offset for r in records] == list(range(len(records)))
            for records in reader.records.values()
        )


def test_what_is_assigned_in_a_pause_waits_for_its_end(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 20))
    with Reader(world, "a") as reader:
        reader.source.pause()
        drive(reader, until=lambda: len(reader.assigned) == 2, what="an assignment")
        reader.poll(1.0)
        before = reader.values
        reader.source.check()
        lag = sum(reader.source.lag().values())

        reader.source.resume()
        drive(reader, until=lambda: len(reader.values) == 20, what="20 records")

        assert before == []
        assert lag == 20


def test_a_paused_member_still_gives_up_partitions(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 20))
    with Reader(world, "a") as one:
        drive(one, until=lambda: len(one.values) == 20, what="20 records")
        one.source.pause()
        with Reader(world, "b") as two:
            drive(
                one,
                two,
                until=lambda: len(one.assigned) == len(two.assigned) == 1,
                what="one partition each",
            )


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
