"""When a worker decides on what is published, and what it serves after that."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest

from streammaml.backends.memory import MemoryRecord
from streammaml.backends.ports import Message
from streammaml.backends.wire_initializations import (
    initialization_messages,
    read_published,
    rollback_message,
)
from streammaml.errors import BackendError
from streammaml.events import Floats
from streammaml.following import Follower
from streammaml.initialization import Initialization
from streammaml.learner import Learner
from streammaml.reporting import LoadResult, Reporter
from tests import wire

CONFIG = wire.config()
START = wire.initialization(CONFIG)


def version(number: int, factor: float = 1.0) -> Initialization:
    tensors = {name: (tensor * factor).astype(np.float32) for name, tensor in START.tensors.items()}
    return replace(START, tensors=tensors, version=number)


@dataclass(eq=False)
class Seen:
    """A learner that knows what each version would have lost on its contexts."""

    initialization: Initialization
    contexts: int = 10
    events: int = 5_000
    losses: dict[int, float] = field(default_factory=dict)
    """Of versions; .5 of any other."""

    def same_initialization(self, other: Initialization) -> bool:
        return other.version == self.initialization.version

    def check_version(self, other: Initialization) -> None:
        pass

    def losses_of_segments(self, candidate: Initialization, limit: int, labels: int) -> Floats:
        of = [self.losses.get(one.version, 0.5) for one in (self.initialization, candidate)]
        return np.repeat(np.array(of)[:, None], self.contexts, axis=1)


class Tail:
    caught_up = True

    def __init__(self) -> None:
        self.published: list[Message] = []
        self.fails = False

    def poll(self, timeout_s: float) -> list[MemoryRecord]:
        if self.fails:
            raise BackendError("away")
        found, self.published = self.published, []
        return [MemoryRecord("", 0, 0, 0, m.key, m.value, list(m.headers)) for m in found]

    def close(self) -> None:
        pass


class Rig:
    """A follower, its topic, and what it told."""

    def __init__(self) -> None:
        self.told: list[tuple[LoadResult, int]] = []
        self.tail = Tail()
        self.follower = Follower(CONFIG, START, cast(Reporter, self))
        self.open()

    def open(self) -> None:
        self.follower.open(lambda: cast(Any, self.tail), threading.Event(), lambda: None)

    def initialization(self, result: LoadResult, served: int) -> None:
        self.told.append((result, served))

    def publish(self, number: int, factor: float = 1.0) -> None:
        self.tail.published += initialization_messages(version(number, factor), {})

    def roll_back(self, number: int) -> None:
        (message, _) = initialization_messages(version(number), {})
        record = MemoryRecord("", 0, 0, 0, message.key, message.value, list(message.headers))
        self.tail.published.append(rollback_message(read_published(record)))

    def look(self, learners: Sequence[Seen], now: float, late: bool = False) -> int:
        """The version that is served then."""
        self.follower.look(cast(Sequence[Learner], learners), now, late)
        return self.follower.served.version

    def is_late(self, learner: Seen) -> bool:
        return self.follower.is_late(cast(Learner, learner))


@pytest.fixture(name="rig")
def make_rig() -> Rig:
    return Rig()


# --- when it decides -----------------------------------------------------------------------------


def test_with_few_windows_it_judges_once_when_the_wait_is_over(rig: Rig) -> None:
    learner = Seen(START, contexts=4)
    assert rig.look([learner], 0.0) == 0
    rig.publish(1)
    for now in range(1, 60):
        learner.losses[1] = 5.0 if now % 2 else 0.5
        assert rig.look([learner], float(now)) == 0
    assert rig.told == []
    learner.losses[1] = 0.5

    assert rig.look([learner], 61.0) == 1
    assert rig.told == [("loaded", 1)]


@pytest.mark.parametrize(("contexts", "now"), [(4, 61.0), (8, 2.0)])
def test_what_is_worse_when_it_judges_is_refused_and_never_served(
    rig: Rig, contexts: int, now: float
) -> None:
    learner = Seen(START, contexts=4, losses={1: 5.0})
    rig.look([learner], 0.0)
    rig.publish(1)
    assert rig.look([learner], 1.0) == 0
    assert rig.told == []
    learner.contexts = contexts

    assert rig.look([learner], now) == 0
    assert rig.told == [("worse", 0)]
    rig.publish(1)
    assert rig.look([learner], now + 100) == 0
    assert rig.told == [("worse", 0)]


@pytest.mark.parametrize("contexts", [0, 4])
def test_what_has_grown_hundredfold_is_refused_without_a_wait(rig: Rig, contexts: int) -> None:
    learner = Seen(START, contexts=contexts)
    rig.look([learner], 0.0)
    rig.publish(1, factor=100.0)

    assert rig.look([learner], 1.0) == 0
    assert rig.told == [("worse", 0)]


def test_a_partition_that_leaves_takes_no_events_off_the_wait(rig: Rig) -> None:
    stays, leaves = Seen(START, 0, 500_000), Seen(START, 0, 500_000)
    rig.look([stays, leaves], 0.0)
    rig.publish(1)
    rig.look([stays, leaves], 1.0)
    stays.events += 600
    leaves.events += 300
    assert rig.look([stays, leaves], 70.0) == 0
    stays.events += 50
    assert rig.look([stays], 71.0) == 0
    stays.events += 50

    assert rig.look([stays], 72.0) == 1


def test_what_a_partition_played_elsewhere_is_nothing_that_was_waited_for(rig: Rig) -> None:
    stays, comes = Seen(START, 0), Seen(START, 0, 500_000)
    rig.look([stays], 0.0)
    rig.publish(1)
    rig.look([stays], 1.0)
    for now in (100.0, 101.0, 102.0):
        assert rig.look([stays, comes], now) == 0
    comes.events += 1_000

    assert rig.look([stays, comes], 103.0) == 1


def test_events_count_from_the_last_context_that_could_be_asked(rig: Rig) -> None:
    learner = Seen(START, contexts=1)
    rig.look([learner], 0.0)
    rig.publish(1)
    rig.look([learner], 1.0)
    learner.events += 2_000
    rig.look([learner], 50.0)
    learner.contexts = 0
    learner.events += 10

    assert rig.look([learner], 70.0) == 0


# --- what stays where something is refused -------------------------------------------------------


def rolled_back(rig: Rig, *learners: Seen) -> None:
    """To version 1, from 2; no learner has taken it yet."""
    rig.publish(2)
    assert rig.look(learners, 0.0) == 2
    for learner in learners:
        learner.initialization = version(2)
    rig.roll_back(1)
    assert rig.look(learners, 1.0) == 1


def test_a_rollback_outlives_the_refusal_of_what_comes_after_it(rig: Rig) -> None:
    swapped, late = (Seen(START, losses={3: 5.0}) for _ in range(2))
    rolled_back(rig, swapped, late)
    swapped.initialization = version(1)
    rig.publish(3)

    assert rig.look([swapped, late], 2.0, late=True) == 1
    assert rig.is_late(late)
    assert rig.told == [("loaded", 2), ("loaded", 1)]  # nothing is tried before all have it
    late.initialization = version(1)
    assert rig.look([swapped, late], 3.0) == 1
    assert rig.told[2:] == [("worse", 1)]
    assert rig.follower.settled


def test_a_rollback_waits_for_nobody(rig: Rig) -> None:
    swapped, late = Seen(START, contexts=0), Seen(START)
    rolled_back(rig, swapped, late)
    rig.roll_back(0)

    assert rig.look([swapped, late], 2.0, late=True) == 0


def test_what_comes_while_a_version_waits_takes_what_is_served_unless_it_has_that_version(
    rig: Rig,
) -> None:
    here = Seen(START, losses={3: 5.0})
    rolled_back(rig, here)
    here.initialization, here.contexts = version(1), 4
    rig.publish(3)
    assert rig.look([here], 2.0) == 1
    old, new = Seen(version(2), contexts=0), Seen(version(3), contexts=0)

    assert not rig.follower.settled
    assert rig.follower.first.version == 1
    assert rig.is_late(old)
    assert not rig.is_late(new)
    assert rig.look([here, old, new], 70.0) == 1
    assert rig.told[2:] == [("worse", 1)]
    assert rig.is_late(new)


def test_one_without_a_live_event_is_asked_only_where_no_other_is(rig: Rig) -> None:
    """It takes what is served with its first event, so it is not late; it may be of any age."""
    lives, idle = Seen(START, losses={3: 5.0}), Seen(START, contexts=60, losses={3: 5.0})
    rolled_back(rig, lives, idle)
    lives.initialization, idle.losses[2] = version(1), 9.0
    rig.publish(3)

    assert rig.look([lives, idle], 2.0) == 1
    assert rig.told[2:] == [("worse", 1)]
    rig.publish(4, factor=100.0)
    assert rig.look([idle], 3.0) == 1
    assert rig.told[3:] == [("worse", 1)]


def test_of_what_a_worker_starts_with_the_newest_stays_and_a_rollback_is_news(rig: Rig) -> None:
    """It has decided on nothing yet; neither has one that had no partition for long."""
    here = Seen(START)
    rolled_back(rig, here)
    for number, now in ((8, 50.0), (9, 55.0)):
        rig.publish(number)
        rig.look([], now)
    rig.look([], 70.0)
    found = [Seen(version(n), losses={9: 5.0}) for n in (7, 8)]

    assert not any(rig.is_late(learner) for learner in found)
    assert rig.look(found, 81.0) == 8
    assert rig.told[2:] == [("worse", 8)]
    rig.roll_back(1)
    assert rig.look(found, 82.0) == 1


def test_a_topic_that_cannot_be_read_again_puts_nothing_back(rig: Rig) -> None:
    here, late = Seen(START), Seen(START)
    rolled_back(rig, here, late)
    here.initialization = version(1)
    rig.follower.close()
    rig.tail.fails = True
    rig.open()

    assert rig.look([here, late], 2.0) == 1
    assert rig.is_late(late)
