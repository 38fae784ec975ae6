"""A tail on a memory broker."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from streammaml.backends.memory.broker import MemoryBroker
from streammaml.backends.memory.log import MemoryRecord
from streammaml.backends.ports import Partition, Record
from streammaml.errors import BackendError

log = structlog.get_logger(__name__)

_POLL_RECORDS = 1000


class MemoryTail:
    """The twin of KafkaTail."""

    def __init__(self, broker: MemoryBroker, topic: str, newest: int | None = None) -> None:
        self._broker = broker
        self._topic = topic
        with broker.changed:
            count = broker.partitions(topic)
            self._topic_id = broker.topic_id(topic)
            spans = {p: broker.span(p) for p in (Partition(topic, i) for i in range(count))}
        self._ends = {p: end for p, (_, end) in spans.items()}  # of those not reached yet
        self._next = {
            p: beginning if newest is None else max(beginning, end - newest)
            for p, (beginning, end) in spans.items()
        }
        self._settle()

    @property
    def caught_up(self) -> bool:
        return not self._ends

    def poll(self, timeout_s: float) -> Sequence[Record]:
        self._broker.step("poll_tail")
        deadline = time.monotonic() + timeout_s
        with self._broker.changed:
            while True:
                if self._broker.topic_id(self._topic) != self._topic_id:
                    raise BackendError(f"topic {self._topic!r} was deleted or made anew")
                records = self._fetch()
                self._settle()
                left_s = deadline - time.monotonic()
                if records or left_s <= 0:
                    return records
                self._broker.changed.wait(left_s)

    def close(self) -> None: ...

    def _fetch(self) -> list[MemoryRecord]:
        found: list[MemoryRecord] = []
        for i in range(self._broker.partitions(self._topic)):
            partition = Partition(self._topic, i)
            start = max(self._next.get(partition, 0), self._broker.span(partition)[0])
            records, after = self._broker.fetch(partition, start, _POLL_RECORDS - len(found))
            if not records and (bad := self._broker.unreadable(partition, after)):
                log.warning("unreadable_passed_over", partition=i, offset=after, next=bad.stop)
                after = min(bad.stop, self._broker.span(partition)[1])
            self._next[partition] = after
            found += records
        return found

    def _settle(self) -> None:
        """Forget the ends that were reached."""
        self._ends = {p: end for p, end in self._ends.items() if self._next[p] < end}
