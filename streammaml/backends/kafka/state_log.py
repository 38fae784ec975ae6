"""The state topic, read partition by partition as read_committed sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streammaml.backends.kafka.clients import (
    WORKER_CONNECT_TIMEOUT_S,
    ask,
    connect,
    native,
    reader_settings,
    refresh_metadata,
    topic_id,
)
from streammaml.backends.kafka.library import kafka
from streammaml.backends.kafka.topics import TopicAdmin
from streammaml.backends.kafka.unreadable import explain
from streammaml.backends.ports import Partition, Record, StateReader
from streammaml.config import Config
from streammaml.errors import BackendError, ConfigError

_ENDS_TIMEOUT_MS = 10_000
_FETCH_BYTES = 16_777_216
_POLL_RECORDS = 4000


class KafkaStateLog:
    """Asks for ids and ends by a client that stays, and gives each reader its own.

    BackendError from every method; UnavailableError where no broker answers in some seconds.
    """

    def __init__(
        self, config: Config, instance: str, *, connect_timeout_s: float = WORKER_CONNECT_TIMEOUT_S
    ) -> None:
        self._config = config
        self._topic = config.topics.state
        self._settings = _settings(config, instance, connect_timeout_s)
        # asks for the end behind open transactions
        self._bare = self._settings | {"isolation_level": "read_uncommitted"}
        if config.state.enabled:
            with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
                admin.require([self._topic])
        self._consumer = self._connect(self._bare)
        try:
            self._consumer._cluster.set_topics([self._topic])
            refresh_metadata(self._consumer, connect_timeout_s)
        except BaseException:
            self.close()
            raise

    def topic_id(self) -> str:
        """As of at most half a minute ago."""
        return topic_id(self._consumer, self._topic)

    def reader(self, index: int, start: int) -> StateReader:
        self._require(index)
        tp = native(Partition(self._topic, index))
        ends = ask(self._consumer.end_offsets, [tp], timeout_ms=_ENDS_TIMEOUT_MS)
        firsts = ask(self._consumer.beginning_offsets, [tp], timeout_ms=_ENDS_TIMEOUT_MS)
        start = min(max(start, firsts[tp]), ends[tp])
        consumer = self._connect(self._settings) if start < ends[tp] else None
        return KafkaStateReader(consumer, tp, start, ends[tp])

    def close(self) -> None:
        ask(self._consumer.close)

    def _require(self, index: int) -> None:
        """ConfigError if the events topic has grown, and this one has not."""
        cluster = self._consumer._cluster
        if index not in (cluster.partitions_for_topic(self._topic) or ()):
            refresh_metadata(self._consumer, _ENDS_TIMEOUT_MS / 1000)
        found = cluster.partitions_for_topic(self._topic) or ()
        if index not in found:
            raise ConfigError(
                f"topic {self._topic!r} has {len(found)} partitions, and the events come to "
                f"partition {index}: `streammaml topics` says how to mend that"
            )

    def _connect(self, settings: dict[str, Any]) -> Any:
        return connect(kafka.KafkaConsumer, self._config.kafka, settings)


class KafkaStateReader:
    """``consumer`` is its own; None where there is nothing to read."""

    def __init__(self, consumer: Any, tp: Any, start: int, end: int) -> None:
        self._consumer = consumer
        self._tp = tp
        self._next = start
        self._end = end
        self._fault: BackendError | None = None
        if consumer is not None:
            consumer.assign([tp])
            consumer.seek(tp, start)

    @property
    def position(self) -> int:
        return self._next

    @property
    def end(self) -> int:
        return self._end

    def read(self, timeout_s: float) -> Sequence[Record]:
        """UnreadableError where a record is damaged; after any error it is only good to close."""
        if self._next >= self._end:
            return []
        if self._fault is None:
            try:
                return self._read(timeout_s)
            except Exception as error:
                self._fault = explain(error, lambda _: self._next)
                raise self._fault from error
        raise self._fault

    def close(self) -> None:
        if self._consumer is not None:
            ask(self._consumer.close)

    def _read(self, timeout_s: float) -> Sequence[Record]:
        records = self._consumer.poll(timeout_s * 1000).get(self._tp, [])
        at: int = self._consumer.position(self._tp, timeout_ms=0)
        self._next = min(at, self._end)
        waiting = self._consumer._fetcher._next_in_line_exception_metadata
        if waiting is not None:  # for its next poll, or never
            self._fault = explain(waiting.exception, lambda _: self._next)
        while records and records[-1].offset >= self._end:  # written since the reader was made
            records.pop()
        return records  # type: ignore[no-any-return]  # the client has no types


def _settings(config: Config, instance: str, connect_timeout_s: float) -> dict[str, Any]:
    return reader_settings(config, f"streammaml-state-{instance}", connect_timeout_s) | {
        "max_poll_records": _POLL_RECORDS,
        "fetch_min_bytes": 1,
        "fetch_max_bytes": 2 * _FETCH_BYTES,
        "max_partition_fetch_bytes": _FETCH_BYTES,
    }
