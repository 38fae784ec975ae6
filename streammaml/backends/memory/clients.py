"""The source and the sinks on a memory broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from streammaml.backends.memory.broker import MemoryBroker, MemoryMember
from streammaml.backends.memory.log import MemoryRecord
from streammaml.backends.memory.producer import MemoryProducer
from streammaml.backends.ports import (
    Member,
    Message,
    Offsets,
    OnRebalance,
    Partition,
    Rebalance,
    Record,
    Standing,
)
from streammaml.config import Config
from streammaml.errors import BackendError, FencedError, UnreadableError

_TWIN = "another process runs as instance {!r} of this group: give each its own with --instance"


class MemorySource:
    """The twin of KafkaSource; ``on_rebalance`` runs on the polling thread."""

    def __init__(
        self, broker: MemoryBroker, config: Config, instance: str, on_rebalance: OnRebalance
    ) -> None:
        self._broker = broker
        self._config = config
        self._topic = config.topics.events
        self._on_rebalance = on_rebalance
        self._standing: dict[Partition, Standing] = {}
        self._next: dict[Partition, int] = {}  # of those that were started
        self._returned: dict[Partition, int] = {}  # after the last record, before any marker
        self._paused = False
        self._fault: BaseException | None = None
        self._member = MemoryMember(config.kafka.group, instance)
        broker.partitions(self._topic)
        self._topic_id = broker.topic_id(self._topic)
        broker.join(self._member, self._topic)

    def poll(self, timeout_s: float) -> Mapping[Partition, Sequence[Record]]:
        if self._fault is not None:
            raise self._fault
        try:
            return self._poll(time.monotonic() + timeout_s)
        except BaseException as error:
            self._fault = error
            raise

    def standing(self, partition: Partition) -> Standing:
        return self._standing[partition]

    def start(self, partition: Partition, offset: int) -> None:
        assert partition in self._standing, f"{partition} is not assigned"
        self._next[partition] = self._returned[partition] = offset

    def position(self, partition: Partition) -> int:
        return self._next[partition]

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def partitions(self) -> int:
        return self._broker.partitions(self._topic)

    def rejoin(self) -> None:
        """The broker shares out what there is at each poll."""

    def next_readable(self, partition: Partition, offset: int) -> int:
        while True:
            records, after = self._broker.fetch(partition, offset, 1)
            bad = self._broker.unreadable(partition, after)
            if records or bad is None:
                return offset if records else after
            offset = min(bad.stop, self._broker.span(partition)[1])

    def member(self) -> Member:
        return self._member

    def lag(self) -> Mapping[Partition, int]:
        """Of each partition that was started."""
        return {p: max(0, self._broker.span(p)[1] - at) for p, at in self._next.items()}

    def check(self) -> None:
        self._broker.step("check")

    def close(self) -> None:
        """Leave; unlike on Kafka the others may have the partitions at once."""
        held = self._forget(frozenset(self._standing))
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
            if self._broker.topic_id(self._topic) != self._topic_id:
                raise BackendError(f"topic {self._topic!r} was deleted or made anew")
            self._rebalance()
            with self._broker.changed:
                records = {} if self._paused else self._fetch()
                left = deadline - time.monotonic()
                if records or left <= 0:
                    return records
                self._broker.changed.wait(left)

    def _rebalance(self) -> None:
        if self._broker.is_fenced(self._member):
            raise FencedError(_TWIN.format(self._member.instance))
        if not self._broker.is_current(self._member):
            lost = self._forget(frozenset(self._standing))
            self._member = MemoryMember(self._member.group, self._member.instance)
            self._broker.join(self._member, self._topic)
            if lost:
                self._on_rebalance(Rebalance(lost=lost))
        if surplus := self._broker.surplus(self._member):
            self._forget(surplus)
            try:
                self._on_rebalance(Rebalance(revoked=surplus))
            finally:
                self._broker.release(self._member, surplus)
        if new := self._broker.claim(self._member):
            self._standing.update({p: self._look(p) for p in new})
            self._on_rebalance(Rebalance(assigned=new))

    def _look(self, partition: Partition) -> Standing:
        return Standing(
            self._broker.committed(self._member.group, partition),
            *self._broker.span(partition),
            self._topic_id,
            self._broker.partitions(self._topic),
        )

    def _forget(self, gone: frozenset[Partition]) -> frozenset[Partition]:
        for partition in gone:
            del self._standing[partition]
            self._next.pop(partition, None)
            self._returned.pop(partition, None)
        return gone

    def _fetch(self) -> dict[Partition, list[MemoryRecord]]:
        found: dict[Partition, list[MemoryRecord]] = {}
        room = self._config.worker.max_poll_records
        for partition, at in list(self._next.items()):
            if room == 0:
                break
            beginning, end = self._broker.span(partition)
            if not beginning <= at <= end:
                raise BackendError(f"{partition} holds {beginning} to {end}, not {at}")
            records, after = self._broker.fetch(partition, at, room)
            if not records and self._broker.unreadable(partition, after):
                if found:
                    break  # it is the first one of the next poll
                place = (partition.topic, partition.index, self._returned[partition])
                raise UnreadableError(f"damaged at {after}", *place)
            # The one just served goes last, so that a full one cannot starve the others.
            del self._next[partition]
            self._next[partition] = after
            if records:
                self._returned[partition] = records[-1].offset + 1
                found[partition] = records
                room -= len(records)
        return found


class MemorySink:
    """The twin of KafkaSink."""

    def __init__(self, broker: MemoryBroker, config: Config, instance: str) -> None:
        self._broker = broker
        self._placed: dict[Partition, int] = {}
        name = f"{config.kafka.group}-{instance}"
        self._producer = MemoryProducer(broker, name, _TWIN.format(instance))

    def send(self, messages: Sequence[Message]) -> None:
        with self._broker.changed:
            self._producer.check()
            self._broker.step("send")
            self._append(messages)

    def commit(
        self,
        offsets: Offsets,
        member: Member,
        barrier: Sequence[Message] = (),
        stop: threading.Event | None = None,
    ) -> Mapping[Partition, int]:
        with self._broker.changed:
            self._producer.check()
            self._broker.step("commit")
            if offsets:
                _must_be_current(self._broker, member)
            self._append(barrier)
            self._broker.step("barrier")
            placed, self._placed = self._placed, {}
            self._producer.commit(offsets, member.group if isinstance(member, MemoryMember) else "")
            self._broker.step("committed")
            return placed

    def abort(self) -> None:
        with self._broker.changed:
            self._producer.check()
            self._broker.step("abort")
            self.drop()

    def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Abort what is open, if anything is."""
        self._placed = {}
        self._producer.drop()

    def _append(self, messages: Sequence[Message]) -> None:
        self._placed.update(_named(messages, self._producer.append(messages)))


class MemoryPlainSink:
    """The twin of KafkaPlainSink: what is sent is there, and stays."""

    def __init__(self, broker: MemoryBroker, config: Config, instance: str) -> None:
        self._broker = broker
        self._placed: dict[Partition, int] = {}

    def send(self, messages: Sequence[Message]) -> None:
        with self._broker.changed:
            self._broker.step("send")
            self._append(messages)

    def commit(
        self,
        offsets: Offsets,
        member: Member,
        barrier: Sequence[Message] = (),
        stop: threading.Event | None = None,
    ) -> Mapping[Partition, int]:
        with self._broker.changed:
            self._broker.step("commit")
            if offsets or barrier:
                _must_be_current(self._broker, member)
            for message in barrier:  # without a transaction it may be cut anywhere
                self._append([message])
                self._broker.step("barrier")
            if offsets:
                self._broker.commit(_must_be_current(self._broker, member).group, offsets)
            self._broker.step("committed")
            placed, self._placed = self._placed, {}
            return placed

    def abort(self) -> None:
        with self._broker.changed:
            self._broker.step("abort")
            self._placed = {}

    def close(self) -> None: ...

    def _append(self, messages: Sequence[Message]) -> None:
        self._placed.update(_named(messages, self._broker.append(messages)))


def _named(
    messages: Sequence[Message], places: Sequence[tuple[Partition, int]]
) -> dict[Partition, int]:
    """The offset after the last message of each partition that was named."""
    pairs = zip(messages, places, strict=True)
    return {place: offset + 1 for m, (place, offset) in pairs if m.partition is not None}


def _must_be_current(broker: MemoryBroker, member: Member) -> MemoryMember:
    assert isinstance(member, MemoryMember), "a memory sink commits for a memory source"
    if broker.is_fenced(member):
        raise FencedError(_TWIN.format(member.instance))
    if not broker.is_current(member):
        raise BackendError("this member is no longer in its group: another has its place")
    return member
