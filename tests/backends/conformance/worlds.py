"""The two forms of the ports behind one face, for tests that must hold on both."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import kafka  # type: ignore[import-untyped]  # kafka-python has no types

from streammaml.backends.kafka import (
    KafkaFeed,
    KafkaPlainSink,
    KafkaPublisher,
    KafkaSink,
    KafkaSource,
    KafkaStateLog,
    KafkaTail,
    TopicAdmin,
    client_settings,
)
from streammaml.backends.memory import (
    MemoryBroker,
    MemoryPlainSink,
    MemoryPublisher,
    MemorySink,
    MemorySource,
    MemoryStateLog,
    MemoryTail,
)
from streammaml.backends.ports import (
    Message,
    OnRebalance,
    Partition,
    Publisher,
    Rebalance,
    Record,
    Sink,
    Source,
    StateLog,
    Tail,
)
from streammaml.config import Config
from tests.kafka_broker import wait_until

TIMEOUT_S = 30.0


def unique_config(
    bootstrap: str = "nowhere:1",
    *,
    partitions: int = 2,
    delivery: str = "exactly_once",
    **changes: Any,
) -> Config:
    """A group and topics that no other test has; ``changes`` are settings of ``kafka``."""
    tag = secrets.token_hex(4)
    names = ("events", "predictions", "adaptations", "dead_letters", "episodes")
    topics = {name: f"{name}-{tag}" for name in (*names, "initializations", "state")}
    settings = {"bootstrap_servers": bootstrap, "group": f"group-{tag}", "session_timeout_ms": 3000}
    return Config.build(
        {"kafka": settings, "topics": {**topics, "partitions": partitions}},
        {"kafka": changes, "worker": {"delivery": delivery}},
    )


class World(Protocol):
    config: Config

    def source(self, instance: str, on_rebalance: OnRebalance) -> Source: ...
    def sink(self, instance: str) -> Sink:
        """Of the configured ``worker.delivery``."""
        ...

    def state_log(self) -> StateLog: ...
    def tail(self, topic: str, newest: int | None = None) -> Tail: ...
    def publisher(self) -> Publisher: ...
    def produce(self, messages: Sequence[Message]) -> None: ...
    def visible(self, topic: str) -> list[Record]: ...
    def committed(self, partition: Partition) -> int | None: ...
    def delete_records(self, partition: Partition, before: int) -> None: ...
    def delete_topic(self, topic: str) -> None: ...
    def evict(self, instance: str) -> None: ...
    def add_partitions(self, topic: str, count: int) -> None: ...
    def make_anew(self, topic: str) -> None: ...


class MemoryWorld:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.broker = MemoryBroker.of(config)

    def source(self, instance: str, on_rebalance: OnRebalance) -> Source:
        return MemorySource(self.broker, self.config, instance, on_rebalance)

    def sink(self, instance: str) -> Sink:
        if self.config.worker.delivery == "at_least_once":
            return MemoryPlainSink(self.broker, self.config, instance)
        return MemorySink(self.broker, self.config, instance)

    def state_log(self) -> StateLog:
        return MemoryStateLog(self.broker, self.config)

    def tail(self, topic: str, newest: int | None = None) -> Tail:
        return MemoryTail(self.broker, topic, newest)

    def publisher(self) -> Publisher:
        return MemoryPublisher(self.broker, self.config)

    def produce(self, messages: Sequence[Message]) -> None:
        self.broker.append(messages)

    def visible(self, topic: str) -> list[Record]:
        return list(self.broker.read(topic))

    def committed(self, partition: Partition) -> int | None:
        return self.broker.committed(self.config.kafka.group, partition)

    def delete_records(self, partition: Partition, before: int) -> None:
        self.broker.delete_records(partition, before)

    def delete_topic(self, topic: str) -> None:
        self.broker.delete_topic(topic)

    def evict(self, instance: str) -> None:
        self.broker.evict(self.config.kafka.group, instance)

    def add_partitions(self, topic: str, count: int) -> None:
        self.broker.add_partitions(topic, count)

    def make_anew(self, topic: str) -> None:
        count = self.broker.partitions(topic)
        self.broker.delete_topic(topic)
        self.broker.create_topic(topic, count)


class KafkaWorld:
    def __init__(self, config: Config) -> None:
        self.config = config
        self._settings = client_settings(config.kafka, 10.0)
        with TopicAdmin(config) as admin:
            assert {report.outcome for report in admin.ensure()} == {"created"}

    def source(self, instance: str, on_rebalance: OnRebalance) -> Source:
        return KafkaSource(self.config, instance, on_rebalance)

    def sink(self, instance: str) -> Sink:
        if self.config.worker.delivery == "at_least_once":
            return KafkaPlainSink(self.config, instance)
        return KafkaSink(self.config, instance)

    def state_log(self) -> StateLog:
        return KafkaStateLog(self.config, "a")

    def tail(self, topic: str, newest: int | None = None) -> Tail:
        return KafkaTail(self.config, "a", topic, newest=newest)

    def publisher(self) -> Publisher:
        return KafkaPublisher(self.config)

    def produce(self, messages: Sequence[Message]) -> None:
        feed = KafkaFeed(self.config)
        try:
            feed.send(messages)
            feed.flush()
        finally:
            feed.close()

    def visible(self, topic: str) -> list[Record]:
        """What is there for read_committed now, partition after partition."""
        self._await_markers()
        options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
        consumer = kafka.KafkaConsumer(**self._settings, **options)
        try:
            tps = [
                kafka.TopicPartition(topic, i) for i in sorted(consumer.partitions_for_topic(topic))
            ]
            consumer.assign(tps)
            ends = consumer.end_offsets(tps)
            found: dict[Any, list[Record]] = {tp: [] for tp in tps}
            while any(consumer.position(tp) < ends[tp] for tp in tps):
                for tp, records in consumer.poll(100).items():
                    found[tp] += records
            return [record for tp in tps for record in found[tp]]
        finally:
            consumer.close()

    def committed(self, partition: Partition) -> int | None:
        self._await_markers()
        admin = kafka.KafkaAdminClient(**self._settings)
        try:
            group = self.config.kafka.group
            tp = kafka.TopicPartition(partition.topic, partition.index)
            found = admin.list_group_offsets({group: [tp]})[group].get(tp)
            return None if found is None or found.offset < 0 else found.offset
        finally:
            admin.close()

    def _await_markers(self) -> None:
        """A broker answers a commit before its markers are in the partitions; only they show it."""
        admin = kafka.KafkaAdminClient(**self._settings)

        def are_written() -> bool:
            states = ["PrepareCommit", "PrepareAbort"]
            return not any(admin.list_transactions(state_filters=states).values())

        try:
            wait_until(are_written, TIMEOUT_S, "ended transactions are marked")
        finally:
            admin.close()

    def delete_records(self, partition: Partition, before: int) -> None:
        admin = kafka.KafkaAdminClient(**self._settings)
        admin.delete_records({kafka.TopicPartition(partition.topic, partition.index): before})
        admin.close()

    def evict(self, instance: str) -> None:
        admin = kafka.KafkaAdminClient(**self._settings)
        member = kafka.admin.MemberToRemove(group_instance_id=instance)
        admin.remove_group_members(self.config.kafka.group, [member])
        admin.close()

    def add_partitions(self, topic: str, count: int) -> None:
        admin = kafka.KafkaAdminClient(**self._settings)
        (found,) = admin.describe_topics([topic])
        admin.create_partitions({topic: len(found["partitions"]) + count})
        admin.close()

    def delete_topic(self, topic: str) -> None:
        admin = kafka.KafkaAdminClient(**self._settings)
        admin.delete_topics([topic])
        admin.close()
        with TopicAdmin(self.config) as ours:
            wait_until(lambda: not ours.partitions([topic]), TIMEOUT_S, "the topic is gone")

    def make_anew(self, topic: str) -> None:
        self.delete_topic(topic)
        with TopicAdmin(self.config) as ours:
            ours.ensure()


class Reader:
    """A source and the sink beside it, with a record of all they were told.

    It starts each partition at its committed offset, or at its beginning.
    """

    open: ClassVar[set[Reader]] = set()

    def __init__(
        self,
        world: World,
        instance: str,
        *,
        commit_on_revoke: bool = False,
        sink: bool = True,
        start: bool = True,
    ) -> None:
        self.open.add(self)
        self._start = start
        self.changes: list[Rebalance] = []
        self.records: dict[Partition, list[Record]] = {}
        self.next: dict[Partition, int] = {}
        self._commit_on_revoke = commit_on_revoke
        self._sink = world.sink(instance) if sink else None
        self.source = world.source(instance, self._on_rebalance)

    @property
    def sink(self) -> Sink:
        assert self._sink is not None
        return self._sink

    @property
    def assigned(self) -> set[Partition]:
        held: set[Partition] = set()
        for change in self.changes:
            held = (held | change.assigned) - change.revoked - change.lost
        return held

    @property
    def values(self) -> list[bytes | None]:
        return [r.value for _, records in sorted(self.records.items()) for r in records]

    def poll(self, timeout_s: float = 0.05) -> None:
        for partition, records in self.source.poll(timeout_s).items():
            assert partition in self.assigned
            self.records.setdefault(partition, []).extend(records)
            self.next[partition] = records[-1].offset + 1

    def commit(
        self, messages: Sequence[Message] = (), barrier: Sequence[Message] = ()
    ) -> Mapping[Partition, int]:
        self.sink.send(messages)
        placed = self.sink.commit(self.next, self.source.member(), barrier)
        self.next = {}
        return placed

    def close(self) -> None:
        self.open.discard(self)
        self.source.close()
        if self._sink is not None:
            self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, partition: Partition) -> None:
        standing = self.source.standing(partition)
        found = standing.beginning if standing.committed is None else standing.committed
        self.source.start(partition, found)

    def _on_rebalance(self, change: Rebalance) -> None:
        self.changes.append(change)
        for partition in change.assigned if self._start else ():
            self.start(partition)
        if self._commit_on_revoke and change.revoked:
            self.sink.commit(
                {p: o for p, o in self.next.items() if p in change.revoked}, self.source.member()
            )
        for partition in change.revoked | change.lost:
            self.next.pop(partition, None)


def drive(
    *readers: Reader, until: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S
) -> None:
    """Poll the members in turn until something holds."""
    deadline = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        for reader in readers:
            reader.poll()


def numbered(topic: str, count: int, start: int = 0) -> list[Message]:
    return [Message(topic, b"key-%d" % (i % 10), b"%d" % i) for i in range(start, start + count)]
