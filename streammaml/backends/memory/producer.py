"""What the transactional producers of a memory broker share: the sink's, and the publisher's."""

from __future__ import annotations

from collections.abc import Sequence

from streammaml.backends.memory.broker import MemoryBroker
from streammaml.backends.memory.log import Fate, Transaction
from streammaml.backends.ports import Message, Offsets, Partition
from streammaml.errors import FencedError


class MemoryProducer:
    """The newest of its id fences the older ones, and what they had open is aborted."""

    def __init__(self, broker: MemoryBroker, transactional_id: str, twin: str) -> None:
        """``twin`` says who fenced it, and the cure."""
        self._broker = broker
        self._id = transactional_id
        self._twin = twin
        self._transaction: Transaction | None = None
        broker.enter(transactional_id, self)

    def check(self) -> None:
        """FencedError if superseded."""
        if not self._broker.owns(self._id, self):
            raise FencedError(self._twin)

    def append(self, messages: Sequence[Message]) -> list[tuple[Partition, int]]:
        """Add to the open transaction; the first ones open it."""
        if messages and self._transaction is None:
            self._transaction = Transaction()
        return self._broker.append(messages, self._transaction)

    def commit(self, offsets: Offsets, group: str) -> None:
        transaction, self._transaction = self._transaction or Transaction(), None
        self._broker.settle(transaction, Fate.COMMITTED, offsets, group)

    def drop(self) -> None:
        """Abort what is open, if anything is."""
        with self._broker.changed:
            if self._transaction is not None:
                self._broker.settle(self._transaction, Fate.ABORTED, {}, "")
                self._transaction = None
