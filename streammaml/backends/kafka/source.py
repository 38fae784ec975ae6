"""The consumer: a static member of the group."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from streammaml.backends.kafka.clients import (
    CLOSE_TIMEOUT_S,
    OVERHEAD_BYTES,
    WORKER_CONNECT_TIMEOUT_S,
    ask,
    client_settings,
    connect,
    learn_topic,
    native,
    ours,
    refresh_metadata,
    topic_id,
)
from streammaml.backends.kafka.group_watch import GroupWatch
from streammaml.backends.kafka.library import CooperativeStickyAssignor, Future, kafka
from streammaml.backends.kafka.member import KafkaMember
from streammaml.backends.kafka.topics import TopicAdmin
from streammaml.backends.kafka.unreadable import explain, next_readable
from streammaml.backends.ports import (
    Member,
    OnRebalance,
    Partition,
    Rebalance,
    Record,
    Standing,
)
from streammaml.config import Config
from streammaml.errors import BackendError, UnavailableError

CHECK_TIMEOUT_S = 5.0
STALLED_CHECKS = 4
"""A client that has not moved over so many checks, with records waiting, is stuck."""
_POLL_SLICE_S = 0.1  # a partition assigned within a poll must not wait for the end of the poll
_ENDS_TIMEOUT_MS = 4000
_COMMITTED_SLICE_MS = 1000  # committed() waits for open transactions: others go on meanwhile


class KafkaSource:
    """A static member of the group, which keeps its partitions for ``session_timeout_ms`` after
    it is gone, so that a restart moves nothing.

    ``on_rebalance`` runs on a thread of its own for what is revoked or lost, while ``poll`` or
    ``close`` waits for it and heartbeats go on, and on the polling thread for what is assigned.
    What it raises is raised by ``poll`` or ``close``.
    """

    def __init__(
        self,
        config: Config,
        instance: str,
        on_rebalance: OnRebalance,
        *,
        connect_timeout_s: float = WORKER_CONNECT_TIMEOUT_S,
    ) -> None:
        self._config = config
        self._topic = config.topics.events
        self._on_rebalance = on_rebalance
        self._fresh: dict[Partition, float] = {}  # assigned, not yet told: since when
        self._standing: dict[Partition, Standing] = {}  # told as assigned
        self._started: dict[Partition, int] = {}  # and the offset after the last one returned
        self._ends: dict[Partition, int] = {}  # as last asked for
        self._paused = False
        self._group = GroupWatch(config, connect_timeout_s)
        self._waiting: dict[tuple[Partition, int], int] = {}  # position: checks that found it
        self._fault: BaseException | None = None
        with TopicAdmin(config, connect_timeout_s=connect_timeout_s) as admin:
            admin.require([self._topic])
        settings = _consumer_settings(config, instance, connect_timeout_s)
        self._consumer = connect(kafka.KafkaConsumer, config.kafka, settings)
        _keep_joins(self._consumer._coordinator)
        self._consumer.subscribe([self._topic], listener=_Listener(self, self._consumer))
        try:
            # A member that joins without knowing the partitions gets none, and the client may
            # notice only after metadata_max_age_ms (seen).
            learn_topic(self._consumer, self._topic, connect_timeout_s)
        except BackendError:
            self.close()
            raise
        self._topic_id = topic_id(self._consumer, self._topic)

    def poll(self, timeout_s: float) -> Mapping[Partition, Sequence[Record]]:
        if self._fault is not None:
            raise self._fault
        try:
            return self._poll(time.monotonic() + timeout_s)
        except BaseException as error:
            self._fault = error
            raise

    def standing(self, partition: Partition) -> Standing:
        return self._standing[partition]

    def start(self, partition: Partition, offset: int) -> None:
        assert partition in self._standing, f"{partition} is not assigned"
        self._consumer.seek(native(partition), offset)
        self._started[partition] = offset
        if not self._paused:
            self._consumer.resume(native(partition))

    def position(self, partition: Partition) -> int:
        assert partition in self._started, f"{partition} was not started"
        # The client's own: it has passed the markers of transactions, which we never see.
        at: int = ask(self._consumer.position, native(partition), timeout_ms=0)
        return at

    def pause(self) -> None:
        self._paused = True
        self._consumer.pause(*map(native, self._started))

    def resume(self) -> None:
        self._paused = False
        self._consumer.resume(*map(native, self._started))

    def partitions(self) -> int:
        """As of at most a minute ago."""
        return len(self._consumer._cluster.partitions_for_topic(self._topic) or ())

    def rejoin(self) -> None:
        """The broker starts a rebalance if this member leads the group, and ignores it if not."""
        self._consumer._coordinator.request_rejoin()

    def next_readable(self, partition: Partition, offset: int) -> int:
        """Looked for by a client of its own, in seconds; also after ``poll`` has raised."""
        return next_readable(self._config, partition, offset)

    def member(self) -> Member:
        return KafkaMember(self._consumer)

    def lag(self) -> Mapping[Partition, int]:
        """Of each partition that was started."""
        lag = {}
        for p in self._started:
            fetched = self._consumer.highwater(native(p)) or 0
            lag[p] = max(0, fetched - self.position(p), self._ends[p] - self.position(p))
        return lag

    def check(self) -> None:
        """The client rides out an outage in silence: ask for something it cannot know."""
        joined = self._consumer.group_metadata().generation_id >= 0
        if joined and self._group.has_orphans(self.partitions()):
            self.rejoin()
        asked = list(self._standing) or [Partition(self._topic, 0)]
        found = ask(
            self._consumer.end_offsets, list(map(native, asked)), timeout_ms=CHECK_TIMEOUT_S * 1000
        )
        self._ends.update({p: found[native(p)] for p in self._standing})
        before, self._waiting = self._waiting, {}
        for p in () if self._paused else self._started:
            at = self.position(p)
            if at < self._ends[p]:
                checks = before.get((p, at), 0) + 1
                if checks >= STALLED_CHECKS:
                    raise BackendError(
                        f"{self._ends[p] - at} records wait at {at} of {p.topic}-{p.index}, "
                        "and the client fetches none"
                    )
                self._waiting[p, at] = checks

    def close(self) -> None:
        """Leave within a bounded time. After a fault the partitions are told as lost."""
        if self._fault is not None:
            self.tell(Rebalance(lost=self.forget(map(native, list(self._standing)))))
        before, self._fault = self._fault, None
        self._group.close()
        try:
            ask(self._consumer.close, autocommit=False, timeout_ms=CLOSE_TIMEOUT_S * 1000)
        finally:
            ask(self._consumer._client.close)  # a close that fails leaves its thread
        if before is None and self._fault is not None:
            raise self._fault

    def _poll(self, deadline: float) -> Mapping[Partition, Sequence[Record]]:
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                batches = self._consumer.poll(min(left, _POLL_SLICE_S) * 1000)
            except Exception as error:
                raise explain(error, self._started.get) from error
            if self._fault is not None:
                raise self._fault
            if topic_id(self._consumer, self._topic) not in ("", self._topic_id):
                raise BackendError(f"topic {self._topic!r} was made anew")
            if self._fresh:
                self._admit()
            if batches or left == 0:
                found = {ours(tp): records for tp, records in batches.items()}
                self._started.update({p: records[-1].offset + 1 for p, records in found.items()})
                self._keep_what_waits()
                return found

    def _keep_what_waits(self) -> None:
        """The client has an error for its next poll, but drops it if the partition is paused by
        then, and then spins (seen): take it now, for our next poll.
        """
        waiting = self._consumer._fetcher._next_in_line_exception_metadata
        if waiting is not None:
            self._fault = explain(waiting.exception, self._started.get)

    def _admit(self) -> None:
        """Tell of new partitions once it is known how they stand; or try again next time."""
        new = list(self._fresh)
        standing = self._look([native(p) for p in new])
        if standing is None:
            return
        self._fresh.clear()
        self._standing.update(standing)
        self._ends.update({p: s.end for p, s in standing.items()})
        self._on_rebalance(Rebalance(assigned=frozenset(new)))

    def _look(self, new: list[Any]) -> dict[Partition, Standing] | None:
        consumer = self._consumer
        try:
            committed = {
                tp: ask(consumer.committed, tp, timeout_ms=_COMMITTED_SLICE_MS) for tp in new
            }
        except UnavailableError:  # most likely someone's transaction is still open
            waited_ms = (time.monotonic() - min(self._fresh.values())) * 1000
            if waited_ms > 2 * self._config.kafka.transaction_timeout_ms + 10_000:
                raise
            return None
        firsts = ask(consumer.beginning_offsets, new, timeout_ms=_ENDS_TIMEOUT_MS)
        ends = ask(consumer.end_offsets, new, timeout_ms=_ENDS_TIMEOUT_MS)
        refresh_metadata(consumer, _ENDS_TIMEOUT_MS / 1000)
        count = self.partitions()
        return {
            ours(tp): Standing(committed[tp], firsts[tp], ends[tp], self._topic_id, count)
            for tp in new
        }

    def admit_later(self, partitions: Iterable[Any]) -> None:
        # Paused at a made-up position: the client would otherwise look for one by itself.
        for tp in partitions:
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)
            self._fresh[ours(tp)] = time.monotonic()

    def forget(self, partitions: Iterable[Any]) -> frozenset[Partition]:
        """Return those that were told as assigned."""
        gone = [ours(tp) for tp in partitions]
        for p in gone:
            self._fresh.pop(p, None)
            self._started.pop(p, None)
        return frozenset(p for p in gone if self._standing.pop(p, None) is not None)

    def tell(self, change: Rebalance) -> None:
        if change == Rebalance():
            return
        try:
            self._on_rebalance(change)
        except BaseException as error:  # carried to the caller of poll
            self._fault = self._fault or error


class _Joined(Future):  # type: ignore[misc]  # see the import
    """A join that succeeded while no poll waited for it: done once someone does."""

    def __init__(self, assignment: Any) -> None:
        super().__init__()
        self._assignment = assignment

    def add_callback(self, call: Any, *args: Any, **options: Any) -> Any:
        super().add_callback(call, *args, **options)
        return self if self.is_done else self.success(self._assignment)


def _keep_joins(coordinator: Any) -> None:
    """The client joins anew where a join ended between two polls, and so does the whole group: with
    short polls for ever (seen). Let the next poll take the result instead.
    """
    join = coordinator.ensure_active_group_async

    async def ensure_active_group_async(timeout_ms: float | None = None) -> Any:
        task = coordinator._join_task
        if task is not None and task.succeeded():
            coordinator._join_task = _Joined(task.value)
        return await join(timeout_ms)

    coordinator.ensure_active_group_async = ensure_active_group_async


class _Listener(kafka.AsyncConsumerRebalanceListener):  # type: ignore[misc]  # see the import
    """Its methods run on the client's IO thread, where nothing may wait: neither the producer's
    commit, which would stop the heartbeats, nor the consumer's, which raises there.
    """

    def __init__(self, source: KafkaSource, consumer: Any) -> None:
        self._source = source
        self._net = consumer._manager._net

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._source.admit_later(assigned)

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        await self._tell_aside(Rebalance(revoked=self._source.forget(revoked)))

    async def on_partitions_lost(self, lost: Iterable[Any]) -> None:
        await self._tell_aside(Rebalance(lost=self._source.forget(lost)))

    async def _tell_aside(self, change: Rebalance) -> None:
        told = Future()

        def tell() -> None:
            try:
                self._source.tell(change)
            finally:
                self._net.call_soon_threadsafe(lambda: told.success(None))

        thread = threading.Thread(target=tell, name="streammaml-rebalance")
        thread.start()
        await told
        thread.join()


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
        "heartbeat_interval_ms": min(1000, k.session_timeout_ms // 3),
        "fetch_min_bytes": 65_536,
        "fetch_max_wait_ms": 100,
        "max_partition_fetch_bytes": max(
            1_048_576, config.worker.max_record_bytes + OVERHEAD_BYTES
        ),
        "metadata_max_age_ms": 60_000,
        "metrics_enabled": False,
    }
