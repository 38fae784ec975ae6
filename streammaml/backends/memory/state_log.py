"""The state topic on a memory broker."""

from __future__ import annotations

import time
from collections.abc import Sequence

from streammaml.backends.memory.broker import MemoryBroker
from streammaml.backends.memory.log import MemoryRecord
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
        beginning = broker.span(partition)[0]
        self._end = broker.end(partition)
        self._next = min(max(start, beginning), self._end)

    @property
    def position(self) -> int:
        return self._next

    @property
    def end(self) -> int:
        return self._end

    def read(self, timeout_s: float) -> Sequence[Record]:
        self._broker.step("read_state")
        deadline = time.monotonic() + timeout_s
        with self._broker.changed:
            while (found := self._fetch())[1] == self._next < self._end:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not self._is_behind_open():
                    break
                self._broker.changed.wait(left_s)
        records, after = found
        if not records and after < self._end and self._broker.unreadable(self._partition, after):
            topic, index = self._partition.topic, self._partition.index
            raise UnreadableError(f"damaged at {after}", topic, index, after)
        self._next = min(after, self._end)
        while records and records[-1].offset >= self._end:  # written since the reader was made
            records.pop()
        return records

    def close(self) -> None: ...

    def _fetch(self) -> tuple[list[MemoryRecord], int]:
        return self._broker.fetch(self._partition, self._next, self._room)

    def _is_behind_open(self) -> bool:
        """Whether the next record cannot be read before a transaction has ended."""
        return self._broker.span(self._partition)[1] <= self._next
