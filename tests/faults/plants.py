"""Errors planted into the worker, each of which the ledger must find.

They replace methods of our own code: not to test with, but to test the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import streammaml.recovery
import streammaml.tenure
from streammaml.backends.memory import MemorySink
from streammaml.backends.ports import Message
from streammaml.learner.memory import Memory
from streammaml.learner.snapshot import WEIGHTS
from streammaml.recovery import Plan
from streammaml.tenure import Tenure
from tests.faults.simulation import SteppedStore, replaced

Plant = Callable[[], AbstractContextManager[None]]


def store_before_kafka() -> AbstractContextManager[None]:
    """The barrier goes to the local store before its transaction commits."""
    original = Tenure.barrier

    def barrier(self: Tenure) -> list[Message]:
        messages = original(self)
        store = self._store
        assert store is not None
        store.barrier(list(self._changes.items()), store.position)
        return messages

    return replaced(Tenure, "barrier", barrier)


def late_replay() -> AbstractContextManager[None]:
    """The replay begins one event after the barrier."""
    original = streammaml.recovery.plan

    def plan(*arguments: Any) -> Plan:
        start, live_from = original(*arguments)
        return Plan(min(start + 1, live_from), live_from)

    return replaced(streammaml.tenure, "plan", plan)


def offsets_moved_back() -> AbstractContextManager[None]:
    """A commit during the replay moves the group's offset to where the replay stands."""
    return replaced(Tenure, "commit_offset", property(lambda self: self._next))


def weights_not_spilled() -> AbstractContextManager[None]:
    """Fast weights of a context that leaves memory are lost."""
    original = SteppedStore.spill

    def spill(self: SteppedStore, items: Iterable[tuple[bytes, bytes | None]]) -> None:
        original(self, [item for item in items if not item[0].startswith(WEIGHTS)])

    return replaced(SteppedStore, "spill", spill)


def spilled_not_in_barrier() -> AbstractContextManager[None]:
    """What was spilled goes to the local store at a barrier, but not to Kafka."""
    original = Tenure.barrier

    def barrier(self: Tenure) -> list[Message]:
        messages = original(self)
        assert self._store is not None
        spilled = {key for key, _ in self._store.spilled()} - self._changes.keys()
        return [message for message in messages if message.key not in spilled]

    return replaced(Tenure, "barrier", barrier)


def barrier_without_transaction() -> AbstractContextManager[None]:
    """The barrier is visible before the offsets are."""
    original = MemorySink._append

    def append(self: MemorySink, messages: Sequence[Message]) -> None:
        state = [m for m in messages if m.topic == "state"]
        original(self, [m for m in messages if m.topic != "state"])
        if state:
            for place, offset in self._broker.append(state):
                self._placed[place] = offset + 1

    return replaced(MemorySink, "_append", append)


def tombstones_forgotten() -> AbstractContextManager[None]:
    """Weights that came back from the store are not deleted there when they are θ again."""
    original = Memory._restore

    def restore(self: Memory, *arguments: Any) -> None:
        original(self, *arguments)
        self._stored[arguments[0]] = False

    return replaced(Memory, "_restore", restore)


PLANTS: dict[str, Plant] = {
    "store-before-kafka": store_before_kafka,
    "late-replay": late_replay,
    "offsets-moved-back": offsets_moved_back,
    "weights-not-spilled": weights_not_spilled,
    "spilled-not-in-barrier": spilled_not_in_barrier,
    "barrier-without-transaction": barrier_without_transaction,
    "tombstones-forgotten": tombstones_forgotten,
}
