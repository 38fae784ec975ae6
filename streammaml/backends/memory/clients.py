"""The source and the sink on a memory broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from streammaml.backends.memory.broker import MemoryBroker, MemoryMember
from streammaml.backends.memory.log import Fate, MemoryRecord, Transaction
from streammaml.backends.ports import (
    Member,
    Message,
    Offsets,
    OnRebalance,
    Partition,
    Rebalance,
    Record,
    first_offset,
)
from streammaml.config import Config
from streammaml.errors import BackendError, FencedError

_TWIN = "another process runs as instance {!r} of this group: give each its own with --instance"


class MemorySource:
    """The twin of KafkaSource; ``on_rebalance`` runs on the polling thread."""

    def __init__(
        self, broker: MemoryBroker, config: Config, instance: str, on_rebalance: OnRebalance
    ) -> None:
        self._broker = broker
        self._config = config
        self._on_rebalance = on_rebalance
        self._next: dict[Partition, int] = {}
        self._fault: BaseException | None = None
        self._member = MemoryMember(config.kafka.group, instance)
        broker.partitions(config.topics.events)
        broker.join(self._member, config.topics.events)

    def poll(self, timeout_s: float) -> Mapping[Partition, Sequence[Record]]:
        if self._fault is not None:
            raise self._fault
        try:
            return self._poll(time.monotonic() + timeout_s)
        except BaseException as error:
            self._fault = error
            raise

    def member(self) -> Member:
        return self._member

    def lag(self) -> Mapping[Partition, int]:
        return {p: self._broker.span(p)[1] - offset for p, offset in self._next.items()}

    def check(self) -> None:
        self._broker.step("check")

    def close(self) -> None:
        """Leave; unlike on Kafka the others may have the partitions at once."""
        held = frozenset(self._next)
        self._next = {}
        try:
            if held and (self._fault is not None or not self._broker.is_current(self._member)):
                self._on_rebalance(Rebalance(lost=held))
            elif held:
                self._on_rebalance(Rebalance(revoked=held))
        finally:
            self._broker.leave(self._member)

    def _poll(self, deadline: float) -> Mapping[Partition, Sequence[Record]]:
        while True:
            self._broker.step("poll")
            self._rebalance()
            with self._broker.changed:
                records = self._fetch()
                left = deadline - time.monotonic()
                if records or left <= 0:
                    return records
                self._broker.changed.wait(left)

    def _rebalance(self) -> None:
        if self._broker.is_fenced(self._member):
            raise FencedError(_TWIN.format(self._member.instance))
        if not self._broker.is_current(self._member):
            lost = frozenset(self._next)
            self._next = {}
            self._member = MemoryMember(self._member.group, self._member.instance)
            self._broker.join(self._member, self._config.topics.events)
            if lost:
                self._on_rebalance(Rebalance(lost=lost))
        if surplus := self._broker.surplus(self._member):
            for partition in surplus:
                del self._next[partition]
            try:
                self._on_rebalance(Rebalance(revoked=surplus))
            finally:
                self._broker.release(self._member, surplus)
        if new := self._broker.claim(self._member):
            self._next.update({p: self._start(p) for p in new})
            self._on_rebalance(Rebalance(assigned=new))

    def _start(self, partition: Partition) -> int:
        committed = self._broker.committed(self._member.group, partition)
        return first_offset(partition, committed, self._broker.span(partition), self._config.kafka)

    def _fetch(self) -> dict[Partition, list[MemoryRecord]]:
        found: dict[Partition, list[MemoryRecord]] = {}
        room = self._config.worker.max_poll_records
        for partition in list(self._next):
            records, after = self._broker.fetch(partition, self._next[partition], room)
            # The one just served goes last, so that a full one cannot starve the others.
            del self._next[partition]
            self._next[partition] = after
            if records:
                found[partition] = records
                room -= len(records)
        return found


class MemorySink:
    """The twin of KafkaSink."""

    def __init__(self, broker: MemoryBroker, config: Config, instance: str) -> None:
        self._broker = broker
        self._instance = instance
        self._id = f"{config.kafka.group}-{instance}"
        self._transaction: Transaction | None = None
        broker.enter(self._id, self)

    def send(self, messages: Sequence[Message]) -> None:
        with self._broker.changed:
            self._check()
            self._broker.step("send")
            if self._transaction is None:
                self._transaction = Transaction()
            self._broker.append(messages, self._transaction)

    def commit(self, offsets: Offsets, member: Member, stop: threading.Event | None = None) -> None:
        assert isinstance(member, MemoryMember), "a memory sink commits for a memory source"
        with self._broker.changed:
            self._check()
            self._broker.step("commit")
            if offsets and self._broker.is_fenced(member):
                raise FencedError(_TWIN.format(member.instance))
            if offsets and not self._broker.is_current(member):
                raise BackendError("this member is no longer in its group: another has its place")
            transaction, self._transaction = self._transaction or Transaction(), None
            self._broker.settle(transaction, Fate.COMMITTED, offsets, member.group)
            self._broker.step("committed")

    def abort(self) -> None:
        with self._broker.changed:
            self._check()
            self._broker.step("abort")
            self.drop()

    def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Abort what is open, if anything is."""
        with self._broker.changed:
            if self._transaction is not None:
                self._broker.settle(self._transaction, Fate.ABORTED, {}, "")
                self._transaction = None

    def _check(self) -> None:
        if not self._broker.owns(self._id, self):
            raise FencedError(_TWIN.format(self._instance))
