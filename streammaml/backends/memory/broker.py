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
from streammaml.errors import BackendError, ConfigError


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

    Its names: ``poll``, ``check``, ``send``, ``commit`` (before), ``barrier`` (the barrier is
    sent, the offsets are not), ``committed`` (after), ``abort``, ``read_state``, ``poll_tail``,
    ``publish`` (all is sent, nothing visible) and ``published``. A test raises from it to fail
    there.
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
        self._topic_ids: dict[str, str] = {}
        self._created = 0
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
        """A topic made anew has another id."""
        with self.changed:
            self._created += 1
            self._topic_ids[name] = f"topic-{self._created}"
            self._partitions[name] = 0
            self.add_partitions(name, partitions)

    def delete_topic(self, name: str) -> None:
        """Its records, and what groups have committed for it, are gone."""
        with self.changed:
            for i in range(self._partitions.pop(name)):
                del self._logs[Partition(name, i)]
            del self._topic_ids[name]
            for group in self._groups.values():
                group.offsets = {p: o for p, o in group.offsets.items() if p.topic != name}
            self.changed.notify_all()

    def add_partitions(self, name: str, count: int) -> None:
        """Let the topic have ``count`` more; keys move, as on a real broker."""
        with self.changed:
            first = self._partitions[name]
            self._partitions[name] = first + count
            for i in range(first, first + count):
                self._logs[Partition(name, i)] = Log()
            for group in self._groups.values():
                if group.topic == name:
                    self._rebalance(group)

    def topic_id(self, topic: str) -> str:
        """Empty where there is no such topic."""
        return self._topic_ids.get(topic, "")

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

    def end(self, partition: Partition) -> int:
        """Behind everything, open transactions included."""
        with self.changed:
            return self._logs[partition].end

    def delete_records(self, partition: Partition, before: int) -> None:
        with self.changed:
            log = self._logs[partition]
            del log.entries[: before - log.beginning]
            log.beginning = before

    def compact(self, topic: str) -> None:
        """Do what the broker's cleaner does to a compacted topic; offsets stay."""
        with self.changed:
            for i in range(self.partitions(topic)):
                self._logs[Partition(topic, i)].compact()

    def damage(self, partition: Partition, start: int, stop: int) -> None:
        """Make the offsets from ``start`` to before ``stop`` unreadable."""
        with self.changed:
            self._logs[partition].damaged.append(range(start, stop))

    def unreadable(self, partition: Partition, offset: int) -> range | None:
        """The damaged stretch that has this offset."""
        with self.changed:
            return self._logs[partition].unreadable(offset)

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

    def commit(self, group: str, offsets: Offsets) -> None:
        """Without a transaction."""
        with self.changed:
            self._groups[group].offsets.update(offsets)

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
                log = self._logs.get(partition)
                if log is not None and log.open.pop(transaction, None) is not None:
                    log.entries.append(Entry(None, None))
            if fate is Fate.COMMITTED and offsets:
                self._groups[group].offsets.update(offsets)
            self.changed.notify_all()

    def _append(self, message: Message, transaction: Transaction | None) -> tuple[Partition, int]:
        count = self.partitions(message.topic)
        if message.partition is not None:
            index = message.partition
            if not 0 <= index < count:
                raise BackendError(f"topic {message.topic!r} has no partition {index}")
        elif message.key is not None:
            index = zlib.crc32(message.key) % count
        else:
            self._unkeyed += 1
            index = self._unkeyed % count
        partition = Partition(message.topic, index)
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
        group.balance(self._partitions.get(group.topic, 0))
        self.changed.notify_all()
