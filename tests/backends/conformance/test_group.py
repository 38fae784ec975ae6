"""How partitions move between members without a record lost or read twice."""

from __future__ import annotations

import pytest

from streammaml.backends.ports import Partition, Rebalance
from streammaml.errors import BackendError, FencedError
from tests.backends.conformance.worlds import Reader, World, drive, numbered


def both(world: World) -> set[Partition]:
    return {Partition(world.config.topics.events, i) for i in range(2)}


def share(one: Reader, two: Reader) -> None:
    drive(
        one,
        two,
        until=lambda: len(one.assigned) == len(two.assigned) == 1,
        what="one partition each",
    )


def test_two_members_share_the_partitions(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 100))
    with Reader(world, "a") as one, Reader(world, "b") as two:
        share(one, two)
        drive(
            one,
            two,
            until=lambda: (
                {v for r in (one, two) for v in r.values} == set(map(b"%d".__mod__, range(100)))
            ),
            what="all records",
        )

        assert one.assigned | two.assigned == both(world)
        assert not one.assigned & two.assigned


def test_only_the_partition_that_moves_is_revoked(world: World) -> None:
    with Reader(world, "a") as one:
        drive(one, until=lambda: len(one.assigned) == 2, what="both partitions")
        with Reader(world, "b") as two:
            share(one, two)

            assert [len(c.revoked) for c in one.changes if c.revoked] == [1]
            assert two.changes == [Rebalance(assigned=frozenset(two.assigned))]


def test_a_commit_in_the_revocation_counts_and_the_other_goes_on_there(world: World) -> None:
    topic = world.config.topics.events
    world.produce(numbered(topic, 100))
    with Reader(world, "a", commit_on_revoke=True) as one:
        drive(one, until=lambda: len(one.values) == 100, what="100 records")
        with Reader(world, "b") as two:
            share(one, two)
            (moved,) = two.assigned
            committed = world.committed(moved)
            world.produce(numbered(topic, 50, start=100))
            drive(one, two, until=lambda: len(one.values) + len(two.values) >= 150, what="the rest")

            seen = sorted(int(v or b"") for v in one.values + two.values)
            assert seen == list(range(150))
            assert committed == one.records[moved][-1].offset + 1
            assert two.records[moved][0].offset == committed


def test_without_a_commit_the_other_reads_again(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 100))
    with Reader(world, "a") as one:
        drive(one, until=lambda: len(one.values) == 100, what="100 records")
        with Reader(world, "b") as two:
            share(one, two)
            (moved,) = two.assigned
            count = len(one.records[moved])
            drive(one, two, until=lambda: len(two.values) == count, what="the same records")

            assert [r.offset for r in two.records[moved]] == [r.offset for r in one.records[moved]]


def test_the_partition_that_stays_is_not_read_again(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 100))
    with Reader(world, "a") as one:
        drive(one, until=lambda: len(one.values) == 100, what="100 records")
        with Reader(world, "b") as two:
            share(one, two)
            drive(one, two, until=lambda: bool(two.values), what="a record of the other")

            assert len(one.values) == 100


def test_when_a_member_leaves_the_other_gets_its_partition(world: World) -> None:
    with Reader(world, "a") as one:
        two = Reader(world, "b")
        share(one, two)
        two.close()

        drive(one, until=lambda: one.assigned == both(world), what="both partitions")


def test_an_evicted_member_is_told_of_the_loss_and_comes_back(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 20))
    with Reader(world, "a") as one:
        drive(one, until=lambda: len(one.values) == 20, what="20 records")
        world.evict("a")

        drive(one, until=lambda: any(c.lost for c in one.changes), what="the loss")
        drive(one, until=lambda: len(one.values) == 40, what="the records again")

        assert [frozenset(both(world))] == [c.lost for c in one.changes if c.lost]
        assert not any(c.revoked for c in one.changes)


def test_a_second_source_of_the_same_instance_fences_the_first(world: World) -> None:
    topics = world.config.topics
    world.produce(numbered(topics.events, 20))
    one = Reader(world, "a")
    drive(one, until=lambda: len(one.values) == 20, what="20 records")
    two = Reader(world, "a")
    drive(two, until=lambda: len(two.values) == 20, what="20 records for the second")

    with pytest.raises(FencedError):
        one.commit(numbered(topics.predictions, 20))
    two.commit(numbered(topics.predictions, 5, start=100))

    one.close()
    two.close()
    found = sorted(int(r.value or b"") for r in world.visible(topics.predictions))
    assert found == list(range(100, 105))


def test_the_source_alone_is_fenced_too(world: World) -> None:
    """A member token of an older life cannot commit even through the newest sink."""
    world.produce(numbered(world.config.topics.events, 20))
    one = Reader(world, "a", sink=False)
    drive(one, until=lambda: len(one.values) == 20, what="20 records")
    two = Reader(world, "a")
    drive(two, until=lambda: len(two.values) == 20, what="20 records for the second")

    with pytest.raises(FencedError):
        two.sink.commit(one.next, one.source.member())

    one.close()
    two.close()


def test_a_failed_commit_in_the_revocation_is_raised_by_poll(world: World) -> None:
    world.produce(numbered(world.config.topics.events, 20))
    one = Reader(world, "a", commit_on_revoke=True)
    drive(one, until=lambda: len(one.values) == 20, what="20 records")
    usurper = world.sink("a")
    two = Reader(world, "b")

    with pytest.raises(BackendError):
        drive(one, two, until=lambda: False, what="an error")

    one.close()
    drive(two, until=lambda: bool(two.values), what="a record")
    for closing in (two, usurper):
        closing.close()
