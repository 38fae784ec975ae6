"""A reader of whole topics, which never waits longer than it was told to."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog

from streammaml.backends.kafka.clients import (
    WORKER_CONNECT_TIMEOUT_S,
    ask,
    connect,
    learn_topic,
    native,
    ours,
    reader_settings,
    topic_id,
)
from streammaml.backends.kafka.library import errors, kafka
from streammaml.backends.kafka.topics import TopicAdmin
from streammaml.backends.kafka.unreadable import drop_fetched, explain, next_readable
from streammaml.backends.ports import Partition, Record
from streammaml.config import Config
from streammaml.errors import BackendError, UnreadableError

log = structlog.get_logger(__name__)

_ENDS_TIMEOUT_MS = 4000
_POLL_RECORDS = 1000
_FETCH_BYTES = 4_194_304
# A fetch stays at the broker for so long, and what comes meanwhile is there at the next poll.
_FETCH_WAIT_MS = 1000
_METADATA_AGE_MS = 10_000


class KafkaTail:
    """One consumer with all partitions of a topic. ``poll(0.0)`` takes what the client has already
    fetched; what it fetches next comes with a later poll.
    """

    def __init__(
        self,
        config: Config,
        instance: str,
        topic: str,
        *,
        newest: int | None = None,
        connect_timeout_s: float = WORKER_CONNECT_TIMEOUT_S,
    ) -> None:
        self._config = config
        self._topic = topic
        self._next: dict[Partition, int] = {}  # the offset after the last one returned
        self._ends: dict[Partition, int] = {}  # of those that have not reached it
        self._detours: dict[Partition, _Detour] = {}
        self._fault: BackendError | None = None
        with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
            admin.require([topic])
        client_id = f"streammaml-tail-{instance}"
        settings = reader_settings(config, client_id, connect_timeout_s) | {
            "max_poll_records": _POLL_RECORDS,
            "fetch_min_bytes": 1,
            "fetch_max_wait_ms": _FETCH_WAIT_MS,
            "metadata_max_age_ms": _METADATA_AGE_MS,
            "fetch_max_bytes": 4 * _FETCH_BYTES,
            "max_partition_fetch_bytes": _FETCH_BYTES,
        }
        self._consumer = connect(kafka.KafkaConsumer, config.kafka, settings)
        try:
            self._consumer._cluster.set_topics([topic])
            learn_topic(self._consumer, topic, connect_timeout_s)
            self._topic_id = topic_id(self._consumer, topic)
            self._begin(newest)
        except BaseException:
            self.close()
            raise

    @property
    def caught_up(self) -> bool:
        return not self._ends

    def poll(self, timeout_s: float) -> Sequence[Record]:
        if self._fault is not None:
            raise self._fault
        try:
            return self._poll(timeout_s)
        except BackendError as error:
            self._fault = error
            raise

    def close(self) -> None:
        ask(self._consumer.close)

    def _begin(self, newest: int | None) -> None:
        tps = [native(p) for p in self._partitions()]
        firsts = ask(self._consumer.beginning_offsets, tps, timeout_ms=_ENDS_TIMEOUT_MS)
        ends = ask(self._consumer.end_offsets, tps, timeout_ms=_ENDS_TIMEOUT_MS)
        starts = firsts
        if newest is not None:
            starts = {tp: max(firsts[tp], ends[tp] - newest) for tp in tps}
        self._follow(starts)
        self._ends = {ours(tp): ends[tp] for tp in tps if starts[tp] < ends[tp]}

    def _partitions(self) -> list[Partition]:
        """As of some seconds ago."""
        known = self._consumer._cluster.partitions_for_topic(self._topic) or ()
        return [Partition(self._topic, index) for index in sorted(known)]

    def _follow(self, starts: Mapping[Any, int]) -> None:
        """From an offset each, beside what is followed already."""
        ask(self._consumer.assign, [*map(native, self._next), *starts])
        for tp, start in starts.items():
            ask(self._consumer.seek, tp, start)
            self._next[ours(tp)] = start

    def _poll(self, timeout_s: float) -> Sequence[Record]:
        self._look_at_topic()
        self._end_detours()
        batches: Mapping[Any, Sequence[Record]] = {}
        try:
            batches = self._consumer.poll(timeout_s * 1000)
        except Exception as error:
            self._pass_over(error)
        for tp, records in batches.items():
            self._next[ours(tp)] = records[-1].offset + 1
        waiting = self._consumer._fetcher._next_in_line_exception_metadata
        if waiting is not None:  # for its next poll, or never
            self._pass_over(waiting.exception)
        self._ends = {p: end for p, end in self._ends.items() if self._position(p) < end}
        return [record for records in batches.values() for record in records]

    def _position(self, partition: Partition) -> int:
        """The client's own: it has passed markers, which we never see."""
        at: int = ask(self._consumer.position, native(partition), timeout_ms=0)
        return at

    def _look_at_topic(self) -> None:
        known = self._partitions()
        if not known or topic_id(self._consumer, self._topic) not in ("", self._topic_id):
            raise BackendError(f"topic {self._topic!r} was deleted or made anew")
        if new := [p for p in known if p not in self._next]:
            self._follow({native(p): 0 for p in new})

    def _pass_over(self, error: Exception) -> None:
        """Go on behind what is gone or cannot be decoded; raise what is neither."""
        drop_fetched(self._consumer)
        if isinstance(error, errors.OffsetOutOfRangeError):
            self._go_on_at_beginning(error.args[0])
            return
        found = explain(error, self._next.get)
        if not isinstance(found, UnreadableError):
            raise found from error
        partition = Partition(found.topic, found.partition)
        ask(self._consumer.pause, native(partition))
        self._detours[partition] = _Detour(self._config, partition, found.offset)
        log.warning("unreadable", error=str(found))

    def _go_on_at_beginning(self, tps: Iterable[Any]) -> None:
        """Where retention was faster than the reader."""
        firsts = ask(self._consumer.beginning_offsets, list(tps), timeout_ms=_ENDS_TIMEOUT_MS)
        for tp, first in firsts.items():
            at = self._next[ours(tp)]
            if at >= first:
                raise BackendError(f"{tp.topic}-{tp.partition} no longer has an offset {at}")
            log.warning("deleted_before_read", partition=tp.partition, offset=at, next=first)
            ask(self._consumer.seek, tp, first)
            self._next[ours(tp)] = first

    def _end_detours(self) -> None:
        for partition in [p for p, detour in self._detours.items() if not detour.is_alive()]:
            after = self._detours.pop(partition).after()
            log.warning("unreadable_passed_over", partition=partition.index, next=after)
            ask(self._consumer.seek, native(partition), after)
            ask(self._consumer.resume, native(partition))
            self._next[partition] = after


class _Detour(threading.Thread):
    """Looks for the end of what cannot be decoded, which takes a client of its own and seconds."""

    def __init__(self, config: Config, partition: Partition, offset: int) -> None:
        super().__init__(name="streammaml-detour", daemon=True)
        self._config = config
        self._partition = partition
        self._offset = offset
        self._found: int | BackendError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._found = next_readable(self._config, self._partition, self._offset)
        except BackendError as error:
            self._found = error

    def after(self) -> int:
        """Once it has ended."""
        if isinstance(self._found, int):
            return self._found
        raise self._found or BackendError("looking for the end of what is unreadable failed")
