"""Where a partition goes on: each combination of barrier, committed offset and what is held."""

from __future__ import annotations

from typing import Any

import pytest

from streammaml.backends.ports import Partition, Standing
from streammaml.config import Config
from streammaml.errors import DamagedError, GapError, IncompatibleError
from streammaml.recovery import (
    BARRIER_KEY,
    Barrier,
    Plan,
    check_owner,
    check_partitions,
    plan,
    read_barrier,
    write_barrier,
)
from tests import wire

PARTITION = Partition("events", 1)


def standing(committed: int | None, beginning: int = 0, end: int = 1000, **other: Any) -> Standing:
    return Standing(committed, beginning, end, **{"topic_id": "t", "partitions": 2, **other})


def barrier(offset: int, settings: Config | None = None) -> Barrier:
    settings = settings or wire.config()
    return read_barrier(write_barrier(settings, offset, 3, standing(None)))


def plan_of(at: Standing, before: Barrier | None, **kafka: Any) -> Plan:
    return plan(PARTITION, at, before, wire.config(kafka={"instance": "one", **kafka}))


def test_nothing_known_begins_as_configured() -> None:
    assert plan_of(standing(None, 20), None) == (20, 20)
    assert plan_of(standing(None, 20), None, start="latest") == (1000, 1000)


def test_without_state_it_goes_on_at_the_committed_offset() -> None:
    assert plan_of(standing(70), None) == (70, 70)


def test_what_lies_between_barrier_and_committed_offset_is_replayed() -> None:
    assert plan_of(standing(70), barrier(50)) == (50, 70)
    assert plan_of(standing(50), barrier(50)) == (50, 50)


def test_an_expired_offset_is_the_barriers() -> None:
    assert plan_of(standing(None), barrier(50)) == (50, 50)


@pytest.mark.parametrize(("at", "before"), [(70, 50), (70, None), (None, 50)])
def test_a_gap_stops_with_its_cure_or_is_accepted(at: int | None, before: int | None) -> None:
    known = None if before is None else barrier(before)

    with pytest.raises(GapError, match=r"lost.*To go on at 80: --set kafka.on_gap=accept"):
        plan_of(standing(at, 80), known)

    assert plan_of(standing(at, 80), known, on_gap="accept") == (80, 80)


def test_a_topic_that_ends_below_the_barrier_is_a_gap() -> None:
    with pytest.raises(GapError, match="ends at 40"):
        plan_of(standing(50, 0, 40), barrier(50))


def test_an_offset_set_back_stops_or_goes_on_at_the_barrier() -> None:
    with pytest.raises(GapError, match="set back"):
        plan_of(standing(30), barrier(50))

    assert plan_of(standing(30), barrier(50), on_gap="accept") == (50, 50)


def test_at_least_once_may_have_state_ahead_of_the_offset() -> None:
    settings = wire.config(worker={"delivery": "at_least_once"})

    assert plan(PARTITION, standing(30), barrier(50), settings) == (50, 50)


def test_a_topic_made_anew_stops_or_begins_at_its_beginning() -> None:
    with pytest.raises(GapError, match="deleted and made again"):
        plan_of(standing(None, topic_id="u"), barrier(50))

    assert plan_of(standing(None, 5, topic_id="u"), barrier(50), on_gap="accept") == (5, 5)


def test_another_number_of_partitions_stops_or_is_accepted() -> None:
    with pytest.raises(GapError, match="3 partitions now and had 2"):
        plan_of(standing(70, partitions=3), barrier(50))

    found = plan_of(standing(70, partitions=3), barrier(50), on_partition_change="accept")
    assert found == (50, 70)
    check_partitions("events-1", 2, 2, wire.config())


def test_the_state_of_another_model_is_refused_by_name() -> None:
    check_owner(wire.config(), barrier(50))

    with pytest.raises(IncompatibleError, match=r"hidden|network|sizes"):
        check_owner(wire.config(learner={"hidden": [16]}), barrier(50))


def test_the_state_of_another_group_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="belongs to group 'streammaml'"):
        check_owner(wire.config(kafka={"group": "other"}), barrier(50))


def test_a_damaged_barrier_is_found() -> None:
    value = bytearray(write_barrier(wire.config(), 50, 3, standing(None)))
    value[30] ^= 1

    with pytest.raises(DamagedError):
        read_barrier(bytes(value))
    assert BARRIER_KEY == b"@partition"
