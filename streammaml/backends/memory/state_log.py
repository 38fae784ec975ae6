"""The state topic on a memory broker."""

from __future__ import annotations

from collections.abc import Sequence

from streammaml.backends.memory.broker import MemoryBroker
from streammaml.backends.ports import Partition, Record, StateReader
from streammaml.config import Config
from streammaml.errors import UnreadableError


class MemoryStateLog:
    """The twin of KafkaStateLog."""

    def __init__(self, broker: MemoryBroker, config: Config) -> None:
        self._broker = broker
        self._topic = config.topics.state
        self._room = config.worker.max_poll_records
        broker.partitions(self._topic)

    def topic_id(self) -> str:
        return self._broker.topic_id(self._topic)

    def reader(self, index: int, start: int) -> StateReader:
        return MemoryStateReader(self._broker, Partition(self._topic, index), start, self._room)

    def close(self) -> None: ...


class MemoryStateReader:
    def __init__(self, broker: MemoryBroker, partition: Partition, start: int, room: int) -> None:
        self._broker = broker
        self._partition = partition
        self._room = room
        beginning, self._end = broker.span(partition)
        self._next = min(max(start, beginning), self._end)

    @property
    def position(self) -> int:
        return self._next

    @property
    def end(self) -> int:
        return self._end

    def read(self, timeout_s: float) -> Sequence[Record]:
        self._broker.step("read_state")
        records, after = self._broker.fetch(self._partition, self._next, self._room)
        if not records and after < self._end and self._broker.unreadable(self._partition, after):
            topic, index = self._partition.topic, self._partition.index
            raise UnreadableError(f"damaged at {after}", topic, index, after)
        self._next = min(after, self._end)
        while records and records[-1].offset >= self._end:  # written since the reader was made
            records.pop()
        return records

    def close(self) -> None: ...
