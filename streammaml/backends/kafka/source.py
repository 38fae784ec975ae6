"""The consumer: a static member of the group that starts where its group has committed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog

from streammaml.backends.kafka.clients import (
    CLOSE_TIMEOUT_S,
    OVERHEAD_BYTES,
    WORKER_CONNECT_TIMEOUT_S,
    ask,
    client_settings,
    connect,
    native,
    ours,
)
from streammaml.backends.kafka.library import CooperativeStickyAssignor, kafka
from streammaml.backends.kafka.topics import TopicAdmin
from streammaml.backends.ports import (
    Member,
    OnRebalance,
    Partition,
    Rebalance,
    Record,
    first_offset,
)
from streammaml.config import Config
from streammaml.errors import BackendError, UnavailableError

log = structlog.get_logger(__name__)

CHECK_TIMEOUT_S = 5.0
STALLED_CHECKS = 4
"""A client that has not moved over so many checks, with records waiting, is stuck."""
_POLL_SLICE_S = 0.1  # a partition assigned within a poll must not wait for the end of the poll
_ENDS_TIMEOUT_MS = 4000
_COMMITTED_SLICE_MS = 1000  # committed() waits for open transactions: others go on meanwhile


class KafkaSource:
    """A static member of the group, which keeps its partitions for ``session_timeout_ms`` after
    it is gone, so that a restart moves nothing.

    ``on_rebalance`` runs on the client's IO thread for what is revoked or lost, while ``poll`` or
    ``close`` waits for it, and on the polling thread for what is assigned. What it raises is
    raised by ``poll`` or ``close``.
    """

    def __init__(
        self,
        config: Config,
        instance: str,
        on_rebalance: OnRebalance,
        *,
        connect_timeout_s: float = WORKER_CONNECT_TIMEOUT_S,
    ) -> None:
        self._config = config.kafka
        self._topic = config.topics.events
        self._on_rebalance = on_rebalance
        self._next: dict[Partition, int] = {}
        self._fresh: dict[Partition, float] = {}  # assigned, without a position: since when
        self._waiting: dict[tuple[Partition, int], int] = {}  # position: checks that found it
        self._fault: BaseException | None = None
        with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
            admin.require([self._topic])
        settings = _consumer_settings(config, instance, connect_timeout_s)
        self._consumer = connect(kafka.KafkaConsumer, config.kafka, settings)
        self._consumer.subscribe([self._topic], listener=_Listener(self))
        try:
            ask(self._learn_topic, time.monotonic() + connect_timeout_s)
        except BackendError:
            self.close()
            raise

    def poll(self, timeout_s: float) -> Mapping[Partition, Sequence[Record]]:
        if self._fault is not None:
            raise self._fault
        try:
            return self._poll(time.monotonic() + timeout_s)
        except BaseException as error:
            self._fault = error
            raise

    def member(self) -> Member:
        member: Member = self._consumer.group_metadata()
        return member

    def lag(self) -> Mapping[Partition, int]:
        """Of each partition whose end a first fetch has told."""
        ends = {p: self._consumer.highwater(native(p)) for p in self._next}
        # The client's own position: it has passed the markers of transactions, which we never see.
        return {
            p: max(0, end - ask(self._consumer.position, native(p), timeout_ms=0))
            for p, end in ends.items()
            if end is not None
        }

    def check(self) -> None:
        """The client rides out an outage in silence: ask for something it cannot know."""
        own = [native(p) for p in self._next]
        asked = own or [kafka.TopicPartition(self._topic, 0)]
        ends = ask(self._consumer.end_offsets, asked, timeout_ms=CHECK_TIMEOUT_S * 1000)
        before, self._waiting = self._waiting, {}
        for tp in own:
            at = ask(self._consumer.position, tp, timeout_ms=0)
            if at is not None and at < ends[tp]:
                checks = before.get((ours(tp), at), 0) + 1
                if checks >= STALLED_CHECKS:
                    raise BackendError(
                        f"{ends[tp] - at} records wait at {at} of {tp.topic}-{tp.partition}, "
                        "and the client fetches none"
                    )
                self._waiting[ours(tp), at] = checks

    def close(self) -> None:
        """Leave within a bounded time. After a fault the partitions are told as lost."""
        if self._fault is not None:
            self.lose([native(p) for p in self._next])
        before, self._fault = self._fault, None
        try:
            ask(self._consumer.close, autocommit=False, timeout_ms=CLOSE_TIMEOUT_S * 1000)
        finally:
            ask(self._consumer._client.close)  # a close that fails leaves its thread
        if before is None and self._fault is not None:
            raise self._fault

    def _learn_topic(self, deadline: float) -> None:
        """Wait for the partitions of the topic. A member that joins without knowing them gets
        none, and the client may notice only after ``metadata_max_age_ms`` (seen).
        """
        cluster, manager = self._consumer._cluster, self._consumer._manager
        while cluster.partitions_for_topic(self._topic) is None:
            left_ms = max(0.0, deadline - time.monotonic()) * 1000
            manager.run(manager.wait_for, cluster.request_update(), left_ms)

    def _poll(self, deadline: float) -> Mapping[Partition, Sequence[Record]]:
        while True:
            left = max(0.0, deadline - time.monotonic())
            batches = ask(self._consumer.poll, min(left, _POLL_SLICE_S) * 1000)
            if self._fault is not None:
                raise self._fault
            if self._fresh:
                self._admit()
            if batches or left == 0:
                found = {ours(tp): records for tp, records in batches.items()}
                self._next.update({p: records[-1].offset + 1 for p, records in found.items()})
                return found

    def _admit(self) -> None:
        """Give new partitions their positions and let them flow; or try again next time."""
        starts = self._starts([native(p) for p in self._fresh])
        if starts is None:
            return
        for tp, offset in starts.items():
            self._consumer.seek(tp, offset)
            self._consumer.resume(tp)
        new = {ours(tp): offset for tp, offset in starts.items()}
        self._fresh.clear()
        self._next.update(new)
        self._on_rebalance(Rebalance(assigned=frozenset(new)))

    def _starts(self, new: list[Any]) -> dict[Any, int] | None:
        consumer = self._consumer
        try:
            committed = {
                tp: ask(consumer.committed, tp, timeout_ms=_COMMITTED_SLICE_MS) for tp in new
            }
        except UnavailableError:  # most likely someone's transaction is still open
            waited_ms = (time.monotonic() - min(self._fresh.values())) * 1000
            if waited_ms > 2 * self._config.transaction_timeout_ms + 10_000:
                raise
            return None
        firsts = ask(consumer.beginning_offsets, new, timeout_ms=_ENDS_TIMEOUT_MS)
        ends = ask(consumer.end_offsets, new, timeout_ms=_ENDS_TIMEOUT_MS)
        starts = {}
        for tp in new:
            held = (firsts[tp], ends[tp])
            starts[tp] = first_offset(ours(tp), committed[tp], held, self._config)
            if committed[tp] not in (None, starts[tp]):
                log.warning("gap_accepted", **tp._asdict(), committed=committed[tp], held=held)
        return starts

    def admit_later(self, partitions: Iterable[Any]) -> None:
        # Paused at a made-up position: the client would otherwise look for one by itself.
        for tp in partitions:
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)
            self._fresh[ours(tp)] = time.monotonic()

    def revoke(self, partitions: Iterable[Any]) -> None:
        self._tell(Rebalance(revoked=self._forget(partitions)))

    def lose(self, partitions: Iterable[Any]) -> None:
        self._tell(Rebalance(lost=self._forget(partitions)))

    def _forget(self, partitions: Iterable[Any]) -> frozenset[Partition]:
        gone = [ours(tp) for tp in partitions]
        for p in gone:
            self._fresh.pop(p, None)
        return frozenset(p for p in gone if self._next.pop(p, None) is not None)

    def _tell(self, change: Rebalance) -> None:
        if change == Rebalance():
            return
        try:
            self._on_rebalance(change)
        except BaseException as error:  # carried from the IO thread to the caller of poll
            self._fault = self._fault or error


class _Listener(kafka.ConsumerRebalanceListener):  # type: ignore[misc]  # see the import
    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._source.admit_later(assigned)

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self._source.revoke(revoked)

    def on_partitions_lost(self, lost: Iterable[Any]) -> None:
        self._source.lose(lost)


def _consumer_settings(config: Config, instance: str, connect_timeout_s: float) -> dict[str, Any]:
    k = config.kafka
    return client_settings(k, connect_timeout_s) | {
        "client_id": f"streammaml-{instance}",
        "group_id": k.group,
        "group_instance_id": instance,
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "partition_assignment_strategy": [CooperativeStickyAssignor],
        "max_poll_records": config.worker.max_poll_records,
        "max_poll_interval_ms": k.max_poll_interval_ms,
        "session_timeout_ms": k.session_timeout_ms,
        "heartbeat_interval_ms": min(3000, k.session_timeout_ms // 3),
        "fetch_min_bytes": 65_536,
        "fetch_max_wait_ms": 100,
        "max_partition_fetch_bytes": max(
            1_048_576, config.worker.max_record_bytes + OVERHEAD_BYTES
        ),
        "metadata_max_age_ms": 60_000,
        "metrics_enabled": False,
    }
