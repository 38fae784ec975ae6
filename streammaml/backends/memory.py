"""The memory twin of Kafka: topics, groups and transactions in one process.

Rules kept as on the real broker: an offset is spent even if its transaction aborts or is only
a marker, so offsets have holes; nothing behind an open transaction can be read; partitions move
cooperatively, each member revoking inside its own ``poll``; the newest owner of an instance
name fences the older one. The conformance suite runs on both.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from streammaml.backends.ports import (
    Headers,
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
from streammaml.errors import BackendError, ConfigError, FencedError

_TWIN = "another process runs as instance {!r} of this group: give each its own with --instance"


class MemoryRecord(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class _Fate(Enum):
    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(eq=False, slots=True)
class _Transaction:
    fate: _Fate = _Fate.OPEN
    touched: set[Partition] = field(default_factory=set)


class _Entry(NamedTuple):
    record: MemoryRecord | None  # None: the marker that ends a transaction
    transaction: _Transaction | None


@dataclass(slots=True)
class _Log:
    beginning: int = 0
    entries: list[_Entry] = field(default_factory=list)
    open: dict[_Transaction, int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        return self.beginning + len(self.entries)

    @property
    def stable_end(self) -> int:
        """Where the first open transaction began, or the end."""
        return min(self.open.values(), default=self.end)

    def read(self, start: int, limit: int) -> tuple[list[MemoryRecord], int]:
        """Return at most ``limit`` visible records from ``start``, and the next offset."""
        found: list[MemoryRecord] = []
        for i in range(start - self.beginning, len(self.entries)):
            record, transaction = self.entries[i]
            fate = _Fate.COMMITTED if transaction is None else transaction.fate
            if fate is _Fate.OPEN or len(found) == limit:
                return found, self.beginning + i
            if record is not None and fate is _Fate.COMMITTED:
                found.append(record)
        return found, self.end


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
        self._logs: dict[Partition, _Log] = {}
        self._partitions: dict[str, int] = {}
        self._groups: dict[str, _Group] = {}
        self._producers: dict[str, MemorySink] = {}
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
                self._logs[Partition(name, i)] = _Log()

    def partitions(self, topic: str) -> int:
        if topic not in self._partitions:
            raise ConfigError(f"topic {topic!r} does not exist: create it with `streammaml topics`")
        return self._partitions[topic]

    def append(
        self, messages: Sequence[Message], transaction: _Transaction | None = None
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

    def enter(self, name: str, sink: MemorySink) -> None:
        """Register a transactional producer: the older one of the same id is fenced."""
        with self.changed:
            older = self._producers.get(name)
            self._producers[name] = sink
            if older is not None:
                older.drop()

    def owns(self, name: str, sink: MemorySink) -> bool:
        with self.changed:
            return self._producers.get(name) is sink

    def settle(self, transaction: _Transaction, fate: _Fate, offsets: Offsets, group: str) -> None:
        """End a transaction: messages and offsets take effect in one step."""
        with self.changed:
            transaction.fate = fate
            for partition in transaction.touched:
                del self._logs[partition].open[transaction]
                self._logs[partition].entries.append(_Entry(None, None))
            if fate is _Fate.COMMITTED and offsets:
                self._groups[group].offsets.update(offsets)
            self.changed.notify_all()

    def _append(self, message: Message, transaction: _Transaction | None) -> tuple[Partition, int]:
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
        log.entries.append(_Entry(record, transaction))
        if transaction is not None:
            transaction.touched.add(partition)
            log.open.setdefault(transaction, record.offset)
        return partition, record.offset

    def _rebalance(self, group: _Group) -> None:
        group.balance(self.partitions(group.topic))
        self.changed.notify_all()


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
        self._transaction: _Transaction | None = None
        broker.enter(self._id, self)

    def send(self, messages: Sequence[Message]) -> None:
        with self._broker.changed:
            self._check()
            self._broker.step("send")
            if self._transaction is None:
                self._transaction = _Transaction()
            self._broker.append(messages, self._transaction)

    def commit(self, offsets: Offsets, member: Member) -> None:
        assert isinstance(member, MemoryMember), "a memory sink commits for a memory source"
        with self._broker.changed:
            self._check()
            self._broker.step("commit")
            if offsets and self._broker.is_fenced(member):
                raise FencedError(_TWIN.format(member.instance))
            if offsets and not self._broker.is_current(member):
                raise BackendError("this member is no longer in its group: another has its place")
            transaction, self._transaction = self._transaction or _Transaction(), None
            self._broker.settle(transaction, _Fate.COMMITTED, offsets, member.group)
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
                self._broker.settle(self._transaction, _Fate.ABORTED, {}, "")
                self._transaction = None

    def _check(self) -> None:
        if not self._broker.owns(self._id, self):
            raise FencedError(_TWIN.format(self._instance))
