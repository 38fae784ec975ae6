"""The broker: logs, groups, and who is current."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streammaml.backends.memory.log import Entry, Fate, Log, MemoryRecord, Transaction
from streammaml.backends.ports import Message, Offsets, Partition
from streammaml.config import Config
from streammaml.errors import ConfigError


@dataclass(eq=False, slots=True)
class MemoryMember:
    """One life of an instance in a group; the next life of the same name supersedes it."""

    group: str
    instance: str
    owned: set[Partition] = field(default_factory=set)


@dataclass(slots=True)
class _Group:
    topic: str
    members: dict[str, MemoryMember] = field(default_factory=dict)
    offsets: dict[Partition, int] = field(default_factory=dict)
    target: dict[str, set[Partition]] = field(default_factory=dict)

    def balance(self, partitions: int) -> None:
        """Give each member its even share, keeping what it has (cooperative-sticky)."""
        names = sorted(self.members, key=lambda n: (-len(self.members[n].owned), n))
        free = {Partition(self.topic, i) for i in range(partitions)}
        share, extra = divmod(partitions, len(names)) if names else (0, 0)
        self.target = {}
        for i, name in enumerate(names):
            quota = share + (i < extra)
            self.target[name] = set(sorted(self.members[name].owned & free)[:quota])
            free -= self.target[name]
        rest = sorted(free)
        for i, name in enumerate(names):
            missing = share + (i < extra) - len(self.target[name])
            self.target[name] |= set(rest[:missing])
            rest = rest[missing:]


class Producer(Protocol):
    """Whom the next producer of its transactional id supersedes."""

    def drop(self) -> None:
        """Abort what is open, if anything is."""
        ...


class MemoryBroker:
    """All state of the twin. ``step`` is called before and after what is durable on a broker.

    Its names: ``poll``, ``check``, ``send``, ``commit`` (before), ``committed`` (after),
    ``abort``. A test raises from it to fail there.
    """

    def __init__(
        self,
        topics: Mapping[str, int] | None = None,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.step: Callable[[str], None] = lambda name: None
        self._now_ms = now_ms
        self._logs: dict[Partition, Log] = {}
        self._partitions: dict[str, int] = {}
        self._groups: dict[str, _Group] = {}
        self._producers: dict[str, Producer] = {}
        self._unkeyed = 0
        for name, partitions in (topics or {}).items():
            self.create_topic(name, partitions)

    @classmethod
    def of(cls, config: Config) -> MemoryBroker:
        """A broker with the topics that ``streammaml topics`` would create."""
        t = config.topics
        keyed = (t.events, t.predictions, t.adaptations, t.dead_letters, t.episodes, t.state)
        return cls({**dict.fromkeys(keyed, t.partitions), t.initializations: 1})

    def create_topic(self, name: str, partitions: int = 1) -> None:
        with self.changed:
            self._partitions[name] = partitions
            for i in range(partitions):
                self._logs[Partition(name, i)] = Log()

    def partitions(self, topic: str) -> int:
        if topic not in self._partitions:
            raise ConfigError(f"topic {topic!r} does not exist: create it with `streammaml topics`")
        return self._partitions[topic]

    def append(
        self, messages: Sequence[Message], transaction: Transaction | None = None
    ) -> list[tuple[Partition, int]]:
        """Write messages (visible at once without a transaction); return where each went."""
        with self.changed:
            places = [self._append(message, transaction) for message in messages]
            self.changed.notify_all()
            return places

    def read(self, topic: str) -> list[MemoryRecord]:
        """Every visible record of a topic, partition after partition."""
        with self.changed:
            found: list[MemoryRecord] = []
            for i in range(self.partitions(topic)):
                log = self._logs[Partition(topic, i)]
                found += log.read(log.beginning, log.end)[0]
            return found

    def span(self, partition: Partition) -> tuple[int, int]:
        """Its first offset still held, and its stable end."""
        with self.changed:
            log = self._logs[partition]
            return log.beginning, log.stable_end

    def delete_records(self, partition: Partition, before: int) -> None:
        with self.changed:
            log = self._logs[partition]
            del log.entries[: before - log.beginning]
            log.beginning = before

    def committed(self, group: str, partition: Partition) -> int | None:
        with self.changed:
            found = self._groups.get(group)
            return found.offsets.get(partition) if found else None

    def evict(self, group: str, instance: str) -> None:
        """What a missed ``max_poll_interval_ms`` does: its partitions go to the others."""
        with self.changed:
            self._groups[group].members.pop(instance, None)
            self._rebalance(self._groups[group])

    def join(self, member: MemoryMember, topic: str) -> None:
        """Enter the group; an older life of the same instance is fenced, its place kept."""
        with self.changed:
            group = self._groups.setdefault(member.group, _Group(topic))
            group.members[member.instance] = member
            self._rebalance(group)

    def leave(self, member: MemoryMember) -> None:
        with self.changed:
            group = self._groups[member.group]
            if group.members.get(member.instance) is member:
                del group.members[member.instance]
                self._rebalance(group)
            member.owned.clear()

    def is_current(self, member: MemoryMember) -> bool:
        """False if it was evicted or a newer life has its name."""
        with self.changed:
            return self._groups[member.group].members.get(member.instance) is member

    def is_fenced(self, member: MemoryMember) -> bool:
        """True if a newer life has its name."""
        with self.changed:
            return self._groups[member.group].members.get(member.instance, member) is not member

    def surplus(self, member: MemoryMember) -> frozenset[Partition]:
        """What the member has to give up."""
        with self.changed:
            return frozenset(member.owned - self._groups[member.group].target[member.instance])

    def release(self, member: MemoryMember, partitions: frozenset[Partition]) -> None:
        with self.changed:
            member.owned -= partitions
            self.changed.notify_all()

    def claim(self, member: MemoryMember) -> frozenset[Partition]:
        """Take what is meant for the member and no one holds any more."""
        with self.changed:
            group = self._groups[member.group]
            held = {p for other in group.members.values() for p in other.owned}
            new = frozenset(group.target[member.instance] - held)
            member.owned |= new
            return new

    def fetch(self, partition: Partition, start: int, limit: int) -> tuple[list[MemoryRecord], int]:
        with self.changed:
            return self._logs[partition].read(start, limit)

    def enter(self, name: str, producer: Producer) -> None:
        """Register a transactional producer: the older one of the same id is fenced."""
        with self.changed:
            older = self._producers.get(name)
            self._producers[name] = producer
            if older is not None:
                older.drop()

    def owns(self, name: str, producer: Producer) -> bool:
        with self.changed:
            return self._producers.get(name) is producer

    def settle(self, transaction: Transaction, fate: Fate, offsets: Offsets, group: str) -> None:
        """End a transaction: messages and offsets take effect in one step."""
        with self.changed:
            transaction.fate = fate
            for partition in transaction.touched:
                del self._logs[partition].open[transaction]
                self._logs[partition].entries.append(Entry(None, None))
            if fate is Fate.COMMITTED and offsets:
                self._groups[group].offsets.update(offsets)
            self.changed.notify_all()

    def _append(self, message: Message, transaction: Transaction | None) -> tuple[Partition, int]:
        count = self.partitions(message.topic)
        self._unkeyed += message.key is None
        spread = self._unkeyed if message.key is None else zlib.crc32(message.key)
        partition = Partition(message.topic, spread % count)
        log = self._logs[partition]
        record = MemoryRecord(
            message.topic,
            partition.index,
            log.end,
            self._now_ms(),
            message.key,
            message.value,
            list(message.headers),
        )
        log.entries.append(Entry(record, transaction))
        if transaction is not None:
            transaction.touched.add(partition)
            log.open.setdefault(transaction, record.offset)
        return partition, record.offset

    def _rebalance(self, group: _Group) -> None:
        group.balance(self.partitions(group.topic))
        self.changed.notify_all()
